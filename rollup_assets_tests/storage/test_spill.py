"""Spilled blocks: what was emitted is read back, by bucket, in the order of tasks and within one of emission."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollup_assets.errors import StorageError
from rollup_assets.storage import spill
from rollup_assets.storage.spill import SpilledBlocks, SpillFile, abandoned_folders, spill_folder


@pytest.fixture
def file(tmp_path: Path) -> Iterator[SpillFile]:
    found = SpillFile(tmp_path / "blocks")
    yield found
    found.close()


def read(files: list[SpillFile], bucket: int) -> list[tuple[int, bytes, bytes]]:
    return [(task, header, bytes(payload)) for task, header, payload in SpilledBlocks(files, bucket)]


@settings(max_examples=50, deadline=None)
@given(
    emitted=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.binary(max_size=4), st.lists(st.binary(max_size=300), max_size=5)), max_size=8),
        max_size=4,
    )
)
def test_blocks_come_back_by_bucket_in_the_order_of_tasks_and_of_emission(
    emitted: list[list[tuple[int, bytes, list[bytes]]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Also empty ones, as often as they are asked for."""
    folder = tmp_path_factory.mktemp("spill")
    files = [SpillFile(folder / f"blocks-{task}") for task in range(len(emitted))]
    for file, blocks in zip(files, emitted, strict=True):
        for bucket, header, buffers in blocks:
            file.emit(bucket, header, buffers)
    for bucket in range(5):
        expected = [
            (task, header, b"".join(buffers)) for task, blocks in enumerate(emitted) for to, header, buffers in blocks if to == bucket
        ]
        assert read(files, bucket) == expected
        source = SpilledBlocks(files, bucket)
        for _ in range(2):
            assert [(task, header, bytes(payload)) for task, header, payload in source] == expected
            assert list(source.headers()) == [(task, header) for task, header, _ in expected]
    for file in files:
        file.close()


@pytest.mark.parametrize("count", [999, 1000, 1001, 2500])
def test_more_buffers_than_the_operating_system_takes_at_once(count: int, file: SpillFile) -> None:
    """With empty ones among them."""
    buffers = [b"" if number % 7 == 0 else str(number).encode() for number in range(count)]
    file.emit(1, b"header", buffers)
    file.emit(1, b"next", [b"end"])
    assert read([file], 1) == [(0, b"header", b"".join(buffers)), (0, b"next", b"end")]


