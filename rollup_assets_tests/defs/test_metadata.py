"""What Dagster shows of a partition."""

from __future__ import annotations

import logging
from typing import Any

import dagster as dg
import pytest
from markdown_it import MarkdownIt

from rollup_assets.defs import asset_checks, metadata
from rollup_assets.storage.manifests import REPARTITIONED, ROLLUP_TABLE, ROLLUPS
from rollup_assets_tests import hostile
from rollup_assets_tests.defs import fake_steps
from rollup_assets_tests.defs.conftest import Lab, hour


def test_counts_are_numbers_that_the_ui_plots_and_checksums_are_left_out() -> None:
    counters = {"rows_read": 7, "reasons": {"null_id": 2}, "counts": {"60000": 5}, "checksums": {"60000": {}}, "attempt": "a"}
    assert metadata.numbers(counters) == {"rows_read": 7, "quarantined_null_id": 2, "points_1m": 5}


def test_stages_are_listed_slowest_first_with_their_share_of_the_work() -> None:
    shown = metadata.times({"read": 1.0, "sort": 3.0, "total": 2.5})
    assert shown["seconds"] == 2.5
    lines = shown["stage_times"].value.splitlines()[2:]
    assert lines == [
        "| sort | 3.000 | 75.00% |",
        "| read | 1.000 | 25.00% |",
        "| **all stages** | **4.000** | **100.00%** |",
        "| on the clock | 2.500 | |",
    ]
    assert metadata.times({}) == {}


def test_a_partition_shows_its_rows_its_place_and_its_columns(lab: Lab) -> None:
    lab.land({0: 3})
    lab.run(0)
    shown = lab.events(REPARTITIONED, 0)[0].metadata
    assert shown["dagster/partition_row_count"].value == shown["rows_accepted"].value == 3
    assert str(shown["dagster/uri"].value).endswith("repartitioned_datapoints/2026-01-01-0000")
    preview = str(shown["preview"].value).splitlines()
    assert preview[0] == "| id | logical_timestamp | metric |"
    assert preview[2] == "| 0 | 2026-01-01 00:00:00.000 | cpu\\|user |"
    assert len(preview) == 2 + 3
    assert [column.name for column in shown["dagster/column_schema"].value.columns] == ["id", "logical_timestamp", "metric"]


def test_the_table_shows_its_snapshot_and_the_rows_of_batch_and_table(lab: Lab) -> None:
    lab.land({0: 3})
    lab.run(0)
    shown = lab.events(ROLLUP_TABLE, 0)[0].metadata
    assert shown["dagster/partition_row_count"].value == 9
    assert shown["dagster/row_count"].value == 1000
    assert shown["dagster/table_name"].value == "metrics.rollups"
    assert shown["snapshot_id"].value == str(2**62 + lab.settings.calendar.batch(hour(0)).start)
    assert {column.name for column in shown["dagster/column_schema"].value.columns} >= {"resolution", "delta_rollup"}


@pytest.mark.parametrize("milliseconds", [2**63 - 1, -(2**63), 10**15])
def test_a_quarantined_timestamp_may_be_anything(milliseconds: int) -> None:
    import pyarrow as pa

    assert str(milliseconds) in metadata.markdown(pa.table({"logical_timestamp": [milliseconds]}))


def test_names_in_a_preview_are_text() -> None:
    """In the table that Dagster's UI shows: no HTML, link or other markup, and no cell more."""
    import pyarrow as pa

    shown = metadata.markdown(pa.table({"metric": hostile.TEXTS, "id": list(range(len(hostile.TEXTS)))}))
    tokens = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(shown)
    cells = [token for token in tokens if token.type == "inline"]
    assert [cell.content for cell in cells[1::2]] == ["id", *(str(number) for number in range(len(hostile.TEXTS)))]
    assert {part.type for cell in cells for part in cell.children or []} <= {"text", "text_special"}
    assert not [token for token in tokens if token.type.startswith(("html", "heading", "fence"))]


