"""Names that somebody might take for more than names go through the whole pipeline, and arrive everywhere as what they are."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollup_assets.batches import BatchCalendar
from rollup_assets.errors import LandingZoneError, UnknownPartitionError
from rollup_assets.pipeline import Pipeline
from rollup_assets.query import query
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.rollup import roll_up
from rollup_assets.storage.manifests import QUARANTINED
from rollup_assets.verification import verify
from rollup_assets_tests import hostile, staged
from rollup_assets_tests.conftest import MakePipeline
from rollup_assets_tests.landing import write_bytes, write_rows
from rollup_assets_tests.naive import RawRow
from rollup_assets_tests.s3 import S3Folder


def is_a_visible_name(text: str) -> bool:
    return text[:1] not in ("", "_", ".") and len(text.encode()) <= 200


FILE_NAMES = hostile.texts(without="/\0", most=80).filter(is_a_visible_name)
EXTREMES = st.sampled_from([-(2**63), -1, 0, 7, 2**63 - 1])


def outside(home: Path) -> set[str]:
    """Everything beside the pipeline's folder."""
    return {str(path) for path in home.parent.rglob("*") if not path.is_relative_to(home)}


def run(pipeline: Pipeline) -> None:
    batch = pipeline.calendar.first
    stage_batch(pipeline, batch)
    roll_up(pipeline, batch)
    publish(pipeline, batch)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(FILE_NAMES, min_size=3, max_size=5, unique=True),
    metrics=st.lists(hostile.texts(most=1_000), min_size=4, max_size=4),
    org=EXTREMES,
)
def test_names_of_files_and_metrics_are_names_and_no_more(
    make_pipeline: MakePipeline, tmp_path: Path, names: list[str], metrics: list[str], org: int
) -> None:
    """Files with such names are read, quarantined, verified; metrics are stored, queried and compared letter by letter."""
    with tempfile.TemporaryDirectory(dir=tmp_path) as folder:
        home = Path(folder) / "home"
        pipeline = make_pipeline(home, quarantine_files=1, quarantine_limit=1.0)
        batch = pipeline.calendar.first
        bad, dirty, *good = names
        paths = [
            write_bytes(pipeline, batch, bad, b"no Parquet"),
            write_rows(pipeline, batch, dirty, [RawRow(None, org, metrics[0], batch.start, 1)]),
        ]
        rows = [RawRow(series, org, metric, batch.start + 1 + series, series) for series, metric in enumerate(metrics)]
        for number, name in enumerate(good):
            write_rows(pipeline, batch, name, rows[number :: len(good)])
        run(pipeline)
        assert outside(home) == set()
        found = verify(pipeline.settings, [batch])
        assert found.agrees, found
        assert sorted(row["file"] for row in staged.quarantined(pipeline, batch, pipeline.stage.read(QUARANTINED, batch))) == sorted(paths)
        answer = query(pipeline.settings, "select distinct id, metric, org_id from rollups order by id").to_pylist()
        assert [(row["id"], row["metric"], row["org_id"]) for row in answer] == [(row.id, row.metric, org) for row in rows]


KEYS = ["a b", "%2e%2e%2fx", "a\nb", "'; DROP TABLE x; --", "äöü", "-rf", "a?b#c&d=e", "a\\b", "[x]*", "a:b", "<b>", "\x1b[2J", "a+b", "😀"]


def test_keys_of_an_object_store_are_read_as_they_are(make_pipeline: MakePipeline, tmp_path: Path, s3_folder: S3Folder) -> None:
    """boto3 lists them, pyarrow opens them, DuckDB gets a copy; none of them takes one for another."""
    pipeline = make_pipeline(tmp_path / "home", **s3_folder.locations)
    batch = pipeline.calendar.first
    local = make_pipeline(tmp_path / "local")
    for series, key in enumerate(KEYS):
        write_rows(local, batch, f"{key}.parquet", [RawRow(series, 1, key, batch.start + 1, series)])
    s3_folder.upload(Path(local.landing_zone.root.path))
    run(pipeline)
    assert len(pipeline.landing_zone.files(batch)) == len(KEYS)
    found = verify(pipeline.settings, [batch])
    assert found.agrees, found
    answer = query(pipeline.settings, "select distinct id, metric from rollups order by id").to_pylist()
    assert [row["metric"] for row in answer] == KEYS


@given(hostile.texts())
def test_a_partition_key_is_a_time_or_refused(key: str) -> None:
    """Folders are named after keys; no other text becomes one."""
    calendar = BatchCalendar(0, 3_600_000)
    with pytest.raises(UnknownPartitionError) as caught:
        calendar.batch(key)
    assert str(caught.value).isprintable()
    assert calendar.of_folder(key) is None


