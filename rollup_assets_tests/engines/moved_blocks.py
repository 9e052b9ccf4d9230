"""What every engine has to do with blocks: two sides of a shuffle that emit and collect them, and what has to come of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rollup_assets.engines.base import Blocks, Emit, TaskContext

Emitted = list[list[tuple[int, bytes]]]
"""The blocks of each task: bucket and payload, in the order of their emission."""
Block = tuple[int, int, bytes, bytes]
"""Bucket, task, header and payload."""


def emit_all(emitted: Emitted, task: int, emit: Emit, context: TaskContext) -> int:  # noqa: ARG001
    """The emitting side; gives the number of the task's blocks."""
    for number, (bucket, payload) in enumerate(emitted[task]):
        emit(bucket, b"%d:%d" % (task, number), [payload[:1], payload[1:]])
    return len(emitted[task])


def merge_all(group: Sequence[int], sources: Sequence[Blocks], context: TaskContext) -> tuple[list[int], list[Block]]:  # noqa: ARG001
    """The collecting side; gives the group and its blocks as they come, which they do the same way twice."""
    found = []
    for bucket, source in zip(group, sources, strict=True):
        once = [(bucket, task, header, bytes(payload)) for task, header, payload in source]
        assert [(bucket, task, header, bytes(payload)) for task, header, payload in source] == once
        assert list(source.headers()) == [(task, header) for _, task, header, _ in once]
        found += once
    return list(group), found


def moved(emitted: Emitted, groups: Sequence[Sequence[int]]) -> tuple[list[int], list[tuple[list[int], list[Block]]]]:
    """What has to come of both sides: every block once, in its bucket's group, in the order of tasks and of emission."""
    merged: list[tuple[list[int], list[Any]]] = [
        (
            list(group),
            [
                (bucket, task, b"%d:%d" % (task, number), payload)
                for bucket in group
                for task, blocks in enumerate(emitted)
                for number, (to, payload) in enumerate(blocks)
                if to == bucket
            ],
        )
        for group in groups
    ]
    return [len(blocks) for blocks in emitted], merged
