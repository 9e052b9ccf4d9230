"""``rollups`` and ``rollup_table``: one step that rolls up and publishes a batch, then the next.

Two steps would not do: one failing partition of a range would keep all others from being published.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of configs and resources as objects.

from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import Field

from rollup_assets.batches import Batch
from rollup_assets.code_version import CODE_VERSION
from rollup_assets.defs import asset_checks, metadata
from rollup_assets.defs import resources as res
from rollup_assets.defs.assets.raw_datapoints import GROUP
from rollup_assets.defs.logged_progress import LoggedProgress
from rollup_assets.defs.partitions import PUBLISHING_POLICY, batches, own_and_earlier
from rollup_assets.defs.report import Made, PartitionReport, Watcher, each_partition
from rollup_assets.errors import NotStagedError, PublishHaltError
from rollup_assets.history.rejections import refusal
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import Settings
from rollup_assets.steps import checks
from rollup_assets.steps.results import Published, RolledUp, Waiting
from rollup_assets.storage.manifests import PARTIAL_POINTS, REPARTITIONED, ROLLUP_TABLE, ROLLUPS
from rollup_assets.units import format_duration

IN_ORDER = (ROLLUPS, ROLLUP_TABLE)
PUBLISHING_STEP = "roll_up_and_publish"
"""Name of the step in runs and their configuration."""
POOL = "publishing"
"""Its concurrency pool, without a limit unless the instance gives it one (``deploy/dagster.yaml``)."""


class RollUpConfig(dg.Config):
    """What the launchpad offers."""

    force: bool = Field(default=False, description="Roll up and publish the batch again even if nothing has changed.")


def roll_up_and_publish(settings: Settings, watcher: Watcher) -> dg.AssetsDefinition:
    """The step; each of its two assets can be made alone."""
    partitions = batches(settings)
    resolutions = ", ".join(format_duration(resolution) for resolution in settings.resolutions)
    freshness = "The window that ends exactly at the end of a batch is published with the next batch."

    @dg.multi_asset(
        name=PUBLISHING_STEP,
        pool=POOL,
        description="Partition by partition: roll up, publish, next.",
        specs=[
            dg.AssetSpec(
                ROLLUPS,
                # The same partition is the default; the earlier batches' open points are added.
                deps=[REPARTITIONED, dg.AssetDep(PARTIAL_POINTS, partition_mapping=own_and_earlier(settings))],
                skippable=True,
                group_name=GROUP,
                kinds={"parquet"},
                code_version=CODE_VERSION,
                description=(
                    f"One row per series, resolution ({resolutions}) and window that ends in the batch, in the table's own data files "
                    f"but not yet part of it. {freshness}"
                ),
            ),
            dg.AssetSpec(
                ROLLUP_TABLE,
                deps=[ROLLUPS],
                skippable=True,
                group_name=GROUP,
                kinds={"iceberg"},
                code_version=CODE_VERSION,
                description=(
                    f"The published Iceberg table {settings.table}; a batch replaces its own range of labels in one snapshot. {freshness}"
                ),
                metadata={"dagster/table_name": settings.table, "dagster/column_schema": metadata.table_schema(settings)},
            ),
        ],
        check_specs=asset_checks.check_specs(IN_ORDER, partitions),
        can_subset=True,
        partitions_def=partitions,
        backfill_policy=PUBLISHING_POLICY,
    )
    def roll_up(
        context: dg.AssetExecutionContext, config: RollUpConfig, storage: res.Storage, catalog: res.Catalog, engine: res.Engine
    ) -> Iterator[dg.Output[None] | dg.MaterializeResult[Any]]:
        from rollup_assets.steps import publish, rollup

        pipeline = res.pipeline(settings, storage, catalog, engine)
        selected = {key.to_user_string() for key in context.selected_asset_keys}

        def staged() -> list[str]:
            return [batch.key for batch in pipeline.stage.batches(ROLLUPS, pipeline.calendar)]

        def wait(report: PartitionReport, batch: Batch, waiting: Waiting) -> str:
            context.log.warning(f"{batch}: {waiting.reason}")
            for made in _waiting(pipeline, batch, waiting):
                if made.asset in selected:
                    report.made(made)
            return waiting.reason

        def one(report: PartitionReport) -> str | None:
            batch = pipeline.batch(report.partition)
            if not selected:
                _check_again(pipeline, batch, report)
            if ROLLUPS in selected:
                progress = watcher.progress or LoggedProgress(context.log, batch.key)
                rolled = rollup.roll_up(pipeline, batch, force=config.force, progress=progress)
                if isinstance(rolled, Waiting):
                    return wait(report, batch, rolled)
                for warning in rolled.warnings:
                    context.log.warning(f"{batch}: {warning}")
                if rolled.unchanged:
                    context.log.info(f"{batch}: inputs, parameters and code are those of the staged rollups; nothing to do")
                report.made(_rollups(pipeline, batch, rolled))
            elif ROLLUP_TABLE in selected and pipeline.stage.read(ROLLUPS, batch) is None:
                # Rollups that wait report a materialization too, so Dagster's daemon may request the table in a separate run.
                inputs = rollup.find_inputs(pipeline, batch)
                if isinstance(inputs, Waiting):
                    return wait(report, batch, inputs)
            if ROLLUP_TABLE in selected:
                try:
                    published = publish.publish(pipeline, batch, run_id=context.run.run_id, force=config.force)
                    made = _published(pipeline, batch, published)
                except PublishHaltError as error:
                    report.checked(checks.CheckOutcome(ROLLUP_TABLE, checks.PUBLISHED_EQUALS_STAGED, str(error), passed=False))
                    raise
                if published.refused:
                    context.log.warning(f"{batch}: {published.refused}")
                    report.made(made)
                    return published.refused
                if published.unchanged:
                    context.log.info(f"{batch}: the table already holds these rollups; no new snapshot")
                report.made(made)
            return None

        yield from each_partition(context, IN_ORDER, one, watcher, without_partitions=staged)

    return roll_up


def _rollups(pipeline: Pipeline, batch: Batch, rolled: RolledUp) -> Made:
    manifest = rolled.manifest
    shown = metadata.of_staged(pipeline.stage, batch, manifest, unchanged=rolled.unchanged)
    if rolled.warnings:
        shown["warnings"] = metadata.markdown_list(rolled.warnings)
    return Made(ROLLUPS, manifest.digest, manifest.upstream, shown, asset_checks.of_rollups(pipeline, batch, manifest))


def _published(pipeline: Pipeline, batch: Batch, published: Published) -> Made:
    from rollup_assets.steps.read_back import read_back

    rollups = pipeline.stage.read(ROLLUPS, batch)
    if rollups is None:
        raise NotStagedError(f"the rollups of {batch} were deleted while they were published; run `rollups backfill {batch} {batch}`")
    table = read_back(pipeline, batch)
    receipt = published.receipt
    shown = {
        **metadata.of_staged(pipeline.stage, batch, rollups, unchanged=published.unchanged),
        **metadata.of_receipt(receipt, published.snapshot_id),
        "dagster/row_count": table.total_rows,
        "dagster/uri": table.location,
        "dagster/table_name": pipeline.settings.table,
        "dagster/column_schema": metadata.table_schema(pipeline.settings),
    }
    if published.refused:
        shown["rolled_back"] = published.refused
    outcomes = asset_checks.of_table(rollups, table, just_published=not published.unchanged, refused=published.refused)
    return Made(ROLLUP_TABLE, receipt.digest, receipt.upstream, shown, outcomes)


def _check_again(pipeline: Pipeline, batch: Batch, report: PartitionReport) -> None:
    """Evaluate the checks of the staged and published data again, without making anything."""
    from rollup_assets.steps.read_back import read_back

    rollups = pipeline.stage.read(ROLLUPS, batch)
    if rollups is None:
        return
    outcomes = asset_checks.of_rollups(pipeline, batch, rollups)
    receipt = pipeline.stage.read(ROLLUP_TABLE, batch)
    if receipt is not None:
        refused = refusal(receipt, rollups, batch)
        outcomes += asset_checks.of_table(rollups, read_back(pipeline, batch), just_published=False, refused=refused)
    for outcome in outcomes:
        report.checked(outcome)


def _waiting(pipeline: Pipeline, batch: Batch, waiting: Waiting) -> list[Made]:
    """The report of a partition that cannot be made yet: a special version, which becomes stale when what it waits for is staged."""
    missing = set(waiting.inputs)

    def version(asset: str, of: Batch) -> str | None:
        manifest = None if (asset, of.key) in missing else pipeline.stage.read(asset, of)
        return manifest.digest if manifest else None

    read = {
        REPARTITIONED: {batch.key: version(REPARTITIONED, batch)},
        PARTIAL_POINTS: {of.key: version(PARTIAL_POINTS, of) for of in (batch, *pipeline.calendar.earlier(batch, pipeline.settings.reach))},
    }
    own = f"waiting for {', '.join(waiting.waiting_for)}"
    shown = {
        "waiting_for": metadata.markdown_list(waiting.waiting_for),
        "reason": waiting.reason,
    }
    return [
        Made(ROLLUPS, own, read, shown, [checks.inputs_ready(ROLLUPS, waiting)]),
        Made(ROLLUP_TABLE, own, {ROLLUPS: {batch.key: own}}, shown, [checks.inputs_ready(ROLLUP_TABLE, waiting)]),
    ]
