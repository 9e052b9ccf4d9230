"""``make demo-production``: what a deployment consists of, on this machine and without containers, from empty servers to a verified table.

PostgreSQL, S3, Spark, and Dagster's web server, daemon and code location are the real ones, with the commands and configuration of
``docker-compose.yaml``. The backfill is launched as the UI launches it. Everything that it starts ends with it. The servers themselves are
in ``deploy.servers`` and ``deploy.instance``.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from deploy.instance import HERE, LAUNCH_BACKFILL, UI_PORT, Dagster, dagster, inherited, reached_directly
from deploy.instance import run as run_in_container
from deploy.servers.postgres import PostgresServer, postgres
from deploy.servers.seaweedfs import LAKE_BUCKET, RAW_BUCKET, seaweedfs
from rollup_assets.engines.spark_session import require_java
from rollup_assets.errors import EngineError

ENGINES = ("spark", "local")
ASSETS = ("repartitioned_datapoints", "partial_points", "quarantined_datapoints", "rollups", "rollup_table")
TABLE_SAYS = """
select resolution // 60000 as minutes, count(*) as "rows", count(distinct id) as series, sum(count_rollup) as points,
  max(logical_timestamp) as "last label"
from rollups group by 1 order by 1
"""
STATUS = """
query Status($id: String!, $tags: [ExecutionTag!]) {
  partitionBackfillOrError(backfillId: $id) { ... on PartitionBackfill { status error { message } } }
  runsOrError(filter: {tags: $tags}) { ... on Runs { results { runId status } } }
  assetNodes { assetKey { path } partitionStats { numMaterialized } }
}"""
UNFINISHED = ("REQUESTED", "CANCELING", "FAILING")
BACKFILL_WITHIN = 900.0
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Options:
    """The command line's options."""

    folder: Path
    engine: str
    hours: int
    series: int
    port: int | None
    """Port of the UI; None: the usual one, or another if that is taken."""
    stay: bool
    """Whether to keep the servers running until Ctrl-C."""


def demonstrate(options: Options, console: Console) -> None:
    """Run the whole demonstration.

    Raises:
        RuntimeError: a server did not start, or a command or the backfill failed.
        EngineError: Spark has no Java to run on.
    """
    if options.engine == "spark":
        require_java()
    with contextlib.ExitStack() as stack:
        console.rule("1. PostgreSQL and S3", align="left")
        servers = stack.enter_context(_servers(options))
        console.print(
            f"PostgreSQL at {servers.database.host}:{servers.database.port}: databases catalog and dagster, a role each", highlight=False
        )
        console.print(
            f"S3 at {servers.endpoint}: bucket {RAW_BUCKET}, which the pipeline may only read, and {LAKE_BUCKET}", highlight=False
        )
        _rollups(servers.catalog_admin, ["catalog", "init", "--admin", "catalog_owner"], options, console)

        console.rule(f"2. {options.hours} hours of raw data", align="left")
        wanted = ["--hours", str(options.hours), "--series", str(options.series)]
        _rollups(servers.writer, ["generate", *wanted, "--keep-existing"], options, console)

        console.rule(f"3. Dagster, with the {options.engine} engine", align="left")
        with console.status("starting code location, web server and daemon"):
            server = stack.enter_context(dagster(options.folder / "dagster", servers.pipeline | servers.dagster, options.port))
        console.print(f"the UI is at {server.url}, logs are in {server.logs}", soft_wrap=True, highlight=False)

        keys = [f"2026-01-{1 + hour // 24:02d}-{hour % 24:02d}:00" for hour in range(options.hours)]
        console.rule(f"4. backfill {keys[0]} {keys[-1]}, launched as in the UI", align="left")
        _backfill(server, keys, console)

        console.rule("5. verify: raw data recomputed by DuckDB, every value compared", align="left")
        _rollups(servers.pipeline, ["verify"], options, console)
        console.rule("6. what is in the table", align="left")
        _rollups(servers.pipeline, ["sql", " ".join(TABLE_SAYS.split())], options, console)

        if options.stay:
            console.rule("7. look around", align="left")
            console.print(f"{server.url}/assets/rollup_table  [dim]Ctrl-C ends everything[/]", soft_wrap=True)
            threading.Event().wait()


