"""The table's columns, partition spec and properties, declared once.

From :data:`COLUMNS` come the Arrow schema that data files are written with (field ids included, so that they are the table's own
from the start) and the Iceberg schema that the table is made with. Values, files and the catalog stay out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import pyarrow as pa
    from pyiceberg.partitioning import PartitionSpec
    from pyiceberg.schema import Schema

ValueType = Literal["long", "double"]
ColumnType = Literal["int", "long", "double", "string", "timestamptz", "value"]

FORMAT_VERSION = 2
METADATA_FILES_KEPT = 20
MERGE_MANIFESTS_FROM = 32
"""Number of manifests from which a merge is worth a commit."""
MANIFEST_BYTES = 512 * 1024
"""Bytes a merged manifest may have. A publish decodes each manifest that covers its day, whole and in Python: with Iceberg's 8 MB
that would slowly grow to seconds, unnoticed."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column; type ``value`` is int64 or float64 as the table's values are."""

    name: str
    type: ColumnType
    description: str
    required: bool = True


COLUMNS: tuple[Column, ...] = (
    Column("metric_shard_id", "int", "bucket(shards, id): Iceberg's own hash, so that any engine can compute it"),
    Column("id", "long", "series"),
    Column("org_id", "long", "organization of the window's first point"),
    Column("metric", "string", "metric of the window's first point"),
    Column("resolution", "int", "window length in ms"),
    Column("logical_timestamp", "timestamptz", "label: the end of the window, which covers (label - resolution, label]"),
    Column("count_rollup", "long", "number of points"),
    Column("sum_rollup", "value", "sum of values"),
    Column("min_rollup", "value", "least value"),
    Column("max_rollup", "value", "greatest value"),
    Column("average_rollup", "double", "sum / count"),
    Column("latest_rollup", "value", "value at the greatest timestamp"),
    Column("delta_rollup", "value", "sum of the steps that end in this window; null if there are none", required=False),
    Column("resets_rollup", "long", "how many of those steps were counter resets"),
    Column("rate_rollup", "double", "delta per second of the window; null if delta is null", required=False),
    Column("lag_rollup", "double", "mean of receive time - logical time in ms; null if no point has a receive time", required=False),
)


KEYS = ("metric_shard_id", "id", "org_id", "metric", "resolution", "logical_timestamp")
"""Columns whose least and greatest value in a file the metadata states, so that readers can skip files."""

_FIELD_IDS = {column.name: number for number, column in enumerate(COLUMNS, start=1)}


def field_id(name: str) -> int:
    """Iceberg field id of a column: 1, 2, … in the order of :data:`COLUMNS`, as a new table numbers them.

    Raises:
        KeyError: there is no such column.
    """
    return _FIELD_IDS[name]


def arrow_schema(value_type: ValueType) -> pa.Schema:
    """The schema of a data file: types, nullability and Parquet field ids of every column, in order."""
    import pyarrow as pa

    types = {
        "int": pa.int32(),
        "long": pa.int64(),
        "double": pa.float64(),
        "string": pa.string(),
        "timestamptz": pa.timestamp("us", "UTC"),
        "value": pa.int64() if value_type == "long" else pa.float64(),
    }
    return pa.schema(
        pa.field(column.name, types[column.type], nullable=not column.required, metadata={"PARQUET:field_id": str(number)})
        for number, column in enumerate(COLUMNS, start=1)
    )


def iceberg_schema(value_type: ValueType) -> Schema:
    """The table's schema; field ids equal those of :func:`arrow_schema`."""
    from pyiceberg.schema import Schema
    from pyiceberg.types import DoubleType, IntegerType, LongType, NestedField, StringType, TimestamptzType

    types = {
        "int": IntegerType(),
        "long": LongType(),
        "double": DoubleType(),
        "string": StringType(),
        "timestamptz": TimestamptzType(),
        "value": LongType() if value_type == "long" else DoubleType(),
    }
    return Schema(
        *(
            NestedField(
                field_id=field_id(column.name),
                name=column.name,
                field_type=types[column.type],
                required=column.required,
                doc=column.description,
            )
            for column in COLUMNS
        )
    )


def partition_spec() -> PartitionSpec:
    """``identity(resolution), day(logical_timestamp)``."""
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.transforms import DayTransform, IdentityTransform

    return PartitionSpec(
        PartitionField(source_id=field_id("resolution"), field_id=1000, transform=IdentityTransform(), name="resolution"),
        PartitionField(source_id=field_id("logical_timestamp"), field_id=1001, transform=DayTransform(), name="logical_timestamp_day"),
    )


def metrics_properties() -> dict[str, str]:
    """Properties that turn off statistics except for :data:`KEYS`: the others would take a fifth of a manifest and of a publish's CPU."""
    return {f"write.metadata.metrics.column.{column.name}": "none" for column in COLUMNS if column.name not in KEYS}


def table_properties(value_type: ValueType) -> dict[str, str]:
    """The table's properties except the ``rollup.*`` ones, which depend on the settings."""
    return {
        "format-version": str(FORMAT_VERSION),
        "schema.name-mapping.default": iceberg_schema(value_type).name_mapping.model_dump_json(),
        # Every commit writes a metadata file; without these two they would pile up for ever.
        "write.metadata.delete-after-commit.enabled": "true",
        "write.metadata.previous-versions-max": str(METADATA_FILES_KEPT),
        "write.parquet.compression-codec": "zstd",
        # `serializable`, since `snapshot` isolation lets two publishers of one batch both add their files.
        "write.delete.isolation-level": "serializable",
        "write.update.isolation-level": "serializable",
        "commit.retry.num-retries": "10",
        "commit.retry.min-wait-ms": "50",
        "commit.retry.max-wait-ms": "2000",
        # PyIceberg merges only where this is on, and only from this many manifests.
        "commit.manifest-merge.enabled": "true",
        "commit.manifest.min-count-to-merge": str(MERGE_MANIFESTS_FROM),
        "commit.manifest.target-size-bytes": str(MANIFEST_BYTES),
    }
