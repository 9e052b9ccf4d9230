"""Other shards, resolutions and batches for a table that is there: made anew from raw data, and changed in one snapshot."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rollup_assets.batches import Batch
from rollup_assets.errors import MigrationError, RollbackError, RollupError, TableMismatchError
from rollup_assets.history import migrate as migrating
from rollup_assets.history.diff import diff
from rollup_assets.history.migrate import Migration, _note, migrate
from rollup_assets.history.records import read_record
from rollup_assets.history.rollback import rollback
from rollup_assets.iceberg.catalog import load_catalog
from rollup_assets.iceberg.locks import TableLock, table_lock
from rollup_assets.iceberg.table import ensure_table
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import Settings
from rollup_assets.status import status
from rollup_assets.steps import publish as publishing
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.rollup import roll_up
from rollup_assets.storage.landing_zone import LandingZone
from rollup_assets.storage.manifests import REPARTITIONED, ROLLUP_TABLE, ROLLUPS, InputFile
from rollup_assets.verification import verify
from rollup_assets_tests.conftest import MakePipeline
from rollup_assets_tests.history.published import publish_value, snapshots, wait_side_by_side
from rollup_assets_tests.iceberg.staging import batches_from, live_and_deleted_paths, load, pipeline_in, rows_of
from rollup_assets_tests.iceberg.test_publish import commits, compact
from rollup_assets_tests.landing import write_rows
from rollup_assets_tests.naive import RawRow
from rollup_assets_tests.test_cli import plain, runner

OTHER: dict[str, Any] = {"shards": 8, "resolutions": "1m,10m,1h"}
MINUTE = 60_000
AGAIN = "`rollups migrate --yes` again"


def land(pipeline: Pipeline, batch: Batch, name: str = "a.parquet", value: int = 5) -> Path:
    """Points of four series, at the batch's beginning, inside and up to its end."""
    rows = [RawRow(series, 1, "m", batch.start + minute * MINUTE, value + minute) for series in range(4) for minute in (0, 7, 59)]
    write_rows(pipeline, batch, name, rows)
    return Path(pipeline.landing_zone.folder(batch).path) / name


def make(pipeline: Pipeline, batches: list[Batch]) -> None:
    for batch in batches:
        stage_batch(pipeline, batch)
        roll_up(pipeline, batch)
        publish(pipeline, batch)


@pytest.fixture
def old(tmp_path: Path, make_pipeline: MakePipeline) -> Pipeline:
    """Two batches with raw data, and the row of the second one's last hour in the third."""
    pipeline = make_pipeline(tmp_path)
    first, second, third = batches_from(pipeline, 3)
    for batch in (first, second):
        land(pipeline, batch)
    make(pipeline, [first, second, third])
    return pipeline


def content(pipeline: Pipeline) -> list[tuple[Any, ...]]:
    found = load(pipeline).scan().to_arrow()
    names = sorted(found.column_names)
    return sorted((tuple(row[name] for name in names) for row in found.select(names).to_pylist()), key=repr)


def fresh(make_pipeline: MakePipeline, home: Path, raw: Pipeline, batches: list[Batch], **settings: Any) -> list[tuple[Any, ...]]:
    """What a table has that was made with these settings from the same raw data."""
    pipeline = make_pipeline(home, raw=raw.settings.raw, **settings)
    make(pipeline, batches)
    return content(pipeline)


def now(pipeline: Pipeline) -> dt.datetime:
    """As the third batch has just ended."""
    return batches_from(pipeline, 3)[-1].end_time


def migrated(pipeline: Pipeline, **options: Any) -> Migration:
    return migrate(pipeline, dry_run=False, now=now(pipeline), **options)


def own(pipeline: Pipeline) -> dict[str, str]:
    return {name: value for name, value in load(pipeline).properties.items() if name.startswith("rollup.")}


def test_shards_and_resolutions_change_in_one_snapshot(
    old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline, fresh_home: Callable[[], Path]
) -> None:
    """The table is then the one that these settings would have made; what is staged and every receipt is theirs."""
    new = make_pipeline(tmp_path, **OTHER)
    batches = batches_from(new, 3)
    before = snapshots(old)
    told: list[str] = []
    done = migrated(new, on_partition=told.append)
    assert done.changes == {"ROLLUP_SHARDS": ("4", "8"), "ROLLUP_RESOLUTIONS": ("1m,5m,1h", "1m,10m,1h")}
    assert list(done.partitions) == told == [batch.key for batch in batches]
    assert snapshots(new) == [*before, done.snapshot_id]
    assert own(new) == {"rollup.shards": "8", "rollup.batch": "1h", "rollup.value-type": "long", "rollup.resolutions": "1m,10m,1h"}
    assert content(new) == fresh(make_pipeline, fresh_home(), old, batches, **OTHER)
    assert (done.rows_before, done.rows_after) == (len(content(old)) and done.rows_before, len(content(new)))
    assert verify(new.settings).agrees
    assert [one.state for one in status(new.settings, batches)] == ["published"] * 3
    for batch in batches:
        assert publish(new, batch).unchanged
        with pytest.raises(RollupError):
            publish(old, batch)
    assert len(snapshots(new)) == len(before) + 1
    assert migrated(new) == Migration({}, (), len(content(new)), ())


