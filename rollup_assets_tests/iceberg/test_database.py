"""The catalog's database objects: those that PyIceberg makes, made once, with grants for the role of the runs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from rollup_assets.cli import app
from rollup_assets.errors import CatalogError
from rollup_assets.iceberg.catalog import open_catalog
from rollup_assets.iceberg.database import CatalogNames, initialize, script
from rollup_assets.iceberg.table import ensure_table
from rollup_assets.settings import load_settings

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer

ROOT = Path(__file__).resolve().parents[2]
NUMBERS = itertools.count(1)
PASSWORD = "Canary of the admin"


@dataclass
class Fresh:
    """A database and a role, and nothing in it yet."""

    server: PostgresServer
    name: str

    def settings(self, home: Path, **overrides: Any) -> Any:
        given = {
            "catalog": self.server.uri(self.name, self.name),
            "catalog_password": "x",
            "catalog_admin_password": self.server.superuser_password,
        }
        return load_settings(home=str(home), **{**given, **overrides})

    def columns(self, schema: str = "public", database: str | None = None) -> list[tuple[Any, ...]]:
        return self.server.execute(
            "select table_name, column_name, data_type, character_maximum_length, is_nullable, ordinal_position "
            f"from information_schema.columns where table_schema = '{schema}' order by 1, ordinal_position",
            database=database or self.name,
        )


@pytest.fixture
def fresh(postgres_server: PostgresServer) -> Fresh:
    name = f"empty_{next(NUMBERS)}"
    postgres_server.create_role(name, "x")
    postgres_server.create_database(name)
    return Fresh(postgres_server, name)


def keys(fresh: Fresh, database: str | None = None) -> list[tuple[Any, ...]]:
    return fresh.server.execute(
        "select conrelid::regclass::text, pg_get_constraintdef(oid) from pg_constraint where contype = 'p' "
        "and connamespace = 'public'::regnamespace order by 1",
        database=database or fresh.name,
    )


def test_the_tables_are_those_that_pyiceberg_makes(tmp_path: Path, fresh: Fresh) -> None:
    from pyiceberg.catalog.sql import SqlCatalog

    initialize(fresh.settings(tmp_path), admin="postgres")
    other = f"{fresh.name}_pyiceberg"
    fresh.server.create_database(other)
    uri = fresh.server.uri(other, "postgres").replace("@", f":{fresh.server.superuser_password}@")
    SqlCatalog("any", uri=uri).close()
    assert fresh.columns() == fresh.columns(database=other)
    assert keys(fresh) == keys(fresh, other)


def test_doing_it_again_changes_nothing(tmp_path: Path, fresh: Fresh) -> None:
    settings = fresh.settings(tmp_path)
    initialize(settings, admin="postgres")
    table = ensure_table(settings)
    initialize(settings, admin="postgres")
    assert ensure_table(settings).metadata.table_uuid == table.metadata.table_uuid


def test_a_catalog_of_the_older_schema_gets_the_missing_column(tmp_path: Path, fresh: Fresh) -> None:
    settings = fresh.settings(tmp_path)
    initialize(settings, admin="postgres")
    table = ensure_table(settings)
    fresh.server.execute("alter table iceberg_tables drop column iceberg_type", database=fresh.name)
    initialize(settings, admin="postgres")
    assert ensure_table(settings).metadata.table_uuid == table.metadata.table_uuid


def test_a_schema_of_its_own_is_found_without_being_told(tmp_path: Path, fresh: Fresh) -> None:
    settings = fresh.settings(tmp_path)
    initialize(settings, admin="postgres", schema="iceberg catalog")
    ensure_table(settings)
    assert fresh.columns() == []
    assert fresh.server.execute('select table_name from "iceberg catalog".iceberg_tables', database=fresh.name) == [("rollups",)]


def test_the_owner_of_the_database_is_admin_enough(tmp_path: Path, fresh: Fresh) -> None:
    owner = f"{fresh.name}_owner"
    fresh.server.create_role(owner, PASSWORD)
    fresh.server.execute(f"alter database {fresh.name} owner to {owner}")
    settings = fresh.settings(tmp_path, catalog_admin_password=PASSWORD)
    initialize(settings, admin=owner)
    ensure_table(settings)


@pytest.mark.parametrize(
    ("admin", "overrides", "says"),
    [
        (
            "postgres",
            {"catalog_admin_password": PASSWORD},
            r"refuses the user's password .* set ROLLUP_CATALOG_ADMIN_PASSWORD, or .*postgres",
        ),
        (
            "postgres",
            {"catalog_admin_password": None},
            r"asks for a password, .* set ROLLUP_CATALOG_ADMIN_PASSWORD, or .*admin is postgres",
        ),
        ("SELF", {}, r"is also named as the role of the runs, .*; runs need a role of their own"),
        ("weak", {"catalog_admin_password": PASSWORD}, r"may not do that .*; use --admin to name a role that owns the database"),
        ("postgres", {"catalog": ""}, r"ROLLUP_CATALOG=sqlite:.* is not a PostgreSQL database, and needs no init"),
        ("postgres", {"catalog": "postgresql+psycopg://host/db"}, r"names no user; write postgresql\+psycopg://user@host:5432/database"),
    ],
)
def test_what_an_admin_gets_wrong_is_said_and_nothing_made(
    tmp_path: Path, fresh: Fresh, admin: str, overrides: dict[str, Any], says: str
) -> None:
    if admin == "weak" and not fresh.server.execute("select 1 from pg_roles where rolname = 'weak'"):
        fresh.server.create_role("weak", PASSWORD)
    with pytest.raises(CatalogError, match=says) as caught:
        initialize(fresh.settings(tmp_path, **overrides), admin=fresh.name if admin == "SELF" else admin)
    assert PASSWORD not in str(caught.value)
    assert fresh.columns() == []


def test_a_missing_role_is_said_with_the_sql_that_makes_it(tmp_path: Path, fresh: Fresh) -> None:
    with pytest.raises(CatalogError, match=r"""there is no role nobody's; create it with `CREATE ROLE "nobody's" LOGIN PASSWORD"""):
        initialize(fresh.settings(tmp_path), admin="postgres", role="nobody's")
    assert fresh.columns() == []


