"""Partial points: what a batch leaves open, per series and resolution.

That is the state of the window labelled with the batch's end, from the batch's points in it, *without* the step into the series' first
point of the batch, which depends on an earlier batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from rollup_assets.kernels.columns import NO_LAG
from rollup_assets.kernels.compiling import Array, Number, allocating_kernel, kernel
from rollup_assets.kernels.points import ShardPoints, SortedSeries
from rollup_assets.kernels.windows import (
    COUNT,
    DELTA,
    DETAILED_INTEGERS,
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
    PARTIAL_VALUES,
    PLAIN_INTEGERS,
    RESETS,
    STEPS,
    SUM,
    VALUES,
    Sums,
    complete_up_to,
    fold,
    overflowed,
    sum_overflows,
    with_point,
    wrap_of_sum,
)

_NO_OVERFLOW = 9.2e18
"""If the absolute values of the parts of a sum add up to no more, no sum of them leaves int64: 2^63, less what doubles are inexact."""

_MOST_ALONE = 100
"""Series that are handed to the slower kernel one by one, each with copies of its columns, before it gets all that are left."""


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


def new_partial_points(series: int, levels: int, dtype: np.dtype[Any], details: bool) -> PartialPoints:
    """Partial points that are not filled yet; ``details``: with org, metric and lag of each window."""
    return PartialPoints(
        np.empty(series, np.int64),
        np.empty(series, np.int64),
        np.empty(series, np.int32),
        np.empty(series, np.int64),
        np.empty(series, dtype),
        np.empty(series, np.int64),
        np.empty(series, dtype),
        np.empty((levels, DETAILED_INTEGERS if details else PLAIN_INTEGERS, series), np.int64),
        np.empty((levels, PARTIAL_VALUES, series), dtype),
    )


@kernel
def first_open(times: Array, begin: int, end: int, after: int) -> int:
    """The first index in ``[begin, end)`` whose time is greater than ``after``; ``end`` if there is none.

    times int32[n], ascending there; ``after`` in the same unit, ms after the batch's start.
    """
    # As where a window is as long as the batch: no search, whose guesses are wrong half of the time.
    if begin < end and times[begin] > after:
        return begin
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
    series: SortedSeries,
    points: ShardPoints,
    batch_length: int,
    resolutions: Array,
    lookback: int,
    begin_at: int,
    out: PartialPoints,
) -> int:
    """The windows of :func:`partial_points` for int64 values, without details: exact whatever the order of additions.

    Arguments as there. Fills only the windows of ``out``, for the series from place ``begin_at`` on.

    One pass over each series from its end, one stretch between two resolutions' windows after another (11 -> 2 ns a point compared with
    folding finest windows).

    Returns the first series whose values are so great, or so many, that some sum of them might overflow int64, or -1:
    :func:`partial_points` decides. Looking for overflows at each addition kept the loops from being vectorised (six points a window
    7.4 -> 2.4 ns a point without, one 8.8 -> 4.0).
    """
    times = points.time
    values = points.value
    levels = len(resolutions)
    for j in range(begin_at, len(series.id)):
        begin = series.start[j]
        stop = begin + series.kept[j]
        end = stop
        total = np.int64(0)
        smallest = np.iinfo(np.int64).max
        largest = np.iinfo(np.int64).min
        delta = np.int64(0)
        steps = np.int64(0)
        resets = np.int64(0)
        for level in range(levels):
            first = first_open(times, begin, end, batch_length - resolutions[level])
            for i in range(np.uint64(max(first, begin + 1)), np.uint64(end)):
                value = values[i]
                previous = values[i - np.uint64(1)]
                is_near = times[i] - times[i - np.uint64(1)] <= lookback
                is_reset = value < previous
                step = value if is_reset else value - previous
                total += value
                smallest = min(smallest, value)
                largest = max(largest, value)
                delta += step if is_near else 0
                steps += is_near
                resets += is_near & is_reset
            if first == begin and end > begin:
                # No step into the series' first point: it depends on an earlier batch.
                value = values[begin]
                total += value
                smallest = min(smallest, value)
                largest = max(largest, value)
            end = first
            is_open = stop > first
            out.integers[level, COUNT, j] = stop - first
            out.integers[level, STEPS, j] = steps
            out.integers[level, RESETS, j] = resets
            out.values[level, SUM, j] = total
            out.values[level, MIN, j] = smallest if is_open else 0
            out.values[level, MAX, j] = largest if is_open else 0
            out.values[level, DELTA, j] = delta
        if stop > end:
            # The step into the first point of the longest window begins before it.
            before = values[max(end - 1, begin)]
            low, high = float(min(smallest, before)), float(max(largest, before))
            if float(stop - end) * max(-low, high, high - low) > _NO_OVERFLOW:
                return j
    return -1


@kernel
def first_and_last_points(series: SortedSeries, points: ShardPoints, batch_start: int, out: PartialPoints) -> None:
    """Fill the first and last points of ``out`` from the sorted points of a shard."""
    times = points.time
    values = points.value
    for j in range(len(series.id)):
        begin = series.start[j]
        last = begin + series.kept[j] - 1
        out.first_time[j] = batch_start + times[begin]
        out.first_value[j] = values[begin]
        out.last_time[j] = batch_start + times[last]
        out.last_value[j] = values[last]


@allocating_kernel
def partial_points(
    series: SortedSeries,
    points: ShardPoints,
    metric_rank: Array,
    batch_length: int,
    resolutions: Array,
    lookback: int,
    details: bool,
    out: PartialPoints,
) -> tuple[int, int]:
    """Fill the windows of ``out`` from the sorted points of a shard, folding finer into coarser ones: the order that defines doubles.

    metric_rank int32, by metric code; resolutions int64[L] in ms, finest first; batch_length, lookback in ms. The caller has filled the
    rest of ``out``. ``details``: fill org, metric and lag of each window, too (``out.integers`` has 7 columns).
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
    all_are_near = finest <= lookback
    starts = series.start
    kept = series.kept
    for j in range(len(starts)):
        begin = starts[j]
        end = begin + kept[j]
        end_at = np.uint64(end)
        i: Number = first_open(times, begin, end, batch_length - resolutions[levels - 1])
        label = np.int64(0)
        while i < end:
            # One finest window, whose first point is i.
            time = np.int64(times[i])
            label = label + finest if label < time <= label + finest else (time + finest - 1) // finest * finest
            first = i
            value = point_values[i]
            zero = value - value
            sums = Sums(zero, value, value, zero, np.int64(0), np.int64(0), np.int64(0))
            previous = point_values[i - 1] if i > begin else zero
            sums = with_point(sums, previous, value, i > begin and time - times[i - 1] <= lookback)
            at = np.uint64(i + 1)
            while at < end_at and times[at] <= label:
                previous = value
                value = point_values[at]
                sums = with_point(sums, previous, value, all_are_near or times[at] - times[at - np.uint64(1)] <= lookback)
                at += np.uint64(1)
            i = np.int64(at)
            if not details and sums.wrapped >= 0 and levels > 1 and i < end and integers[1, COUNT] > 0 and label <= integers[1, LABEL]:
                # Nearly every window: `fold`, from the scalars.
                integers[1, COUNT] += i - first
                integers[1, STEPS] += sums.steps
                integers[1, RESETS] += sums.resets
                total_before = values[1, SUM]
                values[1, SUM] = total_before + sums.total
                delta_before = values[1, DELTA]
                values[1, DELTA] = delta_before + sums.delta
                values[1, MIN] = min(values[1, MIN], sums.smallest)
                values[1, MAX] = max(values[1, MAX], sums.largest)
                if (wrap_of_sum(total_before, sums.total, values[1, SUM]) | wrap_of_sum(delta_before, sums.delta, values[1, DELTA])) < 0:
                    integers[1, OVERFLOWED] = 1
                continue
            lag_sum = np.int64(0)
            lag_count = 0
            if with_lag:
                for q in range(first, i):
                    if lags[q] != NO_LAG:
                        lag_before = lag_sum
                        lag_sum = lag_before + lags[q]
                        if sum_overflows(lag_before, lags[q], lag_sum):
                            sums = overflowed(sums)
                        lag_count += 1
            integers[0, LABEL] = label
            integers[0, COUNT] = i - first
            integers[0, STEPS] = sums.steps
            integers[0, RESETS] = sums.resets
            integers[0, LAG_SUM] = lag_sum
            integers[0, LAG_COUNT] = lag_count
            integers[0, OVERFLOWED] = np.int64(sums.wrapped < 0)
            if details:
                integers[0, ORG] = orgs[first] if with_dimensions else out.org[j]
                integers[0, METRIC] = metric_rank[metrics[first]] if with_dimensions else out.metric[j]
            values[0, SUM] = sums.total
            values[0, MIN] = sums.smallest
            values[0, MAX] = sums.largest
            values[0, DELTA] = sums.delta
            values[0, LATEST] = value
            if i < end:
                fold_complete(integers, values, 0, resolutions)
        overflow_level = -1
        zero = out.first_value[j] - out.first_value[j]
        for level in range(levels):
            # A finer open window is part of the coarser ones: what is in row `level` now is all of the window labelled with the
            # batch's end, or an earlier window that is complete.
            is_open = integers[level, COUNT] > 0 and integers[level, LABEL] == batch_length
            for column in range(out.integers.shape[1]):
                out.integers[level, column, j] = integers[level, column] if is_open else 0
            if details and not is_open:
                # Even an unused code refers to a name. Take the series' own, so that bytes do not depend on which other names there are.
                out.integers[level, METRIC, j] = out.metric[j]
            for column in range(out.values.shape[1]):
                out.values[level, column, j] = values[level, column] if is_open else zero
            if is_open and integers[level, OVERFLOWED] and overflow_level < 0:
                overflow_level = level
            if integers[level, COUNT] > 0:
                fold_complete(integers, values, level, resolutions)
        if overflow_level >= 0:
            return j, overflow_level
    return -1, -1


def long_partial_points(
    series: SortedSeries,
    points: ShardPoints,
    metric_rank: Array,
    batch_length: int,
    resolutions: Array,
    lookback: int,
    out: PartialPoints,
) -> tuple[int, int]:
    """:func:`partial_points` for int64 values, without details, by the faster kernel, but for series of which some sum might overflow.

    These are done by the other one; after ``_MOST_ALONE`` of them, so are all that are left.

    Returns (series, level) of the first overflow, or (-1, -1).
    """
    place = -1
    for found in range(_MOST_ALONE + 1):
        place = exact_partial_points(series, points, batch_length, resolutions, lookback, place + 1, out)
        if place < 0:
            return -1, -1
        some = slice(place, place + 1 if found < _MOST_ALONE else None)
        alone = SortedSeries._make(column[some] for column in series)
        again = PartialPoints._make(column[..., some].copy() for column in out)
        overflowing, level = partial_points(alone, points, metric_rank, batch_length, resolutions, lookback, False, again)
        if overflowing >= 0:
            return place + overflowing, level
        out.integers[..., some], out.values[..., some] = again.integers, again.values
    return -1, -1
