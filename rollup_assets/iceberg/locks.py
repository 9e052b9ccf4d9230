"""The lock that publishers of one table queue for. What they do while they hold it is in other modules.

Correctness does not rest on it: the catalog's compare-and-swap and serializable validation give that, on any catalog. It spares
publishers the work of redoing each other's conflicting commits. An embedded catalog has a lock file beside it, PostgreSQL an advisory
lock; a catalog without either, such as a REST catalog, has none. A process that dies releases it, however it dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from rollup_assets.errors import LockTimeoutError
from rollup_assets.iceberg.catalog import is_postgres, make_room, sqlite_database
from rollup_assets.iceberg.faults import catalog_faults, unusable_place
from rollup_assets.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Connection

LOCK_TIMEOUT = 600.0
"""Seconds to wait for other publishers: a publish takes about a second, a merge of manifests a few."""

_LOCK_NOT_AVAILABLE = "55P03"
_GRANTED = """
from pg_locks where locktype = 'advisory' and granted and objsubid = 1 and classid::bigint = :high and objid::bigint = :low
and database = (select oid from pg_database where datname = current_database())
"""

_log = logging.getLogger(__name__)


class TableLock:
    """A lock that cannot be lost while this process lives; or none at all, for a catalog that has no lock."""

    def is_held(self) -> bool:
        """Whether it is certain that the lock is still ours."""
        return True

    def ensure_held(self) -> None:
        """Take the lock again if it was lost.

        Raises:
            LockTimeoutError: another publisher took it meanwhile and kept it.
            CatalogError: the catalog cannot be reached.
        """


@contextlib.contextmanager
def table_lock(settings: Settings, timeout: float | None = None) -> Iterator[TableLock]:
    """Hold the table's lock.

    Raises:
        LockTimeoutError: another publisher held it for ``timeout`` seconds (:data:`LOCK_TIMEOUT` unless given); the message says who.
        CatalogError: the lock is kept by a server that cannot be reached, or in a file that this user may not write.
    """
    seconds = LOCK_TIMEOUT if timeout is None else timeout
    if is_postgres(settings):
        lock = AdvisoryLock(settings, seconds)
        lock.acquire()
        try:
            yield lock
        finally:
            lock.release()
    elif (path := lock_file(settings)) is not None:
        with _held_file(settings, path, seconds):
            yield TableLock()
    else:
        yield TableLock()


def lock_file(settings: Settings) -> Path | None:
    """The file that publishers of this table lock, beside the SQLite database; None for catalogs on servers."""
    database = sqlite_database(settings)
    return None if database is None else database.with_name(f"{database.name}.{settings.table}.lock")


@contextlib.contextmanager
def _held_file(settings: Settings, path: Path, seconds: float) -> Iterator[None]:
    from filelock import FileLock, Timeout

    make_room(settings)
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise LockTimeoutError(
            f"another process has held the lock {path} for {seconds:g} s, so {settings.table} could not be published to; wait for that "
            f"process to end, or find it with `fuser {path}`, and run the same command again"
        ) from error
    except OSError as error:
        raise unusable_place(settings, error) from error
    try:
        yield
    finally:
        lock.release()


class AdvisoryLock(TableLock):
    """PostgreSQL's advisory lock of a table, on a connection of its own: it is ours for as long as that connection lives.

    A connection pooler that changes sessions between statements (PgBouncer's transaction mode) breaks it; :meth:`is_held` notices
    that.
    """

    def __init__(self, settings: Settings, timeout: float) -> None:
        self._settings = settings
        self._timeout = timeout
        self._connection: Connection | None = None
        name = f"{settings.catalog_name}/{settings.table}"
        self.key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
        """The same in every process and release that publishes to this table."""

    def acquire(self) -> None:
        """Wait for the lock, at most for the timeout.

        Raises:
            LockTimeoutError: names the session that holds it.
            CatalogError: the server cannot be reached.
        """
        from sqlalchemy import text
        from sqlalchemy.exc import SQLAlchemyError

        from rollup_assets.iceberg.postgres import answers_within, engine

        with catalog_faults(self._settings):
            self._connection = engine(self._settings).connect().execution_options(isolation_level="AUTOCOMMIT")
            try:
                # A server may end idle sessions, and this one is idle while files are read. Older servers lack the setting.
                timeouts = {"lock_timeout": max(1, round(self._timeout * 1000)), "statement_timeout": 0, "idle_session_timeout": 0}
                values = ", ".join(f"('{name}', '{milliseconds}')" for name, milliseconds in timeouts.items())
                self._connection.execute(
                    text(
                        f"select set_config(name, value, false) from pg_settings join (values {values}) as wanted(name, value) using (name)"
                    )
                )
                with answers_within(self._connection, self._timeout):
                    self._connection.execute(text("select pg_advisory_lock(:key)"), {"key": self.key})
            except SQLAlchemyError as error:
                refused = getattr(getattr(error, "orig", None), "sqlstate", None) == _LOCK_NOT_AVAILABLE
                holder = self._holder() if refused else ""
                self.release()
                if not refused:
                    raise
                raise LockTimeoutError(
                    f"another publisher has held the lock of {self._settings.table} for {self._timeout:g} s{holder}; "
                    "wait for it to end, or end it, and run the same command again"
                ) from error
            except BaseException:
                self.release()
                raise

    def is_held(self) -> bool:
        """Ask the server; False in case of doubt."""
        from sqlalchemy import text
        from sqlalchemy.exc import SQLAlchemyError

        if self._connection is None:
            return False
        try:
            return self._connection.execute(text(f"select 1 {_GRANTED} and pid = pg_backend_pid()"), self._halves()).first() is not None
        except SQLAlchemyError:
            return False

    def ensure_held(self) -> None:
        """Take the lock again if it was lost; raises as :meth:`acquire`."""
        if not self.is_held():
            _log.warning("the lock of %s was lost; waiting for it again", self._settings.table)
            self.release()
            self.acquire()

    def release(self) -> None:
        """Release the lock; nothing happens if it is not held."""
        from sqlalchemy.exc import SQLAlchemyError

        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            connection.exec_driver_sql("select pg_advisory_unlock_all(); reset all")
        except SQLAlchemyError:
            # The lock ends with its session anyway.
            connection.invalidate()
        finally:
            connection.close()

    def _holder(self) -> str:
        """The lock's holder, in words."""
        from sqlalchemy import text

        assert self._connection is not None
        question = f"""
            select pid, application_name, coalesce(host(client_addr), 'the server itself'), pg_stat_activity.backend_start
            from pg_stat_activity join (select pid {_GRANTED}) as held using (pid)
        """
        found = self._connection.execute(text(question), self._halves()).first()
        if found is None:
            return ""
        pid, name, client, start = found
        since = "" if start is None else f", connected since {start:%Y-%m-%d %H:%M:%S}"
        return f": {name or 'a session without a name'} from {client}{since} (end it with `select pg_terminate_backend({pid})`)"

    def _halves(self) -> dict[str, int]:
        """The key as pg_locks shows it."""
        return {"high": self.key >> 32 & 0xFFFFFFFF, "low": self.key & 0xFFFFFFFF}
