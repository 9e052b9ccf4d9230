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
    block: Block,
    value_base: int,
    org_base: int,
    lag_base: int,
    begin: int,
    row: int,
    series: int,
    table: SeriesTable,
    codes: Array,
    points: ShardPoints,
) -> tuple[int, int, int]:
    """Find the series of each row of a block, and unpack the rows into ``points`` from ``row`` on.

    value_base, org_base, lag_base: what the block's columns are offsets from. The first ``series`` entries of ``table`` are in use. Rows of
    the block before ``begin`` were done before. codes int32[n]: gets the rows' series. Returns (number of series now, row of the block at
    which the table was full, or else the block's length, number of rows whose dimensions differ from their series'). Columns of
    ``points`` with length 0 are left alone, and so is its ``code``.

    One thing after the other for the whole block, since where the processor guesses wrong whether the first slot has the id, it throws away
    what it has begun of the rows after it. Row by row, that was more (series in any order: 19 -> 10 ns a point of 6,250 series, 200 -> 110
    of 625,000; runs of 31 in the same order again: 10 -> 9).
    """
    series, end = find_series(block, org_base, begin, series, table, codes)
    changed = note_points(block, org_base, begin, end, table, codes)
    unpack_points(block, value_base, org_base, lag_base, begin, end, row, points)
    return series, end, changed


@kernel
def find_series(block: Block, org_base: int, begin: int, series: int, table: SeriesTable, codes: Array) -> tuple[int, int]:
    """The series of each row from ``begin`` on, entered if it is new: (number of series now, row at which the table was full, or n)."""
    # Arrays of named tuples are looked up once: in the loop each access costs reference counts.
    ids, _, _, orgs, metrics, _, translation = block
    slots, series_id, series_org, series_metric, series_count, series_last, series_unsorted = table
    n = len(ids)
    mask = np.uint64(len(slots) - 1)
    room = len(series_id)
    # Series that are scraped together mostly come in the same order again: then the next series is the one first seen after this one, and
    # no search is needed (40 -> 5 ns a point with 90,000 series). This is tried while it is right for eight rows in nine: a wrong guess
    # waits for memory, while searches overlap.
    code: Number = -1
    trust = 0
    for r in range(begin, n):
        x = ids[r]
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
                    return series, r
                slots[h] = series
                series_id[series] = x
                series_org[series] = orgs[r] + org_base
                series_metric[series] = translation[np.uint32(metrics[r])]
                series_count[series] = 0
                series_last[series] = -1
                series_unsorted[series] = 0
                found = np.int64(series)
                series += 1
            trust = min(trust + 1, _MOST_TRUST) if found == code else max(trust - _DISTRUST, -_MOST_TRUST)
            code = found
        codes[r] = code
    return series, n


@kernel
def note_points(block: Block, org_base: int, begin: int, end: int, table: SeriesTable, codes: Array) -> int:
    """Count rows with their series, and note which are not in time order; returns how many have other dimensions than their series."""
    _, times, _, orgs, metrics, _, translation = block
    _, _, series_org, series_metric, series_count, series_last, series_unsorted = table
    first = np.uint64(begin)
    stop = np.uint64(end)
    changed = 0
    for r in range(first, stop):
        slot = np.uint64(codes[r])
        changed += (series_org[slot] != orgs[r] + org_base) | (series_metric[slot] != translation[np.uint32(metrics[r])])
    for r in range(first, stop):
        slot = np.uint64(codes[r])
        if times[r] <= series_last[slot]:
            series_unsorted[slot] = 1
        series_last[slot] = times[r]
        series_count[slot] += 1
    return changed


@kernel
def unpack_points(block: Block, value_base: int, org_base: int, lag_base: int, begin: int, end: int, row: int, points: ShardPoints) -> None:
    """Rows of a block, from their offsets, into those columns of ``points`` that have a length."""
    _, times, values, orgs, metrics, lags, translation = block
    _, out_time, out_value, out_org, out_metric, out_lag = points
    first = np.uint64(begin)
    stop = np.uint64(end)
    at = np.uint64(row)
    if len(out_time) > 0:
        for r in range(first, stop):
            out_time[at + r] = times[r]
        for r in range(first, stop):
            out_value[at + r] = values[r] + value_base
    if len(out_org) > 0:
        for r in range(first, stop):
            out_org[at + r] = orgs[r] + org_base
            out_metric[at + r] = translation[np.uint32(metrics[r])]
    if len(out_lag) > 0:
        lag_known = len(lags) > 0
        for r in range(first, stop):
            out_lag[at + r] = lags[r] + lag_base - 1 if lag_known and lags[r] > 0 else NO_LAG


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
