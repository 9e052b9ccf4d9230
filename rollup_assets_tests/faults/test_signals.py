"""K5, K6: runs that are told to stop, or are killed: no half commit, a free lock, no run that Dagster believes to go on for ever."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from deploy.instance import LAUNCH_BACKFILL, Dagster
from deploy.servers.processes import ended
from rollup_assets.defs.assets.datapoints import STAGED
from rollup_assets.defs.assets.rollups import IN_ORDER
from rollup_assets.failpoints import VARIABLE
from rollup_assets.iceberg.locks import table_lock
from rollup_assets.storage.manifests import ROLLUP_TABLE
from rollup_assets_tests.faults.invariants import check_all, manifests_of, rows_of, state_of
from rollup_assets_tests.faults.site import Site, wait_until
from rollup_assets_tests.integration.servers import dagster, dagster_processes, end_of_backfill, rollups_dev

PROJECT = Path(__file__).parents[2]
UNFINISHED = [dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.CANCELING]
THOROUGH = pytest.mark.thorough
LAUNCH = """
mutation Launch($params: ExecutionParams!) {
  launchRun(executionParams: $params) { __typename ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } }
}"""
TERMINATE = """
mutation Terminate($id: String!) { terminateRun(runId: $id) { __typename } }"""
STATUS = """
query Status($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"""


def unfinished(site: Site) -> list[dg.DagsterRun]:
    with dg.DagsterInstance.local_temp(str(site.settings.dagster_home)) as instance:
        return list(instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)))


def environment_of(site: Site) -> dict[str, str]:
    """The settings of a site as a process of its own reads them."""
    settings = site.settings
    variables = {name: getattr(settings, name) for name in ("home", "shards", "threads", "memory", "quarantine_limit")}
    return {f"ROLLUP_{name.upper()}": str(value) for name, value in variables.items()} | site.environment


@pytest.mark.scenario("K6")
@pytest.mark.parametrize(
    "failpoint",
    ["publish.commit", *(pytest.param(name, marks=THOROUGH) for name in ("read.rows", "rollup.begin", "publish.locked", "event.rollups"))],
)
def test_a_backfill_that_is_terminated(site: Site, failpoint: str) -> None:
    """The table is as before or as after, the lock is free, and a rerun does the rest."""
    first, last = site.batch(0).key, site.batch(2).key
    site.run(("backfill", first, first)).succeeds()
    before = rows_of(site)
    with site.paused(failpoint, ("backfill", first, last)) as running:
        running.terminate()
        time.sleep(0.2)
    assert running.exit_code() not in (0, -signal.SIGKILL), running.said
    assert unfinished(site) == []
    assert rows_of(site) == before
    with table_lock(site.settings, timeout=5):
        pass
    site.run(("backfill", first, last)).succeeds()
    check_all(site)


@pytest.mark.scenario("K5", "K4")
def test_the_command_killed_by_its_environment_is_closed_by_the_next_one(site: Site) -> None:
    """``rollups backfill`` itself: the failpoint comes from its environment, and a run that nobody ended is reported as failed."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "AWS_", "DAGSTER"))}
    command = [sys.executable, "-m", "rollup_assets.cli", "backfill", site.batch(0).key, site.batch(2).key]
    (site.home / "logs").mkdir()

    def run(number: int, **more: str) -> int:
        with (site.home / "logs" / f"command-{number}.log").open("wb") as log:
            return subprocess.run(
                command, env={**inherited, **environment_of(site), **more}, cwd=PROJECT, stdout=log, stderr=log, check=False
            ).returncode

    assert run(1, **{VARIABLE: "publish.committed=kill+1"}) == -signal.SIGKILL
    assert len(unfinished(site)) == 1
    committed = state_of(site).snapshot_id
    assert run(2) == 0
    assert unfinished(site) == []
    assert committed in {snapshot.snapshot_id for snapshot in _snapshots(site)}
    check_all(site)


def _snapshots(site: Site) -> list[Any]:
    from rollup_assets_tests.faults.invariants import loaded_table

    table = loaded_table(site)
    assert table is not None
    return list(table.metadata.snapshots)


# ------------------------------------------------------------------------------------------------- runs of the UI


def launch(server: Dagster, key: str) -> str:
    """Publish one batch, as the UI's launchpad does."""
    params = {
        "selector": {"repositoryLocationName": "rollup_assets", "repositoryName": "__repository__", "jobName": "batches"},
        "executionMetadata": {"tags": [{"key": "dagster/partition", "value": key}]},
        "runConfigData": "{}",
        "mode": "default",
    }
    launched = server.query(LAUNCH, params=params)["launchRun"]
    assert launched["__typename"] == "LaunchRunSuccess", launched
    return str(launched["run"]["runId"])


def status(server: Dagster, run_id: str) -> str:
    return str(server.query(STATUS, id=run_id)["runOrError"]["status"])


@pytest.mark.thorough
@pytest.mark.daemon
@pytest.mark.scenario("K5", "K6")
@pytest.mark.parametrize("end", ["cancelled", "worker killed"])
def test_a_run_of_the_ui_that_is_ended_in_its_commit(site: Site, end: str) -> None:
    """Cancelled in the UI it is CANCELED, and killed it is FAILURE, which the code location notices; both can be run again."""
    gate = site.home / "gate"
    (site.home / "logs").mkdir()
    key = site.batch(0).key
    variables = {**environment_of(site), VARIABLE: f"publish.commit=pause({gate})*1"}
    with dagster(site.settings, variables) as server:
        run_id = launch(server, key)
        wait_until(gate.exists)
        if end == "cancelled":
            assert server.query(TERMINATE, id=run_id)["terminateRun"]["__typename"] == "TerminateRunSuccess"
        else:
            (process,) = re.findall(r"failpoint publish\.commit: pause in process (\d+)", server.logs.read_text())
            os.kill(int(process), signal.SIGKILL)
        gate.unlink()
        wait_until(lambda: status(server, run_id) in ("CANCELED", "FAILURE", "SUCCESS"))
        assert status(server, run_id) == ("CANCELED" if end == "cancelled" else "FAILURE")
        assert rows_of(site) == []
        again = launch(server, key)
        wait_until(lambda: gate.exists() or status(server, again) in ("SUCCESS", "FAILURE"))
        gate.unlink(missing_ok=True)
        wait_until(lambda: status(server, again) in ("SUCCESS", "FAILURE"))
        assert status(server, again) == "SUCCESS"
    assert unfinished(site) == []
    site.finish()
    check_all(site)


@pytest.mark.thorough
@pytest.mark.daemon
@pytest.mark.scenario("K5")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("failpoint", ["read.rows", "publish.commit"])
def test_daemon_and_web_server_are_killed_in_a_backfill(site: Site, failpoint: str) -> None:
    """Started again they go on with it: the run that was under way goes on too, or is closed and started again."""
    gate = site.home / "gate"
    keys = [site.batch(number).key for number in range(2)]
    variables = {**environment_of(site), VARIABLE: f"{failpoint}=pause({gate})*1"}
    params = {"assetSelection": [{"path": [asset]} for asset in (*STAGED, *IN_ORDER)], "partitionNames": keys}
    with dagster_processes(site.settings, variables) as (server, processes):
        launched = server.query(LAUNCH_BACKFILL, params=params)["launchPartitionBackfill"]
        assert launched["__typename"] == "LaunchBackfillSuccess", launched
        wait_until(gate.exists)
        for process in processes:
            os.kill(process.pid, signal.SIGKILL)
        wait_until(lambda: None not in map(ended, processes))
        with dagster(site.settings, environment_of(site)) as again:
            gate.unlink()
            status = end_of_backfill(again, launched["backfillId"])
            wait_until(lambda: unfinished(site) == [])
    if status != "COMPLETED_SUCCESS":
        site.run(("backfill", keys[0], keys[1])).succeeds()
    assert {batch.key for (asset, batch) in manifests_of(site) if asset == ROLLUP_TABLE} >= set(keys)
    site.finish()
    check_all(site)


@pytest.mark.thorough
@pytest.mark.daemon
@pytest.mark.scenario("K5")
@pytest.mark.timeout(900)
def test_the_terminal_of_rollups_dev_is_closed(site: Site) -> None:
    """Started again it closes the run, which would keep its place for ever; a second one, beside the first, lets its run go on."""
    gate = site.home / "gate"
    key = site.batch(0).key
    variables = {**environment_of(site), VARIABLE: f"read.rows=pause({gate})*1"}
    with rollups_dev(site.settings, variables) as (server, process):
        lost = launch(server, key)
        wait_until(gate.exists)
        os.killpg(process.pid, signal.SIGHUP)
        wait_until(lambda: ended(process) is not None)
    gate.unlink()
    assert [run.run_id for run in unfinished(site)] == [lost]
    with rollups_dev(site.settings, variables) as (server, _):
        assert f"closed 1 run whose process was gone: {lost}" in server.logs.read_text()
        assert status(server, lost) == "FAILURE"
        again = launch(server, key)
        wait_until(gate.exists)
        with rollups_dev(site.settings, environment_of(site)):
            assert status(server, again) == "STARTED"
        gate.unlink()
        wait_until(lambda: status(server, again) in ("SUCCESS", "FAILURE"))
        assert status(server, again) == "SUCCESS"
    site.finish()
    check_all(site)
