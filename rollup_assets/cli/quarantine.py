"""``rollups quarantine list``, ``show`` and ``replay``: rows and files that could not be used, and what to do about them."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from rollup_assets.cli.application import (
    AsJson,
    MaybeFirst,
    MaybeLast,
    app,
    batches_of,
    print_csv,
    print_json,
    progress_bar,
    settings_of,
)
from rollup_assets.loading import quick_imports
from rollup_assets.terminal import open_console, print_backfill, print_quarantined, print_quarantined_rows, print_replayed

quarantine_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode="markdown", help="Rows and files that could not be used, why, and what to do about them."
)
app.add_typer(quarantine_app, name="quarantine")

Partition = Annotated[str, typer.Argument(metavar="PARTITION", help="Partition, such as 2026-01-01-06:00 (UTC).")]


@quarantine_app.command("list")
def list_partitions(first: MaybeFirst = None, last: MaybeLast = None, as_json: AsJson = False) -> None:
    """List the partitions with quarantined rows or files: how many, why, whether over the limit, and what was decided about them.

    By default, all partitions. *raw files changed*: they differ from those that were staged, so a replay may give another result.
    *unknown*: what is staged of it cannot be read; the line below the table says why.

    For example:

    - `rollups quarantine list`
    - `rollups quarantine list 2026-01-01-00:00 2026-01-01-05:00 --json`
    """
    from rollup_assets.quarantine import quarantined_partitions

    settings = settings_of()
    found = quarantined_partitions(settings, batches_of(settings, first, last))
    if as_json:
        print_json([_plain(partition) for partition in found])
    elif not found:
        open_console().print("nothing is quarantined")
    else:
        print_quarantined(open_console(), found)


@quarantine_app.command("show")
def show(
    partition: Partition,
    reason: Annotated[str | None, typer.Option("--reason", help="Only rows and files of this reason.", show_default=False)] = None,
    file: Annotated[
        str | None, typer.Option("--file", help="Only of this raw file; the end of its path is enough.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="How many rows, and how many whole files, to show; 0 for all.")] = 50,
    as_json: AsJson = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """Show quarantined rows with reason, file, row number and values, and files that could not be used at all with what is wrong.

    Row numbers count from 0 in the raw file; times are UTC, in JSON and CSV as epoch milliseconds. Only what is shown is read.

    For example:

    - `rollups quarantine show 2026-01-01-03:00`
    - `rollups quarantine show 2026-01-01-03:00 --reason null_id --file part-00002.parquet`
    - `rollups quarantine show 2026-01-01-03:00 --csv --limit 0 > quarantined.csv`
    """
    from rollup_assets.quarantine import quarantined_rows, stream_quarantined_rows

    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    settings = settings_of()
    batch = settings.calendar.batch(partition)
    most = limit or None
    if as_csv:
        print_csv(*stream_quarantined_rows(settings, batch, reason=reason, file=file, limit=most))
        return
    found = quarantined_rows(settings, batch, reason=reason, file=file, limit=most)
    if as_json:
        print_json(
            {
                "partition": found.partition,
                "rows_quarantined": found.total,
                "raw_changed": found.raw_changed,
                "bad_files": [dataclasses.asdict(bad) for bad in found.bad_files],
                "rows": found.rows.to_pylist(),
                "is_cut": found.is_cut,
            }
        )
    else:
        print_quarantined_rows(open_console(), found)


@quarantine_app.command("replay")
def replay(
    partitions: Annotated[list[str], typer.Argument(metavar="PARTITION…", help="Partitions, such as 2026-01-01-06:00 (UTC).")],
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="REASON", help="Do without the rows of this reason; repeatable.", show_default=False),
    ] = None,
    allow_file: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-file",
            metavar="PATH",
            help="Do without the bad rows of this file, or the whole bad file; repeatable.",
            show_default=False,
        ),
    ] = None,
    because: Annotated[
        str | None, typer.Option("--because", metavar="TEXT", help="Why; required with --allow and --allow-file.", show_default=False)
    ] = None,
    revoke: Annotated[bool, typer.Option("--revoke", help="Revoke what was allowed for these partitions before.")] = False,
    as_json: AsJson = False,
) -> None:
    """Stage partitions again, and what depends on them, and say what became of the rows that were quarantined.

    First correct the raw files. Or decide to do without the bad rows: with --allow, rows with that reason stay quarantined and no longer
    count against the limits of these partitions; with --allow-file, rows of that file; with both, rows of these files with these reasons.
    Nothing that is quarantined is ever accepted this way. Decisions are kept with who, when and why; `list` and `status` show them. Exit
    status 1 if a partition failed.

    For example:

    - `rollups quarantine replay 2026-01-01-03:00`
    - `rollups quarantine replay 2026-01-01-03:00 --allow null_id --because "agent 7 lost its ids, ticket 4711"`
    - `rollups quarantine replay 2026-01-01-03:00 --allow-file part-00002.parquet --because "cut off, nobody has it any more"`
    - `rollups quarantine replay 2026-01-01-03:00 --revoke`
    """
    from rollup_assets import quarantine

    with quick_imports():
        from rollup_assets.defs.backfill import run_backfill
    from rollup_assets.scope import stretches

    reasons, files = allow or [], allow_file or []
    if (reasons or files) and not (because or "").strip():
        raise typer.BadParameter("say why: whoever looks at the partition later will want to know", param_hint="--because")
    settings = settings_of()
    batches = sorted({settings.calendar.batch(key) for key in partitions})
    if reasons or files or revoke:
        quarantine.allow(settings, batches, reasons, files, because=(because or "").strip(), revoke=revoke)
    replayed, results = [], []
    with progress_bar(as_json) as progress:
        # Neighbours together: the first one's trailing partitions may need the next one.
        for stretch in stretches(batches):
            before = [quarantine.counts(settings, batch) for batch in stretch]
            first, last = stretch[0].key, stretch[-1].key
            results.append(run_backfill(settings, first, last, progress=progress, on_partition=progress.partition if progress else None))
            after = [quarantine.counts(settings, batch) for batch in stretch]
            replayed += [quarantine.Replayed(batch.key, old, new) for batch, old, new in zip(stretch, before, after, strict=True)]
    success = all(result.success for result in results)
    if as_json:
        backfills = [{**dataclasses.asdict(result), "success": result.success} for result in results]
        print_json({"partitions": [dataclasses.asdict(one) for one in replayed], "backfills": backfills, "success": success})
    else:
        console = open_console()
        print_replayed(console, replayed)
        for result in results:
            print_backfill(console, result)
    if not success:
        raise typer.Exit(1)


def _plain(partition: object) -> dict[str, object]:
    from rollup_assets.quarantine import QuarantinedPartition

    assert isinstance(partition, QuarantinedPartition)
    fields = {field.name: getattr(partition, field.name) for field in dataclasses.fields(partition)}
    return {**fields, "reasons": dict(partition.reasons), "decisions": [decision.model_dump() for decision in partition.decisions]}
