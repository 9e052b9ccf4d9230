"""Decides which partitions are out of date because of their raw files, and what to request: one look, with the memory of earlier looks.

If the raw files of a partition are not those that were staged, staging is requested once they have stayed the same for a while. If its
rollups were made from other digests than today's, or are not published, rolling up and publishing is requested. Other settings and other
code cause no request: making everything anew is somebody's decision, and so is publishing what was rolled back. Making runs of the requests
stays out (``defs.sensors``).
"""

from __future__ import annotations

import datetime as dt
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from pydantic import BaseModel, ConfigDict, ValidationError

from rollup_assets.batches import Batch, BatchCalendar, to_milliseconds
from rollup_assets.errors import LandingZoneError, NotStagedError, RollupError, StageCorruptError, StaleInputError
from rollup_assets.pipeline import Pipeline, for_each
from rollup_assets.scope import following
from rollup_assets.steps.changes import input_changes
from rollup_assets.steps.publish import has_unpublished_points, reasons_to_publish
from rollup_assets.steps.repartition import current_stage, is_over_limit, raw_data_is_gone
from rollup_assets.steps.results import Waiting
from rollup_assets.steps.rollup import RollupInputs, find_inputs
from rollup_assets.storage.landing_zone import version_of
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS, StageReadOnce

MOST_REQUESTS = 24
"""How many partitions one look asks to stage, and how many to roll up; the rest follow in later looks."""
MOST_UNDER_WAY = 50
"""While so many requests of earlier looks are queued or running, a look asks only for the newest partitions: others would be made no
sooner, and the queue would grow by the thousand."""
MOST_REMEMBERED = 500
"""How many partitions are remembered that change or wait to be staged. Each look stores all of its memory anew."""
MOST_ASKED = 2_000
"""How many partitions are remembered that were asked to be staged and are not, mostly because that failed; and as many to be rolled up."""
ALWAYS_SEEN = 24
"""How many of the newest partitions every look sees. They come first, and are remembered and asked for however many others there are."""
SECONDS = 5.0
"""About how long a look takes at most; the next one goes on where it ended. Each sees at least some remembered and other partitions."""
_AT_A_TIME = 64
_SHORT = 16
"""How many digits of a version are remembered: enough to tell it from the partition's next one."""
_NOT_ASKED = ""


class Arrival(BaseModel):
    """Raw files of a partition that differ from the staged ones, and that no request asked to stage yet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    """The first digits of the raw files' version."""
    since: int
    """When this version was first seen, epoch milliseconds."""


class Memory(BaseModel):
    """What one look leaves to the next. Partitions that are up to date are not in it."""

    model_config = ConfigDict(extra="forbid")

    arrivals: dict[str, Arrival] = {}
    asked: dict[str, str] = {}
    """Partition -> first digits of the raw files' version that was asked to be staged, and is not yet staged, or failed."""
    rollups: dict[str, str] = {}
    """Partition -> digest of the inputs that it was asked to be rolled up from; empty if it has not been asked for yet."""
    position: str | None = None
    """The partition where the next look goes on."""
    position_in_memory: str | None = None
    """The same among the remembered partitions and those that read them; None: the previous look has seen them all."""

    @classmethod
    def parse(cls, text: str | None) -> Memory:
        """The stored memory; an empty one if it cannot be read, as after an upgrade: then everything is looked at anew."""
        try:
            return cls.model_validate_json(text or "{}")
        except ValidationError:
            return cls()


@dataclass(frozen=True, slots=True)
class StageRequest:
    """Raw files that are to be staged."""

    batch: Batch
    version: str
    """Data version of the raw files."""
    files: int
    bytes: int
    key: str
    """Equal for the same change, so that a request that is made twice runs only once."""
    is_newest: bool
    """Whether the batch is one of the newest, which should not wait for the others."""


@dataclass(frozen=True, slots=True)
class RollUpRequest:
    """A partition that is to be rolled up and published."""

    batch: Batch
    key: str
    is_newest: bool


