"""One batch of the seed's own size, raw to published, under a memory limit: ``python -m benchmarks.seed_size``.

11,441,379 series with a point a minute, and the batch before is staged: 686 million 1 min rollups, and those of 5 min and 1 h. Each run is
a process of its own, timed from its start to its end; no raw file is in the file cache when it starts, and what it caches counts as its
memory. Afterwards a sample of the series is recomputed from raw data with DuckDB, and every row is compared.

The seed's program and DuckDB run on the same site: ``python -m benchmarks.seed --site FOLDER``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.circumstances import circumstances
from benchmarks.data import SPARSE
from benchmarks.limits import Group, limited_where_possible
from benchmarks.measure import Stopwatch, peak_bytes_of_tree, use_cores
from benchmarks.runner import ROOT, Bench, run_process
from benchmarks.sites import BATCH_END, BATCH_START, EARLIER_KEYS, THREE, Site

NAME = "seed_size"
SERIES, FILES, SHARDS, REPEAT, THREADS = 11_441_379, 60, 128, 3, 2
MEMORY_GIB, ROLLUP_MEMORY = 6.0, "1GiB"
SAMPLED = 61
"""One in this many series is compared row by row."""
PACKAGES = ("numpy", "numba", "pyarrow", "pyiceberg", "duckdb")
console = Console(highlight=False, soft_wrap=True)


def is_complete(*, series: int, repeat: int, files: int, shards: int, memory: float, rollup_memory: str, threads: int) -> bool:
    """Whether these options measure the whole benchmark."""
    given = (series, files, shards, memory, rollup_memory, threads)
    return given == (SERIES, FILES, SHARDS, MEMORY_GIB, ROLLUP_MEMORY, THREADS) and repeat >= REPEAT


def main(
    series: Annotated[int, typer.Option(help="Series; each has 60 points.")] = SERIES,
    repeat: Annotated[int, typer.Option(help="How many times the batch is made.")] = REPEAT,
    files: Annotated[int, typer.Option(help="Raw files of the batch.")] = FILES,
    shards: Annotated[int, typer.Option(help="ROLLUP_SHARDS.")] = SHARDS,
    memory: Annotated[float, typer.Option(help="GiB that the process may use, page cache included.")] = MEMORY_GIB,
    rollup_memory: Annotated[str, typer.Option(help="ROLLUP_MEMORY.")] = ROLLUP_MEMORY,
    threads: Annotated[int, typer.Option(help="Threads and cores.")] = THREADS,
    work: Annotated[Path, typer.Option(help="Folder for data; 45 GB.")] = ROOT / ".rollups" / "benchmark-seed-size",
    output: Annotated[Path | None, typer.Option(help="Results, JSON. With the defaults those in benchmarks/results.")] = None,
) -> None:
    """A batch of 686 million points from raw files to the table."""
    bench = Bench(work.resolve(), series * 60, threads, SPARSE, memory_limit=int(memory * 2**30), rollup_memory=rollup_memory)
    environment = {"ROLLUP_SHARDS": str(shards), "ROLLUP_MEMORY": rollup_memory}
    with bench.exclusively():
        console.print(f"{series:,} series; preparing: the hour before is staged")
        _process(bench, {"do": "prepare", "rows": bench.rows, "files": files}, environment, None)
        runs = []
        for turn in range(repeat):
            run = _run(bench, environment)
            checked = _process(bench, {"do": "check"}, environment, None)[0] if turn == 0 else {}
            if turn == 0 and not checked["equal"]:
                raise ValueError(f"the rollups are not those of the raw points: {checked}")
            runs.append(
                {"turn": turn, "engine": "rollup_assets", "task": "raw-to-published", "start": "cold", "form": "", **run, **checked}
            )
            gib = (run["memory"].get("peak_bytes") or 0) / 2**30
            console.print(
                f"{turn + 1}/{repeat}  {run['process_wall']:.1f} s, CPU {run['process_cpu']:.1f} s, {run['peak_bytes'] / 2**30:.2f} GiB, "
                f"with page cache {gib:.2f} GiB; {', '.join(f'{part} {seconds:.1f}' for part, seconds in run['wall'].items())}; "
                f"others {run['others_share']:.0%}"
            )
    results = {
        **circumstances(f"python -m benchmarks.{NAME}", bench, repeat, runs, PACKAGES),
        "settings": {**environment, "memory_limit": bench.memory_limit},
        "runs": runs,
    }
    complete = is_complete(
        series=series, repeat=repeat, files=files, shards=shards, memory=memory, rollup_memory=rollup_memory, threads=threads
    )
    report.keep(results, NAME, complete=complete, output=output, say=console.print)


def _run(bench: Bench, environment: dict[str, str]) -> dict[str, Any]:
    bench.full.forget(THREE, "repartition", "rollups", "publish")
    _forget_cached(bench.full.raw_files)
    os.sync()
    with limited_where_possible(bench.memory_limit) as memory:
        answer, usage = _process(bench, {"do": "run"}, environment, memory.group)
        return {**usage, **answer, **memory.told()}


def _process(bench: Bench, job: dict[str, Any], environment: dict[str, str], group: Group | None) -> tuple[dict[str, Any], dict[str, Any]]:
    whole = {"site": str(bench.full.root), "threads": bench.threads, **job}
    return run_process(f"benchmarks.{NAME}", whole, bench.work, environment, group)


def _forget_cached(paths: Sequence[str]) -> None:
    for path in paths:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# -------------------------------------------------------------------------------------------------------- in a process


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Prepare the site, make the batch, or check it."""
    use_cores(job["threads"])
    site = Site(Path(job["site"]))
    if job["do"] == "prepare":
        _prepare(site, job["rows"], job["files"], job["threads"])
        return {}
    if job["do"] == "check":
        return _check(site)
    from benchmarks import ours

    watch = Stopwatch()
    found = ours.raw_to_published(site, job["threads"], watch)
    written = sum(Path(path).stat().st_size for path in site.rollup_files(THREE))
    rows = found["steps"]["publish"]["rows"]
    return {
        **found,
        "wall": watch.wall,
        "cpu": watch.cpu,
        "peak_bytes": peak_bytes_of_tree(),
        "bytes": written,
        "rollup_rows": rows,
    }


