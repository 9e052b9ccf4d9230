"""``rollups plan``: what ``rollups backfill`` would do, partition by partition, and why.

Asks the same functions as the steps themselves. Reads listings, manifests, sizes of staged files, the table's metadata, and the footers
of raw files that would be staged. What only a run can tell, whether content really changes, is called "if it changes". Changing
anything stays out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from rollup_assets.batches import Batch
from rollup_assets.code_version import CODE_VERSION
from rollup_assets.errors import LandingZoneError, RollupError, StageCorruptError
from rollup_assets.history.rejections import refusal
from rollup_assets.iceberg.acknowledged_snapshots import is_set_aside
from rollup_assets.pipeline import Pipeline, for_each
from rollup_assets.scope import PARTITIONS_PER_RUN, Scope, failed_inputs, missing_before
from rollup_assets.steps.changes import FileChange, InputChange, file_changes, lost_files
from rollup_assets.steps.parameters import content_parameters
from rollup_assets.steps.publish import check_history, reasons_to_publish
from rollup_assets.steps.repartition import counts_the_same, current_stage, is_over_limit, raw_data_is_gone, reasons_to_stage
from rollup_assets.steps.results import Waiting
from rollup_assets.steps.rollup import RollupInputs, find_inputs, reasons_to_roll_up
from rollup_assets.storage.manifests import (
    PARTIAL_POINTS,
    QUARANTINED,
    REPARTITIONED,
    ROLLUP_TABLE,
    ROLLUPS,
    Manifest,
    StageReadOnce,
    short_digest,
)
from rollup_assets.storage.raw_files import count_batch_rows
from rollup_assets.storage.storage_errors import explains_storage_errors

if TYPE_CHECKING:
    from pyiceberg.table import Table

Verdict = Literal["yes", "if it changes", "no"]
Step = Literal["stage", "roll up", "publish"]
STEPS: tuple[Step, ...] = ("stage", "roll up", "publish")
_NOT_KNOWN_YET = "not known yet"
"""Stands for the content digest of a partition that would be staged."""


@dataclass(frozen=True, slots=True)
class PlannedStep:
    """Whether a step would do anything for a partition."""

    verdict: Verdict = "no"
    """``if it changes``: something that it reads would be made again; if that has the same content as before, there is nothing to do."""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PartitionPlan:
    """What a backfill would do about one partition."""

    partition: str
    stage: PlannedStep = PlannedStep()
    roll_up: PlannedStep = PlannedStep()
    publish: PlannedStep = PlannedStep()
    raw_files: tuple[FileChange, ...] = ()
    """Raw files that differ from the staged ones; all of them if nothing is staged."""
    raw_rows: int | None = None
    """If the partition would be staged: rows of the raw files by their footers; else the rows that staging read; None: never staged."""
    rollup_rows: int | None = None
    """Rows of the rollups as they are staged, at all resolutions; None: never rolled up."""
    waiting_for: tuple[str, ...] = ()
    """What would have to be staged first but is not part of the backfill, so that nothing would be rolled up or published."""
    refused: str | None = None
    """Why the staged rollups would not be published: they were rolled back."""
    problem: str | None = None
    """Why a step would fail, with the command that fixes it, or would not be tried."""
    fails_at: Step | None = None
    """That step; those before it would still be done."""

    @property
    def steps(self) -> tuple[PlannedStep, PlannedStep, PlannedStep]:
        """Stage, roll up and publish."""
        return self.stage, self.roll_up, self.publish

    def does(self, step: Step) -> bool:
        """Whether the step certainly has something to do, and would come to its end."""
        number = STEPS.index(step)
        return self.steps[number].verdict == "yes" and (self.fails_at is None or number < STEPS.index(self.fails_at))

    @property
    def is_concerned(self) -> bool:
        """Whether there is anything to do or to report about it."""
        return any(step.verdict != "no" for step in self.steps) or bool(self.waiting_for or self.refused or self.problem)


@dataclass(frozen=True, slots=True)
class Plan:
    """A backfill before it runs."""

    partitions: tuple[PartitionPlan, ...]
    """Missing earlier partitions, those asked for, and trailing ones, in time order."""
    not_ended: tuple[str, ...]
    """Trailing partitions that do not exist yet."""

    @property
    def nothing_to_do(self) -> bool:
        """Whether no step has anything to do, and none would fail."""
        return all(partition.problem is None and all(step.verdict == "no" for step in partition.steps) for partition in self.partitions)

    @property
    def rows_to_stage(self) -> int:
        """Raw rows that would be staged."""
        return sum(partition.raw_rows or 0 for partition in self.partitions if partition.does("stage"))

    @property
    def failing(self) -> int:
        """Partitions of which a step would fail, or not be tried."""
        return sum(partition.problem is not None for partition in self.partitions)


@dataclass(frozen=True, slots=True)
class _InTable:
    """A published batch as the table has it."""

    rows: Mapping[int, int]
    """Rows by resolution in ms."""
    problem: str | None = None
    """Why nothing is published once somebody tries to publish this batch or the next one."""
    set_aside: bool = False
    """The table no longer comes from the snapshot that published it."""


@dataclass(frozen=True, slots=True)
class _StageToBe(StageReadOnce):
    """The stage as it will be once some batches are staged, as far as that is known beforehand."""

    def will_have(self, pipeline: Pipeline, batch: Batch, rows: int) -> None:
        """Note that a batch would be staged from files with so many rows."""
        for asset in (REPARTITIONED, PARTIAL_POINTS):
            self.known[asset, batch] = Manifest(
                asset=asset,
                partition=batch.key,
                attempt=_NOT_KNOWN_YET,
                code_version=CODE_VERSION,
                parameters=content_parameters(pipeline.settings, batch),
                counters={"rows_accepted": rows},
                digest=_NOT_KNOWN_YET,
            )


@explains_storage_errors
def plan(pipeline: Pipeline, scope: Scope) -> Plan:
    """What a backfill of the scope would do.

    Raises:
        CatalogError: the catalog cannot be reached to see what the table has.
        TableMismatchError: the table contradicts the settings; a backfill would be refused.
        StorageError: raw data, stage or table cannot be read.
    """
    before = missing_before(pipeline, scope.asked[0])
    to_be = _StageToBe(pipeline.stage.root)
    staging = _stagings(pipeline, [*before, *scope.asked], to_be)
    rolling = [*scope.asked, *scope.trailing]
    receipts = {
        batch: found
        for batch in (*pipeline.calendar.earlier(rolling[0], 1), *rolling)
        if (found := _whole(to_be, ROLLUP_TABLE, batch)) is not None
    }
    live = _in_table(pipeline, receipts)
    failed = [batch.key for batch, planned in staging.items() if planned.problem]

    def rolled(batch: Batch) -> PartitionPlan:
        planned = staging.get(batch)
        try:
            planned = planned or _as_staged(to_be, batch)
            if not planned.problem:
                planned = _failing(planned, "roll up", failed_inputs(pipeline.calendar, batch, pipeline.settings.reach, failed))
            return _roll_up_and_publish(replace(pipeline, stage=to_be), batch, planned, live)
        except (LandingZoneError, StageCorruptError) as error:
            roll_up = PlannedStep("yes", ("what would change cannot be told",))
            return _failing(replace(planned or PartitionPlan(batch.key), roll_up=roll_up), "roll up", str(error))

    vanished = {found.problem for found in live.values() if found.problem}
    runs = {batch.key: number // PARTITIONS_PER_RUN for number, batch in enumerate(scope.asked)}
    partitions = [*(staging[batch] for batch in before), *_until_halted(for_each(pipeline, rolled, rolling), vanished, runs)]
    return Plan(tuple(partitions), tuple(batch.key for batch in scope.not_ended))


def _failing(planned: PartitionPlan, step: Step, problem: str | None) -> PartitionPlan:
    return planned if problem is None else replace(planned, problem=problem, fails_at=step)


def _until_halted(planned: Iterable[PartitionPlan], vanished: Collection[str | None], runs: Mapping[str, int]) -> Iterator[PartitionPlan]:
    """The partitions in time order; none is tried after one whose publish finds a vanished snapshot, and no later run stages any.

    Args:
        planned: what would be done if no publish stopped the backfill.
        vanished: the problems with which a publish stops it.
        runs: the number of the run that stages a partition, for those asked for.
    """
    halted: str | None = None
    for partition in planned:
        key = partition.partition
        if halted is None or partition.fails_at in ("stage", "roll up"):
            yield partition
        else:
            not_tried = replace(partition, roll_up=PlannedStep(), publish=PlannedStep(), waiting_for=(), refused=None)
            problem = f"not tried, since the publish of {halted} stops everything"
            if key in runs and runs[key] > runs[halted]:
                yield _failing(replace(not_tried, stage=PlannedStep(), raw_files=()), "stage", problem)
            else:
                yield _failing(not_tried, "roll up", problem)
        if halted is None and partition.fails_at == "publish" and partition.problem in vanished:
            halted = key


def _whole(stage: _StageToBe, asset: str, batch: Batch) -> Manifest | None:
    """A manifest; None if there is none, or a damaged one: the partitions that need it report that."""
    try:
        return stage.read(asset, batch)
    except StageCorruptError:
        return None


def _stagings(pipeline: Pipeline, batches: Sequence[Batch], to_be: _StageToBe) -> dict[Batch, PartitionPlan]:
    """What staging would do; what would be staged then is noted in ``to_be``."""

    def look(batch: Batch) -> PartitionPlan:
        try:
            return stage(batch)
        except (LandingZoneError, StageCorruptError) as error:
            return _failing(PartitionPlan(batch.key, PlannedStep("yes", ("what would change cannot be told",))), "stage", str(error))

    def stage(batch: Batch) -> PartitionPlan:
        files, staged = pipeline.landing_zone.files(batch), current_stage(pipeline, batch)
        reasons = reasons_to_stage(pipeline, batch, files, staged)
        if staged and not reasons:
            return PartitionPlan(batch.key, raw_rows=staged.repartitioned.counters["rows_read"])
        quarantined = to_be.read(QUARANTINED, batch)
        tried = quarantined if quarantined and quarantined.inputs == tuple(files) and is_over_limit(pipeline, batch, quarantined) else None
        if tried:
            reasons.append("an earlier attempt with these files quarantined more than the settings allow")
        rows = count_batch_rows(pipeline.landing_zone, batch, pipeline.settings.raw_limits)
        before = to_be.read(REPARTITIONED, batch)
        changes = file_changes(before.inputs if before else (), files)
        problem = raw_data_is_gone(pipeline, batch, files, staged)
        if problem is None and tried and counts_the_same(pipeline, batch, tried):
            problem = f"more of {batch} is quarantined than the settings allow; see `rollups quarantine show {batch}`"
        if problem is None:
            to_be.will_have(pipeline, batch, rows)
        planned = PartitionPlan(batch.key, PlannedStep("yes", tuple(reasons)), raw_files=tuple(changes), raw_rows=rows)
        return _failing(planned, "stage", problem)

    return dict(zip(batches, for_each(pipeline, look, batches), strict=True))


def _as_staged(to_be: _StageToBe, batch: Batch) -> PartitionPlan:
    """A partition that would not be staged, whatever its raw files are."""
    staged = to_be.read(REPARTITIONED, batch)
    return PartitionPlan(batch.key, raw_rows=staged.counters["rows_read"] if staged else None)


def _roll_up_and_publish(pipeline: Pipeline, batch: Batch, staged: PartitionPlan, table: Mapping[Batch, _InTable]) -> PartitionPlan:
    rollups, receipt = pipeline.stage.read(ROLLUPS, batch), pipeline.stage.read(ROLLUP_TABLE, batch)
    known = replace(staged, rollup_rows=rollups.rows if rollups else None)
    if staged.problem:
        return known
    try:
        inputs = find_inputs(pipeline, batch)
    except RollupError as error:
        return _failing(known, "roll up", str(error))
    if isinstance(inputs, Waiting):
        return replace(known, waiting_for=inputs.waiting_for)
    reasons_to_roll = reasons_to_roll_up(pipeline, batch, inputs, rollups)
    rolled = _rolling_up(reasons_to_roll)
    if rollups is not None and rolled.verdict == "if it changes":
        # If its inputs turn out unchanged, the step checks whether all of its files are there.
        rolled = _rolling_up([*reasons_to_roll, *lost_files(pipeline.stage, rollups, batch)])
    lost = _lost_inputs(pipeline, batch, inputs) if rolled.verdict != "no" else None
    if lost and rolled.verdict == "yes":
        return _failing(replace(known, roll_up=rolled), "roll up", lost)
    live = table.get(batch)
    if rollups is None:
        published = PlannedStep("yes", ("there are no rollups of it yet",))
    elif reasons := reasons_to_publish(batch, receipt, rollups, live.rows if live else None, set_aside=live is not None and live.set_aside):
        published = PlannedStep("yes", tuple(reasons))
    else:
        published = PlannedStep("no" if rolled.verdict == "no" else "if it changes")
    refused = refusal(receipt, rollups, batch) if rollups else None
    planned = replace(known, roll_up=rolled, publish=published, refused=refused)
    if lost:
        return _failing(planned, "roll up", f"unless its inputs turn out to be unchanged: {lost}")
    # In the order of a publish, which looks at both receipts.
    before = pipeline.calendar.earlier(batch, 1)
    try:
        for each in before:
            pipeline.stage.read(ROLLUP_TABLE, each)
    except StageCorruptError as error:
        return _failing(planned, "publish", str(error))
    vanished = (table[each].problem for each in (batch, *before) if each in table)
    return _failing(planned, "publish", next(filter(None, vanished), None))


def _lost_inputs(pipeline: Pipeline, batch: Batch, inputs: RollupInputs) -> str | None:
    """Why staged inputs cannot be read; those that would be staged anew will be whole."""
    for of, manifest in ((batch, inputs.datapoints), (batch, inputs.own), *inputs.earlier):
        if manifest and manifest.digest != _NOT_KNOWN_YET:
            try:
                pipeline.stage.require_complete(manifest, of)
            except RollupError as error:
                return str(error)
    return None


def _rolling_up(reasons: list[InputChange | str]) -> PlannedStep:
    """Whether a rollup would run. Digests not known yet may turn out to be the same as before, unless there was none before."""
    certain: list[str] = []
    depends: list[str] = []
    for reason in reasons:
        if not isinstance(reason, InputChange) or reason.now != _NOT_KNOWN_YET:
            certain.append(str(reason))
        elif reason.before is None:
            certain.append(f"{reason.asset} {reason.partition} would be staged for the first time")
        else:
            depends.append(f"{reason.asset} {reason.partition} would be staged again, {short_digest(reason.before)} now")
    if certain:
        return PlannedStep("yes", (*certain, *depends))
    return PlannedStep("if it changes" if depends else "no", tuple(depends))


def _in_table(pipeline: Pipeline, receipts: Mapping[Batch, Manifest]) -> dict[Batch, _InTable]:
    """The published batches as the table has them. An embedded catalog that does not exist yet is not made."""
    from rollup_assets.iceberg.catalog import is_missing, open_catalog
    from rollup_assets.iceberg.reading import range_counts
    from rollup_assets.iceberg.table import check_table, load_table

    if is_missing(pipeline.settings):
        return {batch: _InTable({}) for batch in receipts}
    with open_catalog(pipeline.settings) as catalog:
        table = load_table(catalog, pipeline.settings)
        if table is None:
            return {batch: _InTable({}) for batch in receipts}
        check_table(table, pipeline.settings)
        return {
            batch: _InTable(range_counts(table, batch).rows, _history_problem(receipt, table, batch), is_set_aside(table, receipt.counters))
            for batch, receipt in receipts.items()
        }


def _history_problem(receipt: Manifest, table: Table, batch: Batch) -> str | None:
    try:
        check_history(receipt, table, batch)
    except RollupError as error:
        return str(error)
    return None
