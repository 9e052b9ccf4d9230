"""The Spark engine on a local session: the protocol's promises, errors of ours as they are, tries that leave nothing behind."""

from __future__ import annotations

import functools
import gc
import os
import pickle
import signal
import sys
import threading
import time
import zipimport
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from rollup_assets.engines.base import Blocks, Emit, NoProgress, TaskContext
from rollup_assets.errors import EngineError, RollupError, RollupOverflowError, ShortOfMemoryError, StorageError
from rollup_assets_tests.engines.moved_blocks import emit_all, merge_all, moved
from rollup_assets_tests.engines.test_local import Watched

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from rollup_assets.engines.spark import SparkEngine

MEMORY = 300 << 20

pytestmark = pytest.mark.xdist_group("spark")


@pytest.fixture
def engine(spark_session: SparkSession) -> SparkEngine:
    from rollup_assets.engines.spark import SparkEngine

    return SparkEngine(lambda: spark_session, task_memory=MEMORY)


def run(engine: SparkEngine, task: Any, items: Sequence[Any], progress: Any = None) -> list[Any]:
    return engine.map(task, items, stage="stage", rows=7, progress=progress or NoProgress())


# Tasks are sent to other processes: functions of this module.


def square(item: int, context: TaskContext) -> int:
    time.sleep(0.02 if item % 3 == 0 else 0)
    assert context.memory == MEMORY
    return item * item


def identity(item: int, context: TaskContext) -> tuple[int, int]:  # noqa: ARG001
    return item, os.getpid()


def left_by_the_task_before(item: int, context: TaskContext) -> tuple[int, int, int]:  # noqa: ARG001
    zips = sum(isinstance(importer, zipimport.zipimporter) for importer in sys.path_importer_cache.values())
    return os.getpid(), gc.get_freeze_count(), zips


def overflow(item: int, context: TaskContext) -> int:  # noqa: ARG001
    if item == 3:
        raise RollupOverflowError("series 7 overflows")
    return item


def broken(item: int, context: TaskContext) -> int:  # noqa: ARG001
    if item == 3:
        raise OSError("the disk is gone")
    return item


def wait_long(item: int, context: TaskContext) -> None:  # noqa: ARG001
    time.sleep(60)


def scratch(item: int, context: TaskContext) -> tuple[str, str]:  # noqa: ARG001
    folder = Path(context.scratch_folder())
    (folder / "spilled").write_bytes(b"x")
    return str(folder), context.attempt


def failing_merge(group: Sequence[int], sources: Sequence[Blocks], context: TaskContext) -> None:  # noqa: ARG001
    raise RollupOverflowError(f"group {list(group)} overflows")


def overflowing_split(last: int, item: int, emit: Emit, context: TaskContext) -> int:  # noqa: ARG001
    emit(item % 3, b"", [b"x"])
    if item == last:
        raise RollupOverflowError(f"item {item} overflows")
    return item


def noted_merge(folder: str, group: Sequence[int], sources: Sequence[Blocks], context: TaskContext) -> None:  # noqa: ARG001
    (Path(folder) / str(group[0])).touch()


def test_results_are_in_the_order_of_the_items_whichever_is_done_first(engine: SparkEngine) -> None:
    watched = Watched()
    assert run(engine, square, range(20), watched) == [item * item for item in range(20)]
    assert watched.stages() == [("start", "stage"), ("finish", "stage")]
    assert watched.done("stage") == 7


def test_nothing_to_do_starts_no_session() -> None:
    from rollup_assets.engines.spark import SparkEngine

    def none() -> SparkSession:
        raise AssertionError("a session was asked for")

    engine = SparkEngine(none, task_memory=MEMORY)
    assert run(engine, square, []) == []
    assert engine.map_shuffle(emit_all, [], merge_all, [], stages=("split", "merge"), rows=0, progress=NoProgress()) == ([], [])


def test_tasks_run_in_other_processes(engine: SparkEngine) -> None:
    found = run(engine, identity, range(4))
    assert [item for item, _ in found] == [0, 1, 2, 3]
    assert os.getpid() not in {process for _, process in found}


