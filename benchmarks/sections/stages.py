"""Every stage beside its peers and its floor (``python -m benchmarks``): tables and plots."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.contenders import (
    COLD,
    DUCKDB,
    FIRST,
    FLOOR,
    OURS,
    PEER_TASKS,
    PEERS,
    POLARS,
    PUBLISH,
    RAW_TO_1M,
    RAW_TO_PUBLISHED,
    REPARTITION,
    ROLLUPS_1M,
    ROLLUPS_3,
    WARM,
)
from benchmarks.summary import Spread, cpu, ratio, select, wall
from benchmarks.tables import Results, Target, circumstances, costs, figure, not_measured, pair, size, table, targets_table

_GIB = 2**30

TASKS = {
    REPARTITION: "raw → sorted",
    ROLLUPS_1M: "sorted → 1 min rollups",
    ROLLUPS_3: "sorted → 1 min, 5 min and 1 h rollups",
    PUBLISH: "publish",
    RAW_TO_PUBLISHED: "raw → published, three resolutions",
    RAW_TO_1M: "raw → 1 min rollups, nothing staged",
}


def targets() -> list[Target]:
    """Of the committed results."""
    results = tables.read("scrapes")
    return aims(results) if results else []


def aims(results: Results) -> list[Target]:
    """What was aimed at, and what came out; ratios are taken turn by turn."""
    runs = results["runs"]
    rows: list[Target] = []

    def row(text: str, wanted: str, found: Spread, met: bool, other: str) -> None:
        rows.append(Target(text, wanted, figure(found), met, other))

    floor = pair(runs, (OURS, ROLLUPS_1M), (FLOOR, ROLLUPS_1M), cpu)
    if floor:
        other = pair(runs, (OURS, ROLLUPS_1M), (FLOOR, ROLLUPS_1M), wall)
        row("1 min rollups: CPU, times the floor", "≤ 1.5", floor, floor.median <= 1.5, f"wall {figure(other)}" if other else "")
    for task, text, times in ((ROLLUPS_1M, "1 min rollups", 2), (REPARTITION, "repartition", 4)):
        for peer in PEERS:
            faster = pair(runs, (peer, task), (OURS, task), wall)
            cheaper = pair(runs, (peer, task), (OURS, task), cpu)
            if faster and cheaper:
                row(f"{text}: times as fast as {peer}", f"≥ {times}", faster, faster.median >= times, f"CPU {figure(cheaper)}")
    for start in (WARM, COLD):
        peers = [peer for peer in PEERS if select(runs, peer, RAW_TO_1M, start)]
        if peers and select(runs, OURS, RAW_TO_PUBLISHED, start):
            peer = min(peers, key=lambda name: Spread.of([wall(run) for run in select(runs, name, RAW_TO_1M, start)]).median)
            faster = pair(runs, (peer, RAW_TO_1M), (OURS, RAW_TO_PUBLISHED), wall, start)
            cheaper = pair(runs, (peer, RAW_TO_1M), (OURS, RAW_TO_PUBLISHED), cpu, start)
            if faster and cheaper:
                text = f"raw → published, three resolutions: times as fast as {peer}'s raw → 1 min rollups ({start})"
                row(text, "> 1", faster, faster.median > 1, f"CPU {figure(cheaper)}")
    mine = [run for run in runs if run["engine"] == OURS and run["start"] != FIRST]
    if mine:
        peak = Spread.of([run["peak_bytes"] / _GIB for run in mine])
        rows.append(Target("peak memory of any stage, GiB", "< 2", f"{peak.most:.2f}", peak.most < 2, "largest of all runs"))
    return rows


def side_by_side(results: Results) -> str:
    """Every task and engine, warm: seconds, CPU seconds, memory, bytes written."""
    rows = []
    for task, title in TASKS.items():
        for engine in (OURS, *PEERS, FLOOR):
            mine = select(results["runs"], engine, task)
            if mine:
                rows.append([title, engine, *costs(mine), size(mine)])
                title = ""
    return table(["task", "engine", "wall s", "CPU s", "peak MiB", "written MB"], rows) if rows else ""


def starts(results: Results) -> str:
    """Warm beside cold processes, and the first one after installing."""
    rows = []
    for task in TASKS:
        for engine in (OURS, *PEERS):
            warm, cold = select(results["runs"], engine, task, WARM), select(results["runs"], engine, task, COLD)
            if warm and cold:
                rows.append([f"{engine}: {TASKS[task]}", *costs(warm)[:2], *costs(cold)[:2]])
    found = table(["", "warm: wall s", "CPU s", "cold process: wall s", "CPU s"], rows) if rows else ""
    first = select(results["runs"], OURS, RAW_TO_PUBLISHED, FIRST)
    if first:
        found += (
            f"\n\nThe very first process after installing compiles the kernels: a batch of {first[0]['rows']:,} points, raw → published, "
            f"then takes {wall(first[0]):.0f} s and {cpu(first[0]):.0f} CPU s."
        )
    return found


def limits(results: Results) -> str:
    """Our stages beside the floor: how much of the CPU decoding and encoding would need by themselves."""
    rows = []
    for task in (REPARTITION, ROLLUPS_1M, ROLLUPS_3):
        mine, floor = select(results["runs"], OURS, task), select(results["runs"], FLOOR, task)
        if mine and floor:
            decode, encode = (Spread.of([run["cpu"][part] for run in floor]).median for part in ("decode", "encode"))
            spent = Spread.of([cpu(run) for run in mine]).median
            per_row = 1e9 / results["data"]["rows"]
            rest = (spent - decode - encode) * per_row
            cells = [f"{spent:.2f}", f"{decode:.2f}", f"{encode:.2f}", figure(ratio(mine, floor, cpu)), f"{rest:.0f}"]
            rows.append([TASKS[task], *cells])
    return table(["stage", "CPU s", "floor: decode", "floor: encode", "times the floor", "the rest, ns a point"], rows) if rows else ""


def shares(results: Results) -> str:
    """What the manifests' timings say: the time of threads by part, as shares."""
    rows = []
    for task in (REPARTITION, ROLLUPS_1M, ROLLUPS_3, PUBLISH):
        parts = stage_parts(results, task)
        if parts:
            total = sum(parts.values())
            rows.append([TASKS[task], ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in parts.items())])
    return table(["stage", "threads' time"], rows).replace("---:", "---") if rows else ""


