"""Replace a batch's range of labels by staged files, in one snapshot; and the commit that other changes of the table share.

The only module that uses ``overwrite()``, which is public, while the class it returns is not. Which files are to be published, and
whether they may be, is decided in :mod:`rollup_assets.steps.publish`; here the table is brought to them, whatever other writers do
meanwhile and whatever becomes of the catalog's answers. What follows what is decided in :mod:`rollup_assets.iceberg.protocol`.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import random
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rollup_assets.batches import Batch
from rollup_assets.errors import (
    CatalogError,
    LockLostError,
    PublishError,
    PublishHaltError,
    RollupError,
    StageCorruptError,
    StaleInputError,
)
from rollup_assets.failpoints import failpoint
from rollup_assets.iceberg import protocol
from rollup_assets.iceberg.locks import TableLock
from rollup_assets.iceberg.plans import Copies, Goal, Plan
from rollup_assets.iceberg.protocol import Action, Outcome, State
from rollup_assets.iceberg.reading import RangeCounts, as_live_file, live_files, range_counts, range_predicate
from rollup_assets.iceberg.staged_files import bring, rewritten_files
from rollup_assets.iceberg.table import check_table
from rollup_assets.iceberg.transactions import begin
from rollup_assets.storage.manifests import Manifest, StagedFile
from rollup_assets.storage.parquet import unpack_footer
from rollup_assets.threads import thread_pool

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

    from rollup_assets.settings import Settings

ATTEMPT_PROPERTY = "rollup.attempt"
PARTITION_PROPERTY = "rollup.batch"
DIGEST_PROPERTY = "rollup.digest"
STAGED_PROPERTY = "rollup.staged-attempt"
"""Which files the snapshot has published: the same content may be staged in others later."""
RUN_PROPERTY = "rollup.run-id"
CODE_VERSION_PROPERTY = "rollup.code-version"

MOST_TRIES = 8
_FOOTER_THREADS = 4
_LONGEST_WAIT = 5.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Replacement:
    """What one call of :func:`replace_range` did.

    ``snapshot_id`` is None where the range holds no row and never needed a commit. ``changed`` is False if the table already held
    exactly these files. ``table`` is the table as it was verified. ``timings`` in seconds: plan, commit, verify.
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
    """As it was loaded last; None where it is known to have changed."""
    plan: Plan | None = None
    snapshot_id: int | None = None
    """The snapshot of this publish, once it is known to be in the table."""
    problem: Exception | None = None
    """Why the last try came to nothing."""
    result: Replacement | None = None
    timings: dict[str, float] = field(default_factory=lambda: {"plan": 0.0, "commit": 0.0, "verify": 0.0})

    def loaded(self) -> Table:
        """The table; loaded anew unless it is known."""
        if self.table is None:
            self.table = self.catalog.load_table(self.settings.table)
        return self.table

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


@dataclass(slots=True)
class _StagedRange:
    """The goal of a publish: the rows of a batch's labels are those of its staged files."""

    settings: Settings
    batch: Batch
    staged: Sequence[StagedFile]
    digest: str
    were_in_table: bool = False
    """The table's snapshots may call files of these deleted."""
    data_files: dict[str, DataFile] = field(default_factory=dict)
    """Metadata of staged files, read from their footers once."""
    copies: Copies = field(default_factory=Copies)

    @property
    def name(self) -> str:
        return f"batch {self.batch.key}"

    @property
    def command(self) -> str:
        return f"rollups backfill {self.batch.key} {self.batch.key}"

    @property
    def repair(self) -> str:
        return f"{self.command} --force"

    @property
    def predicate(self) -> BooleanExpression:
        return range_predicate(self.batch)

    @property
    def expected(self) -> Counter[int]:
        rows: Counter[int] = Counter()
        for file in self.staged:
            rows[file.resolution or 0] += file.rows
        return rows

    def check(self, table: Table) -> None:
        check_table(table, self.settings)

    def plan(self, table: Table) -> Plan:
        return _plan(self, table)

    def snapshot_in_place(self, table: Table) -> int | None:
        """The last snapshot of ours about the batch, if it published this content; else the current one, which has it all the same.

        An older publish of this content does not count: the rows were replaced since and came back by a rollback. Undoing the rollback
        removes them again, though the older snapshot stays.
        """
        from rollup_assets.iceberg.snapshots import newest_change, said

        if not self.staged:
            return None
        found = newest_change(table, self.batch)
        if found is None or said(found, DIGEST_PROPERTY) != self.digest:
            found = table.current_snapshot()
        return None if found is None else found.snapshot_id

    def counts(self, table: Table, snapshot_id: int | None) -> RangeCounts:
        return range_counts(table, self.batch, snapshot_id=snapshot_id)


