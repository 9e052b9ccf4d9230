"""Which partitions a backfill of a range covers: those requested, earlier ones that they need and lack, and trailing ones.

What is done with them stays out (``defs.backfill``), and so does what would be (``plan``).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from rollup_assets.batches import Batch, BatchCalendar
from rollup_assets.errors import LandingZoneError, StageCorruptError, UnknownPartitionError
from rollup_assets.pipeline import Pipeline
from rollup_assets.storage.manifests import PARTIAL_POINTS, REPARTITIONED

PARTITIONS_PER_RUN = 24
"""Partitions asked for that one run of a backfill stages; another one rolls them up before the next stages more."""


@dataclass(frozen=True, slots=True)
class Scope:
    """The partitions of a range, all in time order."""

    asked: tuple[Batch, ...]
    trailing: tuple[Batch, ...]
    """The partitions after the range whose rows depend on it, as far as their batch has ended."""
    not_ended: tuple[Batch, ...]
    """Trailing partitions that do not exist yet, because their batch has not ended."""


def scope_of(calendar: BatchCalendar, first: str, last: str, reach: int, now: dt.datetime | None = None) -> Scope:
    """The partitions from ``first`` to ``last``, both included, and those that depend on them, as of ``now`` (default: the clock).

    Raises:
        UnknownPartitionError: a key is malformed or not a partition, its batch has not ended, or ``last`` is before ``first``.
    """
    begin, end = calendar.batch(first), calendar.batch(last)
    if end < begin:
        raise UnknownPartitionError(f"the last partition {last} is before the first one, {first}; exchange them")
    latest = calendar.last_ended(now or dt.datetime.now(dt.UTC))
    if latest is None or end > latest:
        known = f"the latest one is {latest}" if latest else f"the first one, {calendar.first}, has not ended yet"
        raise UnknownPartitionError(
            f"partition {last} does not exist yet, since its batch ends at {end.end_time:%Y-%m-%d %H:%M} UTC; {known}"
        )
    trailing = following(calendar, end, reach)
    return Scope(
        tuple(calendar.between(begin, end)),
        tuple(batch for batch in trailing if batch <= latest),
        tuple(batch for batch in trailing if batch > latest),
    )


def following(calendar: BatchCalendar, batch: Batch, reach: int) -> list[Batch]:
    """The up to ``reach`` batches after this one, whose rows depend on its points."""
    return [after for count in range(1, reach + 1) if (after := calendar.shifted(batch, count)) is not None]


def stretches(batches: Iterable[Batch]) -> Iterator[list[Batch]]:
    """Batches in time order, cut into stretches of neighbouring ones."""
    for _, stretch in groupby(enumerate(batches), key=lambda item: item[1].start - item[0] * item[1].length):
        yield [batch for _, batch in stretch]


def missing_before(pipeline: Pipeline, first: Batch) -> list[Batch]:
    """The earlier batches that the first one's rollups read and that have raw files but are not staged; in time order."""
    return [batch for batch in reversed(pipeline.calendar.earlier(first, pipeline.settings.reach)) if _is_missing(pipeline, batch)]


def _is_missing(pipeline: Pipeline, batch: Batch) -> bool:
    try:
        return pipeline.stage.read(PARTIAL_POINTS, batch) is None and bool(pipeline.landing_zone.files(batch))
    except (LandingZoneError, StageCorruptError):
        # Stage it: that reports what is wrong, and fails only the batches that need it.
        return True


def failed_inputs(calendar: BatchCalendar, batch: Batch, reach: int, failed: Collection[str]) -> str | None:
    """Why a batch is not rolled up: it reads something that could not be staged (``failed``: partition keys); None if it can be."""
    needed = {PARTIAL_POINTS: calendar.earlier(batch, reach), REPARTITIONED: [batch]}
    found = [f"{asset} {of}" for asset, needs in needed.items() for of in needs if of.key in failed]
    return f"needs {' and '.join(found)}, which failed" if found else None
