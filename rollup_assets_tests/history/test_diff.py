"""Which windows changed between two snapshots, and which raw files caused it."""

from __future__ import annotations

import datetime as dt
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rollup_assets.code_version import CODE_VERSION
from rollup_assets.errors import QueryError, TableMismatchError, UnknownSnapshotError
from rollup_assets.history import diff as differences
from rollup_assets.history.diff import ChangedFile, SnapshotDifference, diff
from rollup_assets.history.records import read_record
from rollup_assets.history.rollback import rollback
from rollup_assets.iceberg.catalog import load_catalog
from rollup_assets.iceberg.reading import LiveFile
from rollup_assets.iceberg.snapshots import time_of
from rollup_assets.iceberg.table import ensure_table
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps.publish import publish
from rollup_assets.storage.manifests import PARTIAL_POINTS, REPARTITIONED, ROLLUP_TABLE
from rollup_assets_tests.conftest import MakePipeline
from rollup_assets_tests.history.published import publish_value, raw_file, snapshots, stage_value
from rollup_assets_tests.iceberg.staging import batches_from, load, pipeline_in, rollup_rows
from rollup_assets_tests.iceberg.test_publish import compact


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return pipeline_in(tmp_path, resolutions="1m,1h")


def since(pipeline: Pipeline, number: int, until: int | None = None, **options: Any) -> SnapshotDifference:
    """From the snapshot with this number (in order of their commits) to another, or to the current one."""
    made = snapshots(pipeline)
    return diff(pipeline.settings, str(made[number]), None if until is None else str(made[until]), **options)


def counts(found: SnapshotDifference) -> dict[str, tuple[dict[str, int], ...]]:
    return {one.partition: (one.added, one.removed, one.changed) for one in found.partitions}


def test_windows_that_were_added_removed_and_changed_are_counted_by_partition_and_resolution(pipeline: Pipeline) -> None:
    """Series 0 to 2 become 1 to 3 with another value: one goes, two change, one comes. Neighbours are not mentioned."""
    first, second, third = batches_from(pipeline, 3)
    for batch in (first, second):
        publish_value(pipeline, batch, 1)
    rows = {resolution: [rollup_rows(pipeline.settings, second, resolution, 3, 2, first_id=1)] for resolution in (60_000, 3_600_000)}
    publish_value(pipeline, second, 2, rows=rows)
    publish_value(pipeline, third, 5, series=1)
    found = since(pipeline, 1)
    assert counts(found) == {
        second.key: ({"1m": 60, "1h": 1}, {"1m": 60, "1h": 1}, {"1m": 120, "1h": 2}),
        third.key: ({"1m": 60, "1h": 1}, {}, {}),
    }
    assert counts(since(pipeline, 1, 2)).keys() == {second.key}
    # Backwards, added and removed change places.
    assert counts(since(pipeline, -1, 1))[third.key] == ({}, {"1m": 60, "1h": 1}, {})
    assert found.foreign == []


