"""The job ``batches``: everything a batch needs, from raw data to the published table."""

from __future__ import annotations

from typing import Any

import dagster as dg

from rollup_assets.defs.assets.datapoints import STAGED
from rollup_assets.defs.assets.rollups import IN_ORDER

JOB_NAME = "batches"


def batches_job() -> Any:
    """The graph of one batch as a job, for one partition or a range of them; resolved once the assets are known."""
    return dg.define_asset_job(
        JOB_NAME,
        selection=[*STAGED, *IN_ORDER],
        description="Stage, roll up and publish: `dg launch --job batches --partition KEY`, or `rollups backfill FROM TO` for a range.",
    )
