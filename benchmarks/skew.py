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
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import data, report, skew_table
from benchmarks.measure import machine
from benchmarks.sites import BATCH_KEY, Site

ROWS, REPEAT = 36_000_000, 5
HOT_POINTS = 3_600_000


def _timed(task: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    """The task, its thread's CPU seconds noted; groups without points (the quarantine's) are not."""

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


def measure(site: Site, repeat: int) -> dict[str, Any]:
    """Median and longest task of each step, without and with the hot series; medians over the repetitions."""
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import load_settings
    from rollup_assets.steps import repartition, rollup

    settings = load_settings(home=str(site.home("skew")), raw=str(site.landing_zone), threads=2)
    pipeline = Pipeline.from_settings(settings)
    batch = pipeline.batch(BATCH_KEY)
    found: dict[str, Any] = {}
    steps: tuple[tuple[str, Any, str], ...] = (("merge", repartition, "sort_shards"), ("roll up", rollup, "roll_up_shards"))
    originals = {name: getattr(module, name) for _, module, name in steps}
    for kind in ("even", "hot"):
        hot = _add_hot_series(site.raw_folder(BATCH_KEY), batch.start) if kind == "hot" else None
        runs: dict[str, list[list[float]]] = {step: [] for step, _, _ in steps}
        for turn in range(repeat + 1):
            for step, module, name in steps:
                runs[step].append([])
                setattr(module, name, _timed(originals[name], runs[step][-1]))
            repartition.stage_batch(pipeline, batch, force=True)
            for before in pipeline.calendar.earlier(batch, settings.reach):
                repartition.stage_batch(pipeline, before)
            rollup.roll_up(pipeline, batch, force=True)
            if turn == 0:  # compiles and warms up
                for step, _, _ in steps:
                    runs[step].clear()
        found[kind] = {
            step: {
                "tasks": len(taken[0]),
                "median": statistics.median(statistics.median(seconds) for seconds in taken),
                "longest": statistics.median(max(seconds) for seconds in taken),
            }
            for step, taken in runs.items()
        }
        if hot:
            hot.unlink()
    for _, module, name in steps:
        setattr(module, name, originals[name])
    return found


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
    command = f"python -m benchmarks.skew --rows {options.rows} --repeat {options.repeat}"
    complete = options.rows == ROWS and options.repeat >= REPEAT
    report.keep({"command": command, "machine": machine(), "tasks": found}, skew_table.NAME, complete=complete, output=None, say=print)
    print(skew_table.table(found))


if __name__ == "__main__":
    main()
