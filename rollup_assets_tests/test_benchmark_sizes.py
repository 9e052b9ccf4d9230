"""Cost and memory by size, shape and storage: the benchmarks run, and their tables and plots show what they measured."""

from __future__ import annotations

import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import limits, peer_sizes, sites, storages, tables
from benchmarks.catalogs import EMBEDDED, POSTGRES, REST, Catalogs
from benchmarks.contenders import Contender, fastest_form, peer_forms
from benchmarks.data import generate
from benchmarks.peers.duckdb import PARTITIONED
from benchmarks.runner import Bench, TimeLimitError
from benchmarks.sections import peer_sizes as peer_section
from benchmarks.sections import shapes, sizes
from benchmarks.sections import storages as storage_section
from benchmarks.sites import RESOLUTIONS
from benchmarks.sizes import measure, numbers, turns_of
from benchmarks.summary import summarized
from benchmarks.tasks import CLICKHOUSE, DATAFUSION, DUCKDB, OURS, PEERS, POLARS, RAW_TO_1M, RAW_TO_PUBLISHED, WARM
from rollup_assets.engines.spark_session import require_java
from rollup_assets.errors import EngineError

THREE, ONE = RESOLUTIONS[sites.THREE], RESOLUTIONS[sites.ONE]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two sizes on two threads; for the tables, the same figures stand for one thread."""
    folder = tmp_path_factory.mktemp("sizes")
    benches = [Bench(folder, rows, 2, "sparse", small_rows=300, memory_limit=2 << 30, rollup_memory="512MiB") for rows in (600, 6_000)]
    runs = measure(benches, 1, more=1)
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 8, "system": "Linux", "python": "3.11"}
    return {
        **{"command": sizes.COMMAND, "date": "2026-01-01", "commit": "0" * 40, "changed": [], "machine": machine, "versions": {}},
        **{"repeat": 1, "threads": 2, "memory": "512MiB", "limit_bytes": 2 << 30, "start_rows": 600},
        "runs": [{**run, "threads": threads} for threads in (1, 2) for run in runs],
    }


def test_every_size_is_measured_by_step_and_with_its_memory(results: dict[str, Any]) -> None:
    runs = results["runs"]
    assert [(run["size"], run["threads"]) for run in runs] == [(600, 1), (6_000, 1), (600, 2), (6_000, 2)]
    for run in runs:
        assert run["rows"] == run["size"]
        assert set(run["wall"]) == set(run["cpu"]) == set(sizes.STEPS)
        # A row a point at 1 min, but for the windows that stay open, and some at 5 min and 1 h.
        assert run["steps"]["publish"]["rows"] == run["size"] // 60 * (60 + 12 + 1)
        assert ("why" in run["memory"]) == (limits.why_not() is not None)


def test_small_batches_run_more_often_and_large_ones_less() -> None:
    assert [turns_of(rows, 5) for rows in (6_000, 4_000_000, 36_000_000, 360_000_000)] == [10, 10, 5, 3]
    assert turns_of(360_000_000, 1) == 1


def test_what_a_point_costs_is_told_without_the_fixed_start(results: dict[str, Any]) -> None:
    def run(size: int, cpu: float, peak_gib: float = 0.5) -> dict[str, Any]:
        parts = dict.fromkeys(sizes.STEPS, cpu / 3)
        memory = {"limit": 2 << 30, "peak_bytes": int(2 * peak_gib * 2**30)}
        return {
            "size": size,
            "rows": size,
            "threads": 2,
            "wall": parts,
            "cpu": parts,
            "peak_bytes": int(peak_gib * 2**30),
            "memory": memory,
        }

    runs = [run(600, 1.0), run(1_000_000, 3.0), run(36_000_000, 73.0, 0.9)]
    made = {**results, "runs": runs}
    assert sizes.ns(made, 1_000_000, 2, sizes.total).median == pytest.approx(2_000)
    assert sizes.ns(made, 36_000_000, 2, sizes.step("rollups")).median == pytest.approx(2_000 / 3)
    growth, peak, seed = sizes.aims(made)
    assert (growth.measured, growth.met) == ("1.00", True)
    assert (peak.measured, peak.met, peak.also) == ("0.90", True, "`ROLLUP_MEMORY=512MiB`; 1.80 with the page cache")
    assert seed.met is None
    growth, _, seed = sizes.aims({**made, "seed_runs": [run(sizes.SEED_ROWS, 1 + 686.5 * 2.5, 1.6)]})
    assert (growth.measured, growth.met) == ("1.25", False)
    assert (seed.measured, seed.met) == ("1.60", False)


def test_tables_and_plots_show_the_results(results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "read", lambda name: results if name in ("sizes", "shapes") else None)
    for run in results["runs"]:
        run["series"] = run["size"] // 60
    made = {**sizes.blocks(), **shapes.blocks()}
    assert "| 600: the fixed start | 2 |" in made["sizes"]
    assert made["sizes"].count("| 6,000 |") == 2
    assert "times as fast as 1" in made["sizes-threads"]
    assert made["sizes-memory"].count("| 6,000 |") == 2
    assert "6,000: 1 turn; other programs" in made["sizes-circumstances"]
    for name in ("sizes-circumstances", "shapes-circumstances"):
        assert "`ROLLUP_MEMORY=512MiB`" in made[name]
        assert ("all under a limit of 2 GiB" if limits.why_not() is None else str(limits.why_not())) in made[name]
    assert "| sparse: 0.0 M points, 10 series |" in made["shapes"]
    drawn = sizes.plots()
    assert all(f"({name}.svg)" in "".join(made.values()) for name in drawn)
    for name, (shown, draw) in drawn.items():
        draw(tmp_path / f"{name}.svg")
        assert f"results {tables.digest(shown)}" in (tmp_path / f"{name}.svg").read_text()


# ------------------------------------------------------------------------------------------------------ beside the peers


def test_peers_run_in_their_fastest_form_and_in_one_for_more_than_memory_holds_beyond_it() -> None:
    for peer in PEERS:
        assert peer_sizes.form_at(peer, 36_000_000) == fastest_form(peer, RAW_TO_1M, "sparse")
        assert peer_sizes.form_at(peer, 360_000_000) in peer_forms(peer)[RAW_TO_1M]
    assert peer_sizes.form_at(DUCKDB, 360_000_000) == PARTITIONED
    assert "in memory" in peer_sizes.form_at(POLARS, 36_000_000)
    assert "in memory" not in peer_sizes.form_at(POLARS, 360_000_000)


def _cost(engine: str, task: str, turn: int, seconds: float) -> dict[str, Any]:
    form = "" if engine == OURS else "a form"
    costs = {"wall": {"all": seconds}, "cpu": {"all": 2 * seconds}, "peak_bytes": 2**30, "others_share": 0.01}
    return {"engine": engine, "task": task, "start": WARM, "form": form, "turn": turn, **costs}


def _of_size(rows: int, shares: dict[str, float], failed: dict[str, str]) -> dict[str, Any]:
    """Results of a size: ours takes a second, each peer so many times as long."""
    runs = [_cost(OURS, RAW_TO_PUBLISHED, turn, 1.0) for turn in range(2)]
    runs += [_cost(peer, RAW_TO_1M, 0, seconds) for peer, seconds in shares.items()]
    summary = [{"engine": peer, "form": "a form"} for peer in shares]
    data = {"rows": rows, "raw_bytes": 10 * rows}
    return {
        "data": data,
        "runs": runs,
        "summary": summary,
        "failed": [{"engine": p, "form": "a form", "why": w} for p, w in failed.items()],
    }


def test_a_larger_size_is_not_asked_of_who_failed_or_was_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    answers = [
        _of_size(1_000_000, {DUCKDB: 2.0, POLARS: 2.5, DATAFUSION: 6.5, CLICKHOUSE: 5.9}, {}),
        _of_size(36_000_000, {DUCKDB: 2.0, CLICKHOUSE: 3.0}, {POLARS: "needs more memory"}),
        _of_size(360_000_000, {DUCKDB: 2.0, CLICKHOUSE: 3.0}, {}),
    ]

    def measured(_command: str, bench: Bench, wanted: list[Contender], *_: object, only_before: bool) -> dict[str, Any]:
        assert only_before
        assert wanted[0] == Contender(OURS, RAW_TO_PUBLISHED), "the others' answers are compared with its own"
        assert all(each.form == peer_sizes.form_at(each.engine, bench.rows) for each in wanted[1:])
        asked.append([each.engine for each in wanted[1:]])
        return answers[len(asked) - 1]

    monkeypatch.setattr(peer_sizes, "side_by_side", measured)
    benches = [Bench(Path("nowhere"), answer["data"]["rows"], 2, "sparse", rollup_shards=16) for answer in answers]
    found = peer_sizes.measure(benches, 2)
    assert asked == [[DUCKDB, POLARS, DATAFUSION, CLICKHOUSE], [DUCKDB, POLARS, CLICKHOUSE], [DUCKDB, CLICKHOUSE]]
    assert found[0]["not_asked"] == {}
    assert found[2]["not_asked"] == {
        DATAFUSION: "at 1 M took 3.2 times as long as the fastest peer",
        POLARS: "at 36 M needs more memory",
    }
    results = {
        **{"command": peer_section.COMMAND, "date": "2026-01-01", "commit": "0" * 40, "changed": [], "repeat": 2, "versions": {}},
        **{"machine": {"cpu": "a processor", "cores": 2, "memory_gib": 8, "system": "Linux", "python": "3.11"}},
        **{"memory": "1GiB", "limit_bytes": 8 << 30, "limit_seconds": 1200.0, "sizes": found},
    }
    text = peer_section.beside_peers(results)
    assert "| 36 M | rollup_assets: raw → published, three resolutions | 1.00 (1.00 to 1.00) |" in text
    assert "|  | ClickHouse: raw → 1 min | 5.90 (5.90 to 5.90) | 11.80 (11.80 to 11.80) | 1024 |  | 5.90 (5.90 to 5.90) |" in text
    said = peer_section.settings(results)
    assert (
        "- 36 M, 360 MB, 16 shards: DuckDB: a form; ClickHouse: a form; Polars (a form) needs more memory; DataFusion was not asked" in said
    )
    assert "8 GiB with the page cache and 1200 s for everyone" in said


def test_a_size_is_measured_beside_a_peer_whose_answer_is_ours(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 6_000, 2, "sparse", 600, memory_limit=2 << 30, rollup_memory="512MiB", rollup_shards=16, time_limit=300.0)
    (found,) = peer_sizes.measure([bench], 1, only=DUCKDB)
    assert (found["failed"], found["wrong"], found["shards"]) == ([], [], 16)
    assert [run["engine"] for run in found["runs"]] == [OURS, DUCKDB]
    ours, theirs = ((output["rows"], output["digest"]) for output in found["outputs"])
    assert ours == theirs
    assert ours[0] > 0


def test_who_takes_too_long_is_given_up(tmp_path: Path) -> None:
    bench = Bench(tmp_path, 6_000, 2, "sparse", 600, time_limit=0.05)
    with pytest.raises(TimeLimitError, match=r"\ntook more than 0.05 s and was given up"):
        bench.run(Contender(DUCKDB, RAW_TO_1M, WARM, peer_sizes.form_at(DUCKDB, 6_000)))


def test_results_beside_the_peers_are_of_every_size() -> None:
    """Ours in every turn, a peer at least once, and everyone's answer is the same."""
    results = tables.read(peer_section.NAME)
    if results is None:
        assert peer_section.blocks()["peer-sizes"] == "Not measured yet: `python -m benchmarks.peer_sizes`."
        return
    assert [size["data"]["rows"] for size in results["sizes"]] == [int(size * 1e6) for size in numbers(peer_sizes.SIZES)]
    assert results["repeat"] >= peer_sizes.REPEAT
    for size in results["sizes"]:
        assert size["summary"] == summarized(size["runs"])
        assert len({(output["rows"], output["digest"]) for output in size["outputs"]}) == 1
        ran = {run["engine"]: len([each for each in size["runs"] if each["engine"] == run["engine"]]) for run in size["runs"]}
        assert ran[OURS] == results["repeat"]
        assert any(ran.get(peer) == results["repeat"] for peer in PEERS)
        assert {*ran, *(each["engine"] for each in size["failed"]), *size["not_asked"]} == {OURS, *PEERS}


