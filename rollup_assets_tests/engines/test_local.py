"""The local engine: results in order, every block moved once, the real error raised, nothing left behind."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollup_assets.engines.base import Blocks, Emit, NoProgress, TaskContext
from rollup_assets.engines.local import LocalEngine
from rollup_assets.storage.spill import spill_folder
from rollup_assets_tests.engines.moved_blocks import emit_all, merge_all, moved
from rollup_assets_tests.spill_folders import held_elsewhere, left_by_a_killed_process


class Watched:
    """Progress that is written down."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, int]] = []
        self._lock = threading.Lock()

    def start(self, stage: str, total: int) -> None:
        self._note("start", stage, total)

    def advance(self, stage: str, rows: int) -> None:
        self._note("advance", stage, rows)

    def finish(self, stage: str) -> None:
        self._note("finish", stage, 0)

    def _note(self, kind: str, stage: str, rows: int) -> None:
        with self._lock:
            self.events.append((kind, stage, rows))

    def done(self, stage: str) -> int:
        return sum(rows for kind, of, rows in self.events if kind == "advance" and of == stage)

    def stages(self) -> list[tuple[str, str]]:
        return [(kind, stage) for kind, stage, _ in self.events if kind != "advance"]


@pytest.fixture
def engine(tmp_path: Path) -> LocalEngine:
    return LocalEngine(threads=3, memory=3 << 20, scratch=tmp_path / "scratch")


def left(engine: LocalEngine) -> list[Path]:
    return sorted(engine.scratch.rglob("*"))


def run(engine: LocalEngine, task: Any, items: Sequence[Any], progress: Any = None) -> list[Any]:
    return engine.map(task, items, stage="stage", rows=0, progress=progress or NoProgress())


# ---------------------------------------------------------------------------------------------------------------------- map


def test_results_are_in_the_order_of_the_items_whichever_is_done_first(engine: LocalEngine) -> None:
    def task(item: int, context: TaskContext) -> int:  # noqa: ARG001
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item * item

    assert run(engine, task, range(20)) == [item * item for item in range(20)]
    assert run(engine, task, []) == []
    assert left(engine) == []


def test_tasks_run_at_the_same_time_and_never_more_than_threads(engine: LocalEngine) -> None:
    together = threading.Barrier(3)
    running: set[int] = set()
    most = []

    def task(item: int, context: TaskContext) -> None:  # noqa: ARG001
        running.add(item)
        most.append(len(running))
        if item < 3:
            together.wait(timeout=20)
        running.discard(item)

    run(engine, task, range(12))
    assert max(most) == 3


@pytest.mark.parametrize(("items", "share"), [(1, 3 << 20), (2, 3 << 19), (3, 1 << 20), (50, 1 << 20)])
def test_running_tasks_share_the_memory(items: int, share: int, engine: LocalEngine) -> None:
    assert run(engine, lambda item, context: context.memory, range(items)) == [share] * items  # noqa: ARG005


# -------------------------------------------------------------------------------------------------------------- map_shuffle

blocks_of_tasks = st.lists(st.lists(st.tuples(st.integers(0, 6), st.binary(max_size=50)), max_size=10), max_size=6)


