"""The series of a shard: found by id as blocks are unpacked, numbered in first-seen order, and put into the order they are staged in."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rollup_assets.kernels.columns import NO_LAG
from rollup_assets.kernels.compiling import Array, Number, kernel
from rollup_assets.kernels.points import Block, ShardPoints

MINIMUM_TABLE = 1 << 12
_MOST_TRUST, _DISTRUST = 32, 8
_MOST_BUCKETS = 1 << 12


class SeriesTable(NamedTuple):
    """The series of a shard, by dense code in first-seen order, and a hash table from id to code.

    ``slot`` is the hash table (open addressing, length a power of two, -1: empty). It has only codes, and ids are looked up by code: with
    ids in it, too, it would be three times as large and no longer fit a core's own cache.
    """

    slot: Array  # int32[m]
    id: Array  # int64[m / 4]: searching a fuller table takes longer (half full: 10 ns a point instead of 7.6)
    org: Array  # int64, of the point seen first
    metric: Array  # int32, of the point seen first
    points: Array  # int64, number of points
    last: Array  # int32, time offset of the point seen last
    unsorted: Array  # uint8, 1 if some point is not later than the one seen before it


def new_series_table(slots: int) -> SeriesTable:
    """An empty table for up to ``slots / 4`` series; slots is a power of two."""
    room = slots // 4
    return SeriesTable(
        np.full(slots, -1, np.int32),
        np.empty(room, np.int64),
        np.empty(room, np.int64),
        np.empty(room, np.int32),
        np.empty(room, np.int64),
        np.empty(room, np.int32),
        np.empty(room, np.uint8),
    )


def grown(table: SeriesTable, series: int) -> SeriesTable:
    """The same table, four times as large: growing touches every slot, and most tables that grow at all reach their full size."""
    larger = new_series_table(len(table.slot) * 4)
    for old, new in zip(table[1:], larger[1:], strict=True):
        new[:series] = old[:series]
    fill_slots(larger, series)
    return larger


@kernel
def slot_of(id_: Number, mask: Number) -> Number:
    """Where the search for an id begins: multiplicative hashing, the middle bits."""
    return ((np.uint64(id_) * np.uint64(0xD6E8FEB86659FD93)) >> np.uint64(24)) & mask


@kernel
def fill_slots(table: SeriesTable, series: int) -> None:
    """Enter the first ``series`` ids into an empty hash table."""
    slots = table.slot
    mask = np.uint64(len(slots) - 1)
    for code in range(series):
        h = slot_of(table.id[code], mask)
        while slots[h] >= 0:
            h = (h + np.uint64(1)) & mask
        slots[h] = code


@kernel
def ingest(
    block: Block, value_base: int, org_base: int, lag_base: int, begin: int, row: int, series: int, table: SeriesTable, points: ShardPoints
) -> tuple[int, int, int]:
    """Unpack a block into ``points`` from ``row`` on, giving each row its series' code.

    value_base, org_base, lag_base: what the block's columns are offsets from. The first ``series`` entries of ``table`` are in use. Rows of
    the block before ``begin`` were done before. Returns (number of series now, row of the block at which the table was full, or else the
    block's length, number of rows whose dimensions differ from their series'). Arrays of ``points`` with length 0 are left alone.
    """
    # Arrays of named tuples are looked up once: in the loop each access costs reference counts.
    ids, times, values, orgs, metrics, lags, translation = block
    slots, series_id, series_org, series_metric, series_count, series_last, series_unsorted = table
    out_code, out_time, out_value, out_org, out_metric, out_lag = points
    n = len(ids)
    mask = np.uint64(len(slots) - 1)
    room = len(series_id)
    changed = 0
    with_dimensions = len(out_org) > 0
    with_lag = len(out_lag) > 0
    lag_known = len(lags) > 0
    keep_rows = len(out_code) > 0
    # Series that are scraped together mostly come in the same order again: then the next series is the one first seen after this one, and
    # no search is needed (40 -> 5 ns a point with 90,000 series). This is tried while it is right for eight rows in nine: a wrong guess
    # waits for memory, while searches overlap.
    code: Number = -1
    trust = 0
    for r in range(begin, n):
        x = ids[r]
        time = times[r]
        org = orgs[r] + org_base
        metric = translation[np.uint32(metrics[r])]
        code += 1
        if trust > 0 and code < series and series_id[np.uint64(code)] == x:
            trust = min(trust + 1, _MOST_TRUST)
        else:
            h = slot_of(x, mask)
            found = np.int64(slots[h])
            while found >= 0 and series_id[found] != x:
                h = (h + np.uint64(1)) & mask
                found = np.int64(slots[h])
            if found < 0:
                if series >= room:
                    return series, r, changed
                slots[h] = series
                series_id[series] = x
                series_org[series] = org
                series_metric[series] = metric
                series_count[series] = 0
                series_last[series] = -1
                series_unsorted[series] = 0
                found = np.int64(series)
                series += 1
            trust = min(trust + 1, _MOST_TRUST) if found == code else max(trust - _DISTRUST, -_MOST_TRUST)
            code = found
        slot = np.uint64(code)
        changed += (series_org[slot] != org) | (series_metric[slot] != metric)
        series_unsorted[slot] |= time <= series_last[slot]
        series_last[slot] = time
        series_count[slot] += 1
        if not keep_rows:
            continue
        at = np.uint64(row + r)
        out_code[at] = code
        out_time[at] = time
        out_value[at] = values[r] + value_base
        if with_dimensions:
            out_org[at] = org
            out_metric[at] = metric
        if with_lag:
            out_lag[at] = lags[r] + lag_base - 1 if lag_known and lags[r] > 0 else NO_LAG
    return series, n, changed


@kernel
def codes_of_ids(ids: Array, table: SeriesTable, out: Array) -> None:
    """``out[r]`` = code of ``ids[r]``; ids int64[n], every one in the table; out int32[n]."""
    slots = table.slot
    known = table.id
    mask = np.uint64(len(slots) - 1)
    for r in range(len(ids)):
        h = slot_of(ids[r], mask)
        while known[slots[h]] != ids[r]:
            h = (h + np.uint64(1)) & mask
        out[r] = slots[h]


def series_order(metric: Array, org: Array, ids: Array) -> Array:
    """Codes of the series in ascending order of (metric, org_id, id): int64[k].

    metric int32[k], org int64[k], ids int64[k], all distinct. Twice as fast as ``np.lexsort``, which merges by each column (135 -> 61 ns a
    series with 37,500 of them, 206 -> 93 with 625,000): ids, which look like hashes, are sorted; the few metrics and organizations are
    sorted by counting.
    """
    return _stable_order(metric, _stable_order(org, np.argsort(ids)))


def _stable_order(values: Array, order: Array) -> Array:
    """``order`` rearranged so that ``values`` ascend."""
    if len(values) == 0:
        return order
    low, high = int(values.min()), int(values.max())
    if high - low >= max(_MOST_BUCKETS, len(values)):
        return order[np.argsort(values[order], kind="stable")]
    out = np.empty_like(order)
    rearrange(values, low, order, np.zeros(high - low + 2, np.int64), out)
    return out


@kernel
def rearrange(values: Array, low: int, order: Array, start: Array, out: Array) -> None:
    """A stable counting sort: ``out`` is ``order`` in ascending order of ``values[order]``.

    values int32[k] | int64[k], none less than ``low``; order, out int64[k]; start int64[greatest - low + 2], zeros.
    """
    for r in range(len(values)):
        start[values[r] - low + 1] += 1
    for bucket in range(1, len(start)):
        start[bucket] += start[bucket - 1]
    for i in range(len(order)):
        bucket = values[order[i]] - low
        out[start[bucket]] = order[i]
        start[bucket] += 1


class FirstPoints(NamedTuple):
    """The first accepted point of each series, by code: it decides the series' place and dimensions."""

    time: Array  # int32[k]; -1: none seen
    value: Array  # int64 | float64 [k]
    org: Array  # int64[k]
    metric: Array  # int32[k], codes
    lag: Array  # int64[k], NO_LAG: none


@kernel
def note_first_points(block: Block, value_base: int, org_base: int, lag_base: int, codes: Array, rank: Array, first: FirstPoints) -> None:
    """Keep each series' first point; of several at the same time, the one that the rule for duplicates keeps. codes int32[n]: each
    row's series.
    """
    lag_known = len(block.lag) > 0
    for r in range(len(codes)):
        code = codes[r]
        time = block.time[r]
        if 0 <= first.time[code] < time:
            continue
        value = block.value[r] + value_base
        org = block.org[r] + org_base
        metric = block.translation[block.metric[r]]
        lag = block.lag[r] + lag_base - 1 if lag_known and block.lag[r] > 0 else NO_LAG
        if first.time[code] == time:
            if value != first.value[code]:
                better = value > first.value[code]
            elif metric != first.metric[code]:
                better = rank[metric] > rank[first.metric[code]]
            elif org != first.org[code]:
                better = org > first.org[code]
            else:
                better = lag > first.lag[code]
            if not better:
                continue
        first.time[code] = time
        first.value[code] = value
        first.org[code] = org
        first.metric[code] = metric
        first.lag[code] = lag
