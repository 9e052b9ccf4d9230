"""Staged batches made by hand: rollup files in the table's data location, and the manifests that go with them."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from rollup_assets.batches import Batch
from rollup_assets.iceberg.catalog import load_catalog
from rollup_assets.iceberg.schema import arrow_schema
from rollup_assets.iceberg.table import data_location
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import Settings, load_settings
from rollup_assets.steps.parameters import content_parameters, rollup_parameters
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.landing_zone import LandingZone
from rollup_assets.storage.manifests import (
    PARTIAL_POINTS,
    REPARTITIONED,
    ROLLUPS,
    Manifest,
    Stage,
    StagedFile,
    content_digest,
    new_attempt,
)

if TYPE_CHECKING:
    from pyiceberg.table import Table


def pipeline_in(home: Path, **overrides: Any) -> Pipeline:
    """A pipeline whose engine nobody uses: publishing runs without one."""
    settings = load_settings(home=str(home), shards=overrides.pop("shards", 4), **overrides)
    return Pipeline(
        settings=settings,
        landing_zone=LandingZone(Place.parse(settings.raw, settings.s3), settings.raw_layout, settings.calendar),
        stage=Stage(Place.parse(settings.stage, settings.s3)),
        engine=None,  # type: ignore[arg-type]
    )


def rollup_rows(settings: Settings, batch: Batch, resolution: int, series: int, value: int = 1, first_id: int = 0) -> pa.Table:
    """One row per series and label of the batch, in the table's schema."""
    labels = np.arange(batch.start, batch.end, resolution, dtype=np.int64)
    ids = np.repeat(np.arange(first_id, first_id + series, dtype=np.int64), len(labels))
    stamps = np.tile(labels, series)
    rows = len(ids)
    values = np.full(rows, value, np.int64 if settings.value_type == "long" else np.float64)
    count = np.full(rows, 3, np.int64)
    schema = arrow_schema(settings.value_type)
    columns = {
        "metric_shard_id": (ids % settings.shards).astype(np.int32),
        "id": ids,
        "org_id": ids // 10,
        "metric": np.char.add("metric.", (ids % 7).astype(str)),
        "resolution": np.full(rows, resolution, np.int32),
        "logical_timestamp": pa.array(stamps * 1000).cast(pa.timestamp("us", "UTC")),
        "count_rollup": count,
        "average_rollup": np.full(rows, float(value)),
        "delta_rollup": pa.array([None] * rows, schema.field("delta_rollup").type),
        "resets_rollup": np.zeros(rows, np.int64),
        "rate_rollup": pa.array([None] * rows, pa.float64()),
        "lag_rollup": pa.array([None] * rows, pa.float64()),
    }
    return pa.table([columns.get(field.name, values) for field in schema], schema=schema)


def stage_upstream(pipeline: Pipeline, batch: Batch, version: str = "1") -> dict[str, dict[str, str | None]]:
    """Current manifests of what rollups are made from; returns what a rollups manifest says about them."""
    wanted = [(REPARTITIONED, batch), (PARTIAL_POINTS, batch)]
    wanted += [(PARTIAL_POINTS, earlier) for earlier in pipeline.calendar.earlier(batch, pipeline.settings.reach)]
    upstream: dict[str, dict[str, str | None]] = {REPARTITIONED: {}, PARTIAL_POINTS: {}}
    for asset, of in wanted:
        counters = {"version": version if of == batch else "1", "rows_accepted": 1}
        manifest = Manifest(
            asset=asset,
            partition=of.key,
            attempt=new_attempt(),
            code_version="1",
            parameters=content_parameters(pipeline.settings, of),
            counters=counters,
            digest=content_digest((), counters),
        )
        if of == batch or pipeline.stage.read(asset, of) is None:
            pipeline.stage.write(manifest, of)
        current = pipeline.stage.read(asset, of)
        assert current is not None
        upstream[asset][of.key] = current.digest
    return upstream


