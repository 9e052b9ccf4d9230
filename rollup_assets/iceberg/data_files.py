"""Iceberg's metadata of Parquet files: sizes, counts and bounds of columns, from a file's footer or from what was kept of it.

Reading 200 footers back from S3 took longer than the commit, and going through those of large files longer than everything else of a
publish. What is done with the metadata stays out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from pyiceberg.manifest import DataFile, DataFileContent, FileFormat

from rollup_assets.iceberg.schema import metrics_properties

if TYPE_CHECKING:
    from pyiceberg.io.pyarrow import DataFileStatistics, StatisticsCollector
    from pyiceberg.table import Table
    from pyiceberg.table.metadata import TableMetadata

    from rollup_assets.storage.file_statistics import FileStatistics


def data_file(table: Table, path: str) -> DataFile:
    """Metadata of one file, from its footer.

    Raises:
        OSError, ValueError, TypeError: the file is missing or not Parquet, or its columns are not the table's.
    """
    from pyiceberg.io.pyarrow import parquet_files_to_data_files

    return next(iter(parquet_files_to_data_files(table.io, _metadata(table), iter([path]))))


def _metadata(table: Table) -> TableMetadata:
    """The table's metadata, set to keep statistics of key columns only unless the table's properties say otherwise.

    Those of the partition's columns are always kept: a file's partition is made of them, and without it no query would find the rows.
    """
    partitioned_by = (table.schema().find_column_name(field.source_id) for field in table.spec().fields)
    needed = {f"write.metadata.metrics.column.{name}": "full" for name in partitioned_by}
    return table.metadata.model_copy(update={"properties": metrics_properties() | table.properties | needed})


def data_files_of_statistics(table: Table, files: Iterable[tuple[str, int, FileStatistics]]) -> Iterator[DataFile]:
    """Metadata of files by path, size in bytes and statistics, as :func:`data_file` makes it from a footer; in order.

    Raises:
        ValueError: a file's columns are not the table's, or its rows belong to several partitions.
    """
    from pyiceberg.io.pyarrow import compute_statistics_plan, parquet_path_to_id_mapping

    schema, spec = table.schema(), table.spec()
    wanted = compute_statistics_plan(schema, _metadata(table).properties)
    numbers = parquet_path_to_id_mapping(schema)
    required = [field.name for field in schema.fields if field.required]
    for path, size, found in files:
        if strange := [name for name in found.columns if name not in numbers] or [name for name in required if name not in found.columns]:
            raise ValueError(f"its columns are not the table's: {', '.join(strange)}")
        statistics = _statistics(found, {name: wanted[numbers[name]] for name in found.columns})
        yield DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=path,
            file_format=FileFormat.PARQUET,
            partition=statistics.partition(spec, schema),
            file_size_in_bytes=size,
            sort_order_id=None,
            spec_id=table.metadata.default_spec_id,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )


def _statistics(found: FileStatistics, wanted: Mapping[str, StatisticsCollector]) -> DataFileStatistics:
    """PyIceberg's form of a file's statistics: as much of each column as the table's properties want."""
    from pyiceberg.io.pyarrow import DataFileStatistics, MetricModeTypes, StatsAggregator

    values, nulls, bounds = {}, {}, {}
    for name, column in found.columns.items():
        collector = wanted[name]
        # Compares the physical type with the table's; ValueError if it is another one.
        aggregator = StatsAggregator(collector.iceberg_type, column.type, collector.mode.length)
        if collector.mode.type == MetricModeTypes.NONE:
            continue
        values[collector.field_id] = column.values
        if column.nulls is None:
            continue
        nulls[collector.field_id] = column.nulls
        if collector.mode.type != MetricModeTypes.COUNTS:
            aggregator.update_min(column.least)
            aggregator.update_max(column.greatest)
            bounds[collector.field_id] = aggregator
    return DataFileStatistics(
        record_count=found.rows,
        column_sizes={wanted[name].field_id: column.bytes for name, column in found.columns.items()},
        value_counts=values,
        null_value_counts=nulls,
        nan_value_counts={},
        column_aggregates=bounds,
        split_offsets=sorted(found.starts),
    )