def stage_parts(results: Results, task: str) -> dict[str, float]:
    """Median seconds of threads in each part of one of our stages; empty if it was not measured."""
    mine = select(results["runs"], OURS, task)
    names = [name for name in mine[0]["timings"] if name != "total"] if mine else []
    parts = {name: Spread.of([run["timings"].get(name, 0.0) for run in mine]).median for name in names}
    return {name: seconds for name, seconds in parts.items() if seconds >= 0.005 * sum(parts.values())}


def all_forms(results: Results) -> str:
    """Every form of the peers' queries."""
    rows = []
    for task in PEER_TASKS:
        ours = RAW_TO_PUBLISHED if task == RAW_TO_1M else task
        for engine in (OURS, *PEERS):
            shown = ours if engine == OURS else task
            mine = [entry for entry in results["summary"] if (entry["engine"], entry["task"]) == (engine, shown)]
            title = f"{engine}: {TASKS[shown]}"
            for entry in sorted(mine, key=lambda entry: entry["wall"]["median"]):
                rows.append(
                    [
                        title,
                        entry["form"],
                        *(figure(Spread(**entry[name])) for name in ("wall", "cpu")),
                        f"{entry['peak_bytes']['median'] / 2**20:.0f}",
                    ]
                )
                title = ""
    return table(["task", "form", "wall s", "CPU s", "peak MiB"], rows).replace("--- | ---: |", "--- | --- |", 1)


def lines(results: Results) -> list[str]:
    """For the terminal: everything that these results have."""
    if len({entry["form"] for entry in results["summary"] if entry["engine"] == DUCKDB and entry["task"] == REPARTITION}) > 1:
        return [all_forms(results)]
    return [
        text for text in (targets_table(aims(results)), side_by_side(results), starts(results), limits(results), shares(results)) if text
    ]


def blocks() -> dict[str, str]:
    """The tables of the committed results, by name."""
    main, forms, fleet = (tables.read(name) for name in ("scrapes", "forms", "fleet"))
    makers: tuple[tuple[str, Results | None, str, Callable[[Results], str]], ...] = (
        ("side-by-side", main, "", side_by_side),
        ("starts", main, "", starts),
        ("limits", main, "", limits),
        ("shares", main, "", shares),
        ("circumstances", main, "", circumstances),
        ("forms", forms, " --forms", all_forms),
        ("forms-circumstances", forms, " --forms", circumstances_of_forms),
        ("fleet-aims", fleet, " --shape fleet", lambda results: targets_table(aims(results))),
        ("fleet-circumstances", fleet, " --shape fleet", circumstances),
    )
    return {name: make(results) if results else not_measured(f"python -m benchmarks{option}") for name, results, option, make in makers}


