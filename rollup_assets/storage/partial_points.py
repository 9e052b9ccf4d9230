"""Partial points at rest: one Parquet file per group of shards, one or more row groups per shard.

Columns: the series (``metric_shard_id, id, org_id, metric``), its first and last point of the batch, and for each resolution the
open window's state, named like ``count_1m``. Windows' own dimensions and lags are in separate files, made only where a series'
dimensions change within the batch or receive times are known. What they mean stays in ``kernels.partial``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from rollup_assets.batches import Batch
from rollup_assets.storage.encodings import PARTIAL_POINTS_ROW_GROUP, partial_points
from rollup_assets.storage.manifests import Manifest, Stage, StagedFile
from rollup_assets.storage.metric_names import MetricNames, dictionary_array
from rollup_assets.storage.parquet import ParquetFileWriter, StagedParquet
from rollup_assets.units import format_duration

if TYPE_CHECKING:
    import pyarrow as pa

    from rollup_assets.kernels.partial import PartialPoints
    from rollup_assets.storage.filesystems import Place

_SERIES = ("id", "org_id", "metric", "first_timestamp", "first_value", "last_timestamp", "last_value")
# In the order of the columns of kernels.windows.
_INTEGERS = ("count", "steps", "resets", "org_id", "metric", "lag_sum", "lag_count")
_VALUES = ("sum", "min", "max", "delta")
_PLAIN = 3
_METRIC = _INTEGERS.index("metric")


@dataclass(frozen=True, slots=True)
class PartialPointsLayout:
    """Names and types of the columns for some resolutions (ms, finest first) and a value type."""

    resolutions: tuple[int, ...]
    value_dtype: str

    def schema(self, *, details: bool) -> pa.Schema:
        """Schema of a file; ``details``: with each window's dimensions and lags."""
        import pyarrow as pa

        value = pa.float64() if self.value_dtype == "float64" else pa.int64()
        names = pa.dictionary(pa.int32(), pa.string())
        fields = [
            ("metric_shard_id", pa.int32()),
            ("id", pa.int64()),
            ("org_id", pa.int64()),
            ("metric", names),
            ("first_timestamp", pa.int64()),
            ("first_value", value),
            ("last_timestamp", pa.int64()),
            ("last_value", value),
        ]
        for resolution in self.resolutions:
            suffix = format_duration(resolution)
            for name in _INTEGERS if details else _INTEGERS[:_PLAIN]:
                fields.append((f"{name}_{suffix}", names if name == "metric" else pa.int64()))
            fields += [(f"{name}_{suffix}", value) for name in _VALUES]
        return pa.schema([pa.field(name, kind, nullable=False) for name, kind in fields])


class PartialPointsWriter:
    """Writes the partial points of a group of shards, shard after shard."""

    def __init__(self, folder: Place, attempt: str, first_shard: int, layout: PartialPointsLayout) -> None:
        self._folder = folder
        self._attempt = attempt
        self._first_shard = first_shard
        self._layout = layout
        self._writers: dict[bool, ParquetFileWriter] = {}
        self._shards: dict[bool, list[int]] = {False: [], True: []}
        self._shard = -1
        self._pending: list[PartialPoints] = []
        self._names = MetricNames()

    def write(self, shard: int, partial: PartialPoints, names: Sequence[str]) -> None:
        """Append the partial points of a shard, or more of the same shard; ``partial.metric`` holds places in ``names``."""
        if shard != self._shard:
            self._write_pending(everything=True)
            self._shard = shard
        # A shard may come in pieces, depending on memory, with names of their own; row groups must not depend on that.
        codes = self._names.codes_of(names)
        integers = partial.integers
        if integers.shape[1] > _PLAIN:
            integers = integers.copy()
            integers[:, _METRIC] = codes[integers[:, _METRIC]]
        self._pending.append(partial._replace(metric=codes[partial.metric], integers=integers))
        self._write_pending(everything=False)

    def _write_pending(self, *, everything: bool) -> None:
        """Write whole row groups, or ``everything``."""
        import pyarrow as pa

        waiting = sum(len(partial.id) for partial in self._pending)
        whole = waiting if everything else waiting // PARTIAL_POINTS_ROW_GROUP * PARTIAL_POINTS_ROW_GROUP
        if not whole:
            return
        partial = self._pending[0]
        if len(self._pending) > 1:
            partial = type(partial)(*(np.concatenate(columns, axis=-1) for columns in zip(*self._pending, strict=True)))
        details = partial.integers.shape[1] > _PLAIN
        schema = self._layout.schema(details=details)
        if details not in self._writers:
            path = self._folder / self._attempt / self._name(details=details)
            numbers = [field.name for field in schema if field.type in (pa.int64(), pa.float64()) and field.name != "id"]
            self._writers[details] = ParquetFileWriter(path, schema, partial_points(numbers))
        for first in range(0, whole, PARTIAL_POINTS_ROW_GROUP):
            rows = slice(first, min(first + PARTIAL_POINTS_ROW_GROUP, whole))
            self._writers[details].write(self._table(partial, rows, schema))
            self._shards[details].append(self._shard)
        self._pending = [] if whole == waiting else [type(partial)(*(column[..., whole:].copy() for column in partial))]

    def _table(self, partial: PartialPoints, rows: slice, schema: pa.Schema) -> pa.Table:
        import pyarrow as pa

        names = self._names.names
        columns: list[Any] = [np.full(len(partial.id[rows]), self._shard, np.int32)]
        for name, column in zip(_SERIES, partial[:7], strict=True):
            columns.append(dictionary_array(column[rows], names) if name == "metric" else column[rows])
        for level in range(len(self._layout.resolutions)):
            for place in range(partial.integers.shape[1]):
                column = partial.integers[level, place, rows]
                columns.append(dictionary_array(column, names) if _INTEGERS[place] == "metric" else column)
            columns += [partial.values[level, place, rows] for place in range(len(_VALUES))]
        return pa.Table.from_arrays([pa.array(column) if isinstance(column, np.ndarray) else column for column in columns], schema=schema)

    def _name(self, *, details: bool) -> str:
        return f"partial-{self._first_shard:05d}{'-details' if details else ''}.parquet"

    def close(self) -> list[StagedFile]:
        """Finish the files."""
        self._write_pending(everything=True)
        return [
            writer.close(f"{self._attempt}/{self._name(details=details)}", shards=tuple(self._shards[details]))
            for details, writer in sorted(self._writers.items())
        ]


