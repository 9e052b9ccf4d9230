"""Manifests: what a staged partition consists of, written last and replaced atomically.

Only what a manifest names exists. The content digest covers the files' bytes and the counters, not where the files lie or when
they were made, so the same inputs and parameters give the same digest on every engine.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import xxhash
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rollup_assets.batches import Batch, BatchCalendar, key_of_folder
from rollup_assets.errors import ConcurrentWriteError, StageCorruptError
from rollup_assets.failpoints import failpoint
from rollup_assets.storage.filesystems import Place, in_parallel
from rollup_assets.storage.storage_errors import reason_of

REPARTITIONED = "repartitioned_datapoints"
PARTIAL_POINTS = "partial_points"
QUARANTINED = "quarantined_datapoints"
ROLLUPS = "rollups"
ROLLUP_TABLE = "rollup_table"
MANIFEST = "manifest.json"
"""Name of the file in a partition's folder that says what the partition consists of."""
FORMAT_VERSION: Final = 1
ELSEWHERE_ROWS = "elsewhere"
"""Counter of rows that belong to other batches; present if a batch reads other batches' folders."""
# These say what was read, not what came out of it.
_OF_READING = frozenset({"rows_read", ELSEWHERE_ROWS, "raw_files", "copied_files", "copies"})
_READ_BYTES = 8 << 20


class _Record(BaseModel):
    # Checksums of doubles may be infinite; by default these would be written as null, and the value lost.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class InputFile(_Record):
    """A raw file as a step saw it.

    ``path`` is relative to the landing zone; ``version`` changes whenever the content may have (``mtime:<ns>`` on local disks).
    """

    path: str
    size: int
    version: str


class StagedFile(_Record):
    """A file of a staged partition. ``path`` is relative to the partition's folder, or absolute for the table's data files."""

    path: str
    rows: int
    size: int = Field(description="bytes")
    digest: str = Field(description="xxh3_128 of the bytes, hex")
    shards: tuple[int, ...] = Field(default=(), description="shards in it, in row order")
    resolution: int | None = Field(default=None, description="resolution in ms of a rollup file")
    tail: str | None = Field(default=None, description="xxh3_64 of the last 32 KiB, hex: footers have no checksum of their own")
    statistics: str | None = Field(default=None, description="of a rollup file's columns, packed: publishing need not read its footer")
    footer: str | None = Field(default=None, exclude=True, description="in manifests of earlier versions; not used any more")


class Manifest(_Record):
    """One staged partition of one asset."""

    asset: str
    partition: str
    attempt: str
    code_version: str
    parameters: dict[str, Any] = Field(description="settings that decide the content")
    inputs: tuple[InputFile, ...] = ()
    upstream: dict[str, dict[str, str | None]] = Field(
        default={}, description="asset -> partition -> content digest read; None: not there, and rightly so"
    )
    files: tuple[StagedFile, ...] = ()
    counters: dict[str, Any] = Field(default={}, description="row counts and checksums; part of the content")
    digest: str = Field(description="content digest; Dagster's data version")
    timings: dict[str, float] = Field(default={}, description="seconds of wall time per stage; not part of the content")
    format_version: Literal[1] = FORMAT_VERSION

    @property
    def rows(self) -> int:
        """Rows in all files."""
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def has_points(repartitioned: Manifest | None) -> bool:
    """Whether a batch is staged and has a point; without one, it waits for earlier batches that are not staged."""
    return repartitioned is not None and repartitioned.counters["rows_accepted"] > 0


def content_digest(files: tuple[StagedFile, ...], counters: dict[str, Any]) -> str:
    """Digest of a partition's content: each file's bytes, rows and shards, in order, and the counters.

    If a batch reads other batches' folders, the amount read does not count as content: else another batch's new files, which bring
    this batch no row, would make everything downstream stale.
    """
    if ELSEWHERE_ROWS in counters:
        counters = {name: value for name, value in counters.items() if name not in _OF_READING}
    content = {
        "files": [[file.digest, file.rows, list(file.shards), file.resolution] for file in files],
        "counters": counters,
    }
    return hashlib.blake2b(json.dumps(content, sort_keys=True, separators=(",", ":")).encode(), digest_size=16).hexdigest()


def short_digest(digest: str | None) -> str:
    """A content digest as messages show it: its beginning; ``not staged`` for None."""
    return "not staged" if digest is None else digest[:8]


