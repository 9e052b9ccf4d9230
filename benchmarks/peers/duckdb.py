"""DuckDB's contenders: several ways in which its experts would write each task; the fastest one competes.

All use as many threads as we do, and ``preserve_insertion_order = false`` if order does not matter; DuckDB chooses its memory itself and
respects control groups. The shard is ``id & 15``, which costs less than Iceberg's hash. Rollups are unordered and have no shard.

Steps between points: ``lag`` over one partition per series or, if points are in order, over the whole file, which DuckDB streams without
sorting.

Not among the forms: joining metric and org after the sort (faster, but a join does not keep the order), one sort per shard from a table
in memory, and grouping by one packed integer (both slower); ``last`` instead of ``arg_max`` for points in order (no faster).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Stopwatch
from benchmarks.peers.common import CLOSED, LABEL, MINUTE, FilesOf, file_by_file, of_raw, of_sorted, received
from benchmarks.sites import BATCH_START, HOUR_MS, RECEIVED, Site
from benchmarks.tasks import RAW_TO_1M, RAW_TO_1M_FULL, REPARTITION, ROLLUPS_1M, ROLLUPS_1M_FULL, Form

if TYPE_CHECKING:
    import duckdb


def _connect(site: Site, threads: int, *, in_order: bool = False) -> duckdb.DuckDBPyConnection:
    import duckdb

    return duckdb.connect(config={"threads": threads, "preserve_insertion_order": in_order, "temp_directory": str(site.output / "spill")})


def _read(files: list[str]) -> str:
    return f"read_parquet({files!r})"


def _copy(db: duckdb.DuckDBPyConnection, query: str, target: Path, compression: str) -> None:
    db.execute(f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION {compression})")


def _sort_with(query: str, compression: str, *, enum: bool = False) -> Form:
    def sort(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
        db = _connect(site, threads)
        with watch.time("sort and write"):
            raw = _read(site.raw_files)
            if enum:
                # Then the rows to sort have two bytes for the metric instead of a string.
                db.execute(f"CREATE TYPE metric_name AS ENUM (SELECT DISTINCT metric FROM {raw} ORDER BY metric)")
                raw = f"(SELECT * REPLACE (metric::metric_name AS metric) FROM {raw})"
            _copy(db, query.format(points=", ".join(site.point_columns), raw=raw), site.output / "sorted.parquet", compression)
        return {}

    return sort


_ORDER_BY = "SELECT {points} FROM {raw} ORDER BY id & 15, metric, org_id, id, logical_timestamp"
_SERIES = """
    SELECT id AS series, row_number() OVER (ORDER BY id & 15, metric, org_id, id)::BIGINT AS place
    FROM (SELECT id, any_value(metric) AS metric, any_value(org_id) AS org_id FROM {raw} GROUP BY id)
"""
# A series has one metric and org, so its place in the order can be looked up: then two integers are compared instead of five columns.
_BY_PLACE = "WITH series AS (" + _SERIES + ") SELECT {points} FROM {raw} JOIN series ON id = series ORDER BY place, logical_timestamp"
# Place and time in one number: a single key of eight bytes.
_PACKED = f"place * {HOUR_MS}::BIGINT + (logical_timestamp - {BATCH_START})"
_BY_PACKED_PLACE = _BY_PLACE.replace("place, logical_timestamp", _PACKED)


def _aggregates(site: Site) -> str:
    value = site.value_column
    kind = "BIGINT" if value == "long_value" else "DOUBLE"
    return (
        f"count(*) AS count_rollup, sum({value})::{kind} AS sum_rollup, min({value}) AS min_rollup, max({value}) AS max_rollup, "
        f"sum({value})::DOUBLE / count(*) AS average_rollup, arg_max({value}, logical_timestamp) AS latest_rollup"
    ) + (f", avg({RECEIVED} - logical_timestamp) AS lag_rollup" if received(site) else "")


def _grouped(site: Site, source: str, keys: str, more: str = "") -> str:
    """Windows of points; ``keys``: which columns name a series."""
    if keys == "joined":
        return f"""
            SELECT * FROM (SELECT id, {LABEL} AS label, {_aggregates(site)}{more} FROM {source} WHERE {CLOSED} GROUP BY id, label)
            JOIN (SELECT id, any_value(org_id) AS org_id, any_value(metric) AS metric FROM {source} GROUP BY id) USING (id)
        """
    if keys == "all":
        return f"""
            SELECT id, org_id, metric, {LABEL} AS label, {_aggregates(site)}{more}
            FROM {source} WHERE {CLOSED} GROUP BY id, org_id, metric, label
        """
    return f"""
        SELECT id, any_value(org_id) AS org_id, any_value(metric) AS metric, {LABEL} AS label, {_aggregates(site)}{more}
        FROM {source} WHERE {CLOSED} GROUP BY id, label
    """


def _stepped(site: Site, files: list[str], lag: str) -> str:
    """Points with the previous value as ``before``: null at a series' first point."""
    value, source = site.value_column, _read(files)
    if lag == "streamed":
        return f"(SELECT *, CASE WHEN lag(id) OVER () = id THEN lag({value}) OVER () END AS before FROM {source})"
    if lag == "sorted, then streamed":
        columns = ", ".join(site.point_columns)
        return f"""(
            SELECT *, CASE WHEN lag(id) OVER () = id THEN lag({value}) OVER () END AS before FROM (
                SELECT {columns} FROM {source} JOIN ({_SERIES.format(raw=source)}) ON id = series ORDER BY {_PACKED}
            )
        )"""
    if lag == "by place":
        return f"""(
            SELECT {", ".join(site.point_columns)}, lag({value}) OVER (PARTITION BY place ORDER BY logical_timestamp) AS before
            FROM {source} JOIN ({_SERIES.format(raw=source)}) ON id = series
        )"""
    return f"(SELECT *, lag({value}) OVER (PARTITION BY id ORDER BY logical_timestamp) AS before FROM {source})"


