"""Dagster as processes: the web server that is found ready is its own, wherever others listen. A small one stands for each process."""

from __future__ import annotations

import http.server
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy import instance
from deploy.instance import dagster
from deploy.servers.ports import LOOPBACK, free_ports, is_free

SERVER = """
import http.server, json, os, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        port = os.environ["DAGSTER_CODE_PORT"]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"data": {
            "workspaceOrError": {"locationEntries": [{"displayMetadata": [{"key": "port", "value": port}]}]},
            "repositoriesOrError": {"nodes": [{"name": "ours"}]},
            "instance": {"daemonHealth": {"allDaemonStatuses": [{"healthy": True}]}},
        }}).encode())

try:
    http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
except OSError:
    sys.exit(3)
"""
STAYS = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "MIGRATE", ("true",))
    monkeypatch.setattr(instance, "code_location", lambda *_: STAYS)
    monkeypatch.setattr(instance, "daemon", lambda *_: STAYS)
    monkeypatch.setattr(instance, "web_server", lambda _, port, __: [sys.executable, "-c", SERVER, str(port)])


def test_servers_of_this_machine_are_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "example.com,localhost")
    monkeypatch.setenv("http_proxy", "http://proxy.example.com:3128")
    for variables in (instance.reached_directly(), instance.inherited()):
        assert variables["NO_PROXY"] == variables["no_proxy"] == "example.com,localhost,127.0.0.1"


@pytest.fixture(name="somebody")
def somebody_elses_dagster() -> Iterator[int]:
    """The port of one that is ready, but not ours; it counts as usual."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            data: dict[str, Any] = {
                "workspaceOrError": {"locationEntries": [{"displayMetadata": [{"key": "port", "value": "1"}]}]},
                "repositoriesOrError": {"nodes": [{"name": "theirs"}]},
                "instance": {"daemonHealth": {"allDaemonStatuses": [{"healthy": True}]}},
            }
            self.wfile.write(json.dumps({"data": data}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer((LOOPBACK, free_ports(1)[0]), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def seen_free(port: int) -> Callable[[int], bool]:
    """``is_free`` of somebody who looked at the port just before it was taken."""
    looks = iter([True])
    return lambda asked: next(looks, is_free(port)) if asked == port else is_free(asked)


def names(server: instance.Dagster) -> list[str]:
    """Of the code locations that it serves."""
    return [node["name"] for node in server.query("")["repositoriesOrError"]["nodes"]]


def test_the_usual_port_is_used_where_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)
    monkeypatch.setattr(instance, "UI_PORT", port)
    with dagster(tmp_path, {}) as server:
        assert (server.url, names(server)) == (f"http://{LOOPBACK}:{port}", ["ours"])


@pytest.mark.parametrize("quicker", [False, True])
def test_where_somebody_has_the_usual_port_or_is_quicker_another_one_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, somebody: int, quicker: bool
) -> None:
    monkeypatch.setattr(instance, "UI_PORT", somebody)
    if quicker:
        monkeypatch.setattr(instance, "is_free", seen_free(somebody))
    with dagster(tmp_path, {}) as server:
        assert server.url != f"http://{LOOPBACK}:{somebody}"
        assert names(server) == ["ours"]


def test_a_given_port_that_somebody_has_is_said(tmp_path: Path, somebody: int) -> None:
    with (
        pytest.raises(RuntimeError, match=f"port {somebody}, meant for the web server, is already in use"),
        dagster(tmp_path, {}, somebody),
    ):
        pass


def test_a_process_that_ends_is_said_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instance, "daemon", lambda *_: ["sh", "-c", "exit 5"])
    with pytest.raises(RuntimeError, match=r"the daemon ended with status 5; see .*daemon\.log"), dagster(tmp_path, {}):
        pass