def test_what_an_error_says_is_text_in_the_log_and_on_the_page(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "<img src=x onerror=alert(1)> | [x](javascript:alert(1)) \x1b[2J\n2026-01-01 ERROR forged"

    def fail(*_: object, **__: object) -> None:
        raise LookupError(said)

    monkeypatch.setattr("rollup_assets.steps.repartition.stage_batch", fail)
    lab.land({0: 3})
    result = lab.run(0)
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    data: Any = failure.event_specific_data
    table = data.user_failure_data.metadata["failed_partitions"].value
    cells = [token for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(table) if token.type == "inline"]
    assert len(cells) == 4
    assert {part.type for part in cells[3].children or []} <= {"text", "text_special"}
    assert cells[3].content.startswith("LookupError: ")
    assert data.user_failure_data.description.isprintable()
    messages = [entry.user_message for entry in lab.instance.all_logs(result.run_id) if entry.level >= logging.ERROR]
    assert any("ERROR forged" in message for message in messages)
    assert not [message for message in messages if "\x1b" in message or "\n2026-01-01 ERROR forged" in message]


def test_row_counts_are_compared_with_the_latest_of_the_same_hour_on_earlier_days(lab: Lab) -> None:
    for day, rows in ((1, 10), (2, 20), (3, 30), (4, 40)):
        fake_steps.land(lab.settings, f"2026-01-0{day}-05:00", rows)
        lab.defs.resolve_job_def("batches").execute_in_process(instance=lab.instance, partition_key=f"2026-01-0{day}-05:00")
    fake_steps.land(lab.settings, "2026-01-02-05:00", 21)
    lab.defs.resolve_job_def("batches").execute_in_process(instance=lab.instance, partition_key="2026-01-02-05:00")
    lab.run(6)
    calendar = lab.settings.calendar
    found = asset_checks.earlier_rows(lab.instance, calendar, calendar.batch("2026-01-04-05:00"))
    assert found == {"2026-01-01-05:00": 10, "2026-01-02-05:00": 21, "2026-01-03-05:00": 30}
    assert asset_checks.earlier_rows(lab.instance, calendar, calendar.batch("2026-01-01-05:00")) == {}


def test_partitions_that_were_made_many_times_do_not_hide_the_other_days(lab: Lab) -> None:
    """As late files make them: the check compared nothing then, and passed."""
    keys = [f"2026-01-0{day}-05:00" for day in (1, 2, 3)]
    for rows, key in enumerate([keys[0], keys[1], *[keys[2]] * (asset_checks.COMPARED_DAYS * 3)], start=1):
        metadata = {"dagster/partition_row_count": rows}
        lab.instance.report_runless_asset_event(dg.AssetMaterialization(REPARTITIONED, partition=key, metadata=metadata))
    calendar = lab.settings.calendar
    found = asset_checks.earlier_rows(lab.instance, calendar, calendar.batch("2026-01-04-05:00"))
    assert found == {keys[0]: 1, keys[1]: 2, keys[2]: 2 + asset_checks.COMPARED_DAYS * 3}


def test_an_unusual_row_count_is_a_warning(lab: Lab) -> None:
    for day, rows in ((1, 10), (2, 10), (3, 10), (4, 50)):
        fake_steps.land(lab.settings, f"2026-01-0{day}-00:00", rows)
        result = lab.defs.resolve_job_def("batches").execute_in_process(instance=lab.instance, partition_key=f"2026-01-0{day}-00:00")
        (outcome,) = [found for found in result.get_asset_check_evaluations() if found.check_name == "row_count_usual"]
        assert outcome.passed == (day < 4)


def test_rollups_describe_their_columns_as_the_table_does(lab: Lab) -> None:
    lab.run(0)
    (timestamp,) = [
        column for column in lab.events(ROLLUPS, 0)[0].metadata["dagster/column_schema"].value.columns if column.name == "logical_timestamp"
    ]
    assert "end of the window" in timestamp.description
