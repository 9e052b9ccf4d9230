"""The benchmark's page shows what was measured, and the harness runs."""

from __future__ import annotations

import importlib
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from benchmarks import check, circumstances, contenders, data, figures, floor, ours, report, seed_size, tables, tasks
from benchmarks.__main__ import MAIN, REPEAT
from benchmarks.contenders import Contender
from benchmarks.data import SHAPES
from benchmarks.measure import Stopwatch
from benchmarks.runner import Bench, BusyError, ChildError, measure
from benchmarks.sections import seed as seed_section
from benchmarks.sections import spark, stages
from benchmarks.side_by_side import renewed
from benchmarks.sites import BATCH_START, ONE, THREE, Site
from benchmarks.summary import Spread, cpu, ratio, select, summarized, wall
from benchmarks.tasks import (
    CLICKHOUSE,
    COLD,
    DATAFUSION,
    DUCKDB,
    FLOOR,
    OURS,
    OURS_ON_SPARK,
    POLARS,
    PUBLISH,
    RAW_TO_1M,
    RAW_TO_1M_FULL,
    RAW_TO_PUBLISHED,
    REPARTITION,
    ROLLUPS_1M,
    ROLLUPS_1M_FULL,
    ROLLUPS_3,
    SPARK,
    WARM,
)
from rollup_assets.engines.spark_session import require_java
from rollup_assets.errors import EngineError

ROOT = Path(__file__).parent.parent
# Of contenders side by side; other benchmarks' results have tests of their own.
RESULTS = sorted(path.stem for path in tables.RESULTS.glob("*.json") if "outputs" in json.loads(path.read_text()))
# Without those from before there was a memory limit, and DataFusion and ClickHouse among the peers.
COMPLETE = [name for name in RESULTS if "failed" in json.loads((tables.RESULTS / f"{name}.json").read_text())]


def test_tables_of_the_page_are_those_of_the_results() -> None:
    text = (ROOT / report.PAGE).read_text()
    assert set(re.findall(r"<!-- table: ([\w-]+) -->", text)) == set(report.blocks())
    assert report.page(text) == text, "run `python -m benchmarks --report`"


@pytest.mark.parametrize("page", [report.PAGE, *report.QUOTING], ids=str)
def test_figures_in_sentences_are_those_of_the_results(page: Path) -> None:
    text, known = (ROOT / page).read_text(), figures.named()
    assert {found["name"] for found in tables.FIGURE.finditer(text)} <= set(known)
    assert text.count("<!-- = ") == len(tables.FIGURE.findall(text)) > 0
    assert tables.with_figures(text, known) == text, "run `python -m benchmarks --report`"


def test_a_figure_in_a_sentence_keeps_its_decimals_and_its_name() -> None:
    text = "ours takes 5<!-- = a, wall s --> s of 1,000.25<!-- = b -->, DuckDB<!-- = c --> 3.0<!-- = d --> and 7.5"
    figures = {"a, wall s": 4.6, "b": 12_345.678, "c": "Polars"}
    found = tables.with_figures(text, figures)
    assert found == "ours takes 5<!-- = a, wall s --> s of 12,345.68<!-- = b -->, Polars<!-- = c --> ?.?<!-- = d --> and 7.5"
    # What is measured again later is shown again as it was.
    assert tables.with_figures(tables.with_figures(text, {}), figures | {"d": 2.04}) == found.replace("?.?", "2.0")
    with pytest.raises(ValueError, match=r"'Spark SQL' \(c\) is not one word"):
        tables.with_figures(text, {"c": "Spark SQL"})


def test_the_page_is_made_from_what_make_bench_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seed's programs once each, warm, on sparse points; of the peers the core."""
    kept = tables.read

    def of_bench(name: str) -> Any:
        results = kept(name)
        if name == "seed_cold":
            return None
        if results and name == "seed":
            results["runs"] = [run for run in results["runs"] if run["task"].endswith("sparse")]
        if results and name in MAIN:
            core = contenders.core(contenders.all_contenders(name), name)
            results["runs"] = [run for run in results["runs"] if any(_is(run, each) for each in core)]
        return results

    monkeypatch.setattr(tables, "read", of_bench)
    text = report.page((ROOT / report.PAGE).read_text())
    assert "?<!-- = seed, one point a window: the seed's program, cold, times ours -->" in text
    assert report.page(text) == text


def _is(run: dict[str, Any], contender: Contender) -> bool:
    return (run["engine"], run["task"], run["start"]) == (contender.engine, contender.task, contender.start)


def test_figures_are_those_of_the_tables() -> None:
    known, measured = figures.named(), {target.text: target for target in report.targets()}
    for text, name in (
        ("raw → sorted: times as fast as the fastest peer's, dense", "dense: fastest peer, repartition, warm, wall, times ours"),
        ("sorted → 1 min rollups: CPU, times its floor's, sparse", "sparse: rollups-1m, times the floor, CPU"),
    ):
        assert measured[text].measured.startswith(f"{known[name]:.2f} (")
    peer = known["sparse: fastest peer, rollups-1m, warm, wall"]
    assert measured["sorted → 1 min rollups: times as fast as the fastest peer's, sparse"].measured.endswith(f", {peer}")
    (series,) = (target for text, target in measured.items() if "PyIceberg, series" in text)
    assert f"series: id: {known['queries: PyIceberg, series: id, %']:.1f}%" in series.also


def test_every_miss_is_explained_and_nothing_else() -> None:
    _, _, explained = (ROOT / report.PAGE).read_text().partition("### What is missed, and why")
    missed = re.findall(r"<!-- missed: (.+?) -->", explained.partition("\n## ")[0])
    assert sorted(missed) == sorted(target.text for target in report.targets() if target.met is False)


def test_plots_of_the_page_were_drawn_from_the_results() -> None:
    page = ROOT / report.PAGE
    assert set(re.findall(r"\]\(([\w-]+)\.svg\)", page.read_text())) == set(report.plots())
    for name, (results, _) in report.plots().items():
        assert f"results {tables.digest(results)}" in page.with_name(f"{name}.svg").read_text(), (
            f"{name}: run `python -m benchmarks --report`"
        )


