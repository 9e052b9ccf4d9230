"""What the published table really holds for a batch, for reports. Publishing, and judging the result, are in other modules."""

from __future__ import annotations

from dataclasses import dataclass

from rollup_assets.batches import Batch
from rollup_assets.iceberg.reading import RangeCounts
from rollup_assets.pipeline import Pipeline
from rollup_assets.storage.storage_errors import explains_storage_errors


@dataclass(frozen=True, slots=True)
class TableState:
    """The current snapshot, as far as a batch is concerned."""

    counts: RangeCounts
    """Rows and files of the batch by resolution in ms."""
    total_rows: int
    """Rows of the whole table."""
    location: str


@explains_storage_errors
def read_back(pipeline: Pipeline, batch: Batch) -> TableState:
    """Look at the table as any reader would: through the catalog."""
    from rollup_assets.iceberg.catalog import open_catalog
    from rollup_assets.iceberg.reading import range_counts
    from rollup_assets.iceberg.table import load_table, table_location

    with open_catalog(pipeline.settings) as catalog:
        table = load_table(catalog, pipeline.settings)
        snapshot = table.current_snapshot() if table is not None else None
        if table is None or snapshot is None:
            return TableState(RangeCounts({}, {}), 0, table_location(pipeline.settings))
        total = int(snapshot.summary["total-records"] or 0) if snapshot.summary else 0
        return TableState(range_counts(table, batch), total, table.location())
