"""What killed, failed and superseded runs leave in the stage, on S3 and on this machine's disk: how leftovers are found, and what
counts as one.

Files of the table stay out (``iceberg.references``), and so does deleting anything (``rollup_assets.cleaning``).
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from rollup_assets.batches import DAY_MS
from rollup_assets.storage.filesystems import FoundFile, Place, in_parallel, is_unfinished
from rollup_assets.storage.manifests import MANIFEST, Manifest, Stage
from rollup_assets.storage.spill import UNLOCKED, abandoned_folders

Taken = TypeVar("Taken")

PROBE = ".rollups-doctor-"
"""Prefix of the files that ``rollups doctor`` writes to see whether it can, and deletes again."""
TEMPORARY = ".rollups-temporary-"
"""Prefix, used by nothing else, of the folders that commands make in the home for DuckDB and delete when they end."""
_PARTITION_FOLDER = re.compile(r"\d{4}-\d\d-\d\d-\d{4}")
_ATTEMPT_FOLDER = re.compile("[0-9a-f]{32}")
_PROBE_FILE = re.compile(f"{re.escape(PROBE)}[0-9a-f]{{32}}")
# What tempfile makes of it.
_TEMPORARY_FOLDER = re.compile(f"{re.escape(TEMPORARY)}[a-z0-9_]{{8}}")


@dataclass(frozen=True, slots=True)
class StagedFolder:
    """One partition of one asset in the stage, as a listing shows it."""

    asset: str
    name: str
    """As :attr:`Batch.folder`."""
    files: tuple[FoundFile, ...]

    def old(self, before: int | None) -> list[FoundFile]:
        """The attempts' files last written before ``before`` (epoch ms; None: whatever their age); none if the manifest was written later.

        A new manifest makes the files of the previous one leftovers, however old they are, and somebody may still be reading them.
        """
        if any(not is_old(file, before) for file in self.files if self._inside(file) == MANIFEST):
            return []
        return [file for file in self.files if is_old(file, before) and self._is_of_an_attempt(file)]

    def attempt_folders(self, files: Iterable[FoundFile]) -> list[Path]:
        """The folders, on a local disk, of the attempts that these files belong to: nothing else ever writes to them."""
        found = []
        for file in files:
            inside = self._inside(file)
            depth = inside.count("/")
            found += list(Path(file.path).parents[:depth])
        return found

    def _is_of_an_attempt(self, file: FoundFile) -> bool:
        first, below, _ = self._inside(file).partition("/")
        return (bool(below) and _ATTEMPT_FOLDER.fullmatch(first) is not None) or is_unfinished(file.name)

    def _inside(self, file: FoundFile) -> str:
        """The file's path, relative to the partition's folder."""
        return file.path.rpartition(f"/{self.asset}/{self.name}/")[2]


def is_old(file: FoundFile, before: int | None) -> bool:
    """Whether the file was last written before a time (epoch ms; None: always)."""
    return before is None or file.modified < before


def staged_folders(stage: Stage, asset: str) -> list[StagedFolder]:
    """The partitions of an asset, from one listing; folders with other names are ignored."""
    root = stage.root / asset
    found: dict[str, list[FoundFile]] = defaultdict(list)
    for file in root.files():
        name, _, inside = file.path[len(root.path) :].strip("/").partition("/")
        if inside and _PARTITION_FOLDER.fullmatch(name):
            found[name].append(file)
    return [StagedFolder(asset, name, tuple(files)) for name, files in found.items()]


def unnamed(stage: Stage, folders: Sequence[StagedFolder], before: int | None) -> list[FoundFile]:
    """The old files of attempts that the partitions' manifests, read now, do not name.

    Raises:
        StageCorruptError: a manifest cannot be read.
    """
    candidates = [(folder, files) for folder in folders if (files := folder.old(before))]
    named = in_parallel(lambda one: _named(stage, one[0]), candidates, local=stage.root.is_local)
    return [file for (_, files), kept in zip(candidates, named, strict=True) for file in files if file.path not in kept]


def _named(stage: Stage, folder: StagedFolder) -> set[str]:
    manifest = stage.in_folder(folder.asset, folder.name)
    files = () if manifest is None else manifest.files
    return {stage.place_in_folder(folder.asset, folder.name, file).path for file in files}


def probes(folder: Place, before: int | None) -> list[FoundFile]:
    """Files that a killed ``rollups doctor`` has left in a folder, if older than ``before`` (epoch ms; None: whatever their age)."""
    found = folder.files(recursive=False, prefix=PROBE)
    return [file for file in found if _PROBE_FILE.fullmatch(file.name) and is_old(file, before)]


class KeptManifests(Generic[Taken]):
    """Something taken from each of an asset's current manifests; manifests that have not changed since the last read are not read again.

    Only what was taken is kept, not the manifests: one may have a megabyte of footers, and there may be a year of them.
    """

    def __init__(self, stage: Stage, asset: str, take: Callable[[Manifest], Taken]) -> None:
        self._stage = stage
        self._asset = asset
        self._take = take
        self._known: dict[str, tuple[str, Taken]] = {}

    def read(self, without: Collection[str] = ()) -> list[Taken]:
        """What is taken from all manifests, except those in folders of these names.

        Raises:
            StageCorruptError: a manifest cannot be read.
        """
        versions = {
            folder.name: file.version
            for folder in staged_folders(self._stage, self._asset)
            for file in folder.files
            if folder.name not in without and file.path.endswith(f"/{folder.name}/{MANIFEST}")
        }
        changed = [name for name, version in versions.items() if name not in self._known or self._known[name][0] != version]
        known = {name: one for name, one in self._known.items() if versions.get(name) == one[0]}
        for name, taken in zip(changed, in_parallel(self._read, changed, local=self._stage.root.is_local), strict=True):
            for found in taken:
                known[name] = (versions[name], found)
        self._known = known
        return [taken for _, taken in known.values()]

    def _read(self, name: str) -> list[Taken]:
        """What is taken from one manifest; empty if it is gone by now."""
        manifest = self._stage.in_folder(self._asset, name)
        return [] if manifest is None else [self._take(manifest)]


# -------------------------------------------------------------------------------------------------------------- local folders


@dataclass(frozen=True, slots=True)
class LeftFolder:
    """A folder on this machine's disk with all that is in it."""

    path: Path
    bytes: int
    modified: int
    """When something in it was last written, epoch milliseconds."""

    def delete(self) -> None:
        """Delete it; raises OSError."""
        shutil.rmtree(self.path)


