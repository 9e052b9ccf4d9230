"""Rollups: one pass over the sorted points of a shard gives the windows of every resolution.

A window complete at the finest resolution is emitted and folded into the open coarser one. Windows labelled with the batch's start come
from the partial points of the batch before, plus the point at exactly that moment. Windows labelled with the batch's end stay open: they are
``kernels.partial``'s.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rollup_assets.kernels.compiling import kernel
from rollup_assets.kernels.merge import Carry
from rollup_assets.kernels.repartition import NO_LAG
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
    complete_up_to,
    fold,
    step_between,
    sum_overflows,
)

Array = NDArray[np.generic]

# Rows of Rows.integers, .values and .doubles.
OUT_ID, OUT_ORG, OUT_LABEL, OUT_COUNT, OUT_RESETS = range(5)
OUT_SUM, OUT_MIN, OUT_MAX, OUT_LATEST, OUT_DELTA = range(5)
OUT_AVERAGE, OUT_RATE, OUT_LAG = range(3)

# Slots of State.cursor.
IN_SERIES, SERIES_ID, LAST_TIME, NEXT_SERIES, NEXT_ALONE, POINTS, OVERFLOW_ID, OVERFLOW_LABEL, OVERFLOW_LEVEL, CARRIED_ROW = range(10)
CURSOR = 10

# A column stride that is a power of two puts all columns into one cache set: 31 -> 15 ns a point without.
STRIDE_PADDING = 72
LONG_AGO = np.iinfo(np.int64).min // 2


class Points(NamedTuple):
    """Sorted points of a shard: any chunk of them."""

    id: Array  # int64[n]
    time: Array  # int64[n], epoch ms
    value: Array  # int64 | float64 [n]
    org: Array  # int64[n]
    metric: Array  # int32[n], codes of the chunk
    lag: Array  # int64[n] or [0]; ms, NO_LAG: none
    translation: Array  # int32: the chunk's metric codes -> the output's


class Rows(NamedTuple):
    """Rollup rows, one segment of ``capacity`` rows a resolution: resolution l owns ``[l * capacity, l * capacity + used[l])``."""

    integers: Array  # int64[5, L * capacity + padding]; the label in microseconds
    values: Array  # int64 | float64 [5, ...]
    doubles: Array  # float64[3, ...]
    metric: Array  # int32[...]
    has_delta: Array  # bool[...]
    has_lag: Array  # bool[...]
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
        np.empty((5, width), np.int64),
        np.empty((5, width), value_dtype),
        np.empty((3, width), np.float64),
        np.empty(width, np.int32),
        np.empty(width, np.bool_),
        np.empty(width, np.bool_),
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
def emit(state: State, row: int, level: int, label: int, series: int, resolution: int, rows: Rows) -> None:
    """Append the window in row ``row`` of the state to the rows of resolution ``level``."""
    q = level * rows.capacity + rows.used[level]
    rows.used[level] += 1
    integers = state.integers
    values = state.values
    count = integers[row, COUNT]
    delta = values[row, DELTA]
    rows.integers[OUT_ID, q] = series
    rows.integers[OUT_ORG, q] = integers[row, ORG]
    rows.integers[OUT_LABEL, q] = label * 1000
    rows.integers[OUT_COUNT, q] = count
    rows.integers[OUT_RESETS, q] = integers[row, RESETS]
    rows.values[OUT_SUM, q] = values[row, SUM]
    rows.values[OUT_MIN, q] = values[row, MIN]
    rows.values[OUT_MAX, q] = values[row, MAX]
    rows.values[OUT_LATEST, q] = values[row, LATEST]
    rows.values[OUT_DELTA, q] = delta
    rows.doubles[OUT_AVERAGE, q] = np.float64(values[row, SUM]) / count
    rows.doubles[OUT_RATE, q] = np.float64(delta) / (resolution / 1000.0)
    rows.metric[q] = integers[row, METRIC]
    rows.has_delta[q] = integers[row, STEPS] > 0
    lags = integers[row, LAG_COUNT]
    rows.has_lag[q] = lags > 0
    rows.doubles[OUT_LAG, q] = np.float64(integers[row, LAG_SUM]) / max(lags, 1)
    if integers[row, OVERFLOWED] and state.cursor[OVERFLOW_LEVEL] < 0:
        state.cursor[OVERFLOW_ID] = series
        state.cursor[OVERFLOW_LABEL] = label
        state.cursor[OVERFLOW_LEVEL] = level


@kernel
def close_window(state: State, level: int, series: int, batch_end: int, resolutions: Array, rows: Rows) -> None:
    """The window in row ``level`` is complete: emit it and fold it upwards, after the coarser ones that its label shows to be complete."""
    for row in range(complete_up_to(state.integers, level, resolutions), level - 1, -1):
        label = state.integers[row, LABEL]
        if label < batch_end:
            emit(state, row, row, label, series, resolutions[row], rows)
        fold(state.integers, state.values, row, resolutions)


@kernel
def emit_carried(
    carry: Carry, carried: int, has_point: bool, value: int, lag: int, org: int, metric: int, step: int, reset: int, stepped: bool, wrapped: bool,
    series: int, batch_start: int, resolutions: Array, state: State, rows: Rows,
) -> None:
    """Emit the windows labelled with the batch's start: partial points of the batch before, plus the point at exactly that moment.

    ``carried``: row of the series in the partial points, -1: none. ``has_point``: there is a point at exactly the batch's start, with
    ``value``, ``lag``, ``org`` and ``metric``; ``step``, ``reset``, ``wrapped`` describe the step into it if ``stepped``.
    """
    partial = carry.partial
    levels = len(resolutions)
    integers = state.integers
    values = state.values
    zero = value - value
    details = partial.integers.shape[1] > PLAIN_INTEGERS
    for level in range(levels):
        count = partial.integers[level, COUNT, carried] if carried >= 0 else 0
        if count == 0 and not has_point:
            continue
        over = False
        if count > 0:
            integers[levels, STEPS] = partial.integers[level, STEPS, carried]
            integers[levels, RESETS] = partial.integers[level, RESETS, carried]
            integers[levels, ORG] = partial.integers[level, ORG, carried] if details else partial.org[carried]
            integers[levels, METRIC] = partial.integers[level, METRIC, carried] if details else partial.metric[carried]
            integers[levels, LAG_SUM] = partial.integers[level, LAG_SUM, carried] if details else 0
            integers[levels, LAG_COUNT] = partial.integers[level, LAG_COUNT, carried] if details else 0
            values[levels, SUM] = partial.values[level, SUM, carried]
            values[levels, MIN] = partial.values[level, MIN, carried]
            values[levels, MAX] = partial.values[level, MAX, carried]
            values[levels, DELTA] = partial.values[level, DELTA, carried]
            values[levels, LATEST] = partial.last_value[carried]
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
                over |= wrapped or sum_overflows(delta_before, step, delta)
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
        emit(state, levels, level, batch_start, series, resolutions[level], rows)


@kernel
def is_full(rows: Rows) -> bool:
    """Whether some segment has reached its limit."""
    full = False
    for level in range(len(rows.used)):
        full |= rows.used[level] >= rows.limit
    return full


@kernel
def roll_up(
    points: Points, begin: int, final: bool, batch_start: int, batch_end: int, resolutions: Array, lookback: int, carry: Carry, state: State, rows: Rows
) -> int:
    """Roll up the points of a chunk from ``begin`` on; ``final``: no chunk of the shard comes after it.

    Returns the row to go on with. It is ``len(points.id)``, plus 1 if ``final``, when the chunk is done; less when ``rows`` is full: empty it and
    call again.
    """
    n = len(points.id)
    levels = len(resolutions)
    finest = resolutions[0]
    cursor = state.cursor
    with_lag = len(points.lag) > 0
    in_series = cursor[IN_SERIES] != 0
    current = cursor[SERIES_ID]
    last_time = cursor[LAST_TIME]
    last_value = state.last_value[0]
    zero = last_value - last_value
    integers = state.integers
    values = state.values
    # The finest window lives in scalars; its row of the state is filled when it is complete.
    label = integers[0, LABEL]
    count = integers[0, COUNT]
    steps = integers[0, STEPS]
    resets = integers[0, RESETS]
    org = integers[0, ORG]
    metric = integers[0, METRIC]
    lag_sum = integers[0, LAG_SUM]
    lag_count = integers[0, LAG_COUNT]
    over = integers[0, OVERFLOWED] != 0
    total = values[0, SUM]
    smallest = values[0, MIN]
    largest = values[0, MAX]
    delta = values[0, DELTA]
    r = begin
    stop = n + (1 if final else 0)
    while r < stop:
        end = r == n
        series = np.int64(0)
        time = np.int64(0)
        value = zero
        if not end:
            series = points.id[r]
            time = points.time[r]
            value = points.value[r]
        new = end or series != current or not in_series
        if new or time > label:
            if count > 0:
                integers[0, LABEL] = label
                integers[0, COUNT] = count
                integers[0, STEPS] = steps
                integers[0, RESETS] = resets
                integers[0, ORG] = org
                integers[0, METRIC] = metric
                integers[0, LAG_SUM] = lag_sum
                integers[0, LAG_COUNT] = lag_count
                integers[0, OVERFLOWED] = np.int64(over)
                values[0, SUM] = total
                values[0, MIN] = smallest
                values[0, MAX] = largest
                values[0, DELTA] = delta
                values[0, LATEST] = last_value
                close_window(state, 0, current, batch_end, resolutions, rows)
                count = np.int64(0)
            if new:
                for level in range(1, levels):
                    if integers[level, COUNT] > 0:
                        close_window(state, level, current, batch_end, resolutions, rows)
                in_series = False
                if is_full(rows):
                    break
                while cursor[NEXT_ALONE] < len(carry.alone) and (end or carry.before[cursor[NEXT_ALONE]] <= cursor[NEXT_SERIES]):
                    if is_full(rows):
                        break
                    row = carry.alone[cursor[NEXT_ALONE]]
                    emit_carried(
                        carry, row, False, zero, NO_LAG, 0, 0, zero, 0, False, False, carry.partial.id[row], batch_start, resolutions, state, rows
                    )
                    cursor[NEXT_ALONE] += 1
                if is_full(rows):
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
                        carry, carried, at_start, value, points.lag[r] if with_lag else NO_LAG, points.org[r],
                        points.translation[points.metric[r]], step, reset, stepped, wrapped, series, batch_start, resolutions, state, rows,
                    )  # fmt: skip
                label = batch_start
                if at_start:
                    last_time = time
                    last_value = value
                    r += 1
                    continue
            # The next window, in the common case, without a division.
            label = label + finest if not new and time <= label + finest else (time + finest - 1) // finest * finest
            count = np.int64(0)
            steps = np.int64(0)
            resets = np.int64(0)
            org = points.org[r]
            metric = np.int64(points.translation[points.metric[r]])
            lag_sum = np.int64(0)
            lag_count = np.int64(0)
            over = False
            total = zero
            smallest = value
            largest = value
            delta = zero
        if time - last_time <= lookback:
            step, reset, wrapped = step_between(last_value, value)
            delta_before = delta
            delta = delta_before + step
            over |= wrapped or sum_overflows(delta_before, step, delta)
            steps += 1
            resets += reset
        total_before = total
        total = total_before + value
        over |= sum_overflows(total_before, value, total)
        smallest = min(smallest, value)
        largest = max(largest, value)
        if with_lag and points.lag[r] != NO_LAG:
            lag_before = lag_sum
            lag_sum = lag_before + points.lag[r]
            over |= sum_overflows(lag_before, points.lag[r], lag_sum)
            lag_count += 1
        count += 1
        last_time = time
        last_value = value
        r += 1
    cursor[IN_SERIES] = 1 if in_series else 0
    cursor[SERIES_ID] = current
    cursor[LAST_TIME] = last_time
    state.last_value[0] = last_value
    integers[0, LABEL] = label
    integers[0, COUNT] = count
    integers[0, STEPS] = steps
    integers[0, RESETS] = resets
    integers[0, ORG] = org
    integers[0, METRIC] = metric
    integers[0, LAG_SUM] = lag_sum
    integers[0, LAG_COUNT] = lag_count
    integers[0, OVERFLOWED] = np.int64(over)
    values[0, SUM] = total
    values[0, MIN] = smallest
    values[0, MAX] = largest
    values[0, DELTA] = delta
    return r
