"""Doubles that nearly cancel within a window: rounding there is no discrepancy, a lost step still is."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollup_assets.errors import ReconciliationError
from rollup_assets.steps import checks, roll_up_shards
from rollup_assets.steps.results import RolledUp
from rollup_assets.steps.rollup import roll_up
from rollup_assets_tests.landing import batches_of, land, pipeline_of
from rollup_assets_tests.naive import RawRow
from rollup_assets_tests.steps.test_rollup import run
from rollup_assets_tests.strategies import HOUR, MINUTE, TODAY, Grid

GRID = Grid(TODAY, HOUR, 2, (MINUTE, HOUR), HOUR)


def test_rounding_where_values_cancel_is_no_discrepancy(tmp_path: Path) -> None:
    """At 1 min the window that ends with the batch is 1e18 - 1e18 = 0; the hour is (5 + 1e18) - 1e18, which rounds to 0, not 5."""
    pipeline = pipeline_of(GRID, tmp_path, value_type="double")
    end = TODAY + HOUR
    land(pipeline, [RawRow(1, 1, "m", end - 30 * MINUTE, 5.0), RawRow(1, 1, "m", end - 1, 1e18), RawRow(1, 1, "m", end, -1e18)])
    run(pipeline, GRID)
    second = batches_of(pipeline, GRID)[1]
    rolled = roll_up(pipeline, second)
    assert isinstance(rolled, RolledUp)
    assert all(outcome.passed for outcome in checks.rollup_outcomes(rolled.manifest, second, pipeline.calendar, pipeline.stage))


def test_a_lost_step_of_doubles_is_a_discrepancy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that only an earlier batch knows, lost from one series of many: counts agree, and still nothing is staged."""
    grid = Grid(TODAY, HOUR, 3, (MINUTE, HOUR), HOUR)
    pipeline = pipeline_of(grid, tmp_path, value_type="double")
    times = [TODAY + minute * MINUTE + 1_000 for minute in range(7, 180, 10)]
    land(pipeline, [RawRow(series, 1, "m", time, series + time / 1e6) for series in range(50) for time in times])
    run(pipeline, grid)
    third = batches_of(pipeline, grid)[2]
    monkeypatch.setattr(roll_up_shards._ShardRoller, "_earlier_steps", lambda *_: None)
    with pytest.raises(ReconciliationError, match="delta at 1m and 1h differs in the windows that end at the beginning"):
        roll_up(pipeline, third, force=True)
