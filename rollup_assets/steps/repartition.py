"""Staging one batch: raw files to ``repartitioned_datapoints``, ``partial_points`` and ``quarantined_datapoints``, made together.

The tasks are in ``steps.split`` and ``steps.sort``; here are the decisions: whether there is anything to do, whether the batch is
fit to be staged, and the three manifests.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence

from rollup_assets.batches import Batch
from rollup_assets.code_version import CODE_VERSION
from rollup_assets.engines.base import NoProgress, Progress
from rollup_assets.errors import ConcurrentWriteError, LandingZoneError, QuarantineError, StaleInputError, StorageError, TableMismatchError
from rollup_assets.failpoints import failpoint
from rollup_assets.iceberg.table import refusal
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps import checks
from rollup_assets.steps.attempts import delete_other_tries
from rollup_assets.steps.changes import file_changes, in_words, lost_files, other_settings
from rollup_assets.steps.parameters import are_for_another_table, content_parameters
from rollup_assets.steps.planning import shard_groups, split_tasks
from rollup_assets.steps.quarantine_limits import allowed_in, is_over, rows_compared, too_many_files, too_many_rows
from rollup_assets.steps.results import StagedBatch, by_resolution
from rollup_assets.steps.sort import SortResult, SortTask, sort_shards
from rollup_assets.steps.split import SplitFile, SplitResult, SplitTask, split_files
from rollup_assets.steps.timings import summed
from rollup_assets.storage.copies import COPIES, find_copies
from rollup_assets.storage.filesystems import in_parallel
from rollup_assets.storage.landing_zone import version_of
from rollup_assets.storage.manifests import (
    ELSEWHERE_ROWS,
    PARTIAL_POINTS,
    QUARANTINED,
    REPARTITIONED,
    InputFile,
    Manifest,
    StagedFile,
    content_digest,
    new_attempt,
)
from rollup_assets.storage.quarantine import BadFile
from rollup_assets.storage.raw_files import COPIED_FILE, count_rows
from rollup_assets.storage.storage_errors import explains_storage_errors

_FILES_NAMED = 3


@explains_storage_errors
def stage_batch(
    pipeline: Pipeline, batch: Batch, *, force: bool = False, progress: Progress | None = None, table_is_checked: bool = False
) -> StagedBatch:
    """Stage the raw files of a batch.

    Nothing is done if files, parameters and code are those of the manifests, unless ``force``. A batch without raw files is staged empty.

    Args:
        pipeline: of the table.
        batch: what to stage.
        force: stage even if nothing has changed.
        progress: where the tasks report their rows; None: nowhere.
        table_is_checked: the caller has looked at the table, which still has other settings (a migration).

    Raises:
        TableMismatchError: the table refuses these settings; what is staged for it is kept.
        QuarantineError: too many rows or files are quarantined; they are staged (``error.quarantined``), the datapoints are not.
        RollupOverflowError: an open window overflows int64; nothing is staged.
        LandingZoneError: raw data lies where no batch would read it, or is all gone; nothing is staged.
        StorageError: raw data cannot be read, or the stage cannot be written; the datapoints are not staged.
        StaleInputError: a raw file was replaced or removed while it was read; nothing is staged.
        ShortOfMemoryError: there is no memory for a raw file; nothing is staged.
        StageCorruptError: what is staged, or decided about the quarantine, cannot be read; the datapoints are not staged.
        ReconciliationError: rows are not accounted for; the datapoints are not staged.
        ConcurrentWriteError: other runs staged the batch at the same time, twice, with another result.
    """
    stage = functools.partial(
        _stage_once, pipeline, batch, force=force, progress=progress or NoProgress(), table_is_checked=table_is_checked
    )
    with contextlib.suppress(ConcurrentWriteError):
        return stage()
    # Which of the two runs has seen more, only a new look at the raw files can tell.
    return stage()


def _stage_once(pipeline: Pipeline, batch: Batch, *, force: bool, progress: Progress, table_is_checked: bool) -> StagedBatch:
    settings = pipeline.settings
    landing_zone = pipeline.landing_zone
    # Before the raw files are listed: whoever stages the batch meanwhile may have seen more of them.
    standing = {asset: pipeline.stage.standing(asset, batch) for asset in (REPARTITIONED, PARTIAL_POINTS, QUARANTINED)}
    by_folder = landing_zone.files_by_folder(batch)
    files = _in_path_order(by_folder)
    current = _whole(*(found.manifest for found in standing.values()))
    if current and not force and not reasons_to_stage(pipeline, batch, files, current):
        return current
    if not force and (problem := raw_data_is_gone(pipeline, batch, files, current)):
        raise LandingZoneError(problem)
    # The table is asked only then: loading PyIceberg takes a second, and staging needs no catalog.
    is_replaced = current is not None and are_for_another_table(settings, current.repartitioned.parameters)
    if is_replaced and not table_is_checked and (problem := refusal(settings)):
        raise TableMismatchError(f"{problem}; what is staged of {batch} for the table was kept")

    started = time.perf_counter()
    attempt = new_attempt()
    # In the order of the folders, since of several copies the first is read. The batch's own folder and those after it lose none of its
    # points; those before it come last, since points too far ahead of their folder are not accepted from them.
    copies = find_copies(landing_zone.root, [file for found in by_folder.values() for file in found])
    read = _files_to_read(pipeline, batch, by_folder, copies)
    split, merged = _split_and_sort(pipeline, batch, attempt, files, read, progress)
    parameters = content_parameters(settings, batch)
    timings = summed([*split, *merged])
    timings["total"] = time.perf_counter() - started

    def manifest(asset: str, found: list[StagedFile], counters: dict[str, object]) -> Manifest:
        return Manifest(
            asset=asset,
            partition=batch.key,
            attempt=attempt,
            code_version=CODE_VERSION,
            parameters=parameters,
            inputs=tuple(files),
            files=tuple(found),
            counters=counters,
            digest=content_digest(tuple(found), counters),
            timings=timings,
        )

    def commit(asset: str, found: list[StagedFile], counters: dict[str, object], *, later: tuple[str, ...]) -> Manifest:
        with _discarding_on_error(pipeline, batch, attempt, later):
            return pipeline.stage.commit(manifest(asset, found, counters), batch, replaces=standing[asset])

    counts = _counts(split, merged, len(files))
    if not landing_zone.lateness:
        del counts[ELSEWHERE_ROWS]
    reasons = _reasons(split)
    bad_files = sorted((bad for result in split for bad in result.bad_files), key=lambda bad: bad.path)
    quarantined = commit(
        QUARANTINED,
        [file for result in merged for file in result.quarantined],
        {name: counts[name] for name in ("rows_read", ELSEWHERE_ROWS, "rows_quarantined", "bad_files") if name in counts}
        | {"reasons": reasons},
        later=(REPARTITIONED, PARTIAL_POINTS),
    )
    bad_paths = {bad.path for bad in bad_files}
    not_read = {path: original for path, original in sorted(copies.items()) if path not in bad_paths}
    of_copies = {"copied_files": len(not_read), COPIES: not_read} if not_read else {}
    datapoints = manifest(REPARTITIONED, [file for result in merged for file in result.datapoints], {**counts, **of_copies})
    with _discarding_on_error(pipeline, batch, attempt, (REPARTITIONED, PARTIAL_POINTS)):
        if problem := _quarantine_problem(pipeline, batch, quarantined, bad_files, _quarantined_by_file(split)):
            raise QuarantineError(problem, quarantined)
        checks.require([checks.rows_accounted_for(datapoints, quarantined)])
    # Partial points first: once the datapoints' manifest is visible, so is theirs.
    partial = commit(
        PARTIAL_POINTS,
        [file for result in merged for file in result.partial_points],
        {
            "series": counts["series"],
            "counts": by_resolution(merged, "open_counts", settings.resolutions),
            "windows": by_resolution(merged, "open_windows", settings.resolutions),
        },
        later=(REPARTITIONED,),
    )
    repartitioned = pipeline.stage.commit(datapoints, batch, replaces=standing[REPARTITIONED])
    return StagedBatch(repartitioned, partial, quarantined, unchanged=False)


def _split_and_sort(
    pipeline: Pipeline, batch: Batch, attempt: str, files: list[InputFile], read: list[SplitFile], progress: Progress
) -> tuple[list[SplitResult], list[SortResult]]:
    """Run the tasks. What they wrote is deleted if one fails, or if a raw file was replaced or removed meanwhile.

    ``files`` are the batch's raw files, none of which may change; ``read`` says which rows of them are read.
    """
    settings, root = pipeline.settings, pipeline.landing_zone.root

    def rows_to_decode(one: SplitFile) -> int:
        return count_rows(root / one.file.path, one.bounds, settings.raw_limits) if one.copy_of is None else 0

    known_rows = sum(in_parallel(rows_to_decode, read, local=root.is_local))
    sort_task = SortTask(
        batch=batch,
        shards=settings.shards,
        resolutions=settings.resolutions,
        lookback=settings.lookback,
        value_column=settings.value_column,
        datapoints_folder=pipeline.stage.folder(REPARTITIONED, batch),
        partial_points_folder=pipeline.stage.folder(PARTIAL_POINTS, batch),
        quarantine_folder=pipeline.stage.folder(QUARANTINED, batch),
        attempt=attempt,
    )
    tasks = [
        SplitTask(root, some, batch, settings.shards, settings.value_column, settings.raw_limits)
        for some in split_tasks(read, pipeline.engine)
    ]
    groups = [*shard_groups(settings.shards, known_rows), [settings.shards]] if files else []
    failpoint("stage.begin")
    with _discarding_on_error(pipeline, batch, attempt, (REPARTITIONED, PARTIAL_POINTS, QUARANTINED)):
        split, merged = pipeline.engine.map_shuffle(
            split_files,
            tasks,
            functools.partial(sort_shards, sort_task),
            groups,
            stages=("read and split", "sort and encode"),
            rows=known_rows,
            progress=progress,
        )
        _require_unchanged(pipeline, batch, files)
        if pipeline.engine.tries_again:
            _delete_other_tries(pipeline, batch, attempt, merged)
    return split, merged


def _quarantined_by_file(split: list[SplitResult]) -> dict[str, int]:
    """Quarantined rows by the raw file's path, those of whole files included."""
    return {
        path: rows
        for result in split
        for path, rows in (*result.quarantined_by_file.items(), *((bad.path, bad.rows) for bad in result.bad_files))
    }


