"""Spark beside this project: its own sort of the raw points, and this project on both of its engines. ``python -m benchmarks.spark``.

Every run is a process of its own, which does the task once on a tenth of the data and twice on all of it before it is measured: a Java
machine compiles what it runs often, and is a third slower the first time than the third. CPU time and
memory are those of the process, its Java machine and its Python workers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import contenders, report
from benchmarks.circumstances import circumstances, forms_of
from benchmarks.runner import ROOT, Bench, measure
from benchmarks.sections import spark as section
from benchmarks.summary import summarized
from benchmarks.tables import targets_table

RESULTS = Path(__file__).parent / "results" / "spark.json"
ROWS, REPEAT = 36_000_000, 3
WARM_UPS = 2
PACKAGES = ("pyspark", "numpy", "numba", "pyarrow", "pyiceberg")
console = Console(highlight=False, soft_wrap=True)


def main(
    rows: Annotated[int, typer.Option(help="Raw points, one series for every 360.")] = ROWS,
    repeat: Annotated[int, typer.Option(help="How many times everything runs.")] = REPEAT,
    forms: Annotated[bool, typer.Option("--forms", help="Measure every form of Spark's sort instead, to choose the fastest.")] = False,
    threads: Annotated[int, typer.Option(help="Threads and cores for everyone.")] = 2,
    only: Annotated[str, typer.Option(help="Only contenders whose name contains this.")] = "",
    work: Annotated[Path, typer.Option(help="Folder for data; 1 GB.")] = ROOT / ".rollups" / "benchmark-spark",
    output: Annotated[Path | None, typer.Option(help="Results, JSON. With the defaults those in benchmarks/results.")] = None,
) -> None:
    """This project's Spark engine beside its local one and beside Spark's own sort; needs Java."""
    wanted = [contender for contender in contenders.spark_contenders(forms=forms) if only in contender.name]
    bench = Bench(work.resolve(), rows, threads, "scrapes", small_rows=rows // 10, whole_warm_ups=WARM_UPS)
    console.print(f"{rows:,} points, {repeat} times {len(wanted)} contenders, {threads} threads; preparing")
    with bench.exclusively():
        bench.prepare()
        runs, outputs = measure(bench, wanted, repeat, console.print)
    results = {
        **circumstances("python -m benchmarks.spark", bench, repeat, runs, PACKAGES),
        "forms": forms_of(wanted),
        "outputs": outputs,
        "runs": runs,
        "summary": summarized(runs),
    }
    complete = not only and not forms and rows == ROWS and repeat >= REPEAT
    target = output or (RESULTS if complete else None)
    if target is not None:
        target.write_text(json.dumps(results, indent=1) + "\n")
        console.print(f"results are in {target}")
    for text in (targets_table(section.aims(results)), section.side_by_side(results)):
        if text:
            console.print(text)
    if target == RESULTS:
        report.write(ROOT)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
