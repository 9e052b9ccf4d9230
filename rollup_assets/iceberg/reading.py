"""What is in the table: the live files of a range of labels, their counts from metadata, and their rows through Arrow.

Delete files that other engines have written are respected everywhere. Nothing here writes.
"""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache

from rollup_assets.batches import DAY_MS, Batch, BatchCalendar
from rollup_assets.errors import PublishError
from rollup_assets.iceberg.schema import arrow_schema, field_id

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.dataset import Dataset
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.manifest import ManifestFile
    from pyiceberg.table import FileScanTask, Table
    from pyiceberg.table.snapshots import Snapshot

_MICROSECONDS_A_MILLISECOND = 1_000
_DECODED_FILES = 4096
"""Files of manifests whose metadata this process keeps; each takes about ten kilobytes."""

_decoded: LRUCache[str, tuple[LiveFile, ...]] = LRUCache(_DECODED_FILES, getsizeof=len)
_decoded_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class LiveFile:
    """A data file of a snapshot.

    ``first`` and ``last`` are its least and greatest label in UTC epoch microseconds, None if its metadata does not say;
    ``resolution`` is in ms, None if the file holds several or its metadata does not say. ``rows`` counts deleted rows too.
    """

    task: FileScanTask
    path: str
    rows: int
    resolution: int | None
    first: int | None
    last: int | None
    has_deletes: bool

    @property
    def identity(self) -> tuple[str, ...]:
        """Equal for two files with the same rows: the file's path, and the paths of the files that delete some of its rows."""
        return (self.path, *sorted(file.file_path for file in self.task.delete_files))

    def within(self, batch: Batch) -> bool:
        """Whether metadata alone proves that every row has its label in the batch."""
        if self.first is None or self.last is None:
            return False
        return batch.start * _MICROSECONDS_A_MILLISECOND <= self.first and self.last < batch.end * _MICROSECONDS_A_MILLISECOND


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
    from pyiceberg.table import ManifestGroupPlanner

    snapshot = table.current_snapshot() if snapshot_id is None else table.snapshot_by_id(snapshot_id)
    if snapshot is None:
        return []
    manifests = _manifests_of(table, snapshot, batch)
    if not list_deletes(manifests):
        # Planning a scan takes five times as long, because it also computes each file's residual predicate, which is not needed here.
        files = itertools.chain.from_iterable(_files_of(table, manifest) for manifest in manifests)
        return [file for file in files if batch is None or _may_hold(table, file, batch)]
    planner = ManifestGroupPlanner(table.metadata, table.io, AlwaysTrue() if batch is None else range_predicate(batch))
    try:
        tasks = list(planner.plan_files(snapshot.manifests(table.io)))
    except ValueError as error:
        if "equality" not in str(error):
            raise
        raise PublishError(
            f"table {'.'.join(table.name())} has equality deletes, which cannot be read here ({error}); apply them with another engine, "
            "such as Spark's rewrite_data_files with delete-file-threshold=1, and run the same command again"
        ) from error
    return [as_live_file(task) for task in tasks]


def changed_files(
    table: Table, old: Snapshot | None, new: Snapshot | None, batch: Batch | None = None
) -> tuple[list[LiveFile], list[LiveFile]]:
    """The files that only one of two snapshots has and that may have a label in the batch (any unless given): the old ones, then the new.

    A file with other deleted rows counts as another file. Manifests that both have are not read. A snapshot of None has no files.

    Raises:
        PublishError: another engine has written equality deletes, which PyIceberg cannot apply.
    """
    listed = [[] if snapshot is None else _manifests_of(table, snapshot, batch) for snapshot in (old, new)]
    if any(list_deletes(manifests) for manifests in listed):
        sides = [[] if snapshot is None else live_files(table, batch, snapshot_id=snapshot.snapshot_id) for snapshot in (old, new)]
    else:
        of_both = {manifest.manifest_path for manifest in listed[0]} & {manifest.manifest_path for manifest in listed[1]}
        sides = [
            [
                file
                for manifest in manifests
                if manifest.manifest_path not in of_both
                for file in _files_of(table, manifest)
                if batch is None or _may_hold(table, file, batch)
            ]
            for manifests in listed
        ]
    same = {file.identity for file in sides[0]} & {file.identity for file in sides[1]}
    before, after = ([file for file in side if file.identity not in same] for side in sides)
    return before, after


