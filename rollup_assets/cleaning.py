"""``rollups clean``: finds what killed, failed and superseded runs have left behind, and deletes it on request.

A leftover is a file that nothing names any more and nobody has written to for a while. Candidates are listed first, references read
afterwards: a file made in between cannot be a candidate. References are read again right before anything is deleted, for files of the
table under its lock. Raw data is never looked at. How leftovers are told from what is needed is in ``storage.leftovers`` and
``iceberg.references``; printing stays out.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeVar

from rollup_assets.batches import DAY_MS
from rollup_assets.errors import CleaningError, LockLostError, RollupError, StorageError
from rollup_assets.history.records import FOLDER as HISTORY
from rollup_assets.history.records import is_record
from rollup_assets.iceberg.acknowledged_snapshots import is_of_table
from rollup_assets.iceberg.faults import shown
from rollup_assets.iceberg.table import table_location
from rollup_assets.settings import Settings
from rollup_assets.storage.filesystems import FoundFile, Place, delete_files, drop_upload, in_parallel, unfinished_uploads
from rollup_assets.storage.leftovers import (
    KeptManifests,
    LeftFolder,
    StagedFolder,
    is_old,
    left_folders,
    probes,
    remove_empty_folders,
    staged_folders,
    unnamed,
)
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS, Stage
from rollup_assets.storage.storage_errors import explains_storage_errors
from rollup_assets.units import list_text

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from rollup_assets.iceberg.locks import TableLock
    from rollup_assets.iceberg.references import References
    from rollup_assets.storage.objects import FoundUpload

Item = TypeVar("Item")

OLDER_THAN: Final = 3 * DAY_MS
"""Default for the age in ms below which nothing is deleted: far longer than any run takes."""
ATTEMPTS, OTHER_PARTITIONS, RECORDS = "staged attempts", "partitions of another calendar", "publish records"
DATA, REWRITTEN, METADATA = "data files", "rewritten files", "metadata files"
UPLOADS, SCRATCH, PROBES = "unfinished uploads", "scratch folders", "doctor's probes"
RECORDS_KEPT = 5
"""How many records of each partition are kept whatever their age, besides those of snapshots that the table keeps."""
_STAGED = (REPARTITIONED, PARTIAL_POINTS, QUARANTINED, ROLLUPS, ROLLUP_TABLE, HISTORY)
# How much is deleted before it is checked again what is referenced; publishers get their turn in between.
_PARTITIONS_AT_ONCE = 200
_FILES_AT_ONCE = 5000
_OTHERS_NAMED = 3


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that nothing needs any more."""

    kind: str
    path: str
    """Path or URI."""
    bytes: int
    modified: int
    """Epoch milliseconds."""


@dataclass(slots=True)
class Cleaning:
    """What was found and what became of it."""

    found: list[Leftover] = field(default_factory=list)
    deleted: list[Leftover] = field(default_factory=list)
    """Everything that is gone."""
    remarks: list[str] = field(default_factory=list)
    """What was left alone, and why."""
    failures: list[str] = field(default_factory=list)
    """Why something could not be checked or deleted; everything else was deleted all the same."""

    def by_kind(self) -> dict[str, tuple[int, int]]:
        """Count and bytes of what was found, by kind."""
        counts: dict[str, tuple[int, int]] = {}
        for leftover in self.found:
            count, size = counts.get(leftover.kind, (0, 0))
            counts[leftover.kind] = (count + 1, size + leftover.bytes)
        return counts


class _Part(Protocol):
    def find(self) -> list[Leftover]: ...

    def delete(self) -> None: ...


@explains_storage_errors
def clean(
    settings: Settings, *, older_than: int = OLDER_THAN, delete: bool = False, other_partitions: bool = False, now: int | None = None
) -> Cleaning:
    """Find leftovers, and delete them if that is wanted.

    Args:
        settings: of the table.
        older_than: least age of a leftover in ms; 0 for any age, which is safe only while nothing runs.
        delete: delete what is found; otherwise nothing is changed.
        other_partitions: also staged partitions that the calendar does not have (any more), with everything in them.
        now: epoch ms; the clock's unless given.

    Raises:
        StorageError: something cannot be listed or read.
        StageCorruptError: a manifest cannot be read, so it is unknown which files it names; nothing was deleted.
        CatalogError, TableMismatchError: the table cannot be loaded, or is not the one that the settings are about.
    """
    moment = time.time_ns() // 1_000_000 if now is None else now
    before = moment - older_than if older_than else None
    report = Cleaning()
    stage = Stage(Place.parse(settings.stage, settings.s3))
    staged = _Staged(settings, stage, before, report, others=other_partitions)
    table_files = _TableFiles(settings, stage, before, report, staged)
    parts: list[_Part] = [
        # In this order: the second and the third need what those before them have found.
        staged,
        table_files,
        _PublishRecords(stage, before, staged, table_files),
        _Uploads(settings, before, report),
        _Scratch(settings, before, moment, report),
        _Probes(settings, before, report),
    ]
    for part in parts:
        report.found += part.find()
    if delete:
        for part in parts:
            try:
                part.delete()
            except RollupError as error:
                report.failures.append(str(error))
    return report


