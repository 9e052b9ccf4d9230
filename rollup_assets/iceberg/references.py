"""Which files a table needs: everything named by its metadata or by any of its snapshots, on any branch.

What lies around besides, and what becomes of it, stays out (``rollup_assets.cleaning``).
"""

from __future__ import annotations

import gzip
import json
import posixpath
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rollup_assets.errors import CleaningError
from rollup_assets.iceberg.acknowledged_snapshots import SEQUENCE_NUMBER, forgotten
from rollup_assets.storage.filesystems import Place, in_parallel, is_unfinished, path_of
from rollup_assets.storage.storage_errors import explains_storage_errors

if TYPE_CHECKING:
    from pyiceberg.manifest import ManifestFile
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

METADATA_SUFFIX = ".metadata.json"
_OF_METADATA = (METADATA_SUFFIX, ".avro", ".puffin", ".stats")
_OF_DATA = (".parquet", ".avro", ".orc", ".puffin")
# Hadoop writes a checksum file beside each file on a local disk.
_CHECKSUM = re.compile(r"\.(?P<name>.+)\.crc")


class References:
    """Referenced paths and, as other engines may write paths differently, names: a file with a referenced file's name counts too."""

    def __init__(self, locations: Iterable[str]) -> None:
        self._paths = {path_of(location) for location in locations}
        self._names = {posixpath.basename(path) for path in self._paths}

    def __contains__(self, path: str) -> bool:
        name = posixpath.basename(path)
        checksum = _CHECKSUM.fullmatch(name)
        return path in self._paths or name in self._names or (checksum is not None and checksum["name"] in self._names)


class TableReferences:
    """What a table references. Manifests never change, so each is read once, however often this is asked."""

    def __init__(self) -> None:
        self._lists: dict[str, tuple[ManifestFile, ...]] = {}
        self._entries: dict[str, tuple[str, ...]] = {}

    @explains_storage_errors
    def of(self, table: Table) -> set[str]:
        """Locations of every file that the table needs: those of its snapshots, its metadata file and the earlier ones in its log.

        Raises:
            CleaningError: a manifest or a list of them cannot be read, so that nobody knows what it names.
        """
        metadata = table.metadata
        found = {table.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
        found |= {file.statistics_path for file in (*metadata.statistics, *metadata.partition_statistics)}
        local = "://" not in table.metadata_location
        try:
            manifests: dict[str, ManifestFile] = {}
            for snapshot, listed in zip(
                metadata.snapshots, in_parallel(lambda one: self._manifests(table, one), metadata.snapshots, local=local), strict=True
            ):
                found.add(snapshot.manifest_list)
                manifests |= {manifest.manifest_path: manifest for manifest in listed}
            found |= manifests.keys()
            for files in in_parallel(lambda one: self._files(table, one), list(manifests.values()), local=local):
                found.update(files)
        except (OSError, ValueError, TypeError) as error:
            raise CleaningError(
                f"the list of files that {'.'.join(table.name())} references cannot be read ({error}), so nothing of the table was "
                "deleted; `rollups verify` shows which partitions are affected, `rollups backfill FROM TO --force` publishes them again"
            ) from error
        self._lists = {snapshot.manifest_list: self._lists[snapshot.manifest_list] for snapshot in metadata.snapshots}
        self._entries = {path: self._entries[path] for path in manifests}
        return found

    def _manifests(self, table: Table, snapshot: Snapshot) -> tuple[ManifestFile, ...]:
        known = self._lists.get(snapshot.manifest_list)
        if known is None:
            known = self._lists[snapshot.manifest_list] = tuple(snapshot.manifests(table.io))
        return known

    def _files(self, table: Table, manifest: ManifestFile) -> tuple[str, ...]:
        known = self._entries.get(manifest.manifest_path)
        if known is None:
            entries = manifest.fetch_manifest_entry(table.io, discard_deleted=True)
            known = self._entries[manifest.manifest_path] = tuple(entry.data_file.file_path for entry in entries)
        return known


def is_metadata(name: str) -> bool:
    """Whether a file in the metadata folder is of a kind that tables reference there; other files are left alone."""
    return name.endswith(_OF_METADATA)


def is_data(name: str) -> bool:
    """The same for the data folder, including checksums and the unfinished files of writers that ended."""
    checksum = _CHECKSUM.fullmatch(name)
    return (checksum["name"] if checksum else name).endswith(_OF_DATA) or is_unfinished(name)


def check_unforgotten(table: Table, receipts: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
    """Refuse a catalog that was set back: it has lost the latest snapshots, whose files look unneeded but are all that is left of them.

    ``receipts``: partition and counters of each.

    Raises:
        CleaningError: a receipt tells of a snapshot that the table has forgotten.
    """
    numbers = [snapshot.sequence_number or 0 for snapshot in table.metadata.snapshots]
    oldest = min(numbers, default=0)
    for partition, counters in receipts:
        # Older snapshots may just have expired.
        if int(counters.get(SEQUENCE_NUMBER) or 0) >= oldest and (problem := forgotten(table, counters)):
            raise CleaningError(
                f"{'.'.join(table.name())} has forgotten a snapshot that published {partition} ({problem}): the catalog was set "
                "back, and files of the lost snapshots are still there. Nothing of the table was deleted; see docs/operations.md"
            )


def other_tables(table: Table, files: Iterable[Place]) -> Iterator[Place]:
    """Those of some metadata files that belong to another table, which is or was in the same place."""
    for place in files:
        uuid = _table_uuid(place)
        if uuid is not None and uuid != str(table.metadata.table_uuid):
            yield place


def _table_uuid(place: Place) -> str | None:
    """The table's UUID in a metadata file; None if the file is not whole, as after its writer was killed."""
    content = place.read_bytes()
    if content is None:
        return None
    try:
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        found = json.loads(content)
    except (ValueError, OSError, EOFError, zlib.error):
        return None
    return found.get("table-uuid") if isinstance(found, dict) else None
