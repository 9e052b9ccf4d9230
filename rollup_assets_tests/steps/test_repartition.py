"""Staging a batch: every staged point, partial points and quarantined row against the reference model, for every shape of input."""

from __future__ import annotations

import math
import random
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from rollup_assets import failpoints
from rollup_assets.errors import (
    ConcurrentWriteError,
    LandingZoneError,
    QuarantineError,
    ReconciliationError,
    RollupOverflowError,
    ShortOfMemoryError,
    StageCorruptError,
    StorageError,
    TableMismatchError,
)
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED
from rollup_assets_tests import naive, staged
from rollup_assets_tests.landing import Shape, land, pipeline_of, table_of, with_engine, write_bytes, write_rows, write_table
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN, RawRow
from rollup_assets_tests.strategies import AROUND_EPOCH, HOUR, MINUTE, TODAY, Grid, crowd, dirty_rows, doubles, histories

if TYPE_CHECKING:
    from rollup_assets.batches import Batch
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.steps.results import StagedBatch

FreshHome = Callable[[], Path]

RESOLUTIONS = (MINUTE, 5 * MINUTE, HOUR)
ONE_BATCH = Grid(TODAY, HOUR, 1, RESOLUTIONS, HOUR)
NEGATIVE = Grid(AROUND_EPOCH, HOUR, 1, RESOLUTIONS, HOUR)
# Compiled code is loaded within the first example: no deadline. The fixtures keep no state.
few = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def stage(pipeline: Pipeline, batch: Batch, *, force: bool = False) -> StagedBatch:
    from rollup_assets.steps.repartition import stage_batch

    return stage_batch(pipeline, batch, force=force)


def first_batch(pipeline: Pipeline) -> Batch:
    return pipeline.calendar.first


def good(ts: int, value: float = 1, *, series: int = 7) -> RawRow:
    return RawRow(series, 1, "cpu", ts, value)


def plenty(count: int = 200, start: int = TODAY) -> list[RawRow]:
    """Good rows, so many that a few bad ones stay below the limit."""
    return [good(start + 1000 * index, index) for index in range(count)]


# ------------------------------------------------------------------------------------------------------ the model, value by value


def assert_staged(pipeline: Pipeline, batch: Batch, files: dict[str, Sequence[RawRow]], result: StagedBatch) -> None:
    """Everything staged is what the model says of these files (by path relative to the landing zone)."""
    expected = naive.accept(files, batch.start, batch.end)
    found = staged.points(pipeline, batch, result.repartitioned)
    shards = naive.repartitioned(expected.points, pipeline.settings.shards)
    assert found.keys() == shards.keys()
    for shard, points in shards.items():
        assert [staged.bits(point) for point in found[shard]] == [staged.bits(point) for point in points]
    counters = result.repartitioned.counters
    rows = sum(len(rows) for rows in files.values())
    assert {
        name: counters[name]
        for name in ("rows_read", "rows_accepted", "duplicates", "rows_quarantined", "series", "raw_files", "bad_files")
    } == {
        "rows_read": rows,
        "rows_accepted": len(expected.points),
        "duplicates": expected.duplicates,
        "rows_quarantined": len(expected.quarantined),
        "series": len({point.id for point in expected.points}),
        "raw_files": len(files),
        "bad_files": 0,
    }
    refused = staged.quarantined(pipeline, batch, result.quarantined)
    assert Counter((row["reason"], row["file"], row["row_number"]) for row in refused) == Counter(
        (row.reason, row.file, row.row_number) for row in expected.quarantined
    )
    assert result.quarantined.counters["reasons"] == dict(Counter(row.reason for row in expected.quarantined))
    partials = naive.partial_points_of(expected.points, batch.end, pipeline.settings.resolutions, pipeline.settings.lookback)
    counters = result.partial_points.counters
    assert counters["series"] == len(partials)
    for resolution in pipeline.settings.resolutions:
        open_windows = [partial.open[resolution] for partial in partials.values() if resolution in partial.open]
        assert counters["windows"][str(resolution)] == len(open_windows)
        assert counters["counts"][str(resolution)] == sum(window.count for window in open_windows)


def test_translations_of_metric_codes_are_held_for_one_map_task_at_a_time() -> None:
    """Of 100 tasks each of which has seen a quarter of a million names these would be 100 MB a shard."""
    # Before memory is traced: numba alone takes 16 MB.
    from rollup_assets.kernels import points  # noqa: F401
    from rollup_assets.steps.shard_blocks import ShardBlocks
    from rollup_assets.storage import blocks

    code, tasks = 250_000, 100
    names = {code: "cpu"}
    headers = (blocks.Header(blocks.NAMES, 0, 1).pack(), blocks.Header(blocks.ROWS, 0, 1, value=blocks.INT64, metric=blocks.INT32).pack())
    payloads = (
        np.int32(code).tobytes() + np.uint32(3).tobytes() + names[code].encode(),
        np.array([7, 1, 1], np.int64).tobytes() + np.array([1, code], np.int32).tobytes(),
    )

    class Source:
        def __iter__(self) -> Iterator[tuple[int, bytes, memoryview]]:
            return ((task, header, memoryview(payload)) for task in range(tasks) for header, payload in zip(headers, payloads, strict=True))

        def headers(self) -> Iterator[tuple[int, bytes]]:
            return ((task, header) for task in range(tasks) for header in headers)

    rows = ShardBlocks(Source())
    tracemalloc.start()
    try:
        found = [int(block.translation[block.metric][0]) for _, block in rows]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found == [0] * tasks
    assert rows.names.names == ["cpu"]
    assert most < 10e6


@pytest.mark.parametrize("in_runs", [False, True])
def test_of_many_metric_names_a_shard_is_told_those_of_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, in_runs: bool) -> None:
    """By the one map task, not to every shard; and to the one run that it comes to, if the shard is sorted in runs."""
    from rollup_assets.steps import sort
    from rollup_assets.storage import blocks, metric_names
    from rollup_assets.storage.spill import SpillFile

    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    series = 3000
    files = {}
    for number in range(2):
        rows = [RawRow(id, 1, f"metric {id}", TODAY + 1000 * id + number, id) for id in range(series)]
        files[write_rows(pipeline, batch, f"part-{number}.parquet", rows, Shape(row_group=1000))] = rows
    told: Counter[str] = Counter()

    def count(self: SpillFile, bucket: int, header: bytes, buffers: Sequence[Any], emit: Any = SpillFile.emit) -> None:
        found = blocks.Header.unpack(header)
        if found.kind == blocks.NAMES:
            told.update(blocks.unpack_names(memoryview(buffers[0]), found.rows)[1])
        emit(self, bucket, header, buffers)

    monkeypatch.setattr(SpillFile, "emit", count)
    monkeypatch.setattr(metric_names, "_FEW", 0)
    if in_runs:
        monkeypatch.setattr(sort._ShardSorter, "_most_rows", lambda *_, dimensions: 100)  # noqa: ARG005
    assert_staged(pipeline, batch, files, stage(pipeline, batch))
    assert told == dict.fromkeys((f"metric {id}" for id in range(series)), 2 if in_runs else 1)


shapes = st.builds(
    Shape,
    metric=st.sampled_from(
        (pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string()))
    ),
    time=st.sampled_from((pa.int64(), pa.timestamp("ms"), pa.timestamp("us", "UTC"))),
    row_group=st.sampled_from((1, 2, 5, 1_000_000)),
)


