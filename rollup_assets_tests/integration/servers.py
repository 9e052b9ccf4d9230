"""Dagster's web server and daemon as processes of the test, on a free port of this machine, and questions to them in GraphQL."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rollup_assets
from rollup_assets.defs.backfill import ensure_dagster_home
from rollup_assets.settings import Settings

PROJECT = Path(rollup_assets.__file__).parent.parent
READY_WITHIN = 120.0


@dataclass(frozen=True)
class Dagster:
    """A running Dagster."""

    url: str
    log: Path

    def query(self, text: str, **variables: Any) -> Any:
        """The ``data`` of a GraphQL answer.

        Raises:
            AssertionError: the answer has errors.
        """
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(f"{self.url}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]


@contextmanager
def dagster(settings: Settings, environment: Mapping[str, str], *, daemon: bool = True) -> Iterator[Dagster]:
    """Web server and daemon on the settings' home, until the block ends. ``environment``: the settings, as ``ROLLUP_*``."""
    home = ensure_dagster_home(settings)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "DAGSTER"))}
    inherited |= {**environment, "DAGSTER_HOME": str(home)}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workspace = ["-w", str(PROJECT / "workspace.yaml")]
    commands = [["dagster-webserver", *workspace, "-h", "127.0.0.1", "-p", str(port)]]
    if daemon:
        commands.append(["dagster-daemon", "run", *workspace])
    log = settings.home / "dagster.log"
    with ExitStack() as stack:
        output = stack.enter_context(log.open("ab"))
        for command in commands:
            stack.enter_context(_process([str(Path(sys.executable).with_name(command[0])), *command[1:]], inherited, output))
        server = Dagster(f"http://127.0.0.1:{port}", log)
        _wait_until_loaded(server)
        yield server


@contextmanager
def _process(command: list[str], environment: Mapping[str, str], output: Any) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own: it has children, the code servers and runs, which have to end with it."""
    process = subprocess.Popen(command, cwd=PROJECT, env=dict(environment), stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_loaded(server: Dagster) -> None:
    """Until the web server answers and has loaded the code location."""
    deadline = time.monotonic() + READY_WITHIN
    question = "{ repositoriesOrError { __typename ... on RepositoryConnection { nodes { name } } } }"
    while True:
        try:
            if server.query(question)["repositoriesOrError"].get("nodes"):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            pass
        assert time.monotonic() < deadline, f"Dagster did not load the code location; see {server.log}"
        time.sleep(0.5)