def current_stage(pipeline: Pipeline, batch: Batch) -> StagedBatch | None:
    """The staged manifests of a batch; None if it is not staged."""
    return _whole(*(pipeline.stage.read(asset, batch) for asset in (REPARTITIONED, PARTIAL_POINTS, QUARANTINED)))


def _whole(repartitioned: Manifest | None, partial: Manifest | None, quarantined: Manifest | None) -> StagedBatch | None:
    if repartitioned is None or partial is None or quarantined is None:
        return None
    return StagedBatch(repartitioned, partial, quarantined, unchanged=True)


def raw_data_is_gone(pipeline: Pipeline, batch: Batch, files: Sequence[InputFile], staged: StagedBatch | None) -> str | None:
    """Why an empty listing is not trusted: the whole landing zone is empty, though the batch was staged from files; else None."""
    zone = pipeline.landing_zone
    before = len(staged.repartitioned.inputs) if staged else 0
    if files or not before or not zone.is_bare():
        return None
    return (
        f"{zone.root.uri} (ROLLUP_RAW) is empty, though batch {batch} was staged from {before} raw file{'s' if before > 1 else ''} "
        "there; what is staged was kept. Is the folder mounted, and the right one? If its files were removed on purpose, run `rollups "
        f"backfill {batch} {batch} --force` to empty the batch"
    )