@few
@given(data=st.data(), start=st.sampled_from((TODAY, AROUND_EPOCH)))
def test_staged_equals_the_model_for_good_rows(data: st.DataObject, start: int, fresh_home: FreshHome) -> None:
    """Nasty series in one to three files of different shapes and row groups."""
    pipeline = pipeline_of(Grid(start, HOUR, 1, RESOLUTIONS, HOUR), fresh_home())
    batch = first_batch(pipeline)
    rows = data.draw(histories(Grid(start, HOUR, 1, RESOLUTIONS, HOUR)))
    files: dict[str, Sequence[RawRow]] = {}
    for number in range(data.draw(st.integers(1, 3))):
        part = rows[number::3] if number < 2 else rows[2::3]
        files[write_rows(pipeline, batch, f"part-{number}.parquet", part, data.draw(shapes))] = part
    # Of two files with the same content one is a copy, which is not the model's affair.
    assume(len({(pipeline.landing_zone.root / path).read_bytes() for path in files}) == len(files))
    assert_staged(pipeline, batch, files, stage(pipeline, batch))


@pytest.mark.scenario("B3")
@few
@given(data=st.data())
def test_staged_equals_the_model_for_dirty_rows(data: st.DataObject, fresh_home: FreshHome) -> None:
    """Any row may have anything missing or be far outside: the first reason that applies, with file and row number."""
    pipeline = pipeline_of(ONE_BATCH, fresh_home(), quarantine_limit=1.0)
    batch = first_batch(pipeline)
    files: dict[str, Sequence[RawRow]] = {}
    for number in range(data.draw(st.integers(1, 2))):
        rows = data.draw(st.lists(dirty_rows(batch.start, batch.end), max_size=12))
        # Timestamps of the far past and future do not fit finer units.
        files[write_rows(pipeline, batch, f"part-{number}.parquet", rows, Shape(row_group=data.draw(st.sampled_from((1, 3, 100)))))] = rows
    # Of two files with the same content one is a copy, which is not the model's affair.
    assume(len({(pipeline.landing_zone.root / path).read_bytes() for path in files}) == len(files))
    assert_staged(pipeline, batch, files, stage(pipeline, batch))


@few
@given(data=st.data())
def test_staged_equals_the_model_for_doubles(data: st.DataObject, fresh_home: FreshHome) -> None:
    """Bit by bit, -0.0 as 0.0; NaN and infinities quarantined."""
    pipeline = pipeline_of(ONE_BATCH, fresh_home(), value_type="double", quarantine_limit=1.0)
    batch = first_batch(pipeline)
    rows = data.draw(histories(ONE_BATCH, st.one_of(doubles, st.sampled_from((math.nan, math.inf, -math.inf, -0.0)))))
    path = write_rows(pipeline, batch, "a.parquet", rows, Shape(row_group=4))
    assert_staged(pipeline, batch, {path: rows}, stage(pipeline, batch))


@pytest.mark.scenario("B3")
@few
@given(data=st.data())
def test_int64_extremes_survive_staging(data: st.DataObject, fresh_home: FreshHome) -> None:
    """Values far apart in one block are stored as they are. (Too few points a window to overflow a sum.)"""
    pipeline = pipeline_of(Grid(TODAY, HOUR, 1, (MINUTE,), 1), fresh_home())
    batch = first_batch(pipeline)
    values = data.draw(st.lists(st.sampled_from((INT64_MIN, INT64_MAX, 0, -1, 2**53 + 1)), max_size=20))
    rows = [
        RawRow(naive_id, naive_id, "m", TODAY + 1000 * index, value)
        for index, value in enumerate(values)
        for naive_id in (INT64_MIN, INT64_MAX)
    ]
    path = write_rows(pipeline, batch, "a.parquet", rows)
    assert_staged(pipeline, batch, {path: rows}, stage(pipeline, batch))


