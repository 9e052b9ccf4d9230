"""A naive twin of every repartitioning kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyiceberg.transforms import BucketTransform
from pyiceberg.types import LongType

from rollup_assets.kernels import repartition as kernels
from rollup_assets_tests import naive
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN, Point

quick = settings(max_examples=60, deadline=None)
int64s = st.one_of(st.integers(-3, 3), st.integers(INT64_MIN, INT64_MAX), st.sampled_from((INT64_MIN, INT64_MAX)))


@quick
@given(ids=st.lists(int64s, max_size=20), shards=st.one_of(st.integers(1, 4096), st.sampled_from((1, 2, 16, 1024, 4096))))
def test_shards_are_iceberg_s_buckets(ids: list[int], shards: int) -> None:
    out = np.empty(len(ids), np.uint16)
    kernels.shard_of_ids(np.array(ids, np.int64), shards, out)
    bucket = BucketTransform(shards).transform(LongType())
    assert out.tolist() == [bucket(series) for series in ids] == [naive.bucket_of(series, shards) for series in ids]


@pytest.mark.parametrize(("series", "hashed"), [(34, 2017239379)])
def test_the_hash_of_iceberg_s_specification(series: int, hashed: int) -> None:
    """Appendix B of the table specification."""
    assert kernels.bucket_hash(series) == hashed


@quick
@given(st.lists(int64s, min_size=1, max_size=20))
def test_extremes(values: list[int]) -> None:
    assert kernels.extremes(np.array(values, np.int64)) == (min(values), max(values))


@quick
@given(st.lists(st.floats(), max_size=20))
def test_all_finite(values: list[float]) -> None:
    assert kernels.all_finite(np.array(values, np.float64)) == all(math.isfinite(value) for value in values)


@quick
@given(shard=st.lists(st.integers(0, 6), max_size=40))
def test_destinations_sort_stably(shard: list[int]) -> None:
    out, start = np.empty(len(shard), np.int32), np.empty(8, np.int64)
    kernels.destinations(np.array(shard, np.uint16), 7, out, start)
    expected = sorted(range(len(shard)), key=lambda row: shard[row])
    assert [out[row] for row in expected] == list(range(len(shard)))
    assert start.tolist() == [sum(found < s for found in shard) for s in range(8)]


@quick
@given(data=st.data(), values=st.lists(int64s, min_size=1, max_size=20))
def test_scattered_offsets_come_back(data: st.DataObject, values: list[int]) -> None:
    """Also where the difference to the base wraps around: adding the base wraps back."""
    destination = np.array(data.draw(st.permutations(range(len(values)))), np.int32)
    base = data.draw(st.sampled_from((0, min(values))))
    out = np.empty(len(values), np.int64)
    kernels.scatter_offsets(np.array(values, np.int64), base, destination, out)
    with np.errstate(over="ignore"):
        assert [int(out[at] + np.int64(base)) for at in destination] == values


@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_offsets_fit_the_narrow_type_that_was_chosen_for_them(dtype: type) -> None:
    base, spread = -(2**40), int(np.iinfo(dtype).max)
    values = np.array([base, base + spread, base + 5], np.int64)
    out = np.empty(3, dtype)
    kernels.scatter_offsets(values, base, np.array([2, 0, 1], np.int32), out)
    assert out.tolist() == [spread, 5, 0]


@quick
@given(values=st.lists(st.floats(allow_nan=False), max_size=20))
def test_scattered_doubles_lose_their_negative_zeros(values: list[float]) -> None:
    out = np.empty(len(values))
    kernels.scatter_doubles(np.array(values, np.float64), np.arange(len(values), dtype=np.int32)[::-1].copy(), out)
    assert [value.hex() for value in out[::-1].tolist()] == [(0.0 if value == 0 else value).hex() for value in values]


def test_scattered_codes_are_translated_and_plain_ones_moved() -> None:
    codes, destination, out = np.array([2, 0, 1, 2], np.int32), np.array([3, 2, 1, 0], np.int32), np.empty(4, np.int32)
    kernels.scatter_codes(codes, np.array([10, 11, 12], np.int32), destination, out)
    assert out.tolist() == [12, 11, 10, 12]
    kernels.scatter(codes, destination, out)
    assert out.tolist() == [2, 1, 0, 2]


@quick
@given(lags=st.lists(st.one_of(st.none(), st.integers(-(2**31), 2**31)), max_size=20))
def test_scattered_lags_keep_the_difference_between_none_and_zero(lags: list[int | None]) -> None:
    known = [lag for lag in lags if lag is not None]
    base = min(known, default=0)
    out = np.empty(len(lags), np.int64)
    array = np.array([kernels.NO_LAG if lag is None else lag for lag in lags], np.int64)
    kernels.scatter_lags(array, base, np.arange(len(lags), dtype=np.int32), out)
    assert [None if offset == 0 else offset + base - 1 for offset in out.tolist()] == lags


@quick
@given(rows=st.lists(st.tuples(int64s, st.one_of(st.none(), int64s)), max_size=20))
def test_lags_are_differences_that_do_not_wrap_around(rows: list[tuple[int, int | None]]) -> None:
    times, receives = np.array([time for time, _ in rows], np.int64), np.array([receive or 0 for _, receive in rows], np.int64)
    unknown = np.array([receive is None for _, receive in rows], np.bool_)
    found = np.empty(len(rows), np.int64)

    def bounded(time: int) -> int:
        return min(max(time, -kernels.MOST_TIME), kernels.MOST_TIME)

    kernels.lags_between(times, receives, unknown, found)
    assert found.tolist() == [kernels.NO_LAG if receive is None else bounded(receive) - bounded(time) for time, receive in rows]
    kernels.lags_between(times, receives, unknown[:0], found)
    assert found.tolist() == [bounded(receive or 0) - bounded(time) for time, receive in rows]


@quick
@given(lags=st.lists(st.one_of(st.just(kernels.NO_LAG), st.integers(-(2**61), 2**61)), max_size=20))
def test_extremes_of_lags_are_of_those_that_are_known(lags: list[int]) -> None:
    known = [lag for lag in lags if lag != kernels.NO_LAG]
    low, high = kernels.extremes_of_lags(np.array(lags, np.int64))
    assert (low, high) == (min(known), max(known)) if known else low > high


@quick
@given(codes=st.lists(st.integers(0, 9), max_size=30))
def test_compact_codes_number_by_first_appearance(codes: list[int]) -> None:
    translation, out, used = np.full(10, -1, np.int32), np.empty(len(codes), np.int32), np.empty(10, np.int32)
    count = kernels.compact_codes(np.array(codes, np.int32), translation, out, used)
    expected = list(dict.fromkeys(codes))
    assert used[:count].tolist() == expected
    assert [used[code] for code in out] == codes
    assert (translation == -1).all()


# ----------------------------------------------------------------------------------------------- series, sorting, duplicates

START = 1_767_225_600_000
METRICS = ("m", "a", "zz", "b")
rows_of_points = st.lists(
    st.builds(
        Point,
        id=st.sampled_from((7, -1, INT64_MIN, INT64_MAX, 0)),
        org_id=st.sampled_from((1, 1, 1, 2)),
        metric=st.sampled_from(("m", "m", *METRICS)),
        ts=st.integers(START, START + 12),
        value=st.sampled_from((0, 1, -1, INT64_MAX, INT64_MIN)),
        receive=st.one_of(st.none(), st.integers(START - 3, START + 20)),
    ),
    min_size=1,
    max_size=40,
)


def block_of(points: Sequence[Point], dtype: Any = np.int64) -> kernels.Block:
    """One block as a map task packs it: bases 0 but for times and lags; lags as offsets from -100."""
    lags = [0 if point.receive is None else point.receive - point.ts + 101 for point in points]
    return kernels.Block(
        np.array([point.id for point in points], np.int64),
        np.array([point.ts - START for point in points], np.int32),
        np.array([point.value for point in points], dtype),
        np.array([point.org_id for point in points], np.int64),
        np.array([METRICS.index(point.metric) for point in points], np.uint16),
        np.array(lags, np.int32),
        np.arange(len(METRICS), dtype=np.int32),
    )


LAG_BASE = -100
RANK = np.array([sorted(METRICS).index(name) for name in METRICS], np.int32)


def empty_points(rows: int, dtype: Any = np.int64, *, with_dimensions: bool = True, with_code: bool = True) -> kernels.ShardPoints:
    dimensions = rows if with_dimensions else 0
    return kernels.ShardPoints(
        np.empty(rows if with_code else 0, np.int32),
        np.empty(rows, np.int32),
        np.empty(rows, dtype),
        np.empty(dimensions, np.int64),
        np.empty(dimensions, np.int32),
        np.empty(rows, np.int64),
    )


def ingested(blocks: list[list[Point]], slots: int, *, dtype: Any = np.int64) -> tuple[kernels.SeriesTable, int, int, kernels.ShardPoints]:
    """All blocks in a table that begins with ``slots`` slots and grows: (table, series, changed, points)."""
    table, points = kernels.new_series_table(slots), empty_points(sum(len(block) for block in blocks), dtype)
    series = changed = row = 0
    for rows in blocks:
        block, done = block_of(rows, dtype), 0
        while True:
            series, done, more = kernels.ingest(block, 0, 0, LAG_BASE, done, row, series, table, points)
            changed += more
            if done == len(rows):
                break
            table = kernels.grown(table, series)
        row += len(rows)
    return table, series, changed, points


@quick
@given(rows=rows_of_points, cut=st.integers(0, 40))
def test_ingest_gives_series_dense_codes_in_order_of_appearance(rows: list[Point], cut: int) -> None:
    """Two blocks, and a table so small that it grows on the way."""
    table, series, changed, points = ingested([rows[:cut], rows[cut:]], 4)
    ids = list(dict.fromkeys(point.id for point in rows))
    assert table.id[:series].tolist() == ids
    assert [ids[code] for code in points.code] == [point.id for point in rows]
    assert points.time.tolist() == [point.ts - START for point in rows]
    assert points.value.tolist() == [point.value for point in rows]
    assert points.lag.tolist() == [kernels.NO_LAG if point.receive is None else point.receive - point.ts for point in rows]
    first = {series_id: next(point for point in rows if point.id == series_id) for series_id in ids}
    assert changed == sum((point.org_id, point.metric) != (first[point.id].org_id, first[point.id].metric) for point in rows)
    for code, series_id in enumerate(ids):
        times = [point.ts for point in rows if point.id == series_id]
        assert table.points[code] == len(times)
        assert bool(table.unsorted[code]) == any(later <= earlier for earlier, later in zip(times, times[1:], strict=False))  # noqa: RUF007
    out = np.empty(len(rows), np.int32)
    kernels.codes_of_ids(np.array([point.id for point in rows], np.int64), table, out)
    assert out.tolist() == points.code.tolist()


@quick
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from((0.0, 0.02, 0.3, 1.0)))
def test_series_are_found_again_in_whatever_order_scrapes_come(seed: int, share: float) -> None:
    """The same order every time, with rows missing, displaced or new in between; or any order."""
    random = np.random.default_rng(seed)
    ids = random.integers(INT64_MIN, INT64_MAX, 60)
    rows = []
    for scrape in range(12):
        order = np.arange(60)
        moved = random.random(60) < share
        order[moved] = random.permutation(order[moved])
        seen = [place for place in order if random.random() >= share / 4 and not (scrape < 6 and place % 7 == 0)]
        rows += [Point(int(ids[place]), 1, "m", START + scrape, scrape) for place in seen]
    table, series, _, points = ingested([rows[:100], rows[100:]], 16)
    assert table.id[:series].tolist() == list(dict.fromkeys(point.id for point in rows))
    assert [int(table.id[code]) for code in points.code] == [point.id for point in rows]


def test_ids_that_meet_in_one_slot_keep_apart() -> None:
    """Many series in a table that is half full: long chains of collisions."""
    rows = [Point(series * 2**24, 1, "m", START, series) for series in range(2000)]
    table, series, _, points = ingested([rows], 4096)
    assert series == 2000
    assert [int(table.id[code]) for code in points.code] == [point.id for point in rows]


@quick
@given(
    ids=st.lists(int64s, max_size=30, unique=True),
    dimensions=st.tuples(
        st.lists(st.integers(0, 2), min_size=30, max_size=30), st.lists(st.one_of(st.integers(7, 9), int64s), min_size=30, max_size=30)
    ),
    many=st.booleans(),
)
def test_series_are_ordered_by_metric_organization_and_id(ids: list[int], dimensions: tuple[list[int], list[int]], many: bool) -> None:
    """Organizations that are near each other, and some that are not."""
    metric, org = (column[: len(ids)] for column in dimensions)
    org = org if many else [number % 5 for number in org]
    found = kernels.series_order(np.array(metric, np.int32), np.array(org, np.int64), np.array(ids, np.int64))
    assert found.tolist() == sorted(range(len(ids)), key=lambda code: (metric[code], org[code], ids[code]))


def placed(rows: list[Point], dtype: Any = np.int64) -> tuple[list[Point], int]:
    """Rows sorted by the kernels, series ordered by the dimensions of their first points, and the number of duplicates."""
    table, series, _, points = ingested([rows], 64, dtype=dtype)
    start, kept = np.empty(series, np.int64), np.empty(series, np.int64)
    out = empty_points(len(rows), dtype, with_code=False)
    duplicates = kernels.place(points, len(rows), np.arange(series), table, RANK, start, kept, out)
    order = np.lexsort((table.id[:series], out.org[start], RANK[out.metric[start]]))
    return read_in_row_groups(order, start, kept, table, out, 5), duplicates


def read_in_row_groups(
    order: NDArray[np.int64], start: Any, kept: Any, table: kernels.SeriesTable, points: kernels.ShardPoints, size: int
) -> list[Point]:
    """All points through row groups of ``size`` rows; the ranks are names again."""
    names = sorted(METRICS)
    found: list[Point] = []
    j = i = 0
    while j < len(order):
        group = kernels.RowGroup(*(np.empty(size, kind) for kind in (np.int64, np.int64, np.int32, np.int64, points.value.dtype, np.int64)))
        filled, j, i = kernels.fill_row_group(order, j, i, 0, start, kept, table, RANK, START, points, group)
        assert filled == size or j == len(order)
        for row in range(filled):
            receive = int(group.receive[row])
            found.append(
                Point(
                    int(group.id[row]),
                    int(group.org[row]),
                    names[group.metric[row]],
                    int(group.time[row]),
                    group.value[row].item(),
                    None if receive == kernels.NO_LAG else receive,
                )
            )
    return found


@quick
@given(rows=rows_of_points)
def test_place_sorts_series_and_keeps_the_greatest_of_duplicates(rows: list[Point]) -> None:
    """Whatever the order of rows; then the staged order, in row groups that cut series."""
    points = naive.without_duplicates(rows)
    found, duplicates = placed(rows)
    assert duplicates == len(rows) - len(points)
    assert found == naive.repartitioned(points, 1)[0]


@quick
@given(seed=st.integers(0, 2**32 - 1), share=st.sampled_from((0.0, 0.02, 0.3, 1.0)), far=st.sampled_from((2, 20, 400)))
def test_a_long_series_is_sorted_however_late_its_rows_are(seed: int, share: float, far: int) -> None:
    """Rows that come a little late are moved to their places; beyond a number of moves the rest is merged."""
    random = np.random.default_rng(seed)
    times = np.arange(400) // random.choice((1, 2))
    late = np.where(random.random(400) < share, random.integers(0, far, 400), 0)
    rows = [
        Point(1, 1, "m", START + int(times[row]), int(random.integers(0, 3)), START + int(times[row] + late[row]))
        for row in np.argsort(times + late, kind="stable")
    ]
    points = naive.without_duplicates(rows)
    found, duplicates = placed(rows)
    assert duplicates == len(rows) - len(points)
    assert found == naive.repartitioned(points, 1)[0]


def test_few_late_rows_are_moved_and_many_merged() -> None:
    """Both ways of the test above."""
    for late, moved in (([*range(2, 100), 1], True), ([*range(99, -1, -1)], False)):
        points = kernels.ShardPoints(*(np.array(late, kind) for kind in (np.int32, np.int32, np.int64, np.int64, np.int32, np.int64)))
        last, row = kernels.insert_late_rows(points, RANK, 0, len(late), True, True)
        assert (row == len(late)) is moved
        assert points.time[: last + 1].tolist() == sorted(late[:row])


@quick
@given(rows=rows_of_points)
def test_place_sorts_doubles(rows: list[Point]) -> None:
    rows = [Point(p.id, p.org_id, p.metric, p.ts, p.value / 3, p.receive) for p in rows]
    assert placed(rows, np.float64)[0] == naive.repartitioned(naive.without_duplicates(rows), 1)[0]


@quick
@given(rows=rows_of_points, cut=st.integers(0, 40))
def test_first_points_are_found_without_sorting(rows: list[Point], cut: int) -> None:
    table, series, _, _ = ingested([rows], 64)
    first = kernels.FirstPoints(
        np.full(series, -1, np.int32),
        np.empty(series, np.int64),
        np.empty(series, np.int64),
        np.empty(series, np.int32),
        np.empty(series, np.int64),
    )
    for part in (rows[:cut], rows[cut:]):
        codes = np.empty(len(part), np.int32)
        kernels.codes_of_ids(np.array([point.id for point in part], np.int64), table, codes)
        kernels.note_first_points(block_of(part), 0, 0, LAG_BASE, codes, RANK, first)
    for series_id, history in naive.series_of(naive.without_duplicates(rows)).items():
        code = table.id[:series].tolist().index(series_id)
        found = (int(first.time[code]) + START, first.value[code], first.org[code], METRICS[first.metric[code]])
        assert found == (history[0].ts, history[0].value, history[0].org_id, history[0].metric)
