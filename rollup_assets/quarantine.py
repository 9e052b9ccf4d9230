"""What is quarantined, partition by partition and row by row, and decisions to leave it quarantined.

Reads manifests, the landing zone's listing and the staged quarantine; a decision is the only thing that is written. Replaying a partition
is a backfill (``defs.backfill``), and printing stays out too.
"""

from __future__ import annotations

import datetime as dt
import getpass
import os
import socket
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rollup_assets.batches import Batch
from rollup_assets.errors import AllowanceError, LandingZoneError, NotStagedError, StageCorruptError, UnknownReasonError
from rollup_assets.pipeline import Pipeline, for_each
from rollup_assets.settings import Settings
from rollup_assets.steps.quarantine_limits import NOTHING, allowed_in, covered, is_over, rows_compared
from rollup_assets.storage.allowances import Allowance, read_allowances, write_allowances
from rollup_assets.storage.manifests import QUARANTINED, REPARTITIONED, Manifest
from rollup_assets.storage.quarantine import BadFile, quarantine_schema, staged_rows, tallies
from rollup_assets.storage.raw_files import FILE_REASONS, ROW_REASONS
from rollup_assets.storage.storage_errors import explains_storage_errors
from rollup_assets.units import list_text

if TYPE_CHECKING:
    import pyarrow as pa

ACCEPTED, DUPLICATES, BAD_FILES = "accepted", "duplicates", "bad files"
_FILES_NAMED = 5


@dataclass(frozen=True, slots=True)
class QuarantinedPartition:
    """What is quarantined of one partition, as it was last staged."""

    partition: str
    rows_read: int
    """Rows of the batch that were read."""
    rows: int
    """Quarantined rows, those of whole files included."""
    reasons: Mapping[str, int]
    """Rows by reason."""
    bad_files: int
    """Files that are quarantined as a whole."""
    share: float
    """Share of the rows read that counts against the limit."""
    over_limit: bool
    allowed_rows: int
    """Rows that decisions exclude from that share."""
    allowed_files: int
    decisions: tuple[Allowance, ...]
    raw_changed: bool
    """Whether the raw files differ from those that were staged, or cannot be listed."""
    problem: str | None = None
    """Why it is not known what is quarantined, and how to fix that; then everything else says nothing."""

    @classmethod
    def unknown(cls, partition: str, problem: str) -> Self:
        """A partition of which it is not known what is quarantined."""
        return cls(
            partition, 0, 0, {}, 0, 0.0, over_limit=False, allowed_rows=0, allowed_files=0, decisions=(), raw_changed=False, problem=problem
        )


@dataclass(frozen=True, slots=True)
class QuarantinedRows:
    """Some of a partition's quarantined rows and files."""

    partition: str
    bad_files: list[BadFile]
    rows: pa.Table
    """Single quarantined rows."""
    is_cut: bool
    """Whether there are more rows, or more bad files, than were asked for."""
    total: int
    """All quarantined rows of the partition, those of whole files included."""
    raw_changed: bool


@dataclass(frozen=True, slots=True)
class Replayed:
    """A partition's counts before and after staging it again: name -> rows; names: reasons, ``accepted``, ``duplicates``, ``bad files``."""

    partition: str
    before: Mapping[str, int]
    """Empty if the partition was not staged."""
    after: Mapping[str, int]

    @property
    def names(self) -> list[str]:
        """All names of the two, reasons last."""
        own = (ACCEPTED, DUPLICATES, BAD_FILES)
        return [*own, *sorted({*self.before, *self.after} - set(own))]


@explains_storage_errors
def quarantined_partitions(settings: Settings, batches: Iterable[Batch] | None = None) -> list[QuarantinedPartition]:
    """The partitions with quarantined rows or files, or with decisions about them, among ``batches`` (all unless given).

    A partition of which that cannot be read is among them, with its problem.
    """
    pipeline = Pipeline.from_settings(settings)
    wanted = None if batches is None else set(batches)
    chosen = [batch for batch in pipeline.stage.batches(QUARANTINED, pipeline.calendar) if wanted is None or batch in wanted]

    def look(batch: Batch) -> QuarantinedPartition | None:
        try:
            return _partition(pipeline, batch)
        except StageCorruptError as error:
            return QuarantinedPartition.unknown(batch.key, str(error))

    found = for_each(pipeline, look, chosen)
    return [one for one in found if one and (one.rows or one.bad_files or one.decisions or one.problem)]


