"""Runs contenders in turn, each in its own process, and notes what each cost.

Imports little: a child's peak memory begins with its parent's.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender, reset
from benchmarks.limits import Group, limited_where_possible
from benchmarks.measure import busy_seconds
from benchmarks.sites import Site
from benchmarks.tasks import FIRST, FROM_SORTED, OURS, PEERS, RAW_TO_PUBLISHED, SPARK

Again = Callable[[Sequence[Contender], Sequence[dict[str, Any]]], Sequence[Contender]]
"""Chooses from the contenders of a turn, by the cost of their runs so far, those that run in the next turn."""
ROOT = Path(__file__).parent.parent
SMALL_ROWS = 360_000


class ChildError(Exception):
    """A process of the benchmark failed; the message names it and ends with what it said."""


class TimeLimitError(ChildError):
    """A process of the benchmark took longer than it was given."""


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
    """How many times a warm process does the whole task before it is measured, after doing it once on the small data."""
    memory_limit: int | None = None
    """Bytes for the measured process and those below it, page cache included, if a control group can be made. Runs have it in ``memory``,
    whose ``peak_bytes`` is the peak with the page cache."""
    rollup_memory: str | None = None
    """``ROLLUP_MEMORY`` of this project's runs; None: the default, half of the machine's."""
    rollup_shards: int | None = None
    """``ROLLUP_SHARDS`` of this project's runs; None: the default."""
    time_limit: float | None = None
    """Seconds after which a contender's process is killed, warming up included."""

    @property
    def full(self) -> Site:
        """The site that is measured."""
        return Site(self.work / f"{self.shape}-{self.rows}{self._shards}")

    @property
    def small(self) -> Site:
        """The site that processes warm up on."""
        return Site(self.work / f"{self.shape}-{self.small_rows}-small{self._shards}")

    @property
    def _shards(self) -> str:
        # Staged data with another number of shards cannot be used.
        return f"-{self.rollup_shards}-shards" if self.rollup_shards else ""

    @contextmanager
    def exclusively(self) -> Iterator[None]:
        """Keep other benchmarks out of the folder: they would undo each other's steps, and measure each other.

        Raises:
            BusyError: another benchmark is using it; the message says what to do.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(f"another benchmark is running in {self.work}; wait for it, or name another folder with --work") from None
            yield

    def prepare(self, *, only_before: bool = False, for_spark: bool = False) -> None:
        """Make the data, and everything that single stages start from.

        ``only_before``: just the batches before, at three resolutions. ``for_spark``: also sorted points that Spark's own reader takes.
        """
        job = {"do": "prepare", "rows": self.rows, "small_rows": self.small_rows, "shape": self.shape}
        job |= {"only_before": only_before, "for_spark": for_spark}
        self._process(job)

    def check(self, contender: Contender) -> dict[str, Any]:
        """Summary of what the contender, which ran last, has written, and whether it equals ours."""
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
        inputs = _inputs(contender, full)
        job = {"do": "run", "contender": contender.to_dict(), "full": str(full.root), "whole_warm_ups": self.whole_warm_ups}
        with limited_where_possible(self.memory_limit) as memory:
            os.sync()
            read_inputs(inputs, memory.group)
            answer, usage = self._process(job, environment, memory.group, self.time_limit)
            usage |= memory.told()
        written = sum(path.stat().st_size for path in full.output.rglob("*") if path.is_file())
        return {**contender.to_dict(), **usage, **answer, **({"bytes": written} if written else {})}

    def _process(
        self,
        job: dict[str, Any],
        environment: dict[str, str] | None = None,
        group: Group | None = None,
        seconds: float | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        whole = {"full": str(self.full.root), "small": str(self.small.root), "threads": self.threads, **job}
        settings = {"ROLLUP_MEMORY": self.rollup_memory, "ROLLUP_SHARDS": self.rollup_shards and str(self.rollup_shards)}
        given = {name: value for name, value in settings.items() if value}
        return run_process("benchmarks.child", whole, self.work, {**given, **(environment or {})}, group, seconds)


def _inputs(contender: Contender, site: Site) -> list[str]:
    """What a task reads."""
    if contender.task not in FROM_SORTED:
        return site.raw_files
    return site.sorted_files_for_spark if contender.engine == SPARK else site.sorted_files


def run_process(
    module: str,
    job: dict[str, Any],
    work: Path,
    environment: dict[str, str] | None = None,
    group: Group | None = None,
    seconds: float | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a module of the benchmark in a process of its own, inside ``group`` if there is one.

    The job is its one argument, as JSON; it answers with JSON in the file that ``job["answer"]`` names.

    Returns the answer, and what the process cost.

    Raises:
        TimeLimitError: it took more than ``seconds``, and was killed with every process below it.
        ChildError: it failed; the message ends with its output.
    """
    work.mkdir(parents=True, exist_ok=True)
    answer = work / "answer.json"
    answer.unlink(missing_ok=True)
    whole = {"answer": str(answer), **job}
    settings = {name: value for name, value in os.environ.items() if not name.startswith("ROLLUP_")}
    settings |= {"POLARS_MAX_THREADS": str(job["threads"]), "PYTHONPATH": str(ROOT), **(environment or {})}
    busy, started = busy_seconds(), time.perf_counter()
    # `python -P`: the checkout comes only from PYTHONPATH, whatever the working directory.
    command = [sys.executable, "-P", "-m", module, json.dumps(whole)]
    process = subprocess.Popen(
        group.command(command) if group else command,
        cwd=work, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stderr is not None
    given_up = threading.Event()
    timer = threading.Timer(seconds or 0.0, _give_up, (process.pid, given_up))
    try:
        if seconds is not None:
            timer.start()
        with _terminated_as_interrupted():
            errors = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
    except BaseException:
        _kill_session(process.pid)
        raise
    finally:
        timer.cancel()
    wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if given_up.is_set():
        raise TimeLimitError(f"{job}\ntook more than {seconds:g} s and was given up")
    if group and group.limit and group.usage().killed:
        raise ChildError(f"{job}\nneeds more memory than {group.limit / 2**30:g} GiB, page cache included, and was killed")
    if process.returncode or not answer.exists():
        raise ChildError(f"{job} ended with status {process.returncode}:\n{errors[-2_000:]}")
    told = json.loads(answer.read_text())
    # The process that starts Java does not wait for it, so Java's time is not in its own.
    cpu = max(usage.ru_utime + usage.ru_stime, told.pop("tree_cpu", 0.0))
    others = max(0.0, busy_seconds() - busy - cpu) / (wall * (os.cpu_count() or 1))
    costs = {"process_wall": wall, "process_cpu": cpu, "others_share": round(others, 3)}
    return told, costs


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Make a terminated benchmark end like an interrupted one: with the processes that it started, and with its servers stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _give_up(process: int, given_up: threading.Event) -> None:
    given_up.set()
    _kill_session(process)


def _kill_session(process: int) -> None:
    """Kill a process that began a session, and all processes of the session, such as its JVM."""
    with suppress(ProcessLookupError):
        os.killpg(process, signal.SIGKILL)


@dataclass(slots=True)
class Measured:
    """What a benchmark has found."""

    runs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)
    """What was compared, for every contender that writes something."""
    failed: list[dict[str, Any]] = field(default_factory=list)
    """Peers that did not finish, and why."""
    wrong: list[dict[str, Any]] = field(default_factory=list)
    """Peers that gave a wrong answer once, and which."""


