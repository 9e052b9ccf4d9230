"""The shapes of the benchmarks' raw points are what they are said to be, and every engine answers the same on them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks import data, ours
from benchmarks.check import check
from benchmarks.contenders import Contender, fastest_form, reset, run
from benchmarks.measure import Stopwatch
from benchmarks.points import MINUTE_MS, THIRD_MS, Hot
from benchmarks.sites import BATCH_END, BATCH_KEY, BATCH_START, EARLIER_KEYS, EPOCH_MS, Site
from benchmarks.tasks import DUCKDB, OURS, RAW_TO_1M, RAW_TO_PUBLISHED, REPARTITION


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
    labels = _labels(points, MINUTE_MS)
    assert len(points) == len(set(labels)) == 1_234 * 60
    assert {label for _, label in labels} == set(range(BATCH_START + MINUTE_MS, BATCH_END + 1, MINUTE_MS))
    before = _labels(_points(site, EARLIER_KEYS[-1]), MINUTE_MS)
    assert sorted(label for _, label in before) == [BATCH_START - MINUTE_MS] * 1_234 + [BATCH_START] * 1_234
    assert {series for series, _ in before} == {series for series, _ in labels}
    seen = [set(pq.read_table(path, columns=["logical_timestamp"], partitioning=None)[0].to_pylist()) for path in site.raw_files]
    assert all(max(early) // MINUTE_MS <= min(late) // MINUTE_MS for early, late in itertools.pairwise(seen))


def test_sparse_points_of_the_hour_before_are_as_many(tmp_path: Path) -> None:
    site = _site(tmp_path, 600, "sparse", hour_before=True)
    assert [len(_points(site, key)) for key in (*EARLIER_KEYS, BATCH_KEY)] == [20, 600, 600]
    assert min(_points(site, EARLIER_KEYS[-1])["logical_timestamp"].to_pylist()) < EPOCH_MS + 4 * 3_600_000 + MINUTE_MS


def test_data_that_is_there_is_used_again_unless_something_else_is_wanted(tmp_path: Path) -> None:
    site = _site(tmp_path, 600, "sparse")
    made = Path(site.raw_files[0]).stat().st_mtime_ns
    _site(tmp_path, 600, "sparse")
    assert Path(site.raw_files[0]).stat().st_mtime_ns == made
    content = _points(site)
    _site(tmp_path, 600, "sparse", threads=1, files=data.FILES, hour_before=True)
    assert Path(site.raw_files[0]).stat().st_mtime_ns != made
    assert _points(site) == content, "deterministic, whatever the threads"


def test_wide_points_are_three_a_series(tmp_path: Path) -> None:
    site = _site(tmp_path, 1_203 * 3, "wide")
    labels = _labels(_points(site), THIRD_MS)
    assert len(labels) == len(set(labels)) == 1_203 * 3
    for key in EARLIER_KEYS:
        assert len(_points(site, key)) == 1_203, "one of every series, so that every series has an open window of 1 h"


def test_a_few_series_have_most_of_the_skewed_points(tmp_path: Path) -> None:
    site = _site(tmp_path, 60_000, "skewed")
    points = _points(site)
    counts = Counter(points["id"].to_pylist())
    hot = counts.most_common(4)
    assert [count for _, count in hot] == [9_000] * 4
    assert sum(counts.values()) == len(points) == 60_000
    assert {count for series, count in counts.items() if series not in dict(hot)} == {60}
    assert len(counts) == data.series_for(60_000, "skewed")
    times = points["logical_timestamp"].to_pylist()
    assert times == sorted(times)
    assert len(set(zip(points["id"].to_pylist(), times, strict=True))) == len(points), "nothing is doubled"


def test_hot_series_have_a_millisecond_for_each_point() -> None:
    for rows in (36_000_000, 360_000_000, 1_000_000_000):
        assert Hot(rows).points <= MINUTE_MS


def test_five_percent_arrive_out_of_order(tmp_path: Path) -> None:
    """The same points as in order, but some of them up to a quarter of an hour later, in later files too."""
    late, plain = (_points(_site(tmp_path, 360 * 100, shape)) for shape in ("out-of-order", "scrapes"))
    order = [("id", "ascending"), ("logical_timestamp", "ascending")]
    assert late.sort_by(order) == plain.sort_by(order)
    latest: dict[int, int] = {}
    behind = 0
    for series, time in zip(late["id"].to_pylist(), late["logical_timestamp"].to_pylist(), strict=True):
        behind += time < latest.get(series, 0)
        assert latest.get(series, 0) - time < 16 * 60_000
        latest[series] = max(time, latest.get(series, 0))
    assert 0.04 < behind / len(late) < 0.055


def test_doubles_are_hundredths(tmp_path: Path) -> None:
    site = _site(tmp_path, 3_600, "doubles")
    values = _points(site)["double_value"]
    assert values.type == pa.float64()
    assert {round(value * 100) / 100 for value in values.to_pylist()} == set(values.to_pylist())
    assert sum(value.is_integer() for value in values.to_pylist()) < len(values) / 20
    assert site.value_column in site.point_columns


@pytest.mark.parametrize("shape", [shape for shape in data.SHAPES if shape not in ("scrapes", "sparse", "fleet")])
def test_everyone_answers_the_same_on_every_shape(tmp_path: Path, shape: str) -> None:
    """And a changed value is noticed."""
    site = _site(tmp_path, 7_200, shape)
    ours.prepare(site, 2)
    for contender in (
        Contender(OURS, RAW_TO_PUBLISHED),
        Contender(DUCKDB, REPARTITION, form=fastest_form(DUCKDB, REPARTITION)),
        Contender(DUCKDB, RAW_TO_1M, form=fastest_form(DUCKDB, RAW_TO_1M)),
    ):
        reset(contender, site)
        run(contender, site, 2, Stopwatch())
        assert check(site, contender.to_dict())["equal"], contender.name
    (path,) = site.output.glob("rollups*.parquet")
    table = pq.read_table(path)
    place = table.schema.get_field_index("sum_rollup")
    changed = [value + (0.01 if shape == "doubles" else 1) if row == 7 else value for row, value in enumerate(table[place].to_pylist())]
    pq.write_table(table.set_column(place, "sum_rollup", pa.array(changed)), path)
    assert not check(site, contender.to_dict())["equal"]
