"""Limits of raw files: on footer, rows, row groups and metric names, checked before memory is spent on them.

A few bytes of Parquet can stand for gigabytes, and whoever writes raw data is not trusted with this process's memory. What is done with
a file that is too large stays out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FOOTER_BYTES = 4 * 2**20
"""A byte of a footer can become 250 in memory; each column of a row group takes about 150 bytes of footer."""
MOST_NAMES = 1 << 20
"""Metric names in a row group's dictionary; each becomes a Python object."""
_MAGIC = b"PAR1"
_TAIL_BYTES = 64 * 2**10
# Lists and strings of a footer: row groups, columns, statistics, the serialized Arrow schema.
_THRIFT = {"thrift_string_size_limit": 2**20, "thrift_container_size_limit": 100_000}


class TooLargeError(Exception):
    """A raw file exceeds a limit; the message says which."""


@dataclass(frozen=True, slots=True)
class RawLimits:
    """What the settings allow."""

    rows: int = 1_000_000_000
    """Most rows of a file."""
    group_bytes: int = 2 * 2**30
    """Most bytes of a row group, uncompressed."""
    name_bytes: int = 4 * 2**10
    """Most bytes of a metric name, in UTF-8."""


DEFAULT_LIMITS = RawLimits()


def read_tail(source: pa.NativeFile) -> pa.Buffer:
    """The end of a file with its footer, in no more reads than Arrow would make.

    Raises:
        TooLargeError: the footer is too long.
    """
    import pyarrow as pa

    size = source.size()
    tail = source.read_at(min(size, _TAIL_BYTES), max(0, size - _TAIL_BYTES))
    length = int.from_bytes(memoryview(tail)[-8:-4], "little") + 8
    if bytes(tail[-4:]) == _MAGIC and len(tail) < length <= size:
        if length > FOOTER_BYTES:
            raise TooLargeError(f"its footer takes {length:,} bytes, more than {FOOTER_BYTES:,}")
        tail = source.read_at(length, size - length)
    return pa.py_buffer(tail)


def parse_footer(tail: pa.Buffer, limits: RawLimits) -> pq.FileMetaData:
    """The footer at the end of a file.

    Raises:
        TooLargeError: the file has too many rows.
        pyarrow.ArrowException: the footer is damaged or missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    metadata = pq.ParquetFile(pa.BufferReader(tail), **_THRIFT).metadata
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if min(groups, default=0) < 0 or metadata.num_rows != sum(groups):
        raise pa.ArrowInvalid(f"its footer says {metadata.num_rows} rows, and other numbers for its row groups")
    if metadata.num_rows > limits.rows:
        raise TooLargeError(f"{metadata.num_rows:,} rows, more than ROLLUP_RAW_FILE_ROWS={limits.rows:,}")
    return metadata


def open_parquet(source: pa.NativeFile, metadata: pq.FileMetaData, **options: Any) -> pq.ParquetFile:
    """A reader for the pages of a footer; page headers have the footer's limits.

    INT96 timestamps are read as milliseconds: in nanoseconds, Arrow's default, the year 9999 would become 1816 (modulo 2^64).
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(source, metadata=metadata, coerce_int96_timestamp_unit="ms", **_THRIFT, **options)


def check_row_groups(metadata: pq.FileMetaData, limits: RawLimits) -> None:
    """Check the sizes of row groups that the footer states.

    Raises:
        TooLargeError: a row group is too large.
        pyarrow.ArrowException: the numbers make no sense.
    """
    import pyarrow as pa

    for number in range(metadata.num_row_groups):
        # Not the sum over its columns: if the footer is damaged, asking pyarrow for a column can end the process (docs/security.md).
        taken = metadata.row_group(number).total_byte_size
        if taken < 0:
            raise pa.ArrowInvalid(f"its footer says that row group {number} takes {taken} bytes")
        if taken > limits.group_bytes:
            raise TooLargeError(f"row group {number} takes {taken:,} bytes, more than ROLLUP_RAW_GROUP_SIZE={limits.group_bytes:,}")


def check_names(names: pa.ChunkedArray, limits: RawLimits) -> None:
    """Check dictionaries of metric names: their encoding, number and length.

    Raises:
        TooLargeError: there are too many names, or one is too long.
        pyarrow.ArrowException: a name is not UTF-8, or a row refers to a name that is not in the dictionary.
    """
    import pyarrow.compute as pc
    import pyarrow.types as pt

    # Arrow's reader checks neither UTF-8 nor indices, and the code after it relies on both.
    names.validate(full=True)
    for chunk in names.chunks:
        known = chunk.dictionary if pt.is_dictionary(chunk.type) else chunk
        if len(known) > MOST_NAMES:
            raise TooLargeError(f"{len(known):,} metric names in a row group, more than {MOST_NAMES:,}")
        longest = pc.max(pc.binary_length(known)).as_py() or 0
        if longest > limits.name_bytes:
            raise TooLargeError(f"a metric name of {longest:,} bytes, more than ROLLUP_RAW_NAME_SIZE={limits.name_bytes:,}")
