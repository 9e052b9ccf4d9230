"""This project beside its peers by the size of the batch (``python -m benchmarks.peer_sizes``): a table."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import tables
from benchmarks.sections.sizes import with_cache
from benchmarks.summary import Spread, cpu, ratio, select, wall
from benchmarks.tables import Results, costs, figure, not_measured, table
from benchmarks.tasks import OURS, PEERS, RAW_TO_1M, RAW_TO_PUBLISHED

NAME = "peer_sizes"
COMMAND = f"python -m benchmarks.{NAME}"


def millions(rows: int) -> str:
    """A number of points in readable form."""
    return f"{rows / 1e6:g} M"


def beside_peers(results: Results) -> str:
    """One row per size and engine: what it cost, and as a multiple of ours in the same turns."""
    rows = []
    for size in results["sizes"]:
        ours = select(size["runs"], OURS, RAW_TO_PUBLISHED)
        points = millions(size["data"]["rows"])
        rows.append([points, f"{OURS}: raw → published, three resolutions", *costs(ours), with_cache(ours), "", "", str(len(ours))])
        for peer in PEERS:
            mine = select(size["runs"], peer, RAW_TO_1M)
            if mine:
                times = [figure(ratio(mine, ours, of)) for of in (wall, cpu)]
                rows.append(["", f"{peer}: raw → 1 min", *costs(mine), with_cache(mine), *times, str(len(mine))])
    head = ["points", "engine", "wall s", "CPU s", "peak MiB", "with the page cache, MiB", "times ours: wall", "CPU", "runs"]
    return table(head, rows).replace("--- | ---: |", "--- | --- |", 1)


def settings(results: Results) -> str:
    """The circumstances, the forms in which peers ran at each size, and which peers did not finish or were left out."""
    lines = [*tables.occasion(results)]
    others = Spread.of([100 * run["others_share"] for size in results["sizes"] for run in size["runs"]])
    lines.append(
        f"- `ROLLUP_MEMORY={results['memory']}`, a limit of {results['limit_bytes'] / 2**30:g} GiB with the page cache and "
        f"{results['limit_seconds']:g} s for everyone, {results['repeat']} turns; other programs used {figure(others, 0)} % of the machine"
    )
    for size in results["sizes"]:
        forms = "; ".join(f"{run['engine']}: {run['form']}" for run in size["summary"] if run["form"])
        failed = "".join(f"; {each['engine']} ({each['form']}) {each['why']}" for each in size["failed"])
        not_asked = "".join(f"; {peer} was not asked: {why}" for peer, why in size["not_asked"].items())
        points = f"{millions(size['data']['rows'])}, {size['data']['raw_bytes'] / 1e6:,.0f} MB, {size['shards']} shards"
        lines.append(f"- {points}: {forms}{failed}{not_asked}")
    return "\n".join(lines)


def lines(results: Results) -> list[str]:
    """The tables as lines for the terminal."""
    return [beside_peers(results), settings(results)]


def blocks() -> dict[str, str]:
    """The tables of the committed results, by name."""
    results = tables.read(NAME)
    made: dict[str, Callable[[Results], str]] = {"peer-sizes": beside_peers, "peer-sizes-circumstances": settings}
    return {name: make(results) if results else not_measured(COMMAND) for name, make in made.items()}
