"""What is asked for after raw files have changed, and what is not: looks at a landing zone and a stage, with a clock of the test's own."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from rollup_assets import arrivals
from rollup_assets.arrivals import Found, Memory, look
from rollup_assets.batches import Batch
from rollup_assets.history.rejections import REJECTED
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps.rollup import RollupInputs, find_inputs
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS, Manifest
from rollup_assets_tests.conftest import MakePipeline
from rollup_assets_tests.landing import forbid, forbid_file, write_bytes
from rollup_assets_tests.staged import manifests_read
from rollup_assets_tests.verification import naive_table

SETTLE = dt.timedelta(minutes=2)
HOURS = 6
"""Hours that have ended."""


@dataclass
class World:
    """A landing zone of files that hold anything, a stage of manifests, and what looks have asked for."""

    pipeline: Pipeline
    now: dt.datetime = dt.datetime(2026, 1, 1, HOURS, 30, tzinfo=dt.UTC)
    memory: Memory = field(default_factory=Memory)
    running: set[int] = field(default_factory=set)
    """Hours that somebody is making something of."""
    under_way: int = 0
    """How many requests of earlier looks have not ended."""
    attempts: Iterator[int] = field(default_factory=itertools.count)

    def hour(self, number: int) -> Batch:
        found = self.pipeline.calendar.shifted(self.pipeline.calendar.first, number)
        assert found is not None
        return found

    def land(self, number: int, name: str = "a.parquet", content: str = "points") -> None:
        write_bytes(self.pipeline, self.hour(number), name, content.encode())

    def folder(self, number: int) -> Path:
        return Path(self.pipeline.landing_zone.folder(self.hour(number)).path)

    def stage(self, number: int, *, points: str = "1", left_open: str = "1") -> None:
        """The files that are there, with the content digests given."""
        batch = self.hour(number)
        for asset, digest in ((QUARANTINED, "q"), (PARTIAL_POINTS, left_open), (REPARTITIONED, points)):
            counters = {"rows_read": 5, "rows_accepted": 5, "rows_quarantined": 0, "bad_files": 0, "series": 1}
            before = self.pipeline.stage.read(asset, batch)
            naive_table.stage(self.pipeline, asset, batch, counters)
            made = self._read(asset, batch)
            content = f"{asset} {number} {digest}"
            # As `Stage.commit` does: the attempt of the same content stays.
            attempt = before.attempt if before and before.digest == content else str(next(self.attempts))
            self.pipeline.stage.write(made.model_copy(update={"digest": content, "attempt": attempt}), batch)

    def roll_up(self, number: int, *, published: bool = True) -> None:
        batch = self.hour(number)
        inputs = find_inputs(self.pipeline, batch)
        assert isinstance(inputs, RollupInputs)
        naive_table.stage(self.pipeline, ROLLUPS, batch, {})
        attempt = str(next(self.attempts))
        made = self._read(ROLLUPS, batch).model_copy(
            update={"upstream": inputs.upstream(batch), "attempt": attempt, "digest": f"{batch} {attempt}"}
        )
        self.pipeline.stage.write(made, batch)
        if published:
            self.publish(number)

    def publish(self, number: int) -> None:
        """A receipt of the rollups that are staged."""
        batch = self.hour(number)
        rollups = self._read(ROLLUPS, batch)
        naive_table.stage(self.pipeline, ROLLUP_TABLE, batch, {"staged_attempt": rollups.attempt})
        self.pipeline.stage.write(self._read(ROLLUP_TABLE, batch).model_copy(update={"digest": rollups.digest}), batch)

    def roll_back(self, number: int) -> None:
        """As ``rollups rollback`` does: the receipt says that what is staged is not wanted."""
        batch = self.hour(number)
        receipt = self._read(ROLLUP_TABLE, batch)
        counters = {**receipt.counters, "staged_attempt": None, REJECTED: [self._read(ROLLUPS, batch).digest]}
        self.pipeline.stage.write(receipt.model_copy(update={"digest": "earlier", "counters": counters}), batch)

    def _read(self, asset: str, batch: Batch) -> Manifest:
        manifest = self.pipeline.stage.read(asset, batch)
        assert manifest is not None
        return manifest

    def tick(self, minutes: float = 0, **options: object) -> Found:
        self.now += dt.timedelta(minutes=minutes)
        found = look(
            self.pipeline,
            self.memory,
            self.now,
            is_being_made=lambda batch: batch in {self.hour(number) for number in self.running},
            under_way=self.under_way,
            **options,  # type: ignore[arg-type]
        )
        self.memory = Memory.parse(found.memory.model_dump_json(exclude_defaults=True))
        return found

    def asked(self, minutes: float = 0) -> tuple[list[int], list[int]]:
        """Hours asked to be staged, and to be rolled up."""
        found = self.tick(minutes)
        return [request.batch.start_time.hour for request in found.to_stage], [
            request.batch.start_time.hour for request in found.to_roll_up
        ]


@pytest.fixture
def world(tmp_path: Path, make_pipeline: MakePipeline) -> World:
    """Four hours staged, rolled up and published, with the two after them."""
    world = World(make_pipeline(tmp_path))
    for number in range(4):
        world.land(number)
        world.stage(number)
    for number in range(HOURS):
        world.roll_up(number)
    assert world.asked() == world.asked(5) == ([], [])
    return world


# ------------------------------------------------------------------------------------------------------------------------ staging


def test_a_landing_zone_that_is_gone_asks_for_nothing(world: World) -> None:
    """A disk that is not mounted is no removal of raw files."""
    shutil.rmtree(world.pipeline.landing_zone.root.path)
    assert world.asked() == world.asked(60) == ([], [])
    problems = world.tick().problems
    assert sorted(problems) == [world.hour(number).key for number in range(4)]
    assert all("(ROLLUP_RAW) is empty" in problem for problem in problems.values())


@pytest.mark.scenario("L1")
def test_a_late_file_is_asked_for_once_when_its_folder_has_stayed_the_same(world: World) -> None:
    world.land(1, "late-0.parquet")
    assert world.asked() == ([], [])
    world.land(1, "late-1.parquet")
    world.land(1, "late-2.parquet")
    assert world.tick(1.9).unsettled == [world.hour(1).key]
    assert world.asked(1.9) == ([], [])
    assert world.asked(0.1) == ([1], [])
    assert world.asked(10) == ([], [])


@pytest.mark.scenario("L1")
def test_a_folder_of_arrival_time_asks_for_every_batch_that_reads_it(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """With a lateness of two folders: for its own batch and the two before; these also where they have no folder of their own."""
    world = World(make_pipeline(tmp_path, raw_lateness=2))
    for number in (0, 2, 3):
        world.land(number)
    for number in range(4):
        world.stage(number)
    for number in range(HOURS):
        world.roll_up(number)
    assert world.asked() == world.asked(5) == ([], [])
    world.land(3, "late.parquet")
    assert world.asked() == ([], [])
    assert world.asked(5) == ([1, 2, 3], [])
    for number in (1, 2, 3):
        world.stage(number)
    assert world.asked(5) == ([], []), "no content has changed"


def test_a_folder_that_is_being_filled_is_left_alone(world: World) -> None:
    for number in range(10):
        world.land(1, f"late-{number}.parquet")
        assert world.asked(1) == ([], [])
    assert world.asked(2) == ([1], [])


def test_any_change_of_the_files_is_seen_and_nothing_else(world: World) -> None:
    world.land(0, content="other points")
    world.land(1, "another.parquet")
    (world.folder(2) / "a.parquet").rename(world.folder(2) / "b.parquet")
    shutil.rmtree(world.folder(3))
    world.land(5, "_SUCCESS")
    world.tick()
    assert world.asked(2) == ([0, 1, 2, 3], [])


def test_a_change_that_was_undone_is_forgotten(world: World) -> None:
    world.land(1, "late.parquet")
    world.tick()
    (world.folder(1) / "late.parquet").unlink()
    assert world.asked(2) == ([], [])
    assert world.memory == Memory(position=world.memory.position)


def test_batches_that_have_not_ended_are_not_asked_for(world: World) -> None:
    world.land(HOURS)
    world.tick()
    assert world.asked(2) == ([], [])
    world.tick(60)
    assert world.asked(2) == ([HOURS], [])


def test_a_request_has_the_data_version_and_the_size_of_the_files(world: World) -> None:
    from rollup_assets.storage.landing_zone import version_of

    world.land(1, "late.parquet", "1234")
    world.tick()
    (request,) = world.tick(2).to_stage
    assert request.version == version_of(world.pipeline.landing_zone.files(world.hour(1)))
    assert (request.files, request.bytes) == (2, 4 + len("points"))


def test_what_failed_is_asked_for_again_only_with_another_version_and_then_by_another_key(world: World) -> None:
    keys = []
    for name in ("one", "two", "one"):
        world.land(1, "late.parquet", name)
        assert world.asked() == ([], [])
        (request,) = world.tick(2).to_stage
        keys.append(request.key)
        for _ in range(3):
            assert world.asked(10) == ([], [])  # the run failed; nobody staged anything
    assert len(set(keys)) == 3


def test_files_that_change_while_they_are_staged_are_asked_for_after_that_run(world: World) -> None:
    world.land(1, "late.parquet")
    world.tick()
    assert world.asked(2) == ([1], [])
    world.running.add(1)
    world.land(1, "later.parquet")
    world.tick()
    assert world.asked(5) == ([], [])
    world.running.clear()
    assert world.asked() == ([1], [])


def test_what_somebody_else_is_making_is_not_asked_for(world: World) -> None:
    """The schedule, a backfill, somebody in the UI: when they have ended there is nothing left to ask for."""
    world.land(5)
    world.tick()
    world.running.add(5)
    assert world.asked(2) == ([], [])
    world.stage(5)
    assert world.asked() == ([], [])
    world.roll_up(5)
    world.running.clear()
    assert world.asked() == ([], [])


def test_files_that_are_over_the_quarantine_limit_are_not_tried_again_unless_it_is_raised(
    world: World, make_pipeline: MakePipeline
) -> None:
    """Another run has found that out; the sensor need not."""
    world.land(1, "bad.parquet")
    counters = {"rows_read": 0, "rows_quarantined": 0, "bad_files": 1, "reasons": {"unreadable_file": 0}}
    naive_table.stage(world.pipeline, QUARANTINED, world.hour(1), counters)
    world.tick()
    assert world.asked(2) == ([], [])
    world.pipeline = make_pipeline(world.pipeline.settings.home, quarantine_files=1)
    world.tick()
    assert world.asked(2) == ([1], [])


def test_a_file_over_the_quarantine_limit_that_is_removed_asks_to_be_staged_without_it(world: World) -> None:
    """The datapoints are those of the files that are left, and the quarantine is not."""
    world.land(1, "bad.parquet")
    counters = {"rows_read": 0, "rows_quarantined": 0, "bad_files": 1, "reasons": {"unreadable_file": 0}}
    naive_table.stage(world.pipeline, QUARANTINED, world.hour(1), counters)
    assert world.asked() == world.asked(2) == ([], [])
    (world.folder(1) / "bad.parquet").unlink()
    assert world.asked() == ([], [])
    assert world.asked(2) == ([1], [])
    world.stage(1)
    assert world.asked() == world.asked(10) == ([], [])
    assert world.memory == Memory(position=world.memory.position)


def test_other_settings_ask_for_nothing(world: World, make_pipeline: MakePipeline) -> None:
    for other in ({"parquet_encoding": "compatible"}, {"lookback": "30m"}):
        world.pipeline = make_pipeline(world.pipeline.settings.home, **other)
        assert world.asked(5) == ([], [])


# ----------------------------------------------------------------------------------------------------------- what follows from it


def restage(world: World, number: int, **content: str) -> None:
    world.land(number, "late.parquet")
    world.tick()
    assert world.asked(2) == ([number], [])
    world.stage(number, **content)


@pytest.mark.parametrize(
    ("content", "follow"),
    [({}, []), ({"points": "2"}, [1]), ({"left_open": "2"}, [1, 2, 3]), ({"points": "2", "left_open": "2"}, [1, 2, 3])],
    ids=["the same", "what it accepted", "what it leaves open", "both"],
)
@pytest.mark.scenario("C4")
def test_only_what_read_something_else_is_rolled_up_again(world: World, content: dict[str, str], follow: list[int]) -> None:
    restage(world, 1, **content)
    assert world.asked() == ([], follow)
    assert world.asked(5) == ([], [])
    for number in follow:
        world.roll_up(number)
    assert world.asked() == ([], [])
    assert world.memory == Memory(position=world.memory.position)


def test_the_first_partitions_are_staged_and_then_rolled_up_with_those_after_them(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    world = World(make_pipeline(tmp_path))
    world.land(1)
    world.land(2)
    world.tick()
    assert world.asked(2) == ([1, 2], [])
    world.stage(1)
    world.running.add(2)
    assert world.asked() == ([], [1])  # 2 is still being staged
    world.stage(2)
    world.running.clear()
    assert world.asked() == ([], [2, 3, 4])


def test_rollups_wait_for_inputs_that_are_about_to_change_but_not_for_failed_ones(world: World) -> None:
    restage(world, 2, left_open="2")
    world.land(1, "late.parquet")
    assert world.asked() == ([], [4])  # 4 reads 2 and 3; 2 and 3 read 1, too
    assert world.asked(2) == ([1], [])
    world.running.add(1)
    assert world.asked() == ([], [])
    world.running.clear()  # it failed: what was staged of 1 before stands
    assert world.asked() == ([], [2, 3])


def test_content_that_comes_back_is_asked_for_by_another_key(world: World) -> None:
    keys = []
    for content in ("2", "1", "2"):
        world.stage(1, points=content)
        (request,) = world.tick().to_roll_up
        keys.append(request.key)
        world.roll_up(1)
    assert len(set(keys)) == 3


def test_rollups_that_failed_are_asked_for_again_only_with_other_inputs(world: World) -> None:
    world.stage(1, points="2")
    assert world.asked() == ([], [1])
    assert world.asked(10) == world.asked(10) == ([], [])
    world.stage(1, points="3")
    assert world.asked() == ([], [1])


def test_rollups_that_failed_are_asked_for_once_more_by_another_key_after_the_cursor_was_reset(world: World) -> None:
    """Dagster starts no second run for a key that had one."""
    world.stage(1, points="2")
    (first,) = world.tick().to_roll_up
    assert world.asked(10) == ([], [])
    world.memory = Memory()
    (second,) = world.tick(1).to_roll_up
    assert first.key != second.key
    assert world.asked(10) == world.asked(10) == ([], [])


def test_rollups_that_were_not_published_are_asked_for_once_and_again_after_a_reset(world: World) -> None:
    """Whoever made them: the sensor's own run is that one request, and other runs had none."""
    world.stage(1, points="2")
    assert world.asked() == ([], [1])
    world.roll_up(1, published=False)
    assert world.asked(10) == world.asked(10) == ([], [])
    world.roll_up(4, published=False)
    assert world.asked(10) == ([], [4])
    assert world.asked(10) == ([], [])
    world.memory = Memory()
    assert world.asked(10) == ([], [1, 4])
    assert world.asked(10) == ([], [])
    for number in (1, 4):
        world.publish(number)
    world.tick()
    assert world.memory == Memory(position=world.memory.position)


