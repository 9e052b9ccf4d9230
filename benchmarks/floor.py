"""The floor: what decoding a stage's input and encoding its output costs by itself.

The same files, readers, writers and encodings as the product, on as many threads, and nothing in between. No program that keeps these
files can be faster than this without other encodings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Stopwatch
from benchmarks.sites import ONE, THREE, Site

if TYPE_CHECKING:
    import pyarrow as pa

    from rollup_assets.storage.parquet import Encoding


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
    with ThreadPoolExecutor(threads) as pool:

        def each(task: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
            return list(pool.map(task, items))

        with watch.time("decode"):
            each(lambda path: sum(table.num_rows for table in _tables(path, columns)), inputs)
        # What is written is in memory before the clock runs.
        loaded = each(
            lambda path: (site.output / f"{Path(path).parts[-3]}-{Path(path).name}", [_whole(table) for table in _tables(path, None)]),
            outputs,
        )
        with watch.time("encode"):
            each(lambda item: _write(item[0], item[1], encoding), loaded)
    return {"rows": sum(table.num_rows for _, tables in loaded for table in tables)}


def _tables(path: str, columns: list[str] | None) -> Iterable[pa.Table]:
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path, read_dictionary=["metric"])
    for group in range(file.num_row_groups):
        yield file.read_row_group(group, columns=columns, use_threads=False)


def _whole(table: pa.Table) -> pa.Table:
    return table if all(column.num_chunks == 1 for column in table.columns) else table.unify_dictionaries().combine_chunks()


def _write(path: Path, tables: list[pa.Table], encoding: Encoding) -> None:
    import pyarrow.parquet as pq

    with pq.ParquetWriter(path, tables[0].schema, **encoding.options(tables[0].schema, tables[0])) as writer:
        for table in tables:
            writer.write_table(table, row_group_size=table.num_rows)
