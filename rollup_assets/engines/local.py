"""The local engine: a step's tasks on the threads of this process.

Kernels, Arrow and file operations release the interpreter lock, so threads are enough. Blocks that ``map_shuffle`` moves are
written to one file a map task and read back bucket by bucket: memory stays bounded whatever passes through.
"""

from __future__ import annotations

import contextlib
import queue
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from rollup_assets.engines.base import Blocks, Emit, Item, Mapped, Progress, Reduced, Result, TaskContext
from rollup_assets.interruptible import wait_for_one
from rollup_assets.loading import load_arrow
from rollup_assets.storage.spill import SpilledBlocks, SpillFile, abandoned_folders, spill_folder
from rollup_assets.threads import thread_pool


@dataclass
class _Context:
    """What a task sees of the engine."""

    memory: int
    folder: Path
    report: Callable[[int], None]
    stopped: threading.Event
    attempt: str = ""
    _scratch: list[Path] = field(default_factory=list)

    def advance(self, rows: int) -> None:
        if self.stopped.is_set():
            raise _StoppedError
        self.report(rows)

    def scratch_folder(self) -> str:
        path = self.folder / uuid.uuid4().hex
        path.mkdir()
        self._scratch.append(path)
        return str(path)

    def clean(self) -> None:
        for path in self._scratch:
            shutil.rmtree(path, ignore_errors=True)


class _StoppedError(Exception):
    """Another task of the step has failed; this one's result is not wanted any more."""


class LocalEngine:
    """Runs tasks on threads.

    Args:
        threads: tasks that run at the same time.
        memory: bytes that all running tasks together may use for their data.
        scratch: folder for spilled data; leftovers of processes that are gone are deleted.
    """

    tries_again = False
    most_map_tasks = 64
    """A limit, since each has a spill file open while its batch is staged."""
    least_map_task = 1 << 20

    def __init__(self, *, threads: int, memory: int, scratch: Path) -> None:
        self.threads = threads
        self.memory = memory
        self.scratch = scratch

    def map(
        self, task: Callable[[Item, TaskContext], Result], items: Sequence[Item], *, stage: str, rows: int, progress: Progress
    ) -> list[Result]:
        """See :class:`rollup_assets.engines.base.Engine`."""
        with self._folder() as folder:
            return self._run(task, items, folder, stage, rows, progress)

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
        """See :class:`rollup_assets.engines.base.Engine`."""
        with self._folder() as folder, contextlib.ExitStack() as opened:
            files: list[SpillFile] = []
            for number in range(len(items)):
                file = SpillFile(folder / f"blocks-{number}")
                opened.callback(file.close)
                files.append(file)

            def split_one(numbered: tuple[int, Item], context: TaskContext) -> Mapped:
                number, item = numbered
                return split(item, files[number].emit, context)

            def merge_one(group: Sequence[int], context: TaskContext) -> Reduced:
                return merge(group, [SpilledBlocks(files, bucket) for bucket in group], context)

            mapped = self._run(split_one, list(enumerate(items)), folder, stages[0], rows, progress)
            return mapped, self._run(merge_one, groups, folder, stages[1], rows, progress)

    def _run(
        self, task: Callable[[Item, TaskContext], Result], items: Sequence[Item], folder: Path, stage: str, rows: int, progress: Progress
    ) -> list[Result]:
        load_arrow()
        stopped = threading.Event()
        ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        running = max(1, min(self.threads, len(items)))

        def run(item: Item) -> Result:
            # A thread whose task has failed may take the next one before it is cancelled.
            if stopped.is_set():
                raise _StoppedError
            context = _Context(self.memory // running, folder, lambda done: progress.advance(stage, done), stopped)
            try:
                return task(item, context)
            except BaseException:
                stopped.set()
                raise
            finally:
                context.clean()
                ended.put(None)

        def stop(futures: Sequence[Future[Result]]) -> None:
            stopped.set()
            for future in futures:
                future.cancel()

        progress.start(stage, rows)
        try:
            with thread_pool(running, "task") as threads:
                futures: list[Future[Result]] = []
                try:
                    # Inside the try, too: leaving the pool without stopping its tasks waits for all that were submitted.
                    futures.extend(threads.submit(run, item) for item in items)
                    for _ in futures:
                        wait_for_one(ended)
                        if stopped.is_set():
                            break
                except BaseException:  # an interrupt, which must not wait for the step's end
                    stop(futures)
                    raise
                if stopped.is_set():
                    stop(futures)
            raise_first(futures)
            return [future.result() for future in futures]
        finally:
            progress.finish(stage)

    @contextlib.contextmanager
    def _folder(self) -> Iterator[Path]:
        """A folder for one step's spilled data."""
        for left in abandoned_folders(self.scratch):
            shutil.rmtree(left, ignore_errors=True)
        with spill_folder(self.scratch) as folder:
            yield folder


def raise_first(futures: Sequence[Future[Result]]) -> None:
    """Raise the first task's error, in the order of the items, that was not caused by another's."""
    errors = [error for future in futures if not future.cancelled() and (error := future.exception()) is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, _StoppedError)), errors[0])
