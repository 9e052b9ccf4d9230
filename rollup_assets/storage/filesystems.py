"""Places: a file or folder on a local disk or on S3, and the few operations needed on them.

Paths and URIs in, bytes and streams out; a write becomes visible whole or not at all. What lies where (landing zone, manifests,
data files) stays out.
"""

from __future__ import annotations

import contextlib
import hashlib
import posixpath
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from rollup_assets.errors import ConcurrentWriteError, FileNameError, StorageError
from rollup_assets.storage.s3 import SCHEME, S3Options, once_per_process, threads

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileSystem

    from rollup_assets.storage.objects import FoundUpload, ObjectPlace

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORTH_THREADS = 3
_DEFAULT = S3Options()


@dataclass(frozen=True, slots=True)
class FoundFile:
    """A file as a listing shows it."""

    path: str
    """As in :attr:`Place.path`."""
    size: int
    """Bytes."""
    version: str
    """Changes whenever the content may have: ``mtime:<ns>`` on disks, ``etag:<ETag>`` on object stores."""
    modified: int
    """When it was last written, epoch milliseconds by the clock of the disk or store."""

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder: where it lies, and how to get there. Holds no connection, so it can be pickled."""

    location: str
    """Absolute path, or ``s3://bucket/key``: the settings refuse every other scheme."""
    s3: S3Options = _DEFAULT

    @classmethod
    def parse(cls, location: str, s3: S3Options | None = None) -> Place:
        """The place of an absolute path or of an ``s3://`` URI; ``s3``: how to reach the store, :attr:`Settings.s3`."""
        return cls(location, s3 or _DEFAULT)

    def of_path(self, path: str) -> Place:
        """The place of a path as listings of this one show it (:attr:`FoundFile.path`)."""
        return self.at(path if self.is_local else f"{SCHEME}{path}")

    def at(self, location: str) -> Place:
        """Another location, reached in the same way."""
        return Place(location, self.s3)

    def __truediv__(self, name: str) -> Place:
        return Place(posixpath.join(self.location, name), self.s3)

    def beside(self, name: str) -> Place:
        """Another name in the same folder."""
        return Place(posixpath.join(posixpath.dirname(self.location), name), self.s3)

    def contains(self, other: Place) -> bool:
        """Whether the other place is below this folder. Names alone are compared, since the settings spell a folder in one way only."""
        return other.location.startswith(posixpath.join(self.location, ""))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.location)

    @property
    def uri(self) -> str:
        """This place as other programs write it."""
        return self.location

    @property
    def is_local(self) -> bool:
        """Whether the operating system can open the path."""
        return not self.location.startswith(SCHEME)

    @property
    def filesystem(self) -> FileSystem:
        """The filesystem of pyarrow for :attr:`path`, the same one for all places of a disk or store in this process."""
        from pyarrow.fs import LocalFileSystem

        on_s3 = self.location.startswith(SCHEME)
        return self.s3.filesystem() if on_s3 else once_per_process(("filesystem",), LocalFileSystem)

    @property
    def path(self) -> str:
        """The path on :attr:`filesystem`; on S3, bucket and key."""
        return self.location.removeprefix(SCHEME)

    def _object(self) -> ObjectPlace | None:
        """This place as objects of a store; None if it is on a disk."""
        if not self.location.startswith(SCHEME):
            return None
        from rollup_assets.storage.objects import ObjectPlace

        bucket, _, key = self.path.partition("/")
        return ObjectPlace(bucket, key, self.s3)

    # ------------------------------------------------------------------------------------------------------------- looking

    def size(self) -> int | None:
        """Bytes of the file; None if there is no file here."""
        if found := self._object():
            return found.size()
        info = self.filesystem.get_file_info(self.path)
        return int(info.size) if info.is_file else None

    def version(self) -> str | None:
        """The version that a listing would show for a file on a disk; None if there is no file."""
        info = self.filesystem.get_file_info(self.path)
        return f"mtime:{info.mtime_ns}" if info.is_file else None

    def exists(self) -> bool:
        """Whether there is a file here."""
        return self.size() is not None

    def files(self, *, recursive: bool = True, prefix: str = "") -> Iterator[FoundFile]:
        """The files in or below this folder, in path order; none if it does not exist.

        ``prefix``: only files whose path, from this folder on, begins with it.

        Raises:
            FileNameError: a file's name is not UTF-8 (on disks).
        """
        if place := self._object():
            objects = place.objects(recursive=recursive, prefix=prefix)
            found = [FoundFile(f"{place.bucket}/{one.key}", one.size, one.version, one.modified) for one in objects]
        else:
            from pyarrow.fs import FileSelector

            infos = self.filesystem.get_file_info(FileSelector(self.path, recursive=recursive, allow_not_found=True))
            try:
                found = [
                    FoundFile(str(info.path), int(info.size), f"mtime:{info.mtime_ns}", info.mtime_ns // 1_000_000)
                    for info in infos
                    if info.is_file
                ]
            except UnicodeDecodeError as error:
                shown = bytes(error.object).decode(errors="backslashreplace")
                raise FileNameError(f"{shown}: its name is not UTF-8; rename or remove it") from None
            if prefix:
                found = [file for file in found if file.path.startswith(posixpath.join(self.path, prefix))]
        return iter(sorted(found, key=lambda file: file.path))

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, sorted; none if it does not exist. Names that are not UTF-8 are left out."""
        if place := self._object():
            return place.folders()
        from pyarrow.fs import FileSelector, FileType

        found = self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True))
        names = []
        for info in found:
            with contextlib.suppress(UnicodeDecodeError):
                if info.type == FileType.Directory:
                    names.append(info.base_name)
        return sorted(names)

    # ------------------------------------------------------------------------------------------------------------- reading

    def read_bytes(self) -> bytes | None:
        """The file's content; None if there is no file."""
        return self.read_versioned()[0]

    def read_versioned(self) -> tuple[bytes | None, str | None]:
        """The file's content and the version that :meth:`replace_bytes` needs; None and None if there is no file."""
        if place := self._object():
            return place.read() or (None, None)
        try:
            with self.filesystem.open_input_stream(self.path) as stream:
                content = bytes(stream.read())
        except FileNotFoundError:
            return None, None
        return content, hashlib.blake2b(content, digest_size=16).hexdigest()

    def open_input(self) -> NativeFile:
        """Random access to the file.

        Raises:
            FileNotFoundError: there is no file here.
            StorageError: the store cannot be reached, or denies access.
        """
        from rollup_assets.storage.storage_errors import storage_error

        try:
            return self.filesystem.open_input_file(self.path)
        except OSError as error:
            if known := (not self.is_local and not isinstance(error, FileNotFoundError)) and storage_error(error, self.uri, self.s3):
                raise known from error
            raise

    # ------------------------------------------------------------------------------------------------------------- writing

    def write_bytes(self, content: bytes) -> None:
        """Write or replace the file atomically: a rename on local disks, one PUT on object stores."""
        if place := self._object():
            place.write(content)
            return
        with self.open_output() as stream:
            stream.write(content)

    def replace_bytes(self, content: bytes, version: str | None) -> None:
        """Write the file if it is still the version that :meth:`read_versioned` has read (None: if there still is none).

        On S3 that is one PUT; on a disk the file is read once more just before it is replaced.

        Raises:
            ConcurrentWriteError: somebody else has written it since.
        """
        if place := self._object():
            place.replace(content, version)
        elif self.read_versioned()[1] != version:
            raise ConcurrentWriteError(f"{self.uri} was written by another process at the same time; run the same command again")
        else:
            self.write_bytes(content)

    def open_output(self) -> OutputFile:
        """A stream to a new file; its folder is created. The file appears whole, when the stream is committed, or not at all."""
        if place := self._object():
            return OutputFile(place.open_output())
        return OutputFile(_FileOutput(self))

    def delete_folder(self) -> None:
        """Delete the folder and everything in it; nothing happens if it is not there."""
        from pyarrow.fs import FileType

        if place := self._object():
            place.delete_below()
        elif self.filesystem.get_file_info(self.path).type == FileType.Directory:
            self.filesystem.delete_dir(self.path)

    def delete_file(self) -> None:
        """Delete the file; nothing happens if it is not there."""
        if place := self._object():
            place.delete()
        elif self.exists():
            self.filesystem.delete_file(self.path)


def path_of(location: str) -> str:
    """The :attr:`FoundFile.path` of a location, whichever way an engine writes that: a path on disk, or bucket and key."""
    if location.startswith("file:"):
        return "/" + location.removeprefix("file:").lstrip("/")
    return location.partition("://")[2] or location


def is_unfinished(name: str) -> bool:
    """Whether a name is that of a file on a local disk that is not complete yet."""
    return re.fullmatch(r"\..+\.[0-9a-f]{32}", name) is not None


def unfinished_uploads(folder: Place) -> list[FoundUpload]:
    """Uploads below a folder that were begun but neither completed nor dropped, with the size that has arrived; only S3 has any."""
    place = folder._object()
    return [] if place is None else place.unfinished_uploads()


def drop_upload(folder: Place, upload: FoundUpload) -> None:
    """Drop an upload that :func:`unfinished_uploads` has found."""
    if place := folder._object():
        place.drop_upload(upload)


def delete_files(places: Sequence[Place]) -> dict[Place, StorageError]:
    """Delete files, on S3 a thousand per request; a missing one is no error. Returns those that could not be deleted, and why."""
    stay: dict[Place, StorageError] = {}
    objects: dict[tuple[str, S3Options], dict[str, Place]] = {}
    for place in places:
        if found := place._object():
            objects.setdefault((found.bucket, place.s3), {})[found.key] = place
            continue
        try:
            place.delete_file()
        except FileNotFoundError:
            continue
        except OSError as error:
            reason = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
            stay[place] = StorageError(f"{place.uri} cannot be deleted ({reason}); let this user write its folder, and try again")
    for of_bucket in objects.values():
        some = next(iter(of_bucket.values()))._object()
        assert some is not None
        stay |= {of_bucket[key]: error for key, error in some.delete_keys(list(of_bucket)).items()}
    return stay


def in_parallel(function: Callable[[Item], Result], items: Sequence[Item], *, local: bool = False) -> Iterator[Result]:
    """The function's results in the order of the items; several calls run at the same time, unless ``local`` or for a few items.

    The function must not use these threads itself; if it may, use ``pipeline.for_each``, which has threads of its own.

    ``local``: everything is on a local disk, where a call takes microseconds; each then runs when its result is asked for.
    """
    if local or len(items) < _WORTH_THREADS:
        return map(function, items)
    return threads().map(function, items)


class _Sink(Protocol):
    def write(self, content: Any) -> None: ...

    def commit(self) -> None: ...

    def abort(self) -> None: ...


class OutputFile:
    """A stream to a new file. A ``with`` block commits it at its end, and drops it if it ends with an error.

    Closing or forgetting the stream without a commit drops it too, so that no incomplete file ever has the name.
    """

    def __init__(self, sink: _Sink) -> None:
        self._sink = sink
        self._written = 0
        self.closed = False

    def write(self, content: Any) -> int:
        """Append bytes."""
        self._sink.write(content)
        size = memoryview(content).nbytes
        self._written += size
        return size

    def tell(self) -> int:
        """Bytes written so far."""
        return self._written

    def flush(self) -> None:
        """Nothing is promised before the commit."""

    def commit(self) -> None:
        """Finish the file, which then appears under its name."""
        if self.closed:
            raise ValueError("the stream has been closed")
        self.closed = True
        try:
            self._sink.commit()
        except BaseException:
            self._sink.abort()
            raise

    def close(self) -> None:
        """Drop the file unless it is committed."""
        if not self.closed:
            self.closed = True
            self._sink.abort()

    def readable(self) -> bool:
        """Never."""
        return False

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Never."""
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.commit()
        else:
            self.close()

    def __del__(self) -> None:
        # While the interpreter shuts down, modules that this needs may be gone already.
        with contextlib.suppress(Exception):
            self.close()


class _FileOutput:
    """A file on a disk. It has a hidden name until it is whole."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._hidden = place.beside(f".{place.name}.{uuid.uuid4().hex}")
        filesystem = place.filesystem
        filesystem.create_dir(posixpath.dirname(place.path), recursive=True)
        self._stream = filesystem.open_output_stream(self._hidden.path)

    def write(self, content: Any) -> None:
        self._stream.write(content)

    def commit(self) -> None:
        self._stream.close()
        self._place.filesystem.move(self._hidden.path, self._place.path)

    def abort(self) -> None:
        self._stream.close()
        self._hidden.delete_file()