def reasons_to_stage(pipeline: Pipeline, batch: Batch, files: list[InputFile], staged: StagedBatch | None) -> list[str]:
    """Why staging these files would do anything; empty if files, parameters and code are those of the manifests and nothing is lost."""
    if staged is None:
        return ["not staged yet"]
    reasons = outdated(pipeline, batch, files, staged)
    if not reasons:
        manifests = (staged.repartitioned, staged.partial_points, staged.quarantined)
        reasons = [lost for manifest in manifests for lost in lost_files(pipeline.stage, manifest, batch)]
    if not reasons and is_over_limit(pipeline, batch, staged.quarantined):
        reasons = ["more rows or files are quarantined than the settings allow now"]
    return reasons


def outdated(pipeline: Pipeline, batch: Batch, files: list[InputFile], staged: StagedBatch) -> list[str]:
    """What has changed since a batch was staged, as far as manifests and a listing show."""
    parameters = content_parameters(pipeline.settings, batch)
    reasons: dict[str, None] = {}
    for manifest in (staged.repartitioned, staged.partial_points, staged.quarantined):
        if version_of(list(manifest.inputs)) != version_of(files):
            reasons |= dict.fromkeys(in_words(file_changes(manifest.inputs, files)))
        reasons |= dict.fromkeys(f"datapoints: {reason}" for reason in other_settings(manifest, parameters))
    if not reasons and _copies_were_treated_otherwise(pipeline, staged):
        return [f"copies of raw files are treated differently with ROLLUP_RAW_COPIES={pipeline.settings.raw_copies}"]
    return list(reasons)


