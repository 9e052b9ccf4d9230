"""Spark beside this project: Spark SQL as a peer, and this project on both of its engines. ``python -m benchmarks.spark``.

Every run is a process of its own, which does the task once on a tenth of the data and twice on all of it before it is measured: a JVM
compiles what it runs often, and the first time is a third slower than the third. CPU time and memory are those of the process, its JVM
and its Python workers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import contenders, report, tasks
from benchmarks.runner import ROOT, Bench
from benchmarks.sections import spark as section
from benchmarks.side_by_side import side_by_side
from benchmarks.tables import targets_table

ROWS, REPEAT, THREADS, LIMIT_GIB = 36_000_000, 5, 2, 8.0
WARM_UPS = 2
PACKAGES = ("pyspark", "numpy", "numba", "pyarrow", "pyiceberg")
console = Console(highlight=False, soft_wrap=True)


def is_complete(*, rows: int, repeat: int, forms: bool, threads: int, limit_gib: float, only: str) -> bool:
    """Whether these options measure the whole benchmark, or all forms."""
    return (rows, threads, limit_gib, only) == (ROWS, THREADS, LIMIT_GIB, "") and (forms or repeat >= REPEAT)


def main(
    rows: Annotated[int, typer.Option(help="Raw points, one series for every 360.")] = ROWS,
    repeat: Annotated[int, typer.Option(help="Turns; after the first, only those run that targets depend on.")] = REPEAT,
    forms: Annotated[
        bool, typer.Option("--forms", help="Measure every form of Spark SQL's queries instead, to choose the fastest.")
    ] = False,
    renew: Annotated[
        bool,
        typer.Option("--renew", help="With --forms and --only: what is kept of the other forms stays, and these take their place in it."),
    ] = False,
    full: Annotated[bool, typer.Option("--full", help="Everyone in every turn.")] = False,
    threads: Annotated[int, typer.Option(help="Threads and cores for everyone.")] = THREADS,
    limit_gib: Annotated[float, typer.Option(help="Everyone's memory limit, page cache included, GiB; 0: none.")] = LIMIT_GIB,
    only: Annotated[str, typer.Option(help="Only contenders whose name contains this.")] = "",
    work: Annotated[Path, typer.Option(help="Folder for data; 1 GB.")] = ROOT / ".rollups" / "benchmark-spark",
    output: Annotated[Path | None, typer.Option(help="Results, JSON. With the defaults those in benchmarks/results.")] = None,
) -> None:
    """This project's Spark engine beside its local one and beside Spark SQL; needs Java."""
    if renew and not forms:
        raise typer.BadParameter("--renew is for --forms")
    everyone = contenders.spark_contenders(forms=forms)
    wanted = [contender for contender in everyone if only in contender.name]
    limit = int(limit_gib * 2**30) or None
    bench = Bench(work.resolve(), rows, threads, "scrapes", small_rows=rows // 10, whole_warm_ups=WARM_UPS, memory_limit=limit)
    name = contenders.forms_name(bench.shape, tasks.SPARK) if forms else "spark"
    if renew and (problem := report.not_renewable(name, bench, repeat)):
        raise typer.BadParameter(problem)
    complete = is_complete(rows=rows, repeat=repeat, forms=forms, threads=threads, limit_gib=limit_gib, only=only)
    again = None if forms or only or full else contenders.worth_repeating_on_spark
    results = side_by_side("python -m benchmarks.spark", bench, wanted, repeat, PACKAGES, console.print, again)
    if renew:
        report.renew(results, name, everyone, output=output, say=console.print)
    else:
        report.keep(results, name, complete=complete, output=output, say=console.print)
    for text in (targets_table(section.aims(results)), section.side_by_side(results)):
        if text:
            console.print(text)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
