"""A backfill as the UI starts it, through web server and daemon, publishes the same rows as ``rollups backfill``."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.instance import LAUNCH_BACKFILL
from rollup_assets.defs.assets.datapoints import STAGED
from rollup_assets.defs.assets.rollups import IN_ORDER
from rollup_assets.defs.backfill import run_backfill
from rollup_assets.storage.manifests import REPARTITIONED, ROLLUP_TABLE, ROLLUPS
from rollup_assets_tests.conftest import WithDagsterHome
from rollup_assets_tests.integration.servers import dagster, end_of_backfill
from rollup_assets_tests.integration.tables import hours, land, recorded, rows

pytestmark = pytest.mark.daemon

STALE = """
query Stale($partitions: [String!]!) {
  assetNodes { assetKey { path } partitionStats { numMaterialized numFailed } staleStatusByPartition(partitions: $partitions) }
}"""
RAW_HOURS, ASKED_HOURS = 4, 3


def test_a_backfill_through_the_daemon_publishes_the_same_rows_as_one_from_the_terminal(
    tmp_path: Path, with_dagster_home: WithDagsterHome
) -> None:
    """Its trailing partitions included: hour 3 has raw files that nobody asked for, so it waits, and so does hour 4."""
    settings, environment = land(with_dagster_home(tmp_path / "daemon"), RAW_HOURS)
    with dagster(settings, environment) as server:
        params = {"assetSelection": [{"path": [asset]} for asset in (*STAGED, *IN_ORDER)], "partitionNames": hours(0, ASKED_HOURS - 1)}
        launched = server.query(LAUNCH_BACKFILL, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        assert end_of_backfill(server, launched["backfillId"]) == "COMPLETED_SUCCESS"
        nodes = server.query(STALE, partitions=hours(0, 4))["assetNodes"]
    by_name = {node["assetKey"]["path"][-1]: node for node in nodes}
    assert by_name[REPARTITIONED]["partitionStats"] == {"numMaterialized": 3, "numFailed": 0}
    assert by_name[ROLLUPS]["staleStatusByPartition"] == ["FRESH"] * 5
    assert by_name[REPARTITIONED]["staleStatusByPartition"] == ["FRESH"] * 3 + ["MISSING"] * 2

    other, _ = land(with_dagster_home(tmp_path / "terminal"), RAW_HOURS)
    result = run_backfill(other, *hours(0, ASKED_HOURS - 1)[:: ASKED_HOURS - 1])
    assert result.published == tuple(hours(0, 2))
    assert result.waiting.keys() == set(hours(3, 4))
    assert rows(settings) == rows(other)

    for asset in (*STAGED, *IN_ORDER):
        assert recorded(settings, asset) == recorded(other, asset), asset
    assert recorded(settings, ROLLUP_TABLE).keys() == set(hours(0, 4))
