"""Brings back the rows that a batch, or the whole table, had in an earlier snapshot: a goal for ``iceberg.commit``.

Which snapshot that is, and what follows from it, is decided in :mod:`rollup_assets.history.rollback`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rollup_assets.batches import Batch
from rollup_assets.errors import RollbackError
from rollup_assets.iceberg.plans import Copies, Plan
from rollup_assets.iceberg.reading import LiveFile, RangeCounts, changed_files, range_counts, range_predicate, read_file, require_intact
from rollup_assets.iceberg.snapshots import newest_change
from rollup_assets.iceberg.staged_files import rewritten_files
from rollup_assets.iceberg.table import check_table

if TYPE_CHECKING:
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

    from rollup_assets.settings import Settings

_INSTEAD = "Choose another snapshot, or give up: `rollups backfill FROM TO --force` publishes the partitions concerned from raw data"


@dataclass(slots=True)
class EarlierRows:
    """The goal of a rollback: the rows of a batch (without one, of the table) are those of ``target``, or none without a target.

    ``seen`` is the snapshot on which the caller based its choice of target: our last one about the batch, or the table's current one.
    If there is another by now, planning fails. Files come back as copies under new names: files that metadata lists as deleted may be
    deleted from disk by engines that expire snapshots.
    """

    settings: Settings
    batch: Batch | None
    target: Snapshot | None
    seen: int | None
    command: str
    copies: Copies = field(default_factory=Copies)
    _expected: dict[int, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The goal's name in messages."""
        return f"the rollback of {'the table' if self.batch is None else f'batch {self.batch.key}'}"

    @property
    def repair(self) -> str:
        """The command that repairs the table: the rollback again."""
        return self.command

    @property
    def predicate(self) -> BooleanExpression:
        """The rows that are replaced."""
        from pyiceberg.expressions import AlwaysTrue

        return AlwaysTrue() if self.batch is None else range_predicate(self.batch)

    @property
    def expected(self) -> dict[int, int]:
        """Rows of the target by resolution in ms."""
        return self._expected

    def check(self, table: Table) -> None:
        """The same check as for a publish."""
        check_table(table, self.settings)

    def plan(self, table: Table) -> Plan:
        """Remove files that the target does not have, add those that only the target has.

        Raises:
            RollbackError: the table has changed since the target was chosen, or a file of the target is gone.
            PublishError: a file that has to be rewritten is damaged.
        """
        if seen_now(table, self.batch) != self.seen:
            raise RollbackError(
                f"{self.settings.table} was changed while {self.name} was prepared, so nothing was rolled back; look at the change with "
                f"`rollups diff`, and run `{self.command}` again"
            )
        plan = Plan(rewritten_files(self.settings, self.batch), copies=self.copies.known(table))
        now, then = changed_files(table, table.current_snapshot(), self.target, self.batch)
        try:
            for live in now:
                if self.batch is None or live.within(self.batch):
                    plan.removed.append(live.task.file)
                else:
                    plan.split(table, live, self.predicate, f"batch {self.batch.key}")
            self._bring_back(table, then, plan)
            self._expected = {} if self.target is None else self.counts(table, self.target.snapshot_id).rows
        except BaseException:
            plan.discard()
            raise
        return plan

    def _bring_back(self, table: Table, files: Iterable[LiveFile], plan: Plan) -> None:
        whole: dict[str, str] = {}
        for file in files:
            if self._is_all_of_it(table, file):
                whole[file.path] = ""
                continue
            try:
                require_intact(table, file, _INSTEAD)
                plan.write(table, read_file(table, file, self.predicate))
            except FileNotFoundError as error:
                raise self._gone(file.path) from error
        if whole:
            try:
                plan.copy(table, whole)
            except FileNotFoundError as error:
                raise self._gone(error.filename) from error

    def _gone(self, path: str) -> RollbackError:
        target = None if self.target is None else self.target.snapshot_id
        return RollbackError(
            f"{path}, which snapshot {target} of {self.settings.table} needs, is gone, so nothing was rolled back. {_INSTEAD}"
        )

    def _is_all_of_it(self, table: Table, file: LiveFile) -> bool:
        return (
            not file.has_deletes
            and file.resolution is not None
            and (self.batch is None or file.within(self.batch))
            and file.task.file.spec_id == table.spec().spec_id
        )

    def snapshot_in_place(self, table: Table) -> int | None:
        """The current snapshot."""
        snapshot = table.current_snapshot()
        return None if snapshot is None else snapshot.snapshot_id

    def counts(self, table: Table, snapshot_id: int | None) -> RangeCounts:
        """Rows and files of the batch, or of the table."""
        return range_counts(table, self.batch, snapshot_id=snapshot_id)


def seen_now(table: Table, batch: Batch | None) -> int | None:
    """What :attr:`EarlierRows.seen` would be now."""
    snapshot = table.current_snapshot() if batch is None else newest_change(table, batch)
    return None if snapshot is None else snapshot.snapshot_id
