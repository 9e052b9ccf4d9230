"""A catalog whose reports of conflicts are believed only if the commit is not in the table.

PyIceberg takes a conflict for certain, and, with no retry left, deletes the manifests that it wrote. If the commit was applied and only
reported as a conflict, as servers and clients do that send a request twice, the table could then not be read any more. What is made of a
commit that failed stays out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rollup_assets.iceberg.interposed import InterposedCatalog, interposed

if TYPE_CHECKING:
    from pyiceberg.table import CommitTableResponse, Table


def doubting_conflicts(table: Table) -> Table:
    """The same table, but a conflict in its transactions is checked before PyIceberg hears of it."""
    return interposed(table, _DoubtedCatalog)


class _DoubtedCatalog(InterposedCatalog):
    def commit_table(self, table: Table, requirements: Any, updates: Any) -> CommitTableResponse:
        from pyiceberg.exceptions import CommitFailedException, CommitStateUnknownException
        from pyiceberg.table import CommitTableResponse
        from pyiceberg.table.update import AddSnapshotUpdate

        try:
            return self._catalog.commit_table(table, requirements, updates)
        except CommitFailedException as error:
            made = [update.snapshot.snapshot_id for update in updates if isinstance(update, AddSnapshotUpdate)]
            try:
                found = self._catalog.load_table(table.name())
            except Exception as unknown:
                # Report anything but a conflict, so that PyIceberg deletes nothing.
                raise CommitStateUnknownException(f"{error}; asking the catalog whether that is true failed as well ({unknown})") from error
            if not made or any(found.metadata.snapshot_by_id(snapshot_id) is None for snapshot_id in made):
                raise
            return CommitTableResponse(metadata=found.metadata, metadata_location=found.metadata_location)
