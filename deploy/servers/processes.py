"""Processes with children that end with them."""

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
    """A process in a session of its own, until the block ends; then its children end, too.

    Until then ask :func:`ended` for its status, not ``poll()``: a process that is not waited for keeps its id, so that no other process
    gets that id, and with it the signals.

    Args:
        command: program and arguments.
        environment: all of its variables.
        folder: its working directory.
        output: where its output goes.
        ends_within: seconds between SIGINT and SIGKILL; None: only SIGKILL.
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
            # Some systems raise PermissionError for a group that has ended.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ended(process: subprocess.Popen[bytes]) -> int | None:
    """The exit status of a process of :func:`group`, or minus the signal that ended it; None: it is running."""
    found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if found is None:
        return None
    return found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
