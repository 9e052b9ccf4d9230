"""What Dagster shows for a partition: counts, sizes, stage times, a preview of rows. Makes metadata values from manifests and staged files.

Numbers are numbers, so that the UI plots them over partitions. Which events carry them stays out (``defs.report``).
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dagster as dg

from rollup_assets.batches import Batch, time_text
from rollup_assets.escaping import markdown_text
from rollup_assets.iceberg.schema import COLUMNS
from rollup_assets.settings import Settings
from rollup_assets.storage.copies import COPIES
from rollup_assets.storage.manifests import ROLLUPS, Manifest, Stage
from rollup_assets.units import format_duration

if TYPE_CHECKING:
    import pyarrow as pa

PREVIEW_ROWS = 5
COPIES_SHOWN = 20
ON_THE_CLOCK = "total"
"""The name among a manifest's timings that is not a stage: wall time."""
_OF_ROLLUPS = {column.name: column.description for column in COLUMNS}
_OF_POINTS = {
    "metric_shard_id": _OF_ROLLUPS["metric_shard_id"],
    "id": "series",
    "org_id": "organization",
    "metric": "name of the metric",
    "logical_timestamp": "event time in UTC epoch milliseconds",
    "receive_timestamp": "when the platform received the point, UTC epoch milliseconds",
    "long_value": "the value",
    "double_value": "the value",
    "reason": "why the row or file cannot be used",
    "file": "raw file, relative to the landing zone",
    "row_number": "position in the file, from 0; null for a whole file",
    "rows": "rows this stands for: 1, or those of a whole file",
    "detail": "what is wrong with a whole file",
    "first_timestamp": "first accepted point of the batch, UTC epoch milliseconds",
    "first_value": "its value",
    "last_timestamp": "last accepted point of the batch, UTC epoch milliseconds",
    "last_value": "its value",
}
_PER_RESOLUTION = {"rows": "rows", "counts": "points", "carried": "points_carried", "windows": "open_windows", "files": "files"}

Metadata = dict[str, Any]


def of_staged(stage: Stage, batch: Batch, manifest: Manifest, *, unchanged: bool) -> Metadata:
    """All metadata of a staged partition."""
    metadata: Metadata = {
        "dagster/partition_row_count": manifest.rows,
        "dagster/uri": stage.folder(manifest.asset, batch).uri,
        **numbers(manifest.counters),
        "bytes": manifest.bytes,
        "files": len(manifest.files),
        "unchanged": unchanged,
        **times(manifest.timings),
    }
    if copies := manifest.counters.get(COPIES):
        metadata[COPIES] = dg.MetadataValue.md(copies_table(copies))
    sample = first_rows(stage, batch, manifest)
    if sample is not None:
        metadata["preview"] = dg.MetadataValue.md(markdown(sample))
        metadata["dagster/column_schema"] = column_schema(sample.schema, _OF_ROLLUPS if manifest.asset == ROLLUPS else _OF_POINTS)
    return metadata


def of_receipt(receipt: Manifest, snapshot_id: int | None) -> Metadata:
    """Metadata that publishing adds to that of the staged rollups."""
    return {
        "dagster/partition_row_count": sum(int(rows) for rows in receipt.counters["rows"].values()),
        # As text: a snapshot id has 63 bits, and the browser would round it to 53.
        "snapshot_id": str(snapshot_id) if snapshot_id is not None else "none: the table never had a row",
        **numbers({name: receipt.counters[name] for name in ("rows", "files")}),
        **times(receipt.timings),
    }


def numbers(counters: Mapping[str, Any]) -> Metadata:
    """Counters that are plain numbers, and one by one those by resolution or reason; checksums, which only checks read, are left out."""
    found: Metadata = {name: value for name, value in counters.items() if isinstance(value, int | float)}
    found |= {f"quarantined_{reason}": rows for reason, rows in counters.get("reasons", {}).items()}
    for name, shown in _PER_RESOLUTION.items():
        by_resolution = counters.get(name)
        if isinstance(by_resolution, Mapping):
            found |= {f"{shown}_{format_duration(int(resolution))}": value for resolution, value in by_resolution.items()}
    return found


