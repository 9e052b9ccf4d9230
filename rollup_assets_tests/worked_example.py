"""The worked example of the design, literally: raw rows in, the table's rows and the batch that publishes each."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

from rollup_assets_tests.naive import RawRow
from rollup_assets_tests.strategies import HOUR, MINUTE, TODAY, Grid


def clock(text: str) -> int:
    """Epoch ms of a time of day on the example's day, ``09:58:10`` or ``09:58``."""
    time = dt.time.fromisoformat(text)
    return TODAY + (time.hour * 3600 + time.minute * 60 + time.second) * 1000


@dataclass(frozen=True)
class Window:
    """One line of the example's table."""

    resolution: int
    label: int
    count: int
    sum: int
    min: int
    max: int
    average: float
    latest: int
    delta: int | None
    resets: int
    published_by: int

    @property
    def values(self) -> tuple[object, ...]:
        """All but the batch; the average with two decimals."""
        return (self.resolution, self.label, self.count, self.sum, self.min, self.max, self.average, self.latest, self.delta, self.resets)


GRID = Grid(start=clock("09:00"), length=HOUR, batches=4, resolutions=(MINUTE, 5 * MINUTE, HOUR), lookback=HOUR)

RAW_ROWS = [
    RawRow(7, 1, "requests", clock(time), value)
    for time, value in (
        ("09:58:10", 100),
        ("09:59:00", 130),
        ("09:59:00", 125),
        ("09:59:30", 160),
        ("10:00:20", 40),
        ("10:01:00", 70),
        ("11:00:00", 80),
        ("12:30:00", 90),
    )
]

EXAMPLE = [
    Window(resolution, clock(label), *rest)
    for resolution, label, *rest in (
        (MINUTE, "09:59", 2, 230, 100, 130, 115.0, 130, 30, 0, 9),
        (MINUTE, "10:00", 1, 160, 160, 160, 160.0, 160, 30, 0, 10),
        (MINUTE, "10:01", 2, 110, 40, 70, 55.0, 70, 70, 1, 10),
        (MINUTE, "11:00", 1, 80, 80, 80, 80.0, 80, 10, 0, 11),
        (MINUTE, "12:30", 1, 90, 90, 90, 90.0, 90, None, 0, 12),
        (5 * MINUTE, "10:00", 3, 390, 100, 160, 130.0, 160, 60, 0, 10),
        (5 * MINUTE, "10:05", 2, 110, 40, 70, 55.0, 70, 70, 1, 10),
        (5 * MINUTE, "11:00", 1, 80, 80, 80, 80.0, 80, 10, 0, 11),
        (5 * MINUTE, "12:30", 1, 90, 90, 90, 90.0, 90, None, 0, 12),
        (HOUR, "10:00", 3, 390, 100, 160, 130.0, 160, 60, 0, 10),
        (HOUR, "11:00", 3, 190, 40, 80, 63.33, 80, 80, 1, 11),
        (HOUR, "13:00", 1, 90, 90, 90, 90.0, 90, None, 0, 13),
    )
]
