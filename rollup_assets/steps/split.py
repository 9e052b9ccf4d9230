"""The split task: raw files to packed blocks, one stream of blocks per shard, with quarantined rows kept apart.

Runs on any engine; what it emits is sorted by ``steps.sort``. Which files there are and what the counts mean for the batch stay out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rollup_assets.batches import Batch
from rollup_assets.engines.base import Emit, TaskContext
from rollup_assets.failpoints import failpoint
from rollup_assets.steps.buffers import Buffers
from rollup_assets.storage import blocks
from rollup_assets.storage.arrays import read_only
from rollup_assets.storage.blocks import Header
from rollup_assets.storage.bounds import Bounds
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import InputFile
from rollup_assets.storage.metric_names import MetricNames, SentNames
from rollup_assets.storage.quarantine import BadFile, bad_file_row, rows_to_quarantine, serialized
from rollup_assets.storage.raw_files import (
    COPIED_FILE,
    ELSEWHERE,
    SCHEMA_MISMATCH,
    TOO_LARGE,
    RawFile,
    RawRows,
    UnreadableFileError,
)
from rollup_assets.storage.raw_limits import DEFAULT_LIMITS, RawLimits

if TYPE_CHECKING:
    import pyarrow as pa

_BUFFERS = Buffers()


@dataclass(frozen=True, slots=True)
class SplitFile:
    """A raw file, and how a batch reads it."""

    file: InputFile
    bounds: Bounds
    """Which of its rows are the batch's."""
    copy_of: str | None = None
    """Path of another raw file with the same content; if given, this file is quarantined as a whole as its copy."""
    copies: tuple[str, ...] = ()
    """Paths of files with the same content that are not read; if this file is bad as a whole, so are they."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.file.size


@dataclass(frozen=True, slots=True)
class SplitTask:
    """Some raw files of a batch, in path order."""

    landing_zone: Place
    files: tuple[SplitFile, ...]
    batch: Batch
    shards: int
    value_column: str
    limits: RawLimits = DEFAULT_LIMITS

    @property
    def quarantine_bucket(self) -> int:
        """The bucket for what is quarantined: the one after the shards'."""
        return self.shards


@dataclass(slots=True)
class SplitResult:
    """What a split task counted."""

    rows_read: int = 0
    elsewhere: int = 0
    """Rows that belong to other batches."""
    reasons: dict[str, int] = field(default_factory=dict)
    bad_files: list[BadFile] = field(default_factory=list)
    quarantined_by_file: dict[str, int] = field(default_factory=dict)
    """Rows quarantined one by one, by the path of their file."""
    seconds: dict[str, float] = field(default_factory=lambda: {"load kernels": 0.0, "read": 0.0, "split": 0.0})

    @property
    def rows_quarantined(self) -> int:
        """Rows quarantined, those of whole files included."""
        return sum(self.reasons.values())


class _TaskNames(MetricNames):
    """Metric names of a task, and which of them have been sent to each bucket."""

    def __init__(self, buckets: int) -> None:
        super().__init__()
        self.sent = SentNames(buckets)
        self._last: pa.Array | None = None
        self._translation = np.zeros(1, np.int32)

    def translation(self, names: pa.Array) -> NDArray[np.int32]:
        """The task's code of each name; consecutive row groups mostly have the same names."""
        if self._last is None or not names.equals(self._last):
            # No accepted row has a null name: any code will do.
            codes = [0 if name is None else self.code_of(name) for name in names.to_pylist()]
            self._translation = np.array(codes or [0], np.int32)
            self._last = names
        return self._translation


def split_files(task: SplitTask, emit: Emit, context: TaskContext) -> SplitResult:
    """Read the task's files and emit the blocks of every shard."""
    result = SplitResult()
    started = time.perf_counter()
    # Importing numba takes 1.6 to 2 s, once per process: timed separately, not as part of reading.
    from rollup_assets.kernels import shards  # noqa: F401

    result.seconds["load kernels"] += time.perf_counter() - started
    names = _TaskNames(task.shards)
    for number, file in enumerate(task.files):
        _split_file(task, number, file, names, emit, context, result)
    return result


