"""The seed's program beside this project (``python -m benchmarks.seed``): tables and a plot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.seed_program.process import OURS, RUNS_ON_DUCKDB, SEED, SEED_RECOMMENDED
from benchmarks.seed_program.recommendations import RECOMMENDATIONS
from benchmarks.summary import Run, Spread, cpu, select, wall
from benchmarks.tables import Results, Target, figure, not_measured, pair, table
from benchmarks.tasks import COLD, WARM

COMMAND = "python -m benchmarks.seed"
WARM_COMMAND = f"{COMMAND} --repeat 5"
COLD_COMMAND = f"{COMMAND} --start both --repeat 3 --output benchmarks/results/seed_cold.json"
"""Warm and cold processes on one occasion, since a cold start is the difference; in fewer turns, as each takes half an hour."""
_SITE, _KEPT = ".rollups/benchmark-seed-size/sparse-686482740", "benchmarks/results/seed_at_size.json"
AT_SIZE_COMMAND = f"{COMMAND} --site {_SITE} --limit-seconds 7200 --output {_KEPT}"
"""On the data that ``benchmarks.seed_size`` leaves."""
SHAPES = {"sparse": "one point a window", "scrapes": "six points a window"}
PROGRAMS = (OURS, SEED, SEED_RECOMMENDED)
WANTED = {SEED: 30, SEED_RECOMMENDED: 25}
"""How many times as fast this project should be, from the same sorted points."""
ANALYSIS = {"compute": 10.79, "partial points": 36.28, "count": 10.99, "append": 39.63}
"""Percent of the seed's 606 s on its cluster, by stage."""


def task(shape: str) -> str:
    """The task name of a shape's runs."""
    return f"sorted-to-published {shape}"


def targets() -> list[Target]:
    """Targets, from the committed results."""
    results = tables.read("seed")
    return aims(results) if results else [Target(_text(program), f"≥ {times}") for program, times in WANTED.items()]


def _text(program: str) -> str:
    return f"sorted points → partial points, 1 min rollups, published: times as fast as {program}"


def aims(results: Results) -> list[Target]:
    """What was aimed at, and what came out; ratios are taken turn by turn."""
    found = []
    for program, times in WANTED.items():
        measured = _times(results, program, "sparse", wall)
        if measured:
            also = [("CPU", _times(results, program, "sparse", cpu)), ("six points a window:", _times(results, program, "scrapes", wall))]
            said = ", ".join(f"{name} {figure(spread, 1)}" for name, spread in also if spread)
            found.append(Target(_text(program), f"≥ {times}", figure(measured, 1), measured.median >= times, said))
    return found


def _times(results: Results, program: str, shape: str, of: Callable[[Run], float], start: str = WARM) -> Spread | None:
    return pair(results["runs"], (program, task(shape)), (OURS, task(shape)), of, start)


def side_by_side(results: Results) -> str:
    """Every program, warm and cold, as far as either was measured: seconds, and how many times ours."""
    rows = []
    starts = [start for start in (WARM, COLD) if any(run["start"] == start for run in results["runs"])]
    for shape, title in SHAPES.items():
        for program in PROGRAMS:
            found = {start: select(results["runs"], program, task(shape), start) for start in starts}
            if not any(found.values()):
                continue
            cells = [title, program]
            for start, runs in found.items():
                times = _times(results, program, shape, wall, start) if program != OURS else None
                cells += [_of(runs, wall), _of(runs, cpu), figure(times, 1) if times else ""]
            memory = [run["memory"]["peak_bytes"] for run in found[starts[0]] if run.get("memory", {}).get("peak_bytes")]
            rows.append([*cells, f"{max(memory) / 2**30:.1f}" if memory else ""])
            title = ""
    named = {WARM: "warm", COLD: "cold process"}
    head = ["points", "program", *(cell for start in starts for cell in (f"{named[start]}: wall s", "CPU s", "times ours")), "peak GiB"]
    return table(head, rows).replace("--- | ---: |", "--- | --- |", 1)


def _of(runs: Sequence[Run], value: Callable[[Run], float]) -> str:
    return figure(Spread.of([value(run) for run in runs])) if runs else ""


def profile(results: Results) -> str:
    """Where the seed's program spends its time, beside the analysis's figures of the cluster."""
    rows = [["the analysis: 606 s, a cluster, S3", *(f"{share:.0f} %" for share in ANALYSIS.values())]]
    for shape, title in SHAPES.items():
        for program in (SEED, SEED_RECOMMENDED):
            parts = _stages(select(results["runs"], program, task(shape)))
            total = sum(parts.values())
            cells = [f"{parts[stage]:.1f} s, {100 * parts[stage] / total:.0f} %" if stage in parts else "" for stage in ANALYSIS]
            if parts:
                rows.append([f"{program}: {title}", *cells])
        ours = _stages(select(results["runs"], OURS, task(shape)))
        if ours:
            rest = f"{ours['rollups']:.2f} s, publish {ours['publish']:.2f} s"
            rows.append([f"{OURS}: {title}", "", f"{ours['partial points']:.2f} s", "", rest])
    return table(["", *ANALYSIS], rows)


