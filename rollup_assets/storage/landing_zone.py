"""The landing zone: which raw files belong to a batch, and the version of that set.

Read-only. What is inside the files stays out (``storage.raw_files``).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from rollup_assets.batches import Batch
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import InputFile


@dataclass(frozen=True, slots=True)
class LandingZone:
    """Parquet files in one folder per batch of event time."""

    root: Place
    layout: str

    def folder(self, batch: Batch) -> Place:
        """The folder of a batch."""
        return self.root / batch.start_time.strftime(self.layout)

    def files(self, batch: Batch) -> list[InputFile]:
        """Every file in or below the batch's folder whose name does not begin with ``_`` or ``.``, in path order."""
        folder = self.folder(batch)
        return [
            InputFile(path=str(info.path)[len(self.root.path) :].lstrip("/"), size=info.size, version=_version(info.mtime_ns))
            for info in folder.files()
            if not any(part.startswith(("_", ".")) for part in str(info.path)[len(folder.path) :].strip("/").split("/"))
        ]

    def place(self, file: InputFile) -> Place:
        """Where an input file lies."""
        return self.root / file.path


def _version(mtime_ns: int | None) -> str:
    return f"mtime:{mtime_ns}"


def version_of(files: list[InputFile]) -> str:
    """One digest of a set of raw files: their paths, sizes and versions. The same set gives the same digest."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.version}\n".encode())
    return digest.hexdigest()
