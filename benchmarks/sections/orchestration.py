"""What Dagster, a process's start and a repetition cost (``python -m benchmarks.orchestration``): tables and targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from benchmarks import tables
from benchmarks.orchestration_child import AGAIN, KERNELS, PLAIN, RANGE, SINGLE
from benchmarks.summary import Run, Spread
from benchmarks.tables import Results, Target, figure, not_measured, table

COMMAND = "python -m benchmarks.orchestration"
SQLITE, POSTGRES = "SQLite", "PostgreSQL"
DAGSTER, CODE_LOCATION, WEEK = "import dagster", "the code location", "week"
ASSETS = 5
"""Assets that a partition materializes."""
_BOOKKEEPING, _WEEK_MINUTES, _KERNELS, _LOCATION, _AGAIN_PERCENT = 0.2, 5.0, 1.5, 2.5, 1.0


def targets() -> list[Target]:
    """Targets, from the committed results."""
    return aims(tables.read("orchestration") or {"runs": []})


def aims(results: Results) -> list[Target]:
    """What was aimed at, and what came out."""
    weeks = _of(results, WEEK)
    also = f"{weeks[0]['runs']} runs" if weeks else ""
    return [
        _aim(f"{_hours(results)} hourly partitions, small data, through the daemon, minutes", _WEEK_MINUTES, _each(weeks, _minutes), also),
        _bookkeeping_aim(results),
        _aim("cold start of a run's kernels (import and cached load), s", _KERNELS, _each(_of(results, KERNELS), _wall)),
        _aim("load of the code location, s", _LOCATION, _each(_of(results, CODE_LOCATION), _loaded), _of_dagster(results)),
        _aim("made again, nothing changed: % of the first time", _AGAIN_PERCENT, _each(_of(results, AGAIN), _percent)),
    ]


def _aim(text: str, limit: float, found: Spread | None, also: str = "") -> Target:
    if found is None:
        return Target(text, f"≤ {limit:g}")
    return Target(text, f"≤ {limit:g}", figure(found), found.median <= limit, also)


def _bookkeeping_aim(results: Results) -> Target:
    """The target for bookkeeping: in runs of a range, as backfills make them, on the slower storage."""
    found = {name: spread for name in (SQLITE, POSTGRES) if (spread := overhead(results, RANGE, name)) is not None}
    worst = max(found, key=lambda name: found[name].median, default="")
    singles = [spread.median for name in found if (spread := overhead(results, SINGLE, name)) is not None]
    also = f"{worst}; a run a partition: {max(singles):.2f}" if singles else worst
    return _aim("Dagster's bookkeeping, s a partition and asset", _BOOKKEEPING, found.get(worst), also)


def overhead(results: Results, way: str, storage: str, of: str = "wall") -> Spread | None:
    """Seconds per partition and asset beyond those of the same steps called as plain functions, turn by turn."""
    plain = {run["turn"]: run[of] / run["partitions"] for run in _of(results, PLAIN)}
    mine = [run for run in _of(results, way) if run["storage"] == storage and run["turn"] in plain]
    return _each(mine, lambda run: (run[of] / run["partitions"] - plain[run["turn"]]) / ASSETS)


def _of(results: Results, what: str) -> list[Run]:
    return [run for run in results["runs"] if run["what"] == what]


def _each(runs: Sequence[Run], value: Callable[[Run], float]) -> Spread | None:
    return Spread.of([value(run) for run in runs]) if runs else None


def _wall(run: Run) -> float:
    return float(run["wall"])


def _loaded(run: Run) -> float:
    return float(run["loaded"])


def _minutes(run: Run) -> float:
    return float(run["wall"]) / 60


def _percent(run: Run) -> float:
    return 100 * repeated(run) / float(run["first"])


def repeated(run: Run) -> float:
    """Median seconds of all steps of a repetition."""
    return float(median(sum(each.values()) for each in run["again"]))


def _hours(results: Results) -> int:
    return int(next((run["partitions"] for run in _of(results, WEEK)), 168))


def _of_dagster(results: Results) -> str:
    found = _each(_of(results, DAGSTER), _loaded)
    return f"of which dagster {found.median:.2f}" if found else ""


def bookkeeping(results: Results) -> str:
    """A small batch as plain functions, as a run of its own, and among others in one run, by where runs are recorded."""
    rows = []
    for way in (PLAIN, SINGLE, RANGE):
        for storage in ("",) if way == PLAIN else (SQLITE, POSTGRES):
            mine = [run for run in _of(results, way) if run["storage"] == storage]
            if not mine:
                continue
            cost = [figure(Spread.of([run[of] / run["partitions"] for run in mine]), 3) for of in ("wall", "cpu")]
            events = f"{mine[0]['events'] / mine[0]['partitions']:.0f}" if "events" in mine[0] else ""
            beyond = [figure(spread, 3) if (spread := overhead(results, way, storage, of)) else "" for of in ("wall", "cpu")]
            rows.append(
                [f"{way}{f', {storage}' if storage else ''}", str(mine[0]["partitions"]), *cost, events, *(beyond if storage else "  ")]
            )
    head = ["", "partitions", "s a partition", "CPU s", "events", "bookkeeping: s a partition and asset", "CPU s"]
    return table(head, rows) if rows else ""


def starts(results: Results) -> str:
    """What a process pays before it does any work: seconds until it is loaded, and from its start to its end."""
    rows = []
    for what in (DAGSTER, CODE_LOCATION):
        mine = _of(results, what)
        if mine:
            rows.append([what, *(figure(Spread.of([run[of] for run in mine])) for of in ("loaded", "wall", "cpu"))])
    mine = _of(results, KERNELS)
    if mine:
        rows.append(["the kernels", figure(Spread.of([run["wall"] for run in mine])), "", figure(Spread.of([run["cpu"] for run in mine]))])
    return table(["", "loaded after s", "whole process s", "CPU s"], rows) if rows else ""


def again(results: Results) -> str:
    """A batch's first run, and repetitions with nothing changed, step by step and through Dagster."""
    mine = _of(results, AGAIN)
    if not mine:
        return ""
    rows = [[f"first time, {mine[0]['rows']:,} points", figure(Spread.of([1000 * run["first"] for run in mine]), 0), ""]]
    for step in mine[0]["again"][0]:
        rows.append([step, figure(Spread.of([1000 * median(each[step] for each in run["again"]) for run in mine]), 1), ""])
    rows.append(
        ["all three", figure(Spread.of([1000 * repeated(run) for run in mine]), 1), figure(Spread.of([_percent(run) for run in mine]))]
    )
    rows.append(["as a run of Dagster", figure(Spread.of([1000 * run["run"] for run in mine]), 0), ""])
    return table(["", "ms", "% of the first time"], rows)


