"""How much longer the longest merge and rollup task takes when one series has a tenth of all points: ``python -m benchmarks.skew``.

CPU seconds of each task on the local engine, whose tasks are Spark's. ``hot``: a series with a point every millisecond beside 36 million
points of 100,000 series; ``even``: without it.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from benchmarks import data, report, skew_table
from benchmarks.circumstances import occasion
from benchmarks.sites import BATCH_KEY, Site

if TYPE_CHECKING:
    from rollup_assets.pipeline import Pipeline

ROWS, REPEAT = 36_000_000, 5
PACKAGES = ("numpy", "numba", "pyarrow")
HOT_POINTS = 3_600_000


def _timed(task: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The task, with its thread's CPU seconds recorded, except for groups without points (the quarantine's)."""

    @functools.wraps(task)
    def run(*arguments: Any) -> Any:
        started = time.thread_time()
        result = task(*arguments)
        if getattr(result, "series", 0):
            seconds.append(time.thread_time() - started)
        return result

    return run


def _add_hot_series(folder: Path, start: int) -> Path:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / "hot.parquet"
    columns = {
        "id": np.full(HOT_POINTS, 424_242),
        "org_id": np.ones(HOT_POINTS, np.int64),
        "metric": ["hot"] * HOT_POINTS,
        "logical_timestamp": start + np.arange(HOT_POINTS),
        "long_value": np.arange(HOT_POINTS) % 1000,
    }
    pq.write_table(pa.table(columns), path, row_group_size=1 << 20)
    return path


@contextmanager
def _noted() -> Iterator[dict[str, list[float]]]:
    """Record CPU seconds of the tasks that end inside the block, by step."""
    from rollup_assets.steps import repartition, rollup
    from rollup_assets.steps.roll_up_shards import roll_up_shards
    from rollup_assets.steps.sort import sort_shards

    seconds: dict[str, list[float]] = {"merge": [], "roll up": []}
    with (
        mock.patch.object(repartition, "sort_shards", _timed(sort_shards, seconds["merge"])),
        mock.patch.object(rollup, "roll_up_shards", _timed(roll_up_shards, seconds["roll up"])),
    ):
        yield seconds


def measure(site: Site, repeat: int) -> dict[str, Any]:
    """Median and longest task of each step, without and with the hot series; medians over the repetitions."""
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import load_settings

    settings = load_settings(home=str(site.home("skew")), raw=str(site.landing_zone), threads=2)
    pipeline = Pipeline.from_settings(settings)
    found = {"even": _measure(pipeline, repeat)}
    hot = _add_hot_series(site.raw_folder(BATCH_KEY), pipeline.batch(BATCH_KEY).start)
    try:
        return found | {"hot": _measure(pipeline, repeat)}
    finally:
        hot.unlink()


def _measure(pipeline: Pipeline, repeat: int) -> dict[str, Any]:
    """Measure the points that are there now; figures by step."""
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.rollup import roll_up

    batch = pipeline.batch(BATCH_KEY)
    turns = []
    for _ in range(repeat + 1):
        with _noted() as seconds:
            stage_batch(pipeline, batch, force=True)
            for before in pipeline.calendar.earlier(batch, pipeline.settings.reach):
                stage_batch(pipeline, before)
            roll_up(pipeline, batch, force=True)
        turns.append(seconds)
    # The first one compiles and warms up.
    taken = {step: [seconds[step] for seconds in turns[1:]] for step in turns[0]}
    return {
        step: {
            "tasks": len(runs[0]),
            "median": statistics.median(statistics.median(seconds) for seconds in runs),
            "longest": statistics.median(max(seconds) for seconds in runs),
        }
        for step, runs in taken.items()
    }


def main() -> None:
    """Measure; with the defaults, or more turns, results/skew.json is written."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.skew", description=__doc__)
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--repeat", type=int, default=REPEAT)
    parser.add_argument("--work", type=Path, help="folder for the data; a temporary one unless given")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        site = Site((options.work or Path(temporary)) / f"skew-{options.rows}")
        data.generate(site, options.rows, "scrapes")
        found = measure(site, options.repeat)
    results = {**occasion("python -m benchmarks.skew", PACKAGES), "repeat": options.repeat, "tasks": found}
    complete = options.rows == ROWS and options.repeat >= REPEAT
    report.keep(results, skew_table.NAME, complete=complete, output=None, say=print)
    print(skew_table.table(found))


if __name__ == "__main__":
    main()
