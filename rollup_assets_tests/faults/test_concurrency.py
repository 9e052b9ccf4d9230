"""C1, C2, C5: several processes on one table at once leave it as if one had come after the other.

Failpoints put them in the order that hurts. The network between them and the catalog is another matter (`test_catalog_network.py`).
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable

import pytest

from rollup_assets.cleaning import clean
from rollup_assets.iceberg.locks import table_lock
from rollup_assets_tests.faults import foreign
from rollup_assets_tests.faults.invariants import check_all, leftovers, manifests_of, refused, state_of
from rollup_assets_tests.faults.site import Site
from rollup_assets_tests.faults.work import REFUSED

THOROUGH = pytest.mark.thorough
OUTSIDE_LOCK = ("stage.begin", "manifest.before.partial_points", "rollup.file", "manifest.before.rollups", "publish.begin")
UNDER_LOCK = ("publish.locked", "publish.planned", "publish.commit", "publish.committed", "manifest.after.rollup_table")
KILLED = ("rollup.file", "publish.commit", "publish.committed", "maintenance.commit")
REFUSALS = ("StaleInputError", "ConcurrentWriteError", "StageCorruptError")
"""How a run may end whose inputs somebody else has replaced meanwhile."""


def some(names: tuple[str, ...], *quick: str) -> list[object]:
    return [name if name in quick else pytest.param(name, marks=THOROUGH) for name in names]


@pytest.mark.scenario("C1")
@pytest.mark.parametrize("failpoint", some(OUTSIDE_LOCK, "stage.begin", "rollup.file", "manifest.before.rollups"))
def test_a_run_that_another_one_overtakes(site: Site, failpoint: str) -> None:
    """The other one has a file more, which the first has not seen: old content never replaces new content in the table."""
    site.finish()
    batch = site.batch(1)
    site.late_file(batch, "late-1.parquet")
    with site.paused(failpoint, ("make", batch.key)) as first:
        site.late_file(batch, "late-2.parquet")
        site.run(("make", batch.key)).succeeds()
        published = state_of(site).snapshot_id
    if first.exit_code():
        assert first.process.exitcode == REFUSED, first.said
        assert any(f"refused: {kind}: " in first.said for kind in REFUSALS), first.said
    # Before everything is made anew, which would hide it.
    assert state_of(site).snapshot_id == published, first.said
    site.finish()
    check_all(site)


@pytest.mark.scenario("C1")
@pytest.mark.parametrize("failpoint", some(UNDER_LOCK, "publish.commit"))
def test_a_run_that_comes_while_another_one_publishes_waits_for_it(site: Site, failpoint: str) -> None:
    site.finish()
    batch = site.batch(1)
    site.late_file(batch, "late-1.parquet")
    with site.paused(failpoint, ("make", batch.key)) as first:
        second = site.start(("make", batch.key))
        second.process.join(0.5)
        assert second.process.is_alive(), second.said
    first.succeeds()
    second.succeeds()
    site.finish()
    check_all(site)


@pytest.mark.scenario("C1")
def test_processes_that_do_the_same_from_the_beginning(site: Site) -> None:
    """Nothing is there yet, not even the table."""
    processes = [site.start(("make", *site.keys())) for _ in range(3)]
    ended = [process.exit_code() for process in processes]
    assert 0 in ended, [process.said for process in processes]
    for process, code in zip(processes, ended, strict=True):
        assert code in (0, REFUSED), process.said
    site.finish()
    check_all(site)


@pytest.mark.scenario("C5", "K3")
def test_a_publisher_that_is_killed_with_the_lock_in_its_hands_blocks_nobody(site: Site) -> None:
    site.run(("make", site.batch(0).key), failpoints="publish.planned=kill").is_killed()
    with table_lock(site.settings, timeout=5):
        pass
    site.finish()
    check_all(site)


@pytest.mark.scenario("C2")
def test_overlapping_backfills_and_a_manual_run_inside(site: Site) -> None:
    """The first backfill stands still between rolling up and publishing while the others run from end to end."""
    first, second, third = (site.batch(number).key for number in range(3))
    with site.paused("event.rollups", ("backfill", first, third), skip=1) as long_one:
        site.late_file(site.batch(2), "late-1.parquet")
        site.run(("backfill", second, third)).succeeds()
        site.run(("make", third)).succeeds()
    assert long_one.exit_code() in (0, REFUSED), long_one.said
    if long_one.process.exitcode:
        assert "StaleInput" in long_one.said or "has changed since" in long_one.said, long_one.said
    site.run(("backfill", first, third)).succeeds()
    check_all(site)


FOREIGN: dict[str, Callable[[Site], None]] = {
    "append": lambda site: foreign.append_into(site, site.batch(1)),
    "append elsewhere": foreign.append_elsewhere,
    "compaction": foreign.compact,
    "expiry": lambda site: foreign.expire(site, 2),
}


@pytest.mark.scenario("C5")
@pytest.mark.parametrize("what", FOREIGN)
def test_somebody_else_commits_during_a_publish(site: Site, what: str) -> None:
    """After the plan is made and before it is committed; others do not know our lock."""
    site.finish()
    site.late_file(site.batch(1), "late-1.parquet")
    with site.paused("publish.commit", ("make", site.batch(1).key)) as publisher:
        FOREIGN[what](site)
    publisher.succeeds()
    site.finish()
    check_all(site)


@pytest.mark.scenario("C5")
def test_leftovers_are_cleaned_away_during_a_run(site: Site) -> None:
    """Those of killed runs of last week go; data files that were just written, and that nothing names yet, stay."""
    site.finish()
    clean(site.settings, older_than=0, delete=True)
    site.late_file(site.batch(1), "late-1.parquet")
    for failpoint in ("stage.file", "rollup.file"):
        site.run(("make", *site.keys()), failpoints=f"{failpoint}=kill+1").is_killed()
    old = leftovers(site)
    last_week = time.time() - 7 * 86_400
    for path in old:
        os.utime(path, (last_week, last_week))
    with site.paused("manifest.before.rollups", ("make", *site.keys())) as publisher:
        cleaned = clean(site.settings, delete=True)
        assert not cleaned.failures
        # A partition that has a new manifest may still be read by its old one: its files have to wait, those of the table have not.
        deleted = {left.path for left in cleaned.deleted}
        assert deleted <= set(old)
        assert {path for path in old if "/warehouse/" in path} <= deleted != set()
    publisher.succeeds()
    site.finish()
    check_all(site)


@pytest.mark.scenario("C5")
def test_a_compacted_table_is_published_to_as_before(site: Site) -> None:
    site.finish()
    foreign.compact(site)
    site.late_file(site.batch(1), "late-1.parquet")
    site.finish()
    check_all(site)


@pytest.mark.thorough
@pytest.mark.scenario("C5", "C1")
def test_publishes_kills_expiry_compaction_and_appends_in_a_loop(site: Site, seed: int) -> None:
    """In an order that the seed and the operating system make."""
    rng = random.Random(f"{seed} loop")
    site.overrides["keep_snapshots"] = 3
    site.finish()
    stop = threading.Event()
    failures: list[BaseException] = []

    def disturb() -> None:
        try:
            for number in range(60):
                if stop.is_set():
                    return
                rng.choice(
                    (foreign.compact, lambda site: foreign.expire(site, 2), lambda site, n=number: foreign.append_elsewhere(site, n))
                )(site)
        except BaseException as error:
            failures.append(error)

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        for number in range(8):
            batch = site.batch(rng.randrange(3))
            site.late_file(batch, f"late-{number}.parquet")
            failpoints = rng.choice(("", "", *(f"{name}=kill" for name in KILLED)))
            processes = [site.start(("make", *site.keys()), failpoints=failpoints), site.start(("make", *site.keys()))]
            for process in processes:
                assert process.exit_code() in (0, REFUSED, -signal.SIGKILL), process.said
    finally:
        stop.set()
        disturbing.join()
    assert not failures, failures
    site.finish()
    check_all(site)


@pytest.mark.scenario("C1")
def test_a_partition_that_is_staged_anew_while_it_is_published(site: Site) -> None:
    """The publisher notices that its rollups are not of the current points, and says what to run."""
    site.finish()
    batch = site.batch(1)
    site.late_file(batch, "late-1.parquet")
    before = state_of(site).snapshot_id
    with site.paused("publish.begin", ("make", batch.key)) as publisher:
        site.late_file(batch, "late-2.parquet")
        site.run(("stage", batch.key)).succeeds()
    assert publisher.exit_code() == REFUSED, publisher.said
    refused(publisher.said, "StaleInputError")
    assert f"rollups backfill {batch.key} {batch.key}" in publisher.said
    assert state_of(site).snapshot_id == before
    site.finish()
    check_all(site)
    assert manifests_of(site)
