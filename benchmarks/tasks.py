"""What is compared: engines, tasks and how a process starts, by name. Who does what stays out (``benchmarks.contenders``)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.measure import Stopwatch
from benchmarks.sites import Site

Form = Callable[[Site, int, Stopwatch], dict[str, Any]]
"""Does a task on a site with a number of threads; what counts is timed by the stopwatch. Returns details for the results."""

OURS, FLOOR = "rollup_assets", "floor"
DUCKDB, POLARS, DATAFUSION, CLICKHOUSE = "DuckDB", "Polars", "DataFusion", "ClickHouse"
PEERS = (DUCKDB, POLARS, DATAFUSION, CLICKHOUSE)
OURS_ON_SPARK, SPARK = "rollup_assets on Spark", "Spark"
OWN = {OURS: "local", OURS_ON_SPARK: "spark"}
"""This project's contenders, with the engine setting of each."""
REPARTITION, ROLLUPS_1M, ROLLUPS_3, PUBLISH, RAW_TO_PUBLISHED = "repartition", "rollups-1m", "rollups-3", "publish", "raw-to-published"
ROLLUPS_1M_FULL, RAW_TO_1M, RAW_TO_1M_FULL = "rollups-1m-full", "raw-to-1m", "raw-to-1m-full"
"""Tasks only of peers. Their rollups have count, sum, extremes, average and latest; full ones have delta, resets and rate, too, as ours."""
PEER_TASKS = (REPARTITION, ROLLUPS_1M, ROLLUPS_1M_FULL, RAW_TO_1M, RAW_TO_1M_FULL)
FULL = (ROLLUPS_1M_FULL, RAW_TO_1M_FULL)
FROM_SORTED = (ROLLUPS_1M, ROLLUPS_1M_FULL, ROLLUPS_3)
"""Tasks that read sorted points; the others read raw ones, or none."""
OURS_BESIDE = {REPARTITION: REPARTITION, ROLLUPS_1M: ROLLUPS_1M, ROLLUPS_1M_FULL: ROLLUPS_1M}
OURS_BESIDE |= {RAW_TO_1M: RAW_TO_PUBLISHED, RAW_TO_1M_FULL: RAW_TO_PUBLISHED}
"""A peer's task -> the task of ours that it is compared with."""
WARM, COLD, FIRST = "warm", "cold", "first"
"""``warm``: the task is timed after it has run on the small site in the same process. ``cold``: a process from start to exit.
``first``: cold, with nothing compiled yet, as after installing."""
