"""Copies: which of a batch's raw files have the same content as another one, whatever their names.

Only files of equal size are looked into, so that a batch without any pays nothing. What is done about copies stays out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

from rollup_assets.storage.filesystems import Place, in_parallel
from rollup_assets.storage.manifests import InputFile

Item = TypeVar("Item")

COPIES = "copies"
"""Counter of ``repartitioned_datapoints``: the copies that were not read, as :func:`find_copies` gives them."""

# Two magic numbers and the length of a footer: a smaller file is no Parquet file anyway.
_LEAST_PARQUET = 12
# The end of a Parquet file holds its statistics, which tell most files of equal size apart.
_END_BYTES = 1 << 16
_CHUNK_BYTES = 1 << 22


def find_copies(landing_zone: Place, files: Sequence[InputFile]) -> dict[str, str]:
    """Path of each copy -> path of the first file with its content, in the order given; both relative to the landing zone.

    Raises:
        StorageError: a file cannot be read.
        StaleInputError: a file is gone.
    """
    copies: dict[str, str] = {}
    for alike in _grouped((file for file in files if file.size >= _LEAST_PARQUET), lambda file: file.size):
        places = {file.path: place for place, file in enumerate(alike)}
        # Equal ETags and sizes mean equal content: only one of such files is read.
        versions = _grouped(alike, lambda file: file.version if file.version.startswith("etag:") else file.path)
        for same in _same_content(landing_zone, versions):
            original, *others = (path for _, path in sorted((places[file.path], file.path) for version in same for file in version))
            copies |= dict.fromkeys(others, original)
    return copies


def _same_content(landing_zone: Place, versions: list[list[InputFile]]) -> list[list[list[InputFile]]]:
    """Versions grouped by content: first by the ends of their files, then, if those are equal, by whole files."""
    groups = [versions]
    for digest in (_end_digest, _digest):
        found = []
        for group in groups:
            if len(group) == 1:
                found.append(group)
                continue
            places = [landing_zone / version[0].path for version in group]
            digests = dict(
                zip((version[0].path for version in group), in_parallel(digest, places, local=landing_zone.is_local), strict=True)
            )
            found += _grouped(group, lambda version, digests=digests: digests[version[0].path])  # type: ignore[misc]
        groups = found
    return groups


def _end_digest(place: Place) -> str:
    return _digest(place, _END_BYTES)


def _digest(place: Place, most: int | None = None) -> str:
    """Digest of a file, or of its last ``most`` bytes."""
    import xxhash

    from rollup_assets.storage.raw_files import reading_error

    state = xxhash.xxh3_128()
    try:
        with place.open_input() as source:
            if most is not None:
                source.seek(max(0, source.size() - most))
            while chunk := source.read(_CHUNK_BYTES):
                state.update(chunk)
    except OSError as error:
        raise reading_error(error, place) from error
    return state.hexdigest()


def _grouped(items: Iterable[Item], key: Callable[[Item], Hashable]) -> list[list[Item]]:
    """Items grouped by key, in the order of each group's first item."""
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())
