"""Publish a batch: its staged rollups become the table's rows of that range, and a receipt says so.

Decides what may be published; how the table gets there is :mod:`rollup_assets.iceberg.publish`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rollup_assets.batches import Batch
from rollup_assets.code_version import CODE_VERSION
from rollup_assets.errors import NotStagedError, PublishHaltError, StageCorruptError, StaleInputError
from rollup_assets.failpoints import failpoint
from rollup_assets.history.records import Inputs, origin_of, read_record, record_of_publish, write_record
from rollup_assets.history.rejections import REJECTED, is_begun, refusal, rejected_digests, still_rejected
from rollup_assets.iceberg.acknowledged_snapshots import SNAPSHOT, acknowledgement, forgotten, is_of_table, is_set_aside
from rollup_assets.iceberg.snapshots import ATTEMPT_PROPERTY, STAGED_PROPERTY, said
from rollup_assets.iceberg.table import data_location
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps.changes import files_of_another_table
from rollup_assets.steps.parameters import changed_settings, rollup_parameters
from rollup_assets.steps.results import Published
from rollup_assets.storage.filesystems import in_parallel
from rollup_assets.storage.manifests import REPARTITIONED, ROLLUP_TABLE, ROLLUPS, Manifest, Stage, has_points, short_digest
from rollup_assets.storage.storage_errors import explains_storage_errors

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

    from rollup_assets.iceberg.commit import Replacement
    from rollup_assets.iceberg.locks import TableLock
    from rollup_assets.iceberg.reading import RangeCounts

_MOST_ROUNDS = 8

_log = logging.getLogger(__name__)


@explains_storage_errors
def publish(pipeline: Pipeline, batch: Batch, *, run_id: str = "", force: bool = False) -> Published:
    """Make the table's labels ``[batch.start, batch.end)`` those of the current rollups manifest, in one snapshot.

    Nothing happens if the receipt says that this content is published, the table still descends from the snapshot that it names, and the
    row counts agree; ``force`` looks at the table's files in any case. A table that was dropped or rolled back is filled again; one whose
    history has lost an acknowledged snapshot is filled only with ``force``. Content that ``rollups rollback`` has taken out of the table
    is published only with ``force``, too: without it, :attr:`Published.refused` says why it was not. Rollups that are staged anew while
    these are being published are published after them.

    Args:
        pipeline: settings and stage.
        batch: what to publish.
        run_id: run to record in the snapshot's summary.
        force: do not trust the receipt, and publish what was rolled back.

    Raises:
        NotStagedError: the batch has no rollups manifest.
        StaleInputError: the manifest was made from inputs or parameters that are no longer current, or for another table; or it was
            replaced during each of several attempts to publish it.
        StageCorruptError: a staged file is missing or not what the manifest says.
        TableMismatchError: the table contradicts the settings.
        CatalogError: the catalog cannot be used; see :func:`rollup_assets.iceberg.catalog.open_catalog`.
        LockTimeoutError: another publisher held the lock too long.
        PublishError, PublishHaltError: see :func:`rollup_assets.iceberg.publish.replace_range`; also halts if the snapshot that this
            batch's receipt, or the receipt of the batch before, acknowledges has vanished from the table's history.
    """
    from rollup_assets.iceberg.catalog import open_catalog
    from rollup_assets.iceberg.locks import table_lock
    from rollup_assets.iceberg.maintenance import maintain, maintenance_is_due
    from rollup_assets.iceberg.protocol import publishes_again

    failpoint("publish.begin")
    with table_lock(pipeline.settings) as lock, open_catalog(pipeline.settings, writing=True) as catalog:
        failpoint("publish.locked")
        for _ in range(_MOST_ROUNDS):
            published, table = _publish_staged(pipeline, batch, catalog, lock, run_id=run_id, force=force)
            is_newest = partial(_is_newest, pipeline, batch, published.receipt)
            if not publishes_again(changed=not published.unchanged, is_newest=is_newest):
                break
            _log.warning("batch %s: its rollups were replaced while they were being published; publishing the newer ones", batch.key)
        else:
            raise StaleInputError(
                f"the rollups of batch {batch.key} were replaced during each of {_MOST_ROUNDS} attempts to publish them; find out what "
                f"keeps staging them, and run `rollups backfill {batch.key} {batch.key}`"
            )
        if not published.unchanged and maintenance_is_due(table, pipeline.settings.keep_snapshots) and lock.is_held():
            maintain(table, pipeline.settings.keep_snapshots)
    return published


def _publish_staged(
    pipeline: Pipeline, batch: Batch, catalog: Catalog, lock: TableLock, *, run_id: str, force: bool
) -> tuple[Published, Table]:
    """Publish what is staged now; returns the table in its last known state, too."""
    from rollup_assets.iceberg.protocol import keeps_receipt, trusts_receipt
    from rollup_assets.iceberg.publish import replace_range, summary_properties

    rollups, inputs = current_rollups(pipeline, batch)
    receipt, table = _receipt_and_table(pipeline, batch, catalog, force=force)
    receipt_holds = False
    if receipt is not None:
        refused = refusal(receipt, rollups, batch)
        if refused is not None and not force:
            return _unchanged(receipt, refused), table
        receipt_holds = _receipt_holds(receipt, rollups, table, batch) and refused is None
        if trusts_receipt(receipt_holds=receipt_holds, rows_agree=lambda: _rows_agree(rollups, table, batch), force=force):
            return _unchanged(receipt), table
    replacement = replace_range(
        catalog,
        pipeline.settings,
        batch,
        rollups.files,
        summary_properties(batch, rollups, run_id, CODE_VERSION),
        still_current=lambda: check_stage(pipeline, batch, rollups),
        lock=lock,
        table=table,
        were_in_table=were_in_table(receipt, rollups, table),
    )
    if receipt is not None and keeps_receipt(receipt_holds=receipt_holds, changed=replacement.changed):
        return _unchanged(receipt), replacement.table
    return _recorded(pipeline, batch, rollups, inputs, receipt, replacement), replacement.table


def _receipt_and_table(pipeline: Pipeline, batch: Batch, catalog: Catalog, *, force: bool) -> tuple[Manifest | None, Table]:
    """The batch's receipt, if it has one, and the table, which is created if necessary.

    Raises:
        PublishHaltError: the snapshot that this batch's receipt, or the receipt of the batch before, acknowledges has vanished from the
            table's history; not checked with ``force``.
    """
    from rollup_assets.iceberg.table import ensure_table, remember_resolutions

    # Receipts are read before the table is loaded. Otherwise, with a catalog that has no lock, another publisher could commit and write a
    # receipt in between: its snapshot would seem to have vanished from the older table that we hold.
    receipt = pipeline.stage.read(ROLLUP_TABLE, batch)
    # If a standby is promoted without the catalog's last commits, they are lost, and nobody publishes their batches again, since their
    # receipts say that they are published. The publish of the following batch notices it.
    before = [(each, pipeline.stage.read(ROLLUP_TABLE, each)) for each in pipeline.calendar.earlier(batch, 1)]
    table = ensure_table(pipeline.settings, catalog)
    remember_resolutions(table, pipeline.settings)
    for published, acknowledged in () if force else ((batch, receipt), *before):
        if acknowledged is not None:
            check_history(acknowledged, table, published)
    return receipt, table


def _receipt_holds(receipt: Manifest, rollups: Manifest, table: Table, batch: Batch) -> bool:
    """Whether the receipt is of these rollups, and the table still descends from the snapshot that it names; warns if it does not.

    False for a receipt marked by a rollback that was begun and not finished: it is written anew.
    """
    if is_set_aside(table, receipt.counters):
        _log.warning(
            "batch %s: the current snapshot does not descend from %s, which published the batch: the table was rolled back, or another "
            "engine's commit replaced it. Everything else published since then has to be published again, too: see `rollups verify`",
            batch.key,
            receipt.counters["snapshot_id"],
        )
        return False
    return _is_receipt_of(receipt, rollups) and not is_begun(receipt)


def _unchanged(receipt: Manifest, refused: str | None = None) -> Published:
    return Published(receipt, receipt.counters["snapshot_id"], unchanged=True, refused=refused)


def _recorded(
    pipeline: Pipeline, batch: Batch, rollups: Manifest, inputs: Inputs, before: Manifest | None, replacement: Replacement
) -> Published:
    """Write down what was published: the record, unless there is one, then the receipt, which replaces ``before``."""
    attempt = replacement.attempt if replacement.changed else _attempt_in_place(pipeline, batch, replacement)
    record = record_of_publish(rollups, inputs, batch, replacement.table, attempt)
    # A commit that was already there was made from the files of its time, which are in its own record.
    if record is not None and (replacement.changed or read_record(pipeline.stage, batch, attempt) is None):
        write_record(pipeline.stage, batch, record)
    receipt = receipt_of(
        pipeline,
        batch,
        rollups,
        replacement.table,
        replacement.snapshot_id,
        attempt,
        replacement.counts,
        rejected=still_rejected(before, rollups),
        timings=replacement.timings,
    )
    pipeline.stage.write(receipt, batch)
    return Published(receipt, replacement.snapshot_id, unchanged=False)


def _attempt_in_place(pipeline: Pipeline, batch: Batch, replacement: Replacement) -> str:
    """The attempt of the commit that the batch's rows came from, even if its snapshot has expired: its record says what they are from.

    The current snapshot may be another batch's, and a rollback of the table may have left this batch as it was.
    """
    table = replacement.table
    origin = origin_of(pipeline.stage, table, table.current_snapshot(), batch)
    if origin.record is not None:
        return origin.record.attempt
    return (None if origin.snapshot is None else said(origin.snapshot, ATTEMPT_PROPERTY)) or replacement.attempt


def current_rollups(pipeline: Pipeline, batch: Batch) -> tuple[Manifest, Inputs]:
    """The batch's rollups manifest, if it may be published, and the raw files that it comes from.

    Raises:
        NotStagedError: there is none.
        StaleInputError: it was made from inputs or parameters that are no longer current, or for another table.
    """
    rollups = pipeline.stage.read(ROLLUPS, batch)
    if rollups is None:
        raise NotStagedError(f"batch {batch.key} has no staged rollups; run `rollups backfill {batch.key} {batch.key}`")
    _check_parameters(pipeline, batch, rollups)
    _check_table(pipeline, batch, rollups)
    used = upstream_manifests(pipeline, rollups)
    for asset, key, digest, found in used:
        if (None if found is None else found.digest) != digest:
            raise StaleInputError(
                f"the rollups of batch {batch.key} were made from {asset} {key}, which {_what_became(pipeline, key, digest, found)}; they "
                f"were not published. Run `rollups backfill {batch.key} {batch.key}`"
            )
    inputs = {key: None if found is None else found.inputs for _, key, _, found in used}
    return rollups, inputs


def _what_became(pipeline: Pipeline, key: str, digest: str | None, found: Manifest | None) -> str:
    """Of a partition that rollups were made from, and that is not as they found it: what has happened to it."""
    if pipeline.calendar.find(key) is None:
        return "does not exist any more with the present ROLLUP_START and ROLLUP_BATCH"
    if found is None:
        return "is no longer staged"
    return "was not staged then" if digest is None else "has changed since"


def _check_parameters(pipeline: Pipeline, batch: Batch, rollups: Manifest) -> None:
    if changed := changed_settings(rollup_parameters(pipeline.settings), rollups.parameters):
        raise StaleInputError(
            f"the rollups of batch {batch.key} were made with other settings: {', '.join(changed)}; they were not published. "
            f"Run `rollups backfill {batch.key} {batch.key}`"
        )


def _check_table(pipeline: Pipeline, batch: Batch, rollups: Manifest) -> None:
    """Refuse files of another table: once that one is dropped, this one could not be read."""
    for problem in files_of_another_table(rollups, data_location(pipeline.settings)):
        raise StaleInputError(
            f"the rollups of batch {batch.key} were {problem}; they were not published. Run `rollups backfill {batch.key} {batch.key}`"
        )


def check_stage(pipeline: Pipeline, batch: Batch, rollups: Manifest) -> None:
    """Check that the files are there and that their manifest is still the current one.

    The lock keeps other publishers away, but not runs that stage. A newer manifest wins.

    Raises:
        StageCorruptError: a file is missing or has another size.
        NotStagedError, StaleInputError: the manifest has been replaced, or may not be published any more.
    """
    _check_files(pipeline, batch, rollups)
    if current_rollups(pipeline, batch)[0].digest != rollups.digest:
        raise StaleInputError(
            f"the rollups of batch {batch.key} were replaced while they were being published; "
            f"run `rollups backfill {batch.key} {batch.key}` again"
        )


def _check_files(pipeline: Pipeline, batch: Batch, rollups: Manifest) -> None:
    """Check that every staged file exists with the right size, and that their rows add up to the manifest's counters."""
    mend = f"run `rollups backfill {batch.key} {batch.key} --force`"
    for wrong in pipeline.stage.wrong_files(rollups, batch):
        raise StageCorruptError(f"batch {batch.key}: {wrong}; {mend}")
    rows: Counter[str] = Counter()
    for file in rollups.files:
        rows[str(file.resolution)] += file.rows
    if rows != Counter(_rows(rollups)):
        raise StageCorruptError(
            f"the rollups manifest of batch {batch.key} counts {_rows(rollups)} rows, its files have {dict(rows)}; {mend}"
        )


