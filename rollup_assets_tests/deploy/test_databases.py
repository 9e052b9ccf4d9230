"""``deploy/databases.sh`` and ``deploy/dagster.yaml`` on a real PostgreSQL: roles see their own database, and Dagster takes the file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from deploy.servers.postgres import PostgresServer, postgres
from rollup_assets_tests.deploy.compose import ROOT

ROLES = {"dagster": "dagster_password", "rollups": "catalog_password", "catalog_owner": "catalog_admin_password"}


@pytest.fixture(scope="module", name="secrets")
def made_secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployment") / "secrets"
    subprocess.run(["sh", str(ROOT / "deploy/make-secrets.sh"), str(folder)], check=True)
    return folder


@pytest.fixture(scope="module", name="server")
def initialized(tmp_path_factory: pytest.TempPathFactory, secrets: Path) -> Iterator[PostgresServer]:
    """A server of its own, whose databases were made twice."""
    with postgres(tmp_path_factory.mktemp("postgres")) as server:
        variables = {
            "PATH": f"{server.binaries}{os.pathsep}{os.environ['PATH']}",
            "PGHOST": server.host,
            "PGPORT": str(server.port),
            "PGPASSWORD": server.superuser_password,
            "DAGSTER_POSTGRES_PASSWORD_FILE": str(secrets / "dagster_password"),
            "ROLLUP_CATALOG_PASSWORD_FILE": str(secrets / "catalog_password"),
            "ROLLUP_CATALOG_ADMIN_PASSWORD_FILE": str(secrets / "catalog_admin_password"),
        }
        for _ in range(2):
            subprocess.run(["sh", str(ROOT / "deploy/databases.sh")], env=variables, check=True)
        yield server


@pytest.mark.parametrize(("role", "database"), [("dagster", "catalog"), ("rollups", "dagster"), ("catalog_owner", "dagster")])
def test_a_role_does_not_get_into_the_other_database(server: PostgresServer, secrets: Path, role: str, database: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        server.connect(database, role, (secrets / ROLES[role]).read_text())


def test_a_role_gets_into_its_own(server: PostgresServer, secrets: Path) -> None:
    for role, database in (("dagster", "dagster"), ("rollups", "catalog"), ("catalog_owner", "catalog")):
        server.connect(database, role, (secrets / ROLES[role]).read_text()).close()
    assert server.execute("select rolname from pg_roles where rolsuper") == [(server.superuser,)]


def test_no_password_is_in_the_servers_log(server: PostgresServer, secrets: Path) -> None:
    log = server.log.read_text()
    assert [name for name in ROLES.values() if (secrets / name).read_text() in log] == []


def test_dagster_takes_the_configuration(server: PostgresServer, secrets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dagster.yaml").write_text((ROOT / "deploy/dagster.yaml").read_text())
    passwords = tmp_path / "pgpass"
    passwords.touch(mode=0o600)
    passwords.write_text(f"*:*:dagster:dagster:{(secrets / 'dagster_password').read_text()}\n")
    variables = {"HOST": server.host, "PORT": str(server.port), "DB": "dagster", "USER": "dagster"}
    for name, value in variables.items():
        monkeypatch.setenv(f"DAGSTER_POSTGRES_{name}", value)
    for name, value in (("DAGSTER_COMPUTE_LOGS", "logs"), ("DAGSTER_ARTIFACTS", "artifacts"), ("PGPASSFILE", "pgpass")):
        monkeypatch.setenv(name, str(tmp_path / value))
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert instance.get_runs_count() == 0
        assert instance.run_monitoring_enabled
        assert instance.run_monitoring_max_resume_run_attempts == 0
        assert instance.run_retries_enabled
        assert instance.run_retries_max_retries == 2
        assert not instance.run_retries_retry_on_asset_or_op_failure
        assert not instance.telemetry_enabled
        assert not instance.nux_enabled
        # Reporting an event notifies listeners, which is where the wrong driver fails.
        run = dg.DagsterRun("batches", status=dg.DagsterRunStatus.STARTED)
        instance.add_run(run)
        instance.report_run_failed(run)
        assert instance.get_runs_count(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE])) == 1
    assert {path.name for path in tmp_path.iterdir()} <= {"dagster.yaml", "pgpass", "logs", "artifacts"}
