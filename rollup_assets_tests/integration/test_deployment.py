"""What a deployment runs, without its containers: the wheel, as a user who can write nowhere else, on PostgreSQL, S3 and Spark.

It is ``make demo-production`` at a terminal, from an environment that has the wheel and not the checkout, until Ctrl-C.
"""

from __future__ import annotations

import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deploy.instance import Dagster
from rollup_assets_tests.integration.installed import ROOT, as_nobody, build_wheel, compiled_kernels, install

pytestmark = pytest.mark.daemon

HOURS, SERIES = 2, 60
INSTANCE = """{
  instance {
    info
    runQueueConfig { maxConcurrentRuns tagConcurrencyLimitsYaml }
    concurrencyLimits { concurrencyKey limit slotCount }
    daemonHealth { allDaemonStatuses { daemonType required healthy } }
  }
  assetNodes { assetKey { path } partitionStats { numMaterialized numFailed } }
  workspaceOrError { ... on Workspace { locationEntries { name loadStatus locationOrLoadError { __typename } } } }
}"""


@pytest.fixture(name="folder")
def short_folder() -> Iterator[Path]:
    """Not one of pytest's: those are root's alone, and sockets need short names."""
    made = Path(tempfile.mkdtemp(prefix="rollups-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def wait_for(pattern: str, output: Path, process: subprocess.Popen[bytes]) -> re.Match[str]:
    """The first match in what the process prints."""
    deadline = time.monotonic() + 420
    while True:
        ended = process.poll() is not None
        printed = output.read_text()
        if found := re.search(pattern, printed):
            return found
        assert not ended, printed
        assert time.monotonic() < deadline, printed
        time.sleep(0.2)


def below(folder: Path) -> list[str]:
    """Processes that have to do with a folder."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(folder) in " ".join([*process.cmdline(), process.cwd()]):
                found.append(" ".join(process.cmdline()))
    return found


def test_the_wheel_deployed_publishes_a_backfill_of_the_ui_and_ends_with_ctrl_c(folder: Path) -> None:
    if shutil.which("java") is None:
        pytest.skip("Java is not installed: apt-get install openjdk-17-jre-headless")
    python = install(build_wheel(folder / "build"), folder / "env")
    kernels = compiled_kernels(python, folder / "kernels")
    (work := folder / "work").mkdir()
    shutil.copytree(ROOT / "deploy", folder / "checkout" / "deploy")
    # Sees the demonstration's own modules, but not the package's sources.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "DAGSTER", "PYTHON", "AWS_"))}
    environment |= {"HOME": str(work), "COMPILED_KERNELS": str(kernels), "NUMBA_CACHE_DIR": str(work / "kernels"), "COLUMNS": "200"}
    command = [str(python), "-m", "deploy.demo_production", "--hours", str(HOURS), "--series", str(SERIES)]
    privileges = as_nobody(work)
    where = subprocess.run(
        [*privileges, str(python), "-c", "import rollup_assets as r; print(r.__file__)"],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(where.stdout.strip()).is_relative_to(folder / "env")

    output = folder / "output"
    terminal, stdin = pty.openpty()
    with output.open("wb") as sink:
        demonstration = subprocess.Popen(
            [*privileges, *command, "--folder", str(work / "state")],
            cwd=folder / "checkout",
            env=environment,
            stdin=stdin,
            stdout=sink,
            stderr=sink,
            start_new_session=True,
        )
    try:
        wait_for("Ctrl-C ends everything", output, demonstration)
        url = wait_for(r"the UI is at (http://\S+),", output, demonstration)[1]
        found = Dagster(url, work).query(INSTANCE)
        demonstration.send_signal(signal.SIGINT)
        assert demonstration.wait(timeout=120) == 0, output.read_text()
    finally:
        # Killed, it could not end what it has started.
        demonstration.terminate()
        demonstration.wait(timeout=120)
        os.close(terminal)
        os.close(stdin)
    assert below(folder) == []

    printed = output.read_text()
    assert re.search(r"COMPLETED_SUCCESS: \d+ runs, 4 partitions of rollup_table", printed)
    assert "rows of 4 partitions agree with raw data" in printed
    assert {
        node["assetKey"]["path"][-1]: node["partitionStats"]["numMaterialized"] for node in found["assetNodes"] if node["partitionStats"]
    } == {
        "repartitioned_datapoints": HOURS,
        "partial_points": HOURS,
        "quarantined_datapoints": HOURS,
        "rollups": HOURS + 2,
        "rollup_table": HOURS + 2,
    } | ({"raw_datapoints": 0} if len(found["assetNodes"]) > 5 else {})

    # deploy/dagster.yaml, as Dagster understood it.
    dagster = found["instance"]
    assert dagster["runQueueConfig"]["maxConcurrentRuns"] == 4
    assert "dagster/backfill" in dagster["runQueueConfig"]["tagConcurrencyLimitsYaml"]
    assert {pool["concurrencyKey"]: pool["limit"] for pool in dagster["concurrencyLimits"]} == {"staging": 5, "publishing": 5}
    daemons = {each["daemonType"] for each in dagster["daemonHealth"]["allDaemonStatuses"] if each["required"] and each["healthy"]}
    assert {"BACKFILL", "QUEUED_RUN_COORDINATOR", "MONITORING", "EVENT_LOG_CONSUMER"} <= daemons

    # Compiled code was used where it was copied to.
    assert len(list((work / "kernels").rglob("*.nbc"))) == len(list(kernels.rglob("*.nbc"))) > 0

    secrets = {path.name: path.read_text() for path in (work / "state" / "secrets").glob("*_password")}
    secrets |= {
        f"s3 key {number}": key
        for number, key in enumerate(re.findall(r'"secretKey": "(\w+)"', (work / "state/s3/identities.json").read_text()))
    }
    assert len(secrets) == 7
    seen = printed + str(found) + "".join(path.read_text(errors="replace") for path in (work / "state").rglob("*.log"))
    assert [name for name, secret in secrets.items() if secret in seen] == []
