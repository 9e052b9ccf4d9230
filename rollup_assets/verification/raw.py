"""Accepted points, read from raw files by DuckDB: type conversion, quarantine rules, duplicates, and the point before each point.

A file that DuckDB cannot read to its end, or whose columns have other types than raw data may have, is a bad file. What the points
add up to stays out.
"""

from __future__ import annotations

import hashlib
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollup_assets.batches import Batch
from rollup_assets.settings import Settings
from rollup_assets.storage.landing_zone import LandingZone
from rollup_assets.storage.manifests import InputFile
from rollup_assets.storage.storage_errors import is_damage

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, Error

_INTEGERS = ("INTEGER", "BIGINT")
_MICROSECONDS = ("TIMESTAMP", "TIMESTAMP WITH TIME ZONE")
_NANOSECONDS = ("TIMESTAMP_NS", "TIMESTAMPTZ_NS")
# Two magic numbers of four bytes each and the length of a footer.
_LEAST_PARQUET = 12
_MOST_TICKS = 2**63 - 1
_MOST_LAG = 36_525 * 86_400_000
"""Milliseconds: a receive time that is further from the point's own time counts as missing."""
_TIMES = (*_INTEGERS, *_MICROSECONDS, *_NANOSECONDS)
_COLUMNS = ("id", "org_id", "metric", "logical_timestamp", "receive_timestamp")
# Rows of a file that are in memory at once when it is copied.
_ROWS = 32_768
_READ_BYTES = 1 << 20


@dataclass(slots=True)
class RawCounts:
    """What the raw files of a batch hold."""

    points: int = 0
    duplicates: int = 0
    elsewhere: int = 0
    """Rows of good files that other batches are responsible for."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Quarantined rows of good files, by reason."""
    bad_files: set[str] = field(default_factory=set)
    """Paths relative to the landing zone."""
    copies: set[str] = field(default_factory=set)
    """Paths of files with the same content as another one; they are not read."""


@dataclass(frozen=True, slots=True)
class _Columns:
    """How to select normalized columns from a file."""

    select: str
    time: str
    """DuckDB's type of the timestamps."""
    types: tuple[str, ...]
    """DuckDB's types of all these columns: if files are read together, DuckDB uses the first one's types for all."""


@dataclass(frozen=True, slots=True)
class _Source:
    """Normalized rows of some files of one folder."""

    query: str
    folder: Batch
    rows: int
    """Rows of the files, including those that the query leaves out."""


