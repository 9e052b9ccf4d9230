"""Every stage beside its peers and its floor (``python -m benchmarks``): tables and plots."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.contenders import forms_name
from benchmarks.data import DOUBLES, FLEET, OUT_OF_ORDER, SCRAPES, SKEWED, SPARSE, WIDE
from benchmarks.summary import Run, Spread, cpu, ratio, select, wall
from benchmarks.tables import Results, Target, circumstances, costs, figure, not_measured, pair, size, table, targets_table
from benchmarks.tasks import (
    CLICKHOUSE,
    COLD,
    DATAFUSION,
    DUCKDB,
    FIRST,
    FLOOR,
    OURS,
    OURS_BESIDE,
    PEER_TASKS,
    PEERS,
    POLARS,
    PUBLISH,
    RAW_TO_1M,
    RAW_TO_1M_FULL,
    RAW_TO_PUBLISHED,
    REPARTITION,
    ROLLUPS_1M,
    ROLLUPS_1M_FULL,
    ROLLUPS_3,
    WARM,
)

TASKS = {
    REPARTITION: "raw → sorted",
    ROLLUPS_1M: "sorted → 1 min rollups",
    ROLLUPS_1M_FULL: "sorted → 1 min rollups with delta, resets and rate",
    ROLLUPS_3: "sorted → 1 min, 5 min and 1 h rollups",
    PUBLISH: "publish",
    RAW_TO_PUBLISHED: "raw → published, three resolutions",
    RAW_TO_1M: "raw → 1 min rollups, nothing staged",
    RAW_TO_1M_FULL: "raw → 1 min rollups with delta, resets and rate, nothing staged",
}
MAIN = {SCRAPES: "dense", SPARSE: "sparse"}
OTHERS = (WIDE, SKEWED, OUT_OF_ORDER, DOUBLES, FLEET)
_FLOOR_LIMIT = {SCRAPES: 1.5, SPARSE: 1.25}
_FLOOR_STRETCH = {ROLLUPS_1M: 1.25, REPARTITION: 2.0}
"""What would be better still than the limits, at each task."""
_PARTIAL_POINTS_LIMIT = {SCRAPES: 0.10, SPARSE: 0.06}
_PARTIAL_POINTS = "partial points"


def targets() -> list[Target]:
    """Of the committed results, dense points and sparse ones."""
    return [target for shape in MAIN for target in aims(tables.read(shape), shape)]


def aims(results: Results | None, shape: str) -> list[Target]:
    """What was aimed at with points of a shape, and what came out; ratios are taken turn by turn."""
    runs = results["runs"] if results else []
    return [
        _over_floor(runs, ROLLUPS_1M, _FLOOR_LIMIT.get(shape, 1.5), shape),
        _against_peers(runs, ROLLUPS_1M, 2, shape),
        _against_peers(runs, ROLLUPS_1M_FULL, 5, shape),
        _over_floor(runs, REPARTITION, 2.5, shape),
        _against_peers(runs, REPARTITION, 4, shape),
        _against_peers(runs, RAW_TO_1M, 1.5, shape, cpu_limit=2),
        _against_peers(runs, RAW_TO_1M, 1.2, shape, COLD),
        _partial_points(runs, shape),
    ]


def _over_floor(runs: list[Run], task: str, limit: float, shape: str) -> Target:
    text, wanted = f"{TASKS[task]}: CPU, times its floor's{_of(shape)}", f"≤ {limit:g}"
    found, other = (pair(runs, (OURS, task), (FLOOR, task), of) for of in (cpu, wall))
    if not found or not other:
        return Target(text, wanted)
    stretch = _FLOOR_STRETCH[task]
    also = "" if stretch == limit else f"; stretch ≤ {stretch:g}: {'yes' if found.median <= stretch else 'no'}"
    return Target(text, wanted, figure(found), found.median <= limit, f"wall {figure(other)}{also}")


def _against_peers(runs: list[Run], task: str, limit: float, shape: str, start: str = WARM, *, cpu_limit: float | None = None) -> Target:
    """Targets against the peer that is fastest at a task by wall time, and by CPU time; a cold process has one for wall time only."""
    cold = " (cold process)" if start == COLD else ""
    ours = TASKS[OURS_BESIDE[task]] if task == RAW_TO_1M else TASKS[task]
    beside = " raw → 1 min rollups, nothing staged" if task == RAW_TO_1M else ""
    text = f"{ours}: times as fast as the fastest peer's{beside}{cold}{_of(shape)}"
    least = {wall: limit, cpu: cpu_limit or limit}
    wanted = f"≥ {limit:g}" + ("" if start == COLD else f", CPU ≥ {least[cpu]:g}")
    found: dict[Any, Spread] = {}
    peers: dict[Any, str] = {}
    for of in (wall, cpu):
        peer = fastest_peer(runs, task, start, of)
        spread = pair(runs, (peer, task), (OURS, OURS_BESIDE[task]), of, start) if peer else None
        if not peer or not spread:
            return Target(text, wanted)
        found[of], peers[of] = spread, peer
    met = found[wall].median >= least[wall] and (start == COLD or found[cpu].median >= least[cpu])
    return Target(text, wanted, f"{figure(found[wall])}, {peers[wall]}", met, f"CPU {figure(found[cpu])}, {peers[cpu]}")


def _partial_points(runs: list[Run], shape: str) -> Target:
    limit = _PARTIAL_POINTS_LIMIT.get(shape, 0.10)
    text, wanted = f"partial points: share of raw → published, threads' time{_of(shape)}", f"≤ {limit:.0%}"
    shares = []
    for run in select(runs, OURS, RAW_TO_PUBLISHED):
        if parts := parts_of(run):
            shares.append(100 * parts.get(_PARTIAL_POINTS, 0.0) / sum(parts.values()))
    if not shares:
        return Target(text, wanted)
    spread = Spread.of(shares)
    return Target(text, wanted, f"{figure(spread, 1)} %", spread.median <= 100 * limit)


def parts_of(run: Run) -> dict[str, float]:
    """Seconds of threads in each part of a run of raw → published, all steps together."""
    parts: dict[str, float] = {}
    for step in run.get("steps", {}).values():
        for name, seconds in step["timings"].items():
            if name != "total":
                parts[name] = parts.get(name, 0.0) + seconds
    return parts


def _of(shape: str) -> str:
    return f", {MAIN.get(shape, shape)}"


def fastest_peer(runs: list[Run], task: str, start: str, of: Callable[[Run], float]) -> str | None:
    """The peer with the least median wall or CPU time at a task, among those that ran in the most turns; None if none was measured."""
    found = {peer: select(runs, peer, task, start) for peer in PEERS}
    turns = max(len(mine) for mine in found.values())
    medians = {peer: Spread.of([of(run) for run in mine]).median for peer, mine in found.items() if mine and len(mine) == turns}
    return min(medians, key=lambda peer: medians[peer]) if medians else None


def side_by_side(results: Results) -> str:
    """Every task and engine, warm: seconds, CPU seconds, memory, bytes written, how often it ran."""
    rows = []
    for task, title in TASKS.items():
        for engine in (OURS, *PEERS, FLOOR):
            mine = select(results["runs"], engine, task)
            if mine:
                rows.append([title, engine, *costs(mine), size(mine), str(len(mine))])
                title = ""
    return table(["task", "engine", "wall s", "CPU s", "peak MiB", "written MB", "runs"], rows) if rows else ""


def beside_peers(results: Results) -> list[list[str]]:
    """One row per task that peers have, too: our time, and that of the fastest peer as a multiple."""
    rows = []
    for task in PEER_TASKS:
        mine = select(results["runs"], OURS, OURS_BESIDE[task])
        peer, cheapest = (fastest_peer(results["runs"], task, WARM, of) for of in (wall, cpu))
        if not mine or not peer or not cheapest:
            continue
        faster = ratio(select(results["runs"], peer, task), mine, wall)
        cheaper = ratio(select(results["runs"], cheapest, task), mine, cpu)
        rows.append([TASKS[task], *costs(mine), f"{figure(faster)}, {peer}", f"{figure(cheaper)}, {cheapest}"])
    return rows


def other_shapes() -> str:
    """Points of other shapes: ours beside the fastest peer."""
    rows, missing, occasions = [], [], []
    for shape in OTHERS:
        results = tables.read(shape)
        found = beside_peers(results) if results else []
        for number, cells in enumerate(found):
            rows.append(["" if number else shape, *cells])
        missing += [] if found else [shape]
        occasions += [f"- {shape}: {in_one_line(results)}"] if results else []
    text = table(["points", "task", "wall s", "CPU s", "peak MiB", "fastest peer, times the wall", "cheapest, times the CPU"], rows)
    unknown = f"{', '.join(missing)}: {not_measured('python -m benchmarks --full')}" if missing else ""
    shown = (text.replace("--- | ---: |", "--- | --- |", 1) if rows else "", "\n".join(occasions), unknown)
    return "\n\n".join(part for part in shown if part)


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
    """Our stages beside the floor: the share of their CPU time that decoding and encoding alone would need."""
    rows = []
    for task in (REPARTITION, ROLLUPS_1M, ROLLUPS_3):
        mine, floor = select(results["runs"], OURS, task), select(results["runs"], FLOOR, task)
        if mine and floor:
            decode, encode = (Spread.of([run["cpu"][part] for run in floor]).median for part in ("decode", "encode"))
            spent = Spread.of([cpu(run) for run in mine]).median
            per_row = 1e9 / results["data"]["rows"]
            rest = (spent - decode - encode) * per_row
            each = [f"{seconds:.2f} ({seconds * per_row:.0f} ns)" for seconds in (spent, decode, encode)]
            cells = [*each, figure(ratio(mine, floor, cpu)), f"{rest:.0f}"]
            rows.append([TASKS[task], *cells])
    titles = ["stage", "CPU s (a point)", "floor: decode", "floor: encode", "times the floor", "the rest, ns a point"]
    return table(titles, rows) if rows else ""


def shares(results: Results) -> str:
    """Threads' time by part, from the manifests' timings, as shares and per point."""
    rows = []
    for task in (REPARTITION, ROLLUPS_1M, ROLLUPS_3, PUBLISH):
        parts = stage_parts(results, task)
        if parts:
            total = sum(parts.values())
            # Not per point: publishing does not depend on the points.
            points = 0 if task == PUBLISH else results["data"]["rows"]
            each = (
                f"{name} {seconds / total:.0%}" + (f" ({1e9 * seconds / points:.0f} ns)" if points else "")
                for name, seconds in parts.items()
            )
            rows.append([TASKS[task], ", ".join(each)])
    return table(["stage", "threads' time (a point)"], rows).replace("---:", "---") if rows else ""


def stage_parts(results: Results, task: str) -> dict[str, float]:
    """Median seconds of threads in each part of one of our stages; empty if it was not measured."""
    mine = select(results["runs"], OURS, task)
    names = [name for name in mine[0]["timings"] if name != "total"] if mine else []
    parts = {name: Spread.of([run["timings"].get(name, 0.0) for run in mine]).median for name in names}
    return {name: seconds for name, seconds in parts.items() if seconds >= 0.005 * sum(parts.values())}


def all_forms(results: Results) -> str:
    """Every form of the peers' queries."""
    rows = []
    # One task of ours is the counterpart of several of the peers'.
    shown = dict.fromkeys((engine, OURS_BESIDE[task] if engine == OURS else task) for task in PEER_TASKS for engine in (OURS, *PEERS))
    for engine, task in shown:
        mine = [entry for entry in results["summary"] if (entry["engine"], entry["task"]) == (engine, task)]
        title = f"{engine}: {TASKS[task]}"
        for entry in sorted(mine, key=lambda entry: entry["wall"]["median"]):
            costs_of = (figure(Spread(**entry[name])) for name in ("wall", "cpu"))
            rows.append([title, entry["form"], *costs_of, f"{entry['peak_bytes']['median'] / 2**20:.0f}"])
            title = ""
    return table(["task", "form", "wall s", "CPU s", "peak MiB"], rows).replace("--- | ---: |", "--- | --- |", 1)


