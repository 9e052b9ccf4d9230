"""The sensor: what it reports, which runs it asks for, and that ticks alone bring a late file into the table."""

from __future__ import annotations

import datetime as dt
import logging
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import pytest

from rollup_assets import arrivals
from rollup_assets.defs import sensors
from rollup_assets.defs.partitions import PARTITION_TAG, RANGE_END, RANGE_START
from rollup_assets.defs.report import RAW_DATAPOINTS
from rollup_assets.defs.resources import resources
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import load_settings
from rollup_assets.storage.landing_zone import version_of
from rollup_assets.storage.manifests import REPARTITIONED, ROLLUP_TABLE, ROLLUPS
from rollup_assets_tests.conftest import SMALL
from rollup_assets_tests.defs import fake_steps
from rollup_assets_tests.defs.conftest import PUBLISHING, STAGING, Lab, hour
from rollup_assets_tests.landing import write_rows
from rollup_assets_tests.naive import RawRow, accept, rollups_of
from rollup_assets_tests.strategies import MINUTE

Requests = list[tuple[tuple[str, ...], str]]
STAGE, PUBLISH = tuple(sorted(STAGING)), tuple(sorted(PUBLISHING))


@dataclass
class Daemon:
    """What Dagster's daemon does with the sensor: ticks, events, and runs for keys that it has not seen."""

    lab: Lab
    now: dt.datetime = dt.datetime(2026, 1, 1, 6, 30, tzinfo=dt.UTC)
    cursor: str | None = None
    keys: set[str] = field(default_factory=set)
    asked: Requests = field(default_factory=list)
    skipped: str | None = None

    def __post_init__(self) -> None:
        # Once: resolving a code location takes longer than a run of the steps in miniature.
        self.defs = self.lab.defs
        self.job = self.defs.resolve_job_def("batches")

    def tick(self, minutes: float = 0) -> list[dg.RunRequest]:
        """Evaluate once; returns the requests, whose runs are not executed yet."""
        self.now += dt.timedelta(minutes=minutes)
        sensor = self.defs.resolve_sensor_def(sensors.NAME)
        with dg.build_sensor_context(
            self.lab.instance, self.cursor, definitions=self.defs, resources=resources(self.lab.settings)
        ) as context:
            found = sensor.evaluate_tick(context)
        self.cursor, self.skipped = found.cursor, found.skip_message
        for event in found.asset_events:
            self.lab.instance.report_runless_asset_event(event)
        requests = [request for request in found.run_requests or () if request.run_key not in self.keys]
        self.keys.update(str(request.run_key) for request in requests)
        self.asked += [(assets_of(request), str(request.partition_key)) for request in requests]
        return requests

    def run(self, request: dg.RunRequest) -> dg.ExecuteInProcessResult:
        return self.job.execute_in_process(
            instance=self.lab.instance,
            raise_on_error=False,
            partition_key=request.partition_key,
            asset_selection=list(request.asset_selection or ()),
            tags={**request.tags, sensors.SENSOR_TAG: sensors.NAME},
        )

    def until_quiet(self) -> Requests:
        """Let files settle, then tick and run what is asked for until a tick asks for nothing; returns what was asked."""
        self.asked.clear()
        self.tick()
        minutes = 2.0
        while requests := self.tick(minutes):
            minutes = 0.0
            for request in requests:
                self.run(request)
        return list(self.asked)


def assets_of(request: dg.RunRequest) -> tuple[str, ...]:
    return tuple(sorted(key.to_user_string() for key in request.asset_selection or ()))