@explains_storage_errors
def quarantined_rows(
    settings: Settings, batch: Batch, *, reason: str | None = None, file: str | None = None, limit: int | None = None
) -> QuarantinedRows:
    """The first ``limit`` quarantined rows of a partition, and as many whole files; all unless given. Reads no more than it needs.

    Raises:
        UnknownReasonError: there is no such reason.
        NotStagedError: nothing of the partition is staged.
        StageCorruptError: a staged file is missing.
    """
    import pyarrow as pa

    pipeline = Pipeline.from_settings(settings)
    manifest = _manifest(pipeline, batch)
    _check_reason(reason, manifest)
    one_more = None if limit is None else limit + 1
    bad_files = []
    if manifest.counters["bad_files"]:
        whole = staged_rows(pipeline.stage, batch, manifest, reason=reason, file=file, whole_files=True)
        bad_files = [
            BadFile(row["file"], row["reason"], row["detail"] or "", row["rows"])
            for rows in _cut(whole, one_more)
            for row in rows.to_pylist()
        ]
    rows = list(_cut(staged_rows(pipeline.stage, batch, manifest, reason=reason, file=file, whole_files=False), one_more))
    table = pa.Table.from_batches(rows, quarantine_schema(settings.value_column)).drop_columns(["rows", "detail"])
    is_cut = limit is not None and max(table.num_rows, len(bad_files)) > limit
    total = int(manifest.counters["rows_quarantined"])
    changed = _raw_changed(pipeline, batch, manifest)
    return QuarantinedRows(batch.key, bad_files[:limit], table.slice(0, limit), is_cut, total, changed)


@explains_storage_errors
def stream_quarantined_rows(
    settings: Settings, batch: Batch, *, reason: str | None = None, file: str | None = None, limit: int | None = None
) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
    """Schema and rows as staged, with rows for whole files, a row group at a time: for outputs of any length.

    Raises:
        UnknownReasonError, NotStagedError, StageCorruptError: as :func:`quarantined_rows`.
    """
    pipeline = Pipeline.from_settings(settings)
    manifest = _manifest(pipeline, batch)
    _check_reason(reason, manifest)
    rows = staged_rows(pipeline.stage, batch, manifest, reason=reason, file=file)
    return quarantine_schema(settings.value_column), _cut(rows, limit)


@explains_storage_errors
def allow(
    settings: Settings, batches: Sequence[Batch], reasons: Sequence[str], files: Sequence[str], *, because: str, revoke: bool = False
) -> dict[Batch, tuple[Allowance, ...]]:
    """Decide that rows or files of partitions stay quarantined and no longer count against their limits; returns the decisions that stand.

    The decisions are about each reason in each file; without reasons about every reason of the files, and without files about every file of
    the reasons. Nothing is written before each of them is known to cover something.

    Args:
        settings: of the table.
        batches: the partitions.
        reasons: quarantine reasons.
        files: raw files, relative to the landing zone; the end of a path is enough if it is the only one.
        because: why.
        revoke: take back all earlier decisions about the partitions first. Without reasons and files nothing else happens.

    Raises:
        UnknownReasonError: there is no such reason.
        NotStagedError: nothing of a partition is staged, so it is unknown what the decision would cover.
        AllowanceError: nothing is quarantined that a decision would cover.
        ConcurrentWriteError: another decision was made at the same time.
        StageCorruptError: earlier decisions about one of the partitions, or what is staged of it, cannot be read.
    """
    pipeline = Pipeline.from_settings(settings)
    added = {batch: _decisions(pipeline, batch, reasons, files, because) for batch in batches}
    return {batch: write_allowances(pipeline.stage, batch, new, revoke=revoke) for batch, new in added.items()}


@explains_storage_errors
def counts(settings: Settings, batch: Batch) -> dict[str, int]:
    """A partition's counts: accepted rows, duplicates, bad files, and quarantined rows by reason; empty if it is not staged.

    If the quarantine is over its limits, the accepted rows are those of the last staging within them.
    """
    stage = Pipeline.from_settings(settings).stage
    staged, quarantined = stage.read(REPARTITIONED, batch), stage.read(QUARANTINED, batch)
    found: dict[str, int] = {}
    if staged is not None:
        found |= {ACCEPTED: int(staged.counters["rows_accepted"]), DUPLICATES: int(staged.counters["duplicates"])}
    if quarantined is not None:
        found[BAD_FILES] = int(quarantined.counters["bad_files"])
        found |= {reason: int(rows) for reason, rows in quarantined.counters["reasons"].items()}
    return found


def known_reasons() -> tuple[str, ...]:
    """Every reason for which a row or file can be quarantined."""
    return (*ROW_REASONS, *FILE_REASONS)


