"""``python -m benchmarks.orchestration``: what it measures is what it says, and its tables follow from its runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import orchestration
from benchmarks.orchestration_child import AGAIN, KERNELS, PLAIN, RANGE, SINGLE
from benchmarks.runner import Bench
from benchmarks.sections import orchestration as section
from benchmarks.sections.orchestration import ASSETS, CODE_LOCATION, DAGSTER, POSTGRES, SQLITE, WEEK
from rollup_assets.defs.assets.datapoints import STAGED
from rollup_assets.defs.assets.rollups import IN_ORDER


@pytest.fixture
def place(tmp_path: Path) -> orchestration.Place:
    raw = tmp_path / "raw_datapoints"
    orchestration.land(raw, 3)
    return orchestration.Place(tmp_path, raw, 1)


def test_small_batches_go_through_dagster_and_past_it(place: orchestration.Place) -> None:
    runs = orchestration.small_batches(place, {SQLITE: ""}, turn=0, partitions=2, singles=1)
    assert [(run["what"], run["storage"], run["partitions"]) for run in runs] == [(PLAIN, "", 2), (SINGLE, SQLITE, 1), (RANGE, SQLITE, 2)]
    assert all(run["wall"] > 0 and run["cpu"] > 0 for run in runs)
    single, of_range = (run["events"] / run["partitions"] for run in runs[1:])
    # An observation, a materialization an asset and its checks are the least; a run's own events count a partition of a range less.
    assert single > of_range > 1 + ASSETS
    assert len((*STAGED, *IN_ORDER)) == ASSETS


def test_a_batch_again_has_nothing_to_do(place: orchestration.Place, tmp_path: Path) -> None:
    bench = Bench(tmp_path / "bench", 3_600, 1, "scrapes", small_rows=3_600)
    bench.prepare(only_before=True)
    run = orchestration.again(bench, place, 0)
    assert {tuple(each) for each in run["again"]} == {("stage_batch", "roll_up", "publish")}
    assert run["first"] > 0
    assert run["run"] > 0


def test_starts_are_those_of_new_processes(place: orchestration.Place) -> None:
    runs = {run["what"]: run for run in orchestration.starts(place, 0)}
    assert runs.keys() == {DAGSTER, CODE_LOCATION, KERNELS}
    assert all(0 < runs[what]["loaded"] < runs[what]["wall"] for what in (DAGSTER, CODE_LOCATION))
    assert runs[KERNELS]["import"] > 0


RESULTS: dict[str, Any] = {
    "runs": [
        {"what": PLAIN, "storage": "", "turn": 0, "wall": 2.4, "cpu": 2.4, "partitions": 24},
        {"what": SINGLE, "storage": SQLITE, "turn": 0, "wall": 6.6, "cpu": 3.6, "partitions": 6, "events": 342},
        {"what": RANGE, "storage": SQLITE, "turn": 0, "wall": 14.4, "cpu": 7.2, "partitions": 24, "events": 480},
        {"what": RANGE, "storage": POSTGRES, "turn": 0, "wall": 27.6, "cpu": 7.2, "partitions": 24, "events": 480},
        {"what": KERNELS, "turn": 0, "wall": 0.5, "cpu": 0.5, "import": 0.1},
        {"what": DAGSTER, "turn": 0, "loaded": 0.9, "wall": 1.2, "cpu": 1.1},
        {"what": CODE_LOCATION, "turn": 0, "loaded": 2.6, "wall": 2.7, "cpu": 1.1},
        {"what": AGAIN, "turn": 0, "rows": 36, "first": 4.0, "again": [{"stage_batch": 0.01, "publish": 0.01}], "run": 1.0},
        {"what": WEEK, "turn": 0, "partitions": 168, "wall": 240.0, "working": 200.0, "in_runs": 280.0, "runs": 7},
    ]
}


def test_bookkeeping_is_what_a_partition_and_asset_cost_beyond_plain_functions() -> None:
    of_range, of_single = section.overhead(RESULTS, RANGE, SQLITE), section.overhead(RESULTS, SINGLE, SQLITE, "cpu")
    assert of_range is not None
    assert of_single is not None
    assert of_range.median == of_single.median == pytest.approx((0.6 - 0.1) / 5)
    assert section.overhead(RESULTS, SINGLE, POSTGRES) is None


def test_targets_are_met_or_missed_by_what_was_measured() -> None:
    found = {target.text.split(",")[0].split(" (")[0]: target for target in section.aims(RESULTS)}
    assert {name: (target.measured.split(" ")[0], target.met) for name, target in found.items()} == {
        "168 hourly partitions": ("4.00", True),
        "Dagster's bookkeeping": ("0.21", False),
        "cold start of a run's kernels": ("0.50", True),
        "load of the code location": ("2.60", False),
        "made again": ("0.50", True),
    }
    assert found["Dagster's bookkeeping"].also == "PostgreSQL; a run a partition: 0.20"


def test_tables_show_every_measurement() -> None:
    assert "| one run of a range, PostgreSQL | 24 | 1.150" in section.bookkeeping(RESULTS)
    assert "| 168 hours | 240 | 40 | 7 | 40.0 | 1.43 |" in section.week(RESULTS)
    assert "| the kernels | 0.50 (0.50 to 0.50) |" in section.starts(RESULTS)
    assert "| all three | 20.0 (20.0 to 20.0) | 0.50 (0.50 to 0.50) |" in section.again(RESULTS)


def test_dagster_knows_what_the_week_asks_it() -> None:
    from dagster_graphql.schema import create_schema
    from graphql import parse, validate

    schema = create_schema().graphql_schema
    for query in (orchestration.STATUS, orchestration.FAILED):
        assert validate(schema, parse(query)) == []


def test_a_week_that_fails_says_which_assets_and_partitions_and_why() -> None:
    class Server:
        def query(self, text: str) -> Any:
            assert text == orchestration.FAILED
            error = {"message": "publish failed", "causes": [{"message": "PublishError: the disk is gone"}]}
            events: list[dict[str, Any]] = [{"message": "started"}, {"message": "step failed", "error": error}, {"error": None}]
            run = {
                "tags": [{"key": "dagster/partition", "value": "2026-01-01-05:00"}],
                "assetSelection": [{"path": ["rollups"]}, {"path": ["rollup_table"]}],
                "eventConnection": {"events": events},
            }
            silent = {"tags": [], "assetSelection": None, "eventConnection": {"events": [{"message": "the process is gone"}, {}]}}
            return {"runsOrError": {"results": [run, silent]}}

    assert orchestration.failures(Server()) == (
        "rollups, rollup_table of 2026-01-01-05:00: publish failed | PublishError: the disk is gone; all assets of {}: the process is gone"
    )
