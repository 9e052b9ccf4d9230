"""The seed's program on Spark SQL: sorted points to partial points and 1 min rollups, appended to an Iceberg table in a PostgreSQL catalog.

Known from its analysis: 200 uncompressed files of partial points, of 108 bytes for each of 11.4 million series, which must be a series'
dimensions, last point and open window; a ``count()`` before the append; 200 shuffle partitions; a delta by ``LAG``. Where the analysis says
nothing, the faster way was chosen: windows in SQL rather than the functions it had, no adaptive execution but every other default of Spark
4.1 (whole-stage code generation), files on a local disk rather than S3. Unlike the seed and this project, it neither reads the partial
points of the batch before nor merges its open windows.

Spark's reader takes none of the encodings of this project's stage, so the staged shards are copied once, row by row in the same order, to
Spark's own encodings; that is not timed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Stopwatch
from benchmarks.seed_program import recommendations
from benchmarks.sites import BATCH_END, Site

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from rollup_assets.settings import Settings

RESOLUTION = 60_000
COMPUTE, PARTIAL, COUNT, APPEND = "compute", "partial points", "count", "append"
STAGES = (COMPUTE, PARTIAL, COUNT, APPEND)
"""Parts of a run, as in the analysis. The first one only plans; everything is computed by those after it."""
_ROWS_PER_PARTIAL_FILE = 10_000_000
_NAMESPACE = "seed"

_WINDOWS = f"FLOOR((logical_timestamp + {RESOLUTION} - 1) / {RESOLUTION}) * {RESOLUTION}"
_ROLLUPS = f"""
WITH windowed AS (
  SELECT *, {_WINDOWS} AS window_ts, LAG(long_value) OVER (PARTITION BY id ORDER BY logical_timestamp) AS prev_value
  FROM datapoints
)
SELECT id, window_ts, FIRST(metric_shard_id) AS metric_shard_id, FIRST(org_id) AS org_id, FIRST(metric) AS metric,
  AVG(long_value) AS average_rollup, MIN(long_value) AS min_rollup, MAX(long_value) AS max_rollup, SUM(long_value) AS sum_rollup,
  COUNT(*) AS count_rollup, MAX_BY(long_value, logical_timestamp) AS latest_rollup,
  SUM(CASE WHEN long_value >= prev_value THEN long_value - prev_value ELSE long_value END) AS delta_rollup
FROM windowed WHERE window_ts < {BATCH_END} GROUP BY id, window_ts
"""
_OPEN = f"logical_timestamp > {BATCH_END - RESOLUTION}"
_PARTIAL_POINTS = f"""
SELECT id, FIRST(metric_shard_id) AS metric_shard_id, FIRST(org_id) AS org_id, FIRST(metric) AS metric,
  MAX(logical_timestamp) AS last_timestamp, MAX_BY(long_value, logical_timestamp) AS last_value,
  COUNT(CASE WHEN {_OPEN} THEN 1 END) AS count_open, SUM(CASE WHEN {_OPEN} THEN long_value END) AS sum_open,
  MIN(CASE WHEN {_OPEN} THEN long_value END) AS min_open, MAX(CASE WHEN {_OPEN} THEN long_value END) AS max_open
