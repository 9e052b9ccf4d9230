"""What a point costs and how much memory a batch takes, by the size of the batch (``python -m benchmarks.sizes``): tables and plots."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.summary import Run, Spread
from benchmarks.tables import Results, Target, figure, not_measured, table
from benchmarks.tasks import OURS, RAW_TO_PUBLISHED

STEPS = ("repartition", "rollups", "publish")
COMMAND = "python -m benchmarks.sizes"
SEED_ROWS = 686_482_740
_GROWTH, _GIB_AT_36, _GIB_AT_SEED = 1.2, 1.0, 1.5


def read() -> Results | None:
    """The committed results, with this project's runs on a batch of the seed's size once there are some."""
    results, seed = tables.read("sizes"), tables.read("seed_size")
    if results is None:
        return None
    found = [run for run in seed["runs"] if (run["engine"], run["task"]) == (OURS, RAW_TO_PUBLISHED)] if seed else []
    return {**results, "seed_runs": [{**run, "size": run["rows"], "threads": seed["threads"]} for run in found if seed]}


def targets() -> list[Target]:
    """Targets, from the committed results."""
    results = read()
    return aims(results) if results else []


def aims(results: Results) -> list[Target]:
    """What was aimed at, and what came out."""
    return [_growth(results), _peak(results, 36_000_000, _GIB_AT_36), _peak(results, SEED_ROWS, _GIB_AT_SEED)]


def _growth(results: Results) -> Target:
    """How much a point's cost grows."""
    costs = costs_by_size(results)
    span = f"{_millions(min(costs))} to {_millions(max(costs))} points"
    text = f"CPU a point beyond the fixed start, {span}: times that of the cheapest smaller batch"
    grown = growth(costs)
    also = ", ".join(f"{_millions(size)}: {cost:.0f} ns" for size, cost in costs.items())
    return Target(text, f"≤ {_GROWTH:g}", f"{grown:.2f}", grown <= _GROWTH, also)


def costs_by_size(results: Results) -> dict[int, float]:
    """Median CPU nanoseconds per point, beyond the fixed start, on the most threads, from the smallest batch on."""
    threads = max(run["threads"] for run in results["runs"])
    return {size: ns(results, size, threads, total).median for size in _sizes(results, threads)}


def growth(costs: dict[int, float]) -> float:
    """The greatest ratio of a point's cost at a size to its cost in a smaller batch."""
    return max(cost / min(other for smaller, other in costs.items() if smaller <= size) for size, cost in costs.items())


def _peak(results: Results, size: int, most: float) -> Target:
    runs = [run for run in _all(results) if run["size"] == size]
    text = f"peak memory at {_millions(size)} points, GiB"
    if not runs:
        return Target(text, f"≤ {most:g}")
    peak = max(run["peak_bytes"] for run in runs) / 2**30
    cached = [run["memory"]["peak_bytes"] / 2**30 for run in runs if run.get("memory", {}).get("peak_bytes")]
    also = f"`ROLLUP_MEMORY={results['memory']}`" if size != SEED_ROWS else ""
    if cached:
        also += f"{'; ' if also else ''}{max(cached):.2f} with the page cache"
    return Target(text, f"≤ {most:g}", f"{peak:.2f}", peak <= most, also)


def total(run: Run) -> float:
    """CPU seconds, all steps."""
    return float(sum(run["cpu"].values()))


def elapsed(run: Run) -> float:
    """Wall seconds, all steps."""
    return float(sum(run["wall"].values()))


def step(name: str) -> Callable[[Run], float]:
    """CPU seconds of a step."""
    return lambda run: float(run["cpu"][name])


def ns(results: Results, size: int, threads: int, of: Callable[[Run], float]) -> Spread:
    """Nanoseconds per point at a size, beyond the fixed start, which is the median of its runs."""
    start = Spread.of([of(run) for run in _of(results, results["start_rows"], threads)]).median
    return Spread.of([1e9 * (of(run) - start) / run["rows"] for run in _of(results, size, threads)])