def stage_rollups(
    pipeline: Pipeline, batch: Batch, *, series: int = 3, files: int = 1, value: int = 1, rows: dict[int, list[pa.Table]] | None = None
) -> Manifest:
    """Stage ``files`` files for each resolution, ``series`` series in each; or exactly ``rows`` (tables by resolution)."""
    settings = pipeline.settings
    if rows is None:
        rows = {
            resolution: [rollup_rows(settings, batch, resolution, series, value, first_id=number * series) for number in range(files)]
            for resolution in settings.resolutions
        }
    attempt = new_attempt()
    staged = []
    counts: Counter[str] = Counter({str(resolution): 0 for resolution in settings.resolutions})
    for resolution, tables in rows.items():
        for table in tables:
            place = data_location(settings) / batch.folder / attempt / f"{resolution}-{uuid.uuid4().hex}.parquet"
            with place.open_output() as stream:
                pq.write_table(table, stream, compression="zstd")
            content = place.read_bytes()
            assert content is not None
            counts[str(resolution)] += table.num_rows
            digest = xxhash.xxh3_128_hexdigest(content)
            staged.append(StagedFile(path=place.uri, rows=table.num_rows, size=len(content), digest=digest, resolution=resolution))
    counters = {"rows": dict(counts)}
    manifest = Manifest(
        asset=ROLLUPS,
        partition=batch.key,
        attempt=attempt,
        code_version="1",
        parameters=rollup_parameters(settings),
        upstream=stage_upstream(pipeline, batch),
        files=tuple(staged),
        counters=counters,
        digest=content_digest(tuple(staged), counters),
    )
    pipeline.stage.write(manifest, batch)
    return manifest


def batches_from(pipeline: Pipeline, count: int, first: int = 0) -> list[Batch]:
    start = pipeline.calendar.shifted(pipeline.calendar.first, first)
    assert start is not None
    return [start, *(found for number in range(1, count) if (found := pipeline.calendar.shifted(start, number)) is not None)]


def load(pipeline: Pipeline) -> Table:
    return load_catalog(pipeline.settings).load_table(pipeline.settings.table)


def rows_of(table: Table, *columns: str) -> list[tuple[Any, ...]]:
    """All rows of the current snapshot, sorted; by default the key and one value."""
    names = columns or ("id", "resolution", "logical_timestamp", "sum_rollup")
    found = table.scan(selected_fields=names).to_arrow().select(list(names))
    return sorted(zip(*(found[name].to_pylist() for name in names), strict=True))


def live_and_deleted_paths(table: Table) -> tuple[set[str], set[str]]:
    """The data files of the current snapshot, and those that the entries of any kept one call deleted."""
    from pyiceberg.manifest import ManifestEntryStatus

    manifests = {manifest.manifest_path: manifest for snapshot in table.snapshots() for manifest in snapshot.manifests(table.io)}
    entries = [entry for manifest in manifests.values() for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=False)]
    deleted = {entry.data_file.file_path for entry in entries if entry.status == ManifestEntryStatus.DELETED}
    return {task.file.file_path for task in table.scan().plan_files()}, deleted


def value_by_batch(pipeline: Pipeline) -> dict[str, set[Any]]:
    """Batch key → the values that its rows have."""
    found = load(pipeline).scan().to_arrow()
    values: dict[str, set[Any]] = {}
    stamps = pc.cast(pc.cast(found["logical_timestamp"], pa.int64()), pa.int64()).to_numpy() // 1000
    for stamp, value in zip(stamps.tolist(), found["sum_rollup"].to_pylist(), strict=True):
        values.setdefault(pipeline.calendar.containing(stamp).key, set()).add(value)
    return values


def add_compacted(pipeline: Pipeline, batches: Sequence[Batch], value: int) -> Path:
    """A data file that holds 50 rows of each batch, as another engine's compaction leaves them; its pages have checksums."""
    rows = pa.concat_tables([rollup_rows(pipeline.settings, batch, 3_600_000, 50, value=value) for batch in batches])
    path = Path(load(pipeline).location()) / "data" / "compacted.parquet"
    pq.write_table(rows, path, write_page_checksum=True, compression="none", use_dictionary=False)
    load(pipeline).add_files([str(path)])
    return path


def flip_a_bit(path: Path, value: int) -> None:
    """In the values of such a file."""
    content = bytearray(path.read_bytes())
    content[content.index(value.to_bytes(8, "little") * 50) + 8] ^= 1
    path.write_bytes(content)
