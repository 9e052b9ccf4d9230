"""SQL over the published table: DuckDB, with the current snapshot as the view ``rollups``.

Only the columns and row groups that a query asks for are read. Min and max of a row group rarely exclude an id, since ids look like
hashes. Filter by shard too: ``WHERE id = 7 AND metric_shard_id = shard(7)`` reads one shard, and with metric and organization as well
one row group of it. Printing the answer stays out.
"""

from __future__ import annotations

import contextlib
import queue
import time
from typing import TYPE_CHECKING, TypeVar

from rollup_assets.errors import QueryError
from rollup_assets.interruptible import wait_for_one
from rollup_assets.settings import Settings
from rollup_assets.storage.storage_errors import explains_storage_errors
from rollup_assets.threads import thread_pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import ThreadPoolExecutor

    import pyarrow as pa
    from duckdb import DuckDBPyConnection

Result = TypeVar("Result")
Given = TypeVar("Given")

VIEW = "rollups"
# Iceberg's bucket of a long, murmur3 of its eight bytes, as DuckDB macros: for a constant id it is a constant, which the scan gets as a
# filter. A function in Python would do the same, but makes DuckDB report leaked types as the process ends.
_SHARD = """
CREATE MACRO rotated(x, bits) AS ((x << bits) | (x >> (32 - bits))) & 4294967295;
CREATE MACRO times(x, factor) AS (x * factor::UBIGINT) & 4294967295;
CREATE MACRO mixed(word) AS times(rotated(times(word, 3432918353), 15), 461845907);
CREATE MACRO added(hash, word) AS (rotated(xor(hash, mixed(word)), 13) * 5 + 3864292196) & 4294967295;
CREATE MACRO hashed(id) AS added(added(0::UBIGINT, (id::BIGINT & 4294967295)::UBIGINT), ((id::BIGINT >> 32) & 4294967295)::UBIGINT);
CREATE MACRO finished(hash) AS times(xor(hash, hash >> 16), 2246822507);
CREATE MACRO finished_again(hash) AS times(xor(hash, hash >> 13), 3266489909);
CREATE MACRO murmur3(hash) AS xor(finished_again(finished(xor(hash, 8))), finished_again(finished(xor(hash, 8))) >> 16);
CREATE MACRO shard(id) AS ((murmur3(hashed(id)) & 2147483647) % {shards})::INTEGER;
"""


# As many rows as DuckDB makes at once: one of its row groups.
_ROWS_AT_ONCE = 122_880
_NAP = 0.1


def query(settings: Settings, sql: str) -> pa.Table:
    """The whole answer to one statement, otherwise like :func:`stream`; it takes memory on top of what the statement uses.

    Raises:
        QueryError: as :func:`stream`.
    """
    import pyarrow as pa

    return stream(settings, sql, lambda schema, batches: pa.Table.from_batches(batches, schema))