@dataclass(slots=True)
class Found:
    """The outcome of a look, in time order."""

    memory: Memory
    to_stage: list[StageRequest] = field(default_factory=list)
    to_roll_up: list[RollUpRequest] = field(default_factory=list)
    unsettled: list[str] = field(default_factory=list)
    """Partitions whose raw files have not stayed the same for long enough."""
    problems: dict[str, str] = field(default_factory=dict)
    """Partition -> why it cannot be looked at."""
    held_back: dict[str, str] = field(default_factory=dict)
    """Partition with points that are not in the table -> why it is not asked to be rolled up, though no run is about to change that."""
    left_out: int = 0
    """How many partitions are out of date but not remembered, because too many are; later looks come back to them."""


@dataclass(frozen=True, slots=True)
class _Seen:
    version: str
    files: int
    bytes: int
    arrived: bool
    """Whether the files differ from the staged ones, and were not already found to be over the quarantine's limit."""


def look(
    pipeline: Pipeline,
    memory: Memory,
    now: dt.datetime,
    *,
    is_being_made: Callable[[Batch], bool],
    under_way: int = 0,
    clock: Callable[[], float] = time.monotonic,
) -> Found:
    """Look at the partitions whose batch has ended, and decide what to ask for.

    Args:
        pipeline: of the table.
        memory: of the previous look.
        now: the time.
        is_being_made: whether a run is making something of a partition, or is about to: if need be, it is asked for after that run.
        under_way: how many requests of earlier looks are queued or running.
        clock: a clock in seconds.

    Raises:
        StorageError: raw data or stage cannot be read.
    """
    last = pipeline.calendar.last_ended(now)
    if last is None:
        return Found(memory)
    return _Look(pipeline, memory, to_milliseconds(now), is_being_made, with_backlog=under_way < MOST_UNDER_WAY).run(last, clock)


