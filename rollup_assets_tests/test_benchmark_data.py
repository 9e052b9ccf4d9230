"""The shapes of the benchmarks' raw points are what they are said to be, and every engine answers the same on them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import data
from benchmarks.sites import BATCH_END, BATCH_KEY, BATCH_START, EARLIER_KEYS, EPOCH_MS, Site


def _site(folder: Path, rows: int, shape: str, **options: int | bool) -> Site:
    site = Site(folder / f"{shape}-{rows}")
    data.generate(site, rows, shape, **options)
    return site


def _points(site: Site, key: str = BATCH_KEY) -> pa.Table:
    return pa.concat_tables(pq.read_table(path, partitioning=None) for path in sorted(site.raw_folder(key).glob("*.parquet")))


def _labels(points: pa.Table, window: int) -> Sequence[tuple[int, int]]:
    """(series, label) of every point."""
    times = points["logical_timestamp"].to_pylist()
    return list(zip(points["id"].to_pylist(), (-(-time // window) * window for time in times), strict=True))


def test_sparse_points_are_one_a_minute_and_series(tmp_path: Path) -> None:
    """So every point is a row at 1 min, as in the seed's batch; three targets, the last of them smaller."""
    site = _site(tmp_path, 1_234 * 60, "sparse", files=7)
    assert len(site.raw_files) == 7
    points = _points(site)
    labels = _labels(points, data.MINUTE_MS)
    assert len(points) == len(set(labels)) == 1_234 * 60
    assert {label for _, label in labels} == set(range(BATCH_START + data.MINUTE_MS, BATCH_END + 1, data.MINUTE_MS))
    before = _labels(_points(site, EARLIER_KEYS[-1]), data.MINUTE_MS)
    assert sorted(label for _, label in before) == [BATCH_START - data.MINUTE_MS] * 1_234 + [BATCH_START] * 1_234
    assert {series for series, _ in before} == {series for series, _ in labels}
    seen = [set(pq.read_table(path, columns=["logical_timestamp"], partitioning=None)[0].to_pylist()) for path in site.raw_files]
    assert all(max(early) // data.MINUTE_MS <= min(late) // data.MINUTE_MS for early, late in itertools.pairwise(seen))


def test_sparse_points_of_the_hour_before_are_as_many(tmp_path: Path) -> None:
    site = _site(tmp_path, 600, "sparse", hour_before=True)
    assert [len(_points(site, key)) for key in (*EARLIER_KEYS, BATCH_KEY)] == [20, 600, 600]
    assert min(_points(site, EARLIER_KEYS[-1])["logical_timestamp"].to_pylist()) < EPOCH_MS + 4 * 3_600_000 + data.MINUTE_MS


def test_data_that_is_there_is_used_again_unless_something_else_is_wanted(tmp_path: Path) -> None:
    site = _site(tmp_path, 600, "sparse")
    made = Path(site.raw_files[0]).stat().st_mtime_ns
    _site(tmp_path, 600, "sparse")
    assert Path(site.raw_files[0]).stat().st_mtime_ns == made
    content = _points(site)
    _site(tmp_path, 600, "sparse", threads=1, files=data.FILES, hour_before=True)
    assert Path(site.raw_files[0]).stat().st_mtime_ns != made
    assert _points(site) == content, "deterministic, whatever the threads"
