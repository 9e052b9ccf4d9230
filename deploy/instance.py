"""Dagster as a deployment runs it, as processes of this machine: the code location over gRPC, web server, daemon, on PostgreSQL.

The commands are those of ``docker-compose.yaml``, run through the images' entrypoint and with ``deploy/dagster.yaml``; only containers are
missing. What the code location does, and which servers it uses, is decided elsewhere.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.servers.ports import LOOPBACK, free_ports, is_free
from deploy.servers.processes import ended, group

HERE = Path(__file__).resolve().parent
ENTRYPOINT = HERE / "entrypoint.sh"
LOCATION = "rollup_assets"
MIGRATE = ("dagster", "instance", "migrate")
UI_PORT = 3000
READY_WITHIN = 180.0
_READY = """{
  workspaceOrError { ... on Workspace { locationEntries { displayMetadata { key value } } } }
  repositoriesOrError { ... on RepositoryConnection { nodes { name } } }
  instance { daemonHealth { allDaemonStatuses { healthy } } }
}"""
LAUNCH_BACKFILL = """
mutation Launch($params: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $params) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message }
  }
}"""


def code_location(host: str, port: int) -> list[str]:
    """Command that serves the code location; every run is a child process of it."""
    module = ["--module-name", "rollup_assets.definitions", "--attribute", "defs", "--location-name", LOCATION]
    return ["dagster", "api", "grpc", "--host", host, "--port", str(port), *module]


def code_location_health(port: int) -> list[str]:
    """Command that succeeds when the code location answers."""
    return ["dagster", "api", "grpc-health-check", "--port", str(port)]


def web_server(host: str, port: int, workspace: str) -> list[str]:
    """Command that serves the UI and GraphQL."""
    return ["dagster-webserver", "--host", host, "--port", str(port), "--workspace", workspace]


def daemon(workspace: str) -> list[str]:
    """Command that takes care of backfills, schedules, sensors, the run queue and lost runs."""
    return ["dagster-daemon", "run", "--workspace", workspace]


@dataclass(frozen=True, slots=True)
class Dagster:
    """A running Dagster."""

    url: str
    logs: Path
    """A file or a folder of them."""

    def query(self, text: str, **variables: Any) -> Any:
        """The ``data`` of a GraphQL answer.

        Raises:
            RuntimeError: the answer has errors.
            OSError: there is no answer.
        """
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        if "errors" in answer:
            raise RuntimeError(f"GraphQL: {answer['errors']}")
        return answer["data"]


@contextlib.contextmanager
def dagster(folder: Path, environment: Mapping[str, str], port: int | None = None) -> Iterator[Dagster]:
    """All three processes, until the block ends; then their runs end, too.

    Args:
        folder: for everything they write, and their logs.
        environment: DAGSTER_POSTGRES_* of the database, and the code location's settings.
        port: of the web server; None: the usual one, or another if that is taken before the web server has it.

    Raises:
        RuntimeError: one of them ended, or did not become ready; the message names its log.
    """
    (code_port,) = free_ports(1)
    home = folder / "home"
    for name in ("home", "logs", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for name in ("dagster.yaml", "workspace.yaml"):
        (home / name).write_text((HERE / name).read_text())
    workspace = str(home / "workspace.yaml")
    # What the images set, and the address of the code location.
    variables = inherited() | {
        "DAGSTER_HOME": str(home),
        "DAGSTER_COMPUTE_LOGS": str(folder / "compute_logs"),
        "DAGSTER_ARTIFACTS": str(folder / "artifacts"),
        "DAGSTER_CODE_HOST": LOOPBACK,
        "DAGSTER_CODE_PORT": str(code_port),
        "PGPASSFILE": str(folder / "tmp" / "pgpass"),
        "TMPDIR": str(folder / "tmp"),
        **environment,
    }
    run(MIGRATE, variables, folder)
    with contextlib.ExitStack() as stack:

        def start(name: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
            output = stack.enter_context((folder / "logs" / f"{name}.log").open("ab"))
            return stack.enter_context(group(_through_entrypoint(command), variables, folder, output))

        running = {
            "code-location": start("code-location", code_location(LOOPBACK, code_port)),
            "daemon": start("daemon", daemon(workspace)),
        }
        for candidate in [port] if port else [*filter(is_free, [UI_PORT]), *free_ports(2)]:
            server = Dagster(f"http://{LOOPBACK}:{candidate}", folder / "logs")
            running["web-server"] = start("web-server", web_server(LOOPBACK, candidate, workspace))
            try:
                _wait_until_ready(server, running, code_port)
            except PortTakenError:
                continue
            break
        else:
            raise RuntimeError(f"port {candidate}, meant for the web server, is already in use; give another one, or none")
        yield server


class PortTakenError(RuntimeError):
    """The web server ended, and another process listens on its port."""


def run(command: Sequence[str], environment: Mapping[str, str], folder: Path, *, shown: bool = False) -> None:
    """Run a command to its end, through the entrypoint.

    Args:
        command: program and arguments.
        environment: all of its variables.
        folder: its working directory.
        shown: whether its output is shown while it runs.

    Raises:
        RuntimeError: it failed; the message has its output, unless that was shown.
    """
    done = subprocess.run(
        _through_entrypoint(command),
        env=dict(environment),
        cwd=folder,
        capture_output=not shown,
        text=True,
        check=False,
        start_new_session=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed{'' if shown else f': {(done.stderr or done.stdout).strip()[-2000:]}'}")


def inherited() -> dict[str, str]:
    """This process's environment without settings, and with the programs of this interpreter's environment first on the path."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "DAGSTER_", "AWS_", "PG", "PYTHON"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return kept | reached_directly() | {"PATH": path}


def reached_directly() -> dict[str, str]:
    """Variables that add this machine's servers to those that are reached without a proxy."""
    before = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = ",".join(dict.fromkeys([*(host for host in before.split(",") if host), LOOPBACK, "localhost"]))
    return {"NO_PROXY": hosts, "no_proxy": hosts}


def _through_entrypoint(command: Sequence[str]) -> list[str]:
    return ["sh", str(ENTRYPOINT), *command]


def _wait_until_ready(server: Dagster, running: Mapping[str, subprocess.Popen[bytes]], code_port: int) -> None:
    """Wait until the web server has loaded the code location and a daemon has reported to be healthy."""
    deadline = time.monotonic() + READY_WITHIN
    while True:
        for name, process in running.items():
            if (status := ended(process)) is not None:
                if name == "web-server" and not is_free(int(server.url.rpartition(":")[2])):
                    raise PortTakenError(server.url)
                raise RuntimeError(f"the {name} ended with status {status}; see {server.logs / f'{name}.log'}")
        if _is_ready(server, code_port):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"Dagster did not load the code location within {READY_WITHIN:g} s; see {server.logs}")
        time.sleep(0.5)


def _is_ready(server: Dagster, code_port: int) -> bool:
    """Whether this server answers that it is ready, and not another Dagster or program that took the port first."""
    try:
        found = server.query(_READY)
        locations = found["workspaceOrError"]["locationEntries"]
        ours = any({"key": "port", "value": str(code_port)} in location["displayMetadata"] for location in locations)
        daemons = found["instance"]["daemonHealth"]["allDaemonStatuses"]
        return bool(ours and found["repositoriesOrError"]["nodes"] and any(each["healthy"] for each in daemons))
    except (OSError, http.client.HTTPException, ValueError, KeyError, RuntimeError):
        return False
