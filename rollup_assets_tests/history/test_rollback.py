"""Going back: the rows of an earlier snapshot in a new one, and nothing that was undone comes back by itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from rollup_assets.batches import Batch
from rollup_assets.errors import PublishError, PublishHaltError, RollbackError, UnknownPartitionError, UnknownSnapshotError
from rollup_assets.history import records
from rollup_assets.history import rollback as history
from rollup_assets.history.migrate import migrate
from rollup_assets.history.records import read_record
from rollup_assets.history.rejections import BEGUN, REJECTED, is_begun, rejected_digests
from rollup_assets.history.rollback import rollback
from rollup_assets.iceberg import commit as committing
from rollup_assets.iceberg.catalog import load_catalog, open_catalog
from rollup_assets.iceberg.commit import bring_about
from rollup_assets.iceberg.migration import MigratedTable, settings_of_table
from rollup_assets.iceberg.snapshots import ATTEMPT_PROPERTY, MIGRATED_PROPERTY, said
from rollup_assets.iceberg.table import ensure_table
from rollup_assets.pipeline import Pipeline
from rollup_assets.status import status
from rollup_assets.steps.publish import publish
from rollup_assets.storage.manifests import ROLLUP_TABLE, ROLLUPS
from rollup_assets_tests.history.published import publish_value, raw_file, snapshots, stage_value, wait_side_by_side
from rollup_assets_tests.iceberg.staging import (
    add_compacted,
    batches_from,
    flip_a_bit,
    live_and_deleted_paths,
    load,
    pipeline_in,
    rollup_rows,
    rows_of,
    value_by_batch,
)
from rollup_assets_tests.iceberg.test_publish import commits, compact


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return pipeline_in(tmp_path, resolutions="1m,1h")


def state(pipeline: Pipeline, batch: Batch) -> str:
    (found,) = status(pipeline.settings, [batch])
    return found.state


def everything(pipeline: Pipeline) -> list[tuple[Any, ...]]:
    return rows_of(load(pipeline), "id", "resolution", "logical_timestamp", "sum_rollup", "metric", "metric_shard_id")


def assert_has_ended(pipeline: Pipeline, what: str, batches: list[Batch]) -> None:
    """Running it again leaves every receipt as it is, and no migration takes the rollback for one that was begun."""
    receipts = [pipeline.stage.read(ROLLUP_TABLE, batch) for batch in batches]
    other = dataclasses.replace(pipeline, settings=pipeline.settings.model_copy(update={"shards": 8}))
    for _ in range(2):
        assert not rollback(pipeline, what).changed
        assert [pipeline.stage.read(ROLLUP_TABLE, batch) for batch in batches] == receipts
        assert not any(is_begun(receipt) for receipt in receipts)
        found = migrate(other)
        assert (found.begun, found.rolled_back) == ((), tuple(batch.key for batch in batches))


def files_on_disk(pipeline: Pipeline) -> set[str]:
    return {str(path) for path in Path(load(pipeline).location(), "data").rglob("*.parquet")}


# ------------------------------------------------------------------------------------------------------------------ a partition


def test_a_partition_gets_the_rows_it_had_before_its_last_publish(pipeline: Pipeline) -> None:
    """In one new snapshot; its neighbours, published before and after, stay."""
    first, second, third = batches_from(pipeline, 3)
    publish_value(pipeline, first, 1)
    publish_value(pipeline, second, 2)
    good = everything(pipeline)
    publish_value(pipeline, second, 99, series=5)
    publish_value(pipeline, third, 3)
    before = snapshots(pipeline)
    done = rollback(pipeline, second.key)
    assert done.changed
    assert snapshots(pipeline) == [*before, done.snapshot_id]
    assert load(pipeline).metadata.current_snapshot_id == done.snapshot_id
    assert value_by_batch(pipeline) == {first.key: {1}, second.key: {2}, third.key: {3}}
    assert [row for row in everything(pipeline) if row[3] != 3] == good
    (partition,) = done.partitions
    assert (partition.partition, partition.rows_before, partition.rows_after) == (second.key, {"1m": 300, "1h": 5}, {"1m": 180, "1h": 3})
    assert done.also_published == (third.key,)
    said = load(pipeline).current_snapshot().summary.additional_properties  # type: ignore[union-attr]
    assert said["rollup.rolled-back"] == second.key
    assert said["rollup.rolled-back-to"] == str(before[1])


def test_the_first_publish_of_a_partition_is_undone_by_emptying_it(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    done = rollback(pipeline, batch.key)
    assert (done.target, done.changed) == (None, True)
    assert rows_of(load(pipeline)) == []
    assert state(pipeline, batch) == "rolled back"
    assert_has_ended(pipeline, batch.key, [batch])


@pytest.mark.parametrize("is_named", [False, True])
def test_a_receipt_that_took_its_rollback_for_begun_is_mended_by_running_it_again(pipeline: Pipeline, *, is_named: bool) -> None:
    """Earlier versions rejected what stands for the digest of rows that are not known, of the partition or of the whole table."""
    first, second = batches_from(pipeline, 2)
    target = publish_value(pipeline, first, 1).snapshot_id
    publish_value(pipeline, second, 2)
    what = second.key if is_named else str(target)
    rollback(pipeline, what)
    receipt = pipeline.stage.read(ROLLUP_TABLE, second)
    assert receipt is not None
    both = sorted([*rejected_digests(receipt), receipt.digest])
    pipeline.stage.write(receipt.model_copy(update={"counters": {**receipt.counters, REJECTED: both}}), second)
    rollback(pipeline, what)
    assert pipeline.stage.read(ROLLUP_TABLE, second) == receipt
    assert_has_ended(pipeline, what, [second])


def test_rolled_back_content_is_published_again_only_if_it_changes_or_by_force(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    publish_value(pipeline, batch, 99)
    assert state(pipeline, batch) == "published"
    rollback(pipeline, batch.key)
    assert state(pipeline, batch) == "rolled back"
    made = snapshots(pipeline)
    refused = publish(pipeline, batch)
    assert value_by_batch(pipeline) == {batch.key: {1}}
    assert refused.unchanged
    assert refused.refused is not None
    assert "until their inputs change" in refused.refused
    assert f"rollups backfill {batch.key} {batch.key} --force" in refused.refused
    assert snapshots(pipeline) == made
    # Other content is published, and the content that was undone stays unwanted also after that.
    assert publish_value(pipeline, batch, 3).refused is None
    assert state(pipeline, batch) == "published"
    bad = stage_value(pipeline, batch, value=99)
    receipt = pipeline.stage.read(ROLLUP_TABLE, batch)
    assert receipt is not None
    assert bad.digest in receipt.counters["rejected"]
    assert publish(pipeline, batch).refused is not None
    assert value_by_batch(pipeline) == {batch.key: {3}}
    assert publish(pipeline, batch, force=True).refused is None
    assert value_by_batch(pipeline) == {batch.key: {99}}
    # What was forced is no longer unwanted.
    assert publish(pipeline, batch).refused is None
    assert state(pipeline, batch) == "published"


@pytest.mark.parametrize("undone", [False, True])
def test_content_that_was_rolled_back_and_is_published_by_force_comes_as_copies(pipeline: Pipeline, *, undone: bool) -> None:
    """Where the rollback was undone before, they are there already, and nothing is left to do."""
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    published = publish_value(pipeline, batch, 99).snapshot_id
    rollback(pipeline, batch.key)
    if undone:
        rollback(pipeline, batch.key, to=str(published))
    assert publish(pipeline, batch, force=True).unchanged == undone
    live, deleted = live_and_deleted_paths(load(pipeline))
    assert not live & deleted
    assert value_by_batch(pipeline) == {batch.key: {99}}
    made, files = snapshots(pipeline), files_on_disk(pipeline)
    assert publish(pipeline, batch, force=True).unchanged
    assert (snapshots(pipeline), files_on_disk(pipeline)) == (made, files)


@pytest.mark.parametrize("whole", [False, True])
def test_corrected_content_that_a_rollback_has_brought_back_comes_from_the_rollback(pipeline: Pipeline, *, whole: bool) -> None:
    """Where another engine sets the rollback aside, the bad rows are there again, as many, and are noticed: they do not stay."""
    (batch,) = batches_from(pipeline, 1)
    good = publish_value(pipeline, batch, 1, raw_file("a"))
    bad = publish_value(pipeline, batch, 99, raw_file("a"), raw_file("b")).snapshot_id
    assert bad is not None
    record = read_record(pipeline.stage, batch, good.receipt.attempt)
    back = rollback(pipeline, str(good.snapshot_id) if whole else batch.key).snapshot_id
    made = snapshots(pipeline)
    assert publish_value(pipeline, batch, 1, raw_file("corrected")).snapshot_id == back
    assert snapshots(pipeline) == made
    assert read_record(pipeline.stage, batch, good.receipt.attempt) == record
    load(pipeline).manage_snapshots().rollback_to_snapshot(bad).commit()
    assert value_by_batch(pipeline) == {batch.key: {99}}
    assert not publish(pipeline, batch).unchanged
    assert value_by_batch(pipeline) == {batch.key: {1}}
    assert publish(pipeline, batch).unchanged


def test_content_found_in_place_is_known_by_the_commit_that_it_came_from(pipeline: Pipeline) -> None:
    """Not by the current snapshot's, which may be about another batch: nothing would know what its rows were made from."""
    first, second = batches_from(pipeline, 2)
    good = publish_value(pipeline, first, 1, raw_file("a"))
    publish_value(pipeline, first, 99, raw_file("b"))
    back = rollback(pipeline, first.key)
    publish_value(pipeline, second, 2, raw_file("c"))
    made = snapshots(pipeline)
    receipt = publish_value(pipeline, first, 1, raw_file("corrected")).receipt
    assert snapshots(pipeline) == made
    assert back.snapshot_id is not None
    snapshot = load(pipeline).snapshot_by_id(back.snapshot_id)
    assert snapshot is not None
    assert receipt.attempt == said(snapshot, ATTEMPT_PROPERTY) != good.receipt.attempt
    record = read_record(pipeline.stage, first, receipt.attempt)
    assert record is not None
    assert record.rolled_back_to == good.snapshot_id


