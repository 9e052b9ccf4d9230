"""Rollups: one pass over the sorted points of a shard gives the windows of every resolution.

A window that is complete at the finest resolution is emitted and folded into the open coarser one. Windows labelled with the batch's
start come from the partial points of the batch before, plus the point at exactly that moment. Windows labelled with the batch's end stay
open: ``kernels.partial`` computes those.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rollup_assets.kernels.columns import NO_LAG
from rollup_assets.kernels.compiling import Array, Number, kernel
from rollup_assets.kernels.merge import Carry
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
    PLAIN_INTEGERS,
    RESETS,
    STEPS,
    SUM,
    VALUES,
    Sums,
    complete_up_to,
    fold,
    overflowed,
    step_between,
    sum_overflows,
    with_point,
    wrap_of_sum,
)

# Columns of Rows.integers and Rows.values.
OUT_ID, OUT_ORG, OUT_METRIC, OUT_LABEL, OUT_COUNT, OUT_STEPS, OUT_RESETS, OUT_LAG_SUM, OUT_LAG_COUNT = range(9)
OUT_SUM, OUT_MIN, OUT_MAX, OUT_LATEST, OUT_DELTA = range(5)
OUT_INTEGERS = 9
OUT_VALUES = 5

# Slots of State.cursor.
IN_SERIES, SERIES_ID, LAST_TIME, NEXT_SERIES, NEXT_ALONE, OVERFLOW_ID, OVERFLOW_LABEL, OVERFLOW_LEVEL = range(8)
CURSOR = 8

# Keeps the column stride from being a power of two, which would put all columns into one cache set (31 -> 15 ns a point).
STRIDE_PADDING = 72
LONG_AGO = np.iinfo(np.int64).min // 2


class Points(NamedTuple):
    """A chunk of the sorted points of a shard."""

    id: Array  # int64[n]
    time: Array  # int64[n], epoch ms
    value: Array  # int64 | float64 [n]
    org: Array  # int64[n]
    metric: Array  # int32[n], codes of the chunk
    lag: Array  # int64[n] or [0]; ms, NO_LAG: none
    translation: Array  # int32: the chunk's metric codes -> the output's


class Rows(NamedTuple):
    """Finished windows, a segment of ``capacity`` columns per resolution: resolution l has ``[l * capacity, l * capacity + used[l])``."""

    integers: Array  # int64[OUT_INTEGERS, L * capacity + padding]; the label in epoch ms
    values: Array  # int64 | float64 [OUT_VALUES, ...]
    used: Array  # int64[L]
    limit: int  # a new series begins only while every segment has fewer rows
    capacity: int


class State(NamedTuple):
    """What is carried from chunk to chunk."""

    cursor: Array  # int64[CURSOR]
    last_value: Array  # int64 | float64 [1]
    integers: Array  # int64[L + 1, INTEGERS]; the last row is for windows that come from partial points
    values: Array  # int64 | float64 [L + 1, VALUES]


def new_rows(limit: int, most_per_series: int, resolutions: int, value_dtype: np.dtype[np.generic]) -> Rows:
    """Buffers for rows; ``most_per_series`` is the largest number of windows that one series can close at one resolution."""
    capacity = limit + most_per_series
    width = resolutions * capacity + STRIDE_PADDING
    return Rows(
        np.empty((OUT_INTEGERS, width), np.int64),
        np.empty((OUT_VALUES, width), value_dtype),
        np.zeros(resolutions, np.int64),
        limit,
        capacity,
    )


def new_state(resolutions: int, value_dtype: np.dtype[np.generic]) -> State:
    """The state before a shard's first point."""
    state = State(
        np.zeros(CURSOR, np.int64),
        np.zeros(1, value_dtype),
        np.zeros((resolutions + 1, INTEGERS), np.int64),
        np.zeros((resolutions + 1, VALUES), value_dtype),
    )
    state.cursor[OVERFLOW_LEVEL] = -1
    return state


