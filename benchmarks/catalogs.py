"""The catalogs that publishing is measured on, and batches to be published to them.

The servers are real ones on this machine. What is measured stays out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.relay import Relay, port_of, relay

if TYPE_CHECKING:
    from rollup_assets.batches import Batch
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.storage.manifests import StagedFile

EMBEDDED, POSTGRES, REST = "SQLite, local files", "PostgreSQL, S3", "REST, S3"
_SERIES = 100
_ENDPOINT = "ROLLUP_S3_ENDPOINT"


@dataclass(frozen=True, slots=True)
class Catalogs:
    """Running catalogs; the environment is this process's."""

    folder: Path
    choices: dict[str, dict[str, Any]]

    def pipeline(self, name: str, table: str, **settings: Any) -> Pipeline:
        """The pipeline of a table of its own on one of the catalogs."""
        from rollup_assets.pipeline import Pipeline
        from rollup_assets.settings import load_settings

        return Pipeline.from_settings(load_settings(**self.options(name, table, **settings)))

    def options(self, name: str, table: str, **settings: Any) -> dict[str, Any]:
        """The settings of that pipeline, to be passed to another process; the keys of S3 are in the environment."""
        chosen = self.choices[name]
        stage = {"stage": f"{chosen['stage']}/{table}"} if "stage" in chosen else {}
        home = self.folder / "home" / name.split(",", maxsplit=1)[0] / table
        return {"home": str(home), "table": f"metrics.{table}", **chosen, **stage, **settings}

    @contextmanager
    def relayed(self, name: str) -> Iterator[tuple[Catalogs, dict[str, Relay]]]:
        """The same catalog behind relays, by the server that each relays: ``S3`` and ``catalog``."""
        chosen, before = self.choices[name], os.environ[_ENDPOINT]
        with relay(port_of(before)) as store, relay(port_of(chosen["catalog"])) as catalog:
            uri = chosen["catalog"].replace(f":{port_of(chosen['catalog'])}", f":{catalog.port}")
            with environment({_ENDPOINT: before.replace(f":{port_of(before)}", f":{store.port}")}):
                yield Catalogs(self.folder, {name: {**chosen, "catalog": uri}}), {"S3": store, "catalog": catalog}


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables of this process until the block ends; then restore all."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def catalogs(folder: Path) -> Iterator[Catalogs]:
    """All of them, with everything they need running, until the block ends."""
    from deploy.servers.postgres import postgres
    from deploy.servers.seaweedfs import seaweedfs
    from rollup_assets.iceberg.database import initialize
    from rollup_assets.settings import load_settings

    with ExitStack() as stack:
        # As in production: a commit is on the disk when PostgreSQL says so.
        database = stack.enter_context(postgres(folder / "postgres", durable=True))
        database.create_role("runs", "secret")
        database.create_database("catalog")
        store = stack.enter_context(seaweedfs(folder / "seaweedfs"))
        store.client(service="s3tables").create_table_bucket(name="tables")
        stack.enter_context(environment(store.environment_of(store.admin)))
        on_postgres = {"catalog": database.uri("catalog", "runs"), "catalog_password": "secret"}
        initialize(load_settings(**on_postgres, catalog_admin_password=database.superuser_password), admin=database.superuser)
        signed = {"rest.sigv4-enabled": "true", "rest.signing-name": "s3tables", "rest.signing-region": store.region}
        choices: dict[str, dict[str, Any]] = {
            EMBEDDED: {},
            POSTGRES: {**on_postgres, "stage": "s3://lake/stage", "warehouse": "s3://lake/warehouse"},
            REST: {
                "catalog": f"rest+{store.iceberg_endpoint}",
                "catalog_properties": signed,
                "stage": "s3://lake/stage-of-rest",
                "warehouse": "s3://tables",
            },
        }
        yield Catalogs(folder, choices)


