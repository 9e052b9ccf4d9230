"""The plan past this machine: the model says what it was made of, the page what the model says, and the simulation keeps its rules."""

from __future__ import annotations

import dataclasses
import itertools
import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import scaling, tables
from benchmarks.capacity import KINDS, SHAPES, CountingEngine, count, relayed
from benchmarks.capacity_model import STEPS, Assumptions, CapacityError, Model, Prices, Shape, limits, plan, shape_of
from benchmarks.relay import kind_of
from benchmarks.simulate_backfill import DONE, FAILED, LOST, ROLL_UP, STAGE, Attempt, Options, Outcome, row, simulate, variants
from rollup_assets.settings import load_settings
from rollup_assets.steps.planning import shard_groups

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer
    from deploy.servers.seaweedfs import S3Server

ROOT = Path(__file__).parent.parent
START, POINT = {"repartition": 0.2, "rollups": 0.1, "publish": 0.05}, {"repartition": 60e-9, "rollups": 90e-9, "publish": 0.0}
PARTS = {"GET": (20, 2, 8, 3, 5e-6), "PUT": (5, 0, 1, 4, 1e-6)}
"""Fixed, a raw file, shard, group and point."""
FILE_SECONDS, PUBLISH_SECONDS, SPARK = 0.002, 0.3, 2.5


def counted(shape: tuple[int, int, int]) -> dict[str, Any]:
    """A batch whose counts follow the parts exactly."""
    points, files, shards = shape
    groups = len(shard_groups(shards, points))
    vector = (1, files, shards, groups, points)
    of = {kind: sum(part * each for part, each in zip(PARTS.get(kind, (0,) * 5), vector, strict=True)) for kind in KINDS}
    return {
        "points": points,
        "raw_files": files,
        "shards": shards,
        "groups": groups,
        "rollup_rows": {"60000": points, "300000": points // 5, "3600000": points // 60},
        "bytes": {
            "raw": 5 * points,
            "moved": 20 * points,
            "repartitioned": 2 * points,
            "partial points": points,
            "table": 13 * points,
            "manifests": 500 * (shards + 4 * groups),
        },
        "files": {"repartitioned": shards, "partial points": groups, "table": 3 * groups},
        "requests": dict.fromkeys(STEPS, of),
        "statements": dict.fromkeys(STEPS, 6),
        "commits": 1,
    }


def cpu(points: int) -> dict[str, float]:
    """Seconds by step."""
    return {step: START[step] + POINT[step] * (points if points > 6_000 else 0) for step in STEPS}


def made_up() -> dict[str, dict[str, Any]]:
    """Results as the benchmarks write them, of a machine that does exactly what the model assumes."""
    sizes = [{"size": size, "rows": size, "threads": 2, "cpu": cpu(size)} for size in (6_000, 1_000_000, 4_000_000, 36_000_000)]
    on_spark = {"rollup_assets": 1.0, "rollup_assets on Spark": SPARK}
    publishes = [{"catalog": "PostgreSQL, S3", "files": files, "seconds": PUBLISH_SECONDS + FILE_SECONDS * files} for files in (8, 200)]
    return {
        "sizes": {"start_rows": 6_000, "runs": sizes},
        "capacity": {"runs": [counted(shape) for shape in SHAPES]},
        "publishing": {"runs": publishes},
        "spark": {
            "runs": [
                {"engine": name, "task": "raw-to-published", "start": "warm", "turn": 0, "cpu": {"all": seconds}}
                for name, seconds in on_spark.items()
            ]
        },
        "seed_size": {
            "runs": [
                {"engine": "rollup_assets", "task": "raw-to-published", "rows": 686_000_000, "cpu": cpu(686_000_000), "process_wall": 60.0}
            ]
        },
    }


@pytest.fixture(name="model")
def made_up_model() -> Model:
    """Of those results."""
    return Model(**made_up())


# ------------------------------------------------------------------------------------------------------------------- page


def test_tables_of_the_page_are_those_of_the_results() -> None:
    text = (ROOT / scaling.PAGE).read_text()
    assert scaling.tables_named(text) == set(scaling.blocks())
    assert tables.filled(text, scaling.blocks()) == text, "run `python -m benchmarks.capacity --report`"


def test_what_is_not_measured_yet_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert {text.partition(":")[0] for text in scaling.blocks().values()} == {"Not measured yet"}
    assert "python -m benchmarks.capacity" in scaling.blocks()["scaling-plan"]


@pytest.mark.parametrize("with_seed_size", [False, True])
def test_every_table_follows_from_the_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, with_seed_size: bool) -> None:
    for name, results in made_up().items():
        if name != "seed_size" or with_seed_size:
            (tmp_path / f"{name}.json").write_text(json.dumps(results))
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    blocks = scaling.blocks()
    assert not [name for name, text in blocks.items() if "Not measured" in text or "nan" in text]
    checks = [line.split(" | ")[-1].rstrip(" |") for line in blocks["scaling-check-cpu"].splitlines()[2:]]
    assert set(checks) == {"1.00"}
    assert len(checks) == 4 * (3 if with_seed_size else 2)
    for line in blocks["scaling-check-counts"].splitlines()[2:]:
        said, was = (float(cell.replace(",", "")) for cell in line.strip("| ").split(" | ")[-2:])
        assert said == pytest.approx(was, abs=0.6) or "POST" in line, line
    assert ("measured 60 s" in blocks["scaling-seed"]) == with_seed_size
    # 686,482,723 at 150 ns and the start, 2.5 times, on 80 cores that are used to 70 %, and 192 files to publish.
    seconds = (686_482_723 * 150e-9 + 0.35) * SPARK / 80 / 0.7 + PUBLISH_SECONDS + 192 * FILE_SECONDS
    assert f"| {seconds:.0f} s | model; Spark's session open" in blocks["scaling-seed"]


