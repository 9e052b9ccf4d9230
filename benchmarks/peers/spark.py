"""Spark SQL's contenders: several ways in which its experts would write each task; the fastest one competes.

Sorting is ``repartition`` by a hash of the series, ``sortWithinPartitions`` and ``write.parquet``, in one job. Sorted points are a copy
of ours, made beforehand, in encodings that Spark's vectorized reader takes (it refuses ``BYTE_STREAM_SPLIT``). Rollups are groups by
series and label, shuffled; or, since each series is in one file only, one query per file on a single partition, without a shuffle.

The session is what one would set up for such a job: one JVM with as many cores as the others have, ample memory, and the garbage
collector that accepts longer pauses for throughput.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Stopwatch
from benchmarks.peers.common import CLOSED, MINUTE, received
from benchmarks.sites import RECEIVED, Site
from benchmarks.tasks import RAW_TO_1M, RAW_TO_1M_FULL, REPARTITION, ROLLUPS_1M, ROLLUPS_1M_FULL, Form

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import DataFrame, SparkSession

PARTITIONS = 16
_ORDER = ("metric", "org_id", "id", "logical_timestamp")
_MEMORY = "6g"
_COPIED_ROW_GROUP = 1 << 20
_LABEL = "(logical_timestamp + 59999) div 60000 * 60000"


def session(threads: int) -> SparkSession:
    """The process's session."""
    from pyspark.sql import SparkSession

    found: SparkSession = (
        SparkSession.builder.master(f"local[{threads}]")
        .config("spark.driver.memory", _MEMORY)
        .config("spark.driver.extraJavaOptions", "-XX:+UseParallelGC")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.session.timeZone", "UTC")
        .config("spark.sql.shuffle.partitions", str(PARTITIONS))
        # Since 4.1 (SPARK-52921) a union of single partitions is one partition: one core did all of it, 18.5 s with 21 CPU s.
        .config("spark.sql.unionOutputPartitioning", "false")
        .getOrCreate()
    )
    return found


def _by_id(frame: DataFrame) -> DataFrame:
    return frame.repartition(PARTITIONS, "id").sortWithinPartitions(*_ORDER)


def _by_shard(frame: DataFrame) -> DataFrame:
    sharded = frame.selectExpr("id & 15 AS shard", "*")
    return sharded.repartition(PARTITIONS, "shard").sortWithinPartitions(*_ORDER).drop("shard")


def _by_place(frame: DataFrame) -> DataFrame:
    return frame.repartitionById(PARTITIONS, (frame["id"].bitwiseAND(15)).cast("int")).sortWithinPartitions(*_ORDER)


