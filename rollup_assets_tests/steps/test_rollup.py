"""Rolling up batches: every value against the reference model, whatever the batches, order and engine; what is missing; what overflows."""

from __future__ import annotations

import dataclasses
import datetime as dt
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollup_assets import failpoints
from rollup_assets.batches import Batch, to_milliseconds
from rollup_assets.engines.local import LocalEngine
from rollup_assets.errors import NotStagedError, QuarantineError, RollupOverflowError, StageCorruptError, StaleInputError, StorageError
from rollup_assets.steps import rollup as rollup_step
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import PARTIAL_POINTS, REPARTITIONED, ROLLUPS, Manifest
from rollup_assets.units import parse_duration
from rollup_assets_tests import naive, staged
from rollup_assets_tests.landing import Shape, batches_of, land, pipeline_of, with_engine, write_bytes, write_rows
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN, Point, RawRow, Rows
from rollup_assets_tests.staged import assert_same, digests, identity, merged
from rollup_assets_tests.strategies import (
    AROUND_EPOCH,
    HOUR,
    MINUTE,
    TODAY,
    Grid,
    accepted,
    crowd,
    doubles,
    extreme_longs,
    grids,
    histories,
)
from rollup_assets_tests.worked_example import EXAMPLE, RAW_ROWS, clock

if TYPE_CHECKING:
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.steps.results import RolledUp, Waiting

FreshHome = Callable[[], Path]
MakePipeline = Callable[..., "Pipeline"]

RESOLUTIONS = (MINUTE, 5 * MINUTE, HOUR)
THREE_HOURS = Grid(TODAY, HOUR, 3, RESOLUTIONS, HOUR)
few = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def stage(pipeline: Pipeline, batch: Batch) -> None:
    from rollup_assets.steps.repartition import stage_batch

    stage_batch(pipeline, batch)


def try_roll_up(pipeline: Pipeline, batch: Batch, *, force: bool = False) -> RolledUp | Waiting:
    from rollup_assets.steps.rollup import roll_up

    return roll_up(pipeline, batch, force=force)


def roll_up(pipeline: Pipeline, batch: Batch, *, force: bool = False) -> RolledUp:
    from rollup_assets.steps.results import RolledUp

    result = try_roll_up(pipeline, batch, force=force)
    assert isinstance(result, RolledUp)
    return result


def shifted(pipeline: Pipeline, batch: Batch, count: int) -> Batch:
    found = pipeline.calendar.shifted(batch, count)
    assert found is not None
    return found


def run(pipeline: Pipeline, grid: Grid) -> dict[Batch, Manifest]:
    """Stage every batch of the grid, then roll up all of them and the trailing ones that close the last windows."""
    batches = batches_of(pipeline, grid)
    for batch in batches:
        stage(pipeline, batch)
    trailing = [shifted(pipeline, batches[-1], count) for count in range(1, pipeline.settings.reach + 1)]
    return {batch: roll_up(pipeline, batch).manifest for batch in (*batches, *trailing)}


def rows_of(pipeline: Pipeline, manifests: dict[Batch, Manifest]) -> dict[Batch, Rows]:
    return {batch: staged.rollups(pipeline, batch, manifest) for batch, manifest in manifests.items()}


def batch_by_batch(points: list[Point], grid: Grid) -> list[Rows]:
    return naive.rollups_batch_by_batch(points, grid.start, grid.batches + grid.reach, grid.length, grid.resolutions, grid.lookback)


# ------------------------------------------------------------------------------------------------------ the model, value by value


