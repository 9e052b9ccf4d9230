"""The benchmark beside the seed's program: its programs run and answer as this project does, and what it shows is what was measured."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from benchmarks import seed as benchmark
from benchmarks import tables
from benchmarks.runner import Bench, TimeLimitError, run_process
from benchmarks.sections import seed as section
from benchmarks.seed_program import answers, ours, program, recommendations
from benchmarks.seed_program.catalog import CatalogServer, catalog_server
from benchmarks.seed_program.process import DUCKDB, DUCKDB_PARTITIONED, FEWEST_HEAP_BYTES, OURS, SEED, SEED_RECOMMENDED, heap_bytes
from benchmarks.sites import BATCH_START, SCRAPES, SPARSE, Site
from benchmarks.summary import Spread, summarized
from benchmarks.tasks import COLD
from rollup_assets.engines.spark_session import require_java
from rollup_assets.errors import EngineError

ROOT = Path(__file__).parent.parent
MINUTE = 60_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CatalogServer]:
    with catalog_server(tmp_path_factory.mktemp("catalog")) as found:
        yield found


@pytest.mark.xdist_group("spark-sql")
def test_the_seed_s_programs_answer_as_this_project_does(server: CatalogServer, tmp_path: Path) -> None:
    """Both on Spark and ours, once each, on the same catalog."""
    try:
        require_java()
    except EngineError as error:
        pytest.skip(str(error))
    bench = Bench(tmp_path, rows=600, threads=2, shape=SPARSE)
    # Half of the CPU time would go to compiling what runs once.
    quick = CatalogServer(server.server, {**server.environment, "JAVA_TOOL_OPTIONS": "-XX:TieredStopAtLevel=1"})
    ground = benchmark.Ground(bench, bench.full, quick, [])
    ground.prepare(spark=True, warm=False)
    assert (ground.rows, ground.series) == (600, 10)
    found: dict[str, list[dict[str, Any]]] = {"runs": [], "answers": [], "given_up": []}
    benchmark.measure(ground, [(engine, COLD) for engine in (OURS, SEED, SEED_RECOMMENDED)], 1, found)
    runs = {run["engine"]: run for run in found["runs"]}
    assert list(runs) == [OURS, SEED, SEED_RECOMMENDED]
    assert tuple(runs[OURS]["wall"]) == ours.STAGES
    assert tuple(runs[SEED]["wall"]) == program.STAGES
    assert set(program.STAGES) - set(runs[SEED_RECOMMENDED]["wall"]) == {program.COUNT}
    # Ours also publishes the windows that the batch before has left open.
    assert (runs[SEED]["rows"], runs[OURS]["rows"]) == (59 * 10, 60 * 10)
    assert runs[SEED]["partial_files"] > 5
    assert runs[SEED_RECOMMENDED]["partial_files"] == 1
    for output in found["answers"]:
        assert (output["rows"], output["deltas"], output["partial_points"]["open_points"]) == (59 * 10, 58 * 10, "10"), output["engine"]
    assert ground.progress()["done"] == program.APPEND
    ground.clean()
    assert not ground.site.sorted_for_spark.exists()


def test_our_pass_over_sorted_points_makes_the_staged_partial_points(tmp_path: Path) -> None:
    """Dense and sparse, from several row groups; other bytes would raise."""
    from benchmarks import data
    from benchmarks.measure import Stopwatch

    for shape in (SPARSE, SCRAPES):
        site = Site(tmp_path / shape)
        data.generate(site, 7_200, shape)
        site.clear_output()
        catalog = f"sqlite:///{site.root}/catalog.db"
        ours.prepare(site, catalog, 2)
        watch = Stopwatch()
        found = ours.run(site, catalog, 2, watch)
        assert found["partial_files"] == len(ours.partial_files(site)) > 0
        assert tuple(watch.wall) == ours.STAGES
        staged = Path(ours.partial_files(site)[0])
        made = list((site.output / "partial-points").rglob("*.parquet"))
        assert staged.read_bytes() in [path.read_bytes() for path in made]


def rollups(path: Path, **changes: dict[int, int]) -> str:
    """Two series with three windows each; ``changes``: values of a column by row."""
    columns: dict[str, Any] = {
        "metric_shard_id": [1] * 6,
        "id": [1, 1, 1, 2, 2, 2],
        "org_id": [5] * 6,
        "metric": ["m"] * 6,
        "resolution": [MINUTE] * 6,
        "logical_timestamp": pa.array([BATCH_START + MINUTE * n for n in (1, 2, 3) * 2], pa.timestamp("ms", "UTC")).cast(
            pa.timestamp("us", "UTC")
        ),
        **{name: list(range(10, 16)) for name in ("count_rollup", "sum_rollup", "min_rollup", "max_rollup", "latest_rollup")},
        "average_rollup": [1.0] * 6,
        "delta_rollup": [1, 2, 3, 4, 5, 6],
    }
    for name, rows in changes.items():
        for row, value in rows.items():
            columns[name][row] = value
    pq.write_table(pa.table(columns), path)
    return str(path)


@pytest.mark.parametrize(
    ("changes", "equal"),
    [
        ({}, True),
        ({"delta_rollup": {0: 99, 3: 99}}, True),  # first windows of a series: both programs' own definitions
        ({"delta_rollup": {4: 99}}, False),
        ({"sum_rollup": {0: 99}}, False),
        ({"metric_shard_id": {2: 0}}, False),
        ({"latest_rollup": {1: 10, 0: 11}}, False),  # the same sum
    ],
)
def test_what_both_define_is_compared_row_by_row(tmp_path: Path, changes: dict[str, dict[int, int]], equal: bool) -> None:
    theirs, our = rollups(tmp_path / "theirs.parquet", **changes), rollups(tmp_path / "ours.parquet")
    assert answers.compare([theirs], [our], [], [], tmp_path)["equal"] is equal


def test_a_contender_that_takes_too_long_is_killed_with_what_it_started(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(
        "import subprocess, sys, time\nfrom pathlib import Path\n"
        "Path('child').write_text(str(subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']).pid))\ntime.sleep(600)\n"
    )
    with pytest.raises(TimeLimitError, match="more than 3 s"):
        run_process("endless", {"threads": 1}, tmp_path, {"PYTHONPATH": str(tmp_path)}, seconds=3)
    _wait_until(lambda: not is_running(int((tmp_path / "child").read_text())))


def test_a_benchmark_that_is_terminated_takes_its_processes_along(tmp_path: Path) -> None:
    """What a contender started, too: nothing goes on computing."""
    (tmp_path / "endless.py").write_text(
        "import os, time\nfrom pathlib import Path\nPath('pid').write_text(str(os.getpid()))\ntime.sleep(600)\n"
    )
    program = (
        "from pathlib import Path; from benchmarks.runner import run_process; "
        f"run_process('endless', {{'threads': 1}}, Path({str(tmp_path)!r}), {{'PYTHONPATH': {str(tmp_path)!r}}})"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stderr=subprocess.DEVNULL)
    noted = tmp_path / "pid"
    _wait_until(lambda: noted.exists() and noted.read_text() != "")
    process.terminate()
    assert process.wait(timeout=60) != 0
    _wait_until(lambda: not is_running(int(noted.read_text())))


def is_running(process: int) -> bool:
    """Not ended: whoever adopts an ended one may take a while to bury it."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _wait_until(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_given_up_contenders_are_noted_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = Bench(tmp_path, rows=1, threads=1, shape=SPARSE)
    ground = benchmark.Ground(bench, bench.full, None, [], limit_seconds=7.0, given=True)  # type: ignore[arg-type]
    (tmp_path / "progress.json").write_text(json.dumps({"done": "count", "wall": {"partial points": 5.0, "count": 1.0}, "cpu": {}}))

    def run(_: benchmark.Ground, engine: str, start: str) -> dict[str, Any]:
        if engine != DUCKDB_PARTITIONED:
            raise TimeLimitError("took long")
        costs = {"wall": {"a": 2.0}, "cpu": {"a": 1.0}, "process_wall": 3.0, "process_cpu": 2.0, "others_share": 0.0, "peak_bytes": 1}
        return {"engine": engine, "task": section.task(SPARSE), "start": start, "form": "", **costs}

    monkeypatch.setattr(benchmark.Ground, "run", run)
    found: dict[str, list[dict[str, Any]]] = {"runs": [], "answers": [], "given_up": []}
    benchmark.measure(ground, benchmark.contenders([], [], given=True), 1, found)
    (text,) = section.lines({**found})
    assert f"| {SEED} | > 7 s |  | given up after: partial points 5, count 1 |" in text
    assert f"| {DUCKDB_PARTITIONED} | 3 | 2 | a 2 |" in text