def test_rollups_that_are_being_published_are_not_asked_for(world: World) -> None:
    world.running.add(1)
    world.roll_up(1, published=False)
    assert world.asked() == ([], [])
    world.publish(1)
    world.running.clear()
    assert world.asked() == ([], [])


def test_what_was_rolled_back_is_not_asked_for_until_its_inputs_change(world: World) -> None:
    world.roll_back(1)
    assert world.asked() == world.asked(10) == ([], [])
    world.stage(1, points="2")
    assert world.asked() == ([], [1])


def test_what_was_asked_for_stays_remembered_while_it_cannot_be_made(world: World) -> None:
    """A folder that comes and goes, or a store that does not answer for a moment, brings no second run of what failed."""
    world.stage(4, points="2")
    world.stage(5)
    assert world.asked() == ([], [4, 5])
    left = world.pipeline.stage.folder(PARTIAL_POINTS, world.hour(3)) / "manifest.json"
    content = Path(left.path).read_bytes()
    Path(left.path).unlink()
    world.tick(10)
    Path(left.path).write_bytes(content)
    assert world.asked(10) == ([], [])


def test_a_look_reads_five_manifests_of_a_partition_and_each_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is a request where the stage is a bucket."""
    read = manifests_read(monkeypatch)
    assert world.asked() == ([], [])
    assert len(read) == len(set(read)) == 5 * HOURS


def test_one_rollup_of_a_partition_is_asked_for_at_a_time(world: World) -> None:
    world.stage(1, points="2")
    assert world.asked() == ([], [1])
    world.running.add(1)
    world.stage(1, points="3")
    assert world.asked() == ([], [])
    world.running.clear()
    assert world.asked() == ([], [1])


@pytest.mark.scenario("C3")
def test_a_partition_whose_predecessor_is_not_staged_is_not_asked_for(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    world = World(make_pipeline(tmp_path))
    world.land(0)
    world.land(1)
    world.stage(1)
    assert world.asked() == ([], [3])  # it has no points of its own, and reads 1 and 2
    assert world.asked(2) == ([0], [])
    world.running.add(0)
    assert world.tick().held_back == {}
    world.running.clear()  # it failed: nothing that is under way helps any more
    (held_back,) = world.tick().held_back.items()
    assert held_back[0] == world.hour(1).key
    assert f"need {PARTIAL_POINTS} {world.hour(0)}" in held_back[1]
    world.stage(0)
    found = world.tick()
    assert [request.batch for request in found.to_roll_up] == [world.hour(number) for number in range(3)]
    assert found.held_back == {}


def test_rows_that_come_after_a_limit_of_raw_files_was_changed_are_rolled_up_with_what_was_staged_before(
    world: World, make_pipeline: MakePipeline
) -> None:
    """The limits decide what a batch quarantines of its own files, and nothing that its neighbours read."""
    world.pipeline = make_pipeline(world.pipeline.settings.home, raw_group_size="4GiB", raw_file_rows=7, raw_name_size=100)
    restage(world, 1, points="2", left_open="2")
    found = world.tick()
    assert [request.batch for request in found.to_roll_up] == [world.hour(number) for number in (1, 2, 3)]
    assert found.held_back == {}


def test_rows_that_came_with_other_settings_than_their_neighbours_are_not_forgotten_in_silence(
    world: World, make_pipeline: MakePipeline
) -> None:
    world.pipeline = make_pipeline(world.pipeline.settings.home, lookback="30m")
    assert world.tick().held_back == {}, "all that is staged is in the table"
    restage(world, 1, points="2")
    found = world.tick()
    assert found.to_roll_up == []
    assert list(found.held_back) == [world.hour(1).key]
    assert "ROLLUP_LOOKBACK (now 30m, then 1h)" in found.held_back[world.hour(1).key]


# ------------------------------------------------------------------------------------------------------------------------- bounds


def test_a_look_asks_for_so_many_partitions_and_the_next_ones_for_the_rest(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MOST_REQUESTS", 2)
    for number in range(4):
        world.land(number, "late.parquet")
    world.tick()
    assert [world.asked(2), world.asked(), world.asked()] == [([0, 1], []), ([2, 3], []), ([], [])]
    for number in range(4):
        world.stage(number, left_open="2")
    assert [world.asked(), world.asked(), world.asked(), world.asked()] == [([], [0, 1]), ([], [2, 3]), ([], [4, 5]), ([], [])]


def test_what_is_remembered_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MOST_REMEMBERED", 2)
    monkeypatch.setattr(arrivals, "ALWAYS_SEEN", 1)
    for number in range(4):
        world.land(number, "late.parquet")
    assert world.tick().left_out == 2
    assert len(world.memory.arrivals) == 2
    assert world.asked(2) == ([0, 1], [])
    world.stage(0)
    world.stage(1)
    world.tick()
    world.tick()
    assert world.asked(2) == ([2, 3], [])


def test_what_was_asked_for_and_failed_keeps_no_other_from_being_asked_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stays remembered, so that it is not asked for again; of that there may be more."""
    monkeypatch.setattr(arrivals, "MOST_REMEMBERED", 2)
    monkeypatch.setattr(arrivals, "MOST_ASKED", 3)
    monkeypatch.setattr(arrivals, "ALWAYS_SEEN", 1)
    for number in range(5):
        world.land(number, "late.parquet")
    world.tick()
    assert world.asked(2) == ([0, 1], [])
    assert world.asked(2) == ([2, 3], [])
    assert world.tick(2).left_out == 1
    assert world.asked(2) == ([], [])