def _all(results: Results) -> list[Run]:
    return [*results["runs"], *results.get("seed_runs", [])]


def _of(results: Results, size: int, threads: int) -> list[Run]:
    return [run for run in _all(results) if (run["size"], run["threads"]) == (size, threads)]


def _sizes(results: Results, threads: int) -> list[int]:
    """The sizes that were measured, except that of the fixed start."""
    return sorted({run["size"] for run in _all(results) if run["threads"] == threads} - {results["start_rows"]})


def _threads(results: Results) -> list[int]:
    return sorted({run["threads"] for run in results["runs"]}, reverse=True)


def _millions(size: int) -> str:
    return f"{size / 1e6:.0f} M" if size >= 1e6 else f"{size:,}"


def by_size(results: Results) -> str:
    """Seconds of a batch, and what a point costs beyond the fixed start, by step."""
    rows = []
    for threads in _threads(results):
        for size in (results["start_rows"], *_sizes(results, threads)):
            mine = _of(results, size, threads)
            seconds = [figure(Spread.of([of(run) for run in mine])) for of in (elapsed, total)]
            if size == results["start_rows"]:
                rows.append([f"{size:,}: the fixed start", str(threads), *seconds, "", *[""] * len(STEPS), ""])
                continue
            parts = [f"{ns(results, size, threads, step(name)).median:.0f}" for name in STEPS]
            wall = f"{ns(results, size, threads, elapsed).median:.0f}"
            rows.append([_millions(size), str(threads), *seconds, figure(ns(results, size, threads, total), 0), *parts, wall])
    return table(["points", "threads", "wall s", "CPU s", "CPU ns a point", *STEPS, "wall ns a point"], rows)


def speedups(results: Results) -> str:
    """The ratio of one thread's time to that of several, by size."""
    one, *_, most = sorted(_threads(results))
    rows = []
    for size in sorted(set(_sizes(results, one)) & set(_sizes(results, most))):
        shown = [_of(results, size, threads) for threads in (one, most)]
        ratios = [
            Spread.of([of(run) for run in shown[0]]).median / Spread.of([of(run) for run in shown[1]]).median for of in (elapsed, total)
        ]
        rows.append([_millions(size), f"{ratios[0]:.2f}", f"{1 / ratios[1]:.2f}"])
    return table(["points", f"{most} threads: times as fast as {one}", "times the CPU"], rows)


def memory(results: Results) -> str:
    """Peak memory of the process, and of its control group with the page cache."""
    rows = []
    for threads in _threads(results):
        for size in _sizes(results, threads):
            mine = _of(results, size, threads)
            process = figure(Spread.of([run["peak_bytes"] / 2**20 for run in mine]), 0)
            rows.append([_millions(size), str(threads), process, with_cache(mine)])
    return table(["points", "threads", "process, peak MiB", "with the page cache, peak MiB"], rows)


def with_cache(runs: Sequence[Run]) -> str:
    """Peak memory of the runs' control groups, MiB; empty if there were none."""
    peaks = [run["memory"]["peak_bytes"] / 2**20 for run in runs if run.get("memory", {}).get("peak_bytes")]
    return figure(Spread.of(peaks), 0) if peaks else ""


def settings(results: Results) -> str:
    """The circumstances, and how memory was bounded."""
    reasons = {run["memory"]["why"] for run in results["runs"] if run["memory"].get("why")}
    limit = (
        f"all under a limit of {results['limit_bytes'] / 2**30:g} GiB with the page cache" if not reasons else "; ".join(sorted(reasons))
    )
    others = figure(Spread.of([100 * run["others_share"] for run in results["runs"]]), 0)
    seed = tables.read("seed_size")
    apart = f"- of {_millions(SEED_ROWS)} points: `{seed['command']}`, {seed['date']}, commit {seed['commit'][:12]}" if seed else ""
    return "\n".join(
        [
            *tables.occasion(results),
            *([apart] if apart and results.get("seed_runs") else []),
            f"- `ROLLUP_MEMORY={results['memory']}`, {limit}; {_turns(results)}; other programs used {others} % of the machine",
        ]
    )