def upstream_manifests(pipeline: Pipeline, rollups: Manifest) -> list[tuple[str, str, str | None, Manifest | None]]:
    """What rollups were made from: asset, partition, the digest that was read, and the manifest as it is now; None: not staged, or no
    partition of the present calendar.
    """
    used = [(asset, key, digest) for asset, partitions in rollups.upstream.items() for key, digest in partitions.items()]
    current = in_parallel(lambda one: pipeline.staged(one[0], one[1]), used, local=pipeline.stage.root.is_local)
    return [(*one, found) for one, found in zip(used, current, strict=True)]


def check_history(receipt: Manifest, table: Table, batch: Batch) -> None:
    """Compare the snapshot that a receipt acknowledges with the table's history.

    Raises:
        PublishHaltError: it has vanished.
    """
    if (problem := forgotten(table, receipt.counters)) is not None:
        raise PublishHaltError(
            f"batch {batch.key} was published as snapshot {receipt.counters[SNAPSHOT]} of {'.'.join(table.name())}, but that snapshot "
            f"has vanished: {problem}. The catalog was set back (for example, a standby without the last commits was promoted), or "
            "another engine's commit replaced ours; other batches may be lost too. Nothing was published. Find out why, list what is "
            f"missing with `rollups verify`, and publish it again with `rollups backfill {batch.key} {batch.key} --force`"
        )


