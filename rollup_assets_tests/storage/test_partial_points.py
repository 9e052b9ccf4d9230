"""Partial points at rest: what was written is read, shard by shard, and pieces leave no trace in the bytes."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollup_assets.batches import BatchCalendar
from rollup_assets.kernels.partial import PartialPoints
from rollup_assets.storage import partial_points as storage
from rollup_assets.storage.encodings import PARTIAL_POINTS_ROW_GROUP
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import PARTIAL_POINTS, Manifest, Stage, StagedFile
from rollup_assets.storage.metric_names import MetricNames
from rollup_assets.storage.parquet import StagedParquet
from rollup_assets.storage.partial_points import PartialPointsLayout, PartialPointsReader, PartialPointsWriter
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN

BATCH = BatchCalendar(1_767_225_600_000, 3_600_000).first
RESOLUTIONS = (60_000, 3_600_000)
NAMES = ["", "cpu", "disk/\N{GREEK SMALL LETTER ALPHA}", "\N{FACE WITH TEARS OF JOY}"]
PLAIN, DETAILED, METRIC = 3, 7, 4


def made(count: int, *, details: bool = False, dtype: str = "int64", seed: int = 0, names: int = len(NAMES)) -> PartialPoints:
    """Partial points of ``count`` series with any values, extremes among them."""
    random = np.random.default_rng(seed)

    def integers(*shape: int) -> Any:
        found = random.integers(-(10**12), 10**12, shape)
        found.reshape(-1)[:2] = [INT64_MIN, INT64_MAX][: found.size]
        return found

    def values(*shape: int) -> Any:
        if dtype == "int64":
            return integers(*shape)
        found = random.normal(size=shape)
        found.reshape(-1)[:3] = [-0.0, 5e-324, 1.7e308][: found.size]
        return found

    windows = integers(len(RESOLUTIONS), DETAILED if details else PLAIN, count)
    if details:
        windows[:, METRIC] = random.integers(0, names, (len(RESOLUTIONS), count))
    metric = random.integers(0, names, count).astype(np.int32)
    return PartialPoints(
        integers(count), integers(count), metric, integers(count), values(count), integers(count), values(count), windows,
        values(len(RESOLUTIONS), 4, count),
    )  # fmt: skip


def pieces(whole: PartialPoints, *ends: int) -> list[PartialPoints]:
    bounds = [0, *ends, len(whole.id)]
    return [PartialPoints(*(column[..., a:b] for column in whole)) for a, b in itertools.pairwise(bounds)]


class Written:
    """Files of one group of shards, and a reader of them."""

    def __init__(self, folder: Path, shards: Sequence[tuple[int, PartialPoints, Sequence[str]]], dtype: str = "int64") -> None:
        stage = Stage(Place.parse(str(folder)))
        self.layout = PartialPointsLayout(RESOLUTIONS, dtype)
        root = stage.folder(PARTIAL_POINTS, BATCH)
        writer = PartialPointsWriter(root, "attempt", shards[0][0] if shards else 0, self.layout)
        for shard, partial, names in shards:
            writer.write(shard, partial, names)
        self.files: list[StagedFile] = writer.close()
        self.paths = [Path((root / file.path).path) for file in self.files]
        manifest = Manifest(
            asset=PARTIAL_POINTS,
            partition=BATCH.key,
            attempt="attempt",
            code_version="1",
            parameters={},
            files=tuple(self.files),
            digest="",
        )
        self.reader = PartialPointsReader(stage, manifest, BATCH, self.layout)

    def read(self, shard: int) -> tuple[PartialPoints, list[str]]:
        metrics = MetricNames()
        return self.reader.read(shard, metrics), metrics.names


def assert_same(found: PartialPoints, found_names: Sequence[str], expected: PartialPoints, names: Sequence[str]) -> None:
    """Every bit, with metrics compared by name."""
    details = expected.integers.shape[1] > PLAIN
    for column, other, name in zip(found, expected, PartialPoints._fields, strict=True):
        if name == "metric":
            assert [found_names[code] for code in column] == [names[code] for code in other]
            continue
        assert column.shape == other.shape
        assert column.dtype == other.dtype
        if name == "integers" and details:
            for level in range(len(RESOLUTIONS)):
                assert [found_names[code] for code in column[level, METRIC]] == [names[code] for code in other[level, METRIC]]
            column, other = np.delete(column, METRIC, 1), np.delete(other, METRIC, 1)
        assert column.tobytes() == np.ascontiguousarray(other).tobytes(), name


@pytest.mark.parametrize("dtype", ["int64", "float64"])
@pytest.mark.parametrize("details", [False, True], ids=["plain", "details"])
@pytest.mark.parametrize("count", [1, 5, 1000])
def test_partial_points_round_trip(count: int, details: bool, dtype: str, tmp_path: Path) -> None:
    expected = made(count, details=details, dtype=dtype)
    written = Written(tmp_path, [(3, expected, NAMES)], dtype)
    (file,) = written.files
    assert (file.rows, file.shards) == (count, (3,))
    assert_same(*written.read(3), expected, NAMES)
    ids, times, values = written.reader.last_points(3)
    assert (ids.tolist(), times.tolist(), values.tobytes()) == (
        expected.id.tolist(),
        expected.last_time.tolist(),
        expected.last_value.tobytes(),
    )
    metrics = MetricNames()
    metrics.codes_of(NAMES)
    metric, org, ids = written.reader.series(3, metrics)
    assert (metric.tolist(), org.tolist(), ids.tolist()) == (expected.metric.tolist(), expected.org.tolist(), expected.id.tolist())


def test_several_shards_of_both_kinds_share_two_files(tmp_path: Path) -> None:
    """Each shard is read alone, with the names that it was written with."""
    shards = {
        4: (made(10, seed=4), NAMES),
        5: (made(20, seed=5, details=True, names=2), ["b", "a"]),
        6: (made(1, seed=6, names=1), ["c"]),
        7: (made(30, seed=7, details=True), list(reversed(NAMES))),
    }
    written = Written(tmp_path, [(shard, *made_of) for shard, made_of in shards.items()])
    assert [path.name for path in written.paths] == ["partial-00004.parquet", "partial-00004-details.parquet"]
    assert [file.shards for file in written.files] == [(4, 6), (5, 7)]
    for shard, (expected, names) in shards.items():
        assert_same(*written.read(shard), expected, names)


def test_one_row_group_at_a_time_is_held_beside_the_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of a shard's at once took as much memory as the arrays, beside them."""
    monkeypatch.setattr(storage, "PARTIAL_POINTS_ROW_GROUP", 10)
    expected = made(35)
    written = Written(tmp_path, [(3, expected, NAMES)])
    assert written.files[0].shards == (3, 3, 3, 3)
    read, held = StagedParquet.read, []

    def watched(file: StagedParquet, row_group: int, columns: tuple[str, ...] | None = None) -> pa.Table:
        gc.collect()
        assert not any(table() for table in held)
        table = read(file, row_group, columns)
        held.append(weakref.ref(table))
        return table

    monkeypatch.setattr(StagedParquet, "read", watched)
    assert_same(*written.read(3), expected, NAMES)
    assert len(held) == 4


