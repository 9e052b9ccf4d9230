"""Processes with children that end with them. What they run stays out."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def group(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    folder: Path,
    output: IO[bytes],
    *,
    ends_within: float | None = 20.0,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, until the block ends; then also its children end.

    Until then ask :func:`ended` for its status, not ``poll()``: a process that is not waited for keeps its number, so that no other
    gets it, and with it the signals.

    Args:
        command: program and arguments.
        environment: all of its variables.
        folder: its working directory.
        output: what it prints goes there.
        ends_within: seconds from SIGINT to SIGKILL; None: no SIGINT.
    """
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        try:
            if ends_within is not None:
                os.kill(process.pid, signal.SIGINT)
                deadline = time.monotonic() + ends_within
                while ended(process) is None and time.monotonic() < deadline:
                    time.sleep(0.05)
        finally:
            # Some systems say PermissionError of a group that has ended.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ended(process: subprocess.Popen[bytes]) -> int | None:
    """The status with which a process of :func:`group` has ended, a signal's number negative; None: it goes on."""
    found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