def times(timings: Mapping[str, float]) -> Metadata:
    """Seconds from beginning to end, and a table of the stages, slowest first, with their share of all work.

    Threads work on several stages at once, so the stages' seconds add up to more than the wall time.
    """
    if not timings:
        return {}
    stages = {stage: seconds for stage, seconds in timings.items() if stage != ON_THE_CLOCK}
    work = sum(stages.values())
    clock = timings.get(ON_THE_CLOCK, work)
    rows = [
        f"| {stage} | {seconds:.3f} | {seconds / work if work else 0:.2%} |"
        for stage, seconds in sorted(stages.items(), key=lambda item: (-item[1], item[0]))
    ]
    table = [
        "| stage | seconds | of the work |",
        "|---|--:|--:|",
        *rows,
        f"| **all stages** | **{work:.3f}** | **{1 if work else 0:.2%}** |",
        f"| on the clock | {clock:.3f} | |",
    ]
    return {"seconds": round(clock, 3), "stage_times": dg.MetadataValue.md("\n".join(table))}


def first_rows(stage: Stage, batch: Batch, manifest: Manifest) -> pa.Table | None:
    """The first rows of the partition's first file; None if it has no file. Reads one chunk of each column, not the whole file."""
    import pyarrow.parquet as pq

    if not manifest.files:
        return None
    with stage.place(manifest, manifest.files[0], batch).open_input() as source:
        reader = pq.ParquetFile(source)
        found = next(reader.iter_batches(batch_size=PREVIEW_ROWS), None)
        return reader.schema_arrow.empty_table() if found is None else _table(found)


def markdown(rows: pa.Table) -> str:
    """A table of a few rows, with epoch milliseconds as readable times."""
    names = rows.column_names
    lines = [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
    lines += [f"| {' | '.join(_cell(name, row[name]) for name in names)} |" for row in rows.to_pylist()]
    return "\n".join(lines)


def markdown_list(texts: Sequence[str]) -> dg.MarkdownMetadataValue:
    """A list of sentences or names."""
    return dg.MetadataValue.md("\n".join(f"- {markdown_text(text)}" for text in texts))


def copies_table(copies: Mapping[str, str]) -> str:
    """The first few raw files that were not read, with the ones that have the same content."""
    shown = [f"| {_cell('file', copy)} | {_cell('file', original)} |" for copy, original in list(copies.items())[:COPIES_SHOWN]]
    more = [f"| and {len(copies) - COPIES_SHOWN:,} more | |"] if len(copies) > COPIES_SHOWN else []
    return "\n".join(["| not read | same content as |", "|---|---|", *shown, *more])


def column_schema(schema: pa.Schema, descriptions: Mapping[str, str]) -> dg.TableSchema:
    """Names, types and nullability of staged columns."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                field.name,
                str(field.type),
                description=descriptions.get(field.name),
                constraints=dg.TableColumnConstraints(nullable=field.nullable),
            )
            for field in schema
        ]
    )


def table_schema(settings: Settings) -> dg.TableSchema:
    """The published table's columns."""
    value = settings.value_type
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                value if column.type == "value" else column.type,
                description=column.description,
                constraints=dg.TableColumnConstraints(nullable=not column.required),
            )
            for column in COLUMNS
        ]
    )


def raw_schema(settings: Settings) -> dg.TableSchema:
    """The columns that raw files must have."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn("id", "int64 | int32", description="series"),
            dg.TableColumn("org_id", "int64 | int32", description="organization"),
            dg.TableColumn("metric", "string", description="name of the metric"),
            dg.TableColumn(
                "logical_timestamp", "int64 | timestamp", description="event time: UTC epoch milliseconds, or an Arrow timestamp"
            ),
            dg.TableColumn(settings.value_column, "int64 | int32" if settings.value_type == "long" else "double", description="the value"),
            dg.TableColumn("receive_timestamp", "int64 | timestamp", description="when the platform received the point; optional column"),
        ]
    )


def _table(rows: pa.RecordBatch) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_batches([rows])


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    if name.endswith("_timestamp") and isinstance(value, int):
        return time_text(value)
    if isinstance(value, dt.datetime):
        return f"{value:%Y-%m-%d %H:%M:%S}"
    return markdown_text(str(value))
