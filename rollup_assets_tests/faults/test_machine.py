"""The whole product, driven by chance: whatever is done to it, in whatever order, the table holds what a dictionary of points says.

Hypothesis chooses what happens: files that come, change and vanish, batches that are made, publishes that are crossed by other
publishers, killed at a failpoint or answered wrongly by the catalog, snapshots that expire, compactions, leftovers that are cleaned away,
restarts, upgrades. Everything is real but for its size, on local files and SQLite: three hours of a few points. The model remembers the
rows of each file; what the table must then hold is computed by the reference model (``naive.py``).

How many examples, and how long: ``ROLLUP_TEST_EXAMPLES=1000 make test-faults`` takes hours. ``--seed`` repeats a run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from rollup_assets import failpoints
from rollup_assets.batches import Batch
from rollup_assets.cleaning import clean
from rollup_assets.errors import NotStagedError, PublishHaltError, ReconciliationError, StaleInputError
from rollup_assets.iceberg import commit as committing
from rollup_assets.iceberg import locks, reading
from rollup_assets.iceberg.catalog import open_catalog
from rollup_assets.iceberg.table import load_table
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import load_settings
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.results import RolledUp
from rollup_assets.steps.rollup import roll_up
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS
from rollup_assets_tests.faults.mutations import MUTATIONS
from rollup_assets_tests.landing import write_rows
from rollup_assets_tests.naive import Point, RawRow, Rows, accept, partial_points_of, rollups_of, rollups_of_batch
from rollup_assets_tests.staged import ROLLUP_COLUMNS, assert_same, shards_and_rows

# Read before the session's fixture hides it.
EXAMPLES = int(os.environ.get("ROLLUP_TEST_EXAMPLES", "0"))

HOUR = 3_600_000
HOURS = 3
REACH = 2
RESOLUTIONS = (HOUR // 2, HOUR)
NAMES = ("a.parquet", "b.parquet", "c.parquet")
ANSWERS = ("lost", "lost and away", "never arrived", "called a conflict")
STAGED = (REPARTITIONED, PARTIAL_POINTS, QUARANTINED, ROLLUPS)
PUBLISHING = ("publish.locked", "publish.planned", "publish.commit", "publish.committed", "manifest.before.rollup_table")
KILLED_AT = tuple(name for name in failpoints.FAILPOINTS if not name.startswith("event."))

batches = st.integers(0, HOURS - 1)
offsets = st.sampled_from((0, 1, HOUR // 2, HOUR // 2 + 1, HOUR - 1)) | st.integers(0, HOUR - 1)
rows_of_a_file = st.lists(
    st.tuples(st.sampled_from((1, 2, None)), offsets, st.integers(0, 5)), max_size=4
)  # series, ms after the hour, value; a row without a series is quarantined


class Killed(BaseException):
    """Stands for the death of the process: nothing of it runs on, and nothing is tidied up."""


class Product(RuleBasedStateMachine):
    """``contents``: the rows of every raw file there ever was, by path and version. ``generations``: what each batch's range may hold,
    in the order in which it came to be: the rows that follow from what was staged at some time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp(prefix="machine-"))
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(committing, "_LONGEST_WAIT", 0.0)
        self.version = 0
        self.settings = load_settings(
            home=str(self.home), shards=2, threads=1, memory="256MiB", resolutions=RESOLUTIONS, quarantine_limit=1.0, keep_snapshots=4
        )
        self.pipeline = Pipeline.from_settings(self.settings)
        calendar = self.settings.calendar
        self.batches = list(calendar.between(calendar.first, calendar.containing(calendar.first.start + (HOURS + REACH - 1) * HOUR)))
        self.contents: dict[tuple[str, str], list[RawRow]] = {}
        self.generations: dict[Batch, list[Rows]] = {batch: [{}] for batch in self.batches}
        self.acknowledged = dict.fromkeys(self.batches, 0)

    def teardown(self) -> None:
        """However it went, one backfill of everything mends everything."""
        try:
            self.backfill_everything()
        finally:
            self.patch.undo()
            shutil.rmtree(self.home)

    # What comes and goes in the landing zone.

    @rule(number=batches, name=st.sampled_from(NAMES), drawn=rows_of_a_file)
    def a_file_comes_or_changes(self, number: int, name: str, drawn: list[tuple[int | None, int, int]]) -> None:
        batch = self.batches[number]
        rows = [RawRow(series, 7, "metric", batch.start + offset, value) for series, offset, value in drawn]
        write_rows(self.pipeline, batch, name, rows)
        for file in self.pipeline.landing_zone.files(batch):
            self.contents.setdefault((file.path, file.version), rows)

    @rule(number=batches, name=st.sampled_from(NAMES))
    def a_file_is_deleted(self, number: int, name: str) -> None:
        (self.pipeline.landing_zone.folder(self.batches[number]) / name).delete_file()

    # What the product does.

    @rule(number=batches)
    def a_batch_is_staged(self, number: int) -> None:
        stage_batch(self.pipeline, self.batches[number])

    @rule(number=st.integers(0, HOURS + REACH - 1), force=st.booleans())
    def a_batch_is_made(self, number: int, force: bool) -> None:
        self.make(self.batches[number], force=force)

    @rule(first=batches, count=st.integers(1, HOURS))
    def batches_are_backfilled(self, first: int, count: int) -> None:
        self.backfill(self.batches[first : first + count + REACH])

    @rule()
    def everything_is_backfilled(self) -> None:
        self.backfill_everything()

    # What comes between.

    @rule(number=st.integers(0, HOURS + REACH - 1), at=st.sampled_from(KILLED_AT), skip=st.integers(0, 2))
    def it_is_killed(self, number: int, at: str, skip: int) -> None:
        """The n-th time that it passes a failpoint."""
        passed = [0]

        with pytest.MonkeyPatch.context() as dead:

            def kill(name: str) -> None:
                passed[0] += name == at
                if name == at and passed[0] > skip:
                    dead.setattr(Place, "delete_file", lambda _: None)
                    dead.setattr(Place, "delete_folder", lambda _: None)
                    raise Killed

            with failpoints.handled(kill), contextlib.suppress(Killed):
                self.backfill(self.batches[number : number + 1 + REACH])
        self.it_is_started_again()

    @rule(
        number=st.integers(0, HOURS + REACH - 1),
        other=st.none() | st.integers(0, HOURS + REACH - 1),
        at=st.sampled_from(PUBLISHING),
        name=st.sampled_from(NAMES),
        before=st.none() | rows_of_a_file,
        drawn=st.none() | rows_of_a_file,
        expires=st.booleans(),
    )
    def another_publisher_comes_between(
        self,
        number: int,
        other: int | None,
        at: str,
        name: str,
        before: list[tuple[int | None, int, int]] | None,
        drawn: list[tuple[int | None, int, int]] | None,
        expires: bool,
    ) -> None:
        """On another machine, whose lock is not ours, as on a catalog without one; perhaps with files that have changed, for the first
        publisher or for both. Without a batch of its own it has the first one's: that is where safeguards are needed.
        """
        other = number if other is None else other
        if before is not None:
            self.a_file_comes_or_changes(min(number, HOURS - 1), NAMES[0], before)
        due = [True]

        def come_between(passed: str) -> None:
            if passed == at and due.pop():
                due.append(False)
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(locks, "table_lock", lambda _settings: contextlib.nullcontext(locks.TableLock()))
                    if drawn is not None:
                        self.a_file_comes_or_changes(min(other, HOURS - 1), name, drawn)
                    self.make(self.batches[other])
                if expires:
                    self.snapshots_expire()
            elif passed == at:
                due.append(False)

        with failpoints.handled(come_between):
            self.make(self.batches[number], force=True)

    @rule(number=st.integers(0, HOURS + REACH - 1), answers=st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=3))
    def the_catalog_answers_wrongly(self, number: int, answers: list[str]) -> None:
        with answering(list(answers)):
            self.make(self.batches[number])

    @rule()
    def snapshots_expire(self) -> None:
        """All but the current one, at somebody else's hands."""
        with open_catalog(self.settings) as catalog:
            table = load_table(catalog, self.settings)
            if table is not None and (old := [one.snapshot_id for one in table.snapshots() if one != table.current_snapshot()]):
                table.maintenance.expire_snapshots().by_ids(old).commit()

    @rule()
    def the_table_is_compacted(self) -> None:
        """One file for each resolution and day, whatever batches they are of."""
        with open_catalog(self.settings) as catalog:
            table = load_table(catalog, self.settings)
            if table is not None and table.current_snapshot() is not None:
                table.overwrite(table.scan().to_arrow())

    @rule()
    def leftovers_are_cleaned_away(self) -> None:
        """Of whatever age: nothing else runs."""
        report = clean(self.settings, older_than=0, delete=True)
        assert report.failures == []
        for asset in STAGED:
            for batch in self.batches:
                manifest = self.pipeline.stage.read(asset, batch)
                assert manifest is None or self.pipeline.stage.is_complete(manifest, batch)

    @rule()
    def it_is_started_again(self) -> None:
        """What a process knows is gone."""
        reading._decoded.clear()
        self.pipeline = Pipeline.from_settings(self.settings)

    @precondition(lambda self: self.version < 2)
    @rule()
    def it_is_upgraded(self) -> None:
        """To a version whose steps claim to make something else."""
        self.version += 1
        for name, module in list(sys.modules.items()):
            if name.startswith("rollup_assets.") and hasattr(module, "CODE_VERSION"):
                self.patch.setattr(module, "CODE_VERSION", f"upgraded {self.version}")

    # What must hold.

    @invariant()
    def every_range_holds_one_generation(self) -> None:
        """Whole, and none older than one whose publish was acknowledged."""
        found = self.table()
        for batch in self.batches:
            possible = self.generations[batch][self.acknowledged[batch] :]
            if not any(found[batch] == rows for rows in possible):
                assert_same(found[batch], possible[-1])

    @invariant()
    def rows_are_conserved(self) -> None:
        for batch in self.batches:
            manifest = self.pipeline.stage.read(REPARTITIONED, batch)
            if manifest is not None:
                counts = manifest.counters
                assert counts["rows_read"] == counts["rows_accepted"] + counts["duplicates"] + counts["rows_quarantined"]
                assert counts["rows_accepted"] == len(self.staged(REPARTITIONED, batch))

    def backfill_everything(self) -> None:
        """The table is what follows from all raw files, in one go over the whole history; and a rerun changes nothing."""
        self.backfill(self.batches)
        points = [point for batch in self.batches for point in self.landed(batch)]
        expected = rollups_of(points, RESOLUTIONS, HOUR)
        found = self.table()
        assert_same({key: row for rows in found.values() for key, row in rows.items()}, expected)
        before = self.state()
        self.backfill(self.batches)
        assert self.state() == before

    # How it is done.

    def make(self, batch: Batch, *, force: bool = False) -> None:
        """Stage, roll up and publish one batch; what it needs may not be staged, or change meanwhile."""
        stage_batch(self.pipeline, batch)
        self.roll_up_and_publish(batch, force=force)

    def backfill(self, some: list[Batch]) -> None:
        for batch in some:
            stage_batch(self.pipeline, batch)
        for batch in some:
            self.roll_up_and_publish(batch)

    def roll_up_and_publish(self, batch: Batch, *, force: bool = False) -> None:
        pipeline = self.pipeline
        with contextlib.suppress(NotStagedError, StaleInputError):
            if isinstance(roll_up(pipeline, batch, force=force), RolledUp):
                generation = self.note(batch)
                publish(pipeline, batch, force=force)
                self.acknowledged[batch] = max(self.acknowledged[batch], generation)

    def note(self, batch: Batch) -> int:
        """The number of the generation that follows from what is staged now."""
        points = self.staged(REPARTITIONED, batch)
        earlier = [self.staged(PARTIAL_POINTS, before) for before in self.settings.calendar.earlier(batch, REACH)] + [[], []]
        previous, before = (partial_points_of(earlier[back], batch.start - back * HOUR, RESOLUTIONS, HOUR) for back in range(REACH))
        rows = rollups_of_batch(points, previous, before, batch.start, batch.end, RESOLUTIONS, HOUR)
        generations = self.generations[batch]
        if generations[-1] != rows:
            generations.append(rows)
        return len(generations) - 1

    def staged(self, asset: str, batch: Batch) -> list[Point]:
        """The points that an asset was made from."""
        manifest = self.pipeline.stage.read(asset, batch)
        if manifest is None:
            return []
        return self.accepted(batch, {file.path: self.contents[file.path, file.version] for file in manifest.inputs})

    def landed(self, batch: Batch) -> list[Point]:
        """The points that are in the landing zone."""
        files = self.pipeline.landing_zone.files(batch)
        return self.accepted(batch, {file.path: self.contents[file.path, file.version] for file in files})

    def accepted(self, batch: Batch, files: dict[str, list[RawRow]]) -> list[Point]:
        return accept(dict(files), batch.start, batch.end).points

    def table(self) -> dict[Batch, Rows]:
        """What a reader finds of each batch, every window once."""
        found: dict[Batch, Rows] = {batch: {} for batch in self.batches}
        with open_catalog(self.settings) as catalog:
            table = load_table(catalog, self.settings)
            if table is None or table.current_snapshot() is None:
                return found
            content = table.scan(selected_fields=tuple(ROLLUP_COLUMNS)).to_arrow().select(ROLLUP_COLUMNS)
        for _, row in shards_and_rows(content):
            rows = found[self.settings.calendar.containing(row.label)]
            key = (row.id, row.resolution, row.label)
            assert key not in rows, f"{key} is there twice"
            rows[key] = row
        return found

    def state(self) -> object:
        """What a rerun leaves as it is."""
        assets = (REPARTITIONED, PARTIAL_POINTS, QUARANTINED, ROLLUP_TABLE)
        manifests = [self.pipeline.stage.read(asset, batch) for asset in assets for batch in self.batches]
        with open_catalog(self.settings) as catalog:
            table = load_table(catalog, self.settings)
            return manifests, table and table.metadata.current_snapshot_id