def test_staged_equals_the_model_for_a_crowd(tmp_path: Path) -> None:
    """Thousands of rows of hundreds of series: tables grow, blocks fill, duplicates and moved series among them."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path, shards=7)
    batch = first_batch(pipeline)
    rows = crowd(1, ONE_BATCH, 600, 15_000)
    files = {
        write_rows(pipeline, batch, f"{number}.parquet", rows[number::3], Shape(row_group=1000)): rows[number::3] for number in range(3)
    }
    result = stage(pipeline, batch)
    assert result.repartitioned.counters["duplicates"] > 100
    assert_staged(pipeline, batch, files, result)


# ------------------------------------------------------------------------------------------------------------------ same bytes


def staged_digests(result: StagedBatch) -> tuple[object, ...]:
    return tuple(staged.digests(manifest) for manifest in (result.repartitioned, result.partial_points, result.quarantined))


def test_any_order_of_files_and_rows_gives_the_same_bytes(fresh_home: FreshHome) -> None:
    rows = crowd(2, ONE_BATCH, 80, 2000)
    seen = set()
    for seed in range(4):
        pipeline = pipeline_of(ONE_BATCH, fresh_home())
        land(pipeline, rows, files=3, shuffle=seed, shape=Shape(row_group=(100, 7, 1000, 333)[seed]))
        result = stage(pipeline, first_batch(pipeline))
        seen.add(repr(staged_digests(result)))
    assert len(seen) == 1


@few
@given(data=st.data())
def test_any_order_of_nasty_rows_gives_the_same_bytes(data: st.DataObject, fresh_home: FreshHome) -> None:
    rows = data.draw(histories(ONE_BATCH))
    seen = set()
    for order in (rows, data.draw(st.permutations(rows))):
        pipeline = pipeline_of(ONE_BATCH, fresh_home())
        write_rows(pipeline, first_batch(pipeline), "a.parquet", order[:5], Shape(row_group=2))
        write_rows(pipeline, first_batch(pipeline), "b.parquet", order[5:], Shape(row_group=3))
        seen.add(repr(staged_digests(stage(pipeline, first_batch(pipeline)))))
    assert len(seen) == 1


def test_quarantined_rows_and_duplicates_leave_no_trace_in_the_staged_files(fresh_home: FreshHome) -> None:
    """Other metrics, receive times and values far away in refused rows decide nothing about the bytes of the accepted ones."""
    rows = [RawRow(index % 9, 1, f"m{index % 4}", TODAY + 1000 * index, index) for index in range(300)]
    refused = [RawRow(None, 2**60, "aaa", TODAY, INT64_MAX, TODAY), RawRow(3, 5, "zzz", TODAY - 1, INT64_MIN, TODAY)]
    seen = set()
    for given_rows in (rows, [refused[0], *rows[:100], *rows[50:], refused[1]]):
        pipeline = pipeline_of(ONE_BATCH, fresh_home())
        write_rows(pipeline, first_batch(pipeline), "a.parquet", given_rows)
        result = stage(pipeline, first_batch(pipeline))
        seen.add(tuple(file.digest for manifest in (result.repartitioned, result.partial_points) for file in manifest.files))
    assert len(seen) == 1


def test_how_rows_are_dealt_out_to_files_does_not_change_the_staged_files(fresh_home: FreshHome) -> None:
    """One file or five: all but the number of raw files is the same."""
    rows = crowd(3, ONE_BATCH, 50, 1000)
    seen = set()
    for files in (1, 5):
        pipeline = pipeline_of(ONE_BATCH, fresh_home())
        land(pipeline, rows, files=files)
        result = stage(pipeline, first_batch(pipeline))
        seen.add(tuple(file.digest for manifest in (result.repartitioned, result.partial_points) for file in manifest.files))
    assert len(seen) == 1


@pytest.mark.parametrize("value_type", ["long", "double"])
def test_any_number_of_threads_and_any_memory_give_the_same_bytes(value_type: str, fresh_home: FreshHome) -> None:
    """Down to memory that holds a fraction of the batch, so that everything is spilled."""
    rows = crowd(4, ONE_BATCH, 300, 20_000, double=value_type == "double")
    seen = set()
    for threads, memory in ((1, 2**28), (2, 2**28), (4, 2**28), (2, 2**31), (2, 2**18), (1, 2**16)):
        pipeline = with_engine(pipeline_of(ONE_BATCH, fresh_home(), value_type=value_type), threads=threads, memory=memory)
        land(pipeline, rows, files=4, shape=Shape(row_group=1500))
        seen.add(repr(staged_digests(stage(pipeline, first_batch(pipeline)))))
    assert len(seen) == 1


@pytest.mark.parametrize("moving", [False, True])
def test_a_shard_larger_than_memory_is_staged_the_same(moving: bool, fresh_home: FreshHome) -> None:
    """One shard, sorted at once and in runs; with and without dimensions that change and receive times."""
    generator = np.random.default_rng(5)
    count = 300_000
    ids = generator.integers(0, 400, count)
    ts = TODAY + generator.integers(0, HOUR, count)
    table = pa.table(
        {
            "id": ids,
            "org_id": np.where(moving & (ts % 97 == 0), 7, ids % 5),
            "metric": pa.array([f"metric-{series % 11}" for series in ids.tolist()]),
            "logical_timestamp": ts,
            "long_value": generator.integers(-1000, 10**9, count),
            "receive_timestamp": pa.array(ts + 5, mask=(ids % 2 == 0) | (not moving)),
        }
    )
    seen = set()
    for memory in (2**30, 2**20):
        pipeline = with_engine(pipeline_of(ONE_BATCH, fresh_home(), shards=1), threads=1, memory=memory)
        write_table(pipeline, first_batch(pipeline), "a.parquet", table, 100_000)
        seen.add(repr(staged_digests(stage(pipeline, first_batch(pipeline)))))
    assert len(seen) == 1


def test_a_staged_file_s_digest_and_size_are_those_of_its_bytes(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    land(pipeline, crowd(5, ONE_BATCH, 20, 300))
    result = stage(pipeline, batch)
    for manifest in (result.repartitioned, result.partial_points):
        contents = staged.file_bytes(pipeline, batch, manifest)
        assert [(file.size, file.digest) for file in manifest.files] == [
            (len(content), xxhash.xxh3_128_hexdigest(content)) for content in contents
        ]


def test_any_number_of_shards_stages_the_same_points(fresh_home: FreshHome) -> None:
    rows = crowd(6, ONE_BATCH, 60, 1500)
    seen = set()
    for shards in (1, 4, 5, 64):
        pipeline = pipeline_of(ONE_BATCH, fresh_home(), shards=shards)
        land(pipeline, rows)
        batch = first_batch(pipeline)
        points = staged.points(pipeline, batch, stage(pipeline, batch).repartitioned)
        assert all(naive.bucket_of(point.id, shards) == shard for shard, found in points.items() for point in found)
        seen.add(frozenset(point for found in points.values() for point in found))
    assert len(seen) == 1


# ------------------------------------------------------------------------------------------------------------------- run again


def manifests_of(result: StagedBatch) -> list[tuple[object, ...]]:
    return [staged.identity(manifest) for manifest in (result.repartitioned, result.partial_points, result.quarantined)]


def test_a_second_run_does_nothing_and_says_so(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    land(pipeline, crowd(7, ONE_BATCH, 20, 300))
    first = stage(pipeline, first_batch(pipeline))
    again = stage(pipeline, first_batch(pipeline))
    assert (first.unchanged, again.unchanged) == (False, True)
    assert manifests_of(again) == manifests_of(first)


def test_a_forced_run_keeps_manifest_and_files_and_discards_the_new_attempt(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    land(pipeline, [*crowd(8, ONE_BATCH, 20, 300), RawRow(None, 1, "m", TODAY, 1)][1:-1])
    first = stage(pipeline, batch)
    before = sorted(path for path in Path(pipeline.settings.stage).rglob("*") if path.is_file())
    times = {path: path.stat().st_mtime_ns for path in before if path.suffix == ".parquet"}
    again = stage(pipeline, batch, force=True)
    assert not again.unchanged
    assert manifests_of(again) == manifests_of(first)
    after = sorted(path for path in Path(pipeline.settings.stage).rglob("*") if path.is_file())
    assert after == before
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_a_deleted_staged_file_is_made_again(tmp_path: Path) -> None:
    """A manifest whose files are gone is not "unchanged"."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    land(pipeline, crowd(9, ONE_BATCH, 20, 300))
    first = stage(pipeline, batch)
    victim = pipeline.stage.place(first.repartitioned, first.repartitioned.files[0], batch)
    victim.delete_file()
    again = stage(pipeline, batch)
    assert pipeline.stage.is_complete(again.repartitioned, batch)
    assert again.repartitioned.digest == first.repartitioned.digest


def test_rewriting_a_raw_file_with_the_same_rows_keeps_the_content(tmp_path: Path) -> None:
    """The file is new, so the batch is staged again; the digest, Dagster's data version, is not."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    rows = crowd(10, ONE_BATCH, 20, 300)
    land(pipeline, rows)
    first = stage(pipeline, first_batch(pipeline))
    land(pipeline, rows, shuffle=1)
    again = stage(pipeline, first_batch(pipeline))
    assert manifests_of(again) == manifests_of(first)
    assert again.repartitioned.inputs != first.repartitioned.inputs


@pytest.mark.scenario("L1")
def test_a_late_row_changes_one_shard_only(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    land(pipeline, crowd(11, ONE_BATCH, 60, 1000))
    first = stage(pipeline, batch).repartitioned
    late = RawRow(123456789, 1, "late", TODAY + 5, 1)
    write_rows(pipeline, batch, "late.parquet", [late])
    again = stage(pipeline, batch).repartitioned
    assert again.digest != first.digest
    shard = naive.bucket_of(123456789, pipeline.settings.shards)
    assert {file.shards for file in again.files if file.digest not in {old.digest for old in first.files}} == {(shard,)}


@pytest.mark.parametrize("overrides", [{"shards": 8}, {"resolutions": "1m,1h"}, {"lookback": "30m"}])
def test_other_parameters_stage_anew(tmp_path: Path, overrides: dict[str, Any], make_pipeline: Callable[..., Pipeline]) -> None:
    pipeline = make_pipeline(tmp_path)
    land(pipeline, crowd(12, ONE_BATCH, 20, 300))
    stage(pipeline, first_batch(pipeline))
    other = make_pipeline(tmp_path, **overrides)
    result = stage(other, first_batch(other))
    assert not result.unchanged
    assert result.repartitioned.parameters["shards"] == other.settings.shards
    assert result.partial_points.parameters["lookback"] == other.settings.lookback


# ------------------------------------------------------------------------------------------------------------------- column types


@pytest.mark.parametrize("start", [TODAY, AROUND_EPOCH])
@pytest.mark.parametrize(
    "time",
    [
        pa.int64(),
        pa.timestamp("s"),
        pa.timestamp("ms"),
        pa.timestamp("us"),
        pa.timestamp("ns"),
        pa.timestamp("ns", "UTC"),
        pa.timestamp("ms", "Asia/Tokyo"),
    ],
)
@pytest.mark.parametrize("metric", [pa.string(), pa.large_string(), pa.dictionary(pa.int16(), pa.string())])
def test_every_accepted_type_stages_the_same(time: pa.DataType, metric: pa.DataType, start: int, fresh_home: FreshHome) -> None:
    grid = Grid(start, HOUR, 1, RESOLUTIONS, HOUR)
    rows = [RawRow(index % 3, -index, f"m{index % 2}", start + index * 7000, index, start + index * 7000 + 3000) for index in range(20)]
    seen = set()
    for shape in (Shape(), Shape(integers=pa.int32(), time=time, metric=metric, value=pa.int32())):
        pipeline = pipeline_of(grid, fresh_home())
        batch = first_batch(pipeline)
        path = write_rows(pipeline, batch, "a.parquet", rows, shape)
        result = stage(pipeline, batch)
        assert_staged(pipeline, batch, {path: rows}, result)
        seen.add(repr(staged_digests(result)))
    assert len(seen) == 1


def test_int32_milliseconds_are_accepted(tmp_path: Path) -> None:
    """Around 1970 they fit."""
    pipeline = pipeline_of(NEGATIVE, tmp_path)
    rows = [good(NEGATIVE.start + index) for index in range(3)]
    path = write_rows(pipeline, first_batch(pipeline), "a.parquet", rows, Shape(time=pa.int32()))
    assert_staged(pipeline, first_batch(pipeline), {path: rows}, stage(pipeline, first_batch(pipeline)))


@pytest.mark.parametrize(("unit", "ticks"), [("us", 1_000), ("ns", 1_000_000)])
def test_timestamps_finer_than_a_millisecond_are_floored(unit: str, ticks: int, tmp_path: Path) -> None:
    """Also before 1970, where truncation would go the other way; before windows, duplicates and the batch's range are looked at."""
    pipeline = pipeline_of(NEGATIVE, tmp_path, quarantine_limit=1.0)
    batch = first_batch(pipeline)
    start, end = batch.start * ticks, batch.end * ticks
    times = [start - 1, start, start + ticks - 1, start + ticks, start + MINUTE * ticks + 1, end - 1, end]
    floored = [naive.floored_to_ms(tick, ticks) for tick in times]
    assert floored[:3] == [batch.start - 1, batch.start, batch.start]
    table = pa.table(
        {
            "id": pa.array([1] * len(times), pa.int64()),
            "org_id": pa.array([1] * len(times), pa.int64()),
            "metric": ["m"] * len(times),
            "logical_timestamp": pa.array(times, pa.timestamp(unit)),
            "long_value": pa.array(range(len(times)), pa.int64()),
            "receive_timestamp": pa.array([tick - 1 for tick in times], pa.timestamp(unit)),
        }
    )
    path = write_table(pipeline, batch, "a.parquet", table)
    rows = [
        RawRow(1, 1, "m", ms, value, naive.floored_to_ms(tick - 1, ticks))
        for value, (tick, ms) in enumerate(zip(times, floored, strict=True))
    ]
    result = stage(pipeline, batch)
    assert_staged(pipeline, batch, {path: rows}, result)
    assert result.repartitioned.counters["duplicates"] == 1
    assert result.quarantined.counters["reasons"] == {"outside_batch": 2}


