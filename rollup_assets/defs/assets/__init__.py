"""The assets. What materializing them does stays out (``rollup_assets.steps``)."""

from __future__ import annotations

from collections.abc import Sequence

import dagster as dg

from rollup_assets.defs.assets import datapoints, raw_datapoints, rollups
from rollup_assets.defs.report import Watcher
from rollup_assets.settings import Settings


def all_assets(settings: Settings, watcher: Watcher) -> Sequence[dg.AssetsDefinition | dg.AssetSpec]:
    """The graph of one batch, upstream first."""
    return [raw_datapoints.spec(settings), datapoints.stage_datapoints(settings, watcher), rollups.roll_up_and_publish(settings, watcher)]
