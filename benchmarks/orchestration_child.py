"""One process of ``benchmarks.orchestration``: small batches through Dagster or without it, a batch again, or the kernels' start."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Stopwatch, use_cores

if TYPE_CHECKING:
    from rollup_assets.pipeline import Pipeline

PLAIN, SINGLE, RANGE = "plain functions", "a run a partition", "one run of a range"
AGAIN, KERNELS = "again", "kernels"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job."""
    use_cores(job["threads"])
    if job["do"] == AGAIN:
        return again(job)
    if job["do"] == KERNELS:
        return kernels(job)
    return batches(job)


def batches(job: dict[str, Any]) -> dict[str, Any]:
    """Seconds of all partitions except the first one, which warms up the process."""
    import dagster as dg

    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import load_settings

    settings = load_settings(**job["settings"])
    pipeline = Pipeline.from_settings(settings)
    keys = [batch.key for ahead in range(job["partitions"] + 1) if (batch := settings.calendar.shifted(settings.calendar.first, ahead))]
    watch = Stopwatch()
    if job["do"] == PLAIN:
        _plainly(pipeline, keys[:1])
        with watch.time("batches"):
            _plainly(pipeline, keys[1:])
        return {"wall": watch.wall["batches"], "cpu": watch.cpu["batches"], "partitions": len(keys) - 1}
    with dg.DagsterInstance.from_config(job["dagster_home"]) as instance:
        _through_dagster(settings, instance, keys[:1])
        with watch.time("batches"):
            if job["do"] == RANGE:
                _through_dagster(settings, instance, keys[1:])
            else:
                for key in keys[1:]:
                    _through_dagster(settings, instance, [key])
        events = sum(len(instance.all_logs(run.run_id)) for run in instance.get_runs()[: 1 if job["do"] == RANGE else len(keys) - 1])
    return {"wall": watch.wall["batches"], "cpu": watch.cpu["batches"], "partitions": len(keys) - 1, "events": events}


def _plainly(pipeline: Pipeline, keys: list[str]) -> None:
    """Call the steps in the order in which a run does."""
    from rollup_assets.steps.publish import publish
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.rollup import roll_up

    for key in keys:
        stage_batch(pipeline, pipeline.batch(key))
    for key in keys:
        roll_up(pipeline, pipeline.batch(key))
        publish(pipeline, pipeline.batch(key))


def _through_dagster(settings: Any, instance: Any, keys: list[str]) -> None:
    from rollup_assets.definitions import build_definitions
    from rollup_assets.defs.jobs import JOB_NAME

    job = build_definitions(settings).resolve_job_def(JOB_NAME)
    chosen: dict[str, Any] = {"partition_key": keys[0]} if len(keys) == 1 else {"tags": {RANGE_START: keys[0], RANGE_END: keys[-1]}}
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    result = job.execute_in_process(instance=instance, run_config=quiet, raise_on_error=True, **chosen)
    if not result.success:
        raise RuntimeError(f"the run of {keys} failed")


def again(job: dict[str, Any]) -> dict[str, Any]:
    """A batch's first run, in a warm process, then repetitions with nothing changed; then repetitions through Dagster."""
    import dagster as dg

    from benchmarks import ours
    from benchmarks.contenders import Contender, reset, run
    from benchmarks.sites import BATCH_KEY, THREE, Site
    from benchmarks.tasks import OURS, RAW_TO_PUBLISHED

    contender = Contender(OURS, RAW_TO_PUBLISHED)
    full, small = Site(Path(job["full"])), Site(Path(job["small"]))
    reset(contender, full)
    reset(contender, small)
    run(contender, small, job["threads"], Stopwatch())
    watch = Stopwatch()
    run(contender, full, job["threads"], watch)
    pipeline = ours.open_pipeline(full, THREE, job["threads"])
    times = []
    for _ in range(job["times"]):
        unchanged = Stopwatch()
        times.append(unchanged)
        for step in _steps():
            with unchanged.time(step.__name__):
                found = step(pipeline, pipeline.batch(BATCH_KEY))
            if not found.unchanged:
                raise ValueError(f"{step.__name__} did something though nothing had changed")
    with dg.DagsterInstance.from_config(job["dagster_home"]) as instance:
        _through_dagster(pipeline.settings, instance, [BATCH_KEY])
        through = Stopwatch()
        with through.time("run"):
            _through_dagster(pipeline.settings, instance, [BATCH_KEY])
    return {
        "first": sum(watch.wall.values()),
        "first_cpu": sum(watch.cpu.values()),
        "again": [each.wall for each in times],
        "again_cpu": [sum(each.cpu.values()) for each in times],
        "run": through.wall["run"],
    }


def _steps() -> tuple[Any, ...]:
    from rollup_assets.steps.publish import publish
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.rollup import roll_up

    return stage_batch, roll_up, publish


def kernels(job: dict[str, Any]) -> dict[str, Any]:
    """What a process pays for compiled kernels: the import of numba and kernels, and how much slower its first small batch is than the
    second.

    Arrow and the steps are imported beforehand; whatever else the first batch loads is counted.
    """
    from rollup_assets.loading import load_arrow
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import load_settings

    pipeline = Pipeline.from_settings(load_settings(**job["settings"]))
    batch = pipeline.calendar.first
    load_arrow()
    import pyarrow.parquet  # noqa: F401

    watch = Stopwatch()
    with watch.time("import"):
        from rollup_assets.kernels import checksums, merge, partial, rollup, row_groups, shards, time_order  # noqa: F401
    stage_batch, roll_up, _ = _steps()
    for name in ("first", "second"):
        with watch.time(name):
            stage_batch(pipeline, batch, force=True)
            roll_up(pipeline, batch, force=True)
    costs = {"wall": watch.wall, "cpu": watch.cpu}
    return {name: seconds["import"] + seconds["first"] - seconds["second"] for name, seconds in costs.items()} | {
        "import": watch.wall["import"]
    }


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    Path(job["answer"]).write_text(json.dumps(main(job)))
