"""Goes through partitions, has their rows recomputed, and compares those with the table and the manifests."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from rollup_assets.batches import Batch, to_datetime
from rollup_assets.engines.base import NoProgress, Progress
from rollup_assets.history.rejections import refusal
from rollup_assets.scratch_database import connect, scratch_database
from rollup_assets.settings import Settings
from rollup_assets.storage.copies import find_copies
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.landing_zone import LandingZone
from rollup_assets.storage.manifests import (
    ELSEWHERE_ROWS,
    PARTIAL_POINTS,
    QUARANTINED,
    REPARTITIONED,
    ROLLUP_TABLE,
    ROLLUPS,
    Stage,
    has_points,
)
from rollup_assets.storage.quarantine import tallies
from rollup_assets.storage.raw_files import COPIED_FILE, FILE_REASONS, TOO_LARGE, count_batch_rows
from rollup_assets.storage.storage_errors import explains_storage_errors
from rollup_assets.units import format_duration
from rollup_assets.verification.raw import RawCounts, RawPoints, TrialReader
from rollup_assets.verification.report import RELATIVE_TOLERANCE, Difference, Verification, VerifiedPartition
from rollup_assets.verification.windows import expected_rows

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection
    from pyiceberg.table import Table

STAGE = "verify"
# Bytes that DuckDB needs at its peak for a row of two batches in memory: above ROLLUP_MEMORY, series are verified in several rounds.
_BYTES_PER_ROW = 300
# The sums of n doubles in two orders differ by at most about n times this times the sum of their magnitudes.
_ROUNDING = 2.3e-16

_KEY = ("id", "resolution", "label")
_SAME = ("metric_shard_id", "org_id", "metric", "count_rollup", "min_rollup", "max_rollup", "latest_rollup", "resets_rollup")
_ADDED = {"sum_rollup": "sum_error", "delta_rollup": "delta_error"}
# For columns that derive from a sum: their error in terms of the sum's.
_DERIVED = {"average_rollup": "e.sum_error / e.count_rollup", "rate_rollup": "e.delta_error / (e.resolution / 1000.0)", "lag_rollup": "0"}
_COLUMNS = (*_SAME, *_ADDED, *_DERIVED)
_LATE = ("before_start", "too_late")


@explains_storage_errors
def verify(
    settings: Settings, batches: Sequence[Batch] | None = None, *, first_differences: int = 20, progress: Progress | None = None
) -> Verification:
    """Compare the rows with labels in ``batches`` (None: all published ones) with what raw files give.

    Raw files are read starting two batches before the first one. The settings bound threads and memory.
    """
    from rollup_assets.iceberg.catalog import open_catalog
    from rollup_assets.iceberg.reading import labels, live_files
    from rollup_assets.iceberg.table import load_readable_table

    landing_zone = LandingZone.from_settings(settings)
    stage = Stage(Place.parse(settings.stage, settings.s3))
    calendar = settings.calendar
    result = Verification()
    with open_catalog(settings) as catalog:
        table = load_readable_table(catalog, settings)
        in_table = set() if table is None else {calendar.containing(label) for label in labels(table, live_files(table), calendar)}
        receipts = set(stage.batches(ROLLUP_TABLE, calendar))
        chooser = _Chooser(settings, landing_zone, stage, published=in_table | receipts, given=batches is not None, result=result)
        chosen = chooser.choose(in_table | receipts if batches is None else batches)
        if chosen:
            with scratch_database(settings) as (db, scratch):
                trial = TrialReader(functools.partial(connect, settings, scratch / "trial"))
                raw = RawPoints(db, settings, landing_zone, scratch, trial, functools.partial(_too_large, landing_zone, stage))
                _Comparison(settings, landing_zone, stage, table, db, raw, result, first_differences, progress or NoProgress()).run(chosen)
    result.partitions.sort(key=lambda partition: partition.partition)
    return result


class _Chooser:
    """Decides which partitions are compared. Some legitimately differ from raw data, for example while they wait for staging."""

    def __init__(
        self, settings: Settings, landing_zone: LandingZone, stage: Stage, *, published: set[Batch], given: bool, result: Verification
    ) -> None:
        self._settings = settings
        self._landing_zone = landing_zone
        self._stage = stage
        self._published = published
        self._given = given
        self._result = result

    def choose(self, batches: Iterable[Batch]) -> list[Batch]:
        """The batches to compare, in order; for the others, the reason is noted in the result."""
        chosen = []
        for batch in sorted(set(batches)):
            if batch < self._settings.calendar.first:
                start = f"{self._settings.start:%Y-%m-%d}"
                note = f"before ROLLUP_START={start}: not compared"
                self._result.partitions.append(VerifiedPartition(batch.key, compared=False, notes=[note]))
                continue
            staged = self._stage.read(REPARTITIONED, batch)
            before = self._settings.calendar.earlier(batch, self._settings.reach)
            if staged is None and self._landing_zone.files(batch):
                (self._result.not_staged if self._given else self._result.waiting).append(batch.key)
            elif not has_points(staged) and any(self._is_needed(other) for other in before):
                self._result.waiting.append(batch.key)
            elif batch in self._published:
                chosen.append(batch)
            elif staged is None and not any(self._stage.read(PARTIAL_POINTS, other) for other in before):
                self._result.partitions.append(VerifiedPartition(batch.key, compared=False, notes=["no raw files, nothing published"]))
            else:
                self._result.not_published.append(batch.key)
        return chosen

    def _is_needed(self, other: Batch) -> bool:
        return self._stage.read(PARTIAL_POINTS, other) is None and bool(self._landing_zone.files(other))


class _Comparison:
    """Recomputes and compares, partition by partition; if they do not fit in memory, in several rounds of some series each."""

    def __init__(
        self,
        settings: Settings,
        landing_zone: LandingZone,
        stage: Stage,
        table: Table | None,
        db: DuckDBPyConnection,
        raw: RawPoints,
        result: Verification,
        first_differences: int,
        progress: Progress,
    ) -> None:
        self._settings = settings
        self._landing_zone = landing_zone
        self._stage = stage
        self._table = table
        self._db = db
        self._raw = raw
        self._result = result
        self._room = first_differences
        self._progress = progress

    def run(self, batches: Sequence[Batch]) -> None:
        """Compare every batch; outcomes go into the result."""
        partitions = {batch: VerifiedPartition(batch.key) for batch in batches}
        self._result.partitions.extend(partitions.values())
        seen: dict[Batch, RawCounts] = {}
        before = {batch: self._settings.calendar.earlier(batch, 2) for batch in batches}
        rows = {
            batch: count_batch_rows(self._landing_zone, batch, self._settings.raw_limits)
            for each in batches
            for batch in (each, *before[each])
        }
        rounds = (
            1 + max(sum(rows[each] for each in (batch, *before[batch][:1])) for batch in batches) * _BYTES_PER_ROW // self._settings.memory
        )
        self._progress.start(STAGE, rounds * sum(rows.values()))
        for number in range(rounds):
            self._raw.keep([])
            series = f"hash(id) % {rounds} = {number}" if rounds > 1 else "true"
            for batch in batches:
                began = time.perf_counter()
                for read, counts in self._raw.load(batch, series):
                    self._progress.advance(STAGE, rows.get(read, 0))
                    if read in seen:
                        seen[read].points += counts.points
                        seen[read].duplicates += counts.duplicates
                    else:
                        seen[read] = counts
                self._compare(batch, partitions[batch], series)
                partitions[batch].seconds += time.perf_counter() - began
        for batch in batches:
            partitions[batch].points = seen[batch].points
            self._compare_manifests(batch, seen[batch], partitions[batch])
        self._progress.finish(STAGE)

    # ------------------------------------------------------------------------------------------------------------ table

    def _compare(self, batch: Batch, partition: VerifiedPartition, series: str) -> None:
        points = [self._raw.table(each) for each in (*self._settings.calendar.earlier(batch, 1), batch)]
        self._db.execute(f"CREATE OR REPLACE TEMP TABLE expected AS {expected_rows(batch, self._settings, points)}")
        for resolution, rows in self._db.execute("SELECT resolution, count(*) FROM expected GROUP BY ALL ORDER BY ALL").fetchall():
            name = format_duration(resolution)
            partition.rows[name] = partition.rows.get(name, 0) + rows
        self._find(batch, series)
        flags = ", ".join(f"({self._differs(column)}) AS differs_{column}" for column in _COLUMNS)
        any_flag = " OR ".join(f"differs_{column}" for column in _COLUMNS)
        join = " AND ".join(f"e.{column} = f.{column}" for column in _KEY)
        both = ", ".join(f"e.{column} AS expected_{column}, f.{column} AS found_{column}" for column in _COLUMNS)
        key = ", ".join(f"coalesce(e.{column}, f.{column}) AS {column}" for column in _KEY)
        self._db.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE differences AS
            SELECT * FROM (
                SELECT {key}, coalesce(e.metric, f.metric) AS metric, {both}, {flags},
                    e.id IS NULL OR f.copy > 1 AS is_extra, f.id IS NULL AS is_missing
                FROM expected e FULL OUTER JOIN found f ON {join}
            ) WHERE is_extra OR is_missing OR {any_flag}
            """
        )
        extra, missing, rows = self._one("SELECT count(*) FILTER (is_extra), count(*) FILTER (is_missing), count(*) FROM differences")
        partition.extra += extra
        partition.missing += missing
        partition.different += rows - extra - missing
        if rows and self._room:
            self._describe(batch)
        for name in ("expected", "found", "differences"):
            self._db.execute(f"DROP TABLE {name}")

    def _find(self, batch: Batch, series: str) -> None:
        """Make ``found``: the table's rows with the batch's labels, in epoch microseconds; ``copy`` numbers rows with the same key."""
        from rollup_assets.iceberg.reading import snapshot_dataset

        if self._table is None:
            self._db.execute("CREATE OR REPLACE TEMP TABLE found AS SELECT *, 1 AS copy FROM expected WHERE false")
            return
        # With small record batches, Arrow holds only a few MB on top of DuckDB's own memory.
        reader = snapshot_dataset(self._table, batch).scanner(batch_size=32_768, batch_readahead=4, fragment_readahead=2).to_reader()
        self._db.register("table_rows", reader)
        self._db.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE found AS
            SELECT *, row_number() OVER (PARTITION BY {", ".join(_KEY)}) AS copy FROM (
                SELECT * EXCLUDE (logical_timestamp), epoch_us(logical_timestamp) AS label FROM table_rows WHERE {series}
            )
            """
        )
        self._db.unregister("table_rows")

    def _differs(self, column: str) -> str:
        """SQL condition on ``e`` (expected) and ``f`` (found): the column's values differ."""
        distinct = f"e.{column} IS DISTINCT FROM f.{column}"
        if column in _SAME or (column in _ADDED and self._settings.value_type == "long"):
            return distinct
        error = f"e.{_ADDED[column]}" if column in _ADDED else _DERIVED[column]
        # Sums of integers are exact, so values derived from them are rounded only once or twice.
        rounding = f" AND abs(e.{column} - f.{column}) > {_ROUNDING} * {error}" if self._settings.value_type == "double" else ""
        apart = f"abs(e.{column} - f.{column}) > {RELATIVE_TOLERANCE} * greatest(abs(e.{column}), abs(f.{column})){rounding}"
        return f"{distinct} AND (e.{column} IS NULL OR f.{column} IS NULL OR {apart})"

    def _describe(self, batch: Batch) -> None:
        """Report the first differences, value by value."""
        cursor = self._db.execute(f"SELECT * FROM differences ORDER BY resolution, label, id LIMIT {self._room}")
        names = [name for name, *_ in cursor.description or []]
        for values in cursor.fetchall():
            row = dict(zip(names, values, strict=True))
            for column, expected, found in _pairs(row):
                if self._room:
                    self._room -= 1
                    label = to_datetime(0).isoformat() if row["label"] is None else to_datetime(row["label"] // 1_000).isoformat()
                    resolution = format_duration(row["resolution"])
                    self._result.differences.append(
                        Difference(batch.key, row["id"], str(row["metric"]), resolution, label, column, expected, found)
                    )

    def _one(self, query: str) -> tuple[int, ...]:
        row = self._db.execute(query).fetchone()
        assert row is not None
        return row

    # -------------------------------------------------------------------------------------------------------- manifests

    def _compare_manifests(self, batch: Batch, seen: RawCounts, partition: VerifiedPartition) -> None:
        """Compare DuckDB's counts of raw rows and files with those in the staged manifests."""
        rollups, receipt = self._stage.read(ROLLUPS, batch), self._stage.read(ROLLUP_TABLE, batch)
        if rollups is not None and (refused := refusal(receipt, rollups, batch)):
            partition.notes.append(refused)
        staged, quarantined = self._stage.read(REPARTITIONED, batch), self._stage.read(QUARANTINED, batch)
        if staged is None or quarantined is None:
            return
        files = tuple(self._landing_zone.files(batch))
        # Over its limit a batch stages its quarantine, but keeps the datapoints of its earlier raw files.
        if files != staged.inputs or files != quarantined.inputs:
            partition.notes.append(f"raw files changed since they were staged; run `rollups backfill {batch} {batch}`")
            return
        claims = {
            "accepted points": (seen.points, staged.counters["rows_accepted"]),
            "duplicates": (seen.duplicates, staged.counters["duplicates"]),
            "rows of other batches": (seen.elsewhere, staged.counters.get(ELSEWHERE_ROWS, 0)),
        }
        if self._settings.raw_copies == "once":
            claims["copied files"] = (len(seen.copies), staged.counters.get("copied_files", 0))
        rejected = dict(seen.reasons)
        reasons = {reason: rows for reason, rows in quarantined.counters["reasons"].items() if reason not in FILE_REASONS}
        if any(rejected.get(reason) != reasons.get(reason) for reason in _LATE):
            # Which of the two reasons applies depends on ROLLUP_START, and batches far from it are not staged again if it changes.
            late = " or ".join(_LATE)
            for counts in (rejected, reasons):
                counts[late] = sum(counts.pop(reason, 0) for reason in _LATE)
            if rejected[late] == reasons[late]:
                partition.notes.append(
                    f"rows were quarantined as {late} with another ROLLUP_START; to apply the current one, run `rollups backfill {batch} "
                    f"{batch} --force`"
                )
        for reason in sorted(reasons.keys() | rejected.keys()):
            claims[f"rows quarantined as {reason}"] = (rejected.get(reason, 0), reasons.get(reason, 0))
        for name, (counted, claimed) in claims.items():
            if counted != claimed:
                partition.problems.append(f"{name}: raw files have {counted:,}, the manifest says {claimed:,}")
        claimed_files = _bad_files_staged(self._stage, batch)
        if count := sum(reason == TOO_LARGE for reason in claimed_files.values()):
            partition.notes.append(f"{count} raw {'file' if count == 1 else 'files'} quarantined as {TOO_LARGE} not looked at")
        bad_files = seen.bad_files | (seen.copies if self._settings.raw_copies == "report" else set())
        for path in sorted(bad_files ^ claimed_files.keys()):
            found = "it is a copy of another file" if path in seen.copies else "DuckDB cannot read it as raw data"
            partition.problems.append(
                f"{path}: {found}, but it was not quarantined"
                if path in bad_files
                else f"{path}: was quarantined as a whole, but DuckDB reads it as raw data"
            )


def _bad_files_staged(stage: Stage, batch: Batch) -> dict[str, str]:
    """Path in the landing zone → reason, for raw files that are quarantined as a whole."""
    manifest = stage.read(QUARANTINED, batch)
    found = [] if manifest is None else tallies(stage, batch, manifest)
    return {tally.file: tally.reason for tally in found if tally.whole_file}


def _too_large(landing_zone: LandingZone, stage: Stage, batch: Batch) -> set[str]:
    """Raw files that are too large to open, and their copies, according to the quarantine if it was staged from the current files."""
    manifest = stage.read(QUARANTINED, batch)
    if manifest is None or manifest.inputs != tuple(landing_zone.files(batch)):
        return set()
    bad = _bad_files_staged(stage, batch)
    found = {path for path, reason in bad.items() if reason == TOO_LARGE}
    copies = {path for path, reason in bad.items() if reason == COPIED_FILE}
    if found and copies:
        # In the order of the folders, as staging does; that need not be the order of the paths.
        files = (file for some in landing_zone.files_by_folder(batch).values() for file in some)
        originals = find_copies(landing_zone.root, [file for file in files if file.path in found | copies])
        found |= {path for path in copies if originals.get(path) in found}
    return found


def _pairs(row: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(column, expected, found) of one row of ``differences``."""
    summary = "count {}, sum {}, delta {}"
    expected, found = (
        summary.format(*(row[f"{side}_{column}"] for column in ("count_rollup", "sum_rollup", "delta_rollup")))
        for side in ("expected", "found")
    )
    if row["is_missing"]:
        return [("*", expected, "no row")]
    if row["is_extra"]:
        return [("*", "no row" if row["expected_count_rollup"] is None else "one row", found)]
    return [(column, str(row[f"expected_{column}"]), str(row[f"found_{column}"])) for column in _COLUMNS if row[f"differs_{column}"]]
