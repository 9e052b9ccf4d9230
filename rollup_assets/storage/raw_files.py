"""Raw files: from a Parquet file of the landing zone to plain columns with a quarantine reason per row.

Accepted types are converted here and nowhere else. Which files belong to a batch (``storage.landing_zone``) and what happens to
the rows stay out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rollup_assets.batches import time_text
from rollup_assets.errors import ShortOfMemoryError, StaleInputError, StorageError
from rollup_assets.storage.arrays import integers, lags, mask, milliseconds, read_only
from rollup_assets.storage.bounds import Bounds
from rollup_assets.storage.filesystems import in_parallel
from rollup_assets.storage.footers import Range, row_group_ranges
from rollup_assets.storage.raw_limits import (
    DEFAULT_LIMITS,
    RawLimits,
    TooLargeError,
    check_names,
    check_row_groups,
    open_parquet,
    parse_footer,
    read_tail,
)
from rollup_assets.storage.refused_memory import is_false_claim, short_of_memory
from rollup_assets.storage.storage_errors import is_damage, storage_error

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rollup_assets.batches import Batch
    from rollup_assets.storage.filesystems import Place
    from rollup_assets.storage.landing_zone import LandingZone

# Quarantine reasons of rows, in order of precedence; a row's code is its reason's place + 1, 0 means accepted.
ROW_REASONS = (
    "null_id",
    "null_timestamp",
    "null_value",
    "non_finite_value",
    "null_dimension",
    "before_start",
    "too_late",
    "in_future",
    "outside_batch",
)
_NULL_ID, _NULL_TIMESTAMP, _NULL_VALUE, _NON_FINITE, _NULL_DIMENSION, _BEFORE_START, _TOO_LATE, _IN_FUTURE, _OUTSIDE = range(1, 10)
# The code of a row that belongs to another batch.
ELSEWHERE = 255
UNREADABLE_FILE = "unreadable_file"
SCHEMA_MISMATCH = "schema_mismatch"
TOO_LARGE = "too_large"
COPIED_FILE = "copied_file"
FILE_REASONS = (UNREADABLE_FILE, SCHEMA_MISMATCH, TOO_LARGE, COPIED_FILE)
"""Quarantine reasons of whole files."""

# A row group may be as large as its file: never decode more rows than this at once, and fewer if memory is short. A row takes about 40
# bytes decoded and as much again packed; the row group's pages that Arrow holds come on top.
MOST_ROWS = 1 << 20
FEWEST_ROWS = 1 << 16
_BYTES_PER_ROW = 256
_COLUMNS = ("id", "org_id", "metric", "logical_timestamp", "receive_timestamp")
_TIME = "logical_timestamp"


class UnreadableFileError(Exception):
    """A raw file cannot be read; the message says why, and ``reason`` is its quarantine reason."""

    def __init__(self, message: str, reason: str = UNREADABLE_FILE) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class RawRows:
    """Consecutive rows of a raw file. Where ``reason`` is not 0, a value may stand for a null, and is then arbitrary."""

    position: int
    """Row number of the first row in the file, from 0."""
    id: NDArray[np.int64]
    org: NDArray[np.int64]
    metric: NDArray[np.int32]
    """Codes into ``names``."""
    names: pa.Array
    time: NDArray[np.int64]
    """Epoch milliseconds."""
    value: NDArray[Any]
    """int64 or float64."""
    lag: NDArray[np.int64] | None
    """Receive time - logical time in ms, int64's minimum where unknown; None: no row has a receive time."""
    reason: NDArray[np.uint8] | None
    """Quarantine code of each row, or ``ELSEWHERE``; None: all are accepted."""
    table: pa.Table
    """The rows as they were read."""


