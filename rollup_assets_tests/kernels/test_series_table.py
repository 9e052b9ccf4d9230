"""A naive twin of every kernel that finds, numbers and orders the series of a shard."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rollup_assets.kernels import series_table
from rollup_assets.kernels.columns import NO_LAG
from rollup_assets_tests import naive
from rollup_assets_tests.kernels.blocks import LAG_BASE, METRICS, RANK, START, block_of, ingested, rows_of_points
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN, Point

quick = settings(max_examples=60, deadline=None)
int64s = st.one_of(st.integers(-3, 3), st.integers(INT64_MIN, INT64_MAX), st.sampled_from((INT64_MIN, INT64_MAX)))


@quick
@given(rows=rows_of_points, cut=st.integers(0, 40))
def test_ingest_gives_series_dense_codes_in_order_of_appearance(rows: list[Point], cut: int) -> None:
    """Two blocks, and a table so small that it grows on the way."""
    table, series, changed, points = ingested([rows[:cut], rows[cut:]], 4)
    ids = list(dict.fromkeys(point.id for point in rows))
    assert table.id[:series].tolist() == ids
    assert [ids[code] for code in points.code] == [point.id for point in rows]
    assert points.time.tolist() == [point.ts - START for point in rows]
    assert points.value.tolist() == [point.value for point in rows]
    assert points.lag.tolist() == [NO_LAG if point.receive is None else point.receive - point.ts for point in rows]
    first = {series_id: next(point for point in rows if point.id == series_id) for series_id in ids}
    assert changed == sum((point.org_id, point.metric) != (first[point.id].org_id, first[point.id].metric) for point in rows)
    for code, series_id in enumerate(ids):
        times = [point.ts for point in rows if point.id == series_id]
        assert table.points[code] == len(times)
        assert bool(table.unsorted[code]) == any(later <= earlier for earlier, later in zip(times, times[1:], strict=False))  # noqa: RUF007
    out = np.empty(len(rows), np.int32)
    series_table.codes_of_ids(np.array([point.id for point in rows], np.int64), table, out)
    assert out.tolist() == points.code.tolist()


@quick
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from((0.0, 0.02, 0.3, 1.0)))
def test_series_are_found_again_in_whatever_order_scrapes_come(seed: int, share: float) -> None:
    """The same order every time, with rows missing, displaced or new in between; or any order."""
    random = np.random.default_rng(seed)
    ids = random.integers(INT64_MIN, INT64_MAX, 60)
    rows = []
    for scrape in range(12):
        order = np.arange(60)
        moved = random.random(60) < share
        order[moved] = random.permutation(order[moved])
        seen = [place for place in order if random.random() >= share / 4 and not (scrape < 6 and place % 7 == 0)]
        rows += [Point(int(ids[place]), 1, "m", START + scrape, scrape) for place in seen]
    table, series, _, points = ingested([rows[:100], rows[100:]], 16)
    assert table.id[:series].tolist() == list(dict.fromkeys(point.id for point in rows))
    assert [int(table.id[code]) for code in points.code] == [point.id for point in rows]


def test_ids_that_meet_in_one_slot_keep_apart() -> None:
    """Many series in a table that is half full: long chains of collisions."""
    rows = [Point(series * 2**24, 1, "m", START, series) for series in range(2000)]
    table, series, _, points = ingested([rows], 4096)
    assert series == 2000
    assert [int(table.id[code]) for code in points.code] == [point.id for point in rows]


@quick
@given(
    ids=st.lists(int64s, max_size=30, unique=True),
    dimensions=st.tuples(
        st.lists(st.integers(0, 2), min_size=30, max_size=30), st.lists(st.one_of(st.integers(7, 9), int64s), min_size=30, max_size=30)
    ),
    many=st.booleans(),
)
def test_series_are_ordered_by_metric_organization_and_id(ids: list[int], dimensions: tuple[list[int], list[int]], many: bool) -> None:
    """Organizations that are near each other, and some that are not."""
    metric, org = (column[: len(ids)] for column in dimensions)
    org = org if many else [number % 5 for number in org]
    found = series_table.series_order(np.array(metric, np.int32), np.array(org, np.int64), np.array(ids, np.int64))
    assert found.tolist() == sorted(range(len(ids)), key=lambda code: (metric[code], org[code], ids[code]))


@quick
@given(rows=rows_of_points, cut=st.integers(0, 40))
def test_first_points_are_found_without_sorting(rows: list[Point], cut: int) -> None:
    table, series, _, _ = ingested([rows], 64)
    first = series_table.FirstPoints(
        np.full(series, -1, np.int32),
        np.empty(series, np.int64),
        np.empty(series, np.int64),
        np.empty(series, np.int32),
        np.empty(series, np.int64),
    )
    for part in (rows[:cut], rows[cut:]):
        codes = np.empty(len(part), np.int32)
        series_table.codes_of_ids(np.array([point.id for point in part], np.int64), table, codes)
        series_table.note_first_points(block_of(part), 0, 0, LAG_BASE, codes, RANK, first)
    for series_id, history in naive.series_of(naive.without_duplicates(rows)).items():
        code = table.id[:series].tolist().index(series_id)
        found = (int(first.time[code]) + START, first.value[code], first.org[code], METRICS[first.metric[code]])
        assert found == (history[0].ts, history[0].value, history[0].org_id, history[0].metric)