def test_content_found_in_place_that_a_rollback_of_the_table_left_alone_is_known_by_its_publish(pipeline: Pipeline) -> None:
    """The rollback is about every batch, and has no record of those that it did not change."""
    first, second = batches_from(pipeline, 2)
    published = publish_value(pipeline, first, 1, raw_file("a"))
    publish_value(pipeline, second, 99, raw_file("b"))
    rollback(pipeline, str(published.snapshot_id))
    made = snapshots(pipeline)
    (pipeline.stage.folder(ROLLUP_TABLE, first) / "manifest.json").delete_file()
    receipt = publish(pipeline, first).receipt
    assert snapshots(pipeline) == made
    assert receipt.attempt == receipt.counters["attempt"] == published.receipt.attempt


def test_content_found_in_place_whose_publish_has_expired_is_known_by_its_record(tmp_path: Path) -> None:
    """Not by the only snapshot that is kept, which is about another batch."""
    pipeline = pipeline_in(tmp_path, resolutions="1h", keep_snapshots=1)
    first, second = batches_from(pipeline, 2)
    published = publish_value(pipeline, first, 1, raw_file("a"))
    publish_value(pipeline, second, 2, raw_file("b"))
    made = snapshots(pipeline)
    assert published.snapshot_id not in made
    (pipeline.stage.folder(ROLLUP_TABLE, first) / "manifest.json").delete_file()
    receipt = publish(pipeline, first).receipt
    assert snapshots(pipeline) == made
    assert receipt.attempt == receipt.counters["attempt"] == published.receipt.attempt


