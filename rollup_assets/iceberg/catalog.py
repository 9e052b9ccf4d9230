"""The catalog and the table in it: opened, made where it is missing, compared with the settings, and locked.

Which catalog it is follows from ``ROLLUP_CATALOG`` alone: an SQLAlchemy URL (SQLite, PostgreSQL) or the URL of a REST catalog. What
is written to the table stays out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rollup_assets.errors import LockTimeoutError, TableMismatchError
from rollup_assets.iceberg.schema import FORMAT_VERSION, iceberg_schema, partition_spec, table_properties
from rollup_assets.settings import Settings, format_duration
from rollup_assets.storage.filesystems import Place

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

SHARDS_PROPERTY = "rollup.shards"
BATCH_PROPERTY = "rollup.batch"
VALUE_TYPE_PROPERTY = "rollup.value-type"

LOCK_TIMEOUT = 600.0
"""Seconds to wait for other publishers: a publish takes about a second, a merge of manifests a few."""
_SQLITE_PREFIX = "sqlite:///"
_SQLITE_BUSY_SECONDS = 60
_ATTEMPTS = 5


def table_location(settings: Settings) -> str:
    """Where the table lies, as Iceberg writes it: an absolute path or a URI."""
    return "/".join((settings.warehouse.rstrip("/"), *settings.table.split(".")))


def data_location(settings: Settings) -> Place:
    """The folder of the table's data files; needs neither the catalog nor PyIceberg."""
    return Place.parse(table_location(settings)) / "data"


def catalog_properties(settings: Settings) -> dict[str, str]:
    """What PyIceberg needs to open the catalog; it tells SQL and REST apart by the URL itself."""
    uri = settings.catalog
    if uri.startswith(_SQLITE_PREFIX) and "timeout=" not in uri:
        # Python's default of 5 s ends in "database is locked" when several processes start on a slow disk.
        uri += f"{'&' if '?' in uri else '?'}timeout={_SQLITE_BUSY_SECONDS}"
    return {"uri": uri, "warehouse": settings.warehouse}


@contextlib.contextmanager
def open_catalog(settings: Settings) -> Iterator[Catalog]:
    """The catalog, closed at the end."""
    catalog = load_catalog(settings)
    try:
        yield catalog
    finally:
        catalog.close()


def load_catalog(settings: Settings) -> Catalog:
    """The catalog; an embedded one is made where it is missing."""
    from pyiceberg import catalog as pyiceberg_catalog
    from sqlalchemy.exc import DBAPIError

    if (database := _sqlite_database(settings)) is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return pyiceberg_catalog.load_catalog(settings.catalog_name, **catalog_properties(settings))
        except DBAPIError:
            # Two processes that make the catalog's tables at once: the second finds them half made, and whole when it looks again.
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def load_table(catalog: Catalog, settings: Settings) -> Table | None:
    """The table as it is now; None if there is none."""
    from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

    try:
        return catalog.load_table(settings.table)
    except (NoSuchTableError, NoSuchNamespaceError):
        return None


def ensure_table(settings: Settings, catalog: Catalog | None = None) -> Table:
    """The table, made if it is missing. Safe when several processes do it at once: one makes it, the others find it.

    Raises:
        TableMismatchError: the table that is there contradicts the settings; the message says in what and what to do.
    """
    if catalog is None:
        catalog = load_catalog(settings)
    table = load_table(catalog, settings) or _create_table(catalog, settings)
    check_table(table, settings)
    return table


def _create_table(catalog: Catalog, settings: Settings) -> Table:
    from pyiceberg.exceptions import NamespaceAlreadyExistsError, TableAlreadyExistsError
    from sqlalchemy.exc import IntegrityError

    namespace = settings.table.rpartition(".")[0]
    # IntegrityError: the SQL catalog lets the database's own error through where two make the same namespace.
    with contextlib.suppress(NamespaceAlreadyExistsError, IntegrityError):
        catalog.create_namespace_if_not_exists(namespace)
    with contextlib.suppress(TableAlreadyExistsError):
        return catalog.create_table(
            settings.table,
            schema=iceberg_schema(settings.value_type),
            location=table_location(settings),
            partition_spec=partition_spec(),
            properties=table_properties(settings.value_type) | _own_properties(settings),
        )
    return catalog.load_table(settings.table)


def _own_properties(settings: Settings) -> dict[str, str]:
    return {
        SHARDS_PROPERTY: str(settings.shards),
        BATCH_PROPERTY: format_duration(settings.batch),
        VALUE_TYPE_PROPERTY: settings.value_type,
    }


