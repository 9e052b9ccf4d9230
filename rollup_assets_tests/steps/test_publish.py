"""What may be published, what a publish leaves behind, and when there is nothing to do."""

from __future__ import annotations

import contextlib
import re
import sqlite3
import textwrap
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import rollup_assets
from rollup_assets.batches import Batch
from rollup_assets.code_version import CODE_VERSION
from rollup_assets.errors import LockTimeoutError, NotStagedError, PublishHaltError, StageCorruptError, StaleInputError
from rollup_assets.iceberg.catalog import load_catalog, sqlite_database
from rollup_assets.iceberg.locks import lock_file
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps.publish import publish
from rollup_assets.storage.manifests import PARTIAL_POINTS, REPARTITIONED, ROLLUP_TABLE, ROLLUPS, Manifest
from rollup_assets_tests.iceberg.staging import (
    batches_from,
    load,
    pipeline_in,
    rollup_rows,
    rows_of,
    stage_rollups,
    stage_upstream,
    value_by_batch,
)

PROJECT = Path(rollup_assets.__file__).parent.parent


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return pipeline_in(tmp_path)


def snapshots(pipeline: Pipeline) -> list[int]:
    return [snapshot.snapshot_id for snapshot in load(pipeline).snapshots()]


def test_a_publish_is_one_snapshot_that_says_what_it_is(pipeline: Pipeline) -> None:
    first, second = batches_from(pipeline, 2)
    for batch in (first, second):
        rollups = stage_rollups(pipeline, batch, files=2)
        result = publish(pipeline, batch, run_id="run-7")
        assert snapshots(pipeline)[-1] == result.snapshot_id
    assert len(snapshots(pipeline)) == 2
    current = load(pipeline).current_snapshot()
    assert current is not None
    assert current.summary is not None
    said = current.summary.additional_properties
    assert said["rollup.batch"] == second.key
    assert said["rollup.digest"] == rollups.digest
    assert said["rollup.run-id"] == "run-7"
    assert said["rollup.code-version"] == CODE_VERSION
    assert said["rollup.attempt"] == result.receipt.attempt
    assert len(rows_of(load(pipeline))) == 2 * 6 * 73


def test_the_receipt(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    rollups = stage_rollups(pipeline, batch, files=2)
    result = publish(pipeline, batch)
    receipt = pipeline.stage.read(ROLLUP_TABLE, batch)
    assert receipt == result.receipt
    assert receipt is not None
    assert receipt.digest == rollups.digest
    assert receipt.upstream == {ROLLUPS: {batch.key: rollups.digest}}
    assert receipt.parameters == rollups.parameters
    assert receipt.counters == {
        "snapshot_id": result.snapshot_id,
        "sequence_number": 1,
        "table_uuid": str(load(pipeline).metadata.table_uuid),
        "attempt": receipt.attempt,
        "staged_attempt": rollups.attempt,
        "rows": {"60000": 360, "300000": 72, "3600000": 6},
        "files": {"60000": 2, "300000": 2, "3600000": 2},
    }
    assert set(receipt.timings) == {"plan", "commit", "verify"}


@pytest.mark.parametrize("force", [False, True])
def test_publishing_the_same_again_makes_no_snapshot(pipeline: Pipeline, *, force: bool) -> None:
    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch)
    before = publish(pipeline, batch)
    again = publish(pipeline, batch, force=force)
    assert again.unchanged
    assert again.receipt == before.receipt
    assert snapshots(pipeline) == [before.snapshot_id]


def test_a_changed_batch_is_replaced_and_its_neighbours_are_untouched(pipeline: Pipeline) -> None:
    batches = batches_from(pipeline, 3)
    for batch in batches:
        stage_rollups(pipeline, batch)
        publish(pipeline, batch)
    neighbours = {task.file.file_path for task in load(pipeline).scan().plan_files() if batches[1].folder not in task.file.file_path}
    stage_rollups(pipeline, batches[1], value=9, series=5)
    assert not publish(pipeline, batches[1]).unchanged
    assert value_by_batch(pipeline) == {batches[0].key: {1}, batches[1].key: {9}, batches[2].key: {1}}
    assert neighbours <= {task.file.file_path for task in load(pipeline).scan().plan_files()}
    assert len(rows_of(load(pipeline))) == 73 * (3 + 5 + 3)


