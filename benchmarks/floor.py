"""The floor: what decoding a stage's input and encoding its output costs by itself.

The same files, readers, writers and encodings as the product, on as many threads, and nothing in between. No program that keeps these
files can be faster than this without other encodings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Stopwatch
from benchmarks.sites import ONE, THREE, Site

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rollup_assets.storage.parquet import Encoding

ROWS_AT_ONCE = 1 << 20
"""Rows of each file that are loaded, then written, at once; enough to keep all threads busy until nearly the end."""


def repartition(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
    """Decode raw files, encode sorted shards."""
    from rollup_assets.storage.encodings import DATAPOINTS

    return _floor(site, site.raw_files, list(site.point_columns), site.sorted_files, DATAPOINTS, threads, watch)


def rollups_one(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
    """Decode sorted shards, encode rollups of 1 min."""
    return _rollups(site, ONE, threads, watch)


def rollups_three(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
    """Decode sorted shards, encode rollups of 1 min, 5 min and 1 h."""
    return _rollups(site, THREE, threads, watch)


def _rollups(site: Site, home: str, threads: int, watch: Stopwatch) -> dict[str, Any]:
    from rollup_assets.storage.encodings import ROLLUPS

    return _floor(site, site.sorted_files, None, site.rollup_files(home), ROLLUPS, threads, watch)


def _floor(
    site: Site, inputs: list[str], columns: list[str] | None, outputs: list[str], encoding: Encoding, threads: int, watch: Stopwatch
) -> dict[str, Any]:
    files = [_Copy(path, site.output / f"{Path(path).parts[-3]}-{Path(path).name}", encoding) for path in outputs]
    with ThreadPoolExecutor(threads) as pool:

        def each(task: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
            return list(pool.map(task, items))

        with watch.time("decode"):
            each(lambda path: sum(table.num_rows for table in _tables(path, columns)), inputs)
        # Everything to be written is in memory before the clock starts.
        while any(each(_Copy.load, files)):
            with watch.time("encode"):
                each(_Copy.write, files)
    return {"rows": sum(file.rows for file in files)}


class _Copy:
    """A file that is rewritten, some row groups at a time: a table of 30 million rows would not fit into memory."""

    def __init__(self, source: str, target: Path, encoding: Encoding) -> None:
        self._tables = _tables(source, None)
        self._target, self._encoding = target, encoding
        self._loaded: list[pa.Table] = []
        self._writer: pq.ParquetWriter | None = None
        self._ended = False
        self.rows = 0

    def load(self) -> bool:
        """Decode what is written next; returns whether the file has not ended yet."""
        while sum(table.num_rows for table in self._loaded) < ROWS_AT_ONCE and (table := next(self._tables, None)) is not None:
            self._loaded.append(_whole(table))
        return not self._ended

    def write(self) -> None:
        """Encode what is loaded, and end the file with the last of it."""
        import pyarrow.parquet as pq

        if self._ended:
            return
        if self._loaded and self._writer is None:
            first = self._loaded[0]
            self._writer = pq.ParquetWriter(self._target, first.schema, **self._encoding.options(first.schema, first))
        for table in self._loaded:
            assert self._writer is not None
            self._writer.write_table(table, row_group_size=table.num_rows)
            self.rows += table.num_rows
        self._ended = sum(table.num_rows for table in self._loaded) < ROWS_AT_ONCE
        if self._ended and self._writer is not None:
            self._writer.close()
        self._loaded.clear()


def _tables(path: str, columns: list[str] | None) -> Iterator[pa.Table]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, read_dictionary=["metric"])
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=columns, use_threads=False)


def _whole(table: pa.Table) -> pa.Table:
    return table if all(column.num_chunks == 1 for column in table.columns) else table.unify_dictionaries().combine_chunks()