def left_folders(home: Path, before: int | None, now: int) -> list[LeftFolder]:
    """What processes have left behind when they ended: folders of spilled data, and temporary folders of commands.

    Without a lock, nobody can tell whether a folder is in use: temporary folders, and those of processes that were killed before they
    held their lock, have to be at least a day old.
    """
    scratch = home / "scratch"
    a_day_ago = now - DAY_MS if before is None else min(before, now - DAY_MS)
    unlocked = [folder for folder in _folders(scratch) if UNLOCKED.fullmatch(folder.name)]
    temporary = [folder for folder in _folders(home) if _TEMPORARY_FOLDER.fullmatch(folder.name)]
    limits = [(folder, before) for folder in abandoned_folders(scratch)]
    limits += [(folder, a_day_ago) for folder in (*unlocked, *temporary)]
    found = []
    for folder, limit in limits:
        sizes = list(_sizes(folder))
        newest = max((modified for _, modified in sizes), default=now)
        if limit is None or newest < limit:
            found.append(LeftFolder(folder, sum(size for size, _ in sizes), newest))
    return found


def _folders(parent: Path) -> list[Path]:
    """The folders in a folder, without links to folders, since these may lead to somebody else's."""
    return sorted(folder for folder in parent.iterdir() if folder.is_dir() and not folder.is_symlink()) if parent.is_dir() else []


def _sizes(folder: Path) -> Iterator[tuple[int, int]]:
    """Bytes and last change of the folder and of everything in it; what vanishes meanwhile is left out."""
    for path in (folder, *folder.rglob("*")):
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        yield (0 if path.is_dir() else found.st_size), found.st_mtime_ns // 1_000_000


def remove_empty_folders(folders: Iterable[Path]) -> None:
    """Remove the empty ones among these folders, innermost first."""
    for folder in sorted(set(folders), key=lambda path: -len(path.parts)):
        with contextlib.suppress(OSError):
            folder.rmdir()