def test_an_empty_batch_leaves_a_receipt_and_no_snapshot(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch, rows={})
    result = publish(pipeline, batch)
    assert result.snapshot_id is None
    assert result.receipt.counters["rows"] == {"60000": 0, "300000": 0, "3600000": 0}
    assert snapshots(pipeline) == []
    assert publish(pipeline, batch).unchanged


def test_a_batch_that_became_empty_is_emptied_in_the_table(pipeline: Pipeline) -> None:
    first, second = batches_from(pipeline, 2)
    for batch in (first, second):
        stage_rollups(pipeline, batch)
        publish(pipeline, batch)
    stage_rollups(pipeline, first, rows={})
    assert publish(pipeline, first).snapshot_id == snapshots(pipeline)[-1]
    assert value_by_batch(pipeline) == {second.key: {1}}


def test_double_values(tmp_path: Path) -> None:
    pipeline = pipeline_in(tmp_path, value_type="double")
    (batch,) = batches_from(pipeline, 1)
    tables = {60_000: [rollup_rows(pipeline.settings, batch, 60_000, 2).set_column(7, "sum_rollup", [[0.5] * 120])]}
    schema = rollup_rows(pipeline.settings, batch, 60_000, 1).schema
    stage_rollups(pipeline, batch, rows={60_000: [tables[60_000][0].cast(schema)]})
    publish(pipeline, batch)
    assert {value for *_, value in rows_of(load(pipeline))} == {0.5}


def test_days_before_1970_and_the_last_batch_of_a_day(tmp_path: Path) -> None:
    """The day of a label is floored, and a batch that ends at midnight touches one day only."""
    pipeline = pipeline_in(tmp_path, start="1969-12-30", resolutions="1h")
    batches = batches_from(pipeline, 4, first=22)
    for value in (1, 2):
        for batch in batches:
            stage_rollups(pipeline, batch, value=value)
            publish(pipeline, batch)
    assert value_by_batch(pipeline) == {batch.key: {2} for batch in batches}


def test_a_receipt_lost_after_the_commit_is_written_without_a_second_snapshot(pipeline: Pipeline) -> None:
    """Killed between commit and receipt: the table is found to hold these files, and the snapshot that brought them is named."""
    first, second = batches_from(pipeline, 2)
    for batch in (first, second):
        stage_rollups(pipeline, batch)
    before = publish(pipeline, first)
    publish(pipeline, second)
    (pipeline.stage.folder(ROLLUP_TABLE, first) / "manifest.json").delete_file()
    again = publish(pipeline, first)
    assert again.snapshot_id == before.snapshot_id
    assert again.receipt.counters == before.receipt.counters
    assert len(snapshots(pipeline)) == 2


def test_a_dropped_table_is_filled_again(pipeline: Pipeline) -> None:
    """The receipt alone is not believed."""
    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch)
    publish(pipeline, batch)
    load_catalog(pipeline.settings).drop_table(pipeline.settings.table)
    assert not publish(pipeline, batch).unchanged
    assert value_by_batch(pipeline) == {batch.key: {1}}