@contextlib.contextmanager
def answering(answers: list[str]) -> Iterator[None]:
    """Have the catalog's next answers to commits be these."""
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.exceptions import CommitFailedException

    commit, load, away = SqlCatalog.commit_table, SqlCatalog.load_table, [0]

    def commit_table(self: Any, *arguments: Any) -> Any:
        answer = answers.pop() if answers else ""
        if answer == "never arrived":
            raise ConnectionError("connection refused")
        done = commit(self, *arguments)
        if answer == "called a conflict":
            raise CommitFailedException("table has been updated by another process")
        if answer:
            away[0] = 2 * (answer == "lost and away")
            raise ConnectionError("connection reset")
        return done

    def load_table(self: Any, identifier: Any) -> Any:
        away[0] -= 1
        if away[0] >= 0:
            raise ConnectionError("connection refused")
        return load(self, identifier)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SqlCatalog, "commit_table", commit_table)
        patch.setattr(SqlCatalog, "load_table", load_table)
        yield


def run(seed: int, examples: int, steps: int, *, without: Sequence[str] = (), shrink: bool = True) -> None:
    """The machine with a seed of its own, without some of its rules.

    A failure prints the steps that lead to it, as few as can be found if ``shrink``.
    """
    machine: Callable[[], Product] = hypothesis.seed(seed)(type("Seeded", (Product,), dict.fromkeys(without)))
    settings = hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        phases=[hypothesis.Phase.generate, *([hypothesis.Phase.shrink] if shrink else [])],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(machine, settings=settings)  # type: ignore[no-untyped-call]


