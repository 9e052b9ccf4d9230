"""Batches: the half-open ranges of event time ``[start, end)`` that partition every asset.

Partition keys (``%Y-%m-%d-%H:%M``, UTC), their folders and the arithmetic between them. What a batch contains, and
Dagster's view of partitions, stay out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from dataclasses import dataclass

from rollup_assets.errors import UnknownPartitionError

KEY_FORMAT = "%Y-%m-%d-%H:%M"
DAY_MS = 86_400_000
HOUR_MS = 3_600_000
MINUTE_MS = 60_000
EARLIEST, LATEST = dt.datetime(1700, 1, 1, tzinfo=dt.UTC), dt.datetime(2200, 1, 1, tzinfo=dt.UTC)
"""No batch starts before the first, and each starts before the second: keys need years of four digits, and timestamps in ns, which Arrow
and Parquet may hold, end in 2262."""
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_LAST_TIME = 62_135_596_800_000
"""Farthest distance from 1970 in ms for which times are shown as dates: back to the year 1, and as far ahead."""


def to_datetime(ms: int) -> dt.datetime:
    """UTC datetime of epoch milliseconds; exact, also before 1970."""
    return _EPOCH + dt.timedelta(milliseconds=ms)


def to_milliseconds(moment: dt.datetime) -> int:
    """Epoch milliseconds of an aware datetime, floored."""
    return (moment - _EPOCH) // dt.timedelta(milliseconds=1)


def time_text(ms: int) -> str:
    """Epoch milliseconds in readable form, ``2026-01-01 09:00:00.125``; the plain number if it is too far from 1970."""
    return f"{to_datetime(ms):%Y-%m-%d %H:%M:%S}.{ms % 1000:03d}" if abs(ms) <= _LAST_TIME else str(ms)


@dataclass(frozen=True, order=True, slots=True)
class Batch:
    """One batch of event time, ``[start, end)`` in UTC epoch milliseconds."""

    start: int
    end: int

    @property
    def key(self) -> str:
        """Partition key, e.g. ``2026-01-01-09:00``."""
        return to_datetime(self.start).strftime(KEY_FORMAT)

    @property
    def folder(self) -> str:
        """The key without colons, e.g. ``2026-01-01-0900``: colons are not allowed in every store's paths."""
        return self.key.replace(":", "")

    @property
    def length(self) -> int:
        """Length in milliseconds."""
        return self.end - self.start

    @property
    def start_time(self) -> dt.datetime:
        """Start as an aware UTC datetime."""
        return to_datetime(self.start)

    @property
    def end_time(self) -> dt.datetime:
        """End (not included) as an aware UTC datetime."""
        return to_datetime(self.end)

    def __str__(self) -> str:
        return self.key


def key_of_folder(name: str) -> str:
    """The partition key of a :attr:`Batch.folder`; for other names, not a valid key."""
    return f"{name[:-2]}:{name[-2:]}"


@dataclass(frozen=True, slots=True)
class BatchCalendar:
    """All batches of a table: the first one's start and the batch length, both in epoch milliseconds."""

    start: int
    length: int

    def find(self, key: str) -> Batch | None:
        """The batch of a partition key; None if this calendar has no such batch."""
        try:
            return self.batch(key)
        except UnknownPartitionError:
            return None

    def batch(self, key: str) -> Batch:
        """The batch of a partition key.

        Raises:
            UnknownPartitionError: the key is malformed, before the first partition, too far ahead, or not on a batch boundary.
        """
        try:
            moment = dt.datetime.strptime(key, KEY_FORMAT).replace(tzinfo=dt.UTC)
        except ValueError:
            moment = None
        # strptime also accepts "2026-1-1-0:0", which is not a partition key.
        if moment is None or moment.strftime(KEY_FORMAT) != key:
            raise UnknownPartitionError(f"{key!r} is not a partition key; write one like {self.first.key!r} ({KEY_FORMAT}, UTC)")
        start = to_milliseconds(moment)
        if start < self.start:
            raise UnknownPartitionError(
                f"partition {key} is before the first one, {self.first.key}; set ROLLUP_START to an earlier day to include it"
            )
        if moment >= LATEST:
            ended = self.last_ended(dt.datetime.now(dt.UTC))
            known = f"the latest one whose batch has ended is {ended}" if ended else f"not even the first one, {self.first}, has ended yet"
            raise UnknownPartitionError(f"partition {key} is after the last one that there can be, {self.last}; {known}")
        if (start - self.start) % self.length:
            before = self.containing(start)
            raise UnknownPartitionError(f"partition {key} does not begin a batch; the one that contains it is {before.key}")
        return Batch(start, start + self.length)

    @property
    def first(self) -> Batch:
        """The first batch."""
        return Batch(self.start, self.start + self.length)

    @property
    def last(self) -> Batch:
        """The last batch that there can be."""
        return self.containing(to_milliseconds(LATEST) - 1)

    @property
    def folder_unit(self) -> int:
        """The coarsest unit of time, in ms, that tells one batch's start from the next: a day, an hour or a minute."""
        return next(unit for unit in (DAY_MS, HOUR_MS, MINUTE_MS) if self.length % unit == 0)

    def of_folder(self, name: str) -> Batch | None:
        """The batch with this :attr:`Batch.folder`, such as ``2026-01-01-0900``; None if there is none."""
        return self.find(key_of_folder(name))

    def containing(self, ms: int) -> Batch:
        """The batch whose range contains the epoch millisecond ``ms`` (also before the first one)."""
        start = self.start + (ms - self.start) // self.length * self.length
        return Batch(start, start + self.length)

    def shifted(self, batch: Batch, count: int) -> Batch | None:
        """The batch ``count`` batches later (earlier if negative); None if it is before the first one, or after the last one."""
        start = batch.start + count * self.length
        # Only forwards: a folder of raw files may itself be too far ahead, and is shown as not ended.
        if start < self.start or (count > 0 and start > self.last.start):
            return None
        return Batch(start, start + self.length)

    def earlier(self, batch: Batch, count: int) -> list[Batch]:
        """The up to ``count`` batches before ``batch``, nearest first, none before the first one."""
        return [found for back in range(1, count + 1) if (found := self.shifted(batch, -back)) is not None]

    def between(self, first: Batch, last: Batch) -> Iterator[Batch]:
        """Batches from ``first`` to ``last``, both included, in order."""
        for start in range(first.start, last.start + 1, self.length):
            yield Batch(start, start + self.length)

    def last_ended(self, now: dt.datetime) -> Batch | None:
        """The latest batch that has ended at ``now``; None if none has."""
        found = self.containing(to_milliseconds(now) - self.length)
        return found if found.start >= self.start else None
