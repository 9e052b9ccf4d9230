"""Accepted points, read from raw files by DuckDB: type conversion, quarantine rules, duplicates, and the point before each point.

A file that DuckDB cannot read to its end, or whose columns have other types than raw data may have, is a bad file. What the points
add up to stays out.
"""

from __future__ import annotations

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollup_assets.batches import Batch
from rollup_assets.settings import Settings
from rollup_assets.storage.landing_zone import LandingZone
from rollup_assets.storage.manifests import InputFile

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

_INTEGERS = ("INTEGER", "BIGINT")
_MICROSECONDS = ("TIMESTAMP", "TIMESTAMP WITH TIME ZONE")
_NANOSECONDS = ("TIMESTAMP_NS", "TIMESTAMPTZ_NS")
_TIMES = (*_INTEGERS, *_MICROSECONDS, *_NANOSECONDS)


@dataclass(slots=True)
class RawCounts:
    """What the raw files of a batch hold."""

    points: int = 0
    duplicates: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Quarantined rows of good files, by reason."""
    bad_files: set[str] = field(default_factory=set)
    """Paths relative to the landing zone."""


class TrialReader:
    """A database of its own for queries of files that may be damaged, or hostile: some leave a database of DuckDB unusable."""

    def __init__(self, connect: Callable[[], DuckDBPyConnection]) -> None:
        self._connect = connect
        self._db: DuckDBPyConnection | None = None

    def rows(self, query: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The answer; duckdb.Error if there is none."""
        import duckdb

        self._db = self._db or self._connect()
        try:
            return self._db.execute(query, list(parameters)).fetchall()
        except (duckdb.InternalException, duckdb.FatalException):
            self.close()
            raise

    def close(self) -> None:
        """Give its memory back; the next query makes it anew."""
        if self._db is not None:
            self._db.close()
            self._db = None


