"""Quarantined rows and files at rest: what could not be used, why, and where it came from.

Which rows those are is decided in ``storage.raw_files``; what they mean for the batch stays out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rollup_assets.batches import Batch
from rollup_assets.storage import encodings
from rollup_assets.storage.arrays import mask, milliseconds
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import QUARANTINED, Manifest, Stage, StagedFile, not_readable
from rollup_assets.storage.parquet import ParquetFileWriter, check_footer, reading_staged
from rollup_assets.storage.raw_files import ELSEWHERE, ROW_REASONS, RawRows

if TYPE_CHECKING:
    import pyarrow as pa

# A row takes about 70 bytes in each of its forms: selected, packed and in transit.
_ROWS_AT_ONCE = 1 << 16
# A file with one bad row makes a block of one row, which takes 100 times the row's size.
_BLOCKS_AT_ONCE = 1024
_REPEATED = ("reason", "file", "metric")


@dataclass(frozen=True, slots=True)
class BadFile:
    """A raw file that is quarantined as a whole."""

    path: str
    reason: str
    detail: str
    rows: int
    """Rows according to its footer; 0 if that cannot be read."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What is quarantined for one reason in one file."""

    reason: str
    file: str
    rows: int
    whole_file: bool
    """Whether the file is quarantined as a whole, rather than some of its rows."""


def quarantine_schema(value_column: str) -> pa.Schema:
    """Schema of quarantined rows."""
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("reason", pa.string(), nullable=False),
            pa.field("file", pa.string(), nullable=False),
            ("row_number", pa.int64()),
            pa.field("rows", pa.int64(), nullable=False),
            ("detail", pa.string()),
            ("id", pa.int64()),
            ("org_id", pa.int64()),
            ("metric", pa.string()),
            ("logical_timestamp", pa.int64()),
            (value_column, pa.float64() if value_column == "double_value" else pa.int64()),
            ("receive_timestamp", pa.int64()),
        ]
    )


def _packed_schema(value_column: str) -> pa.Schema:
    """Schema of quarantined rows in transit: a text is stored once, however long it is and however many rows have it."""
    import pyarrow as pa

    schema = quarantine_schema(value_column)
    for name in _REPEATED:
        place = schema.get_field_index(name)
        schema = schema.set(place, schema.field(place).with_type(pa.dictionary(pa.int32(), pa.string())))
    return schema


def rows_to_quarantine(rows: RawRows, path: str, value_column: str) -> Iterator[pa.RecordBatch]:
    """The rows with a quarantine reason, as they were read from the raw file ``path``, a limited number at a time."""
    if rows.reason is None:
        return
    places = np.flatnonzero((rows.reason != 0) & (rows.reason != ELSEWHERE))
    for first in range(0, len(places), _ROWS_AT_ONCE):
        yield _packed(rows, places[first : first + _ROWS_AT_ONCE], path, value_column)


def _packed(rows: RawRows, places: NDArray[np.int64], path: str, value_column: str) -> pa.RecordBatch:
    import pyarrow as pa
    import pyarrow.compute as pc

    assert rows.reason is not None
    schema = _packed_schema(value_column)
    taken = rows.table.drop_columns(["metric"]).take(pa.array(places))

    def column(name: str) -> pa.Array:
        return taken.column(name).combine_chunks()

    receive = pa.nulls(len(places), pa.int64())
    if "receive_timestamp" in taken.column_names:
        # Not computed from the lag, which is bounded, and unknown if the receive time makes no sense.
        received = column("receive_timestamp")
        receive = pc.if_else(received.is_valid(), pa.array(milliseconds(received)), pa.scalar(None, pa.int64()))
    columns = [
        pa.DictionaryArray.from_arrays(pa.array(rows.reason[places].astype(np.int32) - 1), pa.array(ROW_REASONS, pa.string())),
        pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(places), np.int32)), pa.array([path], pa.string())),
        pa.array(rows.position + places),
        pa.array(np.ones(len(places), np.int64)),
        pa.nulls(len(places), pa.string()),
        column("id").cast(pa.int64()),
        column("org_id").cast(pa.int64()),
        _names_of(rows, places),
        pc.if_else(column("logical_timestamp").is_valid(), pa.array(rows.time[places]), pa.scalar(None, pa.int64())),
        column(value_column).cast(schema.field(value_column).type),
        receive,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _names_of(rows: RawRows, places: NDArray[np.int64]) -> pa.DictionaryArray:
    """The metric of some rows; the dictionary has only their names, not all of the row group's."""
    import pyarrow as pa

    codes = rows.metric[places]
    is_null = mask(rows.table.column("metric").is_null().combine_chunks())[places]
    if rows.names.null_count:
        is_null |= mask(rows.names.is_null())[codes]
    known = pa.array(codes, mask=is_null).dictionary_encode()
    return pa.DictionaryArray.from_arrays(known.indices, rows.names.take(known.dictionary))


