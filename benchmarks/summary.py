"""Medians, spreads and ratios of runs. Uses only the standard library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

Run = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(median(values), min(values), max(values))


def wall(run: Run) -> float:
    """Wall seconds of the timed part, or, unless the process was warm, of the whole process."""
    return float(sum(run["wall"].values()) if run["start"] == "warm" else run["process_wall"])


def cpu(run: Run) -> float:
    """CPU seconds, as :func:`wall`."""
    return float(sum(run["cpu"].values()) if run["start"] == "warm" else run["process_cpu"])


def select(runs: Sequence[Run], engine: str, task: str, start: str = "warm") -> list[Run]:
    """The runs of a contender, in turn."""
    return sorted((run for run in runs if (run["engine"], run["task"], run["start"]) == (engine, task, start)), key=lambda run: run["turn"])


def summarized(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One entry per contender: medians and spreads of wall time, CPU time and peak memory."""
    keys = list(dict.fromkeys((run["engine"], run["task"], run["start"], run["form"]) for run in runs))
    found = []
    for key in keys:
        mine = [run for run in runs if (run["engine"], run["task"], run["start"], run["form"]) == key]
        entry: dict[str, Any] = dict(zip(("engine", "task", "start", "form"), key, strict=True))
        for name, figure in (("wall", wall), ("cpu", cpu), ("peak_bytes", lambda run: float(run["peak_bytes"]))):
            spread = Spread.of([figure(run) for run in mine])
            entry[name] = {"median": spread.median, "least": spread.least, "most": spread.most}
        found.append({**entry, "runs": len(mine)})
    return found


def ratio(above: Sequence[Run], below: Sequence[Run], figure: Callable[[Run], float]) -> Spread:
    """The ratio of two contenders, turn by turn: whatever slowed the machine for both in a turn cancels out."""
    pairs = [(figure(one), figure(other)) for one in above for other in below if one["turn"] == other["turn"]]
    return Spread.of([one / other for one, other in pairs])
