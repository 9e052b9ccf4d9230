"""ClickHouse's contenders, in this process (chDB): several ways in which its experts would write each task; the fastest one competes.

Column types are given, so that ClickHouse has no nullable columns except receive times, and the metric is ``LowCardinality``, unless a
form says "as found". The shard is ``bitAnd(id, 15)``, which costs less than Iceberg's hash. Rollups are unordered and have no shard.

Steps between points: ``lagInFrame`` over one partition per series, or over a whole file of points in order on one thread; or arrays of
each series' points, sorted and shifted.

Not among the forms: a MergeTree table in between, which would have to be written and merged in addition; ``anyLast`` instead of
``argMax`` for points in order (no faster).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.measure import Stopwatch
from benchmarks.peers.common import CLOSED, MINUTE, FilesOf, file_by_file, of_raw, of_sorted, received
from benchmarks.sites import BATCH_START, HOUR_MS, RECEIVED, Site
from benchmarks.tasks import RAW_TO_1M, RAW_TO_1M_FULL, REPARTITION, ROLLUPS_1M, ROLLUPS_1M_FULL, Form

if TYPE_CHECKING:
    from pathlib import Path

_LABEL = "intDiv(logical_timestamp + 59999, 60000) * 60000"


def _read(site: Site, files: list[str], *, as_found: bool = False) -> str:
    """A table function that reads files of one folder, or a single file."""
    path = files[0] if len(files) == 1 else f"{files[0].rpartition('/')[0]}/*.parquet"
    types = {"metric": "LowCardinality(String)", "double_value": "Float64", RECEIVED: "Nullable(Int64)"}
    structure = ", ".join(f"{name} {types.get(name, 'Int64')}" for name in site.point_columns)
    return f"file('{path}', Parquet)" if as_found else f"file('{path}', Parquet, '{structure}')"


def _write(threads: int, query: str, target: Path, compression: str, more: str = "") -> None:
    import chdb

    settings = f"max_threads = {threads}, output_format_parquet_compression_method = '{compression}'{more}"
    connection = chdb.connect(":memory:")
    try:
        connection.query(f"INSERT INTO FUNCTION file('{target}', Parquet) {query} SETTINGS {settings}")
    finally:
        connection.close()


_ORDER_BY = "SELECT {points} FROM {raw} ORDER BY bitAnd(id, 15), metric, org_id, id, logical_timestamp"
_PLACES = """
    SELECT id AS series, toInt64(row_number() OVER (ORDER BY bitAnd(id, 15), metric, org_id, id)) AS place
    FROM (SELECT id, any(metric) AS metric, any(org_id) AS org_id FROM {raw} GROUP BY id)
"""
_BY_PACKED_PLACE = f"""
    SELECT {{points}} FROM {{raw}} AS points JOIN ({_PLACES}) AS places ON id = series
    ORDER BY place * {HOUR_MS} + (logical_timestamp - {BATCH_START})
"""


def _sort_with(query: str, compression: str, *, as_found: bool = False) -> Form:
    def sort(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
        with watch.time("sort and write"):
            whole = query.format(points=", ".join(site.point_columns), raw=_read(site, site.raw_files, as_found=as_found))
            _write(threads, whole, site.output / "sorted.parquet", compression)
        return {}

    return sort


def _aggregates(site: Site) -> str:
    value = site.value_column
    return (
        f"toInt64(count()) AS count_rollup, sum({value}) AS sum_rollup, min({value}) AS min_rollup, max({value}) AS max_rollup, "
        f"sum({value}) / count() AS average_rollup, argMax({value}, logical_timestamp) AS latest_rollup"
    ) + (f", avg({RECEIVED} - logical_timestamp) AS lag_rollup" if received(site) else "")


def _stepped(site: Site, files: list[str], form: str) -> str:
    """Points with the previous value as ``before``: null at a series' first point."""
    value, source = site.value_column, _read(files=files, site=site)
    nullable = f"toNullable({value})"
    frame = "ROWS BETWEEN 1 PRECEDING AND CURRENT ROW"
    if "streamed" in form:
        before = f"if(lagInFrame(id) OVER w = id, lagInFrame({nullable}) OVER w, NULL)"
        return f"(SELECT *, {before} AS before FROM {source} WINDOW w AS ({frame}))"
    if "arrays" in form:
        columns = f"logical_timestamp, {value}" + (f", {RECEIVED}" if received(site) else "")
        names = {name: number for number, name in enumerate(columns.split(", "), start=1)}
        unpacked = ", ".join(f"point.{number} AS {name}" for name, number in names.items())
        return f"""(
            SELECT id, org_id, metric, {unpacked}, before FROM (
                SELECT id, any(org_id) AS org_id, any(metric) AS metric, arraySort(groupArray(({columns}))) AS points,
                    arrayPushFront(arrayPopBack(arrayMap(point -> toNullable(point.2), points)), NULL) AS befores
                FROM {source} GROUP BY id
            ) ARRAY JOIN points AS point, befores AS before
        )"""
    return f"(SELECT *, lagInFrame({nullable}) OVER (PARTITION BY id ORDER BY logical_timestamp {frame}) AS before FROM {source})"


