"""Naive twins of steps and folds."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rollup_assets.kernels import windows as kernels
from rollup_assets_tests import naive
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN, Point

quick = settings(max_examples=100, deadline=None)
int64s = st.one_of(st.integers(-3, 3), st.integers(INT64_MIN, INT64_MAX), st.sampled_from((INT64_MIN, INT64_MAX)))


@quick
@given(int64s, int64s)
def test_step_between_longs(p: int, q: int) -> None:
    """Exact where it fits, and an overflow exactly where it does not."""
    way = naive.step(Point(1, 1, "m", 0, p), Point(1, 1, "m", 1, q), 1)
    assert way is not None
    step, reset, wrapped = kernels.step_between(np.int64(p), np.int64(q))
    assert reset == way.reset
    assert (wrapped < 0) == (not naive.fits(way.delta))
    assert wrapped < 0 or step == way.delta


@quick
@given(st.floats(allow_nan=False, allow_infinity=False), st.floats(allow_nan=False, allow_infinity=False))
def test_step_between_doubles(p: float, q: float) -> None:
    way = naive.step(Point(1, 1, "m", 0, p), Point(1, 1, "m", 1, q), 1)
    assert way is not None
    step, reset, wrapped = kernels.step_between(p, q)
    assert (float(step).hex(), reset, wrapped) == (float(way.delta).hex(), way.reset, 0)


windows = st.tuples(st.integers(0, 5), int64s, int64s, int64s, int64s, st.integers(0, 3), st.integers(-5, 5), st.integers(0, 1))
RESOLUTIONS = np.array([10, 60], np.int64)


@quick
@given(earlier=windows, later=windows)
def test_fold_merges_the_later_window_into_the_coarser_one(
    earlier: tuple[int, int, int, int, int, int, int, int], later: tuple[int, int, int, int, int, int, int, int]
) -> None:
    """Or begins it, where there is none; the finer one is then empty; sums that do not fit are noted and stay noted."""
    integers, values = np.zeros((2, kernels.INTEGERS), np.int64), np.zeros((2, kernels.VALUES), np.int64)
    for row, (count, total, low, high, delta, steps, lag, over) in ((1, earlier), (0, (later[0] + 1, *later[1:]))):
        for column, found in (
            (kernels.COUNT, count), (kernels.STEPS, steps), (kernels.RESETS, steps // 2), (kernels.ORG, row + 5), (kernels.METRIC, row + 7),
            (kernels.LAG_SUM, lag), (kernels.LAG_COUNT, abs(lag)), (kernels.LABEL, 30), (kernels.OVERFLOWED, over),
        ):  # fmt: skip
            integers[row, column] = found
        for column, found in (
            (kernels.SUM, total),
            (kernels.MIN, low),
            (kernels.MAX, high),
            (kernels.DELTA, delta),
            (kernels.LATEST, total),
        ):
            values[row, column] = found
    before_integers, before_values = integers.copy(), values.copy()
    kernels.fold(integers, values, 0, RESOLUTIONS)
    assert integers[0, kernels.COUNT] == 0
    if earlier[0] == 0:
        assert integers[1, : kernels.LABEL].tolist() == before_integers[0, : kernels.LABEL].tolist()
        assert integers[1, kernels.LABEL] == 60
        assert integers[1, kernels.OVERFLOWED] == later[7]
        assert values[1].tolist() == before_values[0].tolist()
        return
    for column in (kernels.COUNT, kernels.STEPS, kernels.RESETS, kernels.LAG_SUM, kernels.LAG_COUNT):
        assert integers[1, column] == before_integers[:, column].sum()
    assert (integers[1, kernels.ORG], integers[1, kernels.METRIC]) == (6, 8)
    assert values[1, kernels.MIN] == min(earlier[2], later[2])
    assert values[1, kernels.MAX] == max(earlier[3], later[3])
    assert values[1, kernels.LATEST] == later[1]
    fits = naive.fits(earlier[1] + later[1]) and naive.fits(earlier[4] + later[4])
    assert bool(integers[1, kernels.OVERFLOWED]) == (not fits or bool(earlier[7]) or bool(later[7]))
    if fits:
        assert (values[1, kernels.SUM], values[1, kernels.DELTA]) == (earlier[1] + later[1], earlier[4] + later[4])


@quick
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), min_size=4, max_size=4))
def test_complete_up_to_looks_past_every_coarser_window_that_ended_before(rows: list[tuple[int, int]]) -> None:
    """From the given row on, as long as the next coarser one is there and ends before this one."""
    integers = np.zeros((4, kernels.INTEGERS), np.int64)
    for row, (count, label) in enumerate(rows):
        integers[row, kernels.COUNT], integers[row, kernels.LABEL] = count, label
    expected = 0
    while expected < 3 and rows[expected + 1][0] > 0 and rows[expected + 1][1] < rows[expected][1]:
        expected += 1
    assert kernels.complete_up_to(integers, 0, np.array([1, 2, 4, 8], np.int64)) == expected
