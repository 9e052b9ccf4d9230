"""What is planned is what a backfill then does: compared with the steps' own answers, whatever has changed since."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollup_assets.batches import Batch, to_datetime
from rollup_assets.code_version import CODE_VERSION
from rollup_assets.errors import RollupError
from rollup_assets.pipeline import Pipeline
from rollup_assets.plan import PartitionPlan, Plan, plan
from rollup_assets.scope import Scope, missing_before, scope_of
from rollup_assets.status import status
from rollup_assets.steps.results import Waiting
from rollup_assets.storage.manifests import PARTIAL_POINTS, REPARTITIONED, ROLLUP_TABLE, ROLLUPS, Manifest
from rollup_assets_tests.conftest import MakePipeline
from rollup_assets_tests.landing import write_bytes, write_rows
from rollup_assets_tests.naive import RawRow
from rollup_assets_tests.strategies import MINUTE

LATER = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)
HOURS = 5
"""Hours with raw files, of which the last is not staged; the next ones have none."""
Change = Callable[[Pipeline, Batch], None]


def hour(pipeline: Pipeline, number: int) -> Batch:
    found = pipeline.calendar.shifted(pipeline.calendar.first, number)
    assert found is not None
    return found


def rows(batch: Batch) -> list[RawRow]:
    return [RawRow(series, 1, "m", batch.start + 1 + minute * MINUTE, minute) for series in (1, 2, 3) for minute in (0, 20, 40)]


def scope(pipeline: Pipeline, first: int, last: int) -> Scope:
    calendar = pipeline.calendar
    return scope_of(calendar, hour(pipeline, first).key, hour(pipeline, last).key, pipeline.settings.reach, LATER)


# ------------------------------------------------------------------------------------------------- what a backfill does, by the steps


@dataclass
class Did:
    """What the steps said of one partition; None: not asked, or not come to."""

    staged: bool | None = None
    rolled_up: bool | None = None
    published: bool | None = None
    waited: bool = False
    failed: bool = False
    before: Manifest | None = None
    """The rollups as they were."""
    after: Manifest | None = None


def backfill(pipeline: Pipeline, chosen: Scope) -> dict[str, Did]:
    """The steps in the order of ``rollups backfill``."""
    from rollup_assets.steps.publish import publish
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.rollup import roll_up

    done: dict[str, Did] = {}
    for batch in (*missing_before(pipeline, chosen.asked[0]), *chosen.asked):
        done[batch.key] = Did(staged=not stage_batch(pipeline, batch).unchanged)
    for batch in (*chosen.asked, *chosen.trailing):
        did = done.setdefault(batch.key, Did())
        did.before = pipeline.stage.read(ROLLUPS, batch)
        try:
            rolled = roll_up(pipeline, batch)
        except RollupError:
            did.failed = True
            continue
        did.waited = isinstance(rolled, Waiting)
        if not isinstance(rolled, Waiting):
            did.rolled_up, did.after = not rolled.unchanged, rolled.manifest
            did.published = not publish(pipeline, batch).unchanged
    return done


def assert_came_true(planned: PartitionPlan, did: Did) -> None:
    context = f"{planned}\n{did}"
    assert (planned.stage.verdict == "yes") == bool(did.staged), context
    assert bool(planned.problem) == did.failed or (planned.problem and planned.roll_up.verdict == MAYBE and did.rolled_up is False), context
    assert bool(planned.waiting_for) == did.waited, context
    if did.rolled_up is None:
        assert planned.problem or planned.waiting_for or planned.roll_up.verdict == "no", context
        return
    assert did.after is not None
    changed = did.before is None or did.before.upstream != did.after.upstream
    assert did.rolled_up == {"yes": True, "no": False, "if it changes": changed}[planned.roll_up.verdict], context
    other = did.before is None or (did.before.digest, did.before.attempt) != (did.after.digest, did.after.attempt)
    assert did.published == {"yes": True, "no": False, "if it changes": other}[planned.publish.verdict], context


# ------------------------------------------------------------------------------------------------------------- what may have changed


def late_file(pipeline: Pipeline, batch: Batch) -> None:
    """Its points are the batch's last ones, so that its partial points change."""
    write_rows(pipeline, batch, "late.parquet", [RawRow(1, 1, "m", batch.end - 1, 7)])


