"""A batch by where raw points, stage and table lie, engine and resolutions (``python -m benchmarks.storages``): a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import tables
from benchmarks.catalogs import EMBEDDED
from benchmarks.summary import Spread
from benchmarks.tables import Results, figure, not_measured, table

NAME = "storages"
COMMAND = f"python -m benchmarks.{NAME}"
_STEPS = ("repartition", "rollups", "publish")


def by_storage(results: Results) -> str:
    """Seconds of a batch in all and by step, CPU time of ours and of the servers, and the multiple of local files in the same turn."""
    rows = []
    for shape, about in results["points"].items():
        title = f"{shape}: {about['rows'] / 1e6:g} M points"
        by_way: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for run in sorted(results["runs"], key=lambda run: run["turn"]):
            if run["shape"] == shape:
                by_way.setdefault((run["storage"], run["engine"], run["resolutions"]), []).append(run)
        for (storage, engine, resolutions), mine in by_way.items():
            local = {run["turn"]: run for run in by_way[EMBEDDED, engine, resolutions]}
            whole = {of: Spread.of([sum(run[of].values()) for run in mine]) for of in ("wall", "cpu")}
            parts = [f"{Spread.of([run['wall'][step] for run in mine]).median:.2f}" for step in _STEPS]
            others = figure(Spread.of([run["others"] for run in mine]))
            times = Spread.of([sum(run["wall"].values()) / sum(local[run["turn"]]["wall"].values()) for run in mine])
            peak = Spread.of([run["peak_bytes"] / 2**20 for run in mine]).median
            told = "" if storage == EMBEDDED else figure(times)
            named = [title, storage, engine, resolutions.replace(",", ", ")]
            rows.append([*named, figure(whole["wall"]), *parts, told, figure(whole["cpu"]), others, f"{peak:.0f}"])
            title = ""
    head = ["points", "storage", "engine", "resolutions", "wall s", *_STEPS, "times local files", "our CPU s", "the servers' and others'"]
    return table([*head, "peak MiB"], rows).replace("--- | ---: | ---: | ---: |", "--- | --- | --- | --- |", 1)


def settings(results: Results) -> str:
    """The circumstances."""
    return "\n".join(
        [
            *tables.occasion(results, ", servers included"),
            f"- {results['threads']} threads, {results['repeat']} turns; each batch is new to a table that has those before it",
        ]
    )


def lines(results: Results) -> list[str]:
    """The tables as lines for the terminal."""
    return [by_storage(results)]


def blocks() -> dict[str, str]:
    """The tables of the committed results, by name."""
    results = tables.read(NAME)
    made: dict[str, Callable[[Results], str]] = {"storages": by_storage, "storages-circumstances": settings}
    return {name: make(results) if results else not_measured(COMMAND) for name, make in made.items()}
