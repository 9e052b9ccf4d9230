"""What the generated series look like."""

import numpy as np
import pytest

from rollup_assets.generator.fleet import METRICS, Fleet

HOUR = 3_600_000
START = 1_767_225_600_000


def fleet(series: int = 400, seed: int = 1, value_type: str = "long", interval: int = 10_000) -> Fleet:
    return Fleet.build(seed=seed, series=series, interval=interval, value_type=value_type)


def points(of: Fleet, hours: int = 1):
    return of.points(START, hours * HOUR // of.interval, slice(0, len(of)), np.random.default_rng(0))


def test_ids_are_distinct_and_spread_over_the_whole_range() -> None:
    ids = fleet(20_000).ids
    assert len(np.unique(ids)) == 20_000
    assert (ids < 0).mean() == pytest.approx(0.5, abs=0.05)
    assert abs(ids.astype(np.float64)).max() > 2**62


def test_a_larger_fleet_contains_the_smaller_one() -> None:
    small, large = fleet(100), fleet(1_000)
    assert (large.ids[:100] == small.ids).all()
    assert (large.org_ids[:100] == small.org_ids).all()


def test_another_seed_watches_other_series() -> None:
    assert not np.isin(fleet(seed=1).ids, fleet(seed=2).ids).any()


def test_some_points_lie_exactly_on_window_boundaries_and_others_are_jittered() -> None:
    found = points(fleet())
    assert (found.timestamp % 60_000 == 0).mean() > 0.01
    assert (found.timestamp % 10_000 != 0).mean() > 0.3
    assert (found.timestamp == START).any()


def test_every_point_lies_in_its_own_scrape_interval() -> None:
    """Otherwise a point could leave its batch, or two scrapes of a series share a timestamp."""
    found = points(fleet())
    key = np.stack([found.series, (found.timestamp - START) // 10_000])
    assert np.unique(key, axis=1).shape[1] == len(found.timestamp)
    assert found.timestamp.min() >= START
    assert found.timestamp.max() < START + HOUR


def test_counters_grow_and_fall_only_when_their_instance_restarts() -> None:
    """All counters of an instance are reset by the same scrape; gauges move both ways."""
    of = fleet(2_000)
    found = points(of, hours=3)
    counter = np.array([metric.counter for metric in METRICS])[found.series % len(METRICS)]
    order = np.lexsort((found.timestamp, found.series))
    same = found.series[order][1:] == found.series[order][:-1]
    falls = same & (np.diff(found.value[order]) < 0)
    is_counter = counter[order][1:]
    resets = falls & is_counter
    assert 0 < resets.sum() < 0.01 * (same & is_counter).sum()
    assert (falls & ~is_counter).sum() > 0.2 * (same & ~is_counter).sum()
    instance = found.series[order][1:] // len(METRICS)
    tick = (found.timestamp[order][1:] - START) // of.interval
    events = np.unique(np.stack([instance[resets], tick[resets]]), axis=1).shape[1]
    assert resets.sum() > 3 * events


def test_series_have_gaps_and_some_come_and_go() -> None:
    of = fleet(4_000)
    found = points(of, hours=3)
    counts = np.bincount(found.series, minlength=len(of))
    assert (counts == 0).any()
    assert ((counts > 0) & (counts < 540)).any()
    assert (counts > 1_000).mean() > 0.5
    order = np.lexsort((found.timestamp, found.series))
    gaps = np.diff(found.timestamp[order])[np.diff(found.series[order]) == 0]
    assert (gaps > 20_000).any()
    assert (gaps > HOUR).any()


def test_some_instances_do_not_report_a_receive_time() -> None:
    found = points(fleet(2_000))
    assert 0.02 < (found.delay < 0).mean() < 0.3
    assert found.delay[found.delay >= 0].min() > 0


def test_long_and_double_values_name_their_units() -> None:
    assert "checkout.cpu_milliseconds_total" in fleet().metrics
    doubles = fleet(value_type="double")
    assert "checkout.cpu_seconds_total" in doubles.metrics
    assert points(doubles).value.dtype == np.float64
    assert (points(doubles).value % 1 != 0).any()


def test_values_are_the_same_however_the_hours_are_cut() -> None:
    """Without noise a scrape depends on its time alone, so counters run through from batch to batch."""
    of = fleet(200)
    object.__setattr__(of, "_noise", np.zeros(200))
    object.__setattr__(of, "_jitter", np.zeros(200, dtype=np.int64))
    whole = points(of, hours=2)
    parts = [of.points(START + hour * HOUR, 360, slice(0, 200), np.random.default_rng(hour)) for hour in range(2)]
    expected = {(s, t): v for s, t, v in zip(whole.series, whole.timestamp, whole.value, strict=True)}
    seen = [(s, t, v) for part in parts for s, t, v in zip(part.series, part.timestamp, part.value, strict=True)]
    assert sum((s, t) in expected for s, t, _ in seen) > 0.95 * len(seen)
    assert all(expected.get((s, t), v) == v for s, t, v in seen)
