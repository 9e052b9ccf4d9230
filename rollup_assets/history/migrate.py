"""``rollups migrate``: rebuilds the table with other shards, resolutions or batches, and changes it in one snapshot.

Every batch that has raw data is staged and rolled up with the new settings, into data files that are not part of the table; then one
commit takes all old files out, all new ones in, and changes the table's own settings. No reader sees a mix of both, and what is done
is not done again when a migration is interrupted and run again.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rollup_assets.batches import Batch, BatchCalendar
from rollup_assets.code_version import CODE_VERSION
from rollup_assets.engines.base import Progress
from rollup_assets.errors import MigrationError, NotStagedError, StageCorruptError, StaleInputError
from rollup_assets.history.records import Inputs, read_record, record_of_commit, write_record
from rollup_assets.history.rejections import ROLLED_BACK_TO, is_begun, rejected_digests
from rollup_assets.iceberg.acknowledged_snapshots import SEQUENCE_NUMBER
from rollup_assets.iceberg.snapshots import ATTEMPT_PROPERTY, CODE_VERSION_PROPERTY, MIGRATED_PROPERTY, ancestors, said
from rollup_assets.pipeline import Pipeline, for_each
from rollup_assets.scope import following
from rollup_assets.steps.parameters import OF_TABLE, rollup_parameters
from rollup_assets.steps.results import Waiting
from rollup_assets.storage.manifests import PARTIAL_POINTS, REPARTITIONED, ROLLUP_TABLE, ROLLUPS, InputFile, Manifest, Stage
from rollup_assets.storage.storage_errors import explains_storage_errors
from rollup_assets.units import format_duration, list_text, parse_duration

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

    from rollup_assets.iceberg.locks import TableLock

COMMAND = "rollups migrate --yes"
_NAMED = 10


@dataclass(frozen=True, slots=True)
class Migration:
    """What a migration does, would do, or did."""

    changes: dict[str, tuple[str, str]]
    """Setting → (what the table was made with, what the settings say). Empty: there is nothing to migrate."""
    partitions: tuple[str, ...]
    """Partitions that are staged and rolled up again, with the new batch length."""
    rows_before: int
    """Rows of the table."""
    dropped: tuple[str, ...]
    """Partitions with rows in the table whose raw data is gone, completely or in part: they lose rows."""
    uncertain: tuple[str, ...] = ()
    """Partitions with rows in the table that have no raw file in their own folder, and it is unknown whether they ever had one: their rows
    may have come late, in other partitions' folders."""
    rolled_back: tuple[str, ...] = ()
    """Partitions that prevent the migration: their rolled-back rows would be made anew."""
    begun: tuple[str, ...] = ()
    """Those of them whose rollback was killed and has to be run again."""
    not_ended: tuple[str, ...] = ()
    """Partitions (of the new length) with rows in the table whose batch has not ended: they lose their rows until they are published."""
    snapshot_id: int | None = None
    """The new snapshot; None if there is none (yet)."""
    rows_after: int | None = None