def early_file(pipeline: Pipeline, batch: Batch) -> None:
    """Points in the middle of the batch: what it leaves open stays."""
    write_rows(pipeline, batch, "early.parquet", [RawRow(1, 1, "m", batch.start + 30 * MINUTE, 7)])


def first_file(pipeline: Pipeline) -> Callable[[Batch], Path]:
    return lambda batch: Path(pipeline.landing_zone.folder(batch).path) / "a.parquet"


def same_again(pipeline: Pipeline, batch: Batch) -> None:
    file = first_file(pipeline)(batch)
    if file.exists():
        shutil.copyfile(file, file.with_name(".copy"))
        file.with_name(".copy").replace(file)


def changed(pipeline: Pipeline, batch: Batch) -> None:
    write_rows(pipeline, batch, "a.parquet", [*rows(batch), RawRow(9, 1, "another metric", batch.start + 5, 1)])


def removed(pipeline: Pipeline, batch: Batch) -> None:
    first_file(pipeline)(batch).unlink(missing_ok=True)


def emptied(pipeline: Pipeline, batch: Batch) -> None:
    shutil.rmtree(pipeline.landing_zone.folder(batch).path, ignore_errors=True)


def test_a_landing_zone_that_is_gone_is_foreseen_to_fail(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    """As the run does: nothing would be emptied."""
    from rollup_assets.errors import LandingZoneError
    from rollup_assets.steps.repartition import stage_batch

    pipeline = make_pipeline(tmp_path)
    batch = pipeline.calendar.first
    write_rows(pipeline, batch, "a.parquet", rows(batch))
    stage_batch(pipeline, batch)
    shutil.rmtree(pipeline.landing_zone.root.path)
    found = plan(pipeline, scope_of(pipeline.calendar, batch.key, batch.key, pipeline.settings.reach, LATER)).partitions[0]
    with pytest.raises(LandingZoneError) as error:
        stage_batch(pipeline, batch)
    assert found.problem == str(error.value)
    assert (found.roll_up.verdict, found.publish.verdict) == ("no", "no")


def lost(asset: str, name: str = "*.parquet") -> Change:
    def lose(pipeline: Pipeline, batch: Batch) -> None:
        manifest = pipeline.stage.read(asset, batch)
        if manifest is None:
            return
        if name == "manifest.json":
            (pipeline.stage.folder(asset, batch) / name).delete_file()
        elif manifest.files:
            pipeline.stage.place(manifest, manifest.files[0], batch).delete_file()

    lose.__name__ = f"lost_{name}_of_{asset}"
    return lose


CHANGES: list[Change] = [
    late_file,
    early_file,
    same_again,
    changed,
    removed,
    emptied,
    lost(REPARTITIONED),
    lost(PARTIAL_POINTS),
    lost(ROLLUPS),
    lost(REPARTITIONED, "manifest.json"),
    lost(ROLLUPS, "manifest.json"),
    lost(ROLLUP_TABLE, "manifest.json"),
]
SETTINGS: list[dict[str, Any]] = [{}, {"lookback": "30m"}, {"parquet_encoding": "compatible"}, {"table": "metrics.another"}]


@dataclass
class Site:
    """Four published hours and a fifth that is not staged, as often as they are asked for."""

    home: Path
    saved: Path
    make: MakePipeline

    def fresh(self, **settings: Any) -> Pipeline:
        """In the same folder each time: the table's files have absolute paths."""
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.copytree(self.saved, self.home)
        return self.make(self.home, **settings)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, make_pipeline: MakePipeline) -> Site:
    folder = tmp_path_factory.mktemp("plan")
    pipeline = make_pipeline(folder / "home")
    for number in range(HOURS - 1):
        batch = hour(pipeline, number)
        write_rows(pipeline, batch, "a.parquet", rows(batch)[::2])
        write_rows(pipeline, batch, "b.parquet", rows(batch)[1::2])
    chosen = scope(pipeline, 0, HOURS - 2)
    planned = plan(pipeline, chosen)
    done = backfill(pipeline, chosen)
    for partition in planned.partitions:
        assert_came_true(partition, done[partition.partition])
    last = hour(pipeline, HOURS - 1)
    write_rows(pipeline, last, "a.parquet", rows(last))
    shutil.copytree(folder / "home", folder / "saved")
    return Site(folder / "home", folder / "saved", make_pipeline)