def test_a_dry_run_changes_nothing(old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline) -> None:
    new = make_pipeline(tmp_path, **OTHER)
    before = (snapshots(old), content(old), own(old))
    found = migrate(new, now=now(new))
    assert found.changes.keys() == {"ROLLUP_SHARDS", "ROLLUP_RESOLUTIONS"}
    assert found.rows_before == len(before[1])
    assert found.snapshot_id is None
    assert (snapshots(old), content(old), own(old)) == before
    for batch in batches_from(old, 3):
        assert publish(old, batch).unchanged


@pytest.mark.scenario("K3")
def test_an_interrupted_migration_leaves_the_table_as_it_was_and_goes_on(
    old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = make_pipeline(tmp_path, **OTHER)
    before = (snapshots(old), content(old), own(old))
    told: list[str] = []

    def stop(key: str) -> None:
        told.append(key)
        if len(told) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrated(new, on_partition=stop)
    assert (snapshots(old), content(old), own(old)) == before
    # Neither settings publish meanwhile: the table is of the old ones, what is staged of the new ones.
    for pipeline in (old, new):
        with pytest.raises(RollupError):
            publish(pipeline, batches_from(old, 1)[0])
    assert (snapshots(old), content(old), own(old)) == before
    rolled: list[Batch] = []
    from rollup_assets.steps import rollup

    original = rollup._roll_up

    def counted(pipeline: Pipeline, batch: Batch, *arguments: Any) -> Any:
        rolled.append(batch)
        return original(pipeline, batch, *arguments)

    monkeypatch.setattr(rollup, "_roll_up", counted)
    assert migrated(new).snapshot_id is not None
    assert rolled == batches_from(new, 3)[2:]
    assert verify(new.settings).agrees


@pytest.mark.scenario("K4", "P1")
def test_a_migration_that_is_killed_after_its_commit_is_finished_by_running_it_again(
    old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the commit was lost, too."""
    new = make_pipeline(tmp_path, **OTHER)
    before = len(snapshots(old))

    def lose(apply: Callable[[], Any], _number: int) -> Any:
        apply()
        raise ConnectionError("connection reset")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with commits(monkeypatch, lose) as tried, monkeypatch.context() as patch:
        patch.setattr("rollup_assets.history.migrate._note", killed)
        with pytest.raises(KeyboardInterrupt):
            migrated(new)
    assert tried == [1]
    assert len(snapshots(new)) == before + 1
    assert own(new)["rollup.shards"] == "8"
    held: list[str] = []

    @contextlib.contextmanager
    def noted(settings: Settings) -> Iterator[TableLock]:
        with table_lock(settings) as lock:
            held.append("taken")
            yield lock
            held.append("released")

    monkeypatch.setattr("rollup_assets.iceberg.locks.table_lock", noted)
    monkeypatch.setattr("rollup_assets.history.migrate._note", lambda *arguments: held.append("written") or _note(*arguments))
    migrated(new)
    assert (held[0], held.count("written"), held[-1]) == ("taken", 3, "released"), "as publishes and rollbacks write receipts"
    for batch in batches_from(new, 3):
        receipt = new.stage.read(ROLLUP_TABLE, batch)
        assert receipt is not None
        assert receipt.parameters["shards"] == 8
        assert publish(new, batch).unchanged
    assert len(snapshots(new)) == before + 1
    assert verify(new.settings).agrees


@pytest.mark.scenario("K4")
@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("is_killed", [False, True])
def test_what_is_staged_after_the_commit_keeps_no_receipt_from_being_written(
    tmp_path: Path, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, *, is_killed: bool
) -> None:
    """The receipts say what is in the table, as they do where the migration was killed; what was staged is published as ever."""
    new = make_pipeline(tmp_path, **OTHER)
    batches = batches_from(new, 3)

    def stage_more(apply: Callable[[], Any], _number: int) -> Any:
        done = apply()
        write_rows(new, batches[0], "late.parquet", [RawRow(9, 1, "m", batches[0].start + 7 * MINUTE, 5)])
        stage_batch(new, batches[0])
        return done

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with commits(monkeypatch, stage_more), monkeypatch.context() as patch:
        if is_killed:
            patch.setattr("rollup_assets.history.migrate._note", killed)
        with pytest.raises(KeyboardInterrupt) if is_killed else contextlib.nullcontext():
            migrated(new)
    migrated(new)
    for batch in batches:
        receipt, rollups = new.stage.read(ROLLUP_TABLE, batch), new.stage.read(ROLLUPS, batch)
        assert receipt is not None
        assert rollups is not None
        assert receipt.digest == rollups.digest
        record = read_record(new.stage, batch, receipt.attempt)
        assert record is not None
        # What was staged since is not what the rows were made from.
        assert not any("late" in file.path for file in record.inputs.get(batch.key) or ())
    make(new, batches)
    assert verify(new.settings).agrees


def test_migrating_again_takes_no_empty_batch_of_the_old_length_for_one_of_the_new(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """It begins when one of the new length does, which has not ended."""
    old = make_pipeline(tmp_path)
    first, second, third = batches_from(old, 3)
    land(old, first)
    make(old, [first, second, third])
    new = make_pipeline(tmp_path, batch="2h", lookback="1h")
    for _ in range(2):
        migrate(new, dry_run=False, now=third.start_time)
    receipt = new.stage.read(ROLLUP_TABLE, third)
    assert receipt is not None
    assert receipt.parameters["batch"] == old.settings.batch
    assert verify(new.settings).agrees


def test_rows_without_raw_data_are_named_and_go_only_if_that_is_wanted(old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline) -> None:
    new = make_pipeline(tmp_path, **OTHER)
    first, second, _ = batches_from(new, 3)
    (Path(old.landing_zone.folder(first).path) / "a.parquet").unlink()
    before = content(old)
    assert migrate(new, now=now(new)).dropped == (first.key,)
    with pytest.raises(MigrationError, match=rf"has rows of {first.key}, whose raw data is gone.*--drop"):
        migrated(new)
    assert content(old) == before
    assert publish(old, second).unchanged
    done = migrated(new, drop=True)
    assert done.dropped == (first.key,)
    labels = load(new).scan().to_arrow()["logical_timestamp"].to_pylist()
    assert min(labels) == second.start_time
    assert verify(new.settings).agrees


def test_rows_whose_raw_data_is_gone_in_part_are_named(old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """A file that was removed on purpose is no longer missed once the partition is published without it."""
    first, second, third = batches_from(old, 3)
    more = land(old, first, "more.parquet", 1_000)
    make(old, [first, second, third])
    more.unlink()
    new = make_pipeline(tmp_path, **OTHER)
    assert migrate(new, now=now(new)).dropped == (first.key,)
    with pytest.raises(MigrationError, match=rf"has rows of {first.key}, whose raw data is gone.*in part"):
        migrated(new)

    def stop(_key: str) -> None:
        raise KeyboardInterrupt

    # What is staged is of the files that are left then.
    with pytest.raises(KeyboardInterrupt):
        migrated(new, drop=True, on_partition=stop)
    assert migrate(new, now=now(new)).dropped == (first.key,)
    make(old, [first, second, third])
    assert migrated(new).dropped == ()


def test_raw_files_that_were_merged_are_not_missed(old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """Their content is the same, so that nothing is published that would be made from the new file.

    Nor once a migration has been interrupted after it staged them with the new settings.
    """
    first = batches_from(old, 1)[0]
    (Path(old.landing_zone.folder(first).path) / "a.parquet").unlink()
    land(old, first, "merged.parquet")
    before = snapshots(old)
    make(old, batches_from(old, 3))
    assert snapshots(old) == before
    new = make_pipeline(tmp_path, **OTHER)
    assert migrate(new, now=now(new)).dropped == ()

    def stop(_key: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        migrated(new, on_partition=stop)
    assert migrated(new).dropped == ()
    assert verify(new.settings).agrees


def test_a_record_that_is_brought_up_to_date_keeps_what_a_later_version_says_in_it(
    old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline
) -> None:
    first = batches_from(old, 1)[0]
    (path,) = (Path(old.stage.root.path) / "publish_history" / first.folder).glob("*.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"compressed_by": {"name": "zstd"}}))
    (Path(old.landing_zone.folder(first).path) / "a.parquet").unlink()
    land(old, first, "merged.parquet")
    make(old, batches_from(old, 3))
    migrated(make_pipeline(tmp_path, **OTHER))
    record = json.loads(path.read_text())
    assert [Path(file["path"]).name for file in record["inputs"][first.key]] == ["merged.parquet"]
    assert record["compressed_by"] == {"name": "zstd"}


def test_rows_that_arrived_late_do_not_stand_for_a_folder_that_is_gone(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """With folders of arrival, a batch reads the folders after its own: they are there when retention has removed its own.

    An hour whose rows all came late, on the other hand, misses nothing.
    """
    old = make_pipeline(tmp_path, raw_lateness=2)
    batches = batches_from(old, 5)
    landed = [batches[0], *batches[2:4]]
    for folder in landed:
        arrived = [folder, *old.calendar.earlier(folder, 2)]
        rows = [RawRow(1, 1, "m", batch.start + minute * MINUTE, minute) for batch in arrived for minute in (7, 59)]
        write_rows(old, folder, "a.parquet", rows)
    make(old, batches)
    new = make_pipeline(tmp_path, raw_lateness=2, **OTHER)
    assert migrate(new, now=batches[-1].end_time).dropped == ()
    for folder in landed[:2]:
        (Path(old.landing_zone.folder(folder).path) / "a.parquet").unlink()
    assert migrate(new, now=batches[-1].end_time).dropped == tuple(batch.key for batch in batches[:3])
    make(old, batches)
    assert migrate(new, now=batches[-1].end_time).dropped == ()


def test_a_folder_that_several_batches_read_is_listed_once(
    tmp_path: Path, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Years of folders, each with many files, are in memory then."""
    old = make_pipeline(tmp_path, raw_lateness=2)
    batches = batches_from(old, 4)
    for batch in batches:
        land(old, batch, f"{batch.folder}.parquet")
    make(old, batches)
    listed: list[Batch] = []
    original = LandingZone.folder_files

    def counted(zone: LandingZone, batch: Batch) -> list[InputFile]:
        listed.append(batch)
        return original(zone, batch)

    monkeypatch.setattr(LandingZone, "folder_files", counted)
    assert migrate(make_pipeline(tmp_path, raw_lateness=2, **OTHER), now=batches[-1].end_time).dropped == ()
    assert set(batches) < set(listed)
    assert len(listed) == len(set(listed))


def test_migrating_again_leaves_what_was_published_since_alone(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """With folders of arrival, too, whose lateness is a parameter of what is staged and of no receipt."""
    old = make_pipeline(tmp_path, raw_lateness=1)
    first, second = batches_from(old, 2)
    for batch in (first, second):
        land(old, batch)
    make(old, [first, second])
    new = make_pipeline(tmp_path, raw_lateness=1, **OTHER)
    assert migrate(new, dry_run=False, now=second.end_time).snapshot_id is not None
    write_rows(new, second, "more.parquet", [RawRow(9, 1, "m", second.start + 7 * MINUTE, 5)])
    make(new, [first, second])
    receipts = [new.stage.read(ROLLUP_TABLE, batch) for batch in (first, second)]
    assert migrate(new, dry_run=False, now=second.end_time).changes == {}
    assert [new.stage.read(ROLLUP_TABLE, batch) for batch in (first, second)] == receipts


def test_rows_of_an_hour_that_left_only_its_last_window_open_are_missed_too(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """The hour after it, which has them, has raw data."""
    old = make_pipeline(tmp_path)
    first, second = batches_from(old, 2)
    write_rows(old, first, "a.parquet", [RawRow(1, 1, "m", first.end - 1, 5)])
    land(old, second)
    make(old, [first, second])
    (Path(old.landing_zone.folder(first).path) / "a.parquet").unlink()
    assert migrate(make_pipeline(tmp_path, **OTHER), now=second.end_time).dropped == (first.key,)


def test_where_nothing_is_recorded_a_batch_without_a_file_of_its_own_is_uncertain(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """A folder after it that it reads is there. Without that one, its raw data is gone."""
    old = make_pipeline(tmp_path, raw_lateness=2)
    first, second = batches_from(old, 2)
    for folder in (first, second):
        rows = [RawRow(1, 1, "m", first.start + 7 * MINUTE, 5), RawRow(1, 1, "m", second.start + 7 * MINUTE, 5)]
        write_rows(old, folder, "a.parquet", rows if folder == second else rows[:1])
    make(old, [first, second])
    (Path(old.landing_zone.folder(first).path) / "a.parquet").unlink()
    Path(old.stage.root.path).rename(tmp_path / "lost")
    new = make_pipeline(tmp_path, raw_lateness=2, **OTHER)
    found = migrate(new, now=second.end_time)
    assert (found.dropped, found.uncertain) == ((), (first.key,))
    (Path(old.landing_zone.folder(second).path) / "a.parquet").unlink()
    found = migrate(new, now=second.end_time)
    assert (found.dropped, found.uncertain) == ((first.key, second.key), ())


def test_longer_batches_whose_rows_all_came_late_are_not_called_gone(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """Nobody can tell, so that it is asked for once; nothing of them goes."""
    old = make_pipeline(tmp_path, raw_lateness=2)
    batches = batches_from(old, 6)
    land(old, batches[0])
    rows = [RawRow(1, 1, "m", batch.start + minute * MINUTE, minute) for batch in batches[2:5] for minute in (7, 59)]
    write_rows(old, batches[4], "a.parquet", rows)
    make(old, batches)
    new = make_pipeline(tmp_path, raw_lateness=2, batch="2h", lookback="1h")
    end, before = batches[-1].end_time, rows_of(load(old), "id", "resolution", "logical_timestamp")
    found = migrate(new, now=end)
    assert (found.dropped, found.uncertain) == ((), (batches[2].key,))
    with pytest.raises(
        MigrationError, match=rf"rows of {batches[2].key}, whose own folders in .* not known whether.*; nothing.*--yes --drop"
    ):
        migrate(new, dry_run=False, now=end)
    migrate(new, dry_run=False, now=end, drop=True)
    assert rows_of(load(new), "id", "resolution", "logical_timestamp") == before
    assert verify(new.settings).agrees


@pytest.mark.usefixtures("old")
def test_another_type_of_values_needs_another_table(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    with pytest.raises(TableMismatchError, match="cannot be changed under its readers: set ROLLUP_TABLE to a new name"):
        migrate(make_pipeline(tmp_path, value_type="double"), dry_run=False)


@pytest.mark.parametrize("killed", ["", "rollup_assets.iceberg.commit._apply", "rollup_assets.history.rollback._note"])
def test_what_was_rolled_back_does_not_come_back_by_a_migration(
    old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, killed: str
) -> None:
    """Nor where the rollback was killed, before its commit or after it: it has to be run again, which it cannot after a migration."""
    first = batches_from(old, 1)[0]
    land(old, first, "bad.parquet", 1_000)
    make(old, [first])

    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if killed:
        with monkeypatch.context() as patch:
            patch.setattr(killed, kill)
            with pytest.raises(KeyboardInterrupt):
                rollback(old, first.key)
    else:
        rollback(old, first.key)
    new = make_pipeline(tmp_path, **OTHER)
    found = migrate(new, now=now(new))
    assert (found.rolled_back, found.begun) == ((first.key,), (first.key,) if killed else ())
    reason = rf"a rollback of {first.key} of .* has not ended.*again" if killed else rf"{first.key} of metrics.rollups were rolled back"
    with pytest.raises(MigrationError, match=reason):
        migrated(new)
    assert publish(old, first).refused is not None
    rollback(old, first.key)
    assert migrate(new, now=now(new)).begun == ()
    with pytest.raises(MigrationError, match=rf"{first.key} of metrics.rollups were rolled back"):
        migrated(new)


def test_of_many_partitions_that_were_rolled_back_the_first_are_named(tmp_path: Path) -> None:
    """As of all that stand in the way of a migration."""
    old = pipeline_in(tmp_path, resolutions="1h")
    batches = batches_from(old, 12)
    target, *_ = [publish_value(old, batch, 1).snapshot_id for batch in batches]
    rollback(old, str(target))
    with pytest.raises(MigrationError, match=rf"{batches[10]} and 1 more of metrics.rollups were rolled back"):
        migrate(pipeline_in(tmp_path, resolutions="1h", shards=8), dry_run=False)


def test_there_is_no_way_back_across_a_migration_but_a_difference(old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """The same windows in other shards are the same; those of the resolution that went are gone, with the reason."""
    before = snapshots(old)[-1]
    new = make_pipeline(tmp_path, **OTHER)
    migrated(new)
    first = batches_from(new, 1)[0]
    for what in (first.key, str(before)):
        with pytest.raises(RollbackError, match=r"was migrated to ROLLUP_SHARDS=8, ROLLUP_RESOLUTIONS=1m,10m,1h by snapshot"):
            rollback(new, what)
    found = diff(new.settings, str(before)).partitions[0]
    assert (set(found.added), set(found.removed), set(found.changed)) == ({"10m"}, {"5m"}, set())
    assert "made with shards = 8 instead of 4" in found.remarks
    # What is published afterwards can be undone.
    land(new, first, "late.parquet", 1_000)
    make(new, [first])
    rollback(new, first.key)
    assert diff(new.settings, str(snapshots(new)[-3])).partitions == []


def test_another_batch_length(tmp_path: Path, make_pipeline: MakePipeline, fresh_home: Callable[[], Path]) -> None:
    """Raw files have moved to the folders of the longer batches; what was staged for the shorter ones is in nobody's way."""
    old = make_pipeline(tmp_path)
    first, second, third = batches_from(old, 3)
    for batch in (first, second):
        land(old, batch, f"{batch.folder}.parquet")
    make(old, [first, second, third])
    new = make_pipeline(tmp_path, batch="2h", lookback="1h")
    name = f"{second.folder}.parquet"
    (Path(old.landing_zone.folder(second).path) / name).rename(Path(old.landing_zone.folder(first).path) / name)
    batches = batches_from(new, 2)
    done = migrate(new, dry_run=False, now=batches[-1].end_time)
    assert done.changes == {"ROLLUP_BATCH": ("1h", "2h")}
    assert done.partitions == tuple(batch.key for batch in batches)
    assert content(new) == fresh(make_pipeline, fresh_home(), new, batches, batch="2h", lookback="1h")
    assert [(one.partition, one.state) for one in status(new.settings, now=batches[-1].end_time)] == [
        (batch.key, "published") for batch in batches
    ]
    assert verify(new.settings).agrees


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_migration_back_brings_what_is_still_staged_as_copies(
    tmp_path: Path, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, *, is_killed: bool
) -> None:
    """The second hour begins no longer batch, and was staged all the time. Engines that expire snapshots would delete its files."""
    old = make_pipeline(tmp_path)
    first, second, third = batches_from(old, 3)
    for batch in (first, second):
        land(old, batch, f"{batch.folder}.parquet")
    make(old, [first, second, third])
    before = content(old)
    new = make_pipeline(tmp_path, batch="2h", lookback="1h")
    short, long = (Path(old.landing_zone.folder(batch).path) / f"{second.folder}.parquet" for batch in (second, first))
    short.rename(long)
    end = batches_from(new, 2)[-1].end_time
    migrate(new, dry_run=False, now=end)
    long.rename(short)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    if is_killed:
        with monkeypatch.context() as patch:
            patch.setattr("rollup_assets.history.migrate._note", killed)
            with pytest.raises(KeyboardInterrupt):
                migrate(old, dry_run=False, now=end)
    migrate(old, dry_run=False, now=end)
    live, deleted = live_and_deleted_paths(load(old))
    assert not live & deleted
    assert content(old) == before
    made = snapshots(old)
    for batch in (first, second, third):
        receipt = old.stage.read(ROLLUP_TABLE, batch)
        assert receipt is not None
        assert receipt.counters["snapshot_id"] == made[-1]
        assert publish(old, batch).unchanged
        assert publish(old, batch, force=True).unchanged
    assert snapshots(old) == made
    assert live_and_deleted_paths(load(old)) == (live, deleted)
    assert verify(old.settings).agrees


def test_staged_files_of_a_migration_that_may_have_landed_unseen_come_as_copies(
    old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its answer was lost, and another engine set its snapshot aside: that snapshot's files may be deleted when it expires."""
    new = make_pipeline(tmp_path, shards=8)
    before = load(old).metadata.current_snapshot_id
    assert before is not None

    def lose_the_first(apply: Callable[[], Any], number: int) -> Any:
        found = apply()
        if number == 1:
            load(old).manage_snapshots().rollback_to_snapshot(before).commit()
            raise ConnectionError("connection reset")
        return found

    with commits(monkeypatch, lose_the_first):
        migrated(new)
    table = load(new)
    set_aside = {task.file.file_path for task in table.scan(snapshot_id=snapshots(new)[-2]).plan_files()}
    assert set_aside
    assert not set_aside & live_and_deleted_paths(table)[0]
    assert verify(new.settings).agrees
    assert all(publish(new, batch).unchanged for batch in batches_from(new, 3))


def test_rows_of_a_longer_batch_that_has_not_ended_are_named(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """Those of its first hours were published before, and what it carries over; with its end they are made anew."""
    old = make_pipeline(tmp_path)
    first, second, third, fourth = batches_from(old, 4)
    for batch in (first, third):
        land(old, batch)
    make(old, [first, second, third])
    new = make_pipeline(tmp_path, batch="2h", lookback="1h")
    before = content(old)
    assert migrate(new, now=fourth.end_time).not_ended == ()
    assert migrate(new, now=third.end_time).not_ended == (third.key,)
    assert migrate(new, now=third.end_time).dropped == ()
    with pytest.raises(MigrationError, match=rf"has rows of {third.key} .*cannot be made again before 2026-01-01 04:00 UTC.*--yes --drop"):
        migrate(new, dry_run=False, now=third.end_time)
    assert content(old) == before
    assert migrate(new, dry_run=False, now=third.end_time, drop=True).not_ended == (third.key,)
    labels = load(new).scan().to_arrow()["logical_timestamp"].to_pylist()
    assert max(labels) < third.start_time
    make(new, batches_from(new, 2))
    assert max(load(new).scan().to_arrow()["logical_timestamp"].to_pylist()) == fourth.start_time
    assert verify(new.settings).agrees


def test_all_rows_that_would_go_are_named_before_they_may(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """Raw data that is gone does not hide a batch that has not ended; a window at the beginning of the first one is of no other."""
    old = make_pipeline(tmp_path)
    batches = batches_from(old, 5)
    for batch in batches[::2]:
        land(old, batch)
    make(old, batches)
    first, _, _, _, fifth = batches
    (Path(old.landing_zone.folder(first).path) / "a.parquet").unlink()
    new = make_pipeline(tmp_path, batch="2h", lookback="1h")
    before = content(old)
    found = migrate(new, now=fifth.end_time)
    assert (found.dropped, found.not_ended) == ((first.key,), (fifth.key,))
    reason = rf"rows of {first.key}, whose raw data is gone.*, and of {fifth.key} .*before 2026-01-01 06:00 UTC.*--yes --drop"
    with pytest.raises(MigrationError, match=reason):
        migrate(new, dry_run=False, now=fifth.end_time)
    assert content(old) == before


def test_a_window_that_a_longer_batch_only_carries_over_is_named_too(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """It is of the coarsest resolution alone: the batch before had no point in its last minutes."""
    old = make_pipeline(tmp_path)
    first, second, third = batches_from(old, 3)
    write_rows(old, second, "a.parquet", [RawRow(1, 1, "m", second.start + 7 * MINUTE, 5)])
    make(old, [first, second, third])
    new = make_pipeline(tmp_path, batch="2h", lookback="1h")
    Path(old.landing_zone.folder(second).path).rename(old.landing_zone.folder(first).path)
    assert migrate(new, now=third.end_time).not_ended == (third.key,)


def test_before_any_batch_of_the_new_length_has_ended_all_rows_are_named(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    old = make_pipeline(tmp_path)
    first, second = batches_from(old, 2)
    land(old, first)
    make(old, [first, second])
    found = migrate(make_pipeline(tmp_path, batch="12h", lookback="1h"), now=second.end_time)
    assert (found.partitions, found.not_ended) == ((), (first.key,))


def test_somebody_who_stages_with_the_old_settings_meanwhile_is_noticed(old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline) -> None:
    new = make_pipeline(tmp_path, **OTHER)
    first, _, third = batches_from(new, 3)
    before = content(old)

    def interfere(key: str) -> None:
        if key == third.key:
            stage_batch(old, first)

    with pytest.raises(MigrationError, match=rf"the stage was changed during the migration: what was made for {first}.*{AGAIN}") as raised:
        migrated(new, on_partition=interfere)
    assert "backfill" not in str(raised.value)
    assert content(old) == before
    assert migrated(new).snapshot_id is not None


@pytest.mark.parametrize("what", ["publish", "rollback", "rollback that is killed before its commit"])
def test_what_is_published_or_rolled_back_meanwhile_is_not_undone(
    old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A run that was queued publishes a batch that had not ended when the migration began: nobody has named its rows."""
    *batches, fourth = batches_from(old, 4)
    if what == "publish":
        land(old, fourth)
        stage_batch(old, fourth)
        roll_up(old, fourth)
    else:
        land(old, batches[0], "bad.parquet", 1_000)
        make(old, batches)
    new = make_pipeline(tmp_path, **OTHER)
    after: list[Any] = []

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def interfere(key: str) -> None:
        if key != batches[0].key:
            return
        if what == "publish":
            publish(old, fourth)
        elif what == "rollback":
            rollback(old, key)
        else:
            with monkeypatch.context() as patch:
                patch.setattr("rollup_assets.iceberg.commit._apply", killed)
                with pytest.raises(KeyboardInterrupt):
                    rollback(old, key)
        after.append((snapshots(old), content(old), own(old)))

    reason = "published to, or rolled back, during" if what == "publish" else rf"a rollback of {batches[0].key} of .* or made, during"
    with pytest.raises(MigrationError, match=rf"{reason} the migration.*; nothing was changed.*{AGAIN}"):
        migrated(new, on_partition=interfere)
    assert [(snapshots(old), content(old), own(old))] == after
    if what != "publish":
        found = migrate(new, now=now(new))
        assert (found.rolled_back, found.begun) == ((batches[0].key,), () if what == "rollback" else (batches[0].key,))
        return
    assert migrate(new, dry_run=False, now=fourth.end_time).partitions[-1] == fourth.key
    assert verify(new.settings).agrees


@pytest.mark.parametrize("is_dropped", [False, True])
def test_what_is_published_meanwhile_is_not_undone_although_the_history_does_not_tell(
    old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline, *, is_dropped: bool
) -> None:
    """Another engine has compacted the table since and keeps no other snapshot; or it was dropped, and numbers have begun anew."""
    first, *_, fourth = batches_from(old, 4)
    land(old, fourth)
    stage_batch(old, fourth)
    roll_up(old, fourth)
    new = make_pipeline(tmp_path, **OTHER)
    after: list[Any] = []

    def interfere(key: str) -> None:
        if key != first.key:
            return
        if is_dropped:
            load_catalog(old.settings).drop_table(old.settings.table)
        publish(old, fourth)
        if not is_dropped:
            compact(old)
            load(old).maintenance.expire_snapshots().by_ids(snapshots(old)[:-1]).commit()
        after.append((snapshots(old), content(old), own(old)))

    began = snapshots(old)[-1]
    reason = "published to, or rolled back, during" if is_dropped else f"no longer goes back to snapshot {began}, where"
    with pytest.raises(MigrationError, match=rf"{reason}.*; nothing was changed.*{AGAIN}"):
        migrated(new, on_partition=interfere)
    assert [(snapshots(old), content(old), own(old))] == after
    assert migrate(new, dry_run=False, now=fourth.end_time).partitions[-1] == fourth.key
    assert verify(new.settings).agrees


@pytest.mark.parametrize(
    ("module", "function", "is_killed"), [(publishing, "check_stage", False), (migrating, "_note", False), (migrating, "_note", True)]
)
@pytest.mark.usefixtures("old")
def test_on_a_store_elsewhere_the_partitions_are_asked_for_side_by_side(
    tmp_path: Path, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, *, is_killed: bool
) -> None:
    """One after the other, thousands of them would keep the table's lock for minutes."""
    new = make_pipeline(tmp_path, **OTHER)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    if is_killed:
        with monkeypatch.context() as patch:
            patch.setattr(migrating, "_note", killed)
            with pytest.raises(KeyboardInterrupt):
                migrated(new)
    with monkeypatch.context() as patch:
        wait_side_by_side(patch, migrating, module, function, 3)
        migrated(new)
    for batch in batches_from(new, 3):
        assert publish(new, batch).unchanged
    assert verify(new.settings).agrees


def test_a_compaction_meanwhile_is_in_nobodys_way(old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline) -> None:
    new = make_pipeline(tmp_path, **OTHER)
    first, _, third = batches_from(new, 3)

    def interfere(key: str) -> None:
        if key == first.key:
            compact(old)

    assert migrated(new, on_partition=interfere).partitions[-1] == third.key
    assert verify(new.settings).agrees


def test_raw_files_that_go_meanwhile_are_missed(old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """As by a retention that runs at night: rows go without raw data only if that is wanted."""
    new = make_pipeline(tmp_path, **OTHER)
    first, second, _ = batches_from(new, 3)
    before = content(old)

    def interfere(key: str) -> None:
        if key == first.key:
            (Path(old.landing_zone.folder(second).path) / "a.parquet").unlink()

    with pytest.raises(MigrationError, match=rf"raw files of {second} disappeared during the migration, such as .*a.parquet;.*{AGAIN}"):
        migrated(new, on_partition=interfere)
    assert content(old) == before
    with pytest.raises(MigrationError, match=rf"has rows of {second}, whose raw data is gone.*--drop"):
        migrated(new)
    assert migrated(new, drop=True).dropped == (second.key,)


def test_staged_files_that_get_lost_meanwhile_are_made_anew_by_migrating_again(
    old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline
) -> None:
    """A backfill with the new settings, which a publish would ask for, is refused."""
    new = make_pipeline(tmp_path, **OTHER)
    first, _, third = batches_from(new, 3)
    before = content(old)

    def lose(key: str) -> None:
        rollups = new.stage.read(ROLLUPS, first)
        if key == third.key and rollups is not None:
            new.stage.place(rollups, rollups.files[0], first).delete_file()

    with pytest.raises(MigrationError, match=rf"the stage was changed during the migration: what was made for {first}.*{AGAIN}") as raised:
        migrated(new, on_partition=lose)
    assert "backfill" not in str(raised.value)
    assert content(old) == before
    assert migrated(new).snapshot_id is not None
    assert verify(new.settings).agrees


def test_a_staged_file_that_is_damaged_meanwhile_is_made_anew_with_the_old_settings(
    old: Pipeline, tmp_path: Path, make_pipeline: MakePipeline
) -> None:
    """It has its size, so that migrating again would not make it anew."""
    new = make_pipeline(tmp_path, **OTHER)
    first, _, third = batches_from(new, 3)
    before = content(old)

    def damage(key: str) -> None:
        rollups = new.stage.read(ROLLUPS, first)
        if key == third.key and rollups is not None:
            file = rollups.files[0]
            new.stage.place(rollups, file, first).write_bytes(bytes(file.size))
            # As of a manifest of an earlier version.
            unread = tuple(one.model_copy(update={"statistics": None}) for one in rollups.files)
            new.stage.write(rollups.model_copy(update={"files": unread}), first)

    mend = rf"cannot be published.*run `rollups backfill {first} {first} --force` with the old settings, then {AGAIN}"
    for on_partition in (damage, lambda _key: None):
        with pytest.raises(MigrationError, match=mend):
            migrated(new, on_partition=on_partition)
    assert content(old) == before
    stage_batch(old, first, force=True)
    roll_up(old, first, force=True)
    publish(old, first, force=True)
    assert content(old) == before
    assert migrated(new).snapshot_id is not None
    assert verify(new.settings).agrees


def test_a_table_without_rows_gets_the_new_settings(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    ensure_table(make_pipeline(tmp_path).settings)
    new = make_pipeline(tmp_path, **OTHER)
    assert migrated(new).changes.keys() == {"ROLLUP_SHARDS", "ROLLUP_RESOLUTIONS"}
    ensure_table(new.settings)
    assert migrated(new).changes == {}


def test_there_has_to_be_a_table(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    with pytest.raises(MigrationError, match="there is no table"):
        migrate(make_pipeline(tmp_path))


def test_on_postgresql(tmp_path: Path, make_pipeline: MakePipeline, fresh_catalog: Callable[[], dict[str, Any]]) -> None:
    """There, steps look at the table before they write: not at its old settings."""
    catalog = fresh_catalog()
    old = make_pipeline(tmp_path, **catalog)
    (first,) = batches_from(old, 1)
    land(old, first)
    make(old, [first])
    new = make_pipeline(tmp_path, **catalog, shards=8)
    with pytest.raises(TableMismatchError, match="made with ROLLUP_SHARDS=4, the settings say 8; set ROLLUP_SHARDS=4, rebuild the table"):
        make(new, [first])
    assert migrated(new).changes == {"ROLLUP_SHARDS": ("4", "8")}
    assert publish(new, first).unchanged


def test_what_is_shown_of_a_migration(old: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner(tmp_path, monkeypatch)
    assert "nothing to migrate" in plain(run("migrate").output)
    monkeypatch.setenv("ROLLUP_SHARDS", "8")
    rows = len(content(old))
    text = plain(run("migrate").output)
    assert "ROLLUP_SHARDS: 4 → 8" in text
    assert f"4 partitions would be staged and rolled up again, and then replace {rows} rows in one snapshot" in text
    assert "`rollups migrate --yes` does it" in text
    assert run("migrate", "--json")["dry_run"] is True
    assert f"4 partitions, {rows} rows → {rows}" in plain(run("migrate", "--yes").output)
    assert "nothing to migrate" in plain(run("migrate", "--yes").output)
    # A backfill with the settings of before ends before it has staged anything.
    monkeypatch.setenv("ROLLUP_SHARDS", "4")
    first = batches_from(old, 1)[0]
    staged = old.stage.read(REPARTITIONED, first)
    refused = plain(run("backfill", first.key, first.key, status=1).stderr)
    assert "was made with ROLLUP_SHARDS=8, the settings say 4; set ROLLUP_SHARDS=8, rebuild the table" in refused
    assert old.stage.read(REPARTITIONED, first) == staged