APART = (
    "a_file_is_deleted",
    "a_batch_is_staged",
    "a_batch_is_made",
    "batches_are_backfilled",
    "it_is_killed",
    "the_catalog_answers_wrongly",
    "the_table_is_compacted",
    "leftovers_are_cleaned_away",
    "it_is_started_again",
    "it_is_upgraded",
)
"""Rules of one publisher alone: what is left is files that change, publishers that meet, and snapshots that expire."""


@pytest.mark.scenario("C1", "C4", "C5", "K1", "K2", "K3", "K4", "L1", "P1", "P2", "U1")
def test_whatever_is_done_the_table_is_what_the_points_say(seed: int) -> None:
    run(seed, examples=4, steps=12)


@pytest.mark.thorough
@pytest.mark.timeout(0)
@pytest.mark.scenario("C1", "C4", "C5", "K1", "K2", "K3", "K4", "L1", "P1", "P2", "U1")
def test_whatever_is_done_for_long_the_table_is_what_the_points_say(seed: int) -> None:
    """As long as `ROLLUP_TEST_EXAMPLES` says; some minutes by default."""
    run(seed + 1, examples=EXAMPLES or 40, steps=30)


@pytest.mark.scenario("C1", "C5")
def test_a_publisher_whose_snapshot_was_replaced_and_expired_before_it_looked_does_not_cry_halt() -> None:
    """Found by the machine with seed 201: the rows of the newer publish were taken for damage of the older one."""
    machine = Product()
    try:
        machine.another_publisher_comes_between(
            number=0, other=None, at="publish.committed", name=NAMES[0], before=[(1, 0, 0)], drawn=[], expires=True
        )
        machine.every_range_holds_one_generation()
    finally:
        machine.teardown()