# ----------------------------------------------------------------------------------------------------------------- servers


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers that a deployment uses, and the environment of each kind of client."""

    database: PostgresServer
    endpoint: str
    pipeline: dict[str, str]
    """Of runs, which read raw data and write the lake and the catalog."""
    writer: dict[str, str]
    """Of programs that deliver raw data."""
    catalog_admin: dict[str, str]
    """Of the role that creates the catalog's tables."""
    dagster: dict[str, str]
    """Of Dagster, for its own database."""


@contextlib.contextmanager
def _servers(options: Options) -> Iterator[Servers]:
    secrets = options.folder / "secrets"
    subprocess.run(["sh", str(HERE / "make-secrets.sh"), str(secrets)], check=True)
    with (
        postgres(options.folder / "postgres", superuser_password=(secrets / "postgres_password").read_text()) as database,
        seaweedfs(options.folder / "s3") as s3,
    ):
        _make_databases(database, secrets)
        table = {
            "ROLLUP_HOME": str(options.folder / "scratch"),
            "ROLLUP_RAW": f"s3://{RAW_BUCKET}/datapoints",
            "ROLLUP_STAGE": f"s3://{LAKE_BUCKET}/stage",
            "ROLLUP_WAREHOUSE": f"s3://{LAKE_BUCKET}/warehouse",
            "ROLLUP_CATALOG": database.uri("catalog", "rollups", sslmode="disable"),
            "ROLLUP_ENGINE": options.engine,
            "ROLLUP_SPARK_MASTER": "local[2]",
            "ROLLUP_SHARDS": "8",
            "ROLLUP_THREADS": "2",
            "ROLLUP_MEMORY": "1GiB",
        }
        password = {"ROLLUP_CATALOG_PASSWORD_FILE": str(secrets / "catalog_password")}
        yield Servers(
            database=database,
            endpoint=s3.endpoint,
            pipeline=table | password | s3.environment,
            writer=table | s3.environment_of(s3.admin),
            catalog_admin=table | {"ROLLUP_CATALOG_ADMIN_PASSWORD_FILE": str(secrets / "catalog_admin_password")},
            dagster={
                "DAGSTER_POSTGRES_HOST": database.host,
                "DAGSTER_POSTGRES_PORT": str(database.port),
                "DAGSTER_POSTGRES_DB": "dagster",
                "DAGSTER_POSTGRES_USER": "dagster",
                "DAGSTER_POSTGRES_PASSWORD_FILE": str(secrets / "dagster_password"),
            },
        )


def _make_databases(database: PostgresServer, secrets: Path) -> None:
    """Create databases and roles as PostgreSQL's container does when its volume is new."""
    variables = {
        "PATH": f"{database.binaries}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "PGHOST": database.host,
        "PGPORT": str(database.port),
        "PGUSER": database.superuser,
        "PGPASSWORD": database.superuser_password,
        "DAGSTER_POSTGRES_PASSWORD_FILE": str(secrets / "dagster_password"),
        "ROLLUP_CATALOG_PASSWORD_FILE": str(secrets / "catalog_password"),
        "ROLLUP_CATALOG_ADMIN_PASSWORD_FILE": str(secrets / "catalog_admin_password"),
    }
    done = subprocess.run(["sh", str(HERE / "databases.sh")], env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"databases.sh failed: {done.stderr.strip()}")


def _rollups(environment: Mapping[str, str], arguments: list[str], options: Options, console: Console) -> None:
    console.print(f"[bold]$ rollups {shlex.join(arguments)}[/]", soft_wrap=True, highlight=False)
    run_in_container(["rollups", *arguments], inherited() | dict(environment), options.folder, shown=True)


# ---------------------------------------------------------------------------------------------------------------- backfill


