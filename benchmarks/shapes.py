"""What a point costs by the shape of the points, raw to published: ``python -m benchmarks.shapes``. The shapes: ``benchmarks.data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.circumstances import circumstances
from benchmarks.data import SHAPES, rows_of, series_for
from benchmarks.runner import ROOT, Bench
from benchmarks.sections import shapes as section
from benchmarks.sizes import LIMIT_GIB, MEMORY, PACKAGES, measure

ROWS, REPEAT, THREADS = 36_000_000, 5, 2
console = Console(highlight=False, soft_wrap=True)


def is_complete(*, rows: int, repeat: int, only: str, threads: int, memory: str, limit_gib: float) -> bool:
    """Whether these options measure the whole benchmark."""
    return (rows, only, threads, memory, limit_gib) == (ROWS, "", THREADS, MEMORY, LIMIT_GIB) and repeat >= REPEAT


def main(
    rows: Annotated[int, typer.Option(help="Raw points; of wide ones five sixths, which are 10 million series.")] = ROWS,
    repeat: Annotated[int, typer.Option(help="Turns.")] = REPEAT,
    only: Annotated[str, typer.Option(help="One shape.")] = "",
    threads: Annotated[int, typer.Option(help="Threads and cores.")] = THREADS,
    memory: Annotated[str, typer.Option(help="ROLLUP_MEMORY.")] = MEMORY,
    limit_gib: Annotated[float, typer.Option(help="Limit of the control group, page cache included, GiB.")] = LIMIT_GIB,
    work: Annotated[Path, typer.Option(help="Folder for data; 10 GB.")] = ROOT / ".rollups" / "benchmark",
    output: Annotated[Path | None, typer.Option(help="Results, JSON. With the defaults benchmarks/results/shapes.json.")] = None,
) -> None:
    """Every shape of points, raw to published."""
    chosen = [shape for shape in SHAPES if only in ("", shape)]
    if not chosen:
        raise typer.BadParameter(f"--only is one of {', '.join(SHAPES)}")
    benches = [
        Bench(
            work.resolve(), rows_of(shape, rows), threads, shape, min(rows, 360_000),
            memory_limit=int(limit_gib * 2**30), rollup_memory=memory,
        )
        for shape in chosen
    ]  # fmt: skip
    console.print(f"raw to published: {', '.join(chosen)}; preparing")
    with benches[0].exclusively():
        runs = measure(benches, repeat)
    for run in runs:
        run["series"] = series_for(run["size"], run["shape"])
    results = {
        **circumstances("python -m benchmarks.shapes", benches[0], repeat, runs, PACKAGES),
        "memory": memory,
        "limit_bytes": int(limit_gib * 2**30),
        "runs": runs,
    }
    complete = is_complete(rows=rows, repeat=repeat, only=only, threads=threads, memory=memory, limit_gib=limit_gib)
    report.keep(results, "shapes", complete=complete, output=output, say=console.print)
    for line in section.lines(results):
        console.print(line)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
