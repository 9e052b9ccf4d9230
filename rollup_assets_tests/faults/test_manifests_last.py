"""Whatever a manifest names is there, however soon after it a process dies: manifests are written last."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollup_assets import failpoints
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUPS
from rollup_assets_tests.conftest import MakePipeline
from rollup_assets_tests.landing import write_rows
from rollup_assets_tests.naive import RawRow


class Killed(BaseException):
    """Stands for the death of the process."""


@pytest.mark.scenario("K2", "K3")
@pytest.mark.parametrize("asset", [QUARANTINED, PARTIAL_POINTS, REPARTITIONED, ROLLUPS])
def test_all_files_of_a_manifest_are_there_when_it_appears(make_pipeline: MakePipeline, tmp_path: Path, asset: str) -> None:
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.rollup import roll_up

    pipeline = make_pipeline(tmp_path, quarantine_limit=1.0)
    batch = pipeline.calendar.first
    write_rows(pipeline, batch, "a.parquet", [RawRow(series, 7, "metric", batch.start + 5, 1) for series in (1, 2, None)])

    def kill(name: str) -> None:
        if name == f"manifest.after.{asset}":
            raise Killed

    def make() -> None:
        stage_batch(pipeline, batch)
        roll_up(pipeline, batch)

    with failpoints.handled(kill), pytest.raises(Killed):
        make()
    manifest = pipeline.stage.read(asset, batch)
    assert manifest is not None
    assert manifest.files
    sizes = pipeline.stage.sizes(manifest, batch)
    assert sizes == [file.size for file in manifest.files], f"the manifest of {asset} names files that are not there"