def test_the_first_windows_come_with_old_and_new_values(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    publish_value(pipeline, batch, 2, series=4)
    found = since(pipeline, 0, first_differences=5)
    assert len(found.windows) == 5
    assert [(one.resolution, one.label.minute, one.id, one.change) for one in found.windows] == [
        *(("1m", 0, series, "changed") for series in range(3)),
        ("1m", 0, 3, "added"),
        ("1h", 0, 0, "changed"),
    ]
    assert found.windows[0].values == {
        "sum_rollup": (1, 2),
        "min_rollup": (1, 2),
        "max_rollup": (1, 2),
        "average_rollup": (1.0, 2.0),
        "latest_rollup": (1, 2),
    }
    assert found.windows[3].values["count_rollup"] == (None, 3)
    assert since(pipeline, 0, first_differences=0).windows == []


def test_only_files_that_one_of_the_two_has_are_read(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = batches_from(pipeline, 4)
    for batch in batches:
        publish_value(pipeline, batch, 1)
    publish_value(pipeline, batches[1], 2)
    read: list[str] = []
    original = differences.files_dataset

    def noted(table: Any, files: list[LiveFile]) -> Any:
        read.extend(file.path for file in files)
        return original(table, files)

    monkeypatch.setattr(differences, "files_dataset", noted)
    found = since(pipeline, 3)
    assert len(read) == found.files_read == 4
    assert all(batches[1].folder in path for path in read)
    assert since(pipeline, 4).partitions == []
    assert len(read) == 4


def test_a_table_whose_columns_another_engine_has_renamed_is_refused(pipeline: Pipeline) -> None:
    """Columns are found by their names."""
    (batch,) = batches_from(pipeline, 1)
    for value in (1, 2):
        publish_value(pipeline, batch, value)
    with load(pipeline).update_schema() as update:
        update.rename_column("delta_rollup", "delta")
    with pytest.raises(TableMismatchError, match=r"has the column delta .* instead of delta_rollup"):
        since(pipeline, 0)


def test_a_compaction_changes_nothing(pipeline: Pipeline) -> None:
    """The same rows in other files; and what was published afterwards is found among them."""
    batches = batches_from(pipeline, 3)
    for batch in batches:
        publish_value(pipeline, batch, 1)
    compact(pipeline)
    found = since(pipeline, 2)
    assert (found.partitions, found.windows) == ([], [])
    assert found.files_read > 0
    publish_value(pipeline, batches[1], 2)
    assert counts(since(pipeline, 2)) == {batches[1].key: ({}, {}, {"1m": 180, "1h": 3})}


def test_rows_that_are_there_twice_count_as_two(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1, series=1)
    load(pipeline).append(rollup_rows(pipeline.settings, batch, 60_000, 1))
    found = since(pipeline, 0)
    assert counts(found) == {batch.key: ({"1m": 60}, {}, {})}
    assert found.foreign == snapshots(pipeline)[1:]


def test_another_shard_of_a_series_is_no_difference(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    rows = {of: [rollup_rows(pipeline.settings, batch, of, 3)] for of in (60_000, 3_600_000)}
    other = {of: [table.set_column(0, table.schema.field(0), pa.array([3] * table.num_rows, pa.int32()))] for of, (table,) in rows.items()}
    publish_value(pipeline, batch, 1, rows=other)
    found = since(pipeline, 0)
    assert (found.files_read, found.partitions) == (4, [])


# ---------------------------------------------------------------------------------------------------------------------- causes


def files_of(found: SnapshotDifference) -> dict[str, list[tuple[str, str, str]]]:
    return {one.partition: [(file.partition, file.path, file.change) for file in one.files] for one in found.partitions}


def test_raw_files_that_are_new_changed_replaced_or_removed_are_named(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    grown = raw_file("grown").model_copy(update={"size": 2})
    publish_value(pipeline, batch, 1, raw_file("same"), raw_file("grown"), raw_file("replaced", 1), raw_file("gone"))
    publish_value(pipeline, batch, 2, raw_file("same"), grown, raw_file("replaced", 2), raw_file("late"))
    (found,) = since(pipeline, 0).partitions
    assert found.files == [
        ChangedFile(batch.key, "gone", "removed"),
        ChangedFile(batch.key, "grown", "changed"),
        ChangedFile(batch.key, "late", "new"),
        ChangedFile(batch.key, "replaced", "replaced"),
    ]
    assert found.remarks == []


def test_a_file_of_an_earlier_batch_is_named_where_it_had_a_say(pipeline: Pipeline) -> None:
    """A late point of the first batch changes what the second one publishes."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1, raw_file("a"))
    publish_value(pipeline, second, 1, raw_file("b"))
    publish_value(pipeline, first, 2, raw_file("a"), raw_file("late"))
    publish_value(pipeline, second, 2, raw_file("b"))
    assert files_of(since(pipeline, 1)) == {key: [(first.key, "late", "new")] for key in (first.key, second.key)}


def test_the_first_publish_of_a_partition_names_all_its_files(pipeline: Pipeline) -> None:
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1, raw_file("a"))
    publish_value(pipeline, second, 1, raw_file("b"), raw_file("c"))
    found = since(pipeline, 0)
    assert files_of(found) == {second.key: [(first.key, "a", "new"), (second.key, "b", "new"), (second.key, "c", "new")]}
    assert found.partitions[0].remarks == ["published for the first time"]


def test_other_settings_and_code_are_causes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = pipeline_in(tmp_path, resolutions="1h")
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1, raw_file("a"))
    monkeypatch.setattr("rollup_assets_tests.history.published.CODE_VERSION", "99")
    publish_value(pipeline_in(tmp_path, resolutions="1h", lookback="30m"), batch, 2, raw_file("a"))
    (found,) = since(pipeline, 0).partitions
    assert found.files == []
    assert found.remarks == ["made with lookback = 1800000 instead of 3600000", f"made by code version 99 instead of {CODE_VERSION}"]


def test_a_publish_without_a_record_is_told(pipeline: Pipeline) -> None:
    """As by a version that kept none."""
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1, raw_file("a"))
    for path in Path(pipeline.stage.root.path).glob("publish_history/*/*.json"):
        path.unlink()
    old = snapshots(pipeline)[0]
    publish_value(pipeline, batch, 2, raw_file("a"), raw_file("b"))
    (found,) = since(pipeline, 0).partitions
    assert found.files == []
    assert found.remarks == [
        f"no record of what the old rows were made from: published by snapshot {old} by an earlier version or another program"
    ]


def test_rows_of_other_writers_have_no_raw_files(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1, raw_file("a"))
    load(pipeline).append(rollup_rows(pipeline.settings, batch, 60_000, 2, value=50, first_id=500))
    foreign = snapshots(pipeline)[1]
    (found,) = since(pipeline, 0).partitions
    assert found.remarks == [f"not published in between: other writers changed it (snapshots {foreign})"]
    publish_value(pipeline, batch, 2, raw_file("a"), raw_file("b"))
    (found,) = since(pipeline, 0).partitions
    assert [file.path for file in found.files] == ["b"]
    assert found.remarks == [f"other writers changed the table in between, too (snapshots {foreign})"]


def test_a_rollback_says_so_and_names_the_files_that_it_left_out(pipeline: Pipeline) -> None:
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1, raw_file("a"))
    publish_value(pipeline, first, 99, raw_file("a"), raw_file("bad"))
    rollback(pipeline, first.key)
    good, _, back = snapshots(pipeline)
    (found,) = since(pipeline, 1).partitions
    assert [(file.path, file.change) for file in found.files] == [("bad", "removed")]
    assert found.remarks == [f"rolled back to what it was in snapshot {good}"]
    assert since(pipeline, 0, 2).partitions == []
    # What comes next is compared with what the rollback brought back.
    publish_value(pipeline, second, 1)
    publish_value(pipeline, first, 3, raw_file("a"), raw_file("better"))
    (found,) = (one for one in diff(pipeline.settings, str(back)).partitions if one.partition == first.key)
    assert [(file.path, file.change) for file in found.files] == [("better", "new")]


@pytest.mark.parametrize("release", ["this", "an older", "a newer"])
def test_what_a_publish_was_made_from_is_known_after_its_snapshot_has_expired(tmp_path: Path, release: str) -> None:
    """Also where the record is of a release that says less or more."""
    pipeline = pipeline_in(tmp_path, resolutions="1h", keep_snapshots=2)
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1, raw_file("a"))
    (path,) = Path(pipeline.stage.root.path).glob("publish_history/*/*.json")
    record = json.loads(path.read_text())
    assert record["table_uuid"] == str(load(pipeline).metadata.table_uuid)
    if release == "an older":
        del record["table_uuid"]
    elif release == "a newer":
        record["compressed_by"] = "zstd"
    path.write_text(json.dumps(record))
    for value in (1, 2, 3):
        publish_value(pipeline, second, value, raw_file("b"))
    publish_value(pipeline, first, 2, raw_file("a"), raw_file("late"))
    assert len(snapshots(pipeline)) == 2
    assert files_of(since(pipeline, 0)) == {first.key: [(first.key, "late", "new")]}


def test_what_was_published_to_a_table_that_was_dropped_is_no_cause(tmp_path: Path) -> None:
    """Sequence numbers begin anew with the table of the same name that is made then."""
    pipeline = pipeline_in(tmp_path, resolutions="1h", keep_snapshots=2)
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1, raw_file("of the table that was dropped"))
    load_catalog(pipeline.settings).drop_table(pipeline.settings.table)
    for value in (1, 2, 3):
        publish_value(pipeline, second, value, raw_file("b"))
    publish_value(pipeline, first, 2, raw_file("a"))
    (found,) = since(pipeline, 0).partitions
    assert found.files == []
    assert found.remarks == ["no record of what the old rows were made from: published by an earlier version or another program"]


# --------------------------------------------------------------------------------------------------------------------- records


@pytest.mark.scenario("K4")
@pytest.mark.parametrize("when", ["record", "receipt"])
def test_a_publish_killed_after_its_commit_has_its_record_once_it_is_run_again(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """The record comes before the receipt: where there is a receipt, there is a record."""
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1, raw_file("a"))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"rollup_assets.steps.publish.{'write_record' if when == 'record' else 'receipt_of'}", killed)
        with pytest.raises(KeyboardInterrupt):
            publish_value(pipeline, batch, 2, raw_file("a"), raw_file("b"))
    assert len(snapshots(pipeline)) == 2
    publish(pipeline, batch)
    assert len(snapshots(pipeline)) == 2
    assert files_of(since(pipeline, 0)) == {batch.key: [(batch.key, "b", "new")]}
    folder = Path(pipeline.stage.root.path) / "publish_history" / batch.folder
    assert len(list(folder.iterdir())) == 2


def test_a_publish_that_changes_nothing_writes_no_record(pipeline: Pipeline) -> None:
    """One file a commit, neither for a batch that never had a row nor for what is in the table already."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1)
    publish_value(pipeline, second, 1, rows={})
    for force in (False, True):
        publish(pipeline, first, force=force)
    assert len(list(Path(pipeline.stage.root.path).glob("publish_history/*/*"))) == len(snapshots(pipeline)) == 1


def test_the_record_of_a_commit_that_is_found_in_place_stays_as_it_is(pipeline: Pipeline) -> None:
    """The receipt is lost, and the raw file has another name by now: the commit was not made from that one."""
    (batch,) = batches_from(pipeline, 1)
    attempt = publish_value(pipeline, batch, 1, raw_file("a")).receipt.attempt
    record = read_record(pipeline.stage, batch, attempt)
    for asset in (REPARTITIONED, PARTIAL_POINTS):
        staged = pipeline.stage.read(asset, batch)
        assert staged is not None
        pipeline.stage.write(staged.model_copy(update={"inputs": (raw_file("renamed"),)}), batch)
    (pipeline.stage.folder(ROLLUP_TABLE, batch) / "manifest.json").delete_file()
    assert publish(pipeline, batch).receipt.attempt == attempt
    assert read_record(pipeline.stage, batch, attempt) == record


def test_records_are_no_partitions(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    assets = (ROLLUP_TABLE, REPARTITIONED, PARTIAL_POINTS, "publish_history")
    assert {asset: pipeline.stage.batches(asset, pipeline.calendar) for asset in assets} == {
        ROLLUP_TABLE: [batch],
        REPARTITIONED: [batch],
        PARTIAL_POINTS: [batch],
        "publish_history": [],
    }


def test_a_commit_of_unknown_outcome_has_its_record(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    from rollup_assets_tests.iceberg.test_publish import commits

    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1, raw_file("a"))

    def lose(apply: Callable[[], Any], _number: int) -> Any:
        apply()
        raise ConnectionError("connection reset")

    stage_value(pipeline, batch, 2, raw_file("b"))
    with commits(monkeypatch, lose):
        publish(pipeline, batch)
    assert files_of(since(pipeline, 0)) == {batch.key: [(batch.key, "a", "removed"), (batch.key, "b", "new")]}


# --------------------------------------------------------------------------------------------------------------- which snapshot


def test_a_time_means_the_newest_snapshot_at_or_before_it(pipeline: Pipeline) -> None:
    first, second, third = batches_from(pipeline, 3)
    for batch in (first, second, third):
        publish_value(pipeline, batch, 1)
        time.sleep(0.002)
    made = load(pipeline).snapshots()
    moment = time_of(made[1])
    tokyo = moment.astimezone(dt.timezone(dt.timedelta(hours=9)))
    for text in (moment.isoformat(), moment.replace(tzinfo=None).isoformat(), tokyo.isoformat()):
        found = diff(pipeline.settings, text)
        assert found.old.snapshot_id == made[1].snapshot_id
        assert counts(found).keys() == {third.key}
    just_before = (moment - dt.timedelta(milliseconds=1)).isoformat()
    assert diff(pipeline.settings, just_before, moment.isoformat()).new.snapshot_id == made[1].snapshot_id
    assert diff(pipeline.settings, just_before).old.snapshot_id == made[0].snapshot_id


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("12", "there is no snapshot 12, or it has expired; known are "),
        ("2020-01-01", "none of the kept snapshots is as old as 2020-01-01 00:00:00 UTC; known are "),
        ("yesterday", "'yesterday' is neither a snapshot id nor a time; give the id of a snapshot, or a time such as"),
        ("2026-01-01-00:00", "'2026-01-01-00:00' is a partition; give the id"),
    ],
)
def test_what_is_no_snapshot_is_refused_and_the_known_ones_are_named(pipeline: Pipeline, text: str, says: str) -> None:
    (batch,) = batches_from(pipeline, 1)
    made = publish_value(pipeline, batch, 1).snapshot_id
    with pytest.raises(UnknownSnapshotError) as refused:
        diff(pipeline.settings, text)
    assert says in str(refused.value)
    assert ("known are" not in says) or f"known are {made} (" in str(refused.value)


def test_a_table_that_is_missing_or_empty(pipeline: Pipeline) -> None:
    with pytest.raises(QueryError, match="there is no table"):
        diff(pipeline.settings, "12")
    ensure_table(pipeline.settings)
    with pytest.raises(UnknownSnapshotError, match="the table has none"):
        diff(pipeline.settings, "12")


# ------------------------------------------------------------------------------------------------------- against plain Python

Rows = dict[tuple[int, int], int]
ROWS = st.dictionaries(st.tuples(st.integers(0, 3), st.integers(0, 179)), st.integers(0, 2), max_size=12)


@settings(max_examples=5, deadline=None)
@given(before=ROWS, after=ROWS)
def test_differences_are_those_of_two_dictionaries(
    make_pipeline: MakePipeline, fresh_home: Callable[[], Path], before: Rows, after: Rows
) -> None:
    """Rows of three batches by (id, minute), written by anybody, before and after."""
    pipeline = make_pipeline(fresh_home(), resolutions="1m")
    table = ensure_table(pipeline.settings)
    whole = [rollup_rows(pipeline.settings, batch, 60_000, 4) for batch in batches_from(pipeline, 3)]
    columns = pa.concat_tables(whole)

    def content(rows: Rows) -> pa.Table:
        chosen = [
            index
            for index, (series, label) in enumerate(zip(columns["id"].to_pylist(), columns["logical_timestamp"].to_pylist(), strict=True))
            if (series, label.hour * 60 + label.minute) in rows
        ]
        found = columns.take(pa.array(chosen, pa.int64()))
        keys = zip(found["id"].to_pylist(), found["logical_timestamp"].to_pylist(), strict=True)
        values = [rows[series, label.hour * 60 + label.minute] for series, label in keys]
        at = found.schema.get_field_index("sum_rollup")
        return found.set_column(at, found.schema.field(at), pa.array(values, pa.int64()))

    table.append(content(before))
    first = table.current_snapshot()
    assert first is not None
    load(pipeline).overwrite(content(after))
    found = diff(pipeline.settings, str(first.snapshot_id), first_differences=100)
    expected = {
        (id_, minute): "added" if (id_, minute) not in before else "removed" if (id_, minute) not in after else "changed"
        for id_, minute in before.keys() | after.keys()
        if before.get((id_, minute)) != after.get((id_, minute))
    }
    assert {(one.id, one.label.hour * 60 + one.label.minute): one.change for one in found.windows} == expected
    assert sum(one.windows for one in found.partitions) == len(expected)