def _turns(results: Results) -> str:
    """How often each size ran; results of one size alone have no fixed start."""
    if "start_rows" not in results:
        return f"{results['repeat']} turns"
    by_turns: dict[int, list[str]] = {}
    for size in _sizes(results, _threads(results)[0]):
        turns = len([run for run in results["runs"] if run["size"] == size and run["threads"] == _threads(results)[0]])
        by_turns.setdefault(turns, []).append(_millions(size))
    # The batch of the seed's size, which these runs do not have, has a line of its own.
    return "; ".join(f"{', '.join(names)}: {turns} turn{'s' * (turns > 1)}" for turns, names in by_turns.items() if turns)


def lines(results: Results) -> list[str]:
    """The tables as lines for the terminal."""
    shown = [by_size(results), memory(results), tables.targets_table(aims(results))]
    return [*shown[:1], *([speedups(results)] if len(_threads(results)) > 1 else []), *shown[1:]]


def blocks() -> dict[str, str]:
    """The tables of the committed results, by name, with the plots that belong to them."""
    results = read()
    made: dict[str, Callable[[Results], str]] = {
        "sizes": lambda results: f"{by_size(results)}\n\n![CPU a point by size](performance-sizes.svg)",
        "sizes-threads": speedups,
        "sizes-memory": lambda results: f"{memory(results)}\n\n![Peak memory by size](performance-memory.svg)",
        "sizes-circumstances": settings,
    }
    return {name: make(results) if results else not_measured(COMMAND) for name, make in made.items()}


def plots() -> dict[str, tuple[Results, Callable[[Path], None]]]:
    """The page's pictures, by name."""
    results = read()
    if results is None:
        return {}
    draws = (("performance-sizes", _plot_costs), ("performance-memory", _plot_memory))
    return {name: (results, functools.partial(_draw, draw, results)) for name, draw in draws}


def _draw(draw: Callable[[Results, Any], None], results: Results, target: Path) -> None:
    with tables.drawing(target, results) as axes:
        draw(results, axes)


def _plot_costs(results: Results, axes: Any) -> None:
    styles = {0: "-", 1: "--"}
    for number, threads in enumerate(_threads(results)):
        sizes = _sizes(results, threads)
        whole = [ns(results, size, threads, total) for size in sizes]
        errors = [[each.median - each.least for each in whole], [each.most - each.median for each in whole]]
        label = f"all, {threads} threads" if threads > 1 else "all, 1 thread"
        points = [size / 1e6 for size in sizes]
        axes.errorbar(
            points, [each.median for each in whole], yerr=errors, capsize=2, label=label, color="#1f6feb", ls=styles.get(number, ":")
        )
        if number == 0:
            for name, colour in zip(STEPS, ("#2da44e", "#e0a800", "#9aa4b0"), strict=True):
                parts = [ns(results, size, threads, step(name)).median for size in sizes]
                axes.plot(points, parts, label=name, color=colour, marker="o", ms=3)
    _over_points(axes, "CPU ns a point beyond the fixed start")


def _plot_memory(results: Results, axes: Any) -> None:
    threads = _threads(results)[0]
    sizes = _sizes(results, threads)
    points = [size / 1e6 for size in sizes]
    runs = [_of(results, size, threads) for size in sizes]
    axes.plot(points, [max(run["peak_bytes"] for run in mine) / 2**30 for mine in runs], marker="o", ms=3, color="#1f6feb", label="process")
    cached = [[run["memory"]["peak_bytes"] / 2**30 for run in mine if run.get("memory", {}).get("peak_bytes")] for mine in runs]
    if all(cached):
        axes.plot(points, [max(peaks) for peaks in cached], marker="o", ms=3, color="#9aa4b0", label="with the page cache")
    _over_points(axes, "peak memory, GiB")


def _over_points(axes: Any, label: str) -> None:
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel("points of the batch, millions")
    axes.set_ylabel(label)
    axes.legend(frameon=False)
