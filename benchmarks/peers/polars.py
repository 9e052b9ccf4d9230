"""Polars' contenders: several ways in which its experts would write each task; the fastest one competes.

Lazy scans and sinks, on the streaming engine unless a form says otherwise; the number of threads is ``POLARS_MAX_THREADS``, set before
the process starts. The shard is ``id & 15``, which costs less than Iceberg's hash. Rollups are unordered and have no shard.

Steps between points: ``shift`` over each series or, for points in order, over all of them, which looks only at the previous point.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from benchmarks.measure import Stopwatch
from benchmarks.peers.common import MINUTE, FilesOf, of_raw, of_sorted, received
from benchmarks.sites import BATCH_END, BATCH_START, HOUR_MS, RECEIVED, Site
from benchmarks.tasks import RAW_TO_1M, RAW_TO_1M_FULL, REPARTITION, ROLLUPS_1M, ROLLUPS_1M_FULL, Form

if TYPE_CHECKING:
    import polars as pl

Engine = Literal["streaming", "in-memory"]
_BEFORE = "before"


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


def _in_order(site: Site, raw: pl.LazyFrame, places: pl.LazyFrame) -> pl.LazyFrame:
    """Points sorted by their series' place and time; while sorting, the place stands for the series' columns.

    Place and time are one number; the series' columns are looked up after the points are sorted.
    """
    import polars as pl

    values = [name for name in site.point_columns if name not in ("id", "org_id", "metric", "logical_timestamp")]
    points = raw.select("id", "logical_timestamp", *values).join(places.select("id", "place"), on="id")
    packed = points.select((pl.col("place") * HOUR_MS + pl.col("logical_timestamp") - BATCH_START).alias("packed"), *values)
    return packed.sort("packed").select(
        (pl.col("packed") // HOUR_MS).alias("place"),
        (pl.col("packed") % HOUR_MS + BATCH_START).alias("logical_timestamp"),
        *values,
    )


def _sort(form: str, compression: str, engine: Engine) -> Form:
    def sort(site: Site, _threads: int, watch: Stopwatch) -> dict[str, Any]:
        import polars as pl

        with watch.time("sort and write"):
            raw = _scan(site, site.raw_files)
            if form == "packed":
                places = _places(raw).lazy()
                frame = _in_order(site, raw, places).join(places, on="place", maintain_order="left")
            elif form == "gathered":
                series = _places(raw)
                series = series.with_columns(pl.col("metric").cast(pl.Enum(series.get_column("metric").unique().sort())))
                # A place is a row number, so no join is needed.
                columns = [pl.lit(series.get_column(name)).gather(pl.col("place")).alias(name) for name in ("id", "org_id", "metric")]
                frame = _in_order(site, raw, series.lazy()).with_columns(columns)
            else:
                if form == "by enum":
                    names = raw.select(pl.col("metric").unique().sort()).collect(engine="streaming").get_column("metric")
                    raw = raw.with_columns(pl.col("metric").cast(pl.Enum(names)))
                shard = (pl.col("id") & 15).cast(pl.UInt8).alias("shard")
                frame = raw.with_columns(shard).sort("shard", "metric", "org_id", "id", "logical_timestamp")
            _sink(frame.select(site.point_columns), str(site.output / "sorted.parquet"), compression, engine, maintain_order=True)
        return {}

    return sort


def _aggregates(site: Site, *, in_order: bool, steps: bool) -> list[pl.Expr]:
    import polars as pl

    value, time = pl.col(site.value_column), pl.col("logical_timestamp")
    found = [
        pl.len().cast(pl.Int64).alias("count_rollup"),
        value.sum().alias("sum_rollup"),
        value.min().alias("min_rollup"),
        value.max().alias("max_rollup"),
        value.mean().alias("average_rollup"),
        (value.last() if in_order else value.max_by(time)).alias("latest_rollup"),
    ]
    if received(site):
        found.append((pl.col(RECEIVED) - time).mean().alias("lag_rollup"))
    if steps:
        # A window without steps has no delta, but Polars' sum would be 0.
        delta = pl.when(pl.col("step").count() > 0).then(pl.col("step").sum())
        found += [delta.alias("delta_rollup"), (value < pl.col(_BEFORE)).sum().cast(pl.Int64).alias("resets_rollup")]
    return found


def _before(site: Site, points: pl.LazyFrame, form: str) -> pl.LazyFrame:
    """Points with their step from the previous one: null at a series' first point."""
    import polars as pl

    value = pl.col(site.value_column)
    if form.startswith("over"):
        order = None if "in order" in form else "logical_timestamp"
        points = points.with_columns(value.shift(1).over("id", order_by=order).alias(_BEFORE))
    else:
        series = pl.col("place" if form.startswith("sorted") else "id")
        points = points.with_columns(pl.when(series == series.shift(1)).then(value.shift(1)).alias(_BEFORE))
    before = pl.col(_BEFORE)
    return points.with_columns(pl.when(value >= before).then(value - before).when(before.is_not_null()).then(value).alias("step"))


