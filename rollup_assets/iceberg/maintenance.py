"""Keeping publishing as fast after a year as on the first day: snapshots expire, manifests are merged.

Both in one commit of their own, made only when one of them is due, and never at the cost of a publish. Deleting files that no
snapshot needs any more stays out.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from rollup_assets.failpoints import failpoint
from rollup_assets.iceberg.commit_times import clock_is_behind
from rollup_assets.iceberg.schema import MANIFEST_BYTES, MERGE_MANIFESTS_FROM
from rollup_assets.iceberg.transactions import begin

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.metadata import TableMetadata

MAINTENANCE_PROPERTY = "rollup.maintenance"

_log = logging.getLogger(__name__)


def maintain(table: Table, keep_snapshots: int) -> bool:
    """Bring the table back within its bounds if it is beyond them; returns whether a commit was made.

    At most ``keep_snapshots`` snapshots remain, besides those that tags and other branches hold. Expiry goes a tenth below that, so that
    nine of ten publishes need no second commit. Small manifests are merged when there are enough of them. The table is reloaded first.
    """
    try:
        newest = table.catalog.load_table(table.name())
        merging = merge_is_due(newest)
        if not merging and not _expendable(newest.metadata, keep_snapshots):
            return False
        _commit(newest, keep_snapshots, merging=merging)
    except Exception:
        # The batch is published all the same; the next publish tries the maintenance again.
        _log.warning(
            "could not expire snapshots or merge manifests of %s; the next publish tries again", ".".join(table.name()), exc_info=True
        )
        return False
    return True


def maintenance_is_due(table: Table, keep_snapshots: int) -> bool:
    """Whether :func:`maintain` would make a commit, as far as can be told."""
    try:
        return bool(_expendable(table.metadata, keep_snapshots)) or merge_is_due(table)
    except Exception:
        _log.warning("cannot tell whether %s needs maintenance; the next publish looks again", ".".join(table.name()), exc_info=True)
        return False


def merge_is_due(table: Table) -> bool:
    """Whether enough manifests are small, or list only what an old commit removed, for a merge to be worth a commit.

    Manifests of delete files, which other engines write, do not count: an append merges only manifests of data files.
    """
    from pyiceberg.manifest import ManifestContent

    snapshot = table.current_snapshot()
    if snapshot is None:
        return False
    of_data = [manifest for manifest in snapshot.manifests(table.io) if manifest.content == ManifestContent.DATA]
    return sum(manifest.manifest_length < MANIFEST_BYTES // 2 for manifest in of_data) >= MERGE_MANIFESTS_FROM


def _commit(table: Table, keep_snapshots: int, *, merging: bool) -> None:
    from pyiceberg.table.update.snapshot import ExpireSnapshots

    failpoint("maintenance.begin")
    transaction = begin(table)
    # A commit without a snapshot is stamped by the clock; if that is behind, an empty snapshot gives it a later stamp.
    if merging or clock_is_behind(table.metadata):
        # An overwrite() never merges; an append of nothing does, and leaves out the manifests without a live file.
        with transaction.update_snapshot(snapshot_properties={MAINTENANCE_PROPERTY: "merge manifests"}).merge_append():
            pass
    expired = _expendable(transaction.table_metadata, keep_snapshots)
    if expired:
        ExpireSnapshots(transaction).by_ids(expired).commit()
    failpoint("maintenance.commit")
    transaction.commit_transaction()
    failpoint("maintenance.committed")


def _expendable(metadata: TableMetadata, keep: int) -> list[int]:
    """Ids of the snapshots to expire, oldest first; none while there are at most ``keep``, and never the head of a branch or tag.

    What tags and other branches hold does not count: a table with many tags would keep no other history, and could not be rolled back.
    """
    held = {reference.snapshot_id for reference in metadata.refs.values()} | {metadata.current_snapshot_id}
    free = [snapshot for snapshot in metadata.snapshots if snapshot.snapshot_id not in held]
    surplus = len(free) + 1 - keep
    if surplus <= 0:
        return []
    free.sort(key=lambda snapshot: (snapshot.sequence_number or 0, snapshot.timestamp_ms))
    return [snapshot.snapshot_id for snapshot in free[: surplus + keep // 10]]