def _backfill(server: Dagster, keys: list[str], console: Console) -> None:
    """Launch a backfill of all assets, and wait for it.

    Raises:
        RuntimeError: it could not be launched, failed, or took longer than it ever should.
    """
    params = {"assetSelection": [{"path": [asset]} for asset in ASSETS], "partitionNames": keys}
    launched = server.query(LAUNCH_BACKFILL, params=params)["launchPartitionBackfill"]
    if launched["__typename"] != "LaunchBackfillSuccess":
        raise RuntimeError(f"the backfill was not launched: {launched}")
    backfill = launched["backfillId"]
    console.print(f"backfill {backfill}; the daemon looks after it every 30 seconds", highlight=False)
    found = _wait(server, backfill, len(keys), console)
    state = found["partitionBackfillOrError"]
    runs = [f"{run['runId'][:8]} {run['status']}" for run in found["runsOrError"]["results"]]
    if state["status"] != "COMPLETED_SUCCESS":
        raise RuntimeError(
            f"the backfill ended with {state['status']}: {state.get('error') or ''} runs: {', '.join(runs)}; see {server.logs}"
        )
    console.print(f"{state['status']}: {len(runs)} runs, {_published(found)} partitions of rollup_table", highlight=False)


def _wait(server: Dagster, backfill: str, partitions: int, console: Console) -> Any:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("published"),
        TimeElapsedColumn(),
    )
    deadline = time.monotonic() + BACKFILL_WITHIN
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=partitions)
        while True:
            found = server.query(STATUS, id=backfill, tags=[{"key": "dagster/backfill", "value": backfill}])
            status = found["partitionBackfillOrError"]["status"]
            running = sum(run["status"] == "STARTED" for run in found["runsOrError"]["results"])
            progress.update(task, completed=min(partitions, _published(found)), description=f"{running} runs going on")
            if status not in UNFINISHED:
                return found
            if time.monotonic() > deadline:
                raise RuntimeError(f"the backfill is still {status} after {BACKFILL_WITHIN:g} s; see {server.logs}")
            time.sleep(1)


def _published(found: Any) -> int:
    return next(
        int(node["partitionStats"]["numMaterialized"]) for node in found["assetNodes"] if node["assetKey"]["path"] == ["rollup_table"]
    )


# ------------------------------------------------------------------------------------------------------------ command line


def main() -> None:
    """Entry point of ``python -m deploy.demo_production``."""
    parser = argparse.ArgumentParser(prog="python -m deploy.demo_production", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--folder", type=Path, default=Path(".rollups/demo-production"), help="where everything is kept (default: %(default)s)"
    )
    parser.add_argument("--engine", choices=ENGINES, default=ENGINES[0], help="what runs the tasks (default: %(default)s)")
    parser.add_argument("--hours", type=int, default=6, help="how many hours of raw data to generate (default: %(default)s)")
    parser.add_argument("--series", type=int, default=2_000, help="how many series (default: %(default)s)")
    parser.add_argument("--port", type=int, help=f"of the UI (default: {UI_PORT}, or another one if it is in use)")
    parser.add_argument("--exit", action="store_true", help="end when everything has been shown; always so without a terminal")
    given = parser.parse_args()
    options = Options(
        folder=given.folder.resolve(),
        engine=given.engine,
        hours=given.hours,
        series=given.series,
        port=given.port,
        stay=not given.exit and sys.stdin.isatty(),
    )
    # SIGINT, too: a process in the background may have been started with SIGINT ignored, and its children would inherit that.
    # But not SIGHUP if it is ignored, as under `nohup`.
    for number in _ENDING:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _end)
    os.environ.update(reached_directly())
    console = Console()
    try:
        demonstrate(options, console)
    except KeyboardInterrupt:
        console.print("\nended, along with everything that it started")
    except (RuntimeError, EngineError) as error:
        Console(stderr=True).print(f"[bold red]error:[/] {error}", soft_wrap=True, highlight=False, markup=True)
        sys.exit(1)


def _end(*_: object) -> NoReturn:
    """End everything, and ignore further signals: an impatient second Ctrl-C would leave running what the first has not ended yet."""
    for number in _ENDING:
        signal.signal(number, lambda *_: None)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
