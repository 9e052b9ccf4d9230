"""Replaces the rows in a batch's range of labels by staged files, in one snapshot: a goal for ``iceberg.commit``.

Which files are to be published, and whether they may be, is decided in :mod:`rollup_assets.steps.publish`.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rollup_assets.batches import Batch
from rollup_assets.errors import StageCorruptError
from rollup_assets.iceberg.commit import Replacement, bring_about
from rollup_assets.iceberg.plans import Copies, Plan
from rollup_assets.iceberg.reading import RangeCounts, as_live_file, live_files, range_counts, range_predicate
from rollup_assets.iceberg.snapshots import (
    CODE_VERSION_PROPERTY,
    DIGEST_PROPERTY,
    PARTITION_PROPERTY,
    RUN_PROPERTY,
    STAGED_PROPERTY,
    newest_change,
    said,
)
from rollup_assets.iceberg.staged_files import bring, rewritten_files
from rollup_assets.iceberg.table import check_table
from rollup_assets.storage.file_statistics import FileStatistics
from rollup_assets.storage.manifests import Manifest, StagedFile
from rollup_assets.threads import thread_pool

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.expressions import BooleanExpression
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

    from rollup_assets.iceberg.locks import TableLock
    from rollup_assets.settings import Settings

_FOOTER_THREADS = 4


@dataclass(slots=True)
class _StagedRange:
    """The goal of a publish: the table's rows with a batch's labels are those of its staged files."""

    settings: Settings
    batch: Batch
    staged: Sequence[StagedFile]
    digest: str
    were_in_table: bool = False
    """Whether the table's snapshots may list some of these files as deleted."""
    data_files: dict[str, DataFile] = field(default_factory=dict)
    """Metadata of staged files, made once."""
    copies: Copies = field(default_factory=Copies)

    @property
    def name(self) -> str:
        return f"batch {self.batch.key}"

    @property
    def command(self) -> str:
        return f"rollups backfill {self.batch.key} {self.batch.key}"

    @property
    def repair(self) -> str:
        return _repair(self.batch)

    @property
    def predicate(self) -> BooleanExpression:
        return range_predicate(self.batch)

    @property
    def expected(self) -> Counter[int]:
        rows: Counter[int] = Counter()
        for file in self.staged:
            rows[file.resolution or 0] += file.rows
        return rows

    def check(self, table: Table) -> None:
        check_table(table, self.settings)

    def plan(self, table: Table) -> Plan:
        return _plan(self, table)

    def snapshot_in_place(self, table: Table) -> int | None:
        """Our last snapshot about the batch, if it published this content; else the current one, which has the content too.

        An older publish of this content does not count: the rows were replaced later and came back by a rollback. If the rollback is
        undone they go again, though the older snapshot stays.
        """
        if not self.staged:
            return None
        found = newest_change(table, self.batch)
        if found is None or said(found, DIGEST_PROPERTY) != self.digest:
            found = table.current_snapshot()
        return None if found is None else found.snapshot_id

    def counts(self, table: Table, snapshot_id: int | None) -> RangeCounts:
        return range_counts(table, self.batch, snapshot_id=snapshot_id)


def replace_range(
    catalog: Catalog,
    settings: Settings,
    batch: Batch,
    staged: Sequence[StagedFile],
    properties: dict[str, str],
    still_current: Callable[[], None] = lambda: None,
    lock: TableLock | None = None,
    table: Table | None = None,
    *,
    were_in_table: bool = False,
) -> Replacement:
    """Make the table's rows with labels in ``[batch.start, batch.end)`` exactly those of the staged files.

    It makes one snapshot, with ``properties`` and an attempt id of its own, or none if the table already is in that state. Rows outside
    the range stay, also those in files that reach beyond it. ``still_current`` is called before each commit, in parallel with planning,
    and raises if the staged files are no longer the ones to publish. Unless it is certain that ``lock`` is held, nothing is committed: the
    lock is taken again and the table loaded anew. ``table``: the table as just loaded under the lock; it is loaded here unless given.
    ``were_in_table``: the staged files may have been in the table before; those that are no longer in it come back as copies.

    Raises:
        StageCorruptError: a staged file is not what its manifest says.
        TableMismatchError: the table was changed meanwhile and contradicts the settings.
        PublishError: the commit failed for good, or its outcome stayed unknown; running it again is safe.
        LockTimeoutError: the lock was lost, and somebody else took and kept it.
        PublishHaltError: the snapshot does not hold the rows that were staged.
        StaleInputError: somebody else has published something newer since, and the snapshot has expired.
    """
    goal = _StagedRange(settings, batch, staged, properties.get(DIGEST_PROPERTY, ""), were_in_table)
    return bring_about(catalog, settings, goal, properties, still_current, lock, table)


