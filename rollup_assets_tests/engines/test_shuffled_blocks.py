"""Parcels: every block arrives once, in order, whatever fits into memory and whenever parcels come."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollup_assets.engines import shuffled_blocks
from rollup_assets.engines.shuffled_blocks import Inbox, Outbox

BLOCKS = st.lists(st.lists(st.tuples(st.integers(0, 4), st.binary(max_size=20), st.binary(max_size=300)), max_size=12), max_size=5)


@settings(max_examples=80, deadline=None)
@given(
    emitted=BLOCKS,
    sending=st.sampled_from([0, 100, 10_000]),
    receiving=st.sampled_from([0, 100, 10_000]),
    parcel=st.sampled_from([1, 200, 1 << 20]),
    seed=st.integers(0, 100),
)
def test_every_block_arrives_once_in_the_order_of_tasks_and_of_emission(
    emitted: list[list[tuple[int, bytes, bytes]]],
    sending: int,
    receiving: int,
    parcel: int,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("parcels")
    moved = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shuffled_blocks, "PARCEL_BYTES", parcel)
        for task, blocks in enumerate(emitted):
            outbox = Outbox(sending, folder / f"out-{task}")
            for bucket, header, payload in blocks:
                outbox.emit(bucket, header, [payload[:7], memoryview(payload)[7:]])
            moved += [(bucket, task, number, content) for bucket, number, content in outbox.drain()]
            outbox.close()
    random.Random(seed).shuffle(moved)
    inbox = Inbox(receiving, folder / "in")
    for bucket, task, number, content in moved:
        inbox.add(bucket, task, number, pa.py_buffer(content))
    for bucket in range(5):
        wanted = [
            (task, header, payload)
            for task, blocks in enumerate(emitted)
            for destination, header, payload in blocks
            if destination == bucket
        ]
        blocks = inbox.blocks(bucket)
        for _ in range(2):
            assert [(task, header, bytes(payload)) for task, header, payload in blocks] == wanted
        assert list(blocks.headers()) == [(task, header) for task, header, _ in wanted]
    inbox.close()
    assert list(folder.iterdir()) == [], "spill files are deleted"


def test_payloads_are_writable_so_that_kernels_need_no_second_variant(tmp_path: Path) -> None:
    outbox = Outbox(1 << 20, tmp_path / "out")
    outbox.emit(0, b"header", [b"payload"])
    inbox = Inbox(1 << 20, tmp_path / "in")
    for bucket, number, parcel in outbox.drain():
        inbox.add(bucket, 0, number, pa.py_buffer(parcel))
    assert [payload.readonly for _, _, payload in inbox.blocks(0)] == [False]
    assert list(tmp_path.iterdir()) == [], "what fits into memory is not spilled"