@pytest.fixture
def daemon(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    return with_its_time(Daemon(lab), monkeypatch)


def with_its_time(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    monkeypatch.setattr(sensors, "now", lambda: daemon.now)
    return daemon


# ------------------------------------------------------------------------------------------------------------ what Dagster is told


def test_it_is_stopped_until_someone_starts_it(daemon: Daemon) -> None:
    sensor = daemon.defs.resolve_sensor_def(sensors.NAME)
    assert sensor.default_status == dg.DefaultSensorStatus.STOPPED
    assert sensor.description
    assert [target.job_name for target in sensor.targets] == ["batches"]


def test_a_changed_folder_is_reported_with_its_version_and_makes_exactly_what_is_staged_of_it_stale(daemon: Daemon) -> None:
    lab = daemon.lab
    lab.land(dict.fromkeys(range(4), 10))
    lab.run(0, 3)
    lab.run(4, 5, PUBLISHING)
    lab.land({1: 20})
    assert lab.stale(0, 5) == set()
    assert daemon.tick() == []
    assert daemon.skipped == f"nothing to request; raw files of {hour(1)} may still change"
    (request,) = daemon.tick(2)
    assert (assets_of(request), request.partition_key) == (STAGE, hour(1))
    assert request.tags["dagster/priority"] == "-1"
    files = Pipeline.from_settings(lab.settings).landing_zone.files(lab.settings.calendar.batch(hour(1)))
    wanted = dg.AssetRecordsFilter(dg.AssetKey(RAW_DATAPOINTS), asset_partitions=[hour(1)])
    observation = lab.instance.fetch_observations(wanted, limit=1).records[0].asset_observation
    (materialization,) = lab.events(RAW_DATAPOINTS)
    assert observation is not None
    for event in (observation, materialization):
        assert (event.tags or {})["dagster/data_version"] == version_of(files)
        assert (event.partition, event.metadata["files"].value) == (hour(1), 1)
    assert lab.stale(0, 5) == {(asset, 1) for asset in STAGING}
    assert daemon.run(request).success
    assert not lab.stale(0, 5) & {(asset, 1) for asset in STAGING}


def test_a_landing_zone_that_is_gone_is_logged_in_a_few_lines(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a problem of every partition, and Dagster keeps the log of every tick."""
    lab, said = daemon.lab, []
    lab.land(dict.fromkeys(range(6), 10))
    lab.run(0, 5)
    shutil.rmtree(lab.settings.raw)
    monkeypatch.setattr(sensors, "_PROBLEMS_LOGGED", 2)
    monkeypatch.setattr(logging.Logger, "warning", lambda _, message, *__: said.append(message))
    assert daemon.tick() == []
    assert len(said) == 3
    assert all(line.startswith("2026-01-01-0") and " cannot be examined: " in line for line in said[:2])
    assert said[2] == "4 more partitions cannot be examined; see `rollups status`"


@pytest.mark.scenario("C4", "L1")
def test_a_late_file_asks_for_its_partition_and_for_those_that_read_something_else_then(daemon: Daemon) -> None:
    """In the miniature steps what is left open is as large as before, and the content says what it was made from."""
    lab = daemon.lab
    lab.land(dict.fromkeys(range(4), 10))
    lab.run(0, 3)
    lab.run(4, 5, PUBLISHING)
    assert daemon.until_quiet() == []
    lab.land({1: 20})
    assert daemon.until_quiet() == [(STAGE, hour(1)), *((PUBLISH, hour(number)) for number in (1, 2, 3))]
    assert lab.stale(0, 5) == set()
    assert daemon.until_quiet() == []


def test_the_same_content_under_another_version_asks_for_nothing_further(daemon: Daemon) -> None:
    lab = daemon.lab
    lab.land(dict.fromkeys(range(4), 10))
    lab.run(0, 3)
    lab.run(4, 5, PUBLISHING)
    fake_steps.land_same(lab.settings, hour(1))
    assert daemon.until_quiet() == [(STAGE, hour(1))]
    assert lab.stale(0, 5) == set()


def test_a_run_that_failed_is_not_asked_for_again_until_something_else_arrives(daemon: Daemon) -> None:
    daemon.lab.land({0: "crash"})
    assert daemon.until_quiet() == [(STAGE, hour(0))]
    assert daemon.until_quiet() == daemon.until_quiet() == []
    daemon.lab.land({0: 10})
    assert daemon.until_quiet() == [(STAGE, hour(0)), *((PUBLISH, hour(number)) for number in (0, 1, 2))]


def test_a_failed_publish_is_asked_for_once_and_once_more_after_the_cursor_was_reset(daemon: Daemon) -> None:
    """The schedule's run has rolled up and could not publish; neither can the sensor's, before the table is mended."""
    lab = daemon.lab
    lab.land({0: "halt"})
    assert not lab.run(0).success
    assert lab.events(ROLLUP_TABLE, 0) == []
    assert lab.run(1, 2, PUBLISHING).success
    for cursor in (daemon.cursor, None):
        daemon.cursor = cursor
        (request,) = daemon.tick(1)
        assert (assets_of(request), request.partition_key) == (PUBLISH, hour(0))
        assert not daemon.run(request).success
        assert daemon.tick(10) == daemon.tick(10) == []


def test_schedule_and_sensor_together_do_nothing_twice(daemon: Daemon) -> None:
    """The schedule's run of the newest batch, with the sensor's of the same: the second one finds everything as it is."""
    lab = daemon.lab
    lab.land({5: 10})
    daemon.tick()
    (request,) = daemon.tick(2)
    assert lab.run(5).success
    assert daemon.run(request).success
    assert [event.metadata["unchanged"].value for event in lab.events(REPARTITIONED, 5)] == [True, False]
    assert daemon.until_quiet() == []
    lab.land({4: 10})
    assert daemon.until_quiet() == [(STAGE, hour(4)), (PUBLISH, hour(4)), (PUBLISH, hour(5))]
    assert lab.run(5).success
    assert lab.events(ROLLUPS, 5)[0].metadata["unchanged"].value is True


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("tags", [{PARTITION_TAG: hour(1)}, {RANGE_START: hour(0), RANGE_END: hour(2)}], ids=["one", "range"])
def test_partitions_of_runs_that_are_going_on_are_not_asked_for(daemon: Daemon, tags: dict[str, str], *, ours: bool) -> None:
    """Whoever started them: the schedule, the UI, a backfill. Runs of other jobs do not matter."""
    lab = daemon.lab
    lab.land({1: 10})
    run = dg.DagsterRun("batches" if ours else "other", tags=tags, status=dg.DagsterRunStatus.STARTED)
    lab.instance.add_run(run)
    daemon.tick()
    assert [request.partition_key for request in daemon.tick(2)] == ([] if ours else [hour(1)])
    lab.instance.report_run_failed(run)
    assert [request.partition_key for request in daemon.tick()] == ([hour(1)] if ours else [])


def test_in_the_queue_the_newest_partitions_go_before_all_others(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both behind what has no priority of its own, as the schedule's runs."""
    monkeypatch.setattr(arrivals, "ALWAYS_SEEN", 2)
    daemon.lab.land({0: 10, 3: 10, 5: 10})
    daemon.tick()
    priorities = {request.partition_key: int(request.tags["dagster/priority"]) for request in daemon.tick(2)}
    assert priorities == {hour(0): -2, hour(3): -2, hour(5): -1}


@pytest.mark.parametrize("whose", [sensors.NAME, "another_sensor"])
def test_the_queue_takes_no_backlog_beside_fifty_runs_of_the_sensor(daemon: Daemon, whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "ALWAYS_SEEN", 1)
    lab = daemon.lab
    lab.land({0: 10, 5: 10})
    daemon.tick()
    tags = {PARTITION_TAG: hour(3), sensors.SENSOR_TAG: whose}
    runs = [dg.DagsterRun("batches", tags=tags, status=dg.DagsterRunStatus.STARTED) for _ in range(50)]
    for run in runs:
        lab.instance.add_run(run)
    ours = whose == sensors.NAME
    assert [request.partition_key for request in daemon.tick(2)] == ([hour(5)] if ours else [hour(0), hour(5)])
    assert daemon.tick() == []
    assert ("50 runs that the sensor requested have not ended" in str(daemon.skipped)) == ours
    lab.instance.report_run_failed(runs[0])
    assert [request.partition_key for request in daemon.tick()] == ([hour(0)] if ours else [])


# ------------------------------------------------------------------------------------------------------------- with the real steps


@pytest.fixture
def real(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """Nothing in miniature."""
    with dg.DagsterInstance.ephemeral() as instance:
        yield with_its_time(Daemon(Lab(load_settings(home=str(tmp_path), **SMALL), instance)), monkeypatch)


def published(pipeline: Pipeline) -> dict[tuple[int, int, int], tuple[int, float, float | None]]:
    """(series, resolution, label) → count, sum and delta of every row of the table."""
    from rollup_assets_tests.verification.naive_table import content_of

    return {
        (row["id"], row["resolution"], round(row["logical_timestamp"].timestamp() * 1000)): (
            row["count_rollup"],
            row["sum_rollup"],
            row["delta_rollup"],
        )
        for row in content_of(pipeline).to_pylist()
    }


@pytest.mark.scenario("C4", "L1")
def test_ticks_alone_bring_late_and_removed_files_into_the_table(real: Daemon) -> None:
    """From nothing to a table, a late file to its rows, and a folder that was emptied to an empty range; each with no run too many."""
    pipeline = Pipeline.from_settings(real.lab.settings)
    hours = [pipeline.calendar.batch(hour(number)) for number in range(4)]
    files = {
        batch: {"a.parquet": [RawRow(series, 1, "m", batch.start + 1 + minute * MINUTE, minute) for series in (1, 2) for minute in (5, 45)]}
        for batch in hours[:2]
    }

    def expected() -> dict[tuple[int, int, int], tuple[int, float, float | None]]:
        points = [point for batch, contents in files.items() for point in accept(dict(contents), batch.start, batch.end).points]
        rows = rollups_of(points, pipeline.settings.resolutions, pipeline.settings.lookback)
        return {key: (row.count, row.sum, row.delta) for key, row in rows.items()}

    def land(number: int, name: str, rows: list[RawRow]) -> None:
        write_rows(pipeline, hours[number], name, rows)
        files[hours[number]][name] = rows

    for batch, contents in files.items():
        for name, rows in contents.items():
            write_rows(pipeline, batch, name, rows)
    first = real.until_quiet()
    assert sorted(first) == sorted([*((STAGE, hour(number)) for number in (0, 1)), *((PUBLISH, hour(number)) for number in range(4))])
    assert published(pipeline) == expected()

    snapshot = snapshot_of(pipeline)
    land(0, "twice.parquet", files[hours[0]]["a.parquet"][:1])
    assert real.until_quiet() == [(STAGE, hour(0)), (PUBLISH, hour(0))]
    assert (published(pipeline), snapshot_of(pipeline)) == (expected(), snapshot)

    land(0, "end.parquet", [RawRow(1, 1, "m", hours[0].end - 1, 99)])
    assert real.until_quiet() == [(STAGE, hour(0)), *((PUBLISH, hour(number)) for number in (0, 1, 2))]
    assert published(pipeline) == expected()

    shutil.rmtree(pipeline.landing_zone.folder(hours[0]).path)
    assert real.until_quiet() == [(STAGE, hour(0)), *((PUBLISH, hour(number)) for number in (0, 1, 2))]
    files[hours[0]] = {}
    assert published(pipeline) == expected()
    assert min(label for _, _, label in published(pipeline)) > hours[0].end
    assert real.until_quiet() == []


def snapshot_of(pipeline: Pipeline) -> int:
    receipt = pipeline.stage.read(ROLLUP_TABLE, pipeline.calendar.first)
    assert receipt is not None
    return int(receipt.counters["snapshot_id"])