def test_a_shard_that_was_not_written_is_empty(tmp_path: Path) -> None:
    for written in (Written(tmp_path / "one", [(3, made(5), NAMES)]), Written(tmp_path / "none", [])):
        found, _ = written.read(9)
        assert len(found.id) == 0
        assert found.integers.shape == (len(RESOLUTIONS), PLAIN, 0)
        assert [len(column) for column in written.reader.last_points(9)] == [0, 0, 0]
        assert [column.dtype for column in written.reader.series(9, MetricNames())] == [np.int32, np.int64, np.int64]


@pytest.mark.parametrize("details", [False, True], ids=["plain", "details"])
def test_a_shard_of_more_series_than_a_row_group_holds(details: bool, tmp_path: Path) -> None:
    """Is cut into row groups of a fixed size, next to shards that are not."""
    count = PARTIAL_POINTS_ROW_GROUP + 7
    large = made(count, details=details)
    written = Written(
        tmp_path, [(0, made(3, details=details, seed=1), NAMES), (1, large, NAMES), (2, made(4, details=details, seed=2), NAMES)]
    )
    (file,) = written.files
    assert file.shards == (0, 1, 1, 2)
    metadata = pq.read_metadata(written.paths[0])
    assert [metadata.row_group(group).num_rows for group in range(4)] == [3, PARTIAL_POINTS_ROW_GROUP, 7, 4]
    assert_same(*written.read(1), large, NAMES)
    assert_same(*written.read(2), made(4, details=details, seed=2), NAMES)


@pytest.mark.parametrize("details", [False, True], ids=["plain", "details"])
def test_the_pieces_in_which_a_shard_comes_leave_no_trace(details: bool, tmp_path: Path) -> None:
    """As many as memory asks for, each with names of its own: the same bytes."""
    whole = made(PARTIAL_POINTS_ROW_GROUP + 50, details=details)
    digests = set()
    for number, ends in enumerate([(), (1, 2, 1000), (PARTIAL_POINTS_ROW_GROUP,), (PARTIAL_POINTS_ROW_GROUP + 1,)]):
        cut = []
        for shift, piece in enumerate(pieces(whole, *ends)):
            # The same names under other codes, and one that does not occur.
            turned = [*NAMES[shift % 4 :], *NAMES[: shift % 4], f"unused {shift}"]
            codes = np.array([turned.index(name) for name in NAMES], np.int32)
            integers = piece.integers.copy()
            if details:
                integers[:, METRIC] = codes[integers[:, METRIC]]
            cut.append((0, piece._replace(metric=codes[piece.metric], integers=integers), turned))
        written = Written(tmp_path / str(number), cut)
        digests.add((written.files[0].digest, written.files[0].shards))
        assert_same(*written.read(0), whole, NAMES)
    assert len(digests) == 1


def test_what_was_written_may_change_afterwards(tmp_path: Path) -> None:
    """The writer keeps no view of the caller's names or arrays beyond what it was given."""
    partial = made(5, details=True)
    before = partial.integers.copy()
    Written(tmp_path, [(0, partial, NAMES)])
    assert (partial.integers == before).all()


def test_columns_are_named_after_resolutions() -> None:
    schema = PartialPointsLayout((60_000, 300_000), "float64").schema(details=False)
    assert schema.names[:8] == [
        "metric_shard_id",
        "id",
        "org_id",
        "metric",
        "first_timestamp",
        "first_value",
        "last_timestamp",
        "last_value",
    ]
    assert schema.names[8:15] == ["count_1m", "steps_1m", "resets_1m", "sum_1m", "min_1m", "max_1m", "delta_1m"]
    assert schema.field("sum_5m").type == pa.float64()
    details = PartialPointsLayout((60_000, 300_000), "int64").schema(details=True)
    assert {"org_id_5m", "metric_5m", "lag_sum_5m", "lag_count_5m"} <= set(details.names)
    assert details.field("sum_5m").type == pa.int64()
