"""U1: the stage and the table of an older version are read, continued and verified; those of a newer one are refused with what to do."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from rollup_assets.errors import StageCorruptError, TableMismatchError
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.storage.manifests import REPARTITIONED, ROLLUP_TABLE
from rollup_assets_tests.faults import old_state
from rollup_assets_tests.faults.invariants import acknowledged_snapshots_stand, check_all, one_live_result_per_partition, rows_of, state_of
from rollup_assets_tests.faults.invariants import table_equals_recomputation as table_is_right
from rollup_assets_tests.faults.site import CANARY, Site
from rollup_assets_tests.integration.stores import on_files

FIXTURES = Path(__file__).parent / "fixtures"
VERSIONS = [path.name.removesuffix(".tar.xz") for path in sorted(FIXTURES.glob("*.tar.xz"))]


@pytest.fixture(params=VERSIONS)
def old_site(request: pytest.FixtureRequest, seed: int) -> Iterator[Site]:
    """What the older version has left, where it has left it; one test at a time has it."""
    home = old_state.HOME
    with FileLock(f"{home}.lock", timeout=300):
        shutil.rmtree(home, ignore_errors=True)
        try:
            with tarfile.open(FIXTURES / f"{request.param}.tar.xz") as archive:
                archive.extractall(home.parent, filter="data")
            overrides: dict[str, Any] = {name: value for name, value in old_state.SETTINGS.items() if name != "home"}
            yield Site(home, on_files(home), seed, {"AWS_SECRET_ACCESS_KEY": CANARY}, overrides)
        finally:
            shutil.rmtree(home, ignore_errors=True)


@pytest.mark.scenario("U1")
def test_what_an_older_version_has_left_is_read_and_continued(old_site: Site) -> None:
    """First as it is: right, and made anew at most into the same rows. Then with a batch more and a late file."""
    table_is_right(old_site)
    one_live_result_per_partition(old_site)
    acknowledged = old_site.acknowledged()
    assert len(acknowledged) == old_state.BATCHES - 1
    published = rows_of(old_site)
    old_site.run(("make", *old_site.keys()[: old_state.BATCHES - 1])).succeeds()
    assert rows_of(old_site) == published
    old_site.land(2, first=old_state.BATCHES)
    old_site.late_file(old_site.batch(1), "late-1.parquet")
    old_site.finish()
    assert len(rows_of(old_site)) > len(published)
    acknowledged_snapshots_stand(old_site, acknowledged)
    check_all(old_site)


@pytest.mark.scenario("U1")
def test_a_manifest_of_a_newer_version_is_refused(site: Site) -> None:
    """Not taken for damage that is mended by deleting it."""
    site.run(("make", *site.keys())).succeeds()
    batch = site.batch(1)
    for asset in (REPARTITIONED, ROLLUP_TABLE):
        path = Path(site.settings.stage, asset, batch.folder, "manifest.json")
        kept = path.read_text()
        path.write_text(json.dumps(json.loads(kept) | {"format_version": 2, "novelty": True}))
        refused = site.run(("make", *site.keys()))
        assert "refused: StageCorruptError: " in refused.said
        assert "has format 2, but this release reads formats up to 1: a newer release wrote it. Install the newer release" in refused.said
        path.write_text(kept)
    check_all(site)


@pytest.mark.scenario("U1")
@pytest.mark.parametrize(("setting", "value"), [("shards", 8), ("resolutions", "1m,1h"), ("batch", "2h"), ("value_type", "double")])
def test_a_table_of_other_settings_is_refused(site: Site, setting: str, value: object) -> None:
    """Nothing of it is mixed with what is there."""
    site.finish()
    before = state_of(site)
    site.overrides[setting] = value
    if setting == "batch":
        site.overrides["raw_layout"] = "%Y-%m-%d-%H"
    said = site.run(("publish", "2026-01-01-00:00")).said
    assert (
        any(f"refused: {kind.__name__}: " in said for kind in (TableMismatchError, StageCorruptError)) or "refused: StaleInputError" in said
    )
    del site.overrides[setting]
    site.overrides.pop("raw_layout", None)
    assert state_of(site) == before
    assert stage_batch(site.pipeline, site.batch(0)).unchanged