def week(results: Results) -> str:
    """The backfill through the daemon."""
    rows = [
        [
            f"{run['partitions']} hours",
            f"{run['wall']:.0f}",
            f"{run['wall'] - run['working']:.0f}",
            str(run["runs"]),
            f"{run['in_runs'] / run['runs']:.1f}",
            f"{run['wall'] / run['partitions']:.2f}",
        ]
        for run in _of(results, WEEK)
    ]
    head = ["", "seconds", "of which no run has begun yet, or all have ended", "runs", "s a run", "s a partition"]
    return table(head, rows) if rows else ""


def circumstances(results: Results) -> str:
    """Machine, versions and how it was run."""
    return "\n".join(
        [
            *tables.occasion(results, ", servers included"),
            f"- {results['threads']} threads; {results['repeat']} turns, the week once",
        ]
    )


def blocks() -> dict[str, str]:
    """The tables of the committed results, by name."""
    results = tables.read("orchestration")
    made: dict[str, Callable[[Results], str]] = {
        "orchestration-bookkeeping": bookkeeping,
        "orchestration-week": week,
        "orchestration-starts": starts,
        "orchestration-again": again,
        "orchestration-circumstances": circumstances,
    }
    return {name: make(results) if results else not_measured(COMMAND) for name, make in made.items()}
