"""What queries cost (``python -m benchmarks.querying``): tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks import tables
from benchmarks.queries.layouts import LAYOUTS, OURS
from benchmarks.queries.questions import (
    BY_ID,
    BY_KEYS,
    BY_SHARD,
    DUCKDB,
    HOUR,
    PYICEBERG,
    QUESTIONS,
    READERS,
    SPARK,
    WHOLE_ROWS,
)
from benchmarks.summary import Run, Spread
from benchmarks.tables import Results, Target, figure, not_measured, table

COMMAND = "python -m benchmarks.querying"
WANTED = 0.02
_TEXT = "one series over a day: bytes read, of those of its partition"
# PyIceberg skips row groups only by bounds, and Spark reads each Bloom filter with a request of its own: both need the shard.
_ASKED = {DUCKDB: BY_ID, SPARK: BY_SHARD, PYICEBERG: BY_SHARD}


def targets() -> list[Target]:
    """Targets, from the committed results."""
    results = tables.read("querying")
    return aims(results) if results else [Target(f"{_TEXT} ({reader})", "≤ 2 %") for reader in READERS]


def aims(results: Results) -> list[Target]:
    """What was aimed at, and what came out."""
    found = []
    hours = results["data"]["hours"]
    for reader in READERS:
        shares = {name: share for name in QUESTIONS if (share := share_read(results, reader, OURS, name, hours)) is not None}
        asked = _ASKED[reader]
        if asked in shares:
            also = ", ".join(f"{name}: {shares[name]:.1%}" for name in (BY_KEYS, BY_ID, BY_SHARD, WHOLE_ROWS) if name in shares)
            found.append(Target(f"{_TEXT} ({reader}, {asked})", "≤ 2 %", f"{shares[asked]:.2%}", shares[asked] <= WANTED, also))
    return found


def _runs(results: Results, reader: str, layout: str, question: str, hours: int) -> list[Run]:
    wanted = (reader, layout, question, hours)
    return [run for run in results["runs"] if (run["reader"], run["layout"], run["question"], run["hours"]) == wanted]


def _partition(results: Results, layout: str, hours: int) -> int:
    return int(next(entry["bytes"] for entry in results["partitions"] if (entry["layout"], entry["hours"]) == (layout, hours)))


def share_read(results: Results, reader: str, layout: str, question: str, hours: int) -> float | None:
    """The share of its partition's bytes that a question reads; None if it was not asked."""
    runs = _runs(results, reader, layout, question, hours)
    return runs[0]["bytes"] / _partition(results, layout, hours) if runs else None


def day(results: Results) -> str:
    """The whole day in our layout: every reader and question."""
    rows = []
    for reader in READERS:
        title = reader
        for question in QUESTIONS:
            hours = 1 if question == HOUR else results["data"]["hours"]
            runs = _runs(results, reader, OURS, question, hours)
            if runs:
                rows.append([title, question, f"{runs[0]['answer'][0]:,}", *_costs(results, runs, OURS, hours)])
                title = ""
    return _text_first(table(["reader", "question", "rows", "MB read", "of the partition", "seconds"], rows)) if rows else ""


def beside(results: Results) -> str:
    """The first hours in three layouts."""
    rows = []
    for reader in READERS:
        title = reader
        for question in QUESTIONS:
            hours = 1 if question == HOUR else results["data"]["hours_beside"]
            name = question
            for layout in LAYOUTS:
                runs = _runs(results, reader, layout, question, hours)
                if runs:
                    rows.append([title, name, layout, *_costs(results, runs, layout, hours)])
                    title = name = ""
    head = ["reader", "question", "layout", "MB read", "of the partition", "seconds"]
    return _text_first(table(head, rows), 3) if rows else ""


def _costs(results: Results, runs: Sequence[Run], layout: str, hours: int) -> list[str]:
    read = runs[0]["bytes"]
    seconds = Spread.of([run["seconds"] for run in runs])
    return [f"{read / 1e6:.1f}", f"{read / _partition(results, layout, hours):.1%}", figure(seconds)]


def _text_first(made: str, columns: int = 2) -> str:
    return made.replace(" | ".join(["---", *["---:"] * (columns - 1)]), " | ".join(["---"] * columns), 1)


def circumstances(results: Results) -> str:
    """Machine, versions, data and how it was run."""
    data = results["data"]
    weights = "; ".join(f"{entry['layout']}, {entry['hours']} h: {entry['bytes'] / 1e6:,.0f} MB" for entry in results["partitions"])
    return "\n".join(
        [
            *tables.occasion(results),
            f"- {data['series']:,} series with one point a minute, {data['rows']:,} rows over {data['hours']} h; "
            f"{results['repeat']} turns, {results['threads']} threads, files in the file cache",
            f"- partitions: {weights}",
        ]
    )


def lines(results: Results) -> list[str]:
    """The tables as lines for the terminal."""
    return [text for text in (day(results), beside(results), circumstances(results)) if text]


def blocks() -> dict[str, str]:
    """The generated parts of the page, by name."""
    results: Any = tables.read("querying")
    made = {"queries-day": day, "queries-beside": beside, "queries-circumstances": circumstances}
    return {name: make(results) if results else not_measured(COMMAND) for name, make in made.items()}