def _split_file(
    task: SplitTask, number: int, split: SplitFile, names: _TaskNames, emit: Emit, context: TaskContext, result: SplitResult
) -> None:
    file = split.file
    if split.copy_of is not None:
        # All of its rows are in the other file, and are counted there.
        _quarantine_file(task, number, BadFile(file.path, COPIED_FILE, f"the same content as {split.copy_of}", 0), emit, result)
        return
    rows_read = elsewhere = 0
    reasons: dict[str, int] = {}
    bad: BadFile | None = None
    failpoint("read.file")
    try:
        raw = RawFile(task.landing_zone / file.path, task.value_column, file.version, task.limits)
        if raw.problem:
            bad = BadFile(file.path, SCHEMA_MISMATCH, raw.problem, raw.row_count)
        else:
            started = time.perf_counter()
            for rows in raw.rows(split.bounds, context.memory):
                read = time.perf_counter()
                result.seconds["read"] += read - started
                rows_read += len(rows.id)
                if rows.reason is not None:
                    elsewhere += int(np.count_nonzero(rows.reason == ELSEWHERE))
                    _quarantine(task, number, file, rows, emit, reasons)
                _split_rows(task, number, rows, names, emit)
                failpoint("read.rows")
                context.advance(len(rows.id))
                started = time.perf_counter()
                result.seconds["split"] += started - read
            rows_read += raw.rows_skipped
            elsewhere += raw.rows_skipped
    except UnreadableFileError as error:
        bad = BadFile(file.path, error.reason, str(error), 0)
    if bad is None:
        result.rows_read += rows_read
        result.elsewhere += elsewhere
        for reason, count in reasons.items():
            result.reasons[reason] = result.reasons.get(reason, 0) + count
        if reasons:
            result.quarantined_by_file[file.path] = sum(reasons.values())
        return
    for path in (file.path, *split.copies):
        _quarantine_file(task, number, BadFile(path, bad.reason, bad.detail, bad.rows), emit, result)


def _quarantine_file(task: SplitTask, number: int, bad: BadFile, emit: Emit, result: SplitResult) -> None:
    """Emit the row that stands for a whole file, and revoke the blocks of it that were already emitted."""
    # There may be some: a damaged page can come after good ones. The row itself has the number after the last file's, so that it stays.
    for bucket in range(task.shards + 1):
        emit(bucket, Header(blocks.DROP_FILE, number, 0).pack(), [])
    emit(task.quarantine_bucket, Header(blocks.QUARANTINED, len(task.files), 1).pack(), [serialized(bad_file_row(bad, task.value_column))])
    result.rows_read += bad.rows
    result.reasons[bad.reason] = result.reasons.get(bad.reason, 0) + bad.rows
    result.bad_files.append(bad)