def _leftover(kind: str, root: Place, file: FoundFile) -> Leftover:
    return Leftover(kind, root.of_path(file.path).uri, file.size, file.modified)


def _delete(report: Cleaning, root: Place, files: Sequence[tuple[str, FoundFile]]) -> None:
    """Delete files, each given with its kind, and report those that were deleted.

    Raises:
        StorageError: some could not be deleted.
    """
    leftovers = {root.of_path(file.path): _leftover(kind, root, file) for kind, file in files}
    stay = delete_files(list(leftovers))
    report.deleted += [leftover for place, leftover in leftovers.items() if place not in stay]
    for error in stay.values():
        raise error


# ---------------------------------------------------------------------------------------------------------------------- stage


class _Staged:
    """Attempts that no manifest names, and, on request, whole partitions of another calendar."""

    def __init__(self, settings: Settings, stage: Stage, before: int | None, report: Cleaning, *, others: bool) -> None:
        self._calendar = settings.calendar
        self._stage = stage
        self._before = before
        self._report = report
        self._others = others
        self._with_leftovers: list[StagedFolder] = []
        self._found: set[str] = set()
        self._other: list[StagedFolder] = []
        self.histories: list[StagedFolder] = []
        """Partitions that stay and of which there are records of publishes, as they were before the table was looked at."""

    @property
    def partitions_to_go(self) -> set[str]:
        """Folder names of rollups that are deleted with their partitions: the files that they name are not needed."""
        return {folder.name for folder in self._other if folder.asset == ROLLUPS}

    def find(self) -> list[Leftover]:
        folders = [folder for asset in _STAGED for folder in staged_folders(self._stage, asset)]
        strangers = [folder for folder in folders if self._calendar.of_folder(folder.name) is None]
        if self._others:
            self._other = [folder for folder in strangers if all(is_old(file, self._before) for file in folder.files)]
            to_go = {(folder.asset, folder.name) for folder in self._other}
            folders = [folder for folder in folders if (folder.asset, folder.name) not in to_go]
        elif strangers:
            names = {folder.name for folder in strangers}
            self._report.remarks.append(
                f"the stage has {len(names)} partitions that are not of this calendar (ROLLUP_START, ROLLUP_BATCH), such as {min(names)}; "
                "--other-partitions includes them"
            )
        self.histories = [folder for folder in folders if folder.asset == HISTORY]
        files = unnamed(self._stage, folders, self._before)
        self._found = {file.path for file in files}
        self._with_leftovers = [folder for folder in folders if any(file.path in self._found for file in folder.files)]
        root = self._stage.root
        return [_leftover(ATTEMPTS, root, file) for file in files] + [
            _leftover(OTHER_PARTITIONS, root, file) for folder in self._other for file in folder.files
        ]

    def delete(self) -> None:
        root = self._stage.root
        for some in _portions(self._with_leftovers, _PARTITIONS_AT_ONCE):
            files = [file for file in unnamed(self._stage, some, self._before) if file.path in self._found]
            _delete(self._report, root, [(ATTEMPTS, file) for file in files])
            if root.is_local:
                gone = {file.path for file in files}
                for folder in some:
                    remove_empty_folders(folder.attempt_folders(file for file in folder.files if file.path in gone))
        for folder in self._other:
            _delete(self._report, root, [(OTHER_PARTITIONS, file) for file in folder.files])
            if root.is_local:
                remove_empty_folders([*folder.attempt_folders(folder.files), Path((root / folder.asset / folder.name).path)])


# ---------------------------------------------------------------------------------------------------------------------- table


@dataclass(frozen=True, slots=True)
class _LockedTable:
    """The table while nobody publishes, and everything that it or a staged partition names."""

    table: Table
    references: References
    _lock: TableLock
    _report: Cleaning

    def delete(self, root: Place, files: Sequence[tuple[str, FoundFile]]) -> None:
        if not self._lock.is_held():
            name = ".".join(self.table.name())
            raise LockLostError(f"the lock of {name} was lost before its files were deleted; run `rollups clean` again")
        _delete(self._report, root, files)


