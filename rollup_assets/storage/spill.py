"""Spill files: blocks of bytes written one after the other and read back by bucket, in folders on a local disk.

What the blocks hold stays out (``storage.blocks``).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import shutil
import threading
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from rollup_assets.errors import StorageError
from rollup_assets.failpoints import failpoint

Buffer = Any  # anything with the buffer protocol: memoryview, bytes, a contiguous array

# The operating system takes at most IOV_MAX buffers a call, 1024 on Linux.
_BUFFERS_PER_WRITE = 1000
_PREFIX, _LOCK = "spill-", "lock"
_OURS = re.compile(f"{_PREFIX}[0-9a-f]{{32}}")
UNLOCKED = re.compile(f"\\.{_PREFIX}[0-9a-f]{{32}}|[0-9]+-[0-9a-f]{{32}}")
"""Names of spill folders without a lock: their processes do not hold it yet, were killed before they did, or ran an earlier version,
which named folders by process id."""
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL})


@contextlib.contextmanager
def spill_folder(scratch: Path) -> Iterator[Path]:
    """A new folder, deleted in the end. Its process holds a lock in it, which shows others that it is in use.

    The process id would not do: in another container, or after a restart, it is another process's.

    Raises:
        StorageError: the file system has no locks.
    """
    folder = scratch / f"{_PREFIX}{uuid.uuid4().hex}"
    # Until the lock is held it has another name; else it would be taken for an abandoned folder.
    unlocked = folder.with_name(f".{folder.name}")
    try:
        unlocked.mkdir(parents=True)
        with (unlocked / _LOCK).open("xb") as lock:
            _lock(lock, scratch)
            unlocked.rename(folder)
            yield folder
    finally:
        for made in (unlocked, folder):
            shutil.rmtree(made, ignore_errors=True)


def _lock(file: IO[bytes], scratch: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        raise StorageError(f"no file can be locked in {scratch} ({error.strerror}): set ROLLUP_HOME to a folder on a local disk") from error


def abandoned_folders(scratch: Path) -> list[Path]:
    """The spill folders whose processes have ended without deleting them."""
    if not scratch.is_dir():
        return []
    return sorted(folder for folder in scratch.iterdir() if _OURS.fullmatch(folder.name) and not _in_use(folder))


def _in_use(folder: Path) -> bool:
    try:
        with (folder / _LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:  # somebody is deleting it, or was
        return False
    except OSError:  # held, another user's, or unknown
        return True
    return False


class SpillFile:
    """The blocks that one task emits: appended to a file, found again by bucket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._end = 0
        self._lock = threading.Lock()
        self._users = 0
        self._closed = False
        self.index: dict[int, list[tuple[int, int, bytes]]] = {}
        """bucket -> (offset, bytes, header) of its blocks"""

    def emit(self, bucket: int, header: bytes, buffers: Sequence[Buffer]) -> None:
        """Append one block."""
        failpoint("spill.write")
        views = [memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes]
        size = sum(len(view) for view in views)
        self.index.setdefault(bucket, []).append((self._end, size, header))
        self._end += size
        for first in range(0, len(views), _BUFFERS_PER_WRITE):
            self._write(views[first : first + _BUFFERS_PER_WRITE])

    def _write(self, views: list[memoryview]) -> None:
        left = sum(len(view) for view in views)
        while left:
            with self._in_use() as file:
                written = os.writev(file, views)
            left -= written
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if views and written:
                views[0] = views[0][written:]

    def read(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` from ``offset`` on."""
        done = 0
        while done < len(into):
            with self._in_use() as file:
                count = os.preadv(file, [into[done:]], offset + done)
            if count == 0:
                raise OSError(f"{self.path} ended early: a spilled block is missing")
            done += count

    def close(self) -> None:
        """Delete the file, and close it once no thread is reading or writing it.

        A second Ctrl-C does not wait for tasks to stop: a task that went on with the descriptor of a closed file could write to another
        file that has been given the same descriptor meanwhile.
        """
        with self._lock:
            self._closed = True
            self._close_if_unused()
        self.path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _in_use(self) -> Iterator[int]:
        """The file's descriptor, which is not closed, and so not reused, until the block ends."""
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "the step has ended", str(self.path))
            self._users += 1
        try:
            yield self._file
        finally:
            with self._lock:
                self._users -= 1
                self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._closed and not self._users:
            os.close(self._file)


class SpilledBlocks:
    """The blocks of one bucket over the spill files of all map tasks. Each thread that iterates needs an instance of its own."""

    def __init__(self, files: Sequence[SpillFile], bucket: int) -> None:
        self._files = files
        self._bucket = bucket
        self._buffer = bytearray()

    def __iter__(self) -> Iterator[tuple[int, bytes, memoryview]]:
        for task, file in enumerate(self._files):
            for offset, size, header in file.index.get(self._bucket, ()):
                if len(self._buffer) < size:
                    self._buffer = bytearray(size + size // 4)
                payload = memoryview(self._buffer)[:size]
                file.read(offset, payload)
                yield task, header, payload

    def headers(self) -> Iterator[tuple[int, bytes]]:
        """Task and header of each block, in order, without reading any payload."""
        for task, file in enumerate(self._files):
            for _, _, header in file.index.get(self._bucket, ()):
                yield task, header
