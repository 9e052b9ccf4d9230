"""Leftovers are collected, and nothing that anybody needs ever is: whatever has happened to stage and table before."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import xxhash
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, multiple, rule, run_state_machine_as_test

from rollup_assets import cleaning
from rollup_assets.batches import Batch
from rollup_assets.cleaning import ATTEMPTS, DATA, METADATA, OTHER_PARTITIONS, PROBES, RECORDS, REWRITTEN, SCRATCH, UPLOADS, Cleaning, clean
from rollup_assets.doctor.probes import probe_file
from rollup_assets.errors import StageCorruptError
from rollup_assets.history.diff import diff
from rollup_assets.iceberg.maintenance import maintain
from rollup_assets.iceberg.references import TableReferences
from rollup_assets.iceberg.table import table_location
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps.publish import publish
from rollup_assets.storage import objects
from rollup_assets.storage.filesystems import Place, path_of
from rollup_assets.storage.leftovers import TEMPORARY, StagedFolder, staged_folders
from rollup_assets.storage.manifests import (
    PARTIAL_POINTS,
    QUARANTINED,
    REPARTITIONED,
    ROLLUP_TABLE,
    ROLLUPS,
    Manifest,
    StagedFile,
    content_digest,
    new_attempt,
)
from rollup_assets.storage.objects import PART_BYTES
from rollup_assets.storage.spill import spill_folder
from rollup_assets.verification import verify
from rollup_assets_tests.iceberg.staging import batches_from, load, pipeline_in, rollup_rows, rows_of, stage_rollups
from rollup_assets_tests.s3 import S3Folder, requests
from rollup_assets_tests.spill_folders import held_elsewhere, left_by_a_killed_process
from rollup_assets_tests.test_cli import plain, runner

if TYPE_CHECKING:
    from pyiceberg.table import Table

STAGED = (REPARTITIONED, PARTIAL_POINTS, QUARANTINED, ROLLUPS, ROLLUP_TABLE)
DAY = 86_400


def age(path: Path, days: float) -> None:
    """Make a file, or everything in a folder, look as if it had been written days ago."""
    for one in (path, *path.rglob("*")):
        os.utime(one, (time.time() - days * DAY,) * 2)


def write(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def commit_attempt(pipeline: Pipeline, batch: Batch, content: bytes, asset: str = QUARANTINED) -> Manifest:
    """A staged partition of one file."""
    attempt = new_attempt()
    path = f"{attempt}/file.parquet"
    (pipeline.stage.folder(asset, batch) / path).write_bytes(content)
    files = (StagedFile(path=path, rows=1, size=len(content), digest=xxhash.xxh3_128_hexdigest(content)),)
    counters = {"rows": len(content)}
    manifest = Manifest(
        asset=asset,
        partition=batch.key,
        attempt=attempt,
        code_version="1",
        parameters={},
        files=files,
        counters=counters,
        digest=content_digest(files, counters),
    )
    return pipeline.stage.commit(manifest, batch)


def orphans(pipeline: Pipeline, batch: Batch) -> list[tuple[str, Path]]:
    """Files as killed runs leave them, one of each kind, with their kinds."""
    home, table = Path(pipeline.settings.home), Path(table_location(pipeline.settings))
    name, hidden = uuid.uuid4().hex, uuid.uuid4().hex
    return [
        (ATTEMPTS, write(home / "stage" / REPARTITIONED / batch.folder / name / "shard-00000.parquet")),
        (ATTEMPTS, write(home / "stage" / PARTIAL_POINTS / batch.folder / name / "0-1" / f".group.parquet.{hidden}")),
        (ATTEMPTS, write(home / "stage" / ROLLUPS / batch.folder / f".manifest.json.{hidden}")),
        (DATA, write(table / "data" / "resolution=3600000" / "logical_timestamp_day=2026-01-01" / f"{batch.folder}-{name}-0.parquet")),
        (DATA, write(table / "data" / "resolution=3600000" / f".{batch.folder}-{name}.{hidden}")),
        (REWRITTEN, write(table / "data" / "rewritten" / batch.folder / f"{name}.parquet")),
        (METADATA, write(table / "metadata" / f"{name}-m0.avro")),
        (METADATA, write(table / "metadata" / f"snap-1-0-{name}.avro")),
        (METADATA, write(table / "metadata" / f"00000-{name}.metadata.json", b'{"torn')),
    ]


def files_below(*folders: Path) -> set[str]:
    return {str(path) for folder in folders for path in folder.rglob("*") if path.is_file()}


def needed(pipeline: Pipeline, table: Table | None) -> set[str]:
    """What has to be there, found by other means than the product's: PyIceberg's tables of all files and manifests, and the manifests."""
    found: set[str] = set()
    for path in Path(pipeline.settings.stage).rglob("manifest.json"):
        manifest = Manifest.model_validate_json(path.read_text())
        found |= {str(path), *(str(path.parent / file.path) for file in manifest.files)}
    kept = {snapshot.snapshot_id for snapshot in table.snapshots()} if table is not None else set()
    for folder in Path(pipeline.settings.stage, cleaning.HISTORY).glob("*"):
        records = {str(path): json.loads(path.read_text()) for path in folder.glob("*.json")}
        others = [path for path, record in records.items() if record["snapshot_id"] not in kept]
        found |= records.keys() - set(others)
        found |= set(sorted(others, key=lambda path: -records[path]["sequence_number"])[:5])
    if table is not None:
        inspect = table.inspect
        found |= {str(path) for path in inspect.all_files()["file_path"].to_pylist()} if table.snapshots() else set()
        found |= {str(path) for path in inspect.all_manifests()["path"].to_pylist()} if table.snapshots() else set()
        found |= {snapshot.manifest_list for snapshot in table.snapshots()}
        found |= {table.metadata_location, *(entry.metadata_file for entry in table.metadata.metadata_log)}
    return found


def table_of(pipeline: Pipeline) -> Table | None:
    from rollup_assets.iceberg.catalog import load_catalog
    from rollup_assets.iceberg.table import load_table

    return load_table(load_catalog(pipeline.settings), pipeline.settings)


# ------------------------------------------------------------------------------------------------------------ random histories


class Histories(RuleBasedStateMachine):
    """Publishes, restaging, kills, expiry, branches, tags and other writers, in any order; then everything is cleaned up."""

    snapshots = Bundle("snapshots")

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.pipeline = pipeline_in(self.home, resolutions="1h", keep_snapshots=3)
        self.batches = batches_from(self.pipeline, 3)
        self.contents: dict[int, list[tuple[Any, ...]]] = {}

    def teardown(self) -> None:
        self.collect()
        shutil.rmtree(self.home)

    @initialize(target=snapshots)
    def begin(self) -> Any:
        return self.publish_batch(0, 1)

    def noted(self) -> Any:
        """Remember what each new snapshot holds."""
        table = load(self.pipeline)
        new = [snapshot.snapshot_id for snapshot in table.snapshots() if snapshot.snapshot_id not in self.contents]
        for snapshot_id in new:
            self.contents[snapshot_id] = self.rows(table, snapshot_id)
        return multiple(*new)

    @staticmethod
    def rows(table: Table, snapshot_id: int) -> list[tuple[Any, ...]]:
        found = table.scan(snapshot_id=snapshot_id, selected_fields=("id", "logical_timestamp", "sum_rollup")).to_arrow()
        return sorted(tuple(row.values()) for row in found.to_pylist())

    @rule(target=snapshots, number=st.integers(0, 2), value=st.integers(1, 3))
    def publish_batch(self, number: int, value: int) -> Any:
        stage_rollups(self.pipeline, self.batches[number], series=1, value=value)
        publish(self.pipeline, self.batches[number])
        return self.noted()

    @rule(number=st.integers(0, 2))
    def stage_and_be_killed(self, number: int) -> None:
        """Superseded later, or published later, or never."""
        stage_rollups(self.pipeline, self.batches[number], series=1, value=9)

    @rule(number=st.integers(0, 2), content=st.sampled_from([b"a", b"bb"]))
    def stage_again(self, number: int, content: bytes) -> None:
        """The same content keeps the old files, another one leaves them behind."""
        commit_attempt(self.pipeline, self.batches[number], content)

    @rule(number=st.integers(0, 2))
    def be_killed_while_committing(self, number: int) -> None:
        """Manifests, their list and the next metadata are written, files of others split; the catalog never hears of it."""
        from pyiceberg.catalog.sql import SqlCatalog

        stage_rollups(self.pipeline, self.batches[number], series=1, value=8)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SqlCatalog, "commit_table", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                publish(self.pipeline, self.batches[number])

    @rule(number=st.integers(0, 2))
    def leave_files(self, number: int) -> None:
        orphans(self.pipeline, self.batches[number])

    @rule(target=snapshots, branch=st.sampled_from([None, "dev"]), series=st.integers(5, 7))
    def another_writer_appends(self, branch: str | None, series: int) -> Any:
        """Files that we have not made, of several batches at once; on a branch, too."""
        import pyarrow as pa

        table = load(self.pipeline)
        if branch is not None and branch not in table.refs() and (current := table.current_snapshot()) is not None:
            table.manage_snapshots().create_branch(current.snapshot_id, branch).commit()
        rows = [rollup_rows(self.pipeline.settings, batch, 3_600_000, 1, first_id=series) for batch in self.batches]
        load(self.pipeline).append(pa.concat_tables(rows), branch=branch or "main")
        return self.noted()

    @rule(snapshot=snapshots)
    def tag(self, snapshot: int) -> None:
        table = load(self.pipeline)
        if table.snapshot_by_id(snapshot) is not None and f"t{snapshot}" not in table.refs():
            table.manage_snapshots().create_tag(snapshot, f"t{snapshot}").commit()

    @rule()
    def expire(self) -> None:
        maintain(load(self.pipeline), 1)

    @rule()
    def collect(self) -> None:
        stage, warehouse = self.home / "stage", self.home / "warehouse"
        before = files_below(stage, warehouse)
        expected = needed(self.pipeline, load(self.pipeline))
        assert expected <= before
        listed = clean(self.pipeline.settings, older_than=0)
        assert files_below(stage, warehouse) == before, "a dry run changes nothing"
        report = clean(self.pipeline.settings, older_than=0, delete=True)
        assert report.failures == []
        assert sorted(report.deleted, key=str) == sorted(listed.found, key=str) == sorted(report.found, key=str)
        assert {leftover.path for leftover in report.deleted} == before - expected
        assert files_below(stage, warehouse) == expected
        table = load(self.pipeline)
        for snapshot in table.snapshots():
            assert self.rows(table, snapshot.snapshot_id) == self.contents[snapshot.snapshot_id]
        for asset in STAGED:
            for folder in staged_folders(self.pipeline.stage, asset):
                batch = self.pipeline.calendar.of_folder(folder.name)
                assert batch is not None
                manifest = self.pipeline.stage.read(asset, batch)
                assert manifest is not None
                assert self.pipeline.stage.is_complete(manifest, batch)
        assert clean(self.pipeline.settings, older_than=0).found == []


few = settings(max_examples=4, stateful_step_count=8, deadline=None, suppress_health_check=list(HealthCheck))
many = settings(max_examples=100, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck))


def test_after_any_history_exactly_the_leftovers_are_deleted() -> None:
    """I6: every kept snapshot is readable, every manifest complete, and no file is left that nothing names."""
    run_state_machine_as_test(Histories, settings=few)  # type: ignore[no-untyped-call]


@pytest.mark.thorough
@pytest.mark.scenario("K2", "K3", "C5")
@pytest.mark.timeout(3600)
def test_after_any_long_history_exactly_the_leftovers_are_deleted() -> None:
    run_state_machine_as_test(Histories, settings=many)  # type: ignore[no-untyped-call]


# -------------------------------------------------------------------------------------------------------------------- what and when


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    """A table with three batches, two of them restaged and published twice, so that there are files of expired snapshots."""
    made = pipeline_in(tmp_path, resolutions="1h", keep_snapshots=2)
    batches = batches_from(made, 3)
    for batch in (*batches, *batches[:2]):
        commit_attempt(made, batch, uuid.uuid4().bytes)
        stage_rollups(made, batch, series=1)
        publish(made, batch)
    return made


def kinds(report: Cleaning) -> dict[str, int]:
    return {kind: count for kind, (count, _) in report.by_kind().items()}


@pytest.mark.scenario("K2", "K3")
def test_leftovers_have_kinds_and_only_old_ones_are_deleted(pipeline: Pipeline) -> None:
    home = Path(pipeline.settings.home)
    clean(pipeline.settings, older_than=0, delete=True)
    left = orphans(pipeline, pipeline.calendar.first)
    young = orphans(pipeline, pipeline.calendar.first)
    for _, path in left:
        age(path, 4)
    # Not published yet, and no leftover.
    for file in stage_rollups(pipeline, pipeline.calendar.first, series=1).files:
        age(Path(file.path), 4)
    for manifest in (home / "stage").rglob("manifest.json"):
        age(manifest, 4)
    report = clean(pipeline.settings, delete=True)
    assert {(leftover.kind, leftover.path) for leftover in report.found} == {(kind, str(path)) for kind, path in left}
    assert report.deleted == report.found
    assert not any(path.exists() for _, path in left)
    assert all(path.exists() for _, path in young)
    assert not left[0][1].parent.exists(), "nor is the attempt's empty folder left"
    assert clean(pipeline.settings).found == []


def test_files_of_a_manifest_that_was_replaced_just_now_stay(pipeline: Pipeline) -> None:
    """They are old themselves, and whoever reads the partition may have the manifest before in hand."""
    home, batch = Path(pipeline.settings.home), pipeline.calendar.first
    clean(pipeline.settings, older_than=0, delete=True)
    age(home / "stage", 30)
    before = commit_attempt(pipeline, batch, b"before")
    age(home / "stage", 30)
    commit_attempt(pipeline, batch, b"after")
    old = pipeline.stage.place(before, before.files[0], batch)
    assert kinds(clean(pipeline.settings, delete=True)).get(ATTEMPTS) is None
    assert old.exists()
    age(home / "stage", 30)
    assert old.uri in [leftover.path for leftover in clean(pipeline.settings, delete=True).deleted]
    assert not old.exists()


def test_what_nobody_knows_is_left_alone(pipeline: Pipeline) -> None:
    """Decisions about quarantined rows, files of others in the stage and beside metadata, and partitions of another calendar."""
    home, batch = Path(pipeline.settings.home), pipeline.calendar.first
    clean(pipeline.settings, older_than=0, delete=True)
    kept = [
        write(home / "stage" / QUARANTINED / batch.folder / "allowed.json"),
        write(home / "stage" / QUARANTINED / "notes" / "of mine.txt"),
        write(home / "stage" / "readme.txt"),
        write(Path(table_location(pipeline.settings)) / "metadata" / "version-hint.text"),
        write(Path(table_location(pipeline.settings)) / "data" / "notes.md"),
    ]
    # Spark's, on a local disk.
    (live,) = (path for path in load(pipeline).inspect.files()["file_path"].to_pylist() if batch.folder in path)
    kept.append(write(Path(live).with_name(f".{Path(live).name}.crc")))
    gone = write(Path(live).with_name(".00000-0-lost.parquet.crc"))
    half_past = Batch(batch.start + 1_800_000, batch.end)
    other = commit_attempt(pipeline, half_past, b"half past")
    # Rollups of the other calendar keep their data files as long as they are there themselves.
    data = write(Path(live).with_name("of-the-other-calendar.parquet"))
    of_other = StagedFile(path=str(data), rows=1, size=1, digest="")
    pipeline.stage.write(other.model_copy(update={"asset": ROLLUPS, "files": (of_other,)}), half_past)
    report = clean(pipeline.settings, older_than=0, delete=True)
    assert [leftover.path for leftover in report.found] == [str(gone)]
    assert "1 partitions that are not of this calendar" in report.remarks[0]
    assert "2026-01-01-0030" in report.remarks[0]
    report = clean(pipeline.settings, older_than=0, delete=True, other_partitions=True)
    assert kinds(report) == {OTHER_PARTITIONS: 3, DATA: 1}
    assert report.deleted == report.found
    assert not data.exists()
    assert all(path.exists() for path in kept)
    assert not (home / "stage" / QUARANTINED / "2026-01-01-0030").exists()
    assert other.attempt not in str(files_below(home / "stage"))


def test_folders_of_two_calendars_are_not_compared_with_each_other(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two years of hours beside as many others took 20 minutes."""
    batch = pipeline.calendar.first
    commit_attempt(pipeline, Batch(batch.start + 1_800_000, batch.end), b"half past")
    monkeypatch.setattr(StagedFolder, "__eq__", lambda *_: pytest.fail("two folders are compared"))
    assert OTHER_PARTITIONS in kinds(clean(pipeline.settings, older_than=0, other_partitions=True))