def digest_of(place: Place) -> str:
    """The digest of a file's bytes as in :class:`StagedFile`; all of them are read."""
    found = xxhash.xxh3_128()
    with place.open_input() as stream:
        while content := stream.read(_READ_BYTES):
            found.update(content)
    return found.hexdigest()


def has_digest(place: Place, digest: str) -> bool:
    """Whether a file has the bytes of a :class:`StagedFile`'s digest; all of them are read."""
    return digest_of(place) == digest


def read_record(place: Place) -> tuple[bytes | None, str | None]:
    """The content and version of a file that says something of a partition; None and None if it is not there.

    Raises:
        StageCorruptError: it is there, and cannot be read: that concerns its partition alone.
    """
    try:
        return place.read_versioned()
    except OSError as error:
        raise not_readable(place, error) from error


def not_readable(place: Place, error: OSError) -> StageCorruptError:
    """The error for a file of one partition that the disk does not let this user read."""
    mend = "let this user read all of ROLLUP_STAGE" if isinstance(error, PermissionError) else "look at the disk of ROLLUP_STAGE"
    return StageCorruptError(f"{place.uri} cannot be read ({reason_of(error)}); {mend}, and run the same command again")


def new_attempt() -> str:
    """A name for one try at making a partition; unique."""
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True)
class Standing:
    """A manifest as it stood at some time."""

    manifest: Manifest | None
    version: str | None
    """Differs once somebody has written the manifest again; None if there was none."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The staged assets: ``<root>/<asset>/<partition>/manifest.json`` and the attempts beside it."""

    root: Place

    def folder(self, asset: str, batch: Batch) -> Place:
        """The folder of a partition."""
        return self.root / asset / batch.folder

    def place(self, manifest: Manifest, file: StagedFile, batch: Batch) -> Place:
        """Where a file of a manifest lies."""
        return self.place_in_folder(manifest.asset, batch.folder, file)

    def place_in_folder(self, asset: str, folder: str, file: StagedFile) -> Place:
        """Where a file of the manifest in a partition's folder lies."""
        return self.root.at(file.path) if _is_absolute(file) else self.root / asset / folder / file.path

    def _manifest_place(self, asset: str, folder: str) -> Place:
        return self.root / asset / folder / MANIFEST

    def read(self, asset: str, batch: Batch) -> Manifest | None:
        """The manifest of a partition; None if it is not staged.

        Raises:
            StageCorruptError: the manifest cannot be read; the message names the file and what mends that.
        """
        return self._read_versioned(asset, batch)[0]

    def in_folder(self, asset: str, folder: str) -> Manifest | None:
        """The manifest in a partition's folder, even if the calendar has no such partition any more; None if there is none.

        Raises:
            StageCorruptError: it cannot be read.
        """
        place = self._manifest_place(asset, folder)
        content, _ = read_record(place)
        return None if content is None else _parsed(place, content, key_of_folder(folder))

    def _read_versioned(self, asset: str, batch: Batch) -> tuple[Manifest | None, str | None]:
        place = self._manifest_place(asset, batch.folder)
        content, version = read_record(place)
        return (None, None) if content is None else (_parsed(place, content, batch.key), version)

    def write(self, manifest: Manifest, batch: Batch) -> None:
        """Make a partition visible, unconditionally replacing any manifest that is there."""
        failpoint(f"manifest.before.{manifest.asset}")
        self._manifest_place(manifest.asset, batch.folder).write_bytes(_serialized(manifest))
        failpoint(f"manifest.after.{manifest.asset}")

    def _replace(self, manifest: Manifest, batch: Batch, version: str | None) -> None:
        failpoint(f"manifest.before.{manifest.asset}")
        self._manifest_place(manifest.asset, batch.folder).replace_bytes(_serialized(manifest), version)
        failpoint(f"manifest.after.{manifest.asset}")

    def standing(self, asset: str, batch: Batch) -> Standing:
        """The manifest of a partition, to be read before the inputs of its next attempt and handed to :meth:`commit`.

        Raises:
            StageCorruptError: the manifest cannot be read.
        """
        return Standing(*self._read_versioned(asset, batch))

    def commit(self, manifest: Manifest, batch: Batch, replaces: Standing | None = None) -> Manifest:
        """Make a new attempt visible unless the current manifest has the same content; returns the manifest that stands.

        If the content is equal, the old files stay (readers may have them open, and nothing downstream becomes stale), the new
        attempt's are deleted, and the old manifest is updated in what it says of inputs, settings, code and counters. The old files are
        read first: they are replaced if damaged, or if they are data files of another table than the new attempt's.

        Args:
            manifest: of the new attempt.
            batch: the partition.
            replaces: what stood before the attempt read its inputs; None: what stands now. An attempt that took longer than another
                run's, and knows less, replaces nothing.

        Raises:
            ConcurrentWriteError: another run made other content visible in the meantime; the new attempt is deleted.
        """
        current, version = self._read_versioned(manifest.asset, batch)
        if replaces is not None and replaces.version != version:
            return self._after_lost_race(manifest, batch)
        if current is None or not _is_as_good(current, manifest) or not self.is_intact(current, batch):
            try:
                self._replace(manifest, batch, version)
            except ConcurrentWriteError:
                return self._after_lost_race(manifest, batch)
            return manifest
        kept = current.model_copy(
            update={
                "code_version": manifest.code_version,
                "parameters": manifest.parameters,
                "inputs": manifest.inputs,
                "counters": manifest.counters,
                "upstream": manifest.upstream,
                "timings": manifest.timings,
            }
        )
        self.discard(manifest, batch)
        try:
            self._replace(kept, batch, version)
        except ConcurrentWriteError:
            return self._after_lost_race(manifest, batch)
        return kept

    def _after_lost_race(self, manifest: Manifest, batch: Batch) -> Manifest:
        """Accept the manifest of a faster run if its content is ours. Otherwise only a new look at the inputs can tell which is right."""
        self.discard(manifest, batch)
        winner = self.read(manifest.asset, batch)
        if winner is not None and _is_as_good(winner, manifest) and self.is_complete(winner, batch):
            return winner
        raise ConcurrentWriteError(
            f"{manifest.asset} {batch} was staged by another run at the same time, from other inputs or settings; its files were kept, "
            f"those of this run were deleted. When that run has ended, run `rollups backfill {batch} {batch}`"
        )

    def is_complete(self, manifest: Manifest, batch: Batch) -> bool:
        """Whether every file of the manifest exists and has the right size."""
        return next(self.wrong_files(manifest, batch), None) is None

    def wrong_files(self, manifest: Manifest, batch: Batch) -> Iterator[str]:
        """A message for each file of the manifest that is missing or has another size."""
        for file, size in zip(manifest.files, self.sizes(manifest, batch), strict=True):
            if size is None:
                yield f"file {file.path} of {manifest.asset} is missing"
            elif size != file.size:
                yield f"file {file.path} of {manifest.asset} has {size:,} bytes instead of {file.size:,}"

    def is_intact(self, manifest: Manifest, batch: Batch) -> bool:
        """Whether every file of the manifest exists and has the right bytes; reads all of them."""

        def has_its_bytes(file: StagedFile) -> bool:
            return has_digest(self.place(manifest, file, batch), file.digest)

        return self.is_complete(manifest, batch) and all(in_parallel(has_its_bytes, manifest.files, local=self.root.is_local))

    def sizes(self, manifest: Manifest, batch: Batch) -> list[int | None]:
        """The actual sizes of a manifest's files, in bytes; None for a missing one."""
        places = [self.place(manifest, file, batch) for file in manifest.files]
        if all(place.is_local for place in places):
            return [place.size() for place in places]
        # One listing gives a thousand sizes; a file that is alone in its folder is looked up by itself.
        folders = Counter(posixpath.dirname(place.location) for place in places)
        listed: dict[str, int | None] = {}
        for folder, count in folders.items():
            if count > 1:
                inside = [place for place in places if posixpath.dirname(place.location) == folder]
                listed |= {place.path: None for place in inside}
                prefix = posixpath.commonprefix([place.name for place in inside])
                found = self.root.at(folder).files(recursive=False, prefix=prefix)
                listed |= {file.path: file.size for file in found if file.path in listed}
        return list(in_parallel(lambda place: listed[place.path] if place.path in listed else place.size(), places))

    def require_complete(self, manifest: Manifest, batch: Batch) -> None:
        """Check a partition's files before reading them: the reader's own error would not say what to do.

        Raises:
            StageCorruptError: a file is missing or has another size, or the manifest itself is damaged; the message names it and the
                command that makes it anew.
        """
        # Not of a receipt: its digest is that of the rollups that were published.
        if manifest.asset != ROLLUP_TABLE and content_digest(manifest.files, manifest.counters) != manifest.digest:
            raise StageCorruptError(
                f"the manifest of {manifest.asset} {batch} is damaged: its content does not match its digest; delete "
                f"{self._manifest_place(manifest.asset, batch.folder).uri} and run `rollups backfill {batch} {batch}`"
            )
        for wrong in self.wrong_files(manifest, batch):
            raise StageCorruptError(f"batch {batch}: {wrong}; run `rollups backfill {batch} {batch}` to stage it again")

    def discard(self, manifest: Manifest, batch: Batch) -> None:
        """Delete the files of an attempt that no manifest names."""
        for _ in in_parallel(lambda file: self.place(manifest, file, batch).delete_file(), manifest.files, local=self.root.is_local):
            pass
        (self.folder(manifest.asset, batch) / manifest.attempt).delete_folder()

    def batches(self, asset: str, calendar: BatchCalendar) -> list[Batch]:
        """The batches that have a manifest of an asset, in order; without those that are not in the calendar."""
        root = self.root / asset
        if root.is_local:
            names = [name for name in root.folders() if self._manifest_place(asset, name).exists()]
        else:
            # One request for a thousand objects instead of one for each partition.
            paths = (file.path[len(root.path) :].strip("/").split("/") for file in root.files())
            names = [parts[0] for parts in paths if len(parts) == 2 and parts[1] == MANIFEST]
        return sorted(batch for name in names if (batch := calendar.of_folder(name)) is not None)


