"""A month's backfill with its queue, uneven batches, failures and retries: ``python -m benchmarks.simulate_backfill``.

A discrete-event simulation of what Dagster does with the two steps of a backfill (``deploy/dagster.yaml``): every 30 s the daemon requests
runs of up to 24 partitions, first for all that can be staged, then for those that can be rolled up because their own batch and the two
before are staged; runs wait in one queue, first come, first served; a run makes its partitions one after the other; steps hold places in
pools, and publishing holds the table's lock. A failing partition does not affect the others of its run, and is made by another backfill,
started when the first has ended. A lost run is noticed and started again, at most twice, and skips what is already done.

Batches differ by the hour of the day and at random (log-normal). Runs do not slow each other down: each has cores of its own.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.tables import table

STAGE, ROLL_UP = STEPS = ("stage", "roll up")
DONE, FAILED, LOST = "done", "failed", "lost"


@dataclass(frozen=True, slots=True)
class Options:
    """What is simulated. Times are seconds, rates are shares of attempts."""

    partitions: int = 31 * 24
    stage_seconds: float = 60.0
    """To stage an average batch, on one run's cores."""
    roll_up_seconds: float = 40.0
    publish_seconds: float = 1.0
    """To publish a batch, one at a time."""
    partitions_per_run: int = 24
    reach: int = 2
    """How many earlier batches must be staged too (``Settings.reach``)."""
    runs: int = 2
    """Runs of a backfill at once (``tag_concurrency_limits``)."""
    staging: int = 4
    publishing: int = 4
    """Places in the two pools."""
    swing: float = 0.5
    """How much larger than the average the busiest hour of the day is, and how much smaller the quietest, as a share."""
    skew: float = 0.3
    """Standard deviation of the logarithm of a batch's size, in addition."""
    failing: float = 0.0
    losing: float = 0.0
    """How often the process of a run dies while it makes a partition."""
    run_start: float = 8.0
    """Until a run's process starts working: imports, kernels, and Spark's session if there is one."""
    bookkeeping: float = 0.2
    """Dagster's overhead per partition."""
    tick: float = 30.0
    """Between two checks by the daemon, and by whoever starts another backfill."""
    noticed: float = 60.0
    """Until a lost run is started again."""
    retries: int = 2
    """How often a lost run is started again."""
    rollups_first: bool = False
    """Whether runs that roll up go before those that stage, which Dagster's queue does by priority; the product sets none."""
    seed: int = 1


@dataclass(frozen=True, slots=True)
class Attempt:
    """A run's attempt at a partition, from when it has its place in the pool."""

    step: str
    partition: int
    run: int
    began: float
    ended: float
    outcome: str
    published: tuple[float, float] | None = None
    """While it had the table's lock."""


@dataclass(slots=True)
class Outcome:
    """The result of a simulation."""

    options: Options
    attempts: list[Attempt] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    """Seconds of each run in the queue."""
    running: list[tuple[float, float]] = field(default_factory=list)
    """Start and end of each run's time in one of the places, lost runs included."""
    backfills: int = 0
    work: float = 0.0
    """Seconds of all partitions' steps, each once."""

    @property
    def makespan(self) -> float:
        """Seconds until everything is published."""
        return max(attempt.ended for attempt in self.attempts)

    @property
    def first_published(self) -> float:
        """Seconds until the first batch is published."""
        return min(attempt.ended for attempt in self.attempts if (attempt.step, attempt.outcome) == (ROLL_UP, DONE))

    @property
    def wasted(self) -> float:
        """Share of the attempts' time that was lost."""
        spent = sum(attempt.ended - attempt.began for attempt in self.attempts)
        return sum(attempt.ended - attempt.began for attempt in self.attempts if attempt.outcome != DONE) / spent

    @property
    def busy(self) -> float:
        """Average share of the places for runs that were taken."""
        return sum(until - since for since, until in self.running) / (self.makespan * self.options.runs)


