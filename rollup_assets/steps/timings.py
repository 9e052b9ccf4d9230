"""Wall time by stage: measured in a task, and summed over the tasks of a step."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Protocol


class Measured(Protocol):
    """A result of a task with the seconds of each of its stages."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """By stage."""


class Stopwatch:
    """Adds the wall time since the last look at it to a stage."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._started = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Add the time since the last call to this stage."""
        now = time.perf_counter()
        self._seconds[stage] += now - self._started
        self._started = now


def summed(results: Iterable[Measured]) -> dict[str, float]:
    """Seconds of each stage over all results, as manifests hold them."""
    timings: dict[str, float] = {}
    for result in results:
        for stage, seconds in result.seconds.items():
            timings[stage] = timings.get(stage, 0.0) + seconds
    return timings
