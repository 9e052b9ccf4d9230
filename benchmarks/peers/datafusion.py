"""DataFusion's contenders: several ways in which its experts would write each task; the fastest one competes.

One partition per thread unless a form says otherwise. Sorted files are declared as such (``WITH ORDER``), so that windows and groups of a
series are streamed rather than hashed or sorted. The shard is ``id & 15``, which costs less than Iceberg's hash. Rollups are unordered
and have no shard.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Stopwatch
from benchmarks.peers.common import CLOSED, MINUTE, FilesOf, file_by_file, of_raw, of_sorted, received
from benchmarks.sites import BATCH_START, HOUR_MS, RECEIVED, Site
from benchmarks.tasks import RAW_TO_1M, RAW_TO_1M_FULL, REPARTITION, ROLLUPS_1M, ROLLUPS_1M_FULL, Form

if TYPE_CHECKING:
    from datafusion import SessionContext

_LABEL = "(logical_timestamp + 59999) / 60000 * 60000"
_ORDER = ("metric", "org_id", "id", "logical_timestamp")
_SERIES_OF_ORDER = "metric, org_id, id"


def _context(site: Site, partitions: int, files: list[str], *, in_order: bool = False) -> SessionContext:
    """A session with the files as ``points``; ``in_order``: each file's points are sorted."""
    from datafusion import RuntimeEnvBuilder, SessionConfig, SessionContext

    config = SessionConfig().with_target_partitions(partitions)
    # Sorted files are not cut into ranges, so that each is one stream.
    config = config.set("datafusion.optimizer.prefer_existing_sort", "true").with_repartition_file_scans(not in_order)
    spill = site.output / "spill"
    context = SessionContext(config, RuntimeEnvBuilder().with_disk_manager_specified(str(spill)))
    if len(files) == 1:
        context.register_parquet("points", files[0], file_sort_order=[list(_ORDER)] if in_order else None)
        return context
    folder = Path(files[0]).parent
    assert sorted(str(path) for path in folder.glob("*.parquet")) == sorted(files)
    context.register_parquet("points", str(folder), file_sort_order=[list(_ORDER)] if in_order else None)
    return context


def _write(context: SessionContext, query: str, target: Path, compression: str) -> None:
    """Write a query's result to one file, or to a folder of files."""
    kind = "" if target.suffix else "/"
    options = f"'format.compression' '{compression}'"
    context.sql(f"COPY ({query}) TO '{target}{kind}' STORED AS PARQUET OPTIONS ({options})").collect()


_ORDER_BY = "SELECT {points} FROM points ORDER BY id & 15, metric, org_id, id, logical_timestamp"
_PLACES = """
    SELECT id AS series, org_id AS series_org, metric AS series_metric, row_number() OVER (ORDER BY id & 15, metric, org_id, id) AS place
    FROM (SELECT id, first_value(metric) AS metric, first_value(org_id) AS org_id FROM points GROUP BY id)
"""
_PACKED = f"CAST(place AS BIGINT) * {HOUR_MS} + (logical_timestamp - {BATCH_START})"
# The places are a separate table: as a part of the query, their window function once took half of the machine for minutes.
_BY_PACKED_PLACE = f"SELECT {{points}} FROM points JOIN places ON id = series ORDER BY {_PACKED}"
# The series' columns are joined after the points are sorted: a hash join keeps the order of its probe side.
_LOOKED_UP = f"""
    SELECT {{after}} FROM (SELECT *, packed / {HOUR_MS} AS at, packed % {HOUR_MS} + {BATCH_START} AS logical_timestamp
        FROM (SELECT {_PACKED} AS packed, {{values}} FROM points JOIN places ON id = series))
    JOIN places ON at = place ORDER BY packed
"""