@pytest.mark.scenario("B2")
def test_columns_may_come_in_any_order_with_others_among_them(fresh_home: FreshHome) -> None:
    rows = crowd(13, ONE_BATCH, 10, 100)
    seen = set()
    for more in (False, True):
        pipeline = pipeline_of(ONE_BATCH, fresh_home())
        table = table_of(rows)
        if more:
            names = table.column_names
            random.Random(1).shuffle(names)
            table = table.select(names)
            table = table.add_column(0, "host", pa.array(["h"] * len(rows)))
            table = table.append_column("tags", pa.array([[("a", "b")]] * len(rows), pa.map_(pa.string(), pa.string())))
            table = table.append_column("double_value", pa.array([math.nan] * len(rows)))
            table = table.append_column("id.x", pa.array([1] * len(rows)))
        write_table(pipeline, first_batch(pipeline), "a.parquet", table, 30)
        seen.add(repr(staged_digests(stage(pipeline, first_batch(pipeline)))))
    assert len(seen) == 1


def test_files_may_differ_in_shape(tmp_path: Path) -> None:
    """With and without receive timestamps, strings and dictionaries of other content, in one batch."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    first = [RawRow(index, index, ("b", "a")[index % 2], TODAY + index, index, TODAY + index + 5) for index in range(10)]
    second = [RawRow(index, index, ("a", "c", "b")[index % 3], TODAY + 1000 + index, index) for index in range(10)]
    files = {
        write_rows(pipeline, batch, "1.parquet", first, Shape(metric=pa.dictionary(pa.int32(), pa.string()), row_group=3)): first,
        write_rows(pipeline, batch, "2.parquet", second, Shape(receive=False, metric=pa.large_string())): second,
    }
    assert_staged(pipeline, batch, files, stage(pipeline, batch))


def test_receive_timestamps_are_staged_only_where_a_shard_has_one(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", [RawRow(index, 1, "m", TODAY, 1, TODAY if index == 3 else None) for index in range(20)])
    manifest = stage(pipeline, batch).repartitioned
    with_receive = {
        file.shards for file in manifest.files if "receive_timestamp" in staged.table(pipeline, batch, manifest, file).column_names
    }
    assert with_receive == {(naive.bucket_of(3, pipeline.settings.shards),)}


# ----------------------------------------------------------------------------------------------------------- what belongs to a batch


def test_files_in_subfolders_count_and_hidden_ones_do_not(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    files = {
        write_rows(pipeline, batch, "deep/er/a", [good(TODAY + 1)]): [good(TODAY + 1)],
        write_rows(pipeline, batch, "b.parquet", [good(TODAY + 2)]): [good(TODAY + 2)],
    }
    write_bytes(pipeline, batch, "_SUCCESS", b"")
    write_bytes(pipeline, batch, ".b.parquet.crc", b"x")
    write_bytes(pipeline, batch, "_temporary/c.parquet", b"x")
    assert_staged(pipeline, batch, files, stage(pipeline, batch))


def test_a_file_without_rows_is_fine(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    files = {write_rows(pipeline, batch, "none.parquet", []): [], write_rows(pipeline, batch, "one.parquet", [good(TODAY)]): [good(TODAY)]}
    assert_staged(pipeline, batch, files, stage(pipeline, batch))


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_a_landing_zone_that_is_gone_empties_no_batch(left: str, tmp_path: Path) -> None:
    """A disk that is not mounted, or a mistyped ``ROLLUP_RAW``: what is staged stays, unless ``force`` says that it was on purpose."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", plenty())
    before = stage(pipeline, batch)
    root = Path(pipeline.landing_zone.root.path)
    root.rename(tmp_path / "elsewhere")
    if left == "an empty folder":
        root.mkdir()
    with pytest.raises(LandingZoneError, match=r"ROLLUP_RAW.*is empty.*from 1 raw file there.*backfill .* --force"):
        stage(pipeline, batch)
    assert pipeline.stage.read(REPARTITIONED, batch) == before.repartitioned
    assert stage(pipeline, batch, force=True).repartitioned.counters["rows_accepted"] == 0
    assert stage(pipeline, batch).unchanged


