"""The command line: measure, write results, and make the tables and plots of ``docs/performance.md`` from them."""

from __future__ import annotations

import datetime as dt
import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from benchmarks import contenders, report
from benchmarks.contenders import Contender
from benchmarks.measure import machine
from benchmarks.runner import ROOT, Bench, first_run, measure
from benchmarks.summary import summarized

RESULTS = Path(__file__).parent / "results"
ROWS, REPEAT = 36_000_000, 5
LEAST_REPEAT = {"scrapes": 5, "fleet": 3}
"""Turns that results must have to be kept in ``RESULTS``."""
PACKAGES = ("numpy", "numba", "pyarrow", "pyiceberg", "duckdb", "polars")
Shape = Literal["scrapes", "fleet"]
console = Console(highlight=False, soft_wrap=True)


def main(
    rows: Annotated[int, typer.Option(help="Raw points, one series for every 360.")] = ROWS,
    repeat: Annotated[int, typer.Option(help="How many times everything runs.")] = REPEAT,
    only: Annotated[str, typer.Option(help="Only contenders whose name contains this, such as 'DuckDB' or 'rollups-1m warm'.")] = "",
    shape: Annotated[Shape, typer.Option(help="The points: plain scrapes, or a fleet as `rollups generate` makes it.")] = "scrapes",
    threads: Annotated[int, typer.Option(help="Threads and cores for everyone.")] = 2,
    forms: Annotated[
        bool, typer.Option("--forms", help="Measure every form of the peers' queries instead, to choose the fastest.")
    ] = False,
    work: Annotated[Path, typer.Option(help="Folder for data; 1 GB.")] = ROOT / ".rollups" / "benchmark",
    output: Annotated[
        Path | None, typer.Option(help="Results, JSON. With the default rows, repeat and contenders those in benchmarks/results.")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report", help="Measure nothing; make tables and plots from the results.")] = False,
) -> None:
    """Every stage beside DuckDB, Polars and the decode + encode floor."""
    if report_only:
        report.write(ROOT)
        return
    chosen = contenders.all_forms() if forms else [*contenders.all_contenders(), first_run()]
    wanted = [contender for contender in chosen if only in contender.name]
    if not wanted:
        console.print(f"no contender's name contains {only!r}; there are: {', '.join(contender.name for contender in chosen)}")
        raise typer.Exit(2)
    bench = Bench(work.resolve(), rows, threads, shape)
    console.print(f"{rows:,} points, {repeat} times {len(wanted)} contenders, {threads} threads; preparing")
    with bench.exclusively():
        bench.prepare()
        runs, outputs = measure(bench, wanted, repeat, console.print)
    results = {
        **_circumstances(bench, repeat, runs),
        "forms": _forms(wanted),
        "outputs": outputs,
        "runs": runs,
        "summary": summarized(runs),
    }
    complete = not only and rows == ROWS and (forms or repeat >= LEAST_REPEAT[shape])
    target = output or (RESULTS / f"{'forms' if forms else shape}.json" if complete else None)
    if target is not None:
        target.write_text(json.dumps(results, indent=1) + "\n")
        console.print(f"results are in {target}")
    for line in report.lines(results):
        console.print(line)
    if complete and not forms and output is None:
        report.write(ROOT)


def _circumstances(bench: Bench, repeat: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What one needs to know to repeat or doubt the figures."""
    from importlib.metadata import version

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()

    raw = [Path(path) for path in bench.full.raw_files]
    return {
        "command": " ".join(["python -m benchmarks", *_without_folders(sys.argv[1:])]),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "changed": sorted(line[3:] for line in git("status", "--porcelain", "--", "rollup_assets", "benchmarks/*.py").splitlines()),
        "machine": machine(),
        "versions": {name: version(name) for name in PACKAGES},
        "repeat": repeat,
        "threads": bench.threads,
        "data": {
            "shape": bench.shape,
            "series": bench.rows // 360,
            "raw_files": len(raw),
            "raw_bytes": sum(path.stat().st_size for path in raw),
            "rows": next((run["rows"] for run in runs if run.get("task") == contenders.REPARTITION and "rows" in run), bench.rows),
        },
    }


def _without_folders(arguments: list[str]) -> list[str]:
    """Arguments but for those that name a folder of this machine."""
    kept = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before not in ("--work", "--output") and not argument.startswith(("--work", "--output")):
            kept.append(argument)
    return kept


def _forms(wanted: list[Contender]) -> dict[str, str]:
    return {f"{contender.engine} {contender.task}": contender.form for contender in wanted if contender.form and contender.start == "warm"}


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
