"""The Spark engine: a step's tasks on Spark's executors, its blocks through Spark's shuffle.

``mapInArrow`` runs the tasks and ``repartitionById`` sends one binary row per map task and shard to the task that merges it, so that
scheduling, retries, speculation, shuffle and dynamic allocation are Spark's; the same over Spark Connect. Tasks write straight to the
stage, and only their results come back. How a session is made stays out (``engines.spark_session``).
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import os
import pickle
import queue
import shutil
import sys
import tempfile
import time
import uuid
import zipimport
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollup_assets import __version__
from rollup_assets.code_version import CODE_VERSION
from rollup_assets.engines.base import Blocks, Emit, Item, Mapped, Progress, Reduced, Result, TaskContext
from rollup_assets.engines.shuffled_blocks import PARCEL_BYTES, Inbox, Outbox
from rollup_assets.errors import EngineError, RollupError, ShortOfMemoryError, StorageError
from rollup_assets.interruptible import wait_for_one
from rollup_assets.threads import thread_pool

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

_RESULTS = "merged boolean, place int, outcome binary"
_Parcel = tuple[int, int, int, int, list[bytes]]
"""Target, bucket, place, number, and the pieces of the parcel."""
_PARCELS = "target int, bucket int, place int, number int, parcel binary"
# Rows of the shuffle that are not parcels: what a map task returned, and signals to a merge task that it has to run, or that it need not
# since a map task has failed.
_RETURNED, _RUN, _FAILED = -1, -2, -3
# One in so many bytes of a task's memory is for parcels, which are spilled beyond that.
_PARCEL_SHARE = 4
_FEWEST_PARTITIONS = 1
_BETWEEN_CANCELS = 0.5
"""Seconds."""


@dataclass(slots=True)
class _Context:
    """What a task sees of the engine, on an executor."""

    memory: int
    attempt: str
    _scratch: list[str] = field(default_factory=list)

    def advance(self, rows: int) -> None:
        """Progress is reported by the driver, task by task."""

    def scratch_folder(self) -> str:
        # The folders for spilled data that the executors' operator chose; the first is as good as any.
        local = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")[0]
        folder = tempfile.mkdtemp(prefix="rollup-", dir=local if local and Path(local).is_dir() else None)
        self._scratch.append(folder)
        return folder

    def clean(self) -> None:
        for folder in self._scratch:
            shutil.rmtree(folder, ignore_errors=True)


def _version() -> str:
    """Versions of package and code. The first is not enough: within a release, other code could make other bytes than the manifest says."""
    return f"{__version__} with code version {CODE_VERSION}"


@dataclass(frozen=True, slots=True)
class _Work:
    """What every task of a job gets: pickled here and not by Spark, so that another version of this package can explain its refusal."""

    version: str
    memory: int
    retried: bool
    """Whether Spark tries a failed task again."""
    content: bytes

    @property
    def parcel_memory(self) -> int:
        """Bytes of :attr:`memory` for parcels, in tasks that send or get some; the rest is for such a task's own data."""
        return self.memory // _PARCEL_SHARE

    def load(self) -> Any:
        if self.version != (ours := _version()):
            raise EngineError(
                f"Spark's workers run rollup_assets {ours}, but the driver runs {self.version}; give both the same environment "
                '(docs/spark.md, "Workers")'
            )
        return pickle.loads(self.content)