def test_a_rollback_again_changes_nothing(pipeline: Pipeline) -> None:
    """Somebody whose connection broke may run it again; the undone publish does not come back."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1)
    publish_value(pipeline, first, 99)
    done = rollback(pipeline, first.key)
    publish_value(pipeline, second, 2)
    made, receipt = snapshots(pipeline), pipeline.stage.read(ROLLUP_TABLE, first)
    again = rollback(pipeline, first.key)
    assert (again.changed, again.snapshot_id, again.target) == (False, None, done.target)
    assert snapshots(pipeline) == made
    assert pipeline.stage.read(ROLLUP_TABLE, first) == receipt
    assert value_by_batch(pipeline) == {first.key: {1}, second.key: {2}}


def test_a_rollback_is_undone_by_going_to_the_publish_that_it_undid(pipeline: Pipeline) -> None:
    """Then the rows are those that are staged, and what it had gone back to is what is not wanted."""
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    undone = publish_value(pipeline, batch, 99).snapshot_id
    rollback(pipeline, batch.key)
    rollback(pipeline, batch.key, to=str(undone))
    assert value_by_batch(pipeline) == {batch.key: {99}}
    assert state(pipeline, batch) == "published"
    made = snapshots(pipeline)
    assert publish(pipeline, batch).unchanged
    assert snapshots(pipeline) == made
    stage_value(pipeline, batch, value=1)
    assert publish(pipeline, batch).refused is not None


def test_a_partition_can_go_back_further(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    first = publish_value(pipeline, batch, 1).snapshot_id
    for value in (2, 3):
        publish_value(pipeline, batch, value)
    rollback(pipeline, batch.key, to=str(first))
    assert value_by_batch(pipeline) == {batch.key: {1}}
    for value in (1, 2, 3):
        stage_value(pipeline, batch, value=value)
        # The second was replaced by a publish, not rolled back.
        assert (publish(pipeline, batch).refused is not None) == (value == 3)


def test_files_come_back_as_copies(pipeline: Pipeline) -> None:
    """A path that metadata calls both deleted and there is deleted from disk by engines that expire snapshots by what they deleted."""
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    old = {task.file.file_path for task in load(pipeline).scan().plan_files()}
    publish_value(pipeline, batch, 99)
    rollback(pipeline, batch.key)
    assert not old & {task.file.file_path for task in load(pipeline).scan().plan_files()}


def test_rows_in_a_file_that_others_have_compacted_come_back(pipeline: Pipeline) -> None:
    """Before and after the bad publish, files hold rows of several batches."""
    batches = batches_from(pipeline, 3)
    for number, batch in enumerate(batches):
        publish_value(pipeline, batch, number)
    compact(pipeline)
    good = everything(pipeline)
    publish_value(pipeline, batches[1], 99)
    compact(pipeline)
    rollback(pipeline, batches[1].key)
    assert everything(pipeline) == good


def test_partitions_that_no_kept_snapshot_published_name_what_there_is(pipeline: Pipeline) -> None:
    first, second = batches_from(pipeline, 2)
    made = publish_value(pipeline, first, 1).snapshot_id
    with pytest.raises(UnknownSnapshotError, match=rf"none of the kept snapshots published {second.key}.*--to SNAPSHOT.*known are {made}"):
        rollback(pipeline, second.key)
    with pytest.raises(UnknownPartitionError):
        rollback(pipeline, "yesterday")
    with pytest.raises(UnknownSnapshotError, match=f"no snapshot 12, or it has expired; known are {made}"):
        rollback(pipeline, "12")
    with pytest.raises(RollbackError, match="leave one of them out"):
        rollback(pipeline, str(made), to=str(made))


def test_a_table_that_is_not_there_cannot_go_back(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    with pytest.raises(RollbackError, match="there is no table"):
        rollback(pipeline, batch.key)


def test_a_snapshot_that_has_expired_is_named(tmp_path: Path) -> None:
    pipeline = pipeline_in(tmp_path, resolutions="1h", keep_snapshots=1)
    (batch,) = batches_from(pipeline, 1)
    gone = publish_value(pipeline, batch, 1).snapshot_id
    publish_value(pipeline, batch, 2)
    assert gone not in snapshots(pipeline)
    with pytest.raises(
        RollbackError, match=r"the snapshot before \d+, which had the rows.*has expired \(ROLLUP_KEEP_SNAPSHOTS=1\).*rollups backfill"
    ):
        rollback(pipeline, batch.key)
    assert value_by_batch(pipeline) == {batch.key: {2}}


def test_files_that_are_gone_are_named_and_nothing_is_left_behind(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    lost = sorted(task.file.file_path for task in load(pipeline).scan().plan_files())[-1]
    publish_value(pipeline, batch, 99)
    Path(lost).unlink()
    before = files_on_disk(pipeline)
    with pytest.raises(RollbackError, match=rf"{lost}, which snapshot \d+ of metrics.rollups needs, is gone"):
        rollback(pipeline, batch.key)
    assert files_on_disk(pipeline) == before
    assert value_by_batch(pipeline) == {batch.key: {99}}
    assert publish(pipeline, batch).refused
    publish(pipeline, batch, force=True)
    assert not is_begun(pipeline.stage.read(ROLLUP_TABLE, batch))
    assert value_by_batch(pipeline) == {batch.key: {99}}


@pytest.mark.scenario("S3")
def test_a_file_that_is_damaged_is_not_rewritten(pipeline: Pipeline) -> None:
    """One that holds rows of other partitions, too, comes back as new files: a wrong number would get a checksum of its own."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1)
    path = add_compacted(pipeline, (first, second), 7)
    publish_value(pipeline, second, 99)
    flip_a_bit(path, 7)
    before = (snapshots(pipeline), files_on_disk(pipeline))
    message = r"compacted\.parquet of metrics\.rollups is damaged .*checksum.*the table was left as it was\. Choose another snapshot"
    with pytest.raises(PublishError, match=message):
        rollback(pipeline, second.key)
    assert (snapshots(pipeline), files_on_disk(pipeline)) == before


