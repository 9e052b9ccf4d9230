"""Where partitions stand, from the first raw file to a stale rollup."""

from __future__ import annotations

import datetime as dt
import os
from pathlib import Path

import pytest

from rollup_assets.batches import Batch
from rollup_assets.pipeline import Pipeline
from rollup_assets.status import PartitionStatus, status
from rollup_assets.storage import s3
from rollup_assets.storage.copies import COPIES
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS, StageReadOnce
from rollup_assets_tests.conftest import MakePipeline
from rollup_assets_tests.landing import forbid, forbid_file, write_bytes, write_rows
from rollup_assets_tests.naive import RawRow
from rollup_assets_tests.staged import manifests_read
from rollup_assets_tests.verification.naive_table import land_and_stage, receipt, stage

LATER = dt.datetime(2026, 6, 1, tzinfo=dt.UTC)


@pytest.fixture
def pipeline(tmp_path: Path, make_pipeline: MakePipeline) -> Pipeline:
    return make_pipeline(tmp_path)


def batches(pipeline: Pipeline, count: int) -> list[Batch]:
    return [batch for ahead in range(count) if (batch := pipeline.calendar.shifted(pipeline.calendar.first, ahead))]


def states(pipeline: Pipeline, now: dt.datetime = LATER) -> dict[str, str]:
    return {found.partition[-5:]: found.state for found in status(pipeline.settings, now=now)}


def one(pipeline: Pipeline, batch: Batch) -> PartitionStatus:
    (found,) = status(pipeline.settings, [batch])
    return found


def land(pipeline: Pipeline, batch: Batch, name: str = "a.parquet") -> None:
    write_rows(pipeline, batch, name, [RawRow(7, 1, "m", batch.start, 5)])


def stage_good(pipeline: Pipeline, *chosen: Batch) -> None:
    land_and_stage(pipeline, {batch: {"a.parquet": [RawRow(7, 1, "m", batch.start, 5)]} for batch in chosen})


def test_nothing_at_all(pipeline: Pipeline) -> None:
    assert states(pipeline) == {}
    assert one(pipeline, pipeline.calendar.first).state == "empty"


def test_raw_files_make_their_partition_unstaged_and_the_next_two_waiting(pipeline: Pipeline) -> None:
    land(pipeline, batches(pipeline, 1)[0])
    assert states(pipeline) == {"00:00": "not staged", "01:00": "waiting", "02:00": "waiting"}


def test_trailing_partitions_that_have_not_ended_are_not_listed(pipeline: Pipeline) -> None:
    land(pipeline, batches(pipeline, 1)[0])
    assert states(pipeline, now=dt.datetime(2026, 1, 1, 2, 30, tzinfo=dt.UTC)) == {"00:00": "not staged", "01:00": "waiting"}


def test_staged_rolled_up_published(pipeline: Pipeline) -> None:
    batch = batches(pipeline, 1)[0]
    stage_good(pipeline, batch)
    assert (one(pipeline, batch).state, one(pipeline, batch).points) == ("staged", 1)
    published(pipeline, batch)
    (Path(pipeline.stage.folder(ROLLUP_TABLE, batch).path) / "manifest.json").unlink()
    assert one(pipeline, batch).state == "rolled up"
    published(pipeline, batch)
    assert one(pipeline, batch).state == "published"


def published(pipeline: Pipeline, batch: Batch) -> None:
    receipt(pipeline, batch)
    rollups, table = pipeline.stage.read(ROLLUPS, batch), pipeline.stage.read(ROLLUP_TABLE, batch)
    assert rollups is not None
    assert table is not None
    upstream = {
        asset: {each.key: found.digest if (found := pipeline.stage.read(asset, each)) else None for each in chosen}
        for asset, chosen in ((REPARTITIONED, [batch]), (PARTIAL_POINTS, [batch, *pipeline.calendar.earlier(batch, 2)]))
    }
    pipeline.stage.write(rollups.model_copy(update={"upstream": upstream}), batch)
    pipeline.stage.write(table.model_copy(update={"digest": rollups.digest}), batch)


def test_a_new_raw_file_makes_its_partition_stale(pipeline: Pipeline) -> None:
    batch = batches(pipeline, 1)[0]
    stage_good(pipeline, batch)
    published(pipeline, batch)
    assert one(pipeline, batch).stale == []
    land(pipeline, batch, "late.parquet")
    assert one(pipeline, batch).state == "stale"
    assert one(pipeline, batch).stale == ["new raw file year=2026/month=01/day=01/hour=00/late.parquet"]