def test_a_table_that_was_rolled_back_is_brought_forward_again(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    first, second = batches_from(pipeline, 2)
    stage_rollups(pipeline, first)
    before = publish(pipeline, first).snapshot_id
    assert before is not None
    stage_rollups(pipeline, second)
    publish(pipeline, second)
    load(pipeline).manage_snapshots().rollback_to_snapshot(before).commit()
    assert publish(pipeline, first).unchanged
    assert caplog.text == ""
    assert not publish(pipeline, second).unchanged
    assert f"batch {second.key}: the current snapshot does not descend from" in caplog.text
    assert value_by_batch(pipeline) == {first.key: {1}, second.key: {1}}


def test_earlier_values_that_were_brought_back_are_replaced_although_there_are_as_many_rows(
    pipeline: Pipeline, caplog: pytest.LogCaptureFixture
) -> None:
    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch, value=1)
    before = publish(pipeline, batch).snapshot_id
    assert before is not None
    stage_rollups(pipeline, batch, value=2)
    set_aside = publish(pipeline, batch)
    load(pipeline).manage_snapshots().rollback_to_snapshot(before).commit()
    assert value_by_batch(pipeline) == {batch.key: {1}}
    again = publish(pipeline, batch)
    assert not again.unchanged
    assert f"does not descend from {set_aside.snapshot_id}" in caplog.text
    assert value_by_batch(pipeline) == {batch.key: {2}}
    caplog.clear()
    # A receipt that was not written, as by a publish that was killed: nothing is left to do but to name the snapshot that is there.
    pipeline.stage.write(set_aside.receipt, batch)
    assert publish(pipeline, batch).snapshot_id == again.snapshot_id
    caplog.clear()
    assert publish(pipeline, batch).unchanged
    assert caplog.text == ""
    assert len(snapshots(pipeline)) == 3


def test_a_tagged_snapshot_with_expired_ones_after_it_is_not_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pipeline = pipeline_in(tmp_path, keep_snapshots=2)
    first, *others = batches_from(pipeline, 5)
    stage_rollups(pipeline, first)
    tagged = publish(pipeline, first).snapshot_id
    assert tagged is not None
    load(pipeline).manage_snapshots().create_tag(tagged, "audit").commit()
    for batch in others:
        stage_rollups(pipeline, batch)
        publish(pipeline, batch)
    assert tagged in snapshots(pipeline)
    again = publish(pipeline, first)
    assert (again.unchanged, again.snapshot_id) == (True, tagged)
    assert caplog.text == ""


def test_lost_data_files_that_were_made_anew_are_published_although_their_content_is_the_same(pipeline: Pipeline) -> None:
    """Metadata still counts the rows of files that are gone; only the manifest's attempt tells that there are new ones."""
    (batch,) = batches_from(pipeline, 1)
    rollups = stage_rollups(pipeline, batch)
    publish(pipeline, batch)
    anew = []
    for file in rollups.files:
        path = Path(file.path)
        anew.append(file.model_copy(update={"path": str(path.rename(path.with_stem(f"{path.stem}-anew")))}))
    edit(pipeline, batch, files=tuple(anew), attempt="anew")
    assert not publish(pipeline, batch).unchanged
    assert value_by_batch(pipeline) == {batch.key: {1}}
    assert publish(pipeline, batch).unchanged


# A catalog that was set back


def pointer(pipeline: Pipeline, *, to: str | None = None) -> str:
    """The metadata file that the catalog names; ``to``: have it name another."""
    path = sqlite_database(pipeline.settings)
    with contextlib.closing(sqlite3.connect(str(path))) as database, database:
        if to is not None:
            database.execute("update iceberg_tables set metadata_location = ?", (to,))
        return str(database.execute("select metadata_location from iceberg_tables").fetchone()[0])


@pytest.mark.scenario("P6")
@pytest.mark.parametrize("changed", [False, True])
@pytest.mark.parametrize("since", ["nothing", "another batch", "many batches"])
def test_a_commit_that_the_catalog_forgot_is_noticed_and_published_again_by_force(pipeline: Pipeline, since: str, *, changed: bool) -> None:
    first, second, _, *others = batches_from(pipeline, 7)
    stage_rollups(pipeline, first)
    publish(pipeline, first)
    before = pointer(pipeline)
    stage_rollups(pipeline, second)
    lost = publish(pipeline, second).snapshot_id
    pointer(pipeline, to=before)
    chosen = {"nothing": [], "another batch": others[:1], "many batches": others}[since]
    for batch in chosen:
        stage_rollups(pipeline, batch)
        publish(pipeline, batch)
    if changed:
        stage_rollups(pipeline, second, value=2)
    expected = {batch.key: {1} for batch in (first, *chosen)}
    with pytest.raises(PublishHaltError, match=rf"snapshot {lost} .* vanished.*rollups backfill {second.key} {second.key} --force"):
        publish(pipeline, second)
    assert value_by_batch(pipeline) == expected
    assert publish(pipeline, first).unchanged
    assert not publish(pipeline, second, force=True).unchanged
    assert publish(pipeline, second).unchanged
    assert value_by_batch(pipeline) == expected | {second.key: {2 if changed else 1}}


