"""A memory limit for a command and everything below it, page cache included: a control group, version 2 or 1, of its own.

Groups are made below the one that this process is in (or beside it, if version 2 does not let processes and groups share a parent), so
that outer limits stay in force. Files that a group's processes are the first to read or write count as theirs while cached; files that
others have cached already do not. Uses only the standard library.
"""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path("/")
_NAME = "rollups-benchmark"
_REMOVAL_SECONDS = 10.0
_SWAP = 1 << 20
_numbers = itertools.count()


class LimitError(Exception):
    """Memory cannot be limited here; the message says why."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a group has used."""

    limit: int | None
    """Bytes; None if memory was only measured."""
    peak_bytes: int | None
    """The most memory at any time, page cache included; None if the kernel does not tell (version 2 before Linux 5.19)."""
    times_at_limit: int
    """How often the limit was reached; mostly, dropping cached files was enough."""
    killed: int
    """Processes that were killed because nothing was left to drop."""

    def to_dict(self) -> dict[str, int | None]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Group:
    """A control group that commands can be started in."""

    folder: Path
    version: int
    limit: int | None

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line that runs ``arguments`` inside, with the same process id, environment and streams."""
        return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(self.folder / "cgroup.procs"), *arguments]

    def usage(self) -> Usage:
        """What has been used since the group was made."""
        if self.version == 1:
            times, struck = self._number("memory.failcnt") or 0, self._event("memory.oom_control")
            return Usage(self.limit, self._number("memory.max_usage_in_bytes"), times, struck)
        return Usage(self.limit, self._number("memory.peak"), self._event("memory.events", "max"), self._event("memory.events"))

    def processes(self) -> list[int]:
        """Those inside now."""
        return [int(line) for line in (self.folder / "cgroup.procs").read_text().split()]

    def _number(self, name: str) -> int | None:
        path = self.folder / name
        return int(path.read_text()) if path.exists() else None

    def _event(self, name: str, event: str = "oom_kill") -> int:
        pairs = (line.split() for line in (self.folder / name).read_text().splitlines())
        return next((int(pair[1]) for pair in pairs if pair[0] == event), 0)


@contextmanager
def limited(limit: int | None) -> Iterator[Group]:
    """A group that may use ``limit`` bytes; None: only count them. At the end, processes still inside are killed and the group removed.

    Raises:
        LimitError: this process may not make a group; the message says why.
    """
    group = _made(limit)
    try:
        yield group
    finally:
        _remove(group)


@dataclass(frozen=True, slots=True)
class Memory:
    """A limit that was asked for: the group that keeps it, or why there is none."""

    group: Group | None = None
    why: str | None = None

    def told(self) -> dict[str, Any]:
        """What results say about it so far; empty if no limit was asked for."""
        if self.group is not None:
            return {"memory": self.group.usage().to_dict()}
        return {"memory": {"limit": None, "why": self.why}} if self.why else {}


@contextmanager
def limited_where_possible(limit: int | None) -> Iterator[Memory]:
    """As :func:`limited` or, if no group can be made, without a limit, which results then mention; None asks for no limit."""
    with ExitStack() as stack:
        try:
            asked = Memory() if limit is None else Memory(stack.enter_context(limited(limit)))
        except LimitError as error:
            asked = Memory(why=str(error))
        yield asked


def why_not() -> str | None:
    """Why no group can be made here; None if one can."""
    try:
        with limited(None):
            return None
    except LimitError as error:
        return str(error)


def _made(limit: int | None) -> Group:
    reasons = []
    for parent, version in _parents():
        group = Group(parent / f"{_NAME}-{os.getpid()}-{next(_numbers)}", version, limit)
        try:
            _remove_left_over(parent)
            group.folder.mkdir()
        except OSError as error:
            reasons.append(f"{parent}: {error.strerror}")
            continue
        try:
            _set_limit(group)
        except OSError as error:
            group.folder.rmdir()
            reasons.append(f"{parent}: {error.strerror}")
            continue
        return group
    raise LimitError(f"memory is not limited: no control group can be made ({'; '.join(reasons) or 'none is mounted for memory'})")


def _set_limit(group: Group) -> None:
    """Set the group's limit; raises FileNotFoundError if groups in its folder do not control memory."""
    names = {1: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "-1"), 2: ("memory.max", "memory.swap.max", "max")}
    memory, swap, unlimited = names[group.version]
    if not (group.folder / memory).exists():
        raise FileNotFoundError(0, "does not control memory")
    (group.folder / memory).write_text(unlimited if group.limit is None else str(group.limit))
    if group.limit is not None and (group.folder / swap).exists():
        # Version 1 limits memory and swap together, and does not count hits of that limit, so it is set a little higher.
        (group.folder / swap).write_text(str(group.limit + _SWAP) if group.version == 1 else "0")


def _parents() -> Iterator[tuple[Path, int]]:
    """Folders in which a group may be made, each with its version."""
    own = dict(_own_groups())
    for fields in (line.split() for line in (ROOT / "proc/mounts").read_text().splitlines()):
        folder = ROOT / fields[1].lstrip("/")
        if fields[2] == "cgroup" and "memory" in fields[3].split(",") and "memory" in own:
            yield _below(folder, own["memory"]), 1
        if fields[2] == "cgroup2" and "" in own:
            group = _below(folder, own[""])
            # Only a group without processes of its own, or the root, may distribute memory among groups below it.
            yield group, 2
            if group != folder:
                yield group.parent, 2


def _own_groups() -> Iterator[tuple[str, str]]:
    """(controller, path of the group that this process is in); version 2 as the controller ``""``."""
    for line in (ROOT / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            yield controller, path


def _below(folder: Path, path: str) -> Path:
    """A group's folder; the mount's own if a container shows only a part of the tree, which lacks that path."""
    found = folder / path.lstrip("/")
    return found if found.is_dir() else folder


def _remove_left_over(parent: Path) -> None:
    """Remove groups whose maker was killed before it could, unless something still runs inside."""
    for folder in parent.glob(f"{_NAME}-*-*"):
        maker = folder.name.removeprefix(f"{_NAME}-").partition("-")[0]
        if not (ROOT / "proc" / maker).exists():
            with suppress(OSError):
                folder.rmdir()


def _remove(group: Group) -> None:
    until = time.monotonic() + _REMOVAL_SECONDS
    while True:
        for process in group.processes():
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        try:
            group.folder.rmdir()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return
