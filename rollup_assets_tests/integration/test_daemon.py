"""A backfill as the UI starts it, through web server and daemon, publishes the same rows as ``rollups backfill``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from rollup_assets.defs.assets.datapoints import STAGED
from rollup_assets.defs.assets.rollups import IN_ORDER
from rollup_assets.defs.backfill import run_backfill
from rollup_assets.settings import Settings, load_settings
from rollup_assets.storage.manifests import REPARTITIONED, ROLLUP_TABLE, ROLLUPS
from rollup_assets_tests.integration.servers import Dagster, dagster

pytestmark = pytest.mark.daemon

LAUNCH = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}"""
STATUS = """
query Status($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status error { message } } }
}"""
STALE = """
query Stale($partitions: [String!]!) {
  assetNodes { assetKey { path } partitionStats { numMaterialized numFailed } staleStatusByPartition(partitions: $partitions) }
}"""
RAW_HOURS, ASKED_HOURS = 4, 3


def hours(first: int, last: int) -> list[str]:
    return [f"2026-01-01-{count:02d}:00" for count in range(first, last + 1)]


def land(home: Path) -> tuple[Settings, dict[str, str]]:
    """Settings of a table whose landing zone has the same few hours every time, and the environment that gives them."""
    from rollup_assets.generator.landing import GeneratorOptions, generate

    environment = {"ROLLUP_HOME": str(home), "ROLLUP_SHARDS": "4", "ROLLUP_THREADS": "2", "ROLLUP_MEMORY": "256MiB"}
    settings = load_settings(home=str(home), shards=4, threads=2, memory="256MiB")
    batches = [settings.calendar.batch(key) for key in hours(0, RAW_HOURS - 1)]
    generate(settings, batches, GeneratorOptions(seed=7, series=40, interval=60_000, files=2))
    return settings, environment


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Every row of the table."""
    from rollup_assets.iceberg.catalog import load_table, open_catalog
    from rollup_assets.iceberg.reading import snapshot_dataset

    with open_catalog(settings) as catalog:
        table = load_table(catalog, settings)
        assert table is not None
        found: list[dict[str, Any]] = snapshot_dataset(table).to_table().to_pylist()
    return sorted(found, key=lambda row: (row["resolution"], row["logical_timestamp"], row["id"]))


def wait_for(server: Dagster, backfill: str) -> str:
    """The status in which a backfill ends. The daemon looks after it every 30 seconds or so."""
    deadline = time.monotonic() + 480
    while True:
        found = server.query(STATUS, id=backfill)["partitionBackfillOrError"]
        if found["status"] not in ("REQUESTED", "CANCELING", "FAILING"):
            return str(found["status"])
        assert time.monotonic() < deadline, f"{found}; see {server.log}"
        time.sleep(1)


def test_a_backfill_through_the_daemon_publishes_the_same_rows_as_one_from_the_terminal(tmp_path: Path) -> None:
    """Its trailing partitions included: hour 3 has raw files that nobody asked for, so it waits, and so does hour 4."""
    settings, environment = land(tmp_path / "daemon")
    with dagster(settings, environment) as server:
        params = {"assetSelection": [{"path": [asset]} for asset in (*STAGED, *IN_ORDER)], "partitionNames": hours(0, ASKED_HOURS - 1)}
        launched = server.query(LAUNCH, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        assert wait_for(server, launched["backfillId"]) == "COMPLETED_SUCCESS"
        nodes = server.query(STALE, partitions=hours(0, 4))["assetNodes"]
    by_name = {node["assetKey"]["path"][-1]: node for node in nodes}
    assert by_name[REPARTITIONED]["partitionStats"] == {"numMaterialized": 3, "numFailed": 0}
    assert by_name[ROLLUPS]["staleStatusByPartition"] == ["FRESH"] * 5
    assert by_name[REPARTITIONED]["staleStatusByPartition"] == ["FRESH"] * 3 + ["MISSING"] * 2

    other, _ = land(tmp_path / "terminal")
    result = run_backfill(other, *hours(0, ASKED_HOURS - 1)[:: ASKED_HOURS - 1])
    assert result.published == tuple(hours(0, 2))
    assert result.waiting.keys() == set(hours(3, 4))
    assert rows(settings) == rows(other)

    for asset in (*STAGED, *IN_ORDER):
        assert recorded(settings, asset) == recorded(other, asset), asset


def recorded(settings: Settings, asset: str) -> dict[str, list[str]]:
    """Data versions by partition, as Dagster has recorded them; raw files' times differ, their content does not."""
    found: dict[str, list[str]] = {}
    with dg.DagsterInstance.local_temp(str(settings.dagster_home)) as instance:
        for record in instance.fetch_materializations(dg.AssetRecordsFilter(dg.AssetKey(asset)), limit=100).records:
            event = record.asset_materialization
            assert event is not None
            assert event.partition is not None
            found.setdefault(event.partition, []).append((event.tags or {})["dagster/data_version"])
    assert asset != ROLLUP_TABLE or len(found) == 5
    return found
