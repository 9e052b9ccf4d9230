"""The fleet that the generator pretends to watch: services, their instances, and the series that each instance reports.

Every value is a closed formula of the series and the time (plus noise), so any batch can be made without the ones before it,
on any thread, and counters still run through. Files, and rows that are wrong on purpose, stay out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rollup_assets.batches import HOUR_MS, MINUTE_MS

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

SERVICES = (
    "checkout", "payments", "catalog", "search", "cart", "accounts", "auth", "gateway", "inventory", "shipping", "pricing", "reviews",
    "notifications", "billing", "ledger", "reports", "scheduler", "sessions", "media", "webhooks", "audit", "exports", "profiles", "proxy",
)  # fmt: skip


class Metric(NamedTuple):
    """A metric that every instance reports. A counter grows by ``low`` to ``high`` per second; a gauge lies between them."""

    long_name: str
    double_name: str
    double_scale: float
    counter: bool
    low: float
    high: float


METRICS = (
    Metric("http_requests_total", "http_requests_total", 1.0, True, 0.5, 400.0),
    Metric("memory_bytes", "memory_bytes", 1.0, False, 4e7, 8e9),
    Metric("cpu_milliseconds_total", "cpu_seconds_total", 1e-3, True, 5.0, 3_800.0),
    Metric("queue_depth", "queue_depth", 1.0, False, 0.0, 2_000.0),
    Metric("http_response_bytes_total", "http_response_bytes_total", 1.0, True, 900.0, 4e6),
    Metric("open_connections", "open_connections", 1.0, False, 3.0, 900.0),
    Metric("http_errors_total", "http_errors_total", 1.0, True, 0.01, 2.0),
    Metric("request_latency_microseconds", "request_latency_seconds", 1e-6, False, 800.0, 250_000.0),
    Metric("disk_read_bytes_total", "disk_read_bytes_total", 1.0, True, 100.0, 2e7),
    Metric("disk_used_bytes", "disk_used_ratio", 1e-12, False, 5e9, 9e11),
    Metric("network_receive_bytes_total", "network_receive_bytes_total", 1.0, True, 2_000.0, 5e6),
    Metric("threads", "load_average", 1e-2, False, 8.0, 300.0),
    Metric("gc_pause_milliseconds_total", "gc_pause_seconds_total", 1e-3, True, 0.2, 40.0),
    Metric("clock_offset_microseconds", "clock_offset_seconds", 1e-6, False, -2_500.0, 2_500.0),
    Metric("cache_hits_total", "cache_hits_total", 1.0, True, 2.0, 9_000.0),
    Metric("cache_entries", "cache_entries", 1.0, False, 100.0, 2e6),
    Metric("db_queries_total", "db_queries_total", 1.0, True, 0.3, 800.0),
    Metric("heap_bytes", "heap_ratio", 1e-10, False, 1e7, 6e9),
    Metric("messages_consumed_total", "messages_consumed_total", 1.0, True, 0.1, 5_000.0),
    Metric("replication_lag_milliseconds", "replication_lag_seconds", 1e-3, False, 0.0, 9_000.0),
)

# Instances whose scrapes fall on whole intervals, as Prometheus' do with one scraper; the others have an offset of their own.
_ALIGNED = 0.4
# An unaligned series' offset in the interval and its jitter, as shares of the interval: together below 1, so a point never leaves it.
_OFFSET, _JITTER = 0.8, 0.15
_MISSED_SCRAPES = 0.002
_WITHOUT_RECEIVE_TIME = 0.125


class Points(NamedTuple):
    """Points in order of arrival; all arrays have one entry a point."""

    series: NDArray[np.int32]
    """Index of the series in the fleet."""
    timestamp: Integers
    """UTC epoch milliseconds."""
    value: Integers | Floats
    delay: Integers
    """Receive time minus logical time in ms; -1 where the instance does not report one."""

    def taken(self, rows: NDArray[Any]) -> Points:
        """Some of the points, by row number or mask."""
        return Points(*(column[rows] for column in self))

    @classmethod
    def joined(cls, parts: Sequence[Points]) -> Points:
        """All points of all parts, one part after the other."""
        columns: list[NDArray[Any]] = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return cls(*columns)


@dataclass(frozen=True)
class Fleet:
    """All series, as arrays with one entry a series or an instance."""

    ids: Integers
    org_ids: Integers
    metric_codes: NDArray[np.int32]
    """Index into ``metrics``."""
    metrics: tuple[str, ...]
    interval: int
    long_values: bool
    _instance: NDArray[np.int64]
    _base: Floats
    _rate: Floats
    _amplitude: Floats
    _frequency: Floats
    _phase: Floats
    _noise: Floats
    _floor: Floats
    _scale: Floats
    _offset: Integers
    _jitter: Integers
    _restart_period: Integers
    _restart_phase: Integers
    _cycles: tuple[tuple[Integers, Integers, Integers], ...]
    _stamps: Mask

    @classmethod
    def build(cls, *, seed: int, series: int, interval: int, value_type: str) -> Fleet:
        """The fleet of a seed. ``interval`` is the scrape interval in ms; ``value_type`` is ``long`` or ``double``."""
        number = np.arange(series, dtype=np.uint64)
        metric = (number % np.uint64(len(METRICS))).astype(np.int64)
        instance = (number // np.uint64(len(METRICS))).astype(np.int64)
        instances = int(instance[-1]) + 1
        service = instance % len(SERVICES)
        draw = _Draws(seed, np.arange(instances, dtype=np.uint64))
        own = _Draws(seed, number)

        counter = np.array([entry.counter for entry in METRICS])[metric]
        low, high = np.array([entry.low for entry in METRICS])[metric], np.array([entry.high for entry in METRICS])[metric]
        # Real series differ by orders of magnitude: squaring makes small ones more frequent.
        level = low + (high - low) * own.uniform("level") ** 2
        rate = np.where(counter, level, 0.0)
        frequency = 2 * np.pi / (300.0 + 6_900.0 * own.uniform("frequency"))
        # amplitude * frequency + noise / interval stays below the rate: a counter only falls when its instance restarts.
        amplitude = np.where(counter, 0.5 * rate / frequency, np.minimum(level - low, high - level) * 0.5)
        noise = np.where(counter, 0.2 * rate * interval / 1_000, (high - low) * 0.002)

        aligned = draw.uniform("aligned") < _ALIGNED
        offset = np.where(aligned, 0, draw.uniform("offset") * _OFFSET * interval).astype(np.int64)
        jitter = np.where(aligned, 0, max(1, int(_JITTER * interval)))
        names, codes = np.unique(service * len(METRICS) + metric, return_inverse=True)
        return cls(
            ids=own.words("id").astype(np.int64),
            # A few large tenants and many small ones.
            org_ids=(1_001 + np.floor(60 * draw.uniform("org") ** 3).astype(np.int64))[instance],
            metric_codes=codes.astype(np.int32),
            metrics=tuple(_metric_name(int(name), value_type) for name in names),
            interval=interval,
            long_values=value_type == "long",
            _instance=instance,
            _base=np.where(counter, 0.0, level),
            _rate=rate,
            _amplitude=amplitude,
            _frequency=frequency,
            _phase=2 * np.pi * own.uniform("phase"),
            _noise=noise,
            _floor=np.where(counter, 0.0, low),
            _scale=np.array([1.0 if value_type == "long" else entry.double_scale for entry in METRICS])[metric],
            _offset=offset[instance],
            _jitter=jitter[instance],
            _restart_period=_restart_periods(draw),
            _restart_phase=(draw.uniform("restart phase") * 72 * HOUR_MS).astype(np.int64),
            _cycles=(_life_cycles(draw), _outages(draw)),
            _stamps=(draw.uniform("stamps") >= _WITHOUT_RECEIVE_TIME)[instance],
        )

    def __len__(self) -> int:
        return len(self.ids)

    def points(self, first_tick: int, ticks: int, series: slice, rng: np.random.Generator) -> Points:
        """The points that ``series`` report at ``ticks`` scrapes from ``first_tick`` (epoch ms) on, scrape by scrape.

        Each point lies in ``[its tick, its tick + interval)``.
        """
        tick = first_tick + self.interval * np.arange(ticks, dtype=np.int64)
        instances = slice(int(self._instance[series.start]), int(self._instance[series.stop - 1]) + 1)
        instance = self._instance[series] - instances.start
        present = np.ones((ticks, instances.stop - instances.start), dtype=np.bool_)
        for period, length, phase in self._cycles:
            present &= (tick[:, None] + phase[instances]) % period[instances] < length[instances]
        uptime = (tick[:, None] + self._restart_phase[instances]) % self._restart_period[instances]

        shape = (ticks, len(instance))
        within = self._offset[series] + (rng.random(shape, dtype=np.float32) * self._jitter[series].astype(np.float32)).astype(np.int64)
        seconds = (uptime[:, instance] + within) / 1_000.0
        value = self._wave(seconds, series)
        value += rng.random(shape, dtype=np.float32) * self._noise[series].astype(np.float32)
        value += self._base[series]
        np.maximum(value, self._floor[series], out=value)

        there = present[:, instance]
        there &= rng.random(shape, dtype=np.float32) >= _MISSED_SCRAPES
        # Series are not always scraped in the same order: where a round begins changes from scrape to scrape.
        order = _rotated(shape, rng)
        order = order[there.ravel()[order]]
        column = order % shape[1]
        stamps = self._stamps[series][column]
        delay = 15 + (rng.standard_exponential(len(order), dtype=np.float32) * 180).astype(np.int64)
        taken = value.ravel()[order]
        return Points(
            series=(column + series.start).astype(np.int32),
            timestamp=(within + tick[:, None]).ravel()[order],
            value=np.floor(taken).astype(np.int64) if self.long_values else taken * self._scale[series][column],
            delay=np.where(stamps, delay, -1),
        )

    def _wave(self, seconds: Floats, series: slice) -> Floats:
        """Steady growth (counters) and a slow wave (all), at ``seconds`` since the restart."""
        # float32 makes the sine four times as fast; its error is far below the noise.
        angle = (seconds * self._frequency[series] + self._phase[series]).astype(np.float32)
        wave = np.sin(angle).astype(np.float64)
        wave -= np.where(self._rate[series] > 0, np.sin(self._phase[series].astype(np.float32)), 0.0)
        wave *= self._amplitude[series]
        wave += seconds * self._rate[series]
        return wave


class _Draws:
    """Independent random numbers per entry and purpose, the same for every length: a larger fleet contains the smaller one."""

    def __init__(self, seed: int, number: NDArray[np.uint64]) -> None:
        self._seed = seed
        self._number = number

    def words(self, purpose: str) -> NDArray[np.uint64]:
        """64 random bits each; distinct for distinct entries of one purpose."""
        key = _mix(np.array([self._seed % 2**64], dtype=np.uint64))
        for byte in purpose.encode():
            key = _mix(key + np.uint64(byte))
        return _mix(self._number * np.uint64(0x9E3779B97F4A7C15) + key)

    def uniform(self, purpose: str) -> Floats:
        """Uniform in [0, 1)."""
        return (self.words(purpose) >> np.uint64(11)).astype(np.float64) / 2**53


def _mix(word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finalizer of splitmix64: a bijection, so distinct words stay distinct."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))


def _metric_name(code: int, value_type: str) -> str:
    service, metric = divmod(code, len(METRICS))
    return f"{SERVICES[service]}.{METRICS[metric].long_name if value_type == 'long' else METRICS[metric].double_name}"


def _restart_periods(draw: _Draws) -> Integers:
    """Milliseconds between an instance's restarts: hours to days, but minutes for one instance in twelve."""
    length = (2 + 70 * draw.uniform("restart period")) * HOUR_MS
    looping = draw.uniform("crash loop") < 1 / 12
    return np.where(looping, (7 + 40 * draw.uniform("restart period")) * MINUTE_MS, length).astype(np.int64)


