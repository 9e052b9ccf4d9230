"""``raw_datapoints``: the landing zone, which others write and this project only reads."""

from __future__ import annotations

import dagster as dg

from rollup_assets.defs import metadata
from rollup_assets.defs.partitions import batches
from rollup_assets.defs.report import RAW_DATAPOINTS
from rollup_assets.settings import Settings

GROUP = "metric_rollups"


def spec(settings: Settings) -> dg.AssetSpec:
    """The external asset. Staging reports which version it read (paths, sizes, versions of files), so that Dagster sees what is stale."""
    return dg.AssetSpec(
        RAW_DATAPOINTS,
        partitions_def=batches(settings),
        group_name=GROUP,
        kinds={"parquet"},
        description=(
            "Raw datapoints as they arrive: Parquet files in one folder per batch of event time, or of arrival (ROLLUP_RAW_LATENESS). "
            "Read-only here. Late data arrives as new or changed files in a folder that a batch reads; staging reports the version it read."
        ),
        metadata={
            "layout": f"{settings.raw_layout}/*",
            "dagster/column_schema": metadata.raw_schema(settings),
        },
    )
