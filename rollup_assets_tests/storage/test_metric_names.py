"""Names that are told: each bucket's reader knows those of all rows that it gets, is told none twice, and of many only its own."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollup_assets.storage import metric_names
from rollup_assets.storage.metric_names import SentNames


@given(
    few=st.sampled_from((0, 3, 1024)),
    blocks=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 4), st.lists(st.integers(0, 30), min_size=1, max_size=8)), max_size=30),
)
def test_a_reader_is_told_every_name_of_its_rows_once(few: int, blocks: list[tuple[int, int, list[int]]]) -> None:
    """Whichever buckets get rows, and whenever names become more."""
    names: list[str] = []
    sent = SentNames(3)
    known: list[list[int]] = [[], [], []]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric_names, "_FEW", few)
        for bucket, more, used in blocks:
            names += [f"name {len(names) + number}" for number in range(more + (not names))]
            codes = np.array([code % len(names) for code in used], np.uint16)
            unsent = sent.unsent(bucket, names, codes)
            assert unsent.dtype == np.int32
            known[bucket] += unsent.tolist()
            assert {*codes.tolist()} <= {*known[bucket]} <= {*range(len(names))}
            assert len(known[bucket]) == len({*known[bucket]})
            if len(names) > few:
                assert {*unsent.tolist()} <= {*codes.tolist()}


def test_many_names_and_buckets_take_a_bit_each() -> None:
    """A bool for each of a million names and 1,024 buckets would be a gigabyte."""
    names = [""] * 1_000_000
    sent = SentNames(1024)
    tracemalloc.start()
    try:
        for known in (names[:500_000], names):
            for bucket in range(1024):
                assert sent.unsent(bucket, known, np.array([len(known) - 1])).tolist() == [len(known) - 1]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 200e6