class _TableFiles:
    """Files in the table's folders that neither the table nor the stage's rollups name."""

    def __init__(self, settings: Settings, stage: Stage, before: int | None, report: Cleaning, staged: _Staged) -> None:
        from rollup_assets.iceberg.references import TableReferences

        self._settings = settings
        self._stage = stage
        self._before = before
        self._report = report
        self._root = Place.parse(table_location(settings), settings.s3)
        self._staged = staged
        self._table = TableReferences()
        self._rollups = KeptManifests(stage, ROLLUPS, lambda manifest: [file.path for file in manifest.files])
        self._receipts = KeptManifests(stage, ROLLUP_TABLE, lambda manifest: (manifest.partition, manifest.counters))
        self._found: list[tuple[str, FoundFile]] = []
        self.table: Table | None = None
        """The table as it was found; None if it is unknown which files it needs."""

    def find(self) -> list[Leftover]:
        from rollup_assets.iceberg.references import METADATA_SUFFIX, is_data, is_metadata, other_tables

        data = [file for file in (self._root / "data").files() if is_data(file.name)]
        metadata = [file for file in (self._root / "metadata").files() if is_metadata(file.name)]
        rewritten = f"{(self._root / 'data' / 'rewritten').path}/"
        candidates = [(REWRITTEN if file.path.startswith(rewritten) else DATA, file) for file in data]
        candidates += [(METADATA, file) for file in metadata]
        try:
            table, references = self._named(without=self._staged.partitions_to_go)
            if table is None:
                if candidates:
                    self._report.remarks.append(
                        f"there is no table {self._settings.table}, so it is not known which of the files in {self._root.uri} are "
                        "needed: they were left alone"
                    )
                return []
            unknown = [file for file in metadata if file.name.endswith(METADATA_SUFFIX) and file.path not in references]
            if others := sorted(place.uri for place in other_tables(table, [self._root.of_path(file.path) for file in unknown])):
                raise CleaningError(
                    f"{self._root.uri} has metadata of another table than {self._settings.table} in {shown(self._settings)}: "
                    f"{list_text(others, _OTHERS_NAMED)}. Nothing of the table was deleted: files that this table does not need "
                    "may belong to the other one. If that is no longer used (it was dropped and created again), delete these metadata "
                    "files, and run `rollups clean` again"
                )
        except CleaningError as error:
            self._report.failures.append(str(error))
            return []
        self.table = table
        self._found = [(kind, file) for kind, file in candidates if is_old(file, self._before) and file.path not in references]
        return [_leftover(kind, self._root, file) for kind, file in self._found]

    def _named(self, without: Collection[str] = ()) -> tuple[Table | None, References]:
        """The current table, and every file that it or a staged partition names.

        Partitions in ``without`` are ignored: they are about to be deleted.
        """
        from rollup_assets.iceberg.catalog import open_catalog
        from rollup_assets.iceberg.references import References, check_unforgotten
        from rollup_assets.iceberg.table import check_table, load_table

        # Read the stage before the table: files that are published and then staged anew meanwhile are named by one of the two. Published
        # files of the stage count, too: if somebody has compacted the table, the stage still relies on them.
        staged = [path for paths in self._rollups.read(without) for path in paths]
        receipts = self._receipts.read()
        with open_catalog(self._settings) as catalog:
            table = load_table(catalog, self._settings)
            if table is None:
                return None, References(())
            # With another location, everything would look like a leftover.
            check_table(table, self._settings)
            check_unforgotten(table, receipts)
            return table, References([*self._table.of(table), *staged])

    def delete(self) -> None:
        for some in _portions(self._found, _FILES_AT_ONCE):
            with self.locked() as now:
                now.delete(self._root, [(kind, file) for kind, file in some if file.path not in now.references])

    @contextmanager
    def locked(self) -> Iterator[_LockedTable]:
        """The table while nobody publishes, to delete what is still not named by anything."""
        from rollup_assets.iceberg.locks import table_lock

        with table_lock(self._settings) as lock:
            table, references = self._named()
            if table is None:
                raise CleaningError(f"{self._settings.table} was dropped meanwhile; its files were left alone")
            yield _LockedTable(table, references, lock, self._report)


