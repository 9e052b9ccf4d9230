"""The batches as Dagster's partitions, which partitions of its inputs an asset reads, and the tags that name a run's partitions.

Keys and arithmetic of batches stay out (``rollup_assets.batches``).
"""

from __future__ import annotations

import warnings

import dagster as dg

from rollup_assets.batches import HOUR_MS, KEY_FORMAT, MINUTE_MS
from rollup_assets.scope import PARTITIONS_PER_RUN
from rollup_assets.settings import Settings

PARTITION_TAG = "dagster/partition"
RANGE_START, RANGE_END = "dagster/asset_partition_range_start", "dagster/asset_partition_range_end"
# A run over a range pays Dagster's start-up once: 48 partitions took 88 s through the daemon; with one partition per run, 6 took 100 s.
STAGING_POLICY = dg.BackfillPolicy.multi_run(max_partitions_per_run=PARTITIONS_PER_RUN)
# Another policy than for staging: otherwise, for a backfill that ends at the newest partition and so has no trailing ones, Dagster would
# put both steps into one run, in which one batch that cannot be staged keeps all others from being published.
PUBLISHING_POLICY = dg.BackfillPolicy.multi_run(max_partitions_per_run=PARTITIONS_PER_RUN + 1)


def batches(settings: Settings) -> dg.TimeWindowPartitionsDefinition:
    """One partition per batch from ``ROLLUP_START`` on, in UTC; it exists once the batch has ended."""
    if settings.batch == HOUR_MS:
        return dg.HourlyPartitionsDefinition(start_date=settings.start, fmt=KEY_FORMAT, timezone="UTC")
    return dg.TimeWindowPartitionsDefinition(start=settings.start, fmt=KEY_FORMAT, timezone="UTC", cron_schedule=_cron(settings.batch))


def _cron(batch_ms: int) -> str:
    """When batches begin. The length divides a day, and is whole hours or divides an hour (``settings`` refuses others)."""
    if batch_ms < HOUR_MS:
        return f"*/{batch_ms // MINUTE_MS} * * * *"
    hours = batch_ms // HOUR_MS
    return "0 0 * * *" if hours == 24 else f"0 */{hours} * * *"


def own_and_earlier(settings: Settings) -> dg.TimeWindowPartitionMapping:
    """Batch t and the ``reach`` ones before it: ``rollups[t]`` reads the series of t, and what the earlier batches left open.

    The first partitions have fewer earlier ones; that does not count as missing.
    """
    with warnings.catch_warnings():
        # The flag is beta in Dagster 1.13 (which is pinned); Dagster would warn at every load of the code location.
        warnings.simplefilter("ignore", category=dg.BetaWarning)
        return dg.TimeWindowPartitionMapping(start_offset=-settings.reach, end_offset=0, allow_nonexistent_upstream_partitions=True)
