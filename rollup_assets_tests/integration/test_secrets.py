"""Passwords reach Dagster as the names of variables: nothing it shows, records or prints has one, nor has anything the steps write."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.servers.ports import free_ports
from rollup_assets.iceberg.catalog import open_catalog
from rollup_assets_tests.canaries import holding
from rollup_assets_tests.integration.servers import PROJECT, dagster
from rollup_assets_tests.integration.stores import credentials, on_servers
from rollup_assets_tests.integration.tables import hours, land

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer
    from deploy.servers.seaweedfs import S3Server
    from rollup_assets_tests.conftest import WithDagsterHome
    from rollup_assets_tests.integration.stores import Store

CANARY = "canary-8c1f-of-the-catalog"
RESOURCES = """
{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } allTopLevelResourceDetails {
  name configFields { name description defaultValueAsJson } configuredValues { key value type } } } } } }
"""
RUNS = """
{ runsOrError { ... on Runs { results { runId status runConfigYaml tags { key value }
  eventConnection { events { __typename ... on MessageEvent { message } ... on ErrorEvent { error { message stack } } } } } } } }
"""


@pytest.mark.daemon
def test_the_catalogs_password_is_nowhere(tmp_path: Path, postgres_server: PostgresServer, with_dagster_home: WithDagsterHome) -> None:
    settings, environment = land(with_dagster_home(tmp_path / "home"), 1)
    role = "secrets"
    environment |= catalog_of(postgres_server, role)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "DAGSTER"))}
    command = [sys.executable, "-m", "rollup_assets.cli", "backfill", *hours(0, 0), *hours(0, 0), "--json"]
    done = subprocess.run(command, env=inherited | environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # A run that fails at the catalog says so, and its error is recorded with all its causes.
    postgres_server.execute(f"alter role {role} password 'another'")
    failed = subprocess.run([*command, "--force"], env=inherited | environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "refuses the user's password" in failed.stdout + failed.stderr
    launch = [str(Path(sys.executable).with_name("dg")), "launch", "--job", "batches", "--partition", *hours(0, 0)]
    recorded = subprocess.run(
        launch,
        env=inherited | environment | {"DAGSTER_HOME": str(settings.dagster_home)},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert recorded.returncode != 0
    with dagster(settings, environment, daemon=False) as server:
        shown = [server.query(RESOURCES), server.query(RUNS)]
    resources = {
        resource["name"]: {value["key"]: value for value in resource["configuredValues"]}
        for resource in shown[0]["repositoriesOrError"]["nodes"][0]["allTopLevelResourceDetails"]
    }
    password = resources["catalog"]["catalog_password"]
    assert (password["type"], password["value"]) == ("ENV_VAR", "ROLLUP_CATALOG_PASSWORD")
    assert json.loads(resources["catalog"]["catalog"]["value"]) == environment["ROLLUP_CATALOG"]
    runs = shown[1]["runsOrError"]["results"]
    assert {run["status"] for run in runs} == {"SUCCESS", "FAILURE"}
    assert "refuses the user's password" in json.dumps(runs)
    texts = [done.stdout, done.stderr, failed.stdout, failed.stderr, recorded.stdout, recorded.stderr, json.dumps(shown)]
    assert not [text for text in texts if CANARY in text]
    assert list((tmp_path / "home").rglob("*.db")), "it is looked in databases"
    assert holding(tmp_path / "home", CANARY) == []


UNEXPECTED = """
import sys
import psycopg
from rollup_assets.cli import main

def fail(*arguments, password=None, **named):
    raise LookupError("nobody expects this")

