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
    """What mends it; empty where nothing has to be mended, or the text says so already."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at. An error of ours that ``look`` raises is a failed check, told in the error's own words."""

    name: str
    look: Callable[[Settings], Found]
    asks: str
    """The settings that say who is asked, for when nobody answers."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Checks of which each needs the ones before it: after a failed one the others are skipped."""

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
    """Nothing was looked at."""
    return Found(reason, "skipped")


def told(error: RollupError) -> Found:
    """Our errors are sentences that end with the remedy, behind a semicolon."""
    problem, _, remedy = str(error).rpartition("; ")
    return failed(problem, remedy) if problem else failed(remedy)