def replace_range(
    catalog: Catalog,
    settings: Settings,
    batch: Batch,
    staged: Sequence[StagedFile],
    properties: dict[str, str],
    still_current: Callable[[], None] = lambda: None,
    lock: TableLock | None = None,
    table: Table | None = None,
    *,
    were_in_table: bool = False,
) -> Replacement:
    """Make the table's rows with labels in ``[batch.start, batch.end)`` exactly those of the staged files.

    One snapshot, carrying ``properties`` and an attempt id of its own; none if the table already is in that state. Rows outside the
    range stay, also those in files that reach beyond it. ``still_current`` is called before each commit, beside the plan, and raises if
    the staged files are no longer the ones to publish. No commit is made while it is not certain that ``lock`` is held: it is taken again,
    and the table looked at anew. ``table``: the table as it was found just now, under the lock; it is loaded unless given.
    ``were_in_table``: the staged files may have been in the table before; those that are not there any more come back as copies.

    Raises:
        StageCorruptError: a staged file is not what its manifest says.
        TableMismatchError: the table was changed meanwhile and contradicts the settings.
        PublishError: the commit failed for good, or its outcome stayed unknown; running it again is safe.
        LockTimeoutError: the lock was lost, and somebody else took and kept it.
        PublishHaltError: the snapshot does not hold the rows that were staged.
        StaleInputError: somebody else has published something newer since, and the snapshot has expired.
    """
    goal = _StagedRange(settings, batch, staged, properties.get(DIGEST_PROPERTY, ""), were_in_table)
    return bring_about(catalog, settings, goal, properties, still_current, lock, table)


def bring_about(
    catalog: Catalog,
    settings: Settings,
    goal: Goal,
    properties: dict[str, str],
    still_current: Callable[[], None] = lambda: None,
    lock: TableLock | None = None,
    table: Table | None = None,
) -> Replacement:
    """The one way to a commit: :func:`replace_range` for any goal. What the goal raises as it plans is raised here too."""
    publication = _Publication(catalog, settings, goal, properties, uuid.uuid4().hex, lock or TableLock(), still_current, table)
    state = protocol.begin(MOST_TRIES, table_is_known=table is not None)
    while not state.has_ended:
        following = protocol.observe(state, _DOERS[state.action](publication, state))
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
            # The catalog may be away for a moment; whether an earlier commit landed is then unknown, and asked again in the next try.
            return publication.failed(error)
        publication.goal.check(table)
        publication.snapshot_id = find_snapshot(table, ATTEMPT_PROPERTY, publication.attempt)
    return Outcome.ABSENT if publication.snapshot_id is None else Outcome.FOUND


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
    """The plan, once it is certain that it is of files that are still to be published; both are found out side by side."""
    with thread_pool(1, "still current") as beside:
        current = beside.submit(publication.still_current)
        try:
            plan = publication.goal.plan(publication.loaded())
        except Exception:
            # Files that were replaced may be gone: that is then the reason.
            current.result()
            raise
    try:
        current.result()
    except BaseException:
        plan.discard()
        raise
    return plan