def schema_problem(schema: pa.Schema, value_column: str) -> str | None:
    """What is wrong with a raw file's schema, in words; None if nothing. Columns that we do not use do not matter."""
    import pyarrow.types as pt

    def integer(kind: pa.DataType) -> bool:
        return bool(pt.is_int32(kind) or pt.is_int64(kind))

    def time(kind: pa.DataType) -> bool:
        return integer(kind) or bool(pt.is_timestamp(kind))

    def text(kind: pa.DataType) -> bool:
        kind = kind.value_type if pt.is_dictionary(kind) else kind
        return bool(pt.is_string(kind) or pt.is_large_string(kind))

    def floating(kind: pa.DataType) -> bool:
        return bool(pt.is_float64(kind) or pt.is_float32(kind))

    wanted = [
        ("id", integer, "int32 or int64"),
        ("org_id", integer, "int32 or int64"),
        ("metric", text, "string, large_string or a dictionary of them"),
        ("logical_timestamp", time, "int64 (ms), int32 or timestamp"),
        (
            value_column,
            floating if value_column == "double_value" else integer,
            "float64 or float32" if value_column == "double_value" else "int32 or int64",
        ),
        ("receive_timestamp", time, "int64 (ms), int32 or timestamp"),
    ]
    for name, accepts, types in wanted:
        found = schema.get_all_field_indices(name)
        if not found:
            if name == "receive_timestamp":
                continue
            return f"column {name} is missing"
        if len(found) > 1:
            return f"column {name} is there {len(found)} times"
        kind = schema.field(found[0]).type
        if not accepts(kind):
            return f"column {name} is {kind}, expected {types}"
    return None


