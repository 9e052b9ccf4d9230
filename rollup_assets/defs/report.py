"""What a run records: one materialization and one evaluation of each check per partition, as soon as that partition is finished.

Left to itself, a run over a range of partitions gives the whole range one data version and no check result, and one failing
partition fails them all. So each partition reports itself here, with its data version and what it was made from; what Dagster would
record at the end of the range is suppressed. What is reported (metadata, checks) stays out.

That takes two things which Dagster keeps private (``defs.dagster_private``).
"""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from rollup_assets.code_version import CODE_VERSION
from rollup_assets.defs.dagster_private import SUPPRESS_OWN_EVENT, AssetCheckEvaluationTargetMaterializationData
from rollup_assets.engines.base import Progress
from rollup_assets.errors import PublishHaltError, ReconciliationError, RollupError
from rollup_assets.escaping import markdown_text, printable
from rollup_assets.failpoints import failpoint
from rollup_assets.outcomes import PartitionOutcome
from rollup_assets.steps.checks import CheckOutcome

RAW_DATAPOINTS = "raw_datapoints"
"""The one asset that is observed, never materialized here."""
NOT_THERE = "none"
"""Data version of an input partition that is not staged and need not be."""

_LOOKED_BACK = 1000
"""How many events of a partition are searched for the version that was read: more than it gets in years. If none has it, the pointer stands
before them all."""
Events = Callable[[str, str, int], Sequence[dg.EventLogRecord]]
"""(asset, partition, limit) -> the partition's latest events, at most ``limit``."""


@dataclass(frozen=True, slots=True)
class Made:
    """The new state of one partition of one asset."""

    asset: str
    data_version: str
    read: Mapping[str, Mapping[str, str | None]]
    """Upstream asset -> partition -> data version that was read (None: not there)."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    checks: Sequence[CheckOutcome] = ()


@dataclass(frozen=True, slots=True)
class Watcher:
    """Callbacks for runs that are executed in the caller's own process (``defs.backfill``); none by default."""

    progress: Progress | None = None
    """Where the steps report how far they are; None: as lines in the run's log."""
    on_partition: Callable[[PartitionOutcome], None] | None = None
    """Told about each partition as it ends."""


class PartitionReport:
    """Records what happens to one partition in the run's event log."""

    def __init__(self, context: dg.AssetExecutionContext, partition: str) -> None:
        self.partition = partition
        self._context = context
        self._latest: dict[tuple[str, str], Sequence[dg.EventLogRecord]] = {}

    def observed(self, asset: str, data_version: str, metadata: Mapping[str, Any]) -> None:
        """An external asset was seen in this version."""
        self._context.log_event(
            dg.AssetObservation(asset, partition=self.partition, metadata=metadata, tags={"dagster/data_version": data_version})
        )
        self._latest.pop((asset, self.partition), None)

    def made(self, made: Made) -> None:
        """A partition of an asset is in place."""
        failpoint(f"event.{made.asset}")
        tags = provenance(made.data_version, made.read, self._events)
        self._context.log_event(dg.AssetMaterialization(made.asset, partition=self.partition, metadata=made.metadata, tags=tags))
        self._latest.pop((made.asset, self.partition), None)
        for outcome in made.checks:
            self.checked(outcome)

    def checked(self, outcome: CheckOutcome) -> None:
        """A check was evaluated; recorded if the run was asked for it."""
        if dg.AssetCheckKey(dg.AssetKey(outcome.asset), outcome.name) not in self._context.selected_asset_check_keys:
            return
        self._context.log_event(
            dg.AssetCheckEvaluation(
                asset_key=dg.AssetKey(outcome.asset),
                check_name=outcome.name,
                passed=outcome.passed,
                severity=dg.AssetCheckSeverity.WARN if outcome.warning else dg.AssetCheckSeverity.ERROR,
                description=outcome.description,
                metadata=outcome.metadata,
                target_materialization_data=self._target(outcome.asset),
                partition=self.partition,
            )
        )

    def _target(self, asset: str) -> AssetCheckEvaluationTargetMaterializationData | None:
        """The partition's latest materialization, which its checks are about."""
        latest = self._events(asset, self.partition, 1)
        if not latest:
            return None
        return AssetCheckEvaluationTargetMaterializationData(
            storage_id=latest[0].storage_id, run_id=latest[0].run_id, timestamp=latest[0].timestamp
        )

    def _events(self, asset: str, partition: str, limit: int) -> Sequence[dg.EventLogRecord]:
        """The latest events of a partition. The very latest is cached, since a look-up costs half as much as recording an event.

        The cache lives no longer than one report: it must not hide that an input partition was made anew (:func:`_pointer`).
        """
        if limit > 1:
            return partition_events(self._context.instance, asset, partition, limit)
        if (asset, partition) not in self._latest:
            self._latest[asset, partition] = partition_events(self._context.instance, asset, partition, 1)
        return self._latest[asset, partition]


def partition_events(instance: dg.DagsterInstance, asset: str, partition: str, limit: int) -> Sequence[dg.EventLogRecord]:
    """A partition's events with its data version, latest first: materializations, or observations for raw data."""
    wanted = dg.AssetRecordsFilter(asset_key=dg.AssetKey(asset), asset_partitions=[partition])
    fetch = instance.fetch_observations if asset == RAW_DATAPOINTS else instance.fetch_materializations
    return fetch(wanted, limit=limit).records


