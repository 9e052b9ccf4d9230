"""Places: a file or folder on any filesystem that pyarrow knows, and the few operations the stage needs on them.

Paths and URIs in, bytes and streams out; a write becomes visible whole or not at all. What lies where (landing zone, manifests,
data files) stays out.
"""

from __future__ import annotations

import posixpath
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow import NativeFile
    from pyarrow.fs import FileInfo, FileSystem


@dataclass(frozen=True, slots=True)
class Place:
    """A file or folder: the filesystem and the path on it."""

    filesystem: FileSystem
    path: str

    @classmethod
    def parse(cls, location: str) -> Place:
        """The place of an absolute path or a URI (``s3://…``)."""
        from pyarrow.fs import FileSystem, LocalFileSystem

        if "://" in location:
            filesystem, path = FileSystem.from_uri(location)
            return cls(filesystem, path)
        return cls(LocalFileSystem(), location)

    def __truediv__(self, name: str) -> Place:
        return Place(self.filesystem, posixpath.join(self.path, name))

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(self.path)

    @property
    def uri(self) -> str:
        """What other programs call this place: a plain path for local files, else a URI."""
        return self.path if self.is_local else f"{self.filesystem.type_name}://{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether the operating system can open the path."""
        return bool(self.filesystem.type_name == "local")

    def info(self) -> FileInfo:
        """Type, size and modification time; never raises for a missing place."""
        return self.filesystem.get_file_info(self.path)

    def exists(self) -> bool:
        """Whether there is a file here."""
        return bool(self.info().is_file)

    def read_bytes(self) -> bytes | None:
        """The file's content; None if there is no file."""
        try:
            with self.filesystem.open_input_stream(self.path) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def write_bytes(self, content: bytes) -> None:
        """Write or replace the file atomically: a rename on local disks, one PUT on object stores."""
        self.filesystem.create_dir(posixpath.dirname(self.path), recursive=True)
        target = (
            Place(self.filesystem, posixpath.join(posixpath.dirname(self.path), f".{self.name}.{uuid.uuid4().hex}"))
            if self.is_local
            else self
        )
        try:
            with target.filesystem.open_output_stream(target.path) as stream:
                stream.write(content)
            if target is not self:
                self.filesystem.move(target.path, self.path)
        except BaseException:
            if target is not self:
                target.delete_file()
            raise

    def open_input(self) -> NativeFile:
        """Random access to the file."""
        return self.filesystem.open_input_file(self.path)

    def open_output(self) -> NativeFile:
        """A stream to a new file; its folder is made."""
        self.filesystem.create_dir(posixpath.dirname(self.path), recursive=True)
        return self.filesystem.open_output_stream(self.path)

    def files(self, *, recursive: bool = True) -> Iterator[FileInfo]:
        """The files in or below this folder, in path order; none if it does not exist."""
        from pyarrow.fs import FileSelector

        found = self.filesystem.get_file_info(FileSelector(self.path, recursive=recursive, allow_not_found=True))
        return iter(sorted((info for info in found if info.is_file), key=lambda info: str(info.path)))

    def folders(self) -> list[str]:
        """Names of the folders directly in this one, sorted; none if it does not exist."""
        from pyarrow.fs import FileSelector, FileType

        found = self.filesystem.get_file_info(FileSelector(self.path, allow_not_found=True))
        return sorted(info.base_name for info in found if info.type == FileType.Directory)

    def delete_folder(self) -> None:
        """Delete the folder and everything in it; nothing happens if it is not there."""
        from pyarrow.fs import FileType

        if self.info().type == FileType.Directory:
            self.filesystem.delete_dir(self.path)

    def delete_file(self) -> None:
        """Delete the file; nothing happens if it is not there."""
        if self.exists():
            self.filesystem.delete_file(self.path)
