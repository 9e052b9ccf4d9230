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
            moved += [(bucket, task, number, b"".join(pieces)) for bucket, number, pieces in outbox.drain()]
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
    for bucket, number, pieces in outbox.drain():
        inbox.add(bucket, 0, number, pa.py_buffer(b"".join(pieces)))
    assert [payload.readonly for _, _, payload in inbox.blocks(0)] == [False]
    assert list(tmp_path.iterdir()) == [], "what fits into memory is not spilled"


def test_what_lz4_makes_much_smaller_is_packed_and_nothing_else(tmp_path: Path) -> None:
    noise = random.Random(1).randbytes(1 << 20)
    runs = bytes(1 << 20)
    sizes = {}
    for name, payload in {"noise": noise, "runs": runs, "a fifth of runs": noise[: 4 << 18] + runs[: 1 << 18], "short": b"x" * 100}.items():
        outbox = Outbox(1 << 23, tmp_path / "out")
        outbox.emit(0, b"", [payload])
        ((_, _, pieces),) = outbox.drain()
        sizes[name] = sum(map(len, pieces)) / len(payload)
        inbox = Inbox(1 << 23, tmp_path / "in")
        inbox.add(0, 0, 0, pa.py_buffer(b"".join(pieces)))
        assert [bytes(received) for _, _, received in inbox.blocks(0)] == [payload]
    assert sizes["noise"] == pytest.approx(1, abs=0.001)
    assert sizes["a fifth of runs"] == pytest.approx(1, abs=0.001), "packing costs more than the fifth that it saves"
    assert sizes["runs"] < 0.01
    assert sizes["short"] < 0.5
