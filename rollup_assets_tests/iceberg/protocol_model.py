"""A small world around the publish protocol, and the search through everything that can happen in it.

The decisions are the product's own (``rollup_assets.iceberg.protocol``); what they are about is not: a table is a list of snapshots, a
snapshot a few files, a file a few rows, each standing for the whole result of a batch in one generation of its stage. Two publishers,
stagers, foreign writers and expiry take their steps in every order, and each may be crossed by every fault, up to a number of faults.

The catalog: a pointer with compare-and-swap. A commit whose base is no longer the head is validated as PyIceberg does under
`serializable`, and applied on top of the head if nothing that it is about has changed.

``BrokenError`` says what must not be, in the words of the invariant; :func:`search` finds the shortest way to it.
"""

from __future__ import annotations

import gc
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from rollup_assets.iceberg import protocol
from rollup_assets.iceberg.protocol import Action, Outcome, State

Item = TypeVar("Item")

FOREIGN = 0
"""Rows that somebody else has written; our generations begin at 1."""

BATCHES = (0, 1)

_MOST_STEPS = 50


class Attempt(NamedTuple):
    """A round of a run of a publisher."""

    publisher: int
    run: int
    round: int


class File(NamedTuple):
    """``rows``: (batch, generation) of each result in it."""

    name: str
    rows: tuple[tuple[int, int], ...]

    def holds(self, batch: int) -> bool:
        return any(of == batch for of, _ in self.rows)


class Snapshot(NamedTuple):
    """``attempt``: whose it is; ``late``: after its publisher had looked for it."""

    files: tuple[File, ...]
    attempt: Attempt | None = None
    late: bool = False

    def results(self, batch: int) -> list[int]:
        """What a reader finds of a batch."""
        return [generation for file in self.files for of, generation in file.rows if of == batch]


class Plan(NamedTuple):
    removed: tuple[File, ...]
    added: tuple[File, ...]
    written: tuple[File, ...]


class InFlight(NamedTuple):
    """A commit that the catalog has not answered, and may still apply."""

    publisher: int
    base: int
    snapshot: Snapshot


class Publisher(NamedTuple):
    """``steps.publish.publish``, before, in and after the protocol."""

    batch: int
    run: int = 1
    at: str = "lock"
    """``lock``, ``stage``, ``table``, ``protocol``, ``receipt``, ``look`` or ``end``."""
    round: int = 0
    """How often newer files were found after a commit, and published in their turn."""
    state: State | None = None
    generation: int = 0
    receipt: int = 0
    base: int = 0
    plan: Plan | None = None
    current: bool = False
    """Whether its generation was the staged one when that was checked last."""
    in_doubt: bool = False
    """Whether a commit of its was sent that it could not look for yet."""
    result: str = ""
    """``published``, ``unchanged``, ``refused``, ``gave up``, ``timed out``, ``halted`` or ``killed``."""

    def attempt(self, number: int) -> Attempt:
        """What its next snapshot is known by."""
        return Attempt(number, self.run, self.round)

    @property
    def looks_again(self) -> bool:
        """Whether it has made a snapshot and will yet look whether newer files are staged, or publishes those."""
        return self.at != "end" and (self.round > 0 or (self.state is not None and self.state.changed))


class World(NamedTuple):
    history: tuple[Snapshot, ...]
    kept: int
    """The first snapshot that has not expired."""
    stage: tuple[int, ...]
    receipts: tuple[int, ...]
    acknowledged: tuple[int, ...]
    publishers: tuple[Publisher, ...]
    lock: int | None = None
    in_flight: tuple[InFlight, ...] = ()
    deleted: frozenset[str] = frozenset()
    faults: int = 0
    """How many there were."""
    empty: frozenset[int] = frozenset()
    """The generations that have no rows."""

    @property
    def head(self) -> Snapshot:
        return self.history[-1]

    def results_of(self, generation: int) -> list[int]:
        """What a reader is to find of a batch in that generation."""
        return [] if generation in self.empty else [generation]

    def live(self, batch: int) -> list[int]:
        """The generations of a batch in the table, without foreign rows. No rows are of the newest generation that has none."""
        ours = [generation for generation in self.head.results(batch) if generation != FOREIGN]
        return ours or sorted(generation for generation in self.empty if generation <= self.stage[batch])[-1:]