def is_over_limit(pipeline: Pipeline, batch: Batch, quarantined: Manifest) -> bool:
    """Whether today's settings refuse to stage the batch, because too much of it is quarantined."""
    return is_over(quarantined.counters, pipeline.settings, allowed_in(pipeline.stage, batch, quarantined, pipeline.settings))


def counts_the_same(pipeline: Pipeline, batch: Batch, quarantined: Manifest) -> bool:
    """Whether it is certain that today's settings and code would quarantine as much of the same raw files again."""
    counters = quarantined.counters
    if other_settings(quarantined, content_parameters(pipeline.settings, batch)):
        return False
    was_reported = COPIED_FILE in counters["reasons"]
    if pipeline.settings.raw_copies == "once":
        return not was_reported
    # If copies are read once, those of a bad file are quarantined for its reason. The manifest does not tell which bad files were copies.
    may_have_copies = counters["bad_files"] > 1 and len({file.size for file in quarantined.inputs}) < len(quarantined.inputs)
    return was_reported or not may_have_copies


def _copies_were_treated_otherwise(pipeline: Pipeline, staged: StagedBatch) -> bool:
    """Whether copies were treated by another setting. It is compared here since, like the limits, it is not a content parameter."""
    if pipeline.settings.raw_copies == "once":
        return COPIED_FILE in staged.quarantined.counters.get("reasons", ())
    return COPIES in staged.repartitioned.counters


def _in_path_order(by_folder: Mapping[Batch, list[InputFile]]) -> list[InputFile]:
    return sorted((file for found in by_folder.values() for file in found), key=lambda file: file.path)


def _files_to_read(
    pipeline: Pipeline, batch: Batch, by_folder: Mapping[Batch, list[InputFile]], copies: Mapping[str, str]
) -> list[SplitFile]:
    """The files for the split tasks, in path order; depending on the settings, copies are left out or marked as bad files."""
    once = pipeline.settings.raw_copies == "once"
    copies_of: dict[str, list[str]] = {}
    for path, original in sorted(copies.items()) if once else ():
        copies_of.setdefault(original, []).append(path)
    found = []
    for folder, files in by_folder.items():
        bounds = pipeline.landing_zone.bounds(batch, folder)
        found += [
            SplitFile(file, bounds, copies.get(file.path), tuple(copies_of.get(file.path, ())))
            for file in files
            if not (once and file.path in copies)
        ]
    return sorted(found, key=lambda one: one.file.path)


def _require_unchanged(pipeline: Pipeline, batch: Batch, files: list[InputFile]) -> None:
    """Require that the listed files are still there: if one was replaced meanwhile, we may have read parts of two versions."""
    now = {file.path: file for file in pipeline.landing_zone.files(batch)}
    for file in files:
        if now.get(file.path) != file:
            happened = "replaced" if file.path in now else "removed"
            raise StaleInputError(
                f"{pipeline.landing_zone.place(file).uri} was {happened} while batch {batch} was being staged; nothing was staged. "
                f"Run `rollups backfill {batch} {batch}` when its files are complete"
            )


def _counts(split: list[SplitResult], merged: list[SortResult], raw_files: int) -> dict[str, int]:
    return {
        "rows_read": sum(result.rows_read for result in split),
        "rows_accepted": sum(result.rows_accepted for result in merged),
        "duplicates": sum(result.duplicates for result in merged),
        "rows_quarantined": sum(result.rows_quarantined for result in split),
        ELSEWHERE_ROWS: sum(result.elsewhere for result in split),
        "series": sum(result.series for result in merged),
        "raw_files": raw_files,
        "bad_files": sum(len(result.bad_files) for result in split),
    }


