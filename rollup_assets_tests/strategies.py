"""Nasty series for Hypothesis, and seeded crowds of series where order and size matter more than shrinking.

Raw rows and accepted points; how they get into files is `landing.py`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from hypothesis import strategies as st

from rollup_assets_tests.naive import INT64_MAX, INT64_MIN, Point, RawRow, Value, without_duplicates

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


@dataclass(frozen=True)
class Grid:
    """The time that a history lives in: ``batches`` batches of ``length`` ms from ``start`` on, and what is computed over it."""

    start: int
    length: int
    batches: int
    resolutions: tuple[int, ...]
    lookback: int

    @property
    def end(self) -> int:
        """End of the last batch (not included)."""
        return self.start + self.batches * self.length

    @property
    def reach(self) -> int:
        """How many earlier batches a batch depends on."""
        return -(-(self.resolutions[-1] + self.lookback) // self.length)

    def starts(self) -> list[int]:
        """Start of each batch."""
        return list(range(self.start, self.end, self.length))


# Around 1970, so that timestamps are negative, zero and positive; and at a date of today.
AROUND_EPOCH = -2 * HOUR
TODAY = 1_767_225_600_000  # 2026-01-01T00:00Z

# Series whose ids sort, hash and overflow in different ways.
IDS = (7, -1, 0, INT64_MIN, INT64_MAX, 1_000_003)
ORGS = (1, 2, INT64_MIN, INT64_MAX)
METRICS = (
    "cpu",
    "",
    "disk/\N{GREEK SMALL LETTER ALPHA}",
    "\N{FACE WITH TEARS OF JOY}",
    "\N{FULLWIDTH LATIN SMALL LETTER A}",
)  # bytes and UTF-16 sort the last two differently

small_longs = st.one_of(st.integers(-3, 5), st.integers(-(10**6), 10**6))
extreme_longs = st.one_of(st.integers(-3, 3), st.sampled_from((INT64_MIN, INT64_MIN + 1, INT64_MAX - 1, INT64_MAX, 2**62, -(2**62))))
# Of very different magnitude, so that any other order of additions gives other bits; -0.0 and the least of all among them.
doubles = st.one_of(
    st.sampled_from((0.0, -0.0, 0.1, -0.1, 1e16, -1e16, 1.0, 5e-324, 1 / 3)),
    st.floats(-1e6, 1e6, allow_nan=False),
    st.floats(-1e300, 1e300, allow_nan=False),
)


@st.composite
def grids(draw: st.DrawFn, start: int | None = None) -> Grid:
    """Small grids: batches of an hour, half an hour or two; one to three resolutions; a lookback up to the batch."""
    length = draw(st.sampled_from((HOUR, HOUR // 2, 2 * HOUR)))
    resolutions = draw(
        st.sampled_from(
            [
                chosen
                for chosen in ((MINUTE, 5 * MINUTE, HOUR), (MINUTE, 10 * MINUTE), (10 * MINUTE, 30 * MINUTE), (HOUR // 2,))
                if length % chosen[-1] == 0
            ]
        )
    )
    lookback = draw(
        st.sampled_from((length, length - 1, length - resolutions[-1] if length > resolutions[-1] else length, 7 * MINUTE, MINUTE, 1))
    )
    return Grid(
        draw(st.sampled_from((AROUND_EPOCH, TODAY))) if start is None else start, length, draw(st.integers(1, 4)), resolutions, lookback
    )


def _moments(grid: Grid) -> st.SearchStrategy[int]:
    """Moments of the grid, mostly where windows and batches meet, one millisecond to either side, or anywhere."""

    def boundary(unit: int) -> st.SearchStrategy[int]:
        return st.builds(
            lambda index, off: grid.start + index * unit + off,
            st.integers(0, (grid.end - grid.start) // unit),
            st.sampled_from((0, 0, 1, -1)),
        )

    return st.one_of(
        boundary(grid.length), *(boundary(resolution) for resolution in grid.resolutions), st.integers(grid.start, grid.end - 1)
    ).map(lambda ts: min(max(ts, grid.start), grid.end - 1))


@st.composite
def histories(draw: st.DrawFn, grid: Grid, values: st.SearchStrategy[Value] = small_longs, max_points: int = 30) -> list[RawRow]:
    """Good raw rows of a few series inside the grid, in any order, duplicates among them.

    A series may have one point, come and go, reset, change its dimensions at any point, and leave gaps of exactly the lookback,
    one millisecond less or more.
    """
    rows: list[RawRow] = []
    series = draw(st.lists(st.sampled_from(IDS), min_size=1, max_size=4, unique=True))
    gaps = st.sampled_from((grid.lookback, grid.lookback + 1, grid.lookback - 1, grid.length, 1, grid.resolutions[0], grid.resolutions[-1]))
    receive_delays = st.one_of(st.none(), st.integers(-5, 100), st.sampled_from((0, DAY)))
    moments = _moments(grid)
    while len(rows) < max_points and (not rows or draw(st.integers(0, 11)) > 0):
        kind = draw(st.sampled_from(("moment", "moment", "gap", "duplicate"))) if rows else "moment"
        origin = draw(st.sampled_from(rows)) if kind != "moment" else None
        if origin is None:
            identity, ts = draw(st.sampled_from(series)), draw(moments)
        else:
            assert origin.id is not None
            assert origin.ts is not None
            identity = origin.id
            ts = origin.ts if kind == "duplicate" else origin.ts + draw(gaps)
            if ts >= grid.end:
                continue
        org_id, metric = ORGS[0], METRICS[0]
        if draw(st.integers(0, 3)) == 0:
            org_id, metric = draw(st.sampled_from(ORGS)), draw(st.sampled_from(METRICS))
        delay = draw(receive_delays)
        rows.append(RawRow(identity, org_id, metric, ts, draw(values), None if delay is None else ts + delay))
    return rows


@st.composite
def grids_with_points(draw: st.DrawFn, values: st.SearchStrategy[Value] = small_longs) -> tuple[Grid, list[Point]]:
    """A grid and accepted points in it."""
    grid = draw(grids())
    rows = draw(histories(grid, values))
    return grid, accepted(rows)


def accepted(rows: Sequence[RawRow]) -> list[Point]:
    """The points of good rows, whatever their batch."""
    from rollup_assets_tests.naive import point_of

    return without_duplicates(point_of(row) for row in rows)


def dirty_rows(start: int, end: int) -> st.SearchStrategy[RawRow]:
    """Rows of batch [start, end) with nothing, one or several things wrong."""
    return st.builds(
        RawRow,
        id=st.one_of(st.none(), st.sampled_from(IDS)),
        org_id=st.one_of(st.none(), st.sampled_from(ORGS)),
        metric=st.one_of(st.none(), st.sampled_from(METRICS)),
        ts=st.one_of(
            st.none(), st.sampled_from((start - 1, start, start + 1, end - 1, end, INT64_MIN, INT64_MAX)), st.integers(start, end - 1)
        ),
        value=st.one_of(st.none(), small_longs),
        receive=st.one_of(st.none(), st.integers(start, end)),
    )


def crowd(seed: int, grid: Grid, series: int, rows: int, *, double: bool = False) -> list[RawRow]:
    """Many series with a bit of everything, the same for the same seed; out of order, about 2 % duplicates, resets, gaps, late starters."""
    chosen = random.Random(seed)
    ids = [chosen.randrange(INT64_MIN, INT64_MAX) for _ in range(series)]
    homes = {identity: (chosen.randrange(5), f"metric-{chosen.randrange(9)}") for identity in ids}
    made: list[RawRow] = []
    for _ in range(rows):
        if made and chosen.random() < 0.02:
            twin = chosen.choice(made)
            identity, ts = twin.id, twin.ts
        else:
            identity = chosen.choice(ids)
            ts = chosen.randrange(grid.start, grid.end)
            if chosen.random() < 0.3:
                ts = ts // grid.resolutions[0] * grid.resolutions[0]
        assert identity is not None
        assert ts is not None
        org_id, metric = homes[identity] if chosen.random() < 0.95 else (9, "moved")
        value: Value = chosen.uniform(-1e6, 1e6) if double else chosen.randrange(-1000, 100_000)
        made.append(RawRow(identity, org_id, metric, ts, value, ts + chosen.randrange(60_000) if chosen.random() < 0.5 else None))
    return made
