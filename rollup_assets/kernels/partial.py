"""Partial points: what a batch leaves open, per series and resolution.

The state of the window labelled with the batch's end, over the batch's points in it, *without* the step into the series' first point of
the batch, which only an earlier batch knows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rollup_assets.kernels.compiling import kernel
from rollup_assets.kernels.repartition import NO_LAG, ShardPoints
from rollup_assets.kernels.windows import (
    COUNT,
    DELTA,
    INTEGERS,
    LABEL,
    LAG_COUNT,
    LAG_SUM,
    LATEST,
    MAX,
    METRIC,
    MIN,
    ORG,
    OVERFLOWED,
    RESETS,
    STEPS,
    SUM,
    VALUES,
    complete_up_to,
    fold,
    step_between,
    sum_overflows,
)

Array = NDArray[np.generic]


class PartialPoints(NamedTuple):
    """Partial points of k series of one shard, in the order of its series, for L resolutions."""

    id: Array  # int64[k]
    org: Array  # int64[k], of the series' first accepted point in the batch
    metric: Array  # int32[k], rank or code of the metric, likewise
    first_time: Array  # int64[k], epoch ms
    first_value: Array  # int64 | float64 [k]
    last_time: Array  # int64[k], epoch ms
    last_value: Array  # int64 | float64 [k]
    integers: Array  # int64[L, 3 or 7, k], columns of kernels.windows up to LAG_COUNT
    values: Array  # int64 | float64 [L, 4, k], columns of kernels.windows up to DELTA


@kernel
def first_open(times: Array, begin: int, end: int, after: int) -> int:
    """The first index in ``[begin, end)`` of ascending times that is greater than ``after``; ``end`` if none is."""
    while begin < end:
        middle = (begin + end) // 2
        if times[middle] > after:
            end = middle
        else:
            begin = middle + 1
    return begin


@kernel
def fold_complete(integers: Array, values: Array, level: int, resolutions: Array) -> None:
    """Fold the complete window in row ``level`` upwards, after the coarser ones that its label shows to be complete."""
    for row in range(complete_up_to(integers, level, resolutions), level - 1, -1):
        fold(integers, values, row, resolutions)


@kernel
def partial_points(
    order: Array,
    start: Array,
    kept: Array,
    points: ShardPoints,
    metric_rank: Array,
    batch_start: int,
    batch_length: int,
    resolutions: Array,
    lookback: int,
    details: bool,
    out: PartialPoints,
) -> tuple[int, int]:
    """Fill ``out`` from the sorted points of a shard.

    order int64[k]: codes of the series in output order; start, kept int64 by code; resolutions int64[L] in ms, finest first. ``out``'s id,
    org and metric are the caller's. ``details``: org, metric and lag of each window are wanted too (``out.integers`` has 7 columns).
    Returns (series, level) of the first overflow, or (-1, -1).
    """
    levels = len(resolutions)
    with_dimensions = len(points.org) > 0
    with_lag = len(points.lag) > 0
    integers = np.zeros((levels, INTEGERS), np.int64)
    values = np.zeros((levels, VALUES), points.value.dtype)
    finest = resolutions[0]
    for j in range(len(order)):
        code = order[j]
        begin = start[code]
        end = begin + kept[code]
        out.first_time[j] = batch_start + points.time[begin]
        out.first_value[j] = points.value[begin]
        out.last_time[j] = batch_start + points.time[end - 1]
        out.last_value[j] = points.value[end - 1]
        i = first_open(points.time, begin, end, batch_length - resolutions[levels - 1])
        while i < end:
            # One finest window, whose first point is i.
            label = (points.time[i] + finest - 1) // finest * finest
            if integers[0, COUNT] > 0:
                fold_complete(integers, values, 0, resolutions)
            value = points.value[i]
            total = value
            smallest = value
            largest = value
            delta = value - value
            steps = 0
            resets = 0
            lag_sum = np.int64(0)
            lag_count = 0
            over = False
            first = i
            while i < end and points.time[i] <= label:
                value = points.value[i]
                if i > first:
                    sum_before = total
                    total = sum_before + value
                    over |= sum_overflows(sum_before, value, total)
                    smallest = min(smallest, value)
                    largest = max(largest, value)
                if i > begin and points.time[i] - points.time[i - 1] <= lookback:
                    step, reset, wrapped = step_between(points.value[i - 1], value)
                    delta_before = delta
                    delta = delta_before + step
                    over |= wrapped or sum_overflows(delta_before, step, delta)
                    steps += 1
                    resets += reset
                if with_lag and points.lag[i] != NO_LAG:
                    lag_before = lag_sum
                    lag_sum = lag_before + points.lag[i]
                    over |= sum_overflows(lag_before, points.lag[i], lag_sum)
                    lag_count += 1
                i += 1
            integers[0, LABEL] = label
            integers[0, COUNT] = i - first
            integers[0, STEPS] = steps
            integers[0, RESETS] = resets
            integers[0, LAG_SUM] = lag_sum
            integers[0, LAG_COUNT] = lag_count
            integers[0, OVERFLOWED] = np.int64(over)
            if details:
                integers[0, ORG] = points.org[first] if with_dimensions else out.org[j]
                integers[0, METRIC] = metric_rank[points.metric[first]] if with_dimensions else out.metric[j]
            values[0, SUM] = total
            values[0, MIN] = smallest
            values[0, MAX] = largest
            values[0, DELTA] = delta
            values[0, LATEST] = value
        overflowed = -1
        zero = out.first_value[j] - out.first_value[j]
        for level in range(levels):
            # A finer open window is part of the coarser ones: what is in row `level` now is all of the window labelled with the
            # batch's end, or an earlier window that is complete.
            is_open = integers[level, COUNT] > 0 and integers[level, LABEL] == batch_length
            for column in range(out.integers.shape[1]):
                out.integers[level, column, j] = integers[level, column] if is_open else 0
            if details and not is_open:
                # A code is a name also where it means nothing: the series' own, so that bytes do not depend on which other names there are.
                out.integers[level, METRIC, j] = out.metric[j]
            for column in range(out.values.shape[1]):
                out.values[level, column, j] = values[level, column] if is_open else zero
            if is_open and integers[level, OVERFLOWED] and overflowed < 0:
                overflowed = level
            if integers[level, COUNT] > 0:
                fold_complete(integers, values, level, resolutions)
        if overflowed >= 0:
            return j, overflowed
    return -1, -1