def lines(results: Results) -> list[str]:
    """Lines for the terminal: everything that these results have."""
    if len({entry["form"] for entry in results["summary"] if entry["engine"] == DUCKDB and entry["task"] == REPARTITION}) > 1:
        return [all_forms(results)]
    texts = (
        targets_table(aims(results, results["data"]["shape"])),
        side_by_side(results),
        starts(results),
        limits(results),
        shares(results),
    )
    return [text for text in texts if text]


def blocks() -> dict[str, str]:
    """The tables of the committed results, by name."""
    main: tuple[tuple[str, Callable[[Results], str]], ...] = (
        ("side-by-side", side_by_side),
        ("starts", starts),
        ("limits", limits),
        ("shares", shares),
        ("circumstances", circumstances),
    )
    forms: tuple[tuple[str, Callable[[Results], str]], ...] = (("forms", all_forms), ("forms-circumstances", in_one_line))
    found = {"other-shapes": other_shapes()}
    for shape in MAIN:
        prefix = "" if shape == SCRAPES else f"{shape}-"
        found |= {f"{prefix}{name}": _made(shape, f"python -m benchmarks --shape {shape}", make) for name, make in main}
        command = f"python -m benchmarks --forms --repeat 1 --shape {shape}"
        found |= {f"{prefix}{name}": _made(forms_name(shape), command, make) for name, make in forms}
    return found


