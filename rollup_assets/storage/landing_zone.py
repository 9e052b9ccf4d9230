"""The landing zone: which raw files belong to a batch, and the version of that set.

Read-only. What is inside the files stays out (``storage.raw_files``).
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass

from rollup_assets.batches import Batch, BatchCalendar, to_datetime, to_milliseconds
from rollup_assets.errors import LandingZoneError
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import InputFile


@dataclass(frozen=True, slots=True)
class LandingZone:
    """Parquet files in one folder per batch of event time."""

    root: Place
    layout: str
    calendar: BatchCalendar

    def folder(self, batch: Batch) -> Place:
        """The folder of a batch."""
        return self.root / batch.start_time.strftime(self.layout)

    def files(self, batch: Batch) -> list[InputFile]:
        """Every file in or below the batch's folder whose name does not begin with ``_`` or ``.``, in path order.

        Raises:
            LandingZoneError: there are files in a folder that the layout gives to a time inside the batch, which nothing would read.
        """
        for inside in range(batch.start + self.calendar.folder_unit, batch.end, self.calendar.folder_unit):
            finer = self.root / to_datetime(inside).strftime(self.layout)
            if finer != self.folder(batch) and self._files(finer):
                raise LandingZoneError(
                    f"{finer.uri} lies inside the batch {batch}, whose files belong in {self.folder(batch).uri}: nothing would read it; "
                    "set ROLLUP_BATCH to the length of a folder, or move the files"
                )
        return self._files(self.folder(batch))

    def _files(self, folder: Place) -> list[InputFile]:
        found = [file for file in folder.files() if _is_visible(file.path[len(folder.path) :])]
        for file in found:
            # Object stores have keys such as a//b, which others take for the path a/b. Those with a . or .. are hidden.
            if "" in file.path[len(self.root.path) :].removeprefix("/").split("/"):
                raise LandingZoneError(f"{file.path}: a part of its name is empty; rename or remove it")
        return [InputFile(path=file.path[len(self.root.path) :].lstrip("/"), size=file.size, version=file.version) for file in found]

    def batches(self) -> list[Batch]:
        """Batches from the first partition on that have raw files, in order; found from the folders' names in one listing."""
        depth = self.layout.strip("/").count("/") + 1
        root = self.root.path.rstrip("/")
        split = (file.path[len(root) :].strip("/").split("/") for file in self.root.files())
        folders = {"/".join(parts[:depth]) for parts in split if _is_visible("/".join(parts[depth:]))}
        found = set()
        for folder in folders:
            try:
                moment = dt.datetime.strptime(folder, self.layout.strip("/")).replace(tzinfo=dt.UTC)
            except ValueError:
                continue
            batch = self.calendar.containing(to_milliseconds(moment))
            if batch.start >= self.calendar.start and self.folder(batch).path == f"{root}/{folder}":
                found.add(batch)
        return sorted(found)

    def place(self, file: InputFile) -> Place:
        """Where an input file lies."""
        return self.root / file.path


def _is_visible(inside: str) -> bool:
    """Whether no part of a path inside a batch's folder is hidden."""
    return not any(part.startswith(("_", ".")) for part in inside.strip("/").split("/"))


def version_of(files: list[InputFile]) -> str:
    """One digest of a set of raw files: their paths, sizes and versions. The same set gives the same digest."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.version}\n".encode())
    return digest.hexdigest()
