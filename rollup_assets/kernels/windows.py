"""The state of a window, and how windows merge: shared by partial points and rollups.

A state is one row of an int64 array and one of a value array (int64 or float64), with the columns named here. Row l is the open
window of resolution l. A window that is complete at one resolution is folded into the open one of the next coarser resolution, so each
point is looked at once, whatever the number of resolutions. For float64 this order of additions defines the result.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.extending import overload

from rollup_assets.kernels.compiling import Array, Number, kernel

# Columns of the integer state. The first three are all that partial points need unless dimensions change or lags are known.
COUNT, STEPS, RESETS, ORG, METRIC, LAG_SUM, LAG_COUNT, LABEL, OVERFLOWED = range(9)
PLAIN_INTEGERS = 3
DETAILED_INTEGERS = 7
INTEGERS = 9
# Columns of the value state; partial points need no LATEST, it is the series' last value.
SUM, MIN, MAX, DELTA, LATEST = range(5)
PARTIAL_VALUES = 4
VALUES = 5


def wrap_of_sum(a: Any, b: Any, total: Any) -> Any:
    """Negative if ``total = a + b`` wrapped around, for int64; 0 for float64. (Hacker's Delight, 2-13: the signs of both operands
    differ from the sum's.)
    """
    raise NotImplementedError("compiled code only")


@overload(wrap_of_sum)
def _wrap_of_sum(a, b, total):  # type: ignore[no-untyped-def]  # noqa: ARG001  (numba compares annotations with the implementations')
    if isinstance(total, types.Integer):
        return lambda a, b, total: (a ^ total) & (b ^ total)
    return lambda a, b, total: np.int64(0)  # noqa: ARG005


def wrap_of_step(difference: Any, reset: Any) -> Any:
    """Negative if value minus earlier value wrapped around, where the earlier one is not greater (``reset`` = 0); 0 for float64."""
    raise NotImplementedError("compiled code only")


@overload(wrap_of_step)
def _wrap_of_step(difference, reset):  # type: ignore[no-untyped-def]  # noqa: ARG001
    if isinstance(difference, types.Integer):
        return lambda difference, reset: difference & (reset - 1)
    return lambda difference, reset: np.int64(0)  # noqa: ARG005


@kernel
def sum_overflows(a: Number, b: Number, total: Number) -> bool:
    """Whether ``total = a + b`` wrapped around; never for float64."""
    return bool(wrap_of_sum(a, b, total) < 0)


@kernel
def step_between(previous: Number, value: Number) -> tuple[Number, Number, Number]:
    """(step, 1 if it is a reset, negative if it overflows) from one value of a series to the next: ``value - previous``, or ``value``
    after a reset.
    """
    # No branch: on a gauge's random walk, half of the values are lower than the previous one, and each misprediction costs 4 ns.
    difference = value - previous
    reset = np.int64(value < previous)
    return value if reset else difference, reset, wrap_of_step(difference, reset)


class Sums(NamedTuple):
    """What the points of a window add up to, apart from receive times, in scalars."""

    total: Number
    smallest: Number
    largest: Number
    delta: Number
    steps: Number
    resets: Number
    wrapped: Number  # negative: some sum or step overflowed


@kernel
def with_point(sums: Sums, previous: Number, value: Number, stepped: Number) -> Sums:
    """A window's sums with one more point; ``stepped``: the point of ``previous`` is recent enough for a step."""
    total = sums.total + value
    wrapped = sums.wrapped | wrap_of_sum(sums.total, value, total)
    delta = sums.delta
    steps = sums.steps
    resets = sums.resets
    if stepped:
        step, reset, wrapped_step = step_between(previous, value)
        delta = sums.delta + step
        wrapped |= wrapped_step | wrap_of_sum(sums.delta, step, delta)
        steps += 1
        resets += reset
    return Sums(total, min(sums.smallest, value), max(sums.largest, value), delta, steps, resets, wrapped)


@kernel
def overflowed(sums: Sums) -> Sums:
    """The same sums, marked as overflowed."""
    return Sums(sums.total, sums.smallest, sums.largest, sums.delta, sums.steps, sums.resets, np.int64(-1))


@kernel
def absorb(integers: Array, values: Array, finer: int, coarser: int) -> None:
    """Merge the window in row ``finer`` into the one in row ``coarser``, which contains it and holds only earlier points so far."""
    integers[coarser, COUNT] += integers[finer, COUNT]
    integers[coarser, STEPS] += integers[finer, STEPS]
    integers[coarser, RESETS] += integers[finer, RESETS]
    integers[coarser, LAG_COUNT] += integers[finer, LAG_COUNT]
    lag = integers[coarser, LAG_SUM]
    integers[coarser, LAG_SUM] = lag + integers[finer, LAG_SUM]
    total = values[coarser, SUM] + values[finer, SUM]
    delta = values[coarser, DELTA] + values[finer, DELTA]
    over = (
        sum_overflows(values[coarser, SUM], values[finer, SUM], total)
        or sum_overflows(values[coarser, DELTA], values[finer, DELTA], delta)
        or sum_overflows(lag, integers[finer, LAG_SUM], integers[coarser, LAG_SUM])
    )
    integers[coarser, OVERFLOWED] |= integers[finer, OVERFLOWED] | np.int64(over)
    values[coarser, SUM] = total
    values[coarser, DELTA] = delta
    values[coarser, MIN] = min(values[coarser, MIN], values[finer, MIN])
    values[coarser, MAX] = max(values[coarser, MAX], values[finer, MAX])
    values[coarser, LATEST] = values[finer, LATEST]


@kernel
def fold(integers: Array, values: Array, level: int, resolutions: Array) -> None:
    """Move the window in row ``level`` up into row ``level + 1``: into the open window there, or as its beginning. Row ``level`` is
    then empty.
    """
    up = level + 1
    if up < len(resolutions):
        if integers[up, COUNT] > 0:
            absorb(integers, values, level, up)
        else:
            for column in range(INTEGERS):
                integers[up, column] = integers[level, column]
            for column in range(VALUES):
                values[up, column] = values[level, column]
            resolution = resolutions[up]
            integers[up, LABEL] = (integers[level, LABEL] + resolution - 1) // resolution * resolution
    integers[level, COUNT] = 0


@kernel
def complete_up_to(integers: Array, level: int, resolutions: Array) -> int:
    """The coarsest row, from ``level`` on, that is complete because the complete window in the row before it lies past its label."""
    while level + 1 < len(resolutions) and integers[level + 1, COUNT] > 0 and integers[level + 1, LABEL] < integers[level, LABEL]:
        level += 1
    return level