def test_contenders_are_chosen_by_name() -> None:
    in_turn = (OURS, SEED, OURS, SEED_RECOMMENDED, OURS)
    assert benchmark.contenders(["warm"], [], given=False) == [(engine, "warm") for engine in in_turn]
    assert {engine for engine, _ in benchmark.contenders(["warm", "cold"], ["seed"], given=False)} == {SEED, SEED_RECOMMENDED}
    assert OURS not in dict(benchmark.contenders(["warm"], [], given=True))
    chosen = benchmark.contenders(["warm"], [f"{SEED} cold", DUCKDB], given=True)
    assert [engine for engine, _ in chosen] == [SEED, DUCKDB, DUCKDB_PARTITIONED]
    with pytest.raises(typer.BadParameter, match="no contender's name contains 'Polars'"):
        benchmark.main(only=["Polars"])


def test_a_java_machine_keeps_within_everyone_s_memory() -> None:
    assert heap_bytes(6 << 30) == 9 << 29
    assert heap_bytes(1 << 30) == FEWEST_HEAP_BYTES


def test_every_recommendation_that_is_applied_is_in_the_table() -> None:
    table = " ".join(what for what, verdict, _ in recommendations.RECOMMENDATIONS if verdict == "applied")
    for name in (*recommendations.SESSION, *recommendations.TABLE):
        assert name in table or name == "write.format.default", name
    assert program.RECOMMENDED.session(2)["spark.sql.shuffle.partitions"] == "6"
    assert program.ORIGINAL.session(2) == {"spark.sql.shuffle.partitions": "200", "spark.sql.adaptive.enabled": "false"}


