"""PyIceberg's way to files: on S3 it is ours, so that one set of settings governs it too.

PyIceberg's own file IO has no property for a CA file, and none for retries. Named to PyIceberg by the property ``py-io-impl``
(``S3Options.iceberg_properties``). What is read and written stays out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyiceberg.io.pyarrow import PyArrowFileIO

from rollup_assets.storage.s3 import S3Options

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem
    from pyiceberg.table import Table

_S3_SCHEMES = frozenset({"s3", "s3a", "s3n"})
# A REST catalog may lend credentials for a table: they are good for nothing but PyIceberg's own filesystem.
_LENT = ("s3.access-key-id", "s3.session-token", "s3.remote-signing-enabled")


class SettingsFileIO(PyArrowFileIO):
    """PyArrow's file IO, with the filesystem of our settings on S3."""

    def __init__(self, properties: dict[str, Any] | None = None) -> None:
        super().__init__(properties=properties or {})
        self._use_settings()

    def _use_settings(self) -> None:
        others = self.fs_by_scheme
        options = S3Options.from_iceberg_properties(self.properties)
        lent = any(self.properties.get(name) for name in _LENT)

        def filesystem(scheme: str, netloc: str | None = None) -> FileSystem:
            return options.filesystem() if scheme in _S3_SCHEMES and not lent else others(scheme, netloc)

        self.fs_by_scheme = filesystem

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._use_settings()


def arrow_filesystem(table: Table, location: str) -> tuple[FileSystem, str]:
    """The filesystem through which the table's files are read, and a file's path on it."""
    found = table.io if isinstance(table.io, PyArrowFileIO) else SettingsFileIO(dict(table.io.properties))
    scheme, netloc, path = found.parse_location(location, found.properties)
    return found.fs_by_scheme(scheme, netloc), path
