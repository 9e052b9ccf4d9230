"""``repartitioned_datapoints``, ``partial_points`` and ``quarantined_datapoints``: one step, which reads a batch of raw data once."""

# No `from __future__ import annotations`: Dagster reads the annotations of configs and resources as objects.

from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import Field

from rollup_assets.code_version import CODE_VERSION
from rollup_assets.defs import asset_checks, metadata
from rollup_assets.defs import resources as res
from rollup_assets.defs.assets.raw_datapoints import GROUP
from rollup_assets.defs.logged_progress import LoggedProgress
from rollup_assets.defs.partitions import STAGING_POLICY, batches
from rollup_assets.defs.report import RAW_DATAPOINTS, Made, PartitionReport, Watcher, each_partition
from rollup_assets.errors import QuarantineError
from rollup_assets.settings import Settings
from rollup_assets.storage.copies import COPIES
from rollup_assets.storage.landing_zone import version_of
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, Manifest

STAGED = (REPARTITIONED, PARTIAL_POINTS, QUARANTINED)
STAGING_STEP = "stage_datapoints"
"""Name of the step in runs and their configuration."""
POOL = "staging"
"""Its concurrency pool, without a limit unless the instance gives it one (``deploy/dagster.yaml``)."""


class StageConfig(dg.Config):
    """What the launchpad offers."""

    force: bool = Field(default=False, description="Stage the batch again even if nothing has changed.")


def stage_datapoints(settings: Settings, watcher: Watcher) -> dg.AssetsDefinition:
    """The step; its three assets can only be made together."""
    partitions = batches(settings)

    @dg.multi_asset(
        name=STAGING_STEP,
        pool=POOL,
        description="Read a batch's raw files once: split by shard, sort, drop duplicates, quarantine what cannot be used.",
        specs=[
            dg.AssetSpec(
                REPARTITIONED,
                deps=[RAW_DATAPOINTS],
                group_name=GROUP,
                kinds={"parquet"},
                code_version=CODE_VERSION,
                description=(
                    "A batch's accepted datapoints, one file per shard: the points of a series are contiguous and in time order, "
                    "duplicates are dropped and counted."
                ),
            ),
            dg.AssetSpec(
                PARTIAL_POINTS,
                deps=[RAW_DATAPOINTS],
                group_name=GROUP,
                kinds={"parquet"},
                code_version=CODE_VERSION,
                description=(
                    "What a batch leaves open at its end: per series the first and last point, and the state of the windows that end "
                    "exactly there. The next batches finish them."
                ),
            ),
            dg.AssetSpec(
                QUARANTINED,
                deps=[RAW_DATAPOINTS],
                group_name=GROUP,
                kinds={"parquet"},
                code_version=CODE_VERSION,
                description="Rows and files that cannot be used, each with reason, source file and row number. Never dropped silently.",
            ),
        ],
        check_specs=asset_checks.check_specs(STAGED, partitions),
        partitions_def=partitions,
        backfill_policy=STAGING_POLICY,
    )
    def stage(
        context: dg.AssetExecutionContext, config: StageConfig, storage: res.Storage, catalog: res.Catalog, engine: res.Engine
    ) -> Iterator[dg.Output[None] | dg.MaterializeResult[Any]]:
        from rollup_assets.steps import repartition

        pipeline = res.pipeline(settings, storage, catalog, engine)

        def one(report: PartitionReport) -> None:
            batch = pipeline.batch(report.partition)

            def made(manifest: Manifest, checks: list[Any], *, unchanged: bool) -> Made:
                shown = metadata.of_staged(pipeline.stage, batch, manifest, unchanged=unchanged)
                return Made(manifest.asset, manifest.digest, {RAW_DATAPOINTS: {batch.key: observed(manifest)}}, shown, checks)

            def observed(manifest: Manifest) -> str:
                return version_of(list(manifest.inputs))

            def observe(manifest: Manifest) -> None:
                sizes = {"files": len(manifest.inputs), "bytes": sum(file.size for file in manifest.inputs)}
                folder = {"dagster/uri": pipeline.landing_zone.folder(batch).uri}
                report.observed(RAW_DATAPOINTS, observed(manifest), {**sizes, **folder})

            try:
                staged = repartition.stage_batch(
                    pipeline, batch, force=config.force, progress=watcher.progress or LoggedProgress(context.log, batch.key)
                )
            except QuarantineError as error:
                # Report the quarantined rows all the same: they are staged, and show what is wrong with the batch.
                observe(error.quarantined)
                report.made(made(error.quarantined, asset_checks.of_quarantined(pipeline, error.quarantined), unchanged=False))
                raise
            if staged.unchanged:
                context.log.info(f"{batch}: raw files, parameters and code are those of the staged partition; nothing to do")
            if copies := staged.repartitioned.counters.get(COPIES):
                context.log.warning(f"{batch}: {len(copies)} raw files were not read, since others have the same content; see `copies`")
            observe(staged.repartitioned)
            datapoints = asset_checks.of_datapoints(pipeline, batch, staged.repartitioned, staged.quarantined, context.instance)
            report.made(made(staged.repartitioned, datapoints, unchanged=staged.unchanged))
            report.made(made(staged.partial_points, [], unchanged=staged.unchanged))
            report.made(made(staged.quarantined, asset_checks.of_quarantined(pipeline, staged.quarantined), unchanged=staged.unchanged))

        yield from each_partition(context, STAGED, one, watcher)

    return stage