def results() -> dict[str, Any]:
    """Two turns: the seed's program 40 and 20 times as slow as ours in wall time, half that in CPU."""
    runs = []
    for turn, times in enumerate((40.0, 20.0)):
        stages = {"compute": 0.0, "partial points": times / 2, "count": times / 4, "append": times / 4}
        fast = {"partial points": 0.25, "rollups": 0.5, "publish": 0.25}
        for engine, wall in ((OURS, fast), (SEED, stages), (SEED_RECOMMENDED, {**stages, "count": 0.0})):
            cpu = {stage: seconds / (2 if engine == SEED else 1) for stage, seconds in wall.items()}
            run = {"engine": engine, "task": section.task("sparse"), "start": "warm", "form": "", "turn": turn, "wall": wall, "cpu": cpu}
            runs.append({**run, "peak_bytes": 1, "process_wall": 1.0, "process_cpu": 1.0, "others_share": 0.0})
    return {"runs": runs, "answers": [], "given_up": [], "summary": summarized(runs), "data": {"rows": 36_000_000}}


def test_targets_and_shares_are_those_of_the_runs(tmp_path: Path) -> None:
    found = results()
    original, recommended = section.aims(found)
    assert (original.measured, original.met) == (tables.figure(Spread(30.0, 20.0, 40.0), 1), True)
    assert original.also == f"CPU {tables.figure(Spread(15.0, 10.0, 20.0), 1)}"
    assert (recommended.measured, recommended.met) == (tables.figure(Spread(22.5, 15.0, 30.0), 1), False)
    assert "15.0 s, 50 % | 7.5 s, 25 % | 7.5 s, 25 %" in section.profile(found)
    assert "30.0 (20.0 to 40.0)" in section.side_by_side(found)
    with tables.drawing(tmp_path / "plot.svg", found) as axes:
        section.plot(found, axes)
    assert f"count: {SEED}" in (tmp_path / "plot.svg").read_text()


@pytest.mark.parametrize(("name", "starts", "turns"), [("seed", {"warm"}, 5), ("seed_cold", {"warm", "cold"}, 3)])
def test_committed_results_are_of_the_whole_benchmark(name: str, starts: set[str], turns: int) -> None:
    found = tables.read(name)
    assert found is not None
    assert {run["start"] for run in found["runs"]} == starts
    # `make bench` measures one shape, once.
    assert found["repeat"] >= (turns if len(found["shapes"]) > 1 else 1)
    assert found["shapes"]["sparse"]["rows"] == benchmark.ROWS
    assert found["summary"] == summarized(found["runs"])
    assert not found["given_up"]
    assert not re.search(r"/(work|home|root|tmp|Users)/", str(found))
    for shape in found["shapes"]:
        digests = {(output["rows"], output["digest"]) for output in found["answers"] if output["task"] == section.task(shape)}
        assert len(digests) == 1
        for engine in section.PROGRAMS:
            for start in starts:
                ran = [run for run in found["runs"] if (run["engine"], run["task"], run["start"]) == (engine, section.task(shape), start)]
                assert {run["turn"] for run in ran} == set(range(found["repeat"]))