def test_make_bench_full_measures_all_that_is_kept() -> None:
    _, _, rest = (ROOT / "Makefile").read_text().partition("\nbench-full:")
    asked = [line.removeprefix("\t$(BENCHMARK) ") for line in rest.partition("\n\n")[0].splitlines()[1:]]
    kept = {json.loads(path.read_text())["command"].split()[2] for path in tables.RESULTS.glob("*.json")}
    assert kept == {command.split()[0] for command in asked}
    for command in (seed_section.AT_SIZE_COMMAND, seed_section.WARM_COMMAND, seed_section.COLD_COMMAND):
        assert command.removeprefix("python -m ") in asked
    site = Bench(ROOT / ".rollups" / "benchmark-seed-size", 60 * seed_size.SERIES, 2, "sparse").full.root
    assert f"--site {site.relative_to(ROOT)} " in seed_section.AT_SIZE_COMMAND


def test_every_section_of_the_page_is_known() -> None:
    written = {path.stem for path in (ROOT / "benchmarks" / "sections").glob("[a-z]*.py")}
    assert set(report.SECTIONS) == written


def test_what_is_not_measured_yet_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A section without results neither fails nor shows figures."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    assert report.plots() == {}
    assert all(target.met is None for target in report.targets())
    for name, text in report.blocks().items():
        assert name in ("targets",) or "Not measured yet" in text, name


def test_results_are_kept_if_they_are_of_the_whole_benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Pages are made anew for those alone, wherever a benchmark was told to write."""
    kept, elsewhere, said, pages = tmp_path / "results", tmp_path / "elsewhere.json", [], []
    kept.mkdir()
    monkeypatch.setattr(tables, "RESULTS", kept)
    monkeypatch.setattr(report, "write", lambda root: pages.append((root, tables.read("some"))))
    report.keep({"runs": 1}, "some", complete=False, output=None, say=said.append)
    assert (said, list(kept.iterdir())) == ([], [])
    report.keep({"runs": 2}, "some", complete=True, output=elsewhere, say=said.append)
    assert (json.loads(elsewhere.read_text()), list(kept.iterdir()), pages) == ({"runs": 2}, [], [])
    report.keep({"runs": 3}, "some", complete=True, output=None, say=said.append)
    report.keep({"runs": 4}, "some", complete=False, output=kept / "some.json", say=said.append)
    assert pages == [(ROOT, {"runs": 3}), (ROOT, {"runs": 4})]
    assert said == [f"results are in {path}" for path in (elsewhere, kept / "some.json", kept / "some.json")]


LESS: dict[str, dict[str, Any]] = {
    "__main__": {"rows": 3_600, "repeat": 2, "only": "DuckDB", "threads": 1, "limit_gib": 0.0},
    "spark": {"rows": 3_600, "repeat": 1, "threads": 1, "limit_gib": 0.0, "only": "Spark"},
    "seed": {
        **{"rows": 600, "repeat": 0, "shape": ["scrapes"], "start": "cold", "only": ["seed"], "threads": 1, "memory": 4.0},
        **{"site": Path("a-site"), "limit_seconds": 600.0},
    },
    "seed_size": {"series": 100, "repeat": 1, "files": 1, "shards": 16, "memory": 4.0, "rollup_memory": "512MiB", "threads": 1},
    "sizes": {"sizes": "1,4", "threads": "2", "repeat": 1, "shape": "wide", "memory": "512MiB", "shards": 16, "limit_gib": 4.0},
    "peer_sizes": {
        **{"sizes": "1,36", "repeat": 1, "only": "DuckDB", "threads": 1, "memory": "512MiB", "limit_gib": 4.0, "limit_seconds": 60.0}
    },
    "shapes": {"rows": 3_600, "repeat": 1, "only": "wide", "threads": 1, "memory": "512MiB", "limit_gib": 4.0},
    "storages": {"rows": 3_600, "repeat": 1, "shape": ["sparse"], "threads": 1},
    "publishing": {"repeat": 1, "files": "1,8"},
    "table_age": {"real": 10, "age": 100},
    "orchestration": {"repeat": 1, "rows": 3_600, "partitions": 2, "singles": 2, "hours": 0, "threads": 1},
    "querying": {"series": 100, "hours": 2, "hours_beside": 1, "repeat": 1, "threads": 1, "only": "DuckDB"},
    "load": {"week": 2, "arrivals": 1, "readers": 1, "store": "PostgreSQL, S3"},
}
"""Of each program, the options with which it measures something else than the whole benchmark, or less."""
MORE: dict[str, dict[str, Any]] = {
    "__main__": {"forms": True, "repeat": 1},
    "spark": {"forms": True, "repeat": 1},
    "seed": {"shape": ["sparse"], "start": "both"},
    "sizes": {"sizes": "1,4,36,360", "repeat": 6},
    "storages": {"shape": ["scrapes", "sparse"]},
}
"""Options that measure all of it, or more, though they are not the defaults."""


@pytest.mark.parametrize("program", LESS)
def test_a_benchmark_with_other_options_than_the_defaults_is_not_the_whole_one(program: str) -> None:
    """Of every option of every program, but for those that say where data and results go, or what to do with them."""
    module = importlib.import_module(f"benchmarks.{program}")
    defaults = {name: option.default for name, option in inspect.signature(module.main).parameters.items()}
    if program == "__main__":
        del defaults["shape"]  # each shape has results of its own
    assert set(defaults) - set(LESS[program]) - set(MORE.get(program, {})) <= {"work", "output", "report_only", "full", "renew"}
    given = {name: defaults[name] for name in inspect.signature(module.is_complete).parameters}
    assert module.is_complete(**given)
    assert module.is_complete(**{**given, **MORE.get(program, {})})
    for name, value in LESS[program].items():
        assert not module.is_complete(**{**given, name: value}), name


def test_forms_that_are_measured_again_take_the_place_of_what_was_kept() -> None:
    """Also where they have failed now, or had; others stay as they were, but for those that nobody runs any more."""
    gone, stays, again, fails, mended = (Contender(DUCKDB, RAW_TO_1M, form=form) for form in ("gone", "stays", "again", "fails", "mended"))

    def results(commit: str, ran: dict[Contender, float], failed: Contender) -> dict[str, Any]:
        who = [{"engine": each.engine, "task": each.task, "form": each.form} for each in ran]
        runs = [
            {**each.to_dict(), "turn": 0, "peak_bytes": 1}
            | {"wall": {"rollups": seconds}, "cpu": {"rollups": seconds}, "process_wall": seconds, "process_cpu": seconds}
            for each, seconds in ran.items()
        ]
        occasion = {"command": f"at {commit}", "date": "2026-01-01", "commit": commit, "changed": []}
        failures = [{**failed.to_dict(), "why": commit}]
        return {**occasion, "repeat": 1, "outputs": who, "failed": failures, "wrong": [], "runs": runs, "summary": summarized(runs)}

    kept = results("one", {gone: 1.0, stays: 2.0, again: 3.0, fails: 4.0}, mended)
    found = renewed(kept, results("two", {mended: 6.0, again: 5.0}, fails), [stays, again, fails, mended])
    assert [(each["form"], each["wall"]["median"]) for each in found["summary"]] == [("stays", 2.0), ("again", 5.0), ("mended", 6.0)]
    assert [each["form"] for each in found["outputs"]] == ["stays", "again", "mended"]
    assert [(each["form"], each["why"]) for each in found["failed"]] == [("fails", "two")]
    assert (found["commit"], [each["commit"] for each in found["renewed"]]) == ("one", ["two"])
    thrice = renewed(found, results("three", {stays: 1.0}, fails), [stays, fails])
    assert [each["commit"] for each in thrice["renewed"]] == ["two", "three"]
    cold = replace(stays, start=COLD)
    both = renewed({**thrice, **results("one", {stays: 1.0, cold: 2.0}, fails)}, results("four", {cold: 3.0}, fails), [stays, cold, fails])
    assert [(each["start"], each["wall"]["median"]) for each in both["summary"]] == [(WARM, 1.0), (COLD, 3.0)]


def test_only_what_is_kept_of_the_same_circumstances_is_renewed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """And that is known before anything is measured."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    bench = Bench(tmp_path, 36_000_000, 2, "sparse", memory_limit=8 << 30)
    assert report.not_renewable("forms-sparse", bench, 1) == "there is no forms-sparse.json to renew: measure all of it first"
    kept = {"data": {"rows": 36_000_000}, "threads": 2, "limit_bytes": 8 << 30, "repeat": 1, "runs": []}
    (tmp_path / "forms-sparse.json").write_text(json.dumps(kept))
    assert report.not_renewable("forms-sparse", bench, 1) is None
    problem = report.not_renewable("forms-sparse", replace(bench, threads=1, rows=1_000), 3)
    assert problem is not None
    assert "of points 36000000, not 1000; threads 2, not 1; turns 1, not 3: measure all of it again" in problem


