"""Checks that the table still has a snapshot that was acknowledged: if the catalog was set back, it does not.

A standby that is promoted before it has the last commits, a restored dump, or another engine's commit that forgot ours, take back what
a receipt says is published. A table that was dropped and made anew, or rolled back by those who may, says so itself. What is then done
stays out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rollup_assets.iceberg.snapshots import ancestors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pyiceberg.table import Table

TABLE, SNAPSHOT, SEQUENCE_NUMBER = "table_uuid", "snapshot_id", "sequence_number"


def acknowledgement(table: Table, snapshot_id: int | None) -> dict[str, Any]:
    """What a receipt must record about a snapshot so that it can be looked up later."""
    snapshot = None if snapshot_id is None else table.snapshot_by_id(snapshot_id)
    number = None if snapshot is None else snapshot.sequence_number
    return {SNAPSHOT: snapshot_id, SEQUENCE_NUMBER: number, TABLE: str(table.metadata.table_uuid)}


def is_of_table(table: Table, acknowledged: Mapping[str, Any]) -> bool:
    """Whether the receipt is about this table, not a dropped one of the same name; True for those of older releases, which do not say."""
    return acknowledged.get(TABLE) in (None, str(table.metadata.table_uuid))


def forgotten(table: Table, acknowledged: Mapping[str, Any]) -> str | None:
    """What is wrong with the table's history if it should have the acknowledged snapshot and does not; None if nothing is.

    A snapshot that has merely expired is older than the oldest one that the current snapshot comes from.
    """
    snapshot_id, number = acknowledged.get(SNAPSHOT), acknowledged.get(SEQUENCE_NUMBER)
    if snapshot_id is None or number is None or acknowledged.get(TABLE) != str(table.metadata.table_uuid):
        return None
    # After a legitimate rollback it is still among the table's snapshots.
    if table.snapshot_by_id(snapshot_id) is not None:
        return None
    # Tables of format version 1, which have no sequence numbers, are refused elsewhere.
    last = int(getattr(table.metadata, "last_sequence_number", number))
    if last < number:
        return f"the table's last sequence number is {last}, but that snapshot had {number}"
    numbers = [snapshot.sequence_number for snapshot in ancestors(table, table.current_snapshot())]
    oldest = numbers[-1] if numbers else None
    if oldest is not None and oldest <= number:
        return (
            f"the current snapshot's history goes back to sequence number {oldest}, but does not contain that snapshot, which had {number}"
        )
    return None


def is_set_aside(table: Table, acknowledged: Mapping[str, Any]) -> bool:
    """Whether the table still has the acknowledged snapshot, but the current one does not come from it.

    False if the history between the two has expired, as when a tag holds a snapshot that is older than all others.
    """
    known = {snapshot.snapshot_id: snapshot for snapshot in table.snapshots()}
    snapshot_id, at = acknowledged.get(SNAPSHOT), table.current_snapshot()
    published = None if snapshot_id is None else known.get(snapshot_id)
    if published is None:
        return False
    if at is None:
        return True
    # A snapshot's sequence number is greater than those of all its ancestors.
    while (at.sequence_number or 0) > (published.sequence_number or 0):
        before = None if at.parent_snapshot_id is None else known.get(at.parent_snapshot_id)
        if before is None:
            return False
        at = before
    return at.snapshot_id != snapshot_id
