"""Table metadata that transactions share instead of copying it.

What is changed in a transaction, and when it is committed, stays out.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyiceberg.table import Table


def cheap_to_change(table: Table) -> Table:
    """The same table, but its transactions do not copy all of its metadata at each step.

    PyIceberg deep-copies the metadata whenever a transaction reads it: seventeen times per commit, and three times per expired snapshot,
    which takes 0.1 s a commit at 100 snapshots and half a minute at 10,000. The copies are not needed: the metadata is frozen, and an
    update makes new lists of the old parts. The catalog, like a retry, applies the commit to metadata that it loads anew.
    """
    from pyiceberg.table import Table as PyIcebergTable

    if type(table.metadata).__module__ == __name__:
        return table
    kind = _shared(type(table.metadata))
    metadata = kind.model_construct(table.metadata.model_fields_set, **dict(table.metadata))
    return PyIcebergTable(table.name(), metadata, table.metadata_location, table.io, table.catalog, table.config)


@functools.cache
def _shared(kind: Any) -> Any:
    """A subclass of this metadata class (one per format version) whose deep copies share their parts."""

    def copy(self: Any, memo: dict[int, Any] | None = None) -> Any:  # noqa: ARG001
        return self.__copy__()

    return type(kind.__name__, (kind,), {"__deepcopy__": copy, "__module__": __name__})
