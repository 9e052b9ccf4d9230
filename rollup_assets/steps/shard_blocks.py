"""The blocks of one shard as the sort task sees them: without those of files quarantined as a whole, with metric codes of the shard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from rollup_assets.engines.base import Blocks
from rollup_assets.storage import blocks
from rollup_assets.storage.blocks import Header
from rollup_assets.storage.metric_names import MetricNames

if TYPE_CHECKING:
    from rollup_assets.kernels.points import Block


def dropped_files(source: Blocks) -> set[tuple[int, int]]:
    """(map task, file) of the raw files that are quarantined as a whole; blocks of their rows may have been sent before."""
    headers = ((task, Header.unpack(packed)) for task, packed in source.headers())
    return {(task, header.file) for task, header in headers if header.kind == blocks.DROP_FILE}


class ShardBlocks:
    """The row blocks of one shard, unpacked one after the other, with metric codes translated to the shard's own."""

    def __init__(self, source: Blocks) -> None:
        self._source = source
        self._dropped = dropped_files(source)
        headers = ((task, Header.unpack(packed)) for task, packed in source.headers())
        kept = [header for task, header in headers if header.kind == blocks.ROWS and (task, header.file) not in self._dropped]
        self.rows = sum(header.rows for header in kept)
        self.has_lag = any(header.has_lag for header in kept)
        self.names = MetricNames()
        """Metric names of the shard; complete after one iteration."""

    def __iter__(self) -> Iterator[tuple[Header, Block]]:
        from rollup_assets.kernels.points import Block

        # Of one task at a time, since each translation is as long as its task's greatest code; blocks come in the order of tasks.
        translation, translated_task = np.zeros(1, np.int32), -1
        for task, packed, payload in self._source:
            header = Header.unpack(packed)
            if task != translated_task:
                translation, translated_task = np.zeros(1, np.int32), task
            if header.kind == blocks.NAMES:
                codes, names = blocks.unpack_names(payload, header.rows)
                missing = int(codes.max()) + 1 - len(translation)
                if missing > 0:
                    translation = np.concatenate([translation, np.zeros(max(missing, len(translation)), np.int32)])
                translation[codes] = self.names.codes_of(names)
            elif header.kind == blocks.ROWS and (task, header.file) not in self._dropped:
                ids, times, values, orgs, metrics, lags = header.columns(payload)
                yield header, Block(ids, times, values, orgs, metrics, lags, translation)