class SparkEngine:
    """Runs tasks on Spark.

    Args:
        session: gives the session; called when the first task has to run, and only then.
        task_memory: bytes that a running task may use for its data, on an executor.
    """

    tries_again = True
    most_map_tasks = 10_000
    """Spark's driver could handle tens of thousands, but more tasks only cost it time."""
    least_map_task = 32 << 20
    """About two million points, two seconds of work; starting a task takes tens of milliseconds."""

    def __init__(self, session: Callable[[], SparkSession], *, task_memory: int) -> None:
        self._open = session
        self.task_memory = task_memory

    @functools.cached_property
    def _session(self) -> SparkSession:
        return self._open()

    def map(
        self, task: Callable[[Item, TaskContext], Result], items: Sequence[Item], *, stage: str, rows: int, progress: Progress
    ) -> list[Result]:
        """See :class:`rollup_assets.engines.base.Engine`."""
        if not items:
            return []
        work = self._work((task, list(items)))
        with _reported(progress, (stage,), rows):
            frame = self._partitions(len(items)).mapInArrow(functools.partial(_in_worker, _run_tasks, work), _RESULTS)
            outcomes = self._collect(frame)
        return [_result(outcomes[True, place]) for place in range(len(items))]

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
        if not groups:
            return [], []
        target_of = {bucket: target for target, group in enumerate(groups) for bucket in group}
        splitting = self._work((split, list(items), target_of, len(groups)))
        merging = self._work((merge, [list(group) for group in groups]))
        with _reported(progress, stages, rows):
            frame = (
                self._partitions(max(len(items), _FEWEST_PARTITIONS))
                .mapInArrow(functools.partial(_in_worker, _split, splitting), _PARCELS)
                .repartitionById(len(groups), "target")
                .mapInArrow(functools.partial(_in_worker, _merge, merging), _RESULTS)
            )
            outcomes = self._collect(frame)
        mapped = [_result(outcomes[False, place]) for place in range(len(items))]
        return mapped, [_result(outcomes[True, place]) for place in range(len(groups))]

    def _work(self, content: Any) -> _Work:
        return _Work(_version(), self.task_memory, _retries(self._session), pickle.dumps(content))

    def _partitions(self, count: int) -> DataFrame:
        """One row per partition, with its number: each becomes a task of the job."""
        return self._session.range(0, count, 1, count)

    def _collect(self, frame: DataFrame) -> dict[tuple[bool, int], bytes]:
        """Run the job; an interrupt stops it on the cluster too."""
        add_tag, interrupt = _tagging(self._session)
        tag = f"rollup-{uuid.uuid4().hex}"

        def run() -> dict[tuple[bool, int], bytes]:
            add_tag(tag)
            return {(row.merged, row.place): bytes(row.outcome) for row in frame.collect()}

        # In another thread: the one that gets the interrupt must be free to talk to the JVM, and Py4J has one connection per thread.
        with thread_pool(1, "spark job") as thread:
            ended: queue.SimpleQueue[None] = queue.SimpleQueue()
            job = thread.submit(run)
            job.add_done_callback(lambda _: ended.put(None))
            try:
                wait_for_one(ended)
                return job.result()
            except Exception as error:
                raise explained(error) from error
            except BaseException:
                # Repeated until it has ended: a job that is still being planned has nothing to stop yet, and would run to its end.
                while not job.done():
                    with contextlib.suppress(Exception):
                        interrupt(tag)
                    time.sleep(_BETWEEN_CANCELS)
                raise


def _retries(session: SparkSession) -> bool:
    """Whether to leave a first failure to Spark: not with a ``local…`` master, since most of them never try again."""
    from pyspark.errors import PySparkException

    try:
        return not (session.sparkContext.master or "").startswith("local")
    except PySparkException:  # Spark Connect does not tell
        return True


def _tagging(session: SparkSession) -> tuple[Callable[[str], object], Callable[[str], object]]:
    """Two functions of a session: one tags the jobs that this thread starts, the other stops jobs by tag."""
    from pyspark.errors import PySparkException

    try:
        context = session.sparkContext
    except PySparkException:  # Spark Connect has none
        return session.addTag, session.interruptTag
    # The session's own interruptTag() finds nothing to stop in Spark 4.1.4 unless the session is remote: a collect() ran on to its end.
    return context.addJobTag, context.cancelJobsWithTag


@contextlib.contextmanager
def _reported(progress: Progress, stages: Sequence[str], rows: int) -> Iterator[None]:
    """Report the stages of one job: only their start and end, since Spark's own UI shows the progress between."""
    for stage in stages:
        progress.start(stage, rows)
    try:
        yield
        for stage in stages:
            progress.advance(stage, rows)
    finally:
        for stage in stages:
            progress.finish(stage)


# ------------------------------------------------------------------------------------------------------------ on executors