def test_a_backlog_does_not_keep_the_newest_waiting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "MOST_REMEMBERED", 2)
    monkeypatch.setattr(arrivals, "MOST_REQUESTS", 2)
    monkeypatch.setattr(arrivals, "ALWAYS_SEEN", 1)
    for number in range(HOURS):
        world.land(number, "late.parquet")
    world.tick()
    assert world.asked(2) == ([0, HOURS - 1], [])


def test_the_newest_are_told_from_the_others(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrivals, "ALWAYS_SEEN", 2)
    for number in (0, 4):
        world.land(number, "late.parquet")
    world.tick()
    assert [(request.batch, request.is_newest) for request in world.tick(2).to_stage] == [(world.hour(0), False), (world.hour(4), True)]
    for number in (0, 4):
        world.stage(number, points="2")
    assert [(request.batch, request.is_newest) for request in world.tick().to_roll_up] == [
        (world.hour(0), False),
        (world.hour(4), True),
        (world.hour(5), True),
    ]


def test_a_backlog_waits_while_enough_is_under_way_and_the_newest_do_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what waits is remembered: as soon as there is room it is asked for."""
    monkeypatch.setattr(arrivals, "ALWAYS_SEEN", 1)
    for number in (0, 1, HOURS - 1):
        world.land(number, "late.parquet")
    world.tick()
    world.under_way = arrivals.MOST_UNDER_WAY
    assert world.asked(2) == ([HOURS - 1], [])
    world.under_way -= 1
    assert world.asked() == ([0, 1], [])
    for number in (0, 1, HOURS - 1):
        world.stage(number, points="2")
    world.under_way += 1
    assert world.asked() == ([], [HOURS - 1])
    assert sorted(world.memory.rollups) == [world.hour(number).key for number in (0, 1, HOURS - 1)]
    world.under_way -= 1
    assert world.asked() == ([], [0, 1])


def test_so_many_rollups_that_failed_are_remembered_and_the_newest_are_asked_for_all_the_same(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "MOST_ASKED", 2)
    monkeypatch.setattr(arrivals, "ALWAYS_SEEN", 1)
    for number in range(4):
        world.stage(number, points="2")
    assert world.asked() == ([], [0, 1])
    assert world.tick(10).left_out == 2
    world.stage(HOURS - 1)
    assert world.asked() == ([], [HOURS - 1])
    for number in (0, 1, HOURS - 1):
        world.roll_up(number)
    assert world.asked() == ([], [2, 3])


def test_what_is_remembered_of_a_partition_is_short(world: World) -> None:
    """Dagster stores all of it anew with each look."""
    for number in range(4):
        world.land(number, "late.parquet")
    assert len(world.tick().memory.model_dump_json(exclude_defaults=True)) / 4 < 90
    world.tick(2)
    assert len(world.memory.model_dump_json(exclude_defaults=True)) / 4 < 60


def test_a_look_ends_in_time_and_the_next_one_goes_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the newest partition always, and everything sooner or later."""
    monkeypatch.setattr(arrivals, "ALWAYS_SEEN", 1)
    monkeypatch.setattr(arrivals, "_AT_A_TIME", 2)
    for number in range(4):
        world.land(number, "late.parquet")
    world.land(HOURS - 1)

    def until_the_second_chunk() -> Iterator[float]:
        yield 0
        while True:
            yield arrivals.SECONDS

    def tick() -> list[str]:
        return sorted(world.tick(clock=until_the_second_chunk().__next__).memory.arrivals)

    hours = [world.hour(number).key for number in range(HOURS)]
    assert tick() == [*hours[:2], hours[5]]
    assert world.memory.position == hours[2]
    assert tick() == [*hours[:4], hours[5]]
    assert tick() == [*hours[:4], hours[5]]
    assert world.memory.position == hours[0]


