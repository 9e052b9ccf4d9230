"""The benchmark's page shows what was measured, and the harness runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import contenders, report, tables
from benchmarks.contenders import (
    COLD,
    DUCKDB,
    FLOOR,
    OURS,
    OURS_ON_SPARK,
    POLARS,
    PUBLISH,
    RAW_TO_1M,
    RAW_TO_PUBLISHED,
    REPARTITION,
    ROLLUPS_1M,
    ROLLUPS_3,
    SPARK,
    Contender,
)
from benchmarks.runner import Bench, BusyError, measure
from benchmarks.sections import spark, stages
from benchmarks.summary import Spread, cpu, ratio, summarized, wall
from rollup_assets.engines.spark_session import require_java
from rollup_assets.errors import EngineError

ROOT = Path(__file__).parent.parent
# Of contenders side by side; these two are of one program each, and have tests of their own.
RESULTS = sorted(path.stem for path in tables.RESULTS.glob("*.json") if path.stem not in ("publishing", "skew"))


def test_tables_of_the_page_are_those_of_the_results() -> None:
    text = (ROOT / report.PAGE).read_text()
    assert set(re.findall(r"<!-- table: ([\w-]+) -->", text)) == set(report.blocks())
    assert report.page(text) == text, "run `python -m benchmarks --report`"


def test_plots_of_the_page_were_drawn_from_the_results() -> None:
    page = ROOT / report.PAGE
    assert set(re.findall(r"\]\(([\w-]+)\.svg\)", page.read_text())) == set(report.plots())
    for name, (results, _) in report.plots().items():
        assert f"results {tables.digest(results)}" in page.with_name(f"{name}.svg").read_text(), (
            f"{name}: run `python -m benchmarks --report`"
        )


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


@pytest.mark.parametrize("name", RESULTS)
def test_summaries_of_the_results_are_those_of_their_runs(name: str) -> None:
    results = _read(name)
    assert results["summary"] == summarized(results["runs"])
    assert not re.search(r"/(work|home|root|tmp|Users)/", str(results))


@pytest.mark.parametrize("name", RESULTS)
def test_everyone_answered_the_same_before_times_counted(name: str) -> None:
    """Rows and digests of every engine that wrote the same thing are equal."""
    outputs = _read(name)["outputs"]
    for tasks in ((REPARTITION,), (ROLLUPS_1M, ROLLUPS_3, RAW_TO_1M, RAW_TO_PUBLISHED)):
        answers = {(output["rows"], output["digest"]) for output in outputs if output["task"] in tasks}
        assert len(answers) == 1, tasks


@pytest.mark.parametrize("name", [name for name in RESULTS if name not in ("forms", "spark")])
def test_results_are_of_the_whole_benchmark(name: str) -> None:
    """100k series for an hour, at least five turns (three of the fleet), all contenders, the peers in the forms that won."""
    results = _read(name)
    assert results["data"]["series"] == 100_000
    assert results["data"]["rows"] > 30_000_000
    for contender in contenders.all_contenders():
        runs = [run for run in results["runs"] if Contender(run["engine"], run["task"], run["start"], run["form"]) == contender]
        assert len(runs) == results["repeat"] >= (5 if name == "scrapes" else 3), contender.name


def test_results_beside_spark_are_of_the_whole_benchmark() -> None:
    if "spark" not in RESULTS:
        assert "Not measured yet" in (ROOT / report.PAGE).read_text()
        return
    results = _read("spark")
    assert results["data"]["series"] == 100_000
    for contender in contenders.spark_contenders():
        runs = [run for run in results["runs"] if Contender(run["engine"], run["task"], run["start"], run["form"]) == contender]
        assert len(runs) == results["repeat"] >= 3, contender.name


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


def test_the_harness_runs_and_answers_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One turn with a few rows: every stage of ours, a floor, the fastest form of each peer's tasks; tables and plots come out."""
    bench = Bench(tmp_path, rows=3_600, threads=2, shape="scrapes", small_rows=720)
    bench.prepare()
    chosen = [
        *(Contender(OURS, task) for task in (REPARTITION, ROLLUPS_1M, PUBLISH, RAW_TO_PUBLISHED)),
        Contender(OURS, RAW_TO_PUBLISHED, COLD),
        Contender(FLOOR, ROLLUPS_1M),
        *(contender for contender in contenders.all_contenders() if contender.engine in (DUCKDB, POLARS) and contender.start != COLD),
    ]
    runs, outputs = measure(bench, chosen, 1, _silent)
    assert len(runs) == len(chosen)
    assert all(run["peak_bytes"] > 1 << 20 and wall(run) > 0 and cpu(run) >= 0 for run in runs)
    assert {(output["engine"], output["task"]) for output in outputs} >= {
        (peer, task) for peer in (DUCKDB, POLARS) for task in contenders.PEER_TASKS
    }
    results = {**_read("scrapes"), "runs": runs, "outputs": outputs, "summary": summarized(runs)}
    assert stages.aims(results)
    for text in (stages.side_by_side, stages.starts, stages.limits, stages.shares, tables.circumstances):
        assert text(results), text.__name__
    monkeypatch.setattr(tables, "read", lambda name: results if name == "scrapes" else None)
    for name, (_, draw) in stages.plots().items():
        draw(tmp_path / f"{name}.svg")
        assert f"results {tables.digest(results)}" in (tmp_path / f"{name}.svg").read_text()