class BrokenError(AssertionError):
    """An invariant does not hold; ``step``: what happened, where that was a step and not a state."""

    def __init__(self, broken: str, step: str = "") -> None:
        super().__init__(broken)
        self.step = step


@dataclass(frozen=True)
class Rules:
    """What the search goes through, and the protocol under test; each deviation from the product's is a mutation."""

    faults: int = 2
    has_lock: bool = True
    restarts: int = 1
    most_tries: int = 3
    observe: Callable[[State, Outcome], State] = protocol.observe
    looks_up: bool = True
    validates: bool = True
    checks_digest: bool = True
    compares_rows: bool = True
    looks_again: bool = True
    reruns: bool = True
    """Whether everything is run again from each state."""
    takes_turns: bool = False
    """Whether it is asserted that no publisher has to plan twice, as long as nothing is wrong."""


@dataclass(frozen=True)
class Found:
    """What a search has seen: all of it, or the way to the first thing that must not be."""

    states: int
    steps: int
    results: Counter[str]
    broken: str | None = None
    trace: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.broken is None:
            ends = ", ".join(f"{count} {result}" for result, count in sorted(self.results.items()))
            return f"{self.states} states, {self.steps} steps; publishers ended as {ends}"
        return "\n".join((f"{self.broken}, after", *(f"{number:3}. {step}" for number, step in enumerate(self.trace, 1))))


def start(publishers: Iterable[int], *, compacted: bool = True, empty: Iterable[int] = ()) -> World:
    """Both batches are published in generation 1, in one file if ``compacted``, and staged anew; each publisher's batch.

    ``empty``: generations without rows.
    """
    empty = frozenset(empty)
    one = [File(f"staged {batch}.1", ((batch, 1),)) for batch in BATCHES]
    files = (File("compacted", tuple((batch, 1) for batch in BATCHES)),) if compacted else tuple(one)
    files = () if 1 in empty else files
    return World(
        history=(Snapshot(files),),
        kept=0,
        stage=(2, 2),
        receipts=(1, 1),
        acknowledged=(1, 1),
        publishers=tuple(Publisher(batch) for batch in publishers),
        empty=empty,
    )


def search(world: World, rules: Rules) -> Found:
    """Go through all states that can follow, nearest first.

    Broken is: an invariant in a state or step, a state that nothing can follow though a publisher has not ended, a way back to a state
    that was passed (so that somebody may go round for ever), and a state from which a rerun of everything does not mend everything.
    """
    # Nothing is garbage before the end, and looking for it takes as long as the search.
    gc.disable()
    try:
        return _search(world, rules)
    finally:
        gc.enable()


def _search(world: World, rules: Rules) -> Found:
    numbers: dict[World, int] = {world: 0}
    before: list[tuple[int, str]] = [(0, "")]
    following: list[list[int]] = []
    waiting = deque([world])
    mended: set[object] = set()
    results: Counter[str] = Counter()

    def told(broken: str, last: int, *more: str) -> Found:
        return Found(len(numbers), sum(map(len, following)), results, broken, (*_way_to(last, before), *more))

    while waiting:
        state = waiting.popleft()
        number = len(following)
        following.append([])
        happened: tuple[str, ...] = ()
        try:
            check(state, rules)
            happened = ("everything is run again",)
            _check_rerun(state, rules, mended)
            for label, after in _steps(state, rules):
                # One look-up: the hash of a world, which is not kept, is most of its cost.
                place = numbers.setdefault(after, len(before))
                if place == len(before):
                    before.append((number, label))
                    waiting.append(after)
                following[number].append(place)
        except BrokenError as broken:
            return told(str(broken), number, *((broken.step,) if broken.step else happened))
        if all(publisher.at == "end" for publisher in state.publishers):
            results.update(publisher.result for publisher in state.publishers)
        elif not following[number]:
            return told("nobody can do anything, and not everybody has ended", number)
    if (round_and_round := _in_a_circle(following)) is not None:
        return told("what comes next has been before: it may go on for ever", round_and_round)
    return Found(len(numbers), sum(map(len, following)), results)


