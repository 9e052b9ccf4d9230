"""Landing zones by arrival time: every row is of one batch or quarantined once, whatever folder it comes in, and nothing else moves."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollup_assets.batches import Batch
from rollup_assets.errors import QuarantineError, StaleInputError
from rollup_assets.steps import checks
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.results import RolledUp, Waiting
from rollup_assets.steps.rollup import find_inputs, roll_up
from rollup_assets.storage.manifests import PARTIAL_POINTS
from rollup_assets.verification import verify
from rollup_assets_tests import naive, staged
from rollup_assets_tests.landing import Shape, batches_of, pipeline_of, table_of, write_bytes, write_rows
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN, RawRow
from rollup_assets_tests.strategies import HOUR, IDS, MINUTE, TODAY, Grid

if TYPE_CHECKING:
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.steps.results import StagedBatch

FOUR = Grid(TODAY, HOUR, 4, (MINUTE, 5 * MINUTE, HOUR), HOUR)
Folders = dict[int, dict[str, Sequence[RawRow]]]

pytestmark = pytest.mark.scenario("L1")


def arriving(home: Path, lateness: int = 2, **overrides: Any) -> Pipeline:
    return pipeline_of(FOUR, home, **{"raw_lateness": lateness, "quarantine_limit": 1.0, **overrides})


def model_of(pipeline: Pipeline) -> naive.Arrival:
    chosen = pipeline.settings
    return naive.Arrival(pipeline.calendar.start, chosen.batch, chosen.raw_lateness, chosen.raw_future or 0)


def good(ts: int, value: float = 1, *, series: int = 7) -> RawRow:
    return RawRow(series, 1, "cpu", ts, value)


def at(hour: int, minute: float = 0) -> int:
    return TODAY + hour * HOUR + int(minute * MINUTE)


# ------------------------------------------------------------------------------------------------------ the model, value by value


def times() -> st.SearchStrategy[int | None]:
    """Around every beginning of a batch, also far outside."""
    near = st.builds(lambda hour, off: at(hour) + off, st.integers(-3, 8), st.sampled_from((-1, 0, 1, 30 * MINUTE, HOUR // 2 - 1)))
    return st.one_of(near, near, st.none(), st.sampled_from((0, INT64_MIN, INT64_MAX, TODAY - 1)))


def rows() -> st.SearchStrategy[list[RawRow]]:
    row = st.builds(
        RawRow,
        id=st.sampled_from((*IDS, None)),
        org_id=st.sampled_from((1, 1, 1, 1, None)),
        metric=st.sampled_from(("cpu", "cpu", "cpu", "disk", None)),
        ts=times(),
        value=st.one_of(st.integers(-3, 5), st.integers(-3, 5), st.none()),
        receive=st.one_of(st.none(), st.integers(TODAY, TODAY + HOUR)),
    )
    return st.lists(row, max_size=10)


def assert_staged(pipeline: Pipeline, batch: Batch, folders: Folders, result: StagedBatch) -> naive.Accepted:
    """Points, duplicates, quarantined rows and what is elsewhere are those of the model."""
    model = model_of(pipeline)
    expected = model.accept(folders, batch.start)
    files = {path: rows for folder, of in folders.items() if model.reads(batch.start, folder) for path, rows in of.items()}
    assert {shard: list(map(staged.bits, points)) for shard, points in staged.points(pipeline, batch, result.repartitioned).items()} == {
        shard: list(map(staged.bits, points)) for shard, points in naive.repartitioned(expected.points, pipeline.settings.shards).items()
    }
    counters = result.repartitioned.counters
    assert {
        name: counters[name] for name in ("rows_read", "rows_accepted", "duplicates", "rows_quarantined", "elsewhere", "raw_files")
    } == {
        "rows_read": sum(map(len, files.values())),
        "rows_accepted": len(expected.points),
        "duplicates": expected.duplicates,
        "rows_quarantined": len(expected.quarantined),
        "elsewhere": expected.elsewhere,
        "raw_files": len(files),
    }
    assert [file.path for file in result.repartitioned.inputs] == sorted(files)
    refused = staged.quarantined(pipeline, batch, result.quarantined)
    assert Counter((row["reason"], row["file"], row["row_number"]) for row in refused) == Counter(
        (row.reason, row.file, row.row_number) for row in expected.quarantined
    )
    assert result.quarantined.counters["reasons"] == dict(Counter(row.reason for row in expected.quarantined))
    assert checks.rows_accounted_for(result.repartitioned, result.quarantined).passed
    return expected


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), lateness=st.integers(1, 3), future=st.sampled_from((None, 1, 30 * MINUTE, HOUR, 90 * MINUTE)))
def test_every_row_is_of_one_batch_or_quarantined_once(
    data: st.DataObject, lateness: int, future: int | None, fresh_home: Callable[[], Path]
) -> None:
    """Each batch is the model's, and together they have every row of every folder exactly once."""
    pipeline = arriving(fresh_home(), lateness, raw_future=future)
    folders: Folders = {}
    for batch in batches_of(pipeline, FOUR):
        folders[batch.start] = {}
        for number in range(data.draw(st.integers(0, 2))):
            content = data.draw(rows())
            shape = Shape(
                row_group=data.draw(st.sampled_from((1, 2, 100))), time=data.draw(st.sampled_from((pa.int64(), pa.timestamp("ms"))))
            )
            # Other names: files with the same rows are no copies of each other here.
            content.append(good(at(0), len(folders) * 10 + number, series=1_000 + len(folders) * 10 + number))
            folders[batch.start][write_rows(pipeline, batch, f"{number}.parquet", content, shape)] = content
    last = -(-(future or 0) // HOUR) + 4
    once = Counter[str]()
    for start in range(at(0), at(last), HOUR):
        batch = pipeline.calendar.containing(start)
        expected = assert_staged(pipeline, batch, folders, stage_batch(pipeline, batch))
        once["points"] += len(expected.points) + expected.duplicates
        once["quarantined"] += len(expected.quarantined)
    assert once["points"] + once["quarantined"] == sum(len(content) for files in folders.values() for content in files.values())


@pytest.mark.parametrize(
    ("future", "ts", "reason"),
    [
        (None, at(2) - 1, "too_late"),
        (None, at(2), None),
        (None, at(5) - 1, None),
        (None, at(5), "in_future"),
        ("90m", at(6, 30) - 1, None),
        ("90m", at(6, 30), "in_future"),
        (None, at(0), "too_late"),
        (None, TODAY - 1, "before_start"),
    ],
)
def test_how_late_and_how_early_a_point_may_come(future: str | None, ts: int, reason: str | None, tmp_path: Path) -> None:
    """In folder 4, with a lateness of two folders: from the beginning of batch 2 to the end of the folder, and what is allowed beyond."""
    pipeline = arriving(tmp_path, 2, raw_future=future)
    folder = pipeline.calendar.containing(at(4))
    path = write_rows(pipeline, folder, "a.parquet", [good(ts)])
    found = {
        batch: stage_batch(pipeline, batch)
        for batch in pipeline.calendar.between(pipeline.calendar.first, pipeline.calendar.containing(at(8)))
    }
    accepted = [batch.start for batch, result in found.items() if result.repartitioned.counters["rows_accepted"]]
    refused = [
        (batch.start, row["reason"], row["file"])
        for batch, result in found.items()
        for row in staged.quarantined(pipeline, batch, result.quarantined)
    ]
    assert accepted == ([] if reason else [pipeline.calendar.containing(ts).start])
    assert refused == ([(folder.start, reason, path)] if reason else [])


def test_a_layout_by_event_time_has_no_rows_elsewhere_and_names_the_future_only_if_asked(tmp_path: Path) -> None:
    """Without a lateness nothing changes: no counter, no parameter; only ROLLUP_RAW_FUTURE tells the future from the past."""
    seen = {}
    for future in (None, "30m"):
        pipeline = arriving(tmp_path / str(future), 0, raw_future=future)
        batch = pipeline.calendar.first
        rows = [good(at(0)), good(at(0) - 1), good(at(1)), good(at(1, 30) - 1), good(at(1, 30)), good(INT64_MAX)]
        path = write_rows(pipeline, batch, "a.parquet", rows)
        result = stage_batch(pipeline, batch)
        expected = naive.accept({path: rows}, batch.start, batch.end, pipeline.settings.raw_future)
        assert result.quarantined.counters["reasons"] == dict(Counter(row.reason for row in expected.quarantined))
        assert "elsewhere" not in {**result.repartitioned.counters, **result.quarantined.counters}
        assert "raw_lateness" not in result.repartitioned.parameters
        seen[future] = result.quarantined.counters["reasons"]
    assert seen == {None: {"outside_batch": 5}, "30m": {"in_future": 2, "outside_batch": 3}}


# ------------------------------------------------------------------------------------------------------- row groups and bad files


@pytest.mark.parametrize(
    "time", [pa.int64(), pa.timestamp("s"), pa.timestamp("ms", "UTC"), pa.timestamp("us"), pa.timestamp("ns", "Asia/Tokyo")], ids=str
)
def test_row_groups_of_other_batches_are_counted_and_not_decoded(
    time: pa.DataType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten rows of each of three batches, a row group each: a batch that reads a later folder decodes the one that has its rows."""
    pipeline = arriving(tmp_path)
    third = pipeline.calendar.containing(at(2))
    rows = [good(at(hour, minute)) for hour in range(3) for minute in range(10)]
    write_rows(pipeline, third, "a.parquet", rows, Shape(row_group=10, time=time))
    decoded: list[int] = []
    read_row_group = pq.ParquetFile.read_row_group

    def noted(file: pq.ParquetFile, group: int, **arguments: Any) -> pa.Table:
        decoded.append(group)
        return read_row_group(file, group, **arguments)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    for hour, groups in ((0, [0]), (1, [1]), (2, [0, 1, 2])):
        decoded.clear()
        counters = stage_batch(pipeline, pipeline.calendar.containing(at(hour))).repartitioned.counters
        assert decoded == groups
        assert (counters["rows_read"], counters["rows_accepted"], counters["elsewhere"]) == (30, 10, 20)


def test_row_groups_without_statistics_are_decoded(tmp_path: Path) -> None:
    pipeline = arriving(tmp_path)
    second = pipeline.calendar.containing(at(1))
    path = Path(pipeline.landing_zone.folder(second).path) / "a.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(table_of([good(at(0)), good(at(1))]), path, write_statistics=False, row_group_size=1)
    for hour in (0, 1):
        counters = stage_batch(pipeline, pipeline.calendar.containing(at(hour))).repartitioned.counters
        assert (counters["rows_read"], counters["rows_accepted"], counters["elsewhere"]) == (2, 1, 1)


@pytest.mark.scenario("B1")
@pytest.mark.parametrize("others", [[], [RawRow(7, 1, "m", None, 5)]], ids=["alone", "beside a null"])
def test_statistics_that_hide_rows_from_their_batch_make_the_file_bad(tmp_path: Path, others: list[RawRow]) -> None:
    """The batch that the row belongs to does not see it, so the batch of the folder, which decodes everything, says so."""
    pipeline = arriving(tmp_path)
    first, second, *_ = batches_of(pipeline, FOUR)
    sink = pa.BufferOutputStream()
    pq.write_table(table_of([good(at(0, 30)), *others, good(at(1, 1))]), sink)
    content = bytes(sink.getvalue())
    least, lied = (ts.to_bytes(8, "little") for ts in (at(0, 30), at(1, 0)))
    begin = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    write_bytes(pipeline, second, "a.parquet", content[:begin] + content[begin:].replace(least, lied))
    assert stage_batch(pipeline, first).repartitioned.counters["elsewhere"] == 2 + len(others)
    with pytest.raises(QuarantineError, match="the statistics of a row group contradict its rows"):
        stage_batch(pipeline, second)


def half_damaged() -> bytes:
    """Rows of batch 0 and of batch 1, a row group each, the second one damaged."""
    sink = pa.BufferOutputStream()
    rows = [good(at(hour) + second * 100) for hour in (0, 1) for second in range(500)]
    pq.write_table(table_of(rows), sink, use_dictionary=False, compression="NONE", row_group_size=500)
    content = bytearray(bytes(sink.getvalue()))
    begin = pq.read_metadata(pa.BufferReader(bytes(content))).row_group(1).column(0).data_page_offset
    content[begin : begin + 200] = b"\xff" * 200
    return bytes(content)


@pytest.mark.scenario("B1")
def test_a_bad_file_is_bad_for_every_batch_that_needs_what_is_damaged(tmp_path: Path) -> None:
    """Unreadable or of another schema: for all that read its folder. With one bad page: for those that have to read that page."""
    pipeline = arriving(tmp_path, 1)
    second = pipeline.calendar.containing(at(1))
    first, third = pipeline.calendar.first, pipeline.calendar.containing(at(2))
    write_bytes(pipeline, second, "a.parquet", b"PAR1 and no more of it")
    for batch in (first, second):
        with pytest.raises(QuarantineError, match="unreadable_file"):
            stage_batch(pipeline, batch)
    assert stage_batch(pipeline, third).repartitioned.counters["bad_files"] == 0
    write_bytes(pipeline, second, "a.parquet", half_damaged())
    assert stage_batch(pipeline, first).repartitioned.counters["rows_accepted"] == 500
    with pytest.raises(QuarantineError, match="unreadable_file"):
        stage_batch(pipeline, second)


# ------------------------------------------------------------------------------------------------------------- what is up to date


def content_of(pipeline: Pipeline, batch: Batch) -> tuple[str, str]:
    result = stage_batch(pipeline, batch)
    return result.repartitioned.digest, result.partial_points.digest


def test_a_later_folder_makes_a_batch_stale_and_changes_its_content_only_if_it_has_rows_of_it(tmp_path: Path) -> None:
    """Otherwise nothing that follows is made again; what was read is brought up to date all the same."""
    pipeline = arriving(tmp_path)
    first, second, third, fourth = batches_of(pipeline, FOUR)
    write_rows(pipeline, first, "a.parquet", [good(at(0, 1))])
    before = content_of(pipeline, first)
    assert stage_batch(pipeline, first).unchanged

    write_rows(pipeline, second, "b.parquet", [good(at(1, 1))])
    again = stage_batch(pipeline, first)
    assert not again.unchanged
    assert content_of(pipeline, first) == before
    counters = again.repartitioned.counters
    assert (counters["rows_read"], counters["rows_accepted"], counters["elsewhere"], counters["raw_files"]) == (2, 1, 1, 2)
    assert stage_batch(pipeline, first).repartitioned.counters == counters

    write_rows(pipeline, third, "c.parquet", [good(at(0, 2))])
    assert not stage_batch(pipeline, first).unchanged
    assert content_of(pipeline, first) != before
    after = content_of(pipeline, first)
    write_rows(pipeline, fourth, "d.parquet", [good(at(3, 2))])
    assert stage_batch(pipeline, first).unchanged, "the fourth folder is beyond the lateness"
    assert content_of(pipeline, first) == after


def test_another_lateness_or_future_stages_anew_and_says_why(tmp_path: Path) -> None:
    from rollup_assets.status import status

    pipeline = arriving(tmp_path, 0)
    first = pipeline.calendar.first
    write_rows(pipeline, first, "a.parquet", [good(at(0, 1))])
    stage_batch(pipeline, first)
    lateness, future = "ROLLUP_RAW_LATENESS (now 1, then 0)", "ROLLUP_RAW_FUTURE (now 5m, then not set)"
    for overrides, setting in (({"lateness": 1}, lateness), ({"lateness": 1, "raw_future": "5m"}, future)):
        changed = arriving(tmp_path, **overrides)
        # Not another start, which the lateness alone has made matter.
        assert status(changed.settings, [first])[0].stale == [f"datapoints: made with another {setting}"]
        with pytest.raises(StaleInputError, match=re.escape(setting)):
            find_inputs(changed, first)
        assert not stage_batch(changed, first).unchanged
    with pytest.raises(StaleInputError, match=r"ROLLUP_RAW_LATENESS \(now 0, then 1\)"):
        find_inputs(pipeline, first)


@pytest.mark.parametrize("starts", [(1, 0), (0, 1)])
def test_another_start_stages_what_is_near_it_anew(starts: tuple[int, int], tmp_path: Path) -> None:
    """A row before one start is a point of an earlier batch after the other: not both, and not neither."""
    old, new = (pipeline_of(dataclasses.replace(FOUR, start=at(hour)), tmp_path, raw_lateness=1, quarantine_limit=1.0) for hour in starts)
    batches = [old.calendar.containing(at(hour)) for hour in range(4)]
    folders: Folders = {batch.start: {} for batch in batches}
    for hour, content in ((1, [good(at(1, 1)), good(at(1) - 5)]), (2, [good(at(2, 1), 2)]), (3, [good(at(3, 1), 3)])):
        folders[at(hour)][write_rows(old, batches[hour], f"{hour}.parquet", content)] = content
    before = batches[starts[0] :]
    for batch in before:
        assert_staged(old, batch, folders, stage_batch(old, batch))
    for batch in batches[starts[1] :]:
        result = stage_batch(new, batch)
        assert_staged(new, batch, folders, result)
        assert result.unchanged == (batch in before and batch not in batches[:2])
    now_and_then = ("another", "2026-01-01-01:00") if starts == (0, 1) else ("2026-01-01-01:00", "another, or not noted")
    with pytest.raises(StaleInputError, match=r"ROLLUP_START \(now {}, then {}\)".format(*now_and_then)):
        find_inputs(old, batches[1])


def test_a_late_row_far_from_another_start_keeps_its_reason_and_verifying_notes_that(tmp_path: Path) -> None:
    """Its batch stays current: the row is no point of any batch either way."""
    old, new = (pipeline_of(dataclasses.replace(FOUR, start=at(hour)), tmp_path, raw_lateness=1, quarantine_limit=1.0) for hour in (1, 0))
    batches = [old.calendar.containing(at(hour)) for hour in (1, 2, 3)]
    for batch, rows in zip(batches, ([good(at(1, 1))], [good(at(2, 1))], [good(at(3, 1)), good(at(0, 1))]), strict=True):
        write_rows(old, batch, f"{batch.folder}.parquet", rows)
    for batch in batches:
        stage_batch(old, batch)
    for batch in batches:
        assert isinstance(roll_up(old, batch), RolledUp)
        publish(old, batch)
    last = batches[-1]
    assert verify(old.settings, [last]).partitions[0].notes == []
    result = stage_batch(new, last)
    assert (result.unchanged, result.quarantined.counters["reasons"]) == (True, {"before_start": 1})
    found = verify(new.settings, [last])
    assert found.agrees
    [note] = found.partitions[0].notes
    assert note.endswith(f"to apply the current one, run `rollups backfill {last} {last} --force`")
    assert stage_batch(new, last, force=True).quarantined.counters["reasons"] == {"too_late": 1}
    assert verify(new.settings, [last]).partitions[0].notes == []


def test_a_batch_without_a_folder_of_its_own_is_staged_and_waited_for_like_any_other(tmp_path: Path) -> None:
    """Its points are all late: they lie in the next folder."""
    from rollup_assets.status import status

    pipeline = arriving(tmp_path)
    first, second, third, _ = batches_of(pipeline, FOUR)
    write_rows(pipeline, second, "a.parquet", [good(at(0, 59.5), 1), good(at(1, 1), 2)])
    assert pipeline.landing_zone.landed() == [second]
    assert pipeline.landing_zone.batches() == [first, second]
    assert [(of.partition, of.state, of.raw_files) for of in status(pipeline.settings)[:3]] == [
        (first.key, "not staged", 1),
        (second.key, "not staged", 1),
        (third.key, "waiting", 0),
    ]
    stage_batch(pipeline, second)
    found = find_inputs(pipeline, first)
    assert isinstance(found, Waiting)
    assert found.waiting_for == (f"repartitioned_datapoints {first}",)
    with pytest.raises(Exception, match=f"{PARTIAL_POINTS} {first}"):
        roll_up(pipeline, second)
    assert stage_batch(pipeline, first).repartitioned.counters["rows_accepted"] == 1
    rolled = roll_up(pipeline, second)
    assert isinstance(rolled, RolledUp)
    assert staged.rollups(pipeline, second, rolled.manifest)[7, MINUTE, at(1, 2) - MINUTE].delta == 1


# ------------------------------------------------------------------------------------------------------------------- the whole way


def publish_all(pipeline: Pipeline, hours: int) -> list[Batch]:
    batches = [pipeline.calendar.containing(at(hour)) for hour in range(hours)]
    for batch in batches:
        stage_batch(pipeline, batch)
    for batch in batches:
        assert isinstance(roll_up(pipeline, batch), RolledUp)
        publish(pipeline, batch)
    return batches


def delivered(pipeline: Pipeline) -> Folders:
    """Points of a few series that arrive in time, one or two hours late, ahead of their time, too late, broken; a file twice."""
    folders: Folders = {}
    for hour in range(4):
        batch = pipeline.calendar.containing(at(hour))
        folders[batch.start] = {}
        for shift in (0, -1, -2, -3, 1):
            rows = [
                RawRow(series, 1, f"m{series}", at(hour + shift, 7 * series + 11 * shift % 60 + 0.25), 100 * hour + series, at(hour, 59))
                for series in range(5)
            ]
            rows.append(RawRow(None, 1, "broken", at(hour), 1))
            path = write_rows(pipeline, batch, f"{shift}.parquet", rows, Shape(row_group=4, time=pa.timestamp("us")))
            folders[batch.start][path] = rows
    return folders


@pytest.mark.parametrize("future", [None, "30m"])
def test_published_is_what_raw_files_say_in_an_arrival_time_layout(future: str | None, tmp_path: Path) -> None:
    """The table equals the naive twin and DuckDB's recomputation, which count what is elsewhere and quarantined as the steps do."""
    pipeline = arriving(tmp_path, 2, raw_future=future, quarantine_files=1)
    folders = delivered(pipeline)
    write_bytes(pipeline, pipeline.calendar.containing(at(1)), "damaged.parquet", half_damaged())
    folders[at(1)]["damaged"] = [good(at(0) + second * 100) for second in range(500)]
    batches = publish_all(pipeline, 8)
    model = model_of(pipeline)
    points = [point for batch in batches for point in model.accept(folders, batch.start).points]
    expected = naive.rollups_of(points, pipeline.settings.resolutions, pipeline.settings.lookback)
    found = staged.merged(
        staged.rollups(pipeline, batch, manifest) for batch in batches if (manifest := pipeline.stage.read("rollups", batch))
    )
    staged.assert_same(found, expected)
    checked = verify(pipeline.settings)
    assert checked.differences == []
    assert [partition.problems for partition in checked.partitions] == [[]] * len(checked.partitions)
    assert checked.rows == len(expected) > 100
    reasons = Counter(row.reason for batch in batches for row in model.accept(folders, batch.start).quarantined)
    assert reasons.keys() == {"null_id", "before_start", "too_late", "in_future"}


def test_generated_late_rows_find_their_batch(tmp_path: Path) -> None:
    """The same data by event time and by arrival: the same points in every batch, whose late ones lie in the next folder."""
    from rollup_assets.generator.dirt import Dirt
    from rollup_assets.generator.landing import GeneratorOptions, generate

    options = GeneratorOptions(series=40, interval=30_000, files=2, dirt=Dirt(late=0.1, nulls=0.0, outside=0.0))
    digests = []
    for lateness in (0, 1):
        pipeline = arriving(tmp_path / str(lateness), lateness)
        batches = batches_of(pipeline, FOUR)
        generated = generate(pipeline.settings, batches, options)
        found = [stage_batch(pipeline, batch).repartitioned for batch in batches]
        assert sum(manifest.counters["rows_read"] - manifest.counters.get("elsewhere", 0) for manifest in found) == generated.rows
        assert generated.files == len({file.path for manifest in found for file in manifest.inputs}) == 12
        digests.append([file.digest for manifest in found for file in manifest.files])
        late = [Path(file.path).parts[-2:] for file in found[1].inputs if "late" in file.path]
        assert late == (
            [("hour=01", "late-2026-01-01-0000.parquet"), ("hour=02", "late-2026-01-01-0100.parquet")]
            if lateness
            else [("hour=01", "part-0002-late.parquet")]
        )
    assert digests[0] == digests[1]


def test_points_that_went_away_leave_an_empty_range(tmp_path: Path) -> None:
    """A folder that is emptied, or left with rows of other batches: the batch is staged without a point and publishes no row."""
    pipeline = arriving(tmp_path, 1)
    first, second, *_ = batches_of(pipeline, FOUR)
    write_rows(pipeline, first, "a.parquet", [good(at(0, 1)), good(at(0, 30))])
    path = write_rows(pipeline, second, "b.parquet", [good(at(0, 10)), good(at(1, 10))])
    assert publish_all(pipeline, 4)
    assert verify(pipeline.settings).rows > 6
    for file in Path(pipeline.landing_zone.folder(first).path).iterdir():
        file.unlink()
    write_rows(pipeline, second, "b.parquet", [good(at(1, 10))])
    publish_all(pipeline, 4)
    manifest = pipeline.stage.read("repartitioned_datapoints", first)
    assert manifest is not None
    assert (manifest.counters["rows_accepted"], manifest.counters["elsewhere"], manifest.files) == (0, 1, ())
    assert rows_in_table(pipeline, first) == 0
    found = verify(pipeline.settings)
    assert found.agrees
    assert found.rows == 3
    (Path(pipeline.landing_zone.root.path) / path).unlink()
    publish_all(pipeline, 4)
    assert [rows_in_table(pipeline, batch) for batch in batches_of(pipeline, FOUR)] == [0, 0, 0, 0]


def rows_in_table(pipeline: Pipeline, batch: Batch) -> int:
    from rollup_assets.iceberg.catalog import open_catalog
    from rollup_assets.iceberg.reading import range_counts
    from rollup_assets.iceberg.table import load_table

    with open_catalog(pipeline.settings) as catalog:
        table = load_table(catalog, pipeline.settings)
        assert table is not None
        return sum(range_counts(table, batch).rows.values())
