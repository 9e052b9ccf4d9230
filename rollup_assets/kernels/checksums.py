"""Checksums of rollup rows that tell whether sums agree *for every series*, without grouping by series.

A checksum is the sum of ``weight(id) * x`` over rows. Weights are pseudo-random, so two sets of rows have equal checksums only if each
series' sums are equal, except with a probability of about 2**-60. For int64 the arithmetic is modulo 2**64 and exact.
"""

from __future__ import annotations

import numpy as np

from rollup_assets.kernels.compiling import Array, Number, kernel


@kernel
def weight(series: Number) -> Number:
    """An odd pseudo-random uint64 of an id: splitmix64's finalizer (Steele, Lea, Flood 2014)."""
    z = np.uint64(series) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)


@kernel
def add_rows(
    ids: Array,
    labels: Array,
    counts: Array,
    resets: Array,
    sums: Array,
    deltas: Array,
    present: Array,
    bounds: Array,
    out: Array,
    last: Array,
) -> int:
    """Add rows in series order to checksums by segment of their labels; returns how many rows have a label that is not greater than
    the previous one of their series.

    ids, labels, counts, resets int64[n]; sums, deltas int64[n]; present bool[n]: whether delta is not null; bounds int64[s]
    ascending: segment i has the labels up to ``bounds[i]``, and no label exceeds the last bound; out uint64[s, 4]: counts, resets,
    sums, deltas; last int64[2]: id and label of the row before the first one, updated to the last one.
    """
    repeated = 0
    series = last[0]
    label = last[1]
    segment = 0
    n = np.uint64(len(ids))
    r = np.uint64(0)
    while r < n:
        # Rows of one series and segment are summed first and weighted once.
        if ids[r] != series:
            segment = 0
            label = np.iinfo(np.int64).min
        series = ids[r]
        while labels[r] > bounds[segment]:
            segment += 1
        bound = bounds[segment]
        count = np.uint64(0)
        reset = np.uint64(0)
        total = np.uint64(0)
        delta = np.uint64(0)
        while r < n and ids[r] == series and labels[r] <= bound:
            repeated += labels[r] <= label
            label = labels[r]
            count += np.uint64(counts[r])
            reset += np.uint64(resets[r])
            total += np.uint64(sums[r])
            # No branch: which steps are missing is unpredictable.
            delta += np.uint64(deltas[r]) if present[r] else np.uint64(0)
            r += np.uint64(1)
        w = weight(series)
        out[segment, 0] += w * count
        out[segment, 1] += w * reset
        out[segment, 2] += w * total
        out[segment, 3] += w * delta
    last[0] = series
    last[1] = label
    return repeated


@kernel
def add_double_rows(
    ids: Array,
    labels: Array,
    sums: Array,
    deltas: Array,
    present: Array,
    counts: Array,
    smallest: Array,
    largest: Array,
    bounds: Array,
    out: Array,
) -> None:
    """The same for float64 sums and deltas, with weights in [0.5, 1.5): equal only up to rounding.

    out float64[s, 4]: sums, deltas, and for each the magnitude that its rounding is relative to. That is not the result's own,
    which may be 0 if large values cancel, but the largest that the sum can have passed through: count * the largest value and, for
    a delta, whose steps up may be undone by negative values after resets, twice that in addition.
    """
    segment = 0
    for r in range(len(ids)):
        if r == 0 or ids[r] != ids[r - 1] or labels[r] < labels[r - 1]:
            segment = 0
        while labels[r] > bounds[segment]:
            segment += 1
        w = 0.5 + np.float64(weight(ids[r]) >> np.uint64(11)) / 9007199254740992.0
        passed = counts[r] * max(abs(smallest[r]), abs(largest[r]))
        out[segment, 0] += w * sums[r]
        out[segment, 2] += w * passed
        if present[r]:
            out[segment, 1] += w * deltas[r]
            out[segment, 3] += w * (abs(deltas[r]) + 2.0 * passed)
