"""The rollup task: the sorted points of some shards and the partial points of earlier batches to the table's data files.

Runs on any engine. Which inputs there must be, and what becomes of the files, stays out (``steps.rollup``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rollup_assets.batches import Batch, to_datetime
from rollup_assets.engines.base import TaskContext
from rollup_assets.errors import StageCorruptError
from rollup_assets.failpoints import failpoint
from rollup_assets.iceberg.schema import ValueType, arrow_schema
from rollup_assets.steps.overflow import window_overflow
from rollup_assets.steps.timings import Stopwatch
from rollup_assets.storage import encodings
from rollup_assets.storage.arrays import lags
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import Manifest, Stage, StagedFile
from rollup_assets.storage.metric_names import MetricNames, dictionary_array
from rollup_assets.storage.parquet import ParquetFileWriter, StagedParquet
from rollup_assets.storage.partial_points import PartialPointsLayout, PartialPointsReader

if TYPE_CHECKING:
    import pyarrow as pa

    from rollup_assets.kernels.merge import Carry
    from rollup_assets.kernels.partial import PartialPoints
    from rollup_assets.kernels.rollup import Points, Rows, State

_INT64_SUMS = ("count", "resets", "sum", "delta")
_DOUBLE_SUMS = ("sum", "delta")


@dataclass(frozen=True, slots=True)
class RollupTask:
    """What is the same for all groups of shards of a batch. A manifest is None if there is nothing to read."""

    batch: Batch
    stage: Stage
    data_location: Place
    attempt: str
    resolutions: tuple[int, ...]
    lookback: int
    value_type: ValueType
    parquet_encoding: encodings.ParquetEncoding
    datapoints: Manifest | None
    own: Manifest | None
    """Partial points of the batch: its series, in order."""
    previous: tuple[Batch, Manifest] | None
    """Partial points of the batch before."""
    earlier: tuple[Batch, Manifest] | None
    """Partial points of the batch before that."""

    @property
    def value_dtype(self) -> np.dtype[Any]:
        """Type of values in memory."""
        return np.dtype(np.float64 if self.value_type == "double" else np.int64)

    @property
    def file_prefix(self) -> str:
        """Prefix of the data files' names."""
        return f"{self.batch.folder}-{self.attempt}-"

    def partition_folder(self, resolution: int) -> Place:
        """The folder of the table's partition that the data files of a resolution belong to."""
        day = to_datetime(self.batch.start).strftime("%Y-%m-%d")
        return self.data_location / f"resolution={resolution}" / f"logical_timestamp_day={day}"


@dataclass(slots=True)
class RollupResult:
    """What one group of shards became; lists by resolution."""

    files: list[StagedFile] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    carried: list[int] = field(default_factory=list)
    points: int = 0
    series: int = 0
    repeated: int = 0
    integer_sums: list[NDArray[np.uint64]] = field(default_factory=list)
    double_sums: list[NDArray[np.float64]] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "merge": 0.0, "roll up": 0.0, "encode": 0.0})


def segment_bounds(batch: Batch, resolutions: Sequence[int], level: int) -> NDArray[np.int64]:
    """Upper bounds (epoch ms) of the label ranges for which a resolution's checksums are kept.

    The label that begins the batch; then the labels up to ``end - c`` for each coarser resolution c, coarsest first; then the rest.
    """
    tails = [batch.end - coarser for coarser in reversed(resolutions[level + 1 :])]
    return np.array([batch.start, *(max(tail, batch.start) for tail in tails), batch.end], np.int64)


def checksums(results: Sequence[RollupResult], resolutions: Sequence[int], value_dtype: np.dtype[Any]) -> dict[str, Any]:
    """The checksums of a whole batch, as a rollups manifest holds them: total, head and tails at every resolution."""
    found: dict[str, Any] = {}
    double = value_dtype == np.float64
    for level, resolution in enumerate(resolutions):
        with np.errstate(over="ignore"):
            integers = sum((result.integer_sums[level] for result in results), np.zeros(1, np.uint64))
        doubles: Any = sum((result.double_sums[level] for result in results), np.zeros(1))

        def entry(segments: slice, integers: Any = integers, doubles: Any = doubles) -> dict[str, Any]:
            names = ("count", "resets") if double else _INT64_SUMS
            sums: dict[str, Any] = {name: str(int(integers[segments, place].sum(dtype=np.uint64))) for place, name in enumerate(names)}
            if double:
                sums |= {
                    name: [float(doubles[segments, place].sum()), float(doubles[segments, place + 2].sum())]
                    for place, name in enumerate(_DOUBLE_SUMS)
                }
            return sums

        coarser = [str(other) for other in reversed(resolutions[level + 1 :])]
        found[str(resolution)] = {
            "total": entry(slice(None)),
            "head": entry(slice(0, 1)),
            "tail": {name: entry(slice(place + 2, None)) for place, name in enumerate(coarser)},
        }
    return found


