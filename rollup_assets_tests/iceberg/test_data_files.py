"""Metadata from kept statistics is the metadata that the files themselves give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rollup_assets.errors import StageCorruptError
from rollup_assets.iceberg import data_files as module
from rollup_assets.iceberg.data_files import data_file, data_files_of_statistics
from rollup_assets.iceberg.schema import arrow_schema
from rollup_assets.iceberg.table import data_location, ensure_table
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps.publish import publish
from rollup_assets.storage import encodings
from rollup_assets.storage.file_statistics import FileStatistics
from rollup_assets.storage.manifests import Manifest, StagedFile
from rollup_assets.storage.parquet import ParquetFileWriter
from rollup_assets_tests.iceberg.staging import batches_from, load, pipeline_in, rollup_rows, stage_rollups, value_by_batch


def staged(pipeline: Pipeline, resolution: int, number: int, groups: int = 1) -> StagedFile:
    """A data file as the steps write it."""
    (batch,) = batches_from(pipeline, 1)
    place = data_location(pipeline.settings) / f"{resolution}-{number}.parquet"
    writer = ParquetFileWriter(place, arrow_schema(pipeline.settings.value_type), encodings.rollups(pipeline.settings.parquet_encoding))
    for group in range(groups):
        writer.write(rollup_rows(pipeline.settings, batch, resolution, 3, value=number + group))
    return writer.close(place.uri, resolution=resolution)


def fields(found: Any) -> list[Any]:
    """Everything that an Iceberg manifest says of a file."""
    return [found[number] for number in range(len(found))]


def of_statistics(table: Any, files: list[StagedFile]) -> list[list[Any]]:
    kept = [(file.path, file.size, FileStatistics.unpacked(file.statistics or "")) for file in files]
    return [fields(found) for found in data_files_of_statistics(table, kept)]


@pytest.mark.parametrize("value_type", ["long", "double"])
@pytest.mark.parametrize("encoding", ["fast", "compatible"])
@pytest.mark.parametrize("groups", [1, 40])
def test_kept_statistics_say_what_the_files_say(tmp_path: Path, value_type: str, encoding: str, groups: int) -> None:
    """Of one row group, and of so many that the footer is large."""
    pipeline = pipeline_in(tmp_path, value_type=value_type, parquet_encoding=encoding)
    table = ensure_table(pipeline.settings)
    files = [staged(pipeline, resolution, number, groups) for resolution in pipeline.settings.resolutions for number in (1, 2)]
    assert of_statistics(table, files) == [fields(data_file(table, file.path)) for file in files]


@pytest.mark.parametrize(
    "properties",
    [
        {"write.metadata.metrics.column.count_rollup": "full"},
        {"write.metadata.metrics.column.sum_rollup": "counts"},
        {"write.metadata.metrics.column.metric": "truncate(2)"},
        {"write.metadata.metrics.column.metric": "none"},
        {"write.metadata.metrics.column.id": "counts"},
        {"write.metadata.metrics.default": "counts"},
        {"write.metadata.metrics.column.logical_timestamp": "none"},
    ],
    ids=str,
)
def test_the_table_s_properties_say_how_much_of_it_is_kept(tmp_path: Path, properties: dict[str, str]) -> None:
    pipeline = pipeline_in(tmp_path)
    table = ensure_table(pipeline.settings)
    with table.transaction() as transaction:
        transaction.set_properties(properties)
    files = [staged(pipeline, 60_000, 1, 2)]
    assert of_statistics(table, files) == [fields(data_file(table, file.path)) for file in files]
    # Whatever they say: a file's partition is made of the least and greatest values of two columns.
    assert None not in fields(data_file(table, files[0].path).partition)


def test_no_property_of_the_table_hides_rows_from_queries_of_a_partition(tmp_path: Path) -> None:
    """A publish refused its own files, and a rollback left files that belong to no partition."""
    pipeline = pipeline_in(tmp_path, resolutions="1h")
    with ensure_table(pipeline.settings).transaction() as transaction:
        transaction.set_properties({"write.metadata.metrics.default": "none", "write.metadata.metrics.column.resolution": "none"})
    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch, series=2, value=7)
    publish(pipeline, batch)
    assert value_by_batch(pipeline) == {batch.key: {7}}
    assert len(load(pipeline).scan("resolution = 3600000").to_arrow()) == 2


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"stranger": {"type": "INT64", "bytes": 1, "values": 1}}, "its columns are not the table's: stranger"),
        ({"id": None}, "its columns are not the table's: id"),
        ({"id": {"type": "DOUBLE", "bytes": 1, "values": 1}}, "Unexpected physical type DOUBLE for long"),
    ],
    ids=["unknown", "missing", "of another type"],
)
def test_a_file_with_other_columns_is_refused(tmp_path: Path, columns: dict[str, Any], problem: str) -> None:
    pipeline = pipeline_in(tmp_path)
    table = ensure_table(pipeline.settings)
    file = staged(pipeline, 60_000, 1)
    told = FileStatistics.unpacked(file.statistics or "").model_dump(exclude_none=True)
    told["columns"] = {name: column for name, column in (told["columns"] | columns).items() if column is not None}
    with pytest.raises(ValueError, match=problem):
        list(data_files_of_statistics(table, [(file.path, file.size, FileStatistics.model_validate(told))]))


def with_statistics(pipeline: Pipeline, manifest: Manifest, change: Any = str) -> None:
    """The manifest as the steps write it, with statistics (or with something else in their place)."""

    def kept(file: StagedFile) -> StagedFile:
        statistics = FileStatistics.of(pq.read_metadata(file.path)).packed()
        return file.model_copy(update={"statistics": change(statistics)})

    (batch,) = batches_from(pipeline, 1)
    pipeline.stage.write(manifest.model_copy(update={"files": tuple(kept(file) for file in manifest.files)}), batch)


def test_a_batch_with_kept_statistics_is_published_without_opening_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = pipeline_in(tmp_path)
    (batch,) = batches_from(pipeline, 1)
    with_statistics(pipeline, stage_rollups(pipeline, batch, files=3, value=7))
    monkeypatch.setattr(module, "data_file", lambda *_: pytest.fail("a footer was read from its file"))
    publish(pipeline, batch)
    monkeypatch.undo()
    assert value_by_batch(pipeline) == {batch.key: {7}}


def test_a_manifest_of_an_earlier_version_is_published_from_its_files(tmp_path: Path) -> None:
    """It has packed footers, or nothing."""
    pipeline = pipeline_in(tmp_path)
    (batch,) = batches_from(pipeline, 1)
    manifest = stage_rollups(pipeline, batch, files=3, value=7)
    place = Path(pipeline.settings.home) / "stage" / "rollups" / batch.folder / "manifest.json"
    told = json.loads(place.read_text())
    for file in told["files"]:
        del file["statistics"]
        file["footer"] = "eJwDAAAAAAE="
    place.write_text(json.dumps(told))
    assert pipeline.stage.read("rollups", batch) == manifest.model_copy(
        update={"files": tuple(file.model_copy(update={"footer": "eJwDAAAAAAE=", "statistics": None}) for file in manifest.files)}
    )
    publish(pipeline, batch)
    assert value_by_batch(pipeline) == {batch.key: {7}}


@pytest.mark.parametrize("damage", [lambda _: "?", lambda packed: packed[:-8], lambda _: "eJwDAAAAAAE=", lambda _: "eJyrrgUAAXUA+Q=="])
def test_damaged_statistics_are_no_statistics(tmp_path: Path, damage: Any) -> None:
    """Not base64, cut off, empty, and an object without anything in it."""
    pipeline = pipeline_in(tmp_path)
    (batch,) = batches_from(pipeline, 1)
    with_statistics(pipeline, stage_rollups(pipeline, batch), damage)
    with pytest.raises(StageCorruptError, match=rf"cannot be published [^|]*; run `rollups backfill {batch.key} {batch.key} --force`"):
        publish(pipeline, batch)
