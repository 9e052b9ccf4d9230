"""What others do to the table while we publish: appends, compaction and expiry, by PyIceberg alone and without our lock."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pyarrow as pa

from rollup_assets.iceberg.catalog import open_catalog
from rollup_assets.iceberg.schema import arrow_schema
from rollup_assets_tests.naive import Row
from rollup_assets_tests.staged import ROLLUP_COLUMNS

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from rollup_assets.batches import Batch
    from rollup_assets_tests.faults.site import Site

TRIES = 40


def append_into(site: Site, batch: Batch) -> None:
    """A row inside a batch's range, of a series that does not exist."""
    site.foreign = True
    with open_catalog(site.settings) as catalog:
        catalog.load_table(site.settings.table).append(_rows(site, batch.start + 60_000, 12_345))


def append_elsewhere(site: Site, number: int = 0) -> None:
    """A row of a day that no batch of the site has; it stays for good. Tried again when others were faster, four times in a row."""
    from pyiceberg.exceptions import CommitFailedException

    label = site.batch(24 * 40 + number).start
    site.foreign = True
    for _ in range(TRIES):
        with open_catalog(site.settings) as catalog:
            table = catalog.load_table(site.settings.table)
            try:
                table.append(_rows(site, label, 777))
            except CommitFailedException:
                time.sleep(random.uniform(0, 0.05))
                continue
            snapshot = table.current_snapshot()
        assert snapshot is not None
        site.foreign_snapshots.append(snapshot.snapshot_id)
        site.foreign_windows.add((777, site.settings.resolutions[0], label))
        return
    raise AssertionError("the append never came to its turn")


def compact(site: Site) -> None:
    """All data files of each partition value into one, in one snapshot; tried again when somebody else was faster."""
    from pyiceberg.exceptions import CommitFailedException, ValidationException

    site.foreign = True
    for _ in range(TRIES):
        with open_catalog(site.settings) as catalog:
            table = catalog.load_table(site.settings.table)
            try:
                _rewrite(table)
            except (CommitFailedException, ValidationException, FileNotFoundError):
                time.sleep(random.uniform(0, 0.05))
                continue
            snapshot = table.current_snapshot()
        assert snapshot is not None
        site.foreign_snapshots.append(snapshot.snapshot_id)
        return
    raise AssertionError("compaction never came to its turn")


def _rewrite(table: Table) -> None:
    from pyiceberg.io.pyarrow import _dataframe_to_data_files

    files = [task.file for task in table.scan().plan_files()]
    content = table.scan().to_arrow()
    with table.transaction() as transaction, transaction.update_snapshot().overwrite() as overwrite:
        for file in files:
            overwrite.delete_data_file(file)
        for made in _dataframe_to_data_files(table_metadata=transaction.table_metadata, df=content, io=table.io):
            overwrite.append_data_file(made)


def expire(site: Site, keep: int) -> None:
    """All but the newest snapshots, as somebody's nightly job does, without looking at what we keep."""
    from pyiceberg.exceptions import CommitFailedException
    from pyiceberg.table.update.snapshot import ExpireSnapshots

    site.foreign = True
    site.overrides.setdefault("keep_snapshots", keep)
    with open_catalog(site.settings) as catalog:
        table = catalog.load_table(site.settings.table)
        by_age = sorted(table.metadata.snapshots, key=lambda snapshot: snapshot.sequence_number or 0)
        try:
            with table.transaction() as transaction:
                ExpireSnapshots(transaction).by_ids([snapshot.snapshot_id for snapshot in by_age[:-keep]]).commit()
        except (ValueError, CommitFailedException) as error:
            # Ours has expired some of them meanwhile, or was faster; the job's next run does the rest.
            if isinstance(error, ValueError) and "does not exist" not in str(error):
                raise


def _rows(site: Site, label: int, series: int) -> pa.Table:
    resolution = site.settings.resolutions[0]
    row = Row(series, 1, "foreign", resolution, label, 1, 5, 5, 5, 5.0, 5, None, 0, None, None)
    values = {"metric_shard_id": 0, "id": row.id, "org_id": row.org_id, "metric": row.metric, "resolution": resolution}
    values |= {name: getattr(row, name.removesuffix("_rollup")) for name in ROLLUP_COLUMNS if name.endswith("_rollup")}
    schema = arrow_schema(site.settings.value_type)
    stamp = pa.array([label * 1_000], pa.int64()).cast(pa.timestamp("us", "UTC"))
    columns = [stamp if field.name == "logical_timestamp" else pa.array([values[field.name]], field.type) for field in schema]
    return pa.table(columns, schema=schema)