@pytest.mark.xdist_group("spark")
def test_spark_s_own_sort_is_measured_beside_ours_and_compared(tmp_path: Path) -> None:
    """Time and memory of the Java machine count; a file that is out of order, or a series in two files, is noticed."""
    try:
        require_java()
    except EngineError as error:
        pytest.skip(str(error))
    bench = Bench(tmp_path, rows=7_200, threads=2, shape="scrapes", small_rows=720)
    bench.prepare()
    chosen = [contender for contender in contenders.spark_contenders() if contender.task == REPARTITION]
    assert [contender.engine for contender in chosen] == [OURS, OURS_ON_SPARK, SPARK]
    runs, outputs = measure(bench, chosen, 1, _silent)
    assert len({(output["rows"], output["digest"]) for output in outputs}) == 1
    local, *on_spark = runs
    for run in on_spark:
        assert run["peak_bytes"] > local["peak_bytes"] + (100 << 20)
        assert run["process_cpu"] > local["process_cpu"] + 1
    results = {**_read("scrapes"), "runs": runs, "outputs": outputs, "summary": summarized(runs)}
    assert "times as fast as Spark's own sort" in str(spark.aims(results))
    assert contenders.SPARK_FORM in spark.side_by_side(results)

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


def test_spark_s_form_is_one_of_those_that_were_tried() -> None:
    forms = [contender.form for contender in contenders.spark_contenders(forms=True) if contender.engine == SPARK]
    assert contenders.SPARK_FORM in forms
    assert len(forms) > 3


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


def _read(name: str) -> tables.Results:
    found = tables.read(name)
    assert found is not None
    return found


def _silent(_line: str) -> None:
    """Progress is not of interest here."""


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


def test_the_skew_table_is_the_measured_one() -> None:
    import json

    from benchmarks import skew

    page = (Path(skew.__file__).parent.parent / "docs" / "spark.md").read_text()
    shown = page.partition("<!-- skew -->")[2].partition("<!-- /skew -->")[0].strip()
    found = json.loads(skew.RESULT.read_text())["tasks"]
    assert shown == skew.table(found)
    assert all(step["longest"] < 10 * step["median"] for kind in found.values() for step in kind.values())


def test_the_table_of_publishing_is_the_measured_one() -> None:
    import json

    from benchmarks import publishing

    results = json.loads(publishing.RESULT.read_text())
    text = publishing.PAGE.read_text()
    assert publishing.page(text, results) == text, "run `python -m benchmarks.publishing`"
    for catalog in (publishing.EMBEDDED, publishing.POSTGRES, publishing.REST):
        for files in publishing.FILES:
            assert len([run for run in results["runs"] if (run["catalog"], run["files"]) == (catalog, files)]) == results["repeat"] >= 5
    assert not re.search(r"/(work|home|root|tmp|Users)/", str(results))


def test_the_benchmark_of_publishing_runs(tmp_path: Path) -> None:
    from benchmarks import publishing

    with publishing.pipelines(tmp_path) as chosen:
        runs = publishing.measure(chosen, 1, (2,))
    assert [(run["catalog"], run["files"]) for run in runs] == [(name, 2) for name in chosen]
    assert all(run["seconds"] >= sum(run[part] for part in publishing.PARTS) for run in runs)
    assert len(publishing.table(runs).splitlines()) == 2 + len(chosen)
