"""What runs record: one event a partition, whatever becomes of the others, and what that makes stale."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import dagster as dg
import numpy as np
import pytest

from rollup_assets.errors import StorageError
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps import checks
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS
from rollup_assets_tests.defs import fake_steps
from rollup_assets_tests.defs.conftest import PUBLISHING, STAGING, Lab, hour

EVERY = (*STAGING, *PUBLISHING)


def test_a_range_run_records_exactly_one_materialization_a_partition_and_asset(lab: Lab) -> None:
    """Also the notice that the private key which suppresses Dagster's own events has stopped working: there would be more."""
    lab.land({0: 10, 1: 20, 2: 30})
    assert lab.run(0, 2).success
    for asset in EVERY:
        assert Counter(event.partition for event in lab.events(asset)) == {hour(0): 1, hour(1): 1, hour(2): 1}, asset


def test_each_partition_of_a_range_has_the_data_version_of_its_own_manifest(lab: Lab) -> None:
    lab.land({0: 10, 1: 20})
    lab.run(0, 1)
    versions = [(lab.events(REPARTITIONED, count)[0].tags or {})["dagster/data_version"] for count in (0, 1)]
    assert versions[0] != versions[1]


def test_every_check_is_evaluated_once_for_every_partition_and_knows_its_materialization(lab: Lab) -> None:
    """Also the notice that Dagster's class for the target materialization has changed."""
    lab.land({0: 10, 1: 20})
    lab.run(0, 1)
    for asset, check in checks.DESCRIPTIONS:
        for count in (0, 1):
            evaluations = lab.evaluations(asset, check, count)
            assert [evaluation.passed for evaluation in evaluations] == [True], (asset, check)
            target = evaluations[0].target_materialization_data
            assert target is not None
            (record,) = lab.instance.fetch_materializations(
                dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=[hour(count)]), limit=2
            ).records
            assert (target.storage_id, target.run_id) == (record.storage_id, record.run_id)


def test_a_single_run_records_the_same_as_a_range_run(lab: Lab) -> None:
    lab.land({0: 10, 1: 20})
    lab.run(0, 1)
    ranged = {asset: lab.events(asset, 1)[0] for asset in EVERY}
    assert lab.run(1).success
    for asset in EVERY:
        single = lab.events(asset, 1)
        assert len(single) == 2, asset
        assert (single[0].tags or {})["dagster/data_version"] == (ranged[asset].tags or {})["dagster/data_version"]
        assert single[0].metadata.keys() == ranged[asset].metadata.keys()


def test_a_failing_hour_keeps_the_finished_ones_and_is_named_in_the_error(lab: Lab) -> None:
    lab.land({0: 10, 1: "crash", 2: 30, 3: "crash"})
    result = lab.run(0, 3, STAGING)
    assert not result.success
    assert {event.partition for event in lab.events(REPARTITIONED)} == {hour(0), hour(2)}
    (failure,) = result.get_step_failure_events()
    message = str(failure.step_failure_data.error)
    assert hour(1) in message
    assert hour(3) in message
    assert hour(2) not in message


