"""Dagster's web server and daemon, or ``rollups dev``, as processes of the test, on a free port of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import rollup_assets
from deploy.instance import Dagster
from deploy.servers.ports import LOOPBACK, free_ports
from deploy.servers.processes import ended, group
from rollup_assets.defs.dagster_home import ensure_dagster_home
from rollup_assets.settings import Settings

PROJECT = Path(rollup_assets.__file__).parent.parent
READY_WITHIN = 120.0
_BACKFILL = """
query Status($id: String!) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status error { message } } }
}"""


@contextmanager
def dagster(settings: Settings, environment: Mapping[str, str], *, daemon: bool = True) -> Iterator[Dagster]:
    """Web server and daemon on the settings' home, until the block ends. ``environment``: the settings, as ``ROLLUP_*``."""
    with dagster_processes(settings, environment, daemon=daemon) as (server, _):
        yield server


@contextmanager
def dagster_processes(
    settings: Settings, environment: Mapping[str, str], *, daemon: bool = True
) -> Iterator[tuple[Dagster, Sequence[subprocess.Popen[bytes]]]]:
    """The same with its processes, for those who end them."""
    inherited = _inherited(environment) | {"DAGSTER_HOME": str(ensure_dagster_home(settings))}
    (port,) = free_ports(1)
    workspace = ["-w", str(PROJECT / "workspace.yaml")]
    commands = [["dagster-webserver", *workspace, "-h", LOOPBACK, "-p", str(port)]]
    if daemon:
        commands.append(["dagster-daemon", "run", *workspace])
    log = settings.home / "dagster.log"
    with ExitStack() as stack:
        output = stack.enter_context(log.open("ab"))
        processes = [
            stack.enter_context(group([Path(sys.executable).with_name(program), *arguments], inherited, PROJECT, output))
            for program, *arguments in commands
        ]
        server = Dagster(f"http://{LOOPBACK}:{port}", log)
        _wait_until_loaded(server, processes)
        yield server, processes


@contextmanager
def rollups_dev(settings: Settings, environment: Mapping[str, str]) -> Iterator[tuple[Dagster, subprocess.Popen[bytes]]]:
    """``rollups dev`` on the settings' home, and its process, which leads the group of all others, until the block ends."""
    (port,) = free_ports(1)
    log = settings.home / "dev.log"
    command = [sys.executable, "-m", "rollup_assets.cli", "dev", "--host", LOOPBACK, "--port", str(port)]
    with log.open("ab") as output, group(command, _inherited(environment), PROJECT, output) as process:
        server = Dagster(f"http://{LOOPBACK}:{port}", log)
        _wait_until_loaded(server, [process])
        yield server, process


def _inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """This process's environment with these settings and no others."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "DAGSTER"))} | dict(environment)


def end_of_backfill(server: Dagster, backfill: str) -> str:
    """The status in which a backfill ends. The daemon looks after it every 30 seconds or so."""
    deadline = time.monotonic() + 480
    while True:
        found = server.query(_BACKFILL, id=backfill)["partitionBackfillOrError"]
        if found["status"] not in ("REQUESTED", "CANCELING", "FAILING"):
            return str(found["status"])
        assert time.monotonic() < deadline, f"{found}; see {server.logs}"
        time.sleep(1)


def _wait_until_loaded(server: Dagster, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Until the web server answers and has loaded the code location."""
    deadline = time.monotonic() + READY_WITHIN
    question = "{ repositoriesOrError { __typename ... on RepositoryConnection { nodes { name } } } }"
    while True:
        assert [ended(process) for process in processes] == [None] * len(processes), f"Dagster ended; see {server.logs}"
        with suppress(OSError):
            if server.query(question)["repositoriesOrError"].get("nodes"):
                return
        assert time.monotonic() < deadline, f"Dagster did not load the code location; see {server.logs}"
        time.sleep(0.5)