def _query(site: Site, files: list[str], keys: str, lag: str) -> str:
    if not lag:
        return _grouped(site, _read(files), keys)
    value = site.value_column
    kind = "BIGINT" if value == "long_value" else "DOUBLE"
    step = f"CASE WHEN {value} >= before THEN {value} - before WHEN before IS NOT NULL THEN {value} END"
    more = f", sum({step})::{kind} AS delta_rollup, count(*) FILTER (WHERE {value} < before) AS resets_rollup"
    windows = _grouped(site, _stepped(site, files, lag), keys, more)
    return f"SELECT *, delta_rollup / {MINUTE}::DOUBLE AS rate_rollup FROM ({windows})"


def _rollups(files_of: FilesOf, compression: str, keys: str = "", lag: str = "", *, file_by_file_: bool = False) -> Form:
    """``file_by_file_``: one query per file, so that hash tables stay small; several at a time, one thread each."""

    def roll_up(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
        in_order = lag.endswith("streamed")
        files = files_of(site)

        def one(number: int, file: str) -> None:
            query = _query(site, [file], keys, lag)
            _copy(_connect(site, 1, in_order=in_order), query, site.output / f"rollups-{number}.parquet", compression)

        with watch.time("rollups"):
            if file_by_file_:
                file_by_file(files, threads, one)
            else:
                query = _query(site, files, keys, lag)
                _copy(_connect(site, threads, in_order=in_order), query, site.output / "rollups.parquet", compression)
        return {}

    return roll_up


def _partitioned(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
    """First distribute points to files by id, so that each file's hash table fits into memory; then run one query per file."""
    folder = site.output / "partitioned"
    columns = ", ".join(site.point_columns)
    with watch.time("partition"):
        _connect(site, threads).execute(
            f"COPY (SELECT {columns}, id % {_PARTITIONS} AS partition FROM {_read(site.raw_files)} WHERE {CLOSED}) TO '{folder}' "
            "(FORMAT parquet, COMPRESSION lz4_raw, PARTITION_BY (partition))"
        )

    def one(number: int, of: str) -> None:
        source = f"read_parquet('{of}/*.parquet', hive_partitioning = false)"
        _copy(_connect(site, 1), _grouped(site, source, "all"), site.output / f"rollups-{number}.parquet", "lz4_raw")

    with watch.time("rollups"):
        file_by_file(sorted(map(str, folder.iterdir())), threads, one)
    return {}


PARTITIONED = "partitioned by id, then part by part, group by all keys, lz4"
"""For more windows than fit into memory: grouping 686 M of them at once under 6 GiB had written more than 40 GB when the disk was full."""
_PARTITIONS = 64

FORMS: dict[str, dict[str, Form]] = {
    REPARTITION: {
        "order by packed place and time, metric as enum, zstd": _sort_with(_BY_PACKED_PLACE, "zstd", enum=True),
        "order by packed place and time, metric as enum, lz4": _sort_with(_BY_PACKED_PLACE, "lz4_raw", enum=True),
        "order by place of series, metric as enum, lz4": _sort_with(_BY_PLACE, "lz4_raw", enum=True),
        "order by, lz4": _sort_with(_ORDER_BY, "lz4_raw"),
    },
    ROLLUPS_1M: {
        "shard by shard, lz4": _rollups(of_sorted, "lz4_raw", file_by_file_=True),
        "shard by shard, zstd": _rollups(of_sorted, "zstd", file_by_file_=True),
        "shard by shard, group by all keys, lz4": _rollups(of_sorted, "lz4_raw", "all", file_by_file_=True),
        "dimensions joined, lz4": _rollups(of_sorted, "lz4_raw", "joined"),
        "group by id and label, lz4": _rollups(of_sorted, "lz4_raw"),
    },
    ROLLUPS_1M_FULL: {
        "lag streamed, shard by shard, lz4": _rollups(of_sorted, "lz4_raw", lag="streamed", file_by_file_=True),
        "lag streamed, shard by shard, group by all keys, lz4": _rollups(of_sorted, "lz4_raw", "all", "streamed", file_by_file_=True),
        "lag by series, shard by shard, lz4": _rollups(of_sorted, "lz4_raw", lag="by series", file_by_file_=True),
        "lag by series, lz4": _rollups(of_sorted, "lz4_raw", lag="by series"),
    },
    RAW_TO_1M: {
        "group by all keys, lz4": _rollups(of_raw, "lz4_raw", "all"),
        "dimensions joined, lz4": _rollups(of_raw, "lz4_raw", "joined"),
        "group by id and label, lz4": _rollups(of_raw, "lz4_raw"),
        "group by id and label, zstd": _rollups(of_raw, "zstd"),
        PARTITIONED: _partitioned,
    },
    RAW_TO_1M_FULL: {
        "lag by series, lz4": _rollups(of_raw, "lz4_raw", lag="by series"),
        "lag by place of series, lz4": _rollups(of_raw, "lz4_raw", lag="by place"),
        "sorted by packed place and time, lag streamed, lz4": _rollups(of_raw, "lz4_raw", lag="sorted, then streamed"),
    },
}
