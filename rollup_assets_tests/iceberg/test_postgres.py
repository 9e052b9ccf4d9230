"""The catalog in PostgreSQL: a whole pipeline on it, as the least role, and every fault in a sentence."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rollup_assets.errors import CatalogError, LockTimeoutError, PublishError, RollupError
from rollup_assets.iceberg.catalog import load_catalog, open_catalog
from rollup_assets.iceberg.locks import AdvisoryLock, TableLock, table_lock
from rollup_assets.iceberg.table import ensure_table
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import Settings, load_settings
from rollup_assets.steps.publish import publish
from rollup_assets_tests.iceberg.staging import batches_from, load, pipeline_in, stage_rollups, value_by_batch

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer

FreshCatalog = Callable[[], dict[str, Any]]
PASSWORD = "its password"


@pytest.fixture
def pipeline(tmp_path: Path, fresh_catalog: FreshCatalog) -> Pipeline:
    return pipeline_in(tmp_path, **fresh_catalog())


def role_of(settings: Settings) -> str:
    """Also the name of its database."""
    return settings.catalog.rpartition("/")[2]


# -------------------------------------------------------------------------------------------------------------- publishing


def test_batches_are_published_replaced_and_found_published(pipeline: Pipeline) -> None:
    one, two = batches_from(pipeline, 2)
    for value in (1, 2):
        for batch in (one, two):
            stage_rollups(pipeline, batch, value=value)
            assert not publish(pipeline, batch).unchanged
            assert publish(pipeline, batch).unchanged
    assert value_by_batch(pipeline) == {one.key: {2}, two.key: {2}}
    with open_catalog(pipeline.settings) as catalog:
        assert catalog.list_tables("metrics") == [("metrics", "rollups")]


def _publish_in_a_child(settings: dict[str, Any], home: str, key: str, locked: bool, go: Any) -> None:
    if not locked:
        _unlock()
    pipeline = pipeline_in(Path(home), **settings)
    go.wait(60)
    publish(pipeline, pipeline.calendar.batch(key))


def _unlock() -> None:
    from rollup_assets.iceberg import locks

    locks.table_lock = lambda _settings: contextlib.nullcontext(TableLock())  # type: ignore[assignment,return-value]


@pytest.mark.parametrize("locked", [True, False])
def test_publishers_at_once_lose_and_duplicate_nothing(tmp_path: Path, fresh_catalog: FreshCatalog, locked: bool) -> None:
    """With the lock they queue; without it the catalog's compare-and-swap sorts them out. Two of them publish the same batch."""
    settings = fresh_catalog()
    pipeline = pipeline_in(tmp_path, **settings)
    one, two = batches_from(pipeline, 2)
    for batch in (one, two):
        stage_rollups(pipeline, batch)
    ensure_table(pipeline.settings)
    context = multiprocessing.get_context("spawn")
    go = context.Event()
    publishers = [
        context.Process(target=_publish_in_a_child, args=(settings, str(tmp_path), batch.key, locked, go)) for batch in (one, one, two)
    ]
    for process in publishers:
        process.start()
    go.set()
    for process in publishers:
        process.join(120)
    assert [process.exitcode for process in publishers] == [0, 0, 0]
    rows = load(pipeline).scan().to_arrow()
    assert len(rows) == sum(3 * (one.end - one.start) // resolution for resolution in pipeline.settings.resolutions) * 2


def test_a_child_process_makes_connections_of_its_own(pipeline: Pipeline) -> None:
    """A fork inherits its parent's sockets; both would read each other's answers."""
    ensure_table(pipeline.settings)
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            assert load(pipeline).location()
            os._exit(0)
        os._exit(1)
    assert load(pipeline).location()
    assert os.waitpid(child, 0)[1] == 0
    assert load(pipeline).location()


# -------------------------------------------------------------------------------------------------------------------- lock


def sessions_with_locks(server: PostgresServer, settings: Settings) -> list[tuple[int, str]]:
    return server.execute(
        "select pid, application_name from pg_stat_activity join pg_locks using (pid) "
        f"where locktype = 'advisory' and granted and datname = '{role_of(settings)}'"
    )  # type: ignore[return-value]


def end_sessions_with_locks(server: PostgresServer, settings: Settings) -> int:
    for pid, _ in (found := sessions_with_locks(server, settings)):
        server.execute(f"select pg_terminate_backend({pid}, 5000)")
    return len(found)


def test_the_lock_is_the_same_in_every_release() -> None:
    settings = load_settings(catalog="postgresql+psycopg://u@h/db", table="metrics.rollups", catalog_name="rollups")
    assert AdvisoryLock(settings, 1).key == -1901190237442479571


def test_who_waits_in_vain_is_told_who_holds_the_lock(pipeline: Pipeline, postgres_server: PostgresServer) -> None:
    with table_lock(pipeline.settings) as held:
        ((pid, name),) = sessions_with_locks(postgres_server, pipeline.settings)
        assert f"rollups {socket.gethostname()[:40]} {os.getpid()}" == name
        with pytest.raises(LockTimeoutError) as caught, table_lock(pipeline.settings, timeout=0.1):
            pass
        assert f"held the lock of metrics.rollups for 0.1 s: {name} from 127.0.0.1, connected since" in str(caught.value)
        assert f"select pg_terminate_backend({pid})" in str(caught.value)
        assert held.is_held()
    assert sessions_with_locks(postgres_server, pipeline.settings) == []
    with table_lock(pipeline.settings, timeout=0.1):
        pass


def test_tables_have_locks_of_their_own(tmp_path: Path, fresh_catalog: FreshCatalog) -> None:
    settings = fresh_catalog()
    one, other = (load_settings(home=str(tmp_path), table=table, **settings) for table in ("metrics.rollups", "metrics.other"))
    with table_lock(one), table_lock(other, timeout=0.1):
        pass


def _hold(settings: dict[str, Any], ready: Any) -> None:
    with table_lock(load_settings(**settings)):
        ready.set()
        time.sleep(60)


def test_a_killed_process_releases_the_lock(tmp_path: Path, fresh_catalog: FreshCatalog) -> None:
    settings = fresh_catalog()
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(settings, ready))
    holder.start()
    assert ready.wait(60)
    with pytest.raises(LockTimeoutError), table_lock(load_settings(home=str(tmp_path), **settings), timeout=0.1):
        pass
    holder.kill()
    holder.join()
    with table_lock(load_settings(home=str(tmp_path), **settings), timeout=10):
        pass