def compared(pipeline: Pipeline, chosen: Scope) -> Plan:
    """The plan, after what it says has come true."""
    planned = plan(pipeline, chosen)
    done = backfill(pipeline, chosen)
    assert [partition.partition for partition in planned.partitions] == sorted(done)
    for partition in planned.partitions:
        assert_came_true(partition, done[partition.partition])
    return planned


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_each_change_is_planned_as_the_steps_then_do_it(site: Site, change: Change) -> None:
    pipeline = site.fresh()
    change(pipeline, hour(pipeline, 1))
    planned = compared(pipeline, scope(pipeline, 1, 1))
    assert not planned.nothing_to_do
    again = plan(pipeline, scope(pipeline, 1, 1))
    assert all(partition.roll_up.verdict == "no" for partition in again.partitions if not partition.waiting_for)
    assert again.nothing_to_do


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_has_changed_the_plan_comes_true(site: Site, data: st.DataObject) -> None:
    _came_true(site, data)


@pytest.mark.thorough
@pytest.mark.scenario("C4", "L1")
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_whatever_has_changed_the_plan_comes_true_in_many_cases(site: Site, data: st.DataObject) -> None:
    _came_true(site, data)


def _came_true(site: Site, data: st.DataObject) -> None:
    pipeline = site.fresh(**data.draw(st.sampled_from(SETTINGS), "settings"))
    for change, number in data.draw(st.lists(st.tuples(st.sampled_from(CHANGES), st.integers(0, HOURS)), max_size=4), "changes"):
        change(pipeline, hour(pipeline, number))
    first = data.draw(st.integers(0, HOURS), "first")
    last = data.draw(st.integers(first, HOURS), "last")
    compared(pipeline, scope(pipeline, first, last))


# ------------------------------------------------------------------------------------------------------------------- what it says


def verdicts(planned: Plan) -> list[tuple[str, str, str]]:
    return [(found.stage.verdict, found.roll_up.verdict, found.publish.verdict) for found in planned.partitions]


MAYBE = "if it changes"


def test_where_nothing_has_changed_there_is_nothing_to_do(site: Site) -> None:
    pipeline = site.fresh()
    planned = plan(pipeline, scope(pipeline, 0, 2))
    assert planned.nothing_to_do
    assert verdicts(planned) == [("no", "no", "no")] * 5
    assert [found.raw_rows for found in planned.partitions] == [9, 9, 9, 9, None]
    assert (planned.rows_to_stage, planned.partitions[0].rollup_rows) == (0, 18)


def test_a_late_file_is_named_with_what_may_follow(site: Site) -> None:
    pipeline = site.fresh()
    late_file(pipeline, hour(pipeline, 1))
    planned = plan(pipeline, scope(pipeline, 0, 2))
    assert verdicts(planned) == [("no", "no", "no"), ("yes", MAYBE, MAYBE), ("no", MAYBE, MAYBE), ("no", MAYBE, MAYBE), ("no", "no", "no")]
    late = planned.partitions[1]
    (reason,) = late.stage.reasons
    assert reason == "new raw file year=2026/month=01/day=01/hour=01/late.parquet"
    assert [(found.path.rpartition("/")[2], found.change) for found in late.raw_files] == [("late.parquet", "new")]
    assert planned.rows_to_stage == late.raw_rows == 10
    digest = digest_of(pipeline, PARTIAL_POINTS, 1)
    assert planned.partitions[3].roll_up.reasons == (f"{PARTIAL_POINTS} {hour(pipeline, 1)} would be staged again, {digest[:8]} now",)


def digest_of(pipeline: Pipeline, asset: str, number: int) -> str:
    manifest = pipeline.stage.read(asset, hour(pipeline, number))
    assert manifest is not None
    return manifest.digest


