"""Rolling up one batch: which inputs it needs, whether they are there, and the manifest of the table's new data files.

The task is in ``steps.roll_up_shards``. Nothing here touches the table: ``steps.publish`` does.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import time
from dataclasses import dataclass

from rollup_assets.batches import Batch
from rollup_assets.code_version import CODE_VERSION
from rollup_assets.engines.base import NoProgress, Progress
from rollup_assets.errors import NotStagedError, ReconciliationError, StaleInputError, StorageError
from rollup_assets.failpoints import failpoint
from rollup_assets.iceberg.table import data_location, prepare_table
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps import checks
from rollup_assets.steps.attempts import delete_other_tries
from rollup_assets.steps.changes import InputChange, files_of_another_table, input_changes, lost_files, other_settings
from rollup_assets.steps.parameters import changed_settings, rollup_parameters, shared_parameters, without_raw_limits
from rollup_assets.steps.planning import shard_groups
from rollup_assets.steps.results import RolledUp, Waiting, by_resolution
from rollup_assets.steps.roll_up_shards import RollupTask, checksums, roll_up_shards
from rollup_assets.steps.timings import summed
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import (
    PARTIAL_POINTS,
    REPARTITIONED,
    ROLLUPS,
    Manifest,
    content_digest,
    has_points,
    new_attempt,
)
from rollup_assets.storage.storage_errors import explains_storage_errors


@dataclass(frozen=True, slots=True)
class RollupInputs:
    """What a batch is rolled up from."""

    datapoints: Manifest | None
    own: Manifest | None
    earlier: tuple[tuple[Batch, Manifest | None], ...]
    """Partial points of the batches before, nearest first; None for a batch that is not staged and has no raw file either."""

    def upstream(self, batch: Batch) -> dict[str, dict[str, str | None]]:
        """Digests of everything read, for the manifest."""
        partial = {batch.key: self.own.digest if self.own else None}
        partial |= {earlier.key: manifest.digest if manifest else None for earlier, manifest in self.earlier}
        return {REPARTITIONED: {batch.key: self.datapoints.digest if self.datapoints else None}, PARTIAL_POINTS: partial}


@explains_storage_errors
def roll_up(
    pipeline: Pipeline, batch: Batch, *, force: bool = False, progress: Progress | None = None, table_is_checked: bool = False
) -> RolledUp | Waiting:
    """Roll up a staged batch into data files that are not yet part of the table.

    Nothing is done if inputs, parameters, code and table are those of the manifest, unless ``force``.

    Args:
        pipeline: of the table.
        batch: what to roll up.
        force: roll up even if nothing has changed.
        progress: where the tasks report their rows; None: nowhere.
        table_is_checked: the caller has looked at the table, which still has other settings (a migration).

    Returns:
        The manifest, or what the batch has to wait for.

    Raises:
        NotStagedError: the batch has points and an earlier one that it needs is not staged.
        StaleInputError: an input was staged with other settings, or has been replaced meanwhile.
        StageCorruptError: a staged file is missing or has another size.
        RollupOverflowError: a window overflows int64.
        ReconciliationError: counts or deltas do not agree; the files are discarded.
        CatalogError, TableMismatchError: there is no table to publish to; see :func:`rollup_assets.iceberg.table.prepare_table`.
    """
    inputs = find_inputs(pipeline, batch)
    if isinstance(inputs, Waiting):
        return inputs
    warnings = () if inputs.datapoints else (f"batch {batch} has no raw files: it only finishes windows that the batch before left open",)
    current = pipeline.stage.read(ROLLUPS, batch)
    if current and not force and not reasons_to_roll_up(pipeline, batch, inputs, current):
        return RolledUp(current, unchanged=True, warnings=warnings)
    if not table_is_checked:
        prepare_table(pipeline.settings)
    manifest = _roll_up(pipeline, batch, inputs, progress or NoProgress())
    try:
        checks.require(checks.rollup_outcomes(manifest, batch, pipeline.calendar, pipeline.stage))
    except BaseException as error:
        pipeline.stage.discard(manifest, batch)
        if isinstance(error, ReconciliationError):
            _require_same_inputs(pipeline, batch, manifest, error)
        raise
    return RolledUp(pipeline.stage.commit(manifest, batch), unchanged=False, warnings=warnings)


def _require_same_inputs(pipeline: Pipeline, batch: Batch, rollups: Manifest, error: ReconciliationError) -> None:
    """If counts disagree because another run restaged an input meanwhile, say that instead."""
    now = find_inputs(pipeline, batch)
    if isinstance(now, Waiting) or input_changes(rollups.upstream, now.upstream(batch)):
        raise StaleInputError(
            f"another run staged the inputs of the rollups of {batch} again while they were being read; nothing was published. Run "
            f"`rollups backfill {batch} {batch}` once that run has ended"
        ) from error


def reasons_to_roll_up(pipeline: Pipeline, batch: Batch, inputs: RollupInputs, rollups: Manifest | None) -> list[InputChange | str]:
    """Why rolling up from these inputs would do anything; empty if inputs, parameters, code and table are those of the manifest."""
    if rollups is None:
        return ["not rolled up yet"]
    changed = input_changes(rollups.upstream, inputs.upstream(batch))
    others = other_settings(rollups, rollup_parameters(pipeline.settings))
    others += files_of_another_table(rollups, data_location(pipeline.settings))
    others = [f"rollups: {reason}" for reason in others]
    return [*changed, *others] or [*lost_files(pipeline.stage, rollups, batch)]


def _roll_up(pipeline: Pipeline, batch: Batch, inputs: RollupInputs, progress: Progress) -> Manifest:
    started = time.perf_counter()
    settings = pipeline.settings
    attempt = new_attempt()
    found = [(earlier, manifest) if manifest else None for earlier, manifest in inputs.earlier]
    task = RollupTask(
        batch=batch,
        stage=pipeline.stage,
        data_location=data_location(settings),
        attempt=attempt,
        resolutions=settings.resolutions,
        lookback=settings.lookback,
        value_type=settings.value_type,
        parquet_encoding=settings.parquet_encoding,
        datapoints=inputs.datapoints,
        own=inputs.own,
        previous=found[0] if found else None,
        earlier=found[1] if len(found) > 1 else None,
    )
    for read_from, manifest in ((batch, inputs.datapoints), (batch, inputs.own), *inputs.earlier):
        if manifest:
            pipeline.stage.require_complete(manifest, read_from)
    failpoint("rollup.begin")
    accepted = int(inputs.datapoints.counters["rows_accepted"]) if inputs.datapoints else 0
    open_series = int(task.previous[1].counters["series"]) if task.previous else 0
    folders = [task.partition_folder(resolution) for resolution in settings.resolutions]
    try:
        results = pipeline.engine.map(
            functools.partial(roll_up_shards, task),
            shard_groups(settings.shards, accepted + open_series),
            stage="roll up and encode",
            rows=accepted,
            progress=progress,
        )
        if pipeline.engine.tries_again:
            delete_other_tries(folders, task.file_prefix, {Place.parse(file.path).path for result in results for file in result.files})
    except BaseException:
        # Files of tasks that had ended: no manifest names them, and each attempt would leave as many. The first error is the one raised.
        with contextlib.suppress(StorageError, OSError):
            delete_other_tries(folders, task.file_prefix, ())
        raise
    # By resolution, then by shard: in the manifest as in the table, files of a resolution are together.
    files = tuple(sorted((file for result in results for file in result.files), key=lambda file: file.resolution or 0))
    counters = {
        "rows": by_resolution(results, "rows", settings.resolutions),
        "counts": by_resolution(results, "counts", settings.resolutions),
        "carried": by_resolution(results, "carried", settings.resolutions),
        "accepted": sum(result.points for result in results),
        "series": sum(result.series for result in results),
        "duplicate_windows": sum(result.repeated for result in results),
        "checksums": checksums(results, settings.resolutions, task.value_dtype),
    }
    timings = summed(results)
    timings["total"] = time.perf_counter() - started
    return Manifest(
        asset=ROLLUPS,
        partition=batch.key,
        attempt=attempt,
        code_version=CODE_VERSION,
        parameters=rollup_parameters(settings),
        upstream=inputs.upstream(batch),
        files=files,
        counters=counters,
        digest=content_digest(files, counters),
        timings=timings,
    )


def find_inputs(pipeline: Pipeline, batch: Batch) -> RollupInputs | Waiting:
    """The manifests that a batch is rolled up from, or what it waits for.

    An earlier batch need not be staged if it has no raw file. Otherwise a batch without points waits for it. A batch whose own raw files
    are not staged waits, too.

    Raises:
        NotStagedError: the batch has points, and an earlier one that has raw files is not staged.
        StaleInputError: an input was staged with other settings, or the batch was staged only in part.
    """
    stage, landing_zone, calendar = pipeline.stage, pipeline.landing_zone, pipeline.calendar
    datapoints = stage.read(REPARTITIONED, batch)
    own = stage.read(PARTIAL_POINTS, batch)
    if datapoints is None and landing_zone.files(batch):
        return Waiting((f"{REPARTITIONED} {batch.key}",))
    if datapoints is not None and not _made_together(datapoints, own):
        # Series are matched by their place in both: of two stagings, windows left open would go to other series.
        raise StaleInputError(
            f"{REPARTITIONED} and {PARTIAL_POINTS} of {batch} are of different stagings: one was interrupted, or is under way; run "
            f"`rollups backfill {batch} {batch}`"
        )
    earlier: list[tuple[Batch, Manifest | None]] = []
    missing: list[Batch] = []
    for before in calendar.earlier(batch, pipeline.settings.reach):
        manifest = stage.read(PARTIAL_POINTS, before)
        if manifest is None and landing_zone.files(before):
            missing.append(before)
        earlier.append((before, manifest))
    if missing:
        if not has_points(datapoints):
            return Waiting(tuple(f"{PARTIAL_POINTS} {before.key}" for before in missing))
        first, last = min(missing), max(missing)
        raise NotStagedError(
            f"rollups of {batch} need {', '.join(f'{PARTIAL_POINTS} {before}' for before in missing)}: raw files are there but not staged; "
            f"run `rollups backfill {first} {last}`"
        )
    staged = [(of, manifest) for of, manifest in ((batch, datapoints), (batch, own), *earlier) if manifest]
    changed = {
        (of, manifest.asset): settings
        for of, manifest in staged
        if (settings := changed_settings(shared_parameters(pipeline.settings, of), without_raw_limits(manifest.parameters)))
    }
    if changed:
        named = dict.fromkeys(itertools.chain.from_iterable(changed.values()))
        # From the first of them on: a backfill that begins later would leave the ones before it stale.
        raise StaleInputError(
            f"{', '.join(f'{asset} {of}' for of, asset in changed)} {'was' if len(changed) == 1 else 'were'} staged with other "
            f"settings: {', '.join(named)}; stage {'it' if len(changed) == 1 else 'them'} again with "
            f"`rollups backfill {min(of for of, _ in changed)} {batch}` (from the first batch on that `rollups status` shows with such a "
            "setting, if that is an earlier one), or restore those settings"
        )
    return RollupInputs(datapoints, own, tuple(earlier))


def _made_together(datapoints: Manifest, partial: Manifest | None) -> bool:
    """Whether both are of one staging, as far as manifests tell: their attempts differ where one of them had the content already."""
    return partial is not None and all(
        getattr(datapoints, name) == getattr(partial, name) for name in ("inputs", "parameters", "code_version")
    )
