"""Which staged files the table has, as the file itself or as a copy of its bytes, and how missing ones get into a plan.

Iceberg's metadata of the files, and whether they are what their manifest says, stay out (:mod:`rollup_assets.iceberg.publish`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rollup_assets.batches import Batch
from rollup_assets.iceberg.plans import Plan, digest_of_copy
from rollup_assets.iceberg.reading import LiveFile
from rollup_assets.iceberg.table import data_location
from rollup_assets.storage.filesystems import Place, path_of
from rollup_assets.storage.manifests import StagedFile, has_digest

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table

    from rollup_assets.settings import Settings


class StagedFiles:
    """Staged files that a table is to have."""

    def __init__(self, settings: Settings, files: Iterable[StagedFile]) -> None:
        self._data = data_location(settings)
        self._copies = _rewritten(settings)
        # Whatever name another engine has for the store, the file is the same.
        self._by_path = {path_of(file.path): file for file in files}
        self._by_digest = {file.digest: file for file in self._by_path.values()}

    def found_as(self, live: LiveFile) -> str | None:
        """Path of the staged file that a file of the table is, or is a whole copy of; None if there is none or some rows are deleted."""
        if live.has_deletes:
            return None
        path = path_of(live.path)
        if path in self._by_path:
            # Its bytes are not checked here, but when it is made anew with --force.
            return self._by_path[path].path
        place = self._data.of_path(path)
        staged = self._by_digest.get(digest_of_copy(place)) if self._copies.contains(place) else None
        return staged.path if staged is not None and _is_whole(place, staged) else None


def bring(
    plan: Plan,
    table: Table,
    settings: Settings,
    staged: Mapping[Batch, Sequence[StagedFile]],
    live: Iterable[LiveFile],
    data_files: Callable[[Batch, Sequence[StagedFile]], Sequence[DataFile]],
    were_in_table: Collection[Batch],
) -> None:
    """Plan that the table has each staged file once, as itself or as a copy, and none of its other ``live`` files.

    ``data_files`` makes the metadata of those that the table lacks. These are added as copies if the table's snapshots may list them as
    deleted: because they ``were_in_table`` before, or because the plan itself removes them.
    """
    wanted = StagedFiles(settings, (file for files in staged.values() for file in files))
    present: set[str] = set()
    live = list(live)
    # Data files are equal if their paths are: of a file that is listed twice, both entries go or none, and its rows come back as a copy.
    listed = Counter(path_of(found.path) for found in live)
    for found in live:
        path = wanted.found_as(found) if listed[path_of(found.path)] == 1 else None
        if path is None or path in present:
            plan.removed.append(found.task.file)
        else:
            present.add(path)
    # A staged file is among the removed ones if somebody has deleted rows of it.
    removed = {path_of(file.file_path) for file in plan.removed}
    copied: dict[str, str] = {}
    for batch, files in staged.items():
        missing = [file for file in files if file.path not in present]
        for file, data_file in zip(missing, data_files(batch, missing), strict=True):
            if batch in were_in_table or path_of(file.path) in removed:
                copied[file.path] = file.digest
            else:
                plan.added.append(data_file)
    if copied:
        plan.copy(table, copied)


def rewritten_files(settings: Settings, batch: Batch | None = None) -> Place:
    """The folder of rewritten and copied files, for a batch or for the table as a whole."""
    return _rewritten(settings) / ("table" if batch is None else batch.folder)


def _rewritten(settings: Settings) -> Place:
    return data_location(settings) / "rewritten"


def _is_whole(copy: Place, staged: StagedFile) -> bool:
    try:
        return has_digest(copy, staged.digest)
    except FileNotFoundError:
        return False