class _PublishRecords:
    """Records of publishes long past. Before they are deleted, they are determined once more from a new listing."""

    def __init__(self, stage: Stage, before: int | None, staged: _Staged, table_files: _TableFiles) -> None:
        self._stage = stage
        self._before = before
        self._staged = staged
        self._table_files = table_files
        self._found: set[str] = set()

    def find(self) -> list[Leftover]:
        if self._table_files.table is None:
            return []
        records = self._old(self._staged.histories, self._table_files.table)
        self._found = {file.path for file in records}
        return [_leftover(RECORDS, self._stage.root, file) for file in records]

    def delete(self) -> None:
        if self._found:
            folders = staged_folders(self._stage, HISTORY)
            with self._table_files.locked() as now:
                records = self._old(folders, now.table)
                now.delete(self._stage.root, [(RECORDS, file) for file in records if file.path in self._found])

    def _old(self, folders: Sequence[StagedFolder], table: Table) -> list[FoundFile]:
        """The old records, without those of snapshots that the table keeps and, in each partition, the newest few of the others."""
        kept_snapshots = {snapshot.snapshot_id for snapshot in table.metadata.snapshots}
        found = []
        for folder in folders:
            files = {file.path: file for file in folder.files if is_record(file)}
            if len(files) <= RECORDS_KEPT or not any(is_old(file, self._before) for file in files.values()):
                continue
            read = in_parallel(lambda path: _commit_of(self._stage.root.of_path(path), table), list(files), local=self._stage.root.is_local)
            known = ((path, commit) for path, commit in zip(files, read, strict=True) if commit is not None)
            free = {path: order for path, (snapshot, order) in known if snapshot not in kept_snapshots}
            oldest_first = sorted(free, key=lambda path: free[path])
            found += [files[path] for path in oldest_first[:-RECORDS_KEPT] if is_old(files[path], self._before)]
        return found


def _commit_of(record: Place, table: Table) -> tuple[int, tuple[bool, int]] | None:
    """A record's snapshot, and a key that sorts it by time; None if a later version wrote it in another form: such records are kept.

    A commit to another table, such as a dropped one of the same name, sorts before all of this one's, whatever its sequence number.
    """
    try:
        found = json.loads(record.read_bytes() or b"")
        return int(found["snapshot_id"]), (is_of_table(table, found), int(found["sequence_number"]))
    except (ValueError, KeyError, TypeError):
        return None


# ------------------------------------------------------------------------------------------------------------ uploads, scratch


class _Uploads:
    """Multipart uploads below our folders on S3 whose process was killed: they are invisible, and billed."""

    def __init__(self, settings: Settings, before: int | None, report: Cleaning) -> None:
        self._folders = [Place.parse(location, settings.s3) for location in (settings.stage, table_location(settings))]
        self._before = before
        self._report = report
        self._found: list[tuple[Place, FoundUpload]] = []

    def find(self) -> list[Leftover]:
        for folder in self._folders:
            try:
                uploads = unfinished_uploads(folder)
            except StorageError as error:
                # Runs need no right to list uploads; without it, the rest is cleaned all the same.
                self._report.remarks.append(f"cannot look for unfinished uploads: {error}")
                continue
            self._found += [(folder, upload) for upload in uploads if self._before is None or upload.begun < self._before]
        return [_upload_leftover(folder, upload) for folder, upload in self._found]

    def delete(self) -> None:
        for folder, upload in self._found:
            drop_upload(folder, upload)
            self._report.deleted.append(_upload_leftover(folder, upload))


def _upload_leftover(folder: Place, upload: FoundUpload) -> Leftover:
    bucket = folder.path.partition("/")[0]
    return Leftover(UPLOADS, f"{folder.of_path(f'{bucket}/{upload.key}').uri}?uploadId={upload.upload_id}", upload.size, upload.begun)


class _Scratch:
    """Spilled data of processes that were killed."""

    def __init__(self, settings: Settings, before: int | None, now: int, report: Cleaning) -> None:
        self._home = settings.home
        self._before = before
        self._now = now
        self._report = report
        self._found: list[LeftFolder] = []

    def find(self) -> list[Leftover]:
        self._found = left_folders(self._home, self._before, self._now)
        return [_folder_leftover(folder) for folder in self._found]

    def delete(self) -> None:
        for folder in self._found:
            try:
                folder.delete()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise StorageError(
                    f"{folder.path} cannot be deleted ({error.strerror}); delete it as the user that it belongs to"
                ) from error
            self._report.deleted.append(_folder_leftover(folder))


def _folder_leftover(folder: LeftFolder) -> Leftover:
    return Leftover(SCRATCH, str(folder.path), folder.bytes, folder.modified)


class _Probes:
    """Files that a killed ``rollups doctor`` left where it checked that it may write."""

    def __init__(self, settings: Settings, before: int | None, report: Cleaning) -> None:
        locations = dict.fromkeys((settings.stage, settings.warehouse, str(settings.home / "scratch")))
        self._folders = [Place.parse(location, settings.s3) for location in locations]
        self._before = before
        self._report = report
        self._found: list[tuple[Place, FoundFile]] = []

    def find(self) -> list[Leftover]:
        self._found = [(folder, file) for folder in self._folders for file in probes(folder, self._before)]
        return [_leftover(PROBES, folder, file) for folder, file in self._found]

    def delete(self) -> None:
        for folder in self._folders:
            _delete(self._report, folder, [(PROBES, file) for at, file in self._found if at is folder])


def _portions(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    source = iter(items)
    while some := list(itertools.islice(source, size)):
        yield some