def measure(
    bench: Bench,
    contenders: Sequence[Contender],
    repeat: int,
    say: Callable[[str], None],
    again: Again | None = None,
) -> Measured:
    """Run all contenders in turn, ``repeat`` times, every other time backwards; outputs are compared the first time.

    Before each turn but the first, ``again`` chooses those that continue; a peer that fails does not.

    Raises:
        ChildError: a process of ours failed, or a peer's that had finished in the first turn.
        ValueError: a contender's answer differs from ours (a peer's for the second time); names it.
    """
    found = Measured()
    for turn in range(repeat):
        if turn == 1:
            ended = [each for each in contenders if not any(each.to_dict().items() <= failure.items() for failure in found.failed)]
            contenders = ended
        if turn and again:
            contenders = again(contenders, found.runs)
        for contender in contenders if turn % 2 == 0 else reversed(contenders):
            if contender.start == FIRST and turn:
                continue
            name = f"{turn + 1}/{repeat}  {contender.name:<64}"
            try:
                run = {"turn": turn, **bench.run(contender)}
            except ChildError as error:
                if contender.engine not in (*PEERS, SPARK) or turn:
                    raise
                found.failed.append({**contender.to_dict(), "why": _last_line(str(error))})
                say(f"{name} failed: {found.failed[-1]['why']}")
                continue
            found.runs.append(run)
            seconds = f"{sum(run['wall'].values()):6.2f} s, CPU {sum(run['cpu'].values()):6.2f} s, peak {run['peak_bytes'] >> 20:5d} MiB"
            say(f"{name} {seconds}, others {run['others_share']:.0%}")
            compared = turn == 0 and contender.start == "warm" and contender.engine != "floor" and contender.task != "publish"
            if compared and not _right(bench, contender, found):
                say(f"{name} answers something else, and runs again")
                found.runs[-1] = {"turn": turn, **bench.run(contender)}
                _right(bench, contender, found)
    return found


def _right(bench: Bench, contender: Contender, found: Measured) -> bool:
    """Whether what the contender has just written is right; False if it is a peer's first wrong answer.

    Raises:
        ValueError: any other answer is wrong.
    """
    answer = bench.check(contender)
    if answer["equal"]:
        found.outputs.append({"engine": contender.engine, "task": contender.task, "form": contender.form, **answer["found"]})
        return True
    who = contender.to_dict()
    # DuckDB 2.0.0 sorted the same points wrongly once, and right four times after that.
    if contender.engine not in (*PEERS, SPARK) or any(who.items() <= wrong.items() for wrong in found.wrong):
        raise ValueError(f"{contender.name} answers something else: {answer['found']}")
    found.wrong.append({**who, "found": answer["found"]})
    return False


def _last_line(text: str) -> str:
    """The end of a failed process's output, without folders of this machine."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "nanobind" not in line and "leaked" not in line]
    return re.sub(r"\S*/\S*", "…", lines[-1])[:300]


def first_run() -> Contender:
    """All stages of the small site in a process that has to compile everything."""
    return Contender(OURS, RAW_TO_PUBLISHED, FIRST)


def read_inputs(paths: Sequence[str], group: Group | None) -> None:
    """Get files into the file cache, charged to the group that is about to read them, if there is one."""
    if group is None:
        _read_through(paths)
    else:
        _read_through_inside(group, paths)


def _read_through(paths: Sequence[str]) -> None:
    buffer = bytearray(1 << 20)
    for path in paths:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            while file.readinto(buffer):
                pass


def _read_through_inside(group: Group, paths: Sequence[str]) -> None:
    """Cache files, charged to a group, up to half of its limit; what others have cached would not be charged to it."""
    for path in paths:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    sizes = itertools.accumulate(os.path.getsize(path) for path in paths)  # noqa: PTH202
    chosen = [path for path, size in zip(paths, sizes, strict=True) if group.limit is None or size <= group.limit // 2]
    if chosen:
        subprocess.run(group.command(["cat", "--", *chosen]), stdout=subprocess.DEVNULL, check=True)
