"""What is in the table: the live files of a range of labels, their counts from metadata, and their rows through Arrow.

Delete files that other engines have written are respected everywhere. Nothing here writes.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rollup_assets.batches import Batch
from rollup_assets.errors import PublishError
from rollup_assets.iceberg.schema import arrow_schema, field_id

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.dataset import Dataset
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.table import FileScanTask, Table

_MICROSECONDS = 1_000


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A data file of a snapshot.

    ``first`` and ``last`` are its least and greatest label in UTC epoch microseconds, None where its metadata does not say;
    ``resolution`` is in ms, None where the file holds several or its metadata does not say. ``rows`` counts deleted rows too.
    """

    task: FileScanTask
    path: str
    rows: int
    resolution: int | None
    first: int | None
    last: int | None
    has_deletes: bool

    def within(self, batch: Batch) -> bool:
        """Whether metadata alone proves that every row has its label in the batch."""
        if self.first is None or self.last is None:
            return False
        return batch.start * _MICROSECONDS <= self.first and self.last < batch.end * _MICROSECONDS


@dataclass(frozen=True, slots=True)
class RangeCounts:
    """Rows and files per resolution in ms; a file that reaches beyond the range counts where it has rows in it."""

    rows: dict[int, int]
    files: dict[int, int]


def range_predicate(batch: Batch) -> BooleanExpression:
    """The rows that a batch publishes: labels in ``[start, end)``, at every resolution."""
    from pyiceberg.expressions import And, GreaterThanOrEqual, LessThan

    return And(
        GreaterThanOrEqual(term="logical_timestamp", value=batch.start_time.isoformat()),
        LessThan(term="logical_timestamp", value=batch.end_time.isoformat()),
    )


def live_files(table: Table, batch: Batch | None = None, *, snapshot_id: int | None = None) -> list[LiveFile]:
    """The files of a snapshot (the current one unless given) that may have a label in the batch (any unless given).

    Raises:
        PublishError: another engine has written equality deletes, which PyIceberg cannot apply.
    """
    from pyiceberg.expressions import AlwaysTrue
    from pyiceberg.manifest import DataFileContent
    from pyiceberg.table import FileScanTask, ManifestGroupPlanner

    snapshot = table.current_snapshot() if snapshot_id is None else table.snapshot_by_id(snapshot_id)
    if snapshot is None:
        return []
    planner = ManifestGroupPlanner(table.metadata, table.io, AlwaysTrue() if batch is None else range_predicate(batch))
    manifests = snapshot.manifests(table.io)
    # A whole plan takes five times as long, for what is left of the predicate in each file, which nobody asks for here.
    entries = list(itertools.chain.from_iterable(planner.plan_manifest_entries(manifests)))
    if all(entry.data_file.content == DataFileContent.DATA for entry in entries):
        return [as_live_file(FileScanTask(entry.data_file)) for entry in entries]
    try:
        tasks = list(planner.plan_files(manifests))
    except ValueError as error:
        if "equality" not in str(error):
            raise
        raise PublishError(
            f"table {'.'.join(table.name())} has equality deletes, which cannot be read here ({error}); apply them with another engine, "
            "such as Spark's rewrite_data_files with delete-file-threshold=1, and run the same command again"
        ) from error
    return [as_live_file(task) for task in tasks]


def as_live_file(task: FileScanTask) -> LiveFile:
    """What the metadata of a file says about its rows."""
    first, last = _bounds(task, "logical_timestamp")
    least, greatest = _bounds(task, "resolution")
    return LiveFile(
        task=task,
        path=task.file.file_path,
        rows=task.file.record_count,
        resolution=least if least == greatest else None,
        first=first,
        last=last,
        has_deletes=bool(task.delete_files),
    )


def _bounds(task: FileScanTask, column: str) -> tuple[int | None, int | None]:
    number = field_id(column)
    least, greatest = ((bounds or {}).get(number) for bounds in (task.file.lower_bounds, task.file.upper_bounds))
    # Iceberg's single-value form of int, long and timestamps: little-endian, signed.
    return (
        None if least is None else int.from_bytes(least, "little", signed=True),
        None if greatest is None else int.from_bytes(greatest, "little", signed=True),
    )


