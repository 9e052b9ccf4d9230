"""Naive twins of the merge with earlier batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollup_assets.kernels import merge as kernels
from rollup_assets_tests import naive
from rollup_assets_tests.kernels.arrays import int64s, partial_arrays, state_at
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN, Point
from rollup_assets_tests.staged import bits
from rollup_assets_tests.strategies import HOUR, accepted, doubles, grids, histories, small_longs

quick = settings(max_examples=100, deadline=None)
ids = st.one_of(st.integers(-5, 5), st.integers(INT64_MIN, INT64_MAX), st.integers(-3, 3).map(lambda n: n * 2**40))


@quick
@given(known=st.lists(ids, unique=True, max_size=40), wanted=st.lists(ids, max_size=40))
def test_rows_of_ids(known: list[int], wanted: list[int]) -> None:
    found = kernels.rows_of_ids(int64s(known), int64s(wanted))
    assert found.tolist() == [known.index(series) if series in known else -1 for series in wanted]


keys = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(-3, 3)), unique=True, max_size=12).map(sorted)


@quick
@given(series=keys, alone=keys)
def test_keys_before(series: list[tuple[int, int, int]], alone: list[tuple[int, int, int]]) -> None:
    """How many of the series come before each of the others, in one pass over both."""
    columns = [[int64s([key[place] for key in found]) for place in range(3)] for found in (series, alone)]
    for found in columns:
        found[0] = found[0].astype(np.int32)
    assert kernels.keys_before(*columns[0], *columns[1]).tolist() == [sum(key < other for key in series) for other in alone]


@pytest.mark.parametrize("double", [False, True])
@quick
@given(data=st.data())
def test_add_first_steps(data: st.DataObject, double: bool) -> None:
    """To every open window that contains the series' first point of the batch, where the gap is not longer than the lookback."""
    grid = data.draw(grids())
    points = accepted(data.draw(histories(grid, doubles if double else small_longs)))
    dtype = np.float64 if double else np.int64
    before: dict[int, naive.Partial] = {}
    for start in grid.starts():
        end = start + grid.length
        partials = naive.partial_points_of([point for point in points if start <= point.ts < end], end, grid.resolutions, grid.lookback)
        arrays = partial_arrays(partials, grid.resolutions, dtype)
        known = int64s(list(before))
        overflow = kernels.add_first_steps(
            arrays, kernels.rows_of_ids(known, arrays.id), int64s([partial.last.ts for partial in before.values()]),
            np.array([partial.last.value for partial in before.values()], dtype), end, int64s(grid.resolutions), grid.lookback,
        )  # fmt: skip
        assert overflow == (-1, -1)
        for j, series in enumerate(arrays.id.tolist()):
            partial = partials[series]
            way = naive.step(before[series].last, partial.first, grid.lookback) if series in before else None
            for level, resolution in enumerate(grid.resolutions):
                found, state = state_at(arrays, level, j, details=True), partial.open.get(resolution)
                if state is None:
                    assert found is None
                    continue
                wanted = naive.with_step(state, way) if naive.label_of(partial.first.ts, resolution) == end else state
                assert found is not None
                # The model's latest is the window's, the arrays' the series': the same for an open window.
                assert bits(found) == bits(wanted)
        before = partials


@pytest.mark.parametrize(
    ("last", "first", "more", "overflow"),
    [(-1, INT64_MAX, (), (0, 0)), (0, INT64_MAX, (), (-1, -1)), (-(2**62), 2**61, (2**62,), (0, 1))],
)
def test_a_first_step_that_does_not_fit_names_series_and_resolution(
    last: int, first: int, more: tuple[int, ...], overflow: tuple[int, int]
) -> None:
    """The step itself, or the delta that it is added to; in the finest window that contains the first point."""
    resolutions = (HOUR // 60, HOUR)
    at = HOUR - 10 if not more else HOUR // 2
    points = [Point(1, 1, "cpu", at + index, value) for index, value in enumerate((first, *more))]
    arrays = partial_arrays(naive.partial_points_of(points, HOUR, resolutions, HOUR), resolutions, np.int64)
    found = kernels.add_first_steps(
        arrays, np.zeros(1, np.int32), int64s([-1]), np.array([last], np.int64), HOUR, int64s(resolutions), HOUR
    )
    assert found == overflow
