"""DuckDB's contenders: several ways in which its experts would write each task; the fastest one competes.

All with as many threads as we have and ``preserve_insertion_order = false``; memory as DuckDB likes. The shard is ``id & 15``, which
costs less than Iceberg's hash. Rollups have neither delta nor shard, and no order.

Not among the forms: joining metric and org after the sort (faster, but a join does not keep the order), one sort a shard from a
table in memory, and grouping by one packed integer (both slower).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Stopwatch
from benchmarks.sites import BATCH_END, BATCH_START, HOUR_MS, RECEIVED, Site

if TYPE_CHECKING:
    import duckdb

Run = Callable[[Site, int, Stopwatch], dict[str, Any]]
_LABEL = "(logical_timestamp + 59999) // 60000 * 60000"
# The window labelled with the batch's end stays open: it is the next batch's.
_CLOSED = f"logical_timestamp <= {BATCH_END - 60_000}"
_AGGREGATES = """
    count(*) AS count_rollup, sum(long_value)::BIGINT AS sum_rollup, min(long_value) AS min_rollup, max(long_value) AS max_rollup,
    sum(long_value)::DOUBLE / count(*) AS average_rollup, arg_max(long_value, logical_timestamp) AS latest_rollup
"""
_LAG = f", avg({RECEIVED} - logical_timestamp) AS lag_rollup"


def _connect(site: Site, threads: int) -> duckdb.DuckDBPyConnection:
    import duckdb

    return duckdb.connect(config={"threads": threads, "preserve_insertion_order": False, "temp_directory": str(site.output / "spill")})


def _read(files: list[str]) -> str:
    return f"read_parquet({files!r})"


def _copy(db: duckdb.DuckDBPyConnection, query: str, target: Path, compression: str, more: str = "") -> None:
    db.execute(f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION {compression}{more})")


def _sort_with(query: str, compression: str, *, enum: bool = False) -> Run:
    def sort(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
        db = _connect(site, threads)
        with watch.time("sort and write"):
            raw = _read(site.raw_files)
            if enum:
                # What is sorted then carries two bytes for the metric instead of a string.
                db.execute(f"CREATE TYPE metric_name AS ENUM (SELECT DISTINCT metric FROM {raw} ORDER BY metric)")
                raw = f"(SELECT * REPLACE (metric::metric_name AS metric) FROM {raw})"
            _copy(db, query.format(points=", ".join(site.point_columns), raw=raw), site.output / "sorted.parquet", compression)
        return {}

    return sort


_ORDER_BY = "SELECT {points} FROM {raw} ORDER BY id & 15, metric, org_id, id, logical_timestamp"
# A series has one metric and org: its place in the order is looked up, and two integers are compared instead of five columns.
_BY_PLACE = """
    WITH series AS (
        SELECT id AS series, row_number() OVER (ORDER BY id & 15, metric, org_id, id)::INTEGER AS place
        FROM (SELECT id, any_value(metric) AS metric, any_value(org_id) AS org_id FROM {raw} GROUP BY id)
    )
    SELECT {points} FROM {raw} JOIN series ON id = series ORDER BY place, logical_timestamp
"""

# Place and time in one number: a single key of eight bytes.
_BY_PACKED_PLACE = _BY_PLACE.replace("place, logical_timestamp", f"place * {HOUR_MS}::BIGINT + (logical_timestamp - {BATCH_START})")


def _rollups(
    db: duckdb.DuckDBPyConnection,
    site: Site,
    files: list[str],
    target: Path,
    compression: str,
    *,
    series_join: bool = False,
    all_keys: bool = False,
) -> None:
    source = _read(files)
    aggregates = _AGGREGATES + (_LAG if RECEIVED in site.point_columns else "")
    if series_join:
        query = f"""
            SELECT * FROM (SELECT id, {_LABEL} AS label, {aggregates} FROM {source} WHERE {_CLOSED} GROUP BY id, label)
            JOIN (SELECT id, any_value(org_id) AS org_id, any_value(metric) AS metric FROM {source} GROUP BY id) USING (id)
        """
    elif all_keys:
        query = (
            f"SELECT id, org_id, metric, {_LABEL} AS label, {aggregates} FROM {source} WHERE {_CLOSED} GROUP BY id, org_id, metric, label"
        )
    else:
        query = f"""
            SELECT id, any_value(org_id) AS org_id, any_value(metric) AS metric, {_LABEL} AS label, {aggregates}
            FROM {source} WHERE {_CLOSED} GROUP BY id, label
        """
    _copy(db, query, target, compression)


def _rollups_of(files_of: Callable[[Site], list[str]], compression: str, **form: Any) -> Run:
    def roll_up(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
        db = _connect(site, threads)
        with watch.time("rollups"):
            _rollups(db, site, files_of(site), site.output / "rollups.parquet", compression, **form)
        return {}

    return roll_up


def _shard_by_shard(compression: str) -> Run:
    """A query a sorted file, so that hash tables stay small; several at a time, one thread each."""

    def roll_up(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
        files = list(enumerate(site.sorted_files))
        errors: list[BaseException] = []

        def work() -> None:
            try:
                db = _connect(site, 1)
                while files:
                    number, file = files.pop()
                    _rollups(db, site, [file], site.output / f"rollups-{number}.parquet", compression)
            except BaseException as error:
                errors.append(error)

        with watch.time("rollups"):
            workers = [threading.Thread(target=work) for _ in range(threads)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
        if errors:
            raise errors[0]
        return {}

    return roll_up


def _sorted(site: Site) -> list[str]:
    return site.sorted_files


def _raw(site: Site) -> list[str]:
    return site.raw_files


FORMS: dict[str, dict[str, Run]] = {
    "repartition": {
        "order by, lz4": _sort_with(_ORDER_BY, "lz4_raw"),
        "order by place of series, metric as enum, lz4": _sort_with(_BY_PLACE, "lz4_raw", enum=True),
        "order by packed place and time, metric as enum, lz4": _sort_with(_BY_PACKED_PLACE, "lz4_raw", enum=True),
        "order by packed place and time, metric as enum, zstd": _sort_with(_BY_PACKED_PLACE, "zstd", enum=True),
    },
    "rollups-1m": {
        "group by id and label, lz4": _rollups_of(_sorted, "lz4_raw"),
        "dimensions joined, lz4": _rollups_of(_sorted, "lz4_raw", series_join=True),
        "shard by shard, lz4": _shard_by_shard("lz4_raw"),
        "shard by shard, zstd": _shard_by_shard("zstd"),
    },
    "raw-to-1m": {
        "group by id and label, lz4": _rollups_of(_raw, "lz4_raw"),
        "group by id and label, zstd": _rollups_of(_raw, "zstd"),
        "group by all keys, lz4": _rollups_of(_raw, "lz4_raw", all_keys=True),
        "dimensions joined, lz4": _rollups_of(_raw, "lz4_raw", series_join=True),
    },
}