class TrialReader:
    """A separate database for queries of files that may be damaged or hostile: some make a DuckDB database unusable."""

    def __init__(self, connect: Callable[[], DuckDBPyConnection]) -> None:
        self._connect = connect
        self._db: DuckDBPyConnection | None = None

    def rows(self, query: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The query's rows; raises duckdb.Error if it fails."""
        import duckdb

        self._db = self._db or self._connect()
        try:
            return self._db.execute(query, list(parameters)).fetchall()
        except (duckdb.InternalException, duckdb.FatalException):
            self.close()
            raise

    def close(self) -> None:
        """Close the database to free its memory; the next query opens a new one."""
        if self._db is not None:
            self._db.close()
            self._db = None


class RawPoints:
    """The points of a few batches, each a temporary table of DuckDB named by :meth:`table`.

    Columns: ``id, org_id, metric, ts, v, receive`` and ``previous_ts, previous_v`` of the series' previous point, null if there is none
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
        """``trial``: opens files first; ``left_out``: gives the paths of a batch's bad files that must not be opened."""
        self._db = db
        self._trial = trial
        self._left_out = left_out
        self._settings = settings
        self._landing_zone = landing_zone
        self._scratch = scratch
        self._loaded: dict[Batch, bool] = {}
        """Whether the previous batch was loaded, so that first points have their previous ones."""
        self._bad_files: dict[Batch, set[str]] = {}
        self._copies: dict[Batch, dict[str, str]] = {}
        self._decoded: set[str] = set()
        """Files of which every page can be decoded."""

    @staticmethod
    def table(batch: Batch) -> str:
        """Name of the table with the points of a batch."""
        return f"points_{batch.folder.replace('-', '_')}"

    def load(self, batch: Batch, series: str) -> list[tuple[Batch, RawCounts]]:
        """Load a batch and, unless they are loaded, the two before it; older ones are dropped.

        ``series`` is an SQL condition on ``id``. Returns what was found in each batch that had to be read.
        """
        before = self._settings.calendar.earlier(batch, 2)
        chain = [*reversed(before), batch]
        if before and self._loaded.get(before[0]):
            chain = [before[0], batch]
        self.keep(chain)
        read = []
        for position, each in enumerate(chain):
            # The oldest is read only for its last points: whether its own first points have previous ones does not matter.
            if each not in self._loaded or (position and not self._loaded[each]):
                read.append((each, self._read(each, series)))
        self.keep(chain[-2:])
        return read

    def keep(self, batches: Sequence[Batch]) -> None:
        """Drop all other batches."""
        for batch in [batch for batch in self._loaded if batch not in batches]:
            self._db.execute(f"DROP TABLE {self.table(batch)}")
            del self._loaded[batch]

    def _read(self, batch: Batch, series: str) -> RawCounts:
        counts = RawCounts()
        value = "DOUBLE" if self._settings.value_type == "double" else "BIGINT"
        self._db.execute(
            f"CREATE OR REPLACE TEMP TABLE good (id BIGINT, org_id BIGINT, metric VARCHAR, ts BIGINT, v {value}, receive BIGINT)"
        )
        left_out = self._left_out(batch)
        for source in self._sources(batch, counts, left_out):
            fate = self._fate(batch, source.folder)
            self._db.execute(f"INSERT INTO good SELECT * FROM ({source.query}) WHERE {fate} IS NULL AND {series}")
        self._trial.close()
        counts.bad_files = self._bad_files[batch] | left_out
        counts.copies = self._copies[batch].keys() - counts.bad_files
        self._accept(batch)
        counts.points = _number(self._db, f"SELECT count(*) FROM {self.table(batch)}")
        counts.duplicates = _number(self._db, "SELECT count(*) FROM good") - counts.points
        self._db.execute("DROP TABLE good")
        shutil.rmtree(self._scratch / batch.folder, ignore_errors=True)
        return counts

    # ------------------------------------------------------------------------------------------------------------ files

    def _folders(self, batch: Batch) -> list[Batch]:
        """The batches whose folders may hold points of this one: its own, later ones, then earlier ones, nearest first."""
        length, first = self._settings.batch, self._settings.calendar.start
        late = self._settings.raw_lateness
        early = -(-(self._settings.raw_future or 0) // length) if late else 0
        starts = [batch.start + length * count for count in (*range(late + 1), *range(-1, -early - 1, -1))]
        return [Batch(start, start + length) for start in starts if start >= first]

    def _local_files(self, batch: Batch, left_out: set[str]) -> dict[Batch, dict[str, Path]]:
        """Folder → path in the landing zone → local file that DuckDB can open: a link, or a copy from an object store.

        The local files have names of ours, since DuckDB takes a path for a pattern.
        """
        scratch = self._scratch / batch.folder
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        bring = self._link if self._landing_zone.root.is_local else self._copy
        zone, found, number = self._landing_zone, dict[Batch, dict[str, Path]](), 0
        for folder in self._folders(batch):
            found[folder] = {}
            for file in zone.folder_files(folder):
                if file.path in left_out:
                    continue
                found[folder][file.path] = bring(file, scratch / f"{number:06d}")
                number += 1
        return found

    def _link(self, file: InputFile, target: Path) -> Path:
        target.symlink_to(self._landing_zone.place(file).path)
        return target

    def _copy(self, file: InputFile, target: Path) -> Path:
        with self._landing_zone.place(file).open_input() as source, target.open("wb") as sink:
            shutil.copyfileobj(source, sink, 2**22)
        return target

    def _sources(self, batch: Batch, counts: RawCounts, left_out: set[str]) -> list[_Source]:
        """Normalized rows, one source for all good files of a folder with the same column types; counts rows that are not points."""
        files = self._local_files(batch, left_out)
        if batch not in self._copies:
            self._copies[batch] = _copies([local for folder in files.values() for local in folder.items()])
        sources = [source for folder, local in files.items() for source in self._sources_of(batch, folder, local)]
        # Copies of a bad file are bad, too.
        self._bad_files[batch].update(copy for copy, original in self._copies[batch].items() if original in self._bad_files[batch])
        for source in sources:
            fate = self._fate(batch, source.folder)
            found = self._db.execute(f"SELECT {fate} AS fate, count(*) FROM ({source.query}) GROUP BY 1").fetchall()
            fates = Counter({fate: rows for fate, rows in found if fate not in (None, "elsewhere")})
            points = sum(rows for fate, rows in found if fate is None)
            counts.reasons.update(fates)
            counts.elsewhere += source.rows - points - fates.total()
        return sources

    def _sources_of(self, batch: Batch, folder: Batch, files: dict[str, Path]) -> Iterator[_Source]:
        bad = self._bad_files.setdefault(batch, set())
        alike: dict[_Columns, list[str]] = defaultdict(list)
        for path, local in files.items():
            if path in self._copies[batch]:
                continue
            columns = self._columns(local)
            if columns is None:
                bad.add(path)
            elif path not in bad:
                alike[columns].append(path)
        for columns, paths in alike.items():
            whole = self._decoding(columns, paths, files)
            if whole:
                yield _Source(_select(columns, [files[path] for path in whole]), folder, self._rows([files[path] for path in whole]))
            for path in sorted(set(paths) - set(whole)):
                query = self._with_integers(columns, files[path])
                if query is None and folder != batch:
                    query = self._part(columns, files[path], batch, folder)
                if query is None:
                    bad.add(path)
                else:
                    yield _Source(query, folder, self._rows([files[path]]))

    def _decoding(self, columns: _Columns, paths: list[str], files: dict[str, Path]) -> list[str]:
        """Those of ``paths`` of which every page can be decoded."""
        new = [path for path in paths if path not in self._decoded]
        if new and self._decodes(_select(columns, [files[path] for path in new])):
            self._decoded.update(new)
        else:
            self._decoded.update(path for path in new if self._decodes(_select(columns, [files[path]])))
        return [path for path in paths if path in self._decoded]

    def _with_integers(self, columns: _Columns, file: Path) -> str | None:
        """All rows of a file with millisecond timestamps outside the range of DuckDB's microseconds; None if it is damaged.

        DuckDB cannot decode a page with such a timestamp, so it gets a copy of the file with integers instead.
        """
        import duckdb
        import pyarrow as pa

        if not isinstance(self._decoding_error(_select(columns, [file])), duckdb.ConversionException):
            return None
        copy = file.with_name(f"{file.name}-integers")
        try:
            _copy_with_integers(file, copy, (*_COLUMNS, self._settings.value_column))
        except (pa.ArrowException, OSError, ValueError) as error:
            if not is_damage(error):
                raise
            return None
        columns_of_copy = self._columns(copy)
        if columns_of_copy is None:
            return None
        query = _select(columns_of_copy, [copy])
        return query if self._decodes(query) else None

    def _part(self, columns: _Columns, file: Path, batch: Batch, folder: Batch) -> str | None:
        """A query of the row groups that the batch needs of a damaged file in another folder; None if these are damaged too."""
        import duckdb

        first, last = (_milliseconds(f"stats_{end}_value::{columns.time}", columns.time) for end in ("min", "max"))
        low, high = self._range(batch, folder)
        try:
            groups = self._trial.rows(
                f"""
                SELECT coalesce({last} < {low} OR {first} >= {high}, false), row_group_num_rows FROM parquet_metadata(?)
                WHERE path_in_schema = 'logical_timestamp' ORDER BY row_group_id
                """,
                [_escaped(file)],
            )
        except duckdb.Error:
            return None
        wanted, row = ["false"], 0
        for is_ruled_out, rows in groups:
            if not is_ruled_out:
                wanted.append(f"(file_row_number >= {row} AND file_row_number < {row + rows})")
            row += rows
        query = f"SELECT {columns.select} FROM {_scan([file], numbered=True)} WHERE {' OR '.join(wanted)}"
        return query if self._decodes(query) else None

    def _rows(self, files: list[Path]) -> int:
        """How many rows the files have by their footers."""
        paths = ", ".join(_quoted(file) for file in files)
        return _number(self._db, f"SELECT sum(num_rows) FROM parquet_file_metadata([{paths}])")

    def _decodes(self, query: str) -> bool:
        return self._decoding_error(query) is None

    def _decoding_error(self, query: str) -> Error | None:
        import duckdb

        try:
            self._trial.rows(f"SELECT bit_xor(hash(id, org_id, metric, ts, v, receive)) FROM ({query})")
        except (duckdb.OutOfMemoryException, duckdb.InterruptException):
            raise
        except duckdb.Error as error:
            return error
        return None

    def _columns(self, file: Path) -> _Columns | None:
        """The file's columns; None if it is not Parquet, or its columns are not those of raw data."""
        import duckdb

        try:
            described = self._trial.rows(f"DESCRIBE SELECT * FROM {_scan([file])}")
            names = _top_level(self._trial.rows("SELECT name, num_children FROM parquet_schema(?)", [_escaped(file)]))
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
        time, receive = _milliseconds("logical_timestamp", types["logical_timestamp"]), "NULL::BIGINT"
        if "receive_timestamp" in types:
            received = _milliseconds("receive_timestamp", types["receive_timestamp"])
            receive = f"CASE WHEN abs({received}::HUGEINT - {time}) <= {_MOST_LAG} THEN {received} END"
        # Adding 0.0 turns -0.0 into 0.0.
        v = f"{value}::DOUBLE + 0.0" if self._settings.value_type == "double" else f"{value}::BIGINT"
        return _Columns(
            f"id::BIGINT AS id, org_id::BIGINT AS org_id, metric, {time} AS ts, {v} AS v, {receive} AS receive",
            types["logical_timestamp"],
            tuple(types[name] for name in accepted),
        )

    def _fate(self, batch: Batch, folder: Batch) -> str:
        """SQL for why a folder's normalized row is not a point of the batch: a quarantine reason or ``elsewhere``; null for a point."""
        settings = self._settings
        not_finite = "WHEN NOT isfinite(v) THEN 'non_finite_value' " if settings.value_type == "double" else ""
        wrong = (
            "WHEN id IS NULL THEN 'null_id' WHEN ts IS NULL THEN 'null_timestamp' WHEN v IS NULL THEN 'null_value' "
            f"{not_finite}WHEN org_id IS NULL OR metric IS NULL THEN 'null_dimension' "
        )
        if settings.raw_lateness:
            wrong += (
                f"WHEN ts < {settings.calendar.start} THEN 'before_start' "
                f"WHEN ts < {folder.start - settings.raw_lateness * settings.batch} THEN 'too_late' "
                f"WHEN ts >= {folder.end + (settings.raw_future or 0)} THEN 'in_future' "
            )
        elif settings.raw_future is not None:
            wrong += f"WHEN ts >= {folder.end + settings.raw_future} THEN 'in_future' "
        outside = f"WHEN ts < {batch.start} OR ts >= {batch.end} THEN"
        if folder == batch:
            return f"CASE {wrong} {outside} '{'elsewhere' if settings.raw_lateness else 'outside_batch'}' END"
        return f"CASE {outside} 'elsewhere' WHEN (CASE {wrong} END) IS NOT NULL THEN 'elsewhere' END"

    def _range(self, batch: Batch, folder: Batch) -> tuple[int, int]:
        """The time range, start and end in epoch ms, of the batch's points that may be in another batch's ``folder``."""
        return batch.start, min(batch.end, folder.end + (self._settings.raw_future or 0))

    # ----------------------------------------------------------------------------------------------------------- points

    def _accept(self, batch: Batch) -> None:
        """Make the batch's table from ``good``: of rows with the same id and timestamp the greatest stays; each gets its previous point."""
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
    # DuckDB treats int64's greatest number and its negative as infinity, which has no ticks.
    ticks = f"coalesce({ticks}, CASE WHEN {column} > 'epoch' THEN {_MOST_TICKS} WHEN {column} < 'epoch' THEN -{_MOST_TICKS} END)"
    return f"({ticks} // {unit} - ({ticks} % {unit} < 0)::BIGINT)"


def _copy_with_integers(file: Path, copy: Path, names: Sequence[str]) -> None:
    """Copy a Parquet file, with the columns in ``names`` that it has, and timestamps in milliseconds as integers.

    With pyarrow, a few rows at a time: the pipeline's own reader would bring its bugs into the verification.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq
    import pyarrow.types as pt

    def integer(field: pa.Field) -> pa.Field:
        return field.with_type(pa.int64()) if pt.is_timestamp(field.type) and field.type.unit == "ms" else field

    with pq.ParquetFile(file, buffer_size=_READ_BYTES, pre_buffer=False, page_checksum_verification=True) as source:
        schema = pa.schema([integer(field) for field in source.schema_arrow if field.name in names])
        with pq.ParquetWriter(copy, schema) as sink:
            for batch in source.iter_batches(_ROWS, columns=schema.names, use_threads=False):
                # Arrow does not check dictionary indices and texts by itself.
                batch.validate(full=True)
                sink.write_batch(batch.cast(schema))


def _top_level(schema: Sequence[tuple[str, int | None]]) -> Counter[str]:
    """How many top-level columns have each name; fields inside columns do not count.

    ``schema`` has the root, then each column followed by the fields inside it, each with its number of children.
    """
    names: Counter[str] = Counter()
    inside = 0
    for name, children in schema[1:]:
        if inside:
            inside -= 1
        else:
            names[name] += 1
        inside += children or 0
    return names


def _copies(files: Sequence[tuple[str, Path]]) -> dict[str, str]:
    """Path of each file with the same bytes as an earlier one → that one's path; files too small to be Parquet do not count."""
    by_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for path, local in files:
        if (size := local.stat().st_size) >= _LEAST_PARQUET:
            by_size[size].append((path, local))
    found: dict[str, str] = {}
    for alike in by_size.values():
        seen: dict[bytes, str] = {}
        for path, local in alike if len(alike) > 1 else ():
            with local.open("rb") as content:
                digest = hashlib.file_digest(content, "blake2b").digest()
            original = seen.setdefault(digest, path)
            if original != path:
                found[path] = original
    return found


def _select(columns: _Columns, files: list[Path]) -> str:
    return f"SELECT {columns.select} FROM {_scan(files)}"


def _scan(files: list[Path], *, numbered: bool = False) -> str:
    numbers = ", file_row_number = true" if numbered else ""
    return f"read_parquet([{', '.join(_quoted(file) for file in files)}], hive_partitioning = false{numbers})"


def _quoted(file: Path) -> str:
    return "'" + _escaped(file).replace("'", "''") + "'"


def _escaped(file: Path) -> str:
    """A pattern that matches this file alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in str(file))


def _number(db: DuckDBPyConnection, query: str) -> int:
    row = db.execute(query).fetchone()
    assert row is not None
    return int(row[0])