def test_removed_files_make_their_partition_stale_also_where_none_is_left(pipeline: Pipeline) -> None:
    batch = batches(pipeline, 1)[0]
    stage_good(pipeline, batch)
    published(pipeline, batch)
    (Path(pipeline.landing_zone.folder(batch).path) / "a.parquet").unlink()
    assert states(pipeline)["00:00"] == "stale"
    assert one(pipeline, batch).stale == ["removed raw file year=2026/month=01/day=01/hour=00/a.parquet"]


def test_restaging_makes_exactly_the_partitions_stale_that_read_it(pipeline: Pipeline) -> None:
    of = batches(pipeline, 4)
    stage_good(pipeline, *of)
    for batch in of:
        published(pipeline, batch)
    manifest = pipeline.stage.read(PARTIAL_POINTS, of[0])
    assert manifest is not None
    pipeline.stage.write(manifest.model_copy(update={"digest": "other"}), of[0])
    assert [found.state for found in status(pipeline.settings, of)] == ["stale", "stale", "stale", "published"]
    assert one(pipeline, of[2]).stale == ["rollups: partial_points 2026-01-01-00:00 has changed: partial_ → other"]


def test_rollups_that_changed_after_publishing_are_named(pipeline: Pipeline) -> None:
    batch = batches(pipeline, 1)[0]
    stage_good(pipeline, batch)
    published(pipeline, batch)
    rollups = pipeline.stage.read(ROLLUPS, batch)
    assert rollups is not None
    pipeline.stage.write(rollups.model_copy(update={"digest": "newer"}), batch)
    assert one(pipeline, batch).stale == ["rollups have changed since they were published: rollups  → newer"]