@dataclass(frozen=True, slots=True)
class Place:
    """A place in ``Places`` that a process asks for."""

    among: Places
    first: bool = False
    """Whether it goes ahead of waiting processes without this flag."""


Process = Generator[float | Place, None, None]


class Clock:
    """Processes that wait for a time or for a place; those with the same time continue in the order in which they began to wait."""

    def __init__(self) -> None:
        self.now = 0.0
        self._waiting: list[tuple[float, int, Process]] = []
        self._numbers = itertools.count()

    def start(self, process: Process, after: float = 0.0) -> None:
        """Continue a process after that many seconds."""
        heapq.heappush(self._waiting, (self.now + after, next(self._numbers), process))

    def run(self) -> None:
        """Run until no process waits for a time any more."""
        while self._waiting:
            self.now, _, process = heapq.heappop(self._waiting)
            try:
                wanted = next(process)
            except StopIteration:
                continue
            if isinstance(wanted, Place):
                wanted.among.enter(process, first=wanted.first)
            else:
                self.start(process, wanted)


class Places:
    """A limited number of processes may be inside at once; the others wait, first come, first served within the same rank."""

    def __init__(self, clock: Clock, count: int) -> None:
        self._clock, self._free = clock, count
        self._queues: tuple[deque[Process], deque[Process]] = (deque(), deque())

    def enter(self, process: Process, *, first: bool) -> None:
        """Continue the process as soon as there is a place."""
        self._queues[0 if first else 1].append(process)
        self._admit()

    def leave(self) -> None:
        """Give up the place of a process that is inside."""
        self._free += 1
        self._admit()

    def _admit(self) -> None:
        while self._free and (queue := next(filter(None, self._queues), None)):
            self._free -= 1
            self._clock.start(queue.popleft())


def simulate(options: Options) -> Outcome:
    """Simulate one backfill after the other until every partition is published.

    Raises:
        ValueError: the options make no sense, or nothing would ever be finished.
    """
    if min(options.partitions, options.partitions_per_run, options.reach, options.runs, options.staging, options.publishing) < 1:
        raise ValueError("partitions, reach, runs and places have to be 1 or more")
    if not (0 <= options.failing < 1 and 0 <= options.losing < 1):
        raise ValueError("rates are from 0 to less than 1")
    return _Backfill(options).simulate()


