"""How a batch is cut into tasks and files: bounded, complete, in order, and by its data alone."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollup_assets.engines.local import LocalEngine
from rollup_assets.engines.spark import SparkEngine
from rollup_assets.steps.planning import (
    FEWEST_POINTS_FOR_TWO_GROUPS,
    POINTS_PER_GROUP,
    shard_groups,
    split_tasks,
)
from rollup_assets.storage.manifests import InputFile

MiB = 1 << 20


def input_files(sizes: list[int]) -> list[InputFile]:
    return [InputFile(path=f"{number:06d}.parquet", size=size, version="mtime:0") for number, size in enumerate(sizes)]


# -------------------------------------------------------------------------------------------------------------- shard groups


@given(st.integers(1, 4096), st.integers(0, 10**10))
def test_groups_cover_all_shards_once_in_order(shards: int, points: int) -> None:
    groups = shard_groups(shards, points)
    assert list(itertools.chain.from_iterable(groups)) == list(range(shards))
    assert all(groups)
    sizes = [len(group) for group in groups]
    assert max(sizes) - min(sizes) <= 1
    assert shard_groups(shards, points) == groups


@given(st.integers(1, 4096), st.integers(0, 10**9), st.integers(0, 10**9))
def test_more_points_never_mean_fewer_groups(shards: int, points: int, more: int) -> None:
    assert len(shard_groups(shards, points + more)) >= len(shard_groups(shards, points))


@given(st.integers(1, 4096), st.integers(2 * POINTS_PER_GROUP, 10**10))
def test_a_group_of_a_large_batch_has_about_the_points_of_a_file(shards: int, points: int) -> None:
    """Between one and two times the points a file is made for, as long as there are shards to cut."""
    groups = len(shard_groups(shards, points))
    assert groups == shards or POINTS_PER_GROUP <= points / groups < 2 * POINTS_PER_GROUP


def test_small_batches_have_one_file_and_two_cores_have_work_from_a_million_points_on() -> None:
    assert shard_groups(16, 0) == shard_groups(16, FEWEST_POINTS_FOR_TWO_GROUPS - 1) == [list(range(16))]
    assert shard_groups(16, FEWEST_POINTS_FOR_TWO_GROUPS) == [list(range(8)), list(range(8, 16))]
    assert shard_groups(1, 10**9) == [[0]]
    assert shard_groups(3, 10**9) == [[0], [1], [2]]


# --------------------------------------------------------------------------------------------------------------- split tasks

LOCAL = LocalEngine(threads=1, memory=1, scratch=Path("never made"))
SPARK = SparkEngine(lambda: pytest.fail("no session is needed"), task_memory=1)


@given(st.lists(st.integers(0, 300 * MiB), max_size=300))
def test_split_tasks_have_every_file_once_in_order_and_are_few(sizes: list[int]) -> None:
    files = input_files(sizes)
    tasks = split_tasks(files, LOCAL)
    assert list(itertools.chain.from_iterable(tasks)) == files
    assert all(tasks)
    assert len(tasks) <= 65


def test_a_batch_of_a_hundred_thousand_small_files_is_cut_at_once() -> None:
    """Into few tasks (each holds a file open), in time that grows with the files and not with their square."""
    started = time.process_time()
    for size in (10, 20_000):
        tasks = split_tasks(input_files([size] * 100_000), LOCAL)
        assert len(tasks) <= 65
        assert sum(len(task) for task in tasks) == 100_000
    # Adding up the pending files anew for each took minutes.
    assert time.process_time() - started < 20


def test_small_files_share_a_task_and_large_ones_have_their_own() -> None:
    assert [len(task) for task in split_tasks(input_files([100] * 50), LOCAL)] == [50]
    assert [len(task) for task in split_tasks(input_files([300 * MiB] * 3), LOCAL)] == [1, 1, 1]
    assert [len(task) for task in split_tasks(input_files([MiB // 2] * 6), LOCAL)] == [2, 2, 2]
    assert split_tasks([], LOCAL) == []


def test_spark_gets_tasks_that_are_worth_starting_and_as_many_as_a_cluster_needs() -> None:
    assert [len(task) for task in split_tasks(input_files([MiB] * 100), SPARK)] == [32, 32, 32, 4]
    assert len(split_tasks(input_files([64 * MiB] * 5_000), SPARK)) == 5_000
    assert len(split_tasks(input_files([64 * MiB] * 50_000), SPARK)) <= 10_001
