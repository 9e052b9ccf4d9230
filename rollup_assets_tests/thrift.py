"""Footers and page headers of Parquet as bytes, in Thrift's compact protocol: those that no library writes."""

from __future__ import annotations

from collections.abc import Sequence

_I32, _I64, _BINARY, _LIST, _STRUCT = 5, 6, 8, 9, 12


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _integer(number: int) -> bytes:
    return _varint(((number << 1) ^ (number >> 63)) & (2**64 - 1))


def _struct(*fields: tuple[int, int, bytes]) -> bytes:
    """Fields of (number, type, value), in order."""
    out, last = b"", 0
    for number, kind, value in fields:
        out += bytes([(number - last) << 4 | kind]) + value
        last = number
    return out + b"\0"


def _list(items: Sequence[bytes]) -> bytes:
    count = len(items)
    head = bytes([count << 4 | _STRUCT]) if count < 15 else bytes([0xF0 | _STRUCT]) + _varint(count)
    return head + b"".join(items)


def element(name: str, children: int | None, kind: int | None = None) -> bytes:
    """A node of the schema: with children, or of a physical type (2 is int64)."""
    text = name.encode()
    fields = [] if kind is None else [(1, _I32, _integer(kind)), (3, _I32, _integer(1))]
    fields.append((4, _BINARY, _varint(len(text)) + text))
    return _struct(*fields, *([] if children is None else [(5, _I32, _integer(children))]))


def footer(schema: Sequence[bytes], rows: int, groups: Sequence[int]) -> bytes:
    """File metadata with row groups of these numbers of rows, each with a column of which nothing is said."""
    made = [
        _struct((1, _LIST, _list([_struct((2, _I64, _integer(4)))])), (2, _I64, _integer(0)), (3, _I64, _integer(group)))
        for group in groups
    ]
    return _struct((1, _I32, _integer(1)), (2, _LIST, _list(schema)), (3, _I64, _integer(rows)), (4, _LIST, _list(made)))


def page_header(*, uncompressed: int, compressed: int) -> bytes:
    """The beginning of a data page's header."""
    return _struct((1, _I32, _integer(0)), (2, _I32, _integer(uncompressed)), (3, _I32, _integer(compressed)))