def range_counts(table: Table, batch: Batch, *, snapshot_id: int | None = None, files: Iterable[LiveFile] | None = None) -> RangeCounts:
    """Rows and files per resolution whose labels are in the batch.

    Metadata answers for files wholly inside without deletes; of the others two columns are read.
    """
    rows: Counter[int] = Counter()
    holders: Counter[int] = Counter()
    for file in live_files(table, batch, snapshot_id=snapshot_id) if files is None else files:
        found = (
            {file.resolution: file.rows}
            if file.resolution is not None and file.within(batch) and not file.has_deletes
            else _count_rows(table, file, range_predicate(batch))
        )
        for resolution, count in found.items():
            if count:
                rows[resolution] += count
                holders[resolution] += 1
    return RangeCounts(dict(rows), dict(holders))


def _count_rows(table: Table, file: LiveFile, predicate: BooleanExpression) -> dict[int, int]:
    resolutions = read_file(table, file, predicate, ("resolution",)).column("resolution")
    return {int(entry["values"]): int(entry["counts"]) for entry in resolutions.value_counts().to_pylist()}


def count_live_rows(table: Table, file: LiveFile) -> int:
    """Rows of a file that no delete file has removed."""
    from pyiceberg.expressions import AlwaysTrue

    return int(read_file(table, file, AlwaysTrue(), ("resolution",)).num_rows) if file.has_deletes else file.rows


def read_file(table: Table, file: LiveFile, predicate: BooleanExpression, columns: tuple[str, ...] | None = None) -> pa.Table:
    """The rows of one file that satisfy the predicate and are not deleted; all columns of the table unless given.

    The whole file is held in memory.
    """
    from pyiceberg.io.pyarrow import ArrowScan

    schema = table.schema() if columns is None else table.schema().select(*columns)
    return ArrowScan(table.metadata, table.io, schema, predicate).to_table([file.task])


def snapshot_dataset(table: Table, batch: Batch | None = None) -> Dataset:
    """The current snapshot's rows as an Arrow dataset, for engines that push columns and filters down (DuckDB, Polars).

    Columns are those of :func:`~rollup_assets.iceberg.schema.arrow_schema`. Files are opened when they are read, and skipped where
    the resolution and the labels that their metadata states rule them out; files with deletes are read at once and held in memory.
    """
    import pyarrow.dataset as ds
    from pyiceberg.expressions import AlwaysTrue

    schema = table_arrow_schema(table)
    files = live_files(table, batch)
    plain = [file for file in files if not file.has_deletes]
    children: list[Any] = [_file_dataset(table, plain, schema)] if plain else []
    children += [ds.dataset(read_file(table, file, AlwaysTrue(), tuple(schema.names)).cast(schema)) for file in files if file.has_deletes]
    if not children:
        children = [ds.dataset(schema.empty_table())]
    found = children[0] if len(children) == 1 else ds.dataset(children)
    if batch is None:
        return found
    label = ds.field("logical_timestamp")
    return found.filter((label >= batch.start_time) & (label < batch.end_time))


def table_arrow_schema(table: Table) -> pa.Schema:
    """The Arrow schema of this pipeline's columns in the table, by the table's own value type."""
    from pyiceberg.types import DoubleType

    is_double = isinstance(table.schema().find_field("sum_rollup").field_type, DoubleType)
    return arrow_schema("double" if is_double else "long")


def _file_dataset(table: Table, files: list[LiveFile], schema: pa.Schema) -> Dataset:
    import pyarrow.dataset as ds

    from rollup_assets.iceberg.file_io import arrow_filesystem

    # Pre-buffering fetches the column chunks of a row group side by side, which is what a store on the network needs.
    file_format = ds.ParquetFileFormat(default_fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=True))
    places = [arrow_filesystem(table, file.path) for file in files]
    fragments = [
        file_format.make_fragment(path, filesystem=filesystem, partition_expression=_guarantee(file))
        for (filesystem, path), file in zip(places, files, strict=True)
    ]
    return ds.FileSystemDataset(fragments, schema=schema, format=file_format, filesystem=places[0][0])


def _guarantee(file: LiveFile) -> Any:
    """What is true of every row of the file, as an Arrow expression; None if nothing is known."""
    import pyarrow as pa
    import pyarrow.dataset as ds

    known = []
    if file.resolution is not None:
        known.append(ds.field("resolution") == pa.scalar(file.resolution, pa.int32()))
    if file.first is not None and file.last is not None:
        stamp = pa.timestamp("us", "UTC")
        label = ds.field("logical_timestamp")
        known.append((label >= pa.scalar(file.first, stamp)) & (label <= pa.scalar(file.last, stamp)))
    if not known:
        return None
    return known[0] if len(known) == 1 else known[0] & known[1]
