"""A naive twin of every kernel that puts rows into shards."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyiceberg.transforms import BucketTransform
from pyiceberg.types import LongType

from rollup_assets.kernels import shards as kernels
from rollup_assets.kernels.columns import NO_LAG
from rollup_assets_tests import naive
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN

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
    array = np.array([NO_LAG if lag is None else lag for lag in lags], np.int64)
    kernels.scatter_lags(array, base, np.arange(len(lags), dtype=np.int32), out)
    assert [None if offset == 0 else offset + base - 1 for offset in out.tolist()] == lags