def _rollups(files_of: FilesOf, form: str, compression: Any, engine: Engine = "streaming", *, steps: str = "") -> Form:
    """``steps``: how the previous point is found; empty: no delta."""

    def roll_up(site: Site, _threads: int, watch: Stopwatch) -> dict[str, Any]:
        import polars as pl

        time = pl.col("logical_timestamp")
        files = files_of(site)
        # Sorted points are in time order within a series; raw ones may be late.
        aggregates = _aggregates(site, in_order=files == site.sorted_files or form.startswith("sorted"), steps=bool(steps))
        dimensions = [pl.col("org_id").first(), pl.col("metric").first()]

        def closed(paths: list[str]) -> pl.LazyFrame:
            points = _scan(site, paths)
            if steps:
                points = _before(site, points, steps)
            return points.filter(time <= BATCH_END - 60_000)

        def packed(paths: list[str]) -> pl.LazyFrame:
            """Combine series and minute into one small number."""
            places = _places(_scan(site, paths)).lazy()
            minute = (time - BATCH_START + 59_999) // 60_000
            if form.startswith("sorted"):
                ordered = _in_order(site, _scan(site, paths), places)
                numbered = (_before(site, ordered, steps) if steps else ordered).filter(time <= BATCH_END - 60_000)
            else:
                numbered = closed(paths).drop("org_id", "metric").join(places.select("id", "place"), on="id", maintain_order="left")
            key = (pl.col("place") * 64 + minute).cast(pl.Int32)
            windows = numbered.with_columns((key.set_sorted() if "runs" in form else key).alias("key"))
            labelled = (
                windows.group_by("key")
                .agg(aggregates)
                .with_columns(
                    (pl.col("key") // 64).cast(pl.Int64).alias("place"),
                    ((pl.col("key") % 64).cast(pl.Int64) * 60_000 + BATCH_START).alias("label"),
                )
            )
            return labelled.join(places, on="place").drop("key", "place")

        def windows(paths: list[str]) -> pl.LazyFrame:
            if form in ("packed", "sorted", "sorted, runs"):
                return packed(paths)
            points = closed(paths).with_columns(label=(time + 59_999) // 60_000 * 60_000)
            if form == "joined":
                series = _scan(site, paths).group_by("id").agg(dimensions)
                return points.group_by("id", "label").agg(aggregates).join(series, on="id")
            if form.startswith("runs"):
                # In sorted points a window is a run of rows, and grouping by a sorted number takes slices.
                begins = (pl.col("id") != pl.col("id").shift(1, fill_value=0)) | (pl.col("label") != pl.col("label").shift(1, fill_value=0))
                runs = points.with_columns(key=begins.cum_sum().set_sorted()).group_by("key")
                return runs.agg(pl.col("id").first(), pl.col("label").first(), *dimensions, *aggregates).drop("key")
            return points.group_by("id", "label").agg(*dimensions, *aggregates)

        def of(paths: list[str]) -> pl.LazyFrame:
            found = windows(paths)
            return found.with_columns((pl.col("delta_rollup") / MINUTE).alias("rate_rollup")) if steps else found

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


FORMS: dict[str, dict[str, Form]] = {
    REPARTITION: {
        "sort by packed place and time, lz4, in memory": _sort("packed", "lz4", "in-memory"),
        "sort by packed place and time, series gathered, metric as enum, lz4, in memory": _sort("gathered", "lz4", "in-memory"),
        "sort by packed place and time, lz4, streaming": _sort("packed", "lz4", "streaming"),
        "sort by enum, lz4, streaming": _sort("by enum", "lz4", "streaming"),
        "sort, lz4, streaming": _sort("plain", "lz4", "streaming"),
    },
    ROLLUPS_1M: {
        "shard by shard, lz4": _rollups(of_sorted, "plain, shard by shard", "lz4"),
        "runs, shard by shard, lz4, in memory": _rollups(of_sorted, "runs, shard by shard", "lz4", "in-memory"),
        "group by packed place and minute, lz4": _rollups(of_sorted, "packed", "lz4"),
        "dimensions joined, lz4": _rollups(of_sorted, "joined", "lz4"),
        "group by id and label, lz4": _rollups(of_sorted, "plain", "lz4"),
    },
    ROLLUPS_1M_FULL: {
        "shifted in order, shard by shard, lz4": _rollups(of_sorted, "plain, shard by shard", "lz4", steps="in order"),
        "shifted in order, runs, shard by shard, lz4, in memory": _rollups(
            of_sorted, "runs, shard by shard", "lz4", "in-memory", steps="in order"
        ),
        "shifted in order, shard by shard, lz4, in memory": _rollups(
            of_sorted, "plain, shard by shard", "lz4", "in-memory", steps="in order"
        ),
        "shifted over each series in order, shard by shard, lz4": _rollups(
            of_sorted, "plain, shard by shard", "lz4", steps="over, in order"
        ),
        "shifted in order, lz4": _rollups(of_sorted, "plain", "lz4", steps="in order"),
    },
    RAW_TO_1M: {
        "dimensions joined, zstd": _rollups(of_raw, "joined", "zstd"),
        "dimensions joined, lz4": _rollups(of_raw, "joined", "lz4"),
        "group by packed place and minute, lz4": _rollups(of_raw, "packed", "lz4"),
        "sorted by packed place and time, lz4": _rollups(of_raw, "sorted", "lz4"),
        "sorted by packed place and time, runs, lz4, in memory": _rollups(of_raw, "sorted, runs", "lz4", "in-memory"),
        "group by id and label, lz4": _rollups(of_raw, "plain", "lz4"),
    },
    RAW_TO_1M_FULL: {
        "sorted by packed place and time, shifted, lz4": _rollups(of_raw, "sorted", "lz4", steps="sorted"),
        "sorted by packed place and time, shifted, runs, lz4, in memory": _rollups(
            of_raw, "sorted, runs", "lz4", "in-memory", steps="sorted"
        ),
        "shifted over each series, dimensions joined, lz4": _rollups(of_raw, "joined", "lz4", steps="over"),
    },
}