def test_what_is_compared_turn_by_turn_is_renewed_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else a ratio would be of two occasions."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    bench = Bench(tmp_path, 36_000_000, 2, "wide", memory_limit=8 << 30)
    ours, peer = Contender(OURS, RAW_TO_PUBLISHED, COLD), Contender(DUCKDB, RAW_TO_1M, COLD, "a form")
    runs = [each.to_dict() for each in (Contender(OURS, RAW_TO_PUBLISHED), ours, peer, peer)]
    kept = {"data": {"rows": 36_000_000}, "threads": 2, "limit_bytes": 8 << 30, "repeat": 5, "runs": runs}
    (tmp_path / "wide.json").write_text(json.dumps(kept))
    assert report.not_renewable("wide", bench, 5, [ours, peer]) is None
    alone = "wide.json compares these with DuckDB raw-to-1m cold (a form): measure all of them again, with --only cold"
    assert report.not_renewable("wide", bench, 5, [ours]) == alone


@pytest.mark.parametrize("name", RESULTS)
def test_summaries_of_the_results_are_those_of_their_runs(name: str) -> None:
    results = _read(name)
    assert results["summary"] == summarized(results["runs"])
    assert not re.search(r"/(work|home|root|tmp|Users)/", str(results))


@pytest.mark.parametrize("name", RESULTS)
def test_everyone_answered_the_same_before_times_counted(name: str) -> None:
    """Rows and digests of every engine that wrote the same thing are equal."""
    outputs = _read(name)["outputs"]
    for alike in ((REPARTITION,), (ROLLUPS_1M, ROLLUPS_3, RAW_TO_1M, RAW_TO_PUBLISHED)):
        answers = {(output["rows"], output["digest"]) for output in outputs if output["task"] in alike}
        assert len(answers) == 1, alike


def test_results_are_of_the_whole_benchmark() -> None:
    """30 M points and more; everyone once at least, and what targets name at least five times."""
    for name in set(COMPLETE) & set(SHAPES):
        results = _read(name)
        assert results["data"]["rows"] >= 30_000_000
        assert results["repeat"] >= REPEAT
        wanted = contenders.core(contenders.all_contenders(name), name)
        if name not in MAIN:
            # With the forms that were the fastest when they were measured.
            forms = {each["engine"] + each["task"]: each["form"] for each in (*results["runs"], *results["failed"])}
            wanted = [replace(each, form=forms.get(each.engine + each.task, each.form)) for each in wanted]
        ran = [contender for contender in wanted if _runs_of(results, contender)]
        failed = [each for each in wanted if any(each.to_dict().items() <= failure.items() for failure in results["failed"])]
        assert set(wanted) - set(ran) == set(failed)
        assert not [each for each in failed if each.engine in (OURS, FLOOR)]
        left = ran
        for turn in range(1, results["repeat"]):
            left = contenders.worth_repeating(left, [run for run in results["runs"] if run["turn"] < turn])
            for contender in left:
                assert [run for run in _runs_of(results, contender) if run["turn"] == turn], (turn, contender.name)
        # What ratios are of: this project, the floor, and of each task the fastest peers, by wall time and by CPU time.
        every = [contender for contender in ran if len(_runs_of(results, contender)) == results["repeat"]]
        assert {(OURS, REPARTITION), (OURS, ROLLUPS_1M), (OURS, RAW_TO_PUBLISHED), (FLOOR, REPARTITION), (FLOOR, ROLLUPS_1M)} <= {
            (contender.engine, contender.task) for contender in every
        }
        for task, start in {(contender.task, contender.start) for contender in ran if contender.engine in tasks.PEERS}:
            for of in (wall, cpu):
                peer = stages.fastest_peer(results["runs"], task, start, of)
                assert [each for each in every if (each.engine, each.task, each.start) == (peer, task, start)], (task, start)


