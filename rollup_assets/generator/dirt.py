"""What goes wrong on the way to the landing zone: shares of rows that are late, doubled, out of order, null or outside their batch.

Works on the rows of one row group at a time. Where values come from, and files that are bad as a whole, stay out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rollup_assets.batches import DAY_MS, Batch
from rollup_assets.generator.fleet import Floats, Integers, Mask, Points

Rows = NDArray[np.int64]

COLUMNS = ("id", "logical_timestamp", "value", "org_id", "metric")


@dataclass(frozen=True, slots=True)
class Dirt:
    """Shares of the rows, each in [0, 1)."""

    duplicates: float = 0.002
    """Delivered twice, in one of four cases with another value."""
    late: float = 0.01
    """Delivered in the batch's last file."""
    out_of_order: float = 0.02
    """Moved to another place within their row group."""
    nulls: float = 0.001
    """Lack an id, timestamp, value, org or metric."""
    non_finite: float = 0.0005
    """NaN or infinite; double values only."""
    outside: float = 0.0005
    """Have a timestamp outside of the batch they lie in."""


@dataclass(slots=True)
class RawRows:
    """Rows as they will be written: points, and which entries are null. ``nulls`` has a mask for each of ``COLUMNS`` that has nulls."""

    points: Points
    nulls: dict[str, Mask]

    def __len__(self) -> int:
        return len(self.points.timestamp)


def deliver(points: Points, dirt: Dirt, rng: np.random.Generator) -> tuple[Points, Points, int]:
    """Split off late rows, add duplicates, disturb the order.

    Returns the rows that arrive in time, those that arrive late, and how many of both are duplicates.
    """
    count = len(points.timestamp)
    doubled = _choose(count, dirt.duplicates, rng)
    copies = points.taken(doubled)
    changed = rng.random(len(doubled)) < 0.25
    copies = copies._replace(value=copies.value - changed.astype(copies.value.dtype))
    late = np.zeros(count, dtype=np.bool_)
    late[_choose(count, dirt.late, rng)] = True
    again_late = rng.random(len(doubled)) < (0.5 if dirt.late else 0.0)

    in_time = Points.joined((points.taken(np.flatnonzero(~late)), copies.taken(np.flatnonzero(~again_late))))
    after = Points.joined((points.taken(np.flatnonzero(late)), copies.taken(np.flatnonzero(again_late))))
    minutes = rng.integers(60_000, 1_500_000, size=len(after.timestamp))
    after = after._replace(delay=np.where(after.delay < 0, after.delay, after.delay + minutes))
    return _disturb(in_time, dirt.out_of_order, rng), after, len(doubled)


def spoil(points: Points, dirt: Dirt, batch: Batch, rng: np.random.Generator) -> tuple[RawRows, dict[str, int]]:
    """Make some rows wrong, each in one way. Returns the rows, and how many are wrong by kind."""
    count = len(points.timestamp)
    shares = {"nulls": dirt.nulls, "non_finite": dirt.non_finite if points.value.dtype == np.float64 else 0.0, "outside": dirt.outside}
    wrong = _choose(count, sum(shares.values()), rng)
    kinds = rng.choice(len(shares), size=len(wrong), p=_normalized(list(shares.values())))
    timestamp, value = points.timestamp.copy(), points.value.copy()

    nulls: dict[str, Mask] = {}
    null_rows = wrong[kinds == 0]
    which = rng.integers(0, len(COLUMNS), size=len(null_rows))
    for index, column in enumerate(COLUMNS):
        if (which == index).any():
            nulls[column] = np.zeros(count, dtype=np.bool_)
            nulls[column][null_rows[which == index]] = True
    not_finite = wrong[kinds == 1]
    if len(not_finite):
        value[not_finite] = np.array([np.nan, np.inf, -np.inf])[rng.integers(0, 3, size=len(not_finite))]
    misplaced = wrong[kinds == 2]
    timestamp[misplaced] = _outside(timestamp[misplaced], batch, rng)
    spoiled = RawRows(points._replace(timestamp=timestamp, value=value), nulls)
    return spoiled, {"nulls": len(null_rows), "non_finite": len(not_finite), "outside": len(misplaced)}


def _outside(timestamp: Integers, batch: Batch, rng: np.random.Generator) -> Integers:
    """Clocks that are a batch or a year off, clocks that were never set, and the first moment of the next batch."""
    kind = rng.integers(0, 5, size=len(timestamp))
    choices = [
        timestamp - batch.length,
        timestamp + batch.length,
        timestamp - 365 * DAY_MS,
        timestamp % DAY_MS,
        np.full_like(timestamp, batch.end),
    ]
    return np.choose(kind, choices)


def _choose(count: int, share: float, rng: np.random.Generator) -> Rows:
    """Distinct row numbers, ascending, ``share`` of ``count`` of them."""
    wanted = int(rng.binomial(count, min(share, 1.0))) if share and count else 0
    return np.sort(rng.choice(count, size=wanted, replace=False, shuffle=False)) if wanted else np.empty(0, dtype=np.int64)


def _disturb(points: Points, share: float, rng: np.random.Generator) -> Points:
    order = np.arange(len(points.timestamp))
    chosen = _choose(len(order), share, rng)
    order[chosen] = rng.permutation(chosen)
    return points.taken(order) if len(chosen) else points


def _normalized(shares: list[float]) -> Floats:
    total = sum(shares)
    return np.array(shares) / total if total else np.full(len(shares), 1 / len(shares))