def _prepare(site: Site, rows: int, files: int, threads: int) -> None:
    """Make raw data, and a table with the second batch before in it; stage the batch before, whose raw files, as large as the batch's, are
    then deleted.
    """
    from benchmarks import data, ours
    from rollup_assets.steps.publish import publish
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.rollup import roll_up

    done = site.root / "prepared"
    data.generate(site, rows, SPARSE, files=files, hour_before=True, threads=threads)
    if done.exists():
        site.restore_published(THREE)
        return
    pipeline = ours.open_pipeline(site, THREE, threads)
    first, last = (pipeline.batch(key) for key in EARLIER_KEYS)
    stage_batch(pipeline, first)
    roll_up(pipeline, first)
    publish(pipeline, first)
    site.save_published(THREE)
    stage_batch(pipeline, last)
    shutil.rmtree(site.raw_folder(EARLIER_KEYS[-1]))
    done.touch()


def _check(site: Site) -> dict[str, Any]:
    """Recompute one in ``SAMPLED`` series from raw points and compare it, and count all rows.

    Only labels after the batch's start: the window labelled with it belongs in part to the batch before.
    """
    import duckdb

    db = duckdb.connect(config={"threads": 2, "memory_limit": "4GB", "temp_directory": str(site.root / "duckdb")})
    columns = "count_rollup, sum_rollup, min_rollup, max_rollup, latest_rollup, resolution"
    digest = f"count(*), sum(hash(id, org_id, metric, label, {columns}))::VARCHAR"
    counts = db.execute(
        "SELECT resolution, count(*), sum(count_rollup)::BIGINT FROM read_parquet(?, hive_partitioning = false) GROUP BY 1 ORDER BY 1",
        [site.rollup_files(THREE)],
    ).fetchall()
    found = db.execute(
        f"SELECT {digest} FROM (SELECT *, epoch_ms(logical_timestamp) AS label FROM read_parquet(?, hive_partitioning = false)) "
        f"WHERE id % {SAMPLED} = 0 AND label > {BATCH_START}",
        [site.rollup_files(THREE)],
    ).fetchone()
    db.execute(
        f"CREATE TEMP TABLE points AS SELECT id, org_id, metric::VARCHAR AS metric, logical_timestamp AS time, long_value AS value "
        f"FROM read_parquet(?) WHERE id % {SAMPLED} = 0",
        [site.raw_files],
    )
    windows = " UNION ALL ".join(_windows(resolution) for resolution in (60_000, 300_000, 3_600_000))
    wanted = db.execute(f"SELECT {digest} FROM ({windows})").fetchone()
    assert found is not None
    assert wanted is not None
    return {
        "rollup_rows_by_resolution": {str(resolution): rows for resolution, rows, _ in counts},
        "compared": {"rows": found[0], "one_in_series": SAMPLED},
        "equal": found == wanted and found[0] > 0,
    }


def _windows(resolution: int) -> str:
    return (
        "SELECT id, any_value(org_id) AS org_id, any_value(metric) AS metric, label, count(*) AS count_rollup, "
        "sum(value)::BIGINT AS sum_rollup, min(value) AS min_rollup, max(value) AS max_rollup, arg_max(value, time) AS latest_rollup, "
        f"{resolution}::INTEGER AS resolution "
        f"FROM (SELECT *, (time + {resolution - 1}) // {resolution} * {resolution} AS label FROM points) "
        f"WHERE label > {BATCH_START} AND label < {BATCH_END} GROUP BY id, label"
    )


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        job = json.loads(sys.argv[1])
        Path(job["answer"]).write_text(json.dumps(child(job)))
    else:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(main)
        app()