@pytest.mark.parametrize("force", [True, False])
def test_a_mark_of_a_rollback_that_came_to_nothing_is_gone_once_the_batch_is_published(pipeline: Pipeline, *, force: bool) -> None:
    """Where only content of long ago is unwanted, there is nothing to refuse."""
    (batch,) = batches_from(pipeline, 1)
    receipt = publish_value(pipeline, batch, 1).receipt
    marked = receipt.model_copy(update={"counters": {**receipt.counters, REJECTED: ["long ago"], BEGUN: True}})
    pipeline.stage.write(marked, batch)
    publish(pipeline, batch, force=force)
    assert not is_begun(pipeline.stage.read(ROLLUP_TABLE, batch))
    assert value_by_batch(pipeline) == {batch.key: {1}}


def test_a_rollback_ends_where_the_stage_has_nothing(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    publish_value(pipeline, batch, 99)
    for asset in (ROLLUPS, ROLLUP_TABLE):
        (pipeline.stage.folder(asset, batch) / "manifest.json").delete_file()
    rollback(pipeline, batch.key)
    receipt = pipeline.stage.read(ROLLUP_TABLE, batch)
    assert receipt is not None
    assert not is_begun(receipt)
    assert value_by_batch(pipeline) == {batch.key: {1}}


def test_a_dry_run_says_what_would_change_and_changes_nothing(pipeline: Pipeline) -> None:
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1)
    publish_value(pipeline, second, 2)
    publish_value(pipeline, first, 99)
    before = (snapshots(pipeline), everything(pipeline), pipeline.stage.read(ROLLUP_TABLE, first), files_on_disk(pipeline))
    found = rollback(pipeline, first.key, dry_run=True, first_differences=1)
    assert (found.changed, found.snapshot_id) == (True, None)
    assert found.difference is not None
    assert [(partition.partition, partition.changed) for partition in found.difference.partitions] == [(first.key, {"1m": 180, "1h": 3})]
    (window,) = found.difference.windows
    assert window.values["sum_rollup"] == (99, 1)
    assert (snapshots(pipeline), everything(pipeline), pipeline.stage.read(ROLLUP_TABLE, first), files_on_disk(pipeline)) == before
    assert state(pipeline, first) == "published"


