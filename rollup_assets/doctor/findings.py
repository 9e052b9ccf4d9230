"""What a check is, and what it can find. The checks themselves are in other modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rollup_assets.errors import RollupError

if TYPE_CHECKING:
    from rollup_assets.settings import Settings

State = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Found:
    """What a check found."""

    text: str
    state: State = "ok"
    remedy: str = ""
    """How to fix it; empty if there is nothing to fix, or the text says it already."""


@dataclass(frozen=True, slots=True)
class Check:
    """One check. If ``look`` raises one of our errors, the check has failed, with the error's message."""

    name: str
    look: Callable[[Settings], Found]
    asks: str
    """The settings that name what is asked, to be shown if no answer comes."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Checks that each need the ones before them: after a failed one the rest are skipped."""

    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """A check and what it found."""

    name: str
    state: State
    found: str
    remedy: str = ""
    seconds: float = 0.0


def warning(text: str, remedy: str = "") -> Found:
    """Something that a run survives."""
    return Found(text, "warning", remedy)


def failed(text: str, remedy: str = "") -> Found:
    """Something that a run does not survive."""
    return Found(text, "failed", remedy)


def skipped(reason: str) -> Found:
    """Nothing was checked."""
    return Found(reason, "skipped")


def told(error: RollupError) -> Found:
    """A failed check from one of our errors, whose messages end with the remedy after a semicolon."""
    problem, _, remedy = str(error).rpartition("; ")
    return failed(problem, remedy) if problem else failed(remedy)