def _split_rows(task: SplitTask, number: int, rows: RawRows, names: _TaskNames, emit: Emit) -> None:
    from rollup_assets.kernels import shards
    from rollup_assets.kernels.columns import extremes, extremes_of_lags

    columns: dict[str, NDArray[Any]] = {"id": rows.id, "time": rows.time, "value": rows.value, "org": rows.org, "metric": rows.metric}
    if rows.lag is not None:
        columns["lag"] = rows.lag
    if rows.reason is not None:
        keep = rows.reason == 0
        columns = {name: column[keep] for name, column in columns.items()}
    columns = {name: read_only(column) for name, column in columns.items()}
    count = len(columns["id"])
    if count == 0:
        return
    shard = _BUFFERS.get("shard", count, np.uint16)
    destination = _BUFFERS.get("destination", count, np.int32)
    start = np.empty(task.shards + 1, np.int64)
    shards.shard_of_ids(columns["id"], task.shards, shard)
    shards.destinations(shard, task.shards, destination, start)

    packed = [_BUFFERS.get("id", count, np.int64), _BUFFERS.get("time", count, np.int32)]
    shards.scatter_offsets(columns["id"], 0, destination, packed[0])
    shards.scatter_offsets(columns["time"], task.batch.start, destination, packed[1])
    value = columns["value"]
    if value.dtype == np.float64:
        packed.append(_BUFFERS.get("value", count, np.float64))
        shards.scatter_doubles(value, destination, packed[-1])
        value_code, value_base = blocks.FLOAT64, 0
    else:
        value_code, value_base = blocks.narrowest(*(int(bound) for bound in extremes(value)))
        packed.append(_BUFFERS.get("value", count, blocks.dtype_of(value_code)))
        shards.scatter_offsets(value, value_base, destination, packed[-1])
    org_code, org_base = blocks.narrowest(*(int(bound) for bound in extremes(columns["org"])))
    packed.append(_BUFFERS.get("org", count, blocks.dtype_of(org_code)))
    shards.scatter_offsets(columns["org"], org_base, destination, packed[-1])
    translation = names.translation(rows.names)
    metric_code = blocks.UINT16 if len(names.names) <= 2**16 else blocks.INT32
    packed.append(_BUFFERS.get("metric", count, blocks.dtype_of(metric_code)))
    shards.scatter_codes(columns["metric"], translation, destination, packed[-1])
    lag_code, lag_base = blocks.NO_COLUMN, 0
    low, high = (int(bound) for bound in extremes_of_lags(columns["lag"])) if "lag" in columns else (1, 0)
    if low <= high:
        lag_code, lag_base = blocks.narrowest(low, high + 1, uint16=False)
        if lag_code == blocks.INT64:
            lag_base = low
        packed.append(_BUFFERS.get("lag", count, blocks.dtype_of(lag_code)))
        shards.scatter_lags(columns["lag"], lag_base, destination, packed[-1])

    order = blocks.payload_order([column.dtype for column in packed])
    without_lag = blocks.payload_order([column.dtype for column in packed[:5]])
    ends = start.tolist()
    for s in range(task.shards):
        first, last = ends[s], ends[s + 1]
        if first == last:
            continue
        unsent = names.sent.unsent(s, names.names, packed[4][first:last])
        if len(unsent):
            emit(s, Header(blocks.NAMES, number, len(unsent)).pack(), [blocks.pack_names(unsent, names.names)])
        # Whether a shard has lags must not depend on the other shards' rows that were read together with its own.
        has_lag = lag_code != blocks.NO_COLUMN and bool(packed[5][first:last].any())
        header = Header(
            blocks.ROWS,
            number,
            last - first,
            value_code,
            org_code,
            metric_code,
            lag_code if has_lag else blocks.NO_COLUMN,
            value_base,
            org_base,
            lag_base,
        )
        emit(s, header.pack(), [packed[column][first:last] for column in (order if has_lag else without_lag)])


def _quarantine(task: SplitTask, number: int, file: InputFile, rows: RawRows, emit: Emit, reasons: dict[str, int]) -> None:
    """Emit the rows that are quarantined, and count them by reason.

    Raises:
        UnreadableFileError: they exceed the limits of Arrow's arrays.
    """
    for quarantined in _unless_too_large(rows, file.path, task.value_column):
        for counted in quarantined.column("reason").value_counts().to_pylist():
            reasons[counted["values"]] = reasons.get(counted["values"], 0) + counted["counts"]
        emit(task.quarantine_bucket, Header(blocks.QUARANTINED, number, quarantined.num_rows).pack(), [serialized(quarantined)])


def _unless_too_large(rows: RawRows, path: str, value_column: str) -> Iterator[pa.RecordBatch]:
    """The rows to quarantine; if they exceed the limits of Arrow's arrays, their file is bad as a whole."""
    import pyarrow as pa

    try:
        yield from rows_to_quarantine(rows, path, value_column)
    except (pa.ArrowInvalid, pa.ArrowCapacityError) as error:
        # The file was read without error, so only the limits of Arrow's own arrays remain. Running out of memory is not the file's fault.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UnreadableFileError(f"its bad rows cannot be quarantined one by one ({reason})", TOO_LARGE) from error