FROM datapoints GROUP BY id
"""
_COMPATIBLE = (
    "metric_shard_id", "id", "org_id", "metric", f"{RESOLUTION} AS resolution", "timestamp_millis(window_ts) AS logical_timestamp",
    "average_rollup", "min_rollup", "max_rollup", "sum_rollup", "count_rollup", "latest_rollup", "delta_rollup",
)  # fmt: skip
_COLUMNS = (
    "metric_shard_id int, id bigint, org_id bigint, metric string, resolution int, logical_timestamp timestamp, average_rollup double, "
    "min_rollup bigint, max_rollup bigint, sum_rollup bigint, count_rollup bigint, latest_rollup bigint, delta_rollup bigint"
)


@dataclass(frozen=True, slots=True)
class Variant:
    """The program as it was, or with what was recommended."""

    recommended: bool

    def session(self, threads: int) -> dict[str, str]:
        """Session properties in which the variants differ."""
        if not self.recommended:
            return {"spark.sql.shuffle.partitions": "200", "spark.sql.adaptive.enabled": "false"}
        partitions = str(self._partitions(threads))
        return {**recommendations.SESSION, "spark.sql.shuffle.partitions": partitions, "spark.default.parallelism": partitions}

    def _partitions(self, threads: int) -> int:
        return recommendations.PARTITIONS_PER_CORE * threads

    def table(self) -> tuple[str, dict[str, str]]:
        """How the table is partitioned, and its properties."""
        if not self.recommended:
            return "", {"write.parquet.compression-codec": "uncompressed"}
        partitioned = "PARTITIONED BY (resolution, months(logical_timestamp))"
        return partitioned, {**recommendations.TABLE, "write.parquet.compression-codec": "zstd"}

    def points(self, points: DataFrame, threads: int) -> DataFrame:
        """The points that everything is computed from, arranged as the variant has them."""
        return points.repartition(self._partitions(threads), "id") if self.recommended else points

    def write_partial_points(self, partial: DataFrame, series: int, folder: Path) -> None:
        """Write partial points to a folder of Parquet files."""
        if self.recommended:
            files = max(1, series // _ROWS_PER_PARTIAL_FILE)
            partial.coalesce(files).write.mode("overwrite").options(**recommendations.PARTIAL_POINTS).parquet(str(folder))
        else:
            partial.write.mode("overwrite").option("compression", "uncompressed").parquet(str(folder))

    def arranged(self, rollups: DataFrame) -> DataFrame:
        """The rollups, arranged for the append."""
        return rollups.repartition("metric_shard_id", "resolution") if self.recommended else rollups


ORIGINAL, RECOMMENDED = Variant(recommended=False), Variant(recommended=True)


def session(variant: Variant, settings: Settings, jars: Sequence[str], threads: int, heap_bytes: int, scratch: Path) -> SparkSession:
    """The process's session, on the catalog of the settings. The password is in the file that PGPASSFILE names.

    ``jars``: those of Iceberg and PostgreSQL's driver; if empty, the session fetches them itself.
    """
    from pyspark.sql import SparkSession

    from rollup_assets.iceberg.spark import session_properties

    catalog = session_properties(settings)
    if jars:
        del catalog["spark.jars.packages"]
        catalog["spark.jars"] = ",".join(jars)
    properties = {
        **catalog,
        "spark.driver.memory": f"{heap_bytes >> 20}m",
        "spark.driver.extraJavaOptions": "-XX:+UseParallelGC",
        "spark.local.dir": str(scratch),
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        **variant.session(threads),
    }
    builder = SparkSession.builder.master(f"local[{threads}]")
    for name, value in properties.items():
        builder = builder.config(name, value)
    found: SparkSession = builder.getOrCreate()
    return found


def create_table(spark: SparkSession, variant: Variant, settings: Settings, name: str) -> str:
    """Create an empty table for the program; returns its full name."""
    full = f"{settings.catalog_name}.{_NAMESPACE}.{name}"
    partitioned, properties = variant.table()
    listed = ", ".join(f"'{key}' = '{value}'" for key, value in {"format-version": "2", **properties}.items())
    spark.sql(f"CREATE NAMESPACE IF NOT EXISTS {settings.catalog_name}.{_NAMESPACE}")
    spark.sql(f"CREATE TABLE {full} ({_COLUMNS}) USING iceberg {partitioned} TBLPROPERTIES ({listed})")
    return full


def run(
    spark: SparkSession,
    variant: Variant,
    site: Site,
    table: str,
    series: int,
    threads: int,
    watch: Stopwatch,
    done: Callable[[str], None],
) -> dict[str, Any]:
    """Run the program, stage by stage.

    Args:
        spark: the session.
        variant: the variant of the program.
        site: has the points; partial points are written beside them.
        table: full name of an empty table.
        series: number of series, which the recommended number of files depends on.
        threads: number of cores.
        watch: times the stages.
        done: called with the name of each stage that has ended.
    """
    details: dict[str, Any] = {}
    partial_points = site.output / "partial-points"
    with watch.time(COMPUTE):
        points = variant.points(spark.read.parquet(str(site.sorted_for_spark)), threads)
        points.createOrReplaceTempView("datapoints")
        rollups = spark.sql(_ROLLUPS)
        partial = spark.sql(_PARTIAL_POINTS)
        if variant.recommended:
            rollups.cache()
        compatible = rollups.selectExpr(*_COMPATIBLE)
    done(COMPUTE)
    with watch.time(PARTIAL):
        variant.write_partial_points(partial, series, partial_points)
    done(PARTIAL)
    if not variant.recommended:
        with watch.time(COUNT):
            details["rows"] = compatible.count()
        done(COUNT)
    with watch.time(APPEND):
        variant.arranged(compatible).writeTo(table).append()
        if variant.recommended:
            rollups.unpersist()
    done(APPEND)
    files = list(partial_points.glob("*.parquet"))
    return {**details, "partial_files": len(files), "partial_bytes": sum(path.stat().st_size for path in files)}
