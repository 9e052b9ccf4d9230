"""This project's side: partial points, 1 min rollups and a publish, from the same staged points and on the same catalog.

Partial points are a by-product of sorting here, made while a series' points are in the cache anyway. The seed's program starts from
sorted points, so for the comparison this project makes an extra pass that it would never make: every staged point is read and decoded once
more, only to make the files of partial points, byte for byte those that the repartition step has written.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.measure import Stopwatch
from benchmarks.ours import publish_before
from benchmarks.sites import BATCH_KEY, Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from rollup_assets.batches import Batch
    from rollup_assets.engines.base import TaskContext
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.storage.manifests import Manifest, StagedFile

HOME = "home-seed"
PARTIAL, ROLLUPS, PUBLISH = "partial points", "rollups", "publish"
STAGES = (PARTIAL, ROLLUPS, PUBLISH)
_FOLDER = BATCH_KEY.replace(":", "")


def open_pipeline(site: Site, catalog: str, threads: int) -> Pipeline:
    """The pipeline of the home, at the seed's one resolution; the password is in the environment."""
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import load_settings

    return Pipeline.from_settings(
        load_settings(home=site.home(HOME), raw=str(site.landing_zone), threads=threads, resolutions="1m", catalog=catalog)
    )


def prepare(site: Site, catalog: str, threads: int) -> None:
    """A new home: the batches before published, the batch itself staged and rolled up."""
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.rollup import roll_up

    shutil.rmtree(site.home(HOME), ignore_errors=True)
    pipeline = open_pipeline(site, catalog, threads)
    publish_before(pipeline)
    batch = pipeline.batch(BATCH_KEY)
    stage_batch(pipeline, batch)
    roll_up(pipeline, batch)


def sorted_files(site: Site) -> list[str]:
    """The batch's staged shards."""
    return _files(site.home(HOME) / "stage" / "repartitioned_datapoints" / _FOLDER, "shard-*.parquet")


def partial_files(site: Site, home: str = HOME) -> list[str]:
    """The batch's staged partial points."""
    return _files(site.home(home) / "stage" / "partial_points" / _FOLDER, "partial-*.parquet")


def rollup_files(site: Site) -> list[str]:
    """The batch's rollups."""
    return site.rollup_files(HOME)


def _files(folder: Path, pattern: str) -> list[str]:
    return sorted(str(path) for path in folder.rglob(pattern))


def forget(site: Site) -> None:
    """Undo the batch's rollups and its receipt; the table is undone with its database."""
    stage = site.home(HOME) / "stage"
    for asset in ("rollups", "rollup_table"):
        shutil.rmtree(stage / asset / _FOLDER, ignore_errors=True)
    for path in rollup_files(site):
        Path(path).unlink()


def run(site: Site, catalog: str, threads: int, watch: Stopwatch) -> dict[str, Any]:
    """Run all of it, one step after the other.

    Raises:
        ValueError: the partial points of the extra pass differ from the staged ones.
    """
    from rollup_assets.steps.publish import publish
    from rollup_assets.steps.results import RolledUp
    from rollup_assets.steps.rollup import roll_up

    pipeline = open_pipeline(site, catalog, threads)
    batch = pipeline.batch(BATCH_KEY)
    with watch.time(PARTIAL):
        made = make_partial_points(pipeline, batch, site.output / "partial-points")
    with watch.time(ROLLUPS):
        rolled_up = roll_up(pipeline, batch, force=True)
    with watch.time(PUBLISH):
        published = publish(pipeline, batch)
    assert isinstance(rolled_up, RolledUp)
    staged = _manifest(pipeline, "partial_points", batch)
    if [file.digest for file in made] != [file.digest for file in staged.files]:
        raise ValueError("the partial points that were timed are not those that the repartition step has staged")
    rows = sum(published.receipt.counters["rows"].values())
    return {"rows": rows, "partial_files": len(made), "partial_bytes": staged.bytes, "bytes": rolled_up.manifest.bytes + staged.bytes}


