"""``rollups rollback``: undoes a bad publish with a new snapshot, and records that its content is not wanted.

Decides which snapshot to go back to and what follows for the stage; how the table gets there is :mod:`rollup_assets.iceberg.rollback`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rollup_assets.batches import Batch
from rollup_assets.code_version import CODE_VERSION
from rollup_assets.errors import RollbackError, UnknownSnapshotError
from rollup_assets.history.records import Origin, PublishRecord, attempt_before, last_record, origin_of, write_record
from rollup_assets.history.rejections import BEGUN, REJECTED, ROLLED_BACK_TO, digest_of_unknown, is_known, rejected_digests
from rollup_assets.iceberg.snapshots import (
    ATTEMPT_PROPERTY,
    CODE_VERSION_PROPERTY,
    DIGEST_PROPERTY,
    MIGRATED_PROPERTY,
    NO_SNAPSHOT,
    PARTITION_PROPERTY,
    ROLLED_BACK_PROPERTY,
    ROLLED_BACK_TO_PROPERTY,
    WHOLE_TABLE,
    ancestors,
    is_first,
    is_migration,
    known_snapshots,
    newest_publish,
    said,
    snapshot_meant,
    time_of,
)
from rollup_assets.pipeline import Pipeline, for_each
from rollup_assets.scope import following
from rollup_assets.steps.parameters import OF_TABLE, changed_settings, rollup_parameters
from rollup_assets.storage.manifests import ROLLUP_TABLE, ROLLUPS, Manifest
from rollup_assets.storage.storage_errors import explains_storage_errors
from rollup_assets.units import format_duration

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

    from rollup_assets.history.diff import SnapshotDifference
    from rollup_assets.iceberg.locks import TableLock
    from rollup_assets.iceberg.reading import RangeCounts


@dataclass(frozen=True, slots=True)
class RolledBackPartition:
    """One partition; rows by resolution, such as ``5m``."""

    partition: str
    rows_before: dict[str, int]
    rows_after: dict[str, int]


@dataclass(frozen=True, slots=True)
class RolledBack:
    """What a rollback did, or would do."""

    target: int | None
    """The snapshot whose rows came back; None: the empty table before the first one."""
    snapshot_id: int | None
    """The new snapshot; None if there is none."""
    changed: bool
    """False if the table held these rows already."""
    partitions: tuple[RolledBackPartition, ...]
    also_published: tuple[str, ...] = ()
    """Partitions that were published after the undone publish, and took over windows of it."""
    difference: SnapshotDifference | None = None
    """For a dry run: the difference from the current table to what it would be."""


@dataclass(slots=True)
class _Choice:
    """The rows to bring back."""

    batch: Batch | None
    target: Snapshot | None
    command: str
    also_published: tuple[str, ...] = ()

    @property
    def target_id(self) -> int | None:
        return None if self.target is None else self.target.snapshot_id


@dataclass(slots=True)
class _Affected:
    """A partition whose rows are brought back, and what the stage should record about it."""

    batch: Batch
    receipt: Manifest | None
    rollups: Manifest | None
    origin: Origin
    rejected: list[str]
    rows_before: Mapping[int, int]
    restored: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.restored = digest_of(self.origin)


@explains_storage_errors
def rollback(pipeline: Pipeline, what: str, *, to: str | None = None, dry_run: bool = False, first_differences: int = 20) -> RolledBack:
    """Give a partition, or the whole table, the rows of an earlier snapshot, in a new one.

    Args:
        pipeline: settings and stage.
        what: a partition, which gets the rows it had before its last publish; or the id of a snapshot that the whole table goes back to.
        to: for a partition: the snapshot (id or time) whose rows it gets instead.
        dry_run: only say what would change.
        first_differences: how many windows a dry run returns with their values.

    Raises:
        UnknownPartitionError, UnknownSnapshotError: there is no such partition or snapshot, or it has expired.
        RollbackError: there is nothing to go back to, files are gone, or the table was changed meanwhile.
        TableMismatchError, CatalogError, LockTimeoutError, PublishError, PublishHaltError: as for a publish.
    """
    from rollup_assets.history.diff import compare
    from rollup_assets.iceberg.catalog import open_catalog
    from rollup_assets.iceberg.locks import table_lock

    settings = pipeline.settings
    if dry_run:
        with open_catalog(settings) as catalog:
            table = _existing_table(pipeline, catalog)
            choice = _choose(pipeline, table, what, to)
            _require_same_settings(pipeline, table, choice)
            affected = _affected(pipeline, table, choice)
            found = compare(settings, table, table.current_snapshot(), choice.target, choice.batch, first_differences=first_differences)
            after = {one.batch: _target_counts(table, choice, one.batch) for one in affected}
            return RolledBack(
                choice.target_id, None, bool(found.partitions), _shown(affected, after), choice.also_published, difference=found
            )
    with table_lock(settings) as lock, open_catalog(settings, writing=True) as catalog:
        table = _existing_table(pipeline, catalog)
        choice = _choose(pipeline, table, what, to)
        _require_same_settings(pipeline, table, choice)
        return _carry_out(pipeline, catalog, lock, table, choice)


def _existing_table(pipeline: Pipeline, catalog: Catalog) -> Table:
    from rollup_assets.iceberg.table import check_table, load_table

    table = load_table(catalog, pipeline.settings)
    if table is None:
        raise RollbackError(f"there is no table {pipeline.settings.table} yet, so there is nothing to roll back")
    check_table(table, pipeline.settings)
    return table


# ------------------------------------------------------------------------------------------------------------ what to go back to


def _choose(pipeline: Pipeline, table: Table, what: str, to: str | None) -> _Choice:
    command = f"rollups rollback {what}" + (f" --to {to}" if to else "")
    if what.isascii() and what.isdecimal():
        if to is not None:
            raise RollbackError(f"--to is for rolling back one partition, but {what} is a snapshot; leave one of them out")
        return _Choice(None, snapshot_meant(table, what), command)
    batch = pipeline.batch(what)
    if to is not None:
        return _Choice(batch, snapshot_meant(table, to), command)
    return _before_last_publish(pipeline, table, batch, command)


def _before_last_publish(pipeline: Pipeline, table: Table, batch: Batch, command: str) -> _Choice:
    publish = newest_publish(table, batch)
    if publish is None:
        raise UnknownSnapshotError(
            f"none of the kept snapshots published {batch}, so there is nothing to undo; choose what to go back to with "
            f"`{command} --to SNAPSHOT`; {known_snapshots(table)}"
        )
    target = None if publish.parent_snapshot_id is None else table.snapshot_by_id(publish.parent_snapshot_id)
    if target is None and not is_first(publish):
        raise RollbackError(
            f"the snapshot before {publish.snapshot_id}, which had the rows of {batch} before its last publish, has expired "
            f"(ROLLUP_KEEP_SNAPSHOTS={pipeline.settings.keep_snapshots}); correct the raw data, and run `rollups backfill {batch} {batch}`"
        )
    later = []
    for follower in following(pipeline.calendar, batch, pipeline.settings.reach):
        found = newest_publish(table, follower)
        if found is not None and (found.sequence_number or 0) > (publish.sequence_number or 0):
            later.append(follower.key)
    return _Choice(batch, target, command, tuple(later))


def _require_same_settings(pipeline: Pipeline, table: Table, choice: _Choice) -> None:
    """Refuse to go back past a migration: earlier rows have other shards, resolutions or batches than the table."""
    mend = "correct the raw data and publish it, or restore the old settings and run `rollups migrate`"
    # A snapshot that another engine has set aside is fine if it comes after the same migration.
    migration = next((snapshot.snapshot_id for snapshot in ancestors(table, choice.target) if is_migration(snapshot)), None)
    for snapshot in ancestors(table, table.current_snapshot()):
        if snapshot.snapshot_id in (choice.target_id, migration):
            return
        if is_migration(snapshot):
            raise RollbackError(
                f"the table was migrated to {said(snapshot, MIGRATED_PROPERTY)} by snapshot {snapshot.snapshot_id}, and older snapshots "
                f"were made with other settings; {mend}"
            )
    if choice.target is None:
        return
    # The target was kept by a tag or set aside by another engine, so the snapshot of a later migration may have expired.
    record = last_record(pipeline.stage, table, choice.target)
    if record is None:
        raise RollbackError(
            f"snapshot {choice.target_id} is not a known ancestor of the current one, and the stage has no record of the settings that "
            "it was published with: the table may have been migrated since. Nothing was rolled back; correct the raw data and publish it"
        )
    now = rollup_parameters(pipeline.settings)
    changed = changed_settings({name: now[name] for name in OF_TABLE}, {name: record.parameters.get(name) for name in OF_TABLE})
    if changed:
        raise RollbackError(
            f"the table was migrated after snapshot {choice.target_id}, which was made with other settings: {', '.join(changed)}; {mend}"
        )


def _affected(pipeline: Pipeline, table: Table, choice: _Choice, done: Snapshot | None = None) -> list[_Affected]:
    """Partitions whose rows are brought back, or were by the snapshot ``done``."""
    from rollup_assets.iceberg.reading import range_counts
    from rollup_assets.steps.publish import check_history

    def look(batch: Batch) -> tuple[Manifest | None, Manifest | None, Origin]:
        receipt, rollups = pipeline.stage.read(ROLLUP_TABLE, batch), pipeline.stage.read(ROLLUPS, batch)
        if receipt is not None:
            check_history(receipt, table, batch)
        return receipt, rollups, origin_of(pipeline.stage, table, choice.target, batch)

    found = []
    batches = [choice.batch] if choice.batch else _batches_between(pipeline, table, _before(table, done), choice.target)
    for batch, (receipt, rollups, origin) in zip(batches, for_each(pipeline, look, batches), strict=True):
        publish = newest_publish(table, batch)
        unwanted = {*rejected_digests(receipt)}
        unwanted |= {receipt.digest} if receipt is not None else set()
        unwanted |= {digest} if publish is not None and (digest := said(publish, DIGEST_PROPERTY)) else set()
        # When a rollback is run again, the receipt may have a stand-in for a digest: rejected, it would look like an unfinished rollback.
        rejected = sorted(digest for digest in unwanted - {digest_of(origin)} if is_known(digest))
        found.append(_Affected(batch, receipt, rollups, origin, rejected, range_counts(table, batch).rows))
    return found


def digest_of(origin: Origin) -> str | None:
    """The digest of the rollups that the rows come from, if it is known."""
    if origin.record is not None:
        return origin.record.digest
    return None if origin.snapshot is None else said(origin.snapshot, DIGEST_PROPERTY)


def _before(table: Table, done: Snapshot | None) -> Snapshot | None:
    """The current snapshot, or the one before the rollback ``done``: partitions that it emptied have no files now to be found by."""
    before = None if done is None or done.parent_snapshot_id is None else table.snapshot_by_id(done.parent_snapshot_id)
    return before or table.current_snapshot()


def _batches_between(pipeline: Pipeline, table: Table, before: Snapshot | None, target: Snapshot | None) -> list[Batch]:
    """The batches whose rows may differ between the two snapshots, in time order."""
    from rollup_assets.iceberg.reading import changed_files

    calendar = pipeline.calendar
    found: set[Batch] = set()
    for files in changed_files(table, before, target):
        for file in files:
            if file.first is None or file.last is None:
                found.update(pipeline.stage.batches(ROLLUP_TABLE, calendar))
            else:
                found.update(calendar.between(calendar.containing(file.first // 1_000), calendar.containing(file.last // 1_000)))
    return sorted(found)


def _target_counts(table: Table, choice: _Choice, batch: Batch) -> Mapping[int, int]:
    from rollup_assets.iceberg.reading import range_counts

    return {} if choice.target is None else range_counts(table, batch, snapshot_id=choice.target.snapshot_id).rows


# ------------------------------------------------------------------------------------------------------------------ going back


def _carry_out(pipeline: Pipeline, catalog: Catalog, lock: TableLock, table: Table, choice: _Choice) -> RolledBack:
    from rollup_assets.iceberg.commit import bring_about
    from rollup_assets.iceberg.reading import range_counts
    from rollup_assets.iceberg.rollback import EarlierRows, seen_now

    made = _done_before(table, choice)
    affected = _affected(pipeline, table, choice, made)
    snapshot_id = None
    if made is None:
        for_each(pipeline, lambda one: _reject(pipeline, one, table), affected)
        properties = {
            ROLLED_BACK_PROPERTY: choice.batch.key if choice.batch else WHOLE_TABLE,
            ROLLED_BACK_TO_PROPERTY: NO_SNAPSHOT if choice.target_id is None else str(choice.target_id),
            CODE_VERSION_PROPERTY: CODE_VERSION,
        }
        goal = EarlierRows(pipeline.settings, choice.batch, choice.target, seen_now(table, choice.batch), choice.command)
        replacement = bring_about(catalog, pipeline.settings, goal, properties, lock=lock, table=table)
        table, snapshot_id = replacement.table, replacement.snapshot_id if replacement.changed else None
        made = None if snapshot_id is None else table.snapshot_by_id(snapshot_id)
    after = {one.batch: range_counts(table, one.batch) for one in affected}
    # Other batches have only rows of other writers.
    ours = [one for one in affected if one.receipt is not None or one.rollups is not None or one.rejected]
    for_each(pipeline, lambda one: _note(pipeline, one, table, choice, made, after[one.batch]), ours)
    rows = {batch: counts.rows for batch, counts in after.items()}
    return RolledBack(choice.target_id, snapshot_id, snapshot_id is not None, _shown(affected, rows), choice.also_published)


def _done_before(table: Table, choice: _Choice) -> Snapshot | None:
    """An earlier rollback that did the same, unless these rows have been, or may have been, changed since."""
    from rollup_assets.iceberg.maintenance import MAINTENANCE_PROPERTY

    scope = choice.batch.key if choice.batch else WHOLE_TABLE
    for snapshot in ancestors(table, table.current_snapshot()):
        if (said(snapshot, ROLLED_BACK_PROPERTY), said(snapshot, ROLLED_BACK_TO_PROPERTY)) == (scope, str(choice.target_id or NO_SNAPSHOT)):
            return snapshot
        about = said(snapshot, ROLLED_BACK_PROPERTY) or said(snapshot, PARTITION_PROPERTY)
        of_others = choice.batch is not None and about not in (None, scope, WHOLE_TABLE)
        if said(snapshot, MAINTENANCE_PROPERTY) is None and not of_others:
            return None
    return None


def _reject(pipeline: Pipeline, one: _Affected, table: Table) -> None:
    """Before the table is changed, note in the receipt which content is rejected, and that the rollback has begun."""
    from rollup_assets.iceberg.reading import range_counts

    receipt = one.receipt
    if receipt is None and one.rejected:
        snapshot = table.current_snapshot()
        counts = range_counts(table, one.batch)
        receipt = _receipt(pipeline, one, table, counts, None if snapshot is None else snapshot.snapshot_id, "", one.rejected[0])
    if receipt is not None and (one.rejected or rejected_digests(receipt)):
        counters = {**receipt.counters, REJECTED: one.rejected, BEGUN: True}
        pipeline.stage.write(receipt.model_copy(update={"counters": counters}), one.batch)


def _note(pipeline: Pipeline, one: _Affected, table: Table, choice: _Choice, made: Snapshot | None, counts: RangeCounts) -> None:
    """Write record and receipt of the table's current rows. ``made``: the rollback's snapshot; None if the table had these rows already."""
    known = one.origin.record
    # Without a snapshot of its own, use the attempt of the commit that the rows came from: the current snapshot may be about anything.
    attempt = "" if known is None else known.attempt
    if made is not None:
        attempt = said(made, ATTEMPT_PROPERTY) or ""
    if made is not None and attempt and (known is not None or one.origin.is_new):
        record = PublishRecord(
            partition=one.batch.key,
            attempt=attempt,
            snapshot_id=made.snapshot_id,
            sequence_number=made.sequence_number or 0,
            committed_at=time_of(made),
            digest=one.restored,
            code_version=CODE_VERSION if known is None else known.code_version,
            parameters={} if known is None else known.parameters,
            inputs={} if known is None else known.inputs,
            replaces=attempt_before(table, one.batch, attempt),
            rolled_back_to=choice.target_id,
            table_uuid=str(table.metadata.table_uuid),
        )
        write_record(pipeline.stage, one.batch, record)
    snapshot = made or table.current_snapshot()
    snapshot_id = None if snapshot is None else snapshot.snapshot_id
    receipt = _receipt(pipeline, one, table, counts, snapshot_id, attempt, one.restored or digest_of_unknown(choice.target_id))
    pipeline.stage.write(
        receipt.model_copy(update={"counters": {**receipt.counters, ROLLED_BACK_TO: choice.target_id}}),
        one.batch,
    )


def _receipt(
    pipeline: Pipeline, one: _Affected, table: Table, counts: RangeCounts, snapshot_id: int | None, attempt: str, digest: str
) -> Manifest:
    """A receipt that names the rollups that the table's current rows come from, if known, and the rejected ones."""
    from rollup_assets.steps.publish import new_receipt

    base = one.receipt or one.rollups
    # If the restored rows are the staged ones, there is nothing to publish.
    is_staged = one.rollups is not None and one.rollups.digest == digest
    return new_receipt(
        one.batch,
        table,
        snapshot_id,
        attempt,
        counts,
        digest=digest,
        staged_attempt=one.rollups.attempt if one.rollups is not None and is_staged else None,
        resolutions={*pipeline.settings.resolutions, *counts.rows},
        parameters=rollup_parameters(pipeline.settings) if base is None else base.parameters,
        code_version=CODE_VERSION if base is None else base.code_version,
        rejected=one.rejected,
    )


def _shown(affected: list[_Affected], after: Mapping[Batch, Mapping[int, int]]) -> tuple[RolledBackPartition, ...]:
    def text(rows: Mapping[int, int]) -> dict[str, int]:
        return {format_duration(resolution): rows[resolution] for resolution in sorted(rows) if rows[resolution]}

    return tuple(RolledBackPartition(one.batch.key, text(one.rows_before), text(after[one.batch])) for one in affected)
