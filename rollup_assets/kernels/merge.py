"""Merging with earlier batches: which partial points belong to which series, and the step that only an earlier batch knows.

The step into a series' first point of a batch belongs to every open window that contains that point. If it were lost, delta, rate and
resets would be wrong, and no check of counts would notice.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rollup_assets.kernels.compiling import Array, allocating_kernel, kernel
from rollup_assets.kernels.partial import PartialPoints
from rollup_assets.kernels.series_table import slot_of
from rollup_assets.kernels.windows import COUNT, DELTA, RESETS, STEPS, step_between, wrap_of_sum


class Carry(NamedTuple):
    """What a shard's rollups take over from the batch before."""

    partial: PartialPoints  # of the batch before, p series
    row_of_series: Array  # int32[k]: the series' row in partial, -1: none; k = 0 if partial is empty
    alone: Array  # int64[a]: rows of partial whose series has no point in this batch, in output order
    before: Array  # int64[a], ascending: for each of them, the place of the series of this batch that it comes before; k: after all


@allocating_kernel
def rows_of_ids(known: Array, wanted: Array) -> Array:
    """For each id of ``wanted`` int64[k], its row in ``known`` int64[p] (distinct ids), or -1 if it is not there. int32[k]."""
    slots = 1
    while slots < 2 * len(known) + 2:
        slots *= 2
    mask = np.uint64(slots - 1)
    table = np.full(slots, -1, np.int32)
    for row in range(len(known)):
        h = slot_of(known[row], mask)
        while table[h] >= 0:
            h = (h + np.uint64(1)) & mask
        table[h] = row
    found = np.empty(len(wanted), np.int32)
    for i in range(len(wanted)):
        h = slot_of(wanted[i], mask)
        while table[h] >= 0 and known[table[h]] != wanted[i]:
            h = (h + np.uint64(1)) & mask
        found[i] = table[h]
    return found


@kernel
def add_first_steps(
    partial: PartialPoints, earlier_row: Array, earlier_time: Array, earlier_value: Array, end: int, resolutions: Array, lookback: int
) -> tuple[int, int]:
    """Add the step into each series' first point to the open windows that contain it, in place.

    partial: of batch t-1, which ends at ``end`` (epoch ms); earlier_row int32[k]: the series' row in the last points of batch t-2,
    -1: none; earlier_time, earlier_value: those last points. Returns (series, level) of the first overflow, or (-1, -1).
    """
    for j in range(len(partial.id)):
        row = earlier_row[j]
        if row < 0 or partial.first_time[j] - earlier_time[row] > lookback:
            continue
        step, reset, wrapped = step_between(earlier_value[row], partial.first_value[j])
        for level in range(len(resolutions)):
            if partial.integers[level, COUNT, j] == 0 or partial.first_time[j] <= end - resolutions[level]:
                continue
            before = partial.values[level, DELTA, j]
            delta = before + step
            partial.values[level, DELTA, j] = delta
            partial.integers[level, STEPS, j] += 1
            partial.integers[level, RESETS, j] += reset
            if (wrapped | wrap_of_sum(before, step, delta)) < 0:
                return j, level
    return -1, -1


@allocating_kernel
def keys_before(metric: Array, org: Array, ids: Array, alone_metric: Array, alone_org: Array, alone_ids: Array) -> Array:
    """How many series come before each row of ``alone``; both are in ascending order of (metric, org_id, id). int64[a], ascending.

    metric int32[k], alone_metric int32[a]: ranks, which order the metrics by name; org, ids int64[k]; alone_org, alone_ids int64[a].
    """
    out = np.empty(len(alone_ids), np.int64)
    j = 0
    for a in range(len(alone_ids)):
        while j < len(ids) and (
            metric[j] < alone_metric[a]
            or (metric[j] == alone_metric[a] and (org[j] < alone_org[a] or (org[j] == alone_org[a] and ids[j] < alone_ids[a])))
        ):
            j += 1
        out[a] = j
    return out
