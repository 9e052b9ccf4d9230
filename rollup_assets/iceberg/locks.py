"""The lock that publishers of one table queue at. What they do under it stays out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rollup_assets.errors import LockTimeoutError
from rollup_assets.iceberg.catalog import sqlite_database
from rollup_assets.settings import Settings

LOCK_TIMEOUT = 600.0
"""Seconds to wait for other publishers: a publish takes about a second, a merge of manifests a few."""


def lock_file(settings: Settings) -> Path | None:
    """The file that publishers of this table lock, beside the SQLite database; None for catalogs on servers."""
    database = sqlite_database(settings)
    return None if database is None else database.with_name(f"{database.name}.{settings.table}.lock")


@contextlib.contextmanager
def table_lock(settings: Settings, timeout: float | None = None) -> Iterator[None]:
    """Hold the table's lock: publishers queue here instead of redoing each other's conflicting commits.

    Correctness does not rest on it; the catalog's compare-and-swap and serializable validation give that, on any catalog. The
    operating system releases the lock when the process dies.

    Raises:
        LockTimeoutError: somebody else held it for ``timeout`` seconds (:data:`LOCK_TIMEOUT` unless given); names the file.
    """
    from filelock import FileLock, Timeout

    path = lock_file(settings)
    if path is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = LOCK_TIMEOUT if timeout is None else timeout
    lock = FileLock(path, timeout=seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise LockTimeoutError(
            f"another process has held {path} for {seconds:g} s, so {settings.table} could not be published to; wait for it to end, or see "
            f"which it is with `fuser {path}`, and run the same command again"
        ) from error
    try:
        yield
    finally:
        lock.release()
