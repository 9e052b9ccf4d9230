"""The packed blocks that travel from split to sort tasks: what a header says and how columns lie in the payload.

Four kinds: rows of a shard, metric names that the rows' codes refer to, the notice that all rows of a raw file are to be dropped
because the file is quarantined as a whole, and quarantined rows. Columns are as narrow as the block's values allow. Moving blocks stays
out (engines).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROWS, NAMES, DROP_FILE, QUARANTINED = range(4)

_HEADER = struct.Struct("<BIIBBBBqqq")
# Few widths on purpose: each combination is a compiled variant of the kernel that unpacks.
_DTYPES = (np.dtype(np.uint16), np.dtype(np.int32), np.dtype(np.int64), np.dtype(np.float64))
UINT16, INT32, INT64, FLOAT64 = range(4)
NO_COLUMN = 255


@dataclass(frozen=True, slots=True)
class Header:
    """Header of a block."""

    kind: int
    file: int
    """Number of the raw file within the map task, from 0; the number after the last for a row that stands for a whole file."""
    rows: int
    """Number of rows, or of names, in the payload."""
    value: int = INT64
    org: int = INT64
    metric: int = INT32
    lag: int = NO_COLUMN
    value_base: int = 0
    org_base: int = 0
    lag_base: int = 0

    def pack(self) -> bytes:
        """The header as bytes."""
        return _HEADER.pack(
            self.kind, self.file, self.rows, self.value, self.org, self.metric, self.lag, self.value_base, self.org_base, self.lag_base
        )

    @classmethod
    def unpack(cls, header: bytes) -> Header:
        """The header that :meth:`pack` wrote."""
        return cls(*_HEADER.unpack(header))

    @property
    def has_lag(self) -> bool:
        """Whether there is a column of lags."""
        return self.lag != NO_COLUMN

    @property
    def dtypes(self) -> list[np.dtype[Any]]:
        """Types of the columns: id, time, value, org, metric and, if there, lag."""
        kinds = [INT64, INT32, self.value, self.org, self.metric]
        return [_DTYPES[kind] for kind in (*kinds, self.lag)] if self.has_lag else [_DTYPES[kind] for kind in kinds]

    def columns(self, payload: memoryview) -> list[NDArray[Any]]:
        """Views of the columns: id, time, value, org, metric, lag (length 0 if it is not there)."""
        dtypes = self.dtypes
        # To numba, writable or not is part of an array's type: make it one type, compiled once, whichever engine moved the block.
        payload = payload.toreadonly()
        found: list[NDArray[Any]] = [np.empty(0, np.int32)] * 6
        at = 0
        for column in payload_order(dtypes):
            found[column] = np.frombuffer(payload, dtypes[column], self.rows, at)
            at += self.rows * dtypes[column].itemsize
        return found


def payload_order(dtypes: list[np.dtype[Any]]) -> list[int]:
    """The order of the columns in a payload: the widest first, so that each is aligned (unaligned arrays are another type to numba)."""
    return sorted(range(len(dtypes)), key=lambda column: -dtypes[column].itemsize)


def narrowest(low: int, high: int, *, uint16: bool = True) -> tuple[int, int]:
    """(code of the narrowest type, base) for integers between ``low`` and ``high`` stored as offsets from the base."""
    spread = high - low
    if uint16 and spread < 2**16:
        return UINT16, low
    if spread < 2**31:
        return INT32, low
    return INT64, 0


def dtype_of(code: int) -> np.dtype[Any]:
    """The type that a header's code stands for."""
    return _DTYPES[code]


def pack_names(codes: NDArray[np.int32], names: Sequence[str]) -> bytes:
    """Metric names as a payload: their codes as int32, their lengths in bytes as uint32, then the UTF-8 texts. ``names``: by code."""
    encoded = [names[code].encode() for code in codes.tolist()]
    return codes.tobytes() + np.array([len(text) for text in encoded], np.uint32).tobytes() + b"".join(encoded)


def unpack_names(payload: memoryview, count: int) -> tuple[NDArray[np.int32], list[str]]:
    """Codes and names that :func:`pack_names` packed."""
    codes, lengths = np.frombuffer(payload, np.int32, count), np.frombuffer(payload, np.uint32, count, offset=4 * count)
    ends = 8 * count + np.cumsum(lengths)
    return codes, [bytes(payload[end - length : end]).decode() for end, length in zip(ends.tolist(), lengths.tolist(), strict=True)]
