"""What each publish of a batch was made from: one small file per commit, kept when manifests are replaced.

``<stage>/publish_history/<partition>/<attempt>.json``. A publish writes it after the commit, which it names, and before the
receipt: if the publish is killed in between there is no receipt, so it is requested again, finds its commit in the table and writes the
record then. Raw files that were merged or renamed, with the same content, cause no publish; a migration writes their names into the record
before it stages them anew. Which rows changed stays out (``history.diff``).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rollup_assets.batches import Batch
from rollup_assets.iceberg.acknowledged_snapshots import TABLE, is_of_table
from rollup_assets.iceberg.snapshots import (
    ATTEMPT_PROPERTY,
    NO_SNAPSHOT,
    ROLLED_BACK_TO_PROPERTY,
    is_first,
    is_migration,
    is_publish,
    is_rollback,
    newest_change,
    said,
    snapshot_of_attempt,
    snapshots_by_id,
    time_of,
)
from rollup_assets.storage.filesystems import FoundFile, Place, in_parallel
from rollup_assets.storage.manifests import InputFile, Manifest, Stage

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

Inputs = Mapping[str, Sequence[InputFile] | None]
"""Partition → raw files; None: not staged, and need not be."""

FOLDER = "publish_history"
FORMAT_VERSION: Final = 1


class PublishRecord(BaseModel):
    """What one commit did to one batch. Fields that a later version adds are kept, but not used."""

    model_config = ConfigDict(frozen=True, extra="allow")

    partition: str
    attempt: str = Field(description="as in the snapshot's summary")
    snapshot_id: int
    sequence_number: int = Field(description="of the snapshot; later commits have greater ones")
    committed_at: dt.datetime
    digest: str | None = Field(description="of the rollups; None where a rollback brought back rows of unknown origin")
    code_version: str
    parameters: dict[str, Any] = Field(description="settings that decided the content")
    inputs: dict[str, tuple[InputFile, ...] | None] = Field(
        description="partition -> raw files, for the batch and the earlier ones that it was made from; None: not staged, and rightly so"
    )
    replaces: str | None = Field(description="attempt of the commit before it that was about this batch")
    rolled_back_to: int | None = Field(default=None, description="snapshot whose rows a rollback brought back")
    table_uuid: str | None = Field(default=None, description="of the table; None in those of older releases, which may be of it")
    format_version: Literal[1] = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a batch's rows in a snapshot came from."""

    snapshot: Snapshot | None = None
    """Our commit that made them; None if it has expired, or there is none."""
    record: PublishRecord | None = None
    """The record of that commit."""
    is_new: bool = False
    """Whether nothing of the batch had been published yet, up to and including that snapshot."""


def history_folder(stage: Stage, batch: Batch) -> Place:
    """The folder of a batch's records."""
    return stage.root / FOLDER / batch.folder


def write_record(stage: Stage, batch: Batch, record: PublishRecord) -> None:
    """Store the record of what a commit was made from; writing it again changes nothing."""
    (history_folder(stage, batch) / f"{record.attempt}.json").write_bytes(record.model_dump_json().encode())


def record_of_publish(rollups: Manifest, inputs: Inputs, batch: Batch, table: Table, attempt: str) -> PublishRecord | None:
    """The record of the commit with this attempt; None if it is not in the table, as for a batch that never had a row."""
    snapshot = snapshot_of_attempt(table, attempt)
    return None if snapshot is None or not is_publish(snapshot, batch) else record_of_commit(rollups, inputs, batch, table, snapshot)


def record_of_commit(rollups: Manifest, inputs: Inputs, batch: Batch, table: Table, snapshot: Snapshot) -> PublishRecord:
    """The record of one of our commits that published a batch."""
    attempt = said(snapshot, ATTEMPT_PROPERTY) or ""
    return PublishRecord(
        partition=batch.key,
        attempt=attempt,
        snapshot_id=snapshot.snapshot_id,
        sequence_number=snapshot.sequence_number or 0,
        committed_at=time_of(snapshot),
        digest=rollups.digest,
        code_version=rollups.code_version,
        parameters=rollups.parameters,
        inputs={key: None if files is None else tuple(files) for key, files in inputs.items()},
        replaces=attempt_before(table, batch, attempt),
        table_uuid=str(table.metadata.table_uuid),
    )


