"""Parquet files of the stage and the table: encodings, row groups of a fixed size, the digest of the bytes, checksums of pages.

How rows are cut into row groups and files depends on the data alone, never on threads, memory or engine, and nothing in a file
tells who wrote it or when: the same rows give the same bytes.

A bit that flips on a disk or on its way would otherwise reach the table: neither lz4 nor zstd, as Parquet uses them, notices all of them.
Each page has a checksum (CRC-32): 0.01 % of the size, and no time that can be measured (10 M points: 31 to 34 ns a point to write, 10 to 15
to read, with and without).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import xxhash

from rollup_assets.errors import StageCorruptError
from rollup_assets.storage.file_statistics import FileStatistics
from rollup_assets.storage.manifests import StagedFile
from rollup_assets.storage.refused_memory import is_false_claim, short_of_memory
from rollup_assets.storage.storage_errors import is_damage, storage_error

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyarrow import NativeFile

    from rollup_assets.batches import Batch
    from rollup_assets.storage.filesystems import Place


_BUFFER_BYTES = 1 << 20
_MAGIC = b"PAR1"
_FOOTER_BYTES = 1 << 15
"""Footers up to this size, about 25 row groups, are protected by a digest in the manifest."""
_FALSE_POSITIVES = 0.01


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a kind of file is encoded; columns in neither list are PLAIN."""

    compression: str
    level: int | None
    dictionary: tuple[str, ...]
    columns: dict[str, str]
    statistics: bool | tuple[str, ...]
    """Whether row groups have statistics (least and greatest value) of their columns, or of which of them."""
    page_rows: int | None = None
    """Rows of a page, and of what is encoded at a time; None: the library's default."""
    bloom_filters: tuple[str, ...] = ()
    """int64 columns to be searched by value; equal values have to be neighbours."""

    def options(self, schema: pa.Schema, first: pa.Table | None = None) -> dict[str, Any]:
        """Arguments of ``pyarrow.parquet.ParquetWriter`` for a schema; Bloom filters are sized by the first row group."""
        names = set(schema.names)
        found: dict[str, Any] = {
            "compression": self.compression,
            "compression_level": self.level,
            "use_dictionary": [name for name in self.dictionary if name in names],
            "column_encoding": {name: self.columns.get(name, "PLAIN") for name in schema.names if name not in self.dictionary},
            "write_statistics": self.statistics if isinstance(self.statistics, bool) else list(self.statistics),
            "store_schema": False,
            "write_page_checksum": True,
        }
        if self.page_rows is not None:
            found |= {"write_batch_size": self.page_rows, "max_rows_per_page": self.page_rows}
        if first is not None and first.num_rows:
            found["bloom_filter_options"] = {
                name: {"ndv": _runs(first.column(name)), "fpp": _FALSE_POSITIVES} for name in self.bloom_filters
            }
        return found


def _runs(column: pa.ChunkedArray) -> int:
    """The number of runs of equal values in a column."""
    import numpy as np

    values = column.to_numpy()
    return 1 + int(np.count_nonzero(values[1:] != values[:-1]))


class DigestingStream:
    """A stream that counts and digests what is written through it; made for ``ParquetWriter``, which only writes, tells and closes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._digest = xxhash.xxh3_128()
        self._tail = b""
        self.size = 0
        self.closed = False

    def write(self, content: bytes) -> int:
        """Append bytes."""
        self._digest.update(content)
        self.size += len(content)
        self._tail = bytes(content[-_FOOTER_BYTES:]) if len(content) >= _FOOTER_BYTES else (self._tail + content)[-_FOOTER_BYTES:]
        self._stream.write(content)
        return len(content)

    def tell(self) -> int:
        """Bytes written so far."""
        return self.size

    def flush(self) -> None:
        """Does nothing: nothing is buffered here."""

    def close(self) -> None:
        """End writing. The stream beneath stays open: closing it would drop the file, which only its owner commits, once all is written."""
        self.closed = True

    def readable(self) -> bool:
        """Never."""
        return False

    def writable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Never."""
        return False

    @property
    def hexdigest(self) -> str:
        """xxh3_128 of everything written."""
        return self._digest.hexdigest()

    @property
    def tail_digest(self) -> str:
        """xxh3_64 of the last bytes written."""
        return xxhash.xxh3_64_hexdigest(self._tail)


def _footer_in(tail: bytes) -> bytes | None:
    """The footer at the end of a Parquet file; None if it is missing or incomplete."""
    if tail[-4:] != _MAGIC:
        return None
    length = int.from_bytes(tail[-8:-4], "little") + 8
    return tail[-length:] if length <= len(tail) else None


