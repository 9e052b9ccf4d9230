"""How a batch is cut. Files depend only on data and settings; map tasks also on the engine, which changes no byte of the files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from rollup_assets.engines.base import Engine


class _Sized(Protocol):
    @property
    def size(self) -> int: ...


File = TypeVar("File", bound=_Sized)

# Points per file in a large batch, or up to twice as many: so data files stay within 128 to 512 MB (16 to 30 bytes per rollup row).
POINTS_PER_GROUP = 8_000_000
# From here on there is work for two cores.
FEWEST_POINTS_FOR_TWO_GROUPS = 1_000_000


def shard_groups(shards: int, points: int) -> list[list[int]]:
    """Groups of consecutive shards that share a file, for about ``points`` points in the batch: a power of two, at most one per shard."""
    groups = 2 if points >= FEWEST_POINTS_FOR_TWO_GROUPS else 1
    while groups * 2 * POINTS_PER_GROUP <= points:
        groups *= 2
    groups = min(groups, shards)
    return [list(range(shards * group // groups, shards * (group + 1) // groups)) for group in range(groups)]


def split_tasks(files: Sequence[File], engine: Engine) -> list[tuple[File, ...]]:
    """Files in path order, cut into tasks of about the same size (bytes).

    All but the last are at least as large as the engine's ``least_map_task``; at most one more than its ``most_map_tasks``.
    """
    size = max(sum(file.size for file in files) // engine.most_map_tasks, engine.least_map_task)
    tasks: list[tuple[File, ...]] = []
    pending: list[File] = []
    waiting = 0
    for file in files:
        pending.append(file)
        waiting += file.size
        if waiting >= size:
            tasks.append(tuple(pending))
            pending, waiting = [], 0
    if pending:
        tasks.append(tuple(pending))
    return tasks
