"""Metadata from kept footers is the metadata that the files themselves give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rollup_assets.errors import StageCorruptError
from rollup_assets.iceberg import data_files as module
from rollup_assets.iceberg.data_files import data_file, data_files_of_footers
from rollup_assets.iceberg.schema import arrow_schema
from rollup_assets.iceberg.table import data_location, ensure_table
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps.publish import publish
from rollup_assets.storage import encodings
from rollup_assets.storage.manifests import Manifest, StagedFile
from rollup_assets.storage.parquet import ParquetFileWriter, unpack_footer
from rollup_assets_tests.iceberg.staging import batches_from, pipeline_in, rollup_rows, stage_rollups, value_by_batch


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


@pytest.mark.parametrize("value_type", ["long", "double"])
@pytest.mark.parametrize("encoding", ["fast", "compatible"])
def test_kept_footers_say_what_the_files_say(tmp_path: Path, value_type: str, encoding: str) -> None:
    pipeline = pipeline_in(tmp_path, value_type=value_type, parquet_encoding=encoding)
    table = ensure_table(pipeline.settings)
    files = [staged(pipeline, resolution, number, number) for resolution in pipeline.settings.resolutions for number in (1, 2, 3)]
    kept = [(file.path, file.size, unpack_footer(file.footer or "")) for file in files]
    assert [fields(found) for found in data_files_of_footers(table, kept)] == [fields(data_file(table, file.path)) for file in files]


def test_a_large_footer_is_left_in_its_file(tmp_path: Path) -> None:
    pipeline = pipeline_in(tmp_path)
    assert staged(pipeline, 60_000, 1, groups=40).footer is None


def with_footers(pipeline: Pipeline, manifest: Manifest, pack: Any = None) -> None:
    """The manifest as the steps write it, with footers (or with something else in their place)."""
    from rollup_assets.storage.parquet import pack_footer

    def kept(file: StagedFile) -> StagedFile:
        content = Path(file.path).read_bytes()
        footer = pack_footer(content[-int.from_bytes(content[-8:-4], "little") - 8 :])
        return file.model_copy(update={"footer": (pack or str)(footer)})

    (batch,) = batches_from(pipeline, 1)
    pipeline.stage.write(manifest.model_copy(update={"files": tuple(kept(file) for file in manifest.files)}), batch)


def test_a_batch_with_kept_footers_is_published_without_opening_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = pipeline_in(tmp_path)
    (batch,) = batches_from(pipeline, 1)
    with_footers(pipeline, stage_rollups(pipeline, batch, files=3, value=7))
    monkeypatch.setattr(module, "data_file", lambda *_: pytest.fail("a footer was read from its file"))
    publish(pipeline, batch)
    monkeypatch.undo()
    assert value_by_batch(pipeline) == {batch.key: {7}}


@pytest.mark.parametrize("damage", [lambda _: "?", lambda packed: packed[:-8], lambda _: "eJwDAAAAAAE="])
def test_a_damaged_footer_is_no_footer(tmp_path: Path, damage: Any) -> None:
    pipeline = pipeline_in(tmp_path)
    (batch,) = batches_from(pipeline, 1)
    with_footers(pipeline, stage_rollups(pipeline, batch), damage)
    with pytest.raises(StageCorruptError, match=rf"cannot be published .*; run `rollups backfill {batch.key} {batch.key} --force`"):
        publish(pipeline, batch)
