"""``rollups backfill``: which partitions are made, in which runs, and what is said of those that are not."""

from __future__ import annotations

import datetime as dt
import os
import signal
import socket
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from rollup_assets.defs import backfill, run_processes
from rollup_assets.defs.backfill import run_backfill
from rollup_assets.defs.partitions import RANGE_END, RANGE_START
from rollup_assets.defs.rollbacks import record_rollback
from rollup_assets.errors import DagsterHomeError, UnknownPartitionError
from rollup_assets.history.rollback import RolledBack
from rollup_assets.outcomes import BackfillResult, PartitionOutcome
from rollup_assets.settings import Settings, load_settings
from rollup_assets.storage.manifests import PARTIAL_POINTS, REPARTITIONED, ROLLUP_TABLE, ROLLUPS
from rollup_assets_tests.conftest import WithDagsterHome
from rollup_assets_tests.defs import fake_steps
from rollup_assets_tests.defs.conftest import hour


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings without a Dagster home."""
    fake_steps.install(monkeypatch)
    return load_settings(home=str(tmp_path), threads=1, memory="256MiB")


@pytest.fixture
def settings(bare: Settings, with_dagster_home: WithDagsterHome) -> Settings:
    with_dagster_home(bare.home)
    return bare


def fill(settings: Settings, first: int, last: int, **options: Any) -> BackfillResult:
    return run_backfill(settings, hour(first), hour(last), **options)


def hours(*counts: int) -> tuple[str, ...]:
    return tuple(hour(count) for count in counts)


def recorded(settings: Settings, asset: str) -> set[str]:
    with dg.DagsterInstance.local_temp(str(settings.dagster_home)) as instance:
        return set(instance.get_materialized_partitions(dg.AssetKey(asset)))


def land(settings: Settings, *counts: int) -> None:
    for count in counts:
        fake_steps.land(settings, hour(count), 10 + count)


def test_a_backfill_publishes_the_range_and_the_trailing_partitions(settings: Settings) -> None:
    land(settings, 0, 1, 2)
    result = fill(settings, 0, 2)
    assert result.published == hours(0, 1, 2, 3, 4)
    assert (result.waiting, result.failed, result.skipped, result.success) == ({}, {}, (), True)
    assert recorded(settings, REPARTITIONED) == set(hours(0, 1, 2))
    assert recorded(settings, ROLLUPS) == recorded(settings, ROLLUP_TABLE) == set(hours(0, 1, 2, 3, 4))


def test_trailing_partitions_with_raw_files_of_their_own_wait_and_that_is_no_failure(settings: Settings) -> None:
    land(settings, 0, 1, 2)
    result = fill(settings, 0, 1)
    assert result.published == hours(0, 1)
    assert result.waiting.keys() == {hour(2), hour(3)}
    assert result.success


def test_the_batches_before_the_first_one_are_staged_where_they_are_missing_and_have_raw_files(settings: Settings) -> None:
    land(settings, 0, 1, 3, 4)
    result = fill(settings, 4, 4)
    assert recorded(settings, REPARTITIONED) == set(hours(3, 4))  # 2 has no raw file; 1 is not read
    assert recorded(settings, ROLLUPS) == set(hours(4, 5, 6))
    assert result.published == hours(4, 5, 6)
    fill(settings, 4, 4)
    with dg.DagsterInstance.local_temp(str(settings.dagster_home)) as instance:
        wanted = dg.AssetRecordsFilter(dg.AssetKey(REPARTITIONED), asset_partitions=[hour(3)])
        assert len(instance.fetch_materializations(wanted, limit=9).records) == 1


def test_a_failing_partition_stops_only_itself_and_those_that_need_it(settings: Settings) -> None:
    land(settings, 0, 1, 2, 3, 4, 5, 6)
    fake_steps.land(settings, hour(2), "quarantine")
    result = fill(settings, 0, 6)
    assert result.published == hours(0, 1, 5, 6, 7, 8)
    assert result.failed.keys() == {hour(2), hour(3), hour(4)}
    assert "quarantined" in result.failed[hour(2)]
    assert result.failed[hour(3)] == f"needs {PARTIAL_POINTS} {hour(2)}, which failed"
    assert recorded(settings, REPARTITIONED) == set(hours(0, 1, 3, 4, 5, 6))
    assert not result.success


def test_a_partition_that_cannot_be_published_leaves_the_others_alone(settings: Settings) -> None:
    land(settings, 0, 1, 2)
    fake_steps.land(settings, hour(1), "unbalanced")
    result = fill(settings, 0, 2)
    assert result.failed.keys() == {hour(1)}
    assert result.published == hours(0, 2, 3, 4)


def test_after_a_table_that_is_not_what_was_committed_nothing_else_is_tried(settings: Settings) -> None:
    land(settings, 0, 1, 2)
    fake_steps.land(settings, hour(1), "halt")
    result = fill(settings, 0, 2)
    assert result.published == hours(0)
    assert set(hours(1, 2)) <= result.failed.keys()
    assert "not tried" in result.failed[hour(2)]


def test_a_long_range_is_cut_into_runs_of_at_most_so_many_partitions(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert backfill.PARTITIONS_PER_RUN == 24
    monkeypatch.setattr(backfill, "PARTITIONS_PER_RUN", 2)
    result = fill(settings, 0, 2)
    assert len(result.published) == 5
    with dg.DagsterInstance.local_temp(str(settings.dagster_home)) as instance:
        ranges = [
            (instance.get_run_by_id(run).tags[RANGE_START], instance.get_run_by_id(run).tags[RANGE_END])  # type: ignore[union-attr]
            for run in result.runs
        ]
    assert ranges == [hours(0, 1), hours(0, 1), hours(2, 2), hours(2, 2), hours(3, 4)]


def test_runs_are_those_of_the_job_and_recorded_where_the_ui_looks(bare: Settings) -> None:
    settings = bare
    land(settings, 0)
    result = fill(settings, 0, 0)
    assert "nux" in (settings.dagster_home / "dagster.yaml").read_text()
    with dg.DagsterInstance.local_temp(str(settings.dagster_home)) as instance:
        runs = instance.get_runs()
        assert {run.run_id for run in runs} == set(result.runs)
        assert {run.job_name for run in runs} == {"batches"}
        assert all(run.is_success for run in runs)


BROKEN_HOMES = {
    "a file": "is a file; set it to another one",
    "below a file": "is a file; set it to another one",
    "broken": r"cannot be opened \(.*correct its dagster.yaml",
    "a database that is none": r"cannot be opened \(.*correct its dagster.yaml",
}


def break_home(home: Path, kind: str) -> None:
    if kind == "a file":
        home.write_text("")
    elif kind == "below a file":
        home.parent.rmdir()
        home.parent.write_text("")
    elif kind == "broken":
        home.mkdir()
        (home / "dagster.yaml").write_text("nonsense: true\n")
    else:
        (home / "history").mkdir(parents=True)
        (home / "history/runs.db").write_text("no database " * 100)


@pytest.mark.parametrize("kind", BROKEN_HOMES)
def test_a_home_that_cannot_be_used_is_told_in_one_sentence_before_anything_is_staged(
    bare: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    home = tmp_path / "elsewhere" / "dagster"
    home.parent.mkdir()
    monkeypatch.setenv("DAGSTER_HOME", str(home))
    break_home(home, kind)
    land(bare, 0)
    with pytest.raises(DagsterHomeError, match=BROKEN_HOMES[kind]):
        fill(bare, 0, 0)
    assert not (tmp_path / "stage").exists()
    rolled_back = RolledBack(None, None, changed=True, partitions=())
    with pytest.raises(DagsterHomeError, match=f"the rollback succeeded, but Dagster could not be told: .*{BROKEN_HOMES[kind]}"):
        record_rollback(bare, rolled_back)


def test_force_redoes_what_is_up_to_date(settings: Settings) -> None:
    land(settings, 0)
    fill(settings, 0, 0)

    def unchanged() -> list[bool]:
        with dg.DagsterInstance.local_temp(str(settings.dagster_home)) as instance:
            events = [instance.get_latest_materialization_event(dg.AssetKey(asset)) for asset in (REPARTITIONED, ROLLUP_TABLE)]
        return [bool(event.asset_materialization.metadata["unchanged"].value) for event in events]  # type: ignore[union-attr]

    fill(settings, 0, 0)
    assert unchanged() == [True, True]
    fill(settings, 0, 0, force=True)
    assert unchanged() == [False, False]


def test_the_caller_is_told_of_every_partition_and_gets_the_progress(settings: Settings) -> None:
    land(settings, 0)
    told: list[PartitionOutcome] = []
    stages: list[str] = []

    class Recorder:
        def start(self, stage: str, total: int) -> None:
            stages.append(f"{stage} {total}")

        def advance(self, stage: str, rows: int) -> None: ...

        def finish(self, stage: str) -> None: ...

    fill(settings, 0, 0, progress=Recorder(), on_partition=told.append)
    assert stages == ["read 1"]
    assert [(outcome.partition, REPARTITIONED in outcome.assets) for outcome in told] == [
        (hour(0), True),
        (hour(0), False),
        (hour(1), False),
        (hour(2), False),
    ]


def latest(settings: Settings) -> Any:
    found = settings.calendar.last_ended(dt.datetime.now(dt.UTC))
    assert found
    return found


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_the_whole_backfill_and_not_just_the_run(settings: Settings, sent: signal.Signals) -> None:
    """Dagster takes it for a failure of the step, after which the other runs would go on."""
    land(settings, 0, 1)
    told: list[PartitionOutcome] = []

    def interrupt(outcome: PartitionOutcome) -> None:
        told.append(outcome)
        os.kill(os.getpid(), sent)

    with pytest.raises(KeyboardInterrupt, match="finished partitions are kept"):
        fill(settings, 0, 1, on_partition=interrupt)
    assert [outcome.partition for outcome in told] == [hour(0)]
    assert recorded(settings, REPARTITIONED) == {hour(0)}


def test_a_run_that_is_terminated_in_the_ui_ends_the_backfill_after_its_partition(settings: Settings) -> None:
    """Dagster cannot reach the process of the command, and only notes what was asked for."""
    land(settings, 0, 1, 2)
    told: list[PartitionOutcome] = []

    def terminate(outcome: PartitionOutcome) -> None:
        told.append(outcome)
        if len(told) == 2:
            with dg.DagsterInstance.local_temp(str(settings.dagster_home)) as instance:
                (run,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
                instance.report_run_canceling(run)

    with pytest.raises(KeyboardInterrupt, match="finished partitions are kept"):
        fill(settings, 0, 2, on_partition=terminate)
    assert [outcome.partition for outcome in told] == [hour(0), hour(1)]
    with dg.DagsterInstance.local_temp(str(settings.dagster_home)) as instance:
        assert [run.status for run in instance.get_runs()] == [dg.DagsterRunStatus.CANCELED]


def test_trailing_partitions_that_do_not_exist_yet_are_skipped_and_named(settings: Settings) -> None:
    last = latest(settings)
    result = run_backfill(settings, last.key, last.key)
    assert result.published == (last.key,)
    assert result.skipped == tuple(settings.calendar.shifted(last, count).key for count in (1, 2))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("first", "last", "says"),
    [
        ("2026-01-01", "2026-01-01-01:00", "not a partition key"),
        ("2026-01-01-00:30", "2026-01-01-01:00", "does not begin a batch"),
        ("2025-12-31-23:00", "2026-01-01-01:00", "before the first one"),
        ("2026-01-01-02:00", "2026-01-01-01:00", "exchange them"),
        ("2026-01-01-02:00", "2199-01-01-01:00", "does not exist yet"),
        ("2026-01-01-02:00", "9999-12-31-23:00", "is after the last one that there can be"),
    ],
)
def test_partitions_that_do_not_exist_are_refused_before_anything_is_made(bare: Settings, first: str, last: str, says: str) -> None:
    with pytest.raises(UnknownPartitionError, match=says):
        run_backfill(bare, first, last)
    assert not bare.dagster_home.exists()


@pytest.mark.parametrize("listens", [True, False])
def test_runs_in_the_container_of_a_code_location_say_so(settings: Settings, monkeypatch: pytest.MonkeyPatch, *, listens: bool) -> None:
    """Another container with the same settings, in which nothing listens, outlives it."""
    land(settings, 0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        monkeypatch.setenv("DAGSTER_CODE_HOST", "code")
        monkeypatch.setenv("DAGSTER_CODE_PORT", str(port))
        if not listens:
            server.close()
        result = fill(settings, 0, 0)
    with dg.DagsterInstance.local_temp(str(settings.dagster_home)) as instance:
        told = {run.tags.get(run_processes.LOCATION_TAG) for run in instance.get_runs(dg.RunsFilter(run_ids=list(result.runs)))}
    assert told == {f"code:{port}" if listens else None}
