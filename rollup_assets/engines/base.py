"""The protocol between steps and engines: two methods, ``map`` and ``map_shuffle``.

A step describes its work as tasks, plain picklable callables; an engine runs them on threads, processes or a cluster. Results
never depend on the engine, its number of threads or its memory. A step must not know which engine runs it:
``pipeline`` makes the engine, and only ``doctor`` asks which one it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

from rollup_assets.storage.spill import Buffer

Item = TypeVar("Item")
Result = TypeVar("Result")
Mapped = TypeVar("Mapped")
Reduced = TypeVar("Reduced")


class Progress(Protocol):
    """Where tasks report how far they are."""

    def start(self, stage: str, total: int) -> None:
        """A stage begins; ``total`` rows are known to lie ahead (0: unknown)."""

    def advance(self, stage: str, rows: int) -> None:
        """``rows`` more are done. Called from any thread."""

    def finish(self, stage: str) -> None:
        """The stage has ended."""


class NoProgress:
    """Progress that is not shown."""

    def start(self, stage: str, total: int) -> None:
        """Ignored."""

    def advance(self, stage: str, rows: int) -> None:
        """Ignored."""

    def finish(self, stage: str) -> None:
        """Ignored."""


class Emit(Protocol):
    """How a map task hands a block to the shuffle."""

    def __call__(self, bucket: int, header: bytes, buffers: Sequence[Buffer]) -> None:
        """Send one block to ``bucket``: a small header and the buffers of its columns, copied before the call returns."""


class Blocks(Protocol):
    """The blocks of one bucket, in the order of map tasks and, within one, of emission; can be read several times."""

    def __iter__(self) -> Iterator[tuple[int, bytes, memoryview]]:
        """Yield ``(map task, header, payload)``; the payload is valid until the next one is asked for."""

    def headers(self) -> Iterator[tuple[int, bytes]]:
        """Yield ``(map task, header)`` of every block, in the same order, without reading payloads."""


class TaskContext(Protocol):
    """What an engine offers to a running task."""

    @property
    def memory(self) -> int:
        """Bytes that this task may use for its data."""

    @property
    def attempt(self) -> str:
        """Tells this try's files apart if a task may be tried again, or twice at once; else empty."""

    def advance(self, rows: int) -> None:
        """Report ``rows`` more as done."""

    def scratch_folder(self) -> str:
        """A local folder of the task's own for spilled data; deleted when the task ends."""


class Engine(Protocol):
    """Runs the tasks of a step."""

    @property
    def tries_again(self) -> bool:
        """Whether a task may be tried more than once, so that a try that failed or was not chosen may leave files behind."""

    @property
    def most_map_tasks(self) -> int:
        """The most tasks that a step should cut its input into."""

    @property
    def least_map_task(self) -> int:
        """Bytes of input below which starting a task costs more than its work."""

    def map(
        self, task: Callable[[Item, TaskContext], Result], items: Sequence[Item], *, stage: str, rows: int, progress: Progress
    ) -> list[Result]:
        """Run ``task`` on every item; results in the order of the items.

        An error ends the step and is raised as it is. Before that, other tasks that have begun may run to their end, and on Spark all
        tasks of the same stage.
        """

    def map_shuffle(
        self,
        split: Callable[[Item, Emit, TaskContext], Mapped],
        items: Sequence[Item],
        merge: Callable[[Sequence[int], Sequence[Blocks], TaskContext], Reduced],
        groups: Sequence[Sequence[int]],
        *,
        stages: tuple[str, str],
        rows: int,
        progress: Progress,
    ) -> tuple[list[Mapped], list[Reduced]]:
        """Run ``split`` on every item, move the emitted blocks to their buckets, run ``merge`` once for each group of buckets.

        Returns the results of both, in the order of items and groups.
        """
