"""Making, finding and comparing the table."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from rollup_assets.errors import TableMismatchError
from rollup_assets.iceberg.catalog import load_catalog
from rollup_assets.iceberg.table import RESOLUTIONS_PROPERTY, check_table, data_location, ensure_table, table_location
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import Settings, load_settings
from rollup_assets.steps.publish import publish
from rollup_assets_tests.iceberg.staging import batches_from, load, pipeline_in, rollup_rows, stage_rollups


def settings_in(home: Path, **overrides: Any) -> Settings:
    return load_settings(home=str(home), **overrides)


def test_a_missing_table_is_made_and_then_found(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    made, found = ensure_table(settings), ensure_table(settings)
    assert made.metadata.table_uuid == found.metadata.table_uuid
    assert made.location() == table_location(settings)
    assert made.location_provider().new_data_location("x") == f"{data_location(settings).uri}/x"
    assert {name: value for name, value in made.properties.items() if name.startswith("rollup.")} == {
        "rollup.shards": "16",
        "rollup.batch": "1h",
        "rollup.value-type": "long",
        "rollup.resolutions": "1m,5m,1h",
    }


def test_several_makers_at_once_make_one_table(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        tables = list(pool.map(ensure_table, [settings] * 4))
    assert len({table.metadata.table_uuid for table in tables}) == 1


def test_a_namespace_that_is_there_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server may refuse that to whom may make tables in it."""
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.exceptions import ForbiddenError

    settings = settings_in(tmp_path)
    load_catalog(settings).create_namespace("metrics")
    monkeypatch.setattr(SqlCatalog, "create_namespace", lambda *_, **__: (_ for _ in ()).throw(ForbiddenError("not you")))
    assert ensure_table(settings).name() == ("metrics", "rollups")
    with pytest.raises(ForbiddenError):
        ensure_table(settings_in(tmp_path, table="others.rollups"))


def test_nested_namespaces_become_folders(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, table="prod.metrics.rollups")
    assert ensure_table(settings).location() == str(tmp_path / "warehouse/prod/metrics/rollups")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ({"shards": 8}, r"made with ROLLUP_SHARDS=16, the settings say 8; set ROLLUP_SHARDS=16"),
        ({"batch": "1d", "raw_layout": "%Y/%m/%d"}, r"made with ROLLUP_BATCH=1h, the settings say 1d"),
        ({"resolutions": "1m,1h"}, r"made with ROLLUP_RESOLUTIONS=1m,5m,1h, the settings say 1m,1h; set ROLLUP_RESOLUTIONS=1m,5m,1h"),
        ({"value_type": "double"}, r"made with ROLLUP_VALUE_TYPE=long, the settings say double"),
    ],
)
def test_settings_that_contradict_the_table_are_refused(tmp_path: Path, override: dict[str, Any], says: str) -> None:
    ensure_table(settings_in(tmp_path))
    with pytest.raises(TableMismatchError, match=says):
        ensure_table(settings_in(tmp_path, **override))


