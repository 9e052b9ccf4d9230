"""PyIceberg's access to files: on S3 it goes through ours, so that it follows the same settings, and metadata costs one request per file.

PyIceberg's own file IO has no property for a CA file, and none for retries; and through Arrow a small file costs two requests to read
(its size, its content), and four to write (whether it is there, and an upload of one part). Named to PyIceberg by the property
``py-io-impl`` (``S3Options.iceberg_properties``). What is read and written stays out.
"""

from __future__ import annotations

import io
import threading
from typing import TYPE_CHECKING, Any

from cachetools import LRUCache
from pyiceberg.io import InputFile, OutputFile
from pyiceberg.io.pyarrow import PyArrowFileIO

from rollup_assets.errors import ConcurrentWriteError
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.s3 import S3Options

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from pyiceberg.table import Table

_S3_SCHEMES = frozenset({"s3", "s3a", "s3n"})
# A REST catalog may lend credentials for a table; only PyIceberg's own filesystem can use them.
_LENT = ("s3.access-key-id", "s3.session-token", "s3.remote-signing-enabled")
_METADATA = (".avro", ".metadata.json")
_KEPT_BYTES = 64 << 20
_LARGEST_KEPT = 4 << 20


class SettingsFileIO(PyArrowFileIO):
    """PyArrow's file IO; on S3 with the filesystem of our settings and one request per metadata file."""

    def __init__(self, properties: dict[str, Any] | None = None) -> None:
        super().__init__(properties=properties or {})
        self._use_settings()

    def _use_settings(self) -> None:
        others = self.fs_by_scheme
        options = S3Options.from_iceberg_properties(self.properties)
        lent = any(self.properties.get(name) for name in _LENT)
        self._options = None if lent else options

        def filesystem(scheme: str, netloc: str | None = None) -> FileSystem:
            return options.filesystem() if scheme in _S3_SCHEMES and not lent else others(scheme, netloc)

        self.fs_by_scheme = filesystem

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._use_settings()

    def new_input(self, location: str) -> Any:
        """A file to read."""
        return super().new_input(location) if (found := self._metadata_file(location)) is None else found

    def new_output(self, location: str) -> Any:
        """A file to write."""
        return super().new_output(location) if (found := self._metadata_file(location)) is None else found

    def _metadata_file(self, location: str) -> MetadataObject | None:
        scheme, _, path = location.partition("://")
        if self._options is None or scheme not in _S3_SCHEMES or not location.endswith(_METADATA):
            return None
        return MetadataObject(location, Place.parse(f"s3://{path}", self._options))


class MetadataObject(InputFile, OutputFile):
    """A metadata file on S3 of some kilobytes, read and written whole."""

    def __init__(self, location: str, place: Place) -> None:
        super().__init__(location)
        self._place = place
        self._size: int | None = None

    def __len__(self) -> int:
        size = self._place.size() if self._size is None else self._size
        if size is None:
            raise FileNotFoundError(f"{self.location} does not exist")
        return size

    def exists(self) -> bool:
        """Whether it is there."""
        return self._place.exists()

    def open(self, seekable: bool = True) -> Any:  # noqa: ARG002
        """Its content.

        Raises:
            FileNotFoundError: it does not exist.
            StorageError: the store cannot be reached, or denies access.
        """
        content = _kept.get(self._place)
        if content is None:
            content = self._place.read_bytes()
            if content is None:
                raise FileNotFoundError(f"{self.location} does not exist")
            _kept.put(self._place, content)
        return io.BytesIO(content)

    def to_input_file(self) -> MetadataObject:
        """Itself."""
        return self

    def create(self, overwrite: bool = False) -> Any:
        """A stream, all of which is written when it is closed.

        Raises:
            FileExistsError: on closing: another writer has written it, and ``overwrite`` is False.
        """
        return _MetadataStream(self, overwrite)

    def write(self, content: bytes, *, overwrite: bool) -> None:
        """Write it whole, in one request."""
        if overwrite:
            self._place.write_bytes(content)
        else:
            try:
                self._place.replace_bytes(content, None)
            except ConcurrentWriteError as error:
                raise FileExistsError(f"{self.location} already exists") from error
        self._size = len(content)


class _MetadataStream(io.BytesIO):
    """Bytes for a metadata file; a ``with`` block that ends with an error writes nothing."""

    def __init__(self, target: MetadataObject, overwrite: bool) -> None:
        super().__init__()
        self._target = target
        self._overwrite = overwrite

    def close(self) -> None:
        if not self.closed:
            content = self.getvalue()
            super().close()
            self._target.write(content, overwrite=self._overwrite)

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            super().close()
        self.close()

    def __del__(self) -> None:
        # The base class would call our close(), which writes: a stream that was never closed is not written.
        super().close()


class _Kept:
    """Manifests and manifest lists that this process has read: they are never rewritten, and every commit reads those of its day again.

    Only what was read is kept: what a commit wrote is read back from the store to verify it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._contents: LRUCache[Place, bytes] = LRUCache(_KEPT_BYTES, getsizeof=len)

    def get(self, place: Place) -> bytes | None:
        with self._lock:
            return self._contents.get(place)

    def put(self, place: Place, content: bytes) -> None:
        if place.location.endswith(".avro") and len(content) <= _LARGEST_KEPT:
            with self._lock:
                self._contents[place] = content


_kept = _Kept()


def arrow_filesystem(table: Table, location: str) -> tuple[FileSystem, str]:
    """The filesystem through which the table's files are read, and a file's path on it."""
    found = table.io if isinstance(table.io, PyArrowFileIO) else SettingsFileIO(dict(table.io.properties))
    scheme, netloc, path = found.parse_location(location, found.properties)
    return found.fs_by_scheme(scheme, netloc), path