def _reasons(split: list[SplitResult]) -> dict[str, int]:
    reasons: dict[str, int] = {}
    for result in split:
        for reason, rows in result.reasons.items():
            reasons[reason] = reasons.get(reason, 0) + rows
    return dict(sorted(reasons.items()))


def _quarantine_problem(
    pipeline: Pipeline, batch: Batch, quarantined: Manifest, bad_files: list[BadFile], by_file: dict[str, int]
) -> str | None:
    """Why a batch may not be staged, with the ways out; None if it may."""
    settings, counters = pipeline.settings, quarantined.counters
    allowed = allowed_in(pipeline.stage, batch, quarantined, settings)
    rerun = f"then run `rollups backfill {batch} {batch}`"
    replay = f"rollups quarantine replay {batch}"

    def is_counted(reason: str, path: str) -> bool:
        return not any(one.covers(reason, path) for one in allowed.decisions)

    if too_many_files(counters, settings, allowed):
        counted = [bad for bad in bad_files if is_counted(bad.reason, bad.path)]
        named = "; ".join(f"{bad.path}: {bad.reason} ({bad.detail})" for bad in counted[:_FILES_NAMED])
        more = f"; and {len(counted) - _FILES_NAMED} more" if len(counted) > _FILES_NAMED else ""
        files, them = ("bad file", "it") if len(counted) == 1 else ("bad files", "them")
        # The command has to allow all of them: with fewer the batch would fail again.
        if len(counted) > _FILES_NAMED:
            options = " ".join(f"--allow {reason}" for reason in sorted({bad.reason for bad in counted}))
        else:
            options = " ".join(f"--allow-file {shlex.quote(bad.path)}" for bad in counted)
        return (
            f"batch {batch}: {len(counted)} {files}, more than ROLLUP_QUARANTINE_FILES={settings.quarantine_files} allows: "
            f"{named}{more}. "
            f"Correct or remove {them} in {settings.raw}, or allow {them} with ROLLUP_QUARANTINE_FILES={len(counted)}; {rerun}. "
            f"`rollups quarantine show {batch}` shows what is quarantined; to do without {them} in this batch alone, run "
            f"`{replay} {options} --because TEXT`"
        )
    if too_many_rows(counters, settings, allowed):
        read, rows = rows_compared(counters), counters["rows_quarantined"] - allowed.rows
        # Reasons and files without rows are left out: a file that is quarantined as a whole may have none.
        reasons = {reason: count for reason, count in counters["reasons"].items() if count}
        why = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
        worst = sorted(((path, count) for path, count in by_file.items() if count), key=lambda found: (-found[1], found[0]))
        where = ", ".join(f"{path} ({count})" for path, count in worst[:_FILES_NAMED])
        where += f" and {len(worst) - _FILES_NAMED} more files" if len(worst) > _FILES_NAMED else ""
        besides = f", besides {allowed.rows} that are allowed" if allowed.rows else ""
        options = " ".join(f"--allow {reason}" for reason in reasons)
        return (
            f"batch {batch}: {rows} of {read} rows are quarantined ({rows / read:.2%}){besides}, more than "
            f"ROLLUP_QUARANTINE_LIMIT={settings.quarantine_limit:g}: {why}; in {where}. "
            f"See the rows with `rollups quarantine show {batch}`; correct the files in {settings.raw}, or raise the limit; {rerun}. To do "
            f"without these rows in this batch alone, run `{replay} {options} --because TEXT`"
        )
    return None


def _delete_other_tries(pipeline: Pipeline, batch: Batch, attempt: str, merged: list[SortResult]) -> None:
    for asset, found in (
        (REPARTITIONED, [file for result in merged for file in result.datapoints]),
        (PARTIAL_POINTS, [file for result in merged for file in result.partial_points]),
        (QUARANTINED, [file for result in merged for file in result.quarantined]),
    ):
        folder = pipeline.stage.folder(asset, batch)
        delete_other_tries([folder / attempt], "", {(folder / file.path).path for file in found})


@contextlib.contextmanager
def _discarding_on_error(pipeline: Pipeline, batch: Batch, attempt: str, assets: tuple[str, ...]) -> Iterator[None]:
    """If the block fails, delete the attempt's files of these assets as far as possible. The error that is raised is the block's own."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(StorageError, OSError):
            for asset in assets:
                (pipeline.stage.folder(asset, batch) / attempt).delete_folder()
        raise
