"""What the numbers mean, in the plainest Python there is: the reference that the product is compared with.

Lists, dicts and exact ints; written from the definitions alone and for the eye, not for speed. Two independent formulations:

- over the whole history (`rollups_of`): no batch is mentioned, so it cannot get a batch boundary wrong;
- batch by batch (`partial_points_of`, `rollups_of_batch`): the order of operations that doubles are defined by.

For int64 both give the same rows, which `test_naive.py` shows. Files, column types and shards' bytes stay out.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

Value = int | float
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
MOST_LAG = 36_525 * 24 * 3_600_000

# ---------------------------------------------------------------------------------------------------------------- points


@dataclass(frozen=True)
class RawRow:
    """A row of a raw file, anything may be missing. Times are UTC epoch milliseconds."""

    id: int | None
    org_id: int | None
    metric: str | None
    ts: int | None
    value: Value | None
    receive: int | None = None


@dataclass(frozen=True)
class Point:
    """An accepted datapoint."""

    id: int
    org_id: int
    metric: str
    ts: int
    value: Value
    receive: int | None = None


@dataclass(frozen=True)
class Quarantined:
    """A row that was refused: why, and where it stands."""

    reason: str
    file: str
    row_number: int
    row: RawRow


@dataclass(frozen=True)
class Accepted:
    """What becomes of the rows of one batch. ``points`` in (id, ts) order."""

    points: list[Point]
    duplicates: int
    quarantined: list[Quarantined]
    elsewhere: int = 0


def reason_to_quarantine(row: RawRow, start: int, end: int, future: int | None = None) -> str | None:
    """The first reason that applies to a row of batch [start, end); None for a good row. ``future``: see ``ROLLUP_RAW_FUTURE``."""
    reason = reason_whatever_the_time(row)
    if reason is not None:
        return reason
    assert row.ts is not None
    if future is not None and row.ts >= end + future:
        return "in_future"
    return None if start <= row.ts < end else "outside_batch"


def reason_whatever_the_time(row: RawRow) -> str | None:
    """The first reason that applies to a row in any batch."""
    if row.id is None:
        return "null_id"
    if row.ts is None:
        return "null_timestamp"
    if row.value is None:
        return "null_value"
    if not math.isfinite(row.value):
        return "non_finite_value"
    if row.org_id is None or row.metric is None:
        return "null_dimension"
    return None


def point_of(row: RawRow) -> Point:
    """The point of a good row; -0.0 is 0.0, and a receive time more than 100 years from its own is none."""
    assert row.id is not None
    assert row.org_id is not None
    assert row.metric is not None
    assert row.ts is not None
    assert row.value is not None
    value = 0.0 if row.value == 0 and isinstance(row.value, float) else row.value
    receive = None if row.receive is None or abs(row.receive - row.ts) > MOST_LAG else row.receive
    return Point(row.id, row.org_id, row.metric, row.ts, value, receive)


def precedence(point: Point) -> tuple[Value, str, int, bool, int]:
    """Of several points with the same id and timestamp, the one with the greatest precedence stays; a missing receive time is least."""
    return (point.value, point.metric, point.org_id, point.receive is not None, point.receive or 0)


def without_duplicates(points: Iterable[Point]) -> list[Point]:
    """One point for each (id, timestamp), sorted by both."""
    best: dict[tuple[int, int], Point] = {}
    for point in points:
        key = (point.id, point.ts)
        if key not in best or precedence(point) > precedence(best[key]):
            best[key] = point
    return [best[key] for key in sorted(best)]


def accept(files: dict[str, Sequence[RawRow]], start: int, end: int, future: int | None = None) -> Accepted:
    """Every row of batch [start, end) is accepted, a duplicate or quarantined."""
    good: list[Point] = []
    quarantined: list[Quarantined] = []
    for file, rows in sorted(files.items()):
        for row_number, row in enumerate(rows):
            reason = reason_to_quarantine(row, start, end, future)
            if reason is None:
                good.append(point_of(row))
            else:
                quarantined.append(Quarantined(reason, file, row_number, row))
    points = without_duplicates(good)
    return Accepted(points, len(good) - len(points), quarantined)


@dataclass(frozen=True)
class Arrival:
    """A landing zone by arrival time: batches of ``length`` ms from ``first`` on.

    Points come up to ``lateness`` folders after their own, or up to ``future`` ms before their folder ends.
    """

    first: int
    length: int
    lateness: int
    future: int = 0

    def fate(self, row: RawRow, folder: int) -> str | int:
        """What becomes of a row in the folder of the batch that begins at ``folder``: a reason, or the batch whose point it is."""
        reason = reason_whatever_the_time(row)
        if reason is not None:
            return reason
        assert row.ts is not None
        batch = self.first + (row.ts - self.first) // self.length * self.length
        if batch < self.first:
            return "before_start"
        if batch < folder - self.lateness * self.length:
            return "too_late"
        if row.ts >= folder + self.length + self.future:
            return "in_future"
        return batch

    def reads(self, batch: int, folder: int) -> bool:
        """Whether a batch has to look into a folder, since a point of it may be there."""
        last_moment = folder + self.length + self.future - 1
        return batch <= folder <= batch + self.lateness * self.length or (folder < batch <= last_moment)

    def accept(self, folders: dict[int, dict[str, Sequence[RawRow]]], batch: int) -> Accepted:
        """Every row that a batch reads is accepted, a duplicate, quarantined (in its own folder) or elsewhere."""
        good: list[Point] = []
        quarantined: list[Quarantined] = []
        elsewhere = 0
        for folder, files in folders.items():
            for file, rows in files.items() if self.reads(batch, folder) else ():
                for row_number, row in enumerate(rows):
                    fate = self.fate(row, folder)
                    if fate == batch:
                        good.append(point_of(row))
                    elif isinstance(fate, str) and folder == batch:
                        quarantined.append(Quarantined(fate, file, row_number, row))
                    else:
                        elsewhere += 1
        points = without_duplicates(good)
        return Accepted(points, len(good) - len(points), quarantined, elsewhere)


def floored_to_ms(ticks: int, ticks_per_ms: int) -> int:
    """Milliseconds of a finer timestamp: floored, also before 1970."""
    return ticks // ticks_per_ms


def series_of(points: Iterable[Point]) -> dict[int, list[Point]]:
    """The points of each series in time order."""
    series: dict[int, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.ts):
        series.setdefault(point.id, []).append(point)
    return series


# ----------------------------------------------------------------------------------------------------- windows and steps


def label_of(ts: int, resolution: int) -> int:
    """The window (label - resolution, label] that contains ``ts``."""
    return -(-ts // resolution) * resolution


@dataclass(frozen=True)
class Step:
    """The way from one point of a series to the next."""

    delta: Value
    reset: bool


def step(p: Point, q: Point, lookback: int) -> Step | None:
    """The step from p to q; None if they are too far apart."""
    if q.ts - p.ts > lookback:
        return None
    if q.value >= p.value:
        return Step(q.value - p.value, reset=False)
    return Step(q.value, reset=True)


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    id: int
    org_id: int
    metric: str
    resolution: int
    label: int
    count: int
    sum: Value
    min: Value
    max: Value
    average: float
    latest: Value
    delta: Value | None
    resets: int
    rate: float | None
    lag: float | None


Key = tuple[int, int, int]  # id, resolution, label
Rows = dict[Key, Row]


def rollups_of(points: Iterable[Point], resolutions: Sequence[int], lookback: int) -> Rows:
    """Every row that accepted points make, whatever batches they come in. Doubles: up to rounding."""
    rows: Rows = {}
    for series, history in series_of(points).items():
        steps = [None, *(step(p, q, lookback) for p, q in itertools.pairwise(history))]
        for resolution in resolutions:
            for label in sorted({label_of(point.ts, resolution) for point in history}):
                inside = [(point, way) for point, way in zip(history, steps, strict=True) if label_of(point.ts, resolution) == label]
                here = [point for point, _ in inside]
                ways = [way for _, way in inside if way is not None]
                values = [point.value for point in here]
                lags = [point.receive - point.ts for point in here if point.receive is not None]
                delta = sum(way.delta for way in ways) if ways else None
                rows[series, resolution, label] = Row(
                    id=series,
                    org_id=here[0].org_id,
                    metric=here[0].metric,
                    resolution=resolution,
                    label=label,
                    count=len(here),
                    sum=sum(values),
                    min=min(values),
                    max=max(values),
                    average=float(sum(values)) / len(here),
                    latest=here[-1].value,
                    delta=delta,
                    resets=sum(way.reset for way in ways),
                    rate=None if delta is None else float(delta) / (resolution / 1000),
                    lag=float(sum(lags)) / len(lags) if lags else None,
                )
    return rows


# --------------------------------------------------------------------------------------------------------- batch by batch


@dataclass(frozen=True)
class State:
    """What is known of a window: everything a row needs, mergeable. ``org_id`` and ``metric`` are those of its first point."""

    org_id: int
    metric: str
    count: int
    sum: Value
    min: Value
    max: Value
    latest: Value
    delta: Value | None
    resets: int
    lag_sum: int
    lag_count: int


def state_of(point: Point, way: Step | None) -> State:
    """A window with one point in it, and the step into that point."""
    return State(
        org_id=point.org_id,
        metric=point.metric,
        count=1,
        sum=point.value,
        min=point.value,
        max=point.value,
        latest=point.value,
        delta=None if way is None else way.delta,
        resets=0 if way is None else int(way.reset),
        lag_sum=0 if point.receive is None else point.receive - point.ts,
        lag_count=0 if point.receive is None else 1,
    )


def added(a: Value | None, b: Value | None) -> Value | None:
    """The sum; null only if both are."""
    if a is None:
        return b
    if b is None:
        return a
    return a + b


def fold(earlier: State | None, later: State) -> State:
    """Two parts of a window, in time order, as one."""
    if earlier is None:
        return later
    return State(
        org_id=earlier.org_id,
        metric=earlier.metric,
        count=earlier.count + later.count,
        sum=earlier.sum + later.sum,
        min=min(earlier.min, later.min),
        max=max(earlier.max, later.max),
        latest=later.latest,
        delta=added(earlier.delta, later.delta),
        resets=earlier.resets + later.resets,
        lag_sum=earlier.lag_sum + later.lag_sum,
        lag_count=earlier.lag_count + later.lag_count,
    )


def with_step(state: State, way: Step | None) -> State:
    """The window when the step into its first point has become known."""
    if way is None:
        return state
    return replace(state, delta=added(state.delta, way.delta), resets=state.resets + int(way.reset))


def row_of(series: int, resolution: int, label: int, state: State) -> Row:
    """The row of a finished window."""
    return Row(
        id=series,
        org_id=state.org_id,
        metric=state.metric,
        resolution=resolution,
        label=label,
        count=state.count,
        sum=state.sum,
        min=state.min,
        max=state.max,
        average=float(state.sum) / state.count,
        latest=state.latest,
        delta=state.delta,
        resets=state.resets,
        rate=None if state.delta is None else float(state.delta) / (resolution / 1000),
        lag=float(state.lag_sum) / state.lag_count if state.lag_count else None,
    )


Windows = dict[tuple[int, int], State]  # resolution, label


def windows_of(history: Sequence[Point], into_first: Step | None, resolutions: Sequence[int], lookback: int) -> Windows:
    """All windows that the points of one series and batch make.

    The finest from the points in time order, each coarser one from the next finer ones in time order.
    ``into_first`` is the step into the first point, None if there is none or it is not to be counted.
    """
    windows: Windows = {}
    finest = resolutions[0]
    before: Point | None = None
    for point in history:
        way = into_first if before is None else step(before, point, lookback)
        key = (finest, label_of(point.ts, finest))
        windows[key] = fold(windows.get(key), state_of(point, way))
        before = point
    for finer, coarser in itertools.pairwise(resolutions):
        for label in sorted(label for resolution, label in windows if resolution == finer):
            key = (coarser, label_of(label, coarser))
            windows[key] = fold(windows.get(key), windows[finer, label])
    return windows


@dataclass(frozen=True)
class Partial:
    """What a batch leaves open of one series: its first and last point, and per resolution the window labelled with the batch's end.

    A resolution without a point in that window is not in ``open``. The step into ``first`` is in none of them.
    """

    first: Point
    last: Point
    open: dict[int, State]


def partial_points_of(points: Iterable[Point], end: int, resolutions: Sequence[int], lookback: int) -> dict[int, Partial]:
    """``partial_points[t]`` of the accepted points of batch t, which ends at ``end``."""
    partials = {}
    for series, history in series_of(points).items():
        windows = windows_of(history, None, resolutions, lookback)
        partials[series] = Partial(
            history[0], history[-1], {resolution: state for (resolution, label), state in windows.items() if label == end}
        )
    return partials


def rollups_of_batch(
    points: Iterable[Point],
    partials: dict[int, Partial],
    before: dict[int, Partial],
    start: int,
    end: int,
    resolutions: Sequence[int],
    lookback: int,
) -> Rows:
    """``rollups[t]``: the rows with labels in [start, end), from batch t's accepted points, ``partial_points`` of t-1 and of t-2."""
    batch = series_of(points)
    rows: Rows = {}
    for series in batch.keys() | partials.keys():
        history = batch.get(series, [])
        previous = partials.get(series)
        open_windows: dict[int, State] = {}
        if previous is not None:
            into_previous = step(before[series].last, previous.first, lookback) if series in before else None
            for resolution, state in previous.open.items():
                contains_first = previous.first.ts > start - resolution
                open_windows[resolution] = with_step(state, into_previous) if contains_first else state
        into_first = step(previous.last, history[0], lookback) if previous is not None and history else None
        own = history
        into_own = into_first
        if history and history[0].ts == start:
            for resolution in resolutions:
                open_windows[resolution] = fold(open_windows.get(resolution), state_of(history[0], into_first))
            own = history[1:]
            into_own = step(history[0], own[0], lookback) if own else None
        for resolution, state in open_windows.items():
            rows[series, resolution, start] = row_of(series, resolution, start, state)
        for (resolution, label), state in windows_of(own, into_own, resolutions, lookback).items():
            if label < end:
                rows[series, resolution, label] = row_of(series, resolution, label, state)
    return rows


