"""The table's snapshots: which one a user means, and which one gave a batch its rows. Nothing here reads data files."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rollup_assets.batches import Batch, to_datetime
from rollup_assets.errors import UnknownSnapshotError

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

ATTEMPT_PROPERTY = "rollup.attempt"
"""In the summary of each publish, rollback and migration: a unique id, by which it is found."""
CODE_VERSION_PROPERTY = "rollup.code-version"
"""In the summary of each publish, rollback and migration: the version of the code that made it."""
PARTITION_PROPERTY = "rollup.batch"
"""In the summary of a publish: the partition."""
DIGEST_PROPERTY = "rollup.digest"
"""In the summary of a publish: the digest of the rollups that it has published."""
STAGED_PROPERTY = "rollup.staged-attempt"
"""In the summary of a publish: the attempt whose files it published; the same content may be staged again in other files."""
RUN_PROPERTY = "rollup.run-id"
"""In the summary of a publish: the run, if there is one."""
ROLLED_BACK_PROPERTY = "rollup.rolled-back"
"""In the summary of a rollback: the partition, or :data:`WHOLE_TABLE`."""
ROLLED_BACK_TO_PROPERTY = "rollup.rolled-back-to"
"""The snapshot whose rows a rollback brought back, or :data:`NO_SNAPSHOT`."""
MIGRATED_PROPERTY = "rollup.migrated"
"""In the summary of a migration: the new settings. It replaced the rows of every batch."""
WHOLE_TABLE = "table"
NO_SNAPSHOT = "none"
_PARTITION_KEY = r"\d{4}-\d{2}-\d{2}-\d{2}:\d{2}"
_SHOWN = 10


def said(snapshot: Snapshot, name: str) -> str | None:
    """A property of a snapshot's summary."""
    return None if snapshot.summary is None else snapshot.summary.get(name)


def time_of(snapshot: Snapshot) -> dt.datetime:
    """When it was committed, by the writer's clock."""
    return to_datetime(snapshot.timestamp_ms)


def ancestors(table: Table, snapshot: Snapshot | None) -> Iterator[Snapshot]:
    """A snapshot and its ancestors, newest first, as far as they are kept."""
    kept = snapshots_by_id(table)
    while snapshot is not None:
        yield snapshot
        snapshot = None if snapshot.parent_snapshot_id is None else kept.get(snapshot.parent_snapshot_id)


def snapshots_by_id(table: Table) -> dict[int, Snapshot]:
    """The snapshots that are kept. For who looks up many of them: PyIceberg goes through all of them for each."""
    return {one.snapshot_id: one for one in table.metadata.snapshots}


def snapshot_of_attempt(table: Table, attempt: str) -> Snapshot | None:
    """Our commit with this attempt; None if it is not among the current snapshot's kept ancestors."""
    return next((one for one in ancestors(table, table.current_snapshot()) if said(one, ATTEMPT_PROPERTY) == attempt), None)


def is_first(snapshot: Snapshot) -> bool:
    """Whether it is the table's first. To have no parent id is not enough: PyIceberg removes the id with an expired parent."""
    return snapshot.parent_snapshot_id is None and (snapshot.sequence_number or 0) <= 1


def is_publish(snapshot: Snapshot, batch: Batch) -> bool:
    """Whether it published the batch."""
    return said(snapshot, PARTITION_PROPERTY) == batch.key and said(snapshot, DIGEST_PROPERTY) is not None


def is_rollback(snapshot: Snapshot, batch: Batch) -> bool:
    """Whether it brought back earlier rows of the batch, or of the whole table."""
    return said(snapshot, ROLLED_BACK_PROPERTY) in (batch.key, WHOLE_TABLE)


def is_migration(snapshot: Snapshot) -> bool:
    """Whether it made all batches anew, with other settings."""
    return said(snapshot, MIGRATED_PROPERTY) is not None


def newest_publish(table: Table, batch: Batch) -> Snapshot | None:
    """The last publish of a batch among the snapshots that are kept."""
    return next((one for one in ancestors(table, table.current_snapshot()) if is_publish(one, batch)), None)


def newest_change(table: Table, batch: Batch, *, other_than: str | None = None) -> Snapshot | None:
    """Our last snapshot that is about a batch, apart from the attempt ``other_than``."""
    return next(
        (
            one
            for one in ancestors(table, table.current_snapshot())
            if (is_publish(one, batch) or is_rollback(one, batch) or is_migration(one)) and said(one, ATTEMPT_PROPERTY) != other_than
        ),
        None,
    )


def snapshot_meant(table: Table, text: str) -> Snapshot:
    """The snapshot with this id, or the newest of the table's history at or before this ISO 8601 time (UTC if it has no offset).

    Raises:
        UnknownSnapshotError: there is none, or it has expired; says which ones are known.
    """
    if text.isascii() and text.isdecimal():
        found = table.snapshot_by_id(int(text))
        if found is None:
            raise UnknownSnapshotError(f"there is no snapshot {text}, or it has expired; {known_snapshots(table)}")
        return found
    moment = _parse_time(text)
    found = next((one for one in ancestors(table, table.current_snapshot()) if time_of(one) <= moment), None)
    if found is None:
        raise UnknownSnapshotError(f"none of the kept snapshots is as old as {moment:%Y-%m-%d %H:%M:%S} UTC; {known_snapshots(table)}")
    return found


def _parse_time(text: str) -> dt.datetime:
    wanted = "give the id of a snapshot, or a time such as 2026-01-31T06:00Z"
    if re.fullmatch(_PARTITION_KEY, text):
        # Python would parse a partition key as a time, too.
        raise UnknownSnapshotError(f"{text!r} is a partition; {wanted}")
    try:
        moment = dt.datetime.fromisoformat(text)
    except ValueError:
        raise UnknownSnapshotError(f"{text!r} is neither a snapshot id nor a time; {wanted}") from None
    return moment.replace(tzinfo=dt.UTC) if moment.tzinfo is None else moment.astimezone(dt.UTC)


def known_snapshots(table: Table) -> str:
    """The newest snapshots in words."""
    found = list(ancestors(table, table.current_snapshot()))
    if not found:
        return "the table has none"
    shown = ", ".join(f"{one.snapshot_id} ({time_of(one):%Y-%m-%d %H:%M:%S})" for one in found[:_SHOWN])
    more = f" and {len(found) - _SHOWN} more, the oldest {found[-1].snapshot_id} ({time_of(found[-1]):%Y-%m-%d %H:%M:%S})"
    return f"known are {shown}{more if len(found) > _SHOWN else ''}, UTC"