def bad_file_row(bad: BadFile, value_column: str) -> pa.RecordBatch:
    """One row that stands for a whole file."""
    import pyarrow as pa

    row = {"reason": bad.reason, "file": bad.path, "rows": bad.rows, "detail": bad.detail}
    return pa.RecordBatch.from_pylist([row], schema=_packed_schema(value_column))


def serialized(batch: pa.RecordBatch) -> pa.Buffer:
    """A record batch as bytes, with its schema."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    return sink.getvalue()


class QuarantineWriter:
    """Writes the quarantined rows of a batch to one file, in row groups of a fixed size."""

    def __init__(self, folder: Place, attempt: str, value_column: str) -> None:
        self._path = f"{attempt}/quarantined-00000.parquet"
        self._schema = _packed_schema(value_column)
        self._writer = ParquetFileWriter(folder / self._path, self._schema, encodings.QUARANTINED)
        self._pending: list[pa.RecordBatch] = []
        self._rows = 0
        """Number of pending rows."""

    def write(self, payload: memoryview) -> None:
        """Append rows that :func:`serialized` packed; the payload need not stay valid."""
        import pyarrow as pa

        with pa.ipc.open_stream(pa.py_buffer(bytes(payload))) as stream:
            rows = stream.read_all()
        self._pending += rows.to_batches()
        self._rows += rows.num_rows
        if self._rows >= encodings.QUARANTINED_ROW_GROUP:
            self._flush(everything=False)
        elif len(self._pending) >= _BLOCKS_AT_ONCE:
            self._pending = _row_group(pa.Table.from_batches(self._pending, self._schema)).to_batches()

    def _flush(self, *, everything: bool) -> None:
        import pyarrow as pa

        group = encodings.QUARANTINED_ROW_GROUP
        table = pa.Table.from_batches(self._pending, self._schema)
        whole = table.num_rows if everything else table.num_rows // group * group
        for first in range(0, whole, group):
            self._writer.write(_row_group(table.slice(first, min(group, whole - first))))
        self._pending = table.slice(whole).to_batches()
        self._rows = table.num_rows - whole

    def close(self) -> StagedFile:
        """Finish the file."""
        self._flush(everything=True)
        return self._writer.close(self._path)


def _row_group(rows: pa.Table) -> pa.Table:
    """The rows in one piece. Dictionaries hold just the rows' values, in their order, however the rows were cut before."""
    import pyarrow as pa

    whole = rows.unify_dictionaries().combine_chunks()
    for name in _REPEATED:
        column = whole.column(name).combine_chunks()
        codes = column.indices.dictionary_encode()
        ordered = pa.DictionaryArray.from_arrays(codes.indices, column.dictionary.take(codes.dictionary))
        place = whole.schema.get_field_index(name)
        whole = whole.set_column(place, whole.schema.field(place), ordered)
    return whole


