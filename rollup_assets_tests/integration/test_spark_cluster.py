"""The Spark engine beyond one process: a standalone cluster with two workers and their own environment, lost executors, Spark Connect."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rollup_assets.settings import Settings, load_settings
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import REPARTITIONED, ROLLUPS, Stage
from rollup_assets_tests.integration.tables import hours, rows

if TYPE_CHECKING:
    from deploy.servers.spark import SparkCluster

pytestmark = pytest.mark.xdist_group("spark cluster")

PROJECT = Path(__file__).parent.parent.parent
BATCHES = hours(0, 0)
DRIVER = "spark.driver.host=127.0.0.1 spark.driver.bindAddress=127.0.0.1 spark.ui.enabled=false"
SETTINGS = {"ROLLUP_SHARDS": "8", "ROLLUP_THREADS": "2"}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An hour of raw data, enough for several map tasks and two merge tasks."""
    from rollup_assets.generator.landing import GeneratorOptions, generate

    settings = load_settings(home=str(tmp_path_factory.mktemp("raw")))
    batches = [settings.calendar.batch(key) for key in BATCHES]
    generate(settings, batches, GeneratorOptions(seed=11, series=3000, interval=10_000, files=12))
    return Path(settings.raw)


def environment(home: Path, raw: Path, **variables: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "DAGSTER", "SPARK", "PYSPARK"))}
    return {**inherited, **SETTINGS, "ROLLUP_HOME": str(home), "ROLLUP_RAW": str(raw), **variables}


def settings_of(home: Path, raw: Path) -> Settings:
    return load_settings(home=str(home), raw=str(raw), shards=8)


def start(home: Path, raw: Path, **variables: str) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("rollups")), "backfill", BATCHES[0], BATCHES[-1]]
    # Not the project's folder: what workers import, they have to have.
    return subprocess.Popen(
        command, env=environment(home, raw, **variables), cwd=home, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=240)
    return said


# Commands one after the other in one process, and so in one session: to start a driver and its executors takes longer than what they do.
COMMANDS = """
import json
import sys
import time
from pathlib import Path

from typer.testing import CliRunner

from rollup_assets.cli import app

done = []
for command in json.loads(sys.argv[1]):
    began = time.monotonic()
    ended = CliRunner().invoke(app, command)
    done.append({
        "status": ended.exit_code, "stdout": ended.stdout, "stderr": ended.stderr, "seconds": time.monotonic() - began,
        "home": sorted(str(path) for path in Path.cwd().rglob("*")),
    })
print(json.dumps(done))
"""


@dataclass(frozen=True)
class Done:
    """What became of a command of :data:`COMMANDS`; ``home``: everything in it right after that."""

    status: int
    stdout: str
    stderr: str
    seconds: float
    home: list[str]


@dataclass(frozen=True)
class Asked:
    """``rollups doctor`` and then ``rollups backfill``, with the same session."""

    home: Path
    doctor: Done
    backfill: Done


def ask(home: Path, raw: Path, **variables: str) -> Asked:
    commands = [["doctor", "--json", "--timeout", "120"], ["backfill", BATCHES[0], BATCHES[-1]]]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        env=environment(home, raw, **variables), cwd=home, text=True, capture_output=True, timeout=480, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Asked(home, *(Done(**each) for each in json.loads(done.stdout.splitlines()[-1])))


