"""The job ``batches``: everything a batch needs, from raw data to the published table."""

from __future__ import annotations

import warnings
from typing import Any

import dagster as dg

from rollup_assets.defs.assets.datapoints import STAGED
from rollup_assets.defs.assets.rollups import IN_ORDER

JOB_NAME = "batches"


def batches_job() -> Any:
    """The graph of one batch as a job, for one partition or a range of them; resolved once the assets are known."""
    # The steps' policies differ on purpose (``defs.partitions``); Dagster would warn at every load of the code location.
    warnings.filterwarnings("ignore", message=f"Asset job {JOB_NAME} materializes assets with varying BackfillPolicies")
    return dg.define_asset_job(
        JOB_NAME,
        selection=[*STAGED, *IN_ORDER],
        description=(
            "Stage, roll up and publish one partition: `dg launch --job batches --partition KEY`. For a range use *Materialize* on the "
            "assets' pages, or `rollups backfill FROM TO`: a range launched on this page has no trailing partitions, and its runs do not "
            "wait for each other."
        ),
    )
