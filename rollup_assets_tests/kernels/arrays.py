"""Points and partial points of the reference model as the arrays that kernels take, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rollup_assets.kernels import windows
from rollup_assets.kernels.columns import NO_LAG
from rollup_assets.kernels.partial import PartialPoints
from rollup_assets.kernels.points import ShardPoints
from rollup_assets_tests.naive import Partial, Point, State, Value, series_of
from rollup_assets_tests.strategies import METRICS

# Codes are ranks here: kernels that translate or rank are tested with tables of their own.
NAMES = sorted(METRICS, key=str.encode)


def code_of(metric: str) -> int:
    """The rank of a metric."""
    return NAMES.index(metric)


def lag_of(point: Point) -> int:
    """Receive time - logical time, or the code for none."""
    return int(NO_LAG) if point.receive is None else point.receive - point.ts


def in_order(points: Sequence[Point]) -> list[list[Point]]:
    """The series as they are staged: by (metric, org_id, id) of their first point."""
    return sorted(series_of(points).values(), key=lambda history: (code_of(history[0].metric), history[0].org_id, history[0].id))


def int64s(values: Sequence[int]) -> Any:
    """int64[n]."""
    return np.array(values, np.int64)


def shard_points(histories: list[list[Point]], start: int, dtype: Any, *, details: bool) -> ShardPoints:
    """Sorted points, series after series; without dimensions and lags unless ``details``."""
    points = [point for history in histories for point in history]
    known = points if details else []
    return ShardPoints(
        np.empty(0, np.int32),
        np.array([point.ts - start for point in points], np.int32),
        np.array([point.value for point in points], dtype),
        int64s([point.org_id for point in known]),
        np.array([code_of(point.metric) for point in known], np.int32),
        int64s([lag_of(point) for point in known]),
    )


def empty_partial_points(histories: list[list[Point]], levels: int, dtype: Any, *, details: bool) -> PartialPoints:
    """Room for the partial points of some series; id, org and metric are filled in."""
    count = len(histories)
    return PartialPoints(
        int64s([history[0].id for history in histories]),
        int64s([history[0].org_id for history in histories]),
        np.array([code_of(history[0].metric) for history in histories], np.int32),
        np.empty(count, np.int64),
        np.empty(count, dtype),
        np.empty(count, np.int64),
        np.empty(count, dtype),
        np.full((levels, windows.DETAILED_INTEGERS if details else windows.PLAIN_INTEGERS, count), -99, np.int64),
        np.full((levels, windows.PARTIAL_VALUES, count), -99, dtype),
    )


def partial_arrays(partials: dict[int, Partial], resolutions: Sequence[int], dtype: Any) -> PartialPoints:
    """The model's partial points as arrays, with all details."""
    ordered = sorted(partials.values(), key=lambda partial: (code_of(partial.first.metric), partial.first.org_id, partial.first.id))
    out = empty_partial_points([[partial.first] for partial in ordered], len(resolutions), dtype, details=True)
    for j, partial in enumerate(ordered):
        out.first_time[j], out.first_value[j] = partial.first.ts, partial.first.value
        out.last_time[j], out.last_value[j] = partial.last.ts, partial.last.value
        for level, resolution in enumerate(resolutions):
            state = partial.open.get(resolution)
            out.integers[level, :, j] = 0
            out.values[level, :, j] = 0
            if state is None:
                continue
            has_delta = state.delta is not None
            out.integers[level, :, j] = [
                state.count, int(has_delta), state.resets, state.org_id, code_of(state.metric), state.lag_sum, state.lag_count,
            ]  # fmt: skip
            out.values[level, :, j] = [state.sum, state.min, state.max, state.delta if has_delta else 0]
    return out


def state_at(partial: PartialPoints, level: int, j: int, *, details: bool) -> State | None:
    """The open window of series ``j`` at a resolution; None if it has no point. Dimensions are the series' own without ``details``."""
    integers, values = partial.integers[level, :, j].tolist(), partial.values[level, :, j].tolist()
    if integers[windows.COUNT] == 0:
        return None
    latest: Value = partial.last_value[j].item()
    return State(
        org_id=integers[windows.ORG] if details else int(partial.org[j]),
        metric=NAMES[integers[windows.METRIC] if details else partial.metric[j]],
        count=integers[windows.COUNT],
        sum=values[windows.SUM],
        min=values[windows.MIN],
        max=values[windows.MAX],
        latest=latest,
        delta=values[windows.DELTA] if integers[windows.STEPS] else None,
        resets=integers[windows.RESETS],
        lag_sum=integers[windows.LAG_SUM] if details else 0,
        lag_count=integers[windows.LAG_COUNT] if details else 0,
    )