def _sort_with(query: str, compression: str) -> Form:
    def sort(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
        context = _context(site, threads, site.raw_files)
        values = [name for name in site.point_columns if name not in _ORDER]
        of_series = {"id": "series AS id", "org_id": "series_org AS org_id", "metric": "series_metric AS metric"}
        after = ", ".join(of_series.get(name, name) for name in site.point_columns)
        with watch.time("sort and write"):
            if "places" in query:
                context.register_table("places", context.sql(_PLACES).cache())
            whole = query.format(points=", ".join(site.point_columns), values=", ".join(values), after=after)
            _write(context, whole, site.output / "sorted.parquet", compression)
        return {}

    return sort


def _aggregates(site: Site, *, in_order: bool) -> str:
    value = site.value_column
    latest = f"last_value({value})" if in_order else f"last_value({value} ORDER BY logical_timestamp)"
    return (
        f"count(*) AS count_rollup, sum({value}) AS sum_rollup, min({value}) AS min_rollup, max({value}) AS max_rollup, "
        f"CAST(sum({value}) AS DOUBLE) / count(*) AS average_rollup, {latest} AS latest_rollup"
    ) + (f", avg({RECEIVED} - logical_timestamp) AS lag_rollup" if received(site) else "")


def _query(site: Site, form: str, *, in_order: bool) -> str:
    value = site.value_column
    source, more = "points", ""
    if "lag" in form:
        series = _SERIES_OF_ORDER if in_order else "id"
        over = f"PARTITION BY {series} ORDER BY logical_timestamp"
        source = f"(SELECT *, lag({value}) OVER ({over}) AS before FROM points)"
        step = f"CASE WHEN {value} >= before THEN {value} - before WHEN before IS NOT NULL THEN {value} END"
        resets = f"sum(CASE WHEN {value} < before THEN 1 ELSE 0 END)"
        more = f", sum({step}) AS delta_rollup, {resets} AS resets_rollup"
    aggregates = _aggregates(site, in_order=in_order) + more
    if "joined" in form:
        windows = f"""
            SELECT windows.*, org_id, metric
            FROM (SELECT id, {_LABEL} AS label, {aggregates} FROM {source} WHERE {CLOSED} GROUP BY id, {_LABEL}) AS windows
            JOIN (SELECT id, first_value(org_id) AS org_id, first_value(metric) AS metric FROM points GROUP BY id) AS series
            ON windows.id = series.id
        """
    elif "all keys" in form:
        windows = f"""
            SELECT metric, org_id, id, {_LABEL} AS label, {aggregates} FROM {source} WHERE {CLOSED} GROUP BY metric, org_id, id, {_LABEL}
        """
    else:
        windows = f"""
            SELECT id, {_LABEL} AS label, first_value(org_id) AS org_id, first_value(metric) AS metric, {aggregates}
            FROM {source} WHERE {CLOSED} GROUP BY id, {_LABEL}
        """
    return f"SELECT *, delta_rollup / CAST({MINUTE} AS DOUBLE) AS rate_rollup FROM ({windows})" if more else windows


def _rollups(files_of: FilesOf, form: str, compression: str, *, partitions: int | None = None, alone: bool = False) -> Form:
    """``alone``: one query per file, several at a time, one partition each; ``partitions``: their number, if not one per thread."""

    def roll_up(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
        files = files_of(site)
        in_order = files == site.sorted_files and "hashed" not in form
        query = _query(site, form, in_order=in_order)

        def one(number: int, file: str) -> None:
            context = _context(site, 1, [file], in_order=in_order)
            _write(context, query, site.output / f"rollups-{number}.parquet", compression)

        with watch.time("rollups"):
            if alone:
                file_by_file(files, threads, one)
            else:
                context = _context(site, partitions or threads, files, in_order=in_order)
                _write(context, query, site.output / "rollups", compression)
        return {}

    return roll_up


_LZ4, _ZSTD = "lz4_raw", "zstd(1)"
FORMS: dict[str, dict[str, Form]] = {
    REPARTITION: {
        "order by packed place and time, lz4": _sort_with(_BY_PACKED_PLACE, _LZ4),
        "order by packed place and time, series looked up afterwards, lz4": _sort_with(_LOOKED_UP, _LZ4),
        "order by, lz4": _sort_with(_ORDER_BY, _LZ4),
    },
    ROLLUPS_1M: {
        "declared order, shard by shard, group by all keys, lz4": _rollups(of_sorted, "all keys", _LZ4, alone=True),
        "declared order, shard by shard, group by all keys, zstd": _rollups(of_sorted, "all keys", _ZSTD, alone=True),
        "declared order, a partition a shard, group by all keys, lz4": _rollups(of_sorted, "all keys", _LZ4, partitions=16),
        "hashed, shard by shard, lz4": _rollups(of_sorted, "hashed", _LZ4, alone=True),
        "hashed, shard by shard, dimensions joined, lz4": _rollups(of_sorted, "hashed, joined", _LZ4, alone=True),
        "hashed, lz4": _rollups(of_sorted, "hashed", _LZ4),
    },
    ROLLUPS_1M_FULL: {
        "declared order, lag, shard by shard, group by all keys, lz4": _rollups(of_sorted, "lag, all keys", _LZ4, alone=True),
        "declared order, lag, shard by shard, lz4": _rollups(of_sorted, "lag", _LZ4, alone=True),
        "declared order, lag, a partition a shard, group by all keys, lz4": _rollups(of_sorted, "lag, all keys", _LZ4, partitions=16),
        "hashed, lag, lz4": _rollups(of_sorted, "hashed, lag", _LZ4),
    },
    RAW_TO_1M: {
        "group by all keys, lz4": _rollups(of_raw, "all keys", _LZ4),
        "group by all keys, zstd": _rollups(of_raw, "all keys", _ZSTD),
        "dimensions joined, lz4": _rollups(of_raw, "joined", _LZ4),
        "group by id and label, lz4": _rollups(of_raw, "", _LZ4),
    },
    RAW_TO_1M_FULL: {
        "lag, group by all keys, lz4": _rollups(of_raw, "lag, all keys", _LZ4),
        "lag, dimensions joined, lz4": _rollups(of_raw, "lag, joined", _LZ4),
    },
}
