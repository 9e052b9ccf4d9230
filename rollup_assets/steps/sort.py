"""The sort task: the blocks of some shards to sorted shard files and partial points, and the quarantined rows to their file.

A shard that does not fit the task's memory is sorted in runs: its series are cut into ranges of the final order, the rows are
spilled once more by range, and each range is sorted by itself. The files are the same either way. Runs on any engine; manifests and
checks stay out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rollup_assets.batches import Batch
from rollup_assets.engines.base import Blocks, TaskContext
from rollup_assets.failpoints import failpoint
from rollup_assets.steps.attempts import attempt_folder
from rollup_assets.steps.buffers import Buffers
from rollup_assets.steps.overflow import window_overflow
from rollup_assets.steps.shard_blocks import ShardBlocks, dropped_files
from rollup_assets.steps.timings import Stopwatch
from rollup_assets.storage import blocks
from rollup_assets.storage.blocks import Header
from rollup_assets.storage.datapoints import DatapointsWriter
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import StagedFile
from rollup_assets.storage.metric_names import SentNames
from rollup_assets.storage.partial_points import PartialPointsLayout, PartialPointsWriter
from rollup_assets.storage.quarantine import QuarantineWriter
from rollup_assets.storage.spill import SpilledBlocks, SpillFile

if TYPE_CHECKING:
    from rollup_assets.kernels.partial import PartialPoints
    from rollup_assets.kernels.points import ShardPoints, SortedSeries
    from rollup_assets.kernels.series_table import SeriesTable

_BUFFERS = Buffers()

# Bytes of a row's code, time and value, before and after sorting; likewise of dimensions and lag, if they are kept.
_ROW_BYTES = 28
_DIMENSIONS_BYTES = 24
_LAG_BYTES = 16
# What a task needs regardless of the number of rows: a row group, its encoded pages and a block.
_FIXED_BYTES = 48 << 20
_FEWEST_ROWS = 1 << 16
# `place` keeps places of rows in 32 bits.
_MOST_ROWS = 1 << 31


@dataclass(frozen=True, slots=True)
class SortTask:
    """What is the same for all groups of shards of a batch."""

    batch: Batch
    shards: int
    resolutions: tuple[int, ...]
    lookback: int
    value_column: str
    datapoints_folder: Place
    partial_points_folder: Place
    quarantine_folder: Place
    attempt: str

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """Type of values in memory."""
        return np.dtype(np.float64 if self.value_column == "double_value" else np.int64)

    @property
    def layout(self) -> PartialPointsLayout:
        """Layout of the partial points."""
        return PartialPointsLayout(self.resolutions, self.value_dtype.name)


@dataclass(slots=True)
class SortResult:
    """What one group of shards became."""

    datapoints: list[StagedFile] = field(default_factory=list)
    partial_points: list[StagedFile] = field(default_factory=list)
    quarantined: list[StagedFile] = field(default_factory=list)
    rows_accepted: int = 0
    duplicates: int = 0
    series: int = 0
    open_counts: list[int] = field(default_factory=list)
    """Sum of counts of the open windows, by resolution."""
    open_windows: list[int] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"sort": 0.0, "partial points": 0.0, "encode points": 0.0})


def sort_shards(task: SortTask, group: Sequence[int], sources: Sequence[Blocks], context: TaskContext) -> SortResult:
    """Sort the shards of a group, one after the other."""
    failpoint("sort.begin")
    result = SortResult(open_counts=[0] * len(task.resolutions), open_windows=[0] * len(task.resolutions))
    partial = PartialPointsWriter(task.partial_points_folder, attempt_folder(task.attempt, context), group[0], task.layout)
    for shard, source in zip(group, sources, strict=True):
        if shard == task.shards:
            _write_quarantined(task, source, context, result)
            continue
        rows = ShardBlocks(source)
        if rows.rows:
            _ShardSorter(task, shard, rows, partial, context, result).run()
    result.partial_points = partial.close()
    failpoint("stage.file")
    return result


class _ShardSorter:
    """Sorts one shard."""

    def __init__(
        self, task: SortTask, shard: int, rows: ShardBlocks, partial: PartialPointsWriter, context: TaskContext, result: SortResult
    ) -> None:
        self.task = task
        self.shard = shard
        self.rows = rows
        self.partial = partial
        self.context = context
        self.result = result
        self.watch = Stopwatch(result.seconds)
        self.has_lag = rows.has_lag
        self.dimensions_change = False

    def run(self) -> None:
        writer = DatapointsWriter(
            self.task.datapoints_folder,
            attempt_folder(self.task.attempt, self.context),
            self.task.batch,
            self.shard,
            self.task.value_column,
            self.has_lag,
            self.rows.rows,
        )
        if self.rows.rows <= self._most_rows(dimensions=False):
            table, series, self.dimensions_change = self._series(keep_rows=True)
            if not self.dimensions_change:
                self._finish(self.rows, table, series, self._points(self.rows.rows), writer)
            elif self.rows.rows <= self._most_rows(dimensions=True):
                self._sort(self.rows, writer)
            else:
                self._sort_in_runs(table, series, writer)
        else:
            table, series, self.dimensions_change = self._series(keep_rows=False)
            self._sort_in_runs(table, series, writer)
        self.result.datapoints.append(writer.close())
        failpoint("stage.file")
        self.watch.lap("encode points")

    def _most_rows(self, *, dimensions: bool) -> int:
        row = _ROW_BYTES + (_LAG_BYTES if self.has_lag else 0) + (_DIMENSIONS_BYTES if dimensions else 0)
        return min(_MOST_ROWS, max(_FEWEST_ROWS, (self.context.memory - _FIXED_BYTES) // row))

    def _points(self, rows: int, name: str = "points", *, with_code: bool = True) -> ShardPoints:
        """Columns for ``rows`` points, the thread's own."""
        from rollup_assets.kernels.points import ShardPoints

        dimensions = rows if self.dimensions_change else 0
        return ShardPoints(
            _BUFFERS.get(f"{name} code", rows if with_code else 0, np.int32),
            _BUFFERS.get(f"{name} time", rows, np.int32),
            _BUFFERS.get(f"{name} value", rows, self.task.value_dtype),
            _BUFFERS.get(f"{name} org", dimensions, np.int64),
            _BUFFERS.get(f"{name} metric", dimensions, np.int32),
            _BUFFERS.get(f"{name} lag", rows if self.has_lag else 0, np.int64),
        )

    def _ingest(self, source: ShardBlocks, points: ShardPoints) -> tuple[SeriesTable, int, bool]:
        """Unpack all blocks; returns the series table, its number of series, and whether dimensions change within a series."""
        from rollup_assets.kernels import series_table

        table = series_table.new_series_table(series_table.MINIMUM_TABLE)
        series = row = changed = 0
        for header, block in source:
            codes = points.code[row : row + header.rows] if len(points.code) else _BUFFERS.get("codes", header.rows, np.int32)
            at = 0
            while True:
                series, at, found = series_table.ingest(
                    block, header.value_base, header.org_base, header.lag_base, at, row, series, table, codes, points
                )
                changed += found
                if at == header.rows:
                    break
                table = series_table.grown(table, series)
            row += header.rows
        return table, series, changed > 0

    def _series(self, *, keep_rows: bool) -> tuple[SeriesTable, int, bool]:
        """The shard's series, and, if wanted, its rows in this thread's buffers."""
        found = self._ingest(self.rows, self._points(self.rows.rows if keep_rows else 0))
        self.watch.lap("sort")
        return found

    def _sort(self, source: ShardBlocks, writer: DatapointsWriter) -> None:
        """Sort blocks that fit into memory."""
        points = self._points(source.rows)
        table, series, _ = self._ingest(source, points)
        self.watch.lap("sort")
        self._finish(source, table, series, points, writer)

    def _finish(self, source: ShardBlocks, table: SeriesTable, series: int, points: ShardPoints, writer: DatapointsWriter) -> None:
        """Sort unpacked rows, write them, and their partial points."""
        from rollup_assets.kernels import series_table, time_order
        from rollup_assets.kernels.points import SortedSeries

        rank = source.names.ranks()
        names = sorted(source.names.names)
        start = np.empty(series, np.int64)
        kept = np.empty(series, np.int64)
        # If dimensions change, a series' place depends on its first point, which is known only after sorting.
        order = (
            np.arange(series)
            if self.dimensions_change
            else series_table.series_order(rank[table.metric[:series]], table.org[:series], table.id[:series])
        )
        sorted_points = self._points(source.rows, "sorted", with_code=False)
        self.result.duplicates += time_order.place(points, source.rows, order, table, rank, start, kept, sorted_points)
        org, metric = table.org[:series], rank[table.metric[:series]]
        if self.dimensions_change:
            org, metric = sorted_points.org[start], rank[sorted_points.metric[start]]
            order = series_table.series_order(metric, org, table.id[:series])
        self.watch.lap("sort")
        # From here on the columns are read series by series, so they are put in that order: with millions of series, each access out of
        # order waits for memory.
        sorted_series = SortedSeries(table.id[order], org[order], metric[order], start[order], kept[order])
        self.partial.write(self.shard, self._partial_points(sorted_series, sorted_points, rank), names)
        self.watch.lap("partial points")
        writer.write(sorted_series, rank, names, sorted_points)
        self.watch.lap("encode points")
        self.result.rows_accepted += int(kept.sum())
        self.result.series += series
        self.context.advance(source.rows)

    def _partial_points(self, series: SortedSeries, points: ShardPoints, rank: NDArray[np.int32]) -> PartialPoints:
        from rollup_assets.kernels import partial as kernels
        from rollup_assets.kernels import windows

        levels = len(self.task.resolutions)
        details = self.dimensions_change or self.has_lag
        value = self.task.value_dtype
        empty = kernels.new_partial_points(len(series.id), levels, value, details)
        partial = empty._replace(id=series.id, org=series.org, metric=series.metric)
        batch, lookback = self.task.batch, self.task.lookback
        resolutions = np.array(self.task.resolutions, np.int64)
        kernels.first_and_last_points(series, points, batch.start, partial)
        if value == np.int64 and not details:
            place, level = kernels.long_partial_points(series, points, rank, batch.length, resolutions, lookback, partial)
        else:
            place, level = kernels.partial_points(series, points, rank, batch.length, resolutions, lookback, details, partial)
        if place >= 0:
            raise window_overflow(int(series.id[place]), self.task.resolutions[level], self.task.batch.end)
        for row in range(levels):
            counts = partial.integers[row, windows.COUNT]
            self.result.open_counts[row] += int(counts.sum())
            self.result.open_windows[row] += int(np.count_nonzero(counts))
        return partial

    def _sort_in_runs(self, table: SeriesTable, series: int, writer: DatapointsWriter) -> None:
        """Spill the shard's rows by ranges of its final order that fit into memory, and sort range after range.

        A single series is never cut: at one accepted point a millisecond it has at most 3.6 million an hour.
        """
        from rollup_assets.kernels import series_table

        rank = self.rows.names.ranks()
        org, metric = table.org[:series], table.metric[:series]
        if self.dimensions_change:
            org, metric = self._first_dimensions(table, series, rank)
        order = series_table.series_order(rank[metric], org, table.id[:series])
        # A run begins where the cumulative rows pass the next multiple of half of what fits; the other half is for a long last series.
        run_of = np.empty(series, np.uint16)
        most = max(1, self._most_rows(dimensions=self.dimensions_change) // 2)
        run_of[order] = np.unique((np.cumsum(table.points[order]) - 1) // most, return_inverse=True)[1]
        _BUFFERS.clear()
        spilled = SpillFile(Path(self.context.scratch_folder()) / "runs")
        try:
            self._spill_runs(table, run_of, spilled)
            self.watch.lap("sort")
            for run in sorted(spilled.index):
                self._sort(ShardBlocks(SpilledBlocks([spilled], run)), writer)
        finally:
            spilled.close()

    def _first_dimensions(self, table: SeriesTable, series: int, rank: NDArray[np.int32]) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        from rollup_assets.kernels import series_table

        first = series_table.FirstPoints(
            np.full(series, -1, np.int32),
            np.empty(series, self.task.value_dtype),
            np.empty(series, np.int64),
            np.empty(series, np.int32),
            np.empty(series, np.int64),
        )
        for header, block in self.rows:
            codes = _BUFFERS.get("codes", header.rows, np.int32)
            series_table.codes_of_ids(block.id, table, codes)
            series_table.note_first_points(block, header.value_base, header.org_base, header.lag_base, codes, rank, first)
        return first.org, first.metric

    def _spill_runs(self, table: SeriesTable, run_of: NDArray[np.uint16], spilled: SpillFile) -> None:
        """Cut every block by run."""
        from rollup_assets.kernels import series_table, shards

        runs = int(run_of.max()) + 1
        sent = SentNames(runs)
        start = np.empty(runs + 1, np.int64)
        for header, block in self.rows:
            codes = _BUFFERS.get("codes", header.rows, np.int32)
            series_table.codes_of_ids(block.id, table, codes)
            destination = _BUFFERS.get("destination", header.rows, np.int32)
            shards.destinations(run_of[codes], runs, destination, start)
            columns = []
            metric = block.translation[block.metric]  # the shard's codes from here on
            for place, column in enumerate((block.id, block.time, block.value, block.org, metric, block.lag)[: 6 if header.has_lag else 5]):
                columns.append(_BUFFERS.get(f"run {place}", header.rows, column.dtype))
                shards.scatter(column, destination, columns[-1])
            order = blocks.payload_order([column.dtype for column in columns])
            for run in range(runs):
                first, last = int(start[run]), int(start[run + 1])
                if first == last:
                    continue
                unsent = sent.unsent(run, self.rows.names.names, columns[4][first:last])
                if len(unsent):
                    spilled.emit(run, Header(blocks.NAMES, 0, len(unsent)).pack(), [blocks.pack_names(unsent, self.rows.names.names)])
                part = Header(
                    blocks.ROWS,
                    0,
                    last - first,
                    header.value,
                    header.org,
                    blocks.INT32,
                    header.lag,
                    header.value_base,
                    header.org_base,
                    header.lag_base,
                )
                spilled.emit(run, part.pack(), [columns[column][first:last] for column in order])


def _write_quarantined(task: SortTask, source: Blocks, context: TaskContext, result: SortResult) -> None:
    """Quarantined rows, by file and row, to one file; no file if there are none."""
    dropped = dropped_files(source)
    writer: QuarantineWriter | None = None
    for map_task, packed, payload in source:
        header = Header.unpack(packed)
        if header.kind == blocks.QUARANTINED and (map_task, header.file) not in dropped:
            writer = writer or QuarantineWriter(task.quarantine_folder, attempt_folder(task.attempt, context), task.value_column)
            writer.write(payload)
    if writer:
        result.quarantined.append(writer.close())
        failpoint("stage.file")
