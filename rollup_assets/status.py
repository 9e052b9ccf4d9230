"""Where each partition stands: raw files, what is staged, rolled up and published of them, and what is out of date.

Reads the landing zone's listing and the manifests, no data and no catalog. Changing anything stays out.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable
from dataclasses import dataclass, field

from rollup_assets.batches import Batch
from rollup_assets.errors import RollupError
from rollup_assets.history.rejections import refusal
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import Settings
from rollup_assets.steps.planning import content_parameters, rollup_parameters
from rollup_assets.steps.quarantine_limits import allowed_in, is_over
from rollup_assets.steps.results import CODE_VERSION, Waiting
from rollup_assets.steps.rollup import find_inputs
from rollup_assets.storage.manifests import QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS, Manifest, Stage
from rollup_assets.storage.storage_errors import explains_storage_errors


@dataclass(slots=True)
class PartitionStatus:
    """One partition. Counts are None where nothing is staged that would tell."""

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
    """The raw files as they are have more quarantined rows or files than the settings allow."""
    allowed: list[str] = field(default_factory=list)
    """Decisions without which the quarantine would be over its limits."""
    stale: list[str] = field(default_factory=list)
    """What has changed since; empty if all is up to date."""
    waiting_for: list[str] = field(default_factory=list)
    """Partitions with raw files that have to be staged first."""
    rolled_back: str | None = None
    """Why the rollups that are staged are not to be published: they were rolled back."""

    @property
    def state(self) -> str:
        """One word for the whole."""
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
    """The partitions of ``batches``; without them, all that have raw files or anything staged, and those that follow from them.

    A partition that has not ended at ``now`` (default: the clock) is only listed if it has raw files or is asked for.
    """
    pipeline = Pipeline.from_settings(settings)
    chosen = list(batches) if batches is not None else _known(pipeline, now or dt.datetime.now(dt.UTC))
    return [_status(pipeline, batch) for batch in chosen]


def _known(pipeline: Pipeline, now: dt.datetime) -> list[Batch]:
    calendar, landing_zone, stage = pipeline.calendar, pipeline.landing_zone, pipeline.stage
    found = set(landing_zone.batches())
    for asset in (REPARTITIONED, QUARANTINED, ROLLUPS, ROLLUP_TABLE):
        found.update(batch for name in stage.partitions(asset) if (batch := calendar.of_folder(name)) is not None)
    last = calendar.last_ended(now)
    with_points = [batch for batch in found if landing_zone.files(batch)]
    following = (calendar.shifted(batch, ahead) for batch in with_points for ahead in range(1, pipeline.settings.reach + 1))
    found.update(batch for batch in following if batch is not None and last is not None and batch <= last)
    return sorted(found)


def _status(pipeline: Pipeline, batch: Batch) -> PartitionStatus:
    settings, stage = pipeline.settings, pipeline.stage
    files = pipeline.landing_zone.files(batch)
    result = PartitionStatus(batch.key, raw_files=len(files), raw_bytes=sum(file.size for file in files))
    staged, quarantined = stage.read(REPARTITIONED, batch), stage.read(QUARANTINED, batch)
    if staged is not None:
        result.staged = True
        result.points = staged.counters["rows_accepted"]
        if staged.inputs != tuple(files):
            result.stale.append("raw files have changed since they were staged")
        result.stale += _outdated(staged, settings)
    if quarantined is not None:
        result.rows_read = quarantined.counters["rows_read"]
        result.quarantined = quarantined.counters["rows_quarantined"]
        allowed = allowed_in(stage, batch, quarantined, settings)
        result.allowed = [str(decision) for decision in allowed.decisions]
        # Over its limit a batch stages what is wrong with it, and keeps the datapoints of its earlier raw files.
        kept_earlier = staged is None or staged.inputs != quarantined.inputs
        result.over_limit = quarantined.inputs == tuple(files) and (kept_earlier or is_over(quarantined.counters, settings, allowed))
    result.waiting_for = _waiting_for(pipeline, batch)
    rollups, receipt = stage.read(ROLLUPS, batch), stage.read(ROLLUP_TABLE, batch)
    if rollups is not None:
        result.rolled_up = True
        result.stale += _changed_upstream(rollups, settings, stage)
        result.stale += [reason for reason in _outdated(rollups, settings) if reason not in result.stale]
    if receipt is not None:
        result.published = True
        result.rows = {name: int(rows) for name, rows in receipt.counters["rows"].items()}
        result.snapshot_id = receipt.counters["snapshot_id"]
        result.rolled_back = None if rollups is None else refusal(receipt, rollups, batch)
        if result.rolled_back is None and (rollups is None or receipt.digest != rollups.digest):
            result.stale.append("rollups have changed since they were published")
    return result


def _waiting_for(pipeline: Pipeline, batch: Batch) -> list[str]:
    """Other partitions that this one waits for; one whose own raw files are not staged is called that instead."""
    try:
        found = find_inputs(pipeline, batch)
    except RollupError:
        return []
    needed = [name.split()[-1] for name in found.waiting_for] if isinstance(found, Waiting) else []
    return sorted(key for key in needed if key != batch.key)


def _outdated(manifest: Manifest, settings: Settings) -> list[str]:
    wanted = rollup_parameters(settings) if manifest.asset == ROLLUPS else content_parameters(settings)
    found = manifest.parameters
    reasons = [f"{manifest.asset}: made with {name} = {found.get(name)}" for name, value in wanted.items() if found.get(name) != value]
    if manifest.code_version != CODE_VERSION:
        reasons.append(f"{manifest.asset}: made by code version {manifest.code_version}, this is {CODE_VERSION}")
    return reasons


def _changed_upstream(rollups: Manifest, settings: Settings, stage: Stage) -> list[str]:
    reasons = []
    for asset, partitions in rollups.upstream.items():
        for key, digest in partitions.items():
            current = stage.read(asset, settings.calendar.batch(key))
            if (current.digest if current is not None else None) != digest:
                reasons.append(f"{asset} {key} has changed since it was rolled up")
    return reasons