def test_a_worker_that_is_used_again_neither_collects_modules_nor_reads_zip_files(engine: SparkEngine) -> None:
    """PySpark would have it do both between any two tasks; the first tasks gave the workers their modules."""
    used = {pid for pid, *_ in run(engine, left_by_the_task_before, range(8))}
    again = [(frozen, zips) for pid, frozen, zips in run(engine, left_by_the_task_before, range(8)) if pid in used]
    assert again
    assert min(frozen for frozen, _ in again) > 10_000
    assert {zips for _, zips in again} == {0}


def test_every_block_is_moved_once_in_the_order_of_tasks_and_of_emission(engine: SparkEngine) -> None:
    """To the group that has its bucket; groups and tasks without any block give their results too."""
    emitted = [[(task % 3, b"%d" % number * number) for number in range(task * 5)] for task in range(6)] + [[]]
    emitted[2] += [(6, b"far")]
    groups = [[0, 1], [2], [3, 4, 5], [6]]
    watched = Watched()
    counts, merged = engine.map_shuffle(
        functools.partial(emit_all, emitted), range(7), merge_all, groups, stages=("split", "merge"), rows=9, progress=watched
    )
    assert (counts, merged) == moved(emitted, groups)
    assert watched.done("split") == watched.done("merge") == 9


def test_without_items_the_groups_still_give_results(engine: SparkEngine) -> None:
    split = functools.partial(emit_all, [])
    found = engine.map_shuffle(split, [], merge_all, [[0, 1], [2]], stages=("split", "merge"), rows=0, progress=NoProgress())
    assert found == ([], [([0, 1], []), ([2], [])])


def test_an_error_of_ours_is_raised_as_it_is_and_not_tried_again(engine: SparkEngine) -> None:
    with pytest.raises(RollupOverflowError, match=r"^series 7 overflows$"):
        run(engine, overflow, range(5))
    split = functools.partial(emit_all, [[]])
    with pytest.raises(RollupOverflowError, match=r"^group "):
        engine.map_shuffle(split, [0], failing_merge, [[0]], stages=("split", "merge"), rows=0, progress=NoProgress())


def test_after_a_map_task_of_ours_failed_nothing_is_merged(engine: SparkEngine, tmp_path: Path) -> None:
    split = functools.partial(overflowing_split, 2)
    merge = functools.partial(noted_merge, str(tmp_path))
    groups = [[0], [1], [2]]
    with pytest.raises(RollupOverflowError, match=r"^item 2 overflows$"):
        engine.map_shuffle(split, range(4), merge, groups, stages=("split", "merge"), rows=0, progress=NoProgress())
    assert list(tmp_path.iterdir()) == []
    engine.map_shuffle(split, range(2), merge, groups, stages=("split", "merge"), rows=0, progress=NoProgress())
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("kind", [StorageError, ShortOfMemoryError])
@pytest.mark.parametrize(("retried", "attempt", "again"), [(True, 0, True), (True, 1, False), (False, 0, False)])
def test_a_task_whose_host_may_be_at_fault_is_tried_once_more_where_spark_does_that(
    monkeypatch: pytest.MonkeyPatch, kind: type[RollupError], *, retried: bool, attempt: int, again: bool
) -> None:
    import pyspark

    from rollup_assets.engines.spark import _attempted, _Context, _Work

    def failing(_: TaskContext) -> None:
        raise kind("s3://lake/x cannot be written: slow down")

    running = SimpleNamespace(attemptNumber=lambda: attempt, taskAttemptId=lambda: 7)
    monkeypatch.setattr(pyspark.TaskContext, "get", lambda: running)
    work = _Work("", MEMORY, retried, b"")
    if again:
        with pytest.raises(kind):
            _attempted(failing, _Context(MEMORY, ""), work)
    else:
        outcome, failed = _attempted(failing, _Context(MEMORY, ""), work)
        assert failed
        assert str(pickle.loads(outcome)[1]) == "s3://lake/x cannot be written: slow down"


