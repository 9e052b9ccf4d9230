"""A table and manifests as the reference model says they are: what verification is pointed at, without any step of the product."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyiceberg.transforms import BucketTransform
from pyiceberg.types import LongType

from rollup_assets.batches import Batch
from rollup_assets.code_version import CODE_VERSION
from rollup_assets.iceberg.catalog import load_catalog
from rollup_assets.iceberg.schema import arrow_schema
from rollup_assets.iceberg.table import ensure_table, load_table
from rollup_assets.pipeline import Pipeline
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS, Manifest
from rollup_assets_tests.landing import write_rows, write_table
from rollup_assets_tests.naive import Point, RawRow, Row, accept, rollups_of


def land_and_stage(
    pipeline: Pipeline, files: dict[Batch, dict[str, Sequence[RawRow]]], tables: Mapping[str, pa.Table] | None = None
) -> list[Point]:
    """Write raw files and the manifests of having staged them; returns all accepted points.

    ``tables``: the same rows in another form, for the files of these names.
    """
    points: list[Point] = []
    for batch, contents in files.items():
        for name, rows in contents.items():
            if tables and name in tables:
                write_table(pipeline, batch, name, tables[name])
            else:
                write_rows(pipeline, batch, name, rows)
        accepted = accept(dict(contents), batch.start, batch.end)
        points += accepted.points
        read = sum(len(rows) for rows in contents.values())
        reasons = Counter(row.reason for row in accepted.quarantined)
        counters = {
            "rows_read": read,
            "rows_accepted": len(accepted.points),
            "duplicates": accepted.duplicates,
            "rows_quarantined": len(accepted.quarantined),
        }
        stage(pipeline, REPARTITIONED, batch, counters)
        stage(pipeline, QUARANTINED, batch, {**counters, "bad_files": 0, "reasons": dict(reasons)})
        stage(pipeline, PARTIAL_POINTS, batch, {})
    return points


def stage(pipeline: Pipeline, asset: str, batch: Batch, counters: dict[str, Any]) -> None:
    """A manifest without files."""
    settings, first = pipeline.settings, pipeline.calendar.first
    by_arrival = settings.raw_lateness > 0 and asset not in (ROLLUPS, ROLLUP_TABLE)
    is_near_the_start = batch.start < first.start + settings.raw_lateness * settings.batch
    parameters = {
        "shards": settings.shards,
        "resolutions": list(settings.resolutions),
        "lookback": settings.lookback,
        "batch": settings.batch,
        "value_type": settings.value_type,
        **({"raw_lateness": settings.raw_lateness} if by_arrival else {}),
        **({"start": first.key} if by_arrival and is_near_the_start else {}),
        **({"parquet_encoding": settings.parquet_encoding} if asset in (ROLLUPS, ROLLUP_TABLE) else {}),
    }
    pipeline.stage.write(
        Manifest(
            asset=asset,
            partition=batch.key,
            attempt="a",
            code_version=CODE_VERSION,
            parameters=parameters,
            inputs=tuple(pipeline.landing_zone.files(batch)),
            counters=counters,
            digest=f"{asset} {batch}",
        ),
        batch,
    )


def receipt(pipeline: Pipeline, batch: Batch) -> None:
    """Say that a batch is rolled up and published."""
    stage(pipeline, ROLLUPS, batch, {})
    stage(pipeline, ROLLUP_TABLE, batch, {"snapshot_id": 1, "staged_attempt": "a", "rows": {}, "files": {}})


def rows_of(pipeline: Pipeline, points: Sequence[Point], batches: Sequence[Batch]) -> list[Row]:
    """The rows that the reference model gives for the labels of some batches."""
    rows = rollups_of(points, pipeline.settings.resolutions, pipeline.settings.lookback)
    return [row for row in rows.values() if any(batch.start <= row.label < batch.end for batch in batches)]


def arrow_of(pipeline: Pipeline, rows: Sequence[Row]) -> pa.Table:
    """Rows in the table's schema."""
    bucket = BucketTransform(pipeline.settings.shards).transform(LongType())
    names = ("count", "sum", "min", "max", "average", "latest", "delta", "resets", "rate", "lag")
    schema = arrow_schema(pipeline.settings.value_type)
    columns = {
        "metric_shard_id": [bucket(row.id) for row in rows],
        "id": [row.id for row in rows],
        "org_id": [row.org_id for row in rows],
        "metric": [row.metric for row in rows],
        "resolution": [row.resolution for row in rows],
        "logical_timestamp": np.array([row.label * 1_000 for row in rows], dtype="M8[us]"),
        **{f"{name}_rollup": [getattr(row, name) for row in rows] for name in names},
    }
    return pa.table({name: pa.array(column, schema.field(name).type) for name, column in columns.items()}, schema=schema)


def append(pipeline: Pipeline, content: pa.Table) -> None:
    """Add rows to the table, which is made if it is missing."""
    ensure_table(pipeline.settings).append(content)


def replace(pipeline: Pipeline, content: pa.Table) -> None:
    """Make these the table's only rows."""
    table = load_table(load_catalog(pipeline.settings), pipeline.settings)
    assert table is not None
    table.overwrite(content)


def content_of(pipeline: Pipeline) -> pa.Table:
    """All rows of the table."""
    table = load_table(load_catalog(pipeline.settings), pipeline.settings)
    assert table is not None
    return table.scan().to_arrow().cast(arrow_schema(pipeline.settings.value_type))
