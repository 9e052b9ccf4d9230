"""``deploy/databases.sh`` and ``deploy/dagster.yaml`` on a real PostgreSQL: roles see their own database, and Dagster takes the file."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import psycopg
import pytest

from deploy.servers.postgres import PostgresServer, postgres, system_binaries, wheel_binaries
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
    # One that logs what it can.
    options = {"log_statement": "all", "log_min_duration_statement": "0"}
    with postgres(tmp_path_factory.mktemp("postgres"), options=options) as server:
        for _ in range(2):
            make_databases(server, secrets)
        yield server


def make_databases(server: PostgresServer, secrets: Path, role: str | None = None, *, status: int = 0) -> str:
    """Run the script, as the superuser unless a role is given, whose password is its name; returns what it complains about."""
    variables = {
        "PATH": f"{server.binaries}{os.pathsep}{os.environ['PATH']}",
        "PGHOST": server.host,
        "PGPORT": str(server.port),
        "PGUSER": role or server.superuser,
        "PGPASSWORD": role or server.superuser_password,
        "DAGSTER_POSTGRES_PASSWORD_FILE": str(secrets / "dagster_password"),
        "ROLLUP_CATALOG_PASSWORD_FILE": str(secrets / "catalog_password"),
        "ROLLUP_CATALOG_ADMIN_PASSWORD_FILE": str(secrets / "catalog_admin_password"),
    }
    done = subprocess.run(["sh", str(ROOT / "deploy/databases.sh")], env=variables, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    return done.stderr


@pytest.mark.parametrize(("role", "database"), [("dagster", "catalog"), ("rollups", "dagster"), ("catalog_owner", "dagster")])
def test_a_role_does_not_get_into_the_other_database(server: PostgresServer, secrets: Path, role: str, database: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        server.connect(database, role, (secrets / ROLES[role]).read_text())


def test_a_role_gets_into_its_own(server: PostgresServer, secrets: Path) -> None:
    require_usable(server, secrets)


def require_usable(server: PostgresServer, secrets: Path) -> None:
    for role, database in (("dagster", "dagster"), ("rollups", "catalog"), ("catalog_owner", "catalog")):
        server.connect(database, role, (secrets / ROLES[role]).read_text()).close()
    assert server.execute("select rolname from pg_roles where rolsuper") == [(server.superuser,)]


def test_no_password_is_in_the_servers_log(server: PostgresServer, secrets: Path) -> None:
    require_silence(server, secrets)


def require_silence(server: PostgresServer, secrets: Path) -> None:
    log = server.log.read_text()
    assert [name for name in ROLES.values() if (secrets / name).read_text() in log] == []


# ------------------------------------------------------------------------------------------------------- without a superuser


@pytest.fixture(params=["the wheel's 18", "the wheel's 16", "the system's"], name="service")
def managed_service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PostgresServer]:
    """A server whose users get no superuser but the role ``admin``; before 16, roles were given to others by other rules."""
    newest = wheel_binaries()
    found = {"the wheel's 18": newest, "the wheel's 16": newest.parents[1] / "pginstall/bin", "the system's": system_binaries()}
    binaries = found[request.param]
    if binaries is None or not (binaries / "psql").exists():
        pytest.skip(f"{request.param} PostgreSQL is not installed")
    with postgres(tmp_path, binaries=binaries, superuser="provider") as server:
        server.execute("create role admin login createrole createdb password 'admin'")
        yield server


def test_a_role_that_may_make_roles_and_databases_is_enough(service: PostgresServer, secrets: Path) -> None:
    """And belongs to none of those that it has made, as after a superuser."""
    for _ in range(2):
        make_databases(service, secrets, "admin")
        require_usable(service, secrets)
        assert service.execute("select pg_has_role('admin', 'dagster', 'usage'), pg_has_role('admin', 'catalog_owner', 'usage')") == [
            (False, False)
        ]
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        service.connect("catalog", "dagster", (secrets / "dagster_password").read_text())
    with service.connect("catalog", "catalog_owner", (secrets / "catalog_admin_password").read_text()) as connection:
        connection.execute("create schema of_the_owner")


@pytest.mark.parametrize(("name", "value"), [("log_statement", "ddl"), ("log_min_duration_statement", "0")])
def test_no_password_is_sent_to_a_server_that_logs_it(service: PostgresServer, secrets: Path, name: str, value: str) -> None:
    """Unless the role may switch that off."""
    service.execute(f"alter database postgres set {name} = {value}")
    complaint = make_databases(service, secrets, "admin", status=3)
    assert (
        f"this server would log passwords, and admin may not prevent that ({'' if name == 'log_statement' else 'log_statement = none, '}"
        in complaint
    )
    assert f"{name} = {value}" in complaint
    assert "HINT:  Run this as a superuser, or set the two" in complaint
    assert service.execute("select count(*) from pg_roles where rolname in ('dagster', 'rollups', 'catalog_owner')") == [(0,)]
    if int(service.execute("show server_version_num")[0][0]) >= 150_000:
        service.execute(f"grant set on parameter {name} to admin")
        make_databases(service, secrets, "admin")
        require_usable(service, secrets)
    require_silence(service, secrets)


def test_a_role_that_may_not_make_any_is_refused_before_a_password_is_sent(service: PostgresServer, secrets: Path) -> None:
    """The server logs the statements that fail."""
    service.execute("alter role admin nocreatedb")
    assert "role admin may not make roles and databases" in make_databases(service, secrets, "admin", status=3)
    assert "may not make roles and databases" in service.log.read_text()
    require_silence(service, secrets)


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
