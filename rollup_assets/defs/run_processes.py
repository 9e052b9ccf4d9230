"""Which process a run belongs to, whether that process is gone, and what then becomes of the run.

A killed process cannot say that its run has ended, and Dagster would show it as going on for ever. Runs of ``rollups backfill`` carry what
tells their process from any other. Who looks for processes that are gone, and which runs a code location has launched, stays out
(``defs.backfill``, ``defs.lost_runs``).
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import dagster as dg

HOST_TAG, PROCESS_TAG = "rollups/host", "rollups/process"
LOCATION_TAG = "rollups/code_location"
"""Host and port of the code location in whose container a backfill runs; not set elsewhere."""
PARENT_TAG = "dagster/parent_run_id"
BACKFILLS_PROCESS = "The process of this `rollups backfill`"
"""What ended, as worded on the page of a run that ``ended_on_this_machine``."""
_CONNECTED_WITHIN = 3
"""Seconds."""
UNFINISHED = [dg.DagsterRunStatus.NOT_STARTED, dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def tags_of_this_process() -> dict[str, str]:
    """The tags of runs that are executed in this process."""
    tags = {HOST_TAG: socket.gethostname(), PROCESS_TAG: f"{os.getpid()}@{began(os.getpid())}"}
    if location := _code_location_beside():
        tags[LOCATION_TAG] = location
    return tags


def ended_on_this_machine(run: dg.DagsterRun) -> bool:
    """Whether a run belongs to a backfill of this machine or container whose process is gone."""
    return _has_process(run) and run.tags.get(HOST_TAG) == socket.gethostname() and _has_ended(run)


def ended_with_code_location(run: dg.DagsterRun, location: str) -> bool:
    """Whether a run belongs to a backfill in the container of this code location, and its process is gone.

    Called either in the container that replaces that one, under another host name, or in the same one after a restart.
    """
    if not _has_process(run) or run.tags.get(LOCATION_TAG) != location:
        return False
    return run.tags.get(HOST_TAG) != socket.gethostname() or _has_ended(run)


def close_runs(instance: dg.DagsterInstance, is_gone: Callable[[dg.DagsterRun], bool], process: str) -> tuple[str, ...]:
    """Report unfinished runs whose process is gone as failed, or as canceled if they were being terminated; returns their ids.

    Args:
        instance: where runs are recorded.
        is_gone: whether the process of an unfinished run has ended.
        process: what has ended, as worded on the run's page.
    """
    said = f"{process} ended before this run did. Finished partitions are kept."
    closed = []
    for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)):
        if not is_gone(run):
            continue
        # It may have told its end since the list was read. After this look it cannot any more: its process is gone.
        latest = instance.get_run_by_id(run.run_id)
        if latest is None or latest.status not in UNFINISHED:
            continue
        report = instance.report_run_canceled if latest.status == dg.DagsterRunStatus.CANCELING else instance.report_run_failed
        report(latest, said)
        closed.append(run.run_id)
    return tuple(closed)


def is_listening(host: str, port: int) -> bool:
    """Whether somebody takes connections at this address."""
    try:
        socket.create_connection((host, port), timeout=_CONNECTED_WITHIN).close()
    except OSError:
        return False
    return True


def is_deserted(address: tuple[str, int] | str) -> bool:
    """Whether certainly nobody takes connections at an address of this machine: a host and port, or the path of a Unix socket.

    Stricter than ``not is_listening``: somebody who is too busy to answer, or whom this user may not reach, is there.
    """
    try:
        if isinstance(address, str):
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(_CONNECTED_WITHIN)
                client.connect(address)
        else:
            socket.create_connection(address, timeout=_CONNECTED_WITHIN).close()
    except (TimeoutError, BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return False


def began(pid: int) -> str | None:
    """When a process of this machine began, as text that distinguishes it from a later one with the same id; None if there is none."""
    try:
        # The 22nd field of the line, the 20th after the process's name, which may contain spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    found = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def _has_process(run: dg.DagsterRun) -> bool:
    """Whether the process tags are a run's own. A run re-executed in the UI copies those of the original, which had another process."""
    return PROCESS_TAG in run.tags and PARENT_TAG not in run.tags


def _has_ended(run: dg.DagsterRun) -> bool:
    """Whether the process of a backfill's run on this machine is gone."""
    pid, _, then = run.tags[PROCESS_TAG].partition("@")
    return pid.isdigit() and began(int(pid)) != then


def _code_location_beside() -> str | None:
    """The code location that listens in the same container, as with ``docker compose exec``; None if none does.

    The environment variables are not enough: another container may have the same ones, and outlive the code location.
    """
    host, port = os.environ.get("DAGSTER_CODE_HOST"), os.environ.get("DAGSTER_CODE_PORT", "")
    if not host or not port.isdigit():
        return None
    return f"{host}:{port}" if is_listening("127.0.0.1", int(port)) else None