def _plan(goal: _StagedRange, table: Table) -> Plan:
    plan = Plan(rewritten_files(goal.settings, goal.batch), copies=goal.copies.known(table))
    try:
        within = []
        for live in live_files(table, goal.batch):
            if live.within(goal.batch):
                within.append(live)
            else:
                plan.split(table, live, goal.predicate, goal.name)
        were_in_table = [goal.batch] if goal.were_in_table or goal.copies.may_have_landed else []
        bring(
            plan,
            table,
            goal.settings,
            {goal.batch: goal.staged},
            within,
            lambda _, missing: _staged_data_files(goal, table, missing),
            were_in_table,
        )
    except BaseException:
        plan.discard()
        raise
    return plan


def staged_data_files(settings: Settings, table: Table, batch: Batch, files: Sequence[StagedFile]) -> list[DataFile]:
    """Iceberg's metadata of files that are staged for a batch.

    Raises:
        StageCorruptError: a file is not what its manifest says.
    """
    return _staged_data_files(_StagedRange(settings, batch, files, ""), table, files)


def _staged_data_files(goal: _StagedRange, table: Table, files: Sequence[StagedFile]) -> list[DataFile]:
    """Iceberg's metadata of staged files, from their footers: those that the manifest kept, else those in the files.

    Raises:
        StageCorruptError: a file is missing, cannot be read, or has rows, labels or resolutions other than its manifest says.
    """
    from rollup_assets.iceberg.data_files import data_file, data_files_of_footers

    unknown = [file for file in files if file.path not in goal.data_files]
    kept = [file for file in unknown if file.footer is not None]
    unread = [file for file in unknown if file.footer is None]
    with thread_pool(max(1, min(_FOOTER_THREADS, len(unread))), "footers") as pool:
        read = pool.map(lambda file: data_file(table, file.path), unread)
        try:
            footers = ((file.path, file.size, unpack_footer(file.footer or "")) for file in kept)
            for file, found in zip([*kept, *unread], itertools.chain(data_files_of_footers(table, footers), read), strict=True):
                _check_staged(goal, file, found)
                goal.data_files[file.path] = found
        except (OSError, ValueError, TypeError) as error:
            raise StageCorruptError(f"a staged file of {goal.name} cannot be published ({error}); run `{goal.repair}`") from error
    return [goal.data_files[file.path] for file in files]


def _check_staged(goal: _StagedRange, file: StagedFile, data_file: DataFile) -> None:
    from pyiceberg.table import FileScanTask

    found = as_live_file(FileScanTask(data_file))
    batch = goal.batch
    problem = None
    if found.rows != file.rows:
        problem = f"has {found.rows} rows, its manifest says {file.rows}"
    elif found.resolution != file.resolution:
        problem = f"has resolution {found.resolution}, its manifest says {file.resolution}"
    elif not found.within(batch):
        problem = f"has labels outside [{batch.start_time:%Y-%m-%d %H:%M}, {batch.end_time:%Y-%m-%d %H:%M})"
    if problem:
        raise StageCorruptError(f"staged file {file.path} of batch {batch.key} {problem}; run `{goal.repair}`")


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
            publication.snapshot_id = find_snapshot(publication.loaded(), ATTEMPT_PROPERTY, publication.attempt)
        except Exception:
            _log.warning("%s: the catalog cannot be asked what became of a commit", name, exc_info=True)
            return Outcome.FAILED
    if publication.snapshot_id is None:
        return Outcome.ABSENT
    _log.warning("%s: the commit is in the table although it was reported as failed: %s", name, publication.problem)
    return Outcome.FOUND


def _apply(table: Table, predicate: BooleanExpression, plan: Plan, properties: dict[str, str]) -> int:
    transaction = begin(table)
    if plan.properties:
        transaction.set_properties(plan.properties)
    with transaction.update_snapshot(snapshot_properties=properties).overwrite() as overwrite:
        for data_file in plan.removed:
            overwrite.delete_data_file(data_file)
        for data_file in plan.added:
            overwrite.append_data_file(data_file)
    # Without a predicate, a retry after somebody else's commit would take none of its files for a conflict. It is asked for by retries
    # alone; given earlier, it would have PyIceberg read every manifest of the day twice over, to find nothing in them.
    overwrite.delete_by_predicate(predicate)
    failpoint("publish.commit")
    transaction.commit_transaction()
    failpoint("publish.committed")
    return int(overwrite.snapshot_id)