@pytest.mark.parametrize("file_without_rows", [False, True])
def test_a_batch_without_a_row_is_an_empty_partition(tmp_path: Path, file_without_rows: bool) -> None:
    """No raw folder, or only empty files: staged with count 0."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    files: dict[str, Sequence[RawRow]] = {write_rows(pipeline, batch, "none.parquet", []): []} if file_without_rows else {}
    result = stage(pipeline, batch)
    assert_staged(pipeline, batch, files, result)
    assert pipeline.stage.read(REPARTITIONED, batch) == result.repartitioned
    assert stage(pipeline, batch).unchanged


# -------------------------------------------------------------------------------------------------------------------- quarantine

REASONS: list[tuple[RawRow, str]] = [
    (RawRow(None, 1, "m", TODAY, 1), "null_id"),
    (RawRow(1, 1, "m", None, 1), "null_timestamp"),
    (RawRow(1, 1, "m", TODAY, None), "null_value"),
    (RawRow(1, None, "m", TODAY, 1), "null_dimension"),
    (RawRow(1, 1, None, TODAY, 1), "null_dimension"),
    (RawRow(1, 1, "m", TODAY - 1, 1), "outside_batch"),
    (RawRow(1, 1, "m", TODAY + HOUR, 1), "outside_batch"),
]


@pytest.mark.scenario("B3")
@pytest.mark.parametrize(("row", "reason"), REASONS)
def test_a_quarantined_row_is_staged_with_reason_file_row_number_and_values(row: RawRow, reason: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    rows = [*plenty(), row, *plenty(3, TODAY + MINUTE)]
    path = write_rows(pipeline, batch, "sub/dirty.parquet", rows, Shape(row_group=64))
    result = stage(pipeline, batch)
    assert staged.quarantined(pipeline, batch, result.quarantined) == [
        {
            "reason": reason,
            "file": path,
            "row_number": 200,
            "rows": 1,
            "detail": None,
            "id": row.id,
            "org_id": row.org_id,
            "metric": row.metric,
            "logical_timestamp": row.ts,
            "long_value": row.value,
            "receive_timestamp": None,
        }
    ]
    assert result.quarantined.counters == {"rows_read": 204, "rows_quarantined": 1, "bad_files": 0, "reasons": {reason: 1}}


@pytest.mark.scenario("B3")
@pytest.mark.parametrize("ts", [None, INT64_MIN, TODAY - 1, INT64_MAX])
def test_a_quarantined_row_shows_its_receive_time_as_it_was_read(ts: int | None, tmp_path: Path) -> None:
    """Also where that makes no sense, or its own time does not."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    received = [None, INT64_MIN, -1, 0, TODAY + 5, TODAY * 1_000_000, INT64_MAX]
    write_rows(pipeline, batch, "a.parquet", [*plenty(1000), *(RawRow(5, 1, "m", ts, 1, receive) for receive in received)])
    rows = staged.quarantined(pipeline, batch, stage(pipeline, batch).quarantined)
    assert [row["receive_timestamp"] for row in rows] == received


@pytest.mark.scenario("B3")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_values_are_quarantined(value: float, tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path, value_type="double")
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", [*plenty(), good(TODAY + 5, value)])
    (row,) = staged.quarantined(pipeline, batch, stage(pipeline, batch).quarantined)
    assert (row["reason"], row["row_number"]) == ("non_finite_value", 200)
    assert math.isnan(row["double_value"]) if math.isnan(value) else row["double_value"] == value


@pytest.mark.scenario("B3")
@pytest.mark.parametrize("kind", [pa.int64(), pa.timestamp("ms"), pa.timestamp("us", "UTC")], ids=str)
def test_times_of_other_ages_are_quarantined_with_the_time_they_say(kind: pa.DataType, tmp_path: Path) -> None:
    """From the year 1 to 9999, which Arrow and Parquet can hold and dates of most programs cannot exceed."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path, quarantine_limit=1.0)
    batch = first_batch(pipeline)
    times = [-62_135_596_800_000, 0, 4_102_444_800_000, 253_402_300_799_999]
    path = write_rows(pipeline, batch, "a.parquet", [good(ts) for ts in [TODAY, *times]], Shape(time=kind, receive=False))
    result = stage(pipeline, batch)
    assert result.repartitioned.counters["rows_accepted"] == 1
    assert [(row["reason"], row["file"], row["logical_timestamp"]) for row in staged.quarantined(pipeline, batch, result.quarantined)] == [
        ("outside_batch", path, ts) for ts in times
    ]


def test_rows_that_are_quarantined_do_not_compete_as_duplicates(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path, quarantine_limit=1.0)
    batch = first_batch(pipeline)
    rows = [good(TODAY + 1, 5), RawRow(7, 1, None, TODAY + 1, 9)]
    path = write_rows(pipeline, batch, "a.parquet", rows)
    assert_staged(pipeline, batch, {path: rows}, stage(pipeline, batch))


def truncated() -> bytes:
    return whole_file()[:-100]


def whole_file() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table_of(plenty(1000)), sink, use_dictionary=False, compression="NONE")
    return bytes(sink.getvalue())


def scribbled() -> bytes:
    """The footer is whole, the pages are not."""
    content = bytearray(whole_file())
    content[4:2000] = bytes(random.Random(1).randrange(256) for _ in range(1996))
    return bytes(content)


UNREADABLE: dict[str, Callable[[], bytes]] = {
    "zero bytes": lambda: b"",
    "text": lambda: b"id,org_id\n1,2\n",
    "only magic": lambda: b"PAR1PAR1",
    "truncated": truncated,
    "scribbled pages": scribbled,
    "wrong footer length": lambda: whole_file()[:-8] + b"\xff\xff\xff\x7fPAR1",
}


@pytest.mark.scenario("B1")
@pytest.mark.parametrize("name", UNREADABLE)
def test_an_unreadable_file_fails_the_batch_and_is_named(name: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "good.parquet", plenty())
    path = write_bytes(pipeline, batch, "broken.parquet", UNREADABLE[name]())
    with pytest.raises(QuarantineError) as raised:
        stage(pipeline, batch)
    assert path in str(raised.value)
    assert "ROLLUP_QUARANTINE_FILES" in str(raised.value)
    (row,) = staged.quarantined(pipeline, batch, raised.value.quarantined)
    assert (row["reason"], row["file"], row["row_number"], row["rows"]) == ("unreadable_file", path, None, 0)
    assert row["detail"]
    assert pipeline.stage.read(REPARTITIONED, batch) is None


@pytest.mark.scenario("B1")
@pytest.mark.parametrize("name", UNREADABLE)
def test_an_allowed_unreadable_file_leaves_no_row_behind(name: str, tmp_path: Path) -> None:
    """Also one that breaks in its middle, after rows of it were read: all of it is quarantined, the other files are staged."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path, quarantine_files=1)
    batch = first_batch(pipeline)
    rows = plenty(50, TODAY + 30 * MINUTE)
    path = write_rows(pipeline, batch, "good.parquet", rows)
    write_bytes(pipeline, batch, "broken.parquet", UNREADABLE[name]())
    result = stage(pipeline, batch)
    expected = naive.accept({path: rows}, batch.start, batch.end).points
    assert {point for points in staged.points(pipeline, batch, result.repartitioned).values() for point in points} == set(expected)
    counters = result.repartitioned.counters
    assert (
        counters["rows_read"],
        counters["rows_accepted"],
        counters["rows_quarantined"],
        counters["bad_files"],
        counters["raw_files"],
    ) == (50, 50, 0, 1, 2)


@pytest.mark.scenario("B1")
def test_a_file_that_breaks_in_its_second_row_group_leaves_no_row_behind(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path, quarantine_files=1)
    batch = first_batch(pipeline)
    sink = pa.BufferOutputStream()
    pq.write_table(table_of(plenty(1000)), sink, use_dictionary=False, compression="NONE", row_group_size=500)
    content = bytearray(bytes(sink.getvalue()))
    metadata = pq.read_metadata(pa.BufferReader(bytes(content)))
    begin = metadata.row_group(1).column(0).data_page_offset
    content[begin : begin + 200] = b"\xff" * 200
    write_bytes(pipeline, batch, "half.parquet", bytes(content))
    rows = plenty(50, TODAY + 30 * MINUTE)
    write_rows(pipeline, batch, "whole.parquet", rows)
    result = stage(pipeline, batch)
    assert sum(len(points) for points in staged.points(pipeline, batch, result.repartitioned).values()) == 50
    assert result.repartitioned.counters["rows_read"] == result.repartitioned.counters["rows_accepted"] == 50