def test_records_of_kept_snapshots_and_the_newest_five_others_stay(pipeline: Pipeline) -> None:
    batch, table = pipeline.calendar.first, load(pipeline)
    kept = [snapshot.snapshot_id for snapshot in table.snapshots()]
    clean(pipeline.settings, older_than=0, delete=True)
    folder = Path(pipeline.settings.stage) / cleaning.HISTORY / batch.folder
    shutil.rmtree(folder)
    for number in range(1, 11):
        snapshot = kept[0] if number == 2 else number
        write(folder / f"{number:032x}.json", json.dumps({"snapshot_id": snapshot, "sequence_number": number}).encode())
    write(folder / "later version.json", b"{}")
    assert clean(pipeline.settings).found == []
    age(folder, 10)
    report = clean(pipeline.settings, delete=True)
    assert kinds(report) == {RECORDS: 4}
    assert sorted(path.stem.lstrip("0") for path in folder.iterdir()) == sorted(["2", "6", "7", "8", "9", "a", "later version"])


def test_records_of_a_partition_of_another_calendar_go_with_it(pipeline: Pipeline) -> None:
    """They were listed twice: as the partition's, and as records of old publishes."""
    clean(pipeline.settings, older_than=0, delete=True)
    folder = Path(pipeline.settings.stage) / cleaning.HISTORY / Batch(1_800_000, 5_400_000).folder
    for number in range(1, 11):
        write(folder / f"{number:032x}.json", json.dumps({"snapshot_id": number, "sequence_number": number}).encode())
    age(folder, 10)
    report = clean(pipeline.settings, other_partitions=True, delete=True)
    assert kinds(report) == {OTHER_PARTITIONS: 10}
    assert not folder.exists()