# -------------------------------------------------------------------------------------------------------------------- the table


def test_the_whole_table_goes_back_to_a_snapshot(pipeline: Pipeline) -> None:
    """What was added, changed and emptied since; and foreign rows. Nothing of it comes back by itself."""
    first, second, third = batches_from(pipeline, 3)
    publish_value(pipeline, first, 1)
    target = publish_value(pipeline, second, 2).snapshot_id
    good = everything(pipeline)
    publish_value(pipeline, first, 99)
    publish_value(pipeline, second, 2, rows={})
    publish_value(pipeline, third, 3)
    load(pipeline).append(rollup_rows(pipeline.settings, third, 60_000, 2, value=50, first_id=500))
    made = snapshots(pipeline)
    done = rollback(pipeline, str(target))
    assert snapshots(pipeline) == [*made, done.snapshot_id]
    assert everything(pipeline) == good
    assert [partition.partition for partition in done.partitions] == [first.key, second.key, third.key]
    assert [state(pipeline, batch) for batch in (first, second, third)] == ["rolled back"] * 3
    for batch in (first, second, third):
        assert publish(pipeline, batch).refused is not None
    assert everything(pipeline) == good
    assert not rollback(pipeline, str(target)).changed
    assert len(snapshots(pipeline)) == len(made) + 1


@pytest.mark.parametrize(("module", "function"), [(records, "origin_of"), (history, "_reject"), (history, "_note")])
def test_on_a_store_elsewhere_the_partitions_are_asked_for_side_by_side(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, module: Any, function: str
) -> None:
    """One after the other, thousands of them would keep the table's lock for minutes."""
    first, second, third = batches_from(pipeline, 3)
    target, *_ = [publish_value(pipeline, batch, 1).snapshot_id for batch in (first, second, third)]
    publish_value(pipeline, first, 2)
    with monkeypatch.context() as patch:
        wait_side_by_side(patch, history, module, function, 3)
        rollback(pipeline, str(target))
    assert value_by_batch(pipeline) == {first.key: {1}}
    assert_has_ended(pipeline, str(target), [first, second, third])


def test_partitions_that_did_not_change_stay_published_when_the_table_goes_back(pipeline: Pipeline) -> None:
    """Also where a compaction has put their rows into other files."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1)
    target = publish_value(pipeline, second, 2).snapshot_id
    compact(pipeline)
    publish_value(pipeline, second, 99)
    rollback(pipeline, str(target))
    assert [state(pipeline, batch) for batch in (first, second)] == ["published", "rolled back"]
    assert publish(pipeline, first).unchanged
    assert value_by_batch(pipeline) == {first.key: {1}, second.key: {2}}


def test_rows_of_others_in_no_partition_of_ours_go_without_a_receipt(pipeline: Pipeline) -> None:
    first, second = batches_from(pipeline, 2)
    target = publish_value(pipeline, first, 1).snapshot_id
    load(pipeline).append(rollup_rows(pipeline.settings, second, 60_000, 2))
    assert rollback(pipeline, str(target)).changed
    assert value_by_batch(pipeline) == {first.key: {1}}
    assert pipeline.stage.batches(ROLLUP_TABLE, pipeline.calendar) == [first]


def test_going_back_to_the_present_changes_nothing(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    now = publish_value(pipeline, batch, 1).snapshot_id
    done = rollback(pipeline, str(now))
    assert (done.changed, done.partitions, snapshots(pipeline)) == (False, (), [now])
    assert state(pipeline, batch) == "published"


def test_a_snapshot_that_another_engine_has_set_aside_can_come_back(pipeline: Pipeline) -> None:
    first, second = batches_from(pipeline, 2)
    kept = publish_value(pipeline, first, 1).snapshot_id
    aside = publish_value(pipeline, second, 2).snapshot_id
    assert kept is not None
    load(pipeline).manage_snapshots().rollback_to_snapshot(kept).commit()
    assert value_by_batch(pipeline) == {first.key: {1}}
    assert rollback(pipeline, str(aside)).changed
    assert value_by_batch(pipeline) == {first.key: {1}, second.key: {2}}


def migrated(pipeline: Pipeline, batch: Batch) -> int | None:
    """Give the table these settings, and one batch; returns the snapshot."""
    staged = stage_value(pipeline, batch, 1)
    with open_catalog(pipeline.settings, writing=True) as catalog:
        table = catalog.load_table(pipeline.settings.table)
        before = settings_of_table(table, pipeline.settings)
        judged = table.metadata.current_snapshot_id
        goal = MigratedTable(pipeline.settings, {batch: staged.files}, before, judged, "rollups migrate --yes")
        return bring_about(catalog, pipeline.settings, goal, {MIGRATED_PROPERTY: "ROLLUP_RESOLUTIONS=10m,1h"}, table=table).snapshot_id


def test_a_snapshot_that_was_set_aside_after_a_migration_can_come_back(tmp_path: Path) -> None:
    """It is of the table's settings; one from before the migration is not, wherever it is kept."""
    old = pipeline_in(tmp_path, resolutions="5m,1h")
    first, second, third = batches_from(old, 3)
    kept = publish_value(old, first, 1).snapshot_id
    before = publish_value(old, second, 2).snapshot_id
    assert kept is not None
    load(old).manage_snapshots().rollback_to_snapshot(kept).commit()
    new = pipeline_in(tmp_path, resolutions="10m,1h")
    migrated(new, first)
    kept = publish_value(new, second, 2).snapshot_id
    aside = publish_value(new, third, 3).snapshot_id
    assert kept is not None
    load(new).manage_snapshots().rollback_to_snapshot(kept).commit()
    with pytest.raises(RollbackError, match="was migrated to ROLLUP_RESOLUTIONS=10m,1h by snapshot"):
        rollback(new, str(before))
    assert value_by_batch(new) == {first.key: {1}, second.key: {2}}
    assert rollback(new, str(aside)).changed
    assert value_by_batch(new) == {first.key: {1}, second.key: {2}, third.key: {3}}