def test_a_write_that_the_operating_system_cuts_short_goes_on_where_it_ended(file: SpillFile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within a buffer and at its end."""
    real = os.writev

    def short(descriptor: int, views: list[memoryview]) -> int:
        return real(descriptor, [views[0][:3]] if len(views[0]) != 6 else views[:1])

    monkeypatch.setattr(spill.os, "writev", short)
    file.emit(0, b"", [b"0123456789", b"abcdef", b"", b"xyz", b"."])
    monkeypatch.undo()
    assert read([file], 0) == [(0, b"", b"0123456789abcdefxyz.")]


def test_a_read_that_the_operating_system_cuts_short_goes_on_where_it_ended(file: SpillFile, monkeypatch: pytest.MonkeyPatch) -> None:
    file.emit(0, b"", [b"0123456789"])
    real = os.preadv
    monkeypatch.setattr(spill.os, "preadv", lambda descriptor, views, offset: real(descriptor, [views[0][:3]], offset))
    assert read([file], 0) == [(0, b"", b"0123456789")]


def test_anything_with_the_buffer_protocol_can_be_emitted(file: SpillFile) -> None:
    """Copied before the call returns: the caller's arrays may change afterwards."""
    array = np.arange(6, dtype=np.int64)
    wide = np.arange(6, dtype=np.float64).reshape(2, 3)
    arrow = pa.py_buffer(b"arrow")
    expected = array.tobytes() + wide.tobytes() + b"arrow" + array[2:4].tobytes() + b"end"
    file.emit(0, b"", [array, wide, arrow, array[2:4], np.empty(0, np.int32), np.empty((3, 0)), memoryview(b"end")])
    array[:] = 0
    assert read([file], 0) == [(0, b"", expected)]


def test_payloads_are_aligned_for_every_type(file: SpillFile) -> None:
    """Kernels are compiled for aligned arrays, whatever blocks lie before in the file."""
    for size in (1, 3, 8, 100_000):
        file.emit(0, b"", [np.full(size, 7, np.int8)])
    for _, _, payload in SpilledBlocks([file], 0):
        address = np.frombuffer(payload, np.uint8).ctypes.data
        assert address % 8 == 0


def test_a_file_that_ends_early_is_an_error_and_not_zeros(file: SpillFile) -> None:
    file.emit(0, b"", [b"0123456789"])
    os.truncate(file.path, 5)
    with pytest.raises(OSError, match="ended early"):
        read([file], 0)


def test_closing_deletes_the_file(tmp_path: Path) -> None:
    found = SpillFile(tmp_path / "blocks")
    found.emit(0, b"", [b"x"])
    found.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_a_thread_still_works_on_is_closed_when_it_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl-C waits for no task: the number of a file that was closed under it would be another one's by then."""
    found = SpillFile(tmp_path / "blocks")
    number = found._file
    writing, go_on = threading.Event(), threading.Event()
    write = os.writev

    def slow(file: int, views: Any) -> int:
        writing.set()
        assert go_on.wait(20)
        assert os.fstat(file).st_nlink == 0, "its own file, deleted meanwhile"
        return write(file, views)

    monkeypatch.setattr(os, "writev", slow)
    with ThreadPoolExecutor(1) as thread:
        emitted = thread.submit(found.emit, 0, b"", [b"x"])
        assert writing.wait(20)
        found.close()
        assert list(tmp_path.iterdir()) == []
        os.fstat(number)
        go_on.set()
        emitted.result()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(number)
    for go_on_with in (lambda: found.emit(0, b"", [b"y"]), lambda: read([found], 0)):
        with pytest.raises(OSError, match="the step has ended"):
            go_on_with()


def test_a_spill_file_never_takes_over_another_one(tmp_path: Path) -> None:
    (tmp_path / "blocks").write_bytes(b"precious")
    with pytest.raises(FileExistsError):
        SpillFile(tmp_path / "blocks")
    assert (tmp_path / "blocks").read_bytes() == b"precious"


def test_a_folder_is_seen_by_others_only_once_its_lock_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise whoever looks for abandoned folders at that moment would delete it."""
    locked = []

    def lock(file: Any, operation: int, flock: Callable[[Any, int], None] = fcntl.flock) -> None:
        if operation == fcntl.LOCK_EX:
            locked.append(abandoned_folders(tmp_path))
        flock(file, operation)

    monkeypatch.setattr(spill.fcntl, "flock", lock)
    with spill_folder(tmp_path) as folder:
        assert abandoned_folders(tmp_path) == []
        next(folder.iterdir()).unlink()
        assert abandoned_folders(tmp_path) == [folder], "half deleted"
    assert locked == [[]]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_only_begins_like_ours_is_somebody_else_s(tmp_path: Path) -> None:
    for name in ("spill-notes", f"spill-{'a' * 32}-kept", f"spill-{'A' * 32}"):
        (tmp_path / name).mkdir()
    (tmp_path / f"spill-{'a' * 32}").mkdir()
    assert abandoned_folders(tmp_path) == [tmp_path / f"spill-{'a' * 32}"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_said_with_the_setting(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill.fcntl, "flock", _raising(number))
    with pytest.raises(StorageError, match=rf"{tmp_path}.*{os.strerror(number)}.*ROLLUP_HOME .*local disk"), spill_folder(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_what_else_a_lock_fails_of_is_not_taken_for_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill.fcntl, "flock", _raising(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), spill_folder(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.EWOULDBLOCK, errno.EACCES, errno.ENOLCK, errno.EIO])
def test_a_folder_of_which_nobody_can_tell_is_in_use(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with spill_folder(tmp_path):
        monkeypatch.setattr(spill.fcntl, "flock", _raising(number))
        assert abandoned_folders(tmp_path) == []


def _raising(number: int) -> Callable[..., None]:
    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return flock
