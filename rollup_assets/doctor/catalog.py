"""The catalog, the table in it and the table's lock."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from rollup_assets.doctor.findings import Chain, Check, Found, failed, skipped, warning
from rollup_assets.doctor.machine import existing, is_this_machine
from rollup_assets.errors import LockTimeoutError
from rollup_assets.iceberg.catalog import is_missing, is_postgres, is_rest, open_catalog, sqlite_database
from rollup_assets.iceberg.faults import shown
from rollup_assets.iceberg.locks import lock_file, table_lock
from rollup_assets.iceberg.table import check_table, load_table
from rollup_assets.settings import Settings
from rollup_assets.units import count_text

LOCK_SECONDS = 0.5


def chains() -> list[Chain]:
    """Lock and table need the catalog; a lock that is held is only a warning, so that the table is checked all the same."""
    return [
        Chain((Check("catalog", catalog, "ROLLUP_CATALOG"), Check("lock", lock, "ROLLUP_CATALOG"), Check("table", table, "ROLLUP_CATALOG")))
    ]


def catalog(settings: Settings) -> Found:
    """Whether the catalog can be opened, is initialized, and lets us write."""
    database = sqlite_database(settings)
    if database is not None and is_missing(settings):
        # Do not open it: that would make it.
        nearest = existing(database)
        if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            return failed(
                f"{shown(settings)} cannot be made in {nearest}", "set ROLLUP_CATALOG or ROLLUP_HOME to where this user may write"
            )
        return Found(f"{database} is not there yet; the first run makes it")
    with open_catalog(settings, writing=True) as opened:
        if is_rest(settings):
            opened.list_namespaces()
            return Found(f"{shown(settings)} answers; only the server knows what this client may write")
    if is_postgres(settings):
        return _postgres(settings)
    return Found(f"{shown(settings)} can be opened")


def _postgres(settings: Settings) -> Found:
    from rollup_assets.iceberg.postgres import session

    here = session(settings)
    found = f"{shown(settings)}: PostgreSQL {here.version}, initialized, {here.user} may read and write"
    if here.superuser:
        return warning(
            f"{found}, and anything else: it is a superuser",
            "name a separate role for runs, to which `rollups catalog init` grants the minimum",
        )
    if here.tls is None:
        if is_this_machine(urlsplit(settings.catalog).hostname or ""):
            return Found(f"{found}; no TLS, and none needed on this machine")
        return warning(
            f"{found}; without TLS: the password and everything else can be read in transit", "set sslmode=verify-full in ROLLUP_CATALOG"
        )
    if "sslmode=verify-full" not in urlsplit(settings.catalog).query:
        return warning(f"{found}; {here.tls}, but the server's identity is not verified", "set sslmode=verify-full in ROLLUP_CATALOG")
    return Found(f"{found}; {here.tls}, verified")


def lock(settings: Settings) -> Found:
    """Whether the table's lock can be taken at once; it is released again."""
    file = lock_file(settings)
    if file is None and not is_postgres(settings):
        return skipped("this catalog has no lock: concurrent publishers retry their commits")
    if file is not None and not file.exists():
        return Found("nobody holds it")
    try:
        with table_lock(settings, LOCK_SECONDS):
            return Found("nobody holds it")
    except LockTimeoutError as error:
        problem, _, remedy = str(error).rpartition("; ")
        return warning(problem, remedy)


def table(settings: Settings) -> Found:
    """Compare the table with the settings."""
    found = None
    if not is_missing(settings):
        with open_catalog(settings) as opened:
            found = load_table(opened, settings)
    if found is None:
        return Found(f"{settings.table} is not there yet; the first publish makes it")
    check_table(found, settings)
    return Found(f"{settings.table} is as the settings say; {count_text(len(found.snapshots()), 'snapshot')}")
