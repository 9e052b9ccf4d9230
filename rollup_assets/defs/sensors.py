"""``raw_files_sensor``: stages what arrives late, and rolls up what depends on it, automatically. Stopped until someone starts it.

What is out of date, and when to ask, is in ``rollup_assets.arrivals``; here that becomes events and requests for runs.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of resources as objects.

import datetime as dt
import itertools
from typing import Any

import dagster as dg

from rollup_assets.batches import Batch
from rollup_assets.defs import resources as res
from rollup_assets.defs.assets.datapoints import STAGED
from rollup_assets.defs.assets.rollups import IN_ORDER
from rollup_assets.defs.jobs import JOB_NAME
from rollup_assets.defs.partitions import PARTITION_TAG, RANGE_END, RANGE_START
from rollup_assets.defs.report import RAW_DATAPOINTS
from rollup_assets.defs.run_processes import UNFINISHED
from rollup_assets.settings import Settings

NAME = "raw_files_sensor"
SECONDS_BETWEEN = 30
SENSOR_TAG = "dagster/sensor_name"
PRIORITY_TAG = "dagster/priority"
NEWEST, BACKLOG = "-1", "-2"
"""Priorities of the sensor's runs: in a queue, runs of the schedule and people go first, then the newest partitions, then the backlog."""
_PROBLEMS_LOGGED = 10
"""Of one look. Dagster keeps what a tick logs for ever, and a landing zone that is gone is a problem of every partition."""
GOING_ON = [dg.DagsterRunStatus.QUEUED, *UNFINISHED]


def now() -> dt.datetime:
    """The time; tests replace this."""
    return dt.datetime.now(dt.UTC)


def raw_files_sensor(settings: Settings, job: Any) -> dg.SensorDefinition:
    """The sensor of the job's partitions."""

    @dg.sensor(
        name=NAME,
        job=job,
        minimum_interval_seconds=SECONDS_BETWEEN,
        default_status=dg.DefaultSensorStatus.STOPPED,
        description=(
            "Stages batches whose raw files are new, changed or removed, once the files have not changed for ROLLUP_SENSOR_SETTLE, one "
            "run per partition; then rolls up and publishes exactly those partitions whose inputs have changed in content, or "
            "whose rollups are not published."
        ),
    )
    def look(context: dg.SensorEvaluationContext, storage: res.Storage, catalog: res.Catalog, engine: res.Engine) -> dg.SensorResult:
        from rollup_assets import arrivals

        pipeline = res.pipeline(settings, storage, catalog, engine)
        runs = _going_on(context.instance)
        ranges = [made for run in runs if (made := _range_of(run))]
        under_way = sum(run.tags.get(SENSOR_TAG) == NAME for run in runs)

        def is_being_made(batch: Batch) -> bool:
            return any(first <= batch.key <= last for first, last in ranges)

        memory = arrivals.Memory.parse(context.cursor)
        found = arrivals.look(pipeline, memory, now(), is_being_made=is_being_made, under_way=under_way)
        for what, partitions in (("examined", found.problems), ("rolled up", found.held_back)):
            for key, problem in itertools.islice(partitions.items(), _PROBLEMS_LOGGED):
                context.log.warning(f"{key} cannot be {what}: {problem}")
            if len(partitions) > _PROBLEMS_LOGGED:
                context.log.warning(f"{len(partitions) - _PROBLEMS_LOGGED:,} more partitions cannot be {what}; see `rollups status`")
        events: list[dg.AssetObservation | dg.AssetMaterialization] = []
        for request in found.to_stage:
            # Both events: staleness follows observations, automation follows materializations.
            known: dict[str, Any] = {
                "asset_key": dg.AssetKey(RAW_DATAPOINTS),
                "partition": request.batch.key,
                "metadata": {"files": request.files, "bytes": request.bytes},
                "tags": {"dagster/data_version": request.version},
            }
            events += [dg.AssetObservation(**known), dg.AssetMaterialization(**known)]
        requests = [
            dg.RunRequest(
                run_key=request.key,
                partition_key=request.batch.key,
                asset_selection=[dg.AssetKey(asset) for asset in assets],
                tags={PRIORITY_TAG: NEWEST if request.is_newest else BACKLOG},
            )
            for assets, wanted in ((STAGED, found.to_stage), (IN_ORDER, found.to_roll_up))
            for request in wanted
        ]
        waiting = f"; raw files of {', '.join(found.unsettled)} may still change" if found.unsettled else ""
        if under_way >= arrivals.MOST_UNDER_WAY:
            waiting += f"; {under_way} runs that the sensor requested have not ended, so all but the newest partitions wait"
        if found.left_out:
            context.log.warning(
                f"{found.left_out:,} partitions that are out of date have to wait, since too many others are waiting or failed; once the "
                "cause is fixed, a `rollups backfill` of these others, or *Reset cursor*, makes room"
            )
        return dg.SensorResult(
            run_requests=requests,
            asset_events=events,
            cursor=found.memory.model_dump_json(exclude_defaults=True),
            skip_reason=None if requests else f"nothing to request{waiting}",
        )

    return look


def _going_on(instance: dg.DagsterInstance) -> list[dg.DagsterRun]:
    """The runs of these assets that have not ended."""
    ours = {dg.AssetKey(asset) for asset in (*STAGED, *IN_ORDER)}
    runs = instance.get_runs(dg.RunsFilter(statuses=GOING_ON))
    return [run for run in runs if run.job_name == JOB_NAME or ours & set(run.asset_selection or ())]


def _range_of(run: dg.DagsterRun) -> tuple[str, str] | None:
    """First and last partition of a run, if it has any; all keys have the same length, so they sort like times."""
    single = run.tags.get(PARTITION_TAG)
    first, last = run.tags.get(RANGE_START, single), run.tags.get(RANGE_END, single)
    return (first, last) if first and last else None
