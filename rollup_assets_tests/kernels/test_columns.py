"""A naive twin of every kernel of single columns."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rollup_assets.kernels.columns import MOST_LAG, NO_LAG, all_finite, compact_codes, extremes, extremes_of_lags, lags_between
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN

quick = settings(max_examples=60, deadline=None)
int64s = st.one_of(st.integers(-3, 3), st.integers(INT64_MIN, INT64_MAX), st.sampled_from((INT64_MIN, INT64_MAX)))


@quick
@given(st.lists(int64s, min_size=1, max_size=20))
def test_extremes(values: list[int]) -> None:
    assert extremes(np.array(values, np.int64)) == (min(values), max(values))


@quick
@given(st.lists(st.floats(), max_size=20))
def test_all_finite(values: list[float]) -> None:
    assert all_finite(np.array(values, np.float64)) == all(math.isfinite(value) for value in values)


@quick
@given(rows=st.lists(st.tuples(st.integers(-(2**60), 2**60), st.one_of(st.none(), int64s)), max_size=20))
@example(rows=[(time, time + side * (MOST_LAG + off)) for time in (-7, 0, 2**41) for side in (-1, 1) for off in (-1, 0, 1)])
def test_lags_are_differences_that_do_not_wrap_around_or_unknown(rows: list[tuple[int, int | None]]) -> None:
    times, receives = np.array([time for time, _ in rows], np.int64), np.array([receive or 0 for _, receive in rows], np.int64)
    unknown = np.array([receive is None for _, receive in rows], np.bool_)
    found = np.empty(len(rows), np.int64)

    def expected(time: int, receive: int) -> int:
        return receive - time if abs(receive - time) <= MOST_LAG else int(NO_LAG)

    lags_between(times, receives, unknown, found)
    assert found.tolist() == [NO_LAG if receive is None else expected(time, receive) for time, receive in rows]
    lags_between(times, receives, unknown[:0], found)
    assert found.tolist() == [expected(time, receive or 0) for time, receive in rows]


@quick
@given(lags=st.lists(st.one_of(st.just(NO_LAG), st.integers(-(2**61), 2**61)), max_size=20))
def test_extremes_of_lags_are_of_those_that_are_known(lags: list[int]) -> None:
    known = [lag for lag in lags if lag != NO_LAG]
    low, high = extremes_of_lags(np.array(lags, np.int64))
    assert (low, high) == (min(known), max(known)) if known else low > high


@quick
@given(codes=st.lists(st.integers(0, 9), max_size=30))
def test_compact_codes_number_by_first_appearance(codes: list[int]) -> None:
    translation, out, used = np.full(10, -1, np.int32), np.empty(len(codes), np.int32), np.empty(10, np.int32)
    count = compact_codes(np.array(codes, np.int32), translation, out, used)
    expected = list(dict.fromkeys(codes))
    assert used[:count].tolist() == expected
    assert [used[code] for code in out] == codes
    assert (translation == -1).all()