def list_deletes(manifests: Iterable[ManifestFile]) -> bool:
    """Whether one of the manifests lists delete files."""
    from pyiceberg.manifest import ManifestContent

    return any(manifest.content != ManifestContent.DATA for manifest in manifests)


def _manifests_of(table: Table, snapshot: Snapshot, batch: Batch | None) -> list[ManifestFile]:
    """The snapshot's manifests that may list a file of the batch's days; those that list no live file are left out."""
    from pyiceberg.expressions.visitors import inclusive_projection, manifest_evaluator

    manifests = [manifest for manifest in snapshot.manifests(table.io) if manifest.has_added_files() or manifest.has_existing_files()]
    if batch is None:
        return manifests
    schema, specs, predicate = table.schema(), table.specs(), range_predicate(batch)
    may_match = {
        number: manifest_evaluator(specs[number], schema, inclusive_projection(schema, specs[number])(predicate))
        for number in {manifest.partition_spec_id for manifest in manifests}
    }
    return [manifest for manifest in manifests if may_match[manifest.partition_spec_id](manifest)]


def _files_of(table: Table, manifest: ManifestFile) -> tuple[LiveFile, ...]:
    """The live files that a manifest lists. Manifests never change, so each is decoded only once, at a tenth of a millisecond per file."""
    from pyiceberg.table import FileScanTask

    with _decoded_lock:
        found = _decoded.get(manifest.manifest_path)
    if found is None:
        entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
        found = tuple(as_live_file(FileScanTask(entry.data_file)) for entry in entries)
        if len(found) <= _DECODED_FILES:
            with _decoded_lock:
                _decoded[manifest.manifest_path] = found
    return found


def _may_hold(table: Table, file: LiveFile, batch: Batch) -> bool:
    """Whether a file may have a label in the batch, by its bounds, or by its day where its metadata has none."""
    if file.first is not None and file.last is not None:
        return file.first < batch.end * _MICROSECONDS_A_MILLISECOND and batch.start * _MICROSECONDS_A_MILLISECOND <= file.last
    spec = table.specs().get(file.task.file.spec_id)
    fields = [] if spec is None else spec.fields
    for place, field in enumerate(fields):
        if field.source_id == field_id("logical_timestamp") and str(field.transform) == "day":
            day = file.task.file.partition[place]
            return day is None or batch.start // DAY_MS <= int(day) <= (batch.end - 1) // DAY_MS
    return True


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


def range_counts(table: Table, batch: Batch | None, *, snapshot_id: int | None = None) -> RangeCounts:
    """Rows and files per resolution whose labels are in the batch, or anywhere.

    For files wholly inside and without deletes the metadata is enough; of the others, two columns are read.
    """
    from pyiceberg.expressions import AlwaysTrue

    predicate = AlwaysTrue() if batch is None else range_predicate(batch)
    rows: Counter[int] = Counter()
    holders: Counter[int] = Counter()
    for file in live_files(table, batch, snapshot_id=snapshot_id):
        found = (
            {file.resolution: file.rows}
            if file.resolution is not None and (batch is None or file.within(batch)) and not file.has_deletes
            else _count_rows(table, file, predicate)
        )
        for resolution, count in found.items():
            if count:
                rows[resolution] += count
                holders[resolution] += 1
    return RangeCounts(dict(rows), dict(holders))


def _count_rows(table: Table, file: LiveFile, predicate: BooleanExpression) -> dict[int, int]:
    resolutions = read_file(table, file, predicate, ("resolution",)).column("resolution")
    return {int(entry["values"]): int(entry["counts"]) for entry in resolutions.value_counts().to_pylist()}