class _ResolutionWriter:
    """Writes the rollup rows of one resolution: row groups and files of a fixed number of rows."""

    def __init__(self, task: RollupTask, level: int, first_shard: int, context: TaskContext) -> None:
        self._task = task
        self._attempt = f"{context.attempt}-" if context.attempt else ""
        self._resolution = task.resolutions[level]
        self._first_shard = first_shard
        self._schema = dictionary_schema(task.value_type)
        self._writer: ParquetFileWriter | None = None
        self._name = ""
        self.files: list[StagedFile] = []

    def write(self, table: pa.Table) -> None:
        """Write one row group."""
        if self._writer is None:
            name = f"{self._task.file_prefix}{self._attempt}{self._first_shard:05d}-{len(self.files)}.parquet"
            place = self._task.partition_folder(self._resolution) / name
            self._name = place.uri
            self._writer = ParquetFileWriter(place, self._schema, encodings.rollups(self._task.parquet_encoding))
        self._writer.write(table)
        if self._writer.rows >= encodings.ROLLUPS_FILE_ROWS:
            self.close()

    def close(self) -> None:
        """Finish the file that is open."""
        if self._writer is not None:
            self.files.append(self._writer.close(self._name, resolution=self._resolution))
            self._writer = None
            failpoint("rollup.file")


def roll_up_shards(task: RollupTask, group: Sequence[int], context: TaskContext) -> RollupResult:
    """Roll up the shards of a group, one after the other, into files of their own at each resolution."""
    return _ShardRoller(task, group, context).run()