def _made(name: str, command: str, make: Callable[[Results], str]) -> str:
    results = tables.read(name)
    return make(results) if results else not_measured(command)


def in_one_line(results: Results) -> str:
    """The circumstances, in short, of results shown beside others: what was run, when, and which contenders failed."""
    others = Spread.of([100 * run["others_share"] for run in results["runs"]])
    turns = f"{results['repeat']} turn{'s' * (results['repeat'] > 1)}"
    # Each once: mostly, the warm and the cold run failed alike.
    reasons = dict.fromkeys(f"; {each['engine']}, {each['task']}, {each['form']}: {each['why']}" for each in results.get("failed", ()))
    failed = "".join(reasons)
    wrong = "".join(
        f"; {each['engine']}, {each['task']}, answered something else once, and the same as the others when run again"
        for each in results.get("wrong", ())
    )
    later = "".join(f", then `{each['command']}`, {each['date']}" for each in results.get("renewed", ()))
    when = f"`{results['command']}`, {turns}, {results['date']}, commit {results['commit'][:12]}"
    return f"{when}{later}{failed}{wrong}; other programs used {figure(others, 0)} % of the machine."


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
    with tables.drawing(target, results, height=4.8) as axes:
        draw(results, axes)


_COLOURS = {
    OURS: "#1f6feb",
    DUCKDB: "#e0a800",
    POLARS: "#8a5cd6",
    DATAFUSION: "#d1672a",
    CLICKHOUSE: "#2da44e",
    FLOOR: "#9aa4b0",
}


def _plot_engines(results: Results, axes: Any) -> None:
    groups = [
        ("sorted → 1 min rollups", [(engine, ROLLUPS_1M) for engine in (OURS, *PEERS, FLOOR)]),
        ("with delta, resets, rate", [(OURS, ROLLUPS_1M), *((peer, ROLLUPS_1M_FULL) for peer in PEERS)]),
        ("raw → sorted", [(engine, REPARTITION) for engine in (OURS, *PEERS, FLOOR)]),
        ("whole path", [(OURS, RAW_TO_PUBLISHED), *((peer, RAW_TO_1M) for peer in PEERS)]),
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
        # Threads' seconds include waiting for a core, so they are scaled to the stage's CPU seconds.
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
