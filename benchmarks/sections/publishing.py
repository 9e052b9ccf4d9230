"""Publishing over catalogs, files and the table's age (``python -m benchmarks.publishing``): tables, targets and plots."""

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
AGED = (*((name, True) for name in CATALOGS), (EMBEDDED, False), (POSTGRES, False))
"""Tables that grow old: the catalog, and whether snapshots expire by the product's default. A REST server keeps metadata of its own,
where nobody can write ten thousand snapshots at once."""
LIMITS = {200: 1.0, 8: 0.4}
"""Number of files -> seconds that publishing them may take."""
_GROWTH = 2.0
_PARTS = ("plan", "commit", "verify")
_COLOURS = {EMBEDDED: "#9aa4b0", POSTGRES: "#1f6feb", REST: "#e0a800"}


def targets() -> list[Target]:
    """Targets, from the committed results."""
    return aims(tables.read("publishing") or {"runs": [], "ages": []})


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
    text, wanted = "the 10,000th publish, times the 100th, on the worst catalog", f"≤ {_GROWTH:g}"
    grown = {name: ratio for name in CATALOGS if (ratio := _growth(results, name)) is not None}
    if not grown:
        return [*rows, Target(text, wanted)]
    worst = max(grown, key=lambda name: grown[name])
    also = "; ".join(f"{name}: {ratio:.2f}" for name, ratio in grown.items() if name != worst)
    return [*rows, Target(text, wanted, f"{grown[worst]:.2f}, {worst}", grown[worst] <= _GROWTH, also)]


def _runs(results: Results, name: str, files: int) -> list[dict[str, Any]]:
    return [run for run in results["runs"] if (run["catalog"], run["files"]) == (name, files)]


def _seconds(results: Results, name: str, files: int, of: str = "seconds") -> Spread | None:
    mine = _runs(results, name, files)
    return Spread.of([run[of] for run in mine]) if mine else None


def _ages(results: Results, name: str, *, retained: bool = True) -> dict[int, dict[str, Any]]:
    return {one["publishes"]: one for one in results["ages"] if one["catalog"] == name and one["retained"] == retained}


def _growth(results: Results, name: str) -> float | None:
    found = _ages(results, name)
    return float(found[10_000]["median"] / found[100]["median"]) if 100 in found and 10_000 in found else None


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


def by_age(results: Results) -> str:
    """Seconds by the number of publishes that a table has seen, and what it then consists of."""
    rows = []
    for name, retained in AGED:
        for publishes, one in sorted(_ages(results, name, retained=retained).items()):
            title = name if retained else f"{name}, every snapshot kept"
            sizes = [
                f"{one['snapshots']:,}",
                f"{one['manifests']:,}",
                f"{one['manifest_list_bytes'] / 1e3:.1f}",
                f"{one['metadata_bytes'] / 1e3:,.0f}",
            ]
            aged = "" if one["real"] else " (aged)"
            rows.append(
                [title, f"{publishes:,}{aged}", figure(Spread(one["median"], one["least"], one["most"]), 3), f"{one['cpu']:.3f}", *sizes]
            )
    return table(
        ["catalog, storage", "publishes", "seconds", "our CPU s", "snapshots", "manifests", "their list, kB", "metadata, kB"], rows
    )


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
            f"- {results['repeat']} turns; ages are medians of 24 publishes, a day's, each of one file for each of three resolutions",
        ]
    )


def blocks() -> dict[str, str]:
    """The tables of the committed results, by name."""
    results = tables.read("publishing")
    made: dict[str, Callable[[Results], str]] = {
        "publishing-files": by_files,
        "publishing-age": by_age,
        "publishing-requests": by_requests,
        "publishing-circumstances": circumstances,
    }
    return {name: make(results) if results else not_measured(COMMAND) for name, make in made.items()}


def plots() -> dict[str, tuple[Results, Callable[[Path], None]]]:
    """The page's pictures, by name."""
    results = tables.read("publishing")
    if results is None:
        return {}
    draws = (("performance-publishing-files", plot_files), ("performance-publishing-age", plot_age))
    return {name: (results, functools.partial(_draw, draw, results)) for name, draw in draws}


def _draw(draw: Callable[[Results, Any], None], results: Results, target: Path) -> None:
    with tables.drawing(target, results) as axes:
        draw(results, axes)


def plot_files(results: Results, axes: Any) -> None:
    """Seconds over files."""
    for name in CATALOGS:
        numbers = sorted({run["files"] for run in results["runs"] if run["catalog"] == name})
        spreads = [spread for number in numbers if (spread := _seconds(results, name, number)) is not None]
        errors = [[each.median - each.least for each in spreads], [each.most - each.median for each in spreads]]
        axes.errorbar(
            numbers, [each.median for each in spreads], yerr=errors, label=name, color=_COLOURS[name], marker="o", markersize=4, capsize=2
        )
    for files, limit in LIMITS.items():
        axes.plot(files, limit, marker="_", markersize=16, color="#d1672a", linestyle="none", label="target" if files == 200 else None)
    _scaled(axes, "data files of the batch")


def plot_age(results: Results, axes: Any) -> None:
    """Seconds over publishes."""
    for name, retained in AGED:
        found = sorted(_ages(results, name, retained=retained).items())
        if found:
            label = name if retained else f"{name}, every snapshot kept"
            style = {"color": _COLOURS[name], "linestyle": "-" if retained else "--"}
            errors = [[one["median"] - one["least"] for _, one in found], [one["most"] - one["median"] for _, one in found]]
            axes.errorbar(
                [number for number, _ in found],
                [one["median"] for _, one in found],
                yerr=errors,
                label=label,
                marker="o",
                markersize=4,
                capsize=2,
                **style,
            )
    _scaled(axes, "publishes that the table has seen")


def _scaled(axes: Any, label: str) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(label)
    axes.set_ylabel("seconds, median and range")
    axes.grid(which="major", color="#e5e8eb", linewidth=0.6)
    axes.legend(frameon=False, fontsize=8)