def test_a_look_ends_in_time_however_much_is_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered has its turn too, and neither it nor the rest keeps the other from being seen."""
    for number in range(4):
        world.land(number, "late.parquet")
    world.tick()
    monkeypatch.setattr(arrivals, "ALWAYS_SEEN", 1)
    monkeypatch.setattr(arrivals, "_AT_A_TIME", 1)
    world.now += dt.timedelta(minutes=2)
    looks = []
    for _ in range(HOURS - 1):
        world.memory = world.memory.model_copy(update={"position": world.hour(HOURS - 1).key})
        late = world.tick(clock=iter([0, *[arrivals.SECONDS] * 9]).__next__)
        looks.append([request.batch.start_time.hour for request in late.to_stage])
    assert looks == [[0], [1], [2], [3], []]


def test_a_memory_that_cannot_be_read_or_is_of_other_partitions_is_none(world: World) -> None:
    assert Memory.parse(None) == Memory.parse("") == Memory.parse("no JSON") == Memory.parse('{"arrivals": 3}') == Memory()
    of_before = '{"arrivals": {"2026-01-01-00:00": {"version": "a", "since": 0, "asked": true}}}'
    assert Memory.parse(of_before) == Memory()
    world.memory = Memory(
        arrivals={"2026-01-01-00:30": arrivals.Arrival(version="a", since=0), "no partition": arrivals.Arrival(version="a", since=0)},
        asked={"2026-01-01-00:45": "a"},
        rollups={"2999-01-01-00:00": "key"},
        position="2999-01-01-00:00",
    )
    assert world.asked() == ([], [])
    assert world.memory == Memory(position=world.hour(0).key)


def test_before_the_first_batch_has_ended_there_is_nothing_to_look_at(world: World) -> None:
    world.now = dt.datetime(2026, 1, 1, 0, 30, tzinfo=dt.UTC)
    assert world.asked() == ([], [])


def test_a_folder_that_cannot_be_listed_stops_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file whose name is no text, rights that are missing, and a file in a folder's place."""
    shutil.rmtree(world.folder(2), ignore_errors=True)
    world.folder(2).touch()
    Path(os.fsdecode(os.fsencode(world.folder(0)) + b"/\xff.parquet")).touch()
    forbid(monkeypatch, world.pipeline.landing_zone.folder(world.hour(1)))
    world.land(3, "late.parquet")
    found = world.tick()
    assert found.problems[world.hour(0).key].endswith("\\xff.parquet: its name is not UTF-8; rename or remove it")
    assert "cannot be listed (Permission denied)" in found.problems[world.hour(1).key]
    assert "is a file, where a batch's folder belongs" in found.problems[world.hour(2).key]
    assert world.asked(2) == ([3], [])