def content(home: Path, raw: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The table's rows, and the digests of everything staged."""
    settings = settings_of(home, raw)
    stage = Stage(Place.parse(settings.stage))
    staged = []
    for asset in (REPARTITIONED, ROLLUPS):
        for key in BATCHES:
            batch = settings.calendar.batch(key)
            manifest = stage.read(asset, batch)
            assert manifest is not None
            staged.append(manifest.digest)
            named = {stage.place(manifest, file, batch).path for file in manifest.files}
            if asset == REPARTITIONED:
                found = {str(path) for path in (Path(settings.stage) / asset / batch.folder).rglob("*") if path.is_file()}
                found.discard(str(Path(settings.stage) / asset / batch.folder / "manifest.json"))
            else:
                found = {str(path) for path in Path(settings.warehouse).rglob("*.parquet*") if batch.folder in path.name}
            assert found == named, "one set of files, whatever was tried"
    return rows(settings), staged


@pytest.fixture(scope="module")
def expected(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], list[str]]:
    """What the local engine makes of it."""
    home = tmp_path_factory.mktemp("local")
    process = start(home, raw)
    assert "published" in finish(process)
    assert process.returncode == 0
    return content(home, raw)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkCluster]:
    from deploy.servers.spark import standalone
    from rollup_assets.engines.spark_session import require_java
    from rollup_assets.errors import EngineError

    try:
        require_java()
    except EngineError as error:
        pytest.skip(str(error))
    with standalone(tmp_path_factory.mktemp("cluster"), {}, workers=2, cores=1, memory="1g") as running:
        yield running


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workers' environment, packed as docs/spark.md says; with uv, whose cache makes it quick."""
    folder = tmp_path_factory.mktemp("workers")
    prefix = folder / "workers"
    uv = str(Path(sys.executable).with_name("uv"))
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(prefix)],
        [
            uv,
            "pip",
            "install",
            "--quiet",
            "--python",
            str(prefix),
            "--require-hashes",
            "--requirement",
            str(PROJECT / "deploy" / "workers.lock"),
        ],
        [uv, "pip", "install", "--quiet", "--python", str(prefix), "--no-deps", str(PROJECT)],
    ):
        subprocess.run(command, check=True, cwd=folder)
    # They spare `rollup_assets.precompile` half a minute: the kernels that this environment has compiled already.
    installed = next(prefix.glob("lib/python3.*/site-packages/rollup_assets"))
    shutil.copytree(PROJECT / "rollup_assets" / "kernels", installed / "kernels", dirs_exist_ok=True)
    subprocess.run([prefix / "bin" / "python", "-I", "-m", "rollup_assets.precompile"], check=True, cwd=folder)
    archive = folder / "workers.tar.gz"
    pack = [sys.executable, "-m", "venv_pack", "--quiet", "--prefix", str(prefix), "--output", str(archive), "--compress-level", "0"]
    subprocess.run(pack, check=True)
    return archive


def on_cluster(cluster: SparkCluster, conf: str) -> dict[str, str]:
    return {"ROLLUP_ENGINE": "spark", "ROLLUP_SPARK_MASTER": cluster.master, "ROLLUP_SPARK_CONF": f"{DRIVER} {conf}"}