class RawPoints:
    """The points of a few batches, each a temporary table of DuckDB named by :meth:`table`.

    Columns: ``id, org_id, metric, ts, v, receive`` and ``previous_ts, previous_v`` of the series' point before, null if there is none
    in this batch and the one before it. Times are epoch milliseconds.
    """

    def __init__(
        self,
        db: DuckDBPyConnection,
        settings: Settings,
        landing_zone: LandingZone,
        scratch: Path,
        trial: TrialReader,
        left_out: Callable[[Batch], set[str]],
    ) -> None:
        """``trial``: opens files first; ``left_out``: paths of a batch's files that are bad, and not to be opened."""
        self._db = db
        self._trial = trial
        self._left_out = left_out
        self._settings = settings
        self._landing_zone = landing_zone
        self._scratch = scratch
        self._loaded: dict[Batch, bool] = {}
        """Whether the batch before was there, so that first points know theirs."""
        self._bad_files: dict[Batch, set[str]] = {}

    @staticmethod
    def table(batch: Batch) -> str:
        """Name of the table with the points of a batch."""
        return f"points_{batch.folder.replace('-', '_')}"

    def load(self, batch: Batch, series: str) -> list[tuple[Batch, RawCounts]]:
        """Load a batch and, as far as they are not there, the two before it; what is older is dropped.

        ``series`` is an SQL condition on ``id``. Returns what was found in each batch that had to be read.
        """
        before = self._settings.calendar.earlier(batch, 2)
        chain = [*reversed(before), batch]
        if before and self._loaded.get(before[0]):
            chain = [before[0], batch]
        self.keep(chain)
        read = []
        for position, each in enumerate(chain):
            # The oldest is read for its last points alone: the steps into its own first points do not matter.
            if each not in self._loaded or (position and not self._loaded[each]):
                read.append((each, self._read(each, series)))
        self.keep(chain[-2:])
        return read

    def keep(self, batches: Sequence[Batch]) -> None:
        """Drop all others."""
        for batch in [batch for batch in self._loaded if batch not in batches]:
            self._db.execute(f"DROP TABLE {self.table(batch)}")
            del self._loaded[batch]

    def _read(self, batch: Batch, series: str) -> RawCounts:
        counts = RawCounts()
        value = "DOUBLE" if self._settings.value_type == "double" else "BIGINT"
        self._db.execute(
            f"CREATE OR REPLACE TEMP TABLE good (id BIGINT, org_id BIGINT, metric VARCHAR, ts BIGINT, v {value}, receive BIGINT)"
        )
        local = self._local_files(batch)
        for source in self._sources(batch, local, counts):
            self._db.execute(f"INSERT INTO good SELECT * FROM ({source}) WHERE {self._reason(batch)} IS NULL AND {series}")
        self._trial.close()
        counts.bad_files = self._bad_files[batch] | self._left_out(batch)
        self._accept(batch)
        counts.points = _number(self._db, f"SELECT count(*) FROM {self.table(batch)}")
        counts.duplicates = _number(self._db, "SELECT count(*) FROM good") - counts.points
        self._db.execute("DROP TABLE good")
        shutil.rmtree(self._scratch / batch.folder, ignore_errors=True)
        return counts

    # ------------------------------------------------------------------------------------------------------------ files

    def _local_files(self, batch: Batch) -> dict[str, Path]:
        """Raw files by their path in the landing zone, as files that DuckDB can open; those of object stores are copied.

        Under names of ours, whatever theirs are: DuckDB takes a path for a pattern.
        """
        left_out = self._left_out(batch)
        files = [file for file in self._landing_zone.files(batch) if file.path not in left_out]
        folder = self._scratch / batch.folder
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        bring = self._link if self._landing_zone.root.is_local else self._copy
        return {file.path: bring(file, folder / f"{number:06d}") for number, file in enumerate(files)}

    def _link(self, file: InputFile, target: Path) -> Path:
        target.symlink_to(self._landing_zone.place(file).path)
        return target

    def _copy(self, file: InputFile, target: Path) -> Path:
        with self._landing_zone.place(file).open_input() as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 2**22)
        return target

    def _sources(self, batch: Batch, files: dict[str, Path], counts: RawCounts) -> list[str]:
        """SELECTs of normalized rows, one for all good files with the same column types; counts their quarantined rows."""
        known = self._bad_files.get(batch)
        bad = self._bad_files.setdefault(batch, set())
        alike: dict[str, list[str]] = defaultdict(list)
        for path, local in files.items():
            columns = self._columns(local)
            if columns is None:
                bad.add(path)
            elif path not in bad:
                alike[columns].append(path)
        sources = []
        for columns, paths in alike.items():
            good = paths
            if known is None:
                good = self._readable(columns, paths, files)
                bad.update(set(paths) - set(good))
            if good:
                sources.append(_select(columns, [files[path] for path in good]))
        for source in sources:
            found = self._db.execute(f"SELECT {self._reason(batch)} AS reason, count(*) FROM ({source}) GROUP BY 1").fetchall()
            counts.reasons.update({reason: rows for reason, rows in found if reason is not None})
        return sources

    def _readable(self, columns: str, paths: list[str], files: dict[str, Path]) -> list[str]:
        """Those of ``paths`` whose every page decodes."""
        if self._decodes(columns, [files[path] for path in paths]):
            return paths
        return [path for path in paths if self._decodes(columns, [files[path]])]

    def _decodes(self, columns: str, files: list[Path]) -> bool:
        import duckdb

        try:
            self._trial.rows(f"SELECT bit_xor(hash(id, org_id, metric, ts, v, receive)) FROM ({_select(columns, files)})")
        except (duckdb.OutOfMemoryException, duckdb.InterruptException):
            raise
        except duckdb.Error:
            return False
        return True

    def _columns(self, file: Path) -> str | None:
        """How to select normalized columns from a file; None if it is not Parquet, or its columns are not those of raw data."""
        import duckdb

        try:
            described = self._trial.rows(f"DESCRIBE SELECT * FROM {_scan([file])}")
            names = Counter(name for (name,) in self._trial.rows("SELECT name FROM parquet_schema(?)", [_escaped(file)]))
        except duckdb.Error:
            return None
        types = {name: kind for name, kind, *_ in described}
        value = self._settings.value_column
        accepted = {
            "id": _INTEGERS,
            "org_id": _INTEGERS,
            "metric": ("VARCHAR",),
            "logical_timestamp": _TIMES,
            value: ("FLOAT", "DOUBLE") if self._settings.value_type == "double" else _INTEGERS,
        }
        if "receive_timestamp" in types:
            accepted["receive_timestamp"] = _TIMES
        if any(types.get(name) not in kinds or names[name] != 1 for name, kinds in accepted.items()):
            return None
        receive = _milliseconds("receive_timestamp", types["receive_timestamp"]) if "receive_timestamp" in types else "NULL::BIGINT"
        # Adding 0.0 turns -0.0 into 0.0.
        v = f"{value}::DOUBLE + 0.0" if self._settings.value_type == "double" else f"{value}::BIGINT"
        return (
            f"id::BIGINT AS id, org_id::BIGINT AS org_id, metric, {_milliseconds('logical_timestamp', types['logical_timestamp'])} AS ts, "
            f"{v} AS v, {receive} AS receive"
        )

    def _reason(self, batch: Batch) -> str:
        """Why a normalized row is quarantined; null for a good one."""
        not_finite = "WHEN NOT isfinite(v) THEN 'non_finite_value' " if self._settings.value_type == "double" else ""
        return (
            "CASE WHEN id IS NULL THEN 'null_id' WHEN ts IS NULL THEN 'null_timestamp' WHEN v IS NULL THEN 'null_value' "
            f"{not_finite}WHEN org_id IS NULL OR metric IS NULL THEN 'null_dimension' "
            f"WHEN ts < {batch.start} OR ts >= {batch.end} THEN 'outside_batch' END"
        )

    # ----------------------------------------------------------------------------------------------------------- points

    def _accept(self, batch: Batch) -> None:
        """From ``good``: of rows with one id and timestamp the greatest stays, and each learns of the point before it."""
        before = next(iter(self._settings.calendar.earlier(batch, 1)), None)
        has_before = before is not None and before in self._loaded
        last = (
            f"UNION ALL BY NAME SELECT id, max(ts) AS ts, arg_max(v, ts) AS v, true AS is_before FROM {self.table(before)} GROUP BY id"
            if before is not None and has_before
            else ""
        )
        self._db.execute(
            f"""
            CREATE OR REPLACE TEMP TABLE {self.table(batch)} AS
            WITH several AS (SELECT id, ts FROM good GROUP BY id, ts HAVING count(*) > 1),
            single AS (
                SELECT * FROM good ANTI JOIN several USING (id, ts)
                UNION ALL
                SELECT * FROM good SEMI JOIN several USING (id, ts)
                QUALIFY 1 = row_number() OVER (
                    PARTITION BY id, ts ORDER BY v DESC, metric DESC, org_id DESC, receive DESC NULLS LAST
                )
            ),
            history AS (SELECT *, false AS is_before FROM single {last}),
            stepped AS (
                SELECT *, lag(ts) OVER earlier AS previous_ts, lag(v) OVER earlier AS previous_v
                FROM history WINDOW earlier AS (PARTITION BY id ORDER BY ts)
            )
            SELECT * EXCLUDE (is_before) FROM stepped WHERE NOT is_before
            """
        )
        self._loaded[batch] = has_before or before is None


def _milliseconds(column: str, kind: str) -> str:
    """Epoch milliseconds of a column, floored: DuckDB's own division of integers rounds towards zero."""
    if kind in _INTEGERS:
        return f"{column}::BIGINT"
    ticks, unit = (f"epoch_ns({column})", 1_000_000) if kind in _NANOSECONDS else (f"epoch_us({column})", 1_000)
    return f"(({ticks} - (({ticks} % {unit}) + {unit}) % {unit}) // {unit})"


def _select(columns: str, files: list[Path]) -> str:
    return f"SELECT {columns} FROM {_scan(files)}"


def _scan(files: list[Path]) -> str:
    paths = ", ".join("'" + _escaped(file).replace("'", "''") + "'" for file in files)
    return f"read_parquet([{paths}], hive_partitioning = false)"


def _escaped(file: Path) -> str:
    """A pattern that matches this file alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(file))


def _number(db: DuckDBPyConnection, query: str) -> int:
    row = db.execute(query).fetchone()
    assert row is not None
    return int(row[0])
