"""Failpoints: named places where a process can be made to die, fail or wait, for the fault suite and for drills.

``ROLLUP_FAILPOINTS`` says what happens where; without it a failpoint costs one comparison. Subprocesses and Spark's local workers
inherit the variable. No kernel has one. Which faults are tried, and what must hold after them, is in ``docs/reliability.md``.

    ROLLUP_FAILPOINTS="publish.commit=error*2; read.rows=kill+3; publish.locked=pause(/tmp/here)"

An action: ``kill`` and ``term`` send this process SIGKILL and SIGTERM; ``error`` raises :class:`FailpointError`; ``sleep(SECONDS)``
sleeps; ``pause(PATH)`` makes a file and waits until somebody deletes it; ``wait(PATH)`` waits until somebody makes it. ``*N``: the first N
times only; ``+N``: not the first N times; each process counts for itself. ``kill``, ``term`` and ``error`` take a path too: only where
that file is not there yet, and it is made first, so that it happens once however many processes have the variable.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from rollup_assets.errors import SettingsError

VARIABLE = "ROLLUP_FAILPOINTS"
LONGEST_PAUSE = 600.0
"""Seconds after which a pause that nobody ends is an error."""

_ASSETS = ("quarantined_datapoints", "partial_points", "repartitioned_datapoints", "rollups", "rollup_table")

FAILPOINTS: Mapping[str, str] = MappingProxyType(
    {
        "stage.begin": "Raw files are listed, none is read.",
        "read.file": "A raw file is about to be opened.",
        "read.rows": "Some rows of a raw file, at most a row group, are read and handed on.",
        "spill.write": "A block is about to be written to a spill file.",
        "sort.begin": "All raw files are read and split; the shards of one task are about to be sorted.",
        "stage.file": "A file of datapoints, partial points or quarantined rows is whole; no manifest names it.",
        "rollup.begin": "The manifests to roll up are known, nothing is written.",
        "rollup.shard": "A shard is about to be rolled up.",
        "rollup.file": "A data file of the table is whole; no manifest names it.",
        "publish.begin": "The lock is not yet asked for.",
        "publish.locked": "The lock is held, the table is not yet looked at.",
        "publish.planned": "It is known which files the snapshot removes and adds; the lock is looked at once more.",
        "publish.commit": "The snapshot's manifests are written; the catalog is about to be asked to swap the pointer.",
        "publish.committed": "The catalog has said yes; there is no receipt.",
        "maintenance.begin": "The batch is published; snapshots are about to expire, or manifests to be merged.",
        "maintenance.commit": "What maintenance changes is written; the catalog is about to be asked.",
        "maintenance.committed": "The catalog has said yes to maintenance.",
        **{f"manifest.before.{asset}": f"The manifest of a partition of {asset} is about to be written." for asset in _ASSETS},
        **{f"manifest.after.{asset}": f"The manifest of a partition of {asset} is in place." for asset in _ASSETS},
        **{f"event.{asset}": f"A partition of {asset} is in place, and Dagster is about to be told." for asset in _ASSETS},
    }
)
"""Every failpoint, with what has happened there and what has not."""

_FORM = re.compile(r"(?P<name>[\w.]+)\s*=\s*(?P<action>[a-z]+)(?:\((?P<argument>[^()]*)\))?(?:\*(?P<count>\d+))?(?:\+(?P<skip>\d+))?")
_ARGUMENTS = {"kill": False, "term": False, "error": False, "sleep": True, "pause": True, "wait": True}
"""Actions, and whether they need an argument in parentheses."""
_EVERY = 0.005

_log = logging.getLogger(__name__)

Handler = Callable[[str], None]


class FailpointError(Exception):
    """Raised by the action ``error``: an error that no code expects."""


@dataclass(slots=True)
class _Rule:
    """The action at one failpoint, and how often the failpoint has been passed."""

    name: str
    action: str
    argument: str
    skip: int
    count: int | None
    passed: int = 0

    def is_due(self) -> bool:
        """Count one passing; returns whether the action is due."""
        self.passed += 1
        return self.passed > self.skip and (self.count is None or self.passed <= self.skip + self.count)


@dataclass(slots=True)
class _Armed:
    """The failpoints of one text."""

    rules: list[_Rule]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, name: str) -> None:
        with self.lock:
            due = [rule for rule in self.rules if rule.name == name and rule.is_due()]
        for rule in due:
            _act(rule)


def parsed(text: str) -> Handler | None:
    """The handler for a text such as ``ROLLUP_FAILPOINTS``, called at each failpoint; None if the text is empty.

    Raises:
        SettingsError: a failpoint or an action is unknown, or an argument is missing; the message says which are known.
    """
    rules = [_rule(part) for part in (part.strip() for part in text.split(";")) if part]
    return _Armed(rules) if rules else None


def _rule(text: str) -> _Rule:
    example = "write name=action, such as publish.commit=error*2"
    if not (found := _FORM.fullmatch(text)):
        raise SettingsError(f"{VARIABLE}: {text!r} is not a failpoint and an action; {example}")
    name, action, argument = found["name"], found["action"], found["argument"]
    if name not in FAILPOINTS:
        raise SettingsError(f"{VARIABLE}: there is no failpoint {name}; there are {', '.join(sorted(FAILPOINTS))}")
    if action not in _ARGUMENTS:
        raise SettingsError(f"{VARIABLE}: {name} cannot {action}; there are {', '.join(_ARGUMENTS)}")
    if _ARGUMENTS[action] and not argument:
        raise SettingsError(f"{VARIABLE}: {name}={action} needs {'seconds' if action == 'sleep' else 'a path'} in parentheses; {example}")
    if action == "sleep" and not re.fullmatch(r"\d+(\.\d+)?", argument):
        raise SettingsError(f"{VARIABLE}: {name}=sleep({argument}) is not a number of seconds; {example}")
    return _Rule(name, action, argument or "", int(found["skip"] or 0), int(found["count"]) if found["count"] else None)


def check_environment() -> None:
    """Refuse a malformed ``ROLLUP_FAILPOINTS`` at once, rather than when the first failpoint is passed.

    Raises:
        SettingsError: see :func:`parsed`.
    """
    parsed(os.environ.get(VARIABLE, ""))


def _from_environment(name: str) -> None:
    """Arm all failpoints when the first one is passed."""
    global _handler
    _handler = parsed(os.environ.get(VARIABLE, ""))
    failpoint(name)


_handler: Handler | None = _from_environment if os.environ.get(VARIABLE) else None


def failpoint(name: str) -> None:
    """Mark a place where something can be made to fail; ``name`` is one of :data:`FAILPOINTS`."""
    if _handler is not None:
        _handler(name)


@contextlib.contextmanager
def handled(handler: Handler | str) -> Iterator[None]:
    """Within the block, in this process, do what a text says at every failpoint, or call a function with the failpoint's name.

    Raises:
        SettingsError: see :func:`parsed`.
    """
    global _handler
    before, _handler = _handler, parsed(handler) if isinstance(handler, str) else handler
    try:
        yield
    finally:
        _handler = before


def _act(rule: _Rule) -> None:
    if rule.action in ("kill", "term", "error") and rule.argument:
        try:
            Path(rule.argument).touch(exist_ok=False)
        except FileExistsError:
            return
    _log.warning("failpoint %s: %s in process %d", rule.name, rule.action, os.getpid())
    if rule.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif rule.action == "term":
        os.kill(os.getpid(), signal.SIGTERM)
    elif rule.action == "error":
        raise FailpointError(f"failpoint {rule.name}")
    elif rule.action == "sleep":
        time.sleep(float(rule.argument))
    else:
        path = Path(rule.argument)
        if rule.action == "pause":
            path.touch()
        deadline = time.monotonic() + LONGEST_PAUSE
        while path.exists() == (rule.action == "pause"):
            if time.monotonic() > deadline:
                raise FailpointError(f"failpoint {rule.name}: nobody {'deleted' if rule.action == 'pause' else 'made'} {path}")
            time.sleep(_EVERY)