def test_a_lost_file_of_a_partition_that_may_follow_is_foreseen(site: Site) -> None:
    """It is staged again only if it is asked for; a change of the one before needs it."""
    pipeline = site.fresh()
    late_file(pipeline, hour(pipeline, 0))
    lost(REPARTITIONED)(pipeline, hour(pipeline, 1))
    planned = compared(pipeline, scope(pipeline, 0, 0))
    problem = planned.partitions[1].problem or ""
    assert problem.startswith("unless its inputs turn out to be unchanged: ")
    assert f"rollups backfill {hour(pipeline, 1)} {hour(pipeline, 1)}" in problem


def test_lost_files_of_rollups_are_foreseen_where_what_they_read_may_stay_as_it_is(site: Site) -> None:
    pipeline = site.fresh()
    same_again(pipeline, hour(pipeline, 0))
    lost(ROLLUPS)(pipeline, hour(pipeline, 0))
    (first, *_) = compared(pipeline, scope(pipeline, 0, 0)).partitions
    assert first.roll_up.verdict == "yes"
    assert "of rollups is missing" in first.roll_up.reasons[0]


def test_a_partition_that_cannot_be_looked_at_is_foreseen_to_fail_and_stops_no_other(site: Site) -> None:
    pipeline = site.fresh()
    late_file(pipeline, hour(pipeline, 0))
    (Path(pipeline.stage.folder(REPARTITIONED, hour(pipeline, 1)).path) / "manifest.json").write_text("{")
    first, damaged, *_ = plan(pipeline, scope(pipeline, 0, 2)).partitions
    assert (first.stage.verdict, first.problem) == ("yes", None)
    assert "is not a manifest" in str(damaged.problem)
    # Before the range: what needs it fails with it, the others do not.
    (Path(pipeline.stage.folder(PARTIAL_POINTS, hour(pipeline, 1)).path) / "manifest.json").write_text("{")
    before, *_, unneeding = plan(pipeline, scope(pipeline, 2, 4)).partitions
    assert (before.partition, unneeding.problem) == (hour(pipeline, 1).key, None)
    assert "is not a manifest" in str(before.problem)
    # A receipt, of one that is not asked to be staged.
    pipeline = site.fresh()
    (Path(pipeline.stage.folder(ROLLUP_TABLE, hour(pipeline, 3)).path) / "manifest.json").write_text("{")
    trailing = plan(pipeline, scope(pipeline, 0, 2)).partitions[3]
    assert "is not a manifest" in str(trailing.problem)


def test_what_needs_a_partition_that_cannot_be_staged_is_foreseen_to_fail_with_it(site: Site) -> None:
    """In the words of the backfill, although all of it is published and staged from earlier files."""
    pipeline = site.fresh()
    late_file(pipeline, hour(pipeline, 0))
    Path(os.fsdecode(os.fsencode(pipeline.landing_zone.folder(hour(pipeline, 1)).path) + b"/\xff.parquet")).touch()
    problems = [found.problem for found in plan(pipeline, scope(pipeline, 0, 1)).partitions]
    needs = f"needs {PARTIAL_POINTS} {hour(pipeline, 1)}, which failed"
    assert problems[0] is None
    assert "its name is not UTF-8" in str(problems[1])
    assert problems[2:] == [needs, needs]
    planned = plan(pipeline, scope(pipeline, 0, 3)).partitions
    assert [found.problem for found in planned[2:]] == [needs, needs, None, None]


def test_a_file_where_a_batchs_folder_belongs_fails_its_partition_alone(site: Site) -> None:
    pipeline = site.fresh()
    folder = Path(pipeline.landing_zone.folder(hour(pipeline, 3)).path)
    shutil.rmtree(folder, ignore_errors=True)
    folder.touch()
    *others, found = plan(pipeline, scope(pipeline, 0, 3)).partitions[:4]
    assert "is a file, where a batch's folder belongs" in str(found.problem)
    assert [other.problem for other in others] == [None] * 3


def test_every_kind_of_change_of_raw_files_is_named(site: Site) -> None:
    pipeline = site.fresh()
    batch = hour(pipeline, 1)
    same_again(pipeline, batch)
    write_rows(pipeline, batch, "b.parquet", rows(batch) * 50)
    for number in range(5):
        write_rows(pipeline, batch, f"new-{number}.parquet", rows(batch)[:1])
    (first, *_) = plan(pipeline, scope(pipeline, 1, 1)).partitions
    folder = "year=2026/month=01/day=01/hour=01"
    assert first.stage.reasons == (
        f"5 new raw files: {folder}/new-0.parquet, {folder}/new-1.parquet, {folder}/new-2.parquet and 2 more",
        f"changed raw file {folder}/b.parquet",
        f"replaced raw file {folder}/a.parquet",
    )
    removed(pipeline, batch)
    (first, *_) = plan(pipeline, scope(pipeline, 1, 1)).partitions
    assert f"removed raw file {folder}/a.parquet" in first.stage.reasons


