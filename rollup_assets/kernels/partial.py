"""Partial points: what a batch leaves open, per series and resolution.

The state of the window labelled with the batch's end, over the batch's points in it, *without* the step into the series' first point of
the batch, which only an earlier batch knows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rollup_assets.kernels.compiling import Array, allocating_kernel, kernel
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
def exact_partial_points(
    order: Array, start: Array, kept: Array, points: ShardPoints, batch_length: int, resolutions: Array, lookback: int, out: PartialPoints
) -> tuple[int, int]:
    """The windows of :func:`partial_points` for int64 values, without details: exact whatever the order of additions.

    One pass over each series from its end, a stretch between two resolutions' windows after the other (11 -> 2 ns a point against folding
    finest windows). ``out``'s first and last points are the caller's.
    """
    times = points.time
    values = points.value
    levels = len(resolutions)
    for j in range(len(order)):
        code = order[j]
        begin = start[code]
        stop = begin + kept[code]
        end = stop
        total = np.int64(0)
        smallest = np.iinfo(np.int64).max
        largest = np.iinfo(np.int64).min
        delta = np.int64(0)
        steps = np.int64(0)
        resets = np.int64(0)
        # Signs that differ from what they must be, gathered in the sign bit: a branch would keep the loop from being vectorised.
        wrapped = np.int64(0)
        for level in range(levels):
            first = first_open(times, begin, end, batch_length - resolutions[level])
            for i in range(first, end):
                value = values[i]
                after = total + value
                wrapped |= (total ^ after) & (value ^ after)
                total = after
                smallest = min(smallest, value)
                largest = max(largest, value)
            # The series' first point has no step here.
            for i in range(max(first, begin + 1), end):
                value = values[i]
                previous = values[i - 1]
                counts = np.int64(times[i] - times[i - 1] <= lookback)
                reset = np.int64(value < previous)
                difference = value - previous
                step = (value if reset else difference) * counts
                wrapped |= ((value ^ previous) & (value ^ difference)) * (1 - reset) * counts
                after = delta + step
                wrapped |= (delta ^ after) & (step ^ after)
                delta = after
                steps += counts
                resets += reset * counts
            end = first
            is_open = stop > first
            out.integers[level, COUNT, j] = stop - first
            out.integers[level, STEPS, j] = steps
            out.integers[level, RESETS, j] = resets
            out.values[level, SUM, j] = total
            out.values[level, MIN, j] = smallest if is_open else 0
            out.values[level, MAX, j] = largest if is_open else 0
            out.values[level, DELTA, j] = delta
            if wrapped < 0:
                return j, level
    return -1, -1


@kernel
def first_and_last_points(order: Array, start: Array, kept: Array, points: ShardPoints, batch_start: int, out: PartialPoints) -> None:
    """Fill the first and last points of ``out`` from the sorted points of a shard; arguments as in :func:`partial_points`."""
    times = points.time
    values = points.value
    for j in range(len(order)):
        begin = start[order[j]]
        last = begin + kept[order[j]] - 1
        out.first_time[j] = batch_start + times[begin]
        out.first_value[j] = values[begin]
        out.last_time[j] = batch_start + times[last]
        out.last_value[j] = values[last]


@allocating_kernel
def partial_points(
    order: Array,
    start: Array,
    kept: Array,
    points: ShardPoints,
    metric_rank: Array,
    batch_length: int,
    resolutions: Array,
    lookback: int,
    details: bool,
    out: PartialPoints,
) -> tuple[int, int]:
    """Fill the windows of ``out`` from the sorted points of a shard, folding finer into coarser ones: the order that defines doubles.

    order int64[k]: codes of the series in output order; start, kept int64 by code; resolutions int64[L] in ms, finest first. All
    else in ``out`` is the caller's. ``details``: org, metric and lag of each window are wanted too (``out.integers`` has 7 columns).
    Returns (series, level) of the first overflow, or (-1, -1).
    """
    # Arrays of named tuples are looked up once: in the loop each access costs reference counts.
    times = points.time
    point_values = points.value
    orgs = points.org
    metrics = points.metric
    lags = points.lag
    levels = len(resolutions)
    with_dimensions = len(orgs) > 0
    with_lag = len(lags) > 0
    integers = np.zeros((levels, INTEGERS), np.int64)
    values = np.zeros((levels, VALUES), point_values.dtype)
    finest = resolutions[0]
    for j in range(len(order)):
        code = order[j]
        begin = start[code]
        end = begin + kept[code]
        i = first_open(times, begin, end, batch_length - resolutions[levels - 1])
        label = np.int64(0)
        while i < end:
            # One finest window, whose first point is i.
            time = np.int64(times[i])
            label = label + finest if label < time <= label + finest else (time + finest - 1) // finest * finest
            first = i
            value = point_values[i]
            total = value
            smallest = value
            largest = value
            delta = value - value
            steps = np.int64(0)
            resets = np.int64(0)
            over = False
            if i > begin and time - times[i - 1] <= lookback:
                delta, reset, wrapped = step_between(point_values[i - 1], value)
                over |= wrapped
                steps += 1
                resets += reset
            i += 1
            while i < end and times[i] <= label:
                previous = value
                value = point_values[i]
                total_before = total
                total = total_before + value
                over |= sum_overflows(total_before, value, total)
                smallest = min(smallest, value)
                largest = max(largest, value)
                if times[i] - times[i - 1] <= lookback:
                    step, reset, wrapped = step_between(previous, value)
                    delta_before = delta
                    delta = delta_before + step
                    over |= wrapped | sum_overflows(delta_before, step, delta)
                    steps += 1
                    resets += reset
                i += 1
            if not details and not over and levels > 1 and i < end and integers[1, COUNT] > 0 and label <= integers[1, LABEL]:
                # Nearly every window: `fold`, from the scalars.
                integers[1, COUNT] += i - first
                integers[1, STEPS] += steps
                integers[1, RESETS] += resets
                total_before = values[1, SUM]
                values[1, SUM] = total_before + total
                delta_before = values[1, DELTA]
                values[1, DELTA] = delta_before + delta
                values[1, MIN] = min(values[1, MIN], smallest)
                values[1, MAX] = max(values[1, MAX], largest)
                if sum_overflows(total_before, total, values[1, SUM]) or sum_overflows(delta_before, delta, values[1, DELTA]):
                    integers[1, OVERFLOWED] = 1
                continue
            lag_sum = np.int64(0)
            lag_count = 0
            if with_lag:
                for q in range(first, i):
                    if lags[q] != NO_LAG:
                        lag_before = lag_sum
                        lag_sum = lag_before + lags[q]
                        over |= sum_overflows(lag_before, lags[q], lag_sum)
                        lag_count += 1
            integers[0, LABEL] = label
            integers[0, COUNT] = i - first
            integers[0, STEPS] = steps
            integers[0, RESETS] = resets
            integers[0, LAG_SUM] = lag_sum
            integers[0, LAG_COUNT] = lag_count
            integers[0, OVERFLOWED] = np.int64(over)
            if details:
                integers[0, ORG] = orgs[first] if with_dimensions else out.org[j]
                integers[0, METRIC] = metric_rank[metrics[first]] if with_dimensions else out.metric[j]
            values[0, SUM] = total
            values[0, MIN] = smallest
            values[0, MAX] = largest
            values[0, DELTA] = delta
            values[0, LATEST] = value
            if i < end:
                fold_complete(integers, values, 0, resolutions)
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
