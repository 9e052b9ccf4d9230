"""A catalog that expires snapshots only if no branch or tag has come to hold one of them meanwhile.

PyIceberg commits an expiry with no condition but the table's id: a rollback or a new tag between the look at the table and the commit
would be undone by it, since whatever refers to an expired snapshot goes with it, the current one too. Which snapshots are to expire stays
out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rollup_assets.iceberg.interposed import InterposedCatalog, interposed

if TYPE_CHECKING:
    from pyiceberg.table import CommitTableResponse, Table


def keeping_what_is_held(table: Table) -> Table:
    """The same table, but its transactions fail with PyIceberg's conflict if a snapshot that they expire is held by then."""
    return interposed(table, _HoldingCatalog)


class _HoldingCatalog(InterposedCatalog):
    def commit_table(self, table: Table, requirements: Any, updates: Any) -> CommitTableResponse:
        from pyiceberg.exceptions import CommitFailedException
        from pyiceberg.table.update import AssertRefSnapshotId, RemoveSnapshotsUpdate

        expired = {number for update in updates if isinstance(update, RemoveSnapshotsUpdate) for number in update.snapshot_ids}
        if expired:
            held = [name for name, to in self._catalog.load_table(table.name()).metadata.refs.items() if to.snapshot_id in expired]
            if held:
                raise CommitFailedException(f"snapshots to expire are held by {', '.join(held)} now")
            # What is held may still change until the catalog commits: for the references known here, the catalog looks itself.
            known = {requirement.ref for requirement in requirements if isinstance(requirement, AssertRefSnapshotId)}
            asserted = (
                AssertRefSnapshotId(ref=name, snapshot_id=to.snapshot_id) for name, to in table.metadata.refs.items() if name not in known
            )
            requirements = (*requirements, *asserted)
        return self._catalog.commit_table(table, requirements, updates)