def check_table(table: Table, settings: Settings) -> None:
    """Compare an existing table with the settings.

    Columns that others have added are fine as long as they are optional.

    Raises:
        TableMismatchError: values, columns, partition spec, shards, batch, location or the properties that publishing rests on differ.
    """
    problem = (
        _property_problem(table, settings) or _schema_problem(table, settings) or _layout_problem(table, settings) or _commit_problem(table)
    )
    if problem:
        raise TableMismatchError(f"table {settings.table} in {_without_password(settings.catalog)}: {problem}")


def _property_problem(table: Table, settings: Settings) -> str | None:
    variables = {SHARDS_PROPERTY: "ROLLUP_SHARDS", BATCH_PROPERTY: "ROLLUP_BATCH", VALUE_TYPE_PROPERTY: "ROLLUP_VALUE_TYPE"}
    for name, wanted in _own_properties(settings).items():
        found = table.properties.get(name)
        if found is None:
            return f"has no property {name}, so it was not made by this pipeline; set ROLLUP_TABLE to another name, or drop the table"
        if found != wanted:
            return (
                f"was made with {variables[name]}={found}, the settings say {wanted}; "
                f"set {variables[name]}={found}, or ROLLUP_TABLE to a new name, which is then filled by a backfill"
            )
    return None


def _schema_problem(table: Table, settings: Settings) -> str | None:
    mend = "set ROLLUP_TABLE to a new name and backfill it, or undo the change of the table's schema"
    wanted = {field.field_id: field for field in iceberg_schema(settings.value_type).fields}
    found = {field.field_id: field for field in table.schema().fields}
    for number, field in wanted.items():
        other = found.get(number)
        if other is None:
            return f"has no column {field.name} (field id {number}); {mend}"
        if (other.name, other.field_type, other.required) != (field.name, field.field_type, field.required):
            need = "required" if field.required else "optional"
            has = "required" if other.required else "optional"
            return f"has the column {other.name} ({has} {other.field_type}) instead of {field.name} ({need} {field.field_type}); {mend}"
    for number in found.keys() - wanted.keys():
        if found[number].required:
            return f"has an additional required column {found[number].name}, which this pipeline does not fill; make it optional or drop it"
    return None


def _layout_problem(table: Table, settings: Settings) -> str | None:
    if table.metadata.format_version < FORMAT_VERSION:
        return f"has format version {table.metadata.format_version}; set its property format-version to {FORMAT_VERSION}"
    fields = [(field.source_id, str(field.transform), field.name) for field in table.spec().fields]
    if fields != [(field.source_id, str(field.transform), field.name) for field in partition_spec().fields]:
        return (
            f"is partitioned by {table.spec().fields}, not by identity(resolution), day(logical_timestamp); restore that partition spec, "
            "or set ROLLUP_TABLE to a new name and backfill it"
        )
    if Place.parse(_as_location(table.location())).path != Place.parse(table_location(settings)).path:
        return (
            f"lies in {table.location()}, the settings say {table_location(settings)}; set ROLLUP_WAREHOUSE to where it lies, "
            "or ROLLUP_TABLE to a new name"
        )
    return None


def _commit_problem(table: Table) -> str | None:
    """Without these two the guarantees of publishing do not hold: `snapshot` isolation produced duplicates under concurrent publishers."""
    for name in ("write.delete.isolation-level", "write.update.isolation-level"):
        level = table.properties.get(name, "serializable")
        if level != "serializable":
            return f"has {name}={level}, with which concurrent publishers duplicate rows; set it to serializable"
    retries = table.properties.get("commit.retry.num-retries", "4")
    if not retries.isdecimal() or int(retries) == 0:
        return f"has commit.retry.num-retries={retries}, so that a concurrent commit would fail a publish; set it to 10"
    return None


def _as_location(location: str) -> str:
    # Hadoop writes local files as file:/path.
    return urlsplit(location).path if location.startswith("file:") else location


def _without_password(uri: str) -> str:
    parts = urlsplit(uri)
    return uri.replace(f":{parts.password}@", ":***@") if parts.password else uri


def _sqlite_database(settings: Settings) -> Path | None:
    if not settings.catalog.startswith(_SQLITE_PREFIX) or ":memory:" in settings.catalog:
        return None
    return Path(settings.catalog.removeprefix(_SQLITE_PREFIX).partition("?")[0])


def lock_file(settings: Settings) -> Path | None:
    """The file that publishers of this table lock, beside the SQLite database; None for catalogs on servers."""
    database = _sqlite_database(settings)
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
