"""The timestamp of a commit: never earlier than that of the commit before it, whatever this machine's clock says.

Iceberg for Java refuses metadata whose logs go back by more than a minute ("[BUG] Expected sorted snapshot log entries"), and PyIceberg
writes them unchecked: a publisher whose clock is a day ahead, and the next one whose clock is right, would leave a table that Spark
cannot read. What is committed, and when, stays out.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from rollup_assets.batches import to_datetime
from rollup_assets.iceberg.interposed import InterposedCatalog, interposed

if TYPE_CHECKING:
    from pyiceberg.table import CommitTableResponse, Table
    from pyiceberg.table.metadata import TableMetadata

# Both in ms; less is not worth a warning.
_NOTICED = 60_000
# Clocks synchronized by NTP differ by less, and Iceberg for Java refuses more than a minute.
_TOLERATED = 30_000
_log = logging.getLogger(__name__)


def clock_is_behind(metadata: TableMetadata) -> bool:
    """Whether a commit stamped by this machine's clock would set the table's logs back by more than clocks usually differ."""
    return int(time.time() * 1_000) < metadata.last_updated_ms - _TOLERATED


def stamped_in_order(table: Table) -> Table:
    """The same table, but its transactions stamp their snapshots later than any that the table has."""
    return interposed(table, _StampingCatalog)


class _StampingCatalog(InterposedCatalog):
    def commit_table(self, table: Table, requirements: Any, updates: Any) -> CommitTableResponse:
        from pyiceberg.table.update import AddSnapshotUpdate

        earliest = table.metadata.last_updated_ms + 1
        stamped = []
        for update in updates:
            if isinstance(update, AddSnapshotUpdate):
                behind = earliest - update.snapshot.timestamp_ms
                if behind > _NOTICED:
                    _log.warning(
                        "%s was last changed at %s, which is %d s ahead of this machine's clock: one of the two clocks is wrong; "
                        "this snapshot is stamped with the same time",
                        ".".join(table.name()),
                        to_datetime(table.metadata.last_updated_ms),
                        behind // 1_000,
                    )
                if behind > 0:
                    snapshot = update.snapshot.model_copy(update={"timestamp_ms": earliest})
                    stamped.append(update.model_copy(update={"snapshot": snapshot}))
                    earliest += 1
                    continue
                earliest = update.snapshot.timestamp_ms + 1
            stamped.append(update)
        return self._catalog.commit_table(table, requirements, tuple(stamped))