class ParquetFileWriter:
    """Writes one Parquet file, one row group per table."""

    def __init__(self, place: Place, schema: pa.Schema, encoding: Encoding) -> None:
        import pyarrow as pa

        self._output = place.open_output()
        self._stream = DigestingStream(self._output)
        # Pages are written a few KB at a time: a buffer takes the interpreter's lock less often (6 % of a step's CPU).
        self._buffered = pa.BufferedOutputStream(pa.PythonFile(self._stream, mode="w"), _BUFFER_BYTES)
        self._schema = schema
        self._encoding = encoding
        self._writer: pq.ParquetWriter | None = None
        self._metadata: list[pq.FileMetaData] = []
        self.rows = 0

    def write(self, table: pa.Table) -> None:
        """Write one row group."""
        self._started(table).write_table(table, row_group_size=max(table.num_rows, 1))
        self.rows += table.num_rows

    def _started(self, first: pa.Table | None = None) -> pq.ParquetWriter:
        if self._writer is None:
            import pyarrow.parquet as pq

            options = self._encoding.options(self._schema, first)
            self._writer = pq.ParquetWriter(self._buffered, self._schema, metadata_collector=self._metadata, **options)
        return self._writer

    def close(self, path: str, *, shards: tuple[int, ...] = (), resolution: int | None = None) -> StagedFile:
        """Finish the file; returns its entry for a manifest, with ``path`` as its path."""
        self._started().close()
        self._buffered.close()
        self._output.commit()
        # Only the table's data files have a resolution, and only of these the table's metadata says anything.
        statistics = FileStatistics.of(self._metadata[0]).packed() if resolution is not None else None
        return StagedFile(
            path=path,
            rows=self.rows,
            size=self._stream.size,
            digest=self._stream.hexdigest,
            shards=shards,
            resolution=resolution,
            tail=self._stream.tail_digest,
            statistics=statistics,
        )


class StagedParquet:
    """A staged file to read from; pages are checked against their checksums.

    Raises:
        StageCorruptError: from the constructor and from :meth:`read`, if the file is damaged; names it and the command that repairs it.
        ShortOfMemoryError, StorageError: likewise, as :func:`reading_staged`.
    """

    def __init__(self, place: Place, file: StagedFile, asset: str, batch: Batch, *, pre_buffer: bool = False) -> None:
        import pyarrow.parquet as pq

        self._reading = functools.partial(reading_staged, place, asset, batch)
        with self._reading():
            source = place.open_input()
            self._file = pq.ParquetFile(
                source,
                metadata=_protected_metadata(source, file),
                read_dictionary=["metric"],
                pre_buffer=pre_buffer,
                page_checksum_verification=True,
            )
            if self._file.metadata.num_rows != file.rows:
                raise ValueError(f"it has {self._file.metadata.num_rows} rows, its manifest says {file.rows}")
        self.row_groups: int = self._file.num_row_groups
        self.columns: list[str] = self._file.schema_arrow.names

    def rows(self, row_group: int) -> int:
        """Rows of a row group."""
        return int(self._file.metadata.row_group(row_group).num_rows)

    def read(self, row_group: int, columns: tuple[str, ...] | None = None) -> pa.Table:
        """A row group, or some of its columns."""
        group = self._file.metadata.row_group(row_group)
        with self._reading(group.total_byte_size, group.num_rows):
            table = self._file.read_row_group(row_group, columns=None if columns is None else list(columns), use_threads=False)
            _check_columns(table, group.num_rows)
            return table


@contextlib.contextmanager
def reading_staged(place: Place, asset: str, batch: Batch, size: int | None = None, rows: int = 0) -> Iterator[None]:
    """Turns the errors of reading a staged file into ours. ``size`` and ``rows``: of the row group that is read, by the file's footer.

    Raises:
        StageCorruptError: the file is damaged; names it and the command that repairs it.
        ShortOfMemoryError: there is no memory for what its footer says.
        StorageError: the store cannot be reached, or denies access.
    """
    import pyarrow as pa

    what = f"staged file {place.uri} of {asset} {batch}"
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        lies = size is not None and is_false_claim(error, size, rows)
        if isinstance(error, MemoryError) and not lies:
            raise short_of_memory(what, error) from error
        # Not a missing file, nor network or disk: missing files were reported when the partition was checked to be complete.
        if not lies and not is_damage(error):
            # Translated here, not only where a step ends: an engine tries again for one of ours.
            if known := storage_error(error, place.uri, place.s3):
                raise known from error
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise StageCorruptError(f"{what} is damaged ({reason}); stage it again with `rollups backfill {batch} {batch} --force`") from error


def check_footer(place: Place, file: StagedFile) -> None:
    """Compare the end of a staged file with its digest, for readers that open the file themselves.

    Raises:
        ValueError: it is not the footer that was written.
    """
    if file.tail is not None:
        with place.open_input() as source:
            _protected_metadata(source, file)


def _check_columns(table: pa.Table, rows: int) -> None:
    """Check what page headers say: the number of values, and of names. No checksum protects it, and kernels rely on it.

    Raises:
        ValueError: a column has another number of values than the row group, or refers to names that do not exist.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    for name, column in zip(table.column_names, table.columns, strict=True):
        if len(column) != rows:
            raise ValueError(f"column {name} has {len(column)} values instead of {rows}")
        for chunk in column.chunks if pa.types.is_dictionary(column.type) else ():
            found = pc.min_max(chunk.indices).as_py()
            if found["max"] is not None and not 0 <= found["min"] <= found["max"] < len(chunk.dictionary):
                raise ValueError(f"column {name} refers to names that are not there")


def _protected_metadata(source: NativeFile, file: StagedFile) -> pq.FileMetaData | None:
    """The footer's metadata, checked against its digest; None if the manifest has no digest, or the footer is too large for one.

    Raises:
        ValueError: it is not the footer that was written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.tail is None:
        return None
    source.seek(max(file.size - _FOOTER_BYTES, 0))
    tail = bytes(source.read(_FOOTER_BYTES))
    source.seek(0)
    if xxhash.xxh3_64_hexdigest(tail) != file.tail:
        raise ValueError("its end is not what was written")
    footer = _footer_in(tail)
    return None if footer is None else pq.read_metadata(pa.BufferReader(footer))
