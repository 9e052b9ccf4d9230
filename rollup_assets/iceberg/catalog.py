"""The catalog, opened.

Which one it is follows from ``ROLLUP_CATALOG``: an SQLite file, a PostgreSQL database, a REST catalog, or, with the property ``type``,
any other that PyIceberg knows. The table in it stays out, and so does what each kind needs to be reached
(:mod:`rollup_assets.iceberg.postgres`, :mod:`rollup_assets.iceberg.rest`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollup_assets.errors import CatalogError
from rollup_assets.iceberg.faults import catalog_faults, other_kind, shown, unusable_place
from rollup_assets.loading import load_pyiceberg
from rollup_assets.settings import Settings

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

_SQLITE_PREFIX = "sqlite:///"
_SQLITE_BUSY_SECONDS = 60
_POSTGRES_PREFIX = "postgresql+psycopg://"
_REST_PREFIXES = ("rest+https://", "rest+http://", "https://", "http://")
_ATTEMPTS = 5


def is_postgres(settings: Settings) -> bool:
    """Whether the catalog is a PostgreSQL database."""
    return settings.catalog.startswith(_POSTGRES_PREFIX)


def is_rest(settings: Settings) -> bool:
    """Whether the catalog is a REST catalog."""
    return settings.catalog.startswith(_REST_PREFIXES)


def sqlite_database(settings: Settings) -> Path | None:
    """The file of an embedded catalog; None for catalogs on servers, and for those that the properties name with another type."""
    if not settings.catalog.startswith(_SQLITE_PREFIX) or ":memory:" in settings.catalog or other_kind(settings):
        return None
    return Path(settings.catalog.removeprefix(_SQLITE_PREFIX).partition("?")[0])


def is_missing(settings: Settings) -> bool:
    """Whether the catalog is an embedded one that has not been made yet.

    Raises:
        CatalogError: this user may not look at its place.
    """
    database = sqlite_database(settings)
    try:
        return database is not None and not database.exists()
    except OSError as error:
        raise unusable_place(settings, error) from error


def make_room(settings: Settings) -> None:
    """Make the folder of an embedded catalog; other catalogs need none.

    Raises:
        CatalogError: it cannot be made.
    """
    if (database := sqlite_database(settings)) is not None:
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unusable_place(settings, error) from error


def catalog_properties(settings: Settings) -> dict[str, Any]:
    """The properties with which PyIceberg opens the catalog, without the secrets."""
    uri = settings.catalog.removeprefix("rest+")
    if uri.startswith(_SQLITE_PREFIX) and "timeout=" not in uri:
        # With Python's default of 5 s, several processes that start on a slow disk fail with "database is locked".
        uri += f"{'&' if '?' in uri else '?'}timeout={_SQLITE_BUSY_SECONDS}"
    on_s3 = settings.warehouse.startswith("s3") or is_rest(settings)
    return {
        "uri": uri,
        "warehouse": settings.warehouse,
        **(settings.s3.iceberg_properties() if on_s3 else {}),
        **settings.catalog_properties,
    }


@contextlib.contextmanager
def open_catalog(settings: Settings, *, writing: bool = False) -> Iterator[Catalog]:
    """The catalog, closed at the end.

    Args:
        settings: of the table.
        writing: whether something will be changed in it; then the right to do so is checked at once.

    Raises:
        CatalogError: it cannot be reached, refuses us, is not initialized, or became unreachable; names the setting and the remedy.
    """
    with catalog_faults(settings):
        catalog = _load_catalog(settings, writing=writing)
        try:
            yield catalog
        finally:
            # The connections to PostgreSQL belong to the process, and stay for the next time it opens the catalog.
            if not is_postgres(settings):
                catalog.close()


def load_catalog(settings: Settings) -> Catalog:
    """The catalog; an embedded one is made if it is missing.

    Raises:
        CatalogError: as :func:`open_catalog`.
    """
    with catalog_faults(settings):
        return _load_catalog(settings, writing=False)


def _load_catalog(settings: Settings, *, writing: bool) -> Catalog:
    properties = catalog_properties(settings)
    load_pyiceberg(sql=not is_rest(settings))
    if is_postgres(settings):
        from rollup_assets.iceberg.postgres import postgres_catalog

        return postgres_catalog(settings, properties, writing=writing)
    if is_rest(settings):
        from rollup_assets.iceberg.rest import rest_catalog

        return rest_catalog(settings, properties)
    return _any_catalog(settings, properties)


def _any_catalog(settings: Settings, properties: dict[str, Any]) -> Catalog:
    from pyiceberg import catalog as pyiceberg_catalog
    from pyiceberg.exceptions import NotInstalledError
    from sqlalchemy.exc import DBAPIError

    from rollup_assets.iceberg.sql_catalog import SharingSqlCatalog

    make_room(settings)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            if sqlite_database(settings) is not None:
                return SharingSqlCatalog(settings.catalog_name, **properties)
            return pyiceberg_catalog.load_catalog(settings.catalog_name, **properties)
        except (ValueError, NotInstalledError) as error:
            raise CatalogError(
                f"{shown(settings)} names no catalog that can be opened ({error}); write sqlite:///, postgresql+psycopg:// or "
                "rest+https://, or name PyIceberg's type of catalog in ROLLUP_CATALOG_PROPERTIES, as type=glue"
            ) from error
        except DBAPIError:
            # If two processes make the catalog's tables at once, the second finds them half made, and complete when it tries again.
            if attempt == _ATTEMPTS:
                raise
        except Exception as error:
            # The client of another kind of catalog may raise anything: Glue's raised an error that was taken for one of S3.
            if not other_kind(settings):
                raise
            raise CatalogError(
                f"{shown(settings)} cannot be opened ({type(error).__name__}: {error}); set what that catalog needs in "
                "ROLLUP_CATALOG_PROPERTIES, or in the environment that its client reads"
            ) from error
    raise AssertionError("unreachable")
