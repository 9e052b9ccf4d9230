"""Publishing over the table's age (``python -m benchmarks.table_age``): tables, a target and a plot."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.catalogs import EMBEDDED, POSTGRES
from benchmarks.sections.publishing import CATALOGS, COLOURS, scaled
from benchmarks.summary import Spread
from benchmarks.tables import Results, Target, figure, not_measured, table

NAME = "table_age"
COMMAND = f"python -m benchmarks.{NAME}"
AGED = (*((name, True) for name in CATALOGS), (EMBEDDED, False), (POSTGRES, False))
"""Tables that grow old: the catalog, and whether snapshots expire by the product's default. A REST server keeps metadata of its own,
where nobody can write ten thousand snapshots at once."""
_GROWTH = 2.0


def targets() -> list[Target]:
    """The target, from the committed results."""
    return aims(tables.read(NAME) or {"ages": []})


def aims(results: Results) -> list[Target]:
    """The worst catalog counts."""
    text, wanted = "the 10,000th publish, times the 100th, on the worst catalog", f"≤ {_GROWTH:g}"
    grown = {name: ratio for name in CATALOGS if (ratio := _growth(results, name)) is not None}
    if not grown:
        return [Target(text, wanted)]
    worst = max(grown, key=lambda name: grown[name])
    also = "; ".join(f"{name}: {ratio:.2f}" for name, ratio in grown.items() if name != worst)
    return [Target(text, wanted, f"{grown[worst]:.2f}, {worst}", grown[worst] <= _GROWTH, also)]


def _ages(results: Results, name: str, *, retained: bool = True) -> dict[int, dict[str, Any]]:
    return {one["publishes"]: one for one in results["ages"] if one["catalog"] == name and one["retained"] == retained}


def _growth(results: Results, name: str) -> float | None:
    found = _ages(results, name)
    return float(found[10_000]["median"] / found[100]["median"]) if 100 in found and 10_000 in found else None


def by_age(results: Results) -> str:
    """Seconds by the number of publishes that a table has seen, and what it then consists of."""
    rows = []
    for name, retained in AGED:
        for publishes, one in sorted(_ages(results, name, retained=retained).items()):
            sizes = [
                f"{one['snapshots']:,}",
                f"{one['manifests']:,}",
                f"{one['manifest_list_bytes'] / 1e3:.1f}",
                f"{one['metadata_bytes'] / 1e3:,.0f}",
            ]
            aged = "" if one["real"] else " (aged)"
            seconds = figure(Spread(one["median"], one["least"], one["most"]), 3)
            rows.append([_title(name, retained=retained), f"{publishes:,}{aged}", seconds, f"{one['cpu']:.3f}", *sizes])
    return table(
        ["catalog, storage", "publishes", "seconds", "our CPU s", "snapshots", "manifests", "their list, kB", "metadata, kB"], rows
    )


def by_files(results: Results) -> str:
    """Seconds of batches of many files, on a young table and on an aged one, which took turns."""
    rows = []
    for name, retained in AGED:
        mine = [run for run in results["many"] if (run["catalog"], run["retained"]) == (name, retained)]
        for files in dict.fromkeys(run["files"] for run in mine):
            young, aged = ([run for run in mine if (run["files"], run["aged"]) == (files, old)] for old in (False, True))
            seconds = [Spread.of([run["seconds"] for run in runs]) for runs in (young, aged)]
            ratio = Spread.of([late["seconds"] / early["seconds"] for early, late in zip(young, aged, strict=True)])
            rows.append([_title(name, retained=retained), f"{files:,}", *(figure(one, 3) for one in seconds), figure(ratio)])
    return table(["catalog, storage", "files", "young, seconds", f"after {results['age']:,} publishes, seconds", "times the young"], rows)


def _title(name: str, *, retained: bool) -> str:
    return name if retained else f"{name}, every snapshot kept"


def circumstances(results: Results) -> str:
    """Machine, versions and how it was run."""
    return "\n".join(
        [
            *tables.occasion(results, ", servers included"),
            f"- medians of 24 publishes, a day's, each of one file for each of three resolutions; {results['repeat']} turns of many files",
        ]
    )


def blocks() -> dict[str, str]:
    """The tables of the committed results, by name."""
    results = tables.read(NAME)
    made: dict[str, Callable[[Results], str]] = {
        "table-age": by_age,
        "table-age-files": by_files,
        "table-age-circumstances": circumstances,
    }
    return {name: make(results) if results else not_measured(COMMAND) for name, make in made.items()}


def plots() -> dict[str, tuple[Results, Callable[[Path], None]]]:
    """The page's picture."""
    results = tables.read(NAME)
    return {"performance-table-age": (results, functools.partial(_draw, results))} if results else {}


def _draw(results: Results, target: Path) -> None:
    with tables.drawing(target, results) as axes:
        plot_age(results, axes)


def plot_age(results: Results, axes: Any) -> None:
    """Seconds over publishes."""
    for name, retained in AGED:
        found = sorted(_ages(results, name, retained=retained).items())
        if found:
            style = {"color": COLOURS[name], "linestyle": "-" if retained else "--"}
            errors = [[one["median"] - one["least"] for _, one in found], [one["most"] - one["median"] for _, one in found]]
            axes.errorbar(
                [number for number, _ in found],
                [one["median"] for _, one in found],
                yerr=errors,
                label=_title(name, retained=retained),
                marker="o",
                markersize=4,
                capsize=2,
                **style,
            )
    scaled(axes, "publishes that the table has seen")