def test_other_settings_or_code_make_everything_stale(tmp_path: Path, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = make_pipeline(tmp_path)
    batch = pipeline.calendar.first
    stage_good(pipeline, batch)
    published(pipeline, batch)
    assert "made with another ROLLUP_LOOKBACK (now 30m, then 1h)" in one(make_pipeline(tmp_path, lookback="30m"), batch).stale[0]
    monkeypatch.setattr("rollup_assets.steps.changes.CODE_VERSION", "99")
    assert "made by code version" in one(pipeline, batch).stale[0]


def test_another_encoding_makes_rollups_stale_and_nothing_else(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(tmp_path)
    batch = pipeline.calendar.first
    stage_good(pipeline, batch)
    published(pipeline, batch)
    assert one(make_pipeline(tmp_path, parquet_encoding="compatible"), batch).stale == [
        "rollups: made with another ROLLUP_PARQUET_ENCODING (now compatible, then fast)"
    ]


def test_copies_that_would_be_treated_otherwise_now_make_their_partition_stale(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(tmp_path)
    batch = pipeline.calendar.first
    stage_good(pipeline, batch)
    published(pipeline, batch)
    manifest = pipeline.stage.read(REPARTITIONED, batch)
    assert manifest is not None
    pipeline.stage.write(manifest.model_copy(update={"counters": {**manifest.counters, COPIES: {"b.parquet": "a.parquet"}}}), batch)
    assert one(pipeline, batch).state == "published"
    stale = one(make_pipeline(tmp_path, raw_copies="report"), batch).stale
    assert stale == ["copies of raw files are treated differently with ROLLUP_RAW_COPIES=report"]


def test_a_partition_that_cannot_be_looked_at_says_so_and_hides_no_other(pipeline: Pipeline) -> None:
    first, second, *_ = batches(pipeline, 2)
    stage_good(pipeline, first, second)
    (Path(pipeline.stage.folder(REPARTITIONED, first).path) / "manifest.json").write_text("{")
    damaged, whole = status(pipeline.settings, [first, second])
    assert damaged.state == "unknown"
    assert "is not a manifest" in str(damaged.problem)
    assert whole.state == "staged"


@pytest.mark.parametrize("asset", [REPARTITIONED, ROLLUP_TABLE])
def test_a_manifest_that_may_not_be_read_hides_no_other(asset: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = batches(pipeline, 2)
    stage_good(pipeline, first, second)
    forbid_file(monkeypatch, pipeline.stage.folder(asset, first) / "manifest.json")
    closed, other = status(pipeline.settings, [first, second])
    assert (closed.state, other.state) == ("unknown", "staged")
    assert "manifest.json cannot be read (Permission denied); let this user read all of ROLLUP_STAGE" in str(closed.problem)


def test_decisions_that_may_not_be_read_hide_no_other(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second, *_ = batches(pipeline, 2)
    stage_good(pipeline, first, second)
    stage(pipeline, QUARANTINED, first, {"rows_read": 9, "rows_quarantined": 9, "bad_files": 0, "reasons": {"null_id": 9}})
    forbid_file(monkeypatch, pipeline.stage.folder(QUARANTINED, first) / "allowed.json")
    closed, other = status(pipeline.settings, [first, second])
    assert (closed.state, other.state) == ("unknown", "staged")
    assert "allowed.json cannot be read (Permission denied)" in str(closed.problem)


def test_a_damaged_manifest_hides_nothing_of_the_partitions_that_read_it(pipeline: Pipeline) -> None:
    first, second, *_ = batches(pipeline, 2)
    stage_good(pipeline, first, second)
    published(pipeline, second)
    (Path(pipeline.stage.folder(PARTIAL_POINTS, first).path) / "manifest.json").write_text("{")
    found = one(pipeline, second)
    assert (found.problem, found.published, found.points) == (None, True, 1)


def test_a_name_or_folder_that_cannot_be_listed_hides_no_other(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without partitions given, too, where the whole landing zone is listed."""
    first, second, third = batches(pipeline, 3)
    for batch in (first, second, third):
        land(pipeline, batch)
    Path(os.fsdecode(os.fsencode(pipeline.landing_zone.folder(first).path) + b"/\xff.parquet")).touch()
    forbid(monkeypatch, pipeline.landing_zone.folder(second))
    found = states(pipeline)
    assert (found["00:00"], found["01:00"], found["02:00"]) == ("unknown", "unknown", "not staged")


def test_a_file_where_a_batchs_folder_belongs_hides_no_other(pipeline: Pipeline) -> None:
    first, second = batches(pipeline, 2)
    land(pipeline, first)
    Path(pipeline.landing_zone.folder(second).path).touch()
    found = {one.partition: one for one in status(pipeline.settings, now=LATER)}
    assert [found[batch.key].state for batch in (first, second)] == ["not staged", "unknown"]
    assert "is a file, where a batch's folder belongs" in str(found[second.key].problem)


def test_a_folder_of_many_batches_that_cannot_be_listed_makes_them_unknown_and_hides_no_other(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a day whose folder was made with a wrong umask."""
    of = batches(pipeline, 26)
    land(pipeline, of[5])
    land(pipeline, of[25])
    forbid(monkeypatch, pipeline.landing_zone.root / "year=2026/month=01/day=01")
    found = {one.partition: one for one in status(pipeline.settings, now=of[-1].end_time)}
    assert [found[batch.key].state for batch in of] == ["unknown"] * 24 + ["empty", "not staged"]
    assert "day=01/hour=00 cannot be listed" in str(found[of[0].key].problem)


def test_partitions_that_have_not_ended_are_not_listed_for_a_folder_of_theirs_that_cannot_be_listed(
    pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A year has thousands of them; those that have raw files are listed all the same."""
    of = batches(pipeline, 30)
    land(pipeline, of[1])
    land(pipeline, of[29])
    for folder, expected in (
        ("year=2026/month=01/day=01", [*of[:3], of[29]]),
        ("year=2026", of[:3]),
    ):
        with monkeypatch.context() as patch:
            forbid(patch, pipeline.landing_zone.root / folder)
            found = {one.partition: one.state for one in status(pipeline.settings, now=of[2].end_time)}
        assert found == {batch.key: "not staged" if batch == of[29] else "unknown" for batch in expected}


def test_points_that_cannot_be_rolled_up_say_why(pipeline: Pipeline) -> None:
    """A batch before them is over its limit, for instance; without a word they would look like points that nobody has asked for yet."""
    of = batches(pipeline, 2)
    land(pipeline, of[0])
    stage_good(pipeline, of[1])
    found = one(pipeline, of[1])
    assert found.state == "staged"
    assert found.held_back is not None
    assert f"need {PARTIAL_POINTS} {of[0]}" in found.held_back
    stage_good(pipeline, of[0])
    assert one(pipeline, of[1]).held_back is None


def test_points_in_the_table_are_not_held_back_by_other_settings(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(tmp_path)
    of = batches(pipeline, 2)
    stage_good(pipeline, *of)
    for batch in of:
        published(pipeline, batch)
    found = one(make_pipeline(tmp_path, lookback="30m"), of[1])
    assert (found.state, found.held_back) == ("stale", None)


def test_rollups_that_lack_a_batch_which_an_earlier_start_has_added_are_stale(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    later = make_pipeline(tmp_path, start="2026-01-01-01:00")
    batch = later.calendar.first
    stage_good(later, batch)
    published(later, batch)
    assert one(later, batch).state == "published"
    earlier = make_pipeline(tmp_path)
    stage_good(earlier, earlier.calendar.first)
    assert one(earlier, batch).stale == ["rollups: partial_points 2026-01-01-00:00 has changed: not staged → partial_"]


def test_a_batch_over_its_limit_is_quarantined_until_its_raw_files_change(pipeline: Pipeline) -> None:
    """Its quarantine is staged, its datapoints are not (or are those of earlier raw files)."""
    batch = pipeline.calendar.first
    write_bytes(pipeline, batch, "bad.parquet", b"")
    stage(pipeline, QUARANTINED, batch, {"rows_read": 0, "rows_quarantined": 0, "bad_files": 1, "reasons": {"unreadable_file": 0}})
    assert one(pipeline, batch).state == "quarantined"
    assert one(Pipeline.from_settings(pipeline.settings.model_copy(update={"quarantine_files": 1})), batch).state == "not staged"
    (Path(pipeline.landing_zone.folder(batch).path) / "bad.parquet").unlink()
    land(pipeline, batch)
    assert one(pipeline, batch).state == "not staged"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("stored", ["on a disk", "elsewhere"])
def test_a_listing_reads_five_manifests_of_a_partition_and_each_once(
    tmp_path: Path, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    """Each is a request where the stage is a bucket; partitions are looked at side by side there, and list several folders each."""
    pipeline = make_pipeline(tmp_path, raw_lateness=2)
    of = batches(pipeline, 6)
    # The last one first: each reads the folders of the next two.
    stage_good(pipeline, *reversed(of))
    for batch in of:
        published(pipeline, batch)
    land(pipeline, of[4], "late.parquet")
    read = manifests_read(monkeypatch)
    if stored == "elsewhere":
        monkeypatch.setattr(Place, "is_local", False)
        monkeypatch.setattr(s3, "_THREADS", 2)
        monkeypatch.setattr(s3, "_made", {})
    found = status(pipeline.settings, now=of[-1].end_time)
    assert [one.partition for one in found] == [batch.key for batch in of]
    # Three of them read the folder of the late file.
    assert [one.state for one in found] == ["published", "published", "stale", "stale", "stale", "published"]
    assert len(read) == len(set(read)) == 5 * len(of)


def test_a_listing_holds_the_manifests_of_neighbours_only(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of a table's whole life are gigabytes; each is read once all the same."""
    of = batches(pipeline, 12)
    stage_good(pipeline, *of)
    for batch in of:
        published(pipeline, batch)
    read = manifests_read(monkeypatch)
    stages: list[StageReadOnce] = []

    def kept(root: Place, most: int) -> StageReadOnce:
        stages.append(StageReadOnce(root, most))
        return stages[-1]

    monkeypatch.setattr("rollup_assets.status.StageReadOnce", kept)
    monkeypatch.setattr("rollup_assets.status._SIDE_BY_SIDE", 1)
    assert {found.state for found in status(pipeline.settings, of)} == {"published"}
    assert len(read) == len(set(read)) == 5 * len(of)
    assert len(stages[0].known) == 5 * (1 + pipeline.settings.reach) < len(read)


def test_partitions_that_read_a_folder_by_arrival_time_are_listed_with_those_after_them(
    tmp_path: Path, make_pipeline: MakePipeline
) -> None:
    pipeline = make_pipeline(tmp_path, raw_lateness=1)
    land(pipeline, batches(pipeline, 3)[2])
    assert list(states(pipeline)) == ["01:00", "02:00", "03:00", "04:00"]


def test_batches_are_found_by_their_folders(pipeline: Pipeline) -> None:
    """Hidden files, folders that are no batch's and batches before the first one do not count."""
    of = batches(pipeline, 30)
    land(pipeline, of[25], "deep/er.parquet")
    land(pipeline, of[3])
    write_bytes(pipeline, of[5], "_SUCCESS", b"")
    root = Path(pipeline.landing_zone.root.path)
    for name in (
        "README.md",
        "year=2026/notes.txt",
        "year=2026/month=13/day=01/hour=00/a.parquet",
        "year=2025/month=12/day=31/hour=23/a.parquet",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    assert pipeline.landing_zone.batches() == [of[3], of[25]]


def test_folders_of_the_stage_name_their_batch(pipeline: Pipeline) -> None:
    batch = batches(pipeline, 10)[9]
    assert pipeline.calendar.of_folder(batch.folder) == batch
    assert pipeline.calendar.of_folder("2026-01-01-0930") is None
    assert pipeline.calendar.of_folder("lost+found") is None
