"""Columns, types and ids are declared once and agree everywhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rollup_assets.iceberg.schema import COLUMNS, ValueType, arrow_schema, field_id, iceberg_schema, partition_spec, table_properties


@pytest.mark.parametrize("value_type", ["long", "double"])
def test_arrow_and_iceberg_schema_agree(value_type: ValueType) -> None:
    """Names, order, field ids, nullability and types are the same in data files and in the table."""
    from pyiceberg.io.pyarrow import pyarrow_to_schema

    ours, of_files = iceberg_schema(value_type), pyarrow_to_schema(arrow_schema(value_type))
    strip = [(field.field_id, field.name, field.field_type, field.required) for field in ours.fields]
    assert strip == [(field.field_id, field.name, field.field_type, field.required) for field in of_files.fields]


def test_columns_of_the_design() -> None:
    assert [column.name for column in COLUMNS] == [
        "metric_shard_id",
        "id",
        "org_id",
        "metric",
        "resolution",
        "logical_timestamp",
        "count_rollup",
        "sum_rollup",
        "min_rollup",
        "max_rollup",
        "average_rollup",
        "latest_rollup",
        "delta_rollup",
        "resets_rollup",
        "rate_rollup",
        "lag_rollup",
    ]
    assert [column.name for column in COLUMNS if not column.required] == ["delta_rollup", "rate_rollup", "lag_rollup"]


@pytest.mark.parametrize(("value_type", "text"), [("long", "int64"), ("double", "double")])
def test_value_columns_have_the_value_type(value_type: ValueType, text: str) -> None:
    schema = arrow_schema(value_type)
    for name in ("sum_rollup", "min_rollup", "max_rollup", "latest_rollup", "delta_rollup"):
        assert str(schema.field(name).type) == text
    for name in ("average_rollup", "rate_rollup", "lag_rollup"):
        assert str(schema.field(name).type) == "double"
    assert str(schema.field("count_rollup").type) == "int64"


def test_partition_spec() -> None:
    fields = [(field.source_id, str(field.transform), field.name) for field in partition_spec().fields]
    assert fields == [(field_id("resolution"), "identity", "resolution"), (field_id("logical_timestamp"), "day", "logical_timestamp_day")]


def test_properties_name_every_column() -> None:
    properties = table_properties("long")
    for column in COLUMNS:
        assert f'"{column.name}"' in properties["schema.name-mapping.default"]
    assert int(properties["commit.retry.num-retries"]) > 0


def test_importing_costs_nothing() -> None:
    """The code location may import the package without paying for pyiceberg and pyarrow."""
    code = (
        "import sys; import rollup_assets.iceberg.schema, rollup_assets.iceberg.catalog, rollup_assets.iceberg.reading, "
        "rollup_assets.iceberg.publish, rollup_assets.iceberg.maintenance, rollup_assets.steps.publish; "
        "print([name for name in ('pyiceberg', 'pyarrow', 'sqlalchemy', 'duckdb', 'numba') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
