"""A progress bar in the terminal: rows done of rows known, stage by stage. The steps define the stages."""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self, TextIO, cast

from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from rollup_assets.terminal import open_console, print_outcome, say

if TYPE_CHECKING:
    from rollup_assets.outcomes import PartitionOutcome


class _Rows(ProgressColumn):
    """``1.2 M / 3.5 M rows``."""

    def render(self, task: Task) -> Text:
        total = f" / {compact(task.total)}" if task.total else ""
        return Text(f"{compact(task.completed)}{total} rows", style="progress.data.speed")


class _TolerantStream:
    """A text stream that shows progress. Once it cannot be written to, because its reader has gone (``2>&1 | head``) or its disk is full,
    further output is dropped, and the work goes on.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            self._discard_output()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError:
            self._discard_output()

    def _discard_output(self) -> None:
        # Text in the stream's buffer would fail again, and once more when Python ends, with exit status 120.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)


class TerminalProgress:
    """Shows stages as bars on standard error within a ``with`` block; shows none if that is not a terminal.

    Methods may be called from any thread. A stage that begins again, as in the next partition, begins at 0.
    """

    def __init__(self) -> None:
        # rich can handle a missing standard error (`2>&-`).
        console = open_console(stderr=True, file=cast("IO[str]", _TolerantStream(sys.stderr)) if sys.stderr else None)
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=32),
            _Rows(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars, in rich's markup; without a terminal just the line."""
        say(self._bars.console, text)

    def partition(self, outcome: PartitionOutcome) -> None:
        """Print above the bars how a partition of a backfill ended."""
        print_outcome(self._bars.console, outcome)

    def start(self, stage: str, total: int) -> None:
        """A stage begins; ``total`` rows are known to lie ahead (0: unknown)."""
        with self._lock:
            if stage in self._tasks:
                self._bars.remove_task(self._tasks.pop(stage))
            self._tasks[stage] = self._bars.add_task(stage, total=total or None)

    def advance(self, stage: str, rows: int) -> None:
        """``rows`` more are done."""
        with self._lock:
            task = self._tasks.get(stage)
        if task is not None:
            self._bars.advance(task, rows)

    def finish(self, stage: str) -> None:
        """The stage has ended; its bar goes away."""
        with self._lock:
            task = self._tasks.pop(stage, None)
        if task is not None:
            self._bars.remove_task(task)


def compact(count: float) -> str:
    """A count in three digits: ``950``, ``12.3 k``, ``4.56 M``."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            scaled = count / size
            return f"{scaled:.{2 if scaled < 10 else 1 if scaled < 100 else 0}f} {unit}"
    return f"{count:.0f}"
