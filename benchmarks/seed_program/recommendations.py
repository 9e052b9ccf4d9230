"""What the analysis recommends, one by one, and what the program "with all its recommendations" does about it. No imports of Spark."""

from __future__ import annotations

from typing import Literal

Verdict = Literal["applied", "nothing to apply it to", "does not exist", "refused", "another program", "left out"]

PARTITIONS_PER_CORE = 3
"""The analysis: 2 to 3 partitions a core."""
SESSION = {
    "spark.memory.fraction": "0.8",
    "spark.memory.storageFraction": "0.3",
    "spark.sql.autoBroadcastJoinThreshold": "100MB",
    "spark.sql.files.maxPartitionBytes": "512m",
}
"""Recommended properties of the session, besides the numbers of partitions."""
TABLE = {"write.distribution-mode": "hash", "write.target-file-size-bytes": str(512 << 20), "write.format.default": "parquet"}
"""Recommended properties of the table."""
PARTIAL_POINTS = {
    "parquet.block.size": str(256 << 20),
    "parquet.page.size": str(1 << 20),
    "parquet.enable.dictionary": "true",
    "parquet.compression": "snappy",
}
"""Recommended options of the files of partial points."""

RECOMMENDATIONS: tuple[tuple[str, Verdict, str], ...] = (
    ("`spark.memory.fraction` 0.8, `spark.memory.storageFraction` 0.3", "applied", ""),
    ("`spark.sql.autoBroadcastJoinThreshold` 100MB", "applied", "no effect: there is no join"),
    (
        "`spark.executor.*`, `spark.dynamicAllocation.*`",
        "nothing to apply it to",
        "with `local[2]` the driver is the one executor; its heap follows from the memory limit",
    ),
    ("`spark.default.parallelism` and `spark.sql.shuffle.partitions`, 2 to 3 times the cores", "applied", "6 instead of 200"),
    (
        "`spark.hadoop.fs.s3a.*`, the magic committer, writes buffered before S3",
        "nothing to apply it to",
        "the files of everyone are on the local disk",
    ),
    ("a table partitioned by resolution and month", "applied", "by year too is refused: Iceberg takes one of them for redundant"),
    ("`write.distribution-mode` hash", "applied", "it is the default by now"),
    ("`write.distribution.hash.fields`", "does not exist", "Iceberg takes the fields from the partitioning"),
    ("`write.target-file-size-bytes` 512MB", "applied", "as a number of bytes, the default: with a unit every append fails"),
    ("`spark.sql.files.maxPartitionBytes` 512m", "applied", "it is about files that are read"),
    ("`spark.sql.iceberg.handle-timestamp-without-timezone`", "does not exist", "Iceberg has dropped it"),
    ("repartition by shard and resolution before the append", "applied", "a second shuffle before Iceberg's own"),
    (
        "fewer and larger files of partial points",
        "applied",
        "one for every 10 million rows; the `count()` that is recommended to find their number is not: it computes everything once more",
    ),
    ("`parquet.*` options and snappy for partial points", "applied", ""),
    ("compression", "applied", "zstd for the table, the default by now"),
    ("no `count()`", "applied", ""),
    ("windows in SQL instead of functions", "applied", "in the program as it was, too"),
    ("repartition early by `id`", "applied", ""),
    (
        "salting, `GROUP BY id, salt`",
        "left out",
        "the recommended salt is a function of `id`, so nothing is spread, and the groups as written have lost their windows; any other "
        "salt would tear a series' points apart, and `LAG` with them",
    ),
    ("`cache()` the rollups, `unpersist()` later", "applied", "used once, since there is no `count()` any more"),
    ("`explain()` instead of `show()`", "nothing to apply it to", "nothing is shown"),
    ("smaller batches, streaming, two stages", "another program", "such as this project"),
    ("another catalog than JDBC, a cache of it, a larger pool", "another program", "one commit takes a fraction of a second"),
)
