"""Runs come to every failpoint: none is in a place that is never passed."""

from __future__ import annotations

from rollup_assets.defs.backfill import run_backfill
from rollup_assets.failpoints import FAILPOINTS, handled
from rollup_assets_tests.faults.conftest import MakeSite


def test_a_backfill_comes_to_every_failpoint(make_site: MakeSite) -> None:
    site = make_site(keep_snapshots=1)
    site.land()
    reached: set[str] = set()
    with handled(reached.add):
        assert run_backfill(site.settings, site.batch(0).key, site.batch(2).key).success
    assert reached == FAILPOINTS.keys()
