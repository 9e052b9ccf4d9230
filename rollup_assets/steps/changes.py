"""What has changed since a partition was made, in words: raw files, settings and code, digests that were read, files that got lost.

The steps do nothing where there is no such reason, and whoever says beforehand what they would do asks the same functions. Which
reasons count for which step is in the steps' own modules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rollup_assets.batches import Batch
from rollup_assets.code_version import CODE_VERSION
from rollup_assets.steps.parameters import changed_settings
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import InputFile, Manifest, Stage, short_digest
from rollup_assets.units import list_text

_NAMED = 3

Change = Literal["new", "changed", "replaced", "removed"]
Upstream = Mapping[str, Mapping[str, str | None]]


@dataclass(frozen=True, slots=True)
class FileChange:
    """A raw file that is not what was staged."""

    path: str
    change: Change
    """``replaced``: another version of the same size."""


@dataclass(frozen=True, slots=True)
class InputChange:
    """A staged partition that is no longer the one that was read. A digest is None if there was, or is, no such partition."""

    asset: str
    partition: str
    before: str | None
    now: str | None

    def __str__(self) -> str:
        return f"{self.asset} {self.partition} has changed: {short_digest(self.before)} → {short_digest(self.now)}"


def file_changes(before: Sequence[InputFile], now: Sequence[InputFile]) -> list[FileChange]:
    """The raw files that differ, by path."""
    known, found = {file.path: file for file in before}, {file.path: file for file in now}
    changes: list[FileChange] = []
    for path in sorted(known.keys() | found.keys()):
        old, new = known.get(path), found.get(path)
        if old is None or new is None:
            changes.append(FileChange(path, "new" if old is None else "removed"))
        elif old != new:
            changes.append(FileChange(path, "changed" if old.size != new.size else "replaced"))
    return changes


def in_words(changes: Sequence[FileChange]) -> list[str]:
    """A sentence for each kind of change, with the first files affected."""
    sentences = []
    for kind in ("new", "changed", "replaced", "removed"):
        paths = [found.path for found in changes if found.change == kind]
        if len(paths) == 1:
            sentences.append(f"{kind} raw file {paths[0]}")
        elif paths:
            sentences.append(f"{len(paths):,} {kind} raw files: {list_text(paths, _NAMED)}")
    return sentences


def other_settings(manifest: Manifest, wanted: Mapping[str, object]) -> list[str]:
    """The settings and the code that a partition was made with, as far as they differ from today's."""
    reasons = [f"made with another {setting}" for setting in changed_settings(wanted, manifest.parameters)]
    if manifest.code_version != CODE_VERSION:
        reasons.append(f"made by code version {manifest.code_version}, this is {CODE_VERSION}")
    return reasons


def files_of_another_table(rollups: Manifest, data_files: Place) -> list[str]:
    """Names the first file of the rollups that is not in the folder of the table's data files; empty if all are.

    The table's location is not a parameter, since it does not affect the content: renaming the table or its warehouse leaves the
    digest as it is.
    """
    outside = (file.path for file in rollups.files if not data_files.contains(data_files.at(file.path)))
    return [f"made for another table: {path} does not lie in {data_files.uri}" for path in outside][:1]


def input_changes(before: Upstream, now: Upstream) -> list[InputChange]:
    """The inputs of rollups whose digests differ."""
    return [
        InputChange(asset, partition, then, today)
        for asset in sorted(before.keys() | now.keys())
        for partition in sorted(before.get(asset, {}).keys() | now.get(asset, {}).keys())
        if (then := before.get(asset, {}).get(partition)) != (today := now.get(asset, {}).get(partition))
    ]


def lost_files(stage: Stage, manifest: Manifest, batch: Batch) -> list[str]:
    """What is wrong with the staged files of a manifest; empty if all exist and have the right size."""
    wrong = list(stage.wrong_files(manifest, batch))
    return wrong if len(wrong) <= _NAMED else [*wrong[:_NAMED], f"and {len(wrong) - _NAMED} more files of {manifest.asset}"]
