"""The table: where it lies, making it if it is missing, and comparing it with the settings.

What is written to it stays out, and so does which catalog it is in.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from rollup_assets.errors import TableMismatchError
from rollup_assets.iceberg.catalog import is_missing, is_postgres, load_catalog, make_room, open_catalog, sqlite_database
from rollup_assets.iceberg.commit_times import clock_is_behind
from rollup_assets.iceberg.faults import shown
from rollup_assets.iceberg.reading import live_files
from rollup_assets.iceberg.schema import FORMAT_VERSION, ValueType, iceberg_schema, partition_spec, table_properties
from rollup_assets.settings import Settings
from rollup_assets.storage.filesystems import Place, path_of
from rollup_assets.storage.storage_errors import explains_storage_errors
from rollup_assets.units import format_duration

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table

SHARDS_PROPERTY = "rollup.shards"
BATCH_LENGTH_PROPERTY = "rollup.batch"
VALUE_TYPE_PROPERTY = "rollup.value-type"
RESOLUTIONS_PROPERTY = "rollup.resolutions"

SETTINGS_OF_PROPERTIES = {
    SHARDS_PROPERTY: "ROLLUP_SHARDS",
    BATCH_LENGTH_PROPERTY: "ROLLUP_BATCH",
    VALUE_TYPE_PROPERTY: "ROLLUP_VALUE_TYPE",
    RESOLUTIONS_PROPERTY: "ROLLUP_RESOLUTIONS",
}

_log = logging.getLogger(__name__)


def table_location(settings: Settings) -> str:
    """The table's location as Iceberg writes it: an absolute path or a URI."""
    return "/".join((settings.warehouse.rstrip("/"), *settings.table.split(".")))


def data_location(settings: Settings) -> Place:
    """The folder of the table's data files; needs neither the catalog nor PyIceberg."""
    return Place.parse(table_location(settings), settings.s3) / "data"


@explains_storage_errors
def load_table(catalog: Catalog, settings: Settings) -> Table | None:
    """The table as it is now; None if there is none.

    Raises:
        StorageError: its metadata in the warehouse cannot be read.
    """
    from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

    try:
        return catalog.load_table(settings.table)
    except (NoSuchTableError, NoSuchNamespaceError):
        return None
    except OSError:
        # pyarrow reports wrong credentials as a missing permission; this request to the store tells one from the other.
        Place.parse(table_location(settings), settings.s3).exists()
        raise


def load_readable_table(catalog: Catalog, settings: Settings) -> Table | None:
    """:func:`load_table` for code that reads rows by column names. Shards, batches and value type are the table's, not the settings'.

    Raises:
        StorageError: its metadata in the warehouse cannot be read.
        TableMismatchError: another engine has changed its columns.
    """
    table = load_table(catalog, settings)
    if table is not None:
        is_double = table.properties.get(VALUE_TYPE_PROPERTY, settings.value_type) == "double"
        _refuse(_schema_problem(table, "double" if is_double else "long"), settings)
    return table


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


def prepare_table(settings: Settings) -> None:
    """Make sure of the catalog and the table before files are written for it, where the catalog is on a server.

    This way a fault shows at once, before anything is written; and a server that takes folders of its warehouse for namespaces, such as
    SeaweedFS, finds the table before the files. An embedded catalog is always reachable, and is left for the publish.

    Raises:
        CatalogError: it cannot be used; see :func:`rollup_assets.iceberg.catalog.open_catalog`.
        TableMismatchError: the table that is there contradicts the settings.
    """
    if sqlite_database(settings) is not None:
        return
    with open_catalog(settings, writing=True) as catalog:
        ensure_table(settings, catalog)


def refuse_other_settings(settings: Settings) -> None:
    """Before anything is staged, check that the table of an embedded catalog, if there is one, belongs to these settings.

    Raises:
        TableMismatchError: it belongs to other settings. (For other catalogs :func:`prepare_table` finds that out.)
        CatalogError: its place cannot be used.
    """
    if sqlite_database(settings) is None:
        return
    make_room(settings)
    if is_missing(settings):
        return
    with open_catalog(settings) as catalog:
        table = load_table(catalog, settings)
        if table is not None:
            check_table(table, settings)