def test_the_worked_example(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    """Every row of the design's table, from the batch it names."""
    pipeline = make_pipeline(tmp_path)
    land(pipeline, RAW_ROWS)
    found = set()
    for hour in range(9, 13):
        stage(pipeline, pipeline.calendar.containing(clock(f"{hour:02}:00")))
    # 08 is before any raw file, 13 and 14 after: what is carried comes out.
    for hour in range(8, 15):
        batch = pipeline.calendar.containing(clock(f"{hour:02}:00"))
        for r in staged.rollups(pipeline, batch, roll_up(pipeline, batch).manifest).values():
            assert (r.id, r.org_id, r.metric, r.lag) == (7, 1, "requests", None)
            assert r.rate == (None if r.delta is None else r.delta / (r.resolution / 1000))
            found.add((r.resolution, r.label, r.count, r.sum, r.min, r.max, round(r.average, 2), r.latest, r.delta, r.resets, hour))
    assert found == {(*window.values, window.published_by) for window in EXAMPLE}


@few
@given(data=st.data())
def test_rollups_equal_the_model(data: st.DataObject, fresh_home: FreshHome) -> None:
    """int64: every batch publishes exactly its labels, and all batches together are the rows of the whole history."""
    grid = data.draw(grids())
    rows = data.draw(histories(grid))
    pipeline = pipeline_of(grid, fresh_home())
    land(pipeline, rows, files=data.draw(st.integers(1, 2)), shape=Shape(row_group=data.draw(st.sampled_from((1, 3, 100)))))
    published = rows_of(pipeline, run(pipeline, grid))
    for batch, found in published.items():
        assert all(batch.start <= row.label < batch.end for row in found.values())
    assert_same(merged(published.values()), naive.rollups_of(accepted(rows), grid.resolutions, grid.lookback))


@few
@given(data=st.data())
def test_doubles_equal_the_model_bit_by_bit(data: st.DataObject, fresh_home: FreshHome) -> None:
    """The order of additions is the definition.

    Finer windows in time order, then the step that only an earlier batch knows, then the point on the boundary.
    """
    grid = data.draw(grids())
    rows = data.draw(histories(grid, doubles))
    pipeline = pipeline_of(grid, fresh_home(), value_type="double")
    land(pipeline, rows)
    for found, expected in zip(rows_of(pipeline, run(pipeline, grid)).values(), batch_by_batch(accepted(rows), grid), strict=True):
        assert_same(found, expected)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("start", [TODAY, AROUND_EPOCH])
def test_rollups_of_a_crowd_equal_the_model(start: int, double: bool, tmp_path: Path) -> None:
    """Hundreds of series with moved dimensions, more of them than in one row group or chunk."""
    grid = Grid(start, HOUR, 3, RESOLUTIONS, HOUR)
    pipeline = pipeline_of(grid, tmp_path, shards=5, value_type="double" if double else "long")
    rows = crowd(21, grid, 250, 6000, double=double)
    land(pipeline, rows, files=3, shuffle=1, shape=Shape(row_group=500))
    for found, expected in zip(rows_of(pipeline, run(pipeline, grid)).values(), batch_by_batch(accepted(rows), grid), strict=True):
        assert_same(found, expected)


def test_doubles_that_leave_their_range_become_infinite(tmp_path: Path) -> None:
    """Only int64 overflows are errors."""
    grid = Grid(TODAY, HOUR, 1, RESOLUTIONS, HOUR)
    pipeline = pipeline_of(grid, tmp_path, value_type="double")
    rows = [RawRow(1, 1, "m", TODAY + 1 + index, value) for index, value in enumerate((1e308, 1.7e308, -1.7e308, 1.7e308))]
    land(pipeline, rows)
    for found, expected in zip(rows_of(pipeline, run(pipeline, grid)).values(), batch_by_batch(accepted(rows), grid), strict=True):
        assert_same(found, expected)
    manifest = pipeline.stage.read(ROLLUPS, batches_of(pipeline, grid)[0])
    assert manifest is not None, "a manifest with infinite checksums can be read back"
    assert any(math.isinf(row.sum) for row in staged.rollups(pipeline, batches_of(pipeline, grid)[0], manifest).values())


def test_the_step_into_the_first_point_of_an_open_window(tmp_path: Path) -> None:
    """A scrape a minute, jittered: the first step of an hourly row begins two batches before the batch that publishes it.

    partial_points[t-1] alone knows all counts but not that step: delta, rate and resets of hourly rows would be wrong, and no count notice.
    """
    pipeline = pipeline_of(THREE_HOURS, tmp_path)
    rows = []
    for series in range(20):
        value = 0
        for minute in range(3 * 60):
            # Every series resets between two batches, some at the first step of one.
            value = 3 if minute % 60 == series % 3 else value + 10 + series
            rows.append(RawRow(series, 1, "counter", TODAY + minute * MINUTE + 1 + 977 * series, value))
    land(pipeline, rows)
    expected = naive.rollups_of(accepted(rows), RESOLUTIONS, HOUR)
    assert_same(merged(rows_of(pipeline, run(pipeline, THREE_HOURS)).values()), expected)
    second = [expected[series, HOUR, TODAY + 2 * HOUR] for series in range(20)]
    assert any(row.resets == 1 for row in second)
    manifest = roll_up(pipeline, batches_of(pipeline, THREE_HOURS)[2]).manifest
    first, middle, _ = batches_of(pipeline, THREE_HOURS)
    assert set(manifest.upstream[PARTIAL_POINTS]) >= {first.key, middle.key}


def test_a_reset_in_the_first_step_is_counted_once_in_coarser_windows(tmp_path: Path) -> None:
    """The opposite mistake: counting the first step again when its finished window is folded into coarser ones."""
    pipeline = pipeline_of(THREE_HOURS, tmp_path)
    rows = [
        RawRow(1, 1, "m", TODAY + HOUR - 1, 100),
        RawRow(1, 1, "m", TODAY + HOUR + 30_000, 7),
        RawRow(1, 1, "m", TODAY + HOUR + 3 * MINUTE, 9),
        RawRow(1, 1, "m", TODAY + 2 * HOUR, 11),
    ]
    land(pipeline, rows)
    found = merged(rows_of(pipeline, run(pipeline, THREE_HOURS)).values())
    row = found[1, HOUR, TODAY + 2 * HOUR]
    assert (row.count, row.delta, row.resets) == (3, 7 + 2 + 2, 1)
    assert_same(found, naive.rollups_of(accepted(rows), RESOLUTIONS, HOUR))


@pytest.mark.parametrize("off", [-1, 0, 1])
@pytest.mark.parametrize("lookback", [HOUR, HOUR - 1, 10 * MINUTE])
def test_gaps_around_the_lookback_across_a_batch_boundary(off: int, lookback: int, tmp_path: Path) -> None:
    grid = Grid(TODAY, HOUR, 3, RESOLUTIONS, lookback)
    pipeline = pipeline_of(grid, tmp_path)
    rows = [
        point
        for series, first in enumerate((TODAY + HOUR - 1, TODAY + HOUR, TODAY + 1, TODAY + 30 * MINUTE))
        for point in (RawRow(series, 1, "m", first, 5), RawRow(series, 1, "m", first + lookback + off, 8))
    ]
    land(pipeline, rows)
    assert_same(merged(rows_of(pipeline, run(pipeline, grid)).values()), naive.rollups_of(accepted(rows), grid.resolutions, lookback))


def test_dimensions_are_those_of_the_window_s_first_point(tmp_path: Path) -> None:
    """A series that moves between and within batches: also where the first point of a window is in the batch before."""
    pipeline = pipeline_of(THREE_HOURS, tmp_path)
    rows = [
        RawRow(1, 1, "old", TODAY + HOUR - 30_000, 1),
        RawRow(1, 2, "new", TODAY + HOUR, 2),
        RawRow(1, 3, "newer", TODAY + HOUR + 10, 3),
        RawRow(1, 2, "new", TODAY + HOUR + 2 * MINUTE, 3),
        RawRow(2, 1, "quiet", TODAY + HOUR - 1, 1),
        RawRow(2, 1, "quiet", TODAY + HOUR + 1, 1),
        RawRow(3, 9, "zzz", TODAY + HOUR - 1, 1),
    ]
    land(pipeline, rows)
    found = merged(rows_of(pipeline, run(pipeline, THREE_HOURS)).values())
    assert (found[1, MINUTE, TODAY + HOUR].org_id, found[1, MINUTE, TODAY + HOUR].metric) == (1, "old")
    assert (found[1, MINUTE, TODAY + HOUR + MINUTE].org_id, found[1, MINUTE, TODAY + HOUR + MINUTE].metric) == (3, "newer")
    assert_same(found, naive.rollups_of(accepted(rows), RESOLUTIONS, HOUR))


def test_lag_is_the_mean_over_the_points_that_have_a_receive_time(tmp_path: Path) -> None:
    """Across a boundary: known before and not after, the other way round, in neither, negative."""
    grid = Grid(TODAY, HOUR, 2, RESOLUTIONS, HOUR)
    pipeline = pipeline_of(grid, tmp_path)
    edge = TODAY + HOUR
    rows = [
        RawRow(series, 1, "m", ts, 1, None if lag is None else ts + lag)
        for series, lags in enumerate([(7, None, None), (None, 7, 8), (None, None, 9), (None, None, None), (-5, 2, 10**9), (0, 0, 0)])
        for ts, lag in zip((edge - 1, edge, edge + 1), lags, strict=True)
    ]
    land(pipeline, rows)
    found = merged(rows_of(pipeline, run(pipeline, grid)).values())
    assert found[0, MINUTE, edge].lag == 7
    assert found[1, MINUTE, edge].lag == 7
    assert found[2, MINUTE, edge].lag is None
    assert_same(found, naive.rollups_of(accepted(rows), RESOLUTIONS, HOUR))


@pytest.mark.parametrize("double", [False, True])
def test_receive_times_a_century_away_are_unknown(double: bool, tmp_path: Path) -> None:
    """Nanoseconds, the end of int64, Go's year 1 and the year 9999: neither an overflow nor a mean that shows nothing else."""
    grid = Grid(TODAY, HOUR, 2, RESOLUTIONS, HOUR)
    pipeline = pipeline_of(grid, tmp_path, value_type="double" if double else "long")
    start, value = TODAY + HOUR, 1.0 if double else 1
    absurd = [TODAY * 1_000_000, INT64_MAX, INT64_MIN, -62_135_596_800_000, 253_402_300_799_999, start + naive.MOST_LAG + 100]
    rows = [RawRow(1, 1, "m", start + 1 + number, value, receive) for number, receive in enumerate([*absurd, *absurd])]
    rows += [RawRow(2, 1, "m", start + 1 + number, value, receive) for number, receive in enumerate([*absurd, start + 10])]
    rows += [RawRow(3, 1, "m", start + 1, value, start + 1 + side * naive.MOST_LAG) for side in (-1, 1)]
    # Of two rows of one point the one with a receive time stays; one that makes no sense is none.
    rows += [RawRow(4, 1, "m", start + 1, value, receive) for receive in (INT64_MAX, start + 8)]
    land(pipeline, rows)
    found = merged(rows_of(pipeline, run(pipeline, grid)).values())
    label = start + MINUTE
    assert [found[series, MINUTE, label].lag for series in (1, 2, 3, 4)] == [None, 3, naive.MOST_LAG, 7]
    assert_same(found, naive.rollups_of(accepted(rows), RESOLUTIONS, HOUR))


# ----------------------------------------------------------------------------------------------------------------- one result only


@few
@given(data=st.data())
def test_any_split_into_batches_gives_the_same_rows(data: st.DataObject, fresh_home: FreshHome) -> None:
    """int64: half-hour, hourly and two-hour batches of the same points."""
    lookback = data.draw(st.sampled_from((HOUR // 2, 7 * MINUTE)))
    resolutions = (MINUTE, 10 * MINUTE, 30 * MINUTE)
    start = data.draw(st.sampled_from((TODAY, AROUND_EPOCH)))
    rows = data.draw(histories(Grid(start, HOUR, 4, resolutions, lookback)))
    results = []
    for length in (HOUR // 2, HOUR, 2 * HOUR):
        grid = Grid(start, length, 4 * HOUR // length, resolutions, lookback)
        pipeline = pipeline_of(grid, fresh_home())
        land(pipeline, rows)
        results.append(merged(rows_of(pipeline, run(pipeline, grid)).values()))
    for other in results[1:]:
        assert_same(other, results[0])


def test_hourly_and_daily_batches_give_the_same_rows(make_pipeline: MakePipeline, fresh_home: FreshHome) -> None:
    """By settings alone."""
    grid = Grid(TODAY, HOUR, 5, RESOLUTIONS, HOUR)
    rows = crowd(22, grid, 40, 1500)
    hourly = make_pipeline(fresh_home())
    land(hourly, rows)
    by_hour = merged(rows_of(hourly, run(hourly, grid)).values())
    daily = make_pipeline(fresh_home(), batch="1d", lookback="1h", raw_layout="%Y-%m-%d")
    land(daily, rows)
    by_day = merged(rows_of(daily, run(daily, Grid(TODAY, 24 * HOUR, 1, RESOLUTIONS, HOUR))).values())
    assert_same(by_day, by_hour)


@pytest.mark.parametrize("value_type", ["long", "double"])
def test_any_order_threads_and_memory_give_the_same_bytes(value_type: str, fresh_home: FreshHome) -> None:
    rows = crowd(23, THREE_HOURS, 150, 6000, double=value_type == "double")
    seen = set()
    for seed, (threads, memory) in enumerate(((1, 2**28), (2, 2**28), (4, 2**31), (2, 2**18))):
        pipeline = with_engine(pipeline_of(THREE_HOURS, fresh_home(), value_type=value_type), threads=threads, memory=memory)
        land(pipeline, rows, files=2, shuffle=seed, shape=Shape(row_group=700))
        seen.add(repr([digests(manifest) for manifest in run(pipeline, THREE_HOURS).values()]))
    assert len(seen) == 1


def test_any_number_of_shards_gives_the_same_rows(fresh_home: FreshHome) -> None:
    """But for metric_shard_id, which is Iceberg's bucket of the id."""
    rows = crowd(24, THREE_HOURS, 60, 2000)
    seen = []
    for shards in (1, 3, 16, 200):
        pipeline = pipeline_of(THREE_HOURS, fresh_home(), shards=shards)
        land(pipeline, rows)
        manifests = run(pipeline, THREE_HOURS)
        for batch, manifest in manifests.items():
            assert all(shard == naive.bucket_of(row.id, shards) for shard, row in staged.rollup_rows(pipeline, batch, manifest))
        seen.append(rows_of(pipeline, manifests))
    for other in seen[1:]:
        for found, expected in zip(other.values(), seen[0].values(), strict=True):
            assert_same(found, expected)


@pytest.mark.parametrize("moving", [False, True])
def test_files_are_ordered_and_hold_one_partition_value_each(moving: bool, tmp_path: Path) -> None:
    """One resolution and one day a file, rows by (metric_shard_id, metric, org_id, id, logical_timestamp), no more files than needed.

    Rows of a series whose dimensions change stay together, in time order, where its first point of the batch belongs; of a series that has
    none, where its first point of the batch before does.
    """
    grid = Grid(TODAY + 22 * HOUR, HOUR, 4, RESOLUTIONS, HOUR)
    pipeline = pipeline_of(grid, tmp_path, shards=3)
    rows = crowd(25, grid, 60, 2000)
    if not moving:
        rows = [row for row in rows if row.metric != "moved"]
    land(pipeline, rows)
    points = accepted(rows)
    for batch, manifest in run(pipeline, grid).items():
        homes = {}
        for start in (batch.start - HOUR, batch.start):
            inside = naive.series_of(point for point in points if start <= point.ts < start + HOUR)
            homes |= {series: (history[0].metric.encode(), history[0].org_id) for series, history in inside.items()}
        for file in manifest.files:
            found = staged.rollup_file(pipeline, batch, manifest, file)
            assert {row.resolution for _, row in found} == {file.resolution}
            assert len({row.label // (24 * HOUR) for _, row in found}) == 1
            assert file.rows == len(found)
            order = [(shard, *homes[row.id], row.id, row.label) for shard, row in found]
            assert order == sorted(order)
            if not moving:
                assert order == [naive.table_order(row, 3) for _, row in found]
        assert len(manifest.files) <= len(RESOLUTIONS), "small batches make one file a resolution"


def test_files_lie_in_the_table_s_data_location_with_its_schema(tmp_path: Path) -> None:
    """Field ids and required columns are the table's own, though the files are no part of it yet."""
    from rollup_assets.iceberg.schema import arrow_schema

    pipeline = pipeline_of(THREE_HOURS, tmp_path)
    land(pipeline, crowd(26, THREE_HOURS, 10, 300))
    for manifest in run(pipeline, THREE_HOURS).values():
        for file in manifest.files:
            assert file.path.startswith(f"{pipeline.settings.warehouse}/metrics/rollups/data/")
            parquet = pq.ParquetFile(file.path)
            expected = arrow_schema("long")
            assert parquet.schema_arrow.names == expected.names
            for found, wanted in zip(parquet.schema_arrow, expected, strict=True):
                assert (found.type, found.nullable, found.metadata[b"PARQUET:field_id"]) == (
                    wanted.type,
                    wanted.nullable,
                    wanted.metadata[b"PARQUET:field_id"],
                )


@pytest.mark.parametrize("value_type", ["long", "double"])
def test_compatible_files_have_no_encoding_that_older_readers_refuse(value_type: str, tmp_path: Path) -> None:
    """The same rows, the stage untouched; one table may have both kinds of files, since a batch keeps its own until it is made anew."""
    from rollup_assets.storage.encodings import ROLLUPS

    fast = pipeline_of(THREE_HOURS, tmp_path, value_type=value_type)
    land(fast, crowd(28, THREE_HOURS, 20, 900, double=value_type == "double"))
    before = run(fast, THREE_HOURS)
    compatible = pipeline_of(THREE_HOURS, tmp_path, value_type=value_type, parquet_encoding="compatible")
    staged_before = {batch: compatible.stage.read(REPARTITIONED, batch) for batch in batches_of(fast, THREE_HOURS)}
    used: dict[str, set[str]] = {"fast": set(), "compatible": set()}
    assert ROLLUPS.columns
    for batch in staged_before:
        manifest = before[batch]
        for file in manifest.files:
            used["fast"] |= encodings_of(file.path)
        rows = staged.rollup_rows(fast, batch, manifest)
        stage(compatible, batch)
        assert compatible.stage.read(REPARTITIONED, batch) == staged_before[batch]
        after = roll_up(compatible, batch)
        assert not after.unchanged
        assert after.manifest.parameters["parquet_encoding"] == "compatible"
        assert [(shard, staged.bits(row)) for shard, row in staged.rollup_rows(compatible, batch, after.manifest)] == [
            (shard, staged.bits(row)) for shard, row in rows
        ]
        assert after.manifest.digest != manifest.digest
        for file in after.manifest.files:
            used["compatible"] |= encodings_of(file.path)
        assert roll_up(compatible, batch).unchanged
    assert used["compatible"] == {"PLAIN", "RLE", "RLE_DICTIONARY"}
    assert {*ROLLUPS.columns.values()} <= used["fast"]


def encodings_of(path: str) -> set[str]:
    """Every encoding of a Parquet file, that of levels (RLE) too; all its columns are compressed with zstd."""
    metadata = pq.read_metadata(path)
    columns = [metadata.row_group(group).column(place) for group in range(metadata.num_row_groups) for place in range(metadata.num_columns)]
    assert {column.compression for column in columns} == {"ZSTD"}
    return {encoding for column in columns for encoding in column.encodings}


def test_counts_in_the_manifests_reconcile(tmp_path: Path) -> None:
    """Per resolution: published + left open = accepted + carried; and what is carried is what the batch before left open."""
    pipeline = pipeline_of(THREE_HOURS, tmp_path)
    land(pipeline, crowd(27, THREE_HOURS, 50, 3000))
    left_open = {str(resolution): 0 for resolution in RESOLUTIONS}
    for batch, manifest in run(pipeline, THREE_HOURS).items():
        partial = pipeline.stage.read(PARTIAL_POINTS, batch)
        points = pipeline.stage.read(REPARTITIONED, batch)
        counters = manifest.counters
        assert counters["accepted"] == (points.counters["rows_accepted"] if points else 0)
        assert counters["carried"] == left_open
        left_open = partial.counters["counts"] if partial else {str(resolution): 0 for resolution in RESOLUTIONS}
        rows = staged.rollups(pipeline, batch, manifest)
        for resolution in RESOLUTIONS:
            here = [row for row in rows.values() if row.resolution == resolution]
            assert counters["rows"][str(resolution)] == len(here)
            assert counters["counts"][str(resolution)] == sum(row.count for row in here)
            assert (
                counters["counts"][str(resolution)] + left_open[str(resolution)]
                == counters["accepted"] + counters["carried"][str(resolution)]
            )
        assert counters["duplicate_windows"] == 0
        assert counters["series"] == (points.counters["series"] if points else 0)


def test_checksums_reconcile_across_resolutions_and_batches(tmp_path: Path) -> None:
    """The identities by which "deltas reconcile" is checked hold for right rows."""
    pipeline = pipeline_of(THREE_HOURS, tmp_path)
    land(pipeline, crowd(28, THREE_HOURS, 50, 3000))
    before: dict[str, Any] | None = None
    for manifest in run(pipeline, THREE_HOURS).values():
        sums = manifest.counters["checksums"]
        for at, fine in enumerate(RESOLUTIONS):
            for coarse in RESOLUTIONS[at + 1 :]:
                f, c = sums[str(fine)], sums[str(coarse)]
                for name in ("count", "sum", "delta", "resets"):
                    tail = int(f["tail"][str(coarse)][name])
                    assert (int(c["total"][name]) - int(c["head"][name])) % 2**64 == (
                        int(f["total"][name]) - int(f["head"][name]) - tail
                    ) % 2**64
                    if before is not None:
                        carried = int(before[str(fine)]["tail"][str(coarse)][name])
                        assert int(c["head"][name]) % 2**64 == (carried + int(f["head"][name])) % 2**64
        assert any(int(sums[str(MINUTE)]["total"][name]) for name in ("count", "sum", "delta")) or not manifest.rows
        before = sums


# ------------------------------------------------------------------------------------------------------------------------ run again


def test_a_second_run_does_nothing_and_a_forced_one_keeps_the_files(tmp_path: Path) -> None:
    pipeline = pipeline_of(THREE_HOURS, tmp_path)
    land(pipeline, crowd(29, THREE_HOURS, 20, 600))
    first = run(pipeline, THREE_HOURS)
    files = sorted(path for path in Path(pipeline.settings.warehouse).rglob("*") if path.is_file())
    for batch, manifest in first.items():
        again = roll_up(pipeline, batch)
        assert again.unchanged
        assert identity(again.manifest) == identity(manifest)
        forced = roll_up(pipeline, batch, force=True)
        assert not forced.unchanged
        assert identity(forced.manifest) == identity(manifest)
    assert sorted(path for path in Path(pipeline.settings.warehouse).rglob("*") if path.is_file()) == files


def test_upstream_names_the_digests_that_were_read(tmp_path: Path) -> None:
    pipeline = pipeline_of(THREE_HOURS, tmp_path)
    land(pipeline, crowd(30, THREE_HOURS, 20, 600))
    first = batches_of(pipeline, THREE_HOURS)[0]
    for batch, manifest in run(pipeline, THREE_HOURS).items():
        points = pipeline.stage.read(REPARTITIONED, batch)
        assert manifest.upstream[REPARTITIONED] == {batch.key: points.digest if points else None}
        expected = {}
        for back in range(3):
            near = pipeline.calendar.shifted(batch, -back)
            if near is not None and near >= first:
                partial = pipeline.stage.read(PARTIAL_POINTS, near)
                expected[near.key] = partial.digest if partial else None
        assert {key: digest for key, digest in manifest.upstream[PARTIAL_POINTS].items() if digest or key in expected} == expected


@pytest.mark.scenario("C4", "L1")
def test_a_late_point_changes_its_batch_and_at_most_the_two_after_it(tmp_path: Path) -> None:
    """The last point of batch 1 is in windows that 2 publishes, and the step from it in one that 3 does; 0 and 4 are not even new."""
    grid = Grid(TODAY, HOUR, 5, RESOLUTIONS, HOUR)
    pipeline = pipeline_of(grid, tmp_path)
    rows = [RawRow(1, 1, "m", TODAY + minute * MINUTE + 500, minute) for minute in range(5 * 60)]
    land(pipeline, rows)
    before = run(pipeline, grid)
    batches = list(before)
    earlier_rows = rows_of(pipeline, before)
    late = RawRow(1, 1, "m", TODAY + 2 * HOUR - 100, 100_000)
    write_rows(pipeline, batches[1], "late.parquet", [late])
    after = run(pipeline, grid)
    later_rows = rows_of(pipeline, after)
    assert [at for at, batch in enumerate(batches) if later_rows[batch] != earlier_rows[batch]] == [2, 3]
    assert {at for at, batch in enumerate(batches) if after[batch].digest != before[batch].digest} <= {1, 2, 3}
    assert_same(merged(later_rows.values()), naive.rollups_of(accepted([*rows, late]), RESOLUTIONS, HOUR))


def test_restaging_the_same_rows_leaves_rollups_unchanged(tmp_path: Path) -> None:
    pipeline = pipeline_of(THREE_HOURS, tmp_path)
    rows = crowd(31, THREE_HOURS, 20, 600)
    land(pipeline, rows)
    first = run(pipeline, THREE_HOURS)
    land(pipeline, rows, shuffle=5)
    for batch in batches_of(pipeline, THREE_HOURS):
        stage(pipeline, batch)
    for batch, manifest in first.items():
        again = roll_up(pipeline, batch)
        assert again.unchanged
        assert identity(again.manifest) == identity(manifest)


# ---------------------------------------------------------------------------------------------------------------- a missing neighbour


def hours(pipeline: Pipeline, count: int) -> list[Batch]:
    first = pipeline.calendar.first
    return [shifted(pipeline, first, back) for back in range(count)]


def scrape(batch: Batch) -> list[RawRow]:
    return [RawRow(series, 1, "m", batch.start + 1 + minute * MINUTE, minute) for series in (1, 2) for minute in range(60)]


STAGED, RAW_ONLY, NOTHING = "staged", "raw files, not staged", "no raw files"


def prepare(pipeline: Pipeline, conditions: dict[Batch, str]) -> None:
    for batch, condition in conditions.items():
        if condition != NOTHING:
            write_rows(pipeline, batch, "a.parquet", scrape(batch))
        if condition == STAGED:
            stage(pipeline, batch)


@pytest.mark.scenario("C3")
@pytest.mark.parametrize("two_back", [STAGED, RAW_ONLY, NOTHING])
@pytest.mark.parametrize("one_back", [STAGED, RAW_ONLY, NOTHING])
@pytest.mark.parametrize("here", [STAGED, RAW_ONLY, NOTHING])
def test_the_table_of_missing_neighbours(here: str, one_back: str, two_back: str, make_pipeline: MakePipeline, tmp_path: Path) -> None:
    """All combinations of batch t, t-1 and t-2 being staged, not staged although there are raw files, or without raw files.

    Not staged for want of raw files is fine. A neighbour with raw files has to be staged: an error if batch t is staged; if it is not, or
    has no raw files, the partition waits.
    """
    from rollup_assets.steps.results import RolledUp, Waiting

    pipeline = make_pipeline(tmp_path)
    t2, t1, t = hours(pipeline, 4)[1:]
    prepare(pipeline, {t2: two_back, t1: one_back, t: here})
    missing = [batch for batch, condition in ((t1, one_back), (t2, two_back)) if condition == RAW_ONLY]
    if here == STAGED and missing:
        with pytest.raises(NotStagedError) as raised:
            try_roll_up(pipeline, t)
        for batch in missing:
            assert batch.key in str(raised.value)
        assert "rollups backfill" in str(raised.value)
        assert pipeline.stage.read(ROLLUPS, t) is None
        return
    result = try_roll_up(pipeline, t)
    if here == RAW_ONLY or (here == NOTHING and missing):
        assert isinstance(result, Waiting)
        waiting_for = " ".join(result.waiting_for)
        # The command that stages t stages what is missing before it.
        assert here == RAW_ONLY or all(batch.key in waiting_for for batch in missing)
        assert (t.key in waiting_for) == (here == RAW_ONLY)
        assert "rollups backfill" in result.reason
        assert pipeline.stage.read(ROLLUPS, t) is None
        return
    assert isinstance(result, RolledUp)
    points = [
        point
        for batch, condition in ((t2, two_back), (t1, one_back), (t, here))
        if condition == STAGED
        for point in accepted(scrape(batch))
    ]
    expected = {key: row for key, row in naive.rollups_of(points, RESOLUTIONS, HOUR).items() if t.start <= row.label < t.end}
    assert_same(staged.rollups(pipeline, t, result.manifest), expected)
    assert bool(result.warnings) == (here == NOTHING)


@pytest.mark.parametrize("one_back", [STAGED, NOTHING])
def test_before_the_first_partition_nothing_is_missing(one_back: str, make_pipeline: MakePipeline, tmp_path: Path) -> None:
    """The first and second batch after ROLLUP_START, whatever raw files there are before it."""
    pipeline = make_pipeline(tmp_path)
    first, second = hours(pipeline, 2)
    before = Batch(first.start - HOUR, first.start)
    write_rows(pipeline, before, "a.parquet", scrape(before))
    prepare(pipeline, {first: one_back, second: STAGED})
    points = [
        point for batch, condition in ((first, one_back), (second, STAGED)) if condition == STAGED for point in accepted(scrape(batch))
    ]
    expected = naive.rollups_of(points, RESOLUTIONS, HOUR)
    for batch in (first, second):
        found = staged.rollups(pipeline, batch, roll_up(pipeline, batch).manifest)
        assert_same(found, {key: row for key, row in expected.items() if batch.start <= row.label < batch.end})


def test_a_batch_that_reaches_one_back_needs_only_one_neighbour(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    """Where coarsest resolution and lookback fit into a batch, reach is 1 and t-2 does not matter."""
    pipeline = make_pipeline(tmp_path, resolutions="1m,5m", lookback="30m")
    assert pipeline.settings.reach == 1
    t2, t1, t = hours(pipeline, 3)
    prepare(pipeline, {t2: RAW_ONLY, t1: STAGED, t: STAGED})
    points = accepted([*scrape(t2), *scrape(t1), *scrape(t)])
    expected = naive.rollups_of(points, (MINUTE, 5 * MINUTE), 30 * MINUTE)
    found = staged.rollups(pipeline, t, roll_up(pipeline, t).manifest)
    assert_same(found, {key: row for key, row in expected.items() if t.start <= row.label < t.end})


def test_an_empty_batch_that_was_staged_waits_like_one_that_was_not(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    """The trailing partition is empty either way; a neighbour with raw files that are not staged goes before the error."""
    from rollup_assets.steps.results import Waiting

    pipeline = make_pipeline(tmp_path)
    t1, t = hours(pipeline, 2)
    prepare(pipeline, {t1: RAW_ONLY})
    stage(pipeline, t)
    result = try_roll_up(pipeline, t)
    assert isinstance(result, Waiting)
    assert t1.key in " ".join(result.waiting_for)


def test_a_staged_empty_neighbour_is_fine(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    """No raw folder, staged with count 0."""
    pipeline = make_pipeline(tmp_path)
    t2, t1, t = hours(pipeline, 3)
    prepare(pipeline, {t2: STAGED, t: STAGED})
    stage(pipeline, t1)
    points = accepted([*scrape(t2), *scrape(t)])
    found = staged.rollups(pipeline, t, roll_up(pipeline, t).manifest)
    assert_same(found, {key: row for key, row in naive.rollups_of(points, RESOLUTIONS, HOUR).items() if t.start <= row.label < t.end})


@pytest.mark.scenario("C3")
def test_waiting_ends_when_the_neighbour_is_staged(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    from rollup_assets.steps.results import Waiting

    pipeline = make_pipeline(tmp_path)
    t1, t = hours(pipeline, 2)
    prepare(pipeline, {t1: RAW_ONLY, t: NOTHING})
    assert isinstance(try_roll_up(pipeline, t), Waiting)
    stage(pipeline, t1)
    expected = naive.rollups_of(accepted(scrape(t1)), RESOLUTIONS, HOUR)
    assert_same(
        staged.rollups(pipeline, t, roll_up(pipeline, t).manifest), {key: row for key, row in expected.items() if row.label == t.start}
    )


def test_waiting_keeps_the_manifest_of_an_earlier_run(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    """No row changes: a trailing partition that was rolled up stays as it is when raw files arrive that nobody has staged."""
    from rollup_assets.steps.results import Waiting

    pipeline = make_pipeline(tmp_path)
    t1, t = hours(pipeline, 2)
    prepare(pipeline, {t1: STAGED})
    before = roll_up(pipeline, t).manifest
    write_rows(pipeline, t, "a.parquet", scrape(t))
    assert isinstance(try_roll_up(pipeline, t), Waiting)
    assert pipeline.stage.read(ROLLUPS, t) == before


def test_a_batch_over_its_quarantine_limit_keeps_its_own_rows_back(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    """Never staged: t waits, and a staged batch after it fails, naming it."""
    from rollup_assets.steps.results import Waiting

    pipeline = make_pipeline(tmp_path)
    t, after = hours(pipeline, 2)
    write_bytes(pipeline, t, "broken.parquet", b"")
    prepare(pipeline, {after: STAGED})
    with pytest.raises(QuarantineError):
        stage(pipeline, t)
    assert isinstance(try_roll_up(pipeline, t), Waiting)
    with pytest.raises(NotStagedError, match=t.key):
        try_roll_up(pipeline, after)


def test_points_staged_with_other_settings_are_refused(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    """Shards, resolutions, lookback and value type decide what is in a staged file; the message names what to run."""
    pipeline = make_pipeline(tmp_path)
    t1, t = hours(pipeline, 2)
    prepare(pipeline, {t1: STAGED, t: STAGED})
    for overrides in ({"shards": 8}, {"resolutions": "1m,1h"}, {"lookback": "30m"}):
        other = make_pipeline(tmp_path, **overrides)
        with pytest.raises(StaleInputError, match=r"rollups backfill"):
            try_roll_up(other, t)
        # With t staged anew, t-1 is still the old one's.
        stage(other, t)
        with pytest.raises(StaleInputError, match=t1.key):
            try_roll_up(other, t)
        stage(other, t1)
        roll_up(other, t)
        stage(pipeline, t1)
        stage(pipeline, t)


def test_points_staged_with_other_limits_of_raw_files_are_rolled_up_together(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    """They decide what a batch quarantines of its own files: to stage the whole history anew for them would be in vain."""
    pipeline = make_pipeline(tmp_path)
    t1, t = hours(pipeline, 2)
    prepare(pipeline, {t1: STAGED, t: STAGED})
    other = make_pipeline(tmp_path, raw_name_size=100, raw_file_rows=1_000_000, raw_group_size="4GiB")
    stage(other, t)
    points = accepted([*scrape(t1), *scrape(t)])
    found = staged.rollups(other, t, roll_up(other, t).manifest)
    assert_same(found, {key: row for key, row in naive.rollups_of(points, RESOLUTIONS, HOUR).items() if t.start <= row.label < t.end})


def test_points_and_open_windows_of_different_stagings_are_not_rolled_up(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    """Series are matched by their place in both. Here it differs, and windows left open would go to the other series."""
    pipeline = make_pipeline(tmp_path, resolutions="1h", shards=1)
    t1, t = hours(pipeline, 2)
    half, ten = 30 * MINUTE, 10 * MINUTE
    write_rows(pipeline, t1, "a.parquet", [RawRow(1, 1, "a", t1.start + half, 10), RawRow(2, 1, "b", t1.start + half, 1000)])
    write_rows(pipeline, t, "a.parquet", [RawRow(1, 1, "a", t.start + ten, 20), RawRow(2, 1, "b", t.start + ten, 1010)])
    stage(pipeline, t1)
    stage(pipeline, t)
    before = roll_up(pipeline, t).manifest
    write_rows(pipeline, t, "a.parquet", [RawRow(1, 1, "c", t.start + ten, 20), RawRow(2, 1, "b", t.start + ten, 1010)])

    def interrupt(name: str) -> None:
        if name == f"manifest.before.{REPARTITIONED}":
            raise KeyboardInterrupt

    with failpoints.handled(interrupt), pytest.raises(KeyboardInterrupt):
        stage(pipeline, t)
    with pytest.raises(StaleInputError, match=f"{t} are of different stagings.*run `rollups backfill {t} {t}`"):
        try_roll_up(pipeline, t)
    assert pipeline.stage.read(ROLLUPS, t) == before
    stage(pipeline, t)
    found = staged.rollups(pipeline, t, roll_up(pipeline, t).manifest)
    assert {row.id: row.sum for row in found.values() if row.label == t.start} == {1: 10, 2: 1000}


def test_the_message_of_other_settings_names_all_that_are_old_and_settings_as_they_are_written(
    make_pipeline: MakePipeline, tmp_path: Path
) -> None:
    pipeline = make_pipeline(tmp_path, raw_future="90s")
    t2, t1, t = hours(pipeline, 3)
    prepare(pipeline, {t2: STAGED, t1: STAGED, t: STAGED})
    other = make_pipeline(tmp_path, lookback="30m", raw_name_size=100, raw_lateness=1)
    stage(other, t)
    with pytest.raises(StaleInputError) as raised:
        try_roll_up(other, t)
    assert str(raised.value) == (
        f"{PARTIAL_POINTS} {t1}, {PARTIAL_POINTS} {t2} were staged with other settings: ROLLUP_LOOKBACK (now 30m, then 1h), "
        "ROLLUP_RAW_LATENESS (now 1, then 0), ROLLUP_RAW_FUTURE (now not set, then 90s); "
        f"stage them again with `rollups backfill {t2} {t}` (from the first batch on that `rollups status` shows with such a setting, if "
        "that is an earlier one), or restore those settings"
    )


# -------------------------------------------------------------------------------------------------------------------------- overflow

# Points of one series: (ms after the start of the second batch, value).
OVERFLOWS: dict[str, list[tuple[int, int]]] = {
    "sum in one window": [(1, INT64_MAX), (2, 1)],
    "sum, negative": [(1, INT64_MIN), (2, -1)],
    "step": [(1, -1), (2, INT64_MAX)],
    "step from the batch before": [(-1, INT64_MIN), (1, 0)],
    "delta of several steps": [(1, -(2**62)), (2, 2**62 - 1), (3, -(2**62)), (4, 2**62 - 1), (5, 2**61)],
    "sum of a coarser window only": [(1, INT64_MAX), (MINUTE + 1, 5)],
    "sum across the boundary": [(-1, INT64_MAX), (0, 5)],
    "sum of the coarsest open window": [(30 * MINUTE, INT64_MAX), (HOUR, 5)],
    "step into the first point of an open window": [(-1, INT64_MIN), (40 * MINUTE, 1)],
    "step into the first point, found in the coarsest window": [(-1, -(2**62)), (1, 2**62 - 1), (2, -1), (40 * MINUTE, 2**62)],
}


@pytest.mark.parametrize("resolutions", [RESOLUTIONS, (MINUTE, 5 * MINUTE), (HOUR,)])
@pytest.mark.parametrize("name", OVERFLOWS)
def test_an_overflow_fails_and_names_series_and_window(name: str, resolutions: tuple[int, ...], tmp_path: Path) -> None:
    """The window named is one whose result cannot be stored; other series with large values are not."""
    grid = Grid(TODAY, HOUR, 3, resolutions, HOUR)
    pipeline = pipeline_of(grid, tmp_path)
    rows = [RawRow(4711, 1, "m", TODAY + HOUR + after, value) for after, value in OVERFLOWS[name]]
    innocent = [RawRow(index, 1, "m", TODAY + HOUR + 1000 * index, INT64_MAX) for index in range(50)]
    windows = naive.overflows(accepted(rows), resolutions, HOUR)
    land(pipeline, [*rows, *innocent])
    if not windows:
        run(pipeline, grid)
        return
    with pytest.raises(RollupOverflowError) as raised:
        run(pipeline, grid)
    found = re.search(r"series (\S+), the (\S+) window labelled (\S+ \S+) UTC", str(raised.value))
    assert found, raised.value
    label = to_milliseconds(dt.datetime.fromisoformat(found[3]).replace(tzinfo=dt.UTC))
    assert (int(found[1]), parse_duration(found[2]), label) in windows


def test_values_at_the_limits_of_int64_that_fit_are_no_overflow(tmp_path: Path) -> None:
    pipeline = pipeline_of(THREE_HOURS, tmp_path)
    rows = [
        RawRow(1, 1, "m", TODAY + 1, INT64_MAX),
        RawRow(1, 1, "m", TODAY + 2, INT64_MIN),
        RawRow(2, 1, "m", TODAY + HOUR - 1, INT64_MIN),
        RawRow(2, 1, "m", TODAY + HOUR + 1, -1),
        RawRow(3, 1, "m", TODAY + 1, INT64_MAX),
        RawRow(4, 1, "m", TODAY + 5, INT64_MIN + 1),
        RawRow(4, 1, "m", TODAY + 2 * HOUR, INT64_MAX),
    ]
    assert not naive.overflows(accepted(rows), RESOLUTIONS, HOUR)
    land(pipeline, rows)
    assert_same(merged(rows_of(pipeline, run(pipeline, THREE_HOURS)).values()), naive.rollups_of(accepted(rows), RESOLUTIONS, HOUR))


@few
@given(data=st.data())
def test_an_overflow_is_never_silent_and_never_a_false_alarm(data: st.DataObject, fresh_home: FreshHome) -> None:
    """Where a result does not fit: the error. Where nothing can leave int64 on the way: none. Rows that come out are right."""
    grid = Grid(data.draw(st.sampled_from((TODAY, AROUND_EPOCH))), HOUR, 2, RESOLUTIONS, data.draw(st.sampled_from((HOUR, 7 * MINUTE))))
    rows = data.draw(histories(grid, extreme_longs, max_points=8))
    points = accepted(rows)
    pipeline = pipeline_of(grid, fresh_home())
    land(pipeline, rows)
    certain, possible = (
        naive.overflows(points, grid.resolutions, grid.lookback),
        naive.may_overflow(points, grid.resolutions, grid.lookback),
    )
    try:
        found = merged(rows_of(pipeline, run(pipeline, grid)).values())
    except RollupOverflowError:
        assert possible
        return
    assert not certain
    assert_same(found, naive.rollups_of(points, grid.resolutions, grid.lookback))


def staged_crowd(home: Path) -> tuple[Pipeline, Batch]:
    """A batch of many series, staged."""
    grid = Grid(TODAY, HOUR, 1, (MINUTE, 5 * MINUTE), HOUR)
    pipeline = pipeline_of(grid, home)
    batch = batches_of(pipeline, grid)[0]
    land(pipeline, crowd(32, grid, 20, 300))
    stage(pipeline, batch)
    return pipeline, batch


def test_an_overflow_leaves_the_earlier_rollups_in_place(tmp_path: Path) -> None:
    """In no case does a published row change, and no file of the failed attempt stays behind."""
    pipeline, batch = staged_crowd(tmp_path)
    before = roll_up(pipeline, batch).manifest
    files = sorted(path for path in Path(pipeline.settings.warehouse).rglob("*") if path.is_file())
    # The windows that overflow must not be those that staging looks at, the ones labelled with the batch's end.
    write_rows(pipeline, batch, "late.parquet", [RawRow(4711, 1, "m", TODAY + after, INT64_MAX) for after in (1, 2)])
    stage(pipeline, batch)
    with pytest.raises(RollupOverflowError):
        try_roll_up(pipeline, batch)
    assert pipeline.stage.read(ROLLUPS, batch) == before
    assert sorted(path for path in Path(pipeline.settings.warehouse).rglob("*") if path.is_file()) == files


def test_a_task_that_fails_leaves_no_file_of_those_that_have_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every attempt would leave as many, which nothing names."""
    pipeline, batch = staged_crowd(tmp_path)
    folder = Path(pipeline.settings.warehouse)
    real = rollup_step.roll_up_shards

    def last_one_fails(task: Any, shards: Sequence[int], context: Any) -> Any:
        if shards[0] > 0:
            assert list(folder.rglob("*.parquet")), "the first one has ended"
            raise StorageError("no space left on the device")
        return real(task, shards, context)

    monkeypatch.setattr(rollup_step, "roll_up_shards", last_one_fails)
    monkeypatch.setattr(rollup_step, "shard_groups", lambda shards, _: [list(range(shards // 2)), list(range(shards // 2, shards))])
    with pytest.raises(StorageError, match="no space"):
        try_roll_up(dataclasses.replace(pipeline, engine=LocalEngine(threads=1, memory=64 << 20, scratch=tmp_path / "scratch")), batch)
    assert not list(folder.rglob("*.parquet"))


def test_an_attempt_of_which_other_tries_cannot_be_deleted_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, batch = staged_crowd(tmp_path)
    real = rollup_step.delete_other_tries

    def failing_once(*_: Any) -> None:
        monkeypatch.setattr(rollup_step, "delete_other_tries", real)
        raise StorageError("s3://lake cannot be reached")

    monkeypatch.setattr(LocalEngine, "tries_again", True)
    monkeypatch.setattr(rollup_step, "delete_other_tries", failing_once)
    with pytest.raises(StorageError, match="cannot be reached"):
        try_roll_up(pipeline, batch)
    assert not list(Path(pipeline.settings.warehouse).rglob("*.parquet"))


def test_an_interrupt_is_one_also_where_storage_does_not_let_anything_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a failure of the partition, the run would go on with the next one."""
    grid = Grid(TODAY, HOUR, 1, (MINUTE, 5 * MINUTE), HOUR)
    pipeline = pipeline_of(grid, tmp_path)
    batch = batches_of(pipeline, grid)[0]
    land(pipeline, crowd(32, grid, 20, 300))

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def unreachable(*_: object) -> None:
        raise StorageError("s3://lake cannot be reached")

    monkeypatch.setattr(LocalEngine, "map_shuffle", interrupted)
    monkeypatch.setattr(Place, "delete_folder", unreachable)
    with pytest.raises(KeyboardInterrupt):
        stage(pipeline, batch)
    monkeypatch.undo()
    stage(pipeline, batch)
    monkeypatch.setattr(LocalEngine, "map", interrupted)
    monkeypatch.setattr(rollup_step, "delete_other_tries", unreachable)
    with pytest.raises(KeyboardInterrupt):
        try_roll_up(pipeline, batch)


# ---------------------------------------------------------------------------------------------------------- many row groups and files


@pytest.mark.parametrize(("row_group", "file_rows"), [(3, 3), (50, 120), (1000, 100_000)])
def test_rows_that_fill_many_row_groups_and_files_equal_the_model(
    row_group: int, file_rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What millions of rows do: buffers that run full within a shard, row groups that hold several shards, several files a resolution."""
    from rollup_assets.storage import encodings, partial_points

    monkeypatch.setattr(encodings, "ROLLUPS_ROW_GROUP", row_group)
    monkeypatch.setattr(encodings, "ROLLUPS_FILE_ROWS", file_rows)
    monkeypatch.setattr(encodings, "DATAPOINTS_ROW_GROUP", row_group)
    monkeypatch.setattr(partial_points, "PARTIAL_POINTS_ROW_GROUP", row_group)
    grid = Grid(TODAY, HOUR, 2, RESOLUTIONS, HOUR)
    pipeline = pipeline_of(grid, tmp_path, shards=5)
    rows = crowd(33, grid, 40, 800)
    land(pipeline, rows)
    manifests = run(pipeline, grid)
    for batch, manifest in manifests.items():
        found = staged.rollup_rows(pipeline, batch, manifest)
        assert all(shard == naive.bucket_of(row.id, 5) for shard, row in found)
        assert all(file.rows <= file_rows + row_group for file in manifest.files)
        assert len(found) == sum(manifest.counters["rows"].values())
    assert_same(merged(rows_of(pipeline, manifests).values()), naive.rollups_of(accepted(rows), RESOLUTIONS, HOUR))


# ---------------------------------------------------------------------------------------------------------------------- damaged stage


@pytest.mark.parametrize("asset", [REPARTITIONED, PARTIAL_POINTS])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_staged_file_is_named_with_the_command_that_mends_it(asset: str, damage: str, tmp_path: Path) -> None:
    pipeline = pipeline_of(THREE_HOURS, tmp_path)
    land(pipeline, crowd(34, THREE_HOURS, 20, 600))
    run(pipeline, THREE_HOURS)
    first, second, _ = batches_of(pipeline, THREE_HOURS)
    broken = second if asset == REPARTITIONED else first
    manifest = pipeline.stage.read(asset, broken)
    assert manifest is not None
    place = pipeline.stage.place(manifest, manifest.files[0], broken)
    if damage == "missing":
        place.delete_file()
    else:
        content = place.read_bytes()
        assert content
        place.write_bytes(content[: len(content) // 2])
    with pytest.raises(StageCorruptError) as raised:
        roll_up(pipeline, second, force=True)
    assert manifest.files[0].path in str(raised.value)
    assert broken.key in str(raised.value)
    assert "rollups backfill" in str(raised.value)
    # The command stages it again, and the rows come out as before.
    before = pipeline.stage.read(ROLLUPS, second)
    stage(pipeline, broken)
    assert before is not None
    assert roll_up(pipeline, second, force=True).manifest.digest == before.digest
