"""``rollups generate`` and ``rollups backfill``: raw files in, table out."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from rollup_assets.cli.application import AsJson, First, Last, app, print_json, progress_bar, settings_of
from rollup_assets.errors import UnknownPartitionError
from rollup_assets.loading import quick_imports
from rollup_assets.terminal import open_console, print_backfill, print_generated


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
    files: Annotated[int, typer.Option(min=1, help="Files per batch, besides the one with late rows.")] = 12,
    duplicates: Annotated[float, typer.Option(help="Share of rows delivered twice.")] = 0.002,
    late: Annotated[float, typer.Option(help="Share of rows delivered in the batch's last file.")] = 0.01,
    out_of_order: Annotated[float, typer.Option(help="Share of rows that change places.")] = 0.02,
    nulls: Annotated[float, typer.Option(help="Share of rows with a null.")] = 0.001,
    non_finite: Annotated[float, typer.Option(help="Share of rows with NaN or infinity (double values only).")] = 0.0005,
    outside: Annotated[float, typer.Option(help="Share of rows with a timestamp outside of their batch.")] = 0.0005,
    bad_files: Annotated[int, typer.Option(min=0, help="Bad files in total: truncated, corrupt, zero bytes, wrong schema, in turn.")] = 0,
    value_type: Annotated[str | None, typer.Option(help="long or double; ROLLUP_VALUE_TYPE unless given.", show_default=False)] = None,
    receive_timestamps: Annotated[bool, typer.Option(help="Whether rows have a receive_timestamp.")] = True,
    keep_existing: Annotated[bool, typer.Option("--keep-existing", help="Skip batches that already have raw files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a realistic landing zone. Existing raw data is never overwritten.

    With ROLLUP_RAW_LATENESS, folders are by arrival: late rows go into the next folder.

    For example:

    - `rollups generate` — six hours of 5,000 series from the table's first partition on
    - `rollups generate --from 2026-03-01-00:00 --hours 24 --series 100000`
    - `rollups generate --hours 1 --nulls 0.05 --bad-files 2` — a batch that fails its checks
    """
    from rollup_assets.generator.dirt import Dirt
    from rollup_assets.generator.landing import GeneratorOptions
    from rollup_assets.generator.landing import generate as generate_batches
    from rollup_assets.units import parse_duration

    settings = settings_of(**({"value_type": value_type} if value_type else {}))
    calendar = settings.calendar
    begin = calendar.batch(first) if first else calendar.first
    end = calendar.shifted(begin, count - 1)
    if end is None:
        raise UnknownPartitionError(
            f"there are not {count} batches from {begin} on, since none begins after {calendar.last}; ask for fewer"
        )
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
    batches = list(calendar.between(begin, end))
    with progress_bar(as_json) as progress:
        made = generate_batches(settings, batches, options, keep_existing=keep_existing, progress=progress)
    if as_json:
        print_json({"raw": settings.raw, **dataclasses.asdict(made)})
        return
    console = open_console()
    print_generated(console, made, settings.raw)
    console.print(f"next: rollups backfill {batches[0]} {batches[-1]}")


@app.command()
def backfill(
    first: First,
    last: Last,
    force: Annotated[bool, typer.Option("--force", help="Also redo what is up to date.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stage, roll up and publish partitions through Dagster, 24 per run; its UI shows the runs.

    Up to two batches before FROM are staged if they are missing. The trailing partitions, which take over the windows that TO leaves open,
    are published too, as far as they exist. Exit status 1 if a partition failed; all others are published. Exit status 130 if it was
    interrupted: finished partitions are kept, and the same command does the rest.

    For example:

    - `rollups backfill 2026-01-01-00:00 2026-01-01-05:00`
    - `rollups backfill 2026-01-01-05:00 2026-01-01-05:00 --force`
    - `rollups backfill 2026-01-01-00:00 2026-01-31-23:00 --json`
    """
    with quick_imports():
        from rollup_assets.defs.backfill import run_backfill

    settings = settings_of()
    with progress_bar(as_json) as progress:
        result = run_backfill(settings, first, last, force=force, progress=progress, on_partition=progress.partition if progress else None)
    if as_json:
        print_json({**dataclasses.asdict(result), "success": result.success})
    else:
        print_backfill(open_console(), result)
    if not result.success:
        raise typer.Exit(1)
