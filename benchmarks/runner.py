"""Runs contenders in turn, each in its own process, and notes what each cost.

Imports little: a child's peak memory begins with its parent's.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.contenders import FIRST, OURS, RAW_TO_PUBLISHED, Contender, reset
from benchmarks.limits import Group, LimitError, limited
from benchmarks.sites import Site

ROOT = Path(__file__).parent.parent
SMALL_ROWS = 360_000


class ChildError(Exception):
    """A process of the benchmark failed; the message names it and ends with what it said."""


class BusyError(Exception):
    """Another benchmark uses the folder."""


@dataclass(frozen=True, slots=True)
class Bench:
    """One benchmark: its data, and how its processes are started."""

    work: Path
    rows: int
    threads: int
    shape: str
    small_rows: int = SMALL_ROWS
    whole_warm_ups: int = 0
    """How many times a warm process does the whole task before it is measured, besides once on the small data."""
    memory_limit: int | None = None
    """Bytes for the measured process and those below it, page cache included, if a control group can be made; runs say so in ``memory``.
    ``peak_bytes`` of that is then the peak with the page cache."""

    @property
    def full(self) -> Site:
        """What is measured."""
        return Site(self.work / f"{self.shape}-{self.rows}")

    @property
    def small(self) -> Site:
        """What processes warm up on."""
        return Site(self.work / f"{self.shape}-{self.small_rows}-small")

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Keep other benchmarks out of the folder: they would undo each other's steps, and measure each other.

        Raises:
            BusyError: another one is at work there; says how to go on.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(f"another benchmark is running in {self.work}; wait for it, or name another folder with --work") from None
            yield

    def prepare(self) -> None:
        """Make the data, and everything that single stages start from."""
        self._process({"do": "prepare", "rows": self.rows, "small_rows": self.small_rows, "shape": self.shape})

    def check(self, contender: Contender) -> dict[str, Any]:
        """What the contender that ran last has written, and whether it equals ours."""
        return self._process({"do": "check", "contender": contender.to_dict()})[0]

    def run(self, contender: Contender) -> dict[str, Any]:
        """Run a contender once.

        Its input is in the file cache, nothing of its output is there, and no earlier output waits to be written.
        """
        environment: dict[str, str] = {}
        full = self.full
        if contender.start == FIRST:
            full = self.small
            compiled = self.work / "compiled"
            shutil.rmtree(compiled, ignore_errors=True)
            environment["NUMBA_CACHE_DIR"] = str(compiled)
        reset(contender, full)
        reset(contender, self.small)
        inputs = [*full.raw_files, *full.sorted_files]
        job = {"do": "run", "contender": contender.to_dict(), "full": str(full.root), "whole_warm_ups": self.whole_warm_ups}
        with ExitStack() as stack:
            group, without = None, {}
            if self.memory_limit is not None:
                try:
                    group = stack.enter_context(limited(self.memory_limit))
                except LimitError as error:
                    without = {"memory": {"limit": None, "why": str(error)}}
            os.sync()
            if group is None:
                _read_through(inputs)
            else:
                _read_through_inside(group, inputs)
            answer, usage = self._process(job, environment, group)
            usage |= {"memory": group.usage().to_dict()} if group else without
        written = sum(path.stat().st_size for path in full.output.rglob("*") if path.is_file())
        return {**contender.to_dict(), **usage, **answer, **({"bytes": written} if written else {})}

    def _process(
        self, job: dict[str, Any], environment: dict[str, str] | None = None, group: Group | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        self.work.mkdir(parents=True, exist_ok=True)
        answer = self.work / "answer.json"
        answer.unlink(missing_ok=True)
        whole = {"full": str(self.full.root), "small": str(self.small.root), "threads": self.threads, "answer": str(answer), **job}
        settings = {name: value for name, value in os.environ.items() if not name.startswith("ROLLUP_")}
        settings |= {"POLARS_MAX_THREADS": str(self.threads), "PYTHONPATH": str(ROOT), **(environment or {})}
        busy, started = _busy_seconds(), time.perf_counter()
        # `python -P`: the checkout comes from PYTHONPATH alone, the working directory decides nothing.
        command = [sys.executable, "-P", "-m", "benchmarks.child", json.dumps(whole)]
        process = subprocess.Popen(
            group.command(command) if group else command,
            cwd=self.work, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if group and group.usage().killed:
            raise ChildError(f"{job} needs more memory than its limit of {group.limit} bytes, page cache included, and was killed")
        if process.returncode or not answer.exists():
            raise ChildError(f"{job} ended with status {process.returncode}:\n{errors[-2_000:]}")
        told = json.loads(answer.read_text())
        # Java is not waited for by the process that starts it, so its time is not in the process's own.
        cpu = max(usage.ru_utime + usage.ru_stime, told.pop("tree_cpu", 0.0))
        others = max(0.0, _busy_seconds() - busy - cpu) / (wall * (os.cpu_count() or 1))
        costs = {"process_wall": wall, "process_cpu": cpu, "others_share": round(others, 3)}
        return told, costs


def measure(
    bench: Bench, contenders: Sequence[Contender], repeat: int, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """All contenders in turn, ``repeat`` times, every other time backwards; outputs are compared the first time.

    Returns the runs, and what was written.

    Raises:
        ChildError: a process failed.
        ValueError: a contender's answer is not ours; names it.
    """
    runs: list[dict[str, Any]] = []
    outputs: list[dict[str, Any]] = []
    for turn in range(repeat):
        for contender in contenders if turn % 2 == 0 else reversed(contenders):
            if contender.start == FIRST and turn:
                continue
            run = {"turn": turn, **bench.run(contender)}
            runs.append(run)
            seconds = f"{sum(run['wall'].values()):6.2f} s, CPU {sum(run['cpu'].values()):6.2f} s, peak {run['peak_bytes'] >> 20:5d} MiB"
            say(f"{turn + 1}/{repeat}  {contender.name:<64} {seconds}, others {run['others_share']:.0%}")
            if turn == 0 and contender.start == "warm" and contender.engine != "floor" and contender.task != "publish":
                checked = bench.check(contender)
                if not checked["equal"]:
                    raise ValueError(f"{contender.name} answers something else: {checked['found']}")
                outputs.append({"engine": contender.engine, "task": contender.task, "form": contender.form, **checked["found"]})
    return runs, outputs


def first_run() -> Contender:
    """All stages of the small site in a process that finds nothing compiled."""
    return Contender(OURS, RAW_TO_PUBLISHED, FIRST)


def _read_through(paths: Sequence[str]) -> None:
    buffer = bytearray(1 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            while file.readinto(buffer):
                pass


def _read_through_inside(group: Group, paths: Sequence[str]) -> None:
    """Have files cached at the expense of a group, as far as half of its limit holds them; what it has not cached itself would be free."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    sizes = itertools.accumulate(os.path.getsize(path) for path in paths)  # noqa: PTH202
    chosen = [path for path, size in zip(paths, sizes, strict=True) if group.limit is None or size <= group.limit // 2]
    if chosen:
        subprocess.run(group.command(["cat", "--", *chosen]), stdout=subprocess.DEVNULL, check=True)


def _busy_seconds() -> float:
    """CPU seconds that all processes of the machine have used since it started."""
    user, nice, system, _, _, irq, softirq, *_ = (int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
