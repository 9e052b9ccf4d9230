"""``rollups doctor`` on real servers: nothing to complain about where all is well, and each fault in a sentence with setting and remedy."""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from rollup_assets.cli import app
from rollup_assets.settings import load_settings
from rollup_assets_tests.integration.stores import on_servers

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from deploy.servers.postgres import PostgresServer
    from deploy.servers.seaweedfs import S3Server
    from rollup_assets_tests.conftest import WithDagsterHome
    from rollup_assets_tests.integration.stores import Store

pytestmark = pytest.mark.xdist_group("spark")

Environment = dict[str, str]
FIRST = "2026-01-01-00:00"


@dataclasses.dataclass(frozen=True)
class Production:
    """A table on both servers, with a published batch."""

    store: Store
    s3: S3Server
    postgres: PostgresServer
    environment: Environment

    def objects(self) -> set[tuple[str, str, str]]:
        """All objects of both buckets, as the admin sees them."""
        client = self.s3.client()
        return {
            (bucket, found["Key"], found["ETag"])
            for bucket in ("raw", "lake")
            for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{self.store.prefix}/")
            for found in page.get("Contents", ())
        }

    def catalog(self) -> list[tuple[Any, ...]]:
        """What the catalog knows: tables, then namespaces."""
        return [
            row
            for known in ("iceberg_tables", "iceberg_namespace_properties")
            for row in self.postgres.execute(f"select * from {known} order by 1, 2", database=self.store.prefix)
        ]


def rollups(environment: Environment, *arguments: str) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value) if value else patch.delenv(name, raising=False)
        # A proxy would answer in the place of hosts that are not there.
        patch.setenv("NO_PROXY", "*")
        return CliRunner().invoke(app, list(arguments))


@pytest.fixture(scope="module")
def production(tmp_path_factory: pytest.TempPathFactory, s3_server: S3Server, postgres_server: PostgresServer) -> Production:
    from rollup_assets.generator.landing import GeneratorOptions, generate

    store = on_servers(tmp_path_factory.mktemp("production"), s3_server, postgres_server)
    local = load_settings(**{**store.settings, "raw": str(store.raw)})
    generate(local, [local.calendar.batch(FIRST)], GeneratorOptions(series=20, interval=60_000, files=2))
    store.upload()
    environment = {f"ROLLUP_{name.upper()}": str(value) for name, value in store.settings.items()}
    environment |= {**s3_server.environment, "ROLLUP_SHARDS": "4", "ROLLUP_THREADS": "2", "ROLLUP_MEMORY": "256MiB"}
    done = rollups(environment, "backfill", FIRST, FIRST)
    assert done.exit_code == 0, done.output
    return Production(store, s3_server, postgres_server, environment)


def doctor(environment: Environment, *, status: int) -> dict[str, dict[str, Any]]:
    """Findings by name."""
    done = rollups(environment, "doctor", "--json", "--timeout", "90")
    assert done.exit_code == status, f"{done.output}\n{done.exception!r}"
    answer = json.loads(done.stdout)
    assert answer["healthy"] == (status == 0)
    return {check["name"]: check for check in answer["checks"]}


def states(findings: dict[str, dict[str, Any]]) -> dict[str, str]:
    return {name: finding["state"] for name, finding in findings.items()}


SPARK = ("Java", "Spark", "workers", "workers' data", "jars")


def test_nothing_is_wrong_and_nothing_is_left_behind(production: Production) -> None:
    before = production.objects(), production.catalog()
    findings = doctor(production.environment, status=0)
    found = states(findings)
    assert {name for name, state in found.items() if state == "skipped"} == set(SPARK)
    # The machine of the test may have few kernels compiled.
    assert {name: state for name, state in found.items() if name != "kernels"} == {
        **dict.fromkeys(("settings", "Python", "memory", "disk space", "raw data", "stage", "warehouse", "scratch", "encryption"), "ok"),
        **dict.fromkeys(("catalog", "lock", "table", "Dagster"), "ok"),
        **dict.fromkeys(SPARK, "skipped"),
    }
    assert "hour=00" in findings["raw data"]["found"]
    assert "conditional writes are honoured" in findings["stage"]["found"]
    assert "no TLS, and none needed on this machine" in findings["catalog"]["found"]
    assert "metrics.rollups is as the settings say; " in findings["table"]["found"]
    assert "can be opened; " in findings["Dagster"]["found"]
    assert (production.objects(), production.catalog()) == before