def provenance(data_version: str, read: Mapping[str, Mapping[str, str | None]], events: Events) -> dict[str, str]:
    """The tags of a materialization by which Dagster tells whether its partition is stale, and why.

    Args:
        data_version: of the partition.
        read: upstream asset -> partition -> data version that was read (None: not there).
        events: a look-up such as :func:`partition_events`.
    """
    tags = {
        "dagster/data_version": data_version,
        "dagster/code_version": CODE_VERSION,
        "dagster/data_version_is_user_provided": "true",
    }
    for upstream, versions in read.items():
        tags[f"dagster/input_data_version/{upstream}"] = _version_of_all(versions)
        tags[f"dagster/input_event_pointer/{upstream}"] = str(_pointer(upstream, versions, events))
    return tags


def each_partition(
    context: dg.AssetExecutionContext,
    in_order: Sequence[str],
    body: Callable[[PartitionReport], str | None],
    watcher: Watcher,
    *,
    without_partitions: Callable[[], Sequence[str]] = lambda: (),
) -> Iterator[dg.Output[None] | dg.MaterializeResult[Any]]:
    """Run ``body`` for every partition of the run, one after the other; a failing one does not stop the others.

    Args:
        context: of the asset function, which uses ``yield from`` on this.
        in_order: names of its assets, upstream first.
        body: makes one partition and reports it; returns why it waits, or None.
        watcher: told about each partition.
        without_partitions: the partitions to use for a run without any, as when only checks are executed in the UI.

    Raises:
        dagster.Failure: the run makes assets and has no partition; or partitions failed: names all of them with their reasons. Raised
            after the others are finished, or at once where going on would be a guess (``PublishHaltError``).
    """
    assets = tuple(asset for asset in in_order if dg.AssetKey(asset) in context.selected_asset_keys)
    failed: dict[str, Exception] = {}
    partitioned = context.has_partition_key or context.has_partition_key_range
    if assets and not partitioned:
        raise dg.Failure(
            "the run has no partition, so there is nothing it could make; choose one in the UI, run `dg launch` with --partition, or run "
            "`rollups backfill FROM TO`",
            allow_retries=False,
        )
    for key in context.partition_keys if partitioned else without_partitions():
        report, waiting, error = PartitionReport(context, key), None, None
        try:
            waiting = body(report)
        except Exception as caught:
            failed[key] = error = caught
            # Our own errors say what is wrong and what to run; a traceback helps only with other errors.
            context.log.error(_reason_of(key, caught), exc_info=None if isinstance(caught, RollupError) else caught)
            for outcome in caught.outcomes if isinstance(caught, ReconciliationError) else ():
                report.checked(outcome)
            _forget_variables(caught)
        if watcher.on_partition:
            watcher.on_partition(PartitionOutcome(key, assets, waiting, error))
        if isinstance(error, PublishHaltError):
            break
    if failed:
        rows = "\n".join(f"| {markdown_text(key)} | {markdown_text(_reason(error))} |" for key, error in failed.items())
        raise dg.Failure(
            "; ".join(_reason_of(key, error) for key, error in failed.items()),
            metadata={"failed_partitions": dg.MetadataValue.md(f"| partition | reason |\n|---|---|\n{rows}"), "failed": len(failed)},
            allow_retries=False,
        )
    for check in context.selected_asset_check_keys:
        # A declared check is a required output of the step; an empty one satisfies it and records nothing.
        yield dg.Output(None, output_name=f"{check.asset_key.to_python_identifier()}_{check.name}")
    for asset in assets:
        yield dg.MaterializeResult(asset_key=asset, metadata={SUPPRESS_OWN_EVENT: True})


def _forget_variables(error: BaseException) -> None:
    """Clear the local variables of the functions that an error passed through, which it would keep alive to the run's end.

    For a task that cannot write its shard these are the shard, sorted and unsorted, and an unfinished file with its disk space.
    """
    links: list[BaseException | None] = [error]
    seen: set[int] = set()
    while links:
        link = links.pop()
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            traceback.clear_frames(link.__traceback__)
            links += [link.__cause__, link.__context__]


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, RollupError) else printable(f"{type(error).__name__}: {error}")


def _reason_of(partition: str, error: Exception) -> str:
    """Why a partition failed, with its name once: most of our errors already have it."""
    reason = _reason(error)
    return reason if partition in reason.split(": ", maxsplit=1)[0] else f"{partition}: {reason}"


def _version_of_all(versions: Mapping[str, str | None]) -> str:
    """One data version for all partitions of an input; for a single partition, its own."""
    if len(versions) == 1:
        return next(iter(versions.values())) or NOT_THERE
    text = "\n".join(f"{partition} {version or NOT_THERE}" for partition, version in sorted(versions.items()))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _pointer(upstream: str, versions: Mapping[str, str | None], events: Events) -> int:
    """The event up to which the versions of an input's partitions are those that were read.

    Dagster calls a partition stale if an input has a later event whose version differs from the last one up to the pointer. All
    partitions of an input share one pointer, so it may not go past any event with a version other than the one that was read. And it
    is never 0 ("NULL"): Dagster would then compare a first event with itself and find nothing new.
    """
    seen: list[int] = []
    newer: list[int] = []
    for partition, version in versions.items():
        latest = events(upstream, partition, 1)
        if latest and _version_in(latest[0]) == version:
            seen.append(latest[0].storage_id)
        elif latest:
            # Not only the latest one: after a rollback, for instance, all events since the version that was read are newer.
            for other in events(upstream, partition, _LOOKED_BACK):
                if _version_in(other) == version:
                    break
                newer.append(other.storage_id)
    return max(1, min(newer) - 1 if newer else max(seen, default=1))


def _version_in(record: dg.EventLogRecord) -> str | None:
    event = record.event_log_entry.asset_materialization or record.event_log_entry.asset_observation
    return (event.tags or {}).get("dagster/data_version") if event else None