def _way_to(last: int, before: list[tuple[int, str]]) -> list[str]:
    way: list[str] = []
    while last:
        last, label = before[last]
        way.append(label)
    return way[::-1]


def _in_a_circle(following: list[list[int]]) -> int | None:
    """A state on a circle of steps, if there is one: take away what has no way in, again and again."""
    ways_in = Counter(after for afters in following for after in afters)
    free = [state for state in range(len(following)) if not ways_in[state]]
    gone = 0
    while free:
        gone += 1
        for after in following[free.pop()]:
            ways_in[after] -= 1
            if not ways_in[after]:
                free.append(after)
    return None if gone == len(following) else next(state for state, count in ways_in.items() if count)


# What must hold


def check(world: World, rules: Rules) -> None:
    """The invariants of a state.

    Raises:
        BrokenError: one of them does not hold.
    """
    head = world.head
    for file in head.files:
        _require(file.name not in world.deleted, f"the table names a file that was deleted: {file.name}")
    for batch in BATCHES:
        ours = world.live(batch)
        _require(len(ours) == 1, f"batch {batch} has {len(ours)} live results: {ours}")
        # An empty publish makes no snapshot that an older commit could meet: who has made that one looks again, if it is there to look.
        if world.empty and (head.late or any(one.batch == batch and one.looks_again for one in world.publishers)):
            continue
        _require(
            ours[0] >= world.acknowledged[batch], f"batch {batch} is of generation {ours[0]}, {world.acknowledged[batch]} was acknowledged"
        )
        _require(
            ours[0] >= world.receipts[batch],
            f"the receipt of batch {batch} is of generation {world.receipts[batch]}, the table of {ours[0]}",
        )
    made = [snapshot.attempt for snapshot in world.history[world.kept :] if snapshot.attempt is not None]
    for attempt in made if len(made) > 1 else ():
        _require(made.count(attempt) == 1, f"publisher {attempt.publisher} made {made.count(attempt)} snapshots in one run")
    for number, publisher in enumerate(world.publishers):
        if publisher.result in ("refused", "gave up") and not publisher.in_doubt:
            in_time = [one for one in world.history[world.kept :] if one.attempt == publisher.attempt(number) and not one.late]
            _require(not in_time, f"publisher {number} says that nothing was published, and its snapshot is in the table")
        if rules.takes_turns and world.faults == 0 and publisher.state is not None:
            _require(publisher.state.tries == 0, f"publisher {number} has to plan again although nothing is wrong")
        if publisher.result == "gave up":
            others = sum(one.attempt is not None and one.attempt[:2] != (number, publisher.run) for one in world.history)
            _require(world.faults + others >= rules.most_tries, f"publisher {number} gave up after {world.faults + others} disturbances")


def _check_commit(world: World, number: int, new: Snapshot) -> None:
    """The invariants of a step that makes a publisher's snapshot the head."""
    publisher, old = world.publishers[number], world.head
    batch = publisher.batch
    step = f"publisher {number} commits generation {publisher.generation}"
    for other in BATCHES:
        same = Counter(old.results(other)) == Counter(new.results(other))
        _require(other == batch or same, f"publishing batch {batch} changed batch {other}", step)
    newest, now = (max(snapshot.results(batch), default=None) for snapshot in (old, new))
    _require(newest is None or now is None or now >= newest, f"batch {batch} goes back from generation {newest} to {now}", step)
    if new.attempt == publisher.attempt(number):
        # (What a run had checked that was killed, and whose commit arrives after its successor began, is no longer known.)
        _require(
            publisher.current, f"generation {publisher.generation} of batch {batch} is published, and was not current when checked", step
        )