def make_partial_points(pipeline: Pipeline, batch: Batch, folder: Path) -> list[StagedFile]:
    """Make the partial points of a staged batch once more, from its staged points."""
    from rollup_assets.steps.planning import shard_groups

    staged = _manifest(pipeline, "repartitioned_datapoints", batch)
    paths = {file.shards[0]: pipeline.stage.place(staged, file, batch).path for file in staged.files}
    made = pipeline.engine.map(
        functools.partial(_make_group, pipeline.settings.resolutions, pipeline.settings.lookback, batch, paths, str(folder)),
        shard_groups(pipeline.settings.shards, int(staged.counters["rows_read"])),
        stage="partial points",
        rows=staged.rows,
        progress=_progress(),
    )
    return [file for files in made for file in files]


def _progress() -> Any:
    from rollup_assets.engines.base import NoProgress

    return NoProgress()


def _manifest(pipeline: Pipeline, asset: str, batch: Batch) -> Manifest:
    found = pipeline.stage.read(asset, batch)
    assert found is not None
    return found


def _make_group(
    resolutions: tuple[int, ...],
    lookback: int,
    batch: Batch,
    paths: dict[int, str],
    folder: str,
    group: Sequence[int],
    context: TaskContext,
) -> list[StagedFile]:
    from rollup_assets.storage.filesystems import Place
    from rollup_assets.storage.partial_points import PartialPointsLayout, PartialPointsWriter

    writer = PartialPointsWriter(Place.parse(folder), "again", group[0], PartialPointsLayout(resolutions, "int64"))
    for shard in group:
        if shard in paths:
            _make_shard(paths[shard], shard, batch, resolutions, lookback, writer)
            context.advance(0)
    return writer.close()


def _make_shard(path: str, shard: int, batch: Batch, resolutions: tuple[int, ...], lookback: int, writer: Any) -> None:
    """Make the partial points of one shard with the step's own kernels."""
    import numpy as np
    import pyarrow.parquet as pq

    from rollup_assets.kernels import partial as kernels
    from rollup_assets.kernels.points import ShardPoints, SortedSeries
    from rollup_assets.storage.metric_names import MetricNames

    file = pq.ParquetFile(path, read_dictionary=["metric"])
    rows = file.metadata.num_rows
    times, values = np.empty(rows, np.int32), np.empty(rows, np.int64)
    starts: list[NDArray[np.int64]] = []
    series: list[tuple[NDArray[Any], ...]] = []
    names = MetricNames()
    at, last = 0, None
    for group in range(file.num_row_groups):
        table = file.read_row_group(group, use_threads=False)
        ids, org, time, value = (table.column(name).chunk(0).to_numpy() for name in ("id", "org_id", "logical_timestamp", "long_value"))
        metric = table.column("metric").chunk(0)
        np.subtract(time, batch.start, out=times[at : at + len(ids)], casting="unsafe")
        values[at : at + len(ids)] = value
        begins = np.flatnonzero(ids[1:] != ids[:-1]) + 1
        if ids[0] != last:
            begins = np.concatenate([[0], begins])
        codes = names.codes_of(metric.dictionary.to_pylist())
        starts.append(begins + at)
        series.append((ids[begins], org[begins], codes[metric.indices.to_numpy()[begins]]))
        at, last = at + len(ids), ids[-1]
    start = np.concatenate(starts)
    ids, org, metrics = (np.concatenate(columns) for columns in zip(*series, strict=True))
    # The step numbers a shard's names in order of name.
    ordered, rank = sorted(names.names), names.ranks()
    empty = kernels.new_partial_points(len(ids), len(resolutions), np.dtype(np.int64), details=False)
    partial = empty._replace(id=ids, org=org, metric=rank[metrics])
    none = np.empty(0, np.int64)
    points = ShardPoints(np.empty(0, np.int32), times, values, none, np.empty(0, np.int32), none)
    sorted_series = SortedSeries(ids, org, partial.metric, start, np.diff(np.append(start, rows)))
    kernels.first_and_last_points(sorted_series, points, batch.start, partial)
    overflow = kernels.long_partial_points(sorted_series, points, rank, batch.length, np.array(resolutions, np.int64), lookback, partial)
    assert overflow == (-1, -1)
    writer.write(shard, partial, ordered)
