"""How the benchmarks' raw points look, shape by shape, and how a collector leaves them in files. The shapes: ``benchmarks.data``.

Everything is deterministic: what a file holds follows from shape, number of series and the file's place in the hour.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.data import FILES, SCRAPE_MS
from benchmarks.sites import BATCH_KEY, EARLIER_KEYS, EPOCH_MS, HOUR_MS, Site

if TYPE_CHECKING:
    import pyarrow as pa
    from numpy.typing import NDArray

SCRAPES = HOUR_MS // SCRAPE_MS
SCRAPES_BEFORE = 12
MINUTE_MS = 60_000
THIRD_MS = HOUR_MS // 3
METRICS = 500
ORGS = 97
TARGET = METRICS
"""Series that are scraped together: one of each metric."""
LATE_SHARE = 0.05
LATE_SCRAPES = 90
"""Late points arrive up to this many scrapes, a quarter of an hour, after those that they were measured with."""
HOT_SHARE = 0.6
HOT_POINTS = 3_000_000
"""The most points of a series in an hour that has 3,600,000 milliseconds."""
_JITTER_MS = 1_000
_ROWS_AT_ONCE = 1 << 20


# Dense: files of whole scrapes, series in any order within each.


def write_scrapes(site: Site, series: int, *, late: bool = False, doubles: bool = False) -> None:
    """Write points every 10 s of every series; ``late``: 5 % of the batch's arrive late; ``doubles``: values are float64 hundredths."""
    for number, key in enumerate((*EARLIER_KEYS, BATCH_KEY)):
        folder = site.raw_folder(key)
        folder.mkdir(parents=True)
        start = EPOCH_MS + int(key[11:13]) * HOUR_MS
        first = 0 if key == BATCH_KEY else SCRAPES - SCRAPES_BEFORE
        files = FILES if key == BATCH_KEY else 1
        scrapes = (SCRAPES - first) // files
        waiting = _Waiting(series) if late and key == BATCH_KEY else None
        for file in range(files):
            found = _scrapes(series, start + (first + file * scrapes) * SCRAPE_MS, scrapes, [number, file], doubles=doubles)
            arrived = (waiting.delayed(file * scrapes + scrape, table) for scrape, table in enumerate(found)) if waiting else found
            _write_whole(folder / f"raw-{file:03d}.parquet", list(arrived))


def _scrapes(series: int, start: int, scrapes: int, seed: list[int], *, doubles: bool) -> Iterator[pa.Table]:
    import pyarrow as pa

    rng = np.random.default_rng(seed)
    ids = _ids(series)
    metrics = (ids % METRICS).astype(np.int32)
    values = 1_000 + np.cumsum(rng.integers(-5, 6, size=(scrapes, series), dtype=np.int64), axis=0) + _level(ids)
    for scrape in range(scrapes):
        order = rng.permutation(series)
        times = start + scrape * SCRAPE_MS + rng.integers(0, 1_000, size=series)
        found = values[scrape][order]
        yield pa.table(_columns(ids[order], ids[order] % ORGS, metrics[order], times, found / 100 if doubles else found))


class _Waiting:
    """Late points on their way: they arrive some scrapes after the others of their scrape, but within the batch."""

    def __init__(self, series: int) -> None:
        self._rng = np.random.default_rng([3, series])
        self._tables: list[tuple[int, int, pa.Table]] = []

    def delayed(self, scrape: int, table: pa.Table) -> pa.Table:
        """What arrives with a scrape: its own points except late ones, and late ones of earlier scrapes."""
        import pyarrow as pa

        late = np.flatnonzero(self._rng.random(len(table)) < LATE_SHARE)
        due = np.minimum(scrape + self._rng.integers(1, LATE_SCRAPES, size=len(late)), SCRAPES - 1)
        if scrape < SCRAPES - 1:
            for when in np.unique(due).tolist():
                heapq.heappush(self._tables, (when, scrape, table.take(late[due == when])))
            table = table.take(np.setdiff1d(np.arange(len(table)), late, assume_unique=True))
        arrived = [table]
        while self._tables and self._tables[0][0] <= scrape:
            arrived.append(heapq.heappop(self._tables)[2])
        return pa.concat_tables(arrived)