@settings(max_examples=30, deadline=None)
@given(emitted=blocks_of_tasks, cuts=st.sets(st.integers(1, 6)), threads=st.integers(1, 4))
def test_every_block_is_moved_once_in_the_order_of_tasks_and_of_emission(
    emitted: list[list[tuple[int, bytes]]], cuts: set[int], threads: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """To the group that has its bucket, whatever the number of threads; results in the order of items and of groups."""
    engine = LocalEngine(threads=threads, memory=1 << 20, scratch=tmp_path_factory.mktemp("scratch"))
    bounds = [0, *sorted(cuts), 7]
    groups = [list(range(first, last)) for first, last in itertools.pairwise(bounds)]

    split = functools.partial(emit_all, emitted)
    found = engine.map_shuffle(split, range(len(emitted)), merge_all, groups, stages=("split", "merge"), rows=0, progress=NoProgress())
    assert found == moved(emitted, groups)
    assert left(engine) == []


# ------------------------------------------------------------------------------------------------------------------- errors


def test_the_first_real_error_is_raised_and_not_its_consequence(engine: LocalEngine) -> None:
    """The other tasks stop where they report progress, and those that have not begun never begin."""
    begun: list[int] = []
    both = threading.Barrier(2)

    def task(item: int, context: TaskContext) -> None:
        begun.append(item)
        if item == 1:
            both.wait(timeout=20)
            raise ValueError("the reason")
        if item == 0:
            both.wait(timeout=20)
            while True:
                time.sleep(0.001)
                context.advance(1)
        time.sleep(0.05)

    with pytest.raises(ValueError, match=r"^the reason$"):
        run(LocalEngine(threads=2, memory=1, scratch=engine.scratch), task, range(1000))
    assert len(begun) < 1000
    assert left(engine) == []


def test_of_several_real_errors_the_first_item_s_is_raised(engine: LocalEngine) -> None:
    both = threading.Barrier(2)

    def task(item: int, context: TaskContext) -> None:  # noqa: ARG001
        both.wait(timeout=20)
        raise ValueError(str(item))

    with pytest.raises(ValueError, match=r"^0$"):
        run(engine, task, range(2))


@pytest.mark.parametrize("where", ["split", "merge"])
def test_after_an_error_nothing_is_left_and_no_file_is_open(where: str, engine: LocalEngine) -> None:
    open_before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    progress = Watched()

    def split(item: int, emit: Emit, context: TaskContext) -> None:
        Path(context.scratch_folder(), "spilled").write_bytes(b"x")
        emit(0, b"", [b"x" * 1000])
        if where == "split" and item == 3:
            raise ValueError("broken")

    def merge(group: Sequence[int], sources: Sequence[Blocks], context: TaskContext) -> None:  # noqa: ARG001
        Path(context.scratch_folder(), "spilled").write_bytes(b"x")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        engine.map_shuffle(split, range(5), merge, [[0], [1]], stages=("split", "merge"), rows=5, progress=progress)
    assert left(engine) == []
    assert set(os.listdir("/proc/self/fd")) <= open_before  # noqa: PTH208
    stages = ["split", "merge"][: 1 if where == "split" else 2]
    assert progress.stages() == [(kind, stage) for stage in stages for kind in ("start", "finish")]


def test_an_interrupt_while_tasks_are_handed_in_stops_those_that_run(engine: LocalEngine) -> None:
    begun = threading.Event()

    class Interrupted(list[int]):
        def __iter__(self) -> Iterator[int]:
            yield 0
            assert begun.wait(timeout=20)
            raise KeyboardInterrupt

    def task(item: int, context: TaskContext) -> None:  # noqa: ARG001
        begun.set()
        for _ in range(3000):
            time.sleep(0.01)
            context.advance(1)

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(engine, task, Interrupted([0, 1]))
    assert time.monotonic() - started < 20
    assert left(engine) == []


def test_an_interrupt_stops_the_running_tasks_whenever_it_comes(tmp_path: Path) -> None:
    """Ctrl-C does not wait for the step to end: tasks stop at their next report, and the scratch folder is deleted.

    An interrupt that comes while the step begins to wait was lost in one of twenty cases, hence so many.
    """
    code = """
import os, random, signal, sys, time
from pathlib import Path
from rollup_assets.engines.base import NoProgress
from rollup_assets.engines.local import LocalEngine

def task(item, context):
    if item == 0:
        time.sleep(random.random() * 0.002)
        os.kill(os.getpid(), signal.SIGINT)
    for _ in range(3000):
        time.sleep(0.01)
        context.advance(1)

random.seed(1)
scratch = Path(sys.argv[1])
engine = LocalEngine(threads=2, memory=1, scratch=scratch)
for _ in range(200):
    try:
        engine.map(task, range(100), stage="s", rows=0, progress=NoProgress())
    except KeyboardInterrupt:
        print("interrupted", list(scratch.iterdir()), flush=True)
"""
    # One task alone would go on for half a minute, all of them for most of an hour.
    command = [sys.executable, "-c", code, str(tmp_path)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], timeout=60, check=True)
    assert ended.stdout == "interrupted []\n" * 200


# ------------------------------------------------------------------------------------------------------------------ scratch


def test_a_task_s_scratch_folder_is_its_own_and_gone_when_it_ends(engine: LocalEngine) -> None:
    def task(item: int, context: TaskContext) -> list[str]:
        folders = [context.scratch_folder(), context.scratch_folder()]
        for folder in folders:
            assert os.listdir(folder) == []  # noqa: PTH208
            Path(folder, "file").write_bytes(bytes(item))
        return folders

    found = [folder for folders in run(engine, task, range(10)) for folder in folders]
    assert len(set(found)) == 20
    assert not any(Path(folder).exists() for folder in found)
    assert left(engine) == []


def test_leftovers_of_dead_processes_are_deleted_and_those_of_living_ones_are_not(engine: LocalEngine) -> None:
    gone = {left_by_a_killed_process(engine.scratch) for _ in range(2)}
    foreign = engine.scratch / "somebody's"
    foreign.mkdir()
    with spill_folder(engine.scratch) as ours, held_elsewhere(engine.scratch) as theirs:
        assert set(engine.scratch.iterdir()) == {ours, theirs, foreign, *gone}
        run(engine, lambda item, context: None, [1])  # noqa: ARG005
        assert set(engine.scratch.iterdir()) == {ours, theirs, foreign}
        assert (theirs / "blocks-0").exists()


# ----------------------------------------------------------------------------------------------------------------- progress


def test_progress_adds_up_and_every_stage_is_finished(engine: LocalEngine) -> None:
    progress = Watched()

    def split(item: int, emit: Emit, context: TaskContext) -> None:
        for _ in range(item):
            context.advance(1)
        emit(item % 2, b"", [b"x"])

    def merge(group: Sequence[int], sources: Sequence[Blocks], context: TaskContext) -> None:
        context.advance(sum(1 for source in sources for _ in source) * len(group))

    engine.map_shuffle(split, range(10), merge, [[0], [1]], stages=("split", "merge"), rows=45, progress=progress)
    assert Counter(progress.events)["start", "split", 45] == 1
    assert (progress.done("split"), progress.done("merge")) == (45, 10)
    assert progress.stages() == [("start", "split"), ("finish", "split"), ("start", "merge"), ("finish", "merge")]
