"""The same cases on {local, Spark} x {files + SQLite, S3 + PostgreSQL}: bytes, manifests, errors and the table's rows are the same.

The local engine on files is what the rest of the tests hold against the reference model; here everything else is held against it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rollup_assets.batches import Batch, to_datetime
from rollup_assets.errors import RollupError
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import load_settings
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.results import Waiting
from rollup_assets.steps.rollup import roll_up
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUPS
from rollup_assets_tests import worked_example
from rollup_assets_tests.conftest import SMALL
from rollup_assets_tests.integration.stores import Store, credentials, on_files, on_servers
from rollup_assets_tests.landing import Shape, land, write_bytes, write_rows
from rollup_assets_tests.naive import RawRow
from rollup_assets_tests.staged import digests, file_bytes
from rollup_assets_tests.strategies import HOUR, INT64_MAX, MINUTE, TODAY, Grid, crowd

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from deploy.servers.postgres import PostgresServer
    from deploy.servers.seaweedfs import S3Server

pytestmark = pytest.mark.xdist_group("spark")

GRID = Grid(start=TODAY, length=HOUR, batches=2, resolutions=(MINUTE, 5 * MINUTE, HOUR), lookback=HOUR)


@dataclasses.dataclass(frozen=True)
class Case:
    """Raw files in rounds: after each, every batch is staged, rolled up and published."""

    rounds: tuple[Callable[[Pipeline], None], ...]
    grid: Grid = GRID
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)


def _crowd(pipeline: Pipeline) -> None:
    land(pipeline, crowd(1, GRID, 150, 6000), files=5, shape=Shape(row_group=300))


def _doubles(pipeline: Pipeline) -> None:
    land(pipeline, crowd(2, GRID, 60, 3000, double=True), files=3, shape=Shape(row_group=500))


def _late(pipeline: Pipeline) -> None:
    rows = [
        RawRow(row.id, row.org_id, row.metric, GRID.start + 5 * MINUTE + number, 5, None) for number, row in enumerate(crowd(1, GRID, 9, 9))
    ]
    write_rows(pipeline, pipeline.calendar.containing(GRID.start), "late.parquet", rows)


def _dirty(pipeline: Pipeline) -> None:
    batch = pipeline.calendar.containing(GRID.start)
    rows = crowd(3, dataclasses.replace(GRID, batches=1), 20, 500)
    spoilt = [
        RawRow(None, 1, "a", GRID.start, 1, None),
        RawRow(1, None, "a", GRID.start, 1, None),
        RawRow(1, 1, "a", None, 1, None),
        RawRow(1, 1, "a", GRID.start, None, None),
        RawRow(1, 1, "a", GRID.start - 1, 1, GRID.start),
    ]
    write_rows(pipeline, batch, "a.parquet", rows[:250] + spoilt)
    write_rows(pipeline, batch, "b.parquet", rows[250:])
    write_bytes(pipeline, batch, "c.parquet", b"no parquet at all")


def _overflow(pipeline: Pipeline) -> None:
    batch = pipeline.calendar.containing(GRID.start)
    write_rows(pipeline, batch, "a.parquet", [RawRow(7, 1, "a", GRID.start + 1 + number, INT64_MAX - 5, None) for number in range(3)])


def _gap(pipeline: Pipeline) -> None:
    """Points in the first and in the third hour, none between them."""
    rows = crowd(4, dataclasses.replace(GRID, batches=1), 10, 200)
    land(pipeline, [*rows, *(dataclasses.replace(row, ts=row.ts + 2 * HOUR, receive=None) for row in rows if row.ts is not None)])


CASES = {
    "worked example": Case((lambda pipeline: land(pipeline, worked_example.RAW_ROWS),), worked_example.GRID),
    "crowd, then a late file": Case((_crowd, _late)),
    "doubles": Case((_doubles,), settings={"value_type": "double"}),
    "allowed dirt": Case((_dirty,), settings={"quarantine_limit": 0.5, "quarantine_files": 1}),
    "too much dirt": Case((_dirty,)),
    "overflow": Case((_overflow,)),
    "a gap": Case((_gap,), dataclasses.replace(GRID, batches=3)),
    "one shard": Case((_crowd,), settings={"shards": 1}),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Everything that has to be the same."""

    manifests: list[tuple[object, ...]]
    contents: list[bytes]
    told: list[str]
    rows: list[dict[str, Any]]