def _write_whole(path: Path, tables: list[pa.Table]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


# Sparse: files of scrapes of one target each; within an interval, targets come in any order.


class Targets:
    """Series by the target that they are scraped from, once per interval, and what a scrape finds.

    Scrapes are numbered by interval since the epoch, then as they arrive.
    """

    def __init__(self, series: int, interval_ms: int = MINUTE_MS) -> None:
        self.series = series
        self.interval_ms = interval_ms
        self.targets = -(-series // TARGET)
        self.ids = _ids(series)
        self.levels = _level(self.ids)
        # Windows end with their label: a time of 0 would belong to the window before.
        self.offsets = 1 + np.random.default_rng(0).integers(0, interval_ms - _JITTER_MS, size=self.targets)

    def batches(self, scrapes: range) -> Iterator[pa.RecordBatch]:
        """The points of some scrapes, at most a million rows at a time."""
        step = _ROWS_AT_ONCE // TARGET
        for interval in range(scrapes.start // self.targets, -(-scrapes.stop // self.targets)):
            rng = np.random.default_rng([1, interval])
            order = rng.permutation(self.targets)
            jitter = rng.integers(0, _JITTER_MS, size=self.targets)
            low = max(0, scrapes.start - interval * self.targets)
            high = min(self.targets, scrapes.stop - interval * self.targets)
            for start in range(low, high, step):
                yield self._found(interval, order[start : min(start + step, high)], jitter, start)

    def _found(self, interval: int, targets: NDArray[np.int64], jitter: NDArray[np.int64], place: int) -> pa.RecordBatch:
        """What the scrapes of these targets find in an interval."""
        import pyarrow as pa

        series = (targets[:, np.newaxis] * TARGET + np.arange(TARGET)).ravel()
        series = series[series < self.series]
        targets, metrics = series // TARGET, (series % TARGET).astype(np.int32)
        noise = np.random.default_rng([2, interval, place]).integers(0, 10, size=len(series))
        counted = np.where(metrics % 2 == 0, 10 * interval, 0)
        times = EPOCH_MS + interval * self.interval_ms + self.offsets[targets] + jitter[targets]
        values = 1_000 + self.levels[series] + counted + noise
        return pa.RecordBatch.from_pydict(_columns(self.ids[series], targets % ORGS, metrics, times, values))


def write_targets(site: Site, targets: Targets, intervals_before: int, files: int, *, hour_before: bool = False, threads: int = 2) -> None:
    """Write one point per interval and series; of the batches before, ``intervals_before`` intervals or all of the last one.

    Files are written by several threads, since each value follows from series and interval alone.
    """
    hour = HOUR_MS // targets.interval_ms

    def content(first: int, last: int) -> Iterator[pa.RecordBatch]:
        return targets.batches(range(first, last))

    _write_slices(site, hour, intervals_before, targets.targets, content, files, hour_before=hour_before, threads=threads)


class Hot:
    """A few series with most of the points, at many milliseconds of each minute, beside targets that are scraped once a minute."""

    def __init__(self, rows: int) -> None:
        self.hot = hot_series(rows)
        self.points = int(rows * HOT_SHARE) // self.hot // (HOUR_MS // MINUTE_MS)
        """Points of each hot series in a minute."""
        self.targets = Targets(cool_series(rows))
        self.ids = _ids(self.targets.series + self.hot)[-self.hot :]

    def minutes(self, first: int, last: int) -> Iterator[pa.RecordBatch]:
        """The points of some minutes since the epoch, in order of time."""
        import pyarrow as pa

        each = self.targets.targets
        for minute in range(first, last):
            found = pa.Table.from_batches([*self.targets.batches(range(minute * each, (minute + 1) * each)), self._hot(minute)])
            found = found.combine_chunks()
            yield from found.take(np.argsort(found["logical_timestamp"].to_numpy(), kind="stable")).combine_chunks().to_batches()

    def _hot(self, minute: int) -> pa.RecordBatch:
        import pyarrow as pa

        rng = np.random.default_rng([4, minute])
        moments = np.concatenate([rng.choice(MINUTE_MS, self.points, replace=False) for _ in range(self.hot)]).astype(np.int64)
        series = np.repeat(np.arange(self.hot), self.points)
        times = minute * MINUTE_MS + moments
        # Every other series is a counter.
        values = 1_000 + series + np.where(series % 2 == 0, times, rng.integers(0, 1_000, size=len(times)))
        return pa.RecordBatch.from_pydict(
            _columns(self.ids[series], series % ORGS, (series % METRICS).astype(np.int32), EPOCH_MS + times, values)
        )


def hot_series(rows: int) -> int:
    """How many series have most of the points: four, or more if there are not enough milliseconds for their points."""
    return max(4, -int(-rows * HOT_SHARE // HOT_POINTS))


def cool_series(rows: int) -> int:
    """How many other series there are, with a point a minute."""
    return max(1, int(rows * (1 - HOT_SHARE)) // (HOUR_MS // MINUTE_MS))


def write_hot(site: Site, hot: Hot, minutes_before: int, files: int, *, threads: int = 2) -> None:
    """Write a few series with most of the points; of the batches before, the last ``minutes_before`` minutes."""
    _write_slices(site, HOUR_MS // MINUTE_MS, minutes_before, 1, hot.minutes, files, threads=threads)


def _write_slices(
    site: Site, hour: int, before: int, each: int, content: Callable[[int, int], Iterator[pa.RecordBatch]], files: int, *,
    hour_before: bool = False, threads: int,
) -> None:  # fmt: skip
    """Cut an hour of ``hour`` intervals with ``each`` parts into files that follow each other in time, and write them."""
    with ThreadPoolExecutor(threads) as pool:
        written = []
        for key in (*EARLIER_KEYS, BATCH_KEY):
            folder = site.raw_folder(key)
            folder.mkdir(parents=True)
            end = (int(key[11:13]) + 1) * hour
            whole = key == BATCH_KEY or (hour_before and key == EARLIER_KEYS[-1])
            intervals = hour if whole else before
            number = files if whole else max(1, files * intervals // hour)
            first, parts = (end - intervals) * each, intervals * each
            for file in range(number):
                some = content(first + parts * file // number, first + parts * (file + 1) // number)
                written.append(pool.submit(_write_batches, folder / f"raw-{file:03d}.parquet", some))
        for done in written:
            done.result()


def _write_batches(path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    """Write batches to a file, in row groups of a million rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    nothing = np.empty(0, np.int64)
    schema = pa.RecordBatch.from_pydict(_columns(nothing, nothing, nothing.astype(np.int32), nothing, nothing)).schema
    group: list[pa.RecordBatch] = []
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in batches:
            if group and sum(map(len, group)) + len(batch) > _ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_batches(group), row_group_size=_ROWS_AT_ONCE)
                group.clear()
            group.append(batch)
        if group:
            writer.write_table(pa.Table.from_batches(group), row_group_size=_ROWS_AT_ONCE)


def _columns(
    ids: NDArray[np.int64],
    orgs: NDArray[np.int64],
    metrics: NDArray[np.int32],
    times: NDArray[np.int64],
    values: NDArray[np.int64] | NDArray[np.float64],
) -> dict[str, pa.Array | NDArray[np.int64] | NDArray[np.float64]]:
    import pyarrow as pa

    names = pa.array([f"service.metric.name.{number}" for number in range(METRICS)])
    return {
        "id": ids,
        "org_id": orgs,
        "metric": pa.DictionaryArray.from_arrays(pa.array(metrics), names),
        "logical_timestamp": times,
        "double_value" if values.dtype == np.float64 else "long_value": values,
    }


def _ids(series: int) -> NDArray[np.int64]:
    """Distinct ids that look like hashes, as ids of series do: multiplying by an odd number permutes the integers."""
    return (np.arange(1, series + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(1)).astype(np.int64)


def _level(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each series' level of values, from a hundred to a million."""
    return (10.0 ** (2 + ids % 1_000 / 250)).astype(np.int64)
