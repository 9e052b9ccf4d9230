"""The range of timestamps in each row group of a Parquet file, according to its footer.

Read from the footer's bytes (Thrift's compact protocol), since pyarrow ends the process when it is asked for statistics of some damaged
footers. A footer that is not understood says nothing about timestamps; whether it is damaged is for others to find out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_INT32, _INT64 = 1, 2
_BYTES = {_INT32: 4, _INT64: 8}
_MOST_NESTED = 24
# As many as pyarrow is allowed (``storage.raw_limits``).
_MOST_ELEMENTS = 100_000
# Fields of Parquet's structures.
_FILE_ROW_GROUPS = 4
_GROUP_COLUMNS, _GROUP_ROWS = 1, 3
_CHUNK_METADATA = 3
_METADATA_TYPE, _METADATA_PATH, _METADATA_STATISTICS = 1, 3, 12
_LOWEST, _HIGHEST = (6, 2), (5, 1)  # each: today's field, then the one that older writers use

Range = tuple[int, int]


def row_group_ranges(footer: bytes, column: str) -> list[tuple[int, Range | None]]:
    """(rows, least and greatest stored integer of a column) of each row group; the range is None if unknown. Empty if damaged."""
    try:
        file = _Reader(footer).struct()
        return [(int(group[_GROUP_ROWS]), _range(group, column.encode())) for group in file[_FILE_ROW_GROUPS]]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return []


def _range(group: dict[int, Any], column: bytes) -> Range | None:
    for chunk in group[_GROUP_COLUMNS]:
        metadata = chunk.get(_CHUNK_METADATA, {})
        if metadata.get(_METADATA_PATH) == [column]:
            size, statistics = _BYTES.get(metadata.get(_METADATA_TYPE)), metadata.get(_METADATA_STATISTICS, {})
            ends = [next((statistics[field] for field in fields if field in statistics), b"") for fields in (_LOWEST, _HIGHEST)]
            if size is None or any(len(end) != size for end in ends):
                return None
            low, high = (int.from_bytes(end, "little", signed=True) for end in ends)
            return (low, high) if low <= high else None
    return None


class _Reader:
    """Thrift's compact protocol: structs as dictionaries by field number."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0
        self._depth = 0
        self._values: dict[int, Callable[[], Any]] = {
            3: self._byte,
            4: self._integer,
            5: self._integer,
            6: self._integer,
            7: lambda: self._take(8),
            8: lambda: self._take(self._size()),
            9: self._list,
            10: self._list,
            12: self.struct,
        }

    def struct(self) -> dict[int, Any]:
        """Fields up to the stop field."""
        self._depth += 1
        if self._depth > _MOST_NESTED:
            raise ValueError("nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while header := self._byte():
            number = number + (header >> 4) if header >> 4 else self._integer()
            kind = header & 15
            # The value of a boolean field is in its type.
            fields[number] = kind == 1 if kind in (1, 2) else self._values[kind]()
        self._depth -= 1
        return fields

    def _list(self) -> list[Any]:
        header = self._byte()
        size = self._size() if header >> 4 == 15 else header >> 4
        kind = header & 15
        if size > min(_MOST_ELEMENTS, len(self._content) - self._at):
            raise ValueError("too many elements")
        value = self._byte if kind in (1, 2) else self._values[kind]
        return [value() for _ in range(size)]

    def _take(self, size: int) -> bytes:
        found = self._content[self._at : self._at + size]
        if len(found) < size:
            raise ValueError("it ends too early")
        self._at += size
        return found

    def _byte(self) -> int:
        found = self._content[self._at]
        self._at += 1
        return found

    def _size(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ValueError("a number is too long")

    def _integer(self) -> int:
        value = self._size()
        return (value >> 1) ^ -(value & 1)
