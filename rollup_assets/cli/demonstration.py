"""``rollups demo`` and ``rollups dev``: the whole pipeline at once, and Dagster's UI."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rollup_assets.cli.application import app, settings_of
from rollup_assets.loading import quick_imports


@app.command()
def demo(
    data: Annotated[
        Path | None, typer.Option("--data", help="Folder with raw files to copy instead of generating any.", show_default=False)
    ] = None,
    series: Annotated[int, typer.Option(min=100, help="How many series to generate.")] = 5_000,
) -> None:
    """Show the whole pipeline: raw data, a backfill through Dagster, verification, and what the table contains.

    Works in ROLLUP_HOME; existing raw data is used as it is. A second run finds everything done.

    For example:

    - `ROLLUP_HOME=.rollups/demo rollups demo`
    - `ROLLUP_HOME=.rollups/host-metrics rollups demo --data examples/host-metrics`
    """
    from rollup_assets.demo import run_demo

    if not run_demo(settings_of(), data=data, series=series):
        raise typer.Exit(1)


@app.command()
def dev(
    port: Annotated[int, typer.Option(help="Port of the web server.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Open the Dagster UI on the data of ROLLUP_HOME, with the runs that `rollups backfill` recorded.

    Two runs execute at once, unless your own DAGSTER_HOME says otherwise. Unless ROLLUP_MEMORY is set, each uses a quarter of the machine's
    memory for its data. Runs that ended with an earlier `rollups dev`, or with a `rollups backfill` that was killed, are closed first.

    For example:

    - `ROLLUP_HOME=.rollups/demo rollups dev`
    - `rollups dev --port 3333`
    """
    import os
    import sys

    with quick_imports():
        from rollup_assets.defs.dagster_home import RUNS_AT_ONCE, ensure_dagster_home, may_be_shared, open_dagster_home
        from rollup_assets.defs.lost_runs import close_runs_gone_from_this_machine
    from rollup_assets.settings import MINIMUM_MEMORY, project_root
    from rollup_assets.terminal import open_console, print_closed_runs

    settings = settings_of()
    workspace = project_root() / "workspace.yaml"
    location = ["-w", str(workspace)] if workspace.is_file() else ["-m", "rollup_assets.definitions"]
    environment = {**os.environ, "ROLLUP_HOME": str(settings.home), "DAGSTER_HOME": str(ensure_dagster_home(settings))}
    if "memory" not in settings.model_fields_set:
        # Of the default, which is for one run, web server, daemon and code server would be left nothing.
        environment["ROLLUP_MEMORY"] = str(max(settings.memory // RUNS_AT_ONCE, MINIMUM_MEMORY))
    # They would keep their places in the queue for ever, and the sensor would take their partitions for being made.
    with open_dagster_home(settings) as instance:
        print_closed_runs(open_console(), close_runs_gone_from_this_machine(instance, shared=may_be_shared(settings)))
    command = [sys.executable, "-m", "dagster", "dev", *location, "--port", str(port), "--host", host]
    os.execve(sys.executable, command, environment)