@dataclass(frozen=True, slots=True)
class StageReadOnce(Stage):
    """The stage with every manifest read only once, as it was at the first access. For callers that do not write.

    ``most``: how many manifests are kept, by default all; one that was dropped for newer ones is read again. Safe to call from any thread.
    """

    most: int | None = None
    known: dict[tuple[str, Batch], Manifest | None] = field(default_factory=dict)
    locks: dict[tuple[str, Batch], threading.Lock] = field(default_factory=dict)

    def read(self, asset: str, batch: Batch) -> Manifest | None:
        """The manifest of a partition, as it was when it was first asked for."""
        # One thread reads and the others wait: neighbouring batches want the same manifests at the same time.
        with self.locks.setdefault((asset, batch), threading.Lock()):
            try:
                found = self.known[asset, batch]
            except KeyError:
                # With slots, the decorator creates the class anew, and super() would refer to the old one.
                found = self.known[asset, batch] = Stage.read(self, asset, batch)
        if self.most is not None:
            # Drop those that were read first. Making the list is atomic, whatever other threads do.
            for one in list(self.known)[: -self.most]:
                self.known.pop(one, None)
                self.locks.pop(one, None)
        return found


def _is_absolute(file: StagedFile) -> bool:
    return "://" in file.path or file.path.startswith("/")


