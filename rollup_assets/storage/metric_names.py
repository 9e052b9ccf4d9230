"""Metric names as small integers: codes in the order of appearance, and their order by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


_FEW = 1024
"""If a task has no more names than this, all of them are sent to every reader: that costs less than finding those that its rows have."""


class MetricNames:
    """Names by code; a new one gets the next code."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._codes: dict[str, int] = {}
        self._known: pa.Array | None = None

    def code_of(self, name: str) -> int:
        """The code of a name."""
        code = self._codes.setdefault(name, len(self.names))
        if code == len(self.names):
            self.names.append(name)
        return code

    def codes_of(self, names: Iterable[str]) -> NDArray[np.int32]:
        """The codes of several names, int32; never empty, so that it can be indexed by a column of zeros."""
        return np.array([self.code_of(name) for name in names] or [0], np.int32)

    def codes_of_array(self, names: pa.Array) -> NDArray[np.int32]:
        """The same for an Arrow array of names without nulls, such as a dictionary's, most of which have a code already."""
        import pyarrow as pa
        import pyarrow.compute as pc

        # Looked up one by one, the names (two dictionaries per shard, one per row group) took a third of merging with earlier batches.
        if self._known is None or len(self._known) < len(self.names):
            self._known = pa.array(self.names, pa.string())
        found = pc.index_in(names, value_set=self._known)
        if found.null_count:
            return self.codes_of(names.to_pylist())
        # A writable array like the other codes: kernels are compiled for one type of array.
        return np.array(found.to_numpy()) if len(found) else np.zeros(1, np.int32)

    def ranks(self) -> NDArray[np.int32]:
        """The place of each code in the order of the names, int32. Python compares strings by code point: the order of UTF-8 bytes."""
        ranks = np.zeros(max(len(self.names), 1), np.int32)
        ranks[sorted(range(len(self.names)), key=self.names.__getitem__)] = np.arange(len(self.names), dtype=np.int32)
        return ranks


class SentNames:
    """Which names have been sent to each bucket's reader, so that each is sent once; if there are many, only those that its rows have.

    A bit for each name and bucket: 16 MB for a million names and 128 buckets.
    """

    def __init__(self, buckets: int) -> None:
        self._sent = [np.zeros(0, np.uint8)] * buckets
        self._count = [0] * buckets

    def unsent(self, bucket: int, names: Sequence[str], used: NDArray[Any]) -> NDArray[np.int32]:
        """Codes of names to send to the bucket's reader before it gets rows with the codes ``used``; they count as sent from now on.

        names: by code; from call to call names are only added.
        """
        if self._count[bucket] == len(names):
            return np.empty(0, np.int32)
        sent = self._sent[bucket]
        missing = (len(names) + 7) // 8 - len(sent)
        if missing > 0:
            sent = self._sent[bucket] = np.concatenate([sent, np.zeros(missing + len(sent) // 4, np.uint8)])
        # Every name to every reader is names x buckets x tasks: with 50,000 names it took 11.7 instead of 0.8 CPU s, 544 instead of 7 MB.
        codes = np.arange(len(names)) if len(names) <= _FEW else used
        unsent = np.unique(codes[sent[codes >> 3] >> (codes & 7).astype(np.uint8) & 1 == 0]).astype(np.int32)
        np.bitwise_or.at(sent, unsent >> 3, np.uint8(1) << (unsent & 7).astype(np.uint8))
        self._count[bucket] += len(unsent)
        return unsent


def dictionary_array(codes: NDArray[Any], names: Sequence[str]) -> pa.Array:
    """Names as an Arrow dictionary array; the dictionary has those that occur, by first appearance, so bytes depend on nothing else."""
    import pyarrow as pa

    from rollup_assets.kernels.columns import compact_codes

    out = np.empty(len(codes), np.int32)
    used = np.empty(min(len(codes), len(names)), np.int32)
    count = compact_codes(codes, np.full(len(names), -1, np.int32), out, used)
    return pa.DictionaryArray.from_arrays(pa.array(out), pa.array([names[code] for code in used[:count]], pa.string()))