# ----------------------------------------------------------------------------------------------------------------- command


@pytest.fixture
def environment(tmp_path: Path, fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fresh]:
    monkeypatch.setenv("ROLLUP_HOME", str(tmp_path))
    monkeypatch.setenv("ROLLUP_CATALOG", fresh.server.uri(fresh.name, fresh.name))
    monkeypatch.setenv("ROLLUP_CATALOG_PASSWORD", "x")
    file = tmp_path / "admin"
    file.write_text(f"{fresh.server.superuser_password}\n")
    monkeypatch.setenv("ROLLUP_CATALOG_ADMIN_PASSWORD_FILE", str(file))
    return fresh


def test_the_command_makes_a_catalog_that_runs_can_use(environment: Fresh) -> None:
    done = CliRunner().invoke(app, ["catalog", "init"])
    assert (done.exit_code, done.stdout) == (
        0,
        f"the catalog's tables are in schema public of database {environment.name}, and {environment.name} may use them\n",
    )
    with open_catalog(load_settings(), writing=True) as catalog:
        assert catalog.list_namespaces() == []


def test_the_printed_sql_does_the_same(environment: Fresh) -> None:
    printed = CliRunner().invoke(app, ["catalog", "init", "--print-sql", "--schema", "own"]).stdout
    for _ in range(2):
        environment.server.execute(printed, database=environment.name)
    with open_catalog(load_settings(), writing=True) as catalog:
        assert catalog.list_namespaces() == []


@pytest.mark.usefixtures("environment")
def test_the_command_tells_what_is_wrong_without_a_traceback() -> None:
    done = CliRunner().invoke(app, ["catalog", "init", "--admin", "nobody"])
    assert done.exit_code == 1
    assert "set ROLLUP_CATALOG_ADMIN_PASSWORD" in done.stderr
    assert "Traceback" not in done.output


@pytest.mark.parametrize("catalog", ["rest+https://catalog.example.com/iceberg", "sqlite:////data/catalog.db"])
def test_the_command_has_nothing_to_do_for_other_catalogs(catalog: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment waits for it to succeed, whatever its catalog is. There is no SQL to print, however."""
    monkeypatch.setenv("ROLLUP_CATALOG", catalog)
    done = CliRunner().invoke(app, ["catalog", "init", "--admin", "catalog_owner"])
    said = f"nothing to do: ROLLUP_CATALOG={catalog} is not a PostgreSQL database, and needs no init\n"
    assert (done.exit_code, done.stdout) == (0, said)
    assert CliRunner().invoke(app, ["catalog", "init", "--print-sql"]).exit_code == 1


def test_the_documented_sql_is_what_the_command_runs() -> None:
    documented = re.findall(r"^```sql\n(BEGIN;.*?)^```", (ROOT / "docs/production.md").read_text(), re.MULTILINE | re.DOTALL)
    assert documented == [script(CatalogNames("catalog", "public", "rollups"))]