def documented(page: str, language: str) -> str:
    """The one block of a document in this language."""
    (block,) = re.findall(rf"^ *```{language}\n(.*?)^ *```", (PROJECT / "docs" / page).read_text(), re.MULTILINE | re.DOTALL)
    return textwrap.dedent(block)


DOCUMENTED_METADATA = "s3://lake/warehouse/metrics/rollups/metadata/00042-….metadata.json"


@pytest.mark.scenario("P6")
def test_a_catalog_that_was_set_back_is_pointed_to_the_newest_metadata_as_documented(pipeline: Pipeline) -> None:
    first, second, third = batches_from(pipeline, 3)
    stage_rollups(pipeline, first)
    publish(pipeline, first)
    before = pointer(pipeline)
    stage_rollups(pipeline, second)
    publish(pipeline, second)
    newest = pointer(pipeline)
    pointer(pipeline, to=before)
    statement = documented("operations.md", "sql").replace(DOCUMENTED_METADATA, newest)
    with contextlib.closing(sqlite3.connect(str(sqlite_database(pipeline.settings)))) as database, database:
        assert database.execute(statement).rowcount == 1
    assert publish(pipeline, second).unchanged
    stage_rollups(pipeline, third)
    publish(pipeline, third)
    assert value_by_batch(pipeline) == {batch.key: {1} for batch in (first, second, third)}


@pytest.mark.scenario("P6")
def test_a_catalog_that_is_lost_has_the_table_registered_as_documented(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = batches_from(pipeline, 2)
    stage_rollups(pipeline, first)
    publish(pipeline, first)
    newest = pointer(pipeline)
    database = sqlite_database(pipeline.settings)
    assert database is not None
    database.unlink()
    monkeypatch.setenv("ROLLUP_HOME", str(pipeline.settings.home))
    exec(documented("production.md", "python").replace(DOCUMENTED_METADATA, newest), {})
    assert publish(pipeline, first).unchanged
    stage_rollups(pipeline, second)
    publish(pipeline, second)
    assert value_by_batch(pipeline) == {batch.key: {1} for batch in (first, second)}


@pytest.mark.scenario("P6")
def test_a_commit_that_the_catalog_forgot_is_noticed_by_the_next_batch(pipeline: Pipeline) -> None:
    """Nobody asks for the batch itself again: its receipt says that it is published."""
    first, second, third = batches_from(pipeline, 3)
    stage_rollups(pipeline, first)
    publish(pipeline, first)
    before = pointer(pipeline)
    stage_rollups(pipeline, second)
    lost = publish(pipeline, second).snapshot_id
    pointer(pipeline, to=before)
    stage_rollups(pipeline, third)
    with pytest.raises(PublishHaltError, match=rf"batch {second.key} was published as snapshot {lost} .*{second.key} {second.key} --force"):
        publish(pipeline, third)
    assert value_by_batch(pipeline) == {first.key: {1}}
    publish(pipeline, second, force=True)
    publish(pipeline, third)
    assert value_by_batch(pipeline) == {batch.key: {1} for batch in (first, second, third)}


def test_an_expired_snapshot_is_not_forgotten(tmp_path: Path) -> None:
    """By our own retention, and by another engine that keeps nothing but the current one."""
    pipeline = pipeline_in(tmp_path, keep_snapshots=2)
    batches = batches_from(pipeline, 5)
    for batch in batches:
        stage_rollups(pipeline, batch)
        publish(pipeline, batch)
    assert all(publish(pipeline, batch).unchanged for batch in batches)
    table = load(pipeline)
    table.maintenance.expire_snapshots().by_ids(snapshots(pipeline)[:-1]).commit()
    assert len(snapshots(pipeline)) == 1
    assert all(publish(pipeline, batch).unchanged for batch in batches)
    for batch in batches:
        stage_rollups(pipeline, batch, value=2)
        assert not publish(pipeline, batch).unchanged


def test_a_receipt_of_an_older_release_is_believed(pipeline: Pipeline) -> None:
    """It says nothing that the table's history could be asked for."""
    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch)
    receipt = publish(pipeline, batch).receipt
    counters = {name: value for name, value in receipt.counters.items() if name not in ("sequence_number", "table_uuid")}
    pipeline.stage.write(receipt.model_copy(update={"counters": counters | {"snapshot_id": 1}}), batch)
    assert publish(pipeline, batch).unchanged


