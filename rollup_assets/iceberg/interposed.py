"""A catalog of our own between a table's transactions and its catalog, to see commits on their way. Subclasses use what they see."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table


class InterposedCatalog:
    """Passes every call on to the catalog; subclasses override ``commit_table``."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def __getattr__(self, name: str) -> Any:
        return getattr(self._catalog, name)


def interposed(table: Table, kind: type[InterposedCatalog]) -> Table:
    """The same table, but its transactions commit through a catalog of this kind."""
    from pyiceberg.table import Table as PyIcebergTable

    catalog: Any = kind(table.catalog)
    return PyIcebergTable(table.name(), table.metadata, table.metadata_location, table.io, catalog, table.config)
