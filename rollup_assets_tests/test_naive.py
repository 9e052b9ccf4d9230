"""The reference model itself: the worked example, and the two formulations against each other."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pyiceberg.transforms import BucketTransform
from pyiceberg.types import LongType

from rollup_assets_tests import naive
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN, Point, RawRow, Value
from rollup_assets_tests.strategies import (
    HOUR,
    MINUTE,
    TODAY,
    Grid,
    dirty_rows,
    doubles,
    extreme_longs,
    grids,
    grids_with_points,
    histories,
    small_longs,
)
from rollup_assets_tests.worked_example import EXAMPLE, GRID, RAW_ROWS, clock

GridAndPoints = tuple[Grid, list[Point]]


def by_batch(grid: Grid, points: list[Point]) -> list[naive.Rows]:
    return naive.rollups_batch_by_batch(points, grid.start, grid.batches + 2, grid.length, grid.resolutions, grid.lookback)


def merged(batches: list[naive.Rows]) -> naive.Rows:
    """All rows; no window twice."""
    rows: naive.Rows = {}
    for batch in batches:
        assert not rows.keys() & batch.keys()
        rows |= batch
    return rows


def tuples(rows: naive.Rows) -> set[tuple[object, ...]]:
    return {(r.resolution, r.label, r.count, r.sum, r.min, r.max, round(r.average, 2), r.latest, r.delta, r.resets) for r in rows.values()}


def test_the_worked_example_over_the_whole_history() -> None:
    points = naive.without_duplicates(naive.point_of(row) for row in RAW_ROWS)
    assert len(RAW_ROWS) - len(points) == 1
    rows = naive.rollups_of(points, GRID.resolutions, GRID.lookback)
    assert tuples(rows) == {window.values for window in EXAMPLE}


def test_the_worked_example_is_published_by_the_batches_it_names() -> None:
    points = naive.without_duplicates(naive.point_of(row) for row in RAW_ROWS)
    for batch, rows in zip(range(9, 15), by_batch(GRID, points), strict=True):
        assert tuples(rows) == {window.values for window in EXAMPLE if window.published_by == batch}


def test_the_reset_step_of_the_worked_example_needs_the_batch_before_last() -> None:
    """1 h, 11:00: with partial points of 10 alone, delta is 40 and the reset is lost, and no count notices."""
    points = naive.without_duplicates(naive.point_of(row) for row in RAW_ROWS)
    ten, eleven = clock("10:00"), clock("11:00")
    inside = [point for point in points if ten <= point.ts < eleven]
    partials = naive.partial_points_of(inside, eleven, GRID.resolutions, GRID.lookback)
    after = [point for point in points if eleven <= point.ts < eleven + HOUR]
    row = naive.rollups_of_batch(after, partials, {}, eleven, eleven + HOUR, GRID.resolutions, GRID.lookback)[7, HOUR, eleven]
    assert (row.count, row.delta, row.resets) == (3, 40, 0)


@given(grids_with_points())
def test_batch_by_batch_equals_the_whole_history(case: GridAndPoints) -> None:
    """int64: every value of every row, with batches of any length, whatever the lookback up to it."""
    grid, points = case
    assert merged(by_batch(grid, points)) == naive.rollups_of(points, grid.resolutions, grid.lookback)


@given(grids_with_points(extreme_longs))
def test_batch_by_batch_equals_the_whole_history_at_the_extremes(case: GridAndPoints) -> None:
    grid, points = case
    assert merged(by_batch(grid, points)) == naive.rollups_of(points, grid.resolutions, grid.lookback)


@given(grids_with_points(), st.integers(0, 3))
def test_any_split_into_batches_gives_the_same_rows(case: GridAndPoints, where: int) -> None:
    """Batches of another length, of which the lookback and the coarsest resolution are not larger, make no difference."""
    grid, points = case
    lengths = [length for length in (HOUR // 2, HOUR, 2 * HOUR, 4 * HOUR) if length % grid.resolutions[-1] == 0 and length >= grid.lookback]
    length = lengths[where % len(lengths)]
    count = -(-(grid.end - grid.start) // length) + 2
    other = naive.rollups_batch_by_batch(points, grid.start, count, length, grid.resolutions, grid.lookback)
    assert merged(other) == merged(by_batch(grid, points))


def close(a: Value | None, b: Value | None, scale: float) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and abs(a - b) <= 1e-12 * scale)


@given(grids_with_points(doubles))
def test_doubles_agree_with_the_whole_history_up_to_rounding(case: GridAndPoints) -> None:
    grid, points = case
    batchwise, whole = merged(by_batch(grid, points)), naive.rollups_of(points, grid.resolutions, grid.lookback)
    assert batchwise.keys() == whole.keys()
    for key, row in batchwise.items():
        other = whole[key]
        assert (row.org_id, row.metric, row.count, row.min, row.max, row.latest, row.resets, row.lag) == (
            other.org_id, other.metric, other.count, other.min, other.max, other.latest, other.resets, other.lag,
        )  # fmt: skip
        scale = 1e-300 + sum(abs(point.value) for point in points if point.id == row.id) * 4
        assert close(row.sum, other.sum, scale)
        assert close(row.delta, other.delta, scale)


@given(grids_with_points())
def test_counts_reconcile(case: GridAndPoints) -> None:
    """Per resolution: rollups[t] + partial points of t = accepted points of t + partial points of t-1."""
    grid, points = case
    carried = dict.fromkeys(grid.resolutions, 0)
    for start, rows in zip(grid.starts(), by_batch(grid, points), strict=False):
        inside = [point for point in points if start <= point.ts < start + grid.length]
        partials = naive.partial_points_of(inside, start + grid.length, grid.resolutions, grid.lookback)
        for resolution in grid.resolutions:
            left_open = sum(partial.open[resolution].count for partial in partials.values() if resolution in partial.open)
            published = sum(row.count for row in rows.values() if row.resolution == resolution)
            assert published + left_open == len(inside) + carried[resolution]
            carried[resolution] = left_open


@given(grids_with_points())
def test_values_reconcile_across_resolutions(case: GridAndPoints) -> None:
    """Over each window of the coarsest resolution: a series' sums of counts, sums, deltas and resets are the same at every resolution."""
    grid, points = case
    rows = merged(by_batch(grid, points))
    totals: dict[int, Counter[tuple[int, int, str]]] = {resolution: Counter() for resolution in grid.resolutions}
    for row in rows.values():
        window = naive.label_of(row.label, grid.resolutions[-1])
        for name, value in (("count", row.count), ("sum", row.sum), ("delta", row.delta or 0), ("resets", row.resets)):
            totals[row.resolution][row.id, window, name] += int(value)
    assert all(found == totals[grid.resolutions[0]] for found in totals.values())


