"""Replaces all of the table's rows, and the settings it was made with, in one snapshot: a goal for ``iceberg.commit``.

Staging and rolling up what replaces them, and whether that may be, stay out (:mod:`rollup_assets.history.migrate`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rollup_assets.batches import Batch
from rollup_assets.errors import MigrationError, TableMismatchError
from rollup_assets.iceberg.faults import shown
from rollup_assets.iceberg.plans import Copies, Plan
from rollup_assets.iceberg.publish import staged_data_files
from rollup_assets.iceberg.reading import RangeCounts, live_files, range_counts
from rollup_assets.iceberg.snapshots import ATTEMPT_PROPERTY, ancestors, is_first, said
from rollup_assets.iceberg.staged_files import bring, rewritten_files
from rollup_assets.iceberg.table import (
    BATCH_LENGTH_PROPERTY,
    RESOLUTIONS_PROPERTY,
    SETTINGS_OF_PROPERTIES,
    SHARDS_PROPERTY,
    VALUE_TYPE_PROPERTY,
    check_structure,
    own_properties,
    resolutions_text,
)
from rollup_assets.storage.manifests import StagedFile

if TYPE_CHECKING:
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

    from rollup_assets.settings import Settings

MIGRATABLE = (SHARDS_PROPERTY, BATCH_LENGTH_PROPERTY, RESOLUTIONS_PROPERTY)


def settings_of_table(table: Table, settings: Settings) -> dict[str, str]:
    """The settings that a table belongs to, by property; the resolutions come from its rows if no property states them.

    Raises:
        TableMismatchError: it was not made by this pipeline.
    """
    found = {name: table.properties[name] for name in own_properties(settings) if name in table.properties}
    if RESOLUTIONS_PROPERTY not in found:
        live = {file.resolution for file in live_files(table) if file.resolution is not None}
        found[RESOLUTIONS_PROPERTY] = resolutions_text(sorted(live)) if live else own_properties(settings)[RESOLUTIONS_PROPERTY]
    missing = [name for name in own_properties(settings) if name not in found]
    if missing:
        raise TableMismatchError(f"table {settings.table} in {shown(settings)} has no property {missing[0]}: this pipeline did not make it")
    return found


def changes_of(table: Table, settings: Settings) -> dict[str, tuple[str, str]]:
    """Setting → (what the table was made with, what the settings say), for those that differ.

    Raises:
        TableMismatchError: the type of values differs, or something that no migration changes.
    """
    found, wanted = settings_of_table(table, settings), own_properties(settings)
    if found[VALUE_TYPE_PROPERTY] != wanted[VALUE_TYPE_PROPERTY]:
        raise TableMismatchError(
            f"table {settings.table} in {shown(settings)} was made with ROLLUP_VALUE_TYPE={found[VALUE_TYPE_PROPERTY]}, the settings "
            f"say {wanted[VALUE_TYPE_PROPERTY]}. The type of a column cannot be changed under its readers: set ROLLUP_TABLE to a new name, "
            "fill it with `rollups backfill`, and drop the old table when nobody reads it any more"
        )
    check_structure(table, settings)
    return {SETTINGS_OF_PROPERTIES[name]: (found[name], wanted[name]) for name in MIGRATABLE if found[name] != wanted[name]}


@dataclass(slots=True)
class MigratedTable:
    """The goal of a migration: the table's rows are those of the staged files, and its properties those of the settings."""

    settings: Settings
    staged: Mapping[Batch, Sequence[StagedFile]]
    before: Mapping[str, str]
    """The table's own settings when the migration began, by property."""
    judged: int | None
    """The snapshot that was current when it was decided which rows can be made anew; None: the table had none."""
    command: str
    were_in_table: Collection[Batch] = ()
    """Batches whose staged files the table's snapshots may list as deleted."""
    copies: Copies = field(default_factory=Copies)

    @property
    def name(self) -> str:
        """The goal's name in messages."""
        return "the migrated table"

    @property
    def repair(self) -> str:
        """The command that repairs the table: the migration again."""
        return self.command

    @property
    def predicate(self) -> BooleanExpression:
        """All rows."""
        from pyiceberg.expressions import AlwaysTrue

        return AlwaysTrue()

    @property
    def expected(self) -> Mapping[int, int]:
        """Rows of all staged files by resolution in ms."""
        rows: Counter[int] = Counter()
        for files in self.staged.values():
            for file in files:
                rows[file.resolution or 0] += file.rows
        return rows

    def check(self, table: Table) -> None:
        """Check that the table still has its old settings, or already the new ones."""
        found = settings_of_table(table, self.settings)
        if found not in (self.before, own_properties(self.settings)):
            raise TableMismatchError(f"table {self.settings.table} was migrated to other settings meanwhile; run `{self.command}` again")
        check_structure(table, self.settings)

    def plan(self, table: Table) -> Plan:
        """Remove all files but the staged ones and add the missing ones, as copies if they may have been in the table before.

        Raises:
            MigrationError: since it was decided which rows can be made anew, somebody has, or may have, published or rolled back.
        """
        self._require_nothing_published(table)
        new = {name: value for name, value in own_properties(self.settings).items() if table.properties.get(name) != value}
        plan = Plan(rewritten_files(self.settings), properties=new, copies=self.copies.known(table))
        try:
            bring(
                plan,
                table,
                self.settings,
                self.staged,
                live_files(table),
                lambda batch, missing: staged_data_files(table, batch, missing),
                self.staged if self.copies.may_have_landed else self.were_in_table,
            )
        except BaseException:
            plan.discard()
            raise
        return plan

    def _require_nothing_published(self, table: Table) -> None:
        """Staging takes hours; rows published or rolled back meanwhile were not part of the decision which rows can be made anew.

        The table's history has to go back to where the migration began: expired snapshots tell nothing, and a table that was dropped and
        made anew has other snapshots.
        """
        mend = (
            f"the migration would undo that; nothing was changed. Stop all runs that use the old settings, and run `{self.command}` again"
        )
        snapshot: Snapshot | None = None
        for snapshot in ancestors(table, table.current_snapshot()):
            if snapshot.snapshot_id == self.judged:
                return
            if said(snapshot, ATTEMPT_PROPERTY) is not None:
                raise MigrationError(
                    f"{self.settings.table} was published to, or rolled back, during the migration (snapshot {snapshot.snapshot_id}), and "
                    f"{mend}"
                )
        if self.judged is not None or (snapshot is not None and not is_first(snapshot)):
            began = "an empty table" if self.judged is None else f"snapshot {self.judged}"
            raise MigrationError(
                f"the history of {self.settings.table} no longer goes back to {began}, where the migration began: snapshots have "
                "expired, or the table was set back, or dropped and created again. If anything was published meanwhile, which is not "
                f"known, {mend}"
            )

    def snapshot_in_place(self, table: Table) -> int | None:
        """The current snapshot."""
        snapshot = table.current_snapshot()
        return None if snapshot is None else snapshot.snapshot_id

    def counts(self, table: Table, snapshot_id: int | None) -> RangeCounts:
        """Rows and files of the table."""
        return range_counts(table, None, snapshot_id=snapshot_id)
