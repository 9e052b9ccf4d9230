"""The command line: measure, write results, and make the tables and plots of ``docs/performance.md`` from them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import contenders, report
from benchmarks.data import SCRAPES, SHAPES, SPARSE, rows_of
from benchmarks.runner import ROOT, Bench, first_run
from benchmarks.sections import stages
from benchmarks.side_by_side import side_by_side

ROWS, REPEAT, THREADS, LIMIT_GIB = 36_000_000, 5, 2, 8.0
MAIN = (SCRAPES, SPARSE)
"""Shapes that targets are about."""
PACKAGES = ("numpy", "numba", "pyarrow", "pyiceberg", "duckdb", "polars", "datafusion", "chdb-core")
console = Console(highlight=False, soft_wrap=True)


def is_complete(*, rows: int, repeat: int, only: str, threads: int, limit_gib: float, forms: bool) -> bool:
    """Whether these options measure the whole benchmark of a shape, or all forms."""
    whole = (rows, only, threads, limit_gib) == (ROWS, "", THREADS, LIMIT_GIB)
    return whole and (forms or repeat >= REPEAT)


def main(
    rows: Annotated[int, typer.Option(help="Raw points of a batch; of wide ones five sixths.")] = ROWS,
    repeat: Annotated[int, typer.Option(help="Turns; after the first, only those go on that targets depend on.")] = REPEAT,
    only: Annotated[str, typer.Option(help="Only contenders whose name contains this, such as 'DuckDB' or 'rollups-1m warm'.")] = "",
    shape: Annotated[list[str] | None, typer.Option(help=f"Points: {', '.join(SHAPES)}. Can be repeated; without, the first two.")] = None,
    full: Annotated[bool, typer.Option("--full", help="All shapes, all tasks, everyone in every turn of the first two.")] = False,
    threads: Annotated[int, typer.Option(help="Threads and cores for everyone.")] = THREADS,
    limit_gib: Annotated[float, typer.Option(help="Everyone's memory limit, page cache included, GiB; 0: none.")] = LIMIT_GIB,
    forms: Annotated[
        bool, typer.Option("--forms", help="Measure every form of the peers' queries instead, to choose the fastest.")
    ] = False,
    renew: Annotated[
        bool,
        typer.Option("--renew", help="With --only: these take their place in what is kept; a shape's cold ones together, or warm ones."),
    ] = False,
    work: Annotated[Path, typer.Option(help="Folder for data; 2 GB a shape.")] = ROOT / ".rollups" / "benchmark",
    output: Annotated[
        Path | None,
        typer.Option(help="Results of one shape, JSON. With the default rows, repeat and contenders those in benchmarks/results."),
    ] = None,
    report_only: Annotated[bool, typer.Option("--report", help="Measure nothing; make tables and plots from the results.")] = False,
) -> None:
    """Every stage beside DuckDB, Polars, DataFusion, ClickHouse and the decode + encode floor."""
    if report_only:
        report.write(ROOT)
        return
    shapes = shape or list(SHAPES if full else MAIN)
    if set(shapes) - set(SHAPES):
        raise typer.BadParameter(f"--shape is one of {', '.join(SHAPES)}")
    if renew and not only:
        raise typer.BadParameter("--renew is for --only: without, everything is measured again anyway")
    if output and len(shapes) > 1:
        raise typer.BadParameter("--output is for one --shape")
    for name in shapes:
        # Compiling takes the same time whatever the points.
        first = [first_run()] if full and name == SCRAPES else []
        all_of_it = contenders.all_forms() if forms else [*contenders.all_contenders(name), *first]
        chosen = all_of_it if full or forms else contenders.core(all_of_it, name)
        left_out = [contender.name for contender in all_of_it if contender not in chosen]
        wanted = [contender for contender in chosen if only in contender.name]
        if not wanted:
            console.print(f"no contender's name contains {only!r}; there are: {', '.join(contender.name for contender in chosen)}")
            if left_out:
                console.print(f"with --full also: {', '.join(left_out)}")
            raise typer.Exit(2)
        bench = Bench(work.resolve(), rows_of(name, rows), threads, name, memory_limit=int(limit_gib * 2**30) or None)
        kept_as = contenders.forms_name(name) if forms else name
        if renew and (problem := report.not_renewable(kept_as, bench, repeat, () if forms else wanted)):
            raise typer.BadParameter(problem)
        if left_out and not only:
            console.print(f"left to --full: {', '.join(left_out)}")
        complete = is_complete(rows=rows, repeat=repeat, only=only, threads=threads, limit_gib=limit_gib, forms=forms)
        everyone = forms or (only and not renew) or (full and name in MAIN)
        again = None if everyone else contenders.worth_repeating
        results = side_by_side("python -m benchmarks", bench, wanted, repeat, PACKAGES, console.print, again)
        results["left_out"] = left_out
        if renew:
            report.renew(results, kept_as, all_of_it, output=output, say=console.print)
        else:
            report.keep(results, kept_as, complete=complete, output=output, say=console.print)
        for line in stages.lines(results):
            console.print(line)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
