"""What a point costs by the size of the batch, on one thread and two, and how much memory a batch takes: ``python -m benchmarks.sizes``.

Raw to published in warm processes, stage by stage. A batch of a few thousand points shows the fixed start, which is what a batch costs
however small it is; the rest grows with the points. Sizes that take less than a few seconds run more often, those that take minutes
less often. A batch has as many shards as the capacity model says it should have: 16 up to 64 million points, 128 at 360 million.

Memory is that of the process, and that of its control group, which counts the page cache too: files that it reads and writes stay there
until the limit is reached. Without a control group the second is missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.capacity_model import shape_of
from benchmarks.circumstances import circumstances
from benchmarks.contenders import Contender
from benchmarks.data import SPARSE
from benchmarks.runner import ROOT, Bench
from benchmarks.sections import sizes as section
from benchmarks.tasks import OURS, RAW_TO_PUBLISHED

START_ROWS = 6_000
"""Points of the batch that shows the fixed start."""
SIZES, THREADS, REPEAT, MEMORY, LIMIT_GIB = "1,4,36", "1,2", 5, "1GiB", 6.0
_SHORT_ROWS, _MORE = 4_000_000, 2
"""A size with up to so many points runs that many times as often."""
_LONG_ROWS, _LESS = 100_000_000, 3
"""A size with more points runs so many times at most."""
PACKAGES = ("numpy", "numba", "pyarrow", "pyiceberg")
console = Console(highlight=False, soft_wrap=True)


def measure(benches: list[Bench], repeat: int, more: int = _MORE) -> list[dict[str, Any]]:
    """Prepare all benches, then run them in turn, every other time backwards; runs record their points and threads.

    Short ones run ``more`` times as often, very long ones three times at most.

    Raises:
        ChildError: a process failed.
    """
    for bench in {bench.full: bench for bench in benches}.values():
        bench.prepare(only_before=True)
    runs = []
    for turn in range(repeat * more):
        for bench in benches if turn % 2 == 0 else reversed(benches):
            if turn >= turns_of(bench.rows, repeat, more):
                continue
            run = {
                "turn": turn,
                "shape": bench.shape,
                "size": bench.rows,
                "shards": bench.rollup_shards,
                "threads": bench.threads,
                **bench.run(Contender(OURS, RAW_TO_PUBLISHED)),
            }
            runs.append(run)
            seconds = f"{sum(run['wall'].values()):6.2f} s, CPU {sum(run['cpu'].values()):6.2f} s, peak {run['peak_bytes'] >> 20:5d} MiB"
            console.print(f"{turn + 1}  {bench.shape:<12} {bench.rows:>13,} points, {bench.threads} threads  {seconds}")
    return runs


def turns_of(rows: int, repeat: int, more: int = _MORE) -> int:
    """How often a size runs if one of 36 million points runs ``repeat`` times."""
    if rows <= _SHORT_ROWS:
        return repeat * more
    return min(repeat, _LESS) if rows > _LONG_ROWS else repeat


def numbers(text: str) -> list[float]:
    """The numbers in a list such as ``1,4,36``."""
    return [float(part) for part in text.split(",")]


def is_complete(*, sizes: str, threads: str, repeat: int, shape: str, memory: str, shards: int, limit_gib: float) -> bool:
    """Whether these options measure the whole benchmark, or more sizes."""
    whole = (threads, shape, memory, shards, limit_gib) == (THREADS, SPARSE, MEMORY, 0, LIMIT_GIB)
    return whole and repeat >= REPEAT and set(numbers(SIZES)) <= set(numbers(sizes))


def main(
    sizes: Annotated[str, typer.Option(help="Millions of points, such as '1,4,36,360'; 360 need 15 GB.")] = SIZES,
    threads: Annotated[str, typer.Option(help="Numbers of threads and cores.")] = THREADS,
    repeat: Annotated[int, typer.Option(help=f"Turns; up to 4 million points {_MORE} times as many, over 100 million {_LESS}.")] = REPEAT,
    shape: Annotated[str, typer.Option(help="The points; see benchmarks/data.py.")] = SPARSE,
    memory: Annotated[str, typer.Option(help="ROLLUP_MEMORY.")] = MEMORY,
    shards: Annotated[int, typer.Option(help="ROLLUP_SHARDS for every size; 0: as many as a size should have.")] = 0,
    limit_gib: Annotated[float, typer.Option(help="Limit of the control group, page cache included, GiB.")] = LIMIT_GIB,
    work: Annotated[Path, typer.Option(help="Folder for data; 4 GB.")] = ROOT / ".rollups" / "benchmark",
    output: Annotated[
        Path | None, typer.Option(help="Results, JSON. With the defaults, or with more sizes or turns, benchmarks/results/sizes.json.")
    ] = None,
) -> None:
    """Cost per point and memory over the size of the batch."""
    rows = [START_ROWS, *sorted({int(size * 1e6) for size in numbers(sizes)})]
    small = min(360_000, *rows[1:])
    benches = [
        Bench(
            work.resolve(),
            size,
            int(count),
            shape,
            small,
            memory_limit=int(limit_gib * 2**30),
            rollup_memory=memory,
            rollup_shards=shards or shape_of(size).shards,
        )
        for size in rows
        for count in numbers(threads)
    ]
    console.print(f"raw to published: {', '.join(f'{size:,}' for size in rows)} points; preparing")
    with benches[0].exclusively():
        runs = measure(benches, repeat)
    results = {
        **circumstances("python -m benchmarks.sizes", benches[-1], repeat, runs, PACKAGES),
        "memory": memory,
        "limit_bytes": int(limit_gib * 2**30),
        "start_rows": START_ROWS,
        "runs": runs,
    }
    complete = is_complete(sizes=sizes, threads=threads, repeat=repeat, shape=shape, memory=memory, shards=shards, limit_gib=limit_gib)
    report.keep(results, "sizes", complete=complete, output=output, say=console.print)
    for line in section.lines(results):
        console.print(line)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