class _Look:
    def __init__(self, pipeline: Pipeline, memory: Memory, now: int, is_being_made: Callable[[Batch], bool], *, with_backlog: bool) -> None:
        # Each manifest is read once per look: later partitions ask for those of earlier ones again.
        self.pipeline = replace(pipeline, stage=StageReadOnce(pipeline.stage.root))
        self.now, self.is_being_made, self.with_backlog = now, is_being_made, with_backlog
        self.arrivals, self.asked, self.rollups = dict(memory.arrivals), dict(memory.asked), dict(memory.rollups)
        self.found = Found(memory)
        self.seen: dict[Batch, _Seen | None] = {}
        self.newest: set[Batch] = set()

    def run(self, last: Batch, clock: Callable[[], float]) -> Found:
        self.newest = {last, *self.pipeline.calendar.earlier(last, ALWAYS_SEEN - 1)}
        position, position_in_memory = self._see(last, clock)
        for batch in self._in_order():
            if seen := self.seen[batch]:
                self._stage(batch, seen)
        for batch in self._in_order():
            if self.seen[batch]:
                self._roll_up(batch)
        self.found.to_stage.sort(key=lambda request: request.batch)
        self.found.to_roll_up.sort(key=lambda request: request.batch)
        self.found.unsettled.sort()
        self.found.memory = Memory(
            arrivals=self.arrivals, asked=self.asked, rollups=self.rollups, position=position, position_in_memory=position_in_memory
        )
        return self.found

    def _in_order(self) -> list[Batch]:
        """What was seen, the newest partitions first and then in time order: a backlog of days must not keep the newest waiting."""
        return sorted(self.seen, key=lambda batch: (batch not in self.newest, batch))

    def _see(self, last: Batch, clock: Callable[[], float]) -> tuple[str, str | None]:
        """See the newest partitions, then remembered ones, then others, while time is left; returns where to go on: others, remembered."""
        calendar, reach = self.pipeline.calendar, self.pipeline.settings.reach
        until = clock() + SECONDS
        keys = {*self.arrivals, *self.asked, *self.rollups}
        remembered = [batch for key in keys if (batch := _batch(calendar, key, last)) is not None]
        for key in keys - {batch.key for batch in remembered}:
            self._forget(key)
            self.rollups.pop(key, None)
        self._see_each(self.newest)
        busy = {*remembered, *(after for batch in remembered for after in following(calendar, batch, reach) if after <= last)}
        again = _batch(calendar, self.found.memory.position_in_memory, last) or calendar.first
        in_turn = sorted(busy - self.seen.keys(), key=lambda batch: (batch < again, batch))
        left = self._see_in_turn(iter(in_turn), lambda: clock() >= until)
        start = _batch(calendar, self.found.memory.position, last) or calendar.first
        unseen = self._see_in_turn(_around(calendar, start, last), lambda: clock() >= until)
        return (unseen or start).key, left.key if left else None

    def _see_in_turn(self, batches: Iterator[Batch], is_over: Callable[[], bool]) -> Batch | None:
        """See at least some batches, and more until time is up; returns the first unseen one, None if all were seen."""
        self._see_each(batch for batch in islice(batches, _AT_A_TIME) if batch not in self.seen)
        while chunk := list(islice(batches, _AT_A_TIME)):
            if is_over():
                return chunk[0]
            self._see_each(batch for batch in chunk if batch not in self.seen)
        return None

    def _see_each(self, batches: Iterable[Batch]) -> None:
        chosen = sorted(batches)
        self.seen |= dict(zip(chosen, for_each(self.pipeline, self._see_one, chosen), strict=True))

    def _see_one(self, batch: Batch) -> _Seen | None:
        try:
            files, staged = self.pipeline.landing_zone.files(batch), current_stage(self.pipeline, batch)
            # Needed soon; read here, where the reads of several batches run in parallel.
            if self.pipeline.stage.read(ROLLUPS, batch):
                self.pipeline.stage.read(ROLLUP_TABLE, batch)
            version = version_of(files)
            # Not always of the same files: over its limit a batch stages its quarantine, but keeps the datapoints of earlier files.
            manifests = (staged.repartitioned, staged.partial_points, staged.quarantined) if staged else ()
            arrived = any(version_of(list(manifest.inputs)) != version for manifest in manifests) or bool(files and not staged)
            if arrived and (quarantined := self.pipeline.stage.read(QUARANTINED, batch)):
                tried = version_of(list(quarantined.inputs)) == version
                arrived = not (tried and is_over_limit(self.pipeline, batch, quarantined))
            if arrived and (problem := raw_data_is_gone(self.pipeline, batch, files, staged)):
                raise LandingZoneError(problem)
            return _Seen(version, len(files), sum(file.size for file in files), arrived)
        except (LandingZoneError, StageCorruptError) as error:
            self.found.problems[batch.key] = str(error)
            return None

    def _stage(self, batch: Batch, seen: _Seen) -> None:
        if not seen.arrived:
            self._forget(batch.key)
            return
        version = seen.version[:_SHORT]
        if self.asked.get(batch.key) == version:
            return
        is_full = len(self.arrivals) >= MOST_REMEMBERED or len(self.asked) >= MOST_ASKED
        if is_full and batch not in self.newest and batch.key not in self.arrivals and batch.key not in self.asked:
            self.found.left_out += 1
            return
        waiting = self.arrivals.get(batch.key)
        if waiting is None or waiting.version != version:
            self._forget(batch.key)
            waiting = self.arrivals[batch.key] = Arrival(version=version, since=self.now)
        if self.now - waiting.since < self.pipeline.settings.sensor_settle:
            self.found.unsettled.append(batch.key)
        elif self._has_place(batch, self.found.to_stage) and not self.is_being_made(batch):
            self._forget(batch.key)
            self.asked[batch.key] = version
            key = f"stage {batch} {seen.version} {waiting.since}"
            self.found.to_stage.append(StageRequest(batch, seen.version, seen.files, seen.bytes, key, batch in self.newest))

    def _has_place(self, batch: Batch, requests: Sequence[StageRequest | RollUpRequest]) -> bool:
        """Whether this look may ask for one more."""
        return len(requests) < MOST_REQUESTS and (self.with_backlog or batch in self.newest)

    def _forget(self, key: str) -> None:
        self.arrivals.pop(key, None)
        self.asked.pop(key, None)

    def _roll_up(self, batch: Batch) -> None:
        inputs = self._inputs(batch)
        if inputs is None:
            # Keep the earlier request in memory: otherwise it would be repeated as soon as the same inputs are back.
            return
        if self._is_published(batch, inputs):
            self.rollups.pop(batch.key, None)
            return
        wanted, known = self._identity(batch, inputs), self.rollups.get(batch.key)
        if known == wanted or self.is_being_made(batch):
            return
        # Wait for inputs that are about to change, which would make it stale at once.
        if any(self._is_about_to_change(of) for of in (batch, *self.pipeline.calendar.earlier(batch, self.pipeline.settings.reach))):
            return
        if known is None and batch not in self.newest and len(self.rollups) >= MOST_ASKED:
            self.found.left_out += 1
        elif self._has_place(batch, self.found.to_roll_up):
            self.rollups[batch.key] = wanted
            # The key has the time in it: Dagster gives a key only one run, and after the memory is lost another one is wanted.
            self.found.to_roll_up.append(RollUpRequest(batch, f"roll up {batch} {wanted} {self.now}", batch in self.newest))
        else:
            # Remember it, so that the next looks see it again soon.
            self.rollups.setdefault(batch.key, _NOT_ASKED)

    def _inputs(self, batch: Batch) -> RollupInputs | None:
        """The inputs from which rollups would be made now; None if they cannot be made, or nothing is staged."""
        stage = self.pipeline.stage
        earlier = self.pipeline.calendar.earlier(batch, self.pipeline.settings.reach)
        try:
            if all(stage.read(PARTIAL_POINTS, of) is None for of in (batch, *earlier)):
                return None
            inputs = find_inputs(self.pipeline, batch)
        except (NotStagedError, StaleInputError) as error:
            changes = any(self._is_about_to_change(of) or self.is_being_made(of) for of in (batch, *earlier))
            if not changes and has_unpublished_points(stage, batch):
                self.found.held_back[batch.key] = str(error)
            return None
        except RollupError:
            return None
        return None if isinstance(inputs, Waiting) else inputs

    def _is_published(self, batch: Batch, inputs: RollupInputs) -> bool:
        """Whether the rollups were made from these inputs, and the receipt is of them or says that they stay out of the table."""
        rollups = self.pipeline.stage.read(ROLLUPS, batch)
        if rollups is None or input_changes(rollups.upstream, inputs.upstream(batch)):
            return False
        return not reasons_to_publish(batch, self.pipeline.stage.read(ROLLUP_TABLE, batch), rollups, None)

    def _is_about_to_change(self, batch: Batch) -> bool:
        if batch not in self.seen:
            self._see_each([batch])
        seen = self.seen[batch]
        if seen is None or not seen.arrived:
            return False
        # If staging failed, what was staged before stands until other files arrive.
        just_asked = any(request.batch == batch for request in self.found.to_stage)
        return batch.key not in self.asked or just_asked or self.is_being_made(batch)

    def _identity(self, batch: Batch, inputs: RollupInputs) -> str:
        """One digest of everything that is read: contents, and attempts too, so that content that comes back is asked for again."""
        read = (
            (REPARTITIONED, batch, inputs.datapoints),
            (PARTIAL_POINTS, batch, inputs.own),
            *((PARTIAL_POINTS, *of) for of in inputs.earlier),
        )
        text = "\n".join(f"{asset} {of} {found.digest} {found.attempt}" if found else f"{asset} {of}" for asset, of, found in read)
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def _batch(calendar: BatchCalendar, key: str | None, last: Batch) -> Batch | None:
    """A remembered batch, if the calendar still has it: settings may have changed."""
    found = calendar.find(key or "")
    return found if found is not None and found <= last else None


def _around(calendar: BatchCalendar, start: Batch, last: Batch) -> Iterator[Batch]:
    """All batches once, from ``start`` to the last and then from the first on."""
    yield from calendar.between(start, last)
    yield from (batch for batch in calendar.between(calendar.first, start) if batch != start)