def test_another_warehouse_is_refused(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    ensure_table(settings)
    with pytest.raises(TableMismatchError, match="set ROLLUP_WAREHOUSE to where it lies"):
        ensure_table(settings_in(tmp_path, warehouse=str(tmp_path / "elsewhere")))


def test_a_table_made_by_others_is_refused(tmp_path: Path) -> None:
    from rollup_assets.iceberg.schema import iceberg_schema

    settings = settings_in(tmp_path)
    catalog = load_catalog(settings)
    catalog.create_namespace("metrics")
    catalog.create_table("metrics.rollups", iceberg_schema("long"))
    with pytest.raises(TableMismatchError, match=r"has no property rollup.shards"):
        ensure_table(settings)


def test_a_changed_schema_is_refused_and_an_added_optional_column_is_not(tmp_path: Path) -> None:
    from pyiceberg.types import StringType

    settings = settings_in(tmp_path)
    table = ensure_table(settings)
    with table.update_schema() as update:
        update.add_column("note", StringType())
    ensure_table(settings)
    with table.update_schema() as update:
        update.rename_column("sum_rollup", "total")
    with pytest.raises(TableMismatchError, match=r"has the column total .* instead of sum_rollup"):
        ensure_table(settings)


def test_a_changed_partition_spec_is_refused(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    table = ensure_table(settings)
    with table.update_spec() as update:
        update.remove_field("logical_timestamp_day")
    with pytest.raises(TableMismatchError, match="restore that partition spec"):
        ensure_table(settings)


def test_a_format_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    """Before anything is written for it: each commit to it would fail."""
    settings = settings_in(tmp_path)
    metadata = Path(ensure_table(settings).metadata_location)
    metadata.write_text(json.dumps(json.loads(metadata.read_text()) | {"format-version": 3}))
    with pytest.raises(TableMismatchError, match=r"has format version 3, which PyIceberg cannot write.*set ROLLUP_TABLE to a new name"):
        ensure_table(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [("write.delete.isolation-level", "snapshot"), ("write.update.isolation-level", "snapshot"), ("commit.retry.num-retries", "0")],
)
def test_properties_without_which_publishing_is_unsafe_are_refused(tmp_path: Path, name: str, value: str) -> None:
    settings = settings_in(tmp_path)
    table = ensure_table(settings)
    with table.transaction() as transaction:
        transaction.set_properties({name: value})
    with pytest.raises(TableMismatchError, match=f"has {name}={value}"):
        check_table(table, settings)


def without_resolutions(pipeline: Pipeline) -> None:
    """As an earlier version has made it."""
    with load(pipeline).transaction() as transaction:
        transaction.remove_properties(RESOLUTIONS_PROPERTY)


@pytest.mark.parametrize("published", [0, 1, 2])
def test_a_table_of_an_earlier_version_learns_its_resolutions_at_the_next_publish(tmp_path: Path, published: int) -> None:
    """Also where no window of the coarsest has been closed yet."""
    pipeline = pipeline_in(tmp_path)
    ensure_table(pipeline.settings)
    for batch in batches_from(pipeline, published):
        rows = {resolution: [rollup_rows(pipeline.settings, batch, resolution, 2)] for resolution in (60_000, 300_000)}
        stage_rollups(pipeline, batch, rows=rows) if published == 1 else stage_rollups(pipeline, batch)
        publish(pipeline, batch)
    without_resolutions(pipeline)
    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch, value=2)
    publish(pipeline, batch)
    assert load(pipeline).properties[RESOLUTIONS_PROPERTY] == "1m,5m,1h"


def test_resolutions_are_recorded_once_this_clock_has_caught_up_with_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit of properties alone is stamped by the clock, and Iceberg for Java refuses logs that go back by more than a minute."""
    pipeline = pipeline_in(tmp_path)
    first, second, third = batches_from(pipeline, 3)
    stage_rollups(pipeline, first)
    publish(pipeline, first)
    without_resolutions(pipeline)
    before = load(pipeline).metadata.last_updated_ms
    with monkeypatch.context() as clock:
        clock.setattr(time, "time", lambda: before / 1_000 - 3_600)
        stage_rollups(pipeline, second)
        publish(pipeline, second)
    assert RESOLUTIONS_PROPERTY not in load(pipeline).properties
    assert load(pipeline).metadata.last_updated_ms > before
    stage_rollups(pipeline, third)
    publish(pipeline, third)
    assert RESOLUTIONS_PROPERTY in load(pipeline).properties


@pytest.mark.parametrize(("resolutions", "settings"), [("1m,5m,1h", "1m,1h"), ("1m,1h", "1m,5m,1h"), ("1m,5m", "1m,5m,1h")])
def test_a_table_of_an_earlier_version_with_rows_of_other_resolutions_is_refused(tmp_path: Path, resolutions: str, settings: str) -> None:
    pipeline = pipeline_in(tmp_path, resolutions=resolutions)
    for batch in batches_from(pipeline, 2):
        stage_rollups(pipeline, batch)
        publish(pipeline, batch)
    without_resolutions(pipeline)
    changed = pipeline_in(tmp_path, resolutions=settings)
    stage_rollups(changed, batch)
    with pytest.raises(
        TableMismatchError, match=f"has rows of ROLLUP_RESOLUTIONS={resolutions}, the settings say {settings}; set ROLLUP_RES"
    ):
        publish(changed, batch)
    assert RESOLUTIONS_PROPERTY not in load(pipeline).properties
