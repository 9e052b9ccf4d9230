"""Writes a landing zone: several Parquet files per batch, one of them late, and bad files on request.

The bytes depend on the seed and the options alone: not on threads, nor on which other batches are made; in an arrival-time layout the
late file lies in the next folder if that is made too. Existing raw data is never touched. What the rows say is decided in ``fleet`` and
``dirt``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from rollup_assets.batches import Batch
from rollup_assets.engines.base import NoProgress, Progress
from rollup_assets.errors import GeneratorError
from rollup_assets.generator.dirt import Dirt, RawRows, deliver, spoil
from rollup_assets.generator.fleet import Fleet, Points
from rollup_assets.settings import Settings
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.landing_zone import LandingZone
from rollup_assets.storage.storage_errors import explains_storage_errors
from rollup_assets.threads import thread_pool
from rollup_assets.units import format_duration

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

ROW_GROUP = 1_000_000
BAD_FILES = ("truncated", "corrupt", "zero-byte", "wrong-schema")
STAGE = "generate"


@dataclass(frozen=True, slots=True)
class GeneratorOptions:
    """What to generate; ``interval`` is in ms."""

    seed: int = 0
    series: int = 5_000
    interval: int = 10_000
    files: int = 12
    """Files a batch, not counting the late one."""
    dirt: Dirt = field(default_factory=Dirt)
    bad_files: int = 0
    """Bad files in all, spread over the batches; their kinds are those of ``BAD_FILES`` in turn."""
    receive_timestamps: bool = True


@dataclass(frozen=True, slots=True)
class Generated:
    """What was written."""

    batches: tuple[str, ...]
    skipped: tuple[str, ...]
    """Batches that already had raw files and were left as they are."""
    series: int
    rows: int
    """Rows of readable files."""
    files: int
    bytes: int
    dirt: dict[str, int]
    """Rows (and ``bad_files``) that are wrong or unusual, by kind."""


@explains_storage_errors
def generate(
    settings: Settings,
    batches: Sequence[Batch],
    options: GeneratorOptions,
    *,
    keep_existing: bool = False,
    progress: Progress | None = None,
) -> Generated:
    """Fill the landing zone's folders of ``batches``.

    With ``keep_existing``, batches that have raw files are skipped; otherwise this fails before anything is written.

    Raises:
        GeneratorError: a batch has raw files, or an option makes no sense; the message names it.
    """
    _check(options, settings)
    landing_zone = LandingZone.from_settings(settings)
    taken = [batch for batch in batches if landing_zone.folder_files(batch)]
    if taken and not keep_existing:
        raise GeneratorError(
            f"{landing_zone.folder(taken[0]).uri} has raw files already ({len(taken)} of {len(batches)} batches, from {taken[0]}); "
            "existing raw data is never overwritten: choose other batches (--from, --hours) or another landing zone (ROLLUP_RAW)"
        )
    missing = [batch for batch in batches if batch not in taken]
    fleet = Fleet.build(seed=options.seed, series=options.series, interval=options.interval, value_type=settings.value_type)
    writer = _Writer(settings, options, fleet, landing_zone, progress or NoProgress())
    bad_files = _spread_bad_files(options.bad_files, len(missing))
    ticks = -(-settings.batch // options.interval)
    writer.progress.start(STAGE, ticks * options.series * len(missing))
    with thread_pool(settings.threads, "generated files") as pool:
        # The last batch first: in an arrival-time layout, its folder receives the late rows of the batch before.
        of_this_run = set(missing)
        written = [
            writer.write_batch(pool, batch, kinds, late_folder=_late_folder(landing_zone, batch, of_this_run))
            for batch, kinds in reversed(list(zip(missing, bad_files, strict=True)))
        ]
    writer.progress.finish(STAGE)
    counted: Counter[str] = Counter()
    for each in written:
        counted.update(each)
    totals = {name: counted.pop(name) for name in ("rows", "files", "bytes") if name in counted}
    return Generated(
        batches=tuple(batch.key for batch in missing),
        skipped=tuple(batch.key for batch in taken),
        series=options.series,
        rows=totals.get("rows", 0),
        files=totals.get("files", 0),
        bytes=totals.get("bytes", 0),
        dirt=dict(counted),
    )


def _late_folder(landing_zone: LandingZone, batch: Batch, of_this_run: set[Batch]) -> Place | None:
    """Where a batch's late rows arrive, if not in its own folder."""
    following = landing_zone.calendar.shifted(batch, 1)
    return landing_zone.folder(following) if landing_zone.lateness and following in of_this_run else None


