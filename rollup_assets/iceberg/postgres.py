"""A PostgreSQL catalog: the process's connections to it, and PyIceberg's catalog on them.

Passwords go from the settings to the driver and nowhere else. No statement is waited for without bound: the server's timeouts, and the
system's of dead connections, know nothing of an answer that got lost between the two. Making the database's tables stays out
(:mod:`rollup_assets.iceberg.database`), and so does the lock (:mod:`rollup_assets.iceberg.locks`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rollup_assets.errors import CatalogError
from rollup_assets.iceberg.faults import catalog_faults, shown
from rollup_assets.settings import Settings

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from sqlalchemy import URL, Connection, Engine

STATEMENT_TIMEOUT = 30.0
"""Seconds; the catalog's statements touch one row."""

ANSWER_TIMEOUT = 60.0
"""Seconds that a connection waits for an answer before it gives up and closes: twice what the server allows a statement."""

_CONNECT_SECONDS = 10
# On both sides, so that a dead peer is noticed within a minute.
_KEEPALIVE_IDLE, _KEEPALIVE_INTERVAL, _KEEPALIVE_COUNT = 30, 10, 3
_LOCK_SECONDS = 10
_IDLE_IN_TRANSACTION_SECONDS = 60
# A run publishes one batch at a time, with one connection for the catalog and one for the lock; more only if several threads publish.
_POOL_SIZE = 2
_POOL_OVERFLOW = 8
_POOL_SECONDS = 30
_RECYCLE_SECONDS = 1800

_PROBE = """
select tables is not null and namespaces is not null,
       exists (select from pg_attribute where attrelid = tables and attname = 'iceberg_type' and not attisdropped),
       coalesce(has_table_privilege(tables, 'select') and has_table_privilege(namespaces, 'select'), false),
       coalesce(has_table_privilege(tables, 'insert') and has_any_column_privilege(tables, 'update')
                and has_table_privilege(namespaces, 'insert'), false)
from (select to_regclass('iceberg_tables') as tables, to_regclass('iceberg_namespace_properties') as namespaces) as found
"""

_SESSION = """
select current_user, current_setting('server_version'), rolsuper, (select version from pg_stat_ssl where pid = pg_backend_pid() and ssl)
from pg_roles where rolname = current_user
"""

_engines: dict[tuple[object, ...], Engine] = {}
_engines_lock = threading.Lock()


def postgres_catalog(settings: Settings, properties: dict[str, Any], *, writing: bool) -> Catalog:
    """PyIceberg's catalog on this process's connections, after a check that its tables exist.

    Raises:
        CatalogError: the tables are missing, of an older form, or we may not read them, or not write them.
    """
    from rollup_assets.iceberg.sql_catalog import SharingSqlCatalog

    connections = engine(settings)
    _check(settings, connections, writing=writing)
    # The constructor makes an engine from the URI alone, without a pool's settings and with the password in the properties. So it
    # gets a throwaway database first, and then our engine.
    catalog = SharingSqlCatalog(settings.catalog_name, **{**properties, "uri": "sqlite://", "init_catalog_tables": "false"})
    catalog.engine.dispose()
    catalog.engine = connections
    catalog.properties["uri"] = properties["uri"]
    return catalog


def engine(settings: Settings) -> Engine:
    """The process's connections to the catalog's database, made when they are first used.

    Raises:
        CatalogError: psycopg is not installed, or the URI is malformed.
    """
    password = settings.catalog_password
    key = (settings.catalog, None if password is None else password.get_secret_value(), settings.catalog_password_file)
    with _engines_lock:
        if key not in _engines:
            _engines[key] = create_engine(settings)
        return _engines[key]


def create_engine(settings: Settings, *, user: str | None = None, admin: bool = False) -> Engine:
    """Connections to the catalog's database, as another user if one is given; ``admin``: with the admin's password."""
    import sqlalchemy
    from sqlalchemy import event
    from sqlalchemy.exc import ArgumentError

    try:
        url = sqlalchemy.make_url(settings.catalog)
    except ArgumentError:
        raise CatalogError(f"{shown(settings)} is not a URI; write postgresql+psycopg://user@host:5432/database") from None
    if user is not None:
        url = url.set(username=user)
    try:
        made = sqlalchemy.create_engine(
            url,
            connect_args=_connect_arguments(url),
            pool_size=_POOL_SIZE,
            max_overflow=_POOL_OVERFLOW,
            pool_timeout=_POOL_SECONDS,
            pool_recycle=_RECYCLE_SECONDS,
            pool_pre_ping=True,
            # Otherwise SQLAlchemy would look up the hstore types on each connection.
            use_native_hstore=False,
        )
    except ImportError as error:
        raise CatalogError(
            f"{shown(settings)} needs the driver psycopg ({error}); install it with `pip install 'rollup_assets[postgres]'`"
        ) from error

    def connect(_dialect: Any, _record: Any, arguments: Any, parameters: dict[str, Any]) -> Any:
        password = settings.read_catalog_password(admin=admin)
        if password is not None:
            parameters["password"] = password
        return _connection_class().connect(*arguments, **parameters)

    event.listen(made, "do_connect", connect)
    return made