def test_a_record_that_is_written_while_the_table_is_read_makes_no_other_one_a_leftover(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its snapshot is none of those that were read, and it would be the newest of the five that stay."""
    clean(pipeline.settings, older_than=0, delete=True)
    folder = Path(pipeline.settings.stage) / cleaning.HISTORY / pipeline.calendar.first.folder
    shutil.rmtree(folder)

    def record(number: int) -> None:
        write(folder / f"{number:032x}.json", json.dumps({"snapshot_id": number, "sequence_number": number}).encode())

    for number in range(1, 6):
        record(number)
    age(folder, 10)
    read = TableReferences.of

    def read_and_publish(references: TableReferences, table: Table) -> set[str]:
        found = read(references, table)
        record(6)
        return found

    monkeypatch.setattr(TableReferences, "of", read_and_publish)
    assert clean(pipeline.settings).found == []
    monkeypatch.undo()
    assert kinds(clean(pipeline.settings)) == {RECORDS: 1}, "a record that was there before"


def test_records_of_a_table_that_was_dropped_are_the_oldest(pipeline: Pipeline) -> None:
    """Whatever their numbers, which begin anew with the table of the same name that is made then."""
    clean(pipeline.settings, older_than=0, delete=True)
    folder = Path(pipeline.settings.stage) / cleaning.HISTORY / pipeline.calendar.first.folder
    shutil.rmtree(folder)
    for table, numbers in ((str(load(pipeline).metadata.table_uuid), range(1, 7)), (str(uuid.uuid4()), range(7, 16))):
        for number in numbers:
            record = {"snapshot_id": number, "sequence_number": number, "table_uuid": table}
            write(folder / f"{number:032x}.json", json.dumps(record).encode())
    age(folder, 10)
    assert kinds(clean(pipeline.settings, delete=True)) == {RECORDS: 10}
    assert sorted(path.stem.lstrip("0") for path in folder.iterdir()) == ["2", "3", "4", "5", "6"]


# --------------------------------------------------------------------------------------------------------------- better not at all


def leave_old_orphans(pipeline: Pipeline) -> set[str]:
    orphans(pipeline, pipeline.calendar.first)
    age(Path(pipeline.settings.home), 10)
    return files_below(Path(pipeline.settings.warehouse))


def test_without_a_table_no_file_of_it_is_judged(pipeline: Pipeline) -> None:
    """The catalog is another one, or lost: whatever lies in the warehouse may be all that is left."""
    there = leave_old_orphans(pipeline)
    Path(pipeline.settings.home, "catalog.db").unlink()
    report = clean(pipeline.settings, delete=True)
    assert files_below(Path(pipeline.settings.warehouse)) == there
    assert "there is no table metrics.rollups" in report.remarks[0]
    assert set(kinds(report)) == {ATTEMPTS}


def test_where_another_table_lies_in_the_same_place_no_file_is_judged(pipeline: Pipeline) -> None:
    """Two catalogs, one warehouse: the second one's table takes the first one's files for leftovers."""
    batch = pipeline.calendar.first
    Path(pipeline.settings.home, "catalog.db").rename(Path(pipeline.settings.home, "first.db"))
    stage_rollups(pipeline, batch, series=1)
    publish(pipeline, batch)
    there = leave_old_orphans(pipeline)
    report = clean(pipeline.settings, delete=True)
    assert files_below(Path(pipeline.settings.warehouse)) == there
    assert "has metadata of another table than metrics.rollups" in report.failures[0]
    assert set(kinds(report)) == {ATTEMPTS}


@pytest.mark.scenario("P6")
def test_a_catalog_that_was_set_back_does_not_cost_the_files_of_the_lost_snapshots(pipeline: Pipeline) -> None:
    """They are what the table is mended with."""
    # The last one is of an expiry, which may be forgotten.
    before_the_last_publish = load(pipeline).metadata.metadata_log[-2].metadata_file
    with sqlite3.connect(Path(pipeline.settings.home, "catalog.db")) as database:
        database.execute("update iceberg_tables set metadata_location = ?", [before_the_last_publish])
    there = leave_old_orphans(pipeline)
    report = clean(pipeline.settings, delete=True)
    assert files_below(Path(pipeline.settings.warehouse)) == there
    assert "has forgotten a snapshot that published" in report.failures[0]


def test_a_table_that_cannot_be_read_is_left_alone(pipeline: Pipeline) -> None:
    table = load(pipeline)
    current = table.current_snapshot()
    assert current is not None
    Path(current.manifests(table.io)[0].manifest_path).unlink()
    there = leave_old_orphans(pipeline)
    report = clean(pipeline.settings, delete=True)
    assert files_below(Path(pipeline.settings.warehouse)) == there
    assert "cannot be read" in report.failures[0]


def test_a_manifest_that_cannot_be_read_stops_everything(pipeline: Pipeline) -> None:
    path = Path(pipeline.settings.stage) / ROLLUPS / pipeline.calendar.first.folder / "manifest.json"
    path.write_bytes(b"{}")
    leave_old_orphans(pipeline)
    there = files_below(Path(pipeline.settings.home))
    with pytest.raises(
        StageCorruptError, match=f"is not a manifest that this version can read.*rollups backfill {pipeline.calendar.first}"
    ):
        clean(pipeline.settings, delete=True)
    assert files_below(Path(pipeline.settings.home)) == there


def test_what_is_published_between_looking_and_deleting_stays(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process finds rollups that lay there unpublished for a week, and a staged attempt becomes the partition's."""
    batch = pipeline.calendar.first
    clean(pipeline.settings, older_than=0, delete=True)
    manifest = stage_rollups(pipeline, batch, series=1, value=4)
    quarantined = commit_attempt(pipeline, batch, b"late")
    paths = [Path(pipeline.settings.stage) / asset / batch.folder / "manifest.json" for asset in (ROLLUPS, QUARANTINED)]
    contents = [path.read_bytes() for path in paths]
    paths[0].unlink()
    paths[1].unlink()
    orphans(pipeline, batch)
    age(Path(pipeline.settings.home), 10)
    find = cleaning._Scratch.find

    def after_all_is_found(part: Any) -> Any:
        for path, content in zip(paths, contents, strict=True):
            path.write_bytes(content)
        publish(pipeline, batch)
        return find(part)

    monkeypatch.setattr(cleaning._Scratch, "find", after_all_is_found)
    report = clean(pipeline.settings, older_than=0, delete=True)
    assert report.failures == []
    own = {manifest.files[0].path, pipeline.stage.place(quarantined, quarantined.files[0], batch).path}
    assert own <= {leftover.path for leftover in report.found}
    assert not own & {leftover.path for leftover in report.deleted}
    assert 4 in {row[3] for row in rows_of(load(pipeline))}


@pytest.mark.scenario("C5")
def test_cleaning_beside_publishes_takes_nothing_that_is_needed(tmp_path: Path) -> None:
    """A table of last week, whose files are all old; it is restaged, published to and expired while somebody cleans without a pause."""
    pipeline = pipeline_in(tmp_path, resolutions="1h", keep_snapshots=3)
    batches = batches_from(pipeline, 4)
    for value in (0, 1):
        for batch in batches:
            stage_rollups(pipeline, batch, series=1, value=value)
            publish(pipeline, batch)
            orphans(pipeline, batch)
    age(tmp_path, 10)
    done, reports = threading.Event(), []

    def keep_cleaning() -> None:
        while not done.is_set():
            reports.append(clean(pipeline.settings, delete=True))

    thread = threading.Thread(target=keep_cleaning)
    thread.start()
    try:
        for value in (2, 3):
            for batch in batches:
                stage_rollups(pipeline, batch, series=1, value=value)
                publish(pipeline, batch)
                table = load(pipeline)
                for snapshot in table.snapshots():
                    assert table.scan(snapshot_id=snapshot.snapshot_id).to_arrow().num_rows == len(batches)
    finally:
        done.set()
        thread.join()
    assert [failure for report in reports for failure in report.failures] == []
    deleted = {kind for report in reports for kind in kinds(report)}
    assert deleted >= {DATA, REWRITTEN, METADATA}, "old files of expired snapshots, and old orphans"
    assert {row[3] for row in rows_of(load(pipeline))} == {3}
    assert needed(pipeline, load(pipeline)) <= files_below(tmp_path)


def test_files_of_the_table_are_deleted_under_its_lock(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody publishes, only the stage is cleaned up."""
    from rollup_assets.iceberg import locks

    clean(pipeline.settings, older_than=0, delete=True)
    left = orphans(pipeline, pipeline.calendar.first)
    monkeypatch.setattr(locks, "LOCK_TIMEOUT", 0.01)
    with locks.table_lock(pipeline.settings):
        report = clean(pipeline.settings, older_than=0, delete=True)
    assert "another process has held" in report.failures[0]
    assert {path for kind, path in left if path.exists()} == {path for kind, path in left if kind != ATTEMPTS}
    assert clean(pipeline.settings, older_than=0, delete=True).failures == []
    assert not any(path.exists() for _, path in left)


# ------------------------------------------------------------------------------------------------------------------------ scratch


@pytest.mark.scenario("D1", "K1")
def test_scratch_of_processes_that_are_gone_is_deleted(tmp_path: Path) -> None:
    pipeline = pipeline_in(tmp_path)
    gone = left_by_a_killed_process(tmp_path / "scratch")
    with held_elsewhere(tmp_path / "scratch") as alive:
        assert clean(pipeline.settings, delete=True).found == []
        report = clean(pipeline.settings, older_than=0, delete=True)
        assert [(leftover.kind, leftover.path, leftover.bytes) for leftover in report.deleted] == [(SCRATCH, str(gone), 7)]
        assert not gone.exists()
        assert alive.exists()


def test_scratch_of_a_process_that_was_killed_before_it_had_its_lock_is_deleted_once_it_is_a_day_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_in(tmp_path)
    scratch = tmp_path / "scratch"

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", killed)
        # Whoever is killed deletes nothing.
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt), spill_folder(scratch):
                pass
    new, old = sorted(scratch.iterdir())
    write(scratch / ".spill-notes" / "mine")
    age(scratch / ".spill-notes", 2)
    age(old, 2)
    report = clean(pipeline.settings, older_than=0, delete=True)
    assert [(leftover.kind, leftover.path) for leftover in report.deleted] == [(SCRATCH, str(old))]
    assert sorted(scratch.iterdir()) == sorted([new, scratch / ".spill-notes"])


def test_scratch_of_killed_processes_of_a_release_without_locks_is_deleted_once_it_is_a_day_old(tmp_path: Path) -> None:
    """Its folders were named by the process and 32 hexadecimal digits; nobody can tell whether it still runs."""
    pipeline = pipeline_in(tmp_path)
    scratch = tmp_path / "scratch"
    new, old, foreign = (scratch / name for name in (f"7-{'a' * 32}", f"4711-{'0' * 32}", "2026-notes"))
    for folder in (new, old, foreign):
        write(folder / "blocks-0")
    age(old, 2)
    age(foreign, 2)
    report = clean(pipeline.settings, older_than=0, delete=True)
    assert [(leftover.kind, leftover.path) for leftover in report.deleted] == [(SCRATCH, str(old))]
    assert {*scratch.iterdir()} == {new, foreign}


def test_what_killed_commands_have_copied_is_deleted_once_it_is_a_day_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = pipeline_in(tmp_path, resolutions="1h")
    for batch in batches_from(pipeline, 2):
        stage_rollups(pipeline, batch, series=1)
        publish(pipeline, batch)
    before = set(pipeline.settings.home.iterdir())
    with monkeypatch.context() as patch:
        # As if they were killed right before they delete it.
        patch.setattr(tempfile.TemporaryDirectory, "cleanup", lambda folder: folder._finalizer.detach())
        verify(pipeline.settings)
        diff(pipeline.settings, str(load(pipeline).snapshots()[0].snapshot_id))
    left = set(pipeline.settings.home.iterdir()) - before
    assert len(left) == 2
    assert clean(pipeline.settings, older_than=0, delete=True).found == []
    for folder in left:
        age(folder, 2)
    assert kinds(clean(pipeline.settings, older_than=0, delete=True)) == {SCRATCH: 2}
    assert set(pipeline.settings.home.iterdir()) == before


def test_folders_of_other_names_in_the_home_and_links_are_left_alone(tmp_path: Path) -> None:
    """However old: they are the user's own."""
    home = tmp_path / "home"
    pipeline = pipeline_in(home)
    own = [write(home / name / "2025" / "q1.csv") for name in ("diff-reports", "diff-20250101", "verify-abcdefgh", f"{TEMPORARY}notes")]
    own.append(write(tmp_path / "elsewhere" / "q1.csv"))
    (home / f"{TEMPORARY}abcdefgh").symlink_to(tmp_path / "elsewhere")
    left = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=home))
    age(tmp_path, 10)
    assert [leftover.path for leftover in clean(pipeline.settings, older_than=0, delete=True).deleted] == [str(left)]
    assert all(file.exists() for file in own)
    assert (home / f"{TEMPORARY}abcdefgh").is_symlink()