def attempt_before(table: Table, batch: Batch, attempt: str) -> str | None:
    """The attempt whose rows this one replaced; None if there was none, or its snapshot has expired."""
    before = newest_change(table, batch, other_than=attempt)
    return None if before is None else said(before, ATTEMPT_PROPERTY)


def is_record(file: FoundFile) -> bool:
    """Whether a file below :data:`FOLDER` is a record; unfinished ones have hidden names."""
    return file.name.endswith(".json") and not file.name.startswith(".")


def read_record(stage: Stage, batch: Batch, attempt: str) -> PublishRecord | None:
    """The record of a commit; None if there is none that this version can read."""
    return _parsed((history_folder(stage, batch) / f"{attempt}.json").read_bytes())


def last_record(stage: Stage, table: Table, snapshot: Snapshot) -> PublishRecord | None:
    """The snapshot's own record, or the last one before it, of any batch; it has the table's settings at that time. None: none is kept."""
    folder, sequence = stage.root / FOLDER, snapshot.sequence_number or 0
    files = [file for file in folder.files() if is_record(file)]
    own = [file for file in files if file.name == f"{said(snapshot, ATTEMPT_PROPERTY)}.json"]
    for some in (own, files):
        read = in_parallel(lambda file: _parsed(folder.of_path(file.path).read_bytes()), some, local=folder.is_local)
        # Records of rollbacks to rows of unknown origin have no settings.
        found = [record for record in _of_table(table, read) if record.parameters and record.sequence_number <= sequence]
        if found:
            return max(found, key=lambda record: record.sequence_number)
    return None


def _all_records(stage: Stage, table: Table, batch: Batch) -> list[PublishRecord]:
    folder = history_folder(stage, batch)
    names = [file.name for file in folder.files(recursive=False) if is_record(file)]
    found = in_parallel(lambda name: _parsed((folder / name).read_bytes()), names, local=folder.is_local)
    return sorted(_of_table(table, found), key=lambda record: record.sequence_number)


def _of_table(table: Table, records: Iterable[PublishRecord | None]) -> list[PublishRecord]:
    """The records of commits to this table, in the given order: in another table, such as a dropped one, sequence numbers begin anew."""
    return [record for record in records if record is not None and is_of_table(table, {TABLE: record.table_uuid})]


def _parsed(content: bytes | None) -> PublishRecord | None:
    try:
        return None if content is None else PublishRecord.model_validate_json(content)
    except ValidationError:
        # A later version's record; a command that reads records must not fail for that.
        return None


def origin_of(stage: Stage, table: Table, snapshot: Snapshot | None, batch: Batch) -> Origin:
    """Which of our commits gave a batch the rows it has in a snapshot, and what that commit was made from."""
    kept = snapshots_by_id(table)
    at = snapshot
    while at is not None:
        if is_publish(at, batch) or is_rollback(at, batch) or is_migration(at):
            record = read_record(stage, batch, said(at, ATTEMPT_PROPERTY) or "")
            target = said(at, ROLLED_BACK_TO_PROPERTY)
            if record is not None or target is None:
                return Origin(at, record)
            if target == NO_SNAPSHOT:
                return Origin(is_new=True)
            # The batch has that snapshot's rows, even if the rollback did not have to change them.
            at = kept.get(int(target))
            if at is None:
                return Origin()
            continue
        if is_first(at):
            return Origin(is_new=True)
        at = None if at.parent_snapshot_id is None else kept.get(at.parent_snapshot_id)
    return Origin(is_new=True) if snapshot is None else Origin(record=_record_before(stage, table, snapshot, batch))


def _record_before(stage: Stage, table: Table, snapshot: Snapshot, batch: Batch) -> PublishRecord | None:
    """The last record before a snapshot; None if a later commit without a record came in between."""
    records = _all_records(stage, table, batch)
    sequence = snapshot.sequence_number or 0
    before = [record for record in records if record.sequence_number <= sequence]
    after = [record for record in records if record.sequence_number > sequence]
    if not before or (after and after[0].replaces not in (None, before[-1].attempt)):
        return None
    return before[-1]