def schema_variants() -> dict[str, pa.Table]:
    table = table_of(plenty(10))

    def cast(name: str, kind: pa.DataType) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, table[name].cast(kind))

    return {
        "no id": table.drop_columns(["id"]),
        "no value": table.drop_columns(["long_value"]),
        "no timestamp": table.drop_columns(["logical_timestamp"]),
        "no metric": table.drop_columns(["metric"]),
        "metric as struct": table.set_column(2, "metric", pa.array([{"name": "m"}] * 10)),
        "id in capitals": table.rename_columns(["ID", *table.column_names[1:]]),
        "id as text": cast("id", pa.string()),
        "id as double": cast("id", pa.float64()),
        "value as double": cast("long_value", pa.float64()),
        "value as decimal": cast("long_value", pa.decimal128(30, 2)),
        "timestamp as text": cast("logical_timestamp", pa.string()),
        "timestamp as date": table.set_column(3, "logical_timestamp", pa.array([0] * 10, pa.date32())),
        "metric as number": table.set_column(2, "metric", pa.array(range(10), pa.int64())),
        "metric as bytes": cast("metric", pa.binary()),
        "id as int16": cast("id", pa.int16()),
        "id unsigned": cast("id", pa.uint64()),
        "receive as text": table.set_column(5, "receive_timestamp", pa.array(["now"] * 10)),
        "double_value instead": table.rename_columns(["id", "org_id", "metric", "logical_timestamp", "double_value", "receive_timestamp"]),
    }


@pytest.mark.scenario("B2")
@pytest.mark.parametrize("name", schema_variants())
def test_a_file_with_another_schema_fails_the_batch_and_is_named(name: str, tmp_path: Path) -> None:
    """``rows`` are those of its footer, and they count as read and quarantined."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "good.parquet", plenty())
    path = write_table(pipeline, batch, "other.parquet", schema_variants()[name])
    with pytest.raises(QuarantineError) as raised:
        stage(pipeline, batch)
    assert path in str(raised.value)
    (row,) = staged.quarantined(pipeline, batch, raised.value.quarantined)
    assert (row["reason"], row["file"], row["row_number"], row["rows"]) == ("schema_mismatch", path, None, 10)
    counters = raised.value.quarantined.counters
    assert (counters["rows_read"], counters["rows_quarantined"], counters["bad_files"]) == (210, 10, 1)
    assert counters["reasons"] == {"schema_mismatch": 10}


@pytest.mark.scenario("B2")
def test_a_null_typed_column_is_another_schema(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    table = table_of(plenty(3))
    write_table(pipeline, batch, "a.parquet", table.set_column(2, "metric", pa.nulls(3)))
    with pytest.raises(QuarantineError, match=r"a\.parquet"):
        stage(pipeline, batch)


@pytest.mark.scenario("B1")
def test_bad_rows_that_are_too_much_for_arrow_make_their_file_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of Arrow's own would name no file, and nothing would be quarantined."""
    from rollup_assets.steps import split

    def refuse(*_: object) -> NoReturn:
        raise pa.ArrowInvalid("offset overflow\nmore of it")

    pipeline = pipeline_of(ONE_BATCH, tmp_path, quarantine_files=1)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", plenty(10))
    path = write_rows(pipeline, batch, "b.parquet", [*plenty(5), good(TODAY - 1)])
    monkeypatch.setattr(split, "rows_to_quarantine", refuse)
    result = stage(pipeline, batch)
    assert (result.repartitioned.counters["rows_accepted"], result.quarantined.counters["bad_files"]) == (10, 1)
    [row] = staged.quarantined(pipeline, batch, result.quarantined)
    assert (row["file"], row["reason"]) == (path, "too_large")
    assert row["detail"] == "its bad rows cannot be quarantined one by one (offset overflow)"


def test_memory_that_is_missing_is_no_fault_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be bad on one machine and good on another."""
    from rollup_assets.steps import split

    def fail(*_: object) -> NoReturn:
        raise pa.ArrowMemoryError("malloc of size 4096 failed")

    pipeline = pipeline_of(ONE_BATCH, tmp_path, quarantine_files=1)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", [*plenty(5), good(TODAY - 1)])
    monkeypatch.setattr(split, "rows_to_quarantine", fail)
    with pytest.raises(MemoryError, match="malloc"):
        stage(pipeline, batch)


def test_memory_that_is_missing_for_a_row_group_is_no_fault_of_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch that may have a bad file would be published without the points of this one."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path, quarantine_files=1)
    batch = first_batch(pipeline)
    path = write_rows(pipeline, batch, "a.parquet", plenty(5))

    def fail(*_: object, **__: object) -> NoReturn:
        raise pa.ArrowMemoryError("malloc of size 4096 failed")

    with monkeypatch.context() as patch:
        patch.setattr(pq.ParquetFile, "read_row_group", fail)
        with pytest.raises(ShortOfMemoryError, match=rf"{path} cannot be read: there is no memory for it \(malloc of size 4096 failed\)"):
            stage(pipeline, batch)
    assert pipeline.stage.read(QUARANTINED, batch) is None
    assert stage(pipeline, batch).repartitioned.counters["rows_accepted"] == 5


@pytest.mark.scenario("B1")
def test_bad_files_up_to_the_setting_are_tolerated(tmp_path: Path) -> None:
    """Two allowed: two pass, three fail. A mismatching file's rows still count in the share."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path, quarantine_files=2, quarantine_limit=0.5)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "good.parquet", plenty())
    write_bytes(pipeline, batch, "1.parquet", b"")
    write_table(pipeline, batch, "2.parquet", schema_variants()["no id"])
    result = stage(pipeline, batch)
    counters = result.repartitioned.counters
    assert (counters["rows_read"], counters["rows_accepted"], counters["rows_quarantined"], counters["bad_files"]) == (210, 200, 10, 2)
    write_bytes(pipeline, batch, "3.parquet", b"")
    with pytest.raises(QuarantineError):
        stage(pipeline, batch)


@pytest.mark.parametrize(("bad", "passes"), [(2, True), (3, False)])
def test_the_limit_is_a_share_of_the_rows_read(bad: int, passes: bool, tmp_path: Path) -> None:
    """1 % of 200 rows is 2: more than the limit fails, the limit itself does not."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    path = write_rows(pipeline, batch, "a.parquet", [*plenty(200 - bad), *[RawRow(None, 1, "m", TODAY, 1)] * bad])
    if passes:
        assert stage(pipeline, batch).repartitioned.counters["rows_quarantined"] == bad
    else:
        with pytest.raises(QuarantineError) as raised:
            stage(pipeline, batch)
        assert "ROLLUP_QUARANTINE_LIMIT" in str(raised.value)
        assert path in str(raised.value)
        assert batch.key in str(raised.value)


def test_a_batch_of_nothing_but_bad_rows_fails(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path, quarantine_limit=0.99)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", [RawRow(None, None, None, None, None)] * 3)
    with pytest.raises(QuarantineError):
        stage(pipeline, batch)


def test_over_the_limit_the_quarantine_is_staged_and_the_datapoints_stay(tmp_path: Path) -> None:
    """The manifest of an earlier, good run is not replaced, nor are its files touched."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", plenty())
    before = stage(pipeline, batch)
    path = write_rows(pipeline, batch, "b.parquet", [RawRow(None, 1, "m", TODAY, 1)] * 50)
    with pytest.raises(QuarantineError) as raised:
        stage(pipeline, batch)
    assert pipeline.stage.read(REPARTITIONED, batch) == before.repartitioned
    assert pipeline.stage.read(before.partial_points.asset, batch) == before.partial_points
    assert pipeline.stage.is_complete(before.repartitioned, batch)
    assert pipeline.stage.read(QUARANTINED, batch) == raised.value.quarantined
    refused = staged.quarantined(pipeline, batch, raised.value.quarantined)
    assert sorted((row["file"], row["row_number"]) for row in refused) == [(path, number) for number in range(50)]