@functools.cache
def _connection_class() -> Any:
    import psycopg

    class AnsweredConnection(psycopg.Connection[Any]):
        """A connection that closes when an answer does not come."""

        def __init__(self, *arguments: Any, **named: Any) -> None:
            super().__init__(*arguments, **named)
            self.answer_within = ANSWER_TIMEOUT

        def wait(self, gen: Any, *arguments: Any, **named: Any) -> Any:
            return super().wait(self._bounded(gen), *arguments, **named)

        def _bounded(self, exchange: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
            """The driver's exchange with the server; every tenth of a second it is resumed and told whether something came."""
            deadline = time.monotonic() + self.answer_within
            ready = None
            while True:
                try:
                    wanted = exchange.send(ready)
                except StopIteration as end:
                    return end.value
                ready = yield wanted
                if not ready and time.monotonic() > deadline:
                    self.close()
                    raise psycopg.OperationalError(f"no answer came within {self.answer_within:g} s, and the connection was closed")

    return AnsweredConnection


@contextlib.contextmanager
def answers_within(connection: Connection, seconds: float) -> Iterator[None]:
    """Statements within the block may take ``seconds`` on top of the usual time, for those that wait for other sessions."""
    driver: Any = connection.connection.driver_connection
    usual = driver.answer_within
    driver.answer_within = seconds + usual
    try:
        yield
    finally:
        driver.answer_within = usual


@dataclass(frozen=True, slots=True)
class Session:
    """Who talks to which server, and how."""

    user: str
    version: str
    superuser: bool
    tls: str | None
    """Protocol version; None: not encrypted."""


def session(settings: Settings) -> Session:
    """What the server says about a connection of this process.

    Raises:
        CatalogError: it cannot be reached, or refuses us.
    """
    from sqlalchemy import text

    with catalog_faults(settings), engine(settings).connect() as connection:
        found = connection.execute(text(_SESSION)).one()
    return Session(*found)


def _connect_arguments(url: URL) -> dict[str, Any]:
    """Timeouts, keepalives and our name; what the URI says about them takes precedence."""
    ours: dict[str, Any] = {
        "connect_timeout": _CONNECT_SECONDS,
        "keepalives": 1,
        "keepalives_idle": _KEEPALIVE_IDLE,
        "keepalives_interval": _KEEPALIVE_INTERVAL,
        "keepalives_count": _KEEPALIVE_COUNT,
        "tcp_user_timeout": 30_000,
        "application_name": f"rollups {socket.gethostname()[:40]} {os.getpid()}",
    }
    timeouts = {
        "statement_timeout": STATEMENT_TIMEOUT,
        "lock_timeout": _LOCK_SECONDS,
        "idle_in_transaction_session_timeout": _IDLE_IN_TRANSACTION_SECONDS,
    }
    # Without keepalives, a machine that loses power or its network would hold the table's lock for two hours.
    keepalives = {
        "tcp_keepalives_idle": _KEEPALIVE_IDLE,
        "tcp_keepalives_interval": _KEEPALIVE_INTERVAL,
        "tcp_keepalives_count": _KEEPALIVE_COUNT,
    }
    options = [f"-c {name}={int(seconds * 1000)}" for name, seconds in timeouts.items()]
    options += [f"-c {name}={value}" for name, value in keepalives.items()]
    theirs = url.query.get("options", ())
    options += [theirs] if isinstance(theirs, str) else theirs
    return {name: value for name, value in ours.items() if name not in url.query} | {"options": " ".join(options)}


def _check(settings: Settings, connections: Engine, *, writing: bool) -> None:
    from sqlalchemy import text

    with connections.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        exist, have_types, may_read, may_write = connection.execute(text(_PROBE)).one()
    command = "`rollups catalog init`"
    if not exist:
        raise CatalogError(f"{shown(settings)}: schema not initialized, there are no Iceberg tables in it; run {command}")
    if not have_types:
        raise CatalogError(f"{shown(settings)}: its tables are of the older schema V0, without iceberg_type; run {command}, which adds it")
    if not may_read or (writing and not may_write):
        raise CatalogError(
            f"{shown(settings)}: this user may not {'write' if may_read else 'read'} the catalog's tables; "
            f"run {command}, which grants it what it needs, or correct the user in ROLLUP_CATALOG"
        )


def _forget_engines() -> None:
    """A child process must not use its parent's connections, nor close them."""
    for made in _engines.values():
        made.dispose(close=False)
    _engines.clear()


os.register_at_fork(after_in_child=_forget_engines)