def test_probes_of_a_doctor_that_was_killed_are_deleted(tmp_path: Path) -> None:
    """Of the names that it gives them, and nothing else that is hidden."""
    pipeline = pipeline_in(tmp_path)
    settings = pipeline.settings
    locations = (settings.stage, settings.warehouse, str(settings.home / "scratch"))
    # Never closed, as if the process had been killed.
    doctor = ExitStack()
    left = [Path(doctor.enter_context(probe_file(Place.parse(location))).path) for location in locations]
    for path in left:
        write(path.with_name(".rollups-doctor-notes"))
    assert clean(settings, delete=True).found == []
    report = clean(settings, older_than=0, delete=True)
    assert sorted(leftover.path for leftover in report.deleted) == sorted(map(str, left))
    assert kinds(report) == {PROBES: 3}
    assert not any(path.exists() for path in left)
    assert all(path.with_name(".rollups-doctor-notes").exists() for path in left)


# ----------------------------------------------------------------------------------------------------------------------------- S3


@pytest.mark.scenario("S4")
def test_uploads_that_nobody_finishes_are_dropped(s3_folder: S3Folder, tmp_path: Path) -> None:
    """A killed process leaves parts behind, which nobody sees, below stage and table; those elsewhere are nobody's business."""
    pipeline = pipeline_in(tmp_path, **s3_folder.locations)
    folders = [s3_folder.lake / "stage" / REPARTITIONED, Place.parse(table_location(pipeline.settings), s3_folder.options) / "data"]
    uploads = [(folder / "2026-01-01-0000" / "file.parquet").open_output() for folder in (*folders, s3_folder.lake / "elsewhere")]
    for upload in uploads:
        upload.write(random.Random(0).randbytes(PART_BYTES + 1))
        for part in upload._sink._parts:  # type: ignore[attr-defined]
            part.result()
        # As kill -9 would: nothing of it is told to the store.
        upload._sink._upload = None  # type: ignore[attr-defined]
    assert len(s3_folder.unfinished_uploads()) == 3
    assert s3_folder.objects() == {}
    assert clean(pipeline.settings, delete=True).found == []
    report = clean(pipeline.settings, older_than=0, delete=True)
    assert kinds(report) == {UPLOADS: 2}
    assert all(leftover.bytes == PART_BYTES for leftover in report.deleted)
    assert (report.failures, report.remarks) == ([], [])
    assert s3_folder.unfinished_uploads() == [f"{s3_folder.name}/elsewhere/2026-01-01-0000/file.parquet"]