def _partition(pipeline: Pipeline, batch: Batch) -> QuarantinedPartition | None:
    manifest = pipeline.stage.read(QUARANTINED, batch)
    if manifest is None:
        return None
    counters, settings = manifest.counters, pipeline.settings
    read, rows, files = rows_compared(counters), int(counters["rows_quarantined"]), int(counters["bad_files"])
    allowed = allowed_in(pipeline.stage, batch, manifest, settings)
    decisions = allowed.decisions or read_allowances(pipeline.stage, batch)
    if decisions and allowed is NOTHING and manifest.files:
        pipeline.stage.require_complete(manifest, batch)
        allowed = covered(decisions, tallies(pipeline.stage, batch, manifest))
    return QuarantinedPartition(
        partition=batch.key,
        rows_read=read,
        rows=rows,
        reasons={reason: int(count) for reason, count in counters["reasons"].items()},
        bad_files=files,
        share=(rows - allowed.rows) / read if read else 0.0,
        over_limit=is_over(counters, settings, allowed),
        allowed_rows=allowed.rows,
        allowed_files=allowed.files,
        decisions=decisions,
        raw_changed=_raw_changed(pipeline, batch, manifest),
    )


def _manifest(pipeline: Pipeline, batch: Batch) -> Manifest:
    manifest = pipeline.stage.read(QUARANTINED, batch)
    if manifest is None:
        raise NotStagedError(f"nothing of {batch} is staged, so nothing is known to be quarantined; run `rollups backfill {batch} {batch}`")
    pipeline.stage.require_complete(manifest, batch)
    return manifest


def _raw_changed(pipeline: Pipeline, batch: Batch, manifest: Manifest) -> bool:
    try:
        return manifest.inputs != tuple(pipeline.landing_zone.files(batch))
    except LandingZoneError:
        # Something has changed, if only who may list them. What is wrong is said when the batch is staged.
        return True


def _decisions(pipeline: Pipeline, batch: Batch, reasons: Sequence[str], files: Sequence[str], because: str) -> list[Allowance]:
    manifest = _manifest(pipeline, batch)
    for reason in reasons:
        _check_reason(reason, manifest)
    # Damaged earlier decisions, of any of the partitions, are an error before anything is written.
    read_allowances(pipeline.stage, batch)
    found = tallies(pipeline.stage, batch, manifest)
    paths = sorted({tally.file for tally in found})
    chosen_reasons: list[str | None] = [*reasons] or ([None] if files else [])
    chosen_files: list[str | None] = [_one_file(batch, paths, file) for file in files] or [None]
    moment = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    added = []
    for wanted in chosen_reasons:
        for path in chosen_files:
            decision = Allowance(reason=wanted, file=path, because=because, by=_decider(), at=moment, rows=0, files=0)
            inside = covered((decision,), found)
            if not inside.rows and not inside.files:
                there = ", ".join(sorted({tally.reason for tally in found})) or "nothing"
                raise AllowanceError(
                    f"nothing of {batch} is quarantined for {decision.scope}; quarantined there: {there}. See it with "
                    f"`rollups quarantine show {batch}`"
                )
            added.append(decision.model_copy(update={"rows": inside.rows, "files": inside.files}))
    return added


def _check_reason(reason: str | None, manifest: Manifest) -> None:
    # An earlier release may have staged rows with reasons that this one no longer gives.
    if reason is not None and reason not in known_reasons() and reason not in manifest.counters["reasons"]:
        raise UnknownReasonError(f"there is no quarantine reason {reason!r}; there are {', '.join(known_reasons())}")


def _one_file(batch: Batch, paths: Sequence[str], wanted: str) -> str:
    found = [path for path in paths if path == wanted] or [path for path in paths if path.endswith(f"/{wanted}")]
    if len(found) == 1:
        return found[0]
    if found:
        named = list_text(found, _FILES_NAMED)
        raise AllowanceError(f"{len(found)} files of {batch} are called {wanted}: {named}; give the whole path of one")
    there = f"there are such rows of {list_text(paths, _FILES_NAMED)}" if paths else "nothing of it is"
    raise AllowanceError(f"nothing of {wanted} is quarantined in {batch}; {there}. See them with `rollups quarantine show {batch}`")


def _decider() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        # A container's user may have no name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _cut(batches: Iterator[pa.RecordBatch], limit: int | None) -> Iterator[pa.RecordBatch]:
    """The first ``limit`` rows; batches after them are not read."""
    left = limit
    while left is None or left > 0:
        rows = next(batches, None)
        if rows is None:
            return
        yield rows if left is None else rows.slice(0, left)
        if left is not None:
            left -= rows.num_rows
