"""Consoles, and what commands print: outcomes in, lines and tables out. It only prints, and looks nothing up."""

from __future__ import annotations

import datetime as dt
import posixpath
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rollup_assets.batches import time_text
from rollup_assets.escaping import escape
from rollup_assets.units import bytes_text, count_text

if TYPE_CHECKING:
    import pyarrow as pa

    from rollup_assets.cleaning import Cleaning
    from rollup_assets.doctor.examination import Examination
    from rollup_assets.generator.landing import Generated
    from rollup_assets.history.diff import SnapshotDifference
    from rollup_assets.history.migrate import Migration
    from rollup_assets.history.rollback import RolledBack
    from rollup_assets.outcomes import BackfillResult, PartitionOutcome
    from rollup_assets.plan import Plan, PlannedStep
    from rollup_assets.quarantine import QuarantinedPartition, QuarantinedRows, Replayed
    from rollup_assets.status import PartitionStatus
    from rollup_assets.verification import Verification

ROWS_SHOWN = 200
_WIDTH_OF_FILES = 200
_ANY_WIDTH = 1_000_000


def open_console(*, stderr: bool = False, file: IO[str] | None = None) -> Console:
    """A console on standard output, standard error or another stream; if that is not a terminal, tables are not squeezed into 80 columns.

    Without rich's emoji codes: ``job:x:rate5m`` is the name of a metric.
    """
    console = Console(stderr=stderr, file=file, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH_OF_FILES
    return console


def say(console: Console, text: str) -> None:
    """Print a line in rich's markup; the terminal wraps long ones, so that text copied from them has no line breaks of ours."""
    console.print(text, soft_wrap=True, highlight=False)


def print_generated(console: Console, made: Generated, raw: str) -> None:
    """What was generated, and what is wrong with it."""
    if made.skipped:
        say(console, f"{count_text(len(made.skipped), 'partition')} with raw files left as they are")
    console.print(
        f"{made.rows:,} rows of {made.series:,} series in {count_text(made.files, 'file')}, {bytes_text(made.bytes)}, in {escape(raw)}",
        soft_wrap=True,
    )
    dirt = [f"{rows:,} {kind.replace('_', ' ')}" for kind, rows in made.dirt.items() if rows]
    console.print(f"of them {', '.join(dirt)}" if dirt else "nothing is wrong with them", soft_wrap=True)


def print_backfill(console: Console, result: BackfillResult) -> None:
    """What became of the partitions, in a few lines."""
    print_closed_runs(console, result.closed_runs, "of a killed backfill")
    say(console, f"[green]{count_text(len(result.published), 'partition')} published[/] in {count_text(len(result.runs), 'run')}")
    for partition, reason in result.waiting.items():
        say(console, f"[yellow]waiting[/] {partition}: {escape(reason)}")
    for partition in result.skipped:
        say(console, f"[yellow]skipped[/] {partition}: its batch has not ended yet; a later backfill publishes it")
    for partition, reason in result.failed.items():
        say(console, f"[red]failed[/] {partition}: {escape(reason)}")


def print_closed_runs(console: Console, runs: Sequence[str], which: str = "whose process was gone") -> None:
    """A line for runs that were found to have ended unnoticed; none if there are no such runs."""
    if runs:
        say(console, f"closed {count_text(len(runs), 'run')} {which}: {', '.join(runs)}")


def print_outcome(console: Console, outcome: PartitionOutcome) -> None:
    """A line for a partition of a backfill that is published, waits or failed; none for one that was only staged."""
    if outcome.error is not None:
        first_line = (str(outcome.error) or type(outcome.error).__name__).splitlines()[0]
        say(console, f"{outcome.partition}  [red]failed[/]     {escape(first_line)}")
    elif outcome.waiting is not None:
        say(console, f"{outcome.partition}  [yellow]waiting[/]    {escape(outcome.waiting)}")
    elif outcome.is_published:
        say(console, f"{outcome.partition}  [green]published[/]")


def print_verification(console: Console, found: Verification) -> None:
    """A line for each partition, then the first differences."""
    from rollup_assets.verification.report import RELATIVE_TOLERANCE

    table = _table("partition", "", "points", "rows", "different", "missing", "extra", "s")
    for partition in found.partitions:
        counts = (partition.points, sum(partition.rows.values()), partition.different, partition.missing, partition.extra)
        outcome = "[green]agrees[/]" if partition.agrees else "[red]differs[/]"
        verdict = outcome if partition.compared else "[yellow]not compared[/]"
        table.add_row(partition.partition, verdict, *(f"{count:,}" for count in counts), f"{partition.seconds:.1f}")
    if found.partitions:
        print_table(console, table)
    for partition in found.partitions:
        for remark in (*partition.problems, *partition.notes):
            say(console, f"{partition.partition}: {escape(remark)}")
    for partition_key in found.waiting:
        say(console, f"[yellow]waiting[/] {partition_key}: raw data is not staged yet; not compared")
    for partition_key in found.not_staged:
        say(console, f"[red]not staged[/] {partition_key}: has raw files; run rollups backfill {partition_key} {partition_key}")
    for partition_key in found.not_published:
        say(console, f"[red]not published[/] {partition_key}: run rollups backfill {partition_key} {partition_key}")
    if found.differences:
        total = sum(partition.different + partition.missing + partition.extra for partition in found.partitions)
        console.print(f"first differences, of {total:,} rows:")
        for each in found.differences:
            say(
                console,
                f"  {each.partition}  {each.resolution} {each.label}  series {each.id} ({escape(each.metric)})  "
                f"[bold]{each.column}[/]: expected {escape(each.expected)}, found {escape(each.found)}",
            )
    compared_partitions = sum(partition.compared for partition in found.partitions)
    compared = f"{found.rows:,} rows of {count_text(compared_partitions, 'partition')}"
    if found.agrees and not compared_partitions:
        say(console, "[yellow]nothing was compared[/]")
    elif found.agrees:
        say(console, f"[green]{compared} agree with raw data[/] (doubles within {RELATIVE_TOLERANCE:g})")
    else:
        say(console, f"[red]{compared} were compared; not everything agrees with raw data[/]")


def print_status(console: Console, found: Sequence[PartitionStatus]) -> None:
    """A line for each partition."""
    colors = {
        "published": "green",
        "empty": "dim",
        "waiting": "yellow",
        "stale": "yellow",
        "not staged": "yellow",
        "rolled back": "yellow",
        "quarantined": "red",
        "unknown": "red",
    }
    table = _table("partition", "state", "raw files", "size", "points", "quarantined", "published")
    for partition in found:
        table.add_row(
            partition.partition,
            f"[{colors.get(partition.state, 'default')}]{partition.state}[/]",
            str(partition.raw_files or ""),
            bytes_text(partition.raw_bytes) if partition.raw_files else "",
            "" if partition.points is None else f"{partition.points:,}",
            f"{partition.quarantined:,}" if partition.quarantined else "",
            f"{sum(partition.rows.values()):,}" if partition.published else "",
        )
    print_table(console, table)
    for partition in found:
        for remark in _remarks(partition):
            say(console, f"{partition.partition}: {escape(remark)}")


def _remarks(partition: PartitionStatus) -> list[str]:
    remarks = [partition.problem] if partition.problem else []
    if partition.over_limit:
        remarks.append(
            f"{partition.quarantined:,} of {partition.rows_read:,} rows are quarantined, or a whole file is: more than the limit allows; "
            f"see them with rollups quarantine show {partition.partition}"
        )
    remarks += [f"allowed to stay quarantined: {decision}" for decision in partition.allowed]
    if partition.waiting_for:
        remarks.append(f"waits for {', '.join(partition.waiting_for)} to be staged")
    if partition.held_back:
        remarks.append(f"cannot be rolled up: {partition.held_back}")
    if partition.rolled_back:
        remarks.append(partition.rolled_back)
    return remarks + partition.stale


def print_quarantined(console: Console, found: Sequence[QuarantinedPartition]) -> None:
    """A line for each partition, then the reasons and the decisions."""
    table = _table("partition", "", "read", "quarantined", "share", "bad files", "allowed")
    for partition in found:
        if partition.problem:
            table.add_row(partition.partition, "[red]unknown[/]")
            continue
        table.add_row(
            partition.partition,
            "[red]over the limit[/]" if partition.over_limit else "[green]below the limit[/]",
            f"{partition.rows_read:,}",
            f"{partition.rows:,}",
            f"{partition.share:.3%}",
            f"{partition.bad_files:,}" if partition.bad_files else "",
            f"{partition.allowed_rows:,}" if partition.decisions else "",
        )
    print_table(console, table)
    for partition in found:
        if partition.problem:
            say(console, f"{partition.partition}: {escape(partition.problem)}")
        reasons = ", ".join(f"{rows:,} {reason}" for reason, rows in partition.reasons.items() if rows)
        if reasons:
            say(console, f"{partition.partition}: {escape(reasons)}")
        for decision in partition.decisions:
            say(console, f"{partition.partition}: allowed: {escape(str(decision))}")
        if partition.raw_changed:
            say(console, f"{partition.partition}: [yellow]raw files changed since[/]; run rollups quarantine replay {partition.partition}")


def print_quarantined_rows(console: Console, found: QuarantinedRows) -> None:
    """Bad files, a line each, then the rows as a table."""
    for bad in found.bad_files:
        rows = f" ({count_text(bad.rows, 'row')})" if bad.rows else ""
        say(console, f"[red]{bad.reason}[/] {escape(bad.path)}: {escape(bad.detail)}{rows}")
    if found.rows.num_rows:
        _print_rows_by_file(console, found.rows)
    total = f"{count_text(found.total, 'row')} of {found.partition} quarantined"
    if found.is_cut:
        say(console, f"{total}; only the first rows and files are shown, --limit 0 shows all")
    else:
        say(console, total)
    if found.raw_changed:
        say(console, f"[yellow]raw files changed since[/]; run rollups quarantine replay {found.partition}")


def _print_rows_by_file(console: Console, rows: pa.Table) -> None:
    """Quarantined rows; the folder that all their files have in common is printed once, so that names fit."""
    found = rows.to_pylist()
    folder = posixpath.commonpath([posixpath.dirname(row["file"]) for row in found])
    value = next(name for name in rows.column_names if name.endswith("_value"))
    columns = ("id", "org_id", "metric", "logical_timestamp", value)
    if folder:
        say(console, f"files in {escape(folder)}/")
    table = _table("reason", "file", "row", *columns)
    for row in found:
        if row["logical_timestamp"] is not None:
            row["logical_timestamp"] = time_text(row["logical_timestamp"])
        texts = ("[dim]null[/]" if row[name] is None else escape(_text(row[name])) for name in columns)
        table.add_row(row["reason"], escape(row["file"].removeprefix(f"{folder}/")), str(row["row_number"]), *texts)
    print_table(console, table, highlight=False)


def print_replayed(console: Console, replayed: Sequence[Replayed]) -> None:
    """What became of the rows of each partition, by reason."""
    table = _table("partition", "", "before", "after")
    for partition in replayed:
        for name in partition.names:
            before, after = partition.before.get(name), partition.after.get(name)
            table.add_row(partition.partition, name, *("" if count is None else f"{count:,}" for count in (before, after)))
    print_table(console, table)


def print_cleaning(console: Console, found: Cleaning, *, deleted: bool) -> None:
    """Leftovers by kind, the names of those deleted, and what was left alone."""
    table = _table("leftovers", "", "count", "size")
    for kind, (count, size) in found.by_kind().items():
        table.add_row(kind, "", f"{count:,}", bytes_text(size))
    if found.found:
        print_table(console, table)
    for leftover in found.deleted:
        say(console, f"deleted {escape(leftover.path)}")
    for remark in found.remarks:
        say(console, f"[yellow]left alone[/]: {escape(remark)}")
    if deleted:
        total = bytes_text(sum(leftover.bytes for leftover in found.deleted))
        say(console, f"[green]{count_text(len(found.deleted), 'leftover')} deleted[/], {total}")
    elif found.found:
        say(console, f"nothing was deleted; `rollups clean --delete` deletes {'it' if len(found.found) == 1 else 'them'}")
    elif not found.failures:
        console.print("[green]nothing is left over[/]")


def print_difference(console: Console, found: SnapshotDifference) -> None:
    """A line for each partition and resolution, the files that caused it, then the first windows."""
    table = _table("partition", "", "added", "removed", "changed")
    for partition in found.partitions:
        sides = (partition.added, partition.removed, partition.changed)
        for resolution in dict.fromkeys(name for side in sides for name in side):
            table.add_row(partition.partition, resolution, *(f"{side[resolution]:,}" if resolution in side else "" for side in sides))
    if found.partitions:
        print_table(console, table)
    for partition in found.partitions:
        for file in partition.files:
            say(console, f"{partition.partition}: {file.change} raw file {escape(file.path)} (of {file.partition})")
        for remark in partition.remarks:
            say(console, f"{partition.partition}: {escape(remark)}")
    windows = sum(partition.windows for partition in found.partitions)
    if found.windows:
        say(console, f"first windows, of {windows:,} that differ:" if len(found.windows) < windows else "windows that differ:")
    for window in found.windows:
        values = ", ".join(
            f"{column.removesuffix('_rollup')} {'none' if old is None else _text(old)} → {'none' if new is None else _text(new)}"
            for column, (old, new) in window.values.items()
            if window.change == "changed" or column in ("count_rollup", "sum_rollup")
        )
        label = window.label.replace(tzinfo=None).isoformat(sep=" ")
        say(
            console,
            f"  {window.partition}  {window.resolution} {label}  series {window.id} ({escape(window.metric)})  "
            f"[bold]{window.change}[/]: {escape(values)}",
        )
    old, new = (
        f"snapshot {one.snapshot_id} of {one.committed_at:%Y-%m-%d %H:%M:%S}" if one.committed_at else "the empty table"
        for one in (found.old, found.new)
    )
    count = f"{count_text(windows, 'window')} of {count_text(len(found.partitions), 'partition')}"
    differ = f"{count} differ" if windows else "no window differs"
    say(console, f"{differ} between {old} and {new}; {count_text(found.files_read, 'data file')} read")


def print_migration(console: Console, found: Migration) -> None:
    """What a migration would do, or did."""
    if not found.changes:
        say(console, "[green]nothing to migrate[/]: the table was made with these settings")
        return
    for setting, (old, new) in found.changes.items():
        say(console, f"{setting}: {old} → [bold]{new}[/]")
    for partition in found.dropped:
        say(
            console,
            f"[red]raw data gone[/] {partition}: rows of this partition {'are gone, too' if found.snapshot_id else 'would go, too'}",
        )
    for partition in found.uncertain:
        went = "its rows are gone, too" if found.snapshot_id else "its rows would go, too"
        say(console, f"[red]no raw file in its own folder[/] {partition}: {went}, unless they came late, in other folders")
    for partition in found.not_ended:
        missing = "are missing" if found.snapshot_id else "would be missing"
        say(console, f"[red]not ended[/] {partition}: its rows {missing} until it has ended and is published")
    for partition in found.rolled_back:
        mend = "its rollback has not ended; run that again" if partition in found.begun else "correct its raw data and publish it"
        say(console, f"[red]rolled back[/] {partition}: would come back; {mend} first, or publish it with --force")
    count = count_text(len(found.partitions), "partition")
    if found.snapshot_id is not None:
        say(console, f"[green]migrated[/] as snapshot {found.snapshot_id}: {count}, {found.rows_before:,} rows → {found.rows_after or 0:,}")
    else:
        say(console, f"{count} would be staged and rolled up again, and then replace {found.rows_before:,} rows in one snapshot")
        drop = found.dropped or found.uncertain or found.not_ended
        say(
            console,
            "nothing was changed; `rollups migrate --yes` does it" + ("; rows that cannot be made again need --drop" if drop else ""),
        )


def print_rolled_back(console: Console, done: RolledBack, *, dry_run: bool) -> None:
    """What came back, or would come back."""
    if done.difference is not None:
        print_difference(console, done.difference)
    target = "what was there before the first snapshot" if done.target is None else f"snapshot {done.target}"
    for partition in done.partitions:
        before, after = (
            ", ".join(f"{rows:,} of {name}" for name, rows in side.items()) or "none"
            for side in (partition.rows_before, partition.rows_after)
        )
        say(console, f"{partition.partition}: rows {before} → {after}")
    if dry_run:
        say(console, f"dry run: nothing was changed; it would go back to {target}")
    elif done.changed:
        say(console, f"[green]rolled back[/] to {target}, as snapshot {done.snapshot_id}")
    else:
        say(console, f"the table already holds the rows of {target}; no new snapshot")
    if done.also_published:
        say(
            console,
            f"[yellow]look at[/] {', '.join(done.also_published)} too: published since, with windows and last points that "
            "the undone publish left open; `rollups rollback` undoes them one by one",
        )


def print_plan(console: Console, found: Plan) -> None:
    """A line for each partition with anything to do or report, then the reasons, then the totals."""
    from rollup_assets.plan import STEPS

    concerned = [partition for partition in found.partitions if partition.is_concerned]
    table = _table("partition", "stage", "roll up", "publish", "raw rows", "rollup rows")
    for column in table.columns[:4]:
        column.justify = "left"
    for partition in concerned:
        steps = [_verdict(step) for step in partition.steps]
        if partition.fails_at:
            number = STEPS.index(partition.fails_at)
            steps[number:] = ["[red]fails[/]", *[""] * (len(steps) - number - 1)]
        elif partition.waiting_for:
            steps[1:] = ["[yellow]waits[/]", ""]
        rows = ("" if count is None else f"{count:,}" for count in (partition.raw_rows, partition.rollup_rows))
        table.add_row(partition.partition, *steps, *rows)
    if concerned:
        print_table(console, table)
    for partition in concerned:
        # The reasons of the first step that has something to do; the other steps follow from it.
        for name, step in zip(STEPS, partition.steps, strict=True):
            if step.verdict != "no":
                for reason in step.reasons:
                    say(console, f"{partition.partition}: {name}: {escape(reason)}")
                break
        if partition.waiting_for:
            say(console, f"{partition.partition}: waits for {', '.join(partition.waiting_for)}, which is not part of this backfill")
        if partition.refused:
            say(console, f"{partition.partition}: {escape(partition.refused)}")
        if partition.problem:
            say(console, f"{partition.partition}: [red]fails[/]: {escape(partition.problem)}")
    for key in found.not_ended:
        say(console, f"[yellow]skipped[/] {key}: its batch has not ended yet")
    unconcerned = len(found.partitions) - len(concerned)
    if unconcerned:
        say(console, f"{count_text(unconcerned, 'partition')} up to date")
    if found.nothing_to_do:
        say(console, "[green]nothing to do[/]")
        return
    numbers = [sum(partition.does(step) for partition in concerned) for step in STEPS]
    maybe = sum(partition.roll_up.verdict == "if it changes" and partition.fails_at in (None, "publish") for partition in concerned)
    say(
        console,
        f"would stage {count_text(numbers[0], 'partition')} with {found.rows_to_stage:,} raw rows, roll up {numbers[1]:,} and publish "
        f"{numbers[2]:,}"
        + (f"; and roll up {maybe:,} more if what they read changes" if maybe else "")
        + (f"; [red]{count_text(found.failing, 'partition')} would fail[/]" if found.failing else ""),
    )


def _verdict(step: PlannedStep) -> str:
    return {"yes": "[green]yes[/]", "if it changes": "[yellow]if it changes[/]", "no": ""}[step.verdict]


def print_examination(console: Console, examination: Examination) -> None:
    """A line for each check, and the remedies of those that have one."""
    colors = {"ok": "green", "warning": "yellow", "failed": "bold red", "skipped": "dim"}
    table = Table(box=None, pad_edge=False, show_header=False)
    for number in range(3):
        table.add_column(no_wrap=number < 2, overflow="fold")
    for finding in examination.findings:
        state = f"[{colors[finding.state]}]{finding.state}[/]"
        text = escape(finding.found)
        if finding.remedy:
            text += f"\n[bold]→ {escape(finding.remedy)}[/]"
        table.add_row(finding.name, state, f"[dim]{text}[/]" if finding.state == "skipped" else text)
    console.print(table, highlight=False)
    failed = sum(finding.state == "failed" for finding in examination.findings)
    warnings = sum(finding.state == "warning" for finding in examination.findings)
    verdict = f"[red]{count_text(failed, 'check')} failed[/]" if failed else "[green]ready[/]"
    say(console, f"{verdict}, {count_text(warnings, 'warning')}" if warnings else verdict)


def print_rows(console: Console, answer: pa.Table, total: int) -> None:
    """The first rows of an answer as a table; ``total``: how many rows it has."""
    import pyarrow.types as pt

    table = Table()
    for field in answer.schema:
        is_number = pt.is_integer(field.type) or pt.is_floating(field.type) or pt.is_decimal(field.type)
        table.add_column(escape(field.name), justify="right" if is_number else "left", no_wrap=True)
    for row in answer.slice(0, ROWS_SHOWN).to_pylist():
        table.add_row(*("[dim]null[/]" if value is None else escape(_text(value)) for value in row.values()))
    print_table(console, table, folds_headings=False)
    if total > ROWS_SHOWN:
        console.print(f"the first {ROWS_SHOWN} of {total:,} rows; --csv and --json print all")


def _text(value: object) -> str:
    if isinstance(value, dt.datetime):
        return value.replace(tzinfo=None).isoformat(sep=" ")
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def print_table(console: Console, table: Table, *, highlight: bool = True, folds_headings: bool = True) -> None:
    """Print a table without cutting cells: one wider than the terminal is set closer; if that is not enough, the terminal wraps it.

    ``folds_headings``: the table may be set closer, with headings on several lines; False for headings that a user chose.
    """
    if folds_headings and _width(console, table) > console.width:
        table.collapse_padding = True
        for column in table.columns:
            column.header, column.vertical = str(column.header).replace(" ", "\n"), "bottom"
    options = console.options.update(width=max(console.width, _width(console, table)), highlight=highlight)
    for segments in console.render_lines(table, options, pad=False):
        line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
        # If the terminal wraps, trailing blanks would become lines of their own.
        line.rstrip()
        console.print(line, soft_wrap=True)


def _width(console: Console, table: Table) -> int:
    """Width of a terminal that the whole table fits in."""
    return Measurement.get(console, console.options.update(max_width=_ANY_WIDTH), table).maximum


def _table(*columns: str) -> Table:
    """A plain table; the first two columns are texts, the others numbers."""
    table = Table(box=None, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number < 2 else "right", no_wrap=True)
    return table