# ------------------------------------------------------------------------------------------------------------------ model


def test_costs_are_those_that_the_results_were_made_of(model: Model) -> None:
    assert model.calibrated.measured_points == 36_000_000
    assert model.cpu.measured_points == 686_000_000
    assert model.cpu.point == pytest.approx(POINT)
    assert model.cpu.seconds(10**9) == pytest.approx(150 + 0.35)
    assert (model.spark_factor, model.publish_file, model.publish_start) == pytest.approx((SPARK, FILE_SECONDS, PUBLISH_SECONDS))
    shape = Shape(points=10**9, raw_files=80, shards=256, groups=64)
    found = model.requests(shape)["rollups"]
    assert found["GET"] == pytest.approx(20 + 160 + 8 * 256 + 3 * 64 + 5000)
    assert found["PUT"] == pytest.approx(5 + 256 + 4 * 64 + 1000)
    # Files of 1 min and 5 min rollups, 167 and 33 MB, of partial points, 16 MB, and none of sorted points, 7.8 MB.
    assert {step: kinds["POST"] for step, kinds in model.requests(shape).items()} == {"repartition": 128, "rollups": 256, "publish": 0}
    assert model.manifest_bytes(shape) == pytest.approx(500 * (256 + 4 * 64))


def test_the_largest_counted_batch_is_kept_for_the_check() -> None:
    results = made_up()
    results["capacity"]["runs"][-1]["requests"]["rollups"] = dict.fromkeys(KINDS, 10**6)
    model = Model(**results)
    assert model.checked_run["points"] == max(points for points, _, _ in SHAPES)
    assert model.requests(Shape(10**6, 4, 16, 2))["rollups"]["GET"] < 1000


def test_batches_that_differ_in_too_few_ways_are_refused() -> None:
    results = made_up()
    results["capacity"]["runs"] = results["capacity"]["runs"][:1] * 6
    with pytest.raises(CapacityError, match=r"run `python -m benchmarks\.capacity`"):
        Model(**results).requests(shape_of(10**9))


def test_a_plan_is_of_the_products_own_cut_and_of_the_given_prices(model: Model) -> None:
    one = plan(model, 10**10, Assumptions(busy=0.5, within_hours=0.5, staged_days=1), Prices(core_hour=1, puts=1, gets=0, gb_month=1))
    assert one.shape.shards == 4096
    assert one.table_files == 3 * len(shard_groups(4096, 10**10))
    assert one.series == 10**10 // 60
    assert one.cores == pytest.approx((1500 + 0.35) * SPARK / 0.5 / 1800)
    assert one.dollars_a_month["cores"] == pytest.approx((1500 + 0.35) * SPARK / 0.5 / 3600 * 730)
    assert one.dollars_a_month["requests"] == pytest.approx(one.puts / 1000 * 730)
    assert one.dollars_a_month["storage"] == pytest.approx((13 * 10**10 * 730 + 3 * 10**10 * 24) / 1e9)
    assert one.stored == pytest.approx(16 * 10**10)
    assert one.moved == pytest.approx(20 * 10**10)