def _rows(manifest: Manifest) -> dict[str, int]:
    return {str(resolution): int(count) for resolution, count in manifest.counters["rows"].items()}


def _is_receipt_of(receipt: Manifest, rollups: Manifest) -> bool:
    """Same content in the same files. The digest is not enough: lost files made anew have the same, but the table names the lost ones."""
    return receipt.digest == rollups.digest and receipt.counters.get("staged_attempt") == rollups.attempt


def were_in_table(receipt: Manifest | None, rollups: Manifest, table: Table) -> bool:
    """Whether these very files may have been in the table before: they were published, even if they have been taken out since.

    A publish that was killed after its commit has left no receipt; until its snapshot expires, that says what was published.
    """
    if any(said(snapshot, STAGED_PROPERTY) == rollups.attempt for snapshot in table.snapshots()):
        return True
    if receipt is None:
        return False
    published = _is_receipt_of(receipt, rollups) or rollups.digest in rejected_digests(receipt)
    return published and is_of_table(table, receipt.counters)


def _is_newest(pipeline: Pipeline, batch: Batch, receipt: Manifest) -> bool:
    """Whether no newer rollups are staged than those of the receipt."""
    rollups = pipeline.stage.read(ROLLUPS, batch)
    return rollups is None or _is_receipt_of(receipt, rollups)