def _life_cycles(draw: _Draws) -> tuple[Integers, Integers, Integers]:
    """Period, length and phase in ms of an instance's presence: most stay, some come and go for hours, a few live for minutes."""
    kind, size = draw.uniform("life"), draw.uniform("life length")
    period = ((1 + 7 * draw.uniform("life period")) * HOUR_MS).astype(np.int64)
    length = np.where(kind < 0.84, period, np.where(kind < 0.95, period * (0.3 + 0.6 * size), (3 + 20 * size) * MINUTE_MS)).astype(np.int64)
    return period, length, (draw.uniform("life phase") * 8 * HOUR_MS).astype(np.int64)


def _outages(draw: _Draws) -> tuple[Integers, Integers, Integers]:
    """Period, length and phase in ms of the times in which an instance has no outage; outages take 20 s to 8 min."""
    period = ((0.7 + 6 * draw.uniform("gap period")) * HOUR_MS).astype(np.int64)
    gap = (20_000 + 460_000 * draw.uniform("gap length") ** 2).astype(np.int64)
    return period, period - gap, (draw.uniform("gap phase") * 7 * HOUR_MS).astype(np.int64)


def _rotated(shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.int64]:
    """Flat indices of a matrix, row by row, each row beginning at a random column."""
    rows, columns = shape
    start = rng.integers(0, columns, size=(rows, 1))
    column = np.arange(columns, dtype=np.int64) + start
    column[column >= columns] -= columns
    column += np.arange(rows, dtype=np.int64)[:, None] * columns
    return column.ravel()