@explains_storage_errors
def migrate(
    pipeline: Pipeline,
    *,
    drop: bool = False,
    dry_run: bool = True,
    now: dt.datetime | None = None,
    progress: Progress | None = None,
    on_partition: Callable[[str], None] = lambda _key: None,
) -> Migration:
    """Bring an existing table to the shards, resolutions and batch length of the settings.

    Args:
        pipeline: with the new settings.
        drop: whether to give up rows that cannot be made anew because their raw data is gone or their batch has not ended.
        dry_run: only say what would be done.
        now: batches that have not ended at this time are left out; the clock unless given.
        progress: where the steps report how far they are.
        on_partition: told about each partition that is rolled up.

    Raises:
        MigrationError: there is no table, raw data of published partitions is gone, their batch has not ended, or one is rolled back;
            or raw data, the stage or the table was changed meanwhile.
        TableMismatchError: the type of values differs, or something that no migration changes.
        RollupError: a batch cannot be staged, rolled up or published; what was staged before stands.
    """
    from rollup_assets.iceberg.catalog import open_catalog
    from rollup_assets.iceberg.locks import table_lock
    from rollup_assets.iceberg.migration import changes_of

    settings = pipeline.settings
    with open_catalog(settings) as catalog:
        table = _existing_table(pipeline, catalog)
        changes = changes_of(table, settings)
        if not changes:
            if not dry_run:
                with table_lock(settings):
                    _finish(pipeline, _existing_table(pipeline, catalog))
            return Migration({}, (), _total_rows(table), ())
        judged = table.current_snapshot()
        raw = _raw_files(pipeline)
        last = pipeline.calendar.last_ended(now or dt.datetime.now(dt.UTC))
        batches = _batches(pipeline, pipeline.landing_zone.reading(raw), last)
        gone, uncertain = _without_raw(pipeline, table, raw)
        not_ended = _not_ended(pipeline, table, last)
        held = _rolled_back(pipeline, table)
        found = Migration(
            changes,
            tuple(batch.key for batch in batches),
            _total_rows(table),
            tuple(batch.key for batch in gone),
            uncertain=tuple(batch.key for batch in uncertain),
            rolled_back=tuple(receipt.partition for receipt in held),
            begun=tuple(receipt.partition for receipt in held if is_begun(receipt)),
            not_ended=tuple(batch.key for batch in not_ended),
        )
    if dry_run:
        return found
    if found.begun:
        raise MigrationError(
            f"a rollback of {list_text(found.begun, _NAMED)} of {settings.table} has begun and has not ended, and the migration would "
            "bring back what it undoes; nothing was changed. Run `rollups rollback` again with the old settings, or publish these "
            "partitions anyway with `rollups backfill FROM TO --force`"
        )
    if found.rolled_back:
        raise MigrationError(
            f"{list_text(found.rolled_back, _NAMED)} of {settings.table} were rolled back, and the migration would make them again from "
            "the same raw data; nothing was changed. Correct the raw data and publish them with the old settings first, or publish "
            "them with --force"
        )
    if (gone or uncertain or not_ended) and not drop:
        raise MigrationError(_would_go(pipeline, found, not_ended))
    for batch in batches:
        _remember_inputs(pipeline.stage, batch)
        _make(pipeline, batch, progress)
        if not drop:
            _require_raw_files(pipeline, batch, raw)
        on_partition(batch.key)
    with table_lock(settings) as lock, open_catalog(settings, writing=True) as catalog:
        return _carry_out(pipeline, catalog, lock, batches, found, None if judged is None else judged.snapshot_id)


def _existing_table(pipeline: Pipeline, catalog: Catalog) -> Table:
    from rollup_assets.iceberg.table import load_table

    table = load_table(catalog, pipeline.settings)
    if table is None:
        raise MigrationError(f"there is no table {pipeline.settings.table} yet; `rollups backfill` makes it with the current settings")
    return table


def _would_go(pipeline: Pipeline, found: Migration, not_ended: Sequence[Batch]) -> str:
    """Why nothing was migrated: the rows that cannot be made anew, or might not be, each with its reason; ``--drop`` would give them up."""
    settings = pipeline.settings
    rows, remedies = [], []
    last_resort = f"or run `{COMMAND} --drop` to drop all rows that cannot be made again"
    if found.dropped:
        rows.append(f"of {list_text(found.dropped, _NAMED)}, whose raw data is gone from {settings.raw}, at least in part")
        remedies.append("bring the raw data back, or publish these partitions with the old settings first if it was removed on purpose")
    if found.uncertain:
        named = list_text(found.uncertain, _NAMED)
        rows.append(f"of {named}, whose own folders in {settings.raw} have no file, and it is not known whether they ever had one")
        remedies.append("check whether these rows came late, in other folders, and bring the raw data back if not")
    if not_ended:
        end = f"{not_ended[-1].end_time:%Y-%m-%d %H:%M} UTC"
        named = f"{list_text(found.not_ended, _NAMED)} (ROLLUP_BATCH={format_duration(settings.batch)})"
        rows.append(f"of {named}, which cannot be made again before {end}, when the last of these batches ends")
        remedies.append(f"migrate after {end}")
        last_resort += "; rows of a batch that has not ended are then missing until a backfill publishes it after its end"
    mend = "; ".join([*remedies, last_resort])
    return f"{settings.table} has rows {', and '.join(rows)}; nothing was changed. {mend[0].upper()}{mend[1:]}"


