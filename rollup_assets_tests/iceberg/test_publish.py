"""One snapshot replaces one range, whatever is in the table, whoever else writes, and whatever the catalog answers."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.manifest import DataFile

from rollup_assets.batches import Batch
from rollup_assets.errors import PublishError, PublishHaltError, StaleInputError, StorageError
from rollup_assets.iceberg import commit as committing
from rollup_assets.iceberg import publish as publishing
from rollup_assets.iceberg import reading
from rollup_assets.iceberg.catalog import load_catalog
from rollup_assets.iceberg.locks import TableLock
from rollup_assets.iceberg.plans import Copies, Plan
from rollup_assets.iceberg.reading import LiveFile
from rollup_assets.iceberg.snapshots import ATTEMPT_PROPERTY
from rollup_assets.iceberg.staged_files import StagedFiles, rewritten_files
from rollup_assets.iceberg.table import ensure_table
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import load_settings
from rollup_assets.steps.publish import publish
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import ROLLUP_TABLE, ROLLUPS, StagedFile
from rollup_assets.storage.s3 import S3Options
from rollup_assets_tests.iceberg.staging import (
    add_compacted,
    batches_from,
    flip_a_bit,
    live_and_deleted_paths,
    load,
    pipeline_in,
    rollup_rows,
    rows_of,
    stage_rollups,
    value_by_batch,
)

Commit = Callable[..., Any]


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return pipeline_in(tmp_path, resolutions="1m,1h")


@pytest.fixture
def unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a catalog without a lock: correctness may not rest on it."""
    monkeypatch.setattr("rollup_assets.iceberg.locks.table_lock", lambda _settings: contextlib.nullcontext(TableLock()))


@contextlib.contextmanager
def commits(monkeypatch: pytest.MonkeyPatch, wrapper: Callable[[Commit, int], Any]) -> Iterator[list[int]]:
    """Have ``wrapper(apply, number)`` stand between PyIceberg and the catalog; yields the numbers of the commits tried."""
    from pyiceberg.catalog.sql import SqlCatalog

    original, tried = SqlCatalog.commit_table, list[int]()

    def commit_table(self: Any, *arguments: Any) -> Any:
        tried.append(len(tried) + 1)
        return wrapper(lambda: original(self, *arguments), tried[-1])

    with monkeypatch.context() as patch:
        patch.setattr(SqlCatalog, "commit_table", commit_table)
        yield tried


