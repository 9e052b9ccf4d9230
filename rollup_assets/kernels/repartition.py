"""Repartitioning: raw rows to shards, and the points of a shard to series in time order.

A shard is Iceberg's ``bucket(shards, id)``. Points travel between the two as narrow columns: time as an int32 offset from the
batch's start, values and org ids as offsets from the block's smallest. Reading, spilling and writing stay out.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rollup_assets.kernels.compiling import Array, Number, allocating_kernel, kernel

NO_LAG = np.iinfo(np.int64).min
"""Lag of a point without a receive timestamp."""

MOST_TIME = np.iinfo(np.int64).max // 4
"""Milliseconds; receive times that far from 1970 are nonsense."""

MINIMUM_TABLE = 1 << 12
_MOST_TRUST, _DISTRUST = 32, 8
_MOST_BUCKETS = 1 << 12
_MOST_MOVES = 8
"""A row, before the rest is merged: a merge takes about as long (28 ns a row) whatever the order was."""


@kernel
def bucket_hash(value: Number) -> Number:
    """Iceberg's bucket hash of a long: murmur3_x86_32 of its 8 little-endian bytes, sign bit cleared.

    Source: Apache Iceberg table spec, appendix B. numba widens a product of two uint32: every one is cast back.
    """
    c1 = np.uint32(0xCC9E2D51)
    c2 = np.uint32(0x1B873593)
    bits = np.uint64(value)
    k = np.uint32(np.uint32(bits & np.uint64(0xFFFFFFFF)) * c1)
    k = np.uint32((k << np.uint32(15)) | (k >> np.uint32(17)))
    h = np.uint32(k * c2)
    h = np.uint32((h << np.uint32(13)) | (h >> np.uint32(19)))
    h = np.uint32(h * np.uint32(5) + np.uint32(0xE6546B64))
    k = np.uint32(np.uint32(bits >> np.uint64(32)) * c1)
    k = np.uint32((k << np.uint32(15)) | (k >> np.uint32(17)))
    h = np.uint32(h ^ np.uint32(k * c2))
    h = np.uint32((h << np.uint32(13)) | (h >> np.uint32(19)))
    h = np.uint32(h * np.uint32(5) + np.uint32(0xE6546B64))
    h = np.uint32(h ^ np.uint32(8))
    h = np.uint32((h ^ (h >> np.uint32(16))) * np.uint32(0x85EBCA6B))
    h = np.uint32((h ^ (h >> np.uint32(13))) * np.uint32(0xC2B2AE35))
    h = np.uint32(h ^ (h >> np.uint32(16)))
    return np.uint32(h & np.uint32(0x7FFFFFFF))


@kernel
def shard_of_ids(ids: Array, shards: int, out: Array) -> None:
    """``out[r] = bucket(shards, ids[r])``; ids int64[n], out uint16[n]."""
    divisor = np.uint32(shards)
    if shards & (shards - 1) == 0:
        # A mask instead of a division lets the loop vectorise.
        mask = np.uint32(shards - 1)
        for r in range(len(ids)):
            out[r] = bucket_hash(ids[r]) & mask
    else:
        for r in range(len(ids)):
            out[r] = bucket_hash(ids[r]) % divisor


@kernel
def extremes(values: Array) -> tuple[int, int]:
    """Smallest and largest of int64[n], n > 0."""
    low = values[0]
    high = values[0]
    for r in range(len(values)):
        low = min(low, values[r])
        high = max(high, values[r])
    return low, high


@kernel
def lags_between(times: Array, receives: Array, unknown: Array, out: Array) -> None:
    """``out[r] = receives[r] - times[r]``, int64[n], and ``NO_LAG`` where ``unknown[r]``, bool[n] or, if none is, bool[0].

    Times are bounded by ``MOST_TIME``, so that the difference cannot wrap around.
    """
    all_known = len(unknown) == 0
    for r in range(len(times)):
        if all_known or not unknown[r]:
            out[r] = min(max(receives[r], -MOST_TIME), MOST_TIME) - min(max(times[r], -MOST_TIME), MOST_TIME)
        else:
            out[r] = NO_LAG


@kernel
def extremes_of_lags(lags: Array) -> tuple[int, int]:
    """Smallest and largest of the lags that are known, int64[n]; the smallest is greater than the largest if none is."""
    low = np.iinfo(np.int64).max
    high = NO_LAG
    for r in range(len(lags)):
        if lags[r] != NO_LAG:
            low = min(low, lags[r])
            high = max(high, lags[r])
    return low, high


@kernel
def all_finite(values: Array) -> bool:
    """Whether float64[n] has neither NaN nor infinity."""
    total = 0.0
    for r in range(len(values)):
        total += values[r] - values[r]
    return total == 0.0


@allocating_kernel
def destinations(shard: Array, shards: int, out: Array, start: Array) -> None:
    """A stable counting sort by shard: row r goes to ``out[r]``, shard s begins at ``start[s]``.

    shard uint16[n], out int32[n], start int64[shards + 1].
    """
    start[:] = 0
    for r in range(len(shard)):
        start[shard[r] + 1] += 1
    for s in range(shards):
        start[s + 1] += start[s]
    position = start[:shards].copy()
    for r in range(len(shard)):
        s = shard[r]
        out[r] = position[s]
        position[s] += 1


@kernel
def scatter_offsets(values: Array, base: int, destination: Array, out: Array) -> None:
    """``out[destination[r]] = values[r] - base``; integers of any width."""
    for r in range(len(values)):
        out[np.uint32(destination[r])] = values[r] - base


@kernel
def scatter_doubles(values: Array, destination: Array, out: Array) -> None:
    """``out[destination[r]] = values[r]`` with -0.0 made 0.0; float64."""
    for r in range(len(values)):
        out[np.uint32(destination[r])] = values[r] + 0.0


@kernel
def scatter_codes(codes: Array, translation: Array, destination: Array, out: Array) -> None:
    """``out[destination[r]] = translation[codes[r]]``."""
    for r in range(len(codes)):
        out[np.uint32(destination[r])] = translation[codes[r]]


@kernel
def scatter_lags(lags: Array, base: int, destination: Array, out: Array) -> None:
    """Lags int64[n] as offsets from ``base - 1``, so that 0 means none."""
    for r in range(len(lags)):
        out[np.uint32(destination[r])] = 0 if lags[r] == NO_LAG else lags[r] - base + 1


class SeriesTable(NamedTuple):
    """The series of a shard, by dense code in first-seen order, and a hash table from id to code.

    ``slot`` is the hash table (open addressing, length a power of two, -1: empty). It has codes alone, whose ids are looked up: with ids in
    it, too, it would be three times as large and no longer in a core's own cache.
    """

    slot: Array  # int32[m]
    id: Array  # int64[m / 4]: fuller tables are searched longer (half full: 10 ns a point instead of 7.6)
    org: Array  # int64, of the point seen first
    metric: Array  # int32, of the point seen first
    points: Array  # int64, how many it has
    last: Array  # int32, time offset of the point seen last
    unsorted: Array  # uint8, 1 if a point came that is not later than the one before it


class Block(NamedTuple):
    """Points of one shard as a map task packed them; offsets are added to the bases."""

    id: Array  # int64[n]
    time: Array  # int32[n], ms after the batch's start
    value: Array  # uint8 | uint16 | int32 | int64 | float64 [n]
    org: Array  # uint8 | uint16 | int32 | int64 [n]
    metric: Array  # uint16 | int32 [n], codes of the map task
    lag: Array  # uint8 | ... [n] or [0]; 0: none
    translation: Array  # int32, the map task's metric codes -> the shard's


class ShardPoints(NamedTuple):
    """Points of one shard, row by row. ``org`` and ``metric`` have length 0 unless a series' dimensions change, ``lag`` unless known."""

    code: Array  # int32[n], series
    time: Array  # int32[n]
    value: Array  # int64[n] | float64[n]
    org: Array  # int64
    metric: Array  # int32
    lag: Array  # int64, NO_LAG: none


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
    """The same table, four times as large: growing touches every slot, and most tables grow to the end once they grow."""
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

    Rows before ``begin`` are done already. Returns (series known now, row of the block where the table was full or its length,
    rows whose dimensions differ from their series'). Arrays of ``points`` that have length 0 are left alone.
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
    # What is scraped together mostly comes in the same order again: then the next series is the one first seen after this one, and nothing
    # has to be searched (40 -> 5 ns a point with 90,000 series). Tried while that is right for eight rows in nine: a wrong guess waits
    # for memory, while searches overlap.
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


def series_order(metric: Array, org: Array, ids: Array) -> Array:
    """Codes of the series in ascending order of (metric, org_id, id): int64[k].

    metric int32[k], org int64[k], ids int64[k], which differ. Twice as fast as ``np.lexsort``, which merges by each column (135 -> 61 ns a
    series with 37,500 of them, 206 -> 93 with 625,000): ids, which look like hashes, are sorted, the few metrics and organizations counted.
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


@kernel
def greater(points: ShardPoints, rank: Array, a: int, b: int, with_dimensions: bool, with_lag: bool) -> Number:
    """Whether row a is the one to keep of two rows with the same id and time: (value, metric, org_id, receive_timestamp), greatest wins."""
    if points.value[a] != points.value[b]:
        return points.value[a] > points.value[b]
    if with_dimensions:
        if points.metric[a] != points.metric[b]:
            return rank[points.metric[a]] > rank[points.metric[b]]
        if points.org[a] != points.org[b]:
            return points.org[a] > points.org[b]
    if with_lag:
        return points.lag[a] > points.lag[b]
    return False


@kernel
def move_row(points: ShardPoints, source: int, out: ShardPoints, target: int, with_dimensions: bool, with_lag: bool) -> None:
    """Copy one row (all but its code)."""
    out.time[target] = points.time[source]
    out.value[target] = points.value[source]
    if with_dimensions:
        out.org[target] = points.org[source]
        out.metric[target] = points.metric[source]
    if with_lag:
        out.lag[target] = points.lag[source]


@allocating_kernel
def place(
    points: ShardPoints, rows: int, order: Array, table: SeriesTable, rank: Array, start: Array, kept: Array, out: ShardPoints
) -> int:
    """Sort the points of a shard by series and time, and drop duplicates.

    order int64[k]: codes in the order in which the series get their places. start, kept int64[k], by code: where a series begins in
    ``out`` and how many points of it stay. ``rank`` orders the metric codes. Rows that come in time order, nearly all, are only
    scattered; series out of order are sorted afterwards. Returns the number of duplicates.
    """
    with_dimensions = len(points.org) > 0
    with_lag = len(points.lag) > 0
    position = 0
    for j in range(len(order)):
        code = order[j]
        start[code] = position
        kept[code] = position
        position += table.points[code]
    codes, times, values, orgs, metrics, lags = points
    _, out_times, out_values, out_orgs, out_metrics, out_lags = out
    for r in range(rows):
        code = np.uint32(codes[r])
        at = np.uint64(kept[code])
        kept[code] += 1
        out_times[at] = times[r]
        out_values[at] = values[r]
        if with_dimensions:
            out_orgs[at] = orgs[r]
            out_metrics[at] = metrics[r]
        if with_lag:
            out_lags[at] = lags[r]
    duplicates = 0
    for code in range(len(order)):
        kept[code] -= start[code]
        if table.unsorted[code]:
            found = kept[code]
            kept[code] = repair(out, rank, start[code], start[code] + found, with_dimensions, with_lag)
            duplicates += found - kept[code]
    return duplicates


@allocating_kernel
def repair(points: ShardPoints, rank: Array, begin: int, end: int, with_dimensions: bool, with_lag: bool) -> int:
    """Sort the rows ``begin`` to ``end``, one series, by time in place, keeping the greatest of equal times; returns how many stay."""
    last, row = insert_late_rows(points, rank, begin, end, with_dimensions, with_lag)
    if row == end:
        return last + 1 - begin
    for r in range(row, end):
        last += 1
        move_row(points, r, points, last, with_dimensions, with_lag)
    return merge_rows(points, rank, begin, last + 1, with_dimensions, with_lag)


@kernel
def move_up(column: Array, first: int, last: int) -> None:
    """``column[r + 1] = column[r]`` for the rows ``first`` to ``last``, of any type."""
    for r in range(last, first - 1, -1):
        at = np.uint64(r)
        column[at + np.uint64(1)] = column[at]


@kernel
def insert_late_rows(points: ShardPoints, rank: Array, begin: int, end: int, with_dimensions: bool, with_lag: bool) -> tuple[int, int]:
    """Sort as ``repair`` does, by moving every row that comes late to its place, until that has taken ``_MOST_MOVES`` a row.

    Returns the last row that stays, up to which all is sorted, and the first one that was not looked at: ``end`` when it is done.
    """
    _, times, values, orgs, metrics, lags = points
    moves = _MOST_MOVES * (end - begin)
    last = begin
    for r in range(begin + 1, end):
        time = times[r]
        if time > times[last]:
            last += 1
            if last < r:
                move_row(points, r, points, last, with_dimensions, with_lag)
            continue
        before = last
        while before >= begin and times[before] > time:
            before -= 1
        if before >= begin and times[before] == time:
            if greater(points, rank, r, before, with_dimensions, with_lag):
                move_row(points, r, points, before, with_dimensions, with_lag)
            continue
        moves -= last - before
        if moves < 0:
            return last, r
        value = values[r]
        org = orgs[r] if with_dimensions else 0
        metric = metrics[r] if with_dimensions else 0
        lag = lags[r] if with_lag else 0
        move_up(times, before + 1, last)
        move_up(values, before + 1, last)
        if with_dimensions:
            move_up(orgs, before + 1, last)
            move_up(metrics, before + 1, last)
        if with_lag:
            move_up(lags, before + 1, last)
        last += 1
        times[before + 1] = time
        values[before + 1] = value
        if with_dimensions:
            orgs[before + 1] = org
            metrics[before + 1] = metric
        if with_lag:
            lags[before + 1] = lag
    return last, end


@allocating_kernel
def merge_rows(points: ShardPoints, rank: Array, begin: int, end: int, with_dimensions: bool, with_lag: bool) -> int:
    """Sort as ``repair`` does, by merging, which takes rows in any order."""
    order = np.argsort(points.time[begin:end], kind="mergesort")
    series = ShardPoints(
        points.code,
        points.time[begin:end].copy(),
        points.value[begin:end].copy(),
        points.org[begin:end].copy(),
        points.metric[begin:end].copy(),
        points.lag[begin:end].copy(),
    )
    at = begin - 1
    best = -1
    for i in range(end - begin):
        row = order[i]
        if best >= 0 and series.time[row] == series.time[best]:
            if not greater(series, rank, row, best, with_dimensions, with_lag):
                continue
        else:
            at += 1
        best = row
        move_row(series, row, points, at, with_dimensions, with_lag)
    return at + 1 - begin


class RowGroup(NamedTuple):
    """Columns of one row group of sorted points, as the stage holds them."""

    id: Array  # int64[capacity]
    org: Array  # int64
    metric: Array  # int32, rank of the metric
    time: Array  # int64, epoch ms
    value: Array  # int64 | float64
    receive: Array  # int64, epoch ms, NO_LAG: none; length 0 if unknown for the whole shard


@kernel
def fill_row_group(
    order: Array,
    j: int,
    i: int,
    filled: int,
    start: Array,
    kept: Array,
    table: SeriesTable,
    rank: Array,
    batch_start: int,
    points: ShardPoints,
    out: RowGroup,
) -> tuple[int, int, int]:
    """Append sorted points to ``out`` from row ``filled`` on, beginning at point i of the j-th series of ``order``.

    Stops when ``out`` is full or the series end. Returns (rows filled, j, i).
    """
    _, times, values, orgs, metrics, lags = points
    out_id, out_org, out_metric, out_time, out_value, out_receive = out
    capacity = len(out_id)
    with_dimensions = len(orgs) > 0
    with_lag = len(lags) > 0
    keep_receive = len(out_receive) > 0
    while j < len(order) and filled < capacity:
        code = order[j]
        series = table.id[code]
        org = table.org[code]
        metric = rank[table.metric[code]]
        count = min(kept[code] - i, capacity - filled)
        source = start[code] + i
        for q in range(count):
            target = np.uint64(filled + q)
            of = np.uint64(source + q)
            out_id[target] = series
            out_time[target] = batch_start + times[of]
            out_value[target] = values[of]
            out_org[target] = orgs[of] if with_dimensions else org
            out_metric[target] = rank[metrics[of]] if with_dimensions else metric
        if keep_receive:
            for q in range(count):
                lag = lags[source + q] if with_lag else NO_LAG
                out_receive[filled + q] = NO_LAG if lag == NO_LAG else batch_start + times[source + q] + lag
        filled += count
        i += count
        if i >= kept[code]:
            j += 1
            i = 0
    return filled, j, i


@kernel
def compact_codes(codes: Array, translation: Array, out: Array, used: Array) -> int:
    """Renumber codes by first appearance: ``out[r]`` is the place of ``codes[r]`` in ``used``; returns how many differ.

    ``translation`` has a place for every code and is -1 everywhere, before and after.
    """
    count = 0
    for r in range(len(codes)):
        code = codes[r]
        if translation[code] < 0:
            translation[code] = count
            used[count] = code
            count += 1
        out[r] = translation[code]
    for c in range(count):
        translation[used[c]] = -1
    return count


class FirstPoints(NamedTuple):
    """The first accepted point of each series, by code: what decides its place and its dimensions."""

    time: Array  # int32[k]; -1: none seen
    value: Array  # int64 | float64 [k]
    org: Array  # int64[k]
    metric: Array  # int32[k], codes
    lag: Array  # int64[k], NO_LAG: none


@kernel
def codes_of_ids(ids: Array, table: SeriesTable, out: Array) -> None:
    """``out[r]`` int32 = code of ``ids[r]``; every id is in the table."""
    slots = table.slot
    known = table.id
    mask = np.uint64(len(slots) - 1)
    for r in range(len(ids)):
        h = slot_of(ids[r], mask)
        while known[slots[h]] != ids[r]:
            h = (h + np.uint64(1)) & mask
        out[r] = slots[h]


@kernel
def note_first_points(block: Block, value_base: int, org_base: int, lag_base: int, codes: Array, rank: Array, first: FirstPoints) -> None:
    """Keep each series' first point, of several at the same time the one that the duplicates rule keeps. codes int32[n]: the rows'
    series.
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


@kernel
def scatter(values: Array, destination: Array, out: Array) -> None:
    """``out[destination[r]] = values[r]``."""
    for r in range(len(values)):
        out[np.uint32(destination[r])] = values[r]