# What may not be published


def edit(pipeline: Pipeline, batch: Batch, **changes: Any) -> Manifest:
    manifest = pipeline.stage.read(ROLLUPS, batch)
    assert manifest is not None
    manifest = manifest.model_copy(update=changes)
    pipeline.stage.write(manifest, batch)
    return manifest


def test_a_batch_without_rollups_is_refused(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    with pytest.raises(NotStagedError, match=f"rollups backfill {batch.key} {batch.key}"):
        publish(pipeline, batch)


def test_rollups_of_inputs_that_have_changed_are_refused(pipeline: Pipeline) -> None:
    """Also where only an earlier batch's partial points changed; the published rows stay."""
    first, second, third = batches_from(pipeline, 3)
    stage_rollups(pipeline, third)
    publish(pipeline, third)
    stage_rollups(pipeline, third, value=2)
    stage_upstream(pipeline, first, version="late point")
    with pytest.raises(StaleInputError, match=rf"{PARTIAL_POINTS} {first.key}, which has changed since.*rollups backfill {third.key}"):
        publish(pipeline, third)
    assert value_by_batch(pipeline) == {third.key: {1}}
    stage_rollups(pipeline, third, value=3)
    stage_upstream(pipeline, second)
    publish(pipeline, third)
    assert value_by_batch(pipeline) == {third.key: {3}}


def test_rollups_of_inputs_that_appeared_or_vanished_are_refused(pipeline: Pipeline) -> None:
    first, second = batches_from(pipeline, 2)
    rollups = stage_rollups(pipeline, second)
    absent = {**rollups.upstream, PARTIAL_POINTS: {**rollups.upstream[PARTIAL_POINTS], first.key: None}}
    edit(pipeline, second, upstream=absent)
    with pytest.raises(StaleInputError, match=f"{PARTIAL_POINTS} {first.key}, which was not staged then"):
        publish(pipeline, second)
    stage_rollups(pipeline, second)
    (pipeline.stage.folder(REPARTITIONED, second) / "manifest.json").delete_file()
    with pytest.raises(StaleInputError, match=f"{REPARTITIONED} {second.key}, which is no longer staged"):
        publish(pipeline, second)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("shards", 5, "ROLLUP_SHARDS (now 4, then 5)"),
        ("resolutions", [60_000], "ROLLUP_RESOLUTIONS (now 1m,5m,1h, then 1m)"),
        ("lookback", 1_800_000, "ROLLUP_LOOKBACK (now 1h, then 30m)"),
        ("batch", 7_200_000, "ROLLUP_BATCH (now 1h, then 2h)"),
        ("value_type", "double", "ROLLUP_VALUE_TYPE (now long, then double)"),
        ("parquet_encoding", "compatible", "ROLLUP_PARQUET_ENCODING (now fast, then compatible)"),
    ],
)
def test_rollups_made_with_other_settings_are_refused(pipeline: Pipeline, name: str, value: Any, says: str) -> None:
    """In the words of the settings."""
    (batch,) = batches_from(pipeline, 1)
    rollups = stage_rollups(pipeline, batch)
    edit(pipeline, batch, parameters={**rollups.parameters, name: value})
    with pytest.raises(StaleInputError, match=rf"made with other settings: {re.escape(says)}; they were not published. Run"):
        publish(pipeline, batch)


def test_rollups_of_another_table_are_refused(pipeline: Pipeline) -> None:
    """They would be its files: dropped with them, this table could not be read."""
    (batch,) = batches_from(pipeline, 1)
    rollups = stage_rollups(pipeline, batch)
    publish(pipeline, batch)
    # Its name begins as the other one's does.
    other = pipeline_in(pipeline.settings.home, table="metrics.rollups.data")
    message = rf"made for another table: {rollups.files[0].path} does not lie in .*Run `rollups backfill {batch.key} {batch.key}`"
    with pytest.raises(StaleInputError, match=message):
        publish(other, batch)
    assert publish(pipeline, batch).unchanged


