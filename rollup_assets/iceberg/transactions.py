"""How a transaction that makes or expires snapshots of the table begins: with our workarounds for PyIceberg's shortcomings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollup_assets.iceberg.doubted import doubting_conflicts
from rollup_assets.iceberg.metadata import cheap_to_change
from rollup_assets.iceberg.stamps import stamped_in_order

if TYPE_CHECKING:
    from pyiceberg.table import Table, Transaction


def begin(table: Table) -> Transaction:
    """A transaction that shares the table's metadata, stamps its snapshots in order, and checks conflicts before it believes them."""
    return doubting_conflicts(stamped_in_order(cheap_to_change(table))).transaction()