def test_digests_of_what_was_staged_alone_are_told_as_old_and_new(site: Site) -> None:
    from rollup_assets.steps.repartition import stage_batch

    pipeline = site.fresh()
    before = digest_of(pipeline, PARTIAL_POINTS, 1)
    late_file(pipeline, hour(pipeline, 1))
    stage_batch(pipeline, hour(pipeline, 1))
    planned = plan(pipeline, scope(pipeline, 2, 2))
    after = digest_of(pipeline, PARTIAL_POINTS, 1)
    assert planned.partitions[0].roll_up.reasons == (f"{PARTIAL_POINTS} {hour(pipeline, 1)} has changed: {before[:8]} → {after[:8]}",)
    assert verdicts(planned) == [("no", "yes", MAYBE), ("no", "yes", MAYBE), ("no", "no", "no")]


def test_settings_and_code_are_told(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = site.fresh(lookback="30m")
    (first, *_) = plan(pipeline, scope(pipeline, 0, 0)).partitions
    assert first.stage.reasons == ("datapoints: made with another ROLLUP_LOOKBACK (now 30m, then 1h)",)
    pipeline = site.fresh()
    monkeypatch.setattr("rollup_assets.steps.changes.CODE_VERSION", "99")
    (first, *_) = plan(pipeline, scope(pipeline, 0, 0)).partitions
    assert first.stage.reasons == (f"datapoints: made by code version {CODE_VERSION}, this is 99",)
    assert first.roll_up.reasons[0] == f"rollups: made by code version {CODE_VERSION}, this is 99"


def test_settings_that_the_table_refuses_are_refused_as_by_a_backfill(site: Site) -> None:
    from rollup_assets.errors import TableMismatchError

    pipeline = site.fresh(resolutions="1m,1h")
    with pytest.raises(TableMismatchError, match="ROLLUP_RESOLUTIONS"):
        plan(pipeline, scope(pipeline, 0, 0))
    with pytest.raises(TableMismatchError, match="ROLLUP_RESOLUTIONS"):
        plan(pipeline, scope(pipeline, 10, 10))  # of which nothing is published


def test_a_trailing_partition_that_is_not_staged_waits_and_the_one_after_it_too(site: Site) -> None:
    pipeline = site.fresh()
    planned = plan(pipeline, scope(pipeline, 2, 3))
    assert [found.waiting_for for found in planned.partitions[2:]] == [
        (f"{REPARTITIONED} {hour(pipeline, 4)}",),
        (f"{PARTIAL_POINTS} {hour(pipeline, 4)}",),
    ]
    assert planned.partitions[2].raw_rows is None


def test_missing_earlier_partitions_would_be_staged_and_not_rolled_up(site: Site) -> None:
    pipeline = site.fresh()
    compared_plan = compared(pipeline, scope(pipeline, 5, 5))
    assert compared_plan.partitions[0].partition == hour(pipeline, 4).key
    assert verdicts(compared_plan)[0] == ("yes", "no", "no")
    assert (compared_plan.partitions[0].raw_rows, compared_plan.rows_to_stage) == (9, 9)


def test_a_table_that_lost_its_rows_is_filled_again(site: Site) -> None:
    from rollup_assets.iceberg.catalog import load_catalog

    pipeline = site.fresh()
    load_catalog(pipeline.settings).drop_table(pipeline.settings.table)
    planned = compared(pipeline, scope(pipeline, 1, 2))
    assert verdicts(planned)[:2] == [("no", "no", "yes")] * 2
    assert planned.partitions[0].publish.reasons == ("the table has 0 rows of the batch instead of 21",)


def lose_last_publishes(site: Site, pipeline: Pipeline) -> None:
    """Publish hour 1 with other points, and hour 2 with it; then set the catalog back, as a standby without the last commits is."""
    database = site.home / "catalog.db"
    saved = database.read_bytes()
    changed(pipeline, hour(pipeline, 1))
    backfill(pipeline, scope(pipeline, 1, 1))
    database.write_bytes(saved)


@pytest.mark.parametrize("lost_of", [2, 1], ids=["its own publish", "the publish before"])
def test_a_catalog_that_was_set_back_is_foreseen_to_stop_everything_from_the_first_publish_on(site: Site, lost_of: int) -> None:
    """Also where the lost publish is that of the batch before, which is not asked for."""
    from rollup_assets.errors import PublishHaltError
    from rollup_assets.steps.publish import publish

    pipeline = site.fresh()
    lose_last_publishes(site, pipeline)
    if lost_of == 1:
        lost(ROLLUP_TABLE, "manifest.json")(pipeline, hour(pipeline, 2))
    planned = plan(pipeline, scope(pipeline, 2, 3))
    first, *rest = planned.partitions
    with pytest.raises(PublishHaltError) as error:
        publish(pipeline, hour(pipeline, 2))
    assert (first.problem, first.fails_at) == (str(error.value), "publish")
    assert f"batch {hour(pipeline, lost_of)} was published" in str(first.problem)
    not_tried = f"not tried, since the publish of {hour(pipeline, 2)} stops everything"
    assert [(each.problem, each.fails_at, each.waiting_for) for each in rest] == [(not_tried, "roll up", ())] * 3
    assert (planned.nothing_to_do, planned.failing) == (False, 4)


def test_a_backfill_that_stops_stages_nothing_in_its_later_runs(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = site.fresh()
    lose_last_publishes(site, pipeline)
    late_file(pipeline, hour(pipeline, 2))
    late_file(pipeline, hour(pipeline, 3))
    monkeypatch.setattr("rollup_assets.plan.PARTITIONS_PER_RUN", 2)
    planned = plan(pipeline, scope(pipeline, 1, 3))
    assert [found.stage.verdict for found in planned.partitions] == ["no", "yes", "no", "no", "no"]
    assert [found.fails_at for found in planned.partitions] == ["publish", "roll up", "stage", "roll up", "roll up"]
    assert planned.rows_to_stage == planned.partitions[1].raw_rows


def test_a_damaged_receipt_of_the_batch_before_is_foreseen_and_stops_no_other(site: Site) -> None:
    from rollup_assets.errors import StageCorruptError
    from rollup_assets.steps.publish import publish

    pipeline = site.fresh()
    (Path(pipeline.stage.folder(ROLLUP_TABLE, hour(pipeline, 0)).path) / "manifest.json").write_text("{")
    first, second, *_ = plan(pipeline, scope(pipeline, 1, 2)).partitions
    with pytest.raises(StageCorruptError) as error:
        publish(pipeline, hour(pipeline, 1))
    assert (first.problem, first.fails_at) == (str(error.value), "publish")
    assert second.problem is None


def test_a_plan_in_which_something_fails_is_not_called_nothing_to_do_and_counts_what_is_done(site: Site) -> None:
    from rollup_assets.errors import QuarantineError
    from rollup_assets.steps.repartition import stage_batch

    pipeline = site.fresh()
    bad = hour(pipeline, 1)
    write_bytes(pipeline, bad, "bad.parquet", b"")
    with pytest.raises(QuarantineError):
        stage_batch(pipeline, bad)
    planned = plan(pipeline, scope(pipeline, 1, 1))
    assert [found.fails_at for found in planned.partitions] == ["stage", "roll up", "roll up"]
    assert (planned.nothing_to_do, planned.rows_to_stage, planned.failing) == (False, 0, 3)
    # What needs a partition that is not part of the backfill, and fails for that alone.
    pipeline = site.fresh()
    last = hour(pipeline, HOURS)
    write_rows(pipeline, last, "a.parquet", rows(last))
    stage_batch(pipeline, last)
    planned = compared(pipeline, scope(pipeline, HOURS - 2, HOURS - 2))
    assert planned.partitions[-1].fails_at == "roll up"
    assert (planned.nothing_to_do, planned.failing) == (False, 1)


def test_a_publish_that_was_set_aside_is_foreseen_to_be_repeated_although_there_are_as_many_rows(site: Site) -> None:
    from rollup_assets.iceberg.catalog import load_catalog

    pipeline = site.fresh()
    batch, chosen = hour(pipeline, HOURS - 2), scope(pipeline, HOURS - 2, HOURS - 2)
    before = pipeline.stage.read(ROLLUP_TABLE, batch)
    write_rows(pipeline, batch, "a.parquet", [replace(row, value=7) for row in rows(batch)[::2]])
    backfill(pipeline, chosen)
    receipt = pipeline.stage.read(ROLLUP_TABLE, batch)
    assert before is not None
    assert receipt is not None
    assert receipt.counters["rows"] == before.counters["rows"]
    table = load_catalog(pipeline.settings).load_table(pipeline.settings.table)
    table.manage_snapshots().rollback_to_snapshot(before.counters["snapshot_id"]).commit()
    planned = compared(pipeline, chosen).partitions[0]
    assert planned.publish.verdict == "yes"
    assert f"snapshot {receipt.counters['snapshot_id']}, which published them, was replaced" in planned.publish.reasons[0]
    assert plan(pipeline, chosen).partitions[0].publish.verdict == "no"


@pytest.mark.parametrize("moved", [["table"], ["warehouse", "catalog"]], ids=["another name", "another warehouse"])
def test_another_table_of_the_same_stage_gets_data_files_of_its_own(moved: list[str], site: Site) -> None:
    """Its rows are those of the table before, which can be dropped with its files."""
    from rollup_assets.iceberg.catalog import load_catalog
    from rollup_assets.iceberg.table import data_location, table_location

    before = site.fresh()
    places = {
        "table": "metrics.rollups_2",
        "warehouse": str(site.home / "warehouse_2"),
        "catalog": f"sqlite:///{site.home}/catalog_2.db",
    }
    pipeline = site.make(site.home, **{name: places[name] for name in moved})
    first = hour(pipeline, 0)
    old = pipeline.stage.read(ROLLUPS, first)
    assert old is not None
    said = f"rollups: made for another table: {old.files[0].path} does not lie in {data_location(pipeline.settings).path}"
    assert said in status(pipeline.settings, [first])[0].stale
    planned = compared(pipeline, scope(pipeline, 0, HOURS - 2))
    assert planned.partitions[0].roll_up.reasons == (said,)
    assert plan(pipeline, scope(pipeline, 0, HOURS - 2)).nothing_to_do
    new = pipeline.stage.read(ROLLUPS, first)
    assert new is not None
    assert new.digest == old.digest

    def content(of: Pipeline) -> Any:
        # The last hour is not staged, and waits.
        until = to_datetime(hour(of, HOURS - 1).start).isoformat()
        found = load_catalog(of.settings).load_table(of.settings.table).scan(f"logical_timestamp < '{until}'").to_arrow()
        return found.sort_by([(name, "ascending") for name in ("resolution", "id", "logical_timestamp")])

    rows = content(before)
    assert rows.num_rows
    table = load_catalog(pipeline.settings).load_table(pipeline.settings.table)
    files = [task.file.file_path for task in table.scan().plan_files()]
    assert files
    assert all(path.startswith(f"{table.location()}/") for path in files)
    load_catalog(before.settings).drop_table(before.settings.table)
    shutil.rmtree(table_location(before.settings))
    assert content(pipeline).equals(rows)


def test_what_was_rolled_back_is_told_and_stays_out_until_something_changes(site: Site) -> None:
    from rollup_assets.history.rollback import rollback

    pipeline = site.fresh()
    rollback(pipeline, hour(pipeline, 1).key)
    planned = compared(pipeline, scope(pipeline, 1, 1))
    assert planned.nothing_to_do
    assert "were rolled back" in str(planned.partitions[0].refused)
    late_file(pipeline, hour(pipeline, 1))
    planned = compared(pipeline, scope(pipeline, 1, 1))
    assert verdicts(planned)[0] == ("yes", MAYBE, MAYBE)


def test_files_that_were_over_the_limit_before_are_told_so(site: Site) -> None:
    from rollup_assets.errors import QuarantineError
    from rollup_assets.steps.repartition import stage_batch

    pipeline = site.fresh()
    write_bytes(pipeline, hour(pipeline, 1), "bad.parquet", b"")
    with pytest.raises(QuarantineError):
        stage_batch(pipeline, hour(pipeline, 1))
    (first, *_) = plan(pipeline, scope(pipeline, 1, 1)).partitions
    assert "earlier attempt" in first.stage.reasons[-1]
    (first, *_) = plan(site.make(site.home, quarantine_files=1), scope(pipeline, 1, 1)).partitions
    assert len(first.stage.reasons) == 1
    assert first.problem is None


def test_files_that_were_over_the_limit_before_are_foreseen_to_fail_again_with_all_that_needs_them(site: Site) -> None:
    from rollup_assets.errors import QuarantineError
    from rollup_assets.steps.repartition import stage_batch

    pipeline = site.fresh()
    bad, chosen = hour(pipeline, 1), scope(pipeline, 1, 1)
    write_bytes(pipeline, bad, "bad.parquet", b"")
    assert plan(pipeline, chosen).partitions[0].problem is None
    with pytest.raises(QuarantineError):
        stage_batch(pipeline, bad)
    planned = plan(pipeline, chosen)
    problem = f"more of {bad} is quarantined than the settings allow; see `rollups quarantine show {bad}`"
    assert [found.problem for found in planned.partitions] == [problem, *[f"needs partial_points {bad}, which failed"] * 2]
    assert verdicts(planned) == [("yes", "no", "no"), ("no", "no", "no"), ("no", "no", "no")]
    with pytest.raises(QuarantineError):
        stage_batch(pipeline, bad)
    write_bytes(pipeline, bad, "bad.parquet", b"0")
    assert plan(pipeline, chosen).partitions[0].problem is None


def test_whether_files_that_were_over_the_limit_before_fail_again_is_open_with_other_settings_or_code(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told is what they were tried with."""
    from rollup_assets.errors import QuarantineError
    from rollup_assets.steps.repartition import stage_batch

    pipeline = site.fresh()
    bad, chosen = hour(pipeline, 1), scope(pipeline, 1, 1)
    write_bytes(pipeline, bad, "bad.parquet", b"")
    with pytest.raises(QuarantineError):
        stage_batch(pipeline, bad)
    # One bad file is one, whatever is done about copies.
    assert plan(site.make(site.home, raw_copies="report"), chosen).partitions[0].problem
    monkeypatch.setattr("rollup_assets.steps.changes.CODE_VERSION", "99")
    of_other_code = plan(pipeline, chosen).partitions[0]
    monkeypatch.undo()
    of_other_settings = plan(site.make(site.home, lookback="30m"), chosen).partitions[0]
    for first in (of_other_code, of_other_settings):
        assert "earlier attempt with these files" in first.stage.reasons[-1]
        # With other settings what the batch before was staged with does not fit either, which is another problem.
        assert "quarantine show" not in str(first.problem)


@pytest.mark.parametrize(("tried", "now"), [("once", "report"), ("report", "once")])
def test_whether_a_bad_file_and_its_copy_fail_again_is_open_where_copies_are_treated_otherwise(site: Site, tried: str, now: str) -> None:
    from rollup_assets.errors import QuarantineError
    from rollup_assets.steps.repartition import stage_batch

    site.fresh()
    pipeline, other = site.make(site.home, raw_copies=tried), site.make(site.home, raw_copies=now)
    bad, chosen = hour(pipeline, 1), scope(pipeline, 1, 1)
    for name in ("bad.parquet", "copy.parquet"):
        write_bytes(pipeline, bad, name, b"no Parquet file at all")
    with pytest.raises(QuarantineError):
        stage_batch(pipeline, bad)
    first = plan(other, chosen).partitions[0]
    assert "earlier attempt with these files" in first.stage.reasons[-1]
    assert first.problem is None
    assert plan(pipeline, chosen).partitions[0].problem


def test_planning_changes_nothing(site: Site) -> None:
    pipeline = site.fresh()
    late_file(pipeline, hour(pipeline, 1))

    def files() -> Sequence[tuple[str, int, int]]:
        return sorted((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in site.home.rglob("*"))

    before = files()
    plan(pipeline, scope(pipeline, 0, HOURS))
    assert files() == before