@pytest.mark.scenario("P7")
@pytest.mark.parametrize("moment", ["before the plan", "before the commit"])
def test_a_lock_that_is_lost_is_taken_again_and_the_batch_planned_anew(
    pipeline: Pipeline, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, moment: str
) -> None:
    """While the lock is away, another publisher replaces the table's content; the plan made before must not be committed."""
    from rollup_assets.iceberg import commit as committing
    from rollup_assets.iceberg import publish as publishing

    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch, value=1)
    publish(pipeline, batch)
    stage_rollups(pipeline, batch, value=2)
    module: Any = committing if moment == "before the plan" else publishing
    name = "_current_plan" if moment == "before the plan" else "_plan"
    original = getattr(module, name)
    lost: list[int] = []
    held_at_commits: list[int] = []

    def losing(*arguments: Any) -> Any:
        outcome = None if moment == "before the plan" else original(*arguments)
        if not lost:
            lost.append(end_sessions_with_locks(postgres_server, pipeline.settings))
        return original(*arguments) if outcome is None else outcome

    apply = committing._apply

    def watched(*arguments: Any) -> int:
        held_at_commits.append(len(sessions_with_locks(postgres_server, pipeline.settings)))
        return apply(*arguments)

    monkeypatch.setattr(module, name, losing)
    monkeypatch.setattr(committing, "_apply", watched)
    assert not publish(pipeline, batch).unchanged
    assert lost == [1]
    assert held_at_commits == [1]
    assert value_by_batch(pipeline) == {batch.key: {2}}
    assert "the lock of metrics.rollups was lost; waiting for it again" in caplog.text


