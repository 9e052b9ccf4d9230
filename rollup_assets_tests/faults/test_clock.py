"""T1: results depend on the data's time alone: not on the clock, the time zone of the machine, summer time or leap days."""

from __future__ import annotations

import pytest

from rollup_assets.iceberg.catalog import open_catalog
from rollup_assets.storage.manifests import ROLLUPS
from rollup_assets_tests.faults.conftest import MakeSite
from rollup_assets_tests.faults.invariants import check_all, manifests_of
from rollup_assets_tests.faults.site import Site

DAY = 86_400


def digests(site: Site) -> dict[str, str]:
    return {batch.key: manifest.digest for (asset, batch), manifest in manifests_of(site).items() if asset == ROLLUPS}


def require_stamps_in_order(site: Site) -> None:
    """As Iceberg for Java asks of metadata before it reads them; to the millisecond here, to the minute there."""
    with open_catalog(site.settings) as catalog:
        metadata = catalog.load_table(site.settings.table).metadata
    for log in (metadata.snapshot_log, metadata.metadata_log):
        stamps = [entry.timestamp_ms for entry in log] + [metadata.last_updated_ms]
        assert stamps == sorted(stamps)
    assert [entry.timestamp_ms for entry in metadata.snapshot_log] == sorted(snapshot.timestamp_ms for snapshot in metadata.snapshots)


@pytest.mark.scenario("T1")
def test_publishers_whose_clocks_are_a_day_apart(site: Site) -> None:
    """One is a day ahead, the next a day behind, the third is right; snapshots are found by what they hold, not by when they were made."""
    for number, offset in enumerate((DAY, -DAY, 0)):
        site.late_file(site.batch(number), "late-1.parquet")
        site.run(("shift clock", str(offset)), ("make", *site.keys())).succeeds()
    site.finish()
    require_stamps_in_order(site)
    check_all(site)


@pytest.mark.scenario("T1")
def test_clocks_and_expiry(make_site: MakeSite) -> None:
    """What expires is what was committed first, whatever the clock says; stamps stay in order when a commit has nothing but expiry, too."""
    site = make_site(keep_snapshots=2)
    site.land()
    for number, offset in enumerate((2 * DAY, DAY, 0, -DAY)):
        site.late_file(site.batch(number % 3), f"late-{number}.parquet")
        site.run(("shift clock", str(offset)), ("make", *site.keys())).succeeds()
        require_stamps_in_order(site)
    with open_catalog(site.settings) as catalog:
        assert len(catalog.load_table(site.settings.table).metadata.snapshots) <= 2
    check_all(site)


@pytest.mark.scenario("T1")
@pytest.mark.parametrize(
    ("start", "zone"),
    [
        ("2024-02-28-22:00", "UTC"),
        ("2026-03-29-00:00", "Europe/Berlin"),
        pytest.param("2024-02-29-22:00", "Asia/Kathmandu", marks=pytest.mark.thorough),
        pytest.param("2026-10-25-00:00", "Europe/Berlin", marks=pytest.mark.thorough),
        pytest.param("2026-03-08-06:00", "America/New_York", marks=pytest.mark.thorough),
    ],
)
def test_leap_days_and_summer_time(make_site: MakeSite, start: str, zone: str) -> None:
    """Batches over midnight into a leap day, and those in which a clock on a wall is set; the same digests as in UTC."""
    found = []
    for name, variables in (("here", {"TZ": zone}), ("utc", {"TZ": "UTC"})):
        site = make_site(name, start=start)
        site.environment |= variables
        site.land()
        site.run(("make", *site.keys())).succeeds()
        found.append(digests(site))
        if name == "here":
            check_all(site)
    assert found[0] == found[1]
    assert len(found[0]) == 5
