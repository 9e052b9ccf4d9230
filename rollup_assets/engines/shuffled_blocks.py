"""Blocks in a shuffle that only knows rows of bytes: packed by the task that emits them, unpacked by the task that merges them.

A parcel holds blocks of one bucket from one map task, each lz4-compressed by itself where that pays, so that headers can be read without
payloads. Who moves parcels stays out (``engines.spark``).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollup_assets.storage.spill import Buffer, SpillFile

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = struct.Struct("<IQQ")  # bytes of the header, the payload and the packed payload
PARCEL_BYTES = 32 << 20
"""A parcel is closed at this size, since Spark holds each row of a shuffle in memory several times."""
_WORTH_PACKING = 0.75
"""A large payload is packed if samples of it shrink to this share or less: moving blocks through two sockets, Java and a file
costs about 4 s of CPU a GB, packing them 1.3 s."""
_SLICES, _SLICE_BYTES = 8, 16 << 10
"""Of a larger payload, this many samples decide whether it is worth packing. They are spread out since columns follow each other."""


def _codec() -> Any:
    import pyarrow as pa

    return pa.Codec("lz4_raw")


class Outbox:
    """What one map task emits: kept in memory up to ``memory`` bytes and in ``spill`` beyond, drained at the end."""

    def __init__(self, memory: int, spill: Path) -> None:
        self._memory = memory
        self._spill_path = spill
        self._spill: SpillFile | None = None
        self._codec = _codec()
        self._blocks: dict[int, list[bytes]] = {}
        self._held = 0

    def emit(self, bucket: int, header: bytes, buffers: Sequence[Buffer]) -> None:
        """See :class:`rollup_assets.engines.base.Emit`."""
        payload = b"".join(memoryview(buffer).cast("B") for buffer in buffers if memoryview(buffer).nbytes)
        packed = self._packed(payload)
        frame = _BLOCK.pack(len(header), len(payload), len(packed)) + header
        # Once a bucket has spilled, its later blocks are spilled, too: their order counts.
        has_spilled = self._spill is not None and bucket in self._spill.index
        if has_spilled or self._held + len(packed) > self._memory:
            self._spill = self._spill or SpillFile(self._spill_path)
            self._spill.emit(bucket, b"", [frame, packed])
            return
        self._blocks.setdefault(bucket, []).extend((frame, packed))
        self._held += len(frame) + len(packed)

    def _packed(self, payload: bytes) -> bytes:
        """The payload, compressed if that is worth it. The sizes tell readers: what is not compressed is as long as the payload."""
        step = len(payload) // _SLICES
        if step > _SLICE_BYTES:
            sample = b"".join(payload[at : at + _SLICE_BYTES] for at in range(0, step * _SLICES, step))
            if len(self._codec.compress(sample, asbytes=True)) > _WORTH_PACKING * len(sample):
                return payload
        packed: bytes = self._codec.compress(payload, asbytes=True) if payload else payload
        return packed if len(packed) < len(payload) else payload

    def drain(self) -> Iterator[tuple[int, int, list[bytes]]]:
        """Yield ``(bucket, number, pieces of a parcel)``, buckets in order; the parcels of each are numbered in order of emission."""
        spilled = self._spill.index if self._spill else {}
        for bucket in sorted(self._blocks.keys() | spilled.keys()):
            number = 0
            pending: list[bytes] = []
            size = 0
            for block in self._packed_blocks(bucket):
                pending += block
                size += sum(map(len, block))
                if size >= PARCEL_BYTES:
                    yield bucket, number, pending
                    number, pending, size = number + 1, [], 0
            if pending:
                yield bucket, number, pending

    def _packed_blocks(self, bucket: int) -> Iterator[list[bytes]]:
        """The pieces of each block, in order of emission."""
        held = self._blocks.pop(bucket, [])
        for place in range(0, len(held), 2):
            yield held[place : place + 2]
        if self._spill is not None:
            for offset, size, _ in self._spill.index.get(bucket, ()):
                content = bytearray(size)
                self._spill.read(offset, memoryview(content))
                yield [bytes(content)]

    def close(self) -> None:
        """Delete what was spilled."""
        if self._spill is not None:
            self._spill.close()


@dataclass(slots=True)
class Inbox:
    """The parcels that reach one merge task: in memory up to ``memory`` bytes, spilled beyond, in the order of map tasks."""

    memory: int
    spill_path: Path
    _parcels: dict[int, list[tuple[int, int, Any]]] = field(default_factory=dict)
    """bucket -> (map task, number, parcel: an Arrow buffer, or where it lies in the spill file)"""
    _held: int = 0
    _spill: SpillFile | None = None

    def add(self, bucket: int, task: int, number: int, parcel: pa.Buffer) -> None:
        """Take a parcel; parcels may come in any order."""
        if self._held + parcel.size <= self.memory:
            self._held += parcel.size
            self._parcels.setdefault(bucket, []).append((task, number, parcel))
            return
        if self._spill is None:
            self._spill = SpillFile(self.spill_path)
        self._spill.emit(bucket, b"", [parcel])
        offset, size, _ = self._spill.index[bucket][-1]
        self._parcels.setdefault(bucket, []).append((task, number, (offset, size)))

    def blocks(self, bucket: int) -> ReceivedBlocks:
        """The blocks of one bucket, once all parcels are there."""
        return ReceivedBlocks(self, bucket)

    def parcels(self, bucket: int) -> Iterator[tuple[int, Any]]:
        """Yield ``(map task, parcel)`` in the order of map tasks and, within one, of emission."""
        import pyarrow as pa

        for task, _, parcel in sorted(self._parcels.get(bucket, ()), key=lambda known: known[:2]):
            if isinstance(parcel, tuple):
                offset, size = parcel
                content = bytearray(size)
                assert self._spill is not None
                self._spill.read(offset, memoryview(content))
                yield task, pa.py_buffer(content)
            else:
                yield task, parcel

    def close(self) -> None:
        """Delete what was spilled."""
        if self._spill is not None:
            self._spill.close()


class ReceivedBlocks:
    """The blocks of one bucket that an :class:`Inbox` received; see :class:`rollup_assets.engines.base.Blocks`."""

    def __init__(self, inbox: Inbox, bucket: int) -> None:
        self._inbox = inbox
        self._bucket = bucket
        self._codec = _codec()

    def __iter__(self) -> Iterator[tuple[int, bytes, memoryview]]:
        for task, header, parcel, offset, raw, packed in self._frames():
            # A fresh buffer is writable and aligned. To the kernels, arrays that are not would be another type.
            content = parcel.slice(offset, packed)
            yield task, header, memoryview(bytearray(content) if packed == raw else self._codec.decompress(content, raw))

    def headers(self) -> Iterator[tuple[int, bytes]]:
        """Task and header of each block, in order, without unpacking any payload."""
        for task, header, *_ in self._frames():
            yield task, header

    def _frames(self) -> Iterator[tuple[int, bytes, Any, int, int, int]]:
        for task, parcel in self._inbox.parcels(self._bucket):
            view = memoryview(parcel)
            at = 0
            while at < len(view):
                head, raw, packed = _BLOCK.unpack_from(view, at)
                at += _BLOCK.size
                yield task, bytes(view[at : at + head]), parcel, at + head, raw, packed
                at += head + packed
