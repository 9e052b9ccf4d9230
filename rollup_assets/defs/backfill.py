"""``rollups backfill``: makes the runs that a backfill in the UI would make, in this process, and records them where the UI finds them.

Dagster's own commands cannot run a range of partitions of this graph from a terminal. Decides which batches go into which run, and
collects what became of each. Printing and exit codes stay out (``rollup_assets.cli``).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from rollup_assets.batches import Batch, BatchCalendar
from rollup_assets.defs.assets.datapoints import STAGED, STAGING_STEP
from rollup_assets.defs.assets.rollups import IN_ORDER, PUBLISHING_STEP
from rollup_assets.defs.dagster_home import open_dagster_home
from rollup_assets.defs.jobs import JOB_NAME
from rollup_assets.defs.partitions import RANGE_END, RANGE_START
from rollup_assets.defs.report import Watcher
from rollup_assets.defs.run_processes import BACKFILLS_PROCESS, close_runs, ended_on_this_machine, tags_of_this_process
from rollup_assets.engines.base import Progress
from rollup_assets.errors import PublishHaltError, RollupError
from rollup_assets.iceberg.table import prepare_table, refuse_other_settings
from rollup_assets.outcomes import BackfillResult, PartitionOutcome
from rollup_assets.pipeline import Pipeline
from rollup_assets.scope import PARTITIONS_PER_RUN, failed_inputs, missing_before, scope_of, stretches
from rollup_assets.settings import Settings
from rollup_assets.storage.manifests import PARTIAL_POINTS

BACKFILL_TAG = "rollups/backfill"


@dataclass(slots=True)
class _State:
    """The outcome of each partition so far."""

    published: set[str] = field(default_factory=set)
    waiting: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    not_staged: set[str] = field(default_factory=set)
    reported: set[str] = field(default_factory=set)
    """Partitions that the current run has reached."""
    halted: str | None = None
    """Why nothing more may be published."""
    runs: list[str] = field(default_factory=list)

    def note(self, outcome: PartitionOutcome) -> None:
        """Note that a partition of the current run has ended."""
        key = outcome.partition
        self.reported.add(key)
        if outcome.error is not None:
            error = outcome.error
            self.failed[key] = str(error) if isinstance(error, RollupError) else f"{type(error).__name__}: {error}"
            if PARTIAL_POINTS in outcome.assets:
                self.not_staged.add(key)
            if isinstance(error, PublishHaltError):
                self.halted = f"{key} stopped everything: {error}"
        elif outcome.waiting is not None:
            self.waiting[key] = outcome.waiting
        elif outcome.is_published:
            self.published.add(key)

    def not_tried(self, keys: Iterable[str], reason: str) -> None:
        """Note as failed the partitions that no run has reached."""
        for key in keys:
            self.failed.setdefault(key, f"not tried, since {reason}")

    def without_failed_inputs(self, calendar: BatchCalendar, batches: Iterable[Batch], reach: int) -> list[Batch]:
        """The batches that can be rolled up; the others are noted as failed, as Dagster does in a backfill."""
        ready = []
        for batch in batches:
            if reason := failed_inputs(calendar, batch, reach, self.not_staged):
                self.failed.setdefault(batch.key, reason)
            else:
                ready.append(batch)
        return ready


def run_backfill(
    settings: Settings,
    first: str,
    last: str,
    *,
    force: bool = False,
    progress: Progress | None = None,
    on_partition: Callable[[PartitionOutcome], None] | None = None,
) -> BackfillResult:
    """Stage, roll up and publish the partitions ``first`` to ``last``, and publish the trailing ones that depend on them.

    Batches before ``first`` that are read, have raw files and are not staged are staged too. A failing partition stops only itself and
    those that need it.

    Args:
        settings: of the table.
        first: first partition key.
        last: last partition key, included.
        force: redo what is up to date.
        progress: where the steps report how far they are; None: as lines in the runs' logs.
        on_partition: called for each partition of each step as it ends, but not for those skipped because they need a failed one.

    Raises:
        UnknownPartitionError: a key is malformed or not a partition, its batch has not ended, or ``last`` is before ``first``.
        CatalogError, TableMismatchError: there is no table to publish to; nothing was staged.
        DagsterHomeError: runs cannot be recorded; nothing was staged.
        KeyboardInterrupt: Ctrl-C, SIGTERM, or *Terminate* in the UI; finished partitions stand.
    """
    calendar = settings.calendar
    scope = scope_of(calendar, first, last, settings.reach)
    prepare_table(settings)
    refuse_other_settings(settings)
    pipeline = Pipeline.from_settings(settings)
    state = _State()

    def watch(outcome: PartitionOutcome) -> None:
        state.note(outcome)
        if on_partition:
            on_partition(outcome)
        runner.heed_termination()

    with open_dagster_home(settings) as instance:
        closed = close_runs(instance, ended_on_this_machine, BACKFILLS_PROCESS)
        runner = _Runner(settings, instance, Watcher(progress, watch), state, force)
        runner.run(STAGED, missing_before(pipeline, scope.asked[0]))
        for begin in range(0, len(scope.asked), PARTITIONS_PER_RUN):
            chunk = scope.asked[begin : begin + PARTITIONS_PER_RUN]
            runner.run(STAGED, chunk)
            runner.run(IN_ORDER, state.without_failed_inputs(calendar, chunk, settings.reach))
        runner.run(IN_ORDER, state.without_failed_inputs(calendar, scope.trailing, settings.reach))
    return BackfillResult(
        published=tuple(sorted(state.published)),
        waiting=dict(sorted(state.waiting.items())),
        failed=dict(sorted(state.failed.items())),
        skipped=tuple(batch.key for batch in scope.not_ended),
        runs=tuple(state.runs),
        closed_runs=closed,
    )


@dataclass(slots=True)
class _Runner:
    """Executes range runs of the job, one after the other."""

    settings: Settings
    instance: dg.DagsterInstance
    watcher: Watcher
    state: _State
    force: bool
    _run_id: str = ""
    _job: dg.JobDefinition | None = None
    _tags: dict[str, str] = field(default_factory=dict)

    def run(self, assets: Sequence[str], batches: Iterable[Batch]) -> None:
        """One run for each stretch of neighbouring batches."""
        for stretch in stretches(batches):
            self._run(assets, stretch)

    def heed_termination(self) -> None:
        """If the current run was terminated in the UI, which cannot reach this process, end it as an interrupt would."""
        run = self.instance.get_run_by_id(self._run_id)
        if run is not None and run.status in (dg.DagsterRunStatus.CANCELING, dg.DagsterRunStatus.CANCELED):
            raise dg.DagsterExecutionInterruptedError

    def _run(self, assets: Sequence[str], batches: Sequence[Batch]) -> None:
        keys = [batch.key for batch in batches]
        if self.state.halted:
            self.state.not_tried(keys, self.state.halted)
            return
        self.state.reported.clear()
        self._run_id = str(uuid.uuid4())
        result = self._resolved_job().execute_in_process(
            instance=self.instance,
            asset_selection=[dg.AssetKey(asset) for asset in assets],
            run_config=self._config(assets),
            raise_on_error=False,
            run_id=self._run_id,
            tags={**self._tags, RANGE_START: keys[0], RANGE_END: keys[-1]},
        )
        self.state.runs.append(result.run_id)
        if _was_interrupted(result):
            raise KeyboardInterrupt(
                f"run {result.run_id} was interrupted; finished partitions are kept, run the same command again for the rest"
            )
        # Partitions that the step never reached: it stopped at one after which going on was not safe, or could not begin.
        missed = [key for key in keys if key not in self.state.reported]
        self.state.not_tried(missed, self.state.halted or f"run {result.run_id} stopped: {_failure(result)}")
        if assets == STAGED:
            self.state.not_staged.update(missed)

    def _resolved_job(self) -> dg.JobDefinition:
        from rollup_assets.definitions import build_definitions

        if self._job is None:
            self._job = build_definitions(self.settings, watcher=self.watcher).resolve_job_def(JOB_NAME)
            self._tags = {BACKFILL_TAG: uuid.uuid4().hex[:8], **tags_of_this_process()}
        return self._job

    def _config(self, assets: Sequence[str]) -> dict[str, Any]:
        return {
            "ops": {STAGING_STEP if assets == STAGED else PUBLISHING_STEP: {"config": {"force": self.force}}},
            # Keep the terminal for the caller; the run's log is in the event log.
            "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
        }


def _was_interrupted(result: dg.ExecuteInProcessResult) -> bool:
    """Whether the run ended with an interrupt, which Dagster catches and reports as a failure of the step."""
    failures = (event.step_failure_data.error for event in result.get_step_failure_events())
    return any(error is not None and error.cls_name == "DagsterExecutionInterruptedError" for error in failures)


def _failure(result: dg.ExecuteInProcessResult) -> str:
    """Why a run failed, in Dagster's words."""
    for event in result.all_events:
        if event.is_failure and event.message:
            return event.message
    return "it recorded no reason"
