"""The state of each partition: its raw files, what of it is staged, rolled up and published, and what is out of date.

Reads the landing zone's listing and the manifests and, of a batch with too many quarantined rows, those rows and the decisions about them;
no points, no rollups, no catalog. Changing anything stays out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from rollup_assets.batches import Batch
from rollup_assets.errors import LandingZoneError, RollupError, StageCorruptError
from rollup_assets.history.rejections import refusal
from rollup_assets.iceberg.table import data_location
from rollup_assets.pipeline import Pipeline, for_each
from rollup_assets.scope import following
from rollup_assets.settings import Settings
from rollup_assets.steps.changes import files_of_another_table, input_changes, other_settings
from rollup_assets.steps.parameters import rollup_parameters
from rollup_assets.steps.publish import has_unpublished_points, reasons_to_publish
from rollup_assets.steps.quarantine_limits import allowed_in, is_over
from rollup_assets.steps.repartition import current_stage, outdated
from rollup_assets.steps.results import Waiting
from rollup_assets.steps.rollup import find_inputs
from rollup_assets.storage.manifests import QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS, Manifest, StageReadOnce
from rollup_assets.storage.storage_errors import explains_storage_errors

# How many manifests a partition has.
_MANIFESTS = 5
# Partitions whose manifests are kept, besides those of the earlier ones that they read: more than are handled at once.
_SIDE_BY_SIDE = 64


@dataclass(slots=True)
class PartitionStatus:
    """One partition. Counts are None if nothing is staged that has them."""

    partition: str
    raw_files: int = 0
    raw_bytes: int = 0
    rows_read: int | None = None
    points: int | None = None
    quarantined: int | None = None
    staged: bool = False
    rolled_up: bool = False
    published: bool = False
    rows: dict[str, int] = field(default_factory=dict)
    """Published rows by resolution in ms."""
    snapshot_id: int | None = None
    over_limit: bool = False
    """Whether the current raw files have more quarantined rows or files than the settings allow."""
    allowed: list[str] = field(default_factory=list)
    """Decisions that keep the quarantine within its limits."""
    stale: list[str] = field(default_factory=list)
    """What has changed since it was made; empty if all is up to date."""
    waiting_for: list[str] = field(default_factory=list)
    """Partitions with raw files that have to be staged first."""
    held_back: str | None = None
    """Why its points, which are not in the table, cannot be rolled up."""
    rolled_back: str | None = None
    """Why the staged rollups are not published: they were rolled back."""
    problem: str | None = None
    """Why the partition cannot be examined, and how to fix that."""

    @property
    def state(self) -> str:
        """The partition's state in one word."""
        if self.problem:
            return "unknown"
        if self.over_limit:
            return "quarantined"
        if self.waiting_for:
            return "waiting"
        if self.raw_files and not self.staged:
            return "not staged"
        if self.stale:
            return "stale"
        if self.rolled_back:
            return "rolled back"
        if self.published:
            return "published"
        if self.rolled_up:
            return "rolled up"
        return "staged" if self.staged else "empty"


@explains_storage_errors
def status(settings: Settings, batches: Iterable[Batch] | None = None, *, now: dt.datetime | None = None) -> list[PartitionStatus]:
    """The partitions of ``batches``; without them, all that have raw files or anything staged, and those that depend on them.

    A partition that has not ended at ``now`` (default: the clock) is only listed if it has raw files or is asked for.
    """
    pipeline = Pipeline.from_settings(settings)
    # Each manifest is read once, though later partitions ask for those of earlier ones again. Not all of a table's manifests are kept,
    # which would be too much: they contain the footers of its files.
    most = _MANIFESTS * (_SIDE_BY_SIDE + settings.reach)
    pipeline = replace(pipeline, stage=StageReadOnce(pipeline.stage.root, most))
    chosen = list(batches) if batches is not None else _known(pipeline, now or dt.datetime.now(dt.UTC))

    def look(batch: Batch) -> PartitionStatus:
        try:
            return _status(pipeline, batch)
        except (LandingZoneError, StageCorruptError) as error:
            return PartitionStatus(batch.key, problem=str(error))

    return for_each(pipeline, look, chosen)


