"""The only way to change the table's rows: brings it to a goal, whatever other writers do meanwhile and whatever the catalog answers.

The only module that calls ``overwrite()``: the method is public, but the class of what it returns is not. What the table is to hold, and
how it gets there, is planned by goals (:class:`rollup_assets.iceberg.plans.Goal`): a publish, a rollback, a migration. What follows what is
decided in :mod:`rollup_assets.iceberg.protocol`.
"""

from __future__ import annotations

import contextlib
import logging
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rollup_assets.errors import CatalogError, LockLostError, PublishError, PublishHaltError, RollupError, StaleInputError
from rollup_assets.failpoints import failpoint
from rollup_assets.iceberg import protocol
from rollup_assets.iceberg.locks import TableLock
from rollup_assets.iceberg.plans import Goal, Plan
from rollup_assets.iceberg.protocol import Action, Outcome, State
from rollup_assets.iceberg.reading import RangeCounts
from rollup_assets.iceberg.snapshots import ATTEMPT_PROPERTY, said, snapshot_of_attempt
from rollup_assets.iceberg.transactions import begin
from rollup_assets.storage.storage_errors import storage_error
from rollup_assets.threads import thread_pool

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.table import Table

    from rollup_assets.settings import Settings

MOST_TRIES = 8
_LONGEST_WAIT = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replacement:
    """What one call of :func:`bring_about` did.

    ``snapshot_id`` is None if the table should hold no row and never needed a commit. ``changed`` is False if the table already held
    what it should. ``table`` is the table as it was verified. ``timings`` in seconds: plan, commit, verify.
    """

    snapshot_id: int | None
    attempt: str
    changed: bool
    counts: RangeCounts
    timings: dict[str, float]
    table: Table


@dataclass(slots=True)
class _Publication:
    """The state of one call across its tries."""

    catalog: Catalog
    settings: Settings
    goal: Goal
    properties: dict[str, str]
    attempt: str
    lock: TableLock
    still_current: Callable[[], None]
    table: Table | None
    """As it was loaded last; None if it is known to have changed."""
    plan: Plan | None = None
    snapshot_id: int | None = None
    """The snapshot of this publish, once it is known to be in the table."""
    problem: Exception | None = None
    """Why the last try failed."""
    result: Replacement | None = None
    timings: dict[str, float] = field(default_factory=lambda: {"plan": 0.0, "commit": 0.0, "verify": 0.0})

    def loaded(self) -> Table:
        """The table; loaded anew unless it is known."""
        if self.table is None:
            self.table = self.catalog.load_table(self.settings.table)
        return self.table

    def look_in(self, table: Table) -> Outcome:
        """Whether the table has a snapshot of this publish."""
        found = snapshot_of_attempt(table, self.attempt)
        self.snapshot_id = None if found is None else found.snapshot_id
        return Outcome.ABSENT if found is None else Outcome.FOUND

    def failed(self, problem: Exception) -> Outcome:
        self.problem = problem
        return Outcome.FAILED

    @property
    def reason(self) -> str:
        return f"{type(self.problem).__name__}: {self.problem}"

    @contextlib.contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] += time.perf_counter() - started


def bring_about(
    catalog: Catalog,
    settings: Settings,
    goal: Goal,
    properties: dict[str, str],
    still_current: Callable[[], None] = lambda: None,
    lock: TableLock | None = None,
    table: Table | None = None,
) -> Replacement:
    """Make the table what the goal says, in at most one snapshot, carrying ``properties`` and an attempt id of its own.

    ``still_current`` is called before each commit, in parallel with planning, and raises if the goal is no longer the one to reach.
    Unless it is certain that ``lock`` is held, nothing is committed: the lock is taken again and the table loaded anew. ``table``: the
    table as it was just loaded under the lock; it is loaded here unless given.

    Raises:
        PublishError: the commit failed for good, or its outcome stayed unknown; running it again is safe.
        LockTimeoutError: the lock was lost, and somebody else took and kept it.
        PublishHaltError: the snapshot does not hold the rows that it should.
        StaleInputError: somebody else has published something newer since, and the snapshot has expired.
        RollupError: whatever ``still_current`` raises, or the goal while it checks the table and plans.
    """
    publication = _Publication(catalog, settings, goal, properties, uuid.uuid4().hex, lock or TableLock(), still_current, table)
    state = protocol.begin(MOST_TRIES, table_is_known=table is not None)
    while not state.has_ended:
        following = protocol.observe(state, _HANDLERS[state.action](publication, state))
        if following.tries > state.tries:
            _log.warning("%s: commit %d of at most %d did not land (%s)", goal.name, following.tries, MOST_TRIES, publication.reason)
            if not following.has_ended:
                time.sleep(random.uniform(0, min(_LONGEST_WAIT, 0.1 * 2**following.tries)))
        state = following
    if publication.result is None:
        raise PublishError(
            f"{goal.name} could not be published to {settings.table}: {MOST_TRIES} commits failed, the last with {publication.reason}; "
            f"there is no sign of them in the table. Run `{goal.command}` again"
        ) from publication.problem
    return publication.result


