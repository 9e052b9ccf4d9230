"""A batch by where raw points, stage and table lie (``python -m benchmarks.storages``): a table."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import tables
from benchmarks.catalogs import EMBEDDED, POSTGRES, REST
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
        local = {run["turn"]: run for run in results["runs"] if (run["shape"], run["storage"]) == (shape, EMBEDDED)}
        for storage in (EMBEDDED, POSTGRES, REST):
            mine = [run for run in results["runs"] if (run["shape"], run["storage"]) == (shape, storage)]
            whole = {of: Spread.of([sum(run[of].values()) for run in mine]) for of in ("wall", "cpu")}
            parts = [f"{Spread.of([run['wall'][step] for run in mine]).median:.2f}" for step in _STEPS]
            others = figure(Spread.of([run["others"] for run in mine]))
            times = Spread.of([sum(run["wall"].values()) / sum(local[run["turn"]]["wall"].values()) for run in mine])
            peak = Spread.of([run["peak_bytes"] / 2**20 for run in mine]).median
            told = "" if storage == EMBEDDED else figure(times)
            rows.append([title, storage, figure(whole["wall"]), *parts, told, figure(whole["cpu"]), others, f"{peak:.0f}"])
            title = ""
    head = ["points", "storage", "wall s", *_STEPS, "times local files", "our CPU s", "the servers' and others'", "peak MiB"]
    return table(head, rows).replace("--- | ---: |", "--- | --- |", 1)


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