def tallies(stage: Stage, batch: Batch, quarantined: Manifest) -> list[Tally]:
    """What is quarantined, by reason and file; reads three columns of the staged rows, a row group at a time.

    Raises:
        StageCorruptError: a staged file is damaged or cannot be read. That all are there is up to the caller.
    """
    import pyarrow as pa

    found: dict[tuple[str, str, bool], int] = {}
    columns = {"reason": None, "file": None, "rows": None, "whole": _is_whole_file()}
    for rows in _batches(stage, batch, quarantined, columns, None):
        counted = pa.Table.from_batches([rows]).group_by(["reason", "file", "whole"], use_threads=False).aggregate([("rows", "sum")])
        for one in counted.to_pylist():
            key = (one["reason"], one["file"], one["whole"])
            found[key] = found.get(key, 0) + one["rows_sum"]
    return [Tally(reason, file, rows, whole) for (reason, file, whole), rows in sorted(found.items())]


def staged_rows(
    stage: Stage,
    batch: Batch,
    quarantined: Manifest,
    *,
    reason: str | None = None,
    file: str | None = None,
    whole_files: bool | None = None,
) -> Iterator[pa.RecordBatch]:
    """The quarantined rows in staged order, at most a row group at a time, read lazily.

    Args:
        stage: the stage that they are in.
        batch: the partition's batch.
        quarantined: the partition's manifest.
        reason: only rows with this reason.
        file: only rows of this raw file; the end of its path is enough.
        whole_files: True: only files that are quarantined as a whole; False: only single rows.

    Raises:
        StageCorruptError: as :func:`tallies`.
    """
    import pyarrow.compute as pc
    import pyarrow.dataset as ds

    chosen = None
    for condition in (
        None if reason is None else ds.field("reason") == reason,
        None if file is None else (ds.field("file") == file) | pc.ends_with(ds.field("file"), f"/{file}"),
        None if whole_files is None else _is_whole_file() if whole_files else ~_is_whole_file(),
    ):
        if condition is not None:
            chosen = condition if chosen is None else chosen & condition
    return _batches(stage, batch, quarantined, None, chosen)


def _is_whole_file() -> Any:
    import pyarrow.dataset as ds

    return ds.field("row_number").is_null()


def _batches(stage: Stage, batch: Batch, quarantined: Manifest, columns: dict[str, Any] | None, condition: Any) -> Iterator[pa.RecordBatch]:
    for file in quarantined.files:
        place = stage.place(quarantined, file, batch)
        try:
            yield from _batches_of(place, file, batch, columns, condition)
        except OSError as error:
            # No engine would try again, as for other staged files: these are read where partitions are looked at one after the other.
            raise not_readable(place, error) from error


def _batches_of(place: Place, file: StagedFile, batch: Batch, columns: dict[str, Any] | None, condition: Any) -> Iterator[pa.RecordBatch]:
    import pyarrow.dataset as ds

    checked = ds.ParquetFileFormat(default_fragment_scan_options=ds.ParquetFragmentScanOptions(page_checksum_verification=True))
    chosen = columns and {name: ds.field(name) if column is None else column for name, column in columns.items()}
    with reading_staged(place, QUARANTINED, batch):
        # Row groups are left out for what the footer says of them.
        check_footer(place, file)
        found = ds.dataset([place.path], filesystem=place.filesystem, format=checked)
        row_groups = [row_group for fragment in found.get_fragments() for row_group in fragment.split_by_row_group()]
    # A row group at a time, for callers that want only the first rows: a scan of more would read ahead even without threads and
    # readahead, since its rows are handed over through a queue.
    for row_group in row_groups:
        (group,) = row_group.row_groups
        with reading_staged(place, QUARANTINED, batch, group.total_byte_size, group.num_rows):
            scanner = row_group.scanner(schema=found.schema, columns=chosen, filter=condition, use_threads=False)
            yield from (rows for rows in scanner.to_batches() if rows.num_rows)
