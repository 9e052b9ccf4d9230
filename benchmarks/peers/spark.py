"""Spark's own sort: several ways in which its experts would write it; the fastest one competes.

Each is ``repartition`` by a hash of the series, ``sortWithinPartitions`` and ``write.parquet``, in one job. The session is what one
would set up for such a job: one Java machine with as many cores as everyone has, ample memory, and the collector that trades pauses
for throughput.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Stopwatch
from benchmarks.sites import Site

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

PARTITIONS = 16
_ORDER = ("metric", "org_id", "id", "logical_timestamp")
_MEMORY = "6g"


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


def _sort(arrange: Callable[[DataFrame], DataFrame], codec: str, *, plain: bool) -> Callable[[Site, int, Stopwatch], dict[str, Any]]:
    def sort(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
        spark = session(threads)
        with watch.time("sort and write"):
            writer = arrange(spark.read.parquet(*site.raw_files).select(*site.point_columns)).write.option("compression", codec)
            if plain:
                # Times hardly repeat: Parquet would build dictionaries of them in vain.
                writer = writer.option("parquet.enable.dictionary#logical_timestamp", "false")
            writer.mode("overwrite").parquet(str(site.output / "sorted"))
        return {}

    return sort


FORMS = {
    "by id, snappy": _sort(_by_id, "snappy", plain=False),
    "by id, lz4": _sort(_by_id, "lz4_raw", plain=False),
    "by id, lz4, times without dictionary": _sort(_by_id, "lz4_raw", plain=True),
    "by shard column, lz4": _sort(_by_shard, "lz4_raw", plain=False),
    "repartitionById, lz4": _sort(_by_place, "lz4_raw", plain=False),
}
