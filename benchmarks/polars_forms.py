"""Polars' contenders: several ways in which its experts would write each task; the fastest one competes.

Lazy scans and sinks; the number of threads is ``POLARS_MAX_THREADS``, set before the process starts. The shard is ``id & 15``, which costs less than
Iceberg's hash. Rollups have neither delta nor shard, and no order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.measure import Stopwatch
from benchmarks.sites import BATCH_END, Site

if TYPE_CHECKING:
    import polars as pl

Run = Callable[[Site, int, Stopwatch], dict[str, Any]]
_POINTS = ["id", "org_id", "metric", "logical_timestamp", "long_value"]


def _scan(files: list[str]) -> pl.LazyFrame:
    import polars as pl

    return pl.scan_parquet(files).select(_POINTS).with_columns(pl.col("metric").cast(pl.String))


def _sink(frame: pl.LazyFrame, path: str, compression: Any, engine: Literal["streaming", "in-memory"], *, maintain_order: bool) -> None:
    frame.sink_parquet(path, compression=compression, engine=engine, maintain_order=maintain_order)


def _sort(form: str, compression: str, engine: Literal["streaming", "in-memory"]) -> Run:
    def sort(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
        import polars as pl

        with watch.time("sort and write"):
            raw = _scan(site.raw_files).with_columns(shard=(pl.col("id") & 15).cast(pl.UInt8))
            if form == "by place":
                # A series has one metric and org: its place in the order is looked up, and two integers are compared instead of five columns.
                series = raw.group_by("id").agg(pl.col("metric").first(), pl.col("org_id").first(), pl.col("shard").first()).collect(engine="streaming")
                places = series.sort("shard", "metric", "org_id", "id").with_row_index("place").select("id", "place")
                frame = raw.join(places.lazy(), on="id").sort("place", "logical_timestamp")
            else:
                if form == "by enum":
                    names = raw.select(pl.col("metric").unique().sort()).collect(engine="streaming").get_column("metric")
                    raw = raw.with_columns(pl.col("metric").cast(pl.Enum(names)))
                frame = raw.sort("shard", "metric", "org_id", "id", "logical_timestamp")
            _sink(frame.select(_POINTS), str(site.output / "sorted.parquet"), compression, engine, maintain_order=True)
        return {}

    return sort


def _rollups(files_of: Callable[[Site], list[str]], form: str, compression: str, engine: Literal["streaming", "in-memory"], latest: str) -> Run:
    def roll_up(site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
        import polars as pl

        value, time = pl.col("long_value"), pl.col("logical_timestamp")
        aggregates = [
            pl.len().cast(pl.Int64).alias("count_rollup"),
            value.sum().alias("sum_rollup"),
            value.min().alias("min_rollup"),
            value.max().alias("max_rollup"),
            value.mean().alias("average_rollup"),
            {"max_by": value.max_by(time), "last": value.last()}[latest].alias("latest_rollup"),
        ]
        dimensions = [pl.col("org_id").first(), pl.col("metric").first()]

        def of(paths: list[str]) -> pl.LazyFrame:
            points = _scan(paths).filter(time <= BATCH_END - 60_000).with_columns(label=(time + 59_999) // 60_000 * 60_000)
            if form == "all keys":
                return points.group_by("id", "org_id", "metric", "label").agg(aggregates)
            if form == "joined":
                series = _scan(paths).group_by("id").agg(dimensions)
                return points.group_by("id", "label").agg(aggregates).join(series, on="id")
            return points.group_by("id", "label").agg(*dimensions, *aggregates)

        files = files_of(site)
        with watch.time("rollups"):
            if form == "shard by shard":
                sinks = [
                    of([file]).sink_parquet(str(site.output / f"rollups-{number}.parquet"), compression=compression, maintain_order=False, lazy=True)  # type: ignore[arg-type]
                    for number, file in enumerate(files)
                ]
                pl.collect_all([sink for sink in sinks if sink is not None], engine=engine)
            else:
                _sink(of(files), str(site.output / "rollups.parquet"), compression, engine, maintain_order=False)
        return {}

    return roll_up


def _sorted(site: Site) -> list[str]:
    return site.sorted_files


def _raw(site: Site) -> list[str]:
    return site.raw_files


FORMS: dict[str, dict[str, Run]] = {
    "repartition": {
        "sort, lz4, streaming": _sort("plain", "lz4", "streaming"),
        "sort, zstd, streaming": _sort("plain", "zstd", "streaming"),
        "sort, lz4, in memory": _sort("plain", "lz4", "in-memory"),
        "sort by enum, lz4, streaming": _sort("by enum", "lz4", "streaming"),
        "sort by enum, lz4, in memory": _sort("by enum", "lz4", "in-memory"),
        "sort by place of series, lz4, streaming": _sort("by place", "lz4", "streaming"),
        "sort by place of series, lz4, in memory": _sort("by place", "lz4", "in-memory"),
    },
    "rollups-1m": {
        "group by id and label, lz4, streaming": _rollups(_sorted, "plain", "lz4", "streaming", "last"),
        "group by id and label, zstd, streaming": _rollups(_sorted, "plain", "zstd", "streaming", "last"),
        "group by id and label, lz4, in memory": _rollups(_sorted, "plain", "lz4", "in-memory", "last"),
        "group by all keys, lz4, streaming": _rollups(_sorted, "all keys", "lz4", "streaming", "last"),
        "dimensions joined, lz4, streaming": _rollups(_sorted, "joined", "lz4", "streaming", "last"),
        "shard by shard, lz4, streaming": _rollups(_sorted, "shard by shard", "lz4", "streaming", "last"),
    },
    "raw-to-1m": {
        "group by id and label, lz4, streaming": _rollups(_raw, "plain", "lz4", "streaming", "max_by"),
        "group by id and label, zstd, streaming": _rollups(_raw, "plain", "zstd", "streaming", "max_by"),
        "group by id and label, lz4, in memory": _rollups(_raw, "plain", "lz4", "in-memory", "max_by"),
        "group by all keys, lz4, streaming": _rollups(_raw, "all keys", "lz4", "streaming", "max_by"),
        "dimensions joined, lz4, streaming": _rollups(_raw, "joined", "lz4", "streaming", "max_by"),
    },
}