@given(st.data())
def test_every_row_is_accepted_duplicate_or_quarantined(data: st.DataObject) -> None:
    rows = data.draw(st.lists(dirty_rows(TODAY, TODAY + HOUR), max_size=30))
    done = naive.accept({"b": rows[: len(rows) // 2], "a": rows[len(rows) // 2 :]}, TODAY, TODAY + HOUR)
    assert len(rows) == len(done.points) + done.duplicates + len(done.quarantined)
    assert len({(point.id, point.ts) for point in done.points}) == len(done.points)


GOOD = RawRow(1, 2, "m", TODAY, 3)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (GOOD, None),
        (RawRow(None, None, None, None, None), "null_id"),
        (RawRow(1, None, None, None, None), "null_timestamp"),
        (RawRow(1, None, None, TODAY - 1, None), "null_value"),
        (RawRow(1, None, None, TODAY - 1, math.inf), "non_finite_value"),
        (RawRow(1, None, None, TODAY - 1, math.nan), "non_finite_value"),
        (RawRow(1, None, "m", TODAY - 1, 1), "null_dimension"),
        (RawRow(1, 2, None, TODAY - 1, 1), "null_dimension"),
        (RawRow(1, 2, "m", TODAY - 1, 1), "outside_batch"),
        (RawRow(1, 2, "m", TODAY + HOUR, 1), "outside_batch"),
    ],
)
def test_the_first_reason_that_applies(row: RawRow, reason: str | None) -> None:
    assert naive.reason_to_quarantine(row, TODAY, TODAY + HOUR) == reason


def test_the_greatest_duplicate_stays() -> None:
    """By value, then metric, org_id and receive time; a missing receive time is the least, -0.0 is 0.0."""
    ordered = [
        Point(1, 9, "z", 5, -1.0, 9),
        Point(1, 1, "a", 5, 0.0, 9),
        Point(1, 1, "b", 5, 0.0, None),
        Point(1, 2, "b", 5, 0.0, None),
        Point(1, 2, "b", 5, 0.0, -3),
        Point(1, 2, "b", 5, 0.0, 7),
    ]
    for index in range(len(ordered)):
        assert naive.without_duplicates(ordered[: index + 1]) == [ordered[index]]
        assert naive.without_duplicates(reversed(ordered[: index + 1])) == [ordered[index]]
    assert math.copysign(1, naive.point_of(RawRow(1, 1, "a", 5, -0.0)).value) == 1


@pytest.mark.parametrize(
    ("ts", "label"), [(0, 0), (1, MINUTE), (MINUTE, MINUTE), (MINUTE + 1, 2 * MINUTE), (-1, 0), (-MINUTE, -MINUTE), (-MINUTE - 1, -MINUTE)]
)
def test_a_point_on_a_boundary_closes_the_window(ts: int, label: int) -> None:
    assert naive.label_of(ts, MINUTE) == label


def test_a_gap_of_exactly_the_lookback_is_a_step() -> None:
    def at(ts: int) -> Point:
        return Point(1, 1, "m", ts, 5)

    assert naive.step(at(0), at(HOUR), HOUR) == naive.Step(0, reset=False)
    assert naive.step(at(0), at(HOUR + 1), HOUR) is None


def test_negative_values_reset_too() -> None:
    assert naive.step(Point(1, 1, "m", 0, -5), Point(1, 1, "m", 1, -7), HOUR) == naive.Step(-7, reset=True)


@given(grids_with_points(extreme_longs))
def test_an_overflow_is_possible_wherever_it_is_certain(case: GridAndPoints) -> None:
    grid, points = case
    if naive.overflows(points, grid.resolutions, grid.lookback):
        assert naive.may_overflow(points, grid.resolutions, grid.lookback)


@given(st.integers(INT64_MIN, INT64_MAX), st.integers(1, 4096))
def test_buckets_are_iceberg_s(series: int, buckets: int) -> None:
    assert naive.bucket_of(series, buckets) == BucketTransform(buckets).transform(LongType())(series)


def test_series_are_staged_by_the_dimensions_of_their_first_point() -> None:
    points = [Point(1, 1, "z", 10, 0), Point(1, 1, "a", 20, 0), Point(2, 5, "b", 15, 0), Point(3, 4, "b", 30, 0), Point(3, 4, "b", 12, 0)]
    staged = naive.repartitioned(points, 1)[0]
    assert [(point.id, point.ts) for point in staged] == [(3, 12), (3, 30), (2, 15), (1, 10), (1, 20)]


@given(st.data())
def test_histories_stay_inside_their_grid(data: st.DataObject) -> None:
    grid = data.draw(grids())
    rows = data.draw(histories(grid, small_longs))
    assume(rows)
    assert all(row.ts is not None and grid.start <= row.ts < grid.end for row in rows)
