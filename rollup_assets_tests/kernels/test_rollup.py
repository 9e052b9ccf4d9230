"""The rollup kernel against the reference model, whatever chunks its points come in and however few rows its buffers hold."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollup_assets.kernels import merge
from rollup_assets.kernels import rollup as kernels
from rollup_assets_tests import naive
from rollup_assets_tests.kernels.arrays import NAMES, code_of, in_order, int64s, lag_of, partial_arrays
from rollup_assets_tests.naive import INT64_MAX, Partial, Point, Row, Rows
from rollup_assets_tests.staged import assert_same
from rollup_assets_tests.strategies import HOUR, MINUTE, TODAY, Grid, accepted, crowd, doubles, grids, histories, small_longs

quick = settings(max_examples=120, deadline=None)


def carry_of(
    partials: dict[int, Partial], before: dict[int, Partial], histories: list[list[Point]], start: int, grid: Grid, dtype: Any
) -> merge.Carry:
    """What a shard takes over, put together as the step does."""
    partial = partial_arrays(partials, grid.resolutions, dtype)
    known = int64s(list(before))
    merge.add_first_steps(
        partial, merge.rows_of_ids(known, partial.id), int64s([found.last.ts for found in before.values()]),
        np.array([found.last.value for found in before.values()], dtype), start, int64s(grid.resolutions), grid.lookback,
    )  # fmt: skip
    ids = int64s([history[0].id for history in histories])
    alone = int64s([j for j, series in enumerate(partial.id.tolist()) if series not in ids])
    firsts = [history[0] for history in histories]
    before_series = merge.keys_before(
        np.array([code_of(point.metric) for point in firsts], np.int32), int64s([point.org_id for point in firsts]), ids,
        partial.metric[alone], partial.org[alone], partial.id[alone],
    )  # fmt: skip
    row_of_series = merge.rows_of_ids(partial.id, ids) if len(partial.id) else np.empty(0, np.int32)
    return merge.Carry(partial, row_of_series, alone, before_series)


def points_of(points: list[Point], dtype: Any, *, with_lag: bool) -> kernels.Points:
    """A chunk, with metric codes of its own."""
    names = sorted({point.metric for point in points}, reverse=True)
    return kernels.Points(
        int64s([point.id for point in points]),
        int64s([point.ts for point in points]),
        np.array([point.value for point in points], dtype),
        int64s([point.org_id for point in points]),
        np.array([names.index(point.metric) for point in points], np.int32),
        int64s([lag_of(point) for point in points]) if with_lag else int64s([]),
        np.array([code_of(name) for name in names] or [0], np.int32),
    )


def take(rows: kernels.Rows, grid: Grid) -> list[Row]:
    """The finished windows, out of the buffers."""
    found = []
    for level, resolution in enumerate(grid.resolutions):
        for q in range(level * rows.capacity, level * rows.capacity + int(rows.used[level])):
            integers, values = rows.integers[:, q].tolist(), rows.values[:, q].tolist()
            count, delta = integers[kernels.OUT_COUNT], values[kernels.OUT_DELTA] if integers[kernels.OUT_STEPS] else None
            found.append(
                Row(
                    id=integers[kernels.OUT_ID],
                    org_id=integers[kernels.OUT_ORG],
                    metric=NAMES[integers[kernels.OUT_METRIC]],
                    resolution=resolution,
                    label=integers[kernels.OUT_LABEL],
                    count=count,
                    sum=values[kernels.OUT_SUM],
                    min=values[kernels.OUT_MIN],
                    max=values[kernels.OUT_MAX],
                    average=float(values[kernels.OUT_SUM]) / count,
                    latest=values[kernels.OUT_LATEST],
                    delta=delta,
                    resets=integers[kernels.OUT_RESETS],
                    rate=None if delta is None else float(delta) / (resolution / 1000),
                    lag=float(integers[kernels.OUT_LAG_SUM]) / integers[kernels.OUT_LAG_COUNT] if integers[kernels.OUT_LAG_COUNT] else None,
                )
            )
    rows.used[:] = 0
    return found


def roll_up(
    points: list[Point],
    partials: dict[int, Partial],
    before: dict[int, Partial],
    start: int,
    grid: Grid,
    cuts: list[int],
    limit: int,
    dtype: Any,
) -> tuple[list[Row], kernels.State]:
    """The kernel over all points of a batch, in chunks that end at ``cuts``, with buffers for ``limit`` rows."""
    ordered = in_order(points)
    carry = carry_of(partials, before, ordered, start, grid, dtype)
    flat = [point for history in ordered for point in history]
    state = kernels.new_state(len(grid.resolutions), np.dtype(dtype))
    rows = kernels.new_rows(limit, grid.length // grid.resolutions[0] + 4, len(grid.resolutions), np.dtype(dtype))
    found: list[Row] = []
    edges = [0, *sorted({cut % (len(flat) + 1) for cut in cuts}), len(flat)]
    chunks = [flat[begin:end] for begin, end in zip(edges, edges[1:], strict=False)]  # noqa: RUF007
    for final, chunk in [*((False, chunk) for chunk in chunks), (True, [])]:
        # As in the stage: a chunk of which no point has a receive time has no lags at all.
        arrays = points_of(chunk, dtype, with_lag=any(point.receive is not None for point in chunk))
        at, done = 0, len(chunk) + final
        while at < done:
            reached = kernels.roll_up(
                arrays, at, final, start, start + grid.length, int64s(grid.resolutions), grid.lookback, carry, state, rows
            )
            assert all(used <= rows.capacity for used in rows.used)
            emitted = take(rows, grid)
            assert reached > at or emitted, "neither a row further nor a row out: it would go on for ever"
            at = reached
            found += emitted
    assert state.cursor[kernels.NEXT_SERIES] == len(ordered)
    assert state.cursor[kernels.NEXT_ALONE] == len(partials.keys() - {point.id for point in points})
    return found, state


def keyed(rows: list[Row]) -> Rows:
    keys = {(row.id, row.resolution, row.label): row for row in rows}
    assert len(keys) == len(rows), "a window twice"
    return keys


@pytest.mark.parametrize("double", [False, True])
@quick
@given(data=st.data())
def test_roll_up(data: st.DataObject, double: bool) -> None:
    """Every batch of a history with what the two before it left, bit by bit, in order, nothing flagged as overflowed."""
    grid = data.draw(grids())
    points = accepted(data.draw(histories(grid, doubles if double else small_longs)))
    cuts, limit = data.draw(st.lists(st.integers(0, 30), max_size=4)), data.draw(st.integers(1, 4))
    partials: list[dict[int, Partial]] = [{}, {}]
    for start in (*grid.starts(), grid.end, grid.end + grid.length):
        end = start + grid.length
        inside = [point for point in points if start <= point.ts < end]
        expected = naive.rollups_of_batch(inside, partials[-1], partials[-2], start, end, grid.resolutions, grid.lookback)
        found, state = roll_up(inside, partials[-1], partials[-2], start, grid, cuts, limit, np.float64 if double else np.int64)
        assert_same(keyed(found), expected)
        assert state.cursor[kernels.OVERFLOW_LEVEL] == -1
        partials.append(naive.partial_points_of(inside, end, grid.resolutions, grid.lookback))


@pytest.mark.parametrize("cuts", [[], [1, 2, 3, 4, 5, 50, 51, 300, 301, 302, 900], list(range(0, 1500, 7))])
@pytest.mark.parametrize("limit", [1, 100, 10_000])
def test_roll_up_of_a_crowd_in_any_chunks_and_buffers(cuts: list[int], limit: int) -> None:
    """Series and their rows come in one order: (metric, org_id, id) of the first point, then time; those with nothing new among them."""
    grid = Grid(TODAY, HOUR, 2, (MINUTE, 5 * MINUTE, HOUR), HOUR)
    points = [
        dataclasses.replace(point, metric="cpu" if point.metric < "metric-5" else "")
        for point in accepted(crowd(3, grid, 80, 1500))
        if point.id % 3 or point.ts < TODAY + HOUR
    ]
    first = [point for point in points if point.ts < TODAY + HOUR]
    second = [point for point in points if point.ts >= TODAY + HOUR]
    partials = naive.partial_points_of(first, TODAY + HOUR, grid.resolutions, grid.lookback)
    found, _ = roll_up(second, partials, {}, TODAY + HOUR, grid, cuts, limit, np.int64)
    assert_same(keyed(found), naive.rollups_of_batch(second, partials, {}, TODAY + HOUR, TODAY + 2 * HOUR, grid.resolutions, grid.lookback))
    homes = {series: partial.first for series, partial in partials.items()} | {history[0].id: history[0] for history in in_order(second)}
    for resolution in grid.resolutions:
        order = [(code_of(homes[row.id].metric), homes[row.id].org_id, row.id, row.label) for row in found if row.resolution == resolution]
        assert order == sorted(order)


# (ms after the batch's start, value) of one series; the level and label (ms after the batch's start) of the first window that overflows.
OVERFLOWS: list[tuple[list[tuple[int, int]], tuple[int, int] | None]] = [
    ([(1, INT64_MAX), (2, 1)], (0, MINUTE)),
    ([(1, -1), (2, INT64_MAX)], (0, MINUTE)),
    ([(1, INT64_MAX), (MINUTE + 1, 1)], (1, 5 * MINUTE)),
    ([(-1, INT64_MAX), (0, 1)], (0, 0)),
    ([(-1, -1), (0, INT64_MAX)], (0, 0)),
    ([(-1, -2), (3 * MINUTE, INT64_MAX)], (0, 3 * MINUTE)),
    ([(-30 * MINUTE, INT64_MAX), (0, 1)], (2, 0)),
    ([(1, INT64_MAX), (6 * MINUTE, 1)], None),  # in the open hour only, which partial points look at
    ([(1, INT64_MAX), (2, 0)], None),
]


@pytest.mark.parametrize("cuts", [[], [0, 1, 2]])
@pytest.mark.parametrize(("points", "overflow"), OVERFLOWS)
def test_the_first_window_that_overflows_is_noted(points: list[tuple[int, int]], overflow: tuple[int, int] | None, cuts: list[int]) -> None:
    grid = Grid(TODAY, HOUR, 1, (MINUTE, 5 * MINUTE, HOUR), HOUR)
    history = [Point(4711, 1, "cpu", TODAY + after, value) for after, value in points]
    innocent = [Point(5, 1, "cpu", TODAY + 10, INT64_MAX), Point(9999, 1, "cpu", TODAY + 10, INT64_MAX)]
    partials = naive.partial_points_of([point for point in history if point.ts < TODAY], TODAY, grid.resolutions, grid.lookback)
    _, state = roll_up([point for point in (*history, *innocent) if point.ts >= TODAY], partials, {}, TODAY, grid, cuts, 100, np.int64)
    if overflow is None:
        assert state.cursor[kernels.OVERFLOW_LEVEL] == -1
        return
    level, label = overflow
    noted = (state.cursor[kernels.OVERFLOW_ID], state.cursor[kernels.OVERFLOW_LEVEL], state.cursor[kernels.OVERFLOW_LABEL])
    assert noted == (4711, level, TODAY + label)


@quick
@given(rows=st.lists(st.tuples(st.integers(naive.INT64_MIN, INT64_MAX), st.integers(0, INT64_MAX)), max_size=20))
def test_quotients_are_one_division_of_exact_sums(rows: list[tuple[int, int]]) -> None:
    sums, counts, means, rates = int64s([total for total, _ in rows]), int64s([count for _, count in rows]), *np.empty((2, len(rows)))
    kernels.means(sums, counts, means)
    kernels.rates(sums, 60.0, rates)
    assert rates.tolist() == [float(total) / 60.0 for total, _ in rows]
    assert [mean for mean, (_, count) in zip(means.tolist(), rows, strict=True) if count] == [float(t) / float(c) for t, c in rows if c]
    assert np.isfinite(means).all()
    kernels.means(sums.astype(np.float64), counts, means)
    assert [mean for mean, (_, count) in zip(means.tolist(), rows, strict=True) if count] == [float(t) / float(c) for t, c in rows if c]
