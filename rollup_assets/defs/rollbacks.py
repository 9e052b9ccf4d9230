"""Tells Dagster's UI which partitions were rolled back: a materialization of ``rollup_table`` that belongs to no run."""

from __future__ import annotations

import functools

import dagster as dg

from rollup_assets.defs import metadata
from rollup_assets.defs.dagster_home import dagster_home_of, not_opened, open_dagster_home
from rollup_assets.defs.report import partition_events, provenance
from rollup_assets.errors import DagsterHomeError, RollupError
from rollup_assets.history.rollback import RolledBack
from rollup_assets.settings import Settings
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import ROLLUP_TABLE, Stage


def record_rollback(settings: Settings, done: RolledBack) -> None:
    """Record with Dagster which data version each partition has now. A later run records it again, with its checks.

    Raises:
        DagsterHomeError: Dagster's records of runs cannot be opened or written; the rollback stands.
    """
    try:
        with open_dagster_home(settings) as instance:
            _record(settings, done, instance)
    except Exception as error:  # dagster.yaml may name classes that raise anything
        known = error if isinstance(error, RollupError) else not_opened(dagster_home_of(settings), error)
        raise DagsterHomeError(
            f"the rollback succeeded, but Dagster could not be told: {known}. Then run the same command again, which only tells Dagster"
        ) from error


def _record(settings: Settings, done: RolledBack, instance: dg.DagsterInstance) -> None:
    stage = Stage(Place.parse(settings.stage, settings.s3))
    for partition in done.partitions:
        batch = settings.calendar.find(partition.partition)
        receipt = None if batch is None else stage.read(ROLLUP_TABLE, batch)
        if receipt is None:
            continue
        shown = {
            **metadata.of_receipt(receipt, receipt.counters["snapshot_id"]),
            # As text: a snapshot id has more bits than a browser shows.
            "rolled_back_to": str(done.target) if done.target is not None else "before the first snapshot",
        }
        # With the same tags as in a run: without its input's version, the UI would call the partition stale because of a new input.
        tags = provenance(receipt.digest, receipt.upstream, functools.partial(partition_events, instance))
        instance.report_runless_asset_event(dg.AssetMaterialization(ROLLUP_TABLE, partition=partition.partition, metadata=shown, tags=tags))