def stage(pipeline: Pipeline, batch: Batch, files: int, *, series: int = _SERIES) -> None:
    """Write ``files`` data files of a batch, spread over the resolutions, as the steps do, and all manifests up to that of the rollups.

    The files of a resolution have the same content: publishing looks only at names, sizes and footers.
    """
    from rollup_assets.code_version import CODE_VERSION
    from rollup_assets.iceberg.table import data_location, prepare_table
    from rollup_assets.steps.parameters import content_parameters, rollup_parameters
    from rollup_assets.storage.filesystems import in_parallel
    from rollup_assets.storage.manifests import PARTIAL_POINTS, REPARTITIONED, ROLLUPS, Manifest, content_digest, new_attempt

    settings = pipeline.settings
    prepare_table(settings)
    upstream: dict[str, dict[str, str | None]] = {}
    for asset in (REPARTITIONED, PARTIAL_POINTS):
        made = Manifest(
            asset=asset, partition=batch.key, attempt=new_attempt(), code_version=CODE_VERSION,
            parameters=content_parameters(settings, batch), digest=content_digest((), {}),
        )  # fmt: skip
        pipeline.stage.write(made, batch)
        upstream[asset] = {batch.key: made.digest}
    attempt = new_attempt()
    samples = {resolution: _sample(pipeline, batch, resolution, series) for resolution in settings.resolutions[:files]}
    staged: list[StagedFile] = []
    contents: list[tuple[str, bytes]] = []
    for number in range(files):
        resolution = settings.resolutions[number % len(settings.resolutions)]
        sample, content = samples[resolution]
        folder = data_location(settings) / f"resolution={resolution}" / f"logical_timestamp_day={batch.start_time:%Y-%m-%d}"
        staged.append(sample.model_copy(update={"path": (folder / f"{batch.folder}-{attempt}-{number:05d}.parquet").uri}))
        contents.append((staged[-1].path, content))
    for _ in in_parallel(lambda one: pipeline.stage.root.at(one[0]).write_bytes(one[1]), contents, local=pipeline.stage.root.is_local):
        pass
    counters = {"rows": {str(one): sum(file.rows for file in staged if file.resolution == one) for one in settings.resolutions}}
    manifest = Manifest(
        asset=ROLLUPS, partition=batch.key, attempt=attempt, code_version=CODE_VERSION, parameters=rollup_parameters(settings),
        upstream=upstream, files=tuple(staged), counters=counters, digest=content_digest(tuple(staged), counters),
    )  # fmt: skip
    pipeline.stage.write(manifest, batch)


def _sample(pipeline: Pipeline, batch: Batch, resolution: int, series: int) -> tuple[StagedFile, bytes]:
    """A data file as the steps write it, and its content."""
    import numpy as np
    import pyarrow as pa

    from rollup_assets.iceberg.schema import arrow_schema
    from rollup_assets.storage import encodings
    from rollup_assets.storage.filesystems import Place
    from rollup_assets.storage.parquet import ParquetFileWriter

    settings = pipeline.settings
    schema = arrow_schema(settings.value_type)
    labels = np.arange(batch.start, batch.end, resolution, dtype=np.int64)
    ids = np.repeat(np.arange(series, dtype=np.int64), len(labels))
    values: dict[str, Any] = {
        "id": ids,
        "metric": np.char.add("metric.", (ids % 20).astype(str)),
        "logical_timestamp": pa.array(np.tile(labels, series) * 1000).cast(pa.timestamp("us", "UTC")),
        "resolution": np.full(len(ids), resolution),
    }
    columns = [pa.array(values.get(field.name, ids)).cast(field.type) for field in schema]
    place = Place.parse(str(settings.home / f"sample-{resolution}.parquet"))
    writer = ParquetFileWriter(place, schema, encodings.rollups(settings.parquet_encoding))
    writer.write(pa.table(columns, schema=schema))
    file = writer.close(place.uri, resolution=resolution)
    content = place.read_bytes()
    assert content is not None
    return file, content
