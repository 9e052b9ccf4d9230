"""A REST catalog: the real one that SeaweedFS serves, and a small one of our own where its answers have to be odd."""

from __future__ import annotations

import itertools
import json
import re
import socket
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rollup_assets.errors import CatalogError
from rollup_assets.generator.landing import GeneratorOptions, generate
from rollup_assets.iceberg.catalog import open_catalog
from rollup_assets.iceberg.table import ensure_table
from rollup_assets.settings import load_settings
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.rollup import roll_up
from rollup_assets.verification.run import verify
from rollup_assets_tests.iceberg.staging import batches_from, load, pipeline_in, rows_of, stage_rollups, value_by_batch

if TYPE_CHECKING:
    from deploy.servers.seaweedfs import S3Server
    from rollup_assets_tests.conftest import MakePipeline

CANARY = "Canary of the catalog"
NUMBERS = itertools.count(1)


@pytest.fixture
def on_rest(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of an empty REST catalog, with a table bucket of its own as the warehouse."""
    for name, value in s3_server.environment_of(s3_server.admin).items():
        monkeypatch.setenv(name, value)
    bucket = f"tables-{next(NUMBERS)}"
    s3_server.client(service="s3tables").create_table_bucket(name=bucket)
    return {
        "catalog": f"rest+{s3_server.iceberg_endpoint}",
        "catalog_properties": f"rest.sigv4-enabled=true rest.signing-name=s3tables rest.signing-region={s3_server.region}",
        "warehouse": f"s3://{bucket}",
    }


# ---------------------------------------------------------------------------------------------------------- the real server


def test_a_backfill_is_published_replaced_and_verified(tmp_path: Path, on_rest: dict[str, Any], make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(tmp_path, **on_rest)
    batches = batches_from(pipeline, 2)

    def backfill() -> None:
        for batch in batches:
            stage_batch(pipeline, batch)
            roll_up(pipeline, batch)
            publish(pipeline, batch)

    generate(pipeline.settings, batches, GeneratorOptions(seed=3, series=20, interval=60_000, files=2))
    backfill()
    assert [publish(pipeline, batch).unchanged for batch in batches] == [True, True]
    with open_catalog(pipeline.settings) as catalog:
        assert catalog.list_tables("metrics") == [("metrics", "rollups")]
    first = verify(pipeline.settings)
    assert first.agrees
    assert [partition.partition for partition in first.partitions] == [batch.key for batch in batches]
    late = next((tmp_path / "raw_datapoints").rglob("*.parquet"))
    late.unlink()
    assert not verify(pipeline.settings).agrees
    backfill()
    again = verify(pipeline.settings)
    assert again.agrees
    assert 0 < again.rows <= first.rows


def test_publishers_at_once_without_a_lock_lose_and_duplicate_nothing(tmp_path: Path, on_rest: dict[str, Any]) -> None:
    pipeline = pipeline_in(tmp_path, resolutions="1m,1h", **on_rest)
    batches = batches_from(pipeline, 3)
    ensure_table(pipeline.settings)
    for batch in batches:
        stage_rollups(pipeline, batch)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda batch: publish(pipeline, batch), [*batches, batches[0]]))
    assert value_by_batch(pipeline) == {batch.key: {1} for batch in batches}
    keys = rows_of(load(pipeline), "id", "resolution", "logical_timestamp")
    assert len(keys) == len(set(keys)) == 3 * 61 * len(batches)


def test_snapshots_expire_there_too_but_those_that_tags_hold(tmp_path: Path, on_rest: dict[str, Any]) -> None:
    """The server looks at the conditions of the commit, and where a reference points to."""
    pipeline = pipeline_in(tmp_path, keep_snapshots=2, resolutions="1h", **on_rest)
    ensure_table(pipeline.settings)
    tagged = None
    for batch in batches_from(pipeline, 5):
        stage_rollups(pipeline, batch, series=1)
        publish(pipeline, batch)
        if tagged is None:
            tagged = load(pipeline).snapshots()[0].snapshot_id
            load(pipeline).manage_snapshots().create_tag(tagged, "audit").commit()
    table = load(pipeline)
    found = [snapshot.snapshot_id for snapshot in table.snapshots()]
    assert tagged in found
    assert len(found) == 1 + 2
    assert len(rows_of(table)) == 5


def test_wrong_credentials_are_refused_in_a_sentence(on_rest: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    assert "refuses access (" in fault(tmp_path, **on_rest)


def test_missing_credentials_are_named(on_rest: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    assert "requests are to be signed, but there are no AWS credentials; set AWS_ACCESS_KEY_ID" in fault(tmp_path, **on_rest)


# ----------------------------------------------------------------------------------------------------- a server of our own


class Answers(BaseHTTPRequestHandler):
    """Says what it was asked for, and answers as its server's ``status`` says."""

    def do_GET(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization")))  # type: ignore[attr-defined]
        self.answer({"defaults": {}, "overrides": {}} if self.path.startswith("/v1/config") else {"namespaces": []})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.server.seen.append((self.path, body))  # type: ignore[attr-defined]
        self.answer({"access_token": "lent", "token_type": "bearer", "expires_in": 60})

    def answer(self, content: Any) -> None:
        status = self.server.status  # type: ignore[attr-defined]
        if status != 200:
            content = {"error": {"message": "as the test says", "type": "Odd", "code": status}}
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""


class Server(ThreadingHTTPServer):
    status = 200

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.seen: list[tuple[str, str | None]] = []

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def fault(home: Path, **settings: Any) -> str:
    started = time.monotonic()
    with pytest.raises(CatalogError) as caught, open_catalog(load_settings(home=str(home), **settings)) as catalog:
        catalog.list_namespaces()
    assert time.monotonic() - started < 30
    assert "Canary" not in "".join(traceback.format_exception(caught.value))
    assert not list(home.rglob("*.parquet"))
    return str(caught.value)


def test_the_password_is_a_bearer_token(tmp_path: Path, server: Server) -> None:
    with open_catalog(load_settings(home=str(tmp_path), catalog=f"rest+http://{server.address}/x", catalog_password=CANARY)) as catalog:
        assert catalog.list_namespaces() == []
    assert [authorization for _, authorization in server.seen] == [f"Bearer {CANARY}"] * 2


def test_pyiceberg_s_own_configuration_says_nothing_of_it(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever reads the table with PyIceberg may have named it there; its type made every command fail."""
    import pyiceberg.catalog
    from pyiceberg.utils.config import Config

    # PyIceberg reads its file and its variables once, when it is imported.
    monkeypatch.setenv("PYICEBERG_CATALOG__ROLLUPS__TYPE", "rest")
    monkeypatch.setattr(pyiceberg.catalog, "_ENV_CONFIG", Config())
    with open_catalog(load_settings(home=str(tmp_path), catalog=f"rest+http://{server.address}/x", catalog_password=CANARY)) as catalog:
        assert catalog.list_namespaces() == []
    assert len(server.seen) == 2


def test_with_a_user_it_is_the_secret_of_an_oauth2_client(tmp_path: Path, server: Server) -> None:
    settings = load_settings(
        home=str(tmp_path),
        catalog=f"rest+http://cli%20ent@{server.address}",
        catalog_password=CANARY,
        catalog_properties=f"oauth2-server-uri=http://{server.address}/tokens scope=all",
    )
    with open_catalog(settings) as catalog:
        assert catalog.list_namespaces() == []
    (path, body), *others = server.seen
    assert path == "/tokens"
    assert "client_id=cli+ent" in str(body)
    assert f"client_secret={CANARY.replace(' ', '+')}" in str(body)
    assert "scope=all" in str(body)
    assert {authorization for path, authorization in others if path != "/tokens"} == {"Bearer lent"}


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "refuses access (Odd: as the test says); set ROLLUP_CATALOG_PASSWORD"),
        (403, "refuses access (Odd: as the test says); set ROLLUP_CATALOG_PASSWORD"),
        (500, "answers with an error (Odd: as the test says); correct ROLLUP_CATALOG, or look at the server's log"),
    ],
)
def test_a_server_that_refuses_is_quoted(tmp_path: Path, server: Server, status: int, says: str) -> None:
    server.status = status
    found = fault(tmp_path, catalog=f"rest+http://{server.address}/x", catalog_password=CANARY)
    assert found == f"ROLLUP_CATALOG=rest+http://{server.address}/x {says}" + (
        ", or the AWS credentials if ROLLUP_CATALOG_PROPERTIES says that requests are signed" if status < 500 else ""
    )


def test_a_server_that_is_down_is_named(tmp_path: Path) -> None:
    found = fault(tmp_path, catalog="rest+http://127.0.0.1:1/x")
    assert found == (
        "ROLLUP_CATALOG=rest+http://127.0.0.1:1/x cannot be reached (Connection refused); "
        "start the server, or correct host and port in ROLLUP_CATALOG"
    )


def test_with_a_proxy_the_server_is_not_looked_for_here(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the proxy may know it."""
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://{server.address}")
    catalog = "rest+http://catalog.invalid/x"
    with open_catalog(load_settings(home=str(tmp_path), catalog=catalog)) as opened:
        assert opened.list_namespaces() == []
    assert [path.partition("?")[0] for path, _ in server.seen] == [
        f"http://catalog.invalid/x/v1/{what}" for what in ("config", "namespaces")
    ]
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert re.search(r"cannot be reached \(.*proxy", fault(tmp_path, catalog=catalog))
    monkeypatch.setenv("no_proxy", "catalog.invalid")
    assert "proxy" not in fault(tmp_path, catalog=catalog)


def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rollup_assets.iceberg import rest_client

    assert rest_client.CONNECT_SECONDS <= rest_client.READ_SECONDS < 30
    monkeypatch.setattr(rest_client, "READ_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert "cannot be reached (" in fault(tmp_path, catalog=f"rest+http://127.0.0.1:{silent.getsockname()[1]}")


def test_a_server_of_an_unknown_authority_is_not_trusted(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl

    from deploy.servers.certificates import certificate

    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)

    made = certificate(tmp_path / "made")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certificate, made.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    catalog = f"rest+https://{server.address}"
    assert "is not trusted (" in (found := fault(tmp_path / "home", catalog=catalog))
    assert "; set ssl.cabundle in ROLLUP_CATALOG_PROPERTIES to the certificate of the authority" in found
    with open_catalog(load_settings(home=str(tmp_path), catalog=catalog, catalog_properties=f"ssl.cabundle={made.authority}")) as opened:
        assert opened.list_namespaces() == []


# -------------------------------------------------------------------------------------------------------- any other catalog


def test_the_property_type_names_any_catalog_of_pyiceberg(tmp_path: Path) -> None:
    from pyiceberg.catalog.memory import InMemoryCatalog

    settings = load_settings(home=str(tmp_path), catalog="sqlite:///:memory:", catalog_properties="type=in-memory")
    with open_catalog(settings) as catalog:
        assert isinstance(catalog, InMemoryCatalog)


@pytest.mark.parametrize("properties", ["", "type=nothing"])
def test_an_unknown_catalog_is_refused(tmp_path: Path, properties: str) -> None:
    found = fault(tmp_path, catalog="something://host", catalog_properties=properties)
    assert "ROLLUP_CATALOG=something://host names no catalog that can be opened (" in found
    assert "write sqlite:///, postgresql+psycopg:// or rest+https://" in found
