"""Transactions share the table's metadata, and change none of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.table.snapshots import Snapshot

from rollup_assets.iceberg.shared_metadata import cheap_to_change
from rollup_assets.steps.publish import publish
from rollup_assets_tests.iceberg.staging import batches_from, load, pipeline_in, stage_rollups


def test_a_transaction_copies_no_snapshots_and_leaves_the_table_as_it_was(tmp_path: Path) -> None:
    """PyIceberg looks at a transaction's metadata by copying all of it: here the parts are the very same ones."""
    pipeline = pipeline_in(tmp_path, resolutions="1h")
    for batch in batches_from(pipeline, 3):
        stage_rollups(pipeline, batch, series=1)
        publish(pipeline, batch)
    table = cheap_to_change(load(pipeline))
    before = table.metadata.model_dump_json()
    transaction = table.transaction()
    transaction.set_properties({"owner": "somebody"})
    changed = transaction.table_metadata
    assert changed.properties["owner"] == "somebody"
    assert all(one is other for one, other in zip(changed.snapshots, table.metadata.snapshots, strict=True))
    assert copy.deepcopy(table.metadata).schemas[0] is table.metadata.schemas[0]
    assert table.metadata.model_dump_json() == before == load(pipeline).metadata.model_dump_json()


def test_what_is_committed_is_what_the_catalog_makes_of_it(tmp_path: Path) -> None:
    pipeline = pipeline_in(tmp_path, resolutions="1h")
    for batch in batches_from(pipeline, 2):
        stage_rollups(pipeline, batch, series=1)
        publish(pipeline, batch)
    table = cheap_to_change(load(pipeline))
    with table.transaction() as transaction:
        transaction.set_properties({"owner": "somebody"})
    found = load(pipeline)
    assert found.properties["owner"] == "somebody"
    assert found.metadata == table.metadata
    assert len(found.snapshots()) == 2


@pytest.mark.parametrize("server", [False, True], ids=["SQLite", "PostgreSQL"])
def test_no_publish_copies_a_snapshot(
    tmp_path: Path, fresh_catalog: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch, server: bool
) -> None:
    """Neither its transaction nor the catalog, which applies the commit to metadata that it loads: a second each at 10,000 snapshots."""
    pipeline = pipeline_in(tmp_path, resolutions="1h", **(fresh_catalog() if server else {}))
    first, *others = batches_from(pipeline, 4)
    stage_rollups(pipeline, first, series=1)
    publish(pipeline, first)

    def refuse(*_: object) -> None:
        raise AssertionError("a snapshot was copied")

    monkeypatch.setattr(Snapshot, "__deepcopy__", refuse)
    for batch in others:
        stage_rollups(pipeline, batch, series=1)
        publish(pipeline, batch)
    assert len(load(pipeline).snapshots()) == 4