def _total_rows(table: Table) -> int:
    from rollup_assets.iceberg.reading import range_counts

    return sum(range_counts(table, None).rows.values())


# ------------------------------------------------------------------------------------------------------------------------ plan


def _raw_files(pipeline: Pipeline) -> dict[Batch, set[str]]:
    """Paths of the raw files in each batch's own folder, if it has any; a folder is listed once, however many batches read it."""
    zone = pipeline.landing_zone
    folders = sorted({folder for batch in zone.batches() for folder in zone.folders(batch)})
    found = zip(folders, for_each(pipeline, zone.folder_files, folders), strict=True)
    return {folder: {file.path for file in files} for folder, files in found if files}


def _batches(pipeline: Pipeline, with_raw: Collection[Batch], last: Batch | None) -> list[Batch]:
    """The batches with raw data, those that take over windows of them, and whatever else is staged; none after the last that has ended.

    Batches whose raw data is gone are included if staged: staged with other settings, they would make their neighbours fail.
    """
    calendar = pipeline.calendar
    after = (later for batch in with_raw for later in following(calendar, batch, pipeline.settings.reach))
    found = {*with_raw, *after, *pipeline.stage.batches(PARTIAL_POINTS, calendar)}
    return sorted(batch for batch in found if last is not None and batch <= last)


def _without_raw(pipeline: Pipeline, table: Table, raw: Mapping[Batch, set[str]]) -> tuple[list[Batch], list[Batch]]:
    """Batches (of the new length) that contain points of the table's windows and whose raw files are not all there; in order.

    Second, those for which that is unknown: it is not recorded which files there were, as for batches of another length, and there is
    no file in the batch's own folder, but one in another folder that it reads.

    A window that ends exactly where a batch begins has its points in the previous batch, if there is one, or one point at that moment.
    """
    calendar = pipeline.calendar
    around = {
        (calendar.containing(label if label == calendar.start else label - 1), calendar.containing(label))
        for label in _finest_labels(table, calendar)
    }
    concerned = sorted({batch for both in around for batch in both})

    def has_all(batch: Batch) -> bool | None:
        """Whether all files that its rows were made from are there; None if it is unknown which these were."""
        folders = [raw.get(folder, set()) for folder in pipeline.landing_zone.folders(batch)]
        paths = _made_from(pipeline.stage, batch)
        return all(any(path in folder for folder in folders) for path in paths) if paths else None

    recorded: dict[Batch, bool] = {}
    if _length_of(pipeline, table) == calendar.length:
        judged = zip(concerned, for_each(pipeline, has_all, concerned), strict=True)
        recorded = {batch: is_there for batch, is_there in judged if is_there is not None}
    gone = {batch for batch, is_there in recorded.items() if not is_there}
    has_raw = {*raw, *recorded} - gone
    with_raw = pipeline.landing_zone.reading(raw)
    missing: set[Batch] = set()
    uncertain: set[Batch] = set()
    for before, batch in around:
        if before in gone:
            missing.add(before)
        elif batch in gone:
            missing.add(batch)
        elif has_raw.isdisjoint((before, batch)):
            (missing if with_raw.isdisjoint((before, batch)) else uncertain).add(before)
    return sorted(missing), sorted(uncertain - missing)


