"""``rollups demo``: from raw files to a verified, published table, and a look at what is in it.

Puts the other modules to work in the order in which a user would; computes nothing of its own. Runs again without harm: raw data
that is there stays, and what is up to date is not done twice.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import shlex
import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rollup_assets.batches import HOUR_MS, Batch, to_datetime
from rollup_assets.charts import axis, columns, spread
from rollup_assets.errors import GeneratorError
from rollup_assets.escaping import escape
from rollup_assets.loading import quick_imports
from rollup_assets.progress import TerminalProgress, compact
from rollup_assets.query import query
from rollup_assets.settings import Settings, project_root
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.landing_zone import LandingZone
from rollup_assets.storage.manifests import REPARTITIONED, ROLLUP_TABLE, ROLLUPS, InputFile, Stage
from rollup_assets.terminal import open_console, print_backfill, print_generated, print_table, print_verification, say
from rollup_assets.units import count_text, format_duration

HOURS = 6
_WIDTH = 66


def run_demo(settings: Settings, *, data: Path | None, series: int) -> bool:
    """The whole demonstration. False if a partition failed or differs from its raw data.

    Args:
        settings: of the table; they say where everything is written.
        data: a folder of raw files in the landing zone's layout, copied unless that already has other raw data; None: generate some.
        series: how many series to generate.

    Raises:
        GeneratorError: ``data`` has no raw files.
    """
    console = open_console()
    seconds: dict[str, float] = {}
    began = time.perf_counter()
    console.rule("1. raw data", align="left")
    batches = _ended(settings, _copy(settings, data, console) if data is not None else _generate(settings, series, console), console)
    seconds["raw data"] = time.perf_counter() - began

    console.rule(f"2. backfill {batches[0]} {batches[-1]}, through Dagster", align="left")
    published = _backfill(settings, batches, console)
    seconds["backfill"] = time.perf_counter() - began - sum(seconds.values())

    console.rule("3. verify: raw data recomputed by DuckDB, every value compared", align="left")
    agrees = _verify(settings, console)
    seconds["verify"] = time.perf_counter() - began - sum(seconds.values())

    console.rule("4. what is in the table", align="left")
    _show_counts(settings, console)
    _show_series(settings, console)
    console.rule("5. where the time went", align="left")
    _show_times(settings, batches, console)
    console.print(f"{', '.join(f'{name} {value:.1f} s' for name, value in seconds.items())}, all together {sum(seconds.values()):.1f} s")
    console.rule("6. go on", align="left")
    _show_next(settings, console)
    return published and agrees


def _ended(settings: Settings, batches: list[Batch], console: Console) -> list[Batch]:
    """The batches that exist as partitions: those that have ended."""
    latest = settings.calendar.last_ended(dt.datetime.now(dt.UTC))
    ended = [batch for batch in batches if latest is not None and batch <= latest]
    if not ended:
        raise GeneratorError(
            f"no batch with raw files in {settings.raw} has ended yet, so there is nothing to publish; "
            f"come back after {batches[0].end_time:%Y-%m-%d %H:%M} UTC"
        )
    if len(ended) < len(batches):
        say(console, f"{batches[len(ended)]} and later have not ended yet; they are left out")
    return ended


def _generate(settings: Settings, series: int, console: Console) -> list[Batch]:
    from rollup_assets.generator.landing import GeneratorOptions, generate

    calendar = settings.calendar
    wanted = [batch for ahead in range(max(1, HOURS * HOUR_MS // settings.batch)) if (batch := calendar.shifted(calendar.first, ahead))]
    target = LandingZone.from_settings(settings)
    present = target.landed()
    if set(present) - set(wanted) or len(present) == len(wanted):
        return _kept(target, settings, console)
    # Batches do not depend on each other: after an interrupted demo, the missing ones are generated as it would have done.
    with TerminalProgress() as progress:
        made = generate(settings, wanted, GeneratorOptions(series=series), keep_existing=True, progress=progress)
    print_generated(console, made, settings.raw)
    return wanted


def _kept(target: LandingZone, settings: Settings, console: Console) -> list[Batch]:
    """Keep the raw data that is already there; returns its batches."""
    count = count_text(len(target.landed()), "batch", "batches")
    say(console, f"raw files of {count} are in {escape(settings.raw)}; they stay as they are")
    return target.batches()


def _copy(settings: Settings, data: Path, console: Console) -> list[Batch]:
    """Copy raw files, batch by batch, into a landing zone that is empty or has some of them from an earlier, interrupted demo."""
    target = LandingZone.from_settings(settings)
    present = target.landed()
    source = dataclasses.replace(target, root=Place.parse(str(data.resolve())))
    batches = source.landed()
    there = {batch: _sizes(target, batch) for batch in present}
    wanted = {batch: _sizes(source, batch) for batch in batches}
    if present and (there == wanted or not all(_is_begun(target, there[batch], wanted.get(batch, {})) for batch in present)):
        return _kept(target, settings, console)
    if not batches:
        first = settings.calendar.first
        raise GeneratorError(
            f"{data} has no raw files from {first} on in folders like {first.start_time.strftime(settings.raw_layout)}; "
            "point --data at the folder above those, or set ROLLUP_RAW_LAYOUT and ROLLUP_START to match it"
        )
    files = 0
    missing = [batch for batch in batches if there.get(batch) != wanted[batch]]
    for batch in missing:
        folder = target.folder(batch)
        hidden = folder.beside(f".{folder.name}.copying") if folder.is_local else folder
        if folder.is_local:
            hidden.delete_folder()
        for file in source.folder_files(batch):
            inside = _inside(source, batch, file)
            if inside in there.get(batch, {}):
                continue
            files += 1
            with source.place(file).open_input() as raw, (hidden / inside).open_output() as copy:
                shutil.copyfileobj(raw, copy, 2**22)
        if folder.is_local:
            folder.filesystem.move(hidden.path, folder.path)
    count = f"{count_text(files, 'file')} of {count_text(len(missing), 'batch', 'batches')}"
    say(console, f"{count} copied from {escape(str(data))} to {escape(settings.raw)}")
    return target.batches()


def _inside(zone: LandingZone, batch: Batch, file: InputFile) -> str:
    """A file's path in its batch's folder."""
    return str(zone.place(file).path)[len(zone.folder(batch).path) :].lstrip("/")


def _sizes(zone: LandingZone, batch: Batch) -> dict[str, int]:
    return {_inside(zone, batch, file): file.size for file in zone.folder_files(batch)}


def _is_begun(target: LandingZone, there: dict[str, int], wanted: dict[str, int]) -> bool:
    """Whether a batch may be the work of an interrupted demo: on a disk that has only whole batches, elsewhere single files."""
    return there == wanted if target.root.is_local else there.items() <= wanted.items()


def _backfill(settings: Settings, batches: Sequence[Batch], console: Console) -> bool:
    with quick_imports():
        from rollup_assets.defs.backfill import run_backfill

    with TerminalProgress() as progress:
        result = run_backfill(settings, batches[0].key, batches[-1].key, progress=progress, on_partition=progress.partition)
    print_backfill(console, result)
    return result.success


def _verify(settings: Settings, console: Console) -> bool:
    from rollup_assets.verification import verify

    with TerminalProgress() as progress:
        found = verify(settings, progress=progress)
    print_verification(console, found)
    return found.agrees


# ------------------------------------------------------------------------------------------------------------------- shown


def _show_counts(settings: Settings, console: Console) -> None:
    answer = query(
        settings,
        """
        SELECT resolution, count(*) AS n, count(DISTINCT id) AS series, sum(count_rollup)::BIGINT AS points, max(logical_timestamp) AS last
        FROM rollups GROUP BY 1 ORDER BY 1
        """,
    ).to_pylist()
    table = Table("resolution", box=None, pad_edge=False)
    for column in ("rows", "series", "points in them", "last label (UTC)"):
        table.add_column(column, justify="right")
    for row in answer:
        table.add_row(
            format_duration(row["resolution"]), f"{row['n']:,}", f"{row['series']:,}", f"{row['points']:,}", f"{row['last']:%Y-%m-%d %H:%M}"
        )
    print_table(console, table)


def _show_series(settings: Settings, console: Console) -> None:
    """One counter, as its rate per second, at every resolution."""
    finest = settings.resolutions[0]
    chosen = query(
        settings,
        f"""
        SELECT id, arg_min(metric, logical_timestamp) AS metric, arg_min(org_id, logical_timestamp) AS org_id
        FROM rollups WHERE resolution = {finest} GROUP BY id
        HAVING sum(resets_rollup) <= 2 AND count(delta_rollup) > 1 AND sum(delta_rollup) > 0
        -- Long, without being flat or all spikes.
        ORDER BY count(*) DESC, abs(stddev_pop(rate_rollup) / avg(rate_rollup) - 0.3), id LIMIT 1
        """,
    ).to_pylist()
    if not chosen:
        console.print("no series looks like a counter, so there is no chart")
        return
    series = chosen[0]
    rows = query(
        settings,
        f"SELECT resolution, epoch_ms(logical_timestamp) AS label, rate_rollup AS rate FROM rollups WHERE id = {series['id']} ORDER BY ALL",
    ).to_pylist()
    begin = min(row["label"] - row["resolution"] for row in rows if row["resolution"] == finest)
    end = max(row["label"] for row in rows)
    say(console, f"\n[bold]{escape(series['metric'])}[/], series {series['id']} of org {series['org_id']}: rate per second")
    for number, resolution in enumerate(settings.resolutions):
        height = max(2, 5 - 2 * number)
        windows = [
            (row["label"] - resolution, row["label"], row["rate"])
            for row in rows
            if row["resolution"] == resolution and row["rate"] is not None
        ]
        if not windows:
            continue
        rates = [rate for *_, rate in windows]
        lines = columns(spread(windows, begin, end, _WIDTH), height)
        notes = [f"{compact(max(rates))}", *[""] * (height - 2), f"{compact(min(rates))}"]
        for name, line, note in zip((format_duration(resolution), *[""] * (height - 1)), lines, notes, strict=True):
            say(console, f"{name:>4} [cyan]{line}[/] [dim]{note}[/]")
    step = HOUR_MS if end - begin > 2 * HOUR_MS else HOUR_MS // 4
    ticks = [(ms, f"{to_datetime(ms):%H:%M}") for ms in range(-(-begin // step) * step, end, step)]
    say(console, f"     [dim]{axis(begin, end, ticks, _WIDTH)}[/]\n")


def _show_times(settings: Settings, batches: Sequence[Batch], console: Console) -> None:
    """Seconds of every stage over all partitions, as their manifests have them, largest first."""
    stage = Stage(Place.parse(settings.stage, settings.s3))
    last = settings.calendar.shifted(batches[-1], settings.reach) or batches[-1]
    steps = {REPARTITIONED: "stage", ROLLUPS: "roll up", ROLLUP_TABLE: "publish"}
    seconds: Counter[tuple[str, str]] = Counter()
    for batch in settings.calendar.between(batches[0], last):
        for asset, step in steps.items():
            manifest = stage.read(asset, batch)
            if manifest is not None:
                # The total is wall time; the stages add up the time of parallel threads.
                seconds.update({(step, name): spent for name, spent in manifest.timings.items() if name != "total"})
    total = sum(seconds.values())
    table = Table("", "step", "stage", box=None, pad_edge=False)
    table.add_column("time", justify="right")
    table.add_column("of total", justify="right")
    for number, ((step, name), spent) in enumerate(seconds.most_common(), start=1):
        table.add_row(f"{number}.", step, name, f"{1_000 * spent:,.0f} ms", f"{100 * spent / total if total else 0:.2f}%")
    print_table(console, table)


def _show_next(settings: Settings, console: Console) -> None:
    home = settings.home
    home = home.relative_to(project_root()) if home.is_relative_to(project_root()) else home
    rollups = _program() if home == Path(".rollups") else f"ROLLUP_HOME={shlex.quote(str(home))} {_program()}"
    if os.environ.get("DAGSTER_HOME") == "":
        # `make demo` has emptied it: in the terminal it names the records of other data.
        rollups = f"DAGSTER_HOME= {rollups}"
    for what, command in (
        ("the graph, its partitions and checks in the browser", f"{rollups} dev"),
        ("ask SQL", f'{rollups} sql "select resolution, count(*), sum(count_rollup) from rollups group by 1"'),
        ("what is staged, published or stale", f"{rollups} status"),
    ):
        say(console, f"{what}:\n    {escape(command)}")


def _program() -> str:
    """``rollups``, or the path to it if the shell would not find it: ``make demo`` activates no environment."""
    if shutil.which("rollups"):
        return "rollups"
    program, here = Path(sys.executable).parent / "rollups", Path.cwd()
    # From within its own folder, the relative path would be a bare name, which the shell looks for elsewhere.
    return shlex.quote(str(program.relative_to(here) if here in program.parent.parents else program))
