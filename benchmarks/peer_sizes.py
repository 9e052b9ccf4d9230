"""This project beside its peers by the size of the batch, from raw points: ``python -m benchmarks.peer_sizes``.

Ours is raw to published, staged and at three resolutions; a peer's is one query that writes 1 min rollups and stages nothing. All run in
warm processes under the same memory limit, on sparse points, which have as many windows as points. Peers run in the form that was fastest
when all were measured at 36 million points; with more points, in a form made for more windows than fit into memory, or at least for more
points, if they have one. A peer that did not finish at a size, or was too many times slower than the fastest, is left out at larger ones.

What a point costs this project by size, stage by stage, is ``benchmarks.sizes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.capacity_model import shape_of
from benchmarks.contenders import Contender, fastest_form, worth_repeating
from benchmarks.data import SPARSE
from benchmarks.peers.duckdb import PARTITIONED
from benchmarks.runner import ROOT, SMALL_ROWS, Bench
from benchmarks.sections import peer_sizes as section
from benchmarks.side_by_side import side_by_side
from benchmarks.sizes import MEMORY, numbers
from benchmarks.summary import Spread, select, wall
from benchmarks.tables import Results
from benchmarks.tasks import DUCKDB, OURS, PEERS, POLARS, RAW_TO_1M, RAW_TO_PUBLISHED, WARM

SIZES, REPEAT, THREADS, LIMIT_GIB, LIMIT_SECONDS = "1,36,360", 3, 2, 8.0, 1_200.0
PACKAGES = ("numpy", "numba", "pyarrow", "pyiceberg", "duckdb", "polars", "datafusion", "chdb-core")
_MEASURED_ROWS = 36_000_000
"""Points of the batch that the forms were measured with."""
_SLOW_TIMES = 3.0
console = Console(highlight=False, soft_wrap=True)


def form_at(peer: str, rows: int) -> str:
    """The form in which a peer's query competes at a size."""
    if rows > _MEASURED_ROWS and peer == DUCKDB:
        return PARTITIONED
    if rows > _MEASURED_ROWS and peer == POLARS:
        return fastest_form(peer, RAW_TO_1M, SPARSE, but="in memory")
    return fastest_form(peer, RAW_TO_1M, SPARSE)


def out_of_the_race(results: Results) -> dict[str, str]:
    """Peers that are left out at larger sizes, each with the reason."""
    found = {each["engine"]: each["why"] for each in results["failed"]}
    medians = {peer: Spread.of([wall(run) for run in runs]).median for peer in PEERS if (runs := select(results["runs"], peer, RAW_TO_1M))}
    least = min(medians.values(), default=0.0)
    slow = {peer: median / least for peer, median in medians.items() if median > _SLOW_TIMES * least}
    return found | {peer: f"took {times:.1f} times as long as the fastest peer" for peer, times in slow.items()}


def measure(benches: list[Bench], repeat: int, only: str = "") -> list[Results]:
    """Measure every size by itself, the smallest first; each result says who was ``not_asked`` and why.

    Raises:
        BusyError: another benchmark uses the folder.
        ChildError: a process of ours failed, or a peer's that had finished in the first turn.
        ValueError: a peer's answer differs from ours for the second time.
    """
    measured: list[Results] = []
    out: Mapping[str, str] = {}
    for bench in benches:
        peers = [peer for peer in PEERS if peer not in out and only in peer]
        wanted = [Contender(OURS, RAW_TO_PUBLISHED), *(Contender(peer, RAW_TO_1M, WARM, form_at(peer, bench.rows)) for peer in peers)]
        command = "python -m benchmarks.peer_sizes"
        results = side_by_side(command, bench, wanted, repeat, PACKAGES, console.print, worth_repeating, only_before=True)
        measured.append({**results, "shards": bench.rollup_shards, "not_asked": dict(out)})
        out = {**out, **{peer: f"at {section.millions(bench.rows)} {why}" for peer, why in out_of_the_race(results).items()}}
    return measured


def is_complete(*, sizes: str, repeat: int, only: str, threads: int, memory: str, limit_gib: float, limit_seconds: float) -> bool:
    """Whether these options measure the whole benchmark."""
    given = (sizes, only, threads, memory, limit_gib, limit_seconds)
    return given == (SIZES, "", THREADS, MEMORY, LIMIT_GIB, LIMIT_SECONDS) and repeat >= REPEAT


def main(
    sizes: Annotated[str, typer.Option(help="Millions of points; 360 need 40 GB.")] = SIZES,
    repeat: Annotated[int, typer.Option(help="Turns; after the first, only peers go on that are about as fast as the fastest.")] = REPEAT,
    only: Annotated[str, typer.Option(help="Only peers whose name contains this; writes nothing.")] = "",
    threads: Annotated[int, typer.Option(help="Threads and cores for everyone.")] = THREADS,
    memory: Annotated[str, typer.Option(help="ROLLUP_MEMORY.")] = MEMORY,
    limit_gib: Annotated[float, typer.Option(help="Everyone's memory limit, page cache included, GiB.")] = LIMIT_GIB,
    limit_seconds: Annotated[float, typer.Option(help="Whoever takes longer is given up.")] = LIMIT_SECONDS,
    work: Annotated[Path, typer.Option(help="Folder for data.")] = ROOT / ".rollups" / "benchmark",
    output: Annotated[
        Path | None, typer.Option(help="Results, JSON. With the defaults, or with more turns, benchmarks/results/peer_sizes.json.")
    ] = None,
) -> None:
    """Raw points to rollups at several sizes, beside DuckDB, Polars, DataFusion and ClickHouse."""
    rows = sorted({int(size * 1e6) for size in numbers(sizes)})
    benches = [
        Bench(
            work.resolve(), size, threads, SPARSE, min(SMALL_ROWS, size), memory_limit=int(limit_gib * 2**30), rollup_memory=memory,
            rollup_shards=shape_of(size).shards, time_limit=limit_seconds,
        )
        for size in rows
    ]  # fmt: skip
    measured = measure(benches, repeat, only)
    shared = ("command", "date", "commit", "changed", "machine", "versions", "repeat", "threads", "limit_bytes")
    results = {**{name: measured[-1][name] for name in shared}, "memory": memory, "limit_seconds": limit_seconds, "sizes": measured}
    complete = is_complete(
        sizes=sizes, repeat=repeat, only=only, threads=threads, memory=memory, limit_gib=limit_gib, limit_seconds=limit_seconds
    )
    report.keep(results, section.NAME, complete=complete, output=output, say=console.print)
    for line in section.lines(results):
        console.print(line)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