def test_a_partition_key_from_the_ui_is_a_time_or_refused(tmp_path: Path) -> None:
    """A run's tags are whatever its launcher writes into them, the UI's GraphQL included."""
    import dagster as dg

    from rollup_assets.definitions import build_definitions
    from rollup_assets.settings import load_settings

    job = build_definitions(load_settings(home=str(tmp_path / "home"))).resolve_job_def("batches")
    with dg.DagsterInstance.ephemeral() as instance:
        for key in ("../../../etc", "2026-01-01-00:00/../../x", "'; drop table x; --"):
            try:
                success = job.execute_in_process(instance=instance, tags={"dagster/partition": key}, raise_on_error=False).success
            except (ValueError, dg.DagsterError):
                success = False
            assert not success
    assert not list(tmp_path.rglob("*etc*"))
    assert outside(tmp_path / "home") == set()
    assert not (tmp_path / "home/stage").exists()


def test_names_that_others_take_for_another_path_are_not_read(
    make_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On disks there are none; object stores have keys of any text."""
    from rollup_assets.storage.filesystems import FoundFile, Place

    pipeline = make_pipeline(tmp_path)
    batch = pipeline.calendar.first
    folder = pipeline.landing_zone.folder(batch)

    def listed(*keys: str) -> list[str]:
        found = [FoundFile(f"{folder.path}/{key}", 1, "etag:1", 0) for key in keys]
        monkeypatch.setattr(Place, "files", lambda place, **_: found if place == folder else [])
        return [file.path.rpartition("/")[2] for file in pipeline.landing_zone.files(batch)]

    assert listed("../lake/x.parquet", "a/../../x.parquet", "./x.parquet", "%2e%2e/y.parquet", "good.parquet") == [
        "y.parquet",
        "good.parquet",
    ]
    with pytest.raises(LandingZoneError, match=r"a//x\.parquet: a part of its name is empty; rename or remove it"):
        listed("a//x.parquet")


def test_a_file_whose_name_is_no_text_is_told_of(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    """Linux's file names are bytes."""
    pipeline = make_pipeline(tmp_path)
    batch = pipeline.calendar.first
    write_rows(pipeline, batch, "good.parquet", [RawRow(1, 1, "m", batch.start, 1)])
    Path(os.fsdecode(os.fsencode(pipeline.landing_zone.folder(batch).path) + b"/\xff\xfe.parquet")).touch()
    with pytest.raises(LandingZoneError, match=r"\\xff\\xfe\.parquet: its name is not UTF-8; rename or remove it"):
        stage_batch(pipeline, batch)


def test_commands_show_such_names_as_text(make_pipeline: MakePipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a terminal would obey is shown, never sent; programs get JSON."""
    from typer.testing import CliRunner

    from rollup_assets.cli import app

    pipeline = make_pipeline(tmp_path, quarantine_limit=1.0)
    batch = pipeline.calendar.first
    metrics = [text for text in hostile.TEXTS if text and len(text) < 100]
    write_rows(pipeline, batch, "\x1b[2J[bold]a\nb.parquet", [RawRow(n, 1, text, batch.start + 1, n) for n, text in enumerate(metrics)])
    write_bytes(pipeline, batch, "\x1b[31m[/]\n2026-01-01 ERROR forged.parquet", b"")
    for name, value in {"home": tmp_path, "quarantine_limit": 1.0, "shards": 4}.items():
        monkeypatch.setenv(f"ROLLUP_{name.upper()}", str(value))
    refused = CliRunner().invoke(app, ["backfill", batch.key, batch.key])
    assert refused.exit_code == 1
    shown = refused.output
    assert "\\x1b[31m[/]\\n2026-01-01 ERROR forged.parquet: unreadable_file" in shown
    monkeypatch.setenv("ROLLUP_QUARANTINE_FILES", "1")
    run(make_pipeline(tmp_path, quarantine_limit=1.0, quarantine_files=1))
    for command in (["status"], ["verify"], ["sql", "select distinct id, metric from rollups order by id"]):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        shown += done.output
    assert "\\x1b[2J" in shown
    assert "[bold red]x[/]" in shown
    assert not {each for each in shown if not each.isprintable()} - {"\n"}
    as_json = CliRunner().invoke(app, ["sql", "--json", "select distinct id, metric from rollups order by id"])
    assert [row["metric"] for row in json.loads(as_json.output)] == metrics
    assert as_json.output.isascii()