def test_over_the_limit_fails_at_every_run_and_passes_once_allowed(tmp_path: Path) -> None:
    """The second run has the quarantine's manifest of the first: it must not take it for a finished batch."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", [*plenty(20), RawRow(None, 1, "m", TODAY, 1)])
    for _ in range(2):
        with pytest.raises(QuarantineError):
            stage(pipeline, batch)
    allowed = pipeline_of(ONE_BATCH, tmp_path, quarantine_limit=0.1)
    assert stage(allowed, batch).repartitioned.counters["rows_accepted"] == 20


def test_a_stricter_limit_refuses_what_was_staged_under_a_looser_one(tmp_path: Path) -> None:
    """The limit is no part of the content, but a batch over it does not pass as unchanged."""
    loose = pipeline_of(ONE_BATCH, tmp_path, quarantine_limit=0.5)
    batch = first_batch(loose)
    write_rows(loose, batch, "a.parquet", [*plenty(20), RawRow(None, 1, "m", TODAY, 1)])
    stage(loose, batch)
    with pytest.raises(QuarantineError):
        stage(pipeline_of(ONE_BATCH, tmp_path), batch)


def test_a_failed_batch_leaves_no_files_of_its_attempt(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", plenty())
    write_bytes(pipeline, batch, "b.parquet", b"")
    with pytest.raises(QuarantineError):
        stage(pipeline, batch)
    assert files_of(pipeline, REPARTITIONED, PARTIAL_POINTS) == []


def files_of(pipeline: Pipeline, *assets: str) -> list[Path]:
    return [path for asset in assets for path in (Path(pipeline.settings.stage) / asset).rglob("*") if path.is_file()]


def test_a_batch_whose_limits_cannot_be_checked_leaves_no_files_of_its_attempt_but_the_quarantine(tmp_path: Path) -> None:
    """The decisions about it are broken, and they are read since it is over the limit."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", plenty())
    write_bytes(pipeline, batch, "b.parquet", b"")
    (pipeline.stage.folder(QUARANTINED, batch) / "allowed.json").write_bytes(b"{")
    with pytest.raises(StageCorruptError, match=r"allowed\.json does not hold decisions"):
        stage(pipeline, batch)
    assert files_of(pipeline, REPARTITIONED, PARTIAL_POINTS) == []
    assert pipeline.stage.read(QUARANTINED, batch) is not None


def test_a_batch_whose_rows_are_not_accounted_for_is_not_staged_and_the_check_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rollup_assets.steps import repartition

    def one_row_more(*arguments: Any, count: Callable[..., dict[str, int]] = repartition._counts) -> dict[str, int]:
        found = count(*arguments)
        return {**found, "rows_read": found["rows_read"] + 1}

    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", plenty())
    monkeypatch.setattr(repartition, "_counts", one_row_more)
    with pytest.raises(ReconciliationError, match=r"201 rows read, but 200 accepted.*nothing was published.*backfill.*--force") as raised:
        stage(pipeline, batch)
    assert [outcome.name for outcome in raised.value.outcomes] == ["rows_accounted_for"]
    assert files_of(pipeline, REPARTITIONED, PARTIAL_POINTS) == []


def test_what_the_table_would_refuse_does_not_replace_what_is_staged_for_it(tmp_path: Path) -> None:
    """It could not be published, and the setting put back would not bring back what could. A migration, which changes the table, may."""
    from rollup_assets.iceberg.table import ensure_table
    from rollup_assets.steps.repartition import stage_batch

    pipeline, other = pipeline_of(ONE_BATCH, tmp_path), pipeline_of(ONE_BATCH, tmp_path, shards=8)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", plenty())
    before = stage(pipeline, batch)
    ensure_table(pipeline.settings)
    for force in (False, True):
        with pytest.raises(TableMismatchError, match=f"was made with ROLLUP_SHARDS=.*what is staged of {batch} for the table was kept"):
            stage(other, batch, force=force)
    for manifest in (before.repartitioned, before.partial_points, before.quarantined):
        assert pipeline.stage.read(manifest.asset, batch) == manifest
    assert not stage_batch(other, batch, table_is_checked=True).unchanged


def overtaken(at: str, meanwhile: Callable[[], StagedBatch]) -> tuple[Callable[[str], None], list[StagedBatch]]:
    """A handler of failpoints that does something once, at one of them; and what came of it."""
    done: list[StagedBatch] = []
    begun: list[str] = []

    def handler(name: str) -> None:
        if name == at and not begun:
            begun.append(name)
            done.append(meanwhile())

    return handler, done


@pytest.mark.parametrize("at", ["stage.begin", f"manifest.before.{QUARANTINED}", f"manifest.before.{PARTIAL_POINTS}"])
def test_a_staging_that_another_one_overtakes_replaces_nothing(at: str, tmp_path: Path) -> None:
    """The other one has seen a file more; whatever the first one knew is older. A new look finds that all is staged."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", plenty())
    stage(pipeline, batch)
    write_rows(pipeline, batch, "b.parquet", [good(TODAY + 500)])

    def other() -> StagedBatch:
        write_rows(pipeline, batch, "c.parquet", [good(TODAY + 1500)])
        return stage(pipeline, batch)

    handler, done = overtaken(at, other)
    with failpoints.handled(handler):
        found = stage(pipeline, batch)
    (newer,) = done
    assert found.unchanged
    assert found.repartitioned == newer.repartitioned
    for manifest in (newer.repartitioned, newer.partial_points, newer.quarantined):
        assert pipeline.stage.read(manifest.asset, batch) == manifest
        assert pipeline.stage.is_intact(manifest, batch)
    assert newer.repartitioned.rows == 202
    left = {path.parent.name for path in files_of(pipeline, REPARTITIONED) if path.name != "manifest.json"}
    assert newer.repartitioned.attempt in left
    assert len(left) == 2, "the first manifest's files stay for readers; those of the attempt that was overtaken do not"


def test_a_staging_that_has_seen_more_than_the_one_before_it_stages_that(tmp_path: Path) -> None:
    """The other one began earlier, and ends first: its manifest is no reason to forget a file."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", plenty())
    late = Path(pipeline.landing_zone.folder(batch).path) / "b.parquet"

    def other() -> StagedBatch:
        """As one that listed the files before the last of them came."""
        hidden = late.rename(late.with_name("_hidden"))
        try:
            return stage(pipeline, batch)
        finally:
            hidden.rename(late)

    write_rows(pipeline, batch, "b.parquet", [good(TODAY + 500)])
    handler, _ = overtaken(f"manifest.before.{PARTIAL_POINTS}", other)
    with failpoints.handled(handler):
        assert stage(pipeline, batch).repartitioned.rows == 201
    assert not reasons_to_stage_again(pipeline, batch)


def reasons_to_stage_again(pipeline: Pipeline, batch: Batch) -> list[str]:
    from rollup_assets.steps.repartition import current_stage, reasons_to_stage

    return reasons_to_stage(pipeline, batch, pipeline.landing_zone.files(batch), current_stage(pipeline, batch))