def tagged_and_cut_off(tmp_path: Path, batch: Batch) -> str:
    """A snapshot that a tag keeps, while those between it and the current one expire."""
    pipeline = pipeline_in(tmp_path, resolutions="5m,1h", keep_snapshots=2)
    tagged = publish_value(pipeline, batch, 1).snapshot_id
    assert tagged is not None
    load(pipeline).manage_snapshots().create_tag(tagged, "good").commit()
    publish_value(pipeline, batch, 2)
    return str(tagged)


def test_a_tagged_snapshot_can_come_back_whatever_has_expired_since(tmp_path: Path) -> None:
    """Unless nobody knows any more whether it is of the table's settings."""
    pipeline = pipeline_in(tmp_path, resolutions="5m,1h", keep_snapshots=2)
    (batch,) = batches_from(pipeline, 1)
    tagged = tagged_and_cut_off(tmp_path, batch)
    for value in (3, 4):
        publish_value(pipeline, batch, value)
    records = Path(pipeline.stage.root.path) / "publish_history"
    records.rename(tmp_path / "lost")
    with pytest.raises(RollbackError, match=rf"snapshot {tagged} is not a known ancestor.*the stage has no record"):
        rollback(pipeline, tagged)
    (tmp_path / "lost").rename(records)
    assert rollback(pipeline, tagged).changed
    assert value_by_batch(pipeline) == {batch.key: {1}}


def test_records_of_a_table_that_was_dropped_say_nothing_of_a_tagged_snapshot(tmp_path: Path) -> None:
    """Sequence numbers begin anew with the table of the same name that is made then."""
    pipeline = pipeline_in(tmp_path, resolutions="5m,1h", keep_snapshots=2)
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 9)
    load_catalog(pipeline.settings).drop_table(pipeline.settings.table)
    tagged = tagged_and_cut_off(tmp_path, batch)
    for value in (3, 4):
        publish_value(pipeline, batch, value)
    for path in Path(pipeline.stage.root.path).glob("publish_history/*/*.json"):
        if json.loads(path.read_text())["table_uuid"] == str(load(pipeline).metadata.table_uuid):
            path.unlink()
    with pytest.raises(RollbackError, match="the stage has no record"):
        rollback(pipeline, tagged)


def test_a_tagged_snapshot_of_other_settings_does_not_come_back_once_the_migration_has_expired(tmp_path: Path) -> None:
    first, second = batches_from(pipeline_in(tmp_path), 2)
    tagged = tagged_and_cut_off(tmp_path, first)
    new = pipeline_in(tmp_path, resolutions="10m,1h", keep_snapshots=2)
    migration = migrated(new, first)
    with pytest.raises(RollbackError, match="was migrated to ROLLUP_RESOLUTIONS=10m,1h by snapshot"):
        rollback(new, tagged)
    for value in (2, 3):
        publish_value(new, second, value)
    assert migration not in snapshots(new)
    before = everything(new)
    for what, to in ((tagged, None), (first.key, tagged)):
        with pytest.raises(RollbackError, match=r"migrated after snapshot.*ROLLUP_RESOLUTIONS \(now 10m,1h, then 5m,1h\)"):
            rollback(new, what, to=to)
    assert everything(new) == before


# ----------------------------------------------------------------------------------------------------------- the way there