def run(case: Case, store: Store, **overrides: Any) -> Outcome:
    """Take a case through a pipeline."""
    grid = case.grid
    spark = overrides.pop("spark", None)
    chosen = {**SMALL, **case.settings, **overrides, **store.settings}
    settings = load_settings(
        start=to_datetime(grid.start), batch=grid.length, resolutions=grid.resolutions, lookback=grid.lookback, **chosen
    )
    pipeline = Pipeline.from_settings(settings, spark=spark)
    landing = Pipeline.from_settings(load_settings(**{**settings.model_dump(), "raw": str(store.raw), "engine": "local"}))
    batches = [pipeline.calendar.containing(start) for start in grid.starts()]
    trailing = [batch for count in (1, 2) if (batch := pipeline.calendar.shifted(batches[-1], count)) is not None]
    told: list[str] = []
    for write in case.rounds:
        write(landing)
        store.upload()
        told += [_told(settings.raw, _stage, pipeline, batch) for batch in batches]
        told += [_told(settings.raw, _publish, pipeline, batch) for batch in (*batches, *trailing)]
    manifests = []
    contents = []
    for batch in (*batches, *trailing):
        for asset in (REPARTITIONED, PARTIAL_POINTS, QUARANTINED, ROLLUPS):
            manifest = pipeline.stage.read(asset, batch)
            manifests.append((asset, batch.key, *(digests(manifest) if manifest else ())))
            contents += file_bytes(pipeline, batch, manifest) if manifest else []
    _nothing_else_is_staged(pipeline, (*batches, *trailing))
    return Outcome(manifests, contents, told, _rows(pipeline))


def _stage(pipeline: Pipeline, batch: Batch) -> str:
    staged = stage_batch(pipeline, batch)
    assert stage_batch(pipeline, batch).unchanged, "again: nothing to do"
    return f"staged {staged.repartitioned.rows}"


def _publish(pipeline: Pipeline, batch: Batch) -> str:
    rolled = roll_up(pipeline, batch)
    if isinstance(rolled, Waiting):
        return rolled.reason
    published = publish(pipeline, batch)
    assert publish(pipeline, batch).unchanged, "again: nothing to do"
    return f"published {published.receipt.counters['rows']} {rolled.warnings}"


def _told(raw: str, step: Callable[[Pipeline, Batch], str], pipeline: Pipeline, batch: Batch) -> str:
    """What a step said, without where the files lie."""
    try:
        said = step(pipeline, batch)
    except RollupError as error:
        said = f"{type(error).__name__}: {error}"
    return re.sub(r"\S*/quarantined_datapoints/", "", said.replace(raw, "RAW"))


def _nothing_else_is_staged(pipeline: Pipeline, batches: tuple[Batch, ...]) -> None:
    """No try at a task leaves files that its manifest does not name."""
    named = set()
    for batch in batches:
        for asset in (REPARTITIONED, PARTIAL_POINTS, QUARANTINED, ROLLUPS):
            manifest = pipeline.stage.read(asset, batch)
            if manifest:
                attempt = pipeline.stage.folder(asset, batch) / manifest.attempt
                named = {pipeline.stage.place(manifest, file, batch).path for file in manifest.files}
                assert {str(info.path) for info in attempt.files()} <= named


def _rows(pipeline: Pipeline) -> list[dict[str, Any]]:
    from rollup_assets_tests.integration.tables import rows

    return rows(pipeline.settings)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
    """What the local engine makes of a case on files."""
    known: dict[str, Outcome] = {}

    def of(name: str) -> Outcome:
        if name not in known:
            known[name] = run(CASES[name], on_files(tmp_path_factory.mktemp("reference")))
        return known[name]

    return of


@pytest.fixture
def aws(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in credentials(s3_server):
        monkeypatch.setenv(name, value)


def compare(found: Outcome, expected: Outcome) -> None:
    assert found.told == expected.told
    assert found.manifests == expected.manifests
    assert found.contents == expected.contents
    assert found.rows == expected.rows


@pytest.mark.parametrize("name", CASES)
def test_spark_on_files(name: str, reference: Callable[[str], Outcome], tmp_path: Path, spark_session: SparkSession) -> None:
    compare(run(CASES[name], on_files(tmp_path), engine="spark", spark=lambda: spark_session), reference(name))


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("name", CASES)
def test_local_engine_on_servers(
    name: str, reference: Callable[[str], Outcome], tmp_path: Path, s3_server: S3Server, postgres_server: PostgresServer
) -> None:
    compare(run(CASES[name], on_servers(tmp_path, s3_server, postgres_server)), reference(name))


@pytest.mark.usefixtures("aws")
@pytest.mark.parametrize("name", CASES)
def test_spark_on_servers(
    name: str,
    reference: Callable[[str], Outcome],
    tmp_path: Path,
    s3_server: S3Server,
    postgres_server: PostgresServer,
    spark_session: SparkSession,
) -> None:
    store = on_servers(tmp_path, s3_server, postgres_server)
    compare(run(CASES[name], store, engine="spark", spark=lambda: spark_session), reference(name))


def test_the_cases_are_what_their_names_say(reference: Callable[[str], Outcome]) -> None:
    """So that agreement is about something."""
    assert len(reference("worked example").rows) == len(worked_example.EXAMPLE)
    assert any("QuarantineError" in line for line in reference("too much dirt").told)
    assert any("RollupOverflowError" in line and "7" in line for line in reference("overflow").told)
    assert any("no raw files" in line for line in reference("a gap").told)
    assert all(reference(name).rows for name in CASES if name not in ("too much dirt", "overflow"))