# ----------------------------------------------------------------------------------------------------------- by storage


def test_storages_are_measured_with_one_resolution_and_three_and_with_both_engines() -> None:
    local = [
        (EMBEDDED, "local", THREE),
        (EMBEDDED, "local", ONE),
        (POSTGRES, "local", THREE),
        (POSTGRES, "local", ONE),
        (REST, "local", THREE),
    ]
    on_spark = [(storage, "spark", resolutions) for storage in (EMBEDDED, POSTGRES) for resolutions in (THREE, ONE)]
    found = {shape: [(way.storage, way.engine, way.resolutions) for way in storages.ways(shape)] for shape in ("sparse", "scrapes")}
    assert found["sparse"] == local
    assert sorted(found["scrapes"]) == sorted(local + on_spark)
    tables_of = Counter((way.storage, way.table) for way in storages.ways("scrapes"))
    assert set(tables_of.values()) == {1}


def test_a_batch_is_the_same_on_every_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw points, stage and table on local files, on S3 and PostgreSQL, on S3 with a REST catalog; one resolution and three."""
    bench = Bench(tmp_path, 6_000, 2, "sparse", 600)
    asked = [(EMBEDDED, THREE), (EMBEDDED, ONE), (POSTGRES, THREE), (REST, THREE)]
    monkeypatch.setattr(storages, "ways", lambda _: [storages.Way(name, resolutions=each) for name, each in asked])
    runs = storages.measure([bench], 1, tmp_path)
    changed = iter("abcd")
    monkeypatch.setattr(storages, "catalogs", contextlib.nullcontext)
    monkeypatch.setattr(storages, "_land", lambda *_: None)
    monkeypatch.setattr(storages, "_run", lambda *_: {**runs[0], "digest": next(changed)})
    with pytest.raises(ValueError, match="sparse points have other rollups on PostgreSQL, S3, local, than on SQLite, local files, local"):
        storages.measure([bench], 1, tmp_path)
    assert [(run["shape"], run["engine"], run["storage"], run["resolutions"]) for run in runs] == [
        ("sparse", "local", *way) for way in asked
    ]
    for run in runs:
        assert set(run["wall"]) == set(run["cpu"]) == set(sizes.STEPS)
        # As in the batches of other sizes above.
        assert run["rows"] == 6_000 // 60 * (60 + (12 + 1) * (run["resolutions"] == THREE))
        assert run["bytes"] == next(each["bytes"] for each in runs if each["resolutions"] == run["resolutions"]) > 0
    text = storage_section.by_storage({"points": {"sparse": {"rows": 6_000, "series": 100}}, "runs": runs})
    assert [tuple(line.split(" | ")[1:4:2]) for line in text.splitlines()[2:]] == [(name, each.replace(",", ", ")) for name, each in asked]


@pytest.mark.xdist_group("spark")
def test_a_batch_of_the_spark_engine_is_measured_beside(tmp_path: Path) -> None:
    try:
        require_java()
    except EngineError as error:
        pytest.skip(str(error))
    bench, on = Bench(tmp_path, 6_000, 2, "scrapes", 600), Catalogs(tmp_path, {EMBEDDED: {}})
    for site, rows in ((bench.small, bench.small_rows), (bench.full, bench.rows)):
        generate(site, rows, bench.shape)
    measured = storages._run(on, bench, storages.Way(EMBEDDED, engine="spark"))
    local = storages._make(on.pipeline(EMBEDDED, "beside", raw=str(bench.full.landing_zone), threads=2, resolutions=THREE))
    assert measured["digest"] == local["digest"]


def test_results_by_storage_are_of_every_storage() -> None:
    results = tables.read(storage_section.NAME)
    if results is None:
        assert storage_section.blocks()["storages"] == "Not measured yet: `python -m benchmarks.storages`."
        return
    asked = [(shape, way.storage, way.engine, way.resolutions) for shape in storages.MAIN for way in storages.ways(shape)]
    found = Counter((run["shape"], run["storage"], run["engine"], run["resolutions"]) for run in results["runs"])
    assert found == dict.fromkeys(asked, results["repeat"])
    assert results["repeat"] >= storages.REPEAT
    assert len({(run["shape"], run["resolutions"], run["digest"]) for run in results["runs"]}) == 2 * len(storages.MAIN)