def _sort(arrange: Callable[[DataFrame], DataFrame], codec: str, *, plain: bool) -> Form:
    def sort(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
        spark = session(threads)
        with watch.time("sort and write"):
            writer = arrange(spark.read.parquet(*site.raw_files).select(*site.point_columns)).write.option("compression", codec)
            if plain:
                # Times hardly repeat, so Parquet would build dictionaries of them for nothing.
                writer = writer.option("parquet.enable.dictionary#logical_timestamp", "false")
            writer.mode("overwrite").parquet(str(site.output / "sorted"))
        return {}

    return sort


def copy_for_spark(site: Site, shards: Sequence[str]) -> None:
    """Copy staged shards, row by row, to encodings that Spark reads, with the shard as a column; each time, since shards may be new."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = site.sorted_for_spark
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    columns = list(site.point_columns)
    for path in shards:
        shard = pa.scalar(int(Path(path).stem.rpartition("-")[2]), pa.int32())
        source = pq.ParquetFile(path, read_dictionary=["metric"])
        kinds = {"metric": pa.string()}
        fields = [pa.field(name, kinds.get(name, source.schema_arrow.field(name).type)) for name in columns]
        schema = pa.schema([pa.field("metric_shard_id", shard.type), *fields])
        # Spark's own default codec.
        with pq.ParquetWriter(folder / Path(path).name, schema, compression="snappy") as writer:
            for table in _row_groups(source, columns):
                numbered = pa.table([pa.repeat(shard, table.num_rows), *table.columns], names=schema.names)
                writer.write_table(numbered.cast(schema), row_group_size=_COPIED_ROW_GROUP)


def _row_groups(source: Any, columns: list[str]) -> Iterator[pa.Table]:
    """Row groups of a shard, several at a time."""
    import pyarrow as pa

    pending: list[pa.Table] = []
    for group in range(source.num_row_groups):
        pending.append(source.read_row_group(group, columns=columns))
        if sum(table.num_rows for table in pending) >= _COPIED_ROW_GROUP or group == source.num_row_groups - 1:
            yield pa.concat_tables(pending)
            pending = []


def _windows(site: Site, points: DataFrame, keys: tuple[str, ...], *, steps: bool) -> DataFrame:
    """Rollups of points; ``keys``: the columns that identify a series."""
    from pyspark.sql import functions as f

    value = site.value_column
    if steps:
        points = points.selectExpr("*", f"lag({value}) OVER (PARTITION BY id ORDER BY logical_timestamp) AS before")
    points = points.where(CLOSED).selectExpr("*", f"{_LABEL} AS label")
    aggregates = {
        "org_id": "first(org_id)",
        "metric": "first(metric)",
        "count_rollup": "count(1)",
        "sum_rollup": f"sum({value})",
        "min_rollup": f"min({value})",
        "max_rollup": f"max({value})",
        "average_rollup": f"avg({value})",
        "latest_rollup": f"max_by({value}, logical_timestamp)",
    }
    if received(site):
        aggregates["lag_rollup"] = f"avg({RECEIVED} - logical_timestamp)"
    if steps:
        aggregates["delta_rollup"] = f"sum(CASE WHEN {value} >= before THEN {value} - before WHEN before IS NOT NULL THEN {value} END)"
        aggregates["resets_rollup"] = f"count_if({value} < before)"
    windows = points.groupBy(*keys, "label").agg(*(f.expr(text).alias(name) for name, text in aggregates.items() if name not in keys))
    return windows.selectExpr("*", f"delta_rollup / CAST({MINUTE} AS DOUBLE) AS rate_rollup") if steps else windows


def _rollups(source: str, codec: str, *, keys: tuple[str, ...] = ("id",), steps: bool = False) -> Form:
    """``source``: raw, sorted, or sorted files each by itself."""

    def roll_up(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
        spark = session(threads)
        with watch.time("rollups"):
            if source == "each":
                # With one partition, neither groups nor windows have to be shuffled.
                parts = [_windows(site, spark.read.parquet(file).coalesce(1), keys, steps=steps) for file in site.sorted_files_for_spark]
                windows = reduce(lambda one, other: one.union(other), parts)
            else:
                read = spark.read.parquet(*site.raw_files) if source == "raw" else spark.read.parquet(str(site.sorted_for_spark))
                windows = _windows(site, read, keys, steps=steps)
            windows.write.option("compression", codec).mode("overwrite").parquet(str(site.output / "rollups"))
        return {}

    return roll_up


_ALL = ("id", "org_id", "metric")
FORMS: dict[str, dict[str, Form]] = {
    REPARTITION: {
        "repartitionById, lz4": _sort(_by_place, "lz4_raw", plain=False),
        "by id, snappy": _sort(_by_id, "snappy", plain=False),
        "by id, lz4": _sort(_by_id, "lz4_raw", plain=False),
        "by id, lz4, times without dictionary": _sort(_by_id, "lz4_raw", plain=True),
        "by shard column, lz4": _sort(_by_shard, "lz4_raw", plain=False),
    },
    ROLLUPS_1M: {
        "a partition a shard, lz4": _rollups("each", "lz4_raw"),
        "a partition a shard, all keys, lz4": _rollups("each", "lz4_raw", keys=_ALL),
        "shuffled, lz4": _rollups("sorted", "lz4_raw"),
        "shuffled, all keys, lz4": _rollups("sorted", "lz4_raw", keys=_ALL),
    },
    ROLLUPS_1M_FULL: {
        "lag, a partition a shard, lz4": _rollups("each", "lz4_raw", steps=True),
        "lag, a partition a shard, all keys, lz4": _rollups("each", "lz4_raw", keys=_ALL, steps=True),
        "lag, shuffled, lz4": _rollups("sorted", "lz4_raw", steps=True),
        "lag, shuffled, all keys, lz4": _rollups("sorted", "lz4_raw", keys=_ALL, steps=True),
    },
    RAW_TO_1M: {
        "group by id and label, lz4": _rollups("raw", "lz4_raw"),
        "group by all keys, lz4": _rollups("raw", "lz4_raw", keys=_ALL),
        "group by all keys, zstd": _rollups("raw", "zstd", keys=_ALL),
    },
    RAW_TO_1M_FULL: {
        "lag, group by id and label, lz4": _rollups("raw", "lz4_raw", steps=True),
        "lag, group by all keys, lz4": _rollups("raw", "lz4_raw", keys=_ALL, steps=True),
    },
}
