"""This project's stages, through the functions that its assets call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.measure import Stopwatch
from benchmarks.sites import BATCH_KEY, EARLIER_KEYS, ONE, RESOLUTIONS, THREE, Site

if TYPE_CHECKING:
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.storage.manifests import Manifest


def open_pipeline(site: Site, home: str, threads: int, engine: str = "local") -> Pipeline:
    """The pipeline of a home, with default settings except engine, threads and resolutions."""
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import load_settings

    return Pipeline.from_settings(
        load_settings(
            home=site.home(home),
            raw=str(site.landing_zone),
            threads=threads,
            resolutions=RESOLUTIONS[home],
            value_type=site.value_column.removesuffix("_value"),
            engine=engine,
            spark_master=f"local[{threads}]",
        )
    )


def prepare(site: Site, threads: int) -> None:
    """Publish the batches before; stage and roll up the batch itself, in both homes."""
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.rollup import roll_up

    for home in RESOLUTIONS:
        prepare_before(site, threads, home)
        pipeline = open_pipeline(site, home, threads)
        batch = pipeline.batch(BATCH_KEY)
        # Made anew each time: what is there may be from another version.
        stage_batch(pipeline, batch, force=True)
        roll_up(pipeline, batch, force=True)


def prepare_before(site: Site, threads: int, home: str = THREE) -> None:
    """Publish the batches before the measured one, in one home."""
    # If an earlier benchmark has published the batch itself, that has to be undone first.
    site.restore_published(home)
    publish_before(open_pipeline(site, home, threads))
    site.save_published(home)


def publish_before(pipeline: Pipeline) -> None:
    """Stage, roll up and publish the batches before the one that is measured."""
    from rollup_assets.steps.publish import publish
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.rollup import roll_up

    for key in EARLIER_KEYS:
        batch = pipeline.batch(key)
        stage_batch(pipeline, batch)
        roll_up(pipeline, batch)
        publish(pipeline, batch)


def repartition(site: Site, threads: int, watch: Stopwatch, engine: str = "local") -> dict[str, Any]:
    """Raw files to sorted shards, partial points and quarantined rows."""
    from rollup_assets.steps.repartition import stage_batch

    pipeline = open_pipeline(site, THREE, threads, engine)
    with watch.time("repartition"):
        staged = stage_batch(pipeline, pipeline.batch(BATCH_KEY), force=True)
    details = _details(staged.repartitioned)
    others = sum(manifest.bytes for manifest in (staged.partial_points, staged.quarantined))
    return {**details, "bytes": details["bytes"] + others}


def rollups_three(site: Site, threads: int, watch: Stopwatch, engine: str = "local") -> dict[str, Any]:
    """Sorted shards to rollups of 1 min, 5 min and 1 h."""
    return _rollups(site, THREE, threads, watch, engine)


def rollups_one(site: Site, threads: int, watch: Stopwatch, engine: str = "local") -> dict[str, Any]:
    """Sorted shards to rollups of 1 min."""
    return _rollups(site, ONE, threads, watch, engine)


def _rollups(site: Site, home: str, threads: int, watch: Stopwatch, engine: str) -> dict[str, Any]:
    from rollup_assets.steps.results import RolledUp
    from rollup_assets.steps.rollup import roll_up

    pipeline = open_pipeline(site, home, threads, engine)
    with watch.time("rollups"):
        rolled_up = roll_up(pipeline, pipeline.batch(BATCH_KEY), force=True)
    assert isinstance(rolled_up, RolledUp)
    return _details(rolled_up.manifest)


def publish(site: Site, threads: int, watch: Stopwatch, engine: str = "local") -> dict[str, Any]:
    """Rollups to a snapshot of the table, in a SQLite catalog."""
    from rollup_assets.steps import publish as step

    pipeline = open_pipeline(site, THREE, threads, engine)
    with watch.time("publish"):
        published = step.publish(pipeline, pipeline.batch(BATCH_KEY), force=True)
    return {"timings": published.receipt.timings, "rows": sum(published.receipt.counters["rows"].values())}


def raw_to_published(site: Site, threads: int, watch: Stopwatch, engine: str = "local") -> dict[str, Any]:
    """All steps, one after the other in one process; ``steps`` has the timings of each."""
    staged = repartition(site, threads, watch, engine)
    steps = {
        "repartition": staged,
        "rollups": rollups_three(site, threads, watch, engine),
        "publish": publish(site, threads, watch, engine),
    }
    return {"rows": staged["rows"], "bytes": sum(step.get("bytes", 0) for step in steps.values()), "steps": steps}


def _details(manifest: Manifest) -> dict[str, Any]:
    return {"timings": manifest.timings, "rows": manifest.rows, "bytes": manifest.bytes, "files": len(manifest.files)}
