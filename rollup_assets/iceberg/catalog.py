"""The catalog, opened.

Which one it is follows from ``ROLLUP_CATALOG`` alone: an SQLAlchemy URL (SQLite, PostgreSQL) or the URL of a REST catalog. The
table in it stays out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rollup_assets.settings import Settings

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

_SQLITE_PREFIX = "sqlite:///"
_SQLITE_BUSY_SECONDS = 60
_ATTEMPTS = 5


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

    if (database := sqlite_database(settings)) is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return pyiceberg_catalog.load_catalog(settings.catalog_name, **catalog_properties(settings))
        except DBAPIError:
            # Two processes that make the catalog's tables at once: the second finds them half made, and whole when it looks again.
            if attempt == _ATTEMPTS:
                raise
    raise AssertionError("unreachable")


def without_password(uri: str) -> str:
    """The URI as messages may show it."""
    parts = urlsplit(uri)
    return uri.replace(f":{parts.password}@", ":***@") if parts.password else uri


def sqlite_database(settings: Settings) -> Path | None:
    """The file of an embedded catalog; None for catalogs on servers."""
    if not settings.catalog.startswith(_SQLITE_PREFIX) or ":memory:" in settings.catalog:
        return None
    return Path(settings.catalog.removeprefix(_SQLITE_PREFIX).partition("?")[0])