def rollups_batch_by_batch(
    points: Sequence[Point], first: int, count: int, length: int, resolutions: Sequence[int], lookback: int
) -> list[Rows]:
    """``rollups[t]`` of ``count`` batches of ``length`` from ``first`` on; ``points`` are accepted, others are not looked at."""
    partials: list[dict[int, Partial]] = [{}, {}]
    published = []
    for start in range(first, first + count * length, length):
        inside = [point for point in points if start <= point.ts < start + length]
        published.append(rollups_of_batch(inside, partials[-1], partials[-2], start, start + length, resolutions, lookback))
        partials.append(partial_points_of(inside, start + length, resolutions, lookback))
    return published


# ---------------------------------------------------------------------------------------------------------------- overflow


def fits(number: Value | None) -> bool:
    """Whether int64 holds the number (any float, and null, does no harm)."""
    return not isinstance(number, int) or INT64_MIN <= number <= INT64_MAX


def overflows(points: Iterable[Point], resolutions: Sequence[int], lookback: int) -> set[Key]:
    """Windows whose result cannot be stored: sum, delta or a step of it does not fit int64. Any of them is an error."""
    points = list(points)
    found = {key for key, row in rollups_of(points, resolutions, lookback).items() if not (fits(row.sum) and fits(row.delta))}
    for series, history in series_of(points).items():
        for p, q in itertools.pairwise(history):
            way = step(p, q, lookback)
            if way is not None and not fits(way.delta):
                found |= {(series, resolution, label_of(q.ts, resolution)) for resolution in resolutions}
    return found


