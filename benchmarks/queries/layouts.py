"""The same rollups in several layouts, each an Iceberg table.

``ours``: raw points through this project's own steps, one hourly batch after another. ``seed``: what the seed's append leaves, a table
without partitions and with one uncompressed file per shard and batch, in which series come in any order. ``unsorted``: our partitions,
codec and row groups, but rows in the order in which points arrive, minute by minute. These two have the first hours of the same rows.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.queries.questions import Series
from benchmarks.sites import EPOCH_MS

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from rollup_assets.pipeline import Pipeline

OURS, SEED, UNSORTED = "rollup_assets", "the seed's", "unsorted"
LAYOUTS = (OURS, SEED, UNSORTED)
_FILES = 4
_SEED_ROW_GROUP = 1 << 20
"""Rows that fill 128 MB, Iceberg's default."""


def make(folder: Path, series: int, hours: int, hours_beside: int, threads: int) -> dict[str, Any]:
    """Write all tables; returns their metadata files by layout, and the series to ask for."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pipeline = _open(folder, threads)
    metadata = {OURS: _publish_day(pipeline, folder, series, hours, threads)}
    for layout in (SEED, UNSORTED):
        metadata[layout] = _append(pipeline, folder / layout.replace("'", "").replace(" ", "-"), layout, hours_beside)
    return {"metadata": metadata, "series": _chosen(series, pipeline.settings.shards)}


def _open(folder: Path, threads: int) -> Pipeline:
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import load_settings

    return Pipeline.from_settings(load_settings(home=folder / "home", raw=str(folder / "raw"), threads=threads, resolutions="1m"))


def _chosen(series: int, shards: int) -> dict[str, Any]:
    """A series from the middle."""
    from pyiceberg.transforms import BucketTransform
    from pyiceberg.types import LongType

    from benchmarks.points import Targets

    batch = next(Targets(series).batches(range(1)))
    row = batch.slice(batch.num_rows // 2, 1).to_pylist()[0]
    shard = BucketTransform(shards).transform(LongType())(row["id"])
    return {"id": row["id"], "org": row["org_id"], "metric": row["metric"], "shard": shard}


def series_of(made: dict[str, Any]) -> Series:
    """The series that :func:`make` has chosen."""
    return Series(**made["series"])


def _publish_day(pipeline: Pipeline, folder: Path, series: int, hours: int, threads: int) -> str:
    from rollup_assets.iceberg.catalog import open_catalog
    from rollup_assets.steps.publish import publish
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.rollup import roll_up

    for hour in range(hours):
        batch = pipeline.batch(_key(hour))
        _write_raw(folder / "raw" / f"year=2026/month=01/day=01/hour={hour:02d}", series, hour, threads)
        stage_batch(pipeline, batch)
        roll_up(pipeline, batch)
        publish(pipeline, batch)
    # Deleted, since a day of raw and sorted points is as large as its rollups.
    shutil.rmtree(folder / "raw")
    shutil.rmtree(folder / "home" / "stage" / "repartitioned_datapoints")
    with open_catalog(pipeline.settings) as catalog:
        return str(catalog.load_table(pipeline.settings.table).metadata_location)


def _key(hour: int) -> str:
    return f"2026-01-01-{hour:02d}:00"


def _write_raw(folder: Path, series: int, hour: int, threads: int) -> None:
    """Write an hour's points, one per minute and series, as ``benchmarks.data`` makes sparse ones."""
    from concurrent.futures import ThreadPoolExecutor

    import pyarrow as pa
    import pyarrow.parquet as pq

    from benchmarks.points import Targets

    folder.mkdir(parents=True)
    targets = Targets(series)
    minutes = 60 // _FILES

    def write(file: int) -> None:
        first = hour * 60 + file * minutes
        batches = targets.batches(range(first * targets.targets, (first + minutes) * targets.targets))
        pq.write_table(pa.Table.from_batches(batches), folder / f"raw-{file}.parquet", compression="zstd", compression_level=1)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(_FILES)))


def _append(pipeline: Pipeline, folder: Path, layout: str, hours: int) -> str:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from pyiceberg.catalog.sql import SqlCatalog

    from rollup_assets.iceberg.data_files import data_file
    from rollup_assets.iceberg.schema import iceberg_schema, partition_spec
    from rollup_assets.steps.roll_up_shards import dictionary_schema
    from rollup_assets.storage.manifests import ROLLUPS

    folder.mkdir()
    catalog = SqlCatalog("benchmark", uri=f"sqlite:///{folder}/catalog.db", warehouse=str(folder))
    catalog.create_namespace("metrics")
    spec: dict[str, Any] = {"partition_spec": partition_spec()} if layout == UNSORTED else {}
    table = catalog.create_table("metrics.rollups", schema=iceberg_schema(pipeline.settings.value_type), **spec)
    for hour in range(hours):
        manifest = pipeline.stage.read(ROLLUPS, pipeline.batch(_key(hour)))
        assert manifest is not None
        whole = pa.concat_tables(
            [pq.ParquetFile(file.path, read_dictionary=["metric"]).read() for file in manifest.files]
        ).unify_dictionaries()
        whole = whole.cast(dictionary_schema(pipeline.settings.value_type))
        order = np.random.default_rng(hour).permutation(whole.num_rows)
        write = _write_seed if layout == SEED else _write_unsorted
        with table.transaction() as transaction, transaction.update_snapshot().fast_append() as appended:
            for path in write(folder / f"{hour:02d}", whole, order):
                appended.append_data_file(data_file(table, path))
    return str(table.metadata_location)


def _write_seed(path: Path, whole: pa.Table, order: NDArray[np.int64]) -> list[str]:
    import numpy as np
    import pyarrow.parquet as pq

    shards = whole.column("metric_shard_id").to_numpy()[order]
    paths = []
    for shard in np.unique(shards):
        paths.append(f"{path}-{shard:05d}.parquet")
        rows = whole.take(order[shards == shard])
        pq.write_table(rows, paths[-1], compression="none", row_group_size=_SEED_ROW_GROUP, store_schema=False)
    return paths


def _write_unsorted(path: Path, whole: pa.Table, order: NDArray[np.int64]) -> list[str]:
    import numpy as np
    import pyarrow.parquet as pq

    from rollup_assets.storage import encodings

    labels = whole.column("logical_timestamp").to_numpy().astype(np.int64)[order]
    order = order[np.argsort(labels, kind="stable")]
    paths = []
    for number, part in enumerate(np.array_split(order, _FILES)):
        paths.append(f"{path}-{number}.parquet")
        rows = whole.take(part).combine_chunks()
        options = encodings.ROLLUPS.options(rows.schema)
        pq.write_table(rows, paths[-1], row_group_size=encodings.ROLLUPS_ROW_GROUP, **options)
    return paths


def bytes_of(metadata: str, start: int, end: int) -> int:
    """Bytes of a table's data files with labels in ``[start, end)``, in epoch ms."""
    from pyiceberg.table import StaticTable

    from benchmarks.queries.questions import Question
    from benchmarks.queries.readers import predicate

    table = StaticTable.from_metadata(metadata)
    tasks = table.scan(row_filter=predicate(Question(None, (), start, end))).plan_files()
    return sum(task.file.file_size_in_bytes for task in tasks)


START = EPOCH_MS