class _ShardRoller:
    def __init__(self, task: RollupTask, group: Sequence[int], context: TaskContext) -> None:
        from rollup_assets.kernels.rollup import new_rows

        self.task = task
        self.group = group
        self.context = context
        levels = len(task.resolutions)
        self.resolutions = np.array(task.resolutions, np.int64)
        self.layout = PartialPointsLayout(task.resolutions, task.value_dtype.name)
        self.names = MetricNames()
        self.writers = [_ResolutionWriter(task, level, group[0], context) for level in range(levels)]
        most_per_series = task.batch.length // task.resolutions[0] + 4
        self.rows: Rows = new_rows(encodings.ROLLUPS_ROW_GROUP, most_per_series, levels, task.value_dtype)
        self.shard_column = np.empty(encodings.ROLLUPS_ROW_GROUP, np.int32)
        self.quotients = np.empty((3, encodings.ROLLUPS_ROW_GROUP))
        self.shard_starts: list[list[tuple[int, int]]] = [[] for _ in range(levels)]
        self.bounds = [segment_bounds(task.batch, task.resolutions, level) for level in range(levels)]
        self.last = np.full((levels, 2), np.iinfo(np.int64).min, np.int64)
        self.result = RollupResult(
            rows=[0] * levels,
            counts=[0] * levels,
            carried=[0] * levels,
            integer_sums=[np.zeros((len(bounds), 4), np.uint64) for bounds in self.bounds],
            double_sums=[np.zeros((len(bounds), 4)) for bounds in self.bounds],
        )
        self.own = self._reader(task.own, task.batch)
        self.previous = self._reader(task.previous[1], task.previous[0]) if task.previous else None
        self.earlier = self._reader(task.earlier[1], task.earlier[0]) if task.earlier else None
        self.watch = Stopwatch(self.result.seconds)

    def _reader(self, manifest: Manifest | None, batch: Batch) -> PartialPointsReader | None:
        return PartialPointsReader(self.task.stage, manifest, batch, self.layout) if manifest and manifest.files else None

    def run(self) -> RollupResult:
        datapoints = self.task.datapoints
        files = {file.shards[0]: file for file in datapoints.files} if datapoints else {}
        for shard in self.group:
            failpoint("rollup.shard")
            self._shard(shard, files.get(shard))
        for level, writer in enumerate(self.writers):
            self._flush(level, everything=True)
            writer.close()
            self.result.files += writer.files
        self.watch.lap("encode")
        return self.result

    def _shard(self, shard: int, file: StagedFile | None) -> None:
        from rollup_assets.kernels import rollup as kernels

        carry, series = self._carry(shard)
        self.watch.lap("merge")
        for level, starts in enumerate(self.shard_starts):
            starts.append((int(self.rows.used[level]), shard))
        state = kernels.new_state(len(self.resolutions), self.task.value_dtype)
        for points in self._points(file):
            count = len(points.id)
            self._chunk(points, carry, state, final=False)
            self.result.points += count
            self.context.advance(count)
        self._chunk(self._no_points(), carry, state, final=True)
        found = int(state.cursor[kernels.NEXT_SERIES])
        if found != series:
            raise StageCorruptError(
                f"batch {self.task.batch}, shard {shard}: {found} series in the datapoints, {series} in the partial points; "
                f"stage it again with `rollups backfill {self.task.batch} {self.task.batch} --force`"
            )
        self.result.series += series

    def _chunk(self, points: Points, carry: Carry, state: State, *, final: bool) -> None:
        from rollup_assets.kernels import rollup as kernels

        batch, at, done = self.task.batch, 0, len(points.id) + (1 if final else 0)
        while at < done:
            at = kernels.roll_up(points, at, final, batch.start, batch.end, self.resolutions, self.task.lookback, carry, state, self.rows)
            if state.cursor[kernels.OVERFLOW_LEVEL] >= 0:
                level = int(state.cursor[kernels.OVERFLOW_LEVEL])
                raise window_overflow(
                    int(state.cursor[kernels.OVERFLOW_ID]), self.task.resolutions[level], int(state.cursor[kernels.OVERFLOW_LABEL])
                )
            self.watch.lap("roll up")
            for level in range(len(self.resolutions)):
                self._flush(level, everything=False)
            self.watch.lap("encode")

    def _no_points(self) -> Points:
        from rollup_assets.kernels.rollup import Points

        whole = np.empty(0, np.int64)
        return Points(whole, whole, np.empty(0, self.task.value_dtype), whole, np.empty(0, np.int32), whole, np.zeros(1, np.int32))

    def _points(self, file: StagedFile | None) -> Iterator[Points]:
        """The points of a shard file, a row group at a time."""
        from rollup_assets.kernels.rollup import Points

        if file is None or self.task.datapoints is None:
            return
        place = self.task.stage.place(self.task.datapoints, file, self.task.batch)
        opened = StagedParquet(place, file, self.task.datapoints.asset, self.task.batch, pre_buffer=not place.is_local)
        for group in range(opened.row_groups):
            table = opened.read(group)
            columns = {name: table.column(name).chunk(0) for name in table.column_names}
            metric = columns["metric"]
            times = columns["logical_timestamp"].to_numpy()
            lag = lags(columns["receive_timestamp"], times) if "receive_timestamp" in columns else np.empty(0, np.int64)
            self.watch.lap("read")
            yield Points(
                columns["id"].to_numpy(),
                times,
                columns[f"{self.task.value_type}_value"].to_numpy(),
                columns["org_id"].to_numpy(),
                metric.indices.to_numpy(),
                lag,
                self.names.codes_of_array(metric.dictionary),
            )

    def _carry(self, shard: int) -> tuple[Carry, int]:
        """What the shard takes over from earlier batches, and its number of series in this one."""
        from rollup_assets.kernels import merge, windows
        from rollup_assets.kernels.partial import new_partial_points

        none = np.empty(0, np.int64)
        metric, org, ids = self.own.series(shard, self.names) if self.own else (none.astype(np.int32), none, none)
        if self.previous:
            partial = self.previous.read(shard, self.names)
        else:
            partial = new_partial_points(0, len(self.resolutions), self.task.value_dtype, details=False)
        if len(partial.id) == 0:
            return merge.Carry(partial, np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int64)), len(ids)
        self._earlier_steps(shard, partial)
        for place in range(len(self.resolutions)):
            self.result.carried[place] += int(partial.integers[place, windows.COUNT].sum())
        row_of_series = merge.rows_of_ids(partial.id, ids)
        is_alone = np.ones(len(partial.id), np.bool_)
        is_alone[row_of_series[row_of_series >= 0]] = False
        alone = np.flatnonzero(is_alone)
        ranks = self.names.ranks()
        before = merge.keys_before(ranks[metric], org, ids, ranks[partial.metric[alone]], partial.org[alone], partial.id[alone])
        return merge.Carry(partial, row_of_series, alone, before), len(ids)

    def _earlier_steps(self, shard: int, partial: PartialPoints) -> None:
        """Add to the open windows of t-1 the step into their series' first point of t-1, which begins at its last point of t-2."""
        from rollup_assets.kernels import merge

        if self.earlier is None:
            return
        known, times, values = self.earlier.last_points(shard)
        rows = merge.rows_of_ids(known, partial.id)
        at, level = merge.add_first_steps(partial, rows, times, values, self.task.batch.start, self.resolutions, self.task.lookback)
        if at >= 0:
            raise window_overflow(int(partial.id[at]), self.task.resolutions[level], self.task.batch.start)

    def _flush(self, level: int, *, everything: bool) -> None:
        """Write whole row groups of a resolution's rows, or all of them, and move the rest to the front."""
        rows, group = self.rows, encodings.ROLLUPS_ROW_GROUP
        used = int(rows.used[level])
        count = used if everything else used // group * group
        if count == 0:
            return
        for first in range(0, count, group):
            self._write(level, first, min(group, count - first))
        rest = used - count
        begin = level * rows.capacity
        for columns in (rows.integers, rows.values):
            columns[:, begin : begin + rest] = columns[:, begin + count : begin + used]
        rows.used[level] = rest
        starts = self.shard_starts[level]
        current = [start for start in starts if start[0] <= count][-1:]
        self.shard_starts[level] = [(0, shard) for _, shard in current] + [(at - count, shard) for at, shard in starts if at > count]

    def _write(self, level: int, first: int, count: int) -> None:
        import pyarrow as pa

        from rollup_assets.kernels import checksums as sums
        from rollup_assets.kernels import rollup as kernels

        rows, task = self.rows, self.task
        at = level * rows.capacity + first
        span = slice(at, at + count)
        integers, values = rows.integers[:, span], rows.values[:, span]
        ids, labels = integers[kernels.OUT_ID], integers[kernels.OUT_LABEL]
        counts, resets = integers[kernels.OUT_COUNT], integers[kernels.OUT_RESETS]
        total, delta = values[kernels.OUT_SUM], values[kernels.OUT_DELTA]
        has_delta = integers[kernels.OUT_STEPS] > 0
        has_lag = integers[kernels.OUT_LAG_COUNT] > 0
        average, rate, lag = self.quotients[:, :count]
        kernels.means(total, counts, average)
        kernels.rates(delta, task.resolutions[level] / 1000.0, rate)
        if has_lag.any():
            kernels.means(integers[kernels.OUT_LAG_SUM], integers[kernels.OUT_LAG_COUNT], lag)
        double = task.value_type == "double"
        self.result.repeated += sums.add_rows(
            ids, labels, counts, resets, counts if double else total, resets if double else delta, has_delta, self.bounds[level],
            self.result.integer_sums[level], self.last[level],
        )  # fmt: skip
        if double:
            sums.add_double_rows(
                ids, labels, total, delta, has_delta, counts, values[kernels.OUT_MIN], values[kernels.OUT_MAX], self.bounds[level],
                self.result.double_sums[level],
            )  # fmt: skip
        self.result.rows[level] += count
        self.result.counts[level] += int(counts.sum())
        shard = self.shard_column[:count]
        for start, number in self.shard_starts[level]:
            shard[max(start - first, 0) :] = number
        columns: list[pa.Array] = [
            pa.array(shard),
            pa.array(ids),
            pa.array(integers[kernels.OUT_ORG]),
            dictionary_array(integers[kernels.OUT_METRIC], self.names.names),
            pa.array(np.full(count, task.resolutions[level], np.int32)),
            pa.array(labels * 1000).view(pa.timestamp("us", "UTC")),
            pa.array(counts),
            pa.array(total),
            pa.array(values[kernels.OUT_MIN]),
            pa.array(values[kernels.OUT_MAX]),
            pa.array(average),
            pa.array(values[kernels.OUT_LATEST]),
            _nullable(delta, has_delta),
            pa.array(resets),
            _nullable(rate, has_delta),
            _nullable(lag, has_lag),
        ]
        self.writers[level].write(pa.Table.from_arrays(columns, schema=dictionary_schema(task.value_type)))


def dictionary_schema(value_type: ValueType) -> pa.Schema:
    """The table's schema with the metric as a dictionary: the same file, encoded without looking each name up again."""
    import pyarrow as pa

    schema = arrow_schema(value_type)
    return schema.set(schema.get_field_index("metric"), schema.field("metric").with_type(pa.dictionary(pa.int32(), pa.string())))


def _nullable(values: NDArray[Any], present: NDArray[np.bool_]) -> pa.Array:
    """A column with nulls where ``present`` is False; it shares the memory of ``values``."""
    import pyarrow as pa

    if present.all():
        return pa.array(values)
    valid = pa.py_buffer(np.packbits(present, bitorder="little"))
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [valid, pa.py_buffer(values)])