def test_what_breaks_first_stands_first(model: Model) -> None:
    found = limits(model, Assumptions(within_hours=1.0))
    assert [limit.rows for limit in found] == sorted(limit.rows for limit in found)
    puts = model.requests(shape_of(10**10))["rollups"]["PUT"]
    ends = {limit.what: limit.rows for limit in found}
    assert ends["2 cores, local engine"] == pytest.approx(3600 * 2 / 150e-9)
    assert ends["S3 is sent 3,500 objects a second below one prefix"] == pytest.approx(3600 * 3500 / (puts / 10**10))
    assert all(limit.then for limit in found)


# --------------------------------------------------------------------------------------------------------------- counting


@pytest.mark.parametrize(
    ("method", "target", "kind"),
    [
        ("GET", "/lake/x?list-type=2&prefix=a", "LIST"),
        ("GET", "/lake/x", "GET"),
        ("GET", "/lake/list-type=2/x", "GET"),
        ("POST", "/lake?delete", "DELETE"),
        ("POST", "/lake/x?uploads", "POST"),
        ("PUT", "/lake/x?partNumber=1&uploadId=2", "PUT"),
    ],
)
def test_requests_count_as_what_they_are_charged_for(method: str, target: str, kind: str) -> None:
    assert kind_of(method, target) == kind


def test_a_batch_is_counted_on_real_servers(tmp_path: Path, postgres_server: PostgresServer, s3_server: S3Server) -> None:
    with relayed(postgres_server, s3_server) as servers:
        found = count(servers, tmp_path / "points", tmp_path / "home", 6_000, 2, 3, f"capacity_{uuid.uuid4().hex[:8]}")
    assert (found["series"], found["groups"]) == (100, 1)
    assert found["rollup_rows"] == {"60000": 6_000, "300000": 1_200, "3600000": 100}
    assert found["files"] == {"repartitioned": 3, "partial points": 1, "table": 3}
    raw = sorted((tmp_path / "points").rglob("hour=05/*.parquet"))
    assert found["bytes"]["raw"] == sum(path.stat().st_size for path in raw)
    # A point is moved once, in 20 bytes or so, of which none is of the table.
    assert 10 * 6_000 < found["bytes"]["moved"] < 60 * 6_000
    assert found["requests"]["repartition"]["PUT"] == 3 + 1 + 3, "files and manifests"
    assert found["requests"]["repartition"]["GET"] >= len(raw) == 2
    assert found["requests"]["rollups"]["PUT"] == 3 + 1
    assert found["requests"]["rollups"]["GET"] < 60, "a row group in one request: partial points have 30 columns, and took one for each"
    assert found["requests"]["publish"]["POST"] == 0
    assert found["statements"]["repartition"] == 0
    assert found["statements"]["publish"] > 0


def test_what_a_shuffle_moves_is_what_tasks_emit(tmp_path: Path) -> None:
    from rollup_assets.engines.base import NoProgress
    from rollup_assets.engines.local import LocalEngine
    from rollup_assets_tests.engines.moved_blocks import emit_all, merge_all, moved

    emitted = [[(0, b"12345"), (1, b"")], [(1, b"123")]]
    engine = CountingEngine(LocalEngine(threads=2, memory=1 << 20, scratch=tmp_path))
    split = lambda task, emit, context: emit_all(emitted, task, emit, context)  # noqa: E731
    found = engine.map_shuffle(split, [0, 1], merge_all, [[0], [1]], stages=("a", "b"), rows=0, progress=NoProgress())
    assert found == moved(emitted, [[0], [1]])
    assert (engine.blocks, engine.moved) == (3, 8 + 3 * len(b"0:0"))
    assert engine.tries_again is False


# ------------------------------------------------------------------------------------------------------------- simulation

backfills = st.builds(
    Options,
    partitions=st.integers(1, 60),
    partitions_per_run=st.integers(1, 24),
    reach=st.integers(1, 2),
    runs=st.integers(1, 5),
    staging=st.integers(1, 4),
    publishing=st.integers(1, 4),
    publish_seconds=st.sampled_from([0.5, 30.0]),
    skew=st.sampled_from([0.0, 1.0]),
    failing=st.sampled_from([0.0, 0.1]),
    losing=st.sampled_from([0.0, 0.1]),
    rollups_first=st.booleans(),
    seed=st.integers(0, 9),
)


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """Of spans that overlap; one that begins when another ends does not."""
    changes = sorted([(began, 1) for began, _ in spans] + [(ended, -1) for _, ended in spans], key=lambda change: (change[0], change[1]))
    return max(itertools.accumulate(change for _, change in changes))