@kernel
def emit(
    integers: Array,
    values: Array,
    row: int,
    level: int,
    label: int,
    series: int,
    cursor: Array,
    out: Array,
    out_values: Array,
    used: Array,
    capacity: int,
) -> None:
    """Append the window in row ``row`` of the state to the rows of resolution ``level``."""
    q = level * capacity + used[level]
    used[level] += 1
    out[OUT_ID, q] = series
    out[OUT_ORG, q] = integers[row, ORG]
    out[OUT_METRIC, q] = integers[row, METRIC]
    out[OUT_LABEL, q] = label
    out[OUT_COUNT, q] = integers[row, COUNT]
    out[OUT_STEPS, q] = integers[row, STEPS]
    out[OUT_RESETS, q] = integers[row, RESETS]
    out[OUT_LAG_SUM, q] = integers[row, LAG_SUM]
    out[OUT_LAG_COUNT, q] = integers[row, LAG_COUNT]
    out_values[OUT_SUM, q] = values[row, SUM]
    out_values[OUT_MIN, q] = values[row, MIN]
    out_values[OUT_MAX, q] = values[row, MAX]
    out_values[OUT_LATEST, q] = values[row, LATEST]
    out_values[OUT_DELTA, q] = values[row, DELTA]
    if integers[row, OVERFLOWED]:
        note_overflow(cursor, series, label, level)


@kernel
def note_overflow(cursor: Array, series: int, label: int, level: int) -> None:
    """Remember the first window that overflowed."""
    if cursor[OVERFLOW_LEVEL] < 0:
        cursor[OVERFLOW_ID] = series
        cursor[OVERFLOW_LABEL] = label
        cursor[OVERFLOW_LEVEL] = level


@kernel
def push_up(
    integers: Array,
    values: Array,
    level: int,
    series: int,
    batch_end: int,
    resolutions: Array,
    cursor: Array,
    out: Array,
    out_values: Array,
    used: Array,
    capacity: int,
) -> None:
    """Fold the window in row ``level``, which is complete and emitted, upwards; first emit the coarser ones that its label shows to
    be complete.
    """
    for row in range(complete_up_to(integers, level, resolutions), level, -1):
        label = integers[row, LABEL]
        if label < batch_end:
            emit(integers, values, row, row, label, series, cursor, out, out_values, used, capacity)
        fold(integers, values, row, resolutions)
    fold(integers, values, level, resolutions)


@kernel
def emit_carried(
    carry: Carry,
    carried: Number,
    has_point: bool,
    value: Number,
    lag: Number,
    org: Number,
    metric: Number,
    step: Number,
    reset: Number,
    stepped: bool,
    wrapped: bool,
    series: Number,
    batch_start: int,
    levels: int,
    state: State,
    rows: Rows,
) -> None:
    """Emit the windows labelled with the batch's start: partial points of the batch before, plus the point at exactly that moment.

    ``carried``: the series' row in the partial points, -1: none. ``has_point``: there is a point at exactly the batch's start, with
    ``value``, ``lag``, ``org`` and ``metric``; ``step``, ``reset``, ``wrapped`` describe the step into it, if ``stepped``.
    """
    counts = carry.partial.integers
    sums = carry.partial.values
    integers = state.integers
    values = state.values
    zero = value - value
    details = counts.shape[1] > PLAIN_INTEGERS
    for level in range(levels):
        count = counts[level, COUNT, carried] if carried >= 0 else 0
        if count == 0 and not has_point:
            continue
        over = False
        if count > 0:
            integers[levels, STEPS] = counts[level, STEPS, carried]
            integers[levels, RESETS] = counts[level, RESETS, carried]
            integers[levels, ORG] = counts[level, ORG, carried] if details else carry.partial.org[carried]
            integers[levels, METRIC] = counts[level, METRIC, carried] if details else carry.partial.metric[carried]
            integers[levels, LAG_SUM] = counts[level, LAG_SUM, carried] if details else 0
            integers[levels, LAG_COUNT] = counts[level, LAG_COUNT, carried] if details else 0
            values[levels, SUM] = sums[level, SUM, carried]
            values[levels, MIN] = sums[level, MIN, carried]
            values[levels, MAX] = sums[level, MAX, carried]
            values[levels, DELTA] = sums[level, DELTA, carried]
            values[levels, LATEST] = carry.partial.last_value[carried]
        else:
            integers[levels, STEPS] = 0
            integers[levels, RESETS] = 0
            integers[levels, ORG] = org
            integers[levels, METRIC] = metric
            integers[levels, LAG_SUM] = 0
            integers[levels, LAG_COUNT] = 0
            values[levels, SUM] = zero
            values[levels, MIN] = value
            values[levels, MAX] = value
            values[levels, DELTA] = zero
        if has_point:
            before = values[levels, SUM]
            total = before + value
            over |= sum_overflows(before, value, total)
            values[levels, SUM] = total
            values[levels, MIN] = min(values[levels, MIN], value)
            values[levels, MAX] = max(values[levels, MAX], value)
            values[levels, LATEST] = value
            if stepped:
                delta_before = values[levels, DELTA]
                delta = delta_before + step
                over |= (wrapped | wrap_of_sum(delta_before, step, delta)) < 0
                values[levels, DELTA] = delta
                integers[levels, STEPS] += 1
                integers[levels, RESETS] += reset
            if lag != NO_LAG:
                lag_before = integers[levels, LAG_SUM]
                integers[levels, LAG_SUM] = lag_before + lag
                over |= sum_overflows(lag_before, lag, integers[levels, LAG_SUM])
                integers[levels, LAG_COUNT] += 1
            count += 1
        integers[levels, COUNT] = count
        integers[levels, OVERFLOWED] = np.int64(over)
        emit(integers, values, levels, level, batch_start, series, state.cursor, rows.integers, rows.values, rows.used, rows.capacity)


