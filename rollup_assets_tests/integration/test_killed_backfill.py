"""A backfill that is killed and run again gives the same table as one that was left alone, and the dead run is closed.

Killing the steps at every point of theirs is `test_kill.py`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import dagster as dg
import pytest

from rollup_assets.defs.backfill import run_backfill
from rollup_assets.settings import Settings
from rollup_assets.storage.manifests import ROLLUP_TABLE, ROLLUPS
from rollup_assets_tests.conftest import WithDagsterHome
from rollup_assets_tests.integration.tables import hours, land, recorded, rows

HOURS = 3
# A process of its own: it is the one to be killed.
BACKFILL = "import sys; from rollup_assets.defs.backfill import run_backfill; from rollup_assets.settings import load_settings; \
run_backfill(load_settings(), *sys.argv[1:])"


@pytest.fixture(scope="module")
def left_alone(tmp_path_factory: pytest.TempPathFactory, with_dagster_home: WithDagsterHome) -> Settings:
    """A table whose backfill nobody disturbed."""
    settings, _ = land(with_dagster_home(tmp_path_factory.mktemp("alone")), HOURS)
    assert run_backfill(settings, hours(0, 0)[0], hours(HOURS - 1, HOURS - 1)[0]).success
    return settings


@pytest.mark.scenario("K4", "K5")
def test_killed_and_run_again_it_is_the_table_of_one_left_alone(
    tmp_path: Path, left_alone: Settings, with_dagster_home: WithDagsterHome
) -> None:
    """Killed a moment after the first rollups are in place: within another write, commit or event, as luck has it."""
    settings, environment = land(with_dagster_home(tmp_path), HOURS)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "DAGSTER"))}
    first, last = hours(0, HOURS - 1)[0], hours(0, HOURS - 1)[-1]
    with subprocess.Popen([sys.executable, "-c", BACKFILL, first, last], env=inherited | environment) as process:
        manifest = Path(settings.stage, ROLLUPS, settings.calendar.batch(first).folder, "manifest.json")
        deadline = time.monotonic() + 120
        while not manifest.exists() and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(random.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
    result = run_backfill(settings, first, last)
    assert result.published == tuple(hours(0, HOURS + 1))
    assert rows(settings) == rows(left_alone)
    with dg.DagsterInstance.local_temp(str(settings.dagster_home)) as instance:
        assert {run.status for run in instance.get_runs(dg.RunsFilter(run_ids=list(result.closed_runs)))} <= {dg.DagsterRunStatus.FAILURE}
        assert instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])) == []
    for made in (ROLLUPS, ROLLUP_TABLE):
        latest = {partition: versions[0] for partition, versions in recorded(settings, made).items()}
        assert latest == {partition: versions[0] for partition, versions in recorded(left_alone, made).items()}