def _made_from(stage: Stage, batch: Batch) -> set[str]:
    """Paths of the raw files that the table's rows of a batch were made from; empty if unknown."""
    receipt = stage.read(ROLLUP_TABLE, batch)
    if receipt is None:
        staged = stage.read(REPARTITIONED, batch)
        files = None if staged is None else staged.inputs
    else:
        files = _inputs_of_published(stage, batch, receipt)
        record = None if files is not None else read_record(stage, batch, receipt.counters.get("attempt", ""))
        files = files if record is None else record.inputs.get(batch.key)
    return {file.path for file in files or ()}


def _inputs_of_published(stage: Stage, batch: Batch, receipt: Manifest) -> tuple[InputFile, ...] | None:
    """The raw files of the content that a receipt is about, if that is still staged; else None.

    While it is, the stage is more up to date than the record of the publish: after raw files are merged or renamed, they are staged again,
    but the same content is not published again.
    """
    rollups, staged = (stage.read(asset, batch) for asset in (ROLLUPS, REPARTITIONED))
    if rollups is None or staged is None or rollups.digest != receipt.digest:
        return None
    return staged.inputs if rollups.upstream.get(REPARTITIONED, {}).get(batch.key) == staged.digest else None


def _length_of(pipeline: Pipeline, table: Table) -> int:
    """The table's current batch length in ms."""
    from rollup_assets.iceberg.migration import settings_of_table
    from rollup_assets.iceberg.table import BATCH_LENGTH_PROPERTY

    return parse_duration(settings_of_table(table, pipeline.settings)[BATCH_LENGTH_PROPERTY])


