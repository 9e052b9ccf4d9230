"""``rollups verify``, ``sql``, ``status`` and ``plan``: what the stage and the table hold, and whether it is right. Changes nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from rollup_assets.cli.application import (
    AsJson,
    First,
    Last,
    MaybeFirst,
    MaybeLast,
    app,
    batches_of,
    print_csv,
    print_json,
    print_json_rows,
    progress_bar,
    settings_of,
)
from rollup_assets.escaping import escape
from rollup_assets.terminal import ROWS_SHOWN, open_console, print_plan, print_rows, print_status, print_verification

if TYPE_CHECKING:
    import pyarrow as pa


@app.command()
def verify(
    first: MaybeFirst = None,
    last: MaybeLast = None,
    differences: Annotated[int, typer.Option("--differences", min=0, help="How many differences to show.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Recompute rollups from raw files with DuckDB and compare every value with the table.

    By default, all published partitions. Integers, extremes and latest values have to be equal; doubles may differ by 1e-9 of their size,
    or by the rounding of the sum they come from. Partitions that wait for raw data to be staged are listed, not compared. Exit status 1 if
    anything differs, or if a given partition has unstaged raw files or is not published.

    For example:

    - `rollups verify`
    - `rollups verify 2026-01-01-00:00 2026-01-01-05:00`
    - `rollups verify 2026-01-01-03:00 --json`
    """
    from rollup_assets.verification import verify as verify_batches

    settings = settings_of()
    batches = batches_of(settings, first, last)
    with progress_bar(as_json) as progress:
        found = verify_batches(settings, batches, first_differences=differences, progress=progress)
    if as_json:
        print_json({**dataclasses.asdict(found), "agrees": found.agrees})
    else:
        print_verification(open_console(), found)
    if not found.agrees:
        raise typer.Exit(1)


@app.command()
def sql(
    statement: Annotated[str, typer.Argument(metavar='"SELECT …"', help="One statement for DuckDB; the table is the view `rollups`.")],
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Query the published table with SQL: DuckDB, with the current snapshot as the view `rollups`.

    The columns: `rollups sql "describe rollups"`. `logical_timestamp` is the end of a window, which covers (label - resolution, label]; the
    window that ends with a batch appears with the next one. Times are UTC. A statement sees the table and nothing else: it reads and writes
    no files, reaches no network and loads no extensions. It may use `ROLLUP_MEMORY`, plus a GB or two for reading ahead, and spills nothing
    to disk. With `--csv` and `--json` a result of any length is printed while it is computed, otherwise its first 200 rows are printed. If
    a statement fails halfway, the exit status says that what was printed is not the whole result. An interval is printed as months, days
    and nanoseconds; in CSV, it, lists, structs and maps are JSON texts.

    For example:

    - `rollups sql "select resolution, count(*), sum(count_rollup) from rollups group by 1"`
    - `rollups sql "select logical_timestamp, rate_rollup from rollups where id = 7 and resolution = 300000 order by 1" --csv`
    """
    from rollup_assets.errors import QueryError
    from rollup_assets.query import stream

    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    take = print_csv if as_csv else _print_json if as_json else _print_table
    try:
        stream(settings_of(), statement, take)
    except OverflowError as error:
        # DuckDB's times reach further than Python's, and it has infinite ones.
        raise QueryError(
            f"the answer has a time outside of the years 1 to 9999 ({error}); leave it out, or cast its column to VARCHAR"
        ) from error


def _print_json(_: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    print_json_rows(row for rows in batches for row in rows.to_pylist())


def _print_table(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    import pyarrow as pa

    shown: list[pa.RecordBatch] = []
    total = 0
    for rows in batches:
        if total < ROWS_SHOWN:
            shown.append(rows.slice(0, ROWS_SHOWN - total))
        total += rows.num_rows
    print_rows(open_console(), pa.Table.from_batches(shown, schema), total)


@app.command()
def status(first: MaybeFirst = None, last: MaybeLast = None, as_json: AsJson = False) -> None:
    """Show where partitions stand: raw files, staged, rolled up, published, waiting, or stale and why.

    By default, all partitions that have raw files or anything staged, and those that depend on them.

    For example:

    - `rollups status`
    - `rollups status 2026-01-01-00:00 2026-01-01-05:00 --json`
    """
    from rollup_assets.status import status as status_of

    settings = settings_of()
    found = status_of(settings, batches_of(settings, first, last))
    if as_json:
        print_json([{**dataclasses.asdict(partition), "state": partition.state} for partition in found])
        return
    console = open_console()
    if not found:
        console.print(
            f"nothing in {escape(settings.raw)} yet; write raw data there with rollups generate, or try rollups demo", soft_wrap=True
        )
        return
    print_status(console, found)


@app.command()
def plan(first: First, last: Last, as_json: AsJson = False) -> None:
    """Say what `rollups backfill FROM TO` would do and why, partition by partition, before anything runs.

    Which partitions would be staged, rolled up and published, because of which raw files, digests, settings or lost files, and how many
    rows that is. "if it changes" depends on what a run makes: partitions that read what would be staged again are only rolled up again
    if that content turns out to have changed. Nothing is changed.

    For example:

    - `rollups plan 2026-01-01-00:00 2026-01-01-05:00`
    - `rollups plan 2026-01-01-03:00 2026-01-01-03:00 --json`
    """
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.plan import plan as plan_of
    from rollup_assets.scope import scope_of

    settings = settings_of()
    found = plan_of(Pipeline.from_settings(settings), scope_of(settings.calendar, first, last, settings.reach))
    if as_json:
        totals = {"nothing_to_do": found.nothing_to_do, "rows_to_stage": found.rows_to_stage, "failing": found.failing}
        print_json({**dataclasses.asdict(found), **totals})
    else:
        print_plan(open_console(), found)
