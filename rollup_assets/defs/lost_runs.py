"""Closes runs that ended with their code location, before the next one starts.

In a container that is ``python -m rollup_assets.defs.lost_runs``; ``rollups dev`` closes what is gone from its machine
(``close_runs_gone_from_this_machine``). Telling that a process is gone, and reporting its run, stays out (``defs.run_processes``).

Dagster's ``DefaultRunLauncher`` makes runs processes of the code location, which looks after them. When that ends, by a restart of its
container for instance, nobody is left to say that they have ended too: they would count as going on, and keep their places in the run
queue and the pools. Reported as failed, they are launched again where ``run_retries`` is on; those that somebody was terminating are
reported as canceled, and stay ended. Runs of a ``rollups backfill`` in the same container are closed too, and Dagster cannot launch them
again. Not closed here: backfills of other machines (the next backfill or ``rollups dev`` there closes them), and backfills of one-off
containers, which nobody can recognise later.

If somebody still listens at a run's address, it is not closed: this is a second code location, and the runs of the first one go on.
"""

from __future__ import annotations

import json
import os
from typing import Any

import dagster as dg

from rollup_assets.defs.dagster_private import GRPC_INFO_TAG
from rollup_assets.defs.run_processes import (
    BACKFILLS_PROCESS,
    close_runs,
    ended_on_this_machine,
    ended_with_code_location,
    is_deserted,
    is_listening,
)

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
_CODE_LOCATION = "The code location"


def close_lost_runs(instance: dg.DagsterInstance, host: str, port: int) -> tuple[str, ...]:
    """Report the unfinished runs of the code location at this address as failed, or as canceled; returns their ids.

    Call it only while nothing listens there.
    """

    def is_gone(run: dg.DagsterRun) -> bool:
        address = _launched_from(run)
        launched = (address.get("host"), address.get("port")) == (host, port)
        return launched or ended_with_code_location(run, f"{host}:{port}")

    return close_runs(instance, is_gone, _CODE_LOCATION)


def close_runs_gone_from_this_machine(instance: dg.DagsterInstance, *, shared: bool) -> tuple[str, ...]:
    """Report the unfinished runs of killed backfills and of code locations that are gone as failed, or as canceled; returns their ids.

    Runs die with the terminal or the machine in which ``rollups dev`` was started, and nobody else there would ever say so. A code
    location that is told to stop, or is left behind alone, listens until its runs have ended.

    Args:
        instance: where runs are recorded.
        shared: whether other machines record runs there too. Then an address of this machine may mean another one's, and only backfills,
            which name their machine, are closed.
    """
    closed = close_runs(instance, ended_on_this_machine, BACKFILLS_PROCESS)
    return closed if shared else closed + close_runs(instance, _ended_with_deserted_code_location, _CODE_LOCATION)


def _ended_with_deserted_code_location(run: dg.DagsterRun) -> bool:
    """Whether nobody listens any more where a run was launched, if that was on this machine."""
    address = _launched_from(run)
    if "socket" in address:
        return is_deserted(str(address["socket"]))
    return address.get("host") in THIS_MACHINE and is_deserted((address["host"], address["port"]))


def _launched_from(run: dg.DagsterRun) -> dict[str, Any]:
    """The address of the code location in which a run was launched; empty if it was not."""
    # A re-executed run has the original's address even before it is launched itself.
    if run.status == dg.DagsterRunStatus.NOT_STARTED:
        return {}
    address: dict[str, Any] = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
    return address


def main() -> None:
    """Entry point; the address is in DAGSTER_CODE_HOST and DAGSTER_CODE_PORT, as for web server and daemon."""
    host, port = os.environ["DAGSTER_CODE_HOST"], int(os.environ["DAGSTER_CODE_PORT"])
    if is_listening(host, port):
        print(f"a code location still listens at {host}:{port}; its runs were left alone")  # noqa: T201
        return
    with dg.DagsterInstance.get() as instance:
        closed = close_lost_runs(instance, host, port)
    for run_id in closed:
        print(f"run {run_id} ended with the code location that it belonged to")  # noqa: T201


if __name__ == "__main__":
    main()