def _is_as_good(one: Manifest, other: Manifest) -> bool:
    """Whether the content is the same in the same place: data files in the same table's folders, other files in any attempt's."""

    def folders(manifest: Manifest) -> set[str]:
        return {posixpath.dirname(file.path) for file in manifest.files if _is_absolute(file)}

    return one.digest == other.digest and folders(one) == folders(other)


def _format_of(content: bytes) -> int:
    """A manifest's format according to itself; 0 if that cannot be read."""
    try:
        return int(json.loads(content)["format_version"])
    except (ValueError, KeyError, TypeError):
        return 0


def _parsed(place: Place, content: bytes, partition: str) -> Manifest:
    try:
        return Manifest.model_validate_json(content)
    except ValidationError as error:
        if (written := _format_of(content)) > FORMAT_VERSION:
            raise StageCorruptError(
                f"{place.uri} has format {written}, but this release reads formats up to {FORMAT_VERSION}: a newer release wrote it. "
                "Install the newer release again, or set ROLLUP_STAGE and ROLLUP_TABLE to new places and run `rollups backfill` there"
            ) from error
        reason = error.errors()[0]["msg"]
        raise StageCorruptError(
            f"{place.uri} is not a manifest that this version can read ({reason}); delete it and run "
            f"`rollups backfill {partition} {partition}`"
        ) from error


def _serialized(manifest: Manifest) -> bytes:
    return manifest.model_dump_json(indent=1).encode()
