"""Probes: small files with unique names, which show whether a place can be used, and are deleted again."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path

from rollup_assets.errors import ConcurrentWriteError, StorageError
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.leftovers import PROBE


def probe(folder: Place) -> bool:
    """Whether the store keeps a writer from overwriting a version that it has not seen.

    Raises:
        StorageError: the store cannot be reached, or denies an access.
        OSError: the disk denies an access.
    """
    with probe_file(folder) as file:
        with file.open_input() as stream:
            if stream.read() != file.name.encode():
                raise StorageError(f"{file.uri} was written, but reads back differently; look at the store's log")
        _, version = file.read_versioned()
        file.replace_bytes(b"again", version)
        try:
            file.replace_bytes(b"by somebody who saw no file", None)
        except ConcurrentWriteError:
            return True
        return False


@contextlib.contextmanager
def probe_file(folder: Place) -> Iterator[Place]:
    """A file with its own name as content; at the end of the block it is deleted, with any local folders that were made for it."""
    file = folder / f"{PROBE}{uuid.uuid4().hex}"
    with _made_folders_removed(folder):
        try:
            file.write_bytes(file.name.encode())
            yield file
        except BaseException:
            with contextlib.suppress(Exception):
                file.delete_file()
            raise
        file.delete_file()
        if file.exists():
            raise StorageError(f"{file.uri} was deleted, but is still there; look at the store's log")


@contextlib.contextmanager
def _made_folders_removed(folder: Place) -> Iterator[None]:
    path = Path(folder.location)
    missing = [one for one in (path, *path.parents) if not one.exists()] if folder.is_local else []
    try:
        yield
    finally:
        for made in missing:
            # A folder that is not empty is now used by another process.
            with contextlib.suppress(OSError):
                made.rmdir()


def some_file(folder: Place) -> Place | None:
    """A raw file of one of the latest batches; found folder by folder, since there may be millions of files."""
    for name in reversed([name for name in folder.folders() if not name.startswith(("_", "."))]):
        if (found := some_file(folder / name)) is not None:
            return found
    return next((folder / file.name for file in folder.files(recursive=False) if not file.name.startswith(("_", "."))), None)
