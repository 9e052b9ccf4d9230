"""How a batch is cut into tasks and files: by its data and the settings, never by engine, threads or memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rollup_assets.engines.base import Engine
from rollup_assets.settings import Settings
from rollup_assets.storage.manifests import InputFile
from rollup_assets.storage.raw_limits import DEFAULT_LIMITS

# Points a file is made for. Two cores have work from twice this on, and data files stay within 128 to 512 MB (16 to 30 bytes a rollup row).
POINTS_PER_GROUP = 8_000_000
FEWEST_POINTS_FOR_TWO_GROUPS = 1_000_000
PARQUET_ENCODING = "parquet_encoding"


def shard_groups(shards: int, points: int) -> list[list[int]]:
    """Shards that share a file, for about ``points`` points in the batch: consecutive shards, a power of two of groups."""
    groups = 2 if points >= FEWEST_POINTS_FOR_TWO_GROUPS else 1
    while groups * 2 * POINTS_PER_GROUP <= points:
        groups *= 2
    groups = min(groups, shards)
    return [list(range(shards * group // groups, shards * (group + 1) // groups)) for group in range(groups)]


def split_tasks(files: Sequence[InputFile], engine: Engine) -> list[tuple[InputFile, ...]]:
    """Files in path order, cut into tasks of about the same size, as large and as many (or one more) as suits the engine."""
    size = max(sum(file.size for file in files) // engine.most_map_tasks, engine.least_map_task)
    tasks: list[tuple[InputFile, ...]] = []
    pending: list[InputFile] = []
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


def content_parameters(settings: Settings) -> dict[str, object]:
    """The settings that decide which rows staged files hold."""
    # Left out where they are the defaults, so that what was staged before there were any stays current.
    limits = {} if settings.raw_limits == DEFAULT_LIMITS else {"raw_limits": dataclasses.asdict(settings.raw_limits)}
    return {
        **limits,
        "batch": settings.batch,
        "lookback": settings.lookback,
        "resolutions": list(settings.resolutions),
        "shards": settings.shards,
        "value_type": settings.value_type,
    }


def rollup_parameters(settings: Settings) -> dict[str, object]:
    """The settings that decide what the files of rollups hold, byte for byte: those of their rows, and how these are encoded."""
    return {**content_parameters(settings), PARQUET_ENCODING: settings.parquet_encoding}