def test_what_make_bench_leaves_out_is_slower_than_who_stays() -> None:
    """By results of everyone, where there are any; a peer stays at each task, and all of ours and the floor that a target names."""
    for shape in MAIN:
        left_out = contenders.left_out(shape)
        everyone = contenders.all_contenders(shape)
        stay = contenders.core(everyone, shape)
        assert left_out <= {(each.engine, each.task, each.start) for each in everyone}
        assert len(left_out) > len(contenders.NO_TARGET.get(shape, ()))
        mine = [
            each for each in everyone if each.engine in (OURS, FLOOR) and each.start == "warm" and each.task not in (ROLLUPS_3, PUBLISH)
        ]
        assert set(mine) <= set(stay)
        for task in (REPARTITION, ROLLUPS_1M, ROLLUPS_1M_FULL, RAW_TO_1M):
            assert [each for each in stay if each.engine in tasks.PEERS and (each.task, each.start) == (task, "warm")]
        assert [each for each in stay if each.engine in tasks.PEERS and (each.task, each.start) == (RAW_TO_1M, COLD)]
        results = tables.read(shape) if shape in COMPLETE else None
        for engine, task, start in left_out if results else ():
            runs = [run for run in results["runs"] if (run["task"], run["start"]) == (task, start)] if results else []
            if engine in tasks.PEERS and any(run["engine"] == engine for run in runs):
                for of in (wall, cpu):
                    medians = {peer: Spread.of([of(run) for run in select(runs, peer, task, start)]).median for peer in _ran(runs)}
                    assert medians[engine] > 1.1 * min(medians.values()), (shape, engine, task)


def _ran(runs: list[dict[str, object]]) -> set[str]:
    return {str(run["engine"]) for run in runs if run["engine"] in tasks.PEERS}


def test_results_of_before_have_been_measured_again_where_there_are_new_ones() -> None:
    """Both of the main shapes, or neither: the page does not show new figures beside old ones."""
    assert len({name in COMPLETE for name in MAIN}) == 1


def test_steps_on_spark_are_told_beside_the_local_engine_s() -> None:
    def run(engine: str, turn: int, seconds: float) -> dict[str, Any]:
        steps = {"repartition": seconds, "rollups": 1.0, "publish": 1.0}
        return {"engine": engine, "task": RAW_TO_PUBLISHED, "start": "warm", "turn": turn, "wall": steps, "cpu": steps}

    runs = [run(OURS, 0, 1.0), run(OURS_ON_SPARK, 0, 2.0), run(OURS, 1, 2.0), run(OURS_ON_SPARK, 1, 8.0)]
    shown = spark.by_step({"runs": runs})
    assert "|  | rollup_assets on Spark | 5.00 (2.00 to 8.00) | 5.00 (2.00 to 8.00) | 3.00 (2.00 to 4.00) |" in shown
    assert shown.count("1.00 (1.00 to 1.00) | 1.00 (1.00 to 1.00) |  |") == 2


def test_results_beside_spark_are_of_the_whole_benchmark() -> None:
    if "spark" not in COMPLETE:
        return
    results = _read("spark")
    assert results["data"]["series"] == 100_000
    wanted = contenders.spark_contenders()
    often = wanted if "--full" in results["command"] else contenders.worth_repeating_on_spark(wanted, results["runs"])
    for contender in wanted:
        assert len(_runs_of(results, contender)) == (results["repeat"] if contender in often else 1), contender.name
    assert {contender.engine for contender in often} >= {*tasks.OWN, tasks.SPARK}
    assert results["repeat"] >= 5


def _runs_of(results: tables.Results, contender: Contender) -> list[dict[str, object]]:
    return [run for run in results["runs"] if Contender(run["engine"], run["task"], run["start"], run["form"]) == contender]


def test_ratios_are_taken_turn_by_turn() -> None:
    def run(engine: str, turn: int, seconds: float) -> dict[str, object]:
        costs = {"wall": {"a": seconds}, "cpu": {"a": seconds / 2, "b": seconds / 2}}
        return {"engine": engine, "task": "t", "start": "warm", "form": "", "turn": turn, "peak_bytes": 1, **costs}

    ones = [run("one", turn, seconds) for turn, seconds in enumerate((2.0, 20.0, 9.0))]
    others = [run("other", turn, seconds) for turn, seconds in enumerate((1.0, 10.0, 3.0))]
    assert ratio(ones, others, wall) == Spread(2.0, 2.0, 3.0)
    assert [cpu(one) for one in ones] == [2.0, 20.0, 9.0]
    cold = {**ones[0], "start": COLD, "process_wall": 7.0, "process_cpu": 8.0}
    assert (wall(cold), cpu(cold)) == (7.0, 8.0)


def _run(engine: str, task: str, turn: int, seconds: float, start: str = "warm", cpu_seconds: float = 0.0) -> dict[str, object]:
    costs = {"wall": {"all": seconds}, "cpu": {"all": cpu_seconds or seconds}, "process_wall": seconds, "process_cpu": seconds}
    return {"engine": engine, "task": task, "start": start, "form": "", "turn": turn, "peak_bytes": 1 << 20, **costs}