def test_the_table_for_people(production: Production) -> None:
    done = rollups(production.environment, "doctor", "--timeout", "90")
    assert done.exit_code == 0, done.output
    assert "ready" in done.output
    done = rollups({**production.environment, "ROLLUP_CATALOG_PASSWORD": "canary-wrong"}, "doctor", "--timeout", "90")
    assert done.exit_code == 1
    assert "1 check failed" in done.output
    assert "→ set ROLLUP_CATALOG_PASSWORD, or ROLLUP_CATALOG_PASSWORD_FILE" in done.output
    assert "canary" not in done.output


def test_with_spark_its_workers_are_asked_too(production: Production, spark_session: SparkSession) -> None:
    before = production.objects()
    findings = doctor({**production.environment, "ROLLUP_ENGINE": "spark", "ROLLUP_SPARK_MASTER": "local[2]"}, status=0)
    assert {name: states(findings)[name] for name in SPARK} == dict.fromkeys(SPARK, "ok")
    assert "rollup_assets 0." in findings["workers"]["found"]
    assert "iceberg-aws-bundle" in findings["jars"]["found"]
    assert production.objects() == before
    assert spark_session.range(1).count() == 1, "a session that was there stays"


@pytest.mark.usefixtures("spark_session")
def test_workers_without_credentials_are_found_out(production: Production) -> None:
    """The session's workers have credentials for one server; here data is on another one."""
    from deploy.servers.seaweedfs import RAW_BUCKET

    other = production.s3.admin
    environment = {"AWS_ACCESS_KEY_ID": other.access_key, "AWS_SECRET_ACCESS_KEY": other.secret_key}
    client = production.s3.client()
    client.create_bucket(Bucket="admins")
    places = {"ROLLUP_STAGE": "s3://admins/stage", "ROLLUP_WAREHOUSE": f"s3://{RAW_BUCKET}/w", "ROLLUP_TABLE": "metrics.other"}
    findings = doctor(
        {**production.environment, **environment, **places, "ROLLUP_ENGINE": "spark", "ROLLUP_SPARK_MASTER": "local[2]"}, status=1
    )
    assert [name for name, state in states(findings).items() if state == "failed"] == ["workers' data"]
    assert findings["workers' data"]["found"].startswith("on Spark's workers: s3://admins/stage/")
    assert "AccessDenied" in findings["workers' data"]["found"]
    assert "AWS_ACCESS_KEY_ID" in findings["workers' data"]["remedy"]
    assert "Contents" not in client.list_objects_v2(Bucket="admins")


# ------------------------------------------------------------------------------------------------------------------- faults


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _catalog(production: Production, **change: str) -> Environment:
    """``ROLLUP_CATALOG`` with another host, port, user, database or query."""
    at = {"user": production.store.prefix, "port": str(production.postgres.port), "database": production.store.prefix, "query": ""} | change
    return {"ROLLUP_CATALOG": f"postgresql+psycopg://{at['user']}@127.0.0.1:{at['port']}/{at['database']}{at['query']}"}


def _admin(production: Production) -> Environment:
    return {"AWS_ACCESS_KEY_ID": production.s3.admin.access_key, "AWS_SECRET_ACCESS_KEY": production.s3.admin.secret_key}


def _reader(production: Production) -> Environment:
    return {"AWS_ACCESS_KEY_ID": production.s3.reader.access_key, "AWS_SECRET_ACCESS_KEY": production.s3.reader.secret_key}


def _fake_java(folder: Path) -> Path:
    program = folder / "jdk" / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder / "jdk"