def _check_rerun(world: World, rules: Rules, mended: set[object]) -> None:
    """Whoever is at work is killed; publishing every batch once more mends everything, and once again changes nothing."""
    arriving = [commit.snapshot for commit in world.in_flight if commit.base == len(world.history) - 1]
    known = (world.head.files, world.deleted, world.stage, world.receipts, tuple(arriving))
    if known in mended or not rules.reruns:
        return
    mended.add(known)
    for first in (None, *arriving):
        history = world.history if first is None else (*world.history, first._replace(late=True))
        left = world._replace(history=history, lock=None, in_flight=world.in_flight if first is None else ())
        after = _alone(left, rules)
        _require(after.receipts == after.stage, f"after a rerun the receipts are of {after.receipts}, the stage of {after.stage}")
        for batch in BATCHES:
            _require(
                after.head.results(batch) == after.results_of(after.stage[batch]),
                f"after a rerun batch {batch} is {after.head.results(batch)}, staged is generation {after.stage[batch]}",
            )
        again = _alone(after, rules)
        _require(again.history == after.history, "a rerun of everything made a snapshot, and so did the next")
        for commit in after.in_flight:
            if after.stage[world.publishers[commit.publisher].batch] in after.empty:
                # Nothing was committed that it could meet.
                continue
            _require(commit.base != len(after.history) - 1, f"a commit of publisher {commit.publisher} can still arrive after a rerun")


def _alone(world: World, rules: Rules) -> World:
    """Publish each batch, one after the other, with nobody else and nothing wrong."""
    for batch in BATCHES:
        world = world._replace(publishers=(Publisher(batch, run=100 * len(world.history) + batch),), lock=None)
        steps = 0
        while world.publishers[0].at != "end":
            world = next(after for label, after in _steps_of(world, 0, rules) if not label.endswith("!"))
            steps += 1
            _require(steps < _MOST_STEPS, f"a rerun of batch {batch} does not end")
        _require(world.publishers[0].result in ("published", "unchanged"), f"a rerun of batch {batch} ended: {world.publishers[0].result}")
    return world


def _require(holds: bool, broken: str, step: str = "") -> None:
    if not holds:
        raise BrokenError(broken, step)


# What can happen. Labels of faults end with "!".


def _steps(world: World, rules: Rules) -> Iterator[tuple[str, World]]:
    for number in range(len(world.publishers)):
        for label, after in _steps_of(world, number, rules):
            if not label.endswith("!"):
                yield label, after
            elif world.faults < rules.faults:
                yield label, after._replace(faults=world.faults + 1)
    for commit in world.in_flight:
        if commit.base == len(world.history) - 1:
            yield f"the unanswered commit of publisher {commit.publisher} arrives", _arrived(world, commit)
    if world.faults < rules.faults and any(publisher.at != "end" for publisher in world.publishers):
        for label, after in _events(world):
            yield label, after._replace(faults=world.faults + 1)


def _events(world: World) -> Iterator[tuple[str, World]]:
    """What others do at any time."""
    for batch in BATCHES:
        stage = tuple(generation + (of == batch) for of, generation in enumerate(world.stage))
        yield f"batch {batch} is staged anew, as generation {stage[batch]}", world._replace(stage=stage)
        appended = File(f"foreign {len(world.history)}", ((batch, FOREIGN),))
        yield f"somebody appends rows to batch {batch}", _with_head(world, Snapshot(_sorted((*world.head.files, appended))))
    rows = tuple(sorted(row for file in world.head.files for row in file.rows))
    if len(world.head.files) > 1:
        yield "somebody compacts the table", _with_head(world, Snapshot((File(f"compacted {len(world.history)}", rows),)))
    if world.kept < len(world.history) - 1:
        yield "all snapshots but the current one expire", world._replace(kept=len(world.history) - 1)
    if world.lock is not None:
        yield f"publisher {world.lock} loses the lock", world._replace(lock=None)


