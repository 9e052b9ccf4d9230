"""K1 to K4: a process killed at any of its failpoints, and run again, leaves everything as if it had never been killed."""

from __future__ import annotations

import random

import pytest

from rollup_assets.failpoints import FAILPOINTS
from rollup_assets.storage.manifests import ROLLUP_TABLE
from rollup_assets_tests.faults.invariants import check_all, manifests_of, rows_of, state_of
from rollup_assets_tests.faults.site import Site

READING = ("stage.begin", "read.file", "read.rows")
STAGING = (
    "spill.write",
    "sort.begin",
    "stage.file",
    *(
        f"manifest.{when}.{asset}"
        for asset in ("quarantined_datapoints", "partial_points", "repartitioned_datapoints")
        for when in ("before", "after")
    ),
)
ROLLING_UP = ("rollup.begin", "rollup.shard", "rollup.file", "manifest.before.rollups")
UNCOMMITTED = ("manifest.after.rollups", "publish.begin", "publish.locked", "publish.planned", "publish.commit")
COMMITTED = ("publish.committed", "manifest.before.rollup_table", "manifest.after.rollup_table")
MAINTENANCE = ("maintenance.begin", "maintenance.commit", "maintenance.committed")
EVENTS = tuple(name for name in FAILPOINTS if name.startswith("event."))


def test_every_failpoint_is_one_of_these() -> None:
    assert {*READING, *STAGING, *ROLLING_UP, *UNCOMMITTED, *COMMITTED, *MAINTENANCE, *EVENTS} == FAILPOINTS.keys()


def quick(*names: str) -> list[object]:
    """Some of them in `make test`; all in the fault suite."""
    return list(names)


def thorough(names: tuple[str, ...], *but: str) -> list[object]:
    """The others."""
    return [pytest.param(name, marks=pytest.mark.thorough) for name in names if name not in but]


def kill(site: Site, failpoint: str, most: int = 2) -> None:
    """Make everything, and be killed the first, second or third time that a process comes to a failpoint, as the seed has it."""
    skip = random.Random(f"{site.seed} {failpoint}").randrange(most + 1)
    site.run(("make", *site.keys()), failpoints=f"{failpoint}=kill+{skip}").is_killed()


@pytest.mark.scenario("K1")
@pytest.mark.parametrize("failpoint", [*quick("read.rows"), *thorough(READING, "read.rows")])
def test_killed_while_it_reads(site: Site, failpoint: str) -> None:
    kill(site, failpoint)
    site.finish()
    check_all(site)


@pytest.mark.scenario("K2")
@pytest.mark.parametrize(
    "failpoint",
    [
        *quick("stage.file", "manifest.before.repartitioned_datapoints", "rollup.file"),
        *thorough((*STAGING, *ROLLING_UP), "stage.file", "manifest.before.repartitioned_datapoints", "rollup.file"),
    ],
)
def test_killed_while_it_writes_the_stage(site: Site, failpoint: str) -> None:
    """Twice, the second time in the try that is to make up for the first."""
    kill(site, failpoint, most=1)
    site.run(("make", *site.keys()), failpoints=f"{failpoint}=kill").is_killed()
    site.finish()
    check_all(site)


@pytest.mark.scenario("K3")
@pytest.mark.parametrize("failpoint", [*quick("publish.commit"), *thorough(UNCOMMITTED, "publish.commit")])
def test_killed_before_the_commit_the_table_is_as_it_was(site: Site, failpoint: str) -> None:
    site.finish()
    before, snapshot = rows_of(site), state_of(site).snapshot_id
    site.late_file(site.batch(1), "late-1.parquet")
    site.run(("make", *site.keys()), failpoints=f"{failpoint}=kill").is_killed()
    assert rows_of(site) == before
    assert state_of(site).snapshot_id == snapshot
    site.finish()
    assert rows_of(site) != before
    check_all(site)


@pytest.mark.scenario("K4")
@pytest.mark.parametrize("failpoint", [*quick("publish.committed"), *thorough(COMMITTED, "publish.committed")])
def test_killed_after_the_commit_no_second_one_is_made(site: Site, failpoint: str) -> None:
    site.finish()
    site.late_file(site.batch(1), "late-1.parquet")
    batch = site.batch(1).key
    site.run(("make", batch), failpoints=f"{failpoint}=kill").is_killed()
    committed = state_of(site).snapshot_id
    site.run(("make", batch)).succeeds()
    assert state_of(site).snapshot_id == committed, "the batch was committed again"
    receipt = manifests_of(site)[ROLLUP_TABLE, site.batch(1)]
    assert receipt.counters["snapshot_id"] == committed
    site.finish()
    check_all(site)


@pytest.mark.scenario("K4", "C5")
@pytest.mark.parametrize("failpoint", [*quick("maintenance.commit"), *thorough(MAINTENANCE, "maintenance.commit")])
def test_killed_while_snapshots_expire(site: Site, failpoint: str) -> None:
    site.overrides["keep_snapshots"] = 2
    site.run(("make", *site.keys()), failpoints=f"{failpoint}=kill").is_killed()
    site.finish()
    check_all(site)


@pytest.mark.scenario("K4")
@pytest.mark.parametrize("failpoint", [*quick("event.rollup_table"), *thorough(EVENTS, "event.rollup_table")])
def test_killed_before_dagsters_event_the_rerun_tells_dagster(site: Site, failpoint: str) -> None:
    """The work is not done again: the rerun reports what is in place."""
    import dagster as dg

    asset = failpoint.removeprefix("event.")
    first, last = site.batch(0).key, site.batch(2).key
    site.run(("backfill", first, last), failpoints=f"{failpoint}=kill+1").is_killed()
    before = state_of(site)
    site.run(("backfill", first, last)).succeeds()
    after = state_of(site)
    assert {key: after.manifests[key] for key in before.manifests} == before.manifests
    with dg.DagsterInstance.local_temp(str(site.settings.dagster_home)) as instance:
        assert instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])) == []
        for (made, batch), manifest in manifests_of(site).items():
            if made == asset:
                wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[batch.key])
                (record,) = instance.fetch_materializations(wanted, limit=1).records
                assert record.asset_materialization is not None
                assert (record.asset_materialization.tags or {})["dagster/data_version"] == manifest.digest
    site.finish()
    check_all(site)
