"""Verification and the product agree on generated data with everything in it that can go wrong; only both being right explains that."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollup_assets.errors import QuarantineError
from rollup_assets.generator.dirt import Dirt
from rollup_assets.generator.landing import GeneratorOptions, generate
from rollup_assets.pipeline import Pipeline
from rollup_assets.scope import following
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.results import RolledUp
from rollup_assets.steps.rollup import roll_up
from rollup_assets.verification import verify
from rollup_assets_tests.conftest import MakePipeline
from rollup_assets_tests.landing import write_bytes, write_rows
from rollup_assets_tests.naive import RawRow

FILTHY = Dirt(duplicates=0.05, late=0.1, out_of_order=0.3, nulls=0.02, non_finite=0.01, outside=0.02)


def published(pipeline: Pipeline, options: GeneratorOptions, hours: int) -> int:
    """Generate, stage, roll up and publish; returns how many points were accepted."""
    calendar = pipeline.calendar
    batches = [batch for ahead in range(hours + 2) if (batch := calendar.shifted(calendar.first, ahead))]
    generate(pipeline.settings, batches[:hours], options)
    points = sum(stage_batch(pipeline, batch).repartitioned.counters["rows_accepted"] for batch in batches)
    for batch in batches:
        assert isinstance(roll_up(pipeline, batch), RolledUp)
        publish(pipeline, batch)
    return points


def test_the_copy_of_a_file_that_is_too_large_is_not_opened_either(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(tmp_path, raw_copies="report", raw_file_rows=50, quarantine_files=2)
    batch = pipeline.calendar.first
    write_rows(pipeline, batch, "good.parquet", [RawRow(7, 1, "m", batch.start + 60_000, 5)])
    for name in ("large.parquet", "larger.parquet"):
        write_rows(pipeline, batch, name, [RawRow(series, 1, "m", batch.start + 1, 5) for series in range(60)])
    stage_batch(pipeline, batch)
    roll_up(pipeline, batch)
    publish(pipeline, batch)
    found = verify(pipeline.settings)
    assert [partition.problems for partition in found.partitions] == [[]]
    assert found.agrees


def test_the_copy_in_the_folder_before_is_not_opened_either(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """That folder is read last, for senders whose clocks are ahead: its file is the copy, although its path comes first."""
    pipeline = make_pipeline(tmp_path, raw_copies="report", raw_file_rows=50, quarantine_files=2, raw_lateness=1, raw_future="5m")
    first = pipeline.calendar.first
    batches = [first, *following(pipeline.calendar, first, 2)]
    for batch in batches:
        write_rows(pipeline, batch, "good.parquet", [RawRow(7, 1, "m", batch.start + 60_000, 5)])
    for batch in batches[:2]:
        write_rows(pipeline, batch, "large.parquet", [RawRow(series, 1, "m", first.end + 1, 5) for series in range(60)])
    for batch in batches:
        stage_batch(pipeline, batch)
    for batch in batches:
        roll_up(pipeline, batch)
        publish(pipeline, batch)
    found = verify(pipeline.settings)
    assert [partition.problems for partition in found.partitions] == [[]] * 3
    assert found.agrees


@pytest.mark.parametrize("value_type", ["long", "double"])
def test_generated_data_with_bad_files(tmp_path: Path, make_pipeline: MakePipeline, value_type: str) -> None:
    """Receive times that end before their shard does, series that come and go, one bad file of each kind."""
    pipeline = make_pipeline(tmp_path, value_type=value_type, shards=16, quarantine_limit=0.2, quarantine_files=4)
    points = published(pipeline, GeneratorOptions(series=600, interval=30_000, files=3, dirt=FILTHY, bad_files=8), hours=4)
    found = verify(pipeline.settings)
    assert found.differences == []
    assert [partition.problems for partition in found.partitions] == [[]] * 6
    assert found.agrees
    assert sum(partition.points for partition in found.partitions) == points > 100_000
    assert found.rows > 50_000


@pytest.mark.parametrize(
    "settings",
    [
        {"resolutions": "10m", "lookback": "20m"},
        {"resolutions": "1m,1h", "lookback": "30s"},
        {"batch": "1d", "resolutions": "1h,6h", "raw_layout": "%Y%m%d"},
    ],
    ids=lambda settings: str(settings["resolutions"]),
)
def test_other_settings(tmp_path: Path, make_pipeline: MakePipeline, settings: dict[str, str]) -> None:
    """Also a reach of one batch, steps that exceed the lookback, and batches of a day."""
    pipeline = make_pipeline(tmp_path, quarantine_limit=0.2, **settings)
    interval = pipeline.settings.batch // 60
    published(pipeline, GeneratorOptions(series=150, interval=interval, files=2, dirt=FILTHY, receive_timestamps=False), hours=3)
    found = verify(pipeline.settings)
    assert found.differences == []
    assert found.agrees
    assert found.rows > 500


@pytest.mark.parametrize("received", ["none", "first", "last", "all"])
def test_lags_of_series_that_end_with_their_shard(tmp_path: Path, make_pipeline: MakePipeline, received: str) -> None:
    """The last windows of a shard are closed when no point, and so no receive time, comes after them."""
    pipeline = make_pipeline(tmp_path, shards=1)
    batch = pipeline.calendar.first
    minutes = (0, 1, 2, 7, 8, 30, 31)
    rows = [
        RawRow(series, 1, f"m{series}", time := batch.start + 60_000 * minute + 10_000, minute, time + 7 * minute + 1 if stamped else None)
        for series, stamped in ((1, received in ("first", "all")), (2, received in ("last", "all")))
        for minute in minutes
    ]
    write_rows(pipeline, batch, "a.parquet", rows)
    for each in pipeline.calendar.between(batch, pipeline.calendar.batch("2026-01-01-02:00")):
        stage_batch(pipeline, each)
        roll_up(pipeline, each)
        publish(pipeline, each)
    found = verify(pipeline.settings)
    assert found.differences == []
    assert found.agrees


def test_a_bad_file_that_was_removed_after_it_was_found_is_no_problem(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """The quarantine still tells of it, beside datapoints of the files that are there: stale, and named as such."""
    pipeline = make_pipeline(tmp_path)
    batch = pipeline.calendar.first
    write_rows(pipeline, batch, "good.parquet", [RawRow(7, 1, "m", batch.start + 1_000 * number, number) for number in range(1, 9)])
    stage_batch(pipeline, batch)
    roll_up(pipeline, batch)
    publish(pipeline, batch)
    bad = pipeline.landing_zone.root / write_bytes(pipeline, batch, "bad.parquet", b"")
    with pytest.raises(QuarantineError):
        stage_batch(pipeline, batch)
    Path(bad.path).unlink()
    found = verify(pipeline.settings, [batch])
    assert found.agrees, found
    assert found.partitions[0].notes == [f"raw files changed since they were staged; run `rollups backfill {batch} {batch}`"]
    stage_batch(pipeline, batch)
    assert verify(pipeline.settings, [batch]).partitions[0].notes == []
