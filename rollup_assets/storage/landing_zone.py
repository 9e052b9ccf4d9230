"""The landing zone: which raw files belong to a batch, and the version of that set.

Read-only. What is inside the files stays out (``storage.raw_files``).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from rollup_assets.batches import Batch, BatchCalendar, to_datetime, to_milliseconds
from rollup_assets.errors import FileNameError, LandingZoneError
from rollup_assets.storage.bounds import Bounds
from rollup_assets.storage.filesystems import Place, in_parallel
from rollup_assets.storage.manifests import InputFile
from rollup_assets.storage.storage_errors import reason_of

if TYPE_CHECKING:
    from rollup_assets.settings import Settings


@dataclass(frozen=True, slots=True)
class LandingZone:
    """Parquet files in one folder per batch: of event time, or, with a ``lateness``, of the time at which they arrived."""

    root: Place
    layout: str
    calendar: BatchCalendar
    lateness: int = 0
    """How many folders after its own a batch reads as well; 0: a folder holds only the points of its own batch."""
    future: int | None = None
    """How far a point may be ahead of the end of its folder, in ms; None: not at all."""

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The landing zone that the settings name."""
        root = Place.parse(settings.raw, settings.s3)
        return cls(root, settings.raw_layout, settings.calendar, settings.raw_lateness, settings.raw_future)

    @property
    def ahead(self) -> int:
        """How many folders before its own a batch reads as well, for points from senders whose clocks are ahead."""
        return -(-(self.future or 0) // self.calendar.length) if self.lateness else 0

    def folder(self, batch: Batch) -> Place:
        """The folder of a batch."""
        return self.root / batch.start_time.strftime(self.layout)

    def folders(self, batch: Batch) -> list[Batch]:
        """The batches whose folders a batch reads: its own, those after it, then those before it, none before the first batch."""
        later = (self.calendar.shifted(batch, count) for count in range(self.lateness + 1))
        return [*(folder for folder in later if folder is not None), *self.calendar.earlier(batch, self.ahead)]

    def readers(self, folder: Batch) -> list[Batch]:
        """The batches that read a batch's folder, in order; none before the first one."""
        found = (self.calendar.shifted(folder, count) for count in range(-self.lateness, self.ahead + 1))
        return [batch for batch in found if batch is not None]

    def bounds(self, batch: Batch, folder: Batch) -> Bounds:
        """Which rows of a folder are a batch's, and what becomes of the others."""
        if not self.lateness:
            return Bounds(batch.start, batch.end, in_future=None if self.future is None else batch.end + self.future)
        latest = folder.end + (self.future or 0)
        return Bounds(
            batch.start,
            min(batch.end, latest),
            is_own=batch == folder,
            by_arrival=True,
            before_start=self.calendar.start,
            too_late=folder.start - self.lateness * self.calendar.length,
            in_future=latest,
        )

    def files(self, batch: Batch) -> list[InputFile]:
        """Every file that the batch reads, in path order.

        These are the files in or below its :meth:`folders` in whose path from there no name begins with ``_`` or ``.``.

        Raises:
            LandingZoneError: files are in a folder that, by the layout, belongs to a time inside a batch, and nothing would read them; or
                a folder cannot be listed or is a file, or a name in it is not UTF-8 or empty.
        """
        found = (file for files in self.files_by_folder(batch).values() for file in files)
        return sorted(found, key=lambda file: file.path)

    def files_by_folder(self, batch: Batch) -> dict[Batch, list[InputFile]]:
        """The same, by the batch whose folder they are in, in the order of :meth:`folders`.

        Raises:
            LandingZoneError: as above.
        """
        folders = self.folders(batch)
        return dict(zip(folders, in_parallel(self.folder_files, folders, local=self.root.is_local), strict=True))

    def folder_files(self, batch: Batch) -> list[InputFile]:
        """The files in the batch's own folder, in path order.

        Raises:
            LandingZoneError: as above.
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
        try:
            found = [file for file in folder.files() if _is_visible(file.path[len(folder.path) :])]
        except FileNameError as error:
            raise LandingZoneError(str(error)) from None
        except OSError as error:
            raise self._not_listed(folder, error) from error
        for file in found:
            # Object stores can have keys such as a//b, which other programs read as the path a/b. Keys with a . or .. are hidden.
            if "" in file.path[len(self.root.path) :].removeprefix("/").split("/"):
                raise LandingZoneError(f"{file.path}: a part of its name is empty; rename or remove it")
        return [InputFile(path=file.path[len(self.root.path) :].lstrip("/"), size=file.size, version=file.version) for file in found]

    def is_bare(self) -> bool:
        """Whether there is neither a file nor a folder in it, as when a disk is not mounted or ``ROLLUP_RAW`` is mistyped.

        Raises:
            LandingZoneError: it cannot be listed.
        """
        try:
            return not self.root.folders() and next(self.root.files(recursive=False), None) is None
        except OSError as error:
            raise self._not_listed(self.root, error) from error

    def batches(self) -> list[Batch]:
        """Batches from the first partition on that read raw files, in order; found from the folders' names in one listing.

        Raises:
            LandingZoneError: as for :meth:`landed`.
        """
        return sorted(self.reading(self.landed()))

    def reading(self, folders: Iterable[Batch]) -> set[Batch]:
        """The batches that read any of these batches' folders."""
        return {batch for folder in folders for batch in self.readers(folder)}

    def landed(self) -> list[Batch]:
        """Batches from the first partition on that have raw files in their own folder, in order; also found in one listing.

        If a batch's folder, or one above it, cannot be listed, it may have files, so the batch is included. So is one of whose folder
        there is a file on a disk: the error is raised when that batch is read.

        Raises:
            LandingZoneError: a folder that may hold batches of any time, such as the landing zone itself, cannot be listed.
        """
        root = self.root.path.rstrip("/")
        found = set()
        for folder in self._with_files():
            try:
                moment = dt.datetime.strptime(folder, "/".join(self._layout)).replace(tzinfo=dt.UTC)
            except ValueError:
                continue
            batch = self.calendar.containing(to_milliseconds(moment))
            if batch.start >= self.calendar.start and self.folder(batch).path == f"{root}/{folder}":
                found.add(batch)
        return sorted(found)

    def _with_files(self) -> set[str]:
        """Folders as deep as the layout, relative to the landing zone, that have files; on a disk, files in their place as well."""
        depth = len(self._layout)
        # In an object store, such an object does not keep a folder of the same name from being there, and no batch reads it.
        fewest = depth if self.root.is_local else depth + 1
        try:
            split = (self._inside(file.path).split("/") for file in self.root.files())
            return {"/".join(parts[:depth]) for parts in split if len(parts) >= fewest and _is_visible("/".join(parts[depth:]))}
        except (FileNameError, OSError):
            # Such a name, or folder, concerns its batches alone: the error is raised when one of those is read.
            return self._may_be_with_files()

    def _may_be_with_files(self) -> set[str]:
        """The same, listed folder by folder, plus those that may have files because they, or a folder above them, cannot be listed."""
        above, level = list[Place](), [self.root]
        found: set[str] = set()
        for depth in range(len(self._layout)):
            below: list[Place] = []
            closed: dict[str, LandingZoneError] = {}
            for place in level:
                try:
                    below += [place / name for name in place.folders()]
                except OSError as error:
                    closed[self._inside(place.path)] = self._not_listed(place, error)
            found |= self._folders_below(closed, "/".join(self._layout[:depth]))
            above, level = level, below
        for place in above:
            with contextlib.suppress(FileNameError, OSError):
                found |= {self._inside(file.path) for file in place.files(recursive=False)}
        return found | {self._inside(place.path) for place in level if self._may_have_files(place)}

    def _folders_below(self, closed: dict[str, LandingZoneError], layout: str) -> set[str]:
        """The folders that batches have below those that cannot be listed, given with their errors; a folder of another layout has none.

        Raises:
            LandingZoneError: batches of any time may have folders there.
        """
        years = set()
        for folder, error in closed.items():
            try:
                moment = dt.datetime.strptime(folder, layout).replace(tzinfo=dt.UTC)
            except ValueError:
                continue
            if "%Y" not in layout and "%y" not in layout:
                raise error
            years.add(moment.year)
        return {folder for year in years for above, folder in self._folders_of(year, layout) if above in closed}

    def _folders_of(self, year: int, layout: str) -> Iterator[tuple[str, str]]:
        """The folder of each batch of a year, after the one above it that has this layout."""
        first, last = dt.datetime(year, 1, 1, tzinfo=dt.UTC), dt.datetime(year, 12, 31, 23, 59, tzinfo=dt.UTC)
        for batch in self.calendar.between(
            max(self.calendar.containing(to_milliseconds(first)), self.calendar.first), self.calendar.containing(to_milliseconds(last))
        ):
            yield batch.start_time.strftime(layout), batch.start_time.strftime("/".join(self._layout))

    @property
    def _layout(self) -> list[str]:
        """The layout of each level of folders."""
        return self.layout.strip("/").split("/")

    def _inside(self, path: str) -> str:
        """A path from a listing, relative to the landing zone."""
        return path[len(self.root.path.rstrip("/")) :].strip("/")

    def _may_have_files(self, folder: Place) -> bool:
        try:
            return bool(self._files(folder))
        except LandingZoneError:
            return True

    def _not_listed(self, folder: Place, error: OSError) -> LandingZoneError:
        if isinstance(error, NotADirectoryError) and folder == self.root:
            return LandingZoneError(f"{folder.uri} is a file; set ROLLUP_RAW to the folder that has the batches' folders")
        if isinstance(error, NotADirectoryError):
            return LandingZoneError(f"{folder.uri} is a file, where a batch's folder belongs; move it into a folder of that name")
        mend = "let this user read it" if isinstance(error, PermissionError) else "mend that, or remove it from the landing zone"
        return LandingZoneError(f"{folder.uri} cannot be listed ({reason_of(error)}); {mend}")

    def place(self, file: InputFile) -> Place:
        """Where an input file lies."""
        return self.root / file.path


def _is_visible(inside: str) -> bool:
    """Whether a path inside a batch's folder has no hidden part."""
    return not any(part.startswith(("_", ".")) for part in inside.strip("/").split("/"))


def version_of(files: list[InputFile]) -> str:
    """One digest of a set of raw files: their paths, sizes and versions. The same set gives the same digest."""
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        digest.update(f"{file.path}\0{file.size}\0{file.version}\n".encode())
    return digest.hexdigest()