@explains_storage_errors
def stream(settings: Settings, sql: str, take: Callable[[pa.Schema, Iterator[pa.RecordBatch]], Result]) -> Result:
    """Answer one statement: returns what ``take`` makes of the answer's schema and rows, which come some at a time, however many there are.

    The statement sees only the view: no files, no network, no extensions. Times are UTC. Column names are unique: of columns with the same
    name, all but the first are numbered, such as ``a_1``.

    Raises:
        QueryError: there is no table yet, or DuckDB refuses the statement; the message says why.
        TableMismatchError: another engine has changed the table's columns.
    """
    import duckdb
    import pyarrow as pa

    from rollup_assets.iceberg.catalog import open_catalog
    from rollup_assets.iceberg.reading import snapshot_dataset
    from rollup_assets.iceberg.table import SHARDS_PROPERTY, load_readable_table

    with open_catalog(settings) as catalog:
        table = load_readable_table(catalog, settings)
        if table is None:
            raise _no_table(settings)
        # The table's own number of shards: the settings may have changed since.
        shards = int(table.properties.get(SHARDS_PROPERTY, settings.shards))
        config: dict[str, str | bool | int | float | list[str]] = {
            "threads": settings.threads,
            "memory_limit": f"{settings.memory // 2**20}MiB",
            # Nothing is spilled: a statement may write to any folder that DuckDB may spill to (COPY, also below a WITH).
            "temp_directory": "",
        }
        with duckdb.connect(config=config) as db:
            # The statement may come from untrusted users of another program. Not set above: without access, no folder can be set there.
            db.execute("SET enable_external_access = false")
            db.execute("SET TimeZone = 'UTC'")
            db.execute(_SHARD.format(shards=shards))
            db.register(VIEW, snapshot_dataset(table))
            db.execute("SET lock_configuration = true")
            with thread_pool(1, "answer") as pool:

                def interruptible(step: Callable[[], Given]) -> Given:
                    return _interruptible(db, pool, step)

                try:
                    found = interruptible(lambda: _answer(db, sql))
                except duckdb.Error as error:
                    raise _refused(settings, error) from None
                with contextlib.closing(found):
                    names = _distinct(found.schema.names)
                    schema = pa.schema([field.with_name(name) for field, name in zip(found.schema, names, strict=True)])
                    return take(schema, _batches(settings, lambda: interruptible(found.read_next_batch), names))


def _no_table(settings: Settings) -> QueryError:
    from rollup_assets.iceberg.faults import shown

    embedded = shown(settings) == f"ROLLUP_CATALOG=sqlite:///{settings.home / 'catalog.db'}"
    # Of a catalog that others use, another name is the likelier cause, and the demo's data would go there too.
    other = "try `rollups demo`" if embedded else "correct ROLLUP_TABLE or ROLLUP_CATALOG_NAME"
    return QueryError(
        f"there is no table {settings.table} in {shown(settings)} yet; publish to it with `rollups backfill FROM TO`, or {other}"
    )


def _answer(db: DuckDBPyConnection, sql: str) -> pa.RecordBatchReader:
    import pyarrow as pa

    answer = db.sql(sql)
    # A statement such as SET has no answer.
    return pa.table({}).to_reader() if answer is None else answer.to_arrow_reader(_ROWS_AT_ONCE)


def _batches(settings: Settings, read: Callable[[], pa.RecordBatch], names: Sequence[str]) -> Iterator[pa.RecordBatch]:
    while True:
        try:
            batch = read()
        except StopIteration:
            return
        except OSError as error:  # Arrow turns DuckDB's own errors into this
            raise _refused(settings, error) from None
        yield batch.rename_columns(names)


def _interruptible(db: DuckDBPyConnection, pool: ThreadPoolExecutor, step: Callable[[], Given]) -> Given:
    """The result of a DuckDB step, unless Ctrl-C ends it first.

    In the main thread DuckDB 2.0 heeds Ctrl-C only in some phases, and not while it looks for the next rows of an answer that is read
    through Arrow, which takes minutes if few rows match.
    """
    ended: queue.SimpleQueue[None] = queue.SimpleQueue()
    running = pool.submit(step)
    running.add_done_callback(lambda _: ended.put(None))
    try:
        wait_for_one(ended)
    except BaseException:
        # Repeatedly, since an interrupt that comes before DuckDB has begun is lost.
        while not running.done():
            db.interrupt()
            time.sleep(_NAP)
        raise
    return running.result()


def _refused(settings: Settings, error: Exception) -> QueryError:
    if "Out of Memory Error" not in str(error):
        return QueryError(str(error))
    return QueryError(
        f"the statement needs more than ROLLUP_MEMORY={settings.memory // 2**20}MiB, and spills nothing to disk; set it higher, or query "
        "less at a time, such as one metric or one day"
    )


def _distinct(names: Sequence[str]) -> list[str]:
    """Column names, numbered if they repeat."""
    found: list[str] = []
    for name in names:
        distinct, number = name, 0
        while distinct in found or (number and distinct in names):
            number += 1
            distinct = f"{name}_{number}"
        found.append(distinct)
    return found
