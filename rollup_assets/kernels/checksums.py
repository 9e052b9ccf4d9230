"""Checksums of rollup rows that tell whether sums agree *for every series*, without grouping by series.

A checksum is the sum of ``weight(id) * x`` over rows. Weights are pseudo-random, so two sets of rows have equal checksums, but for a chance of
about 2**-60, only if each series' sums are equal. For int64 the arithmetic is modulo 2**64 and exact.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rollup_assets.kernels.compiling import kernel

Array = NDArray[np.generic]


@kernel
def weight(series: int) -> int:
    """An odd pseudo-random uint64 of an id: splitmix64's finalizer (Steele, Lea, Flood 2014)."""
    z = np.uint64(series) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) | np.uint64(1)  # type: ignore[return-value]


@kernel
def add_rows(ids: Array, labels: Array, column: Array, present: Array, after: Array, upto: int, out: Array) -> None:
    """Add the weighted values of rows to ``out`` uint64[a]: out[i] is over the rows with ``after[i] < label <= upto``.

    ids, labels int64[n]; column int64[n]; present bool[n] or [0], rows to leave out; after int64[a].
    """
    for r in range(len(ids)):
        if len(present) > 0 and not present[r]:
            continue
        product = weight(ids[r]) * np.uint64(column[r])
        for i in range(len(after)):
            if after[i] < labels[r] <= upto:
                out[i] += product


@kernel
def add_double_rows(ids: Array, labels: Array, column: Array, present: Array, after: Array, upto: int, out: Array) -> None:
    """The same for float64 columns, with weights in [0.5, 1.5): sums are exact to rounding only. out float64[2, a]: sums, and sums of magnitudes."""
    for r in range(len(ids)):
        if len(present) > 0 and not present[r]:
            continue
        product = (0.5 + np.float64(weight(ids[r]) >> np.uint64(11)) / 9007199254740992.0) * column[r]
        for i in range(len(after)):
            if after[i] < labels[r] <= upto:
                out[0, i] += product
                out[1, i] += abs(product)


@kernel
def count_repeated(ids: Array, labels: Array, last_id: int, last_label: int) -> int:
    """Rows whose (id, label) does not come after the row before it within a series: repeated or unordered windows."""
    repeated = 0
    for r in range(len(ids)):
        if ids[r] == last_id and labels[r] <= last_label:
            repeated += 1
        last_id = ids[r]
        last_label = labels[r]
    return repeated