def _broken_dagster_home(folder: Path) -> str:
    (folder / "dagster").mkdir()
    (folder / "dagster" / "dagster.yaml").write_text("storage:\n  postgres:\n    postgres_url: postgresql://u@127.0.0.1:1/d\n")
    return str(folder / "dagster")


def _file(folder: Path) -> str:
    (folder / "file").touch()
    return str(folder / "file")


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something wrong: how it comes about, which checks fail, and what the first of them has to say."""

    change: Callable[[Production, Path], Environment]
    fails: tuple[str, ...]
    found: str
    remedy: str


S3_CHECKS = ("raw data", "stage", "warehouse")
KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
ON_SPARK = {"ROLLUP_ENGINE": "spark"}
FAULTS = {
    "settings": Fault(lambda *_: {"ROLLUP_BATCH": "7m"}, ("settings",), "ROLLUP_BATCH=7m does not divide a day", ""),
    "wrong secret": Fault(
        lambda *_: {"AWS_SECRET_ACCESS_KEY": "canary"},
        (*S3_CHECKS, "table"),
        "does not accept the credentials (SignatureDoesNotMatch)",
        KEYS,
    ),
    "unknown key": Fault(lambda *_: {"AWS_ACCESS_KEY_ID": "nobody"}, (*S3_CHECKS, "table"), "(InvalidAccessKeyId)", KEYS),
    "no credentials": Fault(
        lambda *_: {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": "/nonexistent"},
        (*S3_CHECKS, "table"),
        "no credentials for S3 were found",
        "give this machine a role",
    ),
    "missing bucket": Fault(
        lambda production, _: {**_admin(production), "ROLLUP_STAGE": "s3://no-such-bucket/stage"},
        ("stage",),
        "has no bucket no-such-bucket",
        "ROLLUP_STAGE",
    ),
    "no permission to write": Fault(
        lambda production, _: _reader(production), ("stage", "warehouse"), "do not allow PutObject (AccessDenied)", "docs/production.md"
    ),
    "no permission to read": Fault(
        lambda *_: {"ROLLUP_RAW": "s3://hidden/raw"}, ("raw data",), "do not allow ListObjectsV2 (AccessDenied)", "ROLLUP_RAW"
    ),
    "nobody listens at the endpoint": Fault(
        lambda *_: {"ROLLUP_S3_ENDPOINT": f"http://127.0.0.1:{free_port()}"},
        (*S3_CHECKS, "table"),
        "cannot be reached",
        "ROLLUP_S3_ENDPOINT",
    ),
    "no such host": Fault(
        lambda *_: {"ROLLUP_S3_ENDPOINT": "http://s3.invalid:1"}, (*S3_CHECKS, "table"), "cannot be reached", "ROLLUP_S3_ENDPOINT"
    ),
    "stage inside raw data": Fault(
        lambda production, _: {"ROLLUP_STAGE": f"s3://raw/{production.store.prefix}/stage"},
        ("raw data", "stage"),
        "to which nothing may be written",
        "set ROLLUP_STAGE to another folder",
    ),
    "home is not writable": Fault(
        lambda _, folder: {"ROLLUP_HOME": _file(folder)}, ("scratch", "Dagster"), "is not writable", "set ROLLUP_HOME to a folder that is"
    ),
    "catalog down": Fault(
        lambda production, _: _catalog(production, port=str(free_port())),
        ("catalog",),
        "cannot be reached",
        "host and port in ROLLUP_CATALOG",
    ),
    "wrong password": Fault(
        lambda *_: {"ROLLUP_CATALOG_PASSWORD": "canary"}, ("catalog",), "refuses the user's password", "ROLLUP_CATALOG_PASSWORD_FILE"
    ),
    "database missing": Fault(
        lambda production, _: _catalog(production, database="nothing"), ("catalog",), "does not have that database", "ROLLUP_CATALOG"
    ),
    "schema not initialized": Fault(
        lambda production, _: _catalog(production, database="postgres"), ("catalog",), "schema not initialized", "`rollups catalog init`"
    ),
    "catalog without TLS": Fault(
        lambda production, _: _catalog(production, query="?sslmode=verify-full"), ("catalog",), "do not agree about TLS", "sslmode"
    ),
    "an SQLite file that is none": Fault(
        lambda _, folder: {"ROLLUP_CATALOG": f"sqlite:///{folder}", "ROLLUP_CATALOG_PASSWORD": ""},
        ("catalog",),
        "cannot be used",
        "ROLLUP_CATALOG",
    ),
    "another table": Fault(lambda *_: {"ROLLUP_SHARDS": "5"}, ("table",), "was made with ROLLUP_SHARDS=4", "set ROLLUP_SHARDS=4"),
    "Java missing": Fault(
        lambda _, folder: {**ON_SPARK, "JAVA_HOME": str(folder)}, ("Java",), "needs Java 17 or 21, but JAVA_HOME=", "ROLLUP_ENGINE=local"
    ),
    "Java of another version": Fault(
        lambda _, folder: {**ON_SPARK, "JAVA_HOME": str(_fake_java(folder))}, ("Java",), "has version 11.0.2", "set JAVA_HOME"
    ),
    "master down": Fault(
        lambda *_: {**ON_SPARK, "ROLLUP_SPARK_MASTER": f"spark://127.0.0.1:{free_port()}"},
        ("Spark",),
        "cannot be reached",
        "correct ROLLUP_SPARK_MASTER",
    ),
    "Connect server down": Fault(
        lambda *_: {**ON_SPARK, "ROLLUP_SPARK_REMOTE": f"sc://127.0.0.1:{free_port()}"},
        ("Spark",),
        "cannot be reached",
        "correct ROLLUP_SPARK_REMOTE",
    ),
    "Dagster's home is a file": Fault(
        lambda _, folder: {"DAGSTER_HOME": _file(folder)}, ("Dagster",), "is a file", "set it to another one"
    ),
    "Dagster's database down": Fault(
        lambda _, folder: {"DAGSTER_HOME": _broken_dagster_home(folder)}, ("Dagster",), "cannot be opened (", "correct its dagster.yaml"
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_each_fault_is_found_and_says_what_mends_it(production: Production, tmp_path: Path, fault: Fault) -> None:
    before = production.objects(), production.catalog()
    findings = doctor({**production.environment, **fault.change(production, tmp_path)}, status=1)
    assert tuple(name for name, state in states(findings).items() if state == "failed") == fault.fails
    first = findings[fault.fails[0]]
    assert fault.found in first["found"]
    assert fault.remedy in first["remedy"]
    assert first["seconds"] < 30
    # In words of ours, each of them.
    assert not [finding for finding in findings.values() if "Error:" in finding["found"]]
    said = json.dumps(findings)
    assert "canary" not in said
    assert production.environment["AWS_SECRET_ACCESS_KEY"] not in said
    assert production.environment["ROLLUP_CATALOG_PASSWORD"] not in said
    assert (production.objects(), production.catalog()) == before


STOP_A_BACKFILL = (
    *("wrong secret", "unknown key", "no credentials", "missing bucket", "no permission to write", "no permission to read"),
    *("nobody listens at the endpoint", "no such host"),
    *("catalog down", "wrong password", "database missing", "schema not initialized", "catalog without TLS", "another table"),
    *("Java missing", "Java of another version", "master down", "Connect server down"),
)


@pytest.mark.parametrize("name", STOP_A_BACKFILL)
def test_each_fault_stops_a_backfill_with_the_same_words_and_nothing_is_written(
    production: Production, tmp_path: Path, name: str, with_dagster_home: WithDagsterHome
) -> None:
    """Each as if the batch had never been staged, and published by nobody."""
    fault = FAULTS[name]
    before = production.objects(), production.catalog()
    # A home of its own: what Dagster records there is no data.
    changed = {**production.environment, "ROLLUP_HOME": str(with_dagster_home(tmp_path / "home")), **fault.change(production, tmp_path)}
    began = time.monotonic()
    done = rollups(changed, "backfill", FIRST, FIRST, "--force", "--json")
    assert time.monotonic() - began < 30
    assert done.exit_code == 1, done.output
    # A backfill that could not begin ends with an error, one that did with what became of its partitions.
    said = json.loads(done.stdout)["failed"][FIRST] if done.stdout.strip() else done.stderr
    said = " ".join(said.split())
    assert fault.found in said
    assert fault.remedy in said
    assert "canary" not in done.output + said
    assert (production.objects(), production.catalog()) == before
    assert not [path for path in (tmp_path / "home").rglob("*") if path.suffix in (".parquet", ".json", ".avro")]


def test_a_first_run_with_wrong_keys_leaves_the_catalog_as_it_was(
    production: Production, tmp_path: Path, with_dagster_home: WithDagsterHome
) -> None:
    before = production.catalog()
    environment = {**production.environment, "ROLLUP_HOME": str(with_dagster_home(tmp_path))}
    environment |= {"ROLLUP_TABLE": "unheard.of", "AWS_SECRET_ACCESS_KEY": "wrong"}
    done = rollups(environment, "backfill", FIRST, FIRST, "--json")
    assert done.exit_code == 1, done.output
    assert production.catalog() == before


def test_a_server_of_another_authority_is_refused(production: Production, s3_server_tls: S3Server, tmp_path: Path) -> None:
    from deploy.servers.certificates import certificate

    environment = {**production.environment, **s3_server_tls.environment, "ROLLUP_TABLE": "metrics.other"}
    assert states(doctor(environment, status=0))["stage"] == "ok"
    findings = doctor({**environment, "ROLLUP_S3_CA_BUNDLE": str(certificate(tmp_path).authority)}, status=1)
    for name in S3_CHECKS:
        assert findings[name]["state"] == "failed"
        assert "certificate" in findings[name]["found"]
        assert "set ROLLUP_S3_CA_BUNDLE" in findings[name]["remedy"]


def test_who_holds_the_lock_is_told_and_is_no_failure(production: Production) -> None:
    from rollup_assets.iceberg.locks import table_lock

    with table_lock(load_settings(**production.store.settings)):
        findings = doctor(production.environment, status=0)
    assert findings["lock"]["state"] == "warning"
    assert f"rollups {socket.gethostname()[:40]} {os.getpid()} from 127.0.0.1" in findings["lock"]["found"]
    assert "wait for it to end" in findings["lock"]["remedy"]


def test_a_superuser_is_warned_of(production: Production) -> None:
    environment = _catalog(production, user=production.postgres.superuser) | {
        "ROLLUP_CATALOG_PASSWORD": production.postgres.superuser_password
    }
    findings = doctor({**production.environment, **environment}, status=0)
    assert (findings["catalog"]["state"], "`rollups catalog init`" in findings["catalog"]["remedy"]) == ("warning", True)


@pytest.fixture
def silent() -> Iterator[int]:
    """A server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        yield listening.getsockname()[1]


def test_servers_that_never_answer_are_given_up_within_half_a_minute(production: Production, silent: int) -> None:
    """All at once: S3, the catalog and Spark; the process ends although threads still wait."""
    hanging = {
        "ROLLUP_S3_ENDPOINT": f"http://127.0.0.1:{silent}",
        "ROLLUP_CATALOG": f"rest+http://127.0.0.1:{silent}",
        "ROLLUP_CATALOG_PASSWORD": "",
        "ROLLUP_ENGINE": "spark",
        "ROLLUP_SPARK_REMOTE": f"sc://127.0.0.1:{silent}",
    }
    environment = {name: value for name, value in {**os.environ, **production.environment, **hanging}.items() if value}
    command = [str(Path(sys.executable).with_name("rollups")), "doctor", "--json"]
    began = time.monotonic()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    # Starting Python is not part of it, and takes long where much else runs.
    assert time.monotonic() - began < 45
    assert done.returncode == 1, done.stderr
    findings = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    for name in ("raw data", "stage", "warehouse", "catalog", "Spark"):
        assert findings[name]["state"] == "failed", findings[name]
        assert "ROLLUP_" in findings[name]["remedy"]
    assert states(findings)["scratch"] == "ok"