def test_only_the_fastest_peers_run_again() -> None:
    """Those about as fast by wall or CPU time, the closer the more turns there were; of ours and the floor what a target names."""
    wanted = [
        *(Contender(peer, ROLLUPS_1M) for peer in tasks.PEERS),
        *(Contender(OURS, task) for task in (ROLLUPS_1M, PUBLISH)),
        *(Contender(FLOOR, task) for task in (ROLLUPS_1M, ROLLUPS_3)),
    ]
    costs = {DUCKDB: (2.0, 4.0), POLARS: (2.28, 5.0), DATAFUSION: (6.0, 4.4), CLICKHOUSE: (6.0, 12.0)}
    runs = [_run(peer, ROLLUPS_1M, 0, seconds, cpu_seconds=spent) for peer, (seconds, spent) in costs.items()]
    again = contenders.worth_repeating(wanted, runs)
    assert [each.engine for each in again] == [DUCKDB, POLARS, DATAFUSION, OURS, FLOOR]
    assert all(each.task == ROLLUPS_1M for each in again)
    # One that failed has no run.
    assert next(each.engine for each in contenders.worth_repeating(wanted, runs[1:])) == POLARS
    # After more turns medians tell more: Polars is 1.1 times as slow, DataFusion 1.03 times by CPU time.
    runs += [_run(DUCKDB, ROLLUPS_1M, 1, 2.0, cpu_seconds=4.0), _run(POLARS, ROLLUPS_1M, 1, 2.1, cpu_seconds=5.0)]
    runs += [_run(DATAFUSION, ROLLUPS_1M, 1, 6.0, cpu_seconds=3.84)]
    again = contenders.worth_repeating(again, runs)
    assert [each.engine for each in again] == [DUCKDB, DATAFUSION, OURS, FLOOR]
    runs += [_run(DUCKDB, ROLLUPS_1M, 2, 2.0, cpu_seconds=4.0), _run(DATAFUSION, ROLLUPS_1M, 2, 6.0, cpu_seconds=4.3)]
    assert [each.engine for each in contenders.worth_repeating(again, runs)] == [DUCKDB, OURS, FLOOR]
    # Who no longer runs is no longer compared with, however fast its few turns were.
    assert [each.engine for each in contenders.worth_repeating(again[1:], runs)] == [DATAFUSION, OURS, FLOOR]
    assert stages.fastest_peer([*runs, _run(CLICKHOUSE, ROLLUPS_1M, 0, 0.1)], ROLLUPS_1M, "warm", wall) == DUCKDB


def test_targets_are_against_the_fastest_peer() -> None:
    """By wall time and by CPU time, which need not be the same one; both have to be met."""
    runs = []
    for turn in range(3):
        runs += [_run(OURS, ROLLUPS_1M, turn, 1.0), _run(FLOOR, ROLLUPS_1M, turn, 0.8)]
        runs += [_run(DUCKDB, ROLLUPS_1M, turn, 2.2, cpu_seconds=4.0), _run(POLARS, ROLLUPS_1M, turn, 3.0, cpu_seconds=1.9)]
        runs += [_run(OURS, RAW_TO_PUBLISHED, turn, 2.0, "cold"), _run(DUCKDB, RAW_TO_1M, turn, 2.5, "cold")]
        steps = {"a": {"timings": {"read": 9.5, "partial points": 0.5, "total": 99.0}}}
        runs += [{**_run(OURS, RAW_TO_PUBLISHED, turn, 2.0), "steps": steps}]
    aims = {aim.text: aim for aim in stages.aims({"runs": runs}, "sparse")}
    without_delta = aims["sorted → 1 min rollups: times as fast as the fastest peer's, sparse"]
    assert (without_delta.measured, without_delta.also) == ("2.20 (2.20 to 2.20), DuckDB", "CPU 1.90 (1.90 to 1.90), Polars")
    assert without_delta.met is False
    assert aims["sorted → 1 min rollups: CPU, times its floor's, sparse"].met is True
    assert aims["sorted → 1 min rollups with delta, resets and rate: times as fast as the fastest peer's, sparse"].met is None
    cold = next(aim for text, aim in aims.items() if "cold process" in text)
    assert (cold.met, cold.wanted, cold.measured) == (True, "≥ 1.2", "1.25 (1.25 to 1.25), DuckDB")
    shares = next(aim for text, aim in aims.items() if text.startswith("partial points"))
    assert (shares.met, shares.measured) == (True, "5.0 (5.0 to 5.0) %")


