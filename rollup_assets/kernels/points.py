"""Points as the kernels hand them on: the packed block of a shard, and the rows of a shard.

Points travel as narrow columns: time as an int32 offset from the batch's start, values and org ids as offsets from the block's smallest.
The byte layout of a block is in ``storage.blocks``.
"""

from __future__ import annotations

from typing import NamedTuple

from rollup_assets.kernels.compiling import Array


class Block(NamedTuple):
    """Points of one shard as a map task packed them; offsets are added to the bases."""

    id: Array  # int64[n]
    time: Array  # int32[n], ms after the batch's start
    value: Array  # uint16 | int32 | int64 | float64 [n]
    org: Array  # uint16 | int32 | int64 [n]
    metric: Array  # uint16 | int32 [n], codes of the map task
    lag: Array  # int32 | int64 [n] or [0]; 0: none
    translation: Array  # int32, the map task's metric codes -> the shard's


class ShardPoints(NamedTuple):
    """Points of one shard, row by row. ``org``, ``metric`` have length 0 unless a series' dimensions change, ``lag`` if none is known."""

    code: Array  # int32[n], series; `time_order.place` needs it no more, and overwrites it; length 0 once they are sorted
    time: Array  # int32[n], ms after the batch's start
    value: Array  # int64[n] | float64[n]
    org: Array  # int64
    metric: Array  # int32
    lag: Array  # int64, ms, NO_LAG: none


class SortedSeries(NamedTuple):
    """The series of a shard in the order they are staged in, and where their sorted points are."""

    id: Array  # int64[k]
    org: Array  # int64[k], of the series' first accepted point
    metric: Array  # int32[k], likewise: its place in the order of the names
    start: Array  # int64[k], row of the first point
    kept: Array  # int64[k], number of points without duplicates
