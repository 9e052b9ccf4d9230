"""The proxy of docs/security.md before stand-ins of Dagster and of the sign-in: who gets where. And that a read-only web server is one."""

from __future__ import annotations

import http.client
import http.server
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from email.message import Message
from pathlib import Path
from typing import ClassVar

import pytest
import yaml

from deploy.instance import Dagster
from deploy.servers.certificates import certificate
from deploy.servers.ports import free_ports
from deploy.servers.processes import group
from rollup_assets_tests.deploy.compose import ROOT, services

DOCUMENTED, HOST = "rollups.example.org", "metrics.example.com"
CONFIGURATION = (ROOT / "deploy/nginx.conf").read_text()
MEMBERS = {"operator": {"rollups-operators"}, "viewer": {"others"}}


class _SignIn(http.server.BaseHTTPRequestHandler):
    """Knows people by their cookie, as oauth2-proxy does."""

    asked: ClassVar[dict[str, Message]] = {}
    """Headers of the last request, by path."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        self.asked[self.path] = self.headers
        groups = MEMBERS.get(self.headers.get("Cookie", "").removeprefix("session="))
        status = 200
        if path == "/oauth2/auth":
            wanted = set(query.removeprefix("allowed_groups=").split(",")) if query else None
            status = 401 if groups is None else 202 if wanted is None or groups & wanted else 403
        self.send_response(status)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"sign-in")

    def log_message(self, *_: object) -> None:
        pass


def _dagster(name: str) -> type[http.server.BaseHTTPRequestHandler]:
    class Answering(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = f"{name} {self.path} {self.headers.get('Upgrade', '')}".encode()
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    return Answering


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


class Proxy:
    def __init__(self, port: int, authority: Path) -> None:
        self.port = port
        self._context = ssl.create_default_context(cafile=str(authority))

    def ask(self, path: str, who: str = "", method: str = "GET", **headers: str) -> tuple[int, str]:
        """Status, and the answer or where it leads to."""
        connection = http.client.HTTPSConnection("localhost", self.port, context=self._context, timeout=20)
        cookie = {"Cookie": f"session={who}"} if who else {}
        connection.request(method, path, body=b"{}" if method == "POST" else None, headers={"Host": HOST, **cookie, **headers})
        answer = connection.getresponse()
        content = answer.read().decode()
        return answer.status, answer.headers.get("Location", content)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if nginx is None:
        pytest.skip("nginx is missing; install it with `apt-get install --no-install-recommends nginx-light`")
    folder = tmp_path_factory.mktemp("proxy")
    made = certificate(folder)
    (port,) = free_ports(1)
    with ExitStack() as stack:
        handlers = {"3000": _dagster("operators"), "3001": _dagster("viewers"), "4180": _SignIn}
        # As the document says.
        text = CONFIGURATION.replace(DOCUMENTED, HOST)
        for known, handler in handlers.items():
            assert f"server 127.0.0.1:{known};" in text
            text = text.replace(f"server 127.0.0.1:{known};", f"server 127.0.0.1:{stack.enter_context(serving(handler))};")
        text = text.replace("listen 443 ssl;", f"listen 127.0.0.1:{port} ssl;")
        text = text.replace("/etc/ssl/certs/rollups.pem", str(made.certificate)).replace("/etc/ssl/private/rollups.key", str(made.key))
        # Where the package's own places belong to another user.
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        text = text.replace("http {\n", "http {\n" + "".join(f"  {kind}_temp_path {folder}/{kind};\n" for kind in kinds))
        (folder / "nginx.conf").write_text(f"daemon off;\npid {folder}/nginx.pid;\n{text}")
        log = stack.enter_context((folder / "log").open("ab"))
        command = [nginx, "-p", str(folder), "-e", "stderr", "-c", str(folder / "nginx.conf")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
        stack.callback(process.wait)
        stack.callback(process.terminate)
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < deadline, (folder / "log").read_text()
                time.sleep(0.05)
        yield Proxy(port, made.authority)


@pytest.mark.parametrize("path", ["/", "/runs", "/graphql", "/look/", "/look/graphql", "/server_info", "/.operators", "/.everybody"])
@pytest.mark.parametrize("who", ["", "stranger"])
def test_who_has_not_signed_in_is_sent_to_sign_in(proxy: Proxy, path: str, who: str) -> None:
    status, found = proxy.ask(path, who)
    assert (
        status == 404
        if path.startswith("/.")
        # Nobody is answered there by GET.
        else status == 403
        if path == "/graphql"
        else (status, found) == (302, f"https://{HOST}/oauth2/sign_in?rd={path}")
        or (status == 302 and found.endswith(f"/oauth2/sign_in?rd={path}"))
    )
    assert proxy.ask(path, who, "POST")[0] in (302, 404)


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/oauth2/start?rd=/runs", "/oauth2/start?rd=/runs"),
        ("/look/", "/oauth2/auth"),
        ("/", "/oauth2/auth?allowed_groups=rollups-operators"),
    ],
)
def test_the_sign_in_is_told_where_it_is_and_by_whom_it_is_asked(proxy: Proxy, path: str, asked: str) -> None:
    """It makes the address that people come back to from these headers, so no client may choose them."""
    _SignIn.asked.clear()
    expected = {
        "Host": HOST,
        "X-Forwarded-Host": HOST,
        "X-Forwarded-Proto": "https",
        "X-Forwarded-For": "127.0.0.1",
        "X-Forwarded-Uri": path,
        "X-Real-IP": "127.0.0.1",
    }
    forged = {name: "evil.example" for name in expected if name != "Host"}
    proxy.ask(path, "operator", **forged)
    (headers,) = _SignIn.asked.values()
    assert list(_SignIn.asked) == [asked]
    assert {name: headers.get_all(name) for name in expected} == {name: [value] for name, value in expected.items()}


def test_the_sign_in_is_started_with_the_address_that_people_come_back_to() -> None:
    assert f"--redirect-url=https://{DOCUMENTED}/oauth2/callback\n" in CONFIGURATION
    assert f"server_name {DOCUMENTED};" in CONFIGURATION


def test_everybody_looks_and_operators_operate(proxy: Proxy) -> None:
    for who in MEMBERS:
        assert proxy.ask("/look/runs", who) == (200, "viewers /look/runs ")
        assert proxy.ask("/look/graphql", who, "POST") == (200, "viewers /look/graphql ")
    assert proxy.ask("/runs", "operator") == (200, "operators /runs ")
    assert proxy.ask("/graphql", "operator", "POST", Origin=f"https://{HOST}") == (200, "operators /graphql ")
    for path in ("/", "/graphql", "/look/../graphql", "/look/%2e%2e/graphql", "//graphql"):
        assert proxy.ask(path, "viewer")[0] == 403, path
        assert proxy.ask(path, "viewer", "POST")[0] == 403, path


def test_another_site_starts_nothing_with_an_operators_cookies(proxy: Proxy) -> None:
    for origin in ("https://evil.example.org", "null", f"http://{HOST}", f"https://{HOST}.evil.example.org"):
        assert proxy.ask("/graphql", "operator", "POST", Origin=origin)[0] == 403, origin


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("path", ["/graphql", "//graphql", "/look/../graphql", "/%67raphql"])
def test_a_page_of_another_site_starts_nothing_by_an_address(proxy: Proxy, path: str, method: str) -> None:
    """Of a picture, say: a sibling site's page gets the cookies along, and the browser names no origin."""
    assert proxy.ask(f"{path}?query=mutation%7B__typename%7D", "operator", method)[0] == 403


