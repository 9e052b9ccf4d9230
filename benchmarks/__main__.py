"""The command line: measure, write results, and make the tables and plots of ``docs/performance.md`` from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from benchmarks import contenders, report
from benchmarks.circumstances import circumstances, forms_of
from benchmarks.runner import ROOT, Bench, first_run, measure
from benchmarks.sections import stages
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
        **circumstances("python -m benchmarks", bench, repeat, runs, PACKAGES),
        "forms": forms_of(wanted),
        "outputs": outputs,
        "runs": runs,
        "summary": summarized(runs),
    }
    complete = not only and rows == ROWS and (forms or repeat >= LEAST_REPEAT[shape])
    target = output or (RESULTS / f"{'forms' if forms else shape}.json" if complete else None)
    if target is not None:
        target.write_text(json.dumps(results, indent=1) + "\n")
        console.print(f"results are in {target}")
    for line in stages.lines(results):
        console.print(line)
    if complete and not forms and output is None:
        report.write(ROOT)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