@kernel
def rest_of_window(
    sums: Sums,
    ids: Array,
    times: Array,
    point_values: Array,
    begin: Number,
    series: Number,
    label: Number,
    last_time: Number,
    last_value: Number,
    lookback: int,
    resolution: Number,
) -> tuple[Sums, Number, Number, Number]:
    """Add the points from ``begin`` on that are in the window, without the checks that only its first one needs.

    Returns (sums, last time, last value, row to continue with).
    """
    r = np.uint64(begin)
    n = np.uint64(len(ids))
    all_are_near = resolution <= lookback
    while r < n and ids[r] == series and times[r] <= label:
        value = point_values[r]
        sums = with_point(sums, last_value, value, all_are_near or times[r] - last_time <= lookback)
        last_time = times[r]
        last_value = value
        r += np.uint64(1)
    return sums, last_time, last_value, np.int64(r)


@kernel
def is_full(used: Array, limit: int) -> bool:
    """Whether some segment has reached its limit."""
    full = False
    for level in range(len(used)):
        full |= used[level] >= limit
    return full


@kernel
def roll_up(
    points: Points,
    begin: int,
    final: bool,
    batch_start: int,
    batch_end: int,
    resolutions: Array,
    lookback: int,
    carry: Carry,
    state: State,
    rows: Rows,
) -> int:
    """Roll up the points of a chunk from row ``begin`` on; ``final``: no chunk of the shard comes after it.

    batch_start, batch_end in epoch ms; resolutions int64[L] in ms, finest first; lookback in ms. ``state`` and ``rows`` are changed in
    place; an overflow is noted in the state's cursor.

    Returns the row to continue with: ``len(points.id)``, plus 1 if ``final``, when the chunk is done. It is less when ``rows`` is full:
    empty it and call again.
    """
    # Arrays of named tuples are looked up once: in the loop each access costs reference counts (77 -> 20 ns a point).
    ids = points.id
    times = points.time
    point_values = points.value
    orgs = points.org
    metrics = points.metric
    translation = points.translation
    lags = points.lag
    integers = state.integers
    values = state.values
    cursor = state.cursor
    out = rows.integers
    out_values = rows.values
    used = rows.used
    capacity = rows.capacity
    limit = rows.limit
    levels = len(resolutions)
    finest = resolutions[0]
    with_lag = len(lags) > 0
    in_series = cursor[IN_SERIES] != 0
    current = cursor[SERIES_ID]
    last_time = cursor[LAST_TIME]
    last_value = state.last_value[0]
    zero = last_value - last_value
    # The finest window lives in scalars; its row of the state is needed only between calls and where a coarser window ends.
    label = integers[0, LABEL]
    count = integers[0, COUNT]
    org = integers[0, ORG]
    metric = integers[0, METRIC]
    lag_sum = integers[0, LAG_SUM]
    lag_count = integers[0, LAG_COUNT]
    sums = Sums(
        values[0, SUM], values[0, MIN], values[0, MAX], values[0, DELTA], integers[0, STEPS], integers[0, RESETS], -integers[0, OVERFLOWED]
    )
    n = len(ids)
    r = begin
    stop = n + (1 if final else 0)
    while r < stop:
        end = r == n
        series = np.int64(0)
        time = np.int64(0)
        value = zero
        at = np.uint64(r)
        if not end:
            series = ids[at]
            time = times[at]
            value = point_values[at]
        new = end or series != current or not in_series
        if new or time > label:
            if count > 0:
                if label < batch_end:
                    q = np.uint64(used[0])
                    used[0] += 1
                    out[OUT_ID, q] = current
                    out[OUT_ORG, q] = org
                    out[OUT_METRIC, q] = metric
                    out[OUT_LABEL, q] = label
                    out[OUT_COUNT, q] = count
                    out[OUT_STEPS, q] = sums.steps
                    out[OUT_RESETS, q] = sums.resets
                    out[OUT_LAG_SUM, q] = lag_sum
                    out[OUT_LAG_COUNT, q] = lag_count
                    out_values[OUT_SUM, q] = sums.total
                    out_values[OUT_MIN, q] = sums.smallest
                    out_values[OUT_MAX, q] = sums.largest
                    out_values[OUT_LATEST, q] = last_value
                    out_values[OUT_DELTA, q] = sums.delta
                    if sums.wrapped < 0:
                        note_overflow(cursor, current, label, 0)
                if levels > 1:
                    if sums.wrapped >= 0 and integers[1, COUNT] > 0 and label <= integers[1, LABEL]:
                        # Nearly every window: `fold`, from the scalars (70 -> 33 ns a window).
                        integers[1, COUNT] += count
                        integers[1, STEPS] += sums.steps
                        integers[1, RESETS] += sums.resets
                        sum_before = values[1, SUM]
                        sum_after = sum_before + sums.total
                        delta_before = values[1, DELTA]
                        delta_after = delta_before + sums.delta
                        wrapped_up = wrap_of_sum(sum_before, sums.total, sum_after) | wrap_of_sum(delta_before, sums.delta, delta_after)
                        values[1, SUM] = sum_after
                        values[1, DELTA] = delta_after
                        values[1, MIN] = min(values[1, MIN], sums.smallest)
                        values[1, MAX] = max(values[1, MAX], sums.largest)
                        values[1, LATEST] = last_value
                        # Not `with_lag`: the window may have begun in the previous chunk, and this chunk may have no receive times.
                        if lag_count > 0:
                            lag_before = integers[1, LAG_SUM]
                            integers[1, LAG_SUM] = lag_before + lag_sum
                            integers[1, LAG_COUNT] += lag_count
                            wrapped_up |= wrap_of_sum(lag_before, lag_sum, integers[1, LAG_SUM])
                        if wrapped_up < 0:
                            integers[1, OVERFLOWED] = 1
                    else:
                        integers[0, LABEL] = label
                        integers[0, COUNT] = count
                        integers[0, STEPS] = sums.steps
                        integers[0, RESETS] = sums.resets
                        integers[0, ORG] = org
                        integers[0, METRIC] = metric
                        integers[0, LAG_SUM] = lag_sum
                        integers[0, LAG_COUNT] = lag_count
                        integers[0, OVERFLOWED] = np.int64(sums.wrapped < 0)
                        values[0, SUM] = sums.total
                        values[0, MIN] = sums.smallest
                        values[0, MAX] = sums.largest
                        values[0, DELTA] = sums.delta
                        values[0, LATEST] = last_value
                        push_up(integers, values, 0, current, batch_end, resolutions, cursor, out, out_values, used, capacity)
                count = np.int64(0)
            if new:
                for level in range(1, levels):
                    if integers[level, COUNT] > 0:
                        level_label = integers[level, LABEL]
                        if level_label < batch_end:
                            emit(integers, values, level, level, level_label, current, cursor, out, out_values, used, capacity)
                        push_up(integers, values, level, current, batch_end, resolutions, cursor, out, out_values, used, capacity)
                in_series = False
                if is_full(used, limit):
                    break
                while cursor[NEXT_ALONE] < len(carry.alone) and (end or carry.before[cursor[NEXT_ALONE]] <= cursor[NEXT_SERIES]):
                    if is_full(used, limit):
                        break
                    row = carry.alone[cursor[NEXT_ALONE]]
                    emit_carried(
                        carry,
                        row,
                        False,
                        zero,
                        NO_LAG,
                        0,
                        0,
                        zero,
                        0,
                        False,
                        False,
                        carry.partial.id[row],
                        batch_start,
                        levels,
                        state,
                        rows,
                    )
                    cursor[NEXT_ALONE] += 1
                if is_full(used, limit):
                    break
                if end:
                    r += 1
                    break
                carried = np.int64(-1)
                if len(carry.row_of_series) > 0:
                    carried = np.int64(carry.row_of_series[cursor[NEXT_SERIES]])
                cursor[NEXT_SERIES] += 1
                in_series = True
                current = series
                last_time = np.int64(LONG_AGO)
                last_value = zero
                if carried >= 0:
                    last_time = carry.partial.last_time[carried]
                    last_value = carry.partial.last_value[carried]
                at_start = time == batch_start
                if carried >= 0 or at_start:
                    stepped = time - last_time <= lookback
                    step, reset, wrapped = step_between(last_value, value)
                    emit_carried(
                        carry, carried, at_start, value, lags[r] if with_lag else NO_LAG, orgs[r], np.int64(translation[metrics[r]]),
                        step, reset, stepped, wrapped, series, batch_start, levels, state, rows,
                    )  # fmt: skip
                label = batch_start
                if at_start:
                    last_time = time
                    last_value = value
                    r += 1
                    continue
            # The next window, in the common case, without a division.
            label = label + finest if not new and time <= label + finest else (time + finest - 1) // finest * finest
            org = orgs[at]
            metric = np.int64(translation[np.uint32(metrics[at])])
            lag_sum = np.int64(0)
            lag_count = np.int64(0)
            sums = Sums(zero, value, value, zero, np.int64(0), np.int64(0), np.int64(0))
        sums = with_point(sums, last_value, value, time - last_time <= lookback)
        if with_lag and lags[at] != NO_LAG:
            lag_before = lag_sum
            lag_sum = lag_before + lags[at]
            if sum_overflows(lag_before, lags[at], lag_sum):
                sums = overflowed(sums)
            lag_count += 1
        count += 1
        last_time = time
        last_value = value
        r += 1
        if not with_lag:
            begun = r
            sums, last_time, last_value, r = rest_of_window(
                sums, ids, times, point_values, r, current, label, last_time, last_value, lookback, finest
            )
            count += r - begun
    cursor[IN_SERIES] = 1 if in_series else 0
    cursor[SERIES_ID] = current
    cursor[LAST_TIME] = last_time
    state.last_value[0] = last_value
    integers[0, LABEL] = label
    integers[0, COUNT] = count
    integers[0, STEPS] = sums.steps
    integers[0, RESETS] = sums.resets
    integers[0, ORG] = org
    integers[0, METRIC] = metric
    integers[0, LAG_SUM] = lag_sum
    integers[0, LAG_COUNT] = lag_count
    integers[0, OVERFLOWED] = np.int64(sums.wrapped < 0)
    values[0, SUM] = sums.total
    values[0, MIN] = sums.smallest
    values[0, MAX] = sums.largest
    values[0, DELTA] = sums.delta
    return r


@kernel
def means(sums: Array, counts: Array, out: Array) -> None:
    """``out[r] = sums[r] / counts[r]``, float64[n]; where the count is 0, some finite value.

    A single division of the sums: never an average of averages.
    """
    for r in range(len(sums)):
        out[r] = np.float64(sums[r]) / np.float64(max(counts[r], 1))


@kernel
def rates(deltas: Array, seconds: float, out: Array) -> None:
    """``out[r] = deltas[r] / seconds``, float64[n]."""
    for r in range(len(deltas)):
        out[r] = np.float64(deltas[r]) / seconds