def test_a_form_that_was_not_measured_yet_is_the_first_of_the_list(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The fastest one on points of the shape, else on dense ones, else the first; never one that is no more."""
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    first, second, *_ = contenders.peer_forms(DATAFUSION)[RAW_TO_1M]
    assert contenders.fastest_form(DATAFUSION, RAW_TO_1M, "sparse") == first

    def write(name: str, forms: dict[str, float]) -> None:
        summary = [{"engine": DATAFUSION, "task": RAW_TO_1M, "form": form, "wall": {"median": wall}} for form, wall in forms.items()]
        (tmp_path / name).write_text(json.dumps({"summary": summary}))

    write("forms.json", {"one of before": 0.5, first: 2.0, second: 1.0})
    assert contenders.fastest_form(DATAFUSION, RAW_TO_1M, "sparse") == second
    write("forms-sparse.json", {first: 1.0, second: 2.0})
    assert contenders.fastest_form(DATAFUSION, RAW_TO_1M, "sparse") == first
    assert contenders.fastest_form(DATAFUSION, RAW_TO_1M) == second


@pytest.mark.parametrize("shape", ["fleet", "doubles"])
def test_peers_answer_what_we_do(shape: str, tmp_path: Path) -> None:
    """Sorted points; rollups of basic and of full columns, from sorted and from raw points.

    Every form on a fleet's points, with gaps, resets, late points and, of some of them, receive times; the fastest forms on doubles.
    """
    site = Site(tmp_path)
    # A tenth of 72,000 have no receive time; of 7,200 all have one.
    data.generate(site, 72_000 if shape == "fleet" else 7_200, shape)
    ours.prepare(site, 2)
    wrong = []
    for contender in contenders.all_forms() if shape == "fleet" else contenders.core(contenders.all_contenders(shape), shape):
        if contender.engine in tasks.PEERS and contender.start != COLD:
            contenders.reset(contender, site)
            contenders.run(contender, site, 2, Stopwatch())
            found = check.check(site, contender.to_dict())
            assert ("steps_digest" in found["found"]) == (contender.task in tasks.FULL)
            wrong += [] if found["equal"] else [contender.name]
    assert wrong == []


@pytest.mark.parametrize("column", ["delta_rollup", "resets_rollup", "rate_rollup"])
def test_a_wrong_step_is_noticed(column: str, tmp_path: Path) -> None:
    """In any window but that of a series' first point, whose step comes from the batch before."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    site = Site(tmp_path)
    data.generate(site, 3_600, "scrapes")
    ours.prepare(site, 2)
    contender = Contender(DUCKDB, RAW_TO_1M_FULL, form="lag by series, lz4")
    contenders.reset(contender, site)
    contenders.run(contender, site, 2, Stopwatch())
    path = site.output / "rollups.parquet"
    table = pq.read_table(path)
    labels = table.column("label").to_pylist()
    for label, equal in ((BATCH_START + 60_000, True), (BATCH_START + 120_000, False)):
        at = pa.array([number == labels.index(label) for number in range(len(labels))])
        values = table.column(column)
        changed = pc.if_else(at, pc.add(pc.fill_null(values, 0), 1), values)
        pq.write_table(table.set_column(table.schema.get_field_index(column), column, changed), path)
        assert check.check(site, contender.to_dict())["equal"] == equal


@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_the_floor_writes_the_same_bytes_as_the_product(at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not less, or it would be no floor; not more, or the ratio to it would flatter."""
    monkeypatch.setattr(floor, "ROWS_AT_ONCE", at_once)
    site = Site(tmp_path)
    data.generate(site, 7_200, "scrapes")
    ours.prepare(site, 2)
    for run, outputs in (
        (floor.repartition, site.sorted_files),
        (floor.rollups_one, site.rollup_files(ONE)),
        (floor.rollups_three, site.rollup_files(THREE)),
    ):
        site.clear_output()
        run(site, 2, Stopwatch())
        wanted = sorted(Path(path).read_bytes() for path in outputs)
        assert sorted(path.read_bytes() for path in site.output.iterdir()) == wanted


def test_a_peer_that_does_not_come_to_an_end_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others go on, and it does not run again; one of ours that fails ends the benchmark."""
    said = []
    ran = []

    def run(_bench: Bench, contender: Contender) -> dict[str, object]:
        ran.append(contender.engine)
        if contender.engine in (POLARS, OURS):
            raise ChildError("ended with status 1:\nOutOfMemory: could not get 3 GB for /tmp/x/y.parquet")
        return {**_run(contender.engine, contender.task, 0, 1.0), "others_share": 0.0}

    monkeypatch.setattr(Bench, "run", run)
    monkeypatch.setattr(Bench, "check", lambda *_: {"equal": True, "found": {"rows": 1}})
    bench = Bench(tmp_path, rows=720, threads=1, shape="scrapes")
    found = measure(bench, [Contender(DUCKDB, RAW_TO_1M), Contender(POLARS, RAW_TO_1M)], 2, said.append)
    assert ran == [DUCKDB, POLARS, DUCKDB]
    assert [(each["engine"], each["why"]) for each in found.failed] == [(POLARS, "OutOfMemory: could not get 3 GB for …")]
    assert any("failed: OutOfMemory" in line for line in said)
    with pytest.raises(ChildError):
        measure(bench, [Contender(OURS, REPARTITION)], 1, said.append)


def test_the_harness_runs_and_answers_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One turn with a few rows: every stage of ours, a floor, a task of each peer in its fastest form; tables and plots come out."""
    monkeypatch.setattr(Bench, "check", _checked_here)
    bench = Bench(tmp_path, rows=3_600, threads=2, shape="scrapes", small_rows=720)
    bench.prepare()
    beside = {DUCKDB: ROLLUPS_1M, DATAFUSION: ROLLUPS_1M_FULL, POLARS: RAW_TO_1M, CLICKHOUSE: REPARTITION}
    chosen = [
        *(Contender(OURS, task) for task in (REPARTITION, ROLLUPS_1M, PUBLISH, RAW_TO_PUBLISHED)),
        Contender(OURS, RAW_TO_PUBLISHED, COLD),
        Contender(FLOOR, ROLLUPS_1M),
        *(Contender(peer, task, form=contenders.fastest_form(peer, task)) for peer, task in beside.items()),
    ]
    found = measure(bench, chosen, 1, _silent)
    runs, outputs = found.runs, found.outputs
    assert found.failed == []
    assert len(runs) == len(chosen)
    assert all(run["peak_bytes"] > 1 << 20 and wall(run) > 0 and cpu(run) >= 0 for run in runs)
    assert {(output["engine"], output["task"]) for output in outputs} >= set(beside.items())
    results = {**_read("scrapes"), "runs": runs, "outputs": outputs, "summary": summarized(runs)}
    unknown = [aim.text for aim in stages.aims(results, "scrapes") if aim.met is None]
    assert len(unknown) == 2, "cold peers and the floor of repartition did not run"
    for text in (stages.side_by_side, stages.starts, stages.limits, stages.shares, tables.circumstances):
        assert text(results), text.__name__
    monkeypatch.setattr(tables, "read", lambda name: results if name == "scrapes" else None)
    for name, (_, draw) in stages.plots().items():
        draw(tmp_path / f"{name}.svg")
        assert f"results {tables.digest(results)}" in (tmp_path / f"{name}.svg").read_text()


@pytest.mark.xdist_group("spark")
def test_spark_s_own_sort_is_measured_beside_ours_and_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time and memory of the Java machine count; a file that is out of order, or a series in two files, is noticed."""
    try:
        require_java()
    except EngineError as error:
        pytest.skip(str(error))
    monkeypatch.setattr(Bench, "check", _checked_here)
    bench = Bench(tmp_path, rows=7_200, threads=2, shape="scrapes", small_rows=720)
    bench.prepare(for_spark=True)
    chosen = [contender for contender in contenders.spark_contenders() if contender.task == REPARTITION]
    assert [contender.engine for contender in chosen] == [OURS, OURS_ON_SPARK, SPARK]
    found = measure(bench, chosen, 1, _silent)
    runs, outputs = found.runs, found.outputs
    assert len({(output["rows"], output["digest"]) for output in outputs}) == 1
    local, *on_spark = runs
    for run in on_spark:
        assert run["peak_bytes"] > local["peak_bytes"] + (100 << 20)
        assert run["process_cpu"] > local["process_cpu"] + 1
    results = {**_read("scrapes"), "runs": runs, "outputs": outputs, "summary": summarized(runs)}
    assert "times as fast as Spark's own sort" in str(spark.aims(results))
    assert chosen[2].form in spark.side_by_side(results)

    import pyarrow.parquet as pq

    largest = max(bench.full.output.glob("sorted/part-*.parquet"), key=lambda path: int(pq.read_metadata(path).num_rows))
    table = pq.read_table(largest)
    pq.write_table(table.take(list(range(table.num_rows))[::-1]), largest)
    assert not bench.check(chosen[2])["equal"]
    pq.write_table(table.slice(0, 1), largest)
    pq.write_table(table.slice(1), largest.with_name("part-99999-rest.parquet"))
    assert not bench.check(chosen[2])["equal"]
    pq.write_table(table, largest)
    largest.with_name("part-99999-rest.parquet").unlink()
    assert bench.check(chosen[2])["equal"]


@pytest.mark.xdist_group("spark")
def test_spark_sql_answers_what_we_do(tmp_path: Path) -> None:
    try:
        require_java()
    except EngineError as error:
        pytest.skip(str(error))
    script = tmp_path / "forms.py"
    script.write_text(_SPARK_FORMS)
    # A process of its own: the session is set up for the benchmark, not for these tests.
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "site")],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2_000:]
    found = json.loads(ended.stdout.splitlines()[-1])
    assert set(found) == set(tasks.PEER_TASKS)
    assert all(found.values()), found


