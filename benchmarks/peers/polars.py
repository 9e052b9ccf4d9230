"""Polars' contenders: several ways in which its experts would write each task; the fastest one competes.

Lazy scans and sinks, on the streaming engine unless a form says otherwise; the number of threads is ``POLARS_MAX_THREADS``, set before
the process starts. The shard is ``id & 15``, which costs less than Iceberg's hash. Rollups have neither delta nor shard, and no order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.measure import Stopwatch
from benchmarks.sites import BATCH_END, BATCH_START, HOUR_MS, RECEIVED, Site

if TYPE_CHECKING:
    import polars as pl

Engine = Literal["streaming", "in-memory"]
Run = Callable[[Site, int, Stopwatch], dict[str, Any]]


def _scan(site: Site, files: list[str]) -> pl.LazyFrame:
    import polars as pl

    return pl.scan_parquet(files).select(site.point_columns).with_columns(pl.col("metric").cast(pl.String))


def _sink(frame: pl.LazyFrame, path: str, compression: Any, engine: Engine, *, maintain_order: bool) -> None:
    frame.sink_parquet(path, compression=compression, engine=engine, maintain_order=maintain_order)


def _places(raw: pl.LazyFrame) -> pl.DataFrame:
    """Metric and org of every series, and its place in the order."""
    import polars as pl

    series = raw.group_by("id").agg(pl.col("metric").first(), pl.col("org_id").first()).collect(engine="streaming")
    return series.sort(pl.col("id") & 15, "metric", "org_id", "id").with_row_index("place").with_columns(pl.col("place").cast(pl.Int64))


def _sort(form: str, compression: str, engine: Engine) -> Run:
    def sort(site: Site, _threads: int, watch: Stopwatch) -> dict[str, Any]:
        import polars as pl

        with watch.time("sort and write"):
            values = [name for name in site.point_columns if name not in ("id", "org_id", "metric", "logical_timestamp")]
            raw = _scan(site, site.raw_files)
            if form == "packed":
                # Place and time in one number; what belongs to the series is looked up once the points are in order.
                places = _places(raw).lazy()
                points = raw.select("id", "logical_timestamp", *values).join(places.select("id", "place"), on="id")
                packed = points.select((pl.col("place") * HOUR_MS + pl.col("logical_timestamp") - BATCH_START).alias("packed"), *values)
                ordered = packed.sort("packed").select(
                    (pl.col("packed") // HOUR_MS).alias("place"),
                    (pl.col("packed") % HOUR_MS + BATCH_START).alias("logical_timestamp"),
                    *values,
                )
                frame = ordered.join(places, on="place", maintain_order="left")
            else:
                if form == "by enum":
                    names = raw.select(pl.col("metric").unique().sort()).collect(engine="streaming").get_column("metric")
                    raw = raw.with_columns(pl.col("metric").cast(pl.Enum(names)))
                shard = (pl.col("id") & 15).cast(pl.UInt8).alias("shard")
                frame = raw.with_columns(shard).sort("shard", "metric", "org_id", "id", "logical_timestamp")
            _sink(frame.select(site.point_columns), str(site.output / "sorted.parquet"), compression, engine, maintain_order=True)
        return {}

    return sort


def _rollups(files_of: Callable[[Site], list[str]], form: str, compression: Any, engine: Engine = "streaming") -> Run:
    def roll_up(site: Site, _threads: int, watch: Stopwatch) -> dict[str, Any]:
        import polars as pl

        value, time = pl.col("long_value"), pl.col("logical_timestamp")
        files = files_of(site)
        # Sorted points are in time order within a series; raw ones may be late.
        latest = value.last() if files == site.sorted_files else value.max_by(time)
        aggregates = [
            pl.len().cast(pl.Int64).alias("count_rollup"),
            value.sum().alias("sum_rollup"),
            value.min().alias("min_rollup"),
            value.max().alias("max_rollup"),
            value.mean().alias("average_rollup"),
            latest.alias("latest_rollup"),
        ]
        if RECEIVED in site.point_columns:
            aggregates.append((pl.col(RECEIVED) - time).mean().alias("lag_rollup"))
        dimensions = [pl.col("org_id").first(), pl.col("metric").first()]

        def closed(paths: list[str]) -> pl.LazyFrame:
            return _scan(site, paths).filter(time <= BATCH_END - 60_000)

        def of(paths: list[str]) -> pl.LazyFrame:
            points = closed(paths).with_columns(label=(time + 59_999) // 60_000 * 60_000)
            if form == "joined":
                series = _scan(site, paths).group_by("id").agg(dimensions)
                return points.group_by("id", "label").agg(aggregates).join(series, on="id")
            if form == "packed":
                # Series and minute in one small number.
                places = _places(_scan(site, paths)).lazy()
                minute = (time - BATCH_START + 59_999) // 60_000
                numbered = closed(paths).drop("org_id", "metric").join(places.select("id", "place"), on="id", maintain_order="left")
                windows = numbered.with_columns((pl.col("place") * 64 + minute).cast(pl.Int32).alias("key"))
                labelled = (
                    windows.group_by("key")
                    .agg(aggregates)
                    .with_columns(
                        (pl.col("key") // 64).cast(pl.Int64).alias("place"),
                        ((pl.col("key") % 64).cast(pl.Int64) * 60_000 + BATCH_START).alias("label"),
                    )
                )
                return labelled.join(places, on="place").drop("key", "place")
            if form == "runs, shard by shard":
                # In sorted points a window is a run of rows: groups by a sorted number are slices.
                begins = (pl.col("id") != pl.col("id").shift(1, fill_value=0)) | (pl.col("label") != pl.col("label").shift(1, fill_value=0))
                runs = points.with_columns(key=begins.cum_sum().set_sorted()).group_by("key")
                return runs.agg(pl.col("id").first(), pl.col("label").first(), *dimensions, *aggregates).drop("key")
            return points.group_by("id", "label").agg(*dimensions, *aggregates)

        with watch.time("rollups"):
            if form.endswith("shard by shard"):
                sinks = []
                for number, file in enumerate(files):
                    path = str(site.output / f"rollups-{number}.parquet")
                    sinks.append(of([file]).sink_parquet(path, compression=compression, maintain_order=False, lazy=True, engine=engine))
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
        "sort by enum, lz4, streaming": _sort("by enum", "lz4", "streaming"),
        "sort by packed place and time, lz4, streaming": _sort("packed", "lz4", "streaming"),
        "sort by packed place and time, lz4, in memory": _sort("packed", "lz4", "in-memory"),
    },
    "rollups-1m": {
        "group by id and label, lz4": _rollups(_sorted, "plain", "lz4"),
        "dimensions joined, lz4": _rollups(_sorted, "joined", "lz4"),
        "group by packed place and minute, lz4": _rollups(_sorted, "packed", "lz4"),
        "shard by shard, lz4": _rollups(_sorted, "plain, shard by shard", "lz4"),
        "runs, shard by shard, lz4, in memory": _rollups(_sorted, "runs, shard by shard", "lz4", "in-memory"),
    },
    "raw-to-1m": {
        "group by id and label, lz4": _rollups(_raw, "plain", "lz4"),
        "dimensions joined, lz4": _rollups(_raw, "joined", "lz4"),
        "dimensions joined, zstd": _rollups(_raw, "joined", "zstd"),
        "group by packed place and minute, lz4": _rollups(_raw, "packed", "lz4"),
    },
}