def _plan(goal: _StagedRange, table: Table) -> Plan:
    plan = Plan(rewritten_files(goal.settings, goal.batch), copies=goal.copies.known(table))
    try:
        within = []
        for live in live_files(table, goal.batch):
            if live.within(goal.batch):
                within.append(live)
            else:
                plan.split(table, live, goal.predicate, goal.name)
        were_in_table = [goal.batch] if goal.were_in_table or goal.copies.may_have_landed else []
        bring(
            plan,
            table,
            goal.settings,
            {goal.batch: goal.staged},
            within,
            lambda batch, missing: staged_data_files(table, batch, missing, goal.data_files),
            were_in_table,
        )
    except BaseException:
        plan.discard()
        raise
    return plan


def staged_data_files(table: Table, batch: Batch, files: Sequence[StagedFile], known: dict[str, DataFile] | None = None) -> list[DataFile]:
    """Iceberg's metadata of a batch's staged files, from the statistics in their manifest, or else from their footers.

    ``known``: what was read before, by path; what is read now is added to it.

    Raises:
        StageCorruptError: a file is missing, cannot be read, or has rows, labels or resolutions other than its manifest says.
    """
    from rollup_assets.iceberg.data_files import data_file, data_files_of_statistics

    known = {} if known is None else known
    unknown = [file for file in files if file.path not in known]
    kept = [file for file in unknown if file.statistics is not None]
    unread = [file for file in unknown if file.statistics is None]
    with thread_pool(max(1, min(_FOOTER_THREADS, len(unread))), "footers") as pool:
        read = pool.map(lambda file: data_file(table, file.path), unread)
        try:
            known_of = ((file.path, file.size, FileStatistics.unpacked(file.statistics or "")) for file in kept)
            for file, found in zip([*kept, *unread], itertools.chain(data_files_of_statistics(table, known_of), read), strict=True):
                _check_staged(batch, file, found)
                known[file.path] = found
        except (OSError, ValueError, TypeError) as error:
            raise StageCorruptError(f"a staged file of batch {batch.key} cannot be published ({error}); run `{_repair(batch)}`") from error
    return [known[file.path] for file in files]


def _check_staged(batch: Batch, file: StagedFile, data_file: DataFile) -> None:
    from pyiceberg.table import FileScanTask

    found = as_live_file(FileScanTask(data_file))
    problem = None
    if found.rows != file.rows:
        problem = f"has {found.rows} rows, its manifest says {file.rows}"
    elif found.resolution != file.resolution:
        problem = f"has resolution {found.resolution}, its manifest says {file.resolution}"
    elif not found.within(batch):
        problem = f"has labels outside [{batch.start_time:%Y-%m-%d %H:%M}, {batch.end_time:%Y-%m-%d %H:%M})"
    if problem:
        raise StageCorruptError(f"staged file {file.path} of batch {batch.key} {problem}; run `{_repair(batch)}`")


def _repair(batch: Batch) -> str:
    """The command that remakes a batch's files and publishes them."""
    return f"rollups backfill {batch.key} {batch.key} --force"


def summary_properties(batch: Batch, rollups: Manifest, run_id: str, code_version: str) -> dict[str, Any]:
    """What a snapshot's summary says about the batch it publishes."""
    properties = {
        PARTITION_PROPERTY: batch.key,
        DIGEST_PROPERTY: rollups.digest,
        STAGED_PROPERTY: rollups.attempt,
        CODE_VERSION_PROPERTY: code_version,
    }
    return properties | ({RUN_PROPERTY: run_id} if run_id else {})