_SPARK_FORMS = """
import json, sys
from pathlib import Path
from typing import Any
from benchmarks import check, contenders, data, ours, tasks
from benchmarks.measure import Stopwatch
from benchmarks.peers import spark
from benchmarks.sites import Site

site = Site(Path(sys.argv[1]))
data.generate(site, 3_600, "scrapes")
ours.prepare(site, 2)
spark.copy_for_spark(site, site.sorted_files)
found = {}
for task in tasks.PEER_TASKS:
    contender = contenders.Contender(tasks.SPARK, task, form=contenders.fastest_form(tasks.SPARK, task))
    contenders.reset(contender, site)
    contenders.run(contender, site, 2, Stopwatch())
    found[task] = check.check(site, contender.to_dict())["equal"]
print(json.dumps(found))
"""


def test_two_benchmarks_do_not_share_a_folder(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rows=720, threads=1, shape="scrapes")
    with bench.exclusively(), pytest.raises(BusyError, match="--work"), bench.exclusively():
        pass
    with bench.exclusively():
        pass


def test_a_wrong_answer_stops_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tmp_path, rows=720, threads=1, shape="scrapes", small_rows=360)
    bench.prepare()
    contender = Contender(DUCKDB, RAW_TO_1M, form="group by id and label, lz4")
    monkeypatch.setattr(Bench, "run", lambda self, contender: _run_and_break(self, contender))
    with pytest.raises(ValueError, match=r"DuckDB raw-to-1m .* answers something else"):
        measure(bench, [contender], 1, _silent)


def test_a_peer_that_answers_wrongly_once_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of the wrong answer does not count, and the circumstances tell of it; one of ours does not get a second chance."""
    seconds, answers = iter((1.0, 2.0)), iter((False, True, False))
    monkeypatch.setattr(
        Bench, "run", lambda _, contender: {**_run(contender.engine, contender.task, 0, next(seconds)), "others_share": 0.0}
    )
    monkeypatch.setattr(Bench, "check", lambda *_: {"equal": next(answers), "found": {"rows": 1}})
    bench = Bench(tmp_path, rows=720, threads=1, shape="scrapes")
    found = measure(bench, [Contender(DUCKDB, RAW_TO_1M, form="some")], 1, _silent)
    assert [wall(run) for run in found.runs] == [2.0]
    text = tables.circumstances({**_read("scrapes"), "wrong": found.wrong})
    assert "- answered something else once, and the same as the others when run again: DuckDB raw-to-1m: some" in text
    seconds = iter((1.0,))
    with pytest.raises(ValueError, match="answers something else"):
        measure(bench, [Contender(OURS, REPARTITION)], 1, _silent)


def _read(name: str) -> tables.Results:
    found = tables.read(name)
    assert found is not None
    return found


def _silent(_line: str) -> None:
    """Progress is not of interest here."""


def _checked_here(bench: Bench, contender: Contender) -> dict[str, Any]:
    """``Bench.check`` without its process, which takes longer to start than to check so few rows; other tests have it."""
    return check.check(bench.full, contender.to_dict())


_RUN = Bench.run


def _run_and_break(bench: Bench, contender: Contender) -> dict[str, object]:
    """Run it, then change one value of what it wrote."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = _RUN(bench, contender)
    path = bench.full.output / "rollups.parquet"
    table = pq.read_table(path)
    latest = table.column("latest_rollup").to_pylist()
    latest[-1] += 1
    pq.write_table(table.set_column(table.schema.get_field_index("latest_rollup"), "latest_rollup", pa.array(latest)), path)
    return found


def test_the_skew_table_is_the_measured_one(tmp_path: Path) -> None:
    from benchmarks import skew_table

    page = (ROOT / "docs" / "spark.md").read_text()
    shown = page.partition("<!-- skew -->")[2].partition("<!-- /skew -->")[0].strip()
    found = _read(skew_table.NAME)["tasks"]
    assert shown == skew_table.table(found)
    copy = tmp_path / "docs" / "spark.md"
    copy.parent.mkdir()
    copy.write_text(page.replace(shown, "| of before |"))
    skew_table.write(tmp_path)
    assert copy.read_text() == page, "run `python -m benchmarks --report`"
    assert all(step["longest"] < 10 * step["median"] for kind in found.values() for step in kind.values())