def _steps_of(world: World, number: int, rules: Rules) -> Iterator[tuple[str, World]]:
    publisher = world.publishers[number]
    if publisher.at == "end":
        if publisher.result == "killed" and publisher.run <= rules.restarts:
            yield f"publisher {number} is started again", _with(world, number, Publisher(publisher.batch, publisher.run + 1))
        return
    killed = _with(world, number, _ended(publisher, "killed"))
    yield f"publisher {number} is killed!", killed._replace(lock=None if world.lock == number else world.lock)
    if publisher.at == "lock":
        yield from _take_lock(world, number, rules, publisher._replace(at="stage"))
    elif publisher.at == "stage":
        generation = world.stage[publisher.batch]
        yield (
            f"publisher {number} reads generation {generation} of batch {publisher.batch}, and its receipt",
            _with(world, number, publisher._replace(at="table", generation=generation, receipt=world.receipts[publisher.batch])),
        )
    elif publisher.at == "table":
        yield f"publisher {number} loads the table", _looked_at_receipt(world, number, rules)
    elif publisher.at == "receipt":
        yield f"publisher {number} writes its receipt", _with_receipt(world, number)
    elif publisher.at == "look":
        yield f"publisher {number} looks whether its files are still the newest", _looked_again(world, number, rules)
    else:
        assert publisher.state is not None
        yield from _act(world, number, publisher.state.action, rules)


def _take_lock(world: World, number: int, rules: Rules, then: Publisher) -> Iterator[tuple[str, World]]:
    if not rules.has_lock:
        yield f"publisher {number} goes on without a lock", _with(world, number, then)
    elif world.lock in (None, number):
        yield f"publisher {number} holds the lock", _with(world, number, then)._replace(lock=number)
    else:
        yield f"publisher {number} has waited too long for the lock!", _end(world, number, "timed out")


def _looked_at_receipt(world: World, number: int, rules: Rules) -> World:
    publisher = world.publishers[number]
    expected = world.results_of(publisher.generation)
    if protocol.trusts_receipt(
        receipt_holds=publisher.receipt == publisher.generation,
        rows_agree=lambda: not rules.compares_rows or len(world.head.results(publisher.batch)) == len(expected),
        force=False,
    ):
        found = world.head.results(publisher.batch)
        told = f"publisher {number} says that generation {publisher.generation} is in the table, which holds {found}"
        # Somebody may have published newer ones since the stage was read.
        _require(found == expected or world.live(publisher.batch)[0] > publisher.generation, told, f"publisher {number} trusts its receipt")
        return _end(world, number, "unchanged")
    state = protocol.begin(rules.most_tries, table_is_known=True)
    return _with(world, number, publisher._replace(at="protocol", state=state, base=len(world.history) - 1))


def _with_receipt(world: World, number: int) -> World:
    publisher = world.publishers[number]
    assert publisher.state is not None
    changed = publisher.state.changed
    if not protocol.keeps_receipt(receipt_holds=publisher.receipt == publisher.generation, changed=changed):
        world = world._replace(receipts=_replaced(world.receipts, publisher.batch, publisher.generation))
    if changed:
        return _with(world, number, publisher._replace(at="look"))
    return _end(_acknowledged(world, publisher), number, "unchanged")


def _looked_again(world: World, number: int, rules: Rules) -> World:
    publisher = world.publishers[number]
    is_newest = world.stage[publisher.batch] == publisher.generation
    if protocol.publishes_again(changed=True, is_newest=lambda: is_newest or not rules.looks_again):
        again = Publisher(publisher.batch, publisher.run, "stage", publisher.round + 1, current=publisher.current)
        return _with(world, number, again)
    return _end(_acknowledged(world, publisher), number, "published")


