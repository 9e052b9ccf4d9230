"""The command ``rollups``: arguments in, plain text or JSON out, exit status by contract.

0 is success; 1 a failed partition, a difference or any error of ours, told in one message; 2 bad arguments or partitions that do not
exist. What the commands do is in the modules they import, inside the commands: ``--help`` has to be quick.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
from contextlib import AbstractContextManager, nullcontext
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from rollup_assets.errors import RollupError, SettingsError, UnknownPartitionError
from rollup_assets.loading import quick_imports
from rollup_assets.terminal import print_backfill, print_examination, print_generated, print_rows, print_status, print_verification

if TYPE_CHECKING:
    from rollup_assets.batches import Batch
    from rollup_assets.progress import TerminalProgress
    from rollup_assets.settings import Settings

_BAD_ARGUMENTS = 2


class _PlainErrors(TyperGroup):
    """Tells errors of ours in one message, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (UnknownPartitionError, SettingsError) as error:
            _fail(error, _BAD_ARGUMENTS)
        except RollupError as error:
            _fail(error, 1)


def _fail(error: Exception, code: int) -> NoReturn:
    Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
    raise typer.Exit(code)


app = typer.Typer(
    cls=_PlainErrors,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    help="Time-series rollups as Dagster assets, published to Apache Iceberg.\n\nSettings: `ROLLUP_*` in the environment and `.env`.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

First = Annotated[str, typer.Argument(metavar="FROM", help="First partition, such as 2026-01-01-06:00 (UTC).")]
Last = Annotated[str, typer.Argument(metavar="TO", help="Last partition, included.")]
MaybeFirst = Annotated[
    str | None, typer.Argument(metavar="[FROM]", help="First partition, such as 2026-01-01-06:00 (UTC).", show_default=False)
]
MaybeLast = Annotated[
    str | None, typer.Argument(metavar="[TO]", help="Last partition, included; FROM alone unless given.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def main() -> None:
    """Entry point of the console script."""
    app()


# --------------------------------------------------------------------------------------------------------------- generate


@app.command()
def generate(
    first: Annotated[
        str | None, typer.Option("--from", metavar="KEY", help="First partition; the table's first unless given.", show_default=False)
    ] = None,
    count: Annotated[
        int, typer.Option("--hours", "--batches", min=1, help="How many batches (hours, unless ROLLUP_BATCH says otherwise).")
    ] = 6,
    series: Annotated[int, typer.Option(min=1, help="How many series.")] = 5_000,
    interval: Annotated[str, typer.Option(help="Time between two points of a series.")] = "10s",
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    files: Annotated[int, typer.Option(min=1, help="Files a batch, besides the one with late rows.")] = 12,
    duplicates: Annotated[float, typer.Option(help="Share of rows delivered twice.")] = 0.002,
    late: Annotated[float, typer.Option(help="Share of rows delivered in the batch's last file.")] = 0.01,
    out_of_order: Annotated[float, typer.Option(help="Share of rows that change places.")] = 0.02,
    nulls: Annotated[float, typer.Option(help="Share of rows with a null.")] = 0.001,
    non_finite: Annotated[float, typer.Option(help="Share of rows with NaN or infinity (double values only).")] = 0.0005,
    outside: Annotated[float, typer.Option(help="Share of rows with a timestamp outside of their batch.")] = 0.0005,
    bad_files: Annotated[int, typer.Option(min=0, help="Bad files in all: truncated, corrupt, zero bytes, wrong schema, in turn.")] = 0,
    value_type: Annotated[str | None, typer.Option(help="long or double; ROLLUP_VALUE_TYPE unless given.", show_default=False)] = None,
    receive_timestamps: Annotated[bool, typer.Option(help="Whether rows have a receive_timestamp.")] = True,
    as_json: AsJson = False,
) -> None:
    """Write a realistic landing zone. Existing raw data is never overwritten.

    For example:

    - `rollups generate` — six hours of 5,000 series from the table's first partition on
    - `rollups generate --from 2026-03-01-00:00 --hours 24 --series 100000`
    - `rollups generate --hours 1 --nulls 0.05 --bad-files 2` — a batch that fails its checks
    """
    from rollup_assets.generator.dirt import Dirt
    from rollup_assets.generator.landing import GeneratorOptions
    from rollup_assets.generator.landing import generate as generate_batches
    from rollup_assets.settings import parse_duration

    settings = _settings(**({"value_type": value_type} if value_type else {}))
    calendar = settings.calendar
    begin = calendar.batch(first) if first else calendar.first
    try:
        interval_ms = parse_duration(interval)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--interval") from None
    options = GeneratorOptions(
        seed=seed,
        series=series,
        interval=interval_ms,
        files=files,
        dirt=Dirt(duplicates=duplicates, late=late, out_of_order=out_of_order, nulls=nulls, non_finite=non_finite, outside=outside),
        bad_files=bad_files,
        receive_timestamps=receive_timestamps,
    )
    batches = [batch for ahead in range(count) if (batch := calendar.shifted(begin, ahead)) is not None]
    with _progress(as_json) as progress:
        made = generate_batches(settings, batches, options, progress=progress)
    if as_json:
        _print_json({"raw": settings.raw, **dataclasses.asdict(made)})
        return
    console = _console()
    print_generated(console, made, settings.raw)
    console.print(f"next: rollups backfill {made.batches[0]} {made.batches[-1]}")


# --------------------------------------------------------------------------------------------------------------- backfill


@app.command()
def backfill(
    first: First,
    last: Last,
    force: Annotated[bool, typer.Option("--force", help="Redo what is up to date.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stage, roll up and publish partitions through Dagster, 24 a run, recorded where the UI shows them.

    Up to two batches before FROM are staged where they are missing. The trailing partitions, which take over the windows that TO leaves
    open, are published too, as far as they exist. Exit status 1 if a partition failed; all others end published.

    For example:

    - `rollups backfill 2026-01-01-00:00 2026-01-01-05:00`
    - `rollups backfill 2026-01-01-05:00 2026-01-01-05:00 --force`
    - `rollups backfill 2026-01-01-00:00 2026-01-31-23:00 --json`
    """
    with quick_imports():
        from rollup_assets.defs.backfill import run_backfill

    settings = _settings()
    with _progress(as_json) as progress:
        result = run_backfill(settings, first, last, force=force, progress=progress, on_partition=progress.partition if progress else None)
    if as_json:
        _print_json({**dataclasses.asdict(result), "success": result.success})
    else:
        print_backfill(_console(), result)
    if not result.success:
        raise typer.Exit(1)


# ----------------------------------------------------------------------------------------------------------------- verify


@app.command()
def verify(
    first: MaybeFirst = None,
    last: MaybeLast = None,
    differences: Annotated[int, typer.Option("--differences", min=0, help="How many differences to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Recompute rollups from raw files with DuckDB and compare every value with the table.

    Without partitions, all published ones. Integers, extremes and latest values have to be equal; doubles may differ by 1e-9 of their
    size, or by the rounding of the sum they come from. Partitions that wait for raw data to be staged are listed, not compared. Exit
    status 1 if anything differs, or a given partition has raw files that are not staged or was not published.

    For example:

    - `rollups verify`
    - `rollups verify 2026-01-01-00:00 2026-01-01-05:00`
    - `rollups verify 2026-01-01-03:00 --json`
    """
    from rollup_assets.verification import verify as verify_batches

    settings = _settings()
    batches = _range(settings, first, last)
    with _progress(as_json) as progress:
        found = verify_batches(settings, batches, first_differences=differences, progress=progress)
    if as_json:
        _print_json({**dataclasses.asdict(found), "agrees": found.agrees})
    else:
        print_verification(_console(), found)
    if not found.agrees:
        raise typer.Exit(1)


# -------------------------------------------------------------------------------------------------------------------- sql


@app.command()
def sql(
    statement: Annotated[str, typer.Argument(metavar='"SELECT …"', help="One statement for DuckDB; the table is the view `rollups`.")],
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Ask SQL of the published table: DuckDB over the current snapshot as view `rollups`.

    The columns: `rollups sql "describe rollups"`. `logical_timestamp` is the end of a window, which covers (label - resolution, label];
    the window that ends with a batch appears with the next one. Times are UTC.

    For example:

    - `rollups sql "select resolution, count(*), sum(count_rollup) from rollups group by 1"`
    - `rollups sql "select logical_timestamp, rate_rollup from rollups where id = 7 and resolution = 300000 order by 1" --csv`
    """
    from rollup_assets.query import query

    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    answer = query(_settings(), statement)
    if as_csv:
        import sys

        from pyarrow import csv

        sys.stdout.flush()
        sink = sys.stdout.buffer
        csv.write_csv(answer, sink)
        sink.flush()
    elif as_json:
        _print_json(answer.to_pylist())
    else:
        print_rows(_console(), answer)


# ----------------------------------------------------------------------------------------------------------------- status


@app.command()
def status(first: MaybeFirst = None, last: MaybeLast = None, as_json: AsJson = False) -> None:
    """Show where partitions stand: raw files, staged, rolled up, published, waiting, or stale and why.

    Without partitions, all that have raw files or anything staged, and those that follow from them.

    For example:

    - `rollups status`
    - `rollups status 2026-01-01-00:00 2026-01-01-05:00 --json`
    """
    from rollup_assets.status import status as status_of

    settings = _settings()
    found = status_of(settings, _range(settings, first, last))
    if as_json:
        _print_json([{**dataclasses.asdict(partition), "state": partition.state} for partition in found])
        return
    console = _console()
    if not found:
        console.print(
            f"nothing in {escape(settings.raw)} yet; write raw data there with rollups generate, or try rollups demo", soft_wrap=True
        )
        return
    print_status(console, found)


# ----------------------------------------------------------------------------------------------------------------- doctor


@app.command()
def doctor(
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait for answers.")] = 28.0,
    as_json: AsJson = False,
) -> None:
    """Check everything that a run with these settings needs, and say what is wrong and what mends it.

    Python and its packages, compiled kernels, memory, disk space, raw data, stage and warehouse, the catalog with its lock and table,
    Spark with its workers, and Dagster's records. Nothing is written but small probes, which are deleted again. Exit status 1 if a check
    failed; a warning is no failure.

    For example:

    - `rollups doctor`
    - `ROLLUP_ENGINE=spark ROLLUP_SPARK_MASTER=spark://master:7077 rollups doctor --timeout 60`
    - `rollups doctor --json`
    """
    import os
    import sys

    from rollup_assets.doctor.examination import examine

    found = examine(seconds=timeout)
    if as_json:
        _print_json({"healthy": found.healthy, "checks": [dataclasses.asdict(finding) for finding in found.findings]})
    else:
        print_examination(_console(), found)
    if found.silent:
        # What still waits for an answer would keep the process waiting too.
        sys.stdout.flush()
        os._exit(1)
    if not found.healthy:
        raise typer.Exit(1)


# ----------------------------------------------------------------------------------------------------------------- catalog

catalog_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="The catalog on a database server.")
app.add_typer(catalog_app, name="catalog")


@catalog_app.command("init")
def catalog_init(
    admin: Annotated[str, typer.Option(help="Role that owns the database, or may do everything.")] = "postgres",
    role: Annotated[str | None, typer.Option(help="Role of the runs; the user in ROLLUP_CATALOG unless given.", show_default=False)] = None,
    schema: Annotated[str, typer.Option(help="Schema of the tables, made if it is missing.")] = "public",
    print_sql: Annotated[bool, typer.Option("--print-sql", help="Print the SQL instead of running it; needs no server.")] = False,
) -> None:
    """Make the tables of a PostgreSQL catalog, and grant the role of the runs the least it needs. Safe to run again.

    The admin's password comes from ROLLUP_CATALOG_ADMIN_PASSWORD or ROLLUP_CATALOG_ADMIN_PASSWORD_FILE.

    For example:

    - `ROLLUP_CATALOG=postgresql+psycopg://rollups@db:5432/catalog?sslmode=verify-full rollups catalog init`
    - `rollups catalog init --admin catalog_owner --schema iceberg`
    - `rollups catalog init --print-sql | psql --host db --username postgres catalog`
    """
    from rollup_assets.iceberg.database import catalog_names, initialize, script

    settings = _settings()
    if print_sql:
        typer.echo(script(catalog_names(settings, role=role, schema=schema)), nl=False)
        return
    names = initialize(settings, admin=admin, role=role, schema=schema)
    typer.echo(f"the catalog's tables are in schema {names.schema} of database {names.database}, and {names.role} may use them")


@app.command("spark-conf")
def spark_conf(as_json: AsJson = False) -> None:
    """Print the configuration with which Spark SQL 4.1 reads and writes the table, for sessions of your own; no secret is in it.

    The table is then `<catalog name>.<table>`, such as `rollups.metrics.rollups`. Its first lines say where passwords and keys go.

    For example:

    - `rollups spark-conf > rollups.conf`, then `spark-sql --properties-file rollups.conf`
    - `rollups spark-conf --json`
    """
    from rollup_assets.iceberg.spark import properties_file, session_properties

    settings = _settings()
    if as_json:
        _print_json(session_properties(settings))
    else:
        typer.echo(properties_file(settings), nl=False)


# --------------------------------------------------------------------------------------------------------- demo and the UI


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with raw files to copy instead of generating any.", show_default=False)
    ] = None,
    series: Annotated[int, typer.Option(min=100, help="How many series to generate.")] = 5_000,
) -> None:
    """Show all of it: raw data, a backfill through Dagster, verification, and what the table says.

    Works in ROLLUP_HOME; raw data that is there is used as it is. A second run finds everything done.

    For example:

    - `ROLLUP_HOME=.rollups/demo rollups demo`
    - `ROLLUP_HOME=.rollups/host-metrics rollups demo --data examples/host-metrics`
    """
    from rollup_assets.demo import run_demo

    if not run_demo(_settings(), data=data, series=series):
        raise typer.Exit(1)


@app.command()
def dev(
    port: Annotated[int, typer.Option(help="Port of the web server.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open the Dagster UI on the data of ROLLUP_HOME, with the runs that `rollups backfill` recorded.

    For example:

    - `ROLLUP_HOME=.rollups/demo rollups dev`
    - `rollups dev --port 3333`
    """
    import os
    import sys

    with quick_imports():
        from rollup_assets.defs.backfill import ensure_dagster_home
    from rollup_assets.settings import project_root

    settings = _settings()
    workspace = project_root() / "workspace.yaml"
    location = ["-w", str(workspace)] if workspace.is_file() else ["-m", "rollup_assets.definitions"]
    environment = {**os.environ, "ROLLUP_HOME": str(settings.home), "DAGSTER_HOME": str(ensure_dagster_home(settings))}
    command = [sys.executable, "-m", "dagster", "dev", *location, "--port", str(port), "--host", host]
    os.execve(sys.executable, command, environment)


# ----------------------------------------------------------------------------------------------------------------- common


def _settings(**overrides: Any) -> Settings:
    from rollup_assets.settings import load_settings

    return load_settings(**overrides)


def _range(settings: Settings, first: str | None, last: str | None) -> list[Batch] | None:
    """The batches from ``first`` to ``last``; None if no partition is given."""
    if first is None:
        return None
    begin, end = settings.calendar.batch(first), settings.calendar.batch(last or first)
    if end < begin:
        raise UnknownPartitionError(f"the last partition {last} is before the first one, {first}; exchange them")
    return list(settings.calendar.between(begin, end))


def _progress(silent: bool) -> AbstractContextManager[TerminalProgress | None]:
    from rollup_assets.progress import TerminalProgress

    return nullcontext() if silent else TerminalProgress()


def _print_json(content: Any) -> None:
    typer.echo(json.dumps(content, indent=1, default=_plain))


def _plain(value: object) -> object:
    """What JSON has no type for: times as ISO 8601, exact numbers (sums of integers in DuckDB) as numbers, all else as text."""
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)


def _console() -> Console:
    """Standard output; tables are not squeezed into 80 columns where nobody looks at a terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=200)


if __name__ == "__main__":
    main()
