"""One process of the benchmark: prepares a site, runs one contender from start to end, or compares answers.

Started by ``benchmarks.seed``; answers in a JSON file, and notes after each stage how far it has got.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.measure import Stopwatch, use_cores
from benchmarks.sites import RESOLUTIONS, THREE, Site

SEED, SEED_RECOMMENDED = "the seed's program", "the seed's program, with all recommendations"
OURS, DUCKDB, DUCKDB_PARTITIONED = "rollup_assets", "DuckDB", "DuckDB, points partitioned by id first"
RUNS_ON_SPARK, RUNS_ON_DUCKDB = (SEED, SEED_RECOMMENDED), (DUCKDB, DUCKDB_PARTITIONED)
FEWEST_HEAP_BYTES = 1 << 30
_BESIDE_HEAP = 3 << 29
"""Bytes that a JVM and Python need besides the heap, and a little for cached files."""


def heap_bytes(memory: int) -> int:
    """Bytes of a JVM's heap if every contender may use ``memory`` bytes."""
    return max(FEWEST_HEAP_BYTES, memory - _BESIDE_HEAP)


def main(job: dict[str, Any]) -> dict[str, Any]:
    """Do a job."""
    use_cores(job["threads"])
    return {"jars": _jars, "prepare": _prepare, "run": _run, "compare": _compare}[job["do"]](job)


def _jars(_: dict[str, Any]) -> dict[str, Any]:
    """Paths of the jars of Iceberg and PostgreSQL; Spark's own resolver fetches missing ones."""
    from pyspark.sql import SparkSession

    from rollup_assets.iceberg.spark import ICEBERG_RUNTIME, POSTGRESQL_DRIVER

    builder = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false")
    spark = builder.config("spark.jars.packages", f"{ICEBERG_RUNTIME},{POSTGRESQL_DRIVER}").getOrCreate()
    listed = spark.sparkContext.getConf().get("spark.jars") or ""
    spark.stop()
    # The resolver names its copies as file URIs, some several times.
    return {"jars": list(dict.fromkeys(name.removeprefix("file:").replace("///", "/") for name in listed.split(",") if name))}


def _prepare(job: dict[str, Any]) -> dict[str, Any]:
    """Prepare data, our home on the catalog, and Spark's input; on a site that another benchmark has prepared, only the last."""
    from benchmarks import data
    from benchmarks.peers import spark
    from benchmarks.seed_program import ours

    site = Site(Path(job["site"]))
    if job["catalog"]:
        data.generate(site, job["rows"], job["shape"])
        ours.prepare(site, job["catalog"], job["threads"])
    elif not _our_rollups(site) or not _sorted_files(site):
        raise ValueError("the site has no staged points or no 1 min rollups of the batch; run the benchmark that prepares it first")
    if job["spark"]:
        spark.copy_for_spark(site, _sorted_files(site))
    return {"rows": _rows(_sorted_files(site)), "series": _rows(_partial_files(site))}


def _sorted_files(site: Site) -> list[str]:
    from benchmarks.seed_program import ours

    return ours.sorted_files(site) or site.sorted_files


def _partial_files(site: Site) -> list[str]:
    from benchmarks.seed_program import ours

    return ours.partial_files(site) or ours.partial_files(site, THREE)


def _our_rollups(site: Site) -> list[str]:
    from benchmarks.seed_program import ours

    found = ours.rollup_files(site) or [path for home in RESOLUTIONS for path in site.rollup_files(home)]
    one_minute = [path for path in found if "/resolution=60000/" in path]
    # Both homes of a site have 1 min rollups; those of one are enough.
    return [path for path in one_minute if f"/{THREE}/" in path] or one_minute


def _rows(files: list[str]) -> int:
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(path).num_rows for path in files)


def _run(job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.measure import cpu_seconds, peak_bytes_of_tree

    watch = Stopwatch()

    def done(stage: str) -> None:
        so_far = {"done": stage, "wall": watch.wall, "cpu": watch.cpu}
        Path(job["progress"]).write_text(json.dumps(so_far))

    if job["engine"] == OURS:
        details = _run_ours(job, watch)
    elif job["engine"] in RUNS_ON_DUCKDB:
        details = _run_duckdb(job, watch)
    else:
        details = _run_seed(job, watch, done)
    return {"wall": watch.wall, "cpu": watch.cpu, "tree_cpu": cpu_seconds(), "peak_bytes": peak_bytes_of_tree(), **details}


def _run_ours(job: dict[str, Any], watch: Stopwatch) -> dict[str, Any]:
    from benchmarks.seed_program import ours

    if job["small"]:
        ours.run(Site(Path(job["small"])), job["small_catalog"], job["threads"], Stopwatch())
    return ours.run(Site(Path(job["site"])), job["catalog"], job["threads"], watch)


def _run_duckdb(job: dict[str, Any], watch: Stopwatch) -> dict[str, Any]:
    """Run DuckDB on the same data: raw points to 1 min rollups in files, in its fastest form or in the one for less memory."""
    from benchmarks import contenders, tasks
    from benchmarks.peers.duckdb import PARTITIONED

    fastest = contenders.fastest_form(tasks.DUCKDB, tasks.RAW_TO_1M, job["shape"])
    form = PARTITIONED if job["engine"] == DUCKDB_PARTITIONED else fastest
    peer = contenders.Contender(tasks.DUCKDB, tasks.RAW_TO_1M, tasks.WARM, form)
    return {"form": form, **contenders.run(peer, Site(Path(job["site"])), job["threads"], watch)}


def _run_seed(job: dict[str, Any], watch: Stopwatch, done: Any) -> dict[str, Any]:
    from benchmarks.seed_program import program
    from rollup_assets.settings import load_settings

    site = Site(Path(job["site"]))
    settings = load_settings(home=str(site.output), warehouse=str(site.output / "warehouse"), catalog=job["catalog"])
    variant = program.RECOMMENDED if job["engine"] == SEED_RECOMMENDED else program.ORIGINAL
    spark = program.session(variant, settings, job["jars"], job["threads"], job["heap_bytes"], site.output / "spark")
    if job["small"]:
        small = Site(Path(job["small"]))
        warm_up = program.create_table(spark, variant, settings, "warm_up")
        program.run(spark, variant, small, warm_up, job["small_series"], job["threads"], Stopwatch(), lambda _: None)
    table = program.create_table(spark, variant, settings, "rollups")
    return program.run(spark, variant, site, table, job["series"], job["threads"], watch, done)


def _compare(job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.seed_program import answers
    from rollup_assets.iceberg.catalog import open_catalog
    from rollup_assets.settings import load_settings

    site = Site(Path(job["site"]))
    settings = load_settings(home=str(site.output), warehouse=str(site.output / "warehouse"), catalog=job["catalog"])
    with open_catalog(settings) as catalog:
        table = catalog.load_table("seed.rollups")
        theirs = [task.file.file_path.removeprefix("file:") for task in table.scan().plan_files()]
    partial = sorted(str(path) for path in (site.output / "partial-points").glob("*.parquet"))
    found = answers.compare(theirs, _our_rollups(site), partial, _partial_files(site), site.output / "duckdb")
    sizes = [Path(path).stat().st_size for path in theirs]
    return {**found, "files": len(theirs), "bytes": sum(sizes)}


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    Path(given["answer"]).write_text(json.dumps(main(given)))