def has_unpublished_points(stage: Stage, batch: Batch) -> bool:
    """Whether the batch's own staged points are not those that its published rollups were made from, and were not rolled back either."""
    datapoints, rollups = stage.read(REPARTITIONED, batch), stage.read(ROLLUPS, batch)
    if datapoints is None or not has_points(datapoints):
        return False
    if rollups is None or rollups.upstream.get(REPARTITIONED, {}).get(batch.key) != datapoints.digest:
        return True
    return bool(reasons_to_publish(batch, stage.read(ROLLUP_TABLE, batch), rollups, None))


def reasons_to_publish(
    batch: Batch, receipt: Manifest | None, rollups: Manifest, live: Mapping[int, int] | None, *, set_aside: bool = False
) -> list[str]:
    """Why publishing these rollups would do anything.

    Args:
        batch: the rollups' batch.
        receipt: the batch's receipt; None if it was never published.
        rollups: the manifest that is staged.
        live: the batch's rows in the table, by resolution in ms; None if unknown.
        set_aside: whether the table no longer descends from the snapshot that the receipt names.
    """
    if receipt is None:
        return ["not published yet"]
    if refusal(receipt, rollups, batch) is not None:
        return []
    if receipt.digest != rollups.digest:
        return [f"{ROLLUPS} have changed since they were published: {short_digest(receipt.digest)} → {short_digest(rollups.digest)}"]
    if not _is_receipt_of(receipt, rollups):
        return [f"the files of {ROLLUPS} were rewritten since they were published"]
    if set_aside:
        return [f"snapshot {receipt.counters['snapshot_id']}, which published them, was replaced by a rollback or another engine's commit"]
    if live is not None and not _are_rows_of(rollups, live):
        return [f"the table has {sum(live.values()):,} rows of the batch instead of {sum(_rows(rollups).values()):,}"]
    return []