def _acknowledged(world: World, publisher: Publisher) -> World:
    best = max(world.acknowledged[publisher.batch], publisher.generation)
    return world._replace(acknowledged=_replaced(world.acknowledged, publisher.batch, best))


def _act(world: World, number: int, action: Action, rules: Rules) -> Iterator[tuple[str, World]]:
    """One action of the protocol, in every way it can go."""
    publisher = world.publishers[number]
    name = f"publisher {number}"

    def observed(outcome: Outcome, after: World = world, **changes: object) -> World:
        assert publisher.state is not None
        state = rules.observe(publisher.state, outcome)
        now = publisher._replace(state=state, **changes)
        if state.action is Action.END:
            return _with(after, number, now._replace(at="receipt"))
        if state.action is Action.GIVE_UP:
            return _end(_with(after, number, now), number, "gave up")
        return _with(after, number, now)

    if action is Action.HOLD_LOCK:
        for label, after in _take_lock(world, number, rules, publisher):
            yield label, after if after.publishers[number].at == "end" else observed(Outcome.HELD, after)
        yield f"{name} cannot ask for the lock!", observed(Outcome.FAILED)
    elif action is Action.ASK_LOCK:
        held = not rules.has_lock or world.lock == number
        yield f"{name} finds the lock {'held' if held else 'lost'}", observed(Outcome.HELD if held else Outcome.LOST)
    elif action in (Action.LOAD, Action.LOOK):
        ours = any(one.attempt == publisher.attempt(number) for one in world.history[world.kept :]) and rules.looks_up
        base = len(world.history) - 1
        yield (
            f"{name} {'finds' if ours else 'does not find'} its commit",
            observed(Outcome.FOUND if ours else Outcome.ABSENT, base=base, in_doubt=False),
        )
        yield f"{name} cannot load the table!", observed(Outcome.FAILED)
    elif action is Action.PLAN:
        current = world.stage[publisher.batch] == publisher.generation
        if rules.checks_digest and not current:
            yield f"{name} finds that its files are no longer current", _end(world, number, "refused")
        else:
            plan = _planned(world, number)
            outcome = Outcome.NEEDED if plan.removed or plan.added else Outcome.EMPTY
            yield f"{name} plans: {outcome.value}", observed(outcome, plan=plan, current=current)
    elif action is Action.DISCARD:
        assert publisher.plan is not None
        gone = frozenset(file.name for file in publisher.plan.written)
        yield f"{name} deletes the files written for its plan", observed(Outcome.DISCARDED, world._replace(deleted=world.deleted | gone))
    elif action is Action.COMMIT:
        yield from _commit(world, number, rules, observed)
    elif action is Action.VERIFY:
        yield f"{name} verifies", _verified(world, number, observed)
    else:
        raise AssertionError(action)


def _commit(world: World, number: int, rules: Rules, observed: Callable[..., World]) -> Iterator[tuple[str, World]]:
    publisher, name = world.publishers[number], f"publisher {number}"
    plan = publisher.plan
    assert plan is not None
    if not _applies(world, publisher, rules):
        yield f"{name} commits: refused as a conflict", observed(Outcome.FAILED, in_doubt=True)
        return
    left = Counter(world.head.files) - Counter(plan.removed)
    new = Snapshot(_sorted((*left.elements(), *plan.added)), publisher.attempt(number))
    _check_commit(world, number, new)
    applied = _with_head(world, new)
    yield f"{name} commits generation {publisher.generation}", observed(Outcome.ACKNOWLEDGED, applied)
    yield (
        f"{name} commits generation {publisher.generation}: applied, and no answer, or a wrong one!",
        observed(Outcome.FAILED, applied, in_doubt=True),
    )
    yield f"{name} commits: it never arrives!", observed(Outcome.FAILED, in_doubt=True)
    sent = world._replace(in_flight=(*world.in_flight, InFlight(number, len(world.history) - 1, new._replace(late=True))))
    yield f"{name} commits generation {publisher.generation}: no answer yet!", observed(Outcome.FAILED, sent, in_doubt=True)


