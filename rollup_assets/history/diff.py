"""What changed between two snapshots: which windows, and which raw files caused it.

Only data files that one of the snapshots has and the other has not are read, and rows are compared, not files: where somebody has
compacted the table nothing has changed. How it is shown stays out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rollup_assets.batches import Batch, to_datetime
from rollup_assets.errors import QueryError
from rollup_assets.history.records import Origin, origin_of
from rollup_assets.iceberg.maintenance import MAINTENANCE_PROPERTY
from rollup_assets.iceberg.reading import LiveFile, changed_files, files_dataset
from rollup_assets.iceberg.schema import COLUMNS
from rollup_assets.iceberg.snapshots import ATTEMPT_PROPERTY, ancestors, said, snapshot_meant, time_of
from rollup_assets.scratch_database import scratch_database
from rollup_assets.settings import Settings
from rollup_assets.steps.changes import Change, file_changes
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import Stage
from rollup_assets.storage.storage_errors import explains_storage_errors
from rollup_assets.units import format_duration

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

_KEY = ("id", "resolution", "label")
# The shard is not a value: it follows from the id and a setting, and only says where a row is stored.
_VALUES = tuple(column.name for column in COLUMNS if column.name not in ("id", "resolution", "logical_timestamp", "metric_shard_id"))


@dataclass(frozen=True, slots=True)
class SnapshotShown:
    """What a difference shows about a snapshot."""

    snapshot_id: int | None
    """None: the table as it was before its first snapshot."""
    committed_at: dt.datetime | None


@dataclass(frozen=True, slots=True)
class ChangedFile:
    """A raw file that only one of two publishes was made from, or that each was made from in another version."""

    partition: str
    path: str
    """Relative to the landing zone."""
    change: Change
    """``new``, ``changed``, ``replaced`` (another version of the same size) or ``removed``."""


@dataclass(frozen=True, slots=True)
class ChangedWindow:
    """A window that differs; ``values``: column → (old, new), None on a side without the row."""

    partition: str
    resolution: str
    label: dt.datetime
    id: int
    metric: str
    change: str
    """``added``, ``removed`` or ``changed``."""
    values: dict[str, tuple[Any, Any]]


@dataclass(slots=True)
class PartitionDifference:
    """What changed in one batch. Windows are counted by resolution, such as ``5m``; a duplicate row counts as another window."""

    partition: str
    added: dict[str, int] = field(default_factory=dict)
    removed: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    files: list[ChangedFile] = field(default_factory=list)
    """The raw files that caused the changes."""
    remarks: list[str] = field(default_factory=list)
    """Other causes, and what is not known."""

    @property
    def windows(self) -> int:
        """How many windows differ."""
        return sum(sum(counts.values()) for counts in (self.added, self.removed, self.changed))


@dataclass(slots=True)
class SnapshotDifference:
    """What changed between two snapshots."""

    old: SnapshotShown
    new: SnapshotShown
    partitions: list[PartitionDifference] = field(default_factory=list)
    """The partitions in which windows differ, in time order."""
    windows: list[ChangedWindow] = field(default_factory=list)
    """The first windows that differ."""
    files_read: int = 0
    """Data files of the table whose rows were compared."""
    foreign: list[int] = field(default_factory=list)
    """Snapshots between them that were not made by this pipeline."""


@explains_storage_errors
def diff(settings: Settings, old: str, new: str | None = None, *, first_differences: int = 20) -> SnapshotDifference:
    """Compare two snapshots, each given by its id or by a time (ISO 8601, UTC if it has no offset).

    Args:
        settings: of the table.
        old: the snapshot to start from.
        new: the snapshot to compare it with; the current one unless given.
        first_differences: how many windows to return with their values.

    Raises:
        UnknownSnapshotError: there is no such snapshot, or it has expired.
        QueryError: there is no table yet.
        TableMismatchError: another engine has changed the table's columns.
        PublishError: another engine has written equality deletes, which cannot be read here.
    """
    from rollup_assets.iceberg.catalog import open_catalog
    from rollup_assets.iceberg.table import load_readable_table

    with open_catalog(settings) as catalog:
        table = load_readable_table(catalog, settings)
        if table is None:
            raise QueryError(f"there is no table {settings.table} yet; publish to it with `rollups backfill FROM TO`")
        first = snapshot_meant(table, old)
        second = table.current_snapshot() if new is None else snapshot_meant(table, new)
        return compare(settings, table, first, second, first_differences=first_differences)


def compare(
    settings: Settings, table: Table, old: Snapshot | None, new: Snapshot | None, batch: Batch | None = None, *, first_differences: int = 20
) -> SnapshotDifference:
    """What changed from one snapshot to another, in one batch or in all. A snapshot of None has no rows."""
    result = SnapshotDifference(_shown(old), _shown(new), foreign=_foreign(table, old, new))
    before, after = changed_files(table, old, new, batch)
    result.files_read = len(before) + len(after)
    partitions: dict[Batch, PartitionDifference] = {}
    with scratch_database(settings) as (db, _):
        for old_files, new_files in _together(settings, before, after):
            _compare_rows(db, table, old_files, new_files, batch)
            for start, resolution, change, count in _counts(db, settings):
                of = settings.calendar.containing(start)
                found = partitions.setdefault(of, PartitionDifference(of.key))
                getattr(found, change)[format_duration(resolution)] = count
            room = first_differences - len(result.windows)
            if room > 0:
                result.windows += _windows(db, settings, room)
    stage = Stage(Place.parse(settings.stage, settings.s3))
    for of, found in sorted(partitions.items()):
        _explain(found, origin_of(stage, table, old, of), origin_of(stage, table, new, of), result.foreign)
        result.partitions.append(found)
    return result


def _shown(snapshot: Snapshot | None) -> SnapshotShown:
    return SnapshotShown(None, None) if snapshot is None else SnapshotShown(snapshot.snapshot_id, time_of(snapshot))


def _foreign(table: Table, old: Snapshot | None, new: Snapshot | None) -> list[int]:
    """Snapshots that are not ours and in the history of only one of the two; oldest first."""
    behind = [{one.snapshot_id: one for one in ancestors(table, snapshot)} for snapshot in (old, new)]
    apart = [behind[side][number] for side in (0, 1) for number in behind[side].keys() - behind[1 - side].keys()]
    ours = (ATTEMPT_PROPERTY, MAINTENANCE_PROPERTY)
    return [
        one.snapshot_id
        for one in sorted(apart, key=lambda one: (one.sequence_number or 0, one.timestamp_ms))
        if all(said(one, name) is None for name in ours)
    ]


# ----------------------------------------------------------------------------------------------------------------------- rows


def _together(settings: Settings, before: Sequence[LiveFile], after: Sequence[LiveFile]) -> Iterator[tuple[list[LiveFile], list[LiveFile]]]:
    """Old and new files in portions, in time order; each is as small as possible while all rows of a batch are in the same one."""

    def reach(file: LiveFile) -> tuple[float, float]:
        if file.first is None or file.last is None:
            return float("-inf"), float("inf")
        return settings.calendar.containing(file.first // 1_000).start, settings.calendar.containing(file.last // 1_000).end

    portion: tuple[list[LiveFile], list[LiveFile]] = ([], [])
    until = float("-inf")
    for file, side in sorted(((file, side) for side, files in enumerate((before, after)) for file in files), key=lambda one: reach(one[0])):
        begin, end = reach(file)
        if begin >= until and any(portion):
            yield portion
            portion = ([], [])
        portion[side].append(file)
        until = max(until, end)
    if any(portion):
        yield portion


def _compare_rows(db: DuckDBPyConnection, table: Table, before: Sequence[LiveFile], after: Sequence[LiveFile], batch: Batch | None) -> None:
    """Make the table ``differences``: rows that only the old or only the new files have; two with the same key are one changed row.

    Also makes ``gone`` and ``come``, the rows that only one side has; ``copy`` numbers rows with the same key.
    """
    db.register("old_rows", files_dataset(table, before))
    db.register("new_rows", files_dataset(table, after))
    columns = ", ".join(("id", "resolution", "epoch_us(logical_timestamp) AS label", *_VALUES))
    inside = "true" if batch is None else f"label >= {batch.start * 1_000} AND label < {batch.end * 1_000}"
    db.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE differing AS
        SELECT * EXCLUDE side, sum(side)::BIGINT AS surplus
        FROM (SELECT {columns}, -1 AS side FROM old_rows UNION ALL SELECT {columns}, 1 AS side FROM new_rows)
        WHERE {inside} GROUP BY ALL HAVING surplus <> 0
        """
    )
    for name, condition in {"gone": "surplus < 0", "come": "surplus > 0"}.items():
        db.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE {name} AS
            SELECT * EXCLUDE (surplus, times), row_number() OVER (PARTITION BY {", ".join(_KEY)} ORDER BY {", ".join(_VALUES)}) AS copy
            FROM (SELECT *, unnest(range(abs(surplus))) AS times FROM differing WHERE {condition})
            """
        )
    db.execute("DROP TABLE differing")
    for name in ("old_rows", "new_rows"):
        db.unregister(name)
    key = ", ".join(f"coalesce(g.{column}, c.{column}) AS {column}" for column in _KEY)
    both = ", ".join(f"g.{column} AS old_{column}, c.{column} AS new_{column}" for column in _VALUES)
    join = " AND ".join(f"g.{column} = c.{column}" for column in (*_KEY, "copy"))
    db.execute(
        f"""
        CREATE OR REPLACE TEMP TABLE differences AS
        SELECT {key}, {both}, CASE WHEN g.id IS NULL THEN 'added' WHEN c.id IS NULL THEN 'removed' ELSE 'changed' END AS change
        FROM gone g FULL OUTER JOIN come c ON {join}
        """
    )


def _counts(db: DuckDBPyConnection, settings: Settings) -> list[tuple[int, int, str, int]]:
    """(start of the batch in epoch ms, resolution in ms, change, how many windows)."""
    start, length = settings.calendar.start, settings.calendar.length
    since = f"(label // 1000 - {start})"
    # SQL's remainder has the sign of the dividend.
    begin = f"label // 1000 - (({since} % {length}) + {length}) % {length}"
    return db.execute(f"SELECT {begin}, resolution, change, count(*) FROM differences GROUP BY ALL ORDER BY ALL").fetchall()


def _windows(db: DuckDBPyConnection, settings: Settings, most: int) -> list[ChangedWindow]:
    cursor = db.execute(f"SELECT * FROM differences ORDER BY label, resolution, id LIMIT {most}")
    names = [name for name, *_ in cursor.description or []]
    found = []
    for row in (dict(zip(names, values, strict=True)) for values in cursor.fetchall()):
        pairs = {column: (row[f"old_{column}"], row[f"new_{column}"]) for column in _VALUES}
        label = row["label"] // 1_000
        metrics = pairs["metric"]
        found.append(
            ChangedWindow(
                partition=settings.calendar.containing(label).key,
                resolution=format_duration(row["resolution"]),
                label=to_datetime(label),
                id=row["id"],
                metric=str(metrics[0] if metrics[1] is None else metrics[1]),
                change=row["change"],
                values={column: pair for column, pair in pairs.items() if row["change"] != "changed" or pair[0] != pair[1]},
            )
        )
    return found


# --------------------------------------------------------------------------------------------------------------------- causes


def _explain(found: PartitionDifference, old: Origin, new: Origin, foreign: Sequence[int]) -> None:
    """Note which raw files the two publishes of a batch do not share, or why that is unknown."""
    snapshots = ", ".join(map(str, foreign))
    same = old.record is not None and new.record is not None and old.record.attempt == new.record.attempt
    if same or (old.snapshot is not None and new.snapshot is not None and old.snapshot.snapshot_id == new.snapshot.snapshot_id):
        found.remarks.append(f"not published in between: other writers changed it (snapshots {snapshots or 'that have expired'})")
        return
    if new.record is not None and new.record.rolled_back_to is not None:
        found.remarks.append(f"rolled back to what it was in snapshot {new.record.rolled_back_to}")
    for origin, which in ((old, "old"), (new, "new")):
        if origin.record is None and not origin.is_new:
            by = "" if origin.snapshot is None else f" by snapshot {origin.snapshot.snapshot_id}"
            found.remarks.append(
                f"no record of what the {which} rows were made from: published{by} by an earlier version or another program"
            )
    if foreign:
        found.remarks.append(f"other writers changed the table in between, too (snapshots {snapshots})")
    if any(origin.record is None and not origin.is_new for origin in (old, new)):
        return
    before, after = ({} if origin.record is None else origin.record.inputs for origin in (old, new))
    for partition in sorted(before.keys() | after.keys()):
        changes = file_changes(before.get(partition) or (), after.get(partition) or ())
        found.files += [ChangedFile(partition, file.path, file.change) for file in changes]
    if old.record is not None and new.record is not None:
        found.remarks += [
            f"made with {name} = {new.record.parameters.get(name)} instead of {old.record.parameters.get(name)}"
            for name in sorted(old.record.parameters.keys() | new.record.parameters.keys())
            if old.record.parameters.get(name) != new.record.parameters.get(name)
        ]
        if old.record.code_version != new.record.code_version:
            found.remarks.append(f"made by code version {new.record.code_version} instead of {old.record.code_version}")
    elif old.is_new and new.record is not None:
        found.remarks.append("published for the first time")
