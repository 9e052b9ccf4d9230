"""Points of the reference model as the blocks that kernels unpack, and as the columns of a shard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st

from rollup_assets.kernels import series_table
from rollup_assets.kernels.points import Block, ShardPoints
from rollup_assets.kernels.series_table import SeriesTable
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN, Point

START = 1_767_225_600_000
METRICS = ("m", "a", "zz", "b")
LAG_BASE = -100
RANK = np.array([sorted(METRICS).index(name) for name in METRICS], np.int32)
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


def block_of(points: Sequence[Point], dtype: Any = np.int64) -> Block:
    """One block as a map task packs it: bases 0 but for times and lags; lags as offsets from -100."""
    lags = [0 if point.receive is None else point.receive - point.ts + 101 for point in points]
    return Block(
        np.array([point.id for point in points], np.int64),
        np.array([point.ts - START for point in points], np.int32),
        np.array([point.value for point in points], dtype),
        np.array([point.org_id for point in points], np.int64),
        np.array([METRICS.index(point.metric) for point in points], np.uint16),
        np.array(lags, np.int32),
        np.arange(len(METRICS), dtype=np.int32),
    )


def empty_points(rows: int, dtype: Any = np.int64, *, with_dimensions: bool = True, with_code: bool = True) -> ShardPoints:
    dimensions = rows if with_dimensions else 0
    return ShardPoints(
        np.empty(rows if with_code else 0, np.int32),
        np.empty(rows, np.int32),
        np.empty(rows, dtype),
        np.empty(dimensions, np.int64),
        np.empty(dimensions, np.int32),
        np.empty(rows, np.int64),
    )


def ingested(blocks: list[list[Point]], slots: int, *, dtype: Any = np.int64) -> tuple[SeriesTable, int, int, ShardPoints]:
    """All blocks in a table that begins with ``slots`` slots and grows: (table, series, changed, points)."""
    table, points = series_table.new_series_table(slots), empty_points(sum(len(block) for block in blocks), dtype)
    series = changed = row = 0
    for rows in blocks:
        block, done = block_of(rows, dtype), 0
        codes = points.code[row : row + len(rows)]
        while True:
            series, done, more = series_table.ingest(block, 0, 0, LAG_BASE, done, row, series, table, codes, points)
            changed += more
            if done == len(rows):
                break
            table = series_table.grown(table, series)
        row += len(rows)
    return table, series, changed, points
