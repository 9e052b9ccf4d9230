"""Publishing over catalogs and files (``python -m benchmarks.publishing``): tables, targets and a plot."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import tables
from benchmarks.catalogs import EMBEDDED, POSTGRES, REST
from benchmarks.summary import Spread
from benchmarks.tables import Results, Target, figure, not_measured, table

COMMAND = "python -m benchmarks.publishing"
CATALOGS = (EMBEDDED, POSTGRES, REST)
LIMITS = {200: 1.0, 8: 0.4}
"""Number of files -> seconds that publishing them may take."""
_PARTS = ("plan", "commit", "verify")
COLOURS = {EMBEDDED: "#9aa4b0", POSTGRES: "#1f6feb", REST: "#e0a800"}


def targets() -> list[Target]:
    """Targets, from the committed results."""
    return aims(tables.read("publishing") or {"runs": []})


def aims(results: Results) -> list[Target]:
    """The slowest catalog counts."""
    rows = []
    for files, limit in LIMITS.items():
        text, wanted = f"publish {files} files, seconds, on the slowest catalog", f"≤ {limit:g}"
        found = {name: spread for name in CATALOGS if (spread := _seconds(results, name, files)) is not None}
        if not found:
            rows.append(Target(text, wanted))
            continue
        slowest = max(found, key=lambda name: found[name].median)
        also = "; ".join(f"{name}: {spread.median:.2f}" for name, spread in found.items() if name != slowest)
        rows.append(Target(text, wanted, f"{figure(found[slowest])}, {slowest}", found[slowest].median <= limit, also))
    return rows


def _runs(results: Results, name: str, files: int) -> list[dict[str, Any]]:
    return [run for run in results["runs"] if (run["catalog"], run["files"]) == (name, files)]


def _seconds(results: Results, name: str, files: int, of: str = "seconds") -> Spread | None:
    mine = _runs(results, name, files)
    return Spread.of([run[of] for run in mine]) if mine else None


def by_files(results: Results) -> str:
    """Seconds by number of files and catalog, what they consist of, and the cost of a second publish, which has nothing to do."""
    rows = []
    for files in dict.fromkeys(run["files"] for run in results["runs"]):
        for name in CATALOGS:
            mine = _runs(results, name, files)
            if mine:
                parts = [f"{Spread.of([run[part] for run in mine]).median:.3f}" for part in _PARTS]
                spreads = [figure(Spread.of([run[of] for run in mine]), 3) for of in ("seconds", "cpu", "again")]
                rows.append([name, f"{files:,}", spreads[0], *parts, spreads[1], spreads[2]])
    return table(["catalog, storage", "files", "seconds", *_PARTS, "our CPU s", "again, nothing changed"], rows)


def by_requests(results: Results) -> str:
    """A publish's requests to its servers, sequential or concurrent, and its time if each answer takes longer."""
    rows = []
    for one in results["requests"]:
        for key, text in (("publish", "publish"), ("again", "again, nothing changed")):
            asked = one[key]
            rows.append(
                [f"{one['catalog']}: {text}", str(one["files"]), str(asked["S3"]), str(asked["catalog"]), f"{one[f'{key}_delayed']:.2f}"]
            )
    late = f"seconds, each answer {results['delay'] * 1000:g} ms late"
    return table(["", "files", "requests to S3", "to the catalog", late], rows)


def circumstances(results: Results) -> str:
    """Machine, versions and how it was run."""
    return "\n".join(
        [
            *tables.occasion(results, ", servers included"),
            f"- {results['repeat']} turns",
        ]
    )


def blocks() -> dict[str, str]:
    """The tables of the committed results, by name."""
    results = tables.read("publishing")
    made: dict[str, Callable[[Results], str]] = {
        "publishing-files": by_files,
        "publishing-requests": by_requests,
        "publishing-circumstances": circumstances,
    }
    return {name: make(results) if results else not_measured(COMMAND) for name, make in made.items()}


def plots() -> dict[str, tuple[Results, Callable[[Path], None]]]:
    """The page's picture."""
    results = tables.read("publishing")
    if results is None:
        return {}
    return {"performance-publishing-files": (results, functools.partial(_draw, results))}


def _draw(results: Results, target: Path) -> None:
    with tables.drawing(target, results) as axes:
        plot_files(results, axes)


def plot_files(results: Results, axes: Any) -> None:
    """Seconds over files."""
    for name in CATALOGS:
        numbers = sorted({run["files"] for run in results["runs"] if run["catalog"] == name})
        spreads = [spread for number in numbers if (spread := _seconds(results, name, number)) is not None]
        errors = [[each.median - each.least for each in spreads], [each.most - each.median for each in spreads]]
        axes.errorbar(
            numbers, [each.median for each in spreads], yerr=errors, label=name, color=COLOURS[name], marker="o", markersize=4, capsize=2
        )
    for files, limit in LIMITS.items():
        axes.plot(files, limit, marker="_", markersize=16, color="#d1672a", linestyle="none", label="target" if files == 200 else None)
    scaled(axes, "data files of the batch")


def scaled(axes: Any, label: str) -> None:
    """Logarithmic axes, seconds over ``label``."""
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("seconds, median and range")
    axes.grid(which="major", color="#e5e8eb", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