# Lock and table


def _hold_lock(publication: _Publication, _state: State) -> Outcome:
    try:
        publication.lock.ensure_held()
    except CatalogError as error:
        return publication.failed(error)
    return Outcome.HELD


def _ask_lock(publication: _Publication, _state: State) -> Outcome:
    failpoint("publish.planned")
    if publication.lock.is_held():
        return Outcome.HELD
    publication.problem = LockLostError(f"the lock of {publication.settings.table} was lost before the commit")
    return Outcome.LOST


def _load(publication: _Publication, _state: State) -> Outcome:
    publication.table = None
    with publication.timed("plan"):
        try:
            table = publication.loaded()
        except Exception as error:
            # The catalog may be unreachable for a moment. Whether an earlier commit landed is then unknown; the next try asks again.
            return publication.failed(error)
        publication.goal.check(table)
        return publication.look_in(table)


# Plan


def _make_plan(publication: _Publication, _state: State) -> Outcome:
    with publication.timed("plan"):
        publication.plan = _current_plan(publication)
    return Outcome.EMPTY if publication.plan.is_empty else Outcome.NEEDED


def _discard_plan(publication: _Publication, _state: State) -> Outcome:
    assert publication.plan is not None
    publication.plan.discard(for_good=False)
    return Outcome.DISCARDED


def _current_plan(publication: _Publication) -> Plan:
    """The plan, if its files are still the ones to publish; that is checked while the plan is made."""
    with thread_pool(1, "still current") as beside:
        current = beside.submit(publication.still_current)
        try:
            plan = publication.goal.plan(publication.loaded())
        except Exception:
            # The plan may have failed because its files were replaced and are gone: then report that.
            current.result()
            raise
    try:
        current.result()
    except BaseException:
        plan.discard()
        raise
    return plan


# Commit


def _commit(publication: _Publication, _state: State) -> Outcome:
    table, plan = publication.loaded(), publication.plan
    assert plan is not None
    publication.table = None
    with publication.timed("commit"):
        try:
            properties = publication.properties | {ATTEMPT_PROPERTY: publication.attempt}
            publication.snapshot_id = _apply(table, publication.goal.predicate, plan, properties)
        except Exception as error:
            return publication.failed(error)
    return Outcome.ACKNOWLEDGED


def _look(publication: _Publication, _state: State) -> Outcome:
    """Only the table knows what became of a commit that was not acknowledged."""
    name = publication.goal.name
    with publication.timed("commit"):
        try:
            found = publication.look_in(publication.loaded())
        except Exception:
            _log.warning("%s: cannot ask the catalog what became of a commit", name, exc_info=True)
            return Outcome.FAILED
    if found is Outcome.FOUND:
        _log.warning("%s: the commit is in the table although it was reported as failed: %s", name, publication.problem)
    return found


