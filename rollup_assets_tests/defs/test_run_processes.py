"""Runs whose process is gone are closed, and no others. Those of a code location: ``test_lost_runs.py``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import dagster as dg
import pytest

from rollup_assets.defs import run_processes


def dead_process() -> int:
    """Id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.parametrize("process", ["dead", "reused", "alive", "elsewhere", "re-executed"])
def test_the_runs_of_killed_backfills_are_closed_and_no_others(process: str) -> None:
    pid, began = os.getpid(), run_processes.began(os.getpid())
    tags = {
        run_processes.HOST_TAG: "elsewhere" if process == "elsewhere" else socket.gethostname(),
        run_processes.PROCESS_TAG: {"alive": f"{pid}@{began}", "reused": f"{pid}@1", "elsewhere": "1@1"}.get(
            process, f"{dead_process()}@{began}"
        ),
        # Dagster copies the tags of the run that is executed again, those of its process among them.
        **({"dagster/parent_run_id": "4711"} if process == "re-executed" else {}),
    }
    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.DagsterRun("batches", tags=tags, status=dg.DagsterRunStatus.STARTED)
        instance.add_run(run)
        closed = run_processes.close_runs(instance, run_processes.ended_on_this_machine, "The process")
        status = instance.get_run_by_id(run.run_id).status  # type: ignore[union-attr]
    closes = process in ("dead", "reused")
    assert closed == ((run.run_id,) if closes else ())
    assert status == (dg.DagsterRunStatus.FAILURE if closes else dg.DagsterRunStatus.STARTED)


def test_what_somebody_was_terminating_counts_as_canceled() -> None:
    tags = {run_processes.HOST_TAG: socket.gethostname(), run_processes.PROCESS_TAG: f"{dead_process()}@1"}
    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.DagsterRun("batches", tags=tags, status=dg.DagsterRunStatus.CANCELING)
        instance.add_run(run)
        assert run_processes.close_runs(instance, run_processes.ended_on_this_machine, "The process") == (run.run_id,)
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.CANCELED  # type: ignore[union-attr]


def test_a_run_that_ends_by_itself_while_it_is_looked_at_stays_as_it_ended() -> None:
    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.DagsterRun("batches", status=dg.DagsterRunStatus.STARTED)
        instance.add_run(run)

        def is_gone(run: dg.DagsterRun) -> bool:
            instance.report_run_canceled(run)  # its last words
            return True

        assert run_processes.close_runs(instance, is_gone, "The process") == ()
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus.CANCELED  # type: ignore[union-attr]
