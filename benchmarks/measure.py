"""Wall time, CPU time, cores, and a description of the machine. Standard library only, so that a process is timed from its start."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class Stopwatch:
    """Wall and CPU seconds of the parts that were timed, by name."""

    wall: dict[str, float] = field(default_factory=dict)
    cpu: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Time a part; CPU is user and system time of all threads."""
        wall, cpu = time.perf_counter(), cpu_seconds()
        yield
        self.cpu[part] = self.cpu.get(part, 0.0) + cpu_seconds() - cpu
        self.wall[part] = self.wall.get(part, 0.0) + time.perf_counter() - wall


def use_cores(count: int) -> None:
    """Restrict this process, and those that it starts, to ``count`` of its cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def cpu_seconds() -> float:
    """User and system time so far: of this process and of those below it (Spark's Java machine and its Python workers)."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime + sum(_cpu_of(process) for process in _descendants())


def busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used since it started."""
    user, nice, system, _, _, irq, softirq, *_ = (int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def peak_bytes_of_tree() -> int:
    """Peak memory of this process and of each one below it, added up; shared memory counts several times.

    Not ``ru_maxrss``: a process inherits that of its parent, so it once showed the test runner's 2 GB.
    """
    return sum(_most_memory_of(process) for process in (os.getpid(), *_descendants()))


def _descendants() -> list[int]:
    """Processes below this one, now."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, pending = [], list(children.get(os.getpid(), ()))
    while pending:
        process = pending.pop()
        found.append(process)
        pending += children.get(process, ())
    return found


def _stat(process: int) -> list[str]:
    """The fields of a process's ``stat``, from its state on; empty if it has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _cpu_of(process: int) -> float:
    """CPU seconds of a process and of its children that have ended."""
    return sum(int(ticks) for ticks in _stat(process)[11:15]) / os.sysconf("SC_CLK_TCK")


def _most_memory_of(process: int) -> int:
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def machine() -> dict[str, object]:
    """Cores, memory and processor; nothing that names the machine."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
