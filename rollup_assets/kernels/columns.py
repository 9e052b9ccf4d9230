"""Operations on single columns: extremes, whether all values are finite, lags between two columns, and renumbered codes."""

from __future__ import annotations

import numpy as np

from rollup_assets.kernels.compiling import Array, kernel

NO_LAG = np.iinfo(np.int64).min
"""Lag of a point whose receive timestamp is missing or makes no sense."""

MOST_TIME = np.iinfo(np.int64).max // 4
"""Milliseconds; times are clamped to it before they are subtracted."""

MOST_LAG = 36_525 * 86_400_000
"""Milliseconds, 100 years: other units, and years such as 1 or 9999, are further away. Sums of 2.9 million such lags fit int64."""


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
def all_finite(values: Array) -> bool:
    """Whether float64[n] has neither NaN nor infinity."""
    total = 0.0
    for r in range(len(values)):
        total += values[r] - values[r]
    return total == 0.0


@kernel
def lags_between(times: Array, receives: Array, unknown: Array, out: Array) -> None:
    """``out[r] = receives[r] - times[r]``, int64[n], or ``NO_LAG`` where ``unknown[r]`` (bool[n], or bool[0] if all are known).

    A receive time further than ``MOST_LAG`` from the point's own counts as unknown, too: one of them would dominate a mean, and a few
    would make its sum overflow. Times are clamped to ``MOST_TIME``, so that the difference cannot wrap around.
    """
    all_known = len(unknown) == 0
    for r in range(len(times)):
        if all_known or not unknown[r]:
            lag = min(max(receives[r], -MOST_TIME), MOST_TIME) - min(max(times[r], -MOST_TIME), MOST_TIME)
            out[r] = lag if -MOST_LAG <= lag <= MOST_LAG else NO_LAG
        else:
            out[r] = NO_LAG


@kernel
def extremes_of_lags(lags: Array) -> tuple[int, int]:
    """Smallest and largest of the known lags, int64[n]; if none is known, the smallest is greater than the largest."""
    low = np.iinfo(np.int64).max
    high = NO_LAG
    for r in range(len(lags)):
        if lags[r] != NO_LAG:
            low = min(low, lags[r])
            high = max(high, lags[r])
    return low, high


@kernel
def compact_codes(codes: Array, translation: Array, out: Array, used: Array) -> int:
    """Renumber codes by first appearance: ``out[r]`` is the place of ``codes[r]`` in ``used``; returns how many differ.

    codes int32 | int64 [n]; out int32[n]; used int32, with a place for each code that occurs; translation int32, scratch space with a
    place for every possible code, all -1 before and after.
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
