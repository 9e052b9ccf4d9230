"""Raw rows to shards: the shard of an id, and columns scattered so that each shard's rows lie together.

A shard is Iceberg's ``bucket(shards, id)``.
"""

from __future__ import annotations

import numpy as np

from rollup_assets.kernels.columns import NO_LAG
from rollup_assets.kernels.compiling import Array, Number, allocating_kernel, kernel


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
def scatter(values: Array, destination: Array, out: Array) -> None:
    """``out[destination[r]] = values[r]``; values, out [n] of one dtype; destination int32[n], a permutation, as in all of these."""
    for r in range(len(values)):
        out[np.uint32(destination[r])] = values[r]


@kernel
def scatter_offsets(values: Array, base: int, destination: Array, out: Array) -> None:
    """``out[destination[r]] = values[r] - base``; values int64[n]; out uint16 | int32 | int64 [n], wide enough for the offsets."""
    for r in range(len(values)):
        out[np.uint32(destination[r])] = values[r] - base


@kernel
def scatter_doubles(values: Array, destination: Array, out: Array) -> None:
    """``out[destination[r]] = values[r]`` with -0.0 made 0.0; values, out float64[n]."""
    for r in range(len(values)):
        out[np.uint32(destination[r])] = values[r] + 0.0


@kernel
def scatter_codes(codes: Array, translation: Array, destination: Array, out: Array) -> None:
    """``out[destination[r]] = translation[codes[r]]``; codes int32[n]; translation int32, by code; out uint16 | int32 [n]."""
    for r in range(len(codes)):
        out[np.uint32(destination[r])] = translation[codes[r]]


@kernel
def scatter_lags(lags: Array, base: int, destination: Array, out: Array) -> None:
    """``out[destination[r]] = lags[r] - base + 1``, and 0 for ``NO_LAG``.

    lags int64[n] in ms, all others at least ``base``; out int32 | int64 [n].
    """
    for r in range(len(lags)):
        out[np.uint32(destination[r])] = 0 if lags[r] == NO_LAG else lags[r] - base + 1
