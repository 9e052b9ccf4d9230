"""Row groups of sorted points, filled one after the other from the series of a shard."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rollup_assets.kernels.columns import NO_LAG
from rollup_assets.kernels.compiling import Array, kernel
from rollup_assets.kernels.points import ShardPoints, SortedSeries


class RowGroup(NamedTuple):
    """Columns of one row group of sorted points, as the stage holds them."""

    id: Array  # int64[capacity]
    org: Array  # int64
    metric: Array  # int32, the file's code of the metric
    time: Array  # int64, epoch ms
    value: Array  # int64 | float64
    receive: Array  # int64, epoch ms, NO_LAG: none; length 0 if unknown for the whole shard


@kernel
def fill_row_group(
    series: SortedSeries, j: int, i: int, filled: int, codes: Array, batch_start: int, points: ShardPoints, out: RowGroup
) -> tuple[int, int, int]:
    """Append sorted points to ``out`` from row ``filled`` on, beginning at point i of the j-th series.

    ``series.metric``: codes in ``out``; codes int32: those of the points' own metrics, if they have any; batch_start in epoch ms: the
    points' times are relative to it.

    Stops when ``out`` is full or the series end. Returns (rows filled, j, i).
    """
    ids, series_org, series_metric, start, kept = series
    _, times, values, orgs, metrics, lags = points
    out_id, out_org, out_metric, out_time, out_value, out_receive = out
    capacity = len(out_id)
    with_dimensions = len(orgs) > 0
    with_lag = len(lags) > 0
    keep_receive = len(out_receive) > 0
    while j < len(ids) and filled < capacity:
        count = min(kept[j] - i, capacity - filled)
        source = start[j] + i
        id_ = ids[j]
        org = series_org[j]
        metric = series_metric[j]
        for q in range(count):
            target = np.uint64(filled + q)
            of = np.uint64(source + q)
            out_id[target] = id_
            out_time[target] = batch_start + times[of]
            out_value[target] = values[of]
            out_org[target] = orgs[of] if with_dimensions else org
            out_metric[target] = codes[metrics[of]] if with_dimensions else metric
        if keep_receive:
            for q in range(count):
                lag = lags[source + q] if with_lag else NO_LAG
                out_receive[filled + q] = NO_LAG if lag == NO_LAG else batch_start + times[source + q] + lag
        filled += count
        i += count
        if i >= kept[j]:
            j += 1
            i = 0
    return filled, j, i