def test_what_a_failed_hour_held_is_let_go_before_the_next_one(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error is kept to the run's end; with it, whatever the functions had that it came through: shards, unfinished files."""
    held: list[weakref.ref[Any]] = []
    alive: list[bool] = []

    def stage_batch(*_: object, **__: object) -> None:
        alive.extend(reference() is not None for reference in held)
        shard = np.zeros(1)
        held.append(weakref.ref(shard))
        try:
            raise OSError("no space left on the device")
        except OSError as error:
            raise StorageError("cannot be written") from error

    lab.land({0: 10, 1: 20})
    monkeypatch.setattr("rollup_assets.steps.repartition.stage_batch", stage_batch)
    assert not lab.run(0, 1, STAGING).success
    assert alive == [False]


def test_a_failing_hour_of_publishing_keeps_the_others_published(lab: Lab) -> None:
    lab.land({0: 10, 1: "unbalanced", 2: 30})
    assert lab.run(0, 2, STAGING).success
    assert not lab.run(0, 2, PUBLISHING).success
    for asset in PUBLISHING:
        assert {event.partition for event in lab.events(asset)} == {hour(0), hour(2)}


def test_a_batch_over_its_quarantine_limit_reports_the_quarantine_and_its_check_but_no_datapoints(lab: Lab) -> None:
    lab.land({0: "quarantine"})
    assert not lab.run(0).success
    assert [event.partition for event in lab.events(QUARANTINED)] == [hour(0)]
    assert lab.events(REPARTITIONED) == []
    (evaluation,) = lab.evaluations(QUARANTINED, checks.QUARANTINE_BELOW_LIMIT, 0)
    assert not evaluation.passed
    assert evaluation.severity == dg.AssetCheckSeverity.ERROR
    assert lab.evaluations(REPARTITIONED, checks.ROWS_ACCOUNTED_FOR, 0) == []


def test_a_broken_hard_rule_is_raised_before_the_table_is_reached_and_its_check_says_so(lab: Lab) -> None:
    lab.land({0: "unbalanced"})
    assert not lab.run(0).success
    assert [evaluation.passed for evaluation in lab.evaluations(ROLLUPS, checks.COUNTS_RECONCILE, 0)] == [False]
    assert lab.events(ROLLUPS) == []
    assert lab.events(ROLLUP_TABLE) == []


def test_a_table_that_is_not_what_was_committed_stops_the_whole_run(lab: Lab) -> None:
    lab.land({0: 10, 1: "halt", 2: 30})
    assert not lab.run(0, 2).success
    assert {event.partition for event in lab.events(ROLLUP_TABLE)} == {hour(0)}
    assert [evaluation.passed for evaluation in lab.evaluations(ROLLUP_TABLE, checks.PUBLISHED_EQUALS_STAGED, 1)] == [False]


def test_staging_identical_content_anew_leaves_everything_downstream_fresh(lab: Lab) -> None:
    lab.land({0: 10, 1: 20, 2: 30})
    lab.run(0, 2)
    assert lab.stale(0, 2) == set()
    fake_steps.land_same(lab.settings, hour(1))
    lab.run(0, 2, STAGING)
    lab.run(0, 2, STAGING, force=True)
    assert lab.stale(0, 2) == set()


@pytest.mark.parametrize("in_range", [True, False])
def test_a_changed_hour_makes_exactly_its_dependants_stale(lab: Lab, *, in_range: bool) -> None:
    lab.land(dict.fromkeys(range(6), 10))
    lab.run(0, 5)
    lab.land({2: 11})
    if in_range:
        lab.run(0, 5, STAGING)
    else:
        lab.run(2, assets=STAGING)
    assert lab.stale(0, 5) == {(ROLLUPS, 2), (ROLLUPS, 3), (ROLLUPS, 4)}
    lab.run(2, 4, [ROLLUPS])
    assert lab.stale(0, 5) == {(ROLLUP_TABLE, 2), (ROLLUP_TABLE, 3), (ROLLUP_TABLE, 4)}
    lab.run(2, 4, [ROLLUP_TABLE])
    assert lab.stale(0, 5) == set()


def test_raw_data_seen_in_a_new_version_makes_what_was_staged_from_the_old_one_stale(lab: Lab) -> None:
    """A batch over its limit is seen in its new version, and its datapoints stay those of the old one."""
    lab.land({0: 10, 1: 10})
    lab.run(0, 1)
    lab.land({1: "quarantine"})
    lab.run(1, assets=STAGING)
    assert lab.stale(0, 1) == {(REPARTITIONED, 1), (PARTIAL_POINTS, 1)}


def test_raw_data_is_observed_in_the_version_that_was_read(lab: Lab) -> None:
    lab.land({0: 10})
    lab.run(0)
    fake_steps.land_same(lab.settings, hour(0))
    lab.run(0)
    lab.run(0)
    wanted = dg.AssetRecordsFilter(dg.AssetKey("raw_datapoints"), asset_partitions=[hour(0)])
    records = lab.instance.fetch_observations(wanted, limit=9).records
    versions = [record.event_log_entry.asset_observation.tags["dagster/data_version"] for record in records]
    assert len(versions) == 3
    assert versions[0] == versions[1] != versions[2]


def test_an_input_that_is_staged_for_the_first_time_makes_what_was_made_without_it_stale(lab: Lab) -> None:
    """Hour 1 has no raw file when hour 2 is rolled up; later some arrives. The event pointer of "nothing" must not be NULL."""
    lab.land({2: 10})
    lab.run(2)
    lab.land({1: 5})
    lab.run(1, assets=STAGING)
    assert lab.stale(0, 2) == {(ROLLUPS, 2)}


def test_a_partition_that_waits_says_for_what_with_a_warning_and_its_run_succeeds(lab: Lab) -> None:
    lab.land({0: 10, 1: 20})
    lab.run(0)
    assert lab.run(1, assets=PUBLISHING).success
    for asset in PUBLISHING:
        (event,) = lab.events(asset, 1)
        assert f"{REPARTITIONED} {hour(1)}" in str(event.metadata["waiting_for"].value)
        (evaluation,) = lab.evaluations(asset, checks.INPUTS_READY, 1)
        assert not evaluation.passed
        assert evaluation.severity == dg.AssetCheckSeverity.WARN
        assert "rollups backfill" in (evaluation.description or "")
    assert lab.evaluations(ROLLUPS, checks.COUNTS_RECONCILE, 1) == []


def test_the_table_alone_waits_like_the_rollups_that_wait(lab: Lab) -> None:
    """Dagster's daemon takes "waiting" for made, and may ask for the table in a run of its own: a week's backfill failed so."""
    lab.land({0: 10, 1: 20})
    lab.run(0)
    assert lab.run(1, assets=[ROLLUPS]).success
    assert lab.run(1, assets=[ROLLUP_TABLE]).success
    (event,) = lab.events(ROLLUP_TABLE, 1)
    assert f"{REPARTITIONED} {hour(1)}" in str(event.metadata["waiting_for"].value)
    assert [evaluation.passed for evaluation in lab.evaluations(ROLLUP_TABLE, checks.INPUTS_READY, 1)] == [False]
    assert lab.stale(0, 1) == set()
    lab.run(1, assets=STAGING)
    assert not lab.run(1, assets=[ROLLUP_TABLE]).success, "nothing is waited for any more: somebody has to roll up"
    lab.run(1, assets=PUBLISHING)
    assert "waiting_for" not in lab.events(ROLLUP_TABLE, 1)[0].metadata


def test_staging_makes_a_waiting_partition_stale(lab: Lab) -> None:
    lab.land({0: 10, 1: 20})
    lab.run(0)
    lab.run(1, assets=PUBLISHING)
    assert lab.stale(0, 1) == set()
    lab.run(1, assets=STAGING)
    assert lab.stale(0, 1) == {(ROLLUPS, 1)}
    lab.run(1, assets=[ROLLUPS])
    assert lab.stale(0, 1) == {(ROLLUP_TABLE, 1)}
    assert [evaluation.passed for evaluation in lab.evaluations(ROLLUPS, checks.INPUTS_READY, 1)] == [True, False]


def test_an_empty_partition_is_materialized_with_count_0_and_a_warning(lab: Lab) -> None:
    assert lab.run(0).success
    (event,) = lab.events(REPARTITIONED, 0)
    assert event.metadata["dagster/partition_row_count"].value == 0
    (evaluation,) = lab.evaluations(REPARTITIONED, checks.BATCH_NOT_EMPTY, 0)
    assert not evaluation.passed
    assert evaluation.severity == dg.AssetCheckSeverity.WARN


def test_a_step_with_nothing_to_do_says_so_unless_forced(lab: Lab) -> None:
    lab.land({0: 10})
    lab.run(0)
    for force, unchanged in ((False, True), (True, False)):
        lab.run(0, force=force)
        for asset in EVERY:
            assert lab.events(asset, 0)[0].metadata["unchanged"].value is unchanged, asset


def test_checks_executed_alone_are_evaluated_for_every_staged_partition(lab: Lab) -> None:
    """*Execute all* on an asset's checks in the UI makes a run without partitions: it checks what stands, and makes nothing."""
    lab.land({0: 3, 1: 4})
    lab.run(0, 1)
    made = len(lab.events(ROLLUPS))
    job = lab.defs.resolve_implicit_global_asset_job_def()
    alone = [dg.AssetCheckKey(dg.AssetKey(ROLLUPS), name) for name in (checks.COUNTS_RECONCILE, checks.NO_WINDOW_TWICE)]
    result = job.get_subset(asset_selection=set(), asset_check_selection=set(alone)).execute_in_process(instance=lab.instance)
    assert result.success
    assert len(lab.events(ROLLUPS)) == made
    for count in (0, 1):
        for key in alone:
            assert [evaluation.passed for evaluation in lab.evaluations(ROLLUPS, key.name, count)] == [True, True]


@pytest.mark.parametrize("steps", [STAGING, PUBLISHING])
def test_a_run_that_makes_assets_and_has_no_partition_makes_nothing_and_says_what_to_do(lab: Lab, steps: Sequence[str]) -> None:
    """``dg launch --job`` does not ask for one; a run for everything that is staged is what nobody has asked for."""
    lab.land({0: 1})
    lab.run(0, assets=STAGING)
    job = lab.defs.resolve_job_def("batches")
    # With records of earlier runs Dagster itself refuses such a run.
    with dg.DagsterInstance.ephemeral() as fresh:
        result = job.execute_in_process(instance=fresh, raise_on_error=False, asset_selection=[dg.AssetKey(asset) for asset in steps])
        (failure,) = result.get_step_failure_events()
        assert "the run has no partition" in str(failure.step_failure_data.error)
    pipeline = Pipeline.from_settings(lab.settings)
    assert pipeline.stage.read(ROLLUPS, pipeline.batch(hour(0))) is None