class _Backfill:
    def __init__(self, options: Options) -> None:
        self.options, self.clock = options, Clock()
        # Separate random numbers for each purpose, so that failures of runs do not change the sizes of batches.
        self.chance = random.Random(f"{options.seed} failures")
        sizes = random.Random(f"{options.seed} sizes")
        self.sizes = [
            (1 + options.swing * math.sin(2 * math.pi * number / 24)) * sizes.lognormvariate(-(options.skew**2) / 2, options.skew)
            for number in range(options.partitions)
        ]
        self.places = Places(self.clock, options.runs)
        self.pools = {STAGE: Places(self.clock, options.staging), ROLL_UP: Places(self.clock, options.publishing)}
        self.lock = Places(self.clock, 1)
        self.done: dict[str, set[int]] = {step: set() for step in STEPS}
        self.open = 0
        self.numbers = itertools.count()
        self.outcome = Outcome(options)
        self.outcome.work = sum(self._seconds(step, partition) for step in STEPS for partition in range(options.partitions))

    def simulate(self) -> Outcome:
        self.clock.start(self._daemon())
        self.clock.run()
        return self.outcome

    def _seconds(self, step: str, partition: int) -> float:
        """Seconds of an attempt that is not lost and does not fail."""
        options = self.options
        if step == STAGE:
            return options.stage_seconds * self.sizes[partition] + options.bookkeeping
        return options.roll_up_seconds * self.sizes[partition] + options.publish_seconds + options.bookkeeping

    def _daemon(self) -> Process:
        """Start backfills, one after the other."""
        while len(self.done[ROLL_UP]) < self.options.partitions:
            self.outcome.backfills += 1
            asked: dict[str, set[int]] = {step: set(done) for step, done in self.done.items()}
            while True:
                for step in STEPS:
                    ready = [
                        number for number in range(self.options.partitions) if number not in asked[step] and self._is_ready(step, number)
                    ]
                    asked[step].update(ready)
                    for partitions in _ranges(ready, self.options.partitions_per_run):
                        self._ask(step, partitions)
                yield self.options.tick
                # This backfill does not make partitions that wait for a failed one.
                if not self.open and not any(
                    number not in asked[ROLL_UP] and self._is_ready(ROLL_UP, number) for number in range(self.options.partitions)
                ):
                    break

    def _is_ready(self, step: str, number: int) -> bool:
        # There is nothing before the first partition, so nothing is missing there.
        return step == STAGE or self.done[STAGE].issuperset(range(max(number - self.options.reach, 0), number + 1))

    def _ask(self, step: str, partitions: list[int], after: float = 0.0, attempt: int = 0) -> None:
        self.open += 1
        self.clock.start(self._run(step, partitions, next(self.numbers), self.clock.now + after, attempt), after)

    def _run(self, step: str, partitions: list[int], number: int, asked: float, attempt: int) -> Process:
        options, clock = self.options, self.clock
        yield Place(self.places, first=options.rollups_first and step == ROLL_UP)
        began = clock.now
        self.outcome.waits.append(began - asked)
        yield options.run_start
        lost = False
        for partition in partitions:
            if partition in self.done[step]:
                yield options.bookkeeping
                continue
            yield Place(self.pools[step])
            lost = yield from self._attempt(step, partition, number)
            self.pools[step].leave()
            if lost:
                break
        self.places.leave()
        self.outcome.running.append((began, clock.now))
        self.open -= 1
        if lost and attempt < options.retries:
            self._ask(step, partitions, options.noticed, attempt + 1)

    def _attempt(self, step: str, partition: int, number: int) -> Generator[float | Place, None, bool]:
        """Make an attempt; returns whether the run was lost."""
        options, clock = self.options, self.clock
        began, published = clock.now, None
        drawn, when = self.chance.random(), self.chance.random()
        outcome = LOST if drawn < options.losing else FAILED if drawn < options.losing + options.failing else DONE
        seconds = self._seconds(step, partition) - (options.publish_seconds if step == ROLL_UP else 0.0)
        # Failures and losses happen before there is anything to publish.
        yield seconds * (when if outcome != DONE else 1.0)
        if outcome == DONE and step == ROLL_UP:
            yield Place(self.lock)
            locked = clock.now
            yield options.publish_seconds
            self.lock.leave()
            published = (locked, clock.now)
        if outcome == DONE:
            self.done[step].add(partition)
        self.outcome.attempts.append(Attempt(step, partition, number, began, clock.now, outcome, published))
        return outcome == LOST


def _ranges(numbers: list[int], most: int) -> Iterator[list[int]]:
    """Ranges of consecutive numbers, of at most ``most`` each."""
    pending: list[int] = []
    for number in numbers:
        if pending and (number != pending[-1] + 1 or len(pending) == most):
            yield pending
            pending = []
        pending.append(number)
    if pending:
        yield pending


def hours(seconds: float) -> str:
    """Seconds in readable form."""
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.0f} min"