@pytest.fixture(scope="module")
def unpacked(cluster: SparkCluster, packed: Path, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """On workers that unpack their environment; also with speculation, which runs tasks twice at once."""
    conf = (
        f"spark.archives={packed}#environment spark.pyspark.python=./environment/bin/python spark.speculation=true "
        "spark.speculation.interval=10ms spark.speculation.quantile=0.1 spark.speculation.multiplier=1.0"
    )
    return ask(tmp_path_factory.mktemp("unpacked"), raw, **on_cluster(cluster, conf))


@pytest.fixture(scope="module")
def without_package(cluster: SparkCluster, raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """On workers whose Python has no package of ours."""
    conf = f"spark.pyspark.python={Path(sys.base_prefix) / 'bin' / 'python3'}"
    return ask(tmp_path_factory.mktemp("without"), raw, **on_cluster(cluster, conf))


@pytest.mark.scenario("D3")
def test_a_cluster_whose_workers_unpack_their_environment(unpacked: Asked, raw: Path, expected: tuple[Any, Any]) -> None:
    """Also with speculation."""
    assert unpacked.backfill.status == 0, unpacked.backfill
    assert content(unpacked.home, raw) == expected


@pytest.mark.thorough
@pytest.mark.scenario("K2", "D3")
def test_an_executor_that_is_killed_is_replaced_and_leaves_nothing(
    cluster: SparkCluster, raw: Path, expected: tuple[Any, Any], tmp_path: Path
) -> None:
    process = start(tmp_path, raw, **on_cluster(cluster, f"spark.pyspark.python={sys.executable}"))
    killed = 0
    deadline = time.monotonic() + 200
    while process.poll() is None and killed < 2 and time.monotonic() < deadline:
        # As soon as one writes: first when points are sorted, then when they are rolled up.
        writing = [
            list((tmp_path / "stage" / "repartitioned_datapoints").rglob("*.parquet")),
            list((tmp_path / "warehouse").rglob("*.parquet")),
        ][killed]
        executors = cluster.executors()
        if writing and executors:
            os.kill(executors[0], signal.SIGKILL)
            killed += 1
        time.sleep(0.02)
    said = finish(process)
    assert process.returncode == 0, said
    assert killed == 2
    assert content(tmp_path, raw) == expected


def test_workers_without_the_package_are_told_in_a_sentence(without_package: Asked) -> None:
    done = without_package.backfill
    assert done.status == 1
    said = done.stdout + done.stderr
    assert "Spark's workers have no Python package" in said
    assert "Pack an environment for them and name it in ROLLUP_SPARK_CONF" in said
    assert done.seconds < 120
    assert not list((without_package.home / "stage").rglob("*.parquet")), "nothing was written"


# ``rollups`` in a process that has its Spark session already: how long a JVM takes to start does not count against ``--timeout``.
# It took more than 40 s on a busy machine; there, the checks before the workers' can take 20. All of them are killed after 100 s.
WITH_SESSION = """
import signal

from rollup_assets.cli import main
from rollup_assets.engines.spark_session import open_session
from rollup_assets.settings import load_settings

open_session(load_settings())
signal.alarm(100)
main()
"""


def doctor(
    home: Path, raw: Path, *options: str, rollups: tuple[str, ...] = (str(Path(sys.executable).with_name("rollups")),), **variables: str
) -> dict[str, dict[str, Any]]:
    """What ``rollups doctor`` finds, by name."""
    command = [*rollups, "doctor", "--json", *options]
    done = subprocess.run(
        command, env=environment(home, raw, **variables), cwd=home, text=True, capture_output=True, timeout=240, check=False
    )
    return found_by(done.returncode, done.stdout, done.stderr)


def found_by(status: int, stdout: str, stderr: str) -> dict[str, dict[str, Any]]:
    assert status in (0, 1), stderr
    return {finding["name"]: finding for finding in json.loads(stdout)["checks"]}


def test_doctor_runs_tasks_on_the_clusters_workers(unpacked: Asked, without_package: Asked) -> None:
    done = unpacked.doctor
    found = found_by(done.status, done.stdout, done.stderr)
    assert {name: found[name]["state"] for name in ("Java", "Spark", "workers", "workers' data")} == dict.fromkeys(
        ("Java", "Spark", "workers", "workers' data"), "ok"
    ), found
    assert done.home == []
    done = without_package.doctor
    found = found_by(done.status, done.stdout, done.stderr)
    assert found["workers"]["state"] == "failed"
    assert "Spark's workers have no Python package" in found["workers"]["found"]
    assert "ROLLUP_SPARK_CONF" in found["workers"]["remedy"] + found["workers"]["found"]
    assert found["workers' data"]["state"] == "skipped"


def test_doctor_waits_no_longer_than_it_may_for_workers_that_are_not_there(cluster: SparkCluster, raw: Path, tmp_path: Path) -> None:
    """More memory is asked for than any worker has: Spark itself would wait for ever."""
    variables = on_cluster(cluster, f"spark.pyspark.python={sys.executable} spark.executor.memory=900g")
    found = doctor(tmp_path, raw, "--timeout", "60", rollups=(sys.executable, "-c", WITH_SESSION), **variables)
    assert found["workers"]["state"] == "failed", found
    assert found["workers"]["seconds"] <= 60
    assert "Spark's workers did not finish 2 small tasks within" in found["workers"]["found"]
    assert "spark.executor.memory" in found["workers"]["remedy"]


def test_spark_connect(raw: Path, expected: tuple[Any, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    from deploy.servers.spark import connect_server
    from rollup_assets.engines.spark_session import require_java
    from rollup_assets.errors import EngineError

    try:
        require_java()
    except EngineError as error:
        pytest.skip(str(error))
    with connect_server(tmp_path_factory.mktemp("connect"), {"PYSPARK_PYTHON": sys.executable}) as remote:
        # The client needs no Java.
        found = doctor(tmp_path, raw, "--timeout", "120", ROLLUP_ENGINE="spark", ROLLUP_SPARK_REMOTE=remote, JAVA_HOME="/nowhere")
        assert [found[name]["state"] for name in ("Java", "Spark", "workers", "workers' data")] == ["skipped", "ok", "ok", "ok"], found
        process = start(tmp_path, raw, ROLLUP_ENGINE="spark", ROLLUP_SPARK_REMOTE=remote, JAVA_HOME="/nowhere")
        said = finish(process)
    assert process.returncode == 0, said
    assert content(tmp_path, raw) == expected