class RawFile:
    """One open raw file.

    Raises:
        UnreadableFileError: from the constructor and from :meth:`rows`, if the file is damaged, or exceeds ``limits``.
        StorageError: likewise, if network, disk or permissions fail, which says nothing about the file.
        ShortOfMemoryError: likewise, if there is no memory for what the footer says.
        StaleInputError: from the constructor, if the file is gone or is no longer the ``version`` that was listed.
    """

    def __init__(self, place: Place, value_column: str, version: str | None = None, limits: RawLimits = DEFAULT_LIMITS) -> None:
        import pyarrow as pa

        self._place = place
        self._value_column = value_column
        self._limits = limits
        try:
            source = place.open_input()
            _check_version(place, source, version)
            self._tail = read_tail(source)
            metadata = parse_footer(self._tail, limits)
            # Asking for the dictionary of a column that is missing, or is a struct, raises a KeyError.
            paths = {metadata.schema.column(index).path for index in range(metadata.num_columns)}
            # Reading whole files takes two to three times as long as reading each row group on the calling thread.
            self._file: pq.ParquetFile = open_parquet(
                source,
                metadata,
                read_dictionary=["metric"] if "metric" in paths else None,
                pre_buffer=not place.is_local,
                # Checksums of the pages that have one: parquet-mr writes them, and so does Spark.
                page_checksum_verification=True,
            )
            self._schema: pa.Schema = self._file.schema_arrow
            check_row_groups(metadata, limits)
        except (pa.ArrowException, OSError, ValueError, TooLargeError) as error:
            raise reading_error(error, place) from error
        self.row_count: int = self._file.metadata.num_rows
        self.problem = schema_problem(self._schema, value_column)
        self.rows_skipped = 0
        """Rows that :meth:`rows` skipped, since statistics show that all belong to other batches."""

    def rows(self, bounds: Bounds, memory: int) -> Iterator[RawRows]:
        """The file's rows in order, classified for a batch, as many at once as fit into ``memory`` bytes; skips row groups ruled out."""
        import pyarrow as pa

        columns = [name for name in (*_COLUMNS, self._value_column) if name in self._schema.names]
        most_rows = max(FEWEST_ROWS, min(MOST_ROWS, memory // _BYTES_PER_ROW))
        position = 0
        try:
            for group, (rows, times) in enumerate(_row_groups(self._file.metadata, self._tail, bounds)):
                if times is not None and bounds.rule_out(*times):
                    self.rows_skipped += rows
                    position += rows
                    continue
                for table in self._tables(group, rows, columns, most_rows):
                    if table.num_rows:
                        check_names(table.column("metric"), self._limits)
                        found = _normalised(table, position, self._value_column, bounds)
                        _check_times(found, times)
                        yield found
                    position += table.num_rows
        except (pa.ArrowException, OSError, ValueError, TooLargeError) as error:
            raise reading_error(error, self._place) from error

    def _tables(self, group: int, rows: int, columns: list[str], most_rows: int) -> Iterator[pa.Table]:
        import pyarrow as pa

        try:
            if rows <= most_rows:
                yield self._file.read_row_group(group, columns=columns, use_threads=False)
            else:
                for batch in self._file.iter_batches(most_rows, row_groups=[group], columns=columns, use_threads=False):
                    yield pa.Table.from_batches([batch])
        except pa.ArrowMemoryError as error:
            if not is_false_claim(error, self._file.metadata.row_group(group).total_byte_size, min(rows, most_rows)):
                raise
            raise UnreadableFileError(f"a page claims more than all of its row group takes ({_first_line(error)})") from error


def count_rows(place: Place, bounds: Bounds, limits: RawLimits = DEFAULT_LIMITS) -> int:
    """Rows of a raw file that have to be decoded for a batch, by its footer; 0 if it is damaged or too large.

    Raises:
        StorageError: network, disk or permissions failed.
        StaleInputError: the file is gone.
        ShortOfMemoryError: there is no memory for the footer.
    """
    import pyarrow as pa

    try:
        with place.open_input() as source:
            tail = read_tail(source)
        groups = _row_groups(parse_footer(tail, limits), tail, bounds)
        return sum(rows for rows, times in groups if times is None or not bounds.rule_out(*times))
    except (pa.ArrowException, OSError, ValueError, TooLargeError) as error:
        found = reading_error(error, place)
        if isinstance(found, UnreadableFileError):
            return 0
        raise found from error


def count_batch_rows(zone: LandingZone, batch: Batch, limits: RawLimits) -> int:
    """Rows of all raw files that have to be decoded for a batch, by their footers.

    Raises:
        LandingZoneError: raw data lies where no batch would read it.
        StorageError, StaleInputError: as :func:`count_rows`.
    """
    files = [(zone.place(file), zone.bounds(batch, folder)) for folder, some in zone.files_by_folder(batch).items() for file in some]
    return sum(in_parallel(lambda file: count_rows(*file, limits), files, local=zone.root.is_local))


def _row_groups(metadata: pq.FileMetaData, tail: pa.Buffer, bounds: Bounds) -> list[tuple[int, Range | None]]:
    """Each row group's rows, and its first and last timestamp (ms) if rows may be several batches' and statistics tell, else None."""
    rows = [int(metadata.row_group(group).num_rows) for group in range(metadata.num_row_groups)]
    ticks = _ticks_per_millisecond(metadata) if bounds.by_arrival else None
    if ticks is not None:
        length = int.from_bytes(memoryview(tail)[-8:-4], "little")
        found = row_group_ranges(bytes(memoryview(tail)[-8 - length : -8]), _TIME)
        if [count for count, _ in found] == rows:
            return [(count, None if times is None else (times[0] // ticks, times[1] // ticks)) for count, times in found]
    return [(count, None) for count in rows]


def _check_times(rows: RawRows, times: Range | None) -> None:
    """Check rows against their row group's statistics: other batches trust these, and would miss a row outside of them.

    Raises:
        UnreadableFileError: a row is outside of them.
    """
    from rollup_assets.kernels.columns import extremes

    if times is None:
        return
    stored = rows.table.column(_TIME)
    known = rows.time[stored.is_valid().to_numpy()] if stored.null_count else rows.time
    if len(known):
        low, high = extremes(known)
        if low < times[0] or high > times[1]:
            said = " to ".join(time_text(time) for time in times)
            raise UnreadableFileError(f"the statistics of a row group contradict its rows: they say {said}")


def _ticks_per_millisecond(metadata: pq.FileMetaData) -> int | None:
    """Units of the stored timestamps per millisecond; None if unknown."""
    columns = (metadata.schema.column(place) for place in range(len(metadata.schema)))
    column = next((column for column in columns if column.path == _TIME), None)
    if column is None or column.physical_type not in ("INT32", "INT64"):
        return None
    kind = json.loads(column.logical_type.to_json())
    if kind["Type"] == "Timestamp":
        return {"milliseconds": 1, "microseconds": 1_000, "nanoseconds": 1_000_000}.get(kind["timeUnit"])
    return 1 if kind["Type"] in ("None", "Int") else None


def _check_version(place: Place, source: pa.NativeFile, version: str | None) -> None:
    if version is None:
        return
    if version.startswith("etag:"):
        etag = (source.metadata() or {}).get("ETag", b"").decode().strip('"')
        replaced = bool(etag) and f"etag:{etag}" != version
    else:
        replaced = version.startswith("mtime:") and place.version() != version
    if replaced:
        raise StaleInputError(f"{place.uri} was replaced after it had been listed; run the same command again")


def reading_error(error: Exception, place: Place) -> UnreadableFileError | StorageError | StaleInputError | ShortOfMemoryError:
    """The error to raise: UnreadableFileError for a file that is damaged or too large, which is quarantined; others stop the step."""
    if isinstance(error, TooLargeError):
        return UnreadableFileError(str(error), TOO_LARGE)
    if isinstance(error, MemoryError):
        return short_of_memory(place.uri, error)
    if known := storage_error(error, place.uri, place.s3) if isinstance(error, OSError) else None:
        return known
    if is_damage(error):
        return UnreadableFileError(_first_line(error))
    if isinstance(error, FileNotFoundError):
        return StaleInputError(f"{place.uri} was deleted after it had been listed; run the same command again")
    reason = getattr(error, "strerror", None) or _first_line(error)
    return StorageError(f"{place.uri} cannot be read ({reason}); let this user read all of ROLLUP_RAW, and run the same command again")


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:300] if str(error) else type(error).__name__


def _whole(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return column.chunk(0)
    return column.unify_dictionaries().combine_chunks() if column.num_chunks else column.combine_chunks()


def _codes(array: pa.Array) -> tuple[NDArray[np.int32], pa.Array]:
    import pyarrow as pa
    import pyarrow.types as pt

    if not pt.is_dictionary(array.type):
        array = array.dictionary_encode()
    indices = array.indices.fill_null(0) if array.indices.null_count else array.indices
    return np.asarray(indices.cast(pa.int32()).to_numpy()), array.dictionary.cast(pa.string())


def _null_names(array: pa.Array) -> pa.Array:
    """Which rows of a dictionary array are null, in the indices or in the dictionary."""
    import pyarrow.types as pt

    if pt.is_dictionary(array.type) and array.dictionary.null_count:
        return array.cast(array.type.value_type).is_null()
    return array.is_null()


def _normalised(table: pa.Table, position: int, value_column: str, bounds: Bounds) -> RawRows:
    from rollup_assets.kernels.columns import all_finite, extremes

    columns = {name: _whole(table.column(name)) for name in table.column_names}
    time = read_only(milliseconds(columns["logical_timestamp"]))
    receive = columns.get("receive_timestamp")
    codes, names = _codes(columns["metric"])
    if value_column == "double_value":
        import pyarrow as pa

        values = columns[value_column].cast(pa.float64())
        value = read_only(values.fill_null(0.0).to_numpy(zero_copy_only=False))
        finite = all_finite(value)
    else:
        value = integers(columns[value_column])
        finite = True
    low, high = extremes(time)
    required = ("id", "org_id", "metric", "logical_timestamp", value_column)
    reason = None
    if not finite or low < bounds.start or high >= bounds.end or any(columns[name].null_count for name in required) or names.null_count:
        reason = _time_reasons(time, bounds)
        # Of several reasons the first one wins, so they are written in reverse order.
        reason[mask(columns["org_id"].is_null()) | mask(_null_names(columns["metric"]))] = _NULL_DIMENSION
        if not finite:
            reason[~np.isfinite(value)] = _NON_FINITE
        reason[mask(columns[value_column].is_null())] = _NULL_VALUE
        reason[mask(columns["logical_timestamp"].is_null())] = _NULL_TIMESTAMP
        reason[mask(columns["id"].is_null())] = _NULL_ID
        if not bounds.is_own:
            # A bad row is quarantined only by the batch whose folder it is in.
            reason[reason != 0] = ELSEWHERE
    return RawRows(
        position=position,
        id=integers(columns["id"]),
        org=integers(columns["org_id"]),
        metric=codes,
        names=names,
        time=time,
        value=value,
        lag=None if receive is None or receive.null_count == len(receive) else lags(receive, time),
        reason=reason,
        table=table,
    )


def _time_reasons(time: NDArray[np.int64], bounds: Bounds) -> NDArray[np.uint8]:
    """Codes of rows, judged by their timestamps alone."""
    reason = np.zeros(len(time), np.uint8)
    reason[(time < bounds.start) | (time >= bounds.end)] = ELSEWHERE if bounds.by_arrival else _OUTSIDE
    if bounds.in_future is not None:
        reason[time >= bounds.in_future] = _IN_FUTURE
    if bounds.too_late is not None:
        reason[time < bounds.too_late] = _TOO_LATE
    if bounds.before_start is not None:
        reason[time < bounds.before_start] = _BEFORE_START
    return reason