def _not_ended(pipeline: Pipeline, table: Table, last: Batch | None) -> list[Batch]:
    """Batches (of the new length) after the last ended one that have rows in the table; in order.

    As everywhere, a row belongs to the batch that its label is in, even a window that the previous batch left open.
    """
    from rollup_assets.iceberg.reading import labels, live_files

    calendar = pipeline.calendar
    end = calendar.start if last is None else last.end
    files = [file for file in live_files(table) if file.last is None or file.last // 1_000 >= end]
    return sorted({calendar.containing(label) for label in labels(table, files, calendar) if label >= end})


def _finest_labels(table: Table, calendar: BatchCalendar) -> set[int]:
    """The table's labels of the finest resolution, as :func:`~rollup_assets.iceberg.reading.labels` returns them."""
    from rollup_assets.iceberg.reading import labels, live_files

    files = live_files(table)
    finest = min((file.resolution for file in files if file.resolution is not None), default=None)
    return labels(table, [file for file in files if file.resolution in (None, finest)], calendar)


def _rolled_back(pipeline: Pipeline, table: Table) -> list[Manifest]:
    """Receipts of partitions that were rolled back, so that their rows are not those of their raw data, or whose rollback was begun."""
    calendar = BatchCalendar(pipeline.calendar.start, _length_of(pipeline, table))

    def held(batch: Batch) -> Manifest | None:
        receipt = pipeline.stage.read(ROLLUP_TABLE, batch)
        if receipt is not None and (is_begun(receipt) or (rejected_digests(receipt) and ROLLED_BACK_TO in receipt.counters)):
            return receipt
        return None

    batches = pipeline.stage.batches(ROLLUP_TABLE, calendar)
    return [receipt for receipt in for_each(pipeline, held, batches) if receipt is not None]


# --------------------------------------------------------------------------------------------------------------------- carrying out


def _remember_inputs(stage: Stage, batch: Batch) -> None:
    """Bring the record of a publish up to date: once the batch is staged anew, an interrupted migration can rely only on this record."""
    receipt = stage.read(ROLLUP_TABLE, batch)
    inputs = None if receipt is None else _inputs_of_published(stage, batch, receipt)
    record = None if receipt is None or inputs is None else read_record(stage, batch, receipt.counters.get("attempt", ""))
    if record is not None and record.inputs.get(batch.key) != inputs:
        write_record(stage, batch, record.model_copy(update={"inputs": {**record.inputs, batch.key: inputs}}))


def _make(pipeline: Pipeline, batch: Batch, progress: Progress | None) -> None:
    """Stage and roll up one batch with the new settings, unless that is already done."""
    from rollup_assets.steps import repartition, rollup

    repartition.stage_batch(pipeline, batch, progress=progress, table_is_checked=True)
    rolled = rollup.roll_up(pipeline, batch, progress=progress, table_is_checked=True)
    if isinstance(rolled, Waiting):
        raise NotStagedError(f"{batch}: {rolled.reason}")


def _require_raw_files(pipeline: Pipeline, batch: Batch, raw: Mapping[Batch, set[str]]) -> None:
    """Check that a batch was staged from all raw files that were there when it was decided which rows can be made anew."""
    staged = pipeline.stage.read(REPARTITIONED, batch)
    read = {file.path for file in staged.inputs} if staged is not None else set()
    gone = sorted(path for folder in pipeline.landing_zone.folders(batch) for path in raw.get(folder, set()) - read)
    if gone:
        raise MigrationError(
            f"raw files of {batch} disappeared during the migration, such as {gone[0]}; the table was not changed. Bring them back, or "
            f"run `rollups migrate` to see which rows would be lost, and run `{COMMAND}` again"
        )


def _carry_out(
    pipeline: Pipeline, catalog: Catalog, lock: TableLock, batches: Sequence[Batch], found: Migration, judged: int | None
) -> Migration:
    from rollup_assets.iceberg.commit import bring_about
    from rollup_assets.iceberg.migration import MigratedTable, settings_of_table
    from rollup_assets.steps.publish import check_stage, current_rollups, were_in_table

    settings = pipeline.settings
    table = _existing_table(pipeline, catalog)
    # A rollback that failed or was killed before its commit has left no snapshot: only receipts tell of it.
    if held := _rolled_back(pipeline, table):
        undone = list_text([receipt.partition for receipt in held], _NAMED)
        raise MigrationError(
            f"a rollback of {undone} of {settings.table} was begun, or made, during the migration; nothing was changed. Run `{COMMAND}` "
            "again to see what to do"
        )

    def current(batch: Batch) -> Manifest:
        with _as_it_was_made(batch):
            return current_rollups(pipeline, batch)[0]

    made = dict(zip(batches, for_each(pipeline, current, batches), strict=True))
    staged = {batch: rollups.files for batch, rollups in made.items()}
    # Batches that start between those of another length stay staged meanwhile; a migration back would publish the same files again.
    receipts = zip(made, for_each(pipeline, lambda batch: pipeline.stage.read(ROLLUP_TABLE, batch), list(made)), strict=True)
    known = {batch for batch, receipt in receipts if were_in_table(receipt, made[batch], table)}
    goal = MigratedTable(settings, staged, settings_of_table(table, settings), judged, COMMAND, known)

    def check(batch: Batch) -> None:
        with _as_it_was_made(batch):
            check_stage(pipeline, batch, made[batch])

    def still_current() -> None:
        for_each(pipeline, check, batches)

    settings_now = ", ".join(f"{name}={new}" for name, (_, new) in found.changes.items())
    properties = {MIGRATED_PROPERTY: settings_now, CODE_VERSION_PROPERTY: CODE_VERSION}
    try:
        replacement = bring_about(catalog, settings, goal, properties, still_current, lock=lock, table=table)
    except StageCorruptError as error:
        # All files exist in their right size, so a migration would not remake them; the backfill named in the error needs the old settings.
        raise MigrationError(f"{error} with the old settings, then `{COMMAND}` again; the table is as it was") from error
    table, snapshot_id, attempt = replacement.table, replacement.snapshot_id, replacement.attempt
    for_each(pipeline, lambda batch: _note(pipeline, batch, made[batch], table, snapshot_id, attempt), batches)
    rows = sum(replacement.counts.rows.values())
    return replace(found, snapshot_id=replacement.snapshot_id, rows_after=rows)


@contextlib.contextmanager
def _as_it_was_made(batch: Batch) -> Iterator[None]:
    """Replace errors about a batch's staged data: the backfills that they name would be refused while the table has other settings."""
    try:
        yield
    except (NotStagedError, StaleInputError, StageCorruptError) as error:
        raise MigrationError(
            f"the stage was changed during the migration: what was made for {batch} is missing or out of date. The table was not "
            f"changed: run `{COMMAND}` again"
        ) from error


def _note(pipeline: Pipeline, batch: Batch, rollups: Manifest, table: Table, snapshot_id: int | None, attempt: str) -> None:
    """Write record and receipt of one batch, as a publish does."""
    from rollup_assets.iceberg.reading import RangeCounts
    from rollup_assets.steps.publish import receipt_of

    snapshot = None if snapshot_id is None else table.snapshot_by_id(snapshot_id)
    if snapshot is not None:
        write_record(pipeline.stage, batch, record_of_commit(rollups, _inputs(pipeline, rollups), batch, table, snapshot))
    rows: dict[int, int] = {}
    files: dict[int, int] = {}
    for file in rollups.files:
        rows[file.resolution or 0] = rows.get(file.resolution or 0, 0) + file.rows
        files[file.resolution or 0] = files.get(file.resolution or 0, 0) + 1
    receipt = receipt_of(pipeline, batch, rollups, table, snapshot_id, attempt, RangeCounts(rows, files))
    pipeline.stage.write(receipt, batch)


def _inputs(pipeline: Pipeline, rollups: Manifest) -> Inputs:
    """The raw files of published rollups, by partition; without partitions that were staged with other content since."""
    from rollup_assets.steps.publish import upstream_manifests

    used = upstream_manifests(pipeline, rollups)
    changed = {key for _, key, digest, found in used if (None if found is None else found.digest) != digest}
    return {key: None if found is None else found.inputs for _, key, _, found in used if key not in changed}


def _finish(pipeline: Pipeline, table: Table) -> None:
    """Write the receipts that are missing because a migration was killed after its commit.

    The receipts in their place are of other settings than the table's, or of an earlier commit. Call it under the table's lock, since
    publishes and rollbacks write receipts too.
    """
    from rollup_assets.iceberg.reading import live_files
    from rollup_assets.iceberg.staged_files import StagedFiles

    migration = next((one for one in ancestors(table, table.current_snapshot()) if said(one, MIGRATED_PROPERTY)), None)
    if migration is None:
        return

    def without_receipt(batch: Batch) -> Manifest | None:
        rollups, receipt = pipeline.stage.read(ROLLUPS, batch), pipeline.stage.read(ROLLUP_TABLE, batch)
        if rollups is None or not _is_of_settings(rollups, pipeline):
            return None
        return rollups if receipt is None or _is_from_before(receipt, pipeline, migration) else None

    batches = pipeline.stage.batches(ROLLUPS, pipeline.calendar)
    found = zip(batches, for_each(pipeline, without_receipt, batches), strict=True)
    left = {batch: rollups for batch, rollups in found if rollups is not None}
    if not left:
        return
    staged = StagedFiles(pipeline.settings, (file for rollups in left.values() for file in rollups.files))
    present = {staged.found_as(file) for file in live_files(table)}
    in_table = [batch for batch, rollups in left.items() if all(file.path in present for file in rollups.files)]
    attempt = said(migration, ATTEMPT_PROPERTY) or ""
    for_each(pipeline, lambda batch: _note(pipeline, batch, left[batch], table, migration.snapshot_id, attempt), in_table)


def _is_from_before(receipt: Manifest, pipeline: Pipeline, migration: Snapshot) -> bool:
    number = receipt.counters.get(SEQUENCE_NUMBER)
    is_older = number is not None and number < (migration.sequence_number or 0)
    return is_older or not _is_of_settings(receipt, pipeline)


def _is_of_settings(manifest: Manifest, pipeline: Pipeline) -> bool:
    """Whether a manifest was made with the table's shards, resolutions and batch length."""
    wanted = rollup_parameters(pipeline.settings)
    return all(manifest.parameters.get(name) == wanted[name] for name in OF_TABLE)
