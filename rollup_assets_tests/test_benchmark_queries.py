"""The benchmark of queries, on some thousand rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import querying
from benchmarks.circumstances import occasion
from benchmarks.queries import layouts
from benchmarks.queries.questions import BY_ID, BY_SHARD, DUCKDB, HOUR, HOUR_MS, PYICEBERG, QUESTIONS, question
from benchmarks.queries.readers import CountingFile, fetched, reader
from benchmarks.sections import querying as section

HOURS = 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("queries")
    found = querying.prepare(work, 700, HOURS, 1, 2)
    assert querying.prepare(work, 700, HOURS, 1, 2) == found, "made anew"
    return found


@pytest.fixture(scope="module")
def runs(made: dict[str, Any]) -> list[dict[str, Any]]:
    job = {**made, "repeat": 1, "threads": 2}
    return [run for name in (DUCKDB, PYICEBERG) for run in querying.run_reader({**job, "reader": name})]


def test_all_layouts_and_readers_give_the_same_answers(runs: list[dict[str, Any]]) -> None:
    querying._require_equal(runs)
    rows = {(run["question"], run["layout"], run["hours"]): run["answer"][0] for run in runs}
    # The window that ends with the first hour is the next one's.
    assert rows[BY_ID, layouts.OURS, HOURS] == 60 * HOURS - 1
    assert rows[HOUR, layouts.SEED, 1] == rows[HOUR, layouts.UNSORTED, 1] == 700 * 59
    assert {run["layout"] for run in runs} == set(layouts.LAYOUTS)


def test_another_answer_is_noticed(runs: list[dict[str, Any]]) -> None:
    wrong = [*runs, {**runs[0], "answer": [runs[0]["answer"][0] + 1, 0], "reader": "another"}]
    with pytest.raises(querying.ReaderError, match="another on"):
        querying._require_equal(wrong)


def test_a_reader_of_everything_fetches_about_the_whole_partition(made: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    weights = {(entry["layout"], entry["hours"]): entry["bytes"] for entry in made["partitions"]}
    for run in runs:
        if run["question"] == HOUR:
            assert 0.9 < run["bytes"] / weights[run["layout"], 1] < 1.6, run
        if run["question"] == BY_ID and run["layout"] == layouts.OURS:
            assert run["bytes"] < weights[run["layout"], run["hours"]]
    folder = Path(made["metadata"][layouts.OURS]).parent.parent / "data"
    assert weights[layouts.OURS, HOURS] == sum(path.stat().st_size for path in folder.rglob("*.parquet"))


def test_a_counting_file_counts_what_is_read_of_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(range(100)))
    before = fetched.bytes
    with CountingFile(str(tmp_path / "a")) as file:
        file.seek(-10, 2)
        assert file.read(4) == bytes(range(90, 94))
        assert file.read() == bytes(range(94, 100))
    assert fetched.bytes - before == 10


def test_questions_say_the_same_in_sql_and_in_pyiceberg(made: dict[str, Any]) -> None:
    series = layouts.series_of(made)
    asked = question(BY_SHARD, series, layouts.START, 1)
    assert (asked.start, asked.end) == (layouts.START, layouts.START + HOUR_MS)
    assert asked.sql("t", "TIMESTAMPTZ") == (
        "SELECT logical_timestamp, average_rollup, max_rollup FROM t WHERE resolution = 60000 "
        f"AND metric_shard_id = {series.shard} AND metric = '{series.metric}' AND org_id = {series.org} AND id = {series.id} "
        "AND logical_timestamp >= TIMESTAMPTZ '2026-01-01T00:00:00+00:00' AND logical_timestamp < TIMESTAMPTZ '2026-01-01T01:00:00+00:00'"
    )
    with reader(PYICEBERG, 2) as pyiceberg, reader(DUCKDB, 2) as duckdb:
        assert pyiceberg.ask(made["metadata"][layouts.OURS], asked) == duckdb.ask(made["metadata"][layouts.OURS], asked)


def results(made: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        **occasion("python -m benchmarks.querying", querying.PACKAGES), "repeat": 1, "threads": 2,
        "data": {"series": 700, "hours": HOURS, "hours_beside": 1, "rows": 84_000},
        "partitions": made["partitions"], "runs": runs,
    }  # fmt: skip


def test_tables_show_every_question_and_layout(made: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    day, beside, about = section.lines(json.loads(json.dumps(results(made, runs))))
    assert all(f"| {name} |" in day for name in QUESTIONS)
    assert all(f"| {layout} |" in beside for layout in layouts.LAYOUTS)
    assert "700 series" in about
    assert "- Python 3" in about


def test_the_target_is_met_from_two_per_cent_down(made: dict[str, Any], runs: list[dict[str, Any]]) -> None:
    weight = next(entry["bytes"] for entry in made["partitions"] if (entry["layout"], entry["hours"]) == (layouts.OURS, HOURS))
    for share, met in ((0.019, True), (0.021, False)):
        changed = [{**run, "bytes": int(weight * share)} for run in runs]
        found = section.aims(results(made, changed))
        assert [target.met for target in found] == [met, met]
        assert found[0].measured == f"{share:.2%}"