def refusal(settings: Settings) -> str | None:
    """Why the table does not accept what these settings would make; None if it does, is not there yet, or cannot be asked just now.

    For staging, which needs no catalog: what it makes with other settings could not be published, and must not replace what can be.
    """
    try:
        if sqlite_database(settings) is None or not is_missing(settings):
            with open_catalog(settings) as catalog:
                table = load_table(catalog, settings)
                if table is not None:
                    check_table(table, settings)
    except TableMismatchError as error:
        return str(error)
    except Exception as error:  # a catalog's client may raise anything
        _log.info("whether the table accepts these settings could not be asked: %s", error)
    return None


@explains_storage_errors
def _create_table(catalog: Catalog, settings: Settings) -> Table:
    from pyiceberg.exceptions import NamespaceAlreadyExistsError, TableAlreadyExistsError
    from sqlalchemy.exc import IntegrityError

    if is_postgres(settings):
        # Notice an unreachable warehouse before the catalog has a namespace whose table cannot be made. (A REST catalog writes the
        # metadata itself, to places that only it may be able to reach before the table exists.)
        data_location(settings).exists()
    namespace = settings.table.rpartition(".")[0]
    # Asked first: a server may refuse to make a namespace for a client that may only make tables in it.
    if not catalog.namespace_exists(namespace):
        # IntegrityError: the SQL catalog lets the database's own error through if two processes make the same namespace.
        with contextlib.suppress(NamespaceAlreadyExistsError, IntegrityError):
            catalog.create_namespace(namespace)
    with contextlib.suppress(TableAlreadyExistsError):
        return catalog.create_table(
            settings.table,
            schema=iceberg_schema(settings.value_type),
            location=table_location(settings),
            partition_spec=partition_spec(),
            properties=table_properties(settings.value_type) | own_properties(settings),
        )
    return catalog.load_table(settings.table)


def own_properties(settings: Settings) -> dict[str, str]:
    """The settings that a table belongs to, as its properties store them."""
    return {
        SHARDS_PROPERTY: str(settings.shards),
        BATCH_LENGTH_PROPERTY: format_duration(settings.batch),
        VALUE_TYPE_PROPERTY: settings.value_type,
        RESOLUTIONS_PROPERTY: resolutions_text(settings.resolutions),
    }


def resolutions_text(resolutions: Iterable[int]) -> str:
    """Resolutions in ms, written as in the setting: ``1m,5m,1h``."""
    return ",".join(format_duration(resolution) for resolution in resolutions)


def remember_resolutions(table: Table, settings: Settings) -> None:
    """Give a table of an earlier version, which does not say which resolutions it has, the property that lists them.

    Raises:
        TableMismatchError: its rows are of other resolutions than the settings say.
    """
    from pyiceberg.exceptions import CommitFailedException

    if RESOLUTIONS_PROPERTY in table.properties:
        return
    live = [file for file in live_files(table) if file.resolution is not None]
    found = {file.resolution for file in live if file.resolution is not None}
    firsts, lasts = [file.first for file in live if file.first is not None], [file.last for file in live if file.last is not None]
    # A resolution may have no rows yet: windows that no batch has closed have none.
    reached = (max(lasts) - min(firsts)) // 1_000 if firsts and lasts else 0
    if found - set(settings.resolutions) or any(wanted not in found and wanted <= reached for wanted in settings.resolutions):
        text = resolutions_text(sorted(found))
        raise TableMismatchError(
            f"table {settings.table} in {shown(settings)}: has rows of ROLLUP_RESOLUTIONS={text}, the settings say "
            f"{resolutions_text(settings.resolutions)}; set ROLLUP_RESOLUTIONS={text}, rebuild the table from raw data with "
            "`rollups migrate`, or set ROLLUP_TABLE to a new name, which is then filled by a backfill"
        )
    if clock_is_behind(table.metadata):
        # A commit without a snapshot is stamped by the clock; the first publish once it has caught up records them.
        return
    try:
        with table.transaction() as transaction:
            transaction.set_properties({RESOLUTIONS_PROPERTY: resolutions_text(settings.resolutions)})
    except CommitFailedException:
        _log.info("%s was changed while its resolutions were being recorded; the next publish records them", settings.table)