def test_measuring_skew_leaves_steps_and_points_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a run fails: another one in the same folder would take the hot series for evenly spread points."""
    from benchmarks import skew
    from rollup_assets.steps import repartition, rollup

    site = Site(tmp_path)
    data.generate(site, 3_600, "scrapes")
    monkeypatch.setattr(skew, "HOT_POINTS", 400)
    before = (site.raw_files, vars(repartition)["sort_shards"], vars(rollup)["roll_up_shards"])
    found = skew.measure(site, 1)
    assert {(kind, step): figures["tasks"] for kind, steps in found.items() for step, figures in steps.items()} == {
        (kind, step): 1 for kind in ("even", "hot") for step in ("merge", "roll up")
    }
    assert (site.raw_files, vars(repartition)["sort_shards"], vars(rollup)["roll_up_shards"]) == before
    roll_up = rollup.roll_up

    def fails_beside_the_hot_series(*arguments: Any, **options: Any) -> Any:
        if site.raw_files != before[0]:
            raise ChildError("no more memory")
        return roll_up(*arguments, **options)

    monkeypatch.setattr(rollup, "roll_up", fails_beside_the_hot_series)
    with pytest.raises(ChildError):
        skew.measure(site, 1)
    assert (site.raw_files, vars(repartition)["sort_shards"], vars(rollup)["roll_up_shards"]) == before


def test_results_of_publishing_are_of_the_whole_benchmark() -> None:
    from benchmarks import catalogs, publishing

    results = tables.read("publishing")
    if results is None:
        assert publishing.section.blocks()["publishing-files"] == "Not measured yet: `python -m benchmarks.publishing`."
        return
    for catalog in (catalogs.EMBEDDED, catalogs.POSTGRES, catalogs.REST):
        for files in publishing.FILES:
            assert len([run for run in results["runs"] if (run["catalog"], run["files"]) == (catalog, files)]) == results["repeat"] >= 5
    assert {(entry["catalog"], entry["files"]) for entry in results["requests"]} == {
        (catalog, files) for catalog in (catalogs.POSTGRES, catalogs.REST) for files in publishing.COUNTED
    }
    assert not re.search(r"/(work|home|root|tmp|Users)/", str(results))


def test_results_of_a_table_s_age_are_of_the_whole_benchmark() -> None:
    from benchmarks.sections import table_age

    results = tables.read(table_age.NAME)
    if results is None:
        assert table_age.blocks()["table-age"] == "Not measured yet: `python -m benchmarks.table_age`."
        return
    for catalog, retained in table_age.AGED:
        mine = {age["publishes"] for age in results["ages"] if (age["catalog"], age["retained"]) == (catalog, retained)}
        assert {100, 10_000} <= mine, (catalog, retained)
        many = Counter((run["files"], run["aged"]) for run in results["many"] if (run["catalog"], run["retained"]) == (catalog, retained))
        assert many == dict.fromkeys(itertools.product((20, 200, 2000), (True, False)), 5), (catalog, retained)
    assert not re.search(r"/(work|home|root|tmp|Users)/", str(results))


def test_the_benchmark_of_publishing_runs(tmp_path: Path) -> None:
    """Every catalog; tables that age with and without retention; requests counted, of which the product promises few."""
    from benchmarks import publishing, table_age
    from benchmarks.catalogs import EMBEDDED, POSTGRES, REST, catalogs

    with catalogs(tmp_path) as on:
        runs = publishing.measure(on, 1, (2,))
        requests = publishing.count_requests(on, (8,))
        ages = [
            age
            for name, retained in ((EMBEDDED, True), (EMBEDDED, False), (POSTGRES, False))
            for age in table_age.grow_old(on, name, retained=retained, real=2, age=130, full=False)
        ]
        many = table_age.publish_many(on, EMBEDDED, retained=False, age=130, files=(4,), repeat=2)
    assert [(run["catalog"], run["files"]) for run in runs] == [(EMBEDDED, 2), (POSTGRES, 2), (REST, 2)]
    assert all(run["seconds"] >= sum(run[part] for part in publishing.PARTS) for run in runs)
    assert [(age["publishes"], age["real"], age["files"]) for age in ages] == [(130, False, 390)] * 3
    assert ages[0]["snapshots"] <= 100 < 130 <= min(age["snapshots"] for age in ages[1:])
    assert [(run["files"], run["turn"], run["aged"]) for run in many] == [(4, turn, aged) for turn in (1, 2) for aged in (False, True)]
    for entry, most in zip(requests, ({"S3": 24, "catalog": 26}, {"S3": 20, "catalog": 5}), strict=True):
        assert all(0 < entry["publish"][of] <= most[of] for of in most), entry
        # Nothing changed: the table and the manifests are looked at, and nothing is written.
        assert all(0 < entry["again"][of] <= {"S3": 6, "catalog": 11}[of] for of in most), entry
        assert entry["publish_delayed"] > entry["again_delayed"] > 0
    results, grown = {"runs": runs, "requests": requests, "delay": publishing.DELAY}, {"ages": ages, "many": many, "age": 130}
    assert len(publishing.section.by_files(results).splitlines()) == 2 + 3
    assert len(publishing.section.by_requests(results).splitlines()) == 2 + 4
    assert len(table_age.section.by_age(grown).splitlines()) == 2 + 3
    assert len(table_age.section.by_files(grown).splitlines()) == 2 + 1
    for draw, shown in ((publishing.section.plot_files, results), (table_age.section.plot_age, grown)):
        with tables.drawing(tmp_path / "plot.svg", shown) as axes:
            draw(shown, axes)
        assert "</svg>" in (tmp_path / "plot.svg").read_text()


def test_targets_of_publishing_are_of_the_slowest_catalog() -> None:
    from benchmarks.catalogs import EMBEDDED, POSTGRES, REST
    from benchmarks.sections import publishing, table_age

    runs = [
        {"catalog": name, "files": files, "seconds": seconds}
        for name, files, seconds in ((EMBEDDED, 8, 0.1), (POSTGRES, 8, 0.3), (REST, 8, 0.2), (POSTGRES, 200, 1.5))
    ]
    ages = [
        {"catalog": name, "retained": True, "publishes": number, "median": seconds}
        for name, number, seconds in ((EMBEDDED, 100, 0.1), (EMBEDDED, 10_000, 0.15), (POSTGRES, 100, 0.2), (POSTGRES, 10_000, 0.5))
    ]
    aims = [*publishing.aims({"runs": runs}), *table_age.aims({"ages": ages})]
    found = [(each.wanted, each.measured.partition(",")[0].partition(" ")[0], each.met) for each in aims]
    assert found == [("≤ 1", "1.50", False), ("≤ 0.4", "0.30", True), ("≤ 2", "2.50", False)]
    assert [each.met for each in (*publishing.aims({"runs": []}), *table_age.aims({"ages": []}))] == [None, None, None]


@pytest.mark.parametrize(("java", "told"), [("17.0.2", {"Java": "17.0.2", "iceberg-spark-runtime-4.1_2.13": "1.12.0"}), ("", {})])
def test_where_spark_was_measured_results_say_which_java_and_iceberg_it_ran_on(
    monkeypatch: pytest.MonkeyPatch, java: str, told: dict[str, str]
) -> None:
    def require_java() -> str:
        if not java:
            raise EngineError("there is none")
        return java

    monkeypatch.setattr("rollup_assets.engines.spark_session.require_java", require_java)
    assert circumstances.occasion("x", ["numpy"])["versions"] == {"numpy": version("numpy")}
    assert circumstances.occasion("x", ["pyspark"])["versions"] == {"pyspark": version("pyspark"), **told}
