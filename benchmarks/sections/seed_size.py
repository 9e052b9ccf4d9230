"""A batch of the seed's own size (``python -m benchmarks.seed_size``): tables."""

from __future__ import annotations

from benchmarks import tables
from benchmarks.summary import Spread
from benchmarks.tables import Results, Target, circumstances, figure, not_measured, table

COMMAND = "python -m benchmarks.seed_size"
STEPS = {"repartition": "raw → sorted", "rollups": "sorted → rollups", "publish": "publish"}
MOST_SECONDS, STRETCH_SECONDS = 240, 180
_GIB = 2**30


def targets() -> list[Target]:
    """Targets, from the committed results."""
    results = tables.read("seed_size")
    text = "a batch of the seed's size, 686 M rollup rows at 1 min and those of 5 min and 1 h, raw → published, under 6 GiB, s"
    if results is None:
        return [Target(text, f"≤ {MOST_SECONDS}")]
    taken = Spread.of([run["process_wall"] for run in results["runs"]])
    also = f"CPU {figure(Spread.of([run['process_cpu'] for run in results['runs']]), 0)}; the seed: 606 s on its cluster"
    also += f"; stretch ≤ {STRETCH_SECONDS}: {'yes' if taken.median <= STRETCH_SECONDS else 'no'}"
    return [Target(text, f"≤ {MOST_SECONDS}", figure(taken, 0), taken.median <= MOST_SECONDS, also)]


def turns(results: Results) -> str:
    """One row a run."""
    rows = []
    for run in results["runs"]:
        memory = run["memory"]
        cached = "not limited" if memory["limit"] is None else f"{memory['peak_bytes'] / _GIB:.2f} of {memory['limit'] / _GIB:g}"
        parts = [f"{run['wall'][step]:.0f}" for step in STEPS]
        own = f"{run['peak_bytes'] / _GIB:.2f}"
        cells = [f"{run['process_wall']:.0f}", *parts, f"{run['process_cpu']:.0f}", own, cached, f"{100 * run['others_share']:.0f} %"]
        rows.append([str(run["turn"] + 1), *cells])
    head = ["turn", "process, s", *(f"{title}, s" for title in STEPS.values()), "CPU s", "memory, GiB", "with page cache", "other programs"]
    return table(head, rows)


def amounts(results: Results) -> str:
    """The amounts of data in such a batch."""
    run = results["runs"][0]
    by = {int(resolution) // 60_000: rows for resolution, rows in run["rollup_rows_by_resolution"].items()}
    rows = ", ".join(f"{count:,} of {minutes} min" for minutes, count in sorted(by.items()))
    settings = ", ".join(f"`{name}={value}`" for name, value in results["settings"].items() if name.startswith("ROLLUP_"))
    return (
        f"{run['rows']:,} raw points ({results['data']['raw_bytes'] / 1e9:.1f} GB in {results['data']['raw_files']} files) to {rows} "
        f"({run['bytes'] / 1e9:.1f} GB); {settings}. {run['compared']['rows']:,} rows, those of one in {run['compared']['one_in_series']} "
        f"series, were recomputed from the raw points by DuckDB and are equal.\n\n{circumstances(results)}"
    )


def blocks() -> dict[str, str]:
    """The tables of the committed results, by name."""
    results = tables.read("seed_size")
    made = {"seed-size": turns, "seed-size-amounts": amounts}
    return {name: make(results) if results else not_measured(COMMAND) for name, make in made.items()}
