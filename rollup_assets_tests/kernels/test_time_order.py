"""The points of a shard in time order, and read back in row groups, beside the reference model."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rollup_assets.kernels import time_order
from rollup_assets.kernels.columns import NO_LAG
from rollup_assets.kernels.points import ShardPoints, SortedSeries
from rollup_assets.kernels.row_groups import RowGroup, fill_row_group
from rollup_assets_tests import naive
from rollup_assets_tests.kernels.blocks import METRICS, RANK, START, empty_points, ingested, rows_of_points
from rollup_assets_tests.naive import Point

quick = settings(max_examples=60, deadline=None)


def placed(rows: list[Point], dtype: Any = np.int64) -> tuple[list[Point], int]:
    """Rows sorted by the kernels, series ordered by the dimensions of their first points, and the number of duplicates."""
    table, series, _, points = ingested([rows], 64, dtype=dtype)
    start, kept = np.empty(series, np.int64), np.empty(series, np.int64)
    out = empty_points(len(rows), dtype, with_code=False)
    duplicates = time_order.place(points, len(rows), np.arange(series), table, RANK, start, kept, out)
    org, metric = out.org[start], RANK[out.metric[start]]
    order = np.lexsort((table.id[:series], org, metric))
    sorted_series = SortedSeries(table.id[order], org[order], metric[order], start[order], kept[order])
    return read_in_row_groups(sorted_series, out, 5), duplicates


def read_in_row_groups(series: SortedSeries, points: ShardPoints, size: int) -> list[Point]:
    """All points through row groups of ``size`` rows; the ranks are names again."""
    names = sorted(METRICS)
    found: list[Point] = []
    j = i = 0
    while j < len(series.id):
        group = RowGroup(*(np.empty(size, kind) for kind in (np.int64, np.int64, np.int32, np.int64, points.value.dtype, np.int64)))
        filled, j, i = fill_row_group(series, j, i, 0, RANK, START, points, group)
        assert filled == size or j == len(series.id)
        for row in range(filled):
            receive = int(group.receive[row])
            found.append(
                Point(
                    int(group.id[row]),
                    int(group.org[row]),
                    names[group.metric[row]],
                    int(group.time[row]),
                    group.value[row].item(),
                    None if receive == NO_LAG else receive,
                )
            )
    return found


@quick
@given(rows=rows_of_points)
def test_place_sorts_series_and_keeps_the_greatest_of_duplicates(rows: list[Point]) -> None:
    """Whatever the order of rows; then the staged order, in row groups that cut series."""
    points = naive.without_duplicates(rows)
    found, duplicates = placed(rows)
    assert duplicates == len(rows) - len(points)
    assert found == naive.repartitioned(points, 1)[0]


@quick
@given(
    seed=st.integers(0, 2**32 - 1),
    share=st.sampled_from((0.0, 0.02, 0.3, 1.0)),
    far=st.sampled_from((2, 20, 400)),
    again=st.sampled_from((0, 10, 400)),
)
def test_a_long_series_is_sorted_however_late_its_rows_are(seed: int, share: float, far: int, again: int) -> None:
    """Rows that come a little late are moved to their places, of those that come again one stays; beyond some work the rest is merged."""
    random = np.random.default_rng(seed)
    times = np.arange(400) // random.choice((1, 2))
    late = np.where(random.random(400) < share, random.integers(0, far, 400), 0)
    rows = [
        Point(1, 1, "m", START + int(times[row]), int(random.integers(0, 3)), START + int(times[row] + late[row]))
        for row in np.argsort(times + late, kind="stable")
    ]
    rows += [dataclasses.replace(row, value=int(random.integers(0, 3))) for row in rows[:again]]
    points = naive.without_duplicates(rows)
    found, duplicates = placed(rows)
    assert duplicates == len(rows) - len(points)
    assert found == naive.repartitioned(points, 1)[0]


def test_few_late_rows_are_moved_and_many_merged() -> None:
    """Both ways of the test above."""
    for late, moved in (([*range(2, 100), 1], True), ([*range(99, -1, -1)], False), ([*range(200), *range(200)], False)):
        points = ShardPoints(*(np.array(late, kind) for kind in (np.int32, np.int32, np.int64, np.int64, np.int32, np.int64)))
        last, row = time_order.insert_late_rows(points, RANK, 0, len(late), True, True)
        assert (row == len(late)) is moved
        assert points.time[: last + 1].tolist() == sorted({*late[:row]})
        rows = [Point(1, 1, "m", START + time, number % 3) for number, time in enumerate(late)]
        assert placed(rows)[0] == naive.repartitioned(naive.without_duplicates(rows), 1)[0]


@quick
@given(rows=rows_of_points)
def test_place_sorts_doubles(rows: list[Point]) -> None:
    rows = [Point(p.id, p.org_id, p.metric, p.ts, p.value / 3, p.receive) for p in rows]
    assert placed(rows, np.float64)[0] == naive.repartitioned(naive.without_duplicates(rows), 1)[0]