@contextlib.contextmanager
def plans(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Yields a list that grows by one with each plan that is made."""
    original, made = publishing._plan, list[int]()

    def plan(*arguments: Any) -> Any:
        made.append(len(made) + 1)
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(publishing, "_plan", plan)
        yield made


def publish_value(pipeline: Pipeline, batch: Batch, value: int, series: int = 3) -> Any:
    stage_rollups(pipeline, batch, series=series, value=value)
    return publish(pipeline, batch)


def assert_published(pipeline: Pipeline, *expected: tuple[Batch, int]) -> None:
    """The table holds exactly these batches with these values, every key once."""
    assert value_by_batch(pipeline) == {batch.key: {value} for batch, value in expected}
    keys = rows_of(load(pipeline), "id", "resolution", "logical_timestamp")
    assert len(keys) == len(set(keys)) == 3 * 61 * len(expected)


# Other writers


@pytest.mark.usefixtures("unlocked")
def test_threads_that_publish_different_batches_at_once_all_succeed(pipeline: Pipeline) -> None:
    batches = batches_from(pipeline, 4)
    ensure_table(pipeline.settings)
    for batch in batches:
        stage_rollups(pipeline, batch)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda batch: publish(pipeline, batch), batches))
    assert len({result.snapshot_id for result in results}) == 4
    assert_published(pipeline, *((batch, 1) for batch in batches))
    assert len(load(pipeline).snapshots()) == 4


@pytest.mark.scenario("C1")
@pytest.mark.usefixtures("unlocked")
def test_threads_that_publish_the_same_batch_at_once_leave_every_row_once(pipeline: Pipeline) -> None:
    """Both plan against the same snapshot; the second to commit finds the first's files and has nothing left to do."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    stage_rollups(pipeline, second)
    barrier = threading.Barrier(2)
    original = committing._apply

    def together(*arguments: Any) -> int:
        with contextlib.suppress(threading.BrokenBarrierError):
            barrier.wait(5)
        barrier.abort()
        return original(*arguments)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(committing, "_apply", together)
        list(pool.map(lambda _: publish(pipeline, second), range(2)))
    assert_published(pipeline, (first, 5), (second, 1))
    assert len(load(pipeline).snapshots()) == 2


def _publish_in_process(home: str, keys: list[str], problems: Any) -> None:
    pipeline = pipeline_in(Path(home), resolutions="1m,1h")
    try:
        for key in keys:
            publish(pipeline, pipeline.batch(key))
    except Exception as error:
        problems.put(repr(error))
        raise


@pytest.mark.scenario("C1", "C2")
def test_processes_that_publish_at_once_all_succeed(tmp_path: Path, pipeline: Pipeline) -> None:
    """Two processes, one after the other through the lock, on a catalog and a table that neither has made yet."""
    batches = batches_from(pipeline, 6)
    for batch in batches:
        stage_rollups(pipeline, batch)
    context = multiprocessing.get_context("spawn")
    problems = context.Queue()
    keys = [batch.key for batch in batches]
    processes = [context.Process(target=_publish_in_process, args=(str(tmp_path), keys[part::2], problems)) for part in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0], problems.get(timeout=1)
    assert_published(pipeline, *((batch, 1) for batch in batches))


def test_a_foreign_append_into_the_range_between_plan_and_commit_is_replaced(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serializable isolation notices rows that came after the plan; the second plan includes them."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    stage_rollups(pipeline, second)
    intruder = rollup_rows(pipeline.settings, second, 60_000, 2, value=99, first_id=1000)

    def intrude(apply: Commit, number: int) -> Any:
        if number == 1:
            load(pipeline).append(intruder)
        return apply()

    with commits(monkeypatch, intrude):
        publish(pipeline, second)
    assert_published(pipeline, (first, 5), (second, 1))


def test_a_commit_of_another_range_between_plan_and_commit_is_no_conflict(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same plan is committed on top of it: neither is anything read again nor does anybody start over."""
    first, second, third = batches_from(pipeline, 3)
    publish_value(pipeline, first, 5)
    publish_value(pipeline, third, 3)
    stage_rollups(pipeline, second)

    def come_between(apply: Commit, number: int) -> Any:
        if number == 1:
            load(pipeline).append(rollup_rows(pipeline.settings, third, 60_000, 2, value=3, first_id=1000))
        return apply()

    with commits(monkeypatch, come_between) as tried, plans(monkeypatch) as planned:
        publish(pipeline, second)
    assert planned == [1]
    assert len(tried) == 3
    assert value_by_batch(pipeline) == {first.key: {5}, second.key: {1}, third.key: {3}}
    assert len(rows_of(load(pipeline))) == 3 * 3 * 61 + 2 * 60


@pytest.mark.scenario("C1")
def test_publishers_wait_for_one_another_and_none_does_its_work_twice(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the lock is for: without it both would rewrite the file that holds rows of both, and one of the two for nothing."""
    first, second = batches = batches_from(pipeline, 2)
    for batch in batches:
        publish_value(pipeline, batch, 1)
    compact(pipeline)
    for batch in batches:
        stage_rollups(pipeline, batch, value=2)
    monkeypatch.setattr("rollup_assets.iceberg.locks.LOCK_TIMEOUT", 0.1)
    waited: list[str] = []

    def let_another_in(apply: Commit, number: int) -> Any:
        if number == 1:
            with ThreadPoolExecutor(1) as another:
                error = another.submit(publish, pipeline, second).exception()
            waited.append(type(error).__name__)
        return apply()

    with commits(monkeypatch, let_another_in), plans(monkeypatch) as planned:
        publish(pipeline, first)
        publish(pipeline, second)
    assert_published(pipeline, (first, 2), (second, 2))
    live = {task.file.file_path for task in load(pipeline).scan().plan_files()}
    left_over = {str(path) for path in Path(load(pipeline).location(), "data", "rewritten").rglob("*.parquet")} - live
    assert (planned, len(left_over)) == ([1, 2], 2), "a plan was made, or a file rewritten, for nothing"
    assert waited == ["LockTimeoutError"]


@pytest.mark.scenario("C1", "C4")
def test_an_older_result_never_replaces_a_newer_one(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the older one is on its way, the newer one is staged and published by somebody whose lock is not ours."""
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    stage_rollups(pipeline, batch, value=2)

    def overtake(apply: Commit, number: int) -> Any:
        if number == 1:
            with monkeypatch.context() as patch:
                patch.setattr("rollup_assets.iceberg.locks.table_lock", lambda _settings: contextlib.nullcontext(TableLock()))
                publish_value(pipeline, batch, 3)
        return apply()

    with commits(monkeypatch, overtake), contextlib.suppress(StaleInputError):
        publish(pipeline, batch)
    assert_published(pipeline, (batch, 3))
    publish(pipeline, batch)
    assert_published(pipeline, (batch, 3))


def test_rollups_staged_anew_while_others_are_published_are_published_after_them(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch, value=1)

    def staged_anew(apply: Commit, number: int) -> Any:
        answer = apply()
        if number == 1:
            stage_rollups(pipeline, batch, value=2)
        return answer

    with commits(monkeypatch, staged_anew):
        publish(pipeline, batch)
    assert_published(pipeline, (batch, 2))
    assert "publishing the newer ones" in caplog.text
    assert publish(pipeline, batch).unchanged


def test_rollups_that_are_staged_anew_at_every_commit_end_the_publish_with_a_sentence(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch, value=1)

    def staged_anew(apply: Commit, number: int) -> Any:
        answer = apply()
        stage_rollups(pipeline, batch, value=number + 1)
        return answer

    with (
        commits(monkeypatch, staged_anew),
        pytest.raises(StaleInputError, match=rf"during each of 8 attempts to publish them; .*`rollups backfill {batch.key} {batch.key}`"),
    ):
        publish(pipeline, batch)
    publish(pipeline, batch)
    assert_published(pipeline, (batch, 9))


# What becomes of a commit


def test_a_lost_acknowledgement_is_found_in_the_table(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Applied, but the answer never came: no second snapshot."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    stage_rollups(pipeline, second)

    def lose(apply: Commit, number: int) -> Any:
        answer = apply()
        if number == 1:
            raise ConnectionError("connection reset")
        return answer

    with commits(monkeypatch, lose) as tried, plans(monkeypatch) as planned:
        result = publish(pipeline, second)
    assert tried == planned == [1]
    assert result.snapshot_id == load(pipeline).metadata.current_snapshot_id
    assert len(load(pipeline).snapshots()) == 2
    assert_published(pipeline, (first, 5), (second, 1))


@pytest.mark.scenario("P1", "P2")
def test_what_others_commit_after_a_lost_acknowledgement_stays(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that somebody appends to the range after our commit came after it: to look for it, and to plan anew, is not the same."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    stage_rollups(pipeline, second)
    later = rollup_rows(pipeline.settings, second, 60_000, 2, value=99, first_id=1000)

    def lose(apply: Commit, number: int) -> Any:
        answer = apply()
        if number == 1:
            load(pipeline).append(later)
            raise ConnectionError("connection reset")
        return answer

    with commits(monkeypatch, lose):
        result = publish(pipeline, second)
    assert value_by_batch(pipeline) == {first.key: {5}, second.key: {1, 99}}
    assert result.snapshot_id == load(pipeline).metadata.snapshots[-2].snapshot_id
    assert not publish(pipeline, second).unchanged
    assert_published(pipeline, (first, 5), (second, 1))


def test_a_commit_that_is_reported_as_a_conflict_with_itself_is_found_in_the_table(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pyiceberg.exceptions import CommitFailedException

    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    stage_rollups(pipeline, second)

    def misreport(apply: Commit, number: int) -> Any:
        answer = apply()
        if number == 1:
            raise CommitFailedException("table has been updated by another process")
        return answer

    with commits(monkeypatch, misreport):
        publish(pipeline, second)
    assert len(load(pipeline).snapshots()) == 2
    assert_published(pipeline, (first, 5), (second, 1))


@pytest.mark.scenario("P1", "P2")
@pytest.mark.parametrize("away", [False, True])
def test_a_commit_that_is_reported_as_a_conflict_when_no_retry_is_left_stays_readable(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, *, away: bool
) -> None:
    """PyIceberg alone would delete its manifests: it takes a conflict for certain. Also where the catalog cannot be asked at once."""
    from pyiceberg import table as pyiceberg_table
    from pyiceberg.catalog.sql import SqlCatalog
    from pyiceberg.exceptions import CommitFailedException

    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    stage_rollups(pipeline, second)
    last = int(load(pipeline).properties["commit.retry.num-retries"]) + 1
    load_table, asked = SqlCatalog.load_table, list[int]()

    def misreport(apply: Commit, number: int) -> Any:
        if number == last:
            apply()
            asked.append(0)
        raise CommitFailedException("table has been updated by another process")

    def be_away_once(self: Any, identifier: Any) -> Any:
        if asked and asked.pop() == 0 and away:
            raise ConnectionError("connection refused")
        return load_table(self, identifier)

    monkeypatch.setattr(pyiceberg_table.time, "sleep", lambda _: None)
    with commits(monkeypatch, misreport) as tried, monkeypatch.context() as patch:
        patch.setattr(SqlCatalog, "load_table", be_away_once)
        publish(pipeline, second)
    assert len(tried) == last
    assert len(load(pipeline).snapshots()) == 2
    assert_published(pipeline, (first, 5), (second, 1))


def test_a_commit_that_never_arrived_is_repeated(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    stage_rollups(pipeline, second)

    def drop(apply: Commit, number: int) -> Any:
        if number <= 2:
            raise ConnectionError("connection refused")
        return apply()

    with commits(monkeypatch, drop) as tried:
        publish(pipeline, second)
    assert tried == [1, 2, 3]
    assert len(load(pipeline).snapshots()) == 2
    assert_published(pipeline, (first, 5), (second, 1))


def test_a_commit_that_arrives_late_does_not_count_twice(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown outcome, not there when looked for, and applied just before the repeated commit."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    stage_rollups(pipeline, second)
    late: list[Commit] = []

    def delay(apply: Commit, number: int) -> Any:
        if number == 1:
            late.append(apply)
            raise TimeoutError("no answer")
        if late:
            late.pop()()
        return apply()

    with commits(monkeypatch, delay):
        publish(pipeline, second)
    assert_published(pipeline, (first, 5), (second, 1))
    attempts = [(snapshot.summary or {}).additional_properties[ATTEMPT_PROPERTY] for snapshot in load(pipeline).snapshots()]  # type: ignore[union-attr]
    assert len(attempts) == len(set(attempts)) == 2


def test_a_catalog_that_is_away_for_a_moment_is_asked_again(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit lands, its answer is lost, and the catalog cannot be asked at once."""
    from pyiceberg.catalog.sql import SqlCatalog

    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    stage_rollups(pipeline, second)
    original, away = SqlCatalog.load_table, [0]

    def load_table(self: Any, identifier: Any) -> Any:
        if away[0]:
            away[0] -= 1
            raise ConnectionError("connection refused")
        return original(self, identifier)

    def lose(apply: Commit, _number: int) -> Any:
        apply()
        away[0] = 2
        raise ConnectionError("connection reset")

    with commits(monkeypatch, lose) as tried, monkeypatch.context() as patch:
        patch.setattr(SqlCatalog, "load_table", load_table)
        with plans(monkeypatch) as planned:
            publish(pipeline, second)
    assert tried == planned == [1]
    assert_published(pipeline, (first, 5), (second, 1))


def test_giving_up_says_so_and_leaves_the_table_as_it_was(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    stage_rollups(pipeline, second)
    monkeypatch.setattr(committing, "MOST_TRIES", 2)

    def refuse(_apply: Commit, _number: int) -> Any:
        raise ConnectionError("connection refused")

    message = (
        rf"batch {second.key} could not be published.*2 commits failed.*connection refused.*rollups backfill {second.key} {second.key}"
    )
    with commits(monkeypatch, refuse), pytest.raises(PublishError, match=message):
        publish(pipeline, second)
    assert_published(pipeline, (first, 5))
    assert publish(pipeline, second).snapshot_id is not None
    assert_published(pipeline, (first, 5), (second, 1))


def test_a_snapshot_without_the_staged_rows_halts_and_names_the_repair_which_repairs(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch)
    original = committing._apply

    def forget_a_file(table: Any, of: Any, plan: Any, properties: dict[str, str]) -> int:
        plan.added.pop()
        return original(table, of, plan, properties)

    with monkeypatch.context() as patch:
        patch.setattr(committing, "_apply", forget_a_file)
        message = rf"resolution 3600000 ms: 0 rows instead of 3.*rollups backfill {batch.key} {batch.key} --force"
        with pytest.raises(PublishHaltError, match=message):
            publish(pipeline, batch)
    publish(pipeline, batch, force=True)
    assert_published(pipeline, (batch, 1))


# What else is in the table


@pytest.mark.parametrize(
    "hiccup",
    [
        "When reading information for key 'a' in bucket 'b': AWS Error NETWORK_CONNECTION during HeadObject operation: curlCode: 28",
        "When reading information for key 'a' in bucket 'b': AWS Error ACCESS_DENIED during HeadObject operation: Access Denied.",
    ],
    ids=["network", "rights"],
)
def test_a_store_that_is_away_when_a_commit_is_verified_halts_nothing(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, hiccup: str
) -> None:
    """The commit stands, and the same command finds it. It said to roll the table back, and ended the backfill."""
    (batch,) = batches_from(pipeline, 1)
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "range_counts", lambda *_, **__: (_ for _ in ()).throw(OSError(hiccup)))
        with pytest.raises(StorageError):
            publish_value(pipeline, batch, 7)
    before = load(pipeline).snapshots()
    assert publish(pipeline, batch).snapshot_id == before[-1].snapshot_id
    assert load(pipeline).snapshots() == before
    assert_published(pipeline, (batch, 7))


def test_a_file_that_is_missing_when_a_commit_is_verified_halts(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    (batch,) = batches_from(pipeline, 1)
    monkeypatch.setattr(publishing, "range_counts", lambda *_, **__: (_ for _ in ()).throw(FileNotFoundError("manifest.avro")))
    with pytest.raises(PublishHaltError, match=r"cannot be read \(manifest.avro\): roll the table back to the one before; .* --force"):
        publish_value(pipeline, batch, 7)


def test_a_staged_file_that_the_table_lists_twice_is_there_once_again(pipeline: Pipeline) -> None:
    """As after `add_files` without a check, or two publishers with `snapshot` isolation: removing the second entry removed both."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 7)
    publish_value(pipeline, second, 8)
    table = load(pipeline)
    before = len(rows_of(table))
    table.add_files(sorted(staged_paths(pipeline, first))[:1], check_duplicate_files=False)
    assert len(rows_of(load(pipeline))) > before
    publish(pipeline, first)
    assert_published(pipeline, (first, 7), (second, 8))


def compact(pipeline: Pipeline) -> None:
    """What a compaction does: the same rows in one file per partition, whatever batch they belong to."""
    table = load(pipeline)
    table.overwrite(table.scan().to_arrow())


def test_a_file_that_straddles_batches_is_rewritten_without_the_range(pipeline: Pipeline) -> None:
    """After a compaction one file holds three batches; republishing the middle one keeps the rows of both neighbours."""
    before, batch, after = batches_from(pipeline, 3)
    for number, of in enumerate((before, batch, after)):
        publish_value(pipeline, of, number)
    compact(pipeline)
    assert len(list(load(pipeline).scan().plan_files())) == 2
    snapshots = len(load(pipeline).snapshots())
    publish_value(pipeline, batch, 9)
    assert len(load(pipeline).snapshots()) == snapshots + 1
    assert_published(pipeline, (before, 0), (batch, 9), (after, 2))


@pytest.mark.scenario("C5")
def test_the_batches_of_a_compacted_file_can_all_be_published_again(pipeline: Pipeline) -> None:
    batches = batches_from(pipeline, 3)
    for batch in batches:
        publish_value(pipeline, batch, 1)
    compact(pipeline)
    for batch in batches:
        publish_value(pipeline, batch, 2)
    assert_published(pipeline, *((batch, 2) for batch in batches))


def test_every_column_of_the_neighbours_survives_a_rewrite(pipeline: Pipeline) -> None:
    """Also those that somebody else has added to the table."""
    from pyiceberg.types import StringType

    first, second = batches_from(pipeline, 2)
    ensure_table(pipeline.settings)
    with load(pipeline).update_schema() as update:
        update.add_column("note", StringType())
    rows = pa.concat_tables([rollup_rows(pipeline.settings, of, 60_000, 3) for of in (first, second)])
    load(pipeline).append(rows.append_column("note", pa.array(["kept"] * rows.num_rows)))
    mine = load(pipeline).scan(row_filter=f"logical_timestamp < '{second.start_time.isoformat()}'").to_arrow()
    stage_rollups(pipeline, second, rows={60_000: [rollup_rows(pipeline.settings, second, 60_000, 3, value=2)]})
    publish(pipeline, second)
    kept = load(pipeline).scan(row_filter=f"logical_timestamp < '{second.start_time.isoformat()}'").to_arrow()
    order = [("id", "ascending"), ("logical_timestamp", "ascending")]
    assert kept.sort_by(order).to_pylist() == mine.sort_by(order).to_pylist()
    assert set(kept["note"].to_pylist()) == {"kept"}


def test_a_straddling_file_over_several_days_is_rewritten_into_its_partitions(pipeline: Pipeline) -> None:
    """A file from before the table was partitioned holds several resolutions and days; a new file has one of each."""
    from pyiceberg.io.pyarrow import parquet_file_to_data_file
    from pyiceberg.manifest import DataFile
    from pyiceberg.partitioning import PartitionSpec

    ensure_table(pipeline.settings)
    early, late, midnight = batches_from(pipeline, 3, first=22)
    rows = pa.concat_tables(
        [
            rollup_rows(pipeline.settings, of, resolution, 3)
            for of in (early, late, midnight)
            for resolution in pipeline.settings.resolutions
        ]
    )
    place = Path(load(pipeline).location(), "data", "unpartitioned.parquet")
    place.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows, place)
    table = load(pipeline)
    with table.update_spec() as update:
        update.remove_field("resolution")
        update.remove_field("logical_timestamp_day")
    table = load(pipeline)
    assert isinstance(parquet_file_to_data_file(table.io, table.metadata, str(place)), DataFile)
    table.add_files([str(place)])
    with load(pipeline).update_spec() as update:
        update.add_identity("resolution")
        update.add_field("logical_timestamp", "day", "logical_timestamp_day")
    assert load(pipeline).spec() != PartitionSpec()
    publish_value(pipeline, late, 8)
    assert_published(pipeline, (early, 1), (late, 8), (midnight, 1))


def test_foreign_rows_inside_the_range_go_and_those_outside_stay(pipeline: Pipeline) -> None:
    """One foreign file reaches over the range's end. Also rows of a resolution that is no longer configured go."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1)
    foreign = [rollup_rows(pipeline.settings, of, 60_000, 2, value=50, first_id=500) for of in (first, second)]
    foreign.append(rollup_rows(pipeline.settings, first, 300_000, 2, value=60))
    load(pipeline).append(pa.concat_tables(foreign))
    publish(pipeline, first)
    found = value_by_batch(pipeline)
    assert found == {first.key: {1}, second.key: {50}}
    assert len(rows_of(load(pipeline))) == 3 * 61 + 2 * 60


@pytest.mark.scenario("S3")
def test_a_straddling_file_that_is_damaged_is_not_rewritten(pipeline: Pipeline) -> None:
    """Its rows would get new checksums, and nobody would ever know."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    path = add_compacted(pipeline, (first, second), 7)
    flip_a_bit(path, 7)
    before = load(pipeline).metadata.current_snapshot_id
    stage_rollups(pipeline, second, value=1)
    with pytest.raises(PublishError, match=r"compacted\.parquet of metrics\.rollups is damaged .*checksum.*the table was left as it was"):
        publish(pipeline, second)
    assert load(pipeline).metadata.current_snapshot_id == before


def test_a_straddling_file_without_rows_in_the_range_is_left_alone(pipeline: Pipeline) -> None:
    """Its labels lie on both sides of the batch: metadata cannot tell, its rows can."""
    before, batch, after = batches_from(pipeline, 3)
    ensure_table(pipeline.settings)
    load(pipeline).append(pa.concat_tables([rollup_rows(pipeline.settings, of, 60_000, 3) for of in (before, after)]))
    (path,) = [task.file.file_path for task in load(pipeline).scan().plan_files()]
    publish_value(pipeline, batch, 2)
    assert path in [task.file.file_path for task in load(pipeline).scan().plan_files()]
    assert set(value_by_batch(pipeline)) == {before.key, batch.key, after.key}


def with_position_deletes(monkeypatch: pytest.MonkeyPatch, folder: Path, path: str, positions: list[int]) -> None:
    """Have scans find a position delete file for ``path``, as merge-on-read engines write them (PyIceberg cannot)."""
    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestEntry, ManifestEntryStatus
    from pyiceberg.table import ManifestGroupPlanner
    from pyiceberg.typedef import Record

    deletes = folder / "deletes.parquet"
    pq.write_table(pa.table({"file_path": [path] * len(positions), "pos": pa.array(positions, pa.int64())}), deletes)
    of_path = {2147483546: path.encode()}  # Iceberg's field id of file_path
    delete_file = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES,
        file_path=str(deletes),
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=len(positions),
        file_size_in_bytes=deletes.stat().st_size,
        lower_bounds=of_path,
        upper_bounds=of_path,
    )
    original = ManifestGroupPlanner.plan_manifest_entries

    def plan_manifest_entries(self: Any, manifests: Any) -> Any:
        found = [list(entries) for entries in original(self, manifests)]
        if any(entry.data_file.file_path == path for entries in found for entry in entries):
            found.append(
                [ManifestEntry.from_args(status=ManifestEntryStatus.ADDED, snapshot_id=1, sequence_number=1_000_000, data_file=delete_file)]
            )
        return iter(found)

    monkeypatch.setattr(ManifestGroupPlanner, "plan_manifest_entries", plan_manifest_entries)
    monkeypatch.setattr(reading, "list_deletes", lambda _manifests: True)


def test_deleted_rows_of_neighbours_stay_deleted_in_a_rewrite(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = batches_from(pipeline, 2)
    ensure_table(pipeline.settings)
    load(pipeline).append(pa.concat_tables([rollup_rows(pipeline.settings, of, 60_000, 1) for of in (first, second)]))
    (task,) = load(pipeline).scan().plan_files()
    with_position_deletes(monkeypatch, tmp_path, task.file.file_path, [0, 1, 119])
    stage_rollups(pipeline, second, rows={60_000: [rollup_rows(pipeline.settings, second, 60_000, 1, value=2)]})
    publish(pipeline, second)
    labels = [stamp for (stamp,) in rows_of(load(pipeline), "logical_timestamp")]
    assert len(labels) == 58 + 60
    assert labels[0].minute == 2


def test_rows_that_somebody_deleted_from_a_published_file_come_back(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counts betray it; the file returns under another name, since its path is already taken by the deletes."""
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    path = next(task.file.file_path for task in load(pipeline).scan(row_filter="resolution = 60000").plan_files())
    with_position_deletes(monkeypatch, tmp_path, path, [0])
    assert len(rows_of(load(pipeline))) == 3 * 61 - 1
    assert not publish(pipeline, batch).unchanged
    assert path not in [task.file.file_path for task in load(pipeline).scan().plan_files()]
    assert_published(pipeline, (batch, 1))
    assert publish(pipeline, batch).unchanged


def test_rows_deleted_by_another_engine_through_a_rewrite_come_back(pipeline: Pipeline) -> None:
    """Copy-on-write DELETE: the file has another name and fewer rows."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1)
    publish_value(pipeline, second, 2)
    load(pipeline).delete("id = 1")
    assert not publish(pipeline, first).unchanged
    assert not publish(pipeline, second).unchanged
    assert_published(pipeline, (first, 1), (second, 2))


def delete_everything(pipeline: Pipeline, _: Batch) -> None:
    load(pipeline).delete()


def delete_some_rows(pipeline: Pipeline, _: Batch) -> None:
    load(pipeline).delete("id = 1")


def compact_everything(pipeline: Pipeline, batch: Batch) -> None:
    compact(pipeline)
    assert publish(pipeline, batch).unchanged


@pytest.mark.parametrize("other_engine", [delete_everything, delete_some_rows, compact_everything])
def test_staged_files_that_another_engine_has_removed_come_back_as_copies(
    other_engine: Callable[[Pipeline, Batch], None], pipeline: Pipeline
) -> None:
    """Engines that expire snapshots by what they deleted would delete the staged ones from disk."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1)
    publish_value(pipeline, second, 2)
    other_engine(pipeline, first)
    for batch in (first, second):
        assert not publish(pipeline, batch, force=other_engine is compact_everything).unchanged
    live, deleted = live_and_deleted_paths(load(pipeline))
    assert not live & deleted
    assert_published(pipeline, (first, 1), (second, 2))
    for force in (False, True):
        assert all(publish(pipeline, batch, force=force).unchanged for batch in (first, second))
    assert live_and_deleted_paths(load(pipeline)) == (live, deleted)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(bytes(path.stat().st_size))], ids=["lost", "overwritten"])
def test_a_copy_that_is_damaged_is_replaced_by_force(damage: Callable[[Path], Any], pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    load(pipeline).delete()
    publish(pipeline, batch)
    damaged, *whole = live_and_deleted_paths(load(pipeline))[0]
    damage(Path(damaged))
    assert not publish(pipeline, batch, force=True).unchanged
    live, deleted = live_and_deleted_paths(load(pipeline))
    assert damaged in deleted
    assert live > set(whole)
    assert_published(pipeline, (batch, 1))


@pytest.mark.parametrize("was_published", [False, True], ids=["first publish", "later publish"])
def test_files_of_a_publish_that_was_killed_before_its_receipt_come_back_as_copies(pipeline: Pipeline, *, was_published: bool) -> None:
    """Only the table's own snapshots say then that it has had them."""
    (batch,) = batches_from(pipeline, 1)
    receipt = publish_value(pipeline, batch, 1).receipt if was_published else None
    publish_value(pipeline, batch, 2)
    if receipt is None:
        (pipeline.stage.folder(ROLLUP_TABLE, batch) / "manifest.json").delete_file()
    else:
        pipeline.stage.write(receipt, batch)
    load(pipeline).delete()
    assert not publish(pipeline, batch).unchanged
    live, deleted = live_and_deleted_paths(load(pipeline))
    assert not live & deleted
    assert_published(pipeline, (batch, 2))


def test_copies_are_made_several_at_once_and_in_large_pieces(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece is a request, where the table is in a bucket; others wait for the lock meanwhile."""
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    load(pipeline).delete()
    both, original, pieces = threading.Barrier(2), shutil.copyfileobj, list[int]()

    def copied(source: Any, target: Any, length: int = 0) -> None:
        pieces.append(length)
        both.wait(10)
        original(source, target, length)

    monkeypatch.setattr(shutil, "copyfileobj", copied)
    assert not publish(pipeline, batch).unchanged
    assert len(pieces) == 2
    assert min(pieces) >= 8 << 20
    assert_published(pipeline, (batch, 1))


def test_a_file_that_another_engine_gave_hadoops_name_for_s3_is_copied_from_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = list[Place]()

    def content(place: Place) -> io.BytesIO:
        opened.append(place)
        return io.BytesIO(b"rows")

    monkeypatch.setattr(Place, "open_input", content)
    monkeypatch.setattr(Place, "open_output", lambda _: io.BytesIO())
    monkeypatch.setattr("rollup_assets.iceberg.data_files.data_file", lambda _, path: DataFile.from_args(file_path=path))
    folder = Place.parse("s3://lake/warehouse/metrics/rollups/data/rewritten/table", S3Options("http://127.0.0.1:1"))
    plan = Plan(folder)
    table: Any = None
    plan.copy(table, {"s3a://lake/warehouse/metrics/rollups/data/1.parquet": "digest"})
    assert opened == [folder.at("s3://lake/warehouse/metrics/rollups/data/1.parquet")]
    assert [file.file_path.startswith(f"{folder.uri}/digest-") for file in plan.added] == [True]


@pytest.mark.parametrize("scheme", ["s3", "s3a", "s3n"])
def test_a_staged_file_and_its_copy_are_known_whatever_another_engine_calls_the_store(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    data = "lake/warehouse/metrics/rollups/data"
    settings = load_settings(warehouse="s3://lake/warehouse")
    staged = StagedFile(path=f"s3://{data}/1.parquet", rows=1, size=1, digest="00ff")
    looked_at = list[str]()

    def has_digest(place: Place, digest: str) -> bool:
        looked_at.append(place.uri)
        return digest == "00ff"

    monkeypatch.setattr("rollup_assets.iceberg.staged_files.has_digest", has_digest)

    def found_as(name: str) -> str | None:
        task: Any = None
        live = LiveFile(task, f"{scheme}://{data}/{name}", rows=1, resolution=None, first=None, last=None, has_deletes=False)
        return StagedFiles(settings, [staged]).found_as(live)

    names = ("1.parquet", "rewritten/table/00ff-1.parquet", "rewritten/table/ff00-1.parquet", "00ff-1.parquet")
    assert [found_as(name) for name in names] == [staged.path, staged.path, None, None]
    assert looked_at == [f"s3://{data}/rewritten/table/00ff-1.parquet"]


def rewritten(pipeline: Pipeline) -> list[Path]:
    """Copies and other files that were made of the table's own, whether it has them or not."""
    return list(Path(load(pipeline).location(), "data", "rewritten").rglob("*.parquet"))


@pytest.mark.parametrize("problem", ["refused", "lock lost"])
def test_copies_of_a_plan_that_came_to_nothing_are_used_by_the_next_one(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, problem: str
) -> None:
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    load(pipeline).delete()
    held = iter([problem != "lock lost"])
    monkeypatch.setattr(TableLock, "is_held", lambda _: next(held, True))

    def refuse_the_first(apply: Commit, number: int) -> Any:
        if problem == "refused" and number == 1:
            raise ConnectionError("connection refused")
        return apply()

    copied, original = list[Any](), shutil.copyfileobj
    monkeypatch.setattr(shutil, "copyfileobj", lambda *arguments: copied.append(arguments) or original(*arguments))
    with plans(monkeypatch) as planned, commits(monkeypatch, refuse_the_first):
        assert not publish(pipeline, batch).unchanged
    assert (len(planned), len(copied)) == (2, 2)
    live, deleted = live_and_deleted_paths(load(pipeline))
    assert {str(path) for path in rewritten(pipeline)} == live
    assert not live & deleted
    assert_published(pipeline, (batch, 1))


@pytest.mark.parametrize("for_good", [True, False])
def test_a_plan_leaves_the_next_one_no_copy_that_it_deletes(pipeline: Pipeline, *, for_good: bool) -> None:
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    staged = pipeline.stage.read(ROLLUPS, batch)
    assert staged is not None
    copies: dict[str, DataFile] = {}
    plan = Plan(rewritten_files(pipeline.settings, batch), copies=copies)
    plan.copy(load(pipeline), {file.path: file.digest for file in staged.files})
    plan.discard(for_good=for_good)
    assert len(copies) == (0 if for_good else 2)
    assert {file.file_path for file in copies.values()} == {str(path) for path in rewritten(pipeline)}


def test_copies_that_a_younger_branch_may_have_are_not_known(pipeline: Pipeline) -> None:
    """The commit landed, and another engine set it aside before it was looked for: its files go with its snapshot."""
    first, second = batches_from(pipeline, 2)
    kept = publish_value(pipeline, first, 1).snapshot_id
    copies = Copies()
    made = copies.known(load(pipeline))
    made["a path"] = DataFile()
    assert copies.known(load(pipeline)) is made
    publish_value(pipeline, second, 2)
    assert copies.known(load(pipeline)) is made
    load(pipeline).manage_snapshots().rollback_to_snapshot(kept).commit()
    assert copies.known(load(pipeline)) == {}


def test_copies_of_a_commit_that_may_have_landed_unseen_are_not_used_again(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """It landed, its answer was lost, another engine took its rows out and let the snapshot expire: its paths are called deleted."""
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    load(pipeline).delete()

    def lose_the_first(apply: Commit, number: int) -> Any:
        found = apply()
        if number == 1:
            load(pipeline).delete()
            expired = [snapshot.snapshot_id for snapshot in load(pipeline).snapshots()[:-1]]
            load(pipeline).maintenance.expire_snapshots().by_ids(expired).commit()
            raise ConnectionError("connection reset")
        return found

    with plans(monkeypatch) as planned, commits(monkeypatch, lose_the_first):
        assert not publish(pipeline, batch).unchanged
    assert len(planned) == 2
    live, deleted = live_and_deleted_paths(load(pipeline))
    assert deleted
    assert not live & deleted
    assert_published(pipeline, (batch, 1))


def staged_paths(pipeline: Pipeline, batch: Batch) -> set[str]:
    staged = pipeline.stage.read(ROLLUPS, batch)
    assert staged is not None
    return {file.path for file in staged.files}


@pytest.mark.parametrize("taken_out_by", ["setting it aside", "deletion and expiry"])
def test_staged_files_of_a_commit_that_may_have_landed_unseen_come_as_copies(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, taken_out_by: str
) -> None:
    """Its answer was lost, and another engine took it back before it was looked for: what deletes its snapshot may delete its files."""
    first, second = batches_from(pipeline, 2)
    kept = publish_value(pipeline, first, 5).snapshot_id
    stage_rollups(pipeline, second)

    def lose_the_first(apply: Commit, number: int) -> Any:
        found = apply()
        if number == 1:
            if taken_out_by == "setting it aside":
                load(pipeline).manage_snapshots().rollback_to_snapshot(kept).commit()
            else:
                load(pipeline).delete(f"logical_timestamp >= '{second.start_time.isoformat()}'")
                expired = [snapshot.snapshot_id for snapshot in load(pipeline).snapshots()[:-1]]
                load(pipeline).maintenance.expire_snapshots().by_ids(expired).commit()
            raise ConnectionError("connection reset")
        return found

    with plans(monkeypatch) as planned, commits(monkeypatch, lose_the_first):
        assert not publish(pipeline, second).unchanged
    assert len(planned) == 2
    live, _ = live_and_deleted_paths(load(pipeline))
    assert not live & staged_paths(pipeline, second)
    assert staged_paths(pipeline, first) <= live
    assert_published(pipeline, (first, 5), (second, 1))
    assert publish(pipeline, second).unchanged


@pytest.mark.parametrize("table", ["without a snapshot", "with one", "that gets its first one meanwhile"])
def test_staged_files_of_a_commit_that_has_not_landed_are_added_as_they_are(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    first, second = batches_from(pipeline, 2)
    ensure_table(pipeline.settings)
    if table == "with one":
        publish_value(pipeline, first, 5)
    stage_rollups(pipeline, second)

    def drop_the_first(apply: Commit, number: int) -> Any:
        if number == 1:
            if table == "that gets its first one meanwhile":
                load(pipeline).append(rollup_rows(pipeline.settings, first, 60_000, 2))
            raise ConnectionError("connection refused")
        return apply()

    with plans(monkeypatch) as planned, commits(monkeypatch, drop_the_first):
        publish(pipeline, second)
    assert len(planned) == 2
    assert staged_paths(pipeline, second) <= live_and_deleted_paths(load(pipeline))[0]
    assert not rewritten(pipeline)


def test_files_of_a_table_that_was_dropped_are_added_as_they_are(pipeline: Pipeline) -> None:
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)
    before = live_and_deleted_paths(load(pipeline))
    load_catalog(pipeline.settings).drop_table(pipeline.settings.table)
    publish(pipeline, batch)
    assert live_and_deleted_paths(load(pipeline)) == before


def test_nothing_is_left_behind_by_a_plan_that_fails(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rewritten half of a straddling file is deleted if the plan comes to nothing."""
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1)
    publish_value(pipeline, second, 1)
    compact(pipeline)
    stage_rollups(pipeline, second, value=2)
    monkeypatch.setattr(publishing, "staged_data_files", lambda *_: (_ for _ in ()).throw(MemoryError()))
    with pytest.raises(MemoryError):
        publish(pipeline, second)
    assert not rewritten(pipeline)
    assert_published(pipeline, (first, 1), (second, 1))