def test_a_staging_that_is_overtaken_twice_gives_up(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", plenty())
    depth, times = 0, 0

    def overtake(name: str) -> None:
        nonlocal depth, times
        if name == "stage.begin" and not depth:
            depth, times = depth + 1, times + 1
            write_rows(pipeline, batch, f"late-{times}.parquet", [good(TODAY + times)])
            stage(pipeline, batch, force=True)
            depth -= 1
            write_rows(pipeline, batch, f"later-{times}.parquet", [good(TODAY + 100 + times)])

    says = f"was staged by another run.*rollups backfill {batch} {batch}"
    with failpoints.handled(overtake), pytest.raises(ConcurrentWriteError, match=says):
        stage(pipeline, batch)
    assert times == 2


def test_a_staging_that_another_one_overtakes_with_the_same_result_takes_that(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", plenty())
    handler, done = overtaken("stage.begin", lambda: stage(pipeline, batch))
    with failpoints.handled(handler):
        ours = stage(pipeline, batch)
    (theirs,) = done
    assert (ours.repartitioned, ours.partial_points, ours.quarantined) == (theirs.repartitioned, theirs.partial_points, theirs.quarantined)
    assert pipeline.stage.is_intact(ours.repartitioned, batch)


def test_an_attempt_of_which_other_tries_cannot_be_deleted_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rollup_assets.engines.local import LocalEngine
    from rollup_assets.steps import repartition

    def fail(*_: object) -> NoReturn:
        raise StorageError("no")

    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(pipeline, batch, "a.parquet", plenty())
    monkeypatch.setattr(LocalEngine, "tries_again", True)
    monkeypatch.setattr(repartition, "delete_other_tries", fail)
    with pytest.raises(StorageError, match="no"):
        stage(pipeline, batch)
    assert files_of(pipeline, REPARTITIONED, PARTIAL_POINTS, QUARANTINED) == []


# ----------------------------------------------------------------------------------------------------------------------- overflow


def stage_and_close(pipeline: Pipeline, batch: Batch) -> None:
    """Stage a batch and roll up the next one, which closes its windows."""
    from rollup_assets.steps.rollup import roll_up

    stage(pipeline, batch)
    following = pipeline.calendar.shifted(batch, 1)
    assert following is not None
    roll_up(pipeline, following)


@pytest.mark.scenario("B3")
def test_an_overflowing_open_window_names_series_and_window(tmp_path: Path) -> None:
    """Two huge values in the window that the batch leaves open: found while staging, or when it is rolled up."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    write_rows(
        pipeline, batch, "a.parquet", [good(batch.end - 2000, INT64_MAX, series=4711), good(batch.end - 1000, INT64_MAX, series=4711)]
    )
    with pytest.raises(RollupOverflowError, match=r"4711") as raised:
        stage_and_close(pipeline, batch)
    assert "1m" in str(raised.value)
    assert "2026-01-01" in str(raised.value)


@pytest.mark.scenario("B3")
@pytest.mark.parametrize("receive", [None, TODAY])
def test_only_the_order_of_time_makes_an_overflow_of_an_open_window(receive: int | None, tmp_path: Path) -> None:
    """With details or without, and with other series around. Sums that start with the last minute would leave int64 on the way."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    values = ((5, 2**62), (6, -(2**61)), (7, -(2**61)), (8, 0), (59.99, 2**62))
    fits = [RawRow(series, 1, "cpu", TODAY + int(minute * MINUTE), value, receive) for series in (8, 9) for minute, value in values]
    rows = [*plenty(20), *fits, *(good(TODAY + HOUR - 1000 * index, index, series=77) for index in range(1, 9))]
    path = write_rows(pipeline, batch, "a.parquet", rows)
    assert_staged(pipeline, batch, {path: rows}, stage(pipeline, batch))
    leaves = [RawRow(9, 1, "cpu", TODAY + index, 2**62, receive) for index in (1, 2)]
    write_rows(pipeline, batch, "b.parquet", leaves)
    with pytest.raises(RollupOverflowError, match="series 9, the 1h window"):
        stage(pipeline, batch)


@pytest.mark.parametrize("receive", [None, TODAY])
def test_an_open_window_that_leaves_int64_and_comes_back_is_an_overflow(receive: int | None, tmp_path: Path) -> None:
    """With details or without; in other windows, too, any running sum counts."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = first_batch(pipeline)
    values = ((TODAY + 1, 2**62), (TODAY + MINUTE + 1, 2**62), (batch.end - 1000, -(2**62)))
    write_rows(pipeline, batch, "a.parquet", [RawRow(7, 1, "cpu", time, value, receive) for time, value in values])
    with pytest.raises(RollupOverflowError, match="series 7, the 1h window"):
        stage(pipeline, batch)


def test_wide_rows_of_one_file_do_not_mix_up_row_numbers(tmp_path: Path) -> None:
    """Row numbers are positions in the file, across row groups."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path, quarantine_limit=1.0)
    batch = first_batch(pipeline)
    rows = [good(TODAY + index) if index % 7 else RawRow(None, 1, "m", TODAY, 1) for index in range(100)]
    write_rows(pipeline, batch, "a.parquet", rows, Shape(row_group=9))
    refused = staged.quarantined(pipeline, batch, stage(pipeline, batch).quarantined)
    assert [row["row_number"] for row in refused] == list(range(0, 100, 7))


def test_row_groups_too_large_to_decode_at_once_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row numbers go on across the pieces."""
    from rollup_assets.storage import raw_files

    monkeypatch.setattr(raw_files, "MOST_ROWS", 8)
    pipeline = pipeline_of(ONE_BATCH, tmp_path, quarantine_limit=1.0)
    batch = first_batch(pipeline)
    rows = [row if index % 7 else RawRow(None, 1, "m", TODAY, 1) for index, row in enumerate(crowd(14, ONE_BATCH, 5, 100))]
    path = write_rows(pipeline, batch, "a.parquet", rows, Shape(row_group=30, metric=pa.dictionary(pa.int32(), pa.string())))
    assert_staged(pipeline, batch, {path: rows}, stage(pipeline, batch))


def test_more_metrics_than_fit_a_narrow_code(tmp_path: Path) -> None:
    """70,000 names, in two row groups: codes change their width on the way."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path, shards=2)
    batch = first_batch(pipeline)
    rows = [RawRow(index, 1, f"metric-{index}", TODAY + index, index) for index in range(70_000)]
    write_rows(pipeline, batch, "a.parquet", rows, Shape(row_group=40_000))
    found = staged.points(pipeline, batch, stage(pipeline, batch).repartitioned)
    assert {(point.id, point.metric) for points in found.values() for point in points} == {(row.id, row.metric) for row in rows}


@pytest.mark.scenario("B3")
def test_org_ids_and_values_far_apart_survive(tmp_path: Path) -> None:
    """Each row group packs its columns as narrow as its own values allow."""
    pipeline = pipeline_of(Grid(TODAY, HOUR, 1, (MINUTE,), HOUR), tmp_path)
    batch = first_batch(pipeline)
    spreads = [(0, 2**16 - 1), (0, 2**16), (-(2**31), -1), (-(2**31), 0), (INT64_MIN, INT64_MAX), (-5, -5), (2**62, 2**62 + 3)]
    rows = [
        RawRow(index, org_id, "m", TODAY + 10 * index + place, spread[1 - place], TODAY + 10 * index + org_id % 2**40)
        for index, spread in enumerate(spreads)
        for place, org_id in enumerate(spread)
    ]
    path = write_rows(pipeline, batch, "a.parquet", rows, Shape(row_group=2))
    assert_staged(pipeline, batch, {path: rows}, stage(pipeline, batch))