def check_table(table: Table, settings: Settings) -> None:
    """Compare an existing table with the settings.

    Columns that others have added are fine as long as they are optional.

    Raises:
        TableMismatchError: values, columns, partition spec, shards, resolutions, batch, location or the properties that publishing
            relies on differ.
    """
    _refuse(_property_problem(table, settings), settings)
    check_structure(table, settings)


def check_structure(table: Table, settings: Settings) -> None:
    """The part of :func:`check_table` that no migration changes: columns, partition spec, location, properties that publishing relies on.

    Raises:
        TableMismatchError: one of them differs.
    """
    _refuse(_schema_problem(table, settings.value_type) or _layout_problem(table, settings) or _commit_problem(table), settings)


def _refuse(problem: str | None, settings: Settings) -> None:
    if problem:
        raise TableMismatchError(f"table {settings.table} in {shown(settings)}: {problem}")


def _property_problem(table: Table, settings: Settings) -> str | None:
    for name, wanted in own_properties(settings).items():
        found = table.properties.get(name)
        if found is None and name == RESOLUTIONS_PROPERTY:
            # Made by a version that did not note them: see remember_resolutions.
            continue
        if found is None:
            return f"has no property {name}, so it was not made by this pipeline; set ROLLUP_TABLE to another name, or drop the table"
        if found != wanted:
            setting = SETTINGS_OF_PROPERTIES[name]
            migrated = "" if name == VALUE_TYPE_PROPERTY else ", rebuild the table from raw data with `rollups migrate`"
            return (
                f"was made with {setting}={found}, the settings say {wanted}; "
                f"set {setting}={found}{migrated}, or ROLLUP_TABLE to a new name, which is then filled by a backfill"
            )
    return None


def _schema_problem(table: Table, value_type: ValueType) -> str | None:
    mend = "set ROLLUP_TABLE to a new name and backfill it, or undo the change of the table's schema"
    wanted = {field.field_id: field for field in iceberg_schema(value_type).fields}
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
    version = table.metadata.format_version
    if version < FORMAT_VERSION:
        return f"has format version {version}; set its property format-version to {FORMAT_VERSION}"
    if version > FORMAT_VERSION:
        return (
            f"has format version {version}, which PyIceberg cannot write and which cannot be lowered to {FORMAT_VERSION}; "
            "set ROLLUP_TABLE to a new name and backfill it"
        )
    fields = [(field.source_id, str(field.transform), field.name) for field in table.spec().fields]
    if fields != [(field.source_id, str(field.transform), field.name) for field in partition_spec().fields]:
        return (
            f"is partitioned by {table.spec().fields}, not by identity(resolution), day(logical_timestamp); restore that partition spec, "
            "or set ROLLUP_TABLE to a new name and backfill it"
        )
    if path_of(table.location()) != path_of(table_location(settings)):
        return (
            f"lies in {table.location()}, the settings say {table_location(settings)}; set ROLLUP_WAREHOUSE to where it lies, "
            "or ROLLUP_TABLE to a new name"
        )
    return None


def _commit_problem(table: Table) -> str | None:
    """What is wrong with properties that publishing relies on: `snapshot` isolation produced duplicates with concurrent publishers."""
    for name in ("write.delete.isolation-level", "write.update.isolation-level"):
        level = table.properties.get(name, "serializable")
        if level != "serializable":
            return f"has {name}={level}, with which concurrent publishers duplicate rows; set it to serializable"
    retries = table.properties.get("commit.retry.num-retries", "4")
    if not retries.isdecimal() or int(retries) == 0:
        return f"has commit.retry.num-retries={retries}, so that a concurrent commit would fail a publish; set it to 10"
    return None
