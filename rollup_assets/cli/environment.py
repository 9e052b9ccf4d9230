"""``rollups doctor``, ``catalog`` and ``spark-conf``: the environment that runs need."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from rollup_assets.cli.application import AsJson, app, print_json, settings_of
from rollup_assets.terminal import open_console, print_examination


@app.command()
def doctor(
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to wait for answers.")] = 28.0,
    as_json: AsJson = False,
) -> None:
    """Check everything that a run with these settings needs, and say what is wrong and how to fix it.

    Python and its packages, compiled kernels, memory, disk space, raw data, stage and warehouse, the catalog with its lock and table, Spark
    with its workers, and Dagster's records. Nothing is written except small probes, which are deleted again. Exit status 1 if a check
    failed; a warning is not a failure.

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
        print_json({"healthy": found.healthy, "checks": [dataclasses.asdict(finding) for finding in found.findings]})
    else:
        print_examination(open_console(), found)
    if found.silent:
        # What still waits for an answer would keep the process waiting too.
        sys.stdout.flush()
        os._exit(1)
    if not found.healthy:
        raise typer.Exit(1)


catalog_app = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown", help="The catalog on a database server.")
app.add_typer(catalog_app, name="catalog")


@catalog_app.command("init")
def catalog_init(
    admin: Annotated[str, typer.Option(help="Role that owns the database, or is a superuser.")] = "postgres",
    role: Annotated[str | None, typer.Option(help="Role of the runs; the user in ROLLUP_CATALOG unless given.", show_default=False)] = None,
    schema: Annotated[
        str,
        typer.Option(
            help="Schema of the tables, made if it is missing; other than public only for a superuser, or an admin that may alter the role."
        ),
    ] = "public",
    print_sql: Annotated[bool, typer.Option("--print-sql", help="Print the SQL instead of running it; needs no server.")] = False,
) -> None:
    """Make the tables of a PostgreSQL catalog, and grant the role of the runs the minimum it needs. Safe to run again.

    Other catalogs do not need this: then nothing is done, and the exit status is 0.

    The admin's password comes from ROLLUP_CATALOG_ADMIN_PASSWORD or ROLLUP_CATALOG_ADMIN_PASSWORD_FILE.

    For example:

    - `ROLLUP_CATALOG=postgresql+psycopg://rollups@db:5432/catalog?sslmode=verify-full rollups catalog init`
    - `rollups catalog init --admin postgres --schema iceberg`
    - `rollups catalog init --print-sql | psql --host db --username postgres catalog`
    """
    from rollup_assets.iceberg.catalog import is_postgres
    from rollup_assets.iceberg.database import catalog_names, initialize, script
    from rollup_assets.iceberg.faults import shown

    settings = settings_of()
    if print_sql:
        typer.echo(script(catalog_names(settings, role=role, schema=schema)), nl=False)
        return
    if not is_postgres(settings):
        # A deployment runs this before each start, whatever its catalog is.
        typer.echo(f"nothing to do: {shown(settings)} is not a PostgreSQL database, and needs no init")
        return
    names = initialize(settings, admin=admin, role=role, schema=schema)
    typer.echo(f"the catalog's tables are in schema {names.schema} of database {names.database}, and {names.role} may use them")


@app.command("spark-conf")
def spark_conf(as_json: AsJson = False) -> None:
    """Print the configuration with which Spark SQL 4.1 reads and writes the table, for your own sessions; it contains no secrets.

    The table is then `<catalog name>.<table>`, such as `rollups.metrics.rollups`. The first lines printed say where passwords and keys go.

    For example:

    - `rollups spark-conf > rollups.conf`, then `spark-sql --properties-file rollups.conf`
    - `rollups spark-conf --json`
    """
    from rollup_assets.iceberg.spark import properties_file, session_properties

    settings = settings_of()
    if as_json:
        print_json(session_properties(settings))
    else:
        typer.echo(properties_file(settings), nl=False)
