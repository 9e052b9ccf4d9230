"""What a point costs by the shape of the points (``python -m benchmarks.shapes``): tables."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import tables
from benchmarks.data import SHAPES
from benchmarks.sections.sizes import STEPS, elapsed, settings, step, total, with_cache
from benchmarks.summary import Spread
from benchmarks.tables import Results, figure, not_measured, table

COMMAND = "python -m benchmarks.shapes"


def by_shape(results: Results) -> str:
    """Seconds of a batch, what a point costs by step, what comes out, and memory."""
    rows = []
    for shape in SHAPES:
        mine = [run for run in results["runs"] if run["shape"] == shape]
        if not mine:
            continue
        run = mine[0]
        published = run["steps"]["publish"]["rows"]
        parts = [f"{Spread.of([1e9 * step(name)(run) / run['rows'] for run in mine]).median:.0f}" for name in STEPS]
        rows.append(
            [
                f"{shape}: {run['rows'] / 1e6:.1f} M points, {run['series']:,} series",
                f"{published / run['rows']:.2f}",
                figure(Spread.of([elapsed(run) for run in mine])),
                figure(Spread.of([total(run) for run in mine])),
                figure(Spread.of([1e9 * total(run) / run["rows"] for run in mine]), 0),
                *parts,
                f"{max(run['peak_bytes'] for run in mine) / 2**20:.0f}",
                with_cache(mine),
            ]
        )
    head = ["points", "rows a point", "wall s", "CPU s", "CPU ns a point", *STEPS, "peak MiB", "with the page cache"]
    return table(head, rows)


def lines(results: Results) -> list[str]:
    """The tables as lines for the terminal."""
    return [by_shape(results)]


def blocks() -> dict[str, str]:
    """The tables of the committed results, by name."""
    results = tables.read("shapes")
    made: dict[str, Callable[[Results], str]] = {"shapes": by_shape, "shapes-circumstances": settings}
    return {name: make(results) if results else not_measured(COMMAND) for name, make in made.items()}
