"""A small world that follows from a seed: a few series over some batches, with all that raw data may bring along.

Counters that are reset, gaps longer than the lookback, points exactly on boundaries, duplicates with another value, rows without an id
or outside their batch, a file that came late. What is made of it stays out.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from rollup_assets.batches import Batch
from rollup_assets_tests.naive import RawRow

SERIES = (-(2**63), -5, 0, 7, 1 << 40, 2**63 - 1)
MINUTE = 60_000
RawFiles = dict[str, list[RawRow]]


def raw_files(seed: int, batches: Sequence[Batch], *, salt: str = "") -> dict[Batch, RawFiles]:
    """Raw files of neighbouring batches by name; another ``salt`` gives other rows of the same series."""
    rng = random.Random(f"{seed} {salt}")
    rows: dict[Batch, list[RawRow]] = {batch: [] for batch in batches}
    for series in SERIES:
        for row in _history(rng, series, batches):
            rows[next(batch for batch in batches if row.ts is not None and batch.start <= row.ts < batch.end)].append(row)
    return {batch: _delivered(rng, batch, inside) for batch, inside in rows.items()}


def some_rows(seed: int, batch: Batch, *, salt: str, count: int = 40) -> list[RawRow]:
    """Good rows of one batch, as a file that comes later brings them."""
    rng = random.Random(f"{seed} {salt} {batch}")
    return [
        RawRow(
            series := rng.choice(SERIES), series % 3, f"metric.{series % 2}", rng.randrange(batch.start, batch.end), rng.randrange(10**9)
        )
        for _ in range(count)
    ]


def _history(rng: random.Random, series: int, batches: Sequence[Batch]) -> list[RawRow]:
    first, last = batches[0].start, batches[-1].end
    silent = rng.choice([*batches, None])
    value, time, rows = rng.randrange(10**6), first + rng.choice((0, 1, 17_000)), []
    while time < last:
        if silent is None or not silent.start <= time < silent.end:
            receive = time + rng.randrange(-50, 90_000) if rng.random() < 0.7 else None
            rows.append(RawRow(series, series % 3, f"metric.{series % 2}", time, value, receive))
        value = rng.randrange(1000) if rng.random() < 0.03 else value + rng.randrange(5000)
        following = time + rng.choice((30_000, 60_000, 61_234, 90_000, 400_000))
        # One time in five exactly on a boundary.
        time = max(time + 1, following // MINUTE * MINUTE) if rng.random() < 0.2 else following
    return rows


def _delivered(rng: random.Random, batch: Batch, rows: list[RawRow]) -> RawFiles:
    """A batch's rows in files, some twice, some late, and some that are of no use."""
    doubled = [row if rng.random() < 0.5 else dataclasses.replace(row, value=rng.randrange(10**6)) for row in rows if rng.random() < 0.05]
    rows = rows + doubled
    good = [row for row in rows if rng.random() < 0.2][:7]
    useless = [
        dataclasses.replace(row, **{name: None}) for name, row in zip(("id", "ts", "value", "org_id", "metric"), good, strict=False)
    ] + [dataclasses.replace(row, ts=time) for row, time in zip(good[5:], (batch.start - 1, batch.end), strict=False)]
    rows = rows + useless
    rng.shuffle(rows)
    late = [row for row in rows if rng.random() < 0.05]
    in_time = [row for row in rows if row not in late]
    return {"a.parquet": in_time[::2], "b.parquet": in_time[1::2], "late.parquet": late}
