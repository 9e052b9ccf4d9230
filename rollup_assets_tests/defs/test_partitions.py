"""What Dagster makes of a backfill that the UI asks for: which assets share a run."""

from __future__ import annotations

import datetime as dt
import logging
import warnings
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView, TemporalContext
from dagster._core.definitions.partitions.context import partition_loading_context
from dagster._core.execution.asset_backfill import AssetBackfillData, execute_asset_backfill_iteration_inner
from dagster._core.test_utils import create_test_daemon_workspace_context
from dagster._core.workspace.load_target import ModuleTarget

from rollup_assets.definitions import build_definitions
from rollup_assets.settings import load_settings
from rollup_assets_tests.defs.conftest import PUBLISHING, STAGING, hour

NOW = dt.datetime(2026, 1, 1, 12, 30, tzinfo=dt.UTC)
NEWEST = 11


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.mark.parametrize("last", [NEWEST, 5])
def test_staging_and_publishing_are_runs_of_their_own_wherever_a_backfill_ends(
    last: int, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one run, a batch that cannot be staged would keep all others from being published."""
    monkeypatch.setenv("ROLLUP_HOME", str(home))
    target = ModuleTarget("rollup_assets.definitions", "defs", working_directory=None, location_name="rollup_assets")
    with (
        dg.DagsterInstance.local_temp(str(home)) as instance,
        create_test_daemon_workspace_context(target, instance) as workspace,
        partition_loading_context(NOW, instance),
    ):
        graph = workspace.create_request_context().asset_graph
        view = AssetGraphView(temporal_context=TemporalContext(effective_dt=NOW, last_event_id=None), instance=instance, asset_graph=graph)
        asked = AssetBackfillData.from_asset_partitions(
            graph,
            partition_names=[hour(count) for count in range(last - 2, last + 1)],
            asset_selection=[dg.AssetKey(name) for name in (*STAGING, *PUBLISHING)],
            dynamic_partitions_store=instance,
            backfill_start_timestamp=NOW.timestamp(),
            all_partitions=False,
        )
        found = execute_asset_backfill_iteration_inner("backfill", asked, view, NOW.timestamp(), logging.getLogger("backfill"), None)
    assert [{key.to_user_string() for key in run.asset_selection or ()} for run in found.run_requests] == [set(STAGING)]


def test_the_code_location_loads_without_a_warning(home: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build_definitions(load_settings(home=home)).resolve_job_def("batches")