def test_rollups_that_are_replaced_while_they_are_published_are_refused(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a lock a newer manifest can come between the first look and a try."""
    from rollup_assets.steps import publish as step

    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch)
    original = step._check_files

    def replaced_meanwhile(*arguments: Any) -> None:
        original(*arguments)
        stage_rollups(pipeline, batch, value=2)

    with monkeypatch.context() as patch:
        patch.setattr(step, "_check_files", replaced_meanwhile)
        with pytest.raises(StaleInputError, match="were replaced while they were being published"):
            publish(pipeline, batch)
    publish(pipeline, batch)
    assert value_by_batch(pipeline) == {batch.key: {2}}


def corrupt(rollups: Manifest, how: str) -> None:
    path = Path(rollups.files[0].path)
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
    elif how == "garbled":
        path.write_bytes(b"x" * path.stat().st_size)


@pytest.mark.parametrize(
    ("how", "says"), [("missing", "is missing"), ("truncated", "bytes instead of"), ("garbled", "cannot be published")]
)
def test_damaged_files_are_not_published(pipeline: Pipeline, how: str, says: str) -> None:
    first, second = batches_from(pipeline, 2)
    stage_rollups(pipeline, first)
    publish(pipeline, first)
    corrupt(stage_rollups(pipeline, second), how)
    with pytest.raises(StageCorruptError, match=rf"{says}.*rollups backfill {second.key} {second.key} --force"):
        publish(pipeline, second)
    assert value_by_batch(pipeline) == {first.key: {1}}


def test_files_with_other_rows_than_the_manifest_says_are_not_published(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    rollups = stage_rollups(pipeline, batch)
    files = (rollups.files[0].model_copy(update={"rows": 1}), *rollups.files[1:])
    edit(pipeline, batch, files=files)
    with pytest.raises(StageCorruptError, match=r"manifest of batch .* counts"):
        publish(pipeline, batch)
    edit(pipeline, batch, files=files, counters={"rows": {"60000": 1, "300000": 36, "3600000": 3}})
    with pytest.raises(StageCorruptError, match="has 180 rows, its manifest says 1"):
        publish(pipeline, batch)


def test_labels_outside_the_batch_are_not_published(pipeline: Pipeline) -> None:
    """A row at exactly the end of the batch belongs to the next one."""
    first, second = batches_from(pipeline, 2)
    wrong = rollup_rows(pipeline.settings, second, 3_600_000, 1)
    stage_rollups(pipeline, first, rows={3_600_000: [wrong]})
    with pytest.raises(StageCorruptError, match="has labels outside"):
        publish(pipeline, first)
    assert snapshots(pipeline) == []


def test_files_of_another_schema_are_not_published(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch, rows={3_600_000: [rollup_rows(pipeline.settings, batch, 3_600_000, 1).drop_columns(["sum_rollup"])]})
    with pytest.raises(StageCorruptError, match="cannot be published"):
        publish(pipeline, batch)
    assert snapshots(pipeline) == []


def test_a_held_lock_stops_a_publish_and_says_where_it_is(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch)
    path = lock_file(pipeline.settings)
    assert path is not None
    monkeypatch.setattr("rollup_assets.iceberg.locks.LOCK_TIMEOUT", 0.1)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path), pytest.raises(LockTimeoutError, match=str(path)):
        publish(pipeline, batch)
    assert publish(pipeline, batch).snapshot_id is not None


def test_published_files_carry_the_tables_own_field_ids(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    rollups = stage_rollups(pipeline, batch)
    publish(pipeline, batch)
    schema = pq.read_schema(rollups.files[0].path)
    table = load(pipeline)
    ids = {table.schema().find_field(name).field_id: int(schema.field(name).metadata[b"PARQUET:field_id"]) for name in schema.names}
    assert all(number == written for number, written in ids.items())