@pytest.mark.parametrize("asset", [REPARTITIONED, PARTIAL_POINTS, ROLLUPS])
def test_a_manifest_that_may_not_be_read_stops_no_other(world: World, asset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the next hour, of which nothing is staged, would read it."""
    shutil.rmtree(world.folder(1))
    for of in (REPARTITIONED, PARTIAL_POINTS, QUARANTINED):
        (world.pipeline.stage.folder(of, world.hour(1)) / "manifest.json").delete_file()
    forbid_file(monkeypatch, world.pipeline.stage.folder(asset, world.hour(0)) / "manifest.json")
    world.land(3, "late.parquet")
    found = world.tick()
    assert list(found.problems) == [world.hour(0).key]
    assert "manifest.json cannot be read (Permission denied)" in found.problems[world.hour(0).key]
    assert 3 in world.asked(2)[0]


def test_a_partition_that_cannot_be_looked_at_is_named_and_stops_no_other(world: World) -> None:
    (Path(world.pipeline.stage.folder(REPARTITIONED, world.hour(0)).path) / "manifest.json").write_text("{")
    world.land(3, "late.parquet")
    found = world.tick()
    assert list(found.problems) == [world.hour(0).key]
    assert "is not a manifest" in found.problems[world.hour(0).key]
    assert world.asked(2) == ([3], [])
