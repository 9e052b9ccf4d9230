"""What commands print is whole in a terminal of any width: no digit, key or name is cut."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable

import pyarrow as pa
import pytest
from rich.console import Console

from rollup_assets.cli.application import print_error, print_interrupted
from rollup_assets.escaping import escape
from rollup_assets.plan import PartitionPlan, Plan, PlannedStep
from rollup_assets.quarantine import QuarantinedPartition
from rollup_assets.status import PartitionStatus
from rollup_assets.terminal import open_console, print_plan, print_quarantined, print_rows, print_status, print_verification
from rollup_assets.verification.report import Verification, VerifiedPartition

KEY = "2026-01-01-00:00"
ROWS = {"60000": 2_481_003, "3600000": 39_201}
PUBLISHED = PartitionStatus(
    KEY, raw_files=12, raw_bytes=37_300_000, points=1_796_412, quarantined=1_204, staged=True, rolled_up=True, published=True, rows=ROWS
)
PICTURED = "job:x:rate5m"
"""The name of a metric in which rich would see a code for a picture."""
Show = Callable[[Console], None]
IF_IT_CHANGES = PlannedStep("if it changes", ("what it reads changes",))


def printed(show: Show, width: int) -> list[str]:
    """The lines that a terminal gets, which wraps those that are too long."""
    out = io.StringIO()
    show(Console(file=out, width=width, force_terminal=True, color_system=None))
    return out.getvalue().splitlines()


def status(console: Console) -> None:
    print_status(console, [PUBLISHED, dataclasses.replace(PUBLISHED, points=98_765_432_109), PartitionStatus("2026-01-01-01:00")])


def verification(console: Console) -> None:
    partition = VerifiedPartition(KEY, 1_796_412, ROWS, missing=1_200_345, extra=2_000_678, different=3_000_910, seconds=34.5)
    print_verification(console, Verification([partition]))


def quarantined(console: Console) -> None:
    reasons = {"null_id": 101_000, "outside_batch": 204, "wrong_type": 0}
    print_quarantined(
        console,
        [
            QuarantinedPartition(KEY, 1_796_412, 101_204, reasons, 22, 0.06789, True, 1_003, 0, (), raw_changed=True),
            QuarantinedPartition.unknown("2026-01-01-01:00", "damaged"),
        ],
    )


def plan(console: Console) -> None:
    steps = (PlannedStep("yes", ("new raw file",)), IF_IT_CHANGES, IF_IT_CHANGES)
    print_plan(console, Plan((PartitionPlan(KEY, *steps, raw_rows=1_796_412_111, rollup_rows=2_520_204_333),), ()))


def rows(console: Console) -> None:
    columns = {"metric name": ["system.cpu.utilization.of.everything"], "sum_rollup": [123_456_789_012_345_678], "max_rollup": [9_876_543]}
    print_rows(console, pa.table({**columns, **{f"column_{number}": [1_000_000 + number] for number in range(4)}}), 1)


WHOLE: dict[Show, list[str]] = {
    status: [KEY, "12", "35.6 MiB", "1,796,412", "98,765,432,109", "1,204", "2,520,204", "quarantined", "published", "files"],
    verification: [KEY, "differs", "1,796,412", "2,520,204", "3,000,910", "1,200,345", "2,000,678", "34.5", "different", "missing"],
    quarantined: [KEY, "over the limit", "1,796,412", "101,204", "6.789%", "22", "101,000 null_id, 204 outside_batch", "raw files changed"],
    plan: [KEY, "if it changes", "1,796,412,111", "2,520,204,333"],
    rows: ["metric name", "system.cpu.utilization.of.everything", "123456789012345678", "9876543", "1000003", "column_3"],
}


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("show", WHOLE, ids=lambda show: show.__name__)
def test_every_table_is_whole_in_a_terminal_of_any_width(show: Show, width: int) -> None:
    text = "\n".join(printed(show, width))
    assert "…" not in text
    for piece in WHOLE[show]:
        assert piece in text, piece


@pytest.mark.parametrize("show", [status, verification, quarantined, plan], ids=lambda show: show.__name__)
def test_tables_of_millions_of_rows_fit_into_80_columns(show: Show) -> None:
    """What is said beneath them may be longer; all of that begins with the partition and a colon, or is the sum."""
    lines = printed(show, 80)
    table = [line for line in lines if not line.startswith(f"{KEY}:")]
    assert max(len(line) for line in table[:-1]) <= 80, "\n".join(lines)


def test_a_line_has_no_blanks_at_its_end_that_the_terminal_would_wrap() -> None:
    assert all(line == line.rstrip() for line in printed(status, 40))


def test_headings_stay_in_one_line_where_there_is_room() -> None:
    assert printed(status, 200)[0].split("  ")[0] == "partition"
    assert "raw files" in printed(status, 200)[0]


def test_names_are_no_codes_for_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    console = open_console(file=out)
    console.print(escape(PICTURED))
    console.rule(escape(PICTURED))
    print_rows(console, pa.table({PICTURED: [PICTURED]}), 1)
    assert out.getvalue().count(PICTURED) == 4
    print_error(PICTURED)
    print_interrupted(PICTURED)
    assert capsys.readouterr().err == f"error: {PICTURED}\ninterrupted: {PICTURED}\n"


def test_where_nobody_looks_at_a_terminal_there_is_room_for_tables() -> None:
    assert open_console(file=io.StringIO()).width == 200


def test_partitions_that_are_not_compared_are_not_said_to_agree() -> None:
    left_out = VerifiedPartition("2026-01-01-00:00", compared=False, notes=["before ROLLUP_START=2026-01-02: not compared"])
    lines = printed(lambda console: print_verification(console, Verification([left_out, VerifiedPartition(KEY, 7, {"1h": 3})])), 200)
    row = next(line for line in lines if "2026-01-01-00:00" in line)
    assert "not compared" in row
    assert "agrees" not in row
    assert lines[-1].startswith("3 rows of 1 partition agree with raw data")


def test_a_plan_says_which_step_fails_and_counts_only_what_is_done() -> None:
    yes = PlannedStep("yes", ("new raw file",))
    fails = PartitionPlan(KEY, yes, raw_rows=7, problem="too much is quarantined", fails_at="stage")
    halts = PartitionPlan("2026-01-01-01:00", yes, yes, yes, raw_rows=5, problem="its snapshot has vanished", fails_at="publish")
    lines = printed(lambda console: print_plan(console, Plan((fails, halts), ())), 200)
    first, second = (next(line for line in lines if key in line) for key in (KEY, "2026-01-01-01:00"))
    assert first.split()[1:3] == ["fails", "7"]
    assert second.split()[1:5] == ["yes", "yes", "fails", "5"]
    assert lines[-1] == "would stage 1 partition with 5 raw rows, roll up 1 and publish 0; 2 partitions would fail"
