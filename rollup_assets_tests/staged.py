"""Staged files read back into the reference model's words, and forms in which two results can be compared bit by bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rollup_assets.batches import Batch
from rollup_assets.storage.manifests import Manifest, Stage, StagedFile
from rollup_assets_tests.naive import Point, Row, Rows

if TYPE_CHECKING:
    import pytest

    from rollup_assets.pipeline import Pipeline


def manifests_read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Batch]]:
    """A list that gets asset and batch of every manifest read from now on: each is a request where the stage is a bucket."""
    read: list[tuple[str, Batch]] = []

    def counted(stage: Stage, asset: str, batch: Batch, original: Callable[..., Manifest | None] = Stage.read) -> Manifest | None:
        read.append((asset, batch))
        return original(stage, asset, batch)

    monkeypatch.setattr(Stage, "read", counted)
    return read


def table(pipeline: Pipeline, batch: Batch, manifest: Manifest, file: StagedFile) -> pa.Table:
    """A staged file."""
    with pipeline.stage.place(manifest, file, batch).open_input() as stream:
        return pq.ParquetFile(stream).read()


def points(pipeline: Pipeline, batch: Batch, manifest: Manifest) -> dict[int, list[Point]]:
    """``repartitioned_datapoints``: the points of each shard in the order of the file."""
    found: dict[int, list[Point]] = {}
    for file in manifest.files:
        (shard,) = file.shards
        assert shard not in found, f"shard {shard} is in two files"
        columns = table(pipeline, batch, manifest, file).to_pydict()
        receive = columns.get("receive_timestamp") or [None] * file.rows
        found[shard] = [
            Point(*values)
            for values in zip(
                columns["id"],
                columns["org_id"],
                columns["metric"],
                columns["logical_timestamp"],
                columns[pipeline.settings.value_column],
                receive,
                strict=True,
            )
        ]
    return {shard: rows for shard, rows in found.items() if rows}


ROLLUP_COLUMNS = [
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


def rollup_file(pipeline: Pipeline, batch: Batch, manifest: Manifest, file: StagedFile) -> list[tuple[int, Row]]:
    """The rows of one rollup file as (metric_shard_id, row), in the order of the file."""
    return shards_and_rows(table(pipeline, batch, manifest, file))


def shards_and_rows(content: pa.Table) -> list[tuple[int, Row]]:
    """Rows of the table's schema as (metric_shard_id, row), in their order."""
    assert content.column_names == ROLLUP_COLUMNS
    columns = {name: content.column(name) for name in content.column_names}
    assert columns["logical_timestamp"].type == pa.timestamp("us", "UTC")
    labels = []
    for micros in columns["logical_timestamp"].cast(pa.int64()).to_pylist():
        assert micros % 1000 == 0
        labels.append(micros // 1000)
    rows = []
    plain = {name: column.to_pylist() for name, column in columns.items() if name != "logical_timestamp"}
    for at, label in enumerate(labels):
        value = {name: column[at] for name, column in plain.items()}
        rows.append(
            (
                value["metric_shard_id"],
                Row(
                    id=value["id"],
                    org_id=value["org_id"],
                    metric=value["metric"],
                    resolution=value["resolution"],
                    label=label,
                    count=value["count_rollup"],
                    sum=value["sum_rollup"],
                    min=value["min_rollup"],
                    max=value["max_rollup"],
                    average=value["average_rollup"],
                    latest=value["latest_rollup"],
                    delta=value["delta_rollup"],
                    resets=value["resets_rollup"],
                    rate=value["rate_rollup"],
                    lag=value["lag_rollup"],
                ),
            )
        )
    return rows


def rollup_rows(pipeline: Pipeline, batch: Batch, manifest: Manifest) -> list[tuple[int, Row]]:
    """All rows of ``rollups`` as (metric_shard_id, row), file after file."""
    return [found for file in manifest.files for found in rollup_file(pipeline, batch, manifest, file)]


def rollups(pipeline: Pipeline, batch: Batch, manifest: Manifest) -> Rows:
    """``rollups`` by (id, resolution, label); no window twice."""
    rows: Rows = {}
    for _, row in rollup_rows(pipeline, batch, manifest):
        key = (row.id, row.resolution, row.label)
        assert key not in rows, f"{key} is there twice"
        rows[key] = row
    return rows


def quarantined(pipeline: Pipeline, batch: Batch, manifest: Manifest) -> list[dict[str, Any]]:
    """``quarantined_datapoints``, row by row."""
    return [row for file in manifest.files for row in table(pipeline, batch, manifest, file).to_pylist()]


def bits(row: object) -> tuple[object, ...]:
    """A dataclass as a tuple in which doubles are equal only if their bits are (any NaN equals any other)."""
    assert dataclasses.is_dataclass(row)
    return tuple(value.hex() if isinstance(value, float) else value for value in dataclasses.astuple(row))  # type: ignore[arg-type]


def assert_same(found: Rows, expected: Rows) -> None:
    """Equal in every bit of every column; says which windows differ."""
    assert not found.keys() - expected.keys(), f"windows that should not be there: {sorted(found.keys() - expected.keys())[:5]}"
    assert not expected.keys() - found.keys(), f"windows that are missing: {sorted(expected.keys() - found.keys())[:5]}"
    different = [(found[key], expected[key]) for key in expected if bits(found[key]) != bits(expected[key])]
    assert not different, f"{len(different)} rows differ, the first: {different[0][0]}, expected: {different[0][1]}"


def digests(manifest: Manifest) -> tuple[object, ...]:
    """What must be the same wherever content is the same: bytes, rows, shards, counters."""
    return (
        manifest.digest,
        tuple((file.digest, file.rows, file.size, file.shards, file.resolution) for file in manifest.files),
        manifest.counters,
    )


def identity(manifest: Manifest) -> tuple[object, ...]:
    """What must be the same if a manifest and its files were kept."""
    return (manifest.attempt, tuple(file.path for file in manifest.files), *digests(manifest))


def file_bytes(pipeline: Pipeline, batch: Batch, manifest: Manifest) -> list[bytes]:
    """The content of every file of a manifest."""
    return [content for file in manifest.files if (content := pipeline.stage.place(manifest, file, batch).read_bytes()) is not None]


def merged(parts: Iterable[Rows]) -> Rows:
    """Rows of several batches; no window twice."""
    rows: Rows = {}
    for part in parts:
        assert not rows.keys() & part.keys(), "the same window in two batches"
        rows |= part
    return rows