def _query(site: Site, files: list[str], form: str) -> str:
    value, more, rate = site.value_column, "", ""
    source = _read(site, files, as_found="as found" in form)
    if "lag" in form or "arrays" in form:
        source = _stepped(site, files, form)
        step = f"multiIf({value} >= before, {value} - before, isNull(before), NULL, {value})"
        more = f", sum({step}) AS delta_rollup, toInt64(countIf({value} < before)) AS resets_rollup"
        rate = f", delta_rollup / {MINUTE} AS rate_rollup"
    aggregates = _aggregates(site) + more + rate
    if "joined" in form:
        return f"""
            SELECT windows.*, series.org_id, series.metric
            FROM (SELECT id, {_LABEL} AS label, {aggregates} FROM {source} WHERE {CLOSED} GROUP BY id, label) AS windows
            JOIN (SELECT id, any(org_id) AS org_id, any(metric) AS metric FROM {source} GROUP BY id) AS series ON windows.id = series.id
        """
    if "all keys" in form:
        return f"SELECT id, org_id, metric, {_LABEL} AS label, {aggregates} FROM {source} WHERE {CLOSED} GROUP BY id, org_id, metric, label"
    return f"""
        SELECT id, any(org_id) AS org_id, any(metric) AS metric, {_LABEL} AS label, {aggregates}
        FROM {source} WHERE {CLOSED} GROUP BY id, label
    """


def _rollups(files_of: FilesOf, form: str, compression: str, *, alone: bool = False) -> Form:
    """``alone``: one query per file, several at a time, one thread each."""
    in_order = ", input_format_parquet_preserve_order = 1" if "streamed" in form else ""

    def roll_up(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
        files = files_of(site)

        def one(number: int, file: str) -> None:
            _write(1, _query(site, [file], form), site.output / f"rollups-{number}.parquet", compression, in_order)

        with watch.time("rollups"):
            if alone:
                file_by_file(files, threads, one)
            else:
                _write(threads, _query(site, files, form), site.output / "rollups.parquet", compression, in_order)
        return {}

    return roll_up


FORMS: dict[str, dict[str, Form]] = {
    REPARTITION: {
        "order by packed place and time, lz4": _sort_with(_BY_PACKED_PLACE, "lz4"),
        "order by packed place and time, zstd": _sort_with(_BY_PACKED_PLACE, "zstd"),
        "order by, lz4": _sort_with(_ORDER_BY, "lz4"),
        "order by, columns as found, lz4": _sort_with(_ORDER_BY, "lz4", as_found=True),
    },
    ROLLUPS_1M: {
        "shard by shard, lz4": _rollups(of_sorted, "", "lz4", alone=True),
        "shard by shard, zstd": _rollups(of_sorted, "", "zstd", alone=True),
        "shard by shard, dimensions joined, lz4": _rollups(of_sorted, "joined", "lz4", alone=True),
        "shard by shard, group by all keys, lz4": _rollups(of_sorted, "all keys", "lz4", alone=True),
        "group by id and label, lz4": _rollups(of_sorted, "", "lz4"),
        "group by id and label, columns as found, lz4": _rollups(of_sorted, "as found", "lz4"),
    },
    ROLLUPS_1M_FULL: {
        "lag streamed, shard by shard, lz4": _rollups(of_sorted, "lag streamed", "lz4", alone=True),
        "lag by series, shard by shard, lz4": _rollups(of_sorted, "lag", "lz4", alone=True),
        "arrays, shard by shard, lz4": _rollups(of_sorted, "arrays", "lz4", alone=True),
        "lag by series, lz4": _rollups(of_sorted, "lag", "lz4"),
    },
    RAW_TO_1M: {
        "group by id and label, lz4": _rollups(of_raw, "", "lz4"),
        "group by id and label, zstd": _rollups(of_raw, "", "zstd"),
        "group by all keys, lz4": _rollups(of_raw, "all keys", "lz4"),
        "dimensions joined, lz4": _rollups(of_raw, "joined", "lz4"),
        "group by id and label, columns as found, lz4": _rollups(of_raw, "as found", "lz4"),
    },
    RAW_TO_1M_FULL: {
        "lag by series, lz4": _rollups(of_raw, "lag", "lz4"),
        "arrays, lz4": _rollups(of_raw, "arrays", "lz4"),
    },
}