@pytest.mark.scenario("P7")
def test_without_its_lock_a_publisher_gives_up_and_changes_nothing(
    pipeline: Pipeline, postgres_server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rollup_assets.iceberg import commit as committing
    from rollup_assets.iceberg import publish as publishing

    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch, value=1)
    publish(pipeline, batch)
    stage_rollups(pipeline, batch, value=2)
    original = publishing._plan

    def losing(*arguments: Any) -> Any:
        plan = original(*arguments)
        end_sessions_with_locks(postgres_server, pipeline.settings)
        return plan

    monkeypatch.setattr(publishing, "_plan", losing)
    monkeypatch.setattr(committing, "MOST_TRIES", 2)
    with pytest.raises(PublishError, match=r"2 commits failed, the last with LockLostError: the lock of metrics\.rollups was lost"):
        publish(pipeline, batch)
    assert value_by_batch(pipeline) == {batch.key: {1}}


# --------------------------------------------------------------------------------------------------------------- least role


def test_the_role_of_the_runs_can_do_no_more_than_they_need(pipeline: Pipeline, postgres_server: PostgresServer) -> None:
    import psycopg

    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch)
    publish(pipeline, batch)
    role = role_of(pipeline.settings)
    postgres_server.execute("create schema if not exists others", database=role)
    postgres_server.execute("create table if not exists others.secret (a int)", database=role)
    forbidden = [
        "create table public.mine (a int)",
        "create temporary table mine (a int)",
        "create schema mine",
        "create function public.f() returns int language sql as 'select 1'",
        "drop table public.iceberg_tables",
        "alter table public.iceberg_tables add column mine int",
        "truncate public.iceberg_tables",
        "truncate public.iceberg_namespace_properties",
        "delete from public.iceberg_tables",
        "delete from public.iceberg_namespace_properties",
        "update public.iceberg_tables set table_name = 'x'",
        "update public.iceberg_tables set catalog_name = 'x'",
        "update public.iceberg_namespace_properties set property_value = 'x'",
        "select * from others.secret",
        "create table others.mine (a int)",
        "create role mine",
        "create database mine",
        "select pg_read_file('/etc/hostname')",
    ]
    with postgres_server.connect(role, role, PASSWORD) as connection:
        for statement in forbidden:
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
        # That is no error, and grants nothing.
        connection.execute("grant all on public.iceberg_tables to public")
        question = "select rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls from pg_roles where rolname = current_user"
        assert not any(connection.execute(question).fetchall()[0])
        assert connection.execute("select has_table_privilege('public', 'public.iceberg_tables', 'select')").fetchall() == [(False,)]


