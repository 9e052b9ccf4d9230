"""What queries cost: bytes of data files that are fetched, and time. ``python -m benchmarks.querying``.

DuckDB, PyIceberg and Spark SQL query a day of hourly batches, one point per minute and series, published by this project's own steps: for
one series, for one metric and for everything of an hour. They also query its first hours in three layouts: ours, the seed's and an
unsorted one. Each reader has a process of its own, in which layouts and questions take turns after each has been asked once. Answers are
compared before anything counts. A *partition* is the size of the data files with the 1 min rollups of the hours asked about.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from benchmarks.queries import layouts
from benchmarks.queries.questions import HOUR, HOUR_MS, QUESTIONS, READERS, question
from benchmarks.runner import ROOT
from benchmarks.sections import querying as section

SERIES, HOURS, HOURS_BESIDE, REPEAT, THREADS = 100_000, 24, 2, 5, 2
PACKAGES = ("duckdb", "pyiceberg", "pyarrow", "pyspark")
_MADE = "made.json"
console = Console(highlight=False, soft_wrap=True)


class ReaderError(Exception):
    """A reader failed, or its answer differs from the others'; the message names it."""


def prepare(work: Path, series: int, hours: int, hours_beside: int, threads: int) -> dict[str, Any]:
    """The tables, made unless they are there."""
    from rollup_assets.code_version import CODE_VERSION

    wanted = {"series": series, "hours": hours, "beside": hours_beside, "code": CODE_VERSION}
    path = work / _MADE
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["wanted"] == wanted:
            return found
        path.unlink()
    made = {"wanted": wanted, **layouts.make(work / "tables", series, hours, hours_beside, threads)}
    made["partitions"] = [
        {"layout": layout, "hours": count, "bytes": layouts.bytes_of(metadata, layouts.START, layouts.START + count * HOUR_MS)}
        for layout, metadata in made["metadata"].items()
        for count in _hours(layout, hours, hours_beside)
    ]
    path.write_text(json.dumps(made))
    return made


def _hours(layout: str, hours: int, hours_beside: int) -> list[int]:
    """Numbers of hours that a layout is asked about; 1 is among them, for the question about a single hour."""
    return sorted({1, hours_beside, *([hours] if layout == layouts.OURS else [])})


def run_reader(job: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask one reader all questions; runs in a process of its own."""
    from benchmarks.measure import cpu_seconds, use_cores
    from benchmarks.queries.readers import reader

    use_cores(job["threads"])
    series = layouts.series_of(job)
    asked = [
        (layout, name, count)
        for name in QUESTIONS
        for layout in layouts.LAYOUTS
        for count in _hours(layout, job["wanted"]["hours"], job["wanted"]["beside"])
        if (count == 1) == (name == HOUR)
    ]
    runs = []
    with reader(job["reader"], job["threads"]) as found:
        known: dict[tuple[str, str, int], tuple[tuple[int, int], int]] = {}
        for layout, name, count in asked:
            known[layout, name, count] = found.count(job["metadata"][layout], question(name, series, layouts.START, count))
        for turn in range(job["repeat"]):
            for key in asked if turn % 2 == 0 else reversed(asked):
                layout, name, count = key
                wall, cpu = time.perf_counter(), cpu_seconds()
                answer = found.ask(job["metadata"][layout], question(name, series, layouts.START, count))
                wall, cpu = time.perf_counter() - wall, cpu_seconds() - cpu
                if tuple(answer) != tuple(known[key][0]):
                    raise ReaderError(f"{job['reader']}, {name}: {answer} this time, {known[key][0]} before")
                about = {"reader": job["reader"], "layout": layout, "question": name, "hours": count, "turn": turn}
                runs.append({**about, "bytes": known[key][1], "answer": list(answer), "seconds": wall, "cpu": cpu})
    return runs


def measure(work: Path, made: dict[str, Any], readers: list[str], repeat: int, threads: int) -> list[dict[str, Any]]:
    """Every reader in a process of its own.

    Raises:
        ReaderError: one failed, or the answers differ.
    """
    runs: list[dict[str, Any]] = []
    for name in readers:
        answer = work / "answer.json"
        answer.unlink(missing_ok=True)
        job = {**made, "reader": name, "repeat": repeat, "threads": threads, "target": str(answer)}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ROLLUP_")} | {"PYTHONPATH": str(ROOT)}
        process = subprocess.run(
            [sys.executable, "-P", "-m", "benchmarks.querying", "--reader", json.dumps(job)],
            cwd=work, env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if process.returncode or not answer.exists():
            raise ReaderError(f"{name} ended with status {process.returncode}:\n{process.stderr[-3_000:]}")
        found = json.loads(answer.read_text())
        runs += found
        console.print(f"{name}: {len(found)} questions")
    _require_equal(runs)
    return runs


def _require_equal(runs: list[dict[str, Any]]) -> None:
    answers: dict[tuple[str, int], tuple[list[int], str]] = {}
    for run in runs:
        said = f"{run['reader']} on {run['layout']}"
        wanted, other = answers.setdefault((run["question"], run["hours"]), (run["answer"], said))
        if run["answer"] != wanted or not wanted[0]:
            raise ReaderError(f"{run['question']} over {run['hours']} h: {said} answers {run['answer']}, {other} {wanted}")


def is_complete(*, series: int, hours: int, hours_beside: int, repeat: int, threads: int, only: str) -> bool:
    """Whether these options measure the whole benchmark."""
    return (series, hours, hours_beside, threads, only) == (SERIES, HOURS, HOURS_BESIDE, THREADS, "") and repeat >= REPEAT


def main(
    series: Annotated[int, typer.Option(help="Series; each has 60 rows an hour.")] = SERIES,
    hours: Annotated[int, typer.Option(help="Hours of the day that is asked about.")] = HOURS,
    hours_beside: Annotated[int, typer.Option(help="Hours in all three layouts; 0.6 GB each.")] = HOURS_BESIDE,
    repeat: Annotated[int, typer.Option(help="Turns.")] = REPEAT,
    threads: Annotated[int, typer.Option(help="Threads and cores for everyone.")] = THREADS,
    only: Annotated[str, typer.Option(help="Only readers whose name contains this; writes nothing.")] = "",
    work: Annotated[Path, typer.Option(help="Folder for data; 4 GB.")] = ROOT / ".rollups" / "benchmark-queries",
    output: Annotated[Path | None, typer.Option(help="Results, JSON. With the defaults those in benchmarks/results.")] = None,
) -> None:
    """Query cost by layout and reader; Spark needs Java."""
    from benchmarks import report
    from benchmarks.circumstances import occasion

    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    console.print(f"{series:,} series, {hours} hours; preparing")
    made = prepare(work, series, hours, hours_beside, threads)
    runs = measure(work, made, [name for name in READERS if only in name], repeat, threads)
    results = {
        **occasion("python -m benchmarks.querying", PACKAGES),
        "repeat": repeat,
        "threads": threads,
        "data": {"series": series, "hours": hours, "hours_beside": hours_beside, "rows": series * 60 * hours},
        "partitions": made["partitions"],
        "runs": runs,
    }
    complete = is_complete(series=series, hours=hours, hours_beside=hours_beside, repeat=repeat, threads=threads, only=only)
    report.keep(results, "querying", complete=complete, output=output, say=console.print)
    for line in section.lines(results):
        console.print(line)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--reader"]:
        given = json.loads(sys.argv[2])
        Path(given["target"]).write_text(json.dumps(run_reader(given)))
    else:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command()(main)
        app()
