"""A process killed anywhere, and run again, leaves the table as if it had never been killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from rollup_assets.cleaning import clean
from rollup_assets.iceberg.catalog import load_catalog
from rollup_assets.iceberg.reading import snapshot_dataset
from rollup_assets.iceberg.table import load_table
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import Settings, load_settings
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.rollup import roll_up
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS
from rollup_assets_tests.faults import work
from rollup_assets_tests.faults.site import fork_server

KEYS = ("2026-01-01-00:00", "2026-01-01-01:00")


def make(home: Path) -> None:
    """Stage, roll up and publish both batches."""
    pipeline = Pipeline.from_settings(settings_of(home))
    for key in KEYS:
        batch = pipeline.batch(key)
        stage_batch(pipeline, batch)
        roll_up(pipeline, batch)
        publish(pipeline, batch)


def start(home: Path) -> ForkServerProcess:
    """The same in a process that can be killed."""
    order = work.Order({"home": str(home)}, {}, "", [("make", *KEYS)], home / "acknowledged.jsonl", home / "log")
    process = fork_server.Process(target=work.execute, args=(order,), daemon=True)
    process.start()
    return process


def settings_of(home: Path) -> Settings:
    return load_settings(home=home)


def rows_of(home: Path) -> list[dict[str, object]]:
    settings = settings_of(home)
    table = load_table(load_catalog(settings), settings)
    assert table is not None
    order = [(name, "ascending") for name in ("resolution", "metric_shard_id", "metric", "org_id", "id", "logical_timestamp")]
    rows: list[dict[str, object]] = snapshot_dataset(table).to_table().sort_by(order).to_pylist()
    return rows


def manifest(home: Path, asset: str, key: str = KEYS[1]) -> Path:
    return home / "stage" / asset / key.replace(":", "") / "manifest.json"


def data_files(home: Path) -> int:
    return len(list((home / "warehouse").rglob("data/**/*.parquet")))


def metadata_files(home: Path) -> int:
    return len(list((home / "warehouse").rglob("*.metadata.json")))


def is_spilling(home: Path) -> bool:
    try:
        return any((home / "scratch").glob("*/blocks-*"))
    except FileNotFoundError:  # a folder got its other name, or went, while it was listed
        return False


# Each names a moment in making the second batch; the process is killed as soon as it is seen.
MOMENTS: dict[str, Callable[[Path], bool]] = {
    "spilling": lambda home: manifest(home, ROLLUP_TABLE, KEYS[0]).exists() and is_spilling(home),
    "writing points": lambda home: any((home / "stage" / REPARTITIONED / KEYS[1].replace(":", "")).glob("*/*.parquet")),
    "quarantine staged": lambda home: manifest(home, QUARANTINED).exists(),
    "partial points staged": lambda home: manifest(home, PARTIAL_POINTS).exists(),
    "points staged": lambda home: manifest(home, REPARTITIONED).exists(),
    "writing rollups": lambda home: manifest(home, REPARTITIONED).exists() and data_files(home) > 3,
    "rollups staged": lambda home: manifest(home, ROLLUPS).exists(),
    "committing": lambda home: manifest(home, ROLLUPS).exists() and metadata_files(home) > 2,
    "published": lambda home: manifest(home, ROLLUP_TABLE).exists(),
}


@pytest.fixture(scope="module")
def landing_zone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw files of two batches, with dirt, large enough that each moment lasts."""
    home = tmp_path_factory.mktemp("raw")
    command = ["generate", "--hours", "2", "--series", "300", "--outside", "0.002"]
    subprocess.run([sys.executable, "-m", "rollup_assets.cli", *command], env={**os.environ, "ROLLUP_HOME": str(home)}, check=True)
    return home / "raw_datapoints"


@pytest.fixture(scope="module")
def expected(landing_zone: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, object]]:
    home = home_with(landing_zone, tmp_path_factory.mktemp("whole"))
    make(home)
    return rows_of(home)


def home_with(landing_zone: Path, home: Path) -> Path:
    (home / "raw_datapoints").symlink_to(landing_zone)
    return home


@pytest.mark.scenario("K1", "K2", "K3", "K4")
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_killed_run_is_repeated_to_the_same_table(
    moment: str, landing_zone: Path, expected: list[dict[str, object]], tmp_path: Path
) -> None:
    """Whatever was half done when the process was killed, running it again gives the same rows; what is left over can be deleted."""
    home = home_with(landing_zone, tmp_path)
    process = start(home)
    deadline = time.monotonic() + 120
    while process.is_alive() and not MOMENTS[moment](home):
        assert time.monotonic() < deadline, f"{moment}: never seen"
        time.sleep(0.0005)
    process.kill()
    process.join()
    assert process.exitcode in (-signal.SIGKILL, 0), (home / "log").read_text()

    make(home)
    assert rows_of(home) == expected
    assert not list((home / "scratch").iterdir())
    assert clean(settings_of(home), older_than=0, delete=True).failures == []
    assert clean(settings_of(home), older_than=0).found == []
    assert rows_of(home) == expected
    pipeline = Pipeline.from_settings(settings_of(home))
    for key in KEYS:
        batch = pipeline.batch(key)
        for asset in (REPARTITIONED, PARTIAL_POINTS, QUARANTINED, ROLLUPS):
            staged = pipeline.stage.read(asset, batch)
            assert staged is not None
            assert pipeline.stage.is_complete(staged, batch)