def _rows_agree(rollups: Manifest, table: Table, batch: Batch) -> bool:
    """Whether the table has as many rows as were staged, per resolution."""
    from rollup_assets.iceberg.reading import range_counts

    return _are_rows_of(rollups, range_counts(table, batch).rows)


def _are_rows_of(rollups: Manifest, live: Mapping[int, int]) -> bool:
    return Counter({str(resolution): rows for resolution, rows in live.items()}) == Counter(_rows(rollups))


def receipt_of(
    pipeline: Pipeline,
    batch: Batch,
    rollups: Manifest,
    table: Table,
    snapshot_id: int | None,
    attempt: str,
    counts: RangeCounts,
    *,
    rejected: Sequence[str] = (),
    timings: Mapping[str, float] | None = None,
) -> Manifest:
    """The receipt for published rollups: in which snapshot, by which attempt, and how many rows and files the table has of them."""
    return new_receipt(
        batch,
        table,
        snapshot_id,
        attempt,
        counts,
        digest=rollups.digest,
        staged_attempt=rollups.attempt,
        resolutions={int(resolution) for resolution in _rows(rollups)} | set(pipeline.settings.resolutions),
        parameters=rollups.parameters,
        rejected=rejected,
        timings=timings,
    )


def new_receipt(
    batch: Batch,
    table: Table,
    snapshot_id: int | None,
    attempt: str,
    counts: RangeCounts,
    *,
    digest: str,
    staged_attempt: str | None,
    resolutions: Collection[int],
    parameters: Mapping[str, Any],
    code_version: str = CODE_VERSION,
    rejected: Sequence[str] = (),
    timings: Mapping[str, float] | None = None,
) -> Manifest:
    """A receipt, from all of its parts.

    Args:
        batch: the published batch.
        table: the table as it is now.
        snapshot_id: the snapshot in which the table has these rows; None if it needed none.
        attempt: the attempt of the commit.
        counts: the batch's rows and files in the table.
        digest: content digest of the rollups that these rows are from; a text in its place if these are unknown.
        staged_attempt: the attempt of these rollups, if they are those staged now; else None.
        resolutions: the resolutions to list rows and files of, even if there are none.
        parameters: the parameters that these rollups were made with.
        code_version: the code version that they were made with.
        rejected: digests of rollups that were rolled back.
        timings: the publish's timings.
    """
    return Manifest(
        asset=ROLLUP_TABLE,
        partition=batch.key,
        attempt=attempt,
        code_version=code_version,
        parameters=dict(parameters),
        upstream={ROLLUPS: {batch.key: digest}},
        counters={
            **acknowledgement(table, snapshot_id),
            "attempt": attempt,
            "staged_attempt": staged_attempt,
            "rows": {str(resolution): counts.rows.get(resolution, 0) for resolution in sorted(resolutions)},
            "files": {str(resolution): counts.files.get(resolution, 0) for resolution in sorted(resolutions)},
            **({REJECTED: list(rejected)} if rejected else {}),
        },
        digest=digest,
        timings=dict(timings or {}),
    )
