"""What this machine, or the container, has: memory and cores.

What a process may use of them is a setting (``settings``), and whether that is sensible ``doctor.machine`` says.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def machine_memory() -> int:
    """Bytes of memory that this machine, or the container, has."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    # A container sees the host's memory, but is killed at its own limit.
    with contextlib.suppress(OSError, ValueError):
        memory = min(memory, int(CGROUP_LIMIT.read_text()))
    return memory


def machine_cores() -> int:
    """Cores that this process may use; all of the machine's if the system cannot say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