def done(outcome: Outcome, step: str) -> dict[int, Attempt]:
    """The attempts that came to their end, by partition; each has one."""
    found = [attempt for attempt in outcome.attempts if (attempt.step, attempt.outcome) == (step, DONE)]
    assert len({attempt.partition for attempt in found}) == len(found)
    return {attempt.partition: attempt for attempt in found}


def too_soon(outcome: Outcome, reach: int) -> list[int]:
    """Partitions that were rolled up before they and so many before them were staged."""
    staged = done(outcome, STAGE)
    return [
        number
        for number, attempt in done(outcome, ROLL_UP).items()
        if attempt.began < max(staged[each].ended for each in range(max(number - reach, 0), number + 1))
    ]


@settings(max_examples=80, deadline=None)
@given(options=backfills)
def test_every_partition_is_made_once_within_the_limits_and_not_too_soon(options: Options) -> None:
    outcome = simulate(options)
    staged, rolled_up = done(outcome, STAGE), done(outcome, ROLL_UP)
    assert staged.keys() == rolled_up.keys() == set(range(options.partitions))
    assert too_soon(outcome, options.reach) == []
    for step, places in ((STAGE, options.staging), (ROLL_UP, options.publishing)):
        assert most_at_once([(attempt.began, attempt.ended) for attempt in outcome.attempts if attempt.step == step]) <= places
    assert most_at_once(outcome.running) <= options.runs
    assert most_at_once([attempt.published for attempt in rolled_up.values() if attempt.published]) == 1
    by_run: dict[int, list[Attempt]] = {}
    for attempt in outcome.attempts:
        by_run.setdefault(attempt.run, []).append(attempt)
    for attempts in by_run.values():
        assert len(attempts) <= options.partitions_per_run
        assert most_at_once([(attempt.began, attempt.ended) for attempt in attempts]) == 1
        assert [attempt.outcome for attempt in attempts[:-1]].count(LOST) == 0, "a lost run makes nothing more"
    slots = min(options.runs, options.staging + options.publishing)
    assert outcome.makespan >= outcome.work / slots
    assert outcome.makespan >= max(attempt.ended - attempt.began for attempt in outcome.attempts)
    assert 0 < outcome.busy <= 1
    assert len(outcome.waits) == len(outcome.running)
    if not options.failing and not options.losing:
        assert (len(outcome.attempts), outcome.wasted, outcome.backfills) == (2 * options.partitions, 0.0, 1)


def test_the_same_seed_gives_the_same_backfill_and_failures_do_not_change_the_batches() -> None:
    basis = Options(partitions=100, failing=0.05, losing=0.05)
    assert simulate(basis).attempts == simulate(basis).attempts
    assert simulate(basis).attempts != simulate(dataclasses.replace(basis, seed=2)).attempts
    assert simulate(basis).work == simulate(dataclasses.replace(basis, failing=0.0)).work


def test_failures_and_losses_cost_what_they_should() -> None:
    options = Options(partitions=200, swing=0.0, skew=0.0)
    plain = simulate(options)
    failing = simulate(dataclasses.replace(options, failing=0.1))
    assert {attempt.outcome for attempt in failing.attempts} == {DONE, FAILED}
    assert failing.backfills > plain.backfills == 1
    assert plain.makespan < failing.makespan < 1.3 * plain.makespan
    losing = simulate(dataclasses.replace(options, losing=0.1))
    assert {attempt.outcome for attempt in losing.attempts} == {DONE, LOST}
    assert plain.makespan < losing.makespan < 1.5 * plain.makespan


def test_a_failed_batch_keeps_as_many_after_it_from_being_rolled_up_as_the_product_reads() -> None:
    """They wait for the backfill that stages it, however far ahead they are staged themselves."""
    assert Options().reach == load_settings().reach
    options = Options(partitions=200, failing=0.1)
    assert too_soon(simulate(options), load_settings().reach) == []
    assert too_soon(simulate(dataclasses.replace(options, reach=1)), 2) != [], "no batch failed two before another"


def test_who_rolls_up_first_publishes_sooner() -> None:
    options = Options(partitions=200)
    assert simulate(dataclasses.replace(options, rollups_first=True)).first_published < simulate(options).first_published / 3


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"partitions": 0}, {"reach": 0}, {"failing": 1.0}, {"losing": -0.1}])
def test_options_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"have to be|are from"):
        simulate(Options(**wrong))


def test_every_variant_differs_from_the_basis_and_is_shown() -> None:
    basis = Options(partitions=48)
    found = list(variants(basis))
    assert len({options for _, options in found}) == len(found) == len({name for name, _ in found})
    assert found[0][1] == basis
    assert row(found[0][0], simulate(basis))[0] == found[0][0]
