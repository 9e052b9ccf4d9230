"""How a transaction that makes or expires snapshots of the table begins: with our workarounds for PyIceberg's shortcomings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollup_assets.iceberg.commit_times import stamped_in_order
from rollup_assets.iceberg.conflict_checks import doubting_conflicts
from rollup_assets.iceberg.guarded_expiry import keeping_what_is_held
from rollup_assets.iceberg.shared_metadata import cheap_to_change

if TYPE_CHECKING:
    from pyiceberg.table import Table, Transaction


def begin(table: Table) -> Transaction:
    """A transaction of a table.

    It shares the table's metadata, stamps its snapshots in order, expires none that is held, and checks conflicts before it believes them.
    """
    return doubting_conflicts(keeping_what_is_held(stamped_in_order(cheap_to_change(table)))).transaction()
