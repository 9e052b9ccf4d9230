"""What is in the table, from metadata where it suffices, else from its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rollup_assets.iceberg import reading
from rollup_assets.iceberg.reading import list_deletes, live_files, range_counts, snapshot_dataset
from rollup_assets.iceberg.schema import arrow_schema
from rollup_assets.iceberg.table import ensure_table
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps.publish import publish
from rollup_assets_tests.iceberg.staging import batches_from, load, pipeline_in, rollup_rows, rows_of, stage_rollups
from rollup_assets_tests.iceberg.test_publish import compact, with_position_deletes


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return pipeline_in(tmp_path)


def published(pipeline: Pipeline, count: int) -> list[Any]:
    batches = batches_from(pipeline, count)
    for value, batch in enumerate(batches):
        stage_rollups(pipeline, batch, value=value)
        publish(pipeline, batch)
    return batches


def test_an_empty_table_has_no_files_and_no_rows(pipeline: Pipeline) -> None:
    table = ensure_table(pipeline.settings)
    (batch,) = batches_from(pipeline, 1)
    assert live_files(table) == []
    assert range_counts(table, batch).rows == {}
    dataset = snapshot_dataset(table)
    assert dataset.schema.equals(arrow_schema("long"))
    assert dataset.count_rows() == 0


def test_counts_of_published_batches_read_no_data_file(pipeline: Pipeline) -> None:
    first, _ = published(pipeline, 2)
    table = load(pipeline)
    for path in Path(table.location(), "data").rglob("*.parquet"):
        path.unlink()
    counts = range_counts(table, first)
    assert counts.rows == {60_000: 180, 300_000: 36, 3_600_000: 3}
    assert counts.files == {60_000: 1, 300_000: 1, 3_600_000: 1}


def test_counts_of_a_straddling_file_are_those_of_its_rows_in_the_range(pipeline: Pipeline) -> None:
    batches = published(pipeline, 3)
    compact(pipeline)
    table = load(pipeline)
    for batch in batches:
        files = live_files(table, batch)
        assert len(files) == 3
        assert not any(file.within(batch) for file in files if file.resolution != 3_600_000)
        assert range_counts(table, batch).rows == {60_000: 180, 300_000: 36, 3_600_000: 3}


def test_counts_leave_out_deleted_rows(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (batch,) = published(pipeline, 1)
    table = load(pipeline)
    path = next(file.path for file in live_files(table, batch) if file.resolution == 300_000)
    with_position_deletes(monkeypatch, tmp_path, path, [0, 5])
    assert range_counts(table, batch).rows == {60_000: 180, 300_000: 34, 3_600_000: 3}


def test_counts_at_an_older_snapshot(pipeline: Pipeline) -> None:
    first, _ = published(pipeline, 2)
    snapshot = load(pipeline).metadata.current_snapshot_id
    stage_rollups(pipeline, first, series=5)
    publish(pipeline, first)
    assert range_counts(load(pipeline), first).rows[3_600_000] == 5
    assert range_counts(load(pipeline), first, snapshot_id=snapshot).rows[3_600_000] == 3


@pytest.mark.parametrize("value_type", ["long", "double"])
@pytest.mark.parametrize("deletes", [False, True])
def test_the_dataset_gives_duckdb_every_live_row_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value_type: str, *, deletes: bool
) -> None:
    """With filters on the partition columns and on others, whole and by batch, also over straddling files and deletes."""
    import duckdb

    pipeline = pipeline_in(tmp_path, value_type=value_type)
    first, second = published(pipeline, 2)
    load(pipeline).append(
        pa.concat_tables([rollup_rows(pipeline.settings, of, 60_000, 2, value=50, first_id=500) for of in (first, second)])
    )
    table = load(pipeline)
    if deletes:
        path = next(file.path for file in live_files(table) if file.rows == 240)
        with_position_deletes(monkeypatch, tmp_path, path, [0])
    gone = int(deletes)
    dataset = snapshot_dataset(table)
    assert dataset.schema.equals(arrow_schema("double" if value_type == "double" else "long"))
    connection = duckdb.connect()
    connection.register("rollups", dataset)
    found = connection.execute("select resolution, count(*) from rollups group by 1 order by 1").fetchall()
    assert found == [(60_000, 360 + 240 - gone), (300_000, 72), (3_600_000, 6)]
    found = connection.execute("select count(*), sum(sum_rollup) from rollups where resolution = 60000 and id >= 500").fetchall()
    assert found == [(240 - gone, 50 * (240 - gone))]
    connection.register("of_batch", snapshot_dataset(table, first))
    query = "select count(*), max(logical_timestamp) < $end from of_batch"
    assert connection.execute(query, {"end": first.end_time}).fetchall() == [(219 + 120 - gone, True)]
    query = "select count(*) from of_batch where resolution = 60000 and sum_rollup = 50"
    assert connection.execute(query).fetchall() == [(120 - gone,)]
    assert len(rows_of(table)) == dataset.count_rows()


def test_the_dataset_opens_only_files_that_can_match(pipeline: Pipeline) -> None:
    """Files of other resolutions and batches may be gone: nobody asks for them."""
    import duckdb

    first, second = published(pipeline, 2)
    dataset = snapshot_dataset(load(pipeline))
    for file in live_files(load(pipeline)):
        if file.resolution != 300_000 or not file.within(second):
            Path(file.path).unlink()
    connection = duckdb.connect()
    connection.register("rollups", dataset)
    query = "select count(*) from rollups where resolution = 300000 and logical_timestamp >= $start"
    assert connection.execute(query, {"start": first.end_time}).fetchall() == [(36,)]


def test_a_manifest_is_decoded_once_a_process(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from pyiceberg.manifest import ManifestFile

    first, second = published(pipeline, 2)
    expected = [range_counts(load(pipeline), batch) for batch in (first, second)]
    monkeypatch.setattr(ManifestFile, "fetch_manifest_entry", lambda *_, **__: pytest.fail("a manifest was decoded again"))
    assert [range_counts(load(pipeline), batch) for batch in (first, second)] == expected
    assert expected[0].rows != {}


def test_manifests_of_delete_files_are_noticed() -> None:
    from pyiceberg.manifest import ManifestContent, ManifestFile

    data, deletes = (ManifestFile.from_args(content=content) for content in (ManifestContent.DATA, ManifestContent.DELETES))
    assert not list_deletes([data])
    assert list_deletes([data, deletes])


def test_files_without_bounds_belong_to_the_batches_of_their_day(pipeline: Pipeline) -> None:
    """Another engine may be told to leave out statistics; such a file is looked into, but not by batches of other days."""
    from dataclasses import replace

    batches = published(pipeline, 1)
    table = load(pipeline)
    (file, *_) = live_files(table)
    bare = replace(file, first=None, last=None)
    other_day = batches_from(pipeline, 1, first=30)[0]
    assert reading._may_hold(table, bare, batches[0])
    assert reading._may_hold(table, bare, batches_from(pipeline, 1, first=5)[0])
    assert not reading._may_hold(table, bare, other_day)
    assert not reading._may_hold(table, file, other_day)
