"""The raw points that are measured: deterministic, as a scraper leaves them. Existing data of the same size is used again.

Shapes:

``scrapes`` (dense): every series has a point every 10 s with up to a second of jitter, files hold whole scrapes one after the other, and
within a scrape series come in any order.

``sparse``: every series has one point a minute, so a 1 min row for every point. Targets of 500 series are scraped at a moment of the minute
of their own, with up to a second of jitter; the series of a scrape share its time. Files follow each other in time, and within a minute
targets come in any order, another one each minute. Half of the metrics are counters, half gauges. Ids look like hashes; where there are
more series than fit a Parquet dictionary (131,072) they take 8 bytes a point of 10.3, while those of ``scrapes`` take 2 of 8.5.

``fleet``: the project's own generator, with counters, gaps, series that come and go, receive times, 1 % late and 2 % displaced rows, but
nothing to be dropped, since peers are not asked to drop anything.

Nothing is missing or doubled, and but for ``fleet`` nothing is late. The two hours before (their last two minutes; of ``fleet`` all of
them) are there too, so that the batch takes over open windows of every series.

``python -m benchmarks.data FOLDER --shape sparse --series 11441379 --files 60 --hour-before`` is the seed's own batch: 686,482,740 points,
and the hour before it in full. It takes less than 1 GiB of memory, however many series there are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from benchmarks.sites import BATCH_KEY, DESCRIPTION, EARLIER_KEYS, EPOCH_MS, HOUR_MS, Site

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

SHAPES = ("scrapes", "sparse", "fleet")
SCRAPE_MS = 10_000
SCRAPES = HOUR_MS // SCRAPE_MS
FILES = 12
SCRAPES_BEFORE = 12
METRICS = 500
ORGS = 97
MINUTE_MS = 60_000
MINUTES = HOUR_MS // MINUTE_MS
MINUTES_BEFORE = 2
TARGET = METRICS
"""Series that are scraped together: one of each metric."""
_JITTER_MS = 1_000
_ROWS_AT_ONCE = 1 << 20
_VERSION = 1


def series_for(rows: int, shape: str = "scrapes") -> int:
    """How many series have about ``rows`` points in an hour."""
    return max(1, rows // (MINUTES if shape == "sparse" else SCRAPES))


def generate(site: Site, rows: int, shape: str, *, files: int = FILES, hour_before: bool = False, threads: int = 2) -> None:
    """Write the landing zone of a site unless it is there.

    ``files`` of the batch, and ``hour_before``, the batch before in full, are for ``sparse`` alone.
    """
    wanted = {"version": _VERSION, "series": series_for(rows, shape), "shape": shape}
    if shape == "sparse":
        wanted |= {"files": files, "hour_before": hour_before}
    made = site.root / DESCRIPTION
    if made.exists() and json.loads(made.read_text()) == wanted:
        return
    shutil.rmtree(site.root, ignore_errors=True)
    site.root.mkdir(parents=True)
    if shape == "sparse":
        _generate_sparse(site, series_for(rows, shape), files, hour_before=hour_before, threads=threads)
    else:
        {"scrapes": _generate_scrapes, "fleet": _generate_fleet}[shape](site, series_for(rows))
    made.write_text(json.dumps(wanted))


def _generate_scrapes(site: Site, series: int) -> None:
    for number, key in enumerate((*EARLIER_KEYS, BATCH_KEY)):
        folder = site.raw_folder(key)
        folder.mkdir(parents=True)
        start = EPOCH_MS + int(key[11:13]) * HOUR_MS
        first = 0 if key == BATCH_KEY else SCRAPES - SCRAPES_BEFORE
        files = FILES if key == BATCH_KEY else 1
        scrapes = (SCRAPES - first) // files
        for file in range(files):
            _write_scrapes(
                str(folder / f"raw-{file:03d}.parquet"), series, start + (first + file * scrapes) * SCRAPE_MS, scrapes, [number, file]
            )


def _write_scrapes(path: str, series: int, start: int, scrapes: int, seed: list[int]) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    ids, names = _ids(series), _names()
    metrics = (ids % METRICS).astype(np.int32)
    values = 1_000 + np.cumsum(rng.integers(-5, 6, size=(scrapes, series), dtype=np.int64), axis=0) + _level(ids)
    tables = []
    for scrape in range(scrapes):
        order = rng.permutation(series)
        columns = {
            "id": ids[order],
            "org_id": ids[order] % ORGS,
            "metric": pa.DictionaryArray.from_arrays(pa.array(metrics[order]), names),
            "logical_timestamp": start + scrape * SCRAPE_MS + rng.integers(0, 1_000, size=series),
            "long_value": values[scrape][order],
        }
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def _generate_sparse(site: Site, series: int, files: int, *, hour_before: bool, threads: int) -> None:
    """Files are written by several threads: each value follows from series and minute alone."""
    fleet = _Targets(series)
    with ThreadPoolExecutor(threads) as pool:
        written = []
        for key in (*EARLIER_KEYS, BATCH_KEY):
            folder = site.raw_folder(key)
            folder.mkdir(parents=True)
            end = int(key[11:13]) * MINUTES + MINUTES
            whole = key == BATCH_KEY or (hour_before and key == EARLIER_KEYS[-1])
            minutes = MINUTES if whole else MINUTES_BEFORE
            number = files if whole else max(1, files * minutes // MINUTES)
            scrapes = minutes * fleet.targets
            for file in range(number):
                some = range(
                    (end - minutes) * fleet.targets + scrapes * file // number,
                    (end - minutes) * fleet.targets + scrapes * (file + 1) // number,
                )
                written.append(pool.submit(fleet.write, str(folder / f"raw-{file:03d}.parquet"), some))
        for each in written:
            each.result()


class _Targets:
    """Series by the target that they are scraped from, and what a scrape finds. Scrapes are numbered by minute, then as they arrive."""

    def __init__(self, series: int) -> None:
        import numpy as np

        self.series = series
        self.targets = -(-series // TARGET)
        self.ids = _ids(series)
        self.levels = _level(self.ids)
        # The windows of a minute end with it: 1 ms after the last one's end up to 1 ms before its own.
        self.offsets = 1 + np.random.default_rng(0).integers(0, MINUTE_MS - _JITTER_MS, size=self.targets)

    def write(self, path: str, scrapes: range) -> None:
        """The points of some scrapes, in row groups of a million rows."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.parquet as pq

        group: list[pa.RecordBatch] = []
        with pq.ParquetWriter(path, self._found(0, np.arange(0), np.arange(0), 0).schema, compression="zstd") as writer:
            for batch in self._batches(scrapes):
                if sum(map(len, group)) + len(batch) > _ROWS_AT_ONCE:
                    writer.write_table(pa.Table.from_batches(group))
                    group.clear()
                group.append(batch)
            if group:
                writer.write_table(pa.Table.from_batches(group))

    def _batches(self, scrapes: range) -> Iterator[pa.RecordBatch]:
        import numpy as np

        step = _ROWS_AT_ONCE // TARGET
        for minute in range(scrapes.start // self.targets, -(-scrapes.stop // self.targets)):
            rng = np.random.default_rng([1, minute])
            order = rng.permutation(self.targets)
            jitter = rng.integers(0, _JITTER_MS, size=self.targets)
            low = max(0, scrapes.start - minute * self.targets)
            high = min(self.targets, scrapes.stop - minute * self.targets)
            for start in range(low, high, step):
                yield self._found(minute, order[start : min(start + step, high)], jitter, start)

    def _found(self, minute: int, targets: NDArray[np.int64], jitter: NDArray[np.int64], place: int) -> pa.RecordBatch:
        """What the scrapes of these targets find in a minute."""
        import numpy as np
        import pyarrow as pa

        series = (targets[:, np.newaxis] * TARGET + np.arange(TARGET)).ravel()
        series = series[series < self.series]
        targets, metrics = series // TARGET, (series % TARGET).astype(np.int32)
        ids = self.ids[series]
        noise = np.random.default_rng([2, minute, place]).integers(0, 10, size=len(series))
        counted = np.where(metrics % 2 == 0, 10 * minute, 0)
        columns = {
            "id": ids,
            "org_id": targets % ORGS,
            "metric": pa.DictionaryArray.from_arrays(pa.array(metrics), _names()),
            "logical_timestamp": EPOCH_MS + minute * MINUTE_MS + self.offsets[targets] + jitter[targets],
            "long_value": 1_000 + self.levels[series] + counted + noise,
        }
        return pa.RecordBatch.from_pydict(columns)


def _ids(series: int) -> NDArray[np.int64]:
    """Distinct ids that look like hashes, as ids of series do: multiplying by an odd number permutes the integers."""
    import numpy as np

    return (np.arange(1, series + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(1)).astype(np.int64)


def _names() -> pa.Array:
    import pyarrow as pa

    return pa.array([f"service.metric.name.{number}" for number in range(METRICS)])


def _level(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Series lie at different heights, from a hundred to a million."""
    import numpy as np

    return (10.0 ** (2 + ids % 1_000 / 250)).astype(np.int64)


def _generate_fleet(site: Site, series: int) -> None:
    from rollup_assets.generator.dirt import Dirt
    from rollup_assets.generator.landing import GeneratorOptions, generate
    from rollup_assets.settings import load_settings

    settings = load_settings(home=site.root, raw=str(site.landing_zone))
    batches = [settings.calendar.batch(key) for key in (*EARLIER_KEYS, BATCH_KEY)]
    dirt = Dirt(duplicates=0.0, nulls=0.0, non_finite=0.0, outside=0.0)
    generate(settings, batches, GeneratorOptions(series=series, interval=SCRAPE_MS, files=FILES, dirt=dirt))


def main(
    folder: Annotated[Path, typer.Argument(help="Where the landing zone, and what benchmarks make of it, goes.")],
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = "sparse",
    rows: Annotated[int, typer.Option(help="Points of the batch.")] = 36_000_000,
    series: Annotated[int, typer.Option(help="Instead of rows: how many series.")] = 0,
    files: Annotated[int, typer.Option(help="Files of the batch.")] = FILES,
    hour_before: Annotated[bool, typer.Option("--hour-before", help="The batch before in full, not its last two minutes.")] = False,
    threads: Annotated[int, typer.Option(help="Files that are written at a time.")] = 2,
) -> None:
    """Write the raw points of a benchmark."""
    wanted = series * (MINUTES if shape == "sparse" else SCRAPES) if series else rows
    site = Site(folder.resolve())
    generate(site, wanted, shape, files=files, hour_before=hour_before, threads=threads)
    size = sum(Path(path).stat().st_size for path in site.raw_files)
    print(f"{series_for(wanted, shape):,} series, {len(site.raw_files)} files, {size:,} bytes")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