def row(name: str, outcome: Outcome) -> list[str]:
    """A row for :func:`shown`."""
    waits = sorted(outcome.waits)
    slots = outcome.options.runs
    return [
        name,
        hours(outcome.makespan),
        f"{outcome.makespan / (outcome.work / slots):.2f}",
        hours(outcome.first_published),
        f"{100 * outcome.busy:.0f} %",
        str(len(waits)),
        hours(waits[len(waits) // 2]),
        f"{100 * outcome.wasted:.1f} %",
        str(outcome.backfills),
    ]


def shown(rows: list[list[str]]) -> str:
    """A table of outcomes."""
    head = ["", "all published", "times work / places", "first published", "places used", "runs", "median wait", "lost work", "backfills"]
    return table(head, rows)


def variants(basis: Options) -> Iterator[tuple[str, Options]]:
    """What is worth comparing, one change at a time."""
    yield "as deployed, nothing fails", basis
    yield "one run at a time", replace(basis, runs=1)
    yield "four runs at once, pools of four", replace(basis, runs=4, staging=4, publishing=4)
    yield "eight runs at once, pools of eight", replace(basis, runs=8, staging=8, publishing=8)
    yield "one partition a run", replace(basis, partitions_per_run=1)
    yield "all batches alike", replace(basis, skew=0.0, swing=0.0)
    yield "very uneven batches (deviation 1)", replace(basis, skew=1.0)
    yield "1 % of the partitions fail", replace(basis, failing=0.01)
    yield "1 % lose their run", replace(basis, losing=0.01)
    yield "5 % fail and 5 % lose their run", replace(basis, failing=0.05, losing=0.05)
    yield "publishing takes 30 s", replace(basis, publish_seconds=30.0)
    yield "runs that roll up go first", replace(basis, rollups_first=True)


_DEFAULTS = Options()


def main(
    partitions: Annotated[int, typer.Option(help="Hourly batches.")] = _DEFAULTS.partitions,
    stage_seconds: Annotated[float, typer.Option(help="To stage an average batch.")] = _DEFAULTS.stage_seconds,
    roll_up_seconds: Annotated[float, typer.Option(help="To roll it up.")] = _DEFAULTS.roll_up_seconds,
    publish_seconds: Annotated[float, typer.Option(help="To publish it, under the table's lock.")] = _DEFAULTS.publish_seconds,
    partitions_per_run: Annotated[int, typer.Option(help="At the most.")] = _DEFAULTS.partitions_per_run,
    reach: Annotated[int, typer.Option(help="How many earlier batches must be staged before one is rolled up.")] = _DEFAULTS.reach,
    runs: Annotated[int, typer.Option(help="At once.")] = _DEFAULTS.runs,
    staging: Annotated[int, typer.Option(help="Places in the pool.")] = _DEFAULTS.staging,
    publishing: Annotated[int, typer.Option(help="Places in the pool.")] = _DEFAULTS.publishing,
    swing: Annotated[float, typer.Option(help="How much more the busiest hour of a day has.")] = _DEFAULTS.swing,
    skew: Annotated[float, typer.Option(help="Deviation of the logarithm of a batch's size.")] = _DEFAULTS.skew,
    failing: Annotated[float, typer.Option(help="Share of attempts at a partition that fail.")] = _DEFAULTS.failing,
    losing: Annotated[float, typer.Option(help="Share of attempts in which the run's process dies.")] = _DEFAULTS.losing,
    rollups_first: Annotated[bool, typer.Option("--rollups-first", help="Whether these runs pass others in the queue.")] = False,
    seed: Annotated[int, typer.Option(help="Of sizes and failures.")] = _DEFAULTS.seed,
    compare: Annotated[bool, typer.Option("--compare", help="Change one thing at a time, too.")] = False,
) -> None:
    """A month's backfill through the queue."""
    options = Options(
        partitions=partitions, stage_seconds=stage_seconds, roll_up_seconds=roll_up_seconds, publish_seconds=publish_seconds,
        partitions_per_run=partitions_per_run, reach=reach, runs=runs, staging=staging, publishing=publishing, swing=swing, skew=skew,
        failing=failing, losing=losing, rollups_first=rollups_first, seed=seed,
    )  # fmt: skip
    chosen = variants(options) if compare else [("as asked", options)]
    Console(highlight=False, soft_wrap=True).print(shown([row(name, simulate(each)) for name, each in chosen]), markup=False)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