def _applies(world: World, publisher: Publisher, rules: Rules) -> bool:
    """Whether the catalog takes the commit: nothing that it is about has changed since its base."""
    assert publisher.plan is not None
    if publisher.base == len(world.history) - 1 or not rules.validates:
        return True
    if publisher.base < world.kept:
        return False
    for number in range(publisher.base + 1, len(world.history)):
        old, new = Counter(world.history[number - 1].files), Counter(world.history[number].files)
        changed = [*(new - old), *(old - new)]
        if any(file.holds(publisher.batch) or file in publisher.plan.removed for file in changed):
            return False
    return True


def _planned(world: World, number: int) -> Plan:
    """``iceberg.publish._plan``: the batch's own file is to be there, and nothing else of its range."""
    publisher = world.publishers[number]
    assert publisher.state is not None
    batch = publisher.batch
    wanted = File(f"staged {batch}.{publisher.generation}", ((batch, publisher.generation),))
    removed, written = [], []
    for file in world.history[publisher.base].files:
        if file.holds(batch) and file != wanted:
            removed.append(file)
            rest = tuple(row for row in file.rows if row[0] != batch)
            if rest:
                written.append(File(f"rest {number}.{publisher.run}.{publisher.round}.{publisher.state.tries}.{len(written)}", rest))
    is_there = wanted in world.history[publisher.base].files or publisher.generation in world.empty
    added = [*written, *([] if is_there else [wanted])]
    return Plan(tuple(removed), tuple(added), tuple(written))


def _verified(world: World, number: int, observed: Callable[..., World]) -> World:
    publisher = world.publishers[number]
    assert publisher.state is not None
    own = [one for one in world.history[world.kept :] if one.attempt == publisher.attempt(number)]
    snapshot = world.history[publisher.base] if not publisher.state.changed else own[0] if own else world.head
    results = snapshot.results(publisher.batch)
    if len(results) == len(world.results_of(publisher.generation)):
        return observed(Outcome.VERIFIED)
    excused = publisher.state.changed and not own
    _require(excused, f"publisher {number} halts: its snapshot holds {results} of its batch", f"publisher {number} verifies")
    return _end(world, number, "halted")


def _arrived(world: World, commit: InFlight) -> World:
    _check_commit(world, commit.publisher, commit.snapshot)
    return _with_head(world, commit.snapshot)


def _with_head(world: World, snapshot: Snapshot) -> World:
    """Compare-and-swap: what is still on its way with another head in mind will be refused."""
    return world._replace(history=(*world.history, snapshot), in_flight=())


def _with(world: World, number: int, publisher: Publisher) -> World:
    return world._replace(publishers=_replaced(world.publishers, number, publisher))


def _end(world: World, number: int, result: str) -> World:
    ended = _with(world, number, _ended(world.publishers[number], result))
    return ended._replace(lock=None if world.lock == number else world.lock)


def _ended(publisher: Publisher, result: str) -> Publisher:
    """Only what the invariants ask for, so that states that differ in nothing else are one."""
    in_doubt = publisher.in_doubt and result in ("refused", "gave up")
    return Publisher(
        publisher.batch,
        publisher.run,
        "end",
        publisher.round,
        generation=publisher.generation,
        current=publisher.current,
        in_doubt=in_doubt,
        result=result,
    )


def _replaced(values: tuple[Item, ...], number: int, value: Item) -> tuple[Item, ...]:
    return (*values[:number], value, *values[number + 1 :])


def _sorted(files: Iterable[File]) -> tuple[File, ...]:
    return tuple(sorted(files))