class PartialPointsReader:
    """Reads the partial points of single shards of one staged batch. Files stay open between shards; not thread-safe."""

    def __init__(self, stage: Stage, manifest: Manifest, batch: Batch, layout: PartialPointsLayout) -> None:
        self._files = [(stage.place(manifest, file, batch), file) for file in manifest.files]
        self._asset, self._batch = manifest.asset, batch
        self._layout = layout
        self._opened: dict[str, StagedParquet] = {}

    def read(self, shard: int, metrics: MetricNames) -> PartialPoints:
        """Everything about a shard; ``metrics`` gives each name its code."""
        from rollup_assets.kernels.partial import new_partial_points

        groups = list(self._groups(shard))
        details = any("lag_sum" in name for opened, _ in groups for name in opened.columns)
        count = sum(opened.rows(group) for opened, group in groups)
        partial = new_partial_points(count, len(self._layout.resolutions), np.dtype(self._layout.value_dtype), details)
        at = 0
        # A shard may have millions of series: no more than one row group is in memory twice.
        for opened, group in groups:
            table = opened.read(group)
            rows = slice(at, at + table.num_rows)
            for name, target in zip(_SERIES, partial[:7], strict=True):
                target[rows] = _column(table, name, metrics)
            for level, resolution in enumerate(self._layout.resolutions):
                suffix = format_duration(resolution)
                for place in range(partial.integers.shape[1]):
                    partial.integers[level, place, rows] = _column(table, f"{_INTEGERS[place]}_{suffix}", metrics)
                for place, name in enumerate(_VALUES):
                    partial.values[level, place, rows] = _column(table, f"{name}_{suffix}", metrics)
            at += table.num_rows
            del table
        return partial

    def series(self, shard: int, metrics: MetricNames) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """(metric codes int32, org ids, ids) of a shard's series, in order."""
        return self._columns(shard, ("metric", "org_id", "id"), metrics)

    def last_points(self, shard: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        """(ids, times in epoch ms, values) of the last point of each series of a shard."""
        return self._columns(shard, ("id", "last_timestamp", "last_value"), None)

    def _columns(
        self, shard: int, names: tuple[str, str, str], metrics: MetricNames | None
    ) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        tables = [opened.read(group, names) for opened, group in self._groups(shard)]
        kinds = {"metric": np.dtype(np.int32), "last_value": np.dtype(self._layout.value_dtype)}
        first, second, third = (
            np.concatenate([np.empty(0, kinds.get(name, np.dtype(np.int64))), *(_column(table, name, metrics) for table in tables)])
            for name in names
        )
        return first, second, third

    def _groups(self, shard: int) -> Iterator[tuple[StagedParquet, int]]:
        """The shard's row groups, in order, each as its file and number."""
        for place, file in self._files:
            for group in (group for group, owner in enumerate(file.shards) if owner == shard):
                yield self._open(place, file), group

    def _open(self, place: Place, file: StagedFile) -> StagedParquet:
        # Files are kept open: the footer of one that 4 to 16 shards share takes as long to read as a shard's rows.
        if place.location not in self._opened:
            self._opened[place.location] = StagedParquet(place, file, self._asset, self._batch, pre_buffer=not place.is_local)
        return self._opened[place.location]


def _column(table: pa.Table, name: str, metrics: MetricNames | None) -> NDArray[Any]:
    import pyarrow as pa

    column = table.column(name)
    array = column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    if metrics is None or not name.startswith("metric"):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    if not pa.types.is_dictionary(array.type):
        array = array.dictionary_encode()
    return np.asarray(metrics.codes_of_array(array.dictionary)[array.indices.to_numpy(zero_copy_only=False)])