@pytest.mark.scenario("C1")
@pytest.mark.parametrize("at", PUBLISHING)
def test_without_a_lock_older_rows_that_are_committed_after_an_empty_publish_do_not_stay(at: str) -> None:
    """Found with seed 305: the empty publish makes no snapshot that the other's commit could meet."""
    machine = Product()
    batch = machine.batches[0]
    try:
        machine.make(batch)
        machine.another_publisher_comes_between(number=0, other=None, at=at, name=NAMES[0], before=[(1, 0, 0)], drawn=[], expires=False)
        assert machine.table()[batch] == machine.generations[batch][-1] == {}
        receipt, staged = (machine.pipeline.stage.read(asset, batch) for asset in (ROLLUP_TABLE, ROLLUPS))
        assert receipt is not None
        assert staged is not None
        assert receipt.upstream[ROLLUPS] == {batch.key: staged.digest}
    finally:
        machine.teardown()


@pytest.mark.thorough
@pytest.mark.scenario("P2")
@pytest.mark.parametrize(
    ("mutation", "without"),
    [
        # Noticed only where publishers meet: among all rules that was found within 300 s with one seed, not within 600 s with another.
        ("digest", APART),
        ("validation", APART),
        ("delete filter", ()),
        ("duplicate rule", ()),
    ],
)
def test_the_machine_notices_that_a_safeguard_is_missing(seed: int, mutation: str, without: tuple[str, ...]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        MUTATIONS[mutation](patch)
        # The product may notice first: windows that are there twice.
        with pytest.raises((AssertionError, PublishHaltError, ReconciliationError)):
            run(seed, examples=300, steps=25, without=without, shrink=False)
