"""A week of hourly partitions is restated while new ones arrive and readers query: ``python -m benchmarks.load``.

Each is a process of its own: two restate half a week each, hour by hour, because of a late file in each; one publishes new hours; and
readers ask for all hours at once. Each answer is compared with the counts that follow from the raw points. No reader may ever see half a
batch: an hour in one state at 1 min and in another at 5 min, or missing, or in an earlier state than one already seen.

``benchmarks.load_table`` makes the table of docs/reliability.md.
"""

from __future__ import annotations

import functools
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import load_table, report
from benchmarks.catalogs import catalogs
from benchmarks.circumstances import occasion
from benchmarks.measure import peak_bytes_of_tree

if TYPE_CHECKING:
    from rollup_assets.batches import Batch
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import Settings

Options = dict[str, Any]
"""Settings to pass to another process; a ``Settings`` would not do, since its passwords stay where they were read."""
WEEK, ARRIVALS, READERS, SERIES = 168, 24, 2, 50
MINUTE_MS, HOUR_MS = 60_000, 3_600_000
PACKAGES = ("numpy", "pyarrow", "pyiceberg", "duckdb")
_TRIES = 20
"""How often to start a batch again if another process has replaced its inputs meanwhile."""
_QUESTION = """
select epoch_ms(time_bucket(interval 1 hour, logical_timestamp)) as hour, resolution, sum(count_rollup)::bigint as points
from rollups group by all
"""
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class World:
    """Raw points of known counts.

    Every series has a point in each minute; an hour's late file adds one half an hour after the hour's start, so that it changes windows of
    the hour itself and the 1 h window that the next hour publishes.
    """

    first: int
    """Start of the first hour, epoch ms."""
    series: int = SERIES

    def times(self, hour: int, *, late: bool) -> NDArray[np.int64]:
        """Times of the points of one hour's regular files, or of its late one, epoch ms; series vary fastest."""
        begin = self.first + hour * HOUR_MS
        minutes = np.array([30 * MINUTE_MS + 30_000]) if late else np.arange(60) * MINUTE_MS
        return (begin + minutes[:, None] + 1 + np.arange(self.series)[None, :]).ravel()

    def land(self, pipeline: Pipeline, hour: int, *, late: bool) -> None:
        """Write an hour's raw file, or its late one."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        times = self.times(hour, late=late)
        ids = np.tile(np.arange(self.series), len(times) // self.series)
        columns = {"id": ids, "org_id": ids % 5, "logical_timestamp": times, "long_value": times // 1000}
        place = pipeline.landing_zone.folder(self.batch(pipeline, hour)) / f"{'late' if late else 'points'}.parquet"
        table = pa.table({**columns, "metric": pa.array(["requests_total"] * len(times))})
        with place.open_output() as stream:
            pq.write_table(table, stream)

    def batch(self, pipeline: Pipeline, hour: int) -> Batch:
        """The batch of an hour."""
        return pipeline.calendar.containing(self.first + hour * HOUR_MS)

    def points(self, hour: int, resolution: int, *, late: bool, late_before: bool) -> int:
        """Points in the windows that an hour publishes; ``late``, ``late_before``: whether its late file, or the last hour's, counts."""
        begin, end = self.first + hour * HOUR_MS, self.first + (hour + 1) * HOUR_MS
        times = [self.times(hour, late=False)] + ([self.times(hour, late=True)] if late else [])
        if hour > 0:
            times += [self.times(hour - 1, late=False)] + ([self.times(hour - 1, late=True)] if late_before else [])
        labels = -(-np.concatenate(times) // resolution) * resolution
        return int(np.count_nonzero((labels >= begin) & (labels < end)))

    def states(self, hour: int, resolutions: Sequence[int]) -> dict[tuple[int, ...], int]:
        """The states that an hour may be in: points by resolution -> progress of its restatement."""
        return {
            tuple(self.points(hour, resolution, late=late, late_before=before) for resolution in resolutions): late + before
            for before in (False, True)
            for late in (False, True)
        }


@dataclass(slots=True)
class Wrote:
    """What a writer did."""

    batches: int = 0
    tries_again: int = 0
    longest: float = 0.0
    """Seconds of the slowest batch, from raw files to the table."""
    peak_bytes: int = 0
    problems: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Read:
    """What a reader saw."""

    queries: int = 0
    seconds: list[float] = field(default_factory=list)
    hours_seen: int = 0
    peak_bytes: int = 0
    problems: list[str] = field(default_factory=list)


def _make(pipeline: Pipeline, batch: Batch, wrote: Wrote, *, stage: bool) -> None:
    """Bring a batch from raw files to the table; start again if other processes have replaced its inputs meanwhile."""
    from rollup_assets.errors import ConcurrentWriteError, NotStagedError, StageCorruptError, StaleInputError
    from rollup_assets.steps.publish import publish
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.results import Waiting
    from rollup_assets.steps.rollup import roll_up

    began = time.perf_counter()
    for _ in range(_TRIES):
        try:
            if stage:
                stage_batch(pipeline, batch)
            if not isinstance(roll_up(pipeline, batch), Waiting):
                publish(pipeline, batch)
            break
        except (StaleInputError, ConcurrentWriteError, NotStagedError, StageCorruptError):
            wrote.tries_again += 1
            time.sleep(0.05)
    else:
        wrote.problems.append(f"{batch} was begun {_TRIES} times")
    wrote.batches += 1
    wrote.longest = max(wrote.longest, time.perf_counter() - began)


def restate(world: World, options: Options, hours: Sequence[int], answers: Queue[Any]) -> None:
    """Land each hour's late file, and bring that hour and those that depend on it up to date."""
    pipeline, wrote = _pipeline(options), Wrote()
    for hour in hours:
        world.land(pipeline, hour, late=True)
        for ahead in range(pipeline.settings.reach + 1):
            if hour + ahead <= max(hours):
                _make(pipeline, world.batch(pipeline, hour + ahead), wrote, stage=ahead == 0)
    _end(answers, wrote)


def arrive(world: World, options: Options, hours: Sequence[int], answers: Queue[Any]) -> None:
    """Land and publish hours that are new."""
    pipeline, wrote = _pipeline(options), Wrote()
    for hour in hours:
        world.land(pipeline, hour, late=False)
        _make(pipeline, world.batch(pipeline, hour), wrote, stage=True)
    _end(answers, wrote)


def read(world: World, options: Options, hours: int, published: int, stop: Event, answers: Queue[Any]) -> None:
    """Ask for all hours at once, again and again, until told to stop; the first ``published`` hours are never missing."""
    settings = _pipeline(options).settings
    found, newest = Read(), dict.fromkeys(range(hours), 0)
    states = {hour: world.states(hour, settings.resolutions) for hour in range(hours)}
    while not stop.is_set() or not found.queries:
        began = time.perf_counter()
        seen = _seen(settings)
        found.seconds.append(time.perf_counter() - began)
        found.queries += 1
        for hour in range(hours):
            points = tuple(seen.get((world.first + hour * HOUR_MS, resolution), 0) for resolution in settings.resolutions)
            if not any(points) and hour >= published:
                continue
            found.hours_seen += 1
            state = states[hour].get(points)
            if state is None:
                found.problems.append(f"hour {hour} has {points} points, none of {sorted(states[hour])}")
            elif state < newest[hour]:
                found.problems.append(f"hour {hour} is as it was before what was seen earlier")
            else:
                newest[hour] = state
    _end(answers, found)


def _seen(settings: Settings) -> dict[tuple[int, int], int]:
    """Points by start of the hour, epoch ms, and resolution, as one query finds them."""
    from rollup_assets.query import query

    return {(row["hour"], row["resolution"]): row["points"] for row in query(settings, _QUESTION).to_pylist()}


def _pipeline(options: Options) -> Pipeline:
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import load_settings

    return Pipeline.from_settings(load_settings(**options))


def _end(answers: Queue[Any], found: Wrote | Read) -> None:
    found.peak_bytes = peak_bytes_of_tree()
    answers.put(found)


def run(options: Options, *, week: int, arrivals: int, readers: int, series: int = SERIES) -> dict[str, Any]:
    """Run all of it once, on an empty table.

    Raises:
        RuntimeError: a process ended without an answer.
    """
    pipeline = _pipeline(options)
    world = World(pipeline.calendar.first.start, series)
    prepared = Wrote()
    for hour in range(week):
        world.land(pipeline, hour, late=False)
        _make(pipeline, world.batch(pipeline, hour), prepared, stage=True)
    context = multiprocessing.get_context("spawn")
    answers, stop = context.Queue(), context.Event()
    half = week // 2
    jobs: list[Callable[[], None]] = [
        functools.partial(restate, world, options, range(half), answers),
        functools.partial(restate, world, options, range(half, week), answers),
        functools.partial(arrive, world, options, range(week, week + arrivals), answers),
    ]
    looks = [functools.partial(read, world, options, week + arrivals, week, stop, answers) for _ in range(readers)]
    began = time.perf_counter()
    writers, watchers = ([context.Process(target=job) for job in some] for some in (jobs, looks))
    for process in (*watchers, *writers):
        process.start()
    wrote: list[Wrote] = []
    saw: list[Read] = []
    try:
        wrote += [_answer(answers, writers) for _ in writers]
        wall = time.perf_counter() - began
        # The boundary between the halves: the process that reached it first has not seen the other's last hours.
        last = Wrote()
        for hour in range(week + min(arrivals, 1)):
            _make(pipeline, world.batch(pipeline, hour), last, stage=False)
    finally:
        stop.set()
    saw += [_answer(answers, watchers) for _ in watchers]
    for process in (*watchers, *writers):
        process.join()
    unfinished = _unfinished(world, pipeline.settings, week, arrivals)
    return {
        "seconds": wall,
        "batches": sum(one.batches for one in wrote),
        "tries_again": sum(one.tries_again for one in wrote),
        "longest": max(one.longest for one in wrote),
        "writer_peak_bytes": max(one.peak_bytes for one in wrote),
        "queries": sum(one.queries for one in saw),
        "query_seconds": sorted(seconds for one in saw for seconds in one.seconds),
        "hours_seen": sum(one.hours_seen for one in saw),
        "reader_peak_bytes": max(one.peak_bytes for one in saw),
        "problems": [
            *(problem for one in (*wrote, last) for problem in one.problems),
            *(problem for one in saw for problem in one.problems),
            *unfinished,
        ],
    }


def _unfinished(world: World, settings: Settings, week: int, arrivals: int) -> list[str]:
    """A message for each hour that is not in its final state when everything has ended."""
    seen, problems = _seen(settings), []
    for hour in range(week + arrivals):
        late = {"late": hour < week, "late_before": hour <= week}
        wanted = [world.points(hour, resolution, **late) for resolution in settings.resolutions]
        points = [seen.get((world.first + hour * HOUR_MS, resolution), 0) for resolution in settings.resolutions]
        if points != wanted:
            problems.append(f"in the end hour {hour} has {points} points, not {wanted}")
    return problems


def _answer(answers: Queue[Any], processes: Sequence[Any]) -> Any:
    """The next answer of any process."""
    import queue

    while True:
        try:
            return answers.get(timeout=1)
        except queue.Empty:
            if failed := [process for process in processes if process.exitcode]:
                raise RuntimeError(f"a process of the load ended with status {failed[0].exitcode}") from None


def is_complete(*, week: int, arrivals: int, readers: int, store: str) -> bool:
    """Whether these options measure the whole benchmark."""
    return (week, arrivals, readers, store) == (WEEK, ARRIVALS, READERS, "")


def main(
    week: Annotated[int, typer.Option(min=2, help="Hours that are published at first, and then restated.")] = WEEK,
    arrivals: Annotated[int, typer.Option(min=0, help="Hours that arrive meanwhile.")] = ARRIVALS,
    readers: Annotated[int, typer.Option(min=1, help="Processes that query.")] = READERS,
    store: Annotated[str, typer.Option(help=f"One of: {'; '.join(load_table.STORES)}. Both unless given.")] = "",
    output: Annotated[Path | None, typer.Option(help="Results, JSON. With the defaults benchmarks/results/load.json.")] = None,
) -> None:
    """Readers beside writers: nobody sees half a batch."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="load-") as folder, catalogs(Path(folder)) as running:
        for name in [store] if store else load_table.STORES:
            options = {**running.choices[name], "home": f"{folder}/{name.split(',')[0]}", "threads": 1, "shards": 4, "memory": "256MiB"}
            found[name] = run(options, week=week, arrivals=arrivals, readers=readers)
            seconds, problems = found[name]["seconds"], found[name]["problems"]
            console.print(f"{name}: {found[name]['queries']} queries in {seconds:.0f} s, problems: {problems[:5]}")
    results = {
        **occasion("python -m benchmarks.load", PACKAGES),
        "week": week,
        "arrivals": arrivals,
        "readers": readers,
        "series": SERIES,
        "stores": found,
    }
    complete = is_complete(week=week, arrivals=arrivals, readers=readers, store=store)
    report.keep(results, load_table.NAME, complete=complete, output=output, say=console.print)
    console.print(load_table.table(results))
    if any(one["problems"] for one in found.values()):
        raise typer.Exit(1)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
