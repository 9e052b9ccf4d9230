"""Table metadata that transactions share instead of copying it.

What is changed in a transaction, and when it is committed, stays out.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyiceberg.table import Table


def cheap_to_change(table: Table) -> Table:
    """The same table, for transactions that do not copy all of its metadata at each step.

    PyIceberg copies them deeply whenever a transaction looks at them, seventeen times a commit and thrice for each snapshot that expires:
    at 100 snapshots 0.1 s a commit, at 10,000 half a minute. Nobody changes them: they are frozen, and an update makes new lists of the
    old parts. The catalog itself applies the commit to metadata that it loads anew, and so does a retry.
    """
    from pyiceberg.table import Table as PyIcebergTable

    kind = _shared(type(table.metadata))
    metadata = kind.model_construct(table.metadata.model_fields_set, **dict(table.metadata))
    return PyIcebergTable(table.name(), metadata, table.metadata_location, table.io, table.catalog, table.config)


@functools.cache
def _shared(kind: Any) -> Any:
    """Metadata of this kind (of a format version) whose deep copies share their parts."""

    def copy(self: Any, memo: dict[int, Any] | None = None) -> Any:  # noqa: ARG001
        return self.__copy__()

    return type(kind.__name__, (kind,), {"__deepcopy__": copy, "__module__": __name__})
