"""Progress of a run's steps, as lines in its log. A backfill in a terminal shows it with ``rollup_assets.progress`` instead."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from logging import Logger

LOG_PROGRESS_EVERY = 10.0
"""Seconds between two progress lines of a stage: each line is a row in Dagster's event log."""


class LoggedProgress:
    """Progress as lines in a run's log: at most one per stage every :data:`LOG_PROGRESS_EVERY` seconds, and none for short stages."""

    def __init__(self, log: Logger, label: str, *, every: float = LOG_PROGRESS_EVERY, clock: Callable[[], float] = time.monotonic) -> None:
        self._log, self._label, self._every, self._clock = log, label, every, clock
        self._lock = threading.Lock()
        self._stages: dict[str, _StageProgress] = {}

    def start(self, stage: str, total: int) -> None:
        """A stage begins, with ``total`` rows to do (0: unknown)."""
        now = self._clock()
        with self._lock:
            self._stages[stage] = _StageProgress(total=total, began=now, told=now)

    def advance(self, stage: str, rows: int) -> None:
        """``rows`` more are done. Called from any thread."""
        now = self._clock()
        with self._lock:
            progress = self._stages.setdefault(stage, _StageProgress(total=0, began=now, told=now))
            progress.done += rows
            if now - progress.told < self._every:
                return
            progress.told = now
            line = progress.line(now)
        self._log.info(f"{self._label}: {stage}: {line}")

    def finish(self, stage: str) -> None:
        """The stage has ended; logged only if it took at least as long as the interval between two lines."""
        now = self._clock()
        with self._lock:
            progress = self._stages.pop(stage, None)
        if progress and now - progress.began >= self._every:
            self._log.info(f"{self._label}: {stage}: done in {now - progress.began:.1f} s")


@dataclass(slots=True)
class _StageProgress:
    total: int
    began: float
    told: float
    done: int = 0

    def line(self, now: float) -> str:
        of = f" of {self.total:,} rows ({self.done / self.total:.0%})" if self.total else " rows"
        return f"{self.done:,}{of}, {now - self.began:.0f} s"