def test_files_on_s3_are_deleted_many_at_once_by_their_age_there(
    s3_folder: S3Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = pipeline_in(tmp_path, resolutions="1h", keep_snapshots=2, **s3_folder.locations)
    batches = batches_from(pipeline, 3)
    for batch in (*batches, *batches):
        stage_rollups(pipeline, batch, series=1)
        publish(pipeline, batch)
    commit_attempt(pipeline, batches[0], b"kept")
    orphan = s3_folder.lake / "stage" / REPARTITIONED / batches[0].folder / new_attempt()
    for number in range(25):
        (orphan / f"{number}.parquet").write_bytes(b"x")
    before = rows_of(load(pipeline))
    assert clean(pipeline.settings, delete=True).found == []
    later = time.time_ns() // 1_000_000 + 4 * DAY * 1000
    monkeypatch.setattr(objects, "_DELETES_PER_REQUEST", 10)
    with requests(s3_folder.options) as seen:
        report = clean(pipeline.settings, delete=True, now=later)
    assert report.failures == []
    assert kinds(report)[ATTEMPTS] == 25
    assert DATA in kinds(report)
    assert len([method for method, path in seen if method in ("POST", "DELETE")]) < len(report.deleted) / 4
    assert not [key for key in s3_folder.objects() if orphan.name in key]
    table = load(pipeline)
    assert rows_of(table) == before
    kept = {path_of(location) for location in needed_on_s3(table)}
    assert kept == {f"lake/{s3_folder.name}/{key}" for key in s3_folder.objects() if key.startswith("warehouse/")}
    assert clean(pipeline.settings, now=later).found == []


def needed_on_s3(table: Table) -> set[str]:
    found = {table.metadata_location, *(entry.metadata_file for entry in table.metadata.metadata_log)}
    found |= {snapshot.manifest_list for snapshot in table.snapshots()}
    return found | {*table.inspect.all_files()["file_path"].to_pylist(), *table.inspect.all_manifests()["path"].to_pylist()}


@pytest.mark.scenario("S5")
def test_without_the_right_to_delete_it_is_said_and_everything_is_there(
    s3_folder: S3Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever may only read can look what is left over."""
    pipeline = pipeline_in(tmp_path, **s3_folder.locations)
    orphan = s3_folder.lake / "stage" / REPARTITIONED / "2026-01-01-0000" / new_attempt() / "a.parquet"
    orphan.write_bytes(b"x")
    for name, value in s3_folder.server.environment_of(s3_folder.server.reader).items():
        monkeypatch.setenv(name, value)
    report = clean(pipeline.settings, older_than=0, delete=True)
    assert kinds(report) == {ATTEMPTS: 1}
    assert report.deleted == []
    assert "do not allow DeleteObject" in report.failures[0]
    assert "docs/production.md" in report.failures[0]
    assert len(s3_folder.objects()) == 1


# ---------------------------------------------------------------------------------------------------------------------------- CLI


def test_the_command_lists_first_and_deletes_when_told(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Path(pipeline.settings.home)
    monkeypatch.setenv("ROLLUP_RESOLUTIONS", "1h")
    run = runner(home, monkeypatch)
    run("clean", "--older-than", "0", "--delete")
    assert "nothing is left over" in plain(run("clean").output)
    left = orphans(pipeline, pipeline.calendar.first)
    assert run("clean", "--json")["found"] == []
    listed = run("clean", "--older-than", "0", "--json")
    assert sorted(one["path"] for one in listed["found"]) == sorted(str(path) for _, path in left)
    assert listed["by_kind"][METADATA] == {"count": 3, "bytes": 8}
    text = plain(run("clean", "--older-than", "0").output)
    assert "staged attempts 3" in text
    assert "nothing was deleted; `rollups clean --delete` deletes them" in text
    text = plain(run("clean", "--older-than", "0", "--delete").output)
    assert all(f"deleted {path}" in text for _, path in left)
    assert f"{len(left)} leftovers deleted" in text
    assert "--older-than" in plain(run("clean", "--older-than", "soon", status=2).output)

    Path(home, "catalog.db").rename(home / "first.db")
    stage_rollups(pipeline, pipeline.calendar.first, series=1)
    publish(pipeline, pipeline.calendar.first)
    assert "another table" in plain(run("clean", "--older-than", "0", status=1).stderr)


def test_errors_of_a_disk_are_told(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    left = orphans(pipeline, pipeline.calendar.first)
    delete: Callable[[Place], None] = Place.delete_file

    def refused(place: Place) -> None:
        if place.path == str(left[0][1]):
            raise PermissionError(13, "Permission denied")
        delete(place)

    monkeypatch.setattr(Place, "delete_file", refused)
    report = clean(pipeline.settings, older_than=0, delete=True)
    assert f"{left[0][1]} cannot be deleted (Permission denied)" in report.failures[0]
    assert str(left[0][1]) not in {leftover.path for leftover in report.deleted}
    assert not left[3][1].exists(), "what can be deleted is"
