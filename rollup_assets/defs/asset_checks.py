"""The checks that Dagster shows: which asset has which checks, and how they get a partition's manifests.

They run inside the steps that make the assets, so that every partition of a range gets its own result; what they check stays out
(``rollup_assets.steps.checks``).
"""

from __future__ import annotations

import warnings
from collections.abc import Collection

import dagster as dg

from rollup_assets.batches import DAY_MS, Batch, BatchCalendar
from rollup_assets.defs.report import partition_events
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps import checks
from rollup_assets.steps.checks import CheckOutcome
from rollup_assets.steps.quarantine_limits import allowed_in
from rollup_assets.steps.read_back import TableState
from rollup_assets.storage.manifests import REPARTITIONED, ROLLUP_TABLE, ROLLUPS, Manifest

COMPARED_DAYS = 14
"""How many earlier days a batch's row count is compared with."""
_RECORDS_PER_DAY = 3
"""Materializations fetched at once for each of these days: partitions are sometimes made again, and only the latest counts."""


def check_specs(assets: Collection[str], partitions: dg.PartitionsDefinition[str]) -> list[dg.AssetCheckSpec]:
    """The declared checks of some assets, evaluated per partition."""
    with warnings.catch_warnings():
        # Partitioned checks are a preview in Dagster 1.13 (which is pinned); Dagster would warn at every load of the code location.
        warnings.simplefilter("ignore", category=dg.PreviewWarning)
        return [
            dg.AssetCheckSpec(name, asset=asset, description=description, partitions_def=partitions)
            for (asset, name), description in checks.DESCRIPTIONS.items()
            if asset in assets
        ]


def of_datapoints(
    pipeline: Pipeline, batch: Batch, repartitioned: Manifest, quarantined: Manifest, instance: dg.DagsterInstance
) -> list[CheckOutcome]:
    """Checks of ``repartitioned_datapoints``."""
    return [
        checks.rows_accounted_for(repartitioned, quarantined),
        checks.batch_not_empty(repartitioned),
        checks.row_count_usual(repartitioned, earlier_rows(instance, pipeline.calendar, batch)),
    ]


def of_quarantined(pipeline: Pipeline, quarantined: Manifest) -> list[CheckOutcome]:
    """Checks of ``quarantined_datapoints``."""
    allowed = allowed_in(pipeline.stage, pipeline.batch(quarantined.partition), quarantined, pipeline.settings)
    return [checks.quarantine_below_limit(quarantined, pipeline.settings, allowed)]


def of_rollups(pipeline: Pipeline, batch: Batch, rollups: Manifest) -> list[CheckOutcome]:
    """Checks of ``rollups``."""
    return [*checks.rollup_outcomes(rollups, batch, pipeline.calendar, pipeline.stage), checks.inputs_ready(ROLLUPS, None)]


def of_table(rollups: Manifest, table: TableState, *, just_published: bool, refused: str | None = None) -> list[CheckOutcome]:
    """Checks of ``rollup_table``; ``refused``: why it has other rows than the staged ones on purpose."""
    return [
        checks.rolled_back(refused) if refused else checks.published_equals_staged(rollups, table.counts, just_published=just_published),
        checks.inputs_ready(ROLLUP_TABLE, None),
    ]


def earlier_rows(instance: dg.DagsterInstance, calendar: BatchCalendar, batch: Batch) -> dict[str, int]:
    """Accepted rows of the batches at the same time of earlier days, by partition key, as Dagster last recorded them."""
    days = (calendar.containing(batch.start - day * DAY_MS) for day in range(1, COMPARED_DAYS + 1))
    keys = [day.key for day in days if day.start >= calendar.start]
    if not keys:
        return {}
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(REPARTITIONED), asset_partitions=keys)
    records = list(instance.fetch_materializations(wanted, limit=COMPARED_DAYS * _RECORDS_PER_DAY).records)
    if len(records) == COMPARED_DAYS * _RECORDS_PER_DAY:
        # Partitions that late files have made again and again leave no room for the others: with too few days nothing is compared.
        seen = {record.partition_key for record in records}
        records += [record for key in keys if key not in seen for record in partition_events(instance, REPARTITIONED, key, 1)]
    found: dict[str, int] = {}
    for record in records:
        event = record.asset_materialization
        rows = event.metadata.get("dagster/partition_row_count") if event else None
        if event and event.partition and rows is not None and isinstance(rows.value, int):
            found.setdefault(event.partition, rows.value)
    return found