@pytest.mark.parametrize("kind", [StorageError, ShortOfMemoryError])
def test_what_a_task_said_last_is_told_as_it_is(kind: type[RollupError]) -> None:
    text = f"Job aborted\n  File x\n{kind.__module__}.{kind.__name__}: s3://lake/x cannot be written: slow down\n\tat org.apache.X"
    from rollup_assets.engines.spark import explained

    found = explained(Exception(text))
    assert (type(found), str(found)) == (kind, "s3://lake/x cannot be written: slow down")


def test_another_error_ends_the_step_with_what_the_task_said(engine: SparkEngine) -> None:
    with pytest.raises(Exception, match="the disk is gone"):
        run(engine, broken, range(5))


def test_scratch_folders_are_deleted_and_tries_have_names(engine: SparkEngine) -> None:
    found = run(engine, scratch, range(3))
    assert not any(Path(folder).exists() for folder, _ in found)
    names = [name for _, name in found]
    assert len(set(names)) == 3
    assert all(name.startswith("try-") for name in names)


@pytest.mark.scenario("K6")
def test_an_interrupt_stops_the_job_on_the_cluster(engine: SparkEngine, spark_session: SparkSession) -> None:
    """Ctrl-C, or Dagster's termination of a run, raises KeyboardInterrupt in the main thread."""

    def interrupt() -> None:
        # Not after some seconds: on a busy machine that came in the middle of a call to the JVM, which then refused the calls below.
        while not spark_session.sparkContext.statusTracker().getActiveJobsIds():
            time.sleep(0.2)
        time.sleep(1)
        os.kill(os.getpid(), signal.SIGINT)

    interrupting = threading.Thread(target=interrupt)
    interrupting.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(engine, wait_long, range(2))
    interrupting.join()
    deadline = time.monotonic() + 20
    while spark_session.sparkContext.statusTracker().getActiveJobsIds():
        assert time.monotonic() < deadline, "the job goes on"
        time.sleep(0.2)
    assert time.monotonic() - began < 50, "nobody waited for the tasks"


def test_an_interrupt_before_spark_knows_of_the_job_stops_it_too(
    engine: SparkEngine, spark_session: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = type(spark_session.range(1))
    collect = frames.collect

    def collect_later(frame: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(2)
        return collect(frame)

    monkeypatch.setattr(frames, "collect", collect_later)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(engine, wait_long, range(2))
    assert time.monotonic() - began < 50, "nobody waited for the tasks"


@pytest.mark.parametrize(
    ("name", "other", "driver"),
    [("__version__", "99.0", r"99\.0 with code version \S+"), ("CODE_VERSION", "98", r"\S+ with code version 98")],
)
def test_workers_with_another_version_are_told_apart(
    engine: SparkEngine, monkeypatch: pytest.MonkeyPatch, name: str, other: str, driver: str
) -> None:
    monkeypatch.setattr(f"rollup_assets.engines.spark.{name}", other)
    said = rf"^Spark's workers run rollup_assets \S+ with code version \S+, but the driver runs {driver}; give both the same environment"
    with pytest.raises(EngineError, match=said):
        run(engine, square, range(2))


def test_workers_without_the_package_are_named() -> None:
    from rollup_assets.engines.spark import explained

    said = "pyspark.errors.PythonException: ...\n  File x\nModuleNotFoundError: No module named 'rollup_assets'\n\tat org.apache"
    error = explained(RuntimeError(said))
    assert isinstance(error, EngineError)
    assert str(error).startswith("Spark's workers have no Python package rollup_assets: they need rollup_assets and its dependencies.")
    assert "ROLLUP_SPARK_CONF" in str(error)


def test_work_of_steps_can_be_sent() -> None:
    """What the steps send is pickled by Python itself, so it must not hold connections, locks or closures."""
    from rollup_assets.steps.roll_up_shards import roll_up_shards
    from rollup_assets.steps.sort import sort_shards
    from rollup_assets.steps.split import split_files

    assert [pickle.loads(pickle.dumps(task)) for task in (split_files, sort_shards, roll_up_shards)] == [
        split_files,
        sort_shards,
        roll_up_shards,
    ]
