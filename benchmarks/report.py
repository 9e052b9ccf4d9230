"""Results to tables and plots: what ``docs/performance.md`` shows of the committed JSON, and nothing that is not in it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import (
    COLD,
    DUCKDB,
    FIRST,
    FLOOR,
    OURS,
    OURS_ON_SPARK,
    OWN,
    PEER_TASKS,
    PEERS,
    POLARS,
    PUBLISH,
    RAW_TO_1M,
    RAW_TO_PUBLISHED,
    REPARTITION,
    ROLLUPS_1M,
    ROLLUPS_3,
    SPARK,
    WARM,
)
from benchmarks.summary import Spread, cpu, ratio, select, wall

Results = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
PAGE = Path("docs") / "performance.md"
PLOTS = ("performance-cpu", "performance-stages")
_BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_GIB = 2**30

TASKS = {
    REPARTITION: "raw → sorted",
    ROLLUPS_1M: "sorted → 1 min rollups",
    ROLLUPS_3: "sorted → 1 min, 5 min and 1 h rollups",
    PUBLISH: "publish",
    RAW_TO_PUBLISHED: "raw → published, three resolutions",
    RAW_TO_1M: "raw → 1 min rollups, nothing staged",
}


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _figure(spread: Spread, digits: int = 2) -> str:
    return f"{spread.median:.{digits}f} ({spread.least:.{digits}f} to {spread.most:.{digits}f})"


def aims(results: Results) -> str:
    """What was aimed at, and what came out; ratios are taken turn by turn."""
    runs = results["runs"]
    rows: list[list[str]] = []

    def row(text: str, wanted: str, found: Spread, met: bool, other: str) -> None:
        rows.append([text, wanted, _figure(found), "yes" if met else "**no**", other])

    floor = _pair(runs, (OURS, ROLLUPS_1M), (FLOOR, ROLLUPS_1M), cpu)
    if floor:
        other = _pair(runs, (OURS, ROLLUPS_1M), (FLOOR, ROLLUPS_1M), wall)
        row("1 min rollups: CPU, times the floor", "≤ 1.5", floor, floor.median <= 1.5, f"wall {_figure(other)}" if other else "")
    for task, text, times in ((ROLLUPS_1M, "1 min rollups", 2), (REPARTITION, "repartition", 4)):
        for peer in PEERS:
            faster = _pair(runs, (peer, task), (OURS, task), wall)
            cheaper = _pair(runs, (peer, task), (OURS, task), cpu)
            if faster and cheaper:
                row(f"{text}: times as fast as {peer}", f"≥ {times}", faster, faster.median >= times, f"CPU {_figure(cheaper)}")
    for start in (WARM, COLD):
        peers = [peer for peer in PEERS if select(runs, peer, RAW_TO_1M, start)]
        if peers and select(runs, OURS, RAW_TO_PUBLISHED, start):
            peer = min(peers, key=lambda name: Spread.of([wall(run) for run in select(runs, name, RAW_TO_1M, start)]).median)
            faster = _pair(runs, (peer, RAW_TO_1M), (OURS, RAW_TO_PUBLISHED), wall, start)
            cheaper = _pair(runs, (peer, RAW_TO_1M), (OURS, RAW_TO_PUBLISHED), cpu, start)
            if faster and cheaper:
                text = f"raw → published, three resolutions: times as fast as {peer}'s raw → 1 min rollups ({start})"
                row(text, "> 1", faster, faster.median > 1, f"CPU {_figure(cheaper)}")
    mine = [run for run in runs if run["engine"] == OURS and run["start"] != FIRST]
    if mine:
        peak = Spread.of([run["peak_bytes"] / _GIB for run in mine])
        row("peak memory of any stage, GiB", "< 2", Spread(peak.most, peak.most, peak.most), peak.most < 2, "largest of all runs")
        rows[-1][2] = f"{peak.most:.2f}"
    return table(["aim", "wanted", "measured", "met", "also"], rows) if rows else ""


def _pair(
    runs: Sequence[dict[str, Any]],
    above: tuple[str, str],
    below: tuple[str, str],
    figure: Callable[[dict[str, Any]], float],
    start: str = WARM,
) -> Spread | None:
    ones, others = select(runs, *above, start), select(runs, *below, start)
    return ratio(ones, others, figure) if ones and others else None


def side_by_side(results: Results) -> str:
    """Every task and engine, warm: seconds, CPU seconds, memory, bytes written."""
    rows = []
    for task, title in TASKS.items():
        for engine in (OURS, *PEERS, FLOOR):
            mine = select(results["runs"], engine, task)
            if mine:
                rows.append([title, engine, *_costs(mine), _size(mine)])
                title = ""
    return table(["task", "engine", "wall s", "CPU s", "peak MiB", "written MB"], rows) if rows else ""


def _costs(runs: Sequence[dict[str, Any]]) -> list[str]:
    peak = Spread.of([run["peak_bytes"] / 2**20 for run in runs])
    return [_figure(Spread.of([wall(run) for run in runs])), _figure(Spread.of([cpu(run) for run in runs])), f"{peak.median:.0f}"]


def _size(runs: Sequence[dict[str, Any]]) -> str:
    sizes = [run["bytes"] for run in runs if "bytes" in run]
    return f"{sizes[0] / 1e6:.0f}" if sizes else ""


def spark_aims(results: Results) -> str:
    """What was aimed at on Spark, and what came out; ratios are taken turn by turn."""
    rows = []
    for task, above, below, text, sign, limit in (
        (RAW_TO_PUBLISHED, OURS_ON_SPARK, OURS, "raw → published: the Spark engine, times the local engine's time", "≤", 3),
        (REPARTITION, SPARK, OURS_ON_SPARK, "repartition: times as fast as Spark's own sort", "≥", 5),
    ):
        found, cost = (_pair(results["runs"], (above, task), (below, task), figure) for figure in (wall, cpu))
        if found and cost:
            met = found.median <= limit if sign == "≤" else found.median >= limit
            rows.append([text, f"{sign} {limit}", _figure(found), "yes" if met else "**no**", f"CPU {_figure(cost)}"])
    return table(["aim", "wanted", "measured", "met", "also"], rows) if rows else ""


def spark_side_by_side(results: Results) -> str:
    """Every task, engine and form that ran beside Spark: seconds, CPU seconds, memory, bytes written."""
    rows = []
    for task in (REPARTITION, RAW_TO_PUBLISHED):
        title = TASKS[task]
        for engine in (*OWN, SPARK):
            runs = select(results["runs"], engine, task)
            for form in dict.fromkeys(run["form"] for run in runs):
                mine = [run for run in runs if run["form"] == form]
                rows.append([title, f"{engine} ({form})" if form else engine, *_costs(mine), _size(mine)])
                title = ""
    return table(["task", "engine", "wall s", "CPU s", "peak MiB", "written MB"], rows) if rows else ""


def starts(results: Results) -> str:
    """Warm beside cold processes, and the first one after installing."""
    rows = []
    for task in TASKS:
        for engine in (OURS, *PEERS):
            warm, cold = select(results["runs"], engine, task, WARM), select(results["runs"], engine, task, COLD)
            if warm and cold:
                rows.append([f"{engine}: {TASKS[task]}", *_costs(warm)[:2], *_costs(cold)[:2]])
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
            cells = [f"{spent:.2f}", f"{decode:.2f}", f"{encode:.2f}", _figure(ratio(mine, floor, cpu)), f"{rest:.0f}"]
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


def circumstances(results: Results) -> str:
    """Machine, versions, data and how it was run."""
    machine, data = results["machine"], results["data"]
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    others = Spread.of([100 * run["others_share"] for run in results["runs"]])
    changed = f", with changes to {', '.join(results['changed'])}" if results["changed"] else ""
    forms = "; ".join(f"{name}: {form}" for name, form in results["forms"].items())
    return "\n".join(
        [
            f"- `{results['command']}`, {results['date']}, commit {results['commit'][:12]}{changed}",
            f"- {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, {machine['system']}",
            f"- Python {machine['python']}, {versions}",
            f"- {data['rows']:,} points of {data['series']:,} series in {data['raw_files']} files, {data['raw_bytes'] / 1e6:.0f} MB; "
            f"{results['threads']} threads for everyone; {results['repeat']} turns",
            f"- other programs used {_figure(others, 0)} % of the machine while a run was measured",
            f"- the peers' forms: {forms}",
        ]
    )


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
                        *(_figure(Spread(**entry[name])) for name in ("wall", "cpu")),
                        f"{entry['peak_bytes']['median'] / 2**20:.0f}",
                    ]
                )
                title = ""
    return table(["task", "form", "wall s", "CPU s", "peak MiB"], rows).replace("--- | ---: |", "--- | --- |", 1)


def lines(results: Results) -> list[str]:
    """For the terminal: everything that these results have."""
    if len({entry["form"] for entry in results["summary"] if entry["engine"] == DUCKDB and entry["task"] == REPARTITION}) > 1:
        return [all_forms(results)]
    return [text for text in (aims(results), side_by_side(results), starts(results), limits(results), shares(results)) if text]


def blocks() -> dict[str, str]:
    """The generated parts of the page, by name, from the committed results."""
    main, forms = read("scrapes"), read("forms")
    found = {
        "aims": aims,
        "side-by-side": side_by_side,
        "starts": starts,
        "limits": limits,
        "shares": shares,
        "circumstances": circumstances,
    }
    made = {name: make(main) for name, make in found.items()} | {
        "forms": all_forms(forms),
        "forms-circumstances": circumstances_of_forms(forms),
    }
    if (RESULTS / "fleet.json").exists():
        fleet = read("fleet")
        made |= {"fleet-aims": aims(fleet), "fleet-circumstances": circumstances(fleet)}
    spark = {"spark-aims": spark_aims, "spark": spark_side_by_side, "spark-circumstances": circumstances}
    measured = (RESULTS / "spark.json").exists()
    made |= {name: make(read("spark")) if measured else "Not measured yet: `python -m benchmarks.spark`." for name, make in spark.items()}
    return made


def circumstances_of_forms(results: Results) -> str:
    """Those of the choice of forms, in one line."""
    others = Spread.of([100 * run["others_share"] for run in results["runs"]])
    turns = f"{results['repeat']} turn{'s' * (results['repeat'] > 1)}"
    return f"`{results['command']}`, {turns}, {results['date']}; other programs used {_figure(others, 0)} % of the machine."


def read(name: str) -> Results:
    """Committed results."""
    found: Results = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def page(text: str) -> str:
    """The page with its generated parts made anew.

    Raises:
        KeyError: a block has a name that nothing is made for.
    """
    made = blocks()
    return _BLOCK.sub(lambda found: f"{found[1]}\n{made[found['name']]}\n\n{found[3]}", text)


def write(root: Path) -> None:
    """Bring the page's tables and its plots up to date."""
    path = root / PAGE
    path.write_text(page(path.read_text()))
    for name in PLOTS:
        plot(name, read("scrapes"), path.parent / f"{name}.svg")


def digest(results: Results) -> str:
    """What ties a plot to the results it was drawn from."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()[:16]


def plot(name: str, results: Results, target: Path) -> None:
    """Draw one of ``PLOTS`` as SVG; the results' digest is in its metadata."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    with mpl.rc_context(
        {"svg.hashsalt": "rollups", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
        (_plot_engines if name == PLOTS[0] else _plot_stages)(results, axes)
        figure.savefig(target, format="svg", metadata={"Date": None, "Description": f"results {digest(results)}"}, transparent=False)
        plt.close(figure)


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
