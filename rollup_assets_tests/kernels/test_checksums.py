"""Naive twins of the checksums."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollup_assets.kernels import checksums as kernels
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN

MODULUS = 2**64
int64s = st.one_of(st.integers(-3, 3), st.integers(INT64_MIN, INT64_MAX))
quick = settings(max_examples=60, deadline=None)


def weight(series: int) -> int:
    """splitmix64's finalizer, made odd."""
    z = (series + 0x9E3779B97F4A7C15) % MODULUS
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % MODULUS
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % MODULUS
    return (z ^ (z >> 31)) | 1


@quick
@given(int64s)
def test_weights(series: int) -> None:
    assert int(kernels.weight(np.int64(series))) == weight(series)


# Rows as they come: series after series, labels ascending in each.
rows = st.dictionaries(
    st.tuples(st.sampled_from((5, -1, INT64_MIN, INT64_MAX)), st.integers(0, 9)),
    st.tuples(st.integers(1, 9), st.integers(0, 3), int64s, int64s, st.booleans()),
    max_size=20,
)
BOUNDS = [0, 4, 4, 9]


def segment_of(label: int) -> int:
    return next(index for index, bound in enumerate(BOUNDS) if label <= bound)


@quick
@given(rows=rows, cut=st.integers(0, 20))
def test_add_rows(rows: dict[tuple[int, int], tuple[int, int, int, int, bool]], cut: int) -> None:
    """In two calls, as row groups come, which may cut a series."""
    keys = sorted(rows)
    expected = [[0] * 4 for _ in BOUNDS]
    for series, label in keys:
        count, resets, total, delta, present = rows[series, label]
        for column, value in enumerate((count, resets, total, delta if present else 0)):
            segment = expected[segment_of(label)]
            segment[column] = (segment[column] + weight(series) * value) % MODULUS
    out, last = np.zeros((len(BOUNDS), 4), np.uint64), np.full(2, INT64_MIN, np.int64)
    repeated = 0
    for part in (keys[:cut], keys[cut:]):
        columns = [np.array([rows[key][column] for key in part], np.int64) for column in range(4)]
        repeated += kernels.add_rows(
            np.array([series for series, _ in part], np.int64), np.array([label for _, label in part], np.int64), *columns,
            np.array([rows[key][4] for key in part], np.bool_), np.array(BOUNDS, np.int64), out, last,
        )  # fmt: skip
    assert repeated == 0
    assert out.tolist() == expected


@pytest.mark.parametrize(("labels", "repeated"), [([1, 2, 3], 0), ([1, 1, 2], 1), ([2, 1, 3], 1), ([1, 1, 1], 2), ([3, 2, 1], 2)])
@pytest.mark.parametrize("cut", [0, 1, 2, 3])
def test_repeated_and_unordered_windows_are_counted(labels: list[int], repeated: int, cut: int) -> None:
    out, last = np.zeros((1, 4), np.uint64), np.full(2, INT64_MIN, np.int64)
    found = 0
    for part in (labels[:cut], labels[cut:]):
        ones = np.ones(len(part), np.int64)
        found += kernels.add_rows(
            7 * ones, np.array(part, np.int64), ones, ones, ones, ones, np.ones(len(part), np.bool_), np.array([9], np.int64), out, last
        )
    assert found == repeated
    assert out[0, 0] == weight(7) * 3 % MODULUS


@quick
@given(rows=rows)
def test_add_double_rows(rows: dict[tuple[int, int], tuple[int, int, int, int, bool]]) -> None:
    """Sums in row order, bit by bit, and the magnitudes that they can have passed through."""
    keys = sorted(rows)
    expected = [[0.0] * 4 for _ in BOUNDS]
    for series, label in keys:
        count, _, total, delta, present = rows[series, label]
        w = 0.5 + float(weight(series) >> 11) / 2**53
        segment = expected[segment_of(label)]
        segment[0] += w * (total / 7)
        passed = count * max(abs(total / 3), abs(delta / 3))
        segment[2] += w * passed
        if present:
            segment[1] += w * (delta / 7)
            segment[3] += w * (abs(delta / 7) + 2.0 * passed)
    out = np.zeros((len(BOUNDS), 4))
    kernels.add_double_rows(
        np.array([series for series, _ in keys], np.int64), np.array([label for _, label in keys], np.int64),
        np.array([rows[key][2] / 7 for key in keys], np.float64), np.array([rows[key][3] / 7 for key in keys], np.float64),
        np.array([rows[key][4] for key in keys], np.bool_), np.array([rows[key][0] for key in keys], np.int64),
        np.array([rows[key][2] / 3 for key in keys], np.float64), np.array([rows[key][3] / 3 for key in keys], np.float64),
        np.array(BOUNDS, np.int64), out,
    )  # fmt: skip
    assert out.tolist() == expected


def test_ids_next_to_each_other_have_unrelated_odd_weights() -> None:
    """What one series gains may not make up for what another loses: no two weights, nor sums of two, agree."""
    weights = [int(kernels.weight(np.int64(series))) for series in (*range(-20, 20), INT64_MIN, INT64_MAX)]
    assert all(weight % 2 for weight in weights)
    sums = [(a + b) % MODULUS for a, b in itertools.combinations(weights, 2)]
    assert len({*weights, *sums}) == len(weights) + len(sums)
