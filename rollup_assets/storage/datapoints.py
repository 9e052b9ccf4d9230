"""Repartitioned datapoints at rest: one Parquet file per shard, the points of a series contiguous and in time order.

Sorting them stays out (``steps.sort``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rollup_assets.batches import Batch
from rollup_assets.storage import encodings
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import StagedFile
from rollup_assets.storage.metric_names import MetricNames, dictionary_array
from rollup_assets.storage.parquet import ParquetFileWriter

if TYPE_CHECKING:
    import pyarrow as pa

    from rollup_assets.kernels.points import ShardPoints, SortedSeries
    from rollup_assets.kernels.row_groups import RowGroup


def datapoints_schema(value_column: str, *, has_receive: bool) -> pa.Schema:
    """Schema of a shard file; it has ``receive_timestamp`` only if some point of the shard has one."""
    import pyarrow as pa

    fields = [
        pa.field("id", pa.int64(), nullable=False),
        pa.field("org_id", pa.int64(), nullable=False),
        pa.field("metric", pa.dictionary(pa.int32(), pa.string()), nullable=False),
        pa.field("logical_timestamp", pa.int64(), nullable=False),
        pa.field(value_column, pa.float64() if value_column == "double_value" else pa.int64(), nullable=False),
    ]
    return pa.schema([*fields, pa.field("receive_timestamp", pa.int64())] if has_receive else fields)


class DatapointsWriter:
    """Writes the sorted points of one shard in row groups of a fixed size, whatever the size of the pieces given to it."""

    def __init__(self, folder: Place, attempt: str, batch: Batch, shard: int, value_column: str, has_receive: bool, most_rows: int) -> None:
        """``most_rows``: upper limit of the number of rows, so that a small shard takes little memory."""
        from rollup_assets.kernels.row_groups import RowGroup

        self._batch = batch
        self._shard = shard
        self._path = f"{attempt}/shard-{shard:05d}.parquet"
        self._schema = datapoints_schema(value_column, has_receive=has_receive)
        self._writer = ParquetFileWriter(folder / self._path, self._schema, encodings.DATAPOINTS)
        self._has_receive = has_receive
        self._names = MetricNames()
        self._filled = 0
        row_group = min(most_rows, encodings.DATAPOINTS_ROW_GROUP)
        self._group: RowGroup = RowGroup(
            np.empty(row_group, np.int64),
            np.empty(row_group, np.int64),
            np.empty(row_group, np.int32),
            np.empty(row_group, np.int64),
            np.empty(row_group, np.float64 if value_column == "double_value" else np.int64),
            np.empty(row_group if has_receive else 0, np.int64),
        )

    def write(self, series: SortedSeries, rank: NDArray[np.int32], names: Sequence[str], points: ShardPoints) -> None:
        """Append sorted points; ``rank`` gives each metric code of theirs its place in ``names``."""
        from rollup_assets.kernels.row_groups import fill_row_group

        # Pieces of one shard may number their metrics differently, so rows get the writer's own codes.
        codes = self._names.codes_of(names)
        series, codes_of_points = series._replace(metric=codes[series.metric]), codes[rank]
        place = point = 0
        while place < len(series.id):
            self._filled, place, point = fill_row_group(
                series, place, point, self._filled, codes_of_points, self._batch.start, points, self._group
            )
            if self._filled == len(self._group.id):
                self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        from rollup_assets.kernels.columns import NO_LAG

        count = self._filled
        group = self._group
        columns = [
            pa.array(group.id[:count]),
            pa.array(group.org[:count]),
            dictionary_array(group.metric[:count], self._names.names),
            pa.array(group.time[:count]),
            pa.array(group.value[:count]),
        ]
        if self._has_receive:
            receive = group.receive[:count]
            columns.append(pa.array(receive, mask=receive == NO_LAG))
        self._writer.write(pa.Table.from_arrays(columns, schema=self._schema))
        self._filled = 0

    def close(self) -> StagedFile:
        """Finish the file."""
        if self._filled:
            self._flush()
        return self._writer.close(self._path, shards=(self._shard,))