@pytest.mark.scenario("P1")
@pytest.mark.parametrize("whole", [False, True])
def test_a_lost_acknowledgement_is_found_in_the_table(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, *, whole: bool) -> None:
    (batch,) = batches_from(pipeline, 1)
    good = publish_value(pipeline, batch, 1).snapshot_id
    publish_value(pipeline, batch, 99)

    def lose(apply: Callable[[], Any], _number: int) -> Any:
        apply()
        raise ConnectionError("connection reset")

    with commits(monkeypatch, lose) as tried:
        done = rollback(pipeline, str(good) if whole else batch.key)
    assert tried == [1]
    assert (done.changed, done.snapshot_id) == (True, snapshots(pipeline)[-1])
    assert len(snapshots(pipeline)) == 3
    assert value_by_batch(pipeline) == {batch.key: {1}}


def test_another_publish_of_the_partition_meanwhile_stops_it(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it was to undo is not the last publish any more. (The lock keeps ours away; a catalog may have none.)"""
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    publish_value(pipeline, batch, 99)
    stage_value(pipeline, batch, value=3)
    monkeypatch.setattr("rollup_assets.steps.publish.refusal", lambda *_: None)

    def come_between(apply: Callable[[], Any], number: int) -> Any:
        if number == 1:
            monkeypatch.setattr("rollup_assets.iceberg.locks._held_file", _no_lock)
            publish(pipeline, batch)
        return apply()

    with commits(monkeypatch, come_between), pytest.raises(RollbackError, match="was changed while the rollback of batch"):
        rollback(pipeline, batch.key)
    assert value_by_batch(pipeline) == {batch.key: {3}}


def _no_lock(*_: object) -> Any:
    import contextlib

    return contextlib.nullcontext()


def test_a_foreign_append_meanwhile_goes_too(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1)
    publish_value(pipeline, first, 99)

    def intrude(apply: Callable[[], Any], number: int) -> Any:
        if number == 1:
            both = [rollup_rows(pipeline.settings, batch, 60_000, 2, value=50, first_id=500) for batch in (first, second)]
            load(pipeline).append(pa.concat_tables(both))
        return apply()

    with commits(monkeypatch, intrude):
        rollback(pipeline, first.key)
    assert value_by_batch(pipeline) == {first.key: {1}, second.key: {50}}


@pytest.mark.scenario("K3", "K4")
@pytest.mark.parametrize("when", ["before the commit", "after the commit", "before the receipt"])
def test_a_rollback_that_is_killed_is_finished_by_running_it_again(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Whenever it was, no publish brings back what was to be undone."""
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    publish_value(pipeline, batch, 99, series=5)

    def killed(*_: object, **__: object) -> Any:
        raise KeyboardInterrupt

    places = {
        "before the commit": "rollup_assets.iceberg.commit._apply",
        "after the commit": "rollup_assets.history.rollback._note",
        "before the receipt": "rollup_assets.history.rollback.write_record",
    }
    with monkeypatch.context() as patch:
        patch.setattr(places[when], killed)
        with pytest.raises(KeyboardInterrupt):
            rollback(pipeline, batch.key)
    held = value_by_batch(pipeline)
    assert held == {batch.key: {99 if when == "before the commit" else 1}}
    refused = publish(pipeline, batch).refused
    assert refused is not None
    assert "begun and has not ended" in refused
    assert state(pipeline, batch) == "rolled back"
    assert value_by_batch(pipeline) == held
    assert rollback(pipeline, batch.key).changed == (when == "before the commit")
    assert value_by_batch(pipeline) == {batch.key: {1}}
    assert len(snapshots(pipeline)) == 3
    assert "until their inputs change" in (publish(pipeline, batch).refused or "")


@pytest.mark.scenario("K3", "K4")
@pytest.mark.parametrize("killed_at", ["rollup_assets.iceberg.commit._apply", "rollup_assets.history.rollback._note"])
def test_a_rollback_that_is_killed_is_known_also_where_the_publish_it_undoes_was_killed(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    """The receipt is still that of the content which comes back."""
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    stage_value(pipeline, batch, value=99)

    def killed(*_: object, **__: object) -> Any:
        raise KeyboardInterrupt

    for place, run in (
        ("rollup_assets.steps.publish.write_record", lambda: publish(pipeline, batch)),
        (killed_at, lambda: rollback(pipeline, batch.key)),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, killed)
            with pytest.raises(KeyboardInterrupt):
                run()
    assert is_begun(pipeline.stage.read(ROLLUP_TABLE, batch))
    assert "begun and has not ended" in (publish(pipeline, batch).refused or "")
    other = dataclasses.replace(pipeline, settings=pipeline.settings.model_copy(update={"shards": 8}))
    assert migrate(other).begun == (batch.key,)
    rollback(pipeline, batch.key)
    assert value_by_batch(pipeline) == {batch.key: {1}}
    assert "until their inputs change" in (publish(pipeline, batch).refused or "")
    assert_has_ended(pipeline, batch.key, [batch])


@pytest.mark.scenario("K3", "K4")
@pytest.mark.parametrize("receipts", [0, 1, 2])
def test_a_rollback_of_the_table_that_is_killed_is_finished_by_running_it_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, receipts: int
) -> None:
    """Also for partitions that the target has no rows of, after some of the receipts were written."""
    first, second, third = batches_from(pipeline, 3)
    target = publish_value(pipeline, first, 1).snapshot_id
    for batch, value in ((first, 99), (second, 2), (third, 3)):
        publish_value(pipeline, batch, value)

    def killed(*arguments: Any, write: Callable[..., None] = history._note) -> None:
        if len(written) == receipts:
            raise KeyboardInterrupt
        write(*arguments)
        written.append(arguments)

    written: list[tuple[Any, ...]] = []
    with monkeypatch.context() as patch:
        patch.setattr("rollup_assets.history.rollback._note", killed)
        with pytest.raises(KeyboardInterrupt):
            rollback(pipeline, str(target))
    assert value_by_batch(pipeline) == {first.key: {1}}
    done = rollback(pipeline, str(target))
    assert not done.changed
    assert [partition.partition for partition in done.partitions] == [first.key, second.key, third.key]
    for batch in (first, second, third):
        assert "until their inputs change" in (publish(pipeline, batch).refused or "")
        assert state(pipeline, batch) == "rolled back"
    assert value_by_batch(pipeline) == {first.key: {1}}
    assert_has_ended(pipeline, str(target), [first, second, third])


def test_a_begun_rollback_can_be_given_up_by_force(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    publish_value(pipeline, batch, 99)

    def refuse(_apply: Callable[[], Any], _number: int) -> Any:
        raise ConnectionError("connection refused")

    monkeypatch.setattr(committing, "MOST_TRIES", 1)
    with commits(monkeypatch, refuse), pytest.raises(PublishError, match=rf"rollback of batch.*Run `rollups rollback {batch.key}` again"):
        rollback(pipeline, batch.key)
    publish(pipeline, batch, force=True)
    assert publish(pipeline, batch).refused is None
    assert state(pipeline, batch) == "published"
    assert value_by_batch(pipeline) == {batch.key: {99}}


def test_the_record_of_a_rollback_says_what_came_back(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    good = publish_value(pipeline, batch, 1, raw_file("a"))
    publish_value(pipeline, batch, 99, raw_file("a"), raw_file("b"))
    rollback(pipeline, batch.key)
    records = [json.loads(path.read_text()) for path in Path(pipeline.stage.root.path).glob("publish_history/*/*.json")]
    first, bad, back = sorted(records, key=lambda record: record["sequence_number"])
    assert back["rolled_back_to"] == good.snapshot_id
    assert (back["digest"], back["inputs"]) == (first["digest"], first["inputs"])
    assert [first["replaces"], bad["replaces"], back["replaces"]] == [None, first["attempt"], bad["attempt"]]


def test_a_rollback_to_what_is_there_has_no_record(pipeline: Pipeline) -> None:
    """The current snapshot is of another partition: it has published no row of this one."""
    first, second = batches_from(pipeline, 2)
    there = publish_value(pipeline, first, 1, raw_file("a"))
    publish_value(pipeline, second, 2)
    folder = Path(pipeline.stage.root.path) / "publish_history" / first.folder
    before = {path.name: path.read_text() for path in folder.iterdir()}
    assert not rollback(pipeline, first.key, to=str(there.snapshot_id)).changed
    assert {path.name: path.read_text() for path in folder.iterdir()} == before
    receipt = pipeline.stage.read(ROLLUP_TABLE, first)
    assert receipt is not None
    assert receipt.counters["attempt"] == there.receipt.attempt
    assert publish(pipeline, first).unchanged


@pytest.mark.scenario("P6")
def test_a_catalog_that_has_forgotten_the_last_publish_stops_it(pipeline: Pipeline) -> None:
    """What is the last publish there is not what was acknowledged: undoing it would be a guess."""
    from pyiceberg.catalog.sql import IcebergTables, SqlCatalog
    from sqlalchemy import update
    from sqlalchemy.orm import Session

    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    publish_value(pipeline, batch, 2)
    before = load(pipeline).metadata_location
    publish_value(pipeline, batch, 99)
    catalog = load_catalog(pipeline.settings)
    assert isinstance(catalog, SqlCatalog)
    with Session(catalog.engine) as session:
        session.execute(update(IcebergTables).values(metadata_location=before))
        session.commit()
    with pytest.raises(PublishHaltError, match="that snapshot has vanished"):
        rollback(pipeline, batch.key)
    assert value_by_batch(pipeline) == {batch.key: {2}}


def test_a_rollback_needs_the_settings_of_the_table(tmp_path: Path, pipeline: Pipeline) -> None:
    from rollup_assets.errors import TableMismatchError

    ensure_table(pipeline.settings)
    (batch,) = batches_from(pipeline, 1)
    with pytest.raises(TableMismatchError):
        rollback(pipeline_in(tmp_path, resolutions="1m"), batch.key)
