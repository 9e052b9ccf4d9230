"""Pools of threads: made only if there is memory for all threads, and none works before all have started.

A thread that gets no memory for its first frame never says that it has started, and the thread that started it waits for that for ever
(python/cpython#140746; seen with 4 MiB of address space left, in one of three processes).
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from concurrent.futures import ThreadPoolExecutor

from rollup_assets.errors import ShortOfMemoryError

EACH = 16 << 20
"""Bytes of address space per thread: a stack of 8 MiB, Linux's default, and room to begin."""


def thread_pool(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of exactly ``count`` threads, which have its name.

    Raises:
        ShortOfMemoryError: there is no room for that many, or the system refuses one.
    """
    try:
        mmap.mmap(-1, count * EACH, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()
    except OSError as error:
        raise ShortOfMemoryError(_short(count, name)) from error
    started = threading.Barrier(count)
    pool = ThreadPoolExecutor(count, thread_name_prefix=name, initializer=_wait, initargs=(started,))
    try:
        for _ in range(count):
            # A waiting thread is not idle to the pool, so each of these tasks starts another thread.
            pool.submit(_begin)
    except BaseException as error:
        started.abort()
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, RuntimeError | MemoryError):
            raise ShortOfMemoryError(_short(count, name)) from error
        raise
    return pool


def _wait(started: threading.Barrier) -> None:
    with contextlib.suppress(threading.BrokenBarrierError):
        started.wait()


def _begin() -> None:
    """The empty task that is submitted to start a thread."""


def _short(count: int, name: str) -> str:
    return (
        f"there is no memory for {count} threads ({name}), {EACH >> 20} MiB of address space each; "
        "raise the limit on this process' address space or threads (`ulimit -v`, `ulimit -u`), or set ROLLUP_THREADS lower, "
        "and run the command again"
    )