def _in_worker(
    run: Callable[[_Work, Iterator[pa.RecordBatch]], Iterator[pa.RecordBatch]], work: _Work, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Run a task, and leave the worker process in a state in which Spark can cheaply use it again.

    Between two tasks PySpark collects garbage, which visits the objects of all modules (0.1 s with the kernels), and invalidates the
    caches of Python's importers, after which the importer of a zip file (PySpark itself is in one) reads its directory anew (0.1 s). So
    modules are exempt from collections after the task that imports them, and zip importers are dropped: new ones use what was read.
    """
    known = len(sys.modules)
    try:
        yield from run(work, batches)
    finally:
        if len(sys.modules) > known:
            gc.freeze()
        for path, importer in list(sys.path_importer_cache.items()):
            if isinstance(importer, zipimport.zipimporter):
                del sys.path_importer_cache[path]


def _run_tasks(work: _Work, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    task, items = work.load()
    for batch in batches:
        for place in batch.column(0).to_pylist():
            context = _Context(work.memory, _attempt())
            try:
                outcome, _ = _attempted(functools.partial(task, items[place]), context, work)
            finally:
                context.clean()
            yield _returned(True, place, outcome)


def _split(work: _Work, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    split, items, target_of, groups = work.load()
    for batch in batches:
        for place in batch.column(0).to_pylist():
            if place == 0:
                yield _parcels([(target, _RUN, place, 0, []) for target in range(groups)])
            if place >= len(items):
                continue
            context = _Context(work.memory - work.parcel_memory, _attempt())
            outbox = Outbox(work.parcel_memory, Path(context.scratch_folder()) / "parcels")
            try:
                outcome, failed = _attempted(functools.partial(split, items[place], outbox.emit), context, work)
                if failed:
                    # To every merge task, so that none merges without this task's blocks. Telling only target 0, which gets what map tasks
                    # return, would not do: if Spark runs this task again because the output of its first try was lost with a host, the
                    # merge task of target 0 may have ended already, with that output.
                    yield _parcels([(target, _FAILED, place, 0, [outcome]) for target in range(groups)])
                    continue
                pending: list[_Parcel] = [(0, _RETURNED, place, 0, [outcome])]
                size = 0
                for bucket, number, pieces in outbox.drain():
                    pending.append((target_of[bucket], bucket, place, number, pieces))
                    size += sum(map(len, pieces))
                    if size >= PARCEL_BYTES:
                        yield _parcels(pending)
                        pending, size = [], 0
                yield _parcels(pending)
            finally:
                outbox.close()
                context.clean()


def _merge(work: _Work, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    merge, groups = work.load()
    context = _Context(work.memory - work.parcel_memory, _attempt())
    inbox = Inbox(work.parcel_memory, Path(context.scratch_folder()) / "parcels")
    try:
        target, failure = None, None
        for batch in batches:
            targets, buckets, places, numbers, parcels = batch.columns
            for row in range(batch.num_rows):
                bucket, place = buckets[row].as_py(), places[row].as_py()
                if bucket == _RETURNED:
                    yield _returned(False, place, parcels[row].as_py())
                elif bucket == _FAILED:
                    failure = parcels[row].as_py()
                    yield _returned(False, place, failure)
                elif bucket == _RUN:
                    target = targets[row].as_py()
                else:
                    inbox.add(bucket, place, numbers[row].as_py(), parcels[row].as_buffer())
        if target is not None:
            group = groups[target]
            run = functools.partial(merge, group, [inbox.blocks(bucket) for bucket in group])
            yield _returned(True, target, failure or _attempted(run, context, work)[0])
    finally:
        inbox.close()
        context.clean()


def _attempt() -> str:
    """Tells the files of this try at a task apart from those of another: Spark may run a task again, or twice at once."""
    from pyspark import TaskContext as SparkTaskContext

    running = SparkTaskContext.get()
    return f"try-{running.taskAttemptId()}" if running else ""


def _attempted(run: Callable[[TaskContext], Any], context: TaskContext, work: _Work) -> tuple[bytes, bool]:
    """What a task returned, or the RollupError that it raised, and whether it has failed.

    Other errors are left to Spark, which tries the task again. So is a first StorageError or ShortOfMemoryError, which may be
    due to the host it ran on.
    """
    try:
        return pickle.dumps((run(context), None)), False
    except RollupError as error:
        if isinstance(error, StorageError | ShortOfMemoryError) and work.retried and _is_first_try():
            raise
        return pickle.dumps((None, error)), True


def _is_first_try() -> bool:
    from pyspark import TaskContext as SparkTaskContext

    running = SparkTaskContext.get()
    return running is not None and running.attemptNumber() == 0


def _returned(merged: bool, place: int, outcome: bytes) -> pa.RecordBatch:
    import pyarrow as pa

    columns = [pa.array([merged]), pa.array([place], pa.int32()), pa.array([outcome], pa.binary())]
    return pa.RecordBatch.from_arrays(columns, ["merged", "place", "outcome"])


def _parcels(parcels: Sequence[_Parcel]) -> pa.RecordBatch:
    import pyarrow as pa

    names = ["target", "bucket", "place", "number", "parcel"]
    columns = list(zip(*parcels, strict=True)) if parcels else [()] * len(names)
    numbers = [pa.array(column, pa.int32()) for column in columns[:4]]
    # From buffers: an array of bytes objects would copy everything once more.
    ends = [0, *itertools.accumulate(sum(map(len, pieces)) for pieces in columns[4])]
    content = pa.py_buffer(b"".join(itertools.chain.from_iterable(columns[4])))
    contents = pa.Array.from_buffers(pa.binary(), len(parcels), [None, pa.array(ends, pa.int32()).buffers()[1], content])
    return pa.RecordBatch.from_arrays([*numbers, contents], names)


# --------------------------------------------------------------------------------------------------------------- on the driver


def _result(outcome: bytes) -> Any:
    result, error = pickle.loads(outcome)
    if error is not None:
        raise error
    return result


def explained(error: Exception) -> Exception:
    """The error that a failed job ends with: one of ours if the cause is known, else the error itself."""
    text = str(error)
    if "No module named" in text or "ModuleNotFoundError" in text:
        missing = text.partition("No module named ")[2].split("\n")[0].strip("'\" ")
        return EngineError(
            f"Spark's workers have no Python package {missing}: they need rollup_assets and its dependencies. Pack an environment for "
            'them and name it in ROLLUP_SPARK_CONF, or use an image that has it (docs/spark.md, "Workers")'
        )
    if "PYTHON_VERSION_MISMATCH" in text:
        return EngineError(
            "Spark's workers and the driver run different versions of Python; set spark.pyspark.python in ROLLUP_SPARK_CONF to one "
            "of the driver's "
            'version (docs/spark.md, "Workers")'
        )
    for kind in (EngineError, StorageError, ShortOfMemoryError):
        name = f"{kind.__module__}.{kind.__name__}: "
        if name in text:
            return kind(text.partition(name)[2].split("\n")[0])
    return error