# ------------------------------------------------------------------------------------------------------------------- faults


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """Takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def fault(settings: Settings, *, writing: bool = False) -> str:
    """The sentence; it comes in time and repeats no password."""
    started = time.monotonic()
    with pytest.raises(CatalogError) as caught, open_catalog(settings, writing=writing):
        pass
    assert time.monotonic() - started < 30
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


FAULTS: dict[str, tuple[dict[str, str], str]] = {
    "down": ({"port": "1"}, r"cannot be reached \(.*refused\); start the server, or correct host and port in ROLLUP_CATALOG"),
    "no such host": ({"host": "no-such-host.invalid"}, r"cannot be reached \(.*resolve.*\); .*correct host and port in ROLLUP_CATALOG"),
    "wrong password": ({"password": "wrong"}, r"refuses the user's password .*; set ROLLUP_CATALOG_PASSWORD"),
    "no password": ({"password": ""}, r"asks for a password, but none is set .*; set ROLLUP_CATALOG_PASSWORD"),
    "no such user": ({"user": "nobody"}, r"refuses the user's password .*; set ROLLUP_CATALOG_PASSWORD"),
    "no such database": ({"database": "nothing"}, r"does not have that database .*; correct its name in ROLLUP_CATALOG, or create it"),
    "not initialized": ({"database": "postgres"}, r": schema not initialized, .*; run `rollups catalog init`"),
    "no TLS": ({"query": "?sslmode=verify-full"}, r"and sslmode in ROLLUP_CATALOG do not agree about TLS .*; switch it on in the server"),
    "no such option": ({"query": "?nosuch=1"}, r"has an invalid connection option .*; correct what follows the \? in ROLLUP_CATALOG"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_one_sentence_with_setting_and_remedy(
    tmp_path: Path, fresh_catalog: FreshCatalog, postgres_server: PostgresServer, name: str
) -> None:
    change, says = FAULTS[name]
    good = fresh_catalog()
    role = role_of(load_settings(**good))
    at = {"user": role, "host": "127.0.0.1", "port": str(postgres_server.port), "database": role, "password": PASSWORD, "query": ""}
    at |= change
    uri = f"postgresql+psycopg://{at['user']}@{at['host']}:{at['port']}/{at['database']}"
    settings = load_settings(home=str(tmp_path), catalog=uri + at["query"], catalog_password=at["password"] or None)
    found = fault(settings, writing=True)
    assert re.fullmatch(rf"ROLLUP_CATALOG={re.escape(uri)}:? ?{says}.*", found), found
    assert not list(tmp_path.rglob("*"))


def test_a_backfill_without_its_catalog_stages_nothing(tmp_path: Path) -> None:
    from rollup_assets.defs.backfill import run_backfill

    settings = load_settings(home=str(tmp_path), catalog="postgresql+psycopg://u@127.0.0.1:1/db")
    with pytest.raises(CatalogError, match="cannot be reached"):
        run_backfill(settings, "2026-01-01-00:00", "2026-01-01-00:00")
    assert not list(tmp_path.rglob("*"))


def test_a_server_that_does_not_answer_is_given_up(tmp_path: Path) -> None:
    with silent_server() as port:
        settings = load_settings(home=str(tmp_path), catalog=f"postgresql+psycopg://u@127.0.0.1:{port}/db?connect_timeout=2")
        assert "cannot be reached (" in fault(settings)


def test_the_default_timeout_of_a_connection_is_within_half_a_minute() -> None:
    from sqlalchemy import make_url

    from rollup_assets.iceberg.postgres import STATEMENT_TIMEOUT, _connect_arguments

    arguments = _connect_arguments(make_url("postgresql+psycopg://u@h/db"))
    assert arguments["connect_timeout"] <= 15
    assert STATEMENT_TIMEOUT <= 30


def test_sessions_have_the_timeouts_and_a_name(pipeline: Pipeline) -> None:
    from sqlalchemy import text

    from rollup_assets.iceberg.postgres import engine

    names = ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "tcp_keepalives_idle", "application_name"]
    question = text("select current_setting('" + "'), current_setting('".join(names) + "')")
    with engine(pipeline.settings).connect() as connection:
        found = dict(zip(names, connection.execute(question).one(), strict=True))
    assert found == {
        "statement_timeout": "30s",
        "lock_timeout": "10s",
        "idle_in_transaction_session_timeout": "1min",
        "tcp_keepalives_idle": "30",
        "application_name": f"rollups {socket.gethostname()[:40]} {os.getpid()}",
    }
    own = {"catalog": f"{pipeline.settings.catalog}?application_name=mine&options=-cstatement_timeout%3D5s", "catalog_password": PASSWORD}
    with engine(load_settings(**own)).connect() as connection:
        assert tuple(connection.execute(question).one()) == ("5s", "10s", "1min", "30", "mine")


def test_a_role_that_may_only_read_can_open_the_catalog_but_not_publish(
    tmp_path: Path, fresh_catalog: FreshCatalog, postgres_server: PostgresServer
) -> None:
    good = fresh_catalog()
    pipeline = pipeline_in(tmp_path, **good)
    database = role_of(pipeline.settings)
    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch, value=1)
    publish(pipeline, batch)
    stage_rollups(pipeline, batch, value=2)
    postgres_server.create_role(f"{database}_reader", PASSWORD)
    uri = postgres_server.uri(database, f"{database}_reader")
    reading = pipeline_in(tmp_path, catalog=uri, catalog_password=PASSWORD)
    assert "this user may not read the catalog's tables; run `rollups catalog init`" in fault(reading.settings)
    for table in ("iceberg_tables", "iceberg_namespace_properties"):
        postgres_server.execute(f"grant select on {table} to {database}_reader", database=database)
    assert value_by_batch(reading) == {batch.key: {1}}
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CatalogError, match="this user may not write the catalog's tables; run `rollups catalog init`"):
        publish(reading, batch)
    assert sorted(tmp_path.rglob("*")) == before


def test_tables_of_the_older_schema_are_refused(tmp_path: Path, fresh_catalog: FreshCatalog, postgres_server: PostgresServer) -> None:
    settings = load_settings(home=str(tmp_path), **fresh_catalog())
    postgres_server.execute("alter table iceberg_tables drop column iceberg_type", database=role_of(settings))
    assert "are of the older schema V0, without iceberg_type; run `rollups catalog init`" in fault(settings)


@pytest.mark.scenario("P4")
def test_a_server_that_restarts_amid_a_publish_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection is cut, the lock's too; nothing is lost, and a server that stays away ends it with a sentence."""
    from deploy.servers.postgres import postgres
    from rollup_assets.iceberg import publish as module
    from rollup_assets.iceberg.database import initialize

    with postgres(tmp_path / "server") as server:
        server.create_role("runs", PASSWORD)
        server.create_database("catalog")
        given = {"catalog": server.uri("catalog", "runs"), "catalog_password": PASSWORD}
        initialize(load_settings(**given, catalog_admin_password=server.superuser_password), admin=server.superuser)
        pipeline = pipeline_in(tmp_path / "home", **given)
        (batch,) = batches_from(pipeline, 1)
        stage_rollups(pipeline, batch, value=1)
        publish(pipeline, batch)
        stage_rollups(pipeline, batch, value=2)
        original = module._plan

        def restarting(*arguments: Any) -> Any:
            plan = original(*arguments)
            server.stop()
            server.start()
            monkeypatch.setattr(module, "_plan", original)
            return plan

        monkeypatch.setattr(module, "_plan", restarting)
        assert not publish(pipeline, batch).unchanged
        assert value_by_batch(pipeline) == {batch.key: {2}}
        server.stop()
        with pytest.raises(RollupError, match=r"ROLLUP_CATALOG=.* cannot be reached .*; start the server"):
            publish(pipeline, batch)
        server.start()
        assert value_by_batch(pipeline) == {batch.key: {2}}


def test_no_password_is_in_what_pyiceberg_knows(pipeline: Pipeline) -> None:
    """Properties travel with every table and file IO; the engine's URL is in messages."""
    ensure_table(pipeline.settings)
    catalog = load_catalog(pipeline.settings)
    table = catalog.load_table(pipeline.settings.table)
    engine = catalog.engine  # type: ignore[attr-defined]
    for thing in (
        catalog.properties,
        table.io.properties,
        table.properties,
        repr(catalog),
        repr(engine),
        engine.url.render_as_string(False),
    ):
        assert PASSWORD not in str(thing)
    assert catalog.properties["uri"] == pipeline.settings.catalog