def may_overflow(points: Iterable[Point], resolutions: Sequence[int], lookback: int) -> bool:
    """Whether some order of adding up a window leaves int64 on the way; if not, an overflow error is a false alarm."""
    points = list(points)
    for history in series_of(points).values():
        ways = [step(p, q, lookback) for p, q in itertools.pairwise(history)]
        for resolution in resolutions:
            for label in {label_of(point.ts, resolution) for point in history}:
                values = [point.value for point in history if label_of(point.ts, resolution) == label]
                deltas = [
                    way.delta for way, q in zip(ways, history[1:], strict=True) if way is not None and label_of(q.ts, resolution) == label
                ]
                for terms in (values, deltas):
                    highest, lowest = sum(term for term in terms if term > 0), sum(term for term in terms if term < 0)
                    if not (fits(highest) and fits(lowest)):
                        return True
    return False


# ------------------------------------------------------------------------------------------------------- shards and order


def _mixed(word: int) -> int:
    word = word * 0xCC9E2D51 & 0xFFFFFFFF
    word = (word << 15 | word >> 17) & 0xFFFFFFFF
    return word * 0x1B873593 & 0xFFFFFFFF


def bucket_of(series: int, buckets: int) -> int:
    """Iceberg's ``bucket(buckets, id)``: murmur3 x86 32 bit, seed 0, of the id's eight little-endian bytes."""
    unsigned = series & 0xFFFFFFFFFFFFFFFF
    hashed = 0
    for word in (unsigned & 0xFFFFFFFF, unsigned >> 32):
        hashed ^= _mixed(word)
        hashed = (hashed << 13 | hashed >> 19) & 0xFFFFFFFF
        hashed = (hashed * 5 + 0xE6546B64) & 0xFFFFFFFF
    hashed ^= 8
    hashed ^= hashed >> 16
    hashed = hashed * 0x85EBCA6B & 0xFFFFFFFF
    hashed ^= hashed >> 13
    hashed = hashed * 0xC2B2AE35 & 0xFFFFFFFF
    hashed ^= hashed >> 16
    return (hashed & 0x7FFFFFFF) % buckets


def repartitioned(points: Iterable[Point], shards: int) -> dict[int, list[Point]]:
    """Accepted points as they are staged.

    One list per shard that has any: series by (metric, org_id, id) of their first point, each series' points together and in time order.
    """
    staged: dict[int, list[Point]] = {}
    histories = series_of(points).values()
    for history in sorted(histories, key=lambda history: (history[0].metric.encode(), history[0].org_id, history[0].id)):
        staged.setdefault(bucket_of(history[0].id, shards), []).extend(history)
    return staged


def table_order(row: Row, shards: int) -> tuple[int, bytes, int, int, int]:
    """How rows of one resolution are ordered in the table's files."""
    return (bucket_of(row.id, shards), row.metric.encode(), row.org_id, row.id, row.label)