psycopg.connect = psycopg.Connection.connect = fail
sys.argv = ["rollups", "sql", "select 1"]
main()
"""


def test_a_traceback_shows_no_variables() -> None:
    """Of an error that is not ours, raised where the password is at hand."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "DAGSTER"))}
    environment |= {"ROLLUP_CATALOG": "postgresql+psycopg://u@127.0.0.1:1/db", "ROLLUP_CATALOG_PASSWORD": CANARY}
    done = subprocess.run([sys.executable, "-c", UNEXPECTED], env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nobody expects this" in done.stderr
    assert "raise LookupError" in done.stderr or "Traceback" in done.stderr
    assert CANARY not in done.stdout + done.stderr


def catalog_of(server: PostgresServer, role: str) -> dict[str, str]:
    """Variables of a new catalog whose password is the canary."""
    from rollup_assets.iceberg.database import initialize
    from rollup_assets.settings import load_settings

    server.create_role(role, CANARY)
    server.create_database(role)
    uri = server.uri(role, role)
    initialize(load_settings(catalog=uri, catalog_admin_password=server.superuser_password), admin=server.superuser)
    return {"ROLLUP_CATALOG": uri, "ROLLUP_CATALOG_PASSWORD": CANARY}


# ------------------------------------------------------------------------------------------------- all of them, in production

PUBLIC = "canary-that-may-be-seen"
# By names that Spark itself does not take for secrets, too.
CONF_SECRETS = {
    "spark.hadoop.fs.s3a.secret.key": "canary-1-of-the-conf",
    "spark.hadoop.fs.azure.account.key.x.dfs.core.windows.net": "canary-2-of-the-conf",
    "spark.executorEnv.KEY_PASSPHRASE": "canary-3-of-the-conf",
    "spark.driver.extraJavaOptions": "-Djavax.net.ssl.trustStorePassword=canary-4-of-the-conf",
    "spark.hadoop.aws_access_key_id": "canary-5-of-the-conf",
}


@pytest.mark.daemon
def test_no_secret_of_a_production_on_s3_postgresql_and_spark_is_anywhere(
    tmp_path: Path,
    postgres_server: PostgresServer,
    s3_server: S3Server,
    monkeypatch: pytest.MonkeyPatch,
    with_dagster_home: WithDagsterHome,
) -> None:
    """A backfill of a good and a failing batch on Spark, then one whose catalog refuses it; looked for in all that any of them left."""
    from rollup_assets.engines.spark_session import require_java
    from rollup_assets.errors import EngineError
    from rollup_assets.settings import load_settings

    try:
        require_java()
    except EngineError as error:
        pytest.skip(str(error))
    store = on_servers(with_dagster_home(tmp_path / "home"), s3_server, postgres_server)
    settings = load_settings(**store.settings)
    keys = _land_with_a_bad_batch(store)
    (port,) = free_ports(1)
    events = tmp_path / "events"
    events.mkdir()
    conf = {
        **CONF_SECRETS,
        "spark.rollups.public": PUBLIC,
        "spark.ui.enabled": "true",
        "spark.ui.port": str(port),
        "spark.eventLog.enabled": "true",
        "spark.eventLog.compress": "false",
        "spark.eventLog.dir": str(events),
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
    }
    environment = {f"ROLLUP_{name.upper()}": str(value) for name, value in store.settings.items()}
    environment |= {**s3_server.environment, "ROLLUP_SHARDS": "4", "ROLLUP_ENGINE": "spark", "ROLLUP_SPARK_MASTER": "local[2]"}
    environment |= {"ROLLUP_SPARK_CONF": json.dumps(conf), "DAGSTER_HOME": str(settings.dagster_home), "NO_PROXY": "*"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "DAGSTER", "AWS_"))}
    secrets = {
        "password": store.settings["catalog_password"],
        "AWS key": s3_server.pipeline.secret_key,
        **{name: value.rpartition("=")[2] for name, value in CONF_SECRETS.items()},
    }
    backfill = [sys.executable, "-m", "rollup_assets.cli", "backfill", keys[0], keys[-1], "--json"]
    running = subprocess.Popen(
        backfill, env=inherited | environment, cwd=PROJECT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    pages = _spark_pages(port, running)
    told = list(running.communicate(timeout=300))
    assert running.returncode == 1, told
    assert json.loads(told[0])["published"][0] == keys[0], "the good one"
    assert "quarantined" in json.loads(told[0])["failed"][keys[1]], "the bad one"
    # A password that is not the right one is a secret too.
    environment["ROLLUP_CATALOG_PASSWORD"] = secrets["wrong password"] = "canary-that-is-wrong"
    launch = [str(Path(sys.executable).with_name("dg")), "launch", "--job", "batches", "--partition", keys[0]]
    for command in (backfill, launch, [sys.executable, "-m", "rollup_assets.cli", "doctor", "--json", "--timeout", "90"]):
        refused = subprocess.run(command, env=inherited | environment, cwd=PROJECT, capture_output=True, text=True, check=False)
        assert refused.returncode != 0
        told += [refused.stdout, refused.stderr]
    assert sum("refuses the user's password" in text for text in told) >= 2
    with dagster(settings, environment, daemon=False) as server:
        shown = [json.dumps(server.query(question)) for question in (RESOURCES, RUNS)]
    assert "refuses the user's password" in shown[1]

    client = s3_server.client()
    found = client.list_objects_v2(Bucket="lake", Prefix=f"{store.prefix}/")["Contents"]
    assert any(entry["Key"].endswith(".metadata.json") for entry in found)
    stored = {entry["Key"]: client.get_object(Bucket="lake", Key=entry["Key"])["Body"].read() for entry in found}
    for name, value in credentials(s3_server):
        monkeypatch.setenv(name, value)
    with open_catalog(settings) as catalog:
        snapshots = str(catalog.load_table(settings.table).snapshots())
    catalogs = str(postgres_server.execute("select * from iceberg_tables", database=store.prefix))

    # It is looked where such things are shown.
    assert any(PUBLIC in page for page in pages)
    assert all(any(name in page for page in pages) for name in CONF_SECRETS)
    logged = "".join(path.read_text() for path in events.rglob("*") if path.is_file() and path.suffix != ".crc")
    assert PUBLIC in logged
    for name, secret in secrets.items():
        assert not [text for text in (*told, *shown, *pages, snapshots, catalogs) if secret in text], name
        assert not [key for key, content in stored.items() if secret.encode() in content], name
        assert holding(tmp_path / "home", secret) == [], name
        assert secret not in logged, name


def _land_with_a_bad_batch(store: Store) -> list[str]:
    """Raw data of two batches, of which the second has too much in it that is quarantined; their keys."""
    from rollup_assets.generator.dirt import Dirt
    from rollup_assets.generator.landing import GeneratorOptions, generate
    from rollup_assets.settings import load_settings

    local = load_settings(**{**store.settings, "raw": str(store.raw)})
    first, second = [local.calendar.batch(key) for key in hours(0, 1)]
    small = GeneratorOptions(series=20, interval=60_000, files=2)
    generate(local, [first], small)
    generate(local, [second], dataclasses.replace(small, dirt=Dirt(nulls=0.5)))
    store.upload()
    return [first.key, second.key]


def _spark_pages(port: int, process: subprocess.Popen[str]) -> list[str]:
    """What Spark shows of its environment while the process runs: the page, and the answer of its REST interface."""
    address = f"http://127.0.0.1:{port}"

    def get(path: str) -> str:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(f"{address}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    while process.poll() is None:
        # Until then nobody listens, or answers that Spark is starting up.
        with contextlib.suppress(OSError, ValueError):
            applications = json.loads(get("/api/v1/applications"))
            if applications:
                return [get("/environment/"), get(f"/api/v1/applications/{applications[0]['id']}/environment")]
        time.sleep(0.1)
    raise AssertionError("Spark's pages were not seen")
