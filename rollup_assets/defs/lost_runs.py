"""Closes runs that ended with their code location: ``python -m rollup_assets.defs.lost_runs``, before the next code location starts.

Dagster's ``DefaultRunLauncher`` makes runs processes of the code location, which looks after them. When that ends, by a restart of its
container for instance, nobody is left to say that they have ended too: they would count as going on, and keep their places in the run
queue and the pools. Reported as failed, they are launched again where ``run_retries`` is on; those that somebody was terminating are
reported as canceled, and stay ended. Runs of a ``rollups backfill`` in the same container are closed too, and Dagster cannot launch them
again. Not closed here: backfills of other machines (the next backfill there closes them), and backfills of one-off containers, which
nobody can recognise later.

If somebody still listens at the address, nothing is closed: this is a second code location, and the runs of the first one go on.
"""

from __future__ import annotations

import json
import os

import dagster as dg

from rollup_assets.defs.run_processes import close_runs, ended_with_code_location, is_listening

GRPC_INFO_TAG = ".dagster/grpc_info"
"""Host and port of the code location in which a run's process was started; private to Dagster, a test notices if it changes."""


def close_lost_runs(instance: dg.DagsterInstance, host: str, port: int) -> tuple[str, ...]:
    """Report the unfinished runs of the code location at this address as failed, or as canceled; returns their ids.

    Call it only while nothing listens there.
    """

    def is_gone(run: dg.DagsterRun) -> bool:
        address = json.loads(run.tags.get(GRPC_INFO_TAG, "{}"))
        # A re-executed run has the original's address even before it is launched itself.
        launched = run.status != dg.DagsterRunStatus.NOT_STARTED and (address.get("host"), address.get("port")) == (host, port)
        return launched or ended_with_code_location(run, f"{host}:{port}")

    return close_runs(instance, is_gone, "The code location")


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
