"""Threads start all or none, and only where there is memory for them."""

from __future__ import annotations

import resource
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rollup_assets.errors import ShortOfMemoryError
from rollup_assets.pipeline import for_each
from rollup_assets.storage.filesystems import Place
from rollup_assets.threads import EACH, thread_pool
from rollup_assets_tests.iceberg.staging import pipeline_in


@pytest.fixture
def address_space() -> Iterator[None]:
    """What the process may have is put back at the end."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def leave(count: int) -> None:
    """So many more bytes of address space, and no more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + count, resource.getrlimit(resource.RLIMIT_AS)[1]))


@pytest.mark.parametrize("count", [1, 5])
def test_all_have_started_before_one_works(count: int) -> None:
    with thread_pool(count, "tested") as pool:
        running = list(pool.map(lambda _: sum(thread.name.startswith("tested_") for thread in threading.enumerate()), range(20)))
    assert running == [count] * 20


@pytest.mark.parametrize("count", [0, 1, 3, 20])
def test_a_few_batches_on_a_store_elsewhere_start_as_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    pipeline = pipeline_in(tmp_path)
    started: list[int] = []

    def counted(count: int, name: str) -> ThreadPoolExecutor:
        started.append(count)
        return thread_pool(count, name)

    monkeypatch.setattr("rollup_assets.pipeline.thread_pool", counted)
    monkeypatch.setattr(Place, "is_local", False)
    assert for_each(pipeline, str, range(count)) == [str(number) for number in range(count)]
    assert started == [max(1, min(16, count))]


@pytest.mark.usefixtures("address_space")
def test_without_memory_for_them_none_starts() -> None:
    leave(3 * EACH)
    before = threading.active_count()
    with pytest.raises(
        ShortOfMemoryError, match=r"no memory for 4 threads \(tested\), 16 MiB of address space each.*`ulimit -v`.*ROLLUP_THREADS"
    ):
        thread_pool(4, "tested")
    assert threading.active_count() == before


def test_where_the_system_refuses_one_the_others_end(monkeypatch: pytest.MonkeyPatch) -> None:
    start, begun = threading.Thread.start, []

    def third_fails(thread: threading.Thread) -> None:
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", third_fails)
    with pytest.raises(ShortOfMemoryError, match="no memory for 3 threads"):
        thread_pool(3, "tested")
    for thread in begun:
        thread.join(60)
    assert not any(thread.is_alive() for thread in begun)
