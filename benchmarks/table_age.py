"""How long a batch takes to publish as its table grows old: ``python -m benchmarks.table_age``.

Batches with one file per resolution are published one after another. The first ``--real`` publishes are real; then the table is aged to
the 9,900th publish, and the last hundred are real again (the last 24 if every snapshot is kept). If snapshots expire by the product's
default, a table is aged by commits of a hundred batches each, whose data files have names but no content, and the product merges their
manifests; with ``--full``, all of its publishes are real. If every snapshot is kept, a table is aged by copies of the last snapshot in its
metadata.

To the aged table, and in turns with it to a young one, batches of many files are published then.
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
from benchmarks.catalogs import EMBEDDED, Catalogs, catalogs, stage
from benchmarks.circumstances import occasion
from benchmarks.publishing import PACKAGES, batch_number, require
from benchmarks.sections import table_age as section

if TYPE_CHECKING:
    from pyiceberg.manifest import DataFile

    from rollup_assets.batches import Batch
    from rollup_assets.pipeline import Pipeline

REAL, AGE = 1000, 10_000
WINDOW = 24
"""Publishes per figure of the table's age: a day of hourly batches, since publishing looks at the day's files."""
FILES, REPEAT = (20, 200, 2000), 5
"""Numbers of a batch's files, and batches of each that the young and the aged table get in turns."""
_LAST = 100
_STEP = 100
_DAY = 86_400_000
_UNLIMITED = 1_000_000
console = Console(highlight=False, soft_wrap=True)


def grow_old(on: Catalogs, name: str, *, retained: bool, real: int, age: int, full: bool) -> list[dict[str, Any]]:
    """Publish times of one table as it ages; ``retained``: snapshots expire by the product's default, else all are kept."""
    pipeline = _pipeline(on, name, "aging", retained=retained)
    seconds: dict[int, float] = {}
    cpu: dict[int, float] = {}
    last = min(_LAST if retained else WINDOW, age - real)
    points = []
    shown = {point for point in _points(age) if point <= (age if full else real)} | {age}
    numbers = [*range(1, real + 1), *range(age - last + 1, age + 1)] if not full else range(1, age + 1)
    for number in numbers:
        if number > 1 and number - 1 not in seconds:
            _age(pipeline, number - 1, retained=retained)
        seconds[number], cpu[number] = _publish(pipeline, number, len(pipeline.settings.resolutions))
        if number in shown:
            window = [each for each in range(max(number - WINDOW, 0) + 1, number + 1) if each in seconds]
            about = {"catalog": name, "retained": retained, "publishes": number, "real": full or number <= real}
            taken = {**_spread([seconds[each] for each in window]), "cpu": round(median(cpu[each] for each in window), 4)}
            points.append(about | taken | _sizes(pipeline))
    return points


def publish_many(on: Catalogs, name: str, *, retained: bool, age: int, files: tuple[int, ...], repeat: int) -> list[dict[str, Any]]:
    """Publish times of batches of many files, in turns on a young table and on the one that :func:`grow_old` has aged to ``age``.

    Both get batches of the same hours of a day, since publishing looks at the day's files.
    """
    young, aged = (_pipeline(on, name, table, retained=retained) for table in ("young", "aging"))
    first = age % WINDOW or WINDOW
    _publish(young, first, len(young.settings.resolutions))
    runs = []
    for place, number in enumerate((number for number in files for _ in range(repeat)), start=1):
        for pipeline, batch in ((young, first + place), (aged, age + place)):
            seconds, cpu = _publish(pipeline, batch, number)
            about = {"catalog": name, "retained": retained, "aged": pipeline is aged, "files": number, "turn": (place - 1) % repeat + 1}
            runs.append({**about, "seconds": round(seconds, 4), "cpu": round(cpu, 4)})
    return runs


def _pipeline(on: Catalogs, name: str, table: str, *, retained: bool) -> Pipeline:
    return on.pipeline(name, table if retained else f"{table}_kept", **({} if retained else {"keep_snapshots": _UNLIMITED}))


def _publish(pipeline: Pipeline, number: int, files: int) -> tuple[float, float]:
    """Publish the table's batch ``number``, from 1, with so many files; wall and CPU seconds."""
    from rollup_assets.steps.publish import publish

    batch = batch_number(pipeline, number - 1)
    stage(pipeline, batch, files, series=1)
    spent, started = time.process_time(), time.perf_counter()
    publish(pipeline, batch)
    return time.perf_counter() - started, time.process_time() - spent


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
    from rollup_assets.iceberg.shared_metadata import cheap_to_change

    transaction = cheap_to_change(table).transaction()
    with transaction.update_snapshot().fast_append() as append:
        for real in _real_files(table, len(pipeline.settings.resolutions)):
            for number in numbers:
                append.append_data_file(_moved(real, batch_number(pipeline, number), table.location()))
    transaction.commit_transaction()


def _real_files(table: Any, count: int) -> list[DataFile]:
    """The files of any published batch."""
    first = next(manifest for manifest in reversed(_manifests(table)) if (manifest.added_files_count or manifest.existing_files_count))
    entries = first.fetch_manifest_entry(table.io)
    found = {entry.data_file.partition[0]: entry.data_file for entry in entries}
    require(len(found) == count, "the table has a file of each resolution")
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


def is_complete(*, real: int, age: int) -> bool:
    """Whether these options measure the whole benchmark."""
    return age == AGE and real >= REAL


def main(
    real: Annotated[int, typer.Option(help="Real publishes before a table is aged.")] = REAL,
    age: Annotated[int, typer.Option(help="Publishes that a table has seen in the end.")] = AGE,
    full: Annotated[
        bool, typer.Option("--full", help="Every publish is real, but for tables that keep all snapshots; takes 80 minutes.")
    ] = False,
    work: Annotated[Path | None, typer.Option(help="Folder for data, 3 GB; a temporary one unless given.")] = None,
    output: Annotated[Path | None, typer.Option(help="Results, JSON. With the defaults benchmarks/results/table_age.json.")] = None,
) -> None:
    """Publishing over the table's age."""
    # PyIceberg warns at each snapshot property that it does not know.
    logging.getLogger("pyiceberg").setLevel(logging.ERROR)
    ages, many = [], []
    with tempfile.TemporaryDirectory(dir=work) as folder, catalogs(Path(folder)) as on:
        for name, retained in section.AGED:
            console.print(f"{name}: aging{'' if retained else ', every snapshot kept'}")
            ages += grow_old(on, name, retained=retained, real=_real(name, retained, real), age=age, full=full and retained)
            many += publish_many(on, name, retained=retained, age=age, files=FILES, repeat=REPEAT)
    results = {**occasion(section.COMMAND, PACKAGES), "age": age, "repeat": REPEAT, "ages": ages, "many": many}
    report.keep(results, section.NAME, complete=is_complete(real=real, age=age), output=output, say=console.print)
    for text in (section.by_age(results), section.by_files(results)):
        console.print(text)


def _real(name: str, retained: bool, real: int) -> int:
    """The number of real publishes: fewer on servers, which take longer, but over a hundred, after which snapshots expire."""
    return min(real, 1000 if name == EMBEDDED and retained else 300 if name == EMBEDDED else 124)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
