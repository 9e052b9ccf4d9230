"""Partial points against the reference model."""

from __future__ import annotations

import bisect
import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollup_assets.kernels import partial as kernels
from rollup_assets.kernels.points import SortedSeries
from rollup_assets_tests import naive
from rollup_assets_tests.kernels.arrays import empty_partial_points, in_order, int64s, shard_points, state_at
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN, Point
from rollup_assets_tests.staged import bits
from rollup_assets_tests.strategies import HOUR, Grid, accepted, doubles, grids, histories, small_longs

quick = settings(max_examples=100, deadline=None)


@quick
@given(times=st.lists(st.integers(0, 20)).map(sorted), after=st.integers(-1, 21))
def test_first_open(times: list[int], after: int) -> None:
    found = kernels.first_open(np.array([-5, *times, -5], np.int32), 1, len(times) + 1, after)
    assert found == 1 + bisect.bisect_right(times, after)


def run(
    points: list[Point], grid: Grid, start: int, *, double: bool, details: bool, exact: bool = False
) -> tuple[tuple[int, int], kernels.PartialPoints, list[list[Point]]]:
    """The kernels on the points of one batch; ``exact``: the one for int64 that needs no order, as far as it goes."""
    ordered = in_order(points)
    dtype = np.float64 if double else np.int64
    out = empty_partial_points(ordered, len(grid.resolutions), dtype, details=details)
    lengths = [len(history) for history in ordered]
    begins = np.cumsum([0, *lengths])[: len(lengths)].astype(np.int64)
    sorted_points = shard_points(ordered, start, dtype, details=details)
    series = SortedSeries(out.id, out.org, out.metric, begins, int64s(lengths))
    kernels.first_and_last_points(series, sorted_points, start, out)
    arguments = (series, sorted_points, np.arange(9, dtype=np.int32), grid.length, int64s(grid.resolutions), grid.lookback)
    overflow = kernels.long_partial_points(*arguments, out) if exact else kernels.partial_points(*arguments, details, out)
    return overflow, out, ordered


@pytest.mark.parametrize(
    ("double", "details", "exact"), [*((double, details, False) for double in (0, 1) for details in (0, 1)), (0, 0, 1)]
)
@quick
@given(data=st.data())
def test_partial_points(data: st.DataObject, double: bool, details: bool, exact: bool) -> None:
    """First and last points, and every open window, of every batch; without details for series that keep their dimensions."""
    grid = data.draw(grids())
    points = accepted(data.draw(histories(grid, doubles if double else small_longs)))
    if not details:
        points = [dataclasses.replace(point, org_id=1, metric="cpu", receive=None) for point in points]
    for start in grid.starts():
        inside = [point for point in points if start <= point.ts < start + grid.length]
        if not inside:
            continue
        expected = naive.partial_points_of(inside, start + grid.length, grid.resolutions, grid.lookback)
        overflow, out, ordered = run(inside, grid, start, double=double, details=details, exact=exact)
        assert overflow == (-1, -1)
        for j, history in enumerate(ordered):
            partial = expected[history[0].id]
            assert (out.first_time[j], out.first_value[j]) == (partial.first.ts, partial.first.value)
            assert (out.last_time[j], out.last_value[j]) == (partial.last.ts, partial.last.value)
            for level, resolution in enumerate(grid.resolutions):
                found, wanted = state_at(out, level, j, details=details), partial.open.get(resolution)
                assert (found is None) == (wanted is None)
                assert found is None or wanted is None or bits(found) == bits(wanted)


def test_a_window_without_a_point_says_nothing_of_other_series() -> None:
    """Its columns are staged as well: zeros, and the series' own metric."""
    grid = Grid(0, HOUR, 1, (HOUR // 60, HOUR), HOUR)
    points = [Point(1, 1, "disk/\N{GREEK SMALL LETTER ALPHA}", 1000, 5, 7), Point(2, 1, "cpu", HOUR - 1, 5, HOUR)]
    _, out, ordered = run(points, grid, 0, double=False, details=True)
    j = next(j for j, history in enumerate(ordered) if history[0].id == 1)
    assert out.integers[0, :, j].tolist() == [0, 0, 0, 0, out.metric[j], 0, 0]
    assert out.values[0, :, j].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("after", "values", "overflow"),
    [
        ((1, 2), (INT64_MAX, 1), (1, 1)),  # in an hour's first minute: only the open hour
        ((HOUR - 2, HOUR - 1), (INT64_MAX, 1), (1, 0)),
        ((HOUR - 2, HOUR - 1), (-1, INT64_MAX), (1, 0)),
        ((1, HOUR - 1), (INT64_MAX, 1), (1, 1)),
        ((1, 2), (INT64_MAX, 0), (-1, -1)),
    ],
)
def test_an_overflow_names_series_and_resolution(after: tuple[int, int], values: tuple[int, int], overflow: tuple[int, int]) -> None:
    grid = Grid(0, HOUR, 1, (HOUR // 60, HOUR), HOUR)
    points = [Point(1, 1, "cpu", HOUR - 1, 5), *(Point(2, 1, "cpu", ts, value) for ts, value in zip(after, values, strict=True))]
    assert run(points, grid, 0, double=False, details=False)[0] == overflow
    assert run(points, grid, 0, double=False, details=True)[0] == overflow
    assert run(points, grid, 0, double=False, details=False, exact=True)[0] == overflow


@quick
@given(
    values=st.lists(st.sampled_from((0, 3, -1, 1 << 62, -(1 << 62), INT64_MAX, INT64_MIN, INT64_MAX // 5)), min_size=2, max_size=9),
    resolutions=st.sampled_from(((HOUR // 60, HOUR // 4, HOUR // 2), (HOUR // 60, HOUR), (HOUR,))),
    copies=st.sampled_from((1, 3)),
    steps=st.lists(st.integers(1, HOUR // 9 - 1), min_size=9, max_size=9),
)
def test_great_values_become_the_same_by_either_kernel(
    values: list[int], resolutions: tuple[int, ...], copies: int, steps: list[int]
) -> None:
    """Also where only the step into the longest window's first point overflows, from a point before it, and if there are many."""
    grid = Grid(0, HOUR, 1, resolutions, HOUR // 4)
    times = [int(ts) for ts in np.cumsum(steps)]
    points = [Point(1, 1, "cpu", ts, ts) for ts in times]
    points += [Point(2 + copy, 1, "cpu", ts, value) for copy in range(copies) for ts, value in zip(times, values, strict=False)]
    overflow, out, _ = run(points, grid, 0, double=False, details=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "_MOST_ALONE", 1)
        found, exact, _ = run(points, grid, 0, double=False, details=False, exact=True)
    assert found == overflow
    if overflow == (-1, -1):
        assert (out.integers == exact.integers).all()
        assert (out.values == exact.values).all()


def test_a_step_into_the_longest_window_may_overflow() -> None:
    """Though the window's own values are far from it: the point before it counts, too."""
    grid = Grid(0, HOUR, 1, (HOUR // 60, HOUR // 2), HOUR)
    points = [Point(1, 1, "cpu", HOUR // 2, -(1 << 62)), Point(1, 1, "cpu", HOUR // 2 + 1, 1 << 62)]
    assert run(points, grid, 0, double=False, details=False)[0] == (0, 1)
    assert run(points, grid, 0, double=False, details=False, exact=True)[0] == (0, 1)