def _stages(runs: Sequence[Run]) -> dict[str, float]:
    """Median wall seconds of each stage."""
    return {stage: Spread.of([run["wall"][stage] for run in runs]).median for stage in runs[0]["wall"]} if runs else {}


def recommendations() -> str:
    """Each recommendation of the analysis, and what was done about it."""
    rows = [[what, verdict, why] for what, verdict, why in RECOMMENDATIONS]
    return table(["recommendation", "here", ""], rows).replace("---:", "---")


def circumstances(results: Results) -> str:
    """Machine, versions, data, memory."""
    kept = [line for line in tables.circumstances(results).splitlines() if not line.startswith("- the peers' forms")]
    sizes = "; ".join(f"{SHAPES[shape]}: {size['rows']:,} points of {size['series']:,} series" for shape, size in results["shapes"].items())
    limits = {run["memory"]["limit"] for run in results["runs"] if run.get("memory")}
    limited = f"{results['memory_gib']:g} GiB for everyone, page cache included" if limits - {None} else "memory was not limited"
    return "\n".join([*kept, f"- {sizes}; {limited}"])


def at_size(results: Results) -> str:
    """A batch of the seed's own size: one run of each program, or how far it got."""
    rows = []
    for run in results["runs"]:
        stages = ", ".join(f"{stage} {seconds:,.0f}" for stage, seconds in run["wall"].items())
        rows.append([run["engine"], f"{wall(run):,.0f}", f"{cpu(run):,.0f}", stages])
    for run in results["given_up"]:
        stages = ", ".join(f"{stage} {seconds:,.0f}" for stage, seconds in run["wall"].items())
        rows.append([run["engine"], run["why"], "", f"given up after: {stages}" if stages else "no stage had ended"])
    return table(["program", "wall s", "CPU s", "stages, s"], rows)


def lines(results: Results) -> list[str]:
    """Lines for the terminal: everything that these results have."""
    if results["given_up"] or any(run["engine"] in RUNS_ON_DUCKDB for run in results["runs"]):
        return [at_size(results)]
    found = aims(results)
    return [*([tables.targets_table(found)] if found else []), side_by_side(results), profile(results)] if results["runs"] else []


def blocks() -> dict[str, str]:
    """The tables of the committed results, by name."""
    results, size = tables.read("seed"), tables.read("seed_at_size")
    makers: dict[str, Callable[[Results], str]] = {
        "seed": side_by_side,
        "seed-profile": profile,
        "seed-recommendations": lambda _: recommendations(),
        "seed-circumstances": circumstances,
    }
    made = {name: make(results) if results else not_measured(WARM_COMMAND) for name, make in makers.items()}
    cold = tables.read("seed_cold")
    makers = {"seed-cold": side_by_side, "seed-cold-circumstances": circumstances}
    made |= {name: make(cold) if cold else not_measured(COLD_COMMAND) for name, make in makers.items()}
    makers = {"seed-at-size": at_size, "seed-at-size-circumstances": lambda found: "\n".join(tables.occasion(found))}
    return made | {name: make(size) if size else not_measured(AT_SIZE_COMMAND) for name, make in makers.items()}


def plots() -> dict[str, tuple[Results, Callable[[Path], None]]]:
    """The picture, if there is anything to show."""
    results = tables.read("seed")
    if results is None:
        return {}

    def draw(target: Path) -> None:
        with tables.drawing(target, results) as axes:
            plot(results, axes)

    return {"performance-seed": (results, draw)}


_COLOURS = {OURS: "#1f6feb", SEED: "#d1672a", SEED_RECOMMENDED: "#e0a800"}
_GROUPS = (
    ("partial points", ("partial points",)),
    ("count", ("count",)),
    ("rollups, append, commit", ("append", "rollups", "publish")),
    ("all", ("compute", "partial points", "count", "append", "rollups", "publish")),
)


def plot(results: Results, axes: Any) -> None:
    """Seconds of each stage on a log scale, for points with one per window."""
    place, ticks = 0.0, []
    for title, names in _GROUPS:
        for program in PROGRAMS:
            parts = _stages(select(results["runs"], program, task("sparse")))
            seconds = sum(parts.get(name, 0.0) for name in names)
            if not seconds:
                continue
            axes.barh(place, seconds, color=_COLOURS[program], height=0.8)
            axes.text(seconds * 1.04, place, f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s", va="center", fontsize=7)
            ticks.append((place, f"{title}: {program}"))
            place -= 1
        place -= 0.7
    axes.set_xscale("log")
    axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
    axes.set_xlabel(f"seconds, {results['data']['rows'] / 1e6:g} M points, one a window", fontsize=8)
    axes.margins(x=0.12)
