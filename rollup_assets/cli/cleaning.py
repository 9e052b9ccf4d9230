"""``rollups clean``: leftovers of killed, failed and superseded runs, listed and deleted."""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from rollup_assets.cli.application import AsJson, app, print_error, print_json, settings_of
from rollup_assets.terminal import open_console, print_cleaning


@app.command()
def clean(
    older_than: Annotated[
        str,
        typer.Option(
            "--older-than", metavar="AGE", help="Only files that have not been written to for this long, such as 12h; 0: of any age."
        ),
    ] = "3d",
    delete: Annotated[bool, typer.Option("--delete", help="Delete what is left over; without this, only list it.")] = False,
    other_partitions: Annotated[
        bool,
        typer.Option("--other-partitions", help="Also staged partitions that do not match the current ROLLUP_START and ROLLUP_BATCH."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List what killed, failed and superseded runs have left behind, and with --delete delete it.

    Attempts in the stage that no manifest names; data files, manifests and metadata that no snapshot, branch or tag of the table names, nor
    a staged partition; records of publishes that have expired, but for the newest five of a partition; unfinished uploads on S3; spilled
    data of processes that are gone. Raw data is not looked at. Runs may go on meanwhile, as long as none takes longer than the age; so 0 is
    for when nothing runs. Exit status 1 if something could not be judged or deleted.

    For example:

    - `rollups clean`
    - `rollups clean --delete`
    - `rollups clean --older-than 12h --delete --json`
    """
    from rollup_assets.cleaning import clean as find_and_delete
    from rollup_assets.units import parse_duration

    try:
        age = 0 if older_than.strip() == "0" else parse_duration(older_than)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--older-than") from None
    found = find_and_delete(settings_of(), older_than=age, delete=delete, other_partitions=other_partitions)
    if as_json:
        by_kind = {kind: {"count": count, "bytes": size} for kind, (count, size) in found.by_kind().items()}
        print_json({"by_kind": by_kind, **dataclasses.asdict(found)})
    else:
        print_cleaning(open_console(), found, deleted=delete)
    if found.failures:
        for failure in found.failures:
            print_error(failure)
        raise typer.Exit(1)