def labels(table: Table, files: Iterable[LiveFile], calendar: BatchCalendar) -> set[int]:
    """The files' labels in epoch ms, as many as are needed to tell their batches: only the first and last of a file within one batch."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from pyiceberg.expressions import AlwaysTrue

    found: set[int] = set()
    for file in files:
        if file.first is not None and file.last is not None:
            first, last = file.first // _MICROSECONDS_A_MILLISECOND, file.last // _MICROSECONDS_A_MILLISECOND
            if calendar.containing(first) == calendar.containing(last):
                found.update((first, last))
                continue
        column = read_file(table, file, AlwaysTrue(), ("logical_timestamp",)).column("logical_timestamp")
        found.update(label // _MICROSECONDS_A_MILLISECOND for label in pc.unique(column.cast(pa.int64())).to_pylist())
    return found


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


def require_intact(table: Table, file: LiveFile, mend: str) -> None:
    """Compare the pages of a file with their checksums, if it has any. Called before a file is rewritten: PyIceberg does not check, and
    damaged rows would get new, valid checksums.

    Raises:
        PublishError: the file is damaged; the message ends with ``mend``, which says what to do.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rollup_assets.iceberg.file_io import arrow_filesystem
    from rollup_assets.storage.storage_errors import is_damage

    filesystem, path = arrow_filesystem(table, file.path)
    try:
        with filesystem.open_input_file(path) as source:
            opened = pq.ParquetFile(source, page_checksum_verification=True)
            for group in range(opened.num_row_groups):
                opened.read_row_group(group, use_threads=False)
    except (pa.ArrowException, OSError, ValueError) as error:
        if not is_damage(error):
            raise
        raise PublishError(
            f"data file {file.path} of {'.'.join(table.name())} is damaged ({error}), and would have to be rewritten; the table was left "
            f"as it was. {mend}"
        ) from error


def snapshot_dataset(table: Table, batch: Batch | None = None) -> Dataset:
    """The current snapshot's rows as an Arrow dataset, for engines that push columns and filters down (DuckDB, Polars).

    Columns are those of :func:`~rollup_assets.iceberg.schema.arrow_schema`. Files are opened when they are read, and skipped if the
    resolution and labels in their metadata rule them out; files with deletes are read at once and held in memory.
    """
    import pyarrow.dataset as ds

    found = files_dataset(table, live_files(table, batch))
    if batch is None:
        return found
    label = ds.field("logical_timestamp")
    return found.filter((label >= batch.start_time) & (label < batch.end_time))


def files_dataset(table: Table, files: Sequence[LiveFile]) -> Dataset:
    """The rows of some files, in the form of :func:`snapshot_dataset`."""
    import pyarrow.dataset as ds
    from pyiceberg.expressions import AlwaysTrue

    schema = table_arrow_schema(table)
    plain = [file for file in files if not file.has_deletes]
    children: list[Any] = [_file_dataset(table, plain, schema)] if plain else []
    children += [ds.dataset(read_file(table, file, AlwaysTrue(), tuple(schema.names)).cast(schema)) for file in files if file.has_deletes]
    if not children:
        children = [ds.dataset(schema.empty_table())]
    return children[0] if len(children) == 1 else ds.dataset(children)


def table_arrow_schema(table: Table) -> pa.Schema:
    """The Arrow schema of this pipeline's columns in the table, by the table's own value type."""
    from pyiceberg.types import DoubleType

    is_double = isinstance(table.schema().find_field("sum_rollup").field_type, DoubleType)
    return arrow_schema("double" if is_double else "long")


def _file_dataset(table: Table, files: list[LiveFile], schema: pa.Schema) -> Dataset:
    import pyarrow.dataset as ds

    from rollup_assets.iceberg.file_io import arrow_filesystem

    # Pre-buffering fetches the column chunks of a row group in parallel, which is what a store on the network needs.
    options = ds.ParquetFragmentScanOptions(pre_buffer=True, page_checksum_verification=True)
    file_format = ds.ParquetFileFormat(default_fragment_scan_options=options)
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