def _apply(table: Table, predicate: BooleanExpression, plan: Plan, properties: dict[str, str]) -> int:
    transaction = begin(table)
    if plan.properties:
        transaction.set_properties(plan.properties)
    with transaction.update_snapshot(snapshot_properties=properties).overwrite() as overwrite:
        for data_file in plan.removed:
            overwrite.delete_data_file(data_file)
        for data_file in plan.added:
            overwrite.append_data_file(data_file)
    # Without a predicate, a retry after another writer's commit would see no conflict in any of its files. Only retries use it; if it
    # were set earlier, PyIceberg would read every manifest of the day twice over and find nothing to delete.
    overwrite.delete_by_predicate(predicate)
    failpoint("publish.commit")
    transaction.commit_transaction()
    failpoint("publish.committed")
    return int(overwrite.snapshot_id)


# Verify


def _verify(publication: _Publication, state: State) -> Outcome:
    table = publication.loaded()
    snapshot_id = publication.snapshot_id if state.changed else publication.goal.snapshot_in_place(table)
    publication.result = _verified(publication, table, snapshot_id, changed=state.changed)
    return Outcome.VERIFIED


def _verified(publication: _Publication, table: Table, snapshot_id: int | None, *, changed: bool) -> Replacement:
    """Compare the snapshot's own metadata with what it should hold.

    Raises:
        PublishHaltError: rows per resolution differ, or a file of the snapshot is missing or damaged.
        StorageError: the store cannot be reached, or refuses us.
        StaleInputError: it has expired, and another run has published something newer.
    """
    started = time.perf_counter()
    expected = publication.goal.expected
    # The publish's own snapshot; the current one (None) if it made none, or if its own has already expired through a busy publisher.
    at = snapshot_id if changed and snapshot_id is not None and table.snapshot_by_id(snapshot_id) is not None else None
    try:
        counts = publication.goal.counts(table, at)
    except OSError as error:
        if (store_error := storage_error(error)) is not None:
            # The commit stands: the next run finds it, and looks again.
            raise store_error from error
        raise PublishHaltError(
            _halt(publication, snapshot_id, f"cannot be read ({error}): roll the table back to the one before")
        ) from error
    differing = {
        resolution: (counts.rows.get(resolution, 0), expected.get(resolution, 0))
        for resolution in sorted(expected.keys() | counts.rows.keys())
        if counts.rows.get(resolution, 0) != expected.get(resolution, 0)
    }
    if differing and changed and at is None:
        _require_not_replaced(publication, snapshot_id)
    if differing:
        found = "; ".join(
            f"resolution {resolution} ms: {rows} rows instead of {wanted}" for resolution, (rows, wanted) in differing.items()
        )
        raise PublishHaltError(_halt(publication, snapshot_id, f"does not hold the rows it should ({found})"))
    publication.timings["verify"] += time.perf_counter() - started
    timings = {name: round(seconds, 6) for name, seconds in publication.timings.items()}
    snapshot = None if snapshot_id is None else table.snapshot_by_id(snapshot_id)
    # The attempt is unknown if the snapshot is another program's or has expired; this call's own takes its place.
    attempt = (None if snapshot is None else said(snapshot, ATTEMPT_PROPERTY)) or publication.attempt
    return Replacement(snapshot_id, attempt, changed, counts, timings, table)


def _require_not_replaced(publication: _Publication, snapshot_id: int | None) -> None:
    """Raise StaleInputError if another publish came after ours and our snapshot has expired: the table's rows are then not ours."""
    try:
        publication.still_current()
    except RollupError as error:
        raise StaleInputError(
            f"{publication.goal.name} was published as snapshot {snapshot_id}, but before it could be checked, another run published "
            f"something newer and the snapshot expired. Run `{publication.goal.command}` again to make sure that all is well"
        ) from error


def _halt(publication: _Publication, snapshot_id: int | None, problem: str) -> str:
    return (
        f"{publication.goal.name}: snapshot {snapshot_id} of {publication.settings.table} {problem}; "
        f"look at what else writes to the table, then repair it with `{publication.goal.repair}`"
    )


_HANDLERS: dict[Action, Callable[[_Publication, State], Outcome]] = {
    Action.HOLD_LOCK: _hold_lock,
    Action.LOAD: _load,
    Action.PLAN: _make_plan,
    Action.ASK_LOCK: _ask_lock,
    Action.DISCARD: _discard_plan,
    Action.COMMIT: _commit,
    Action.LOOK: _look,
    Action.VERIFY: _verify,
}