def test_what_runs_do_is_shown_as_it_happens(proxy: Proxy) -> None:
    """The request to change to a WebSocket arrives."""
    assert proxy.ask("/graphql", "operator", Upgrade="websocket", Connection="upgrade") == (200, "operators /graphql websocket")


def test_nobody_is_answered_without_tls(proxy: Proxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=20)
    connection.request("GET", "/look/", headers={"Cookie": "session=operator"})
    assert connection.getresponse().status == 400


def test_the_document_names_the_ports_of_the_configuration() -> None:
    text = (ROOT / "docs/security.md").read_text()
    assert "dagster-webserver --host 127.0.0.1 --port 3001 --read-only --path-prefix /look " in text
    assert "port 4180" in text
    assert "`rollups-operators`" in text


def test_a_read_only_web_server_starts_nothing(tmp_path: Path) -> None:
    """The command of the document, on an empty workspace."""
    (command,) = (line.split() for line in (ROOT / "docs/security.md").read_text().splitlines() if line.startswith("dagster-webserver "))
    (port,) = free_ports(1)
    command[0] = str(Path(sys.executable).with_name(command[0]))
    command[command.index("--port") + 1] = str(port)
    (tmp_path / "empty.yaml").write_text(yaml.safe_dump({"load_from": []}))
    command[command.index("--workspace") + 1] = str(tmp_path / "empty.yaml")
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    environment = {"PATH": "/usr/bin:/bin", "DAGSTER_HOME": str(tmp_path), "HOME": str(tmp_path)}
    mutation = 'mutation { deletePipelineRun(runId: "x") { __typename } }'
    with (tmp_path / "log").open("ab") as log, group(command, environment, tmp_path, log) as process:
        server = Dagster(f"http://127.0.0.1:{port}/look", tmp_path / "log")
        deadline = time.monotonic() + 120
        while True:
            try:
                answer = server.query(mutation)
                break
            except OSError:
                assert process.poll() is None, (tmp_path / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.2)
        health = services()["viewers"]["healthcheck"]["test"][-1].replace(":3001/", f":{port}/")
        subprocess.run([sys.executable, "-c", health], check=True)
    assert answer["deletePipelineRun"]["__typename"] == "UnauthorizedError"
