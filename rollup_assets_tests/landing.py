"""Raw Parquet files for tests: rows of the reference model into a landing zone, in every accepted shape.

Also folders that cannot be listed, and files that cannot be read. Reading staged files back is `staged.py`.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollup_assets.batches import Batch, to_datetime
from rollup_assets.storage.filesystems import FoundFile, Place
from rollup_assets_tests.conftest import SMALL
from rollup_assets_tests.naive import RawRow
from rollup_assets_tests.strategies import HOUR, Grid

if TYPE_CHECKING:
    from rollup_assets.pipeline import Pipeline

TICKS_PER_MS = {"ms": 1, "us": 1_000, "ns": 1_000_000}


@dataclass(frozen=True)
class Shape:
    """Column types of a raw file, and how it is cut.

    Timestamps are written as ``int64`` (or ``int32``) milliseconds or as Arrow timestamps of a unit, with a time zone or without.
    """

    integers: pa.DataType = field(default_factory=pa.int64)
    metric: pa.DataType = field(default_factory=pa.string)
    time: pa.DataType = field(default_factory=pa.int64)
    value: pa.DataType | None = None
    receive: bool = True
    row_group: int = 1_000_000


def time_array(times: Sequence[int | None], kind: pa.DataType) -> pa.Array:
    """Epoch milliseconds as a column of a type."""
    if not pa.types.is_timestamp(kind):
        return pa.array(times, kind)
    if kind.unit == "s":
        assert all(time is None or time % 1000 == 0 for time in times), "whole seconds only"
        ticks = [None if time is None else time // 1000 for time in times]
    else:
        ticks = [None if time is None else time * TICKS_PER_MS[kind.unit] for time in times]
    return pa.array(ticks, pa.int64()).cast(kind)


def table_of(rows: Sequence[RawRow], value_column: str = "long_value", shape: Shape | None = None) -> pa.Table:
    """Raw rows as an Arrow table."""
    shape = shape or Shape()
    value = shape.value or (pa.float64() if value_column == "double_value" else pa.int64())
    columns = {
        "id": pa.array([row.id for row in rows], shape.integers),
        "org_id": pa.array([row.org_id for row in rows], shape.integers),
        "metric": pa.array([row.metric for row in rows], pa.string()).cast(shape.metric)
        if not pa.types.is_dictionary(shape.metric)
        else pa.array([row.metric for row in rows], shape.metric.value_type).dictionary_encode().cast(shape.metric),
        "logical_timestamp": time_array([row.ts for row in rows], shape.time),
        value_column: pa.array([row.value for row in rows], value),
    }
    if shape.receive:
        columns["receive_timestamp"] = time_array([row.receive for row in rows], shape.time)
    return pa.table(columns)


def write_table(pipeline: Pipeline, batch: Batch, name: str, table: pa.Table, row_group: int = 1_000_000) -> str:
    """Write one raw file of a batch; returns its path relative to the landing zone."""
    path = Path(pipeline.landing_zone.folder(batch).path) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=max(row_group, 1))
    return str(path.relative_to(pipeline.landing_zone.root.path))


def write_rows(pipeline: Pipeline, batch: Batch, name: str, rows: Sequence[RawRow], shape: Shape | None = None) -> str:
    """Write one raw file of a batch from rows; returns its path relative to the landing zone."""
    shape = shape or Shape()
    return write_table(pipeline, batch, name, table_of(rows, pipeline.settings.value_column, shape), shape.row_group)


def write_bytes(pipeline: Pipeline, batch: Batch, name: str, content: bytes) -> str:
    """Write anything as a raw file of a batch; returns its path relative to the landing zone."""
    path = Path(pipeline.landing_zone.folder(batch).path) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path.relative_to(pipeline.landing_zone.root.path))


def land(pipeline: Pipeline, rows: Sequence[RawRow], *, files: int = 1, shuffle: int | None = None, shape: Shape | None = None) -> None:
    """Write good rows into the folders of their batches, dealt out over ``files`` files each; ``shuffle`` is the seed of their order."""
    rows = list(rows)
    if shuffle is not None:
        random.Random(shuffle).shuffle(rows)
    by_batch: dict[Batch, list[RawRow]] = {}
    for row in rows:
        assert row.ts is not None
        by_batch.setdefault(pipeline.calendar.containing(row.ts), []).append(row)
    for batch, inside in by_batch.items():
        for number in range(files):
            write_rows(pipeline, batch, f"part-{number}.parquet", inside[number::files], shape)


def forbid(patch: pytest.MonkeyPatch, *folders: Place) -> None:
    """Refuse what a disk refuses of folders without rights, also to root: to list one, what is below it, and all that is above it."""
    list_files, list_folders = Place.files, Place.folders

    def check(place: Place, *, recursive: bool) -> None:
        for folder in folders:
            if place == folder or folder.contains(place) or (recursive and place.contains(folder)):
                raise PermissionError(13, "Permission denied")

    def files(place: Place, *, recursive: bool = True, prefix: str = "") -> Iterator[FoundFile]:
        check(place, recursive=recursive)
        return list_files(place, recursive=recursive, prefix=prefix)

    def names(place: Place) -> list[str]:
        check(place, recursive=False)
        return list_folders(place)

    patch.setattr(Place, "files", files)
    patch.setattr(Place, "folders", names)


def forbid_file(patch: pytest.MonkeyPatch, file: Place) -> None:
    """Refuse what a disk refuses of a file without rights, also to root: to read it."""
    read = Place.read_versioned

    def read_versioned(place: Place) -> tuple[bytes | None, str | None]:
        if place == file:
            raise PermissionError(13, "Permission denied")
        return read(place)

    patch.setattr(Place, "read_versioned", read_versioned)


def batches_of(pipeline: Pipeline, grid: Grid) -> list[Batch]:
    """The batches of a grid."""
    return [pipeline.calendar.containing(start) for start in grid.starts()]


def pipeline_of(grid: Grid, home: Path, **overrides: Any) -> Pipeline:
    """A pipeline whose batches, resolutions and lookback are those of a grid."""
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import load_settings

    layout = {} if grid.length >= HOUR else {"raw_layout": "%Y-%m-%d-%H%M"}
    chosen = {"batch": grid.length, "resolutions": grid.resolutions, "lookback": grid.lookback, **layout, **overrides}
    return Pipeline.from_settings(load_settings(home=str(home), start=to_datetime(grid.start), **{**SMALL, **chosen}))


def with_engine(pipeline: Pipeline, *, threads: int, memory: int) -> Pipeline:
    """The same pipeline on a local engine with other threads and memory, also less than the settings allow."""
    from rollup_assets.engines.local import LocalEngine

    return dataclasses.replace(pipeline, engine=LocalEngine(threads=threads, memory=memory, scratch=pipeline.settings.home / "scratch"))