def circumstances_of_forms(results: Results) -> str:
    """Those of the choice of forms, in one line."""
    others = Spread.of([100 * run["others_share"] for run in results["runs"]])
    turns = f"{results['repeat']} turn{'s' * (results['repeat'] > 1)}"
    return f"`{results['command']}`, {turns}, {results['date']}; other programs used {figure(others, 0)} % of the machine."


def plots() -> dict[str, tuple[Results, Callable[[Path], None]]]:
    """The page's pictures, by name."""
    results = tables.read("scrapes")
    if results is None:
        return {}
    return {
        name: (results, functools.partial(_draw, draw, results))
        for name, draw in (("performance-cpu", _plot_engines), ("performance-stages", _plot_stages))
    }


def _draw(draw: Callable[[Results, Any], None], results: Results, target: Path) -> None:
    with tables.drawing(target, results) as axes:
        draw(results, axes)


_COLOURS = {OURS: "#1f6feb", DUCKDB: "#e0a800", POLARS: "#8a5cd6", FLOOR: "#9aa4b0"}


def _plot_engines(results: Results, axes: Any) -> None:
    groups = [
        ("sorted → 1 min rollups", [(engine, ROLLUPS_1M) for engine in (OURS, DUCKDB, POLARS, FLOOR)]),
        ("raw → sorted", [(engine, REPARTITION) for engine in (OURS, DUCKDB, POLARS, FLOOR)]),
        ("whole path", [(OURS, RAW_TO_PUBLISHED), (DUCKDB, RAW_TO_1M), (POLARS, RAW_TO_1M)]),
    ]
    place = 0.0
    ticks: list[tuple[float, str]] = []
    for title, bars in groups:
        for engine, task in bars:
            mine = select(results["runs"], engine, task)
            if not mine:
                continue
            spread = Spread.of([cpu(run) for run in mine])
            error = [[spread.median - spread.least], [spread.most - spread.median]]
            axes.barh(place, spread.median, color=_COLOURS[engine], xerr=error, ecolor="#444", capsize=2, height=0.8)
            note = {RAW_TO_PUBLISHED: " raw → published", RAW_TO_1M: " raw → 1 min"}.get(task, "")
            ticks.append((place, f"{title}: {engine}{note}" if engine == OURS else f"{engine}{note}"))
            place -= 1
        place -= 0.7
    axes.set_yticks([at for at, _ in ticks], [text for _, text in ticks])
    axes.set_xlabel(f"CPU seconds for {results['data']['rows'] / 1e6:g} M points, median and range: less is better")


def _plot_stages(results: Results, axes: Any) -> None:
    place = 0
    ticks: list[str] = []
    widest = max(cpu(run) for run in results["runs"] if run["engine"] == OURS and run["task"] in (REPARTITION, ROLLUPS_3, ROLLUPS_1M))
    palette = ["#6ea8fe", "#a5c9ff", "#2da44e", "#8ddb8c", "#e0a800", "#d1672a"]
    for task in (REPARTITION, ROLLUPS_1M, ROLLUPS_3):
        mine, floor = select(results["runs"], OURS, task), select(results["runs"], FLOOR, task)
        if not mine or not floor:
            continue
        left = 0.0
        parts = stage_parts(results, task)
        # Threads' seconds include waiting for a core; scaled to the CPU seconds that the stage took.
        scale = Spread.of([cpu(run) for run in mine]).median / sum(parts.values())
        for colour, (name, seconds) in zip(palette, parts.items(), strict=False):
            axes.barh(place, seconds * scale, left=left, color=colour, height=0.8)
            _name_part(axes, left, seconds * scale, place, name, widest)
            left += seconds * scale
        left = 0.0
        for name, colour in (("decode", "#c3cad2"), ("encode", "#9aa4b0")):
            seconds = Spread.of([run["cpu"][name] for run in floor]).median
            axes.barh(place - 1, seconds, left=left, color=colour, height=0.8)
            _name_part(axes, left, seconds, place - 1, name, widest)
            left += seconds
        ticks += [TASKS[task], "its floor"]
        place -= 2
    axes.set_yticks([-number for number in range(len(ticks))], ticks)
    axes.set_xlabel(f"CPU seconds for {results['data']['rows'] / 1e6:g} M points")


def _name_part(axes: Any, left: float, width: float, place: int, name: str, widest: float) -> None:
    """Write a part's name into its bar, or above it where it is too narrow."""
    inside = width > 0.055 * widest
    axes.text(left + width / 2, place if inside else place + 0.5, name, ha="center", va="center" if inside else "bottom", fontsize=6)