def _known(pipeline: Pipeline, now: dt.datetime) -> list[Batch]:
    calendar, landing_zone, stage = pipeline.calendar, pipeline.landing_zone, pipeline.stage
    last = calendar.last_ended(now)

    def has_ended(batch: Batch) -> bool:
        return last is not None and batch <= last

    # Of a folder that cannot be listed, such as a year's, all batches may have files.
    found = {batch for batch in landing_zone.landed() if has_ended(batch) or _has_files(pipeline, batch)}
    with_points = landing_zone.reading(found)
    found.update(batch for batch in with_points if has_ended(batch))
    for asset in (REPARTITIONED, QUARANTINED, ROLLUPS, ROLLUP_TABLE):
        found.update(stage.batches(asset, calendar))
    after = (later for batch in with_points for later in following(calendar, batch, pipeline.settings.reach))
    found.update(batch for batch in after if has_ended(batch))
    return sorted(found)


def _has_files(pipeline: Pipeline, batch: Batch) -> bool:
    """Whether the batch's own folder has raw files, as far as it can be listed."""
    try:
        return bool(pipeline.landing_zone.folder_files(batch))
    except LandingZoneError:
        return False


def _status(pipeline: Pipeline, batch: Batch) -> PartitionStatus:
    settings, stage = pipeline.settings, pipeline.stage
    files = pipeline.landing_zone.files(batch)
    result = PartitionStatus(batch.key, raw_files=len(files), raw_bytes=sum(file.size for file in files))
    staged, quarantined = current_stage(pipeline, batch), stage.read(QUARANTINED, batch)
    if staged is not None:
        result.staged = True
        result.points = staged.repartitioned.counters["rows_accepted"]
        result.stale += outdated(pipeline, batch, files, staged)
    if quarantined is not None:
        result.rows_read = quarantined.counters["rows_read"]
        result.quarantined = quarantined.counters["rows_quarantined"]
        allowed = allowed_in(stage, batch, quarantined, settings)
        result.allowed = [str(decision) for decision in allowed.decisions]
        # Over its limit a batch stages its quarantine, but keeps the datapoints of its earlier raw files.
        result.over_limit = quarantined.inputs == tuple(files) and is_over(quarantined.counters, settings, allowed)
    result.waiting_for, result.held_back, upstream = _inputs(pipeline, batch)
    rollups, receipt = stage.read(ROLLUPS, batch), stage.read(ROLLUP_TABLE, batch)
    if rollups is not None:
        result.rolled_up = True
        result.stale += [
            f"{ROLLUPS}: {change}" for change in input_changes(rollups.upstream, upstream or _current_inputs(rollups, pipeline))
        ]
        reasons = [*other_settings(rollups, rollup_parameters(settings)), *files_of_another_table(rollups, data_location(settings))]
        result.stale += [f"{ROLLUPS}: {reason}" for reason in reasons]
    if receipt is not None:
        result.published = True
        result.rows = {name: int(rows) for name, rows in receipt.counters["rows"].items()}
        result.snapshot_id = receipt.counters["snapshot_id"]
        if rollups is None:
            result.stale.append("rollups are gone since they were published")
        else:
            result.rolled_back = refusal(receipt, rollups, batch)
            result.stale += reasons_to_publish(batch, receipt, rollups, None)
    return result


def _inputs(pipeline: Pipeline, batch: Batch) -> tuple[list[str], str | None, dict[str, dict[str, str | None]] | None]:
    """The other partitions that this one waits for, why its new points cannot be rolled up, and the digests of what it would be made from.

    It does not wait for itself: if its own raw files are not staged, its state says so.
    """
    try:
        found = find_inputs(pipeline, batch)
    except RollupError as error:
        return [], str(error) if has_unpublished_points(pipeline.stage, batch) else None, None
    if isinstance(found, Waiting):
        return sorted(key for _, key in found.inputs if key != batch.key), None, None
    return [], None, found.upstream(batch)


def _current_inputs(rollups: Manifest, pipeline: Pipeline) -> dict[str, dict[str, str | None]]:
    """The current digests of what the rollups were made from; None for what is not staged, or is no partition of the present calendar."""

    def digest(asset: str, key: str) -> str | None:
        try:
            current = pipeline.staged(asset, key)
        except StageCorruptError:
            # Reported with the partition that it belongs to.
            return None
        return current.digest if current is not None else None

    return {asset: {key: digest(asset, key) for key in partitions} for asset, partitions in rollups.upstream.items()}