def _check(options: GeneratorOptions, settings: Settings) -> None:
    if options.series < 1 or options.files < 1 or options.bad_files < 0:
        raise GeneratorError("--series and --files must be at least 1, --bad-files at least 0")
    if not 2 <= options.interval <= settings.batch:
        raise GeneratorError(
            f"--interval {format_duration(options.interval)} must lie between 2ms and the batch, {format_duration(settings.batch)}"
        )
    shares = {name: getattr(options.dirt, name) for name in Dirt.__slots__}
    for name, share in shares.items():
        if not 0 <= share < 1:
            raise GeneratorError(
                f"--{name.replace('_', '-')} {share} is not a share of the rows; write a number from 0 to below 1, such as 0.01"
            )
    if shares["nulls"] + shares["non_finite"] + shares["outside"] >= 1:
        raise GeneratorError("--nulls, --non-finite and --outside add up to 1 or more, so no row would be left; lower one of them")


def _spread_bad_files(count: int, batches: int) -> list[list[str]]:
    """Kinds of bad files for each batch."""
    kinds: list[list[str]] = [[] for _ in range(batches)]
    for number in range(count if batches else 0):
        kinds[number % batches].append(BAD_FILES[number % len(BAD_FILES)])
    return kinds


@dataclass(frozen=True)
class _Writer:
    settings: Settings
    options: GeneratorOptions
    fleet: Fleet
    landing_zone: LandingZone
    progress: Progress

    @property
    def schema(self) -> pa.Schema:
        value = pa.int64() if self.settings.value_type == "long" else pa.float64()
        fields = [
            ("id", pa.int64()),
            ("org_id", pa.int64()),
            ("metric", pa.dictionary(pa.int32(), pa.string())),
            ("logical_timestamp", pa.int64()),
            (self.settings.value_column, value),
        ]
        return pa.schema(fields + [("receive_timestamp", pa.int64())] * self.options.receive_timestamps)

    def write_batch(self, pool: ThreadPoolExecutor, batch: Batch, bad_files: list[str], *, late_folder: Place | None) -> Counter[str]:
        """Write all files of one batch, the late one to ``late_folder`` if given; returns counts.

        On local disks those in the batch's own folder appear together, once all files are complete.
        """
        folder = self.landing_zone.folder(batch)
        hidden = folder.beside(f".{folder.name}.generating")
        target = hidden if folder.is_local else folder
        if folder.is_local:
            hidden.delete_folder()
        ticks = -(-batch.length // self.options.interval)
        bounds = np.linspace(0, ticks, min(self.options.files, ticks) + 1).astype(np.int64)
        tasks = [
            pool.submit(self._write_file, target / f"part-{number:04d}.parquet", batch, number, int(first), int(last))
            for number, (first, last) in enumerate(pairwise(bounds))
        ]
        counted: Counter[str] = Counter()
        late: list[Points] = []
        for task in tasks:
            counts, rows = task.result()
            counted.update(counts)
            late.extend(rows)
        late_rows = Points.joined(late)
        if len(late_rows.timestamp):
            place = late_folder / f"late-{batch.folder}.parquet" if late_folder else target / f"part-{len(tasks):04d}-late.parquet"
            counted.update(self._write_late_file(place, batch, late_rows))
            if late_folder:
                counted.update({"files": 1, "bytes": place.size() or 0})
        for number, kind in enumerate(bad_files):
            _write_bad_file(
                target / f"part-{len(tasks) + 1 + number:04d}-{kind}.parquet", kind, self._to_table(RawRows(self._sample(batch), {}))
            )
            counted.update({"bad_files": 1})
        found = list(target.files())
        counted.update({"files": len(found), "bytes": sum(info.size for info in found)})
        if folder.is_local:
            folder.filesystem.move(hidden.path, folder.path)
        return counted

    def _write_file(self, place: Place, batch: Batch, number: int, first: int, last: int) -> tuple[Counter[str], list[Points]]:
        """Write the scrapes ``first`` to ``last`` (not included); returns counts and the rows that arrive late."""
        rng = self._rng(batch, number)
        counted: Counter[str] = Counter()
        late: list[Points] = []
        with place.open_output() as stream, self._open(stream) as parquet:
            for tick, ticks, series in self._chunks(first, last):
                points = self.fleet.points(batch.start + tick * self.options.interval, ticks, series, rng)
                if batch.length % self.options.interval:
                    inside = points.timestamp < batch.end
                    points = points.taken(inside)
                in_time, after, duplicates = deliver(points, self.options.dirt, rng)
                rows, wrong = spoil(in_time, self.options.dirt, batch, rng)
                late.append(after)
                parquet.write_table(self._to_table(rows), row_group_size=ROW_GROUP)
                counted.update({"rows": len(rows), "duplicates": duplicates, "late": len(after.timestamp), **wrong})
                self.progress.advance(STAGE, ticks * (series.stop - series.start))
        return counted, late

    def _write_late_file(self, place: Place, batch: Batch, late: Points) -> Counter[str]:
        rng = self._rng(batch, 2**32 - 1)
        order = rng.permutation(len(late.timestamp))
        rows, wrong = spoil(late.taken(order), self.options.dirt, batch, rng)
        with place.open_output() as stream, self._open(stream) as parquet:
            parquet.write_table(self._to_table(rows), row_group_size=ROW_GROUP)
        return Counter({"rows": len(rows), **wrong})

    def _chunks(self, first: int, last: int) -> Iterator[tuple[int, int, slice]]:
        """Scrapes and series of one row group each: whole rounds if they fit, else slices of one round."""
        series = len(self.fleet)
        if series <= ROW_GROUP:
            rounds = max(1, ROW_GROUP // series)
            for tick in range(first, last, rounds):
                yield tick, min(rounds, last - tick), slice(0, series)
            return
        for tick in range(first, last):
            for start in range(0, series, ROW_GROUP):
                yield tick, 1, slice(start, min(start + ROW_GROUP, series))

    def _sample(self, batch: Batch) -> Points:
        """Some good rows, for a bad file to be made from."""
        rng = self._rng(batch, 2**32 - 2)
        ticks = min(-(-2_000 // len(self.fleet)), batch.length // self.options.interval)
        return self.fleet.points(batch.start, ticks, slice(0, min(2_000, len(self.fleet))), rng)

    def _rng(self, batch: Batch, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence([self.options.seed % 2**64, batch.start % 2**64, number])))

    def _open(self, stream: pa.NativeFile) -> pq.ParquetWriter:
        return pq.ParquetWriter(stream, self.schema, compression="zstd", compression_level=1, use_dictionary=["id", "org_id", "metric"])

    def _to_table(self, rows: RawRows) -> pa.Table:
        points, fleet = rows.points, self.fleet
        codes = pa.array(fleet.metric_codes[points.series], mask=rows.nulls.get("metric"))
        columns = [
            pa.array(fleet.ids[points.series], mask=rows.nulls.get("id")),
            pa.array(fleet.org_ids[points.series], mask=rows.nulls.get("org_id")),
            pa.DictionaryArray.from_arrays(codes, pa.array(fleet.metrics)),
            pa.array(points.timestamp, mask=rows.nulls.get("logical_timestamp")),
            pa.array(points.value, mask=rows.nulls.get("value")),
        ]
        if self.options.receive_timestamps:
            columns.append(pa.array(points.timestamp + points.delay, mask=points.delay < 0))
        return pa.Table.from_arrays(columns, schema=self.schema)


def _write_bad_file(place: Place, kind: str, table: pa.Table) -> None:
    """A file that a crashed writer, a broken disk or another program might leave."""
    if kind == "wrong-schema":
        value = table.schema.names[4]
        table = table.set_column(4, value, table[value].cast(pa.string()))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content = sink.getvalue().to_pybytes()
    if kind == "truncated":
        content = content[: len(content) // 2]
    elif kind == "corrupt":
        # The footer stays intact: only reading the pages shows that they do not match it.
        content = content[:4] + b"\xff" * (len(content) // 2) + content[4 + len(content) // 2 :]
    elif kind == "zero-byte":
        content = b""
    with place.open_output() as stream:
        stream.write(content)