def find_snapshot(table: Table, name: str, value: str) -> int | None:
    """The newest snapshot of the current branch's history whose summary has this property; None if there is none."""
    snapshot = table.current_snapshot()
    while snapshot is not None:
        if snapshot.summary is not None and snapshot.summary.get(name) == value:
            return snapshot.snapshot_id
        snapshot = None if snapshot.parent_snapshot_id is None else table.snapshot_by_id(snapshot.parent_snapshot_id)
    return None


# Verify


def _verify(publication: _Publication, state: State) -> Outcome:
    table = publication.loaded()
    snapshot_id = publication.snapshot_id if state.changed else publication.goal.snapshot_in_place(table)
    publication.result = _verified(publication, table, snapshot_id, changed=state.changed)
    return Outcome.VERIFIED


def _verified(publication: _Publication, table: Table, snapshot_id: int | None, *, changed: bool) -> Replacement:
    """Compare the snapshot's own metadata with what it was to hold.

    Raises:
        PublishHaltError: rows per resolution differ, or the snapshot cannot be read.
        StaleInputError: it has expired, and another run has published something newer.
    """
    started = time.perf_counter()
    expected = publication.goal.expected
    # The snapshot itself, unless it is older than what was found in place, or has already expired under a hurried neighbour.
    at = snapshot_id if changed and snapshot_id is not None and table.snapshot_by_id(snapshot_id) is not None else None
    try:
        counts = publication.goal.counts(table, at)
    except OSError as error:
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
    return Replacement(snapshot_id, _attempt_of(table, snapshot_id) or publication.attempt, changed, counts, timings, table)


def _require_not_replaced(publication: _Publication, snapshot_id: int | None) -> None:
    """What the table has now is somebody else's where their publish came after ours, and our snapshot has expired since."""
    try:
        publication.still_current()
    except RollupError as error:
        raise StaleInputError(
            f"{publication.goal.name} was published as snapshot {snapshot_id}; before that could be looked at, another run published "
            f"something newer and the snapshot expired. Run `{publication.goal.command}` again to see that all is well"
        ) from error


def _attempt_of(table: Table, snapshot_id: int | None) -> str | None:
    """The attempt that made a snapshot, if it was one of ours and has not expired."""
    snapshot = None if snapshot_id is None else table.snapshot_by_id(snapshot_id)
    return None if snapshot is None or snapshot.summary is None else snapshot.summary.get(ATTEMPT_PROPERTY)


def _halt(publication: _Publication, snapshot_id: int | None, problem: str) -> str:
    return (
        f"{publication.goal.name}: snapshot {snapshot_id} of {publication.settings.table} {problem}; "
        f"look at what else writes to the table, then repair it with `{publication.goal.repair}`"
    )


_DOERS: dict[Action, Callable[[_Publication, State], Outcome]] = {
    Action.HOLD_LOCK: _hold_lock,
    Action.LOAD: _load,
    Action.PLAN: _make_plan,
    Action.ASK_LOCK: _ask_lock,
    Action.DISCARD: _discard_plan,
    Action.COMMIT: _commit,
    Action.LOOK: _look,
    Action.VERIFY: _verify,
}


def summary_properties(batch: Batch, rollups: Manifest, run_id: str, code_version: str) -> dict[str, Any]:
    """What a snapshot's summary says about the batch it publishes."""
    properties = {
        PARTITION_PROPERTY: batch.key,
        DIGEST_PROPERTY: rollups.digest,
        STAGED_PROPERTY: rollups.attempt,
        CODE_VERSION_PROPERTY: code_version,
    }
    return properties | ({RUN_PROPERTY: run_id} if run_id else {})
