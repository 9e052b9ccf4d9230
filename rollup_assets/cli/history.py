"""``rollups diff``, ``rollback`` and ``migrate``: what changed in the table, undoing it, and rebuilding the table with other settings."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from rollup_assets.cli.application import AsJson, app, print_json, progress_bar, settings_of
from rollup_assets.loading import quick_imports
from rollup_assets.terminal import open_console, print_difference, print_migration, print_rolled_back

Differences = Annotated[int, typer.Option("--differences", min=0, help="How many windows to show with their values.")]


@app.command()
def diff(
    old: Annotated[str, typer.Argument(metavar="SNAPSHOT|TIME", help="Id of a snapshot, or a time such as 2026-01-31T06:00Z (UTC).")],
    new: Annotated[
        str | None,
        typer.Argument(metavar="[SNAPSHOT|TIME]", help="What to compare with; by default the table as it is now.", show_default=False),
    ] = None,
    differences: Differences = 20,
    as_json: AsJson = False,
) -> None:
    """Show which windows changed between two snapshots, and which raw files caused it.

    A time means the newest snapshot at or before it. Reads only data files that one of the two snapshots has and the other does not, and
    compares rows, so that a compaction shows no change.

    For example:

    - `rollups diff 2026-01-31T06:00Z` — what has changed since
    - `rollups diff 4871093541221934210 8093166112940912 --differences 100`
    - `rollups diff 2026-01-30 2026-01-31 --json`
    """
    from rollup_assets.history.diff import diff as difference_of

    found = difference_of(settings_of(), old, new, first_differences=differences)
    if as_json:
        print_json(dataclasses.asdict(found))
    else:
        print_difference(open_console(), found)


@app.command()
def rollback(
    what: Annotated[
        str, typer.Argument(metavar="PARTITION|SNAPSHOT", help="A partition, or the id of a snapshot to roll the whole table back to.")
    ],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="SNAPSHOT|TIME", help="For a partition: the snapshot whose rows it gets back.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would change.")] = False,
    differences: Differences = 20,
    as_json: AsJson = False,
) -> None:
    """Undo a bad publish, as a new snapshot: a partition gets the rows it had before its last publish, the table those of a snapshot.

    What was undone is not published again until its inputs change: `rollups backfill` reports this, and publishes it only with `--force`.
    Running this rollback again changes nothing more.

    For example:

    - `rollups rollback 2026-01-01-06:00 --dry-run`
    - `rollups rollback 2026-01-01-06:00`
    - `rollups rollback 2026-01-01-06:00 --to 2026-01-31T06:00Z`
    - `rollups rollback 4871093541221934210` — the whole table
    """
    from rollup_assets.history.rollback import rollback as roll_back
    from rollup_assets.pipeline import Pipeline

    settings = settings_of()
    done = roll_back(Pipeline.from_settings(settings), what, to=to, dry_run=dry_run, first_differences=differences)
    if as_json:
        print_json({**dataclasses.asdict(done), "dry_run": dry_run})
    else:
        print_rolled_back(open_console(), done, dry_run=dry_run)
    # Also where nothing changed: whoever ran it before may have been killed before Dagster was told.
    if done.partitions and not dry_run:
        with quick_imports():
            from rollup_assets.defs.rollbacks import record_rollback

        record_rollback(settings, done)


@app.command()
def migrate(
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without this, only say what would be done.")] = False,
    drop: Annotated[
        bool, typer.Option("--drop", help="Drop rows that cannot be made again: those without raw data, or of a batch that has not ended.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Rebuild the table with other shards, resolutions or batches: those of the current settings.

    Stages and rolls up every batch that has raw data, then changes the whole table and its settings in one snapshot, so that nobody reads a
    mix of both. If interrupted, it continues when run again. Stop publishing meanwhile: a publish during the migration is detected and
    aborts it.

    For example:

    - `ROLLUP_SHARDS=64 rollups migrate` — what would be done
    - `ROLLUP_SHARDS=64 rollups migrate --yes`
    - `ROLLUP_RESOLUTIONS=1m,15m,1h rollups migrate --yes --json`
    """
    from rollup_assets.history.migrate import migrate as migrate_table
    from rollup_assets.pipeline import Pipeline

    with progress_bar(as_json or not yes) as progress:

        def tell(key: str) -> None:
            if progress is not None:
                progress.say(f"{key}  [green]rolled up[/]")

        done = migrate_table(Pipeline.from_settings(settings_of()), drop=drop, dry_run=not yes, progress=progress, on_partition=tell)
    if as_json:
        print_json({**dataclasses.asdict(done), "dry_run": not yes})
    else:
        print_migration(open_console(), done)
