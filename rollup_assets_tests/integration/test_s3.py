"""The pipeline on a real S3 server: the same bytes as on disks, whatever lies where, and a sentence for whatever is wrong with it."""

from __future__ import annotations

import dataclasses
import datetime as dt
import http.server
import json
import logging
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from deploy.servers.ports import free_ports
from deploy.servers.seaweedfs import S3Server
from rollup_assets import arrivals
from rollup_assets.batches import Batch
from rollup_assets.cli import app
from rollup_assets.errors import StaleInputError, StorageError
from rollup_assets.generator.landing import GeneratorOptions, generate
from rollup_assets.pipeline import Pipeline
from rollup_assets.plan import plan
from rollup_assets.query import query
from rollup_assets.scope import scope_of
from rollup_assets.settings import load_settings
from rollup_assets.status import status
from rollup_assets.steps.publish import publish
from rollup_assets.steps.read_back import read_back
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.results import Published, RolledUp, StagedBatch
from rollup_assets.steps.rollup import roll_up
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import ROLLUPS
from rollup_assets.storage.raw_files import RawFile
from rollup_assets.verification import verify
from rollup_assets_tests.conftest import MakePipeline
from rollup_assets_tests.s3 import S3Folder, requests, secrets_of

# Only while the point is what is wrong with the storage: everything else about a batch is small.
OPTIONS = GeneratorOptions(series=40, interval=60_000, files=3)


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """Two batches, staged and published on disks, and what came of them."""

    pipeline: Pipeline
    batches: list[Batch]
    digests: list[tuple[str, ...]]
    rows: list[dict[str, Any]]


def run(pipeline: Pipeline, batches: list[Batch]) -> list[tuple[str, ...]]:
    """Stage, roll up and publish; digests of everything made."""
    digests = []
    for batch in batches:
        staged = stage_batch(pipeline, batch)
        rolled_up = roll_up(pipeline, batch)
        assert isinstance(rolled_up, RolledUp)
        assert isinstance(publish(pipeline, batch), Published)
        manifests = (staged.repartitioned, staged.partial_points, staged.quarantined, rolled_up.manifest)
        digests.append(tuple(file.digest for manifest in manifests for file in manifest.files) + tuple(each.digest for each in manifests))
    return digests


def rows(pipeline: Pipeline) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = query(pipeline.settings, "SELECT * FROM rollups ORDER BY ALL").to_pylist()
    return found


@pytest.fixture(scope="module")
def on_disk(make_pipeline: MakePipeline, tmp_path_factory: pytest.TempPathFactory) -> OnDisk:
    pipeline = make_pipeline(tmp_path_factory.mktemp("disk"))
    batches = [pipeline.calendar.batch(f"2026-01-01-{hour:02}:00") for hour in (9, 10)]
    generate(pipeline.settings, batches, OPTIONS)
    return OnDisk(pipeline, batches, run(pipeline, batches), rows(pipeline))


@pytest.fixture
def landed(on_disk: OnDisk, s3_folder: S3Folder) -> S3Folder:
    """The same raw files on S3."""
    s3_folder.upload(Path(on_disk.pipeline.settings.raw))
    return s3_folder


# ----------------------------------------------------------------------------------------------------------------- same result


@pytest.mark.parametrize(
    "on_s3", [("raw", "stage", "warehouse"), ("raw",), ("stage",), ("warehouse",)], ids=["everything", "raw", "stage", "warehouse"]
)
def test_the_same_files_and_rows_as_on_disks_whatever_lies_where(
    make_pipeline: MakePipeline, tmp_path: Path, on_disk: OnDisk, landed: S3Folder, on_s3: tuple[str, ...]
) -> None:
    """Byte for byte, by the digests of the files. The pipeline's identity may not write raw, and does not try."""
    locations = {"raw": on_disk.pipeline.settings.raw} | {name: landed.locations[name] for name in on_s3}
    pipeline = make_pipeline(tmp_path, **locations)
    before = landed.objects("raw")
    with requests(landed.options) as seen:
        assert run(pipeline, on_disk.batches) == on_disk.digests
    assert rows(pipeline) == on_disk.rows
    assert {method for method, path in seen if path.startswith("/raw")} <= {"GET", "HEAD"}
    assert landed.objects("raw") == before
    kept = {key.partition("/")[0] for key in landed.objects("lake")}
    assert kept == set(on_s3) - {"raw"}
    for batch in on_disk.batches:
        assert stage_batch(pipeline, batch).unchanged
        assert read_back(pipeline, batch).total_rows == len(on_disk.rows)
        manifest = pipeline.stage.read(ROLLUPS, batch)
        assert manifest is not None
        assert all(file.path.startswith(pipeline.settings.warehouse) for file in manifest.files)
    assert landed.unfinished_uploads() == []


def test_a_file_that_arrives_late_on_s3_is_planned_and_asked_for(
    make_pipeline: MakePipeline, tmp_path: Path, on_disk: OnDisk, landed: S3Folder
) -> None:
    """By listings and ETags alone; an object that is written again as it was is no other one."""
    pipeline = make_pipeline(tmp_path, **landed.locations)
    first, second = on_disk.batches
    run(pipeline, on_disk.batches)
    chosen = scope_of(pipeline.calendar, first.key, second.key, pipeline.settings.reach, first.start_time + dt.timedelta(hours=2))
    assert plan(pipeline, chosen).nothing_to_do

    def look(memory: arrivals.Memory, minutes: int) -> arrivals.Found:
        now = first.start_time + dt.timedelta(hours=2, minutes=minutes)
        return arrivals.look(pipeline, memory, now, is_being_made=lambda _: False)

    landed.upload(Path(on_disk.pipeline.settings.raw))
    assert look(arrivals.Memory(), 0).memory.arrivals == {}
    folder = tmp_path / "late" / first.start_time.strftime(pipeline.settings.raw_layout)
    folder.mkdir(parents=True)
    earlier = next(Path(on_disk.pipeline.landing_zone.folder(first).path).glob("*.parquet"))
    (folder / "late.parquet").write_bytes(earlier.read_bytes())
    landed.upload(tmp_path / "late")
    found = look(arrivals.Memory(), 0)
    assert found.unsettled == [first.key]
    assert [request.batch for request in look(found.memory, 2).to_stage] == [first]
    planned = plan(pipeline, chosen)
    assert [partition.stage.verdict for partition in planned.partitions] == ["yes", "no"]
    assert planned.partitions[0].stage.reasons[0].startswith("new raw file ")
    assert planned.rows_to_stage > 0


def test_verification_status_and_sql_work_on_s3(make_pipeline: MakePipeline, tmp_path: Path, on_disk: OnDisk, landed: S3Folder) -> None:
    pipeline = make_pipeline(tmp_path, **landed.locations)
    run(pipeline, on_disk.batches)
    found = verify(pipeline.settings, on_disk.batches)
    assert found.agrees
    assert sum(sum(partition.rows.values()) for partition in found.partitions) == len(on_disk.rows)
    states = {partition.partition: partition.state for partition in status(pipeline.settings)}
    assert [states[batch.key] for batch in on_disk.batches] == ["published", "published"]


def test_the_commands_work_on_s3(s3_folder: S3Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generating is the one that writes raw: as somebody who may."""
    for name, value in {"home": str(tmp_path), "shards": "4", **s3_folder.locations}.items():
        monkeypatch.setenv(f"ROLLUP_{name.upper()}", value)

    def answer(*arguments: str) -> Any:
        result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    with monkeypatch.context() as as_admin:
        for name, value in s3_folder.server.environment_of(s3_folder.server.admin).items():
            as_admin.setenv(name, value)
        made = answer("generate", "--hours", "1", "--series", "40", "--interval", "1m")
    assert made["files"] == len(s3_folder.objects("raw"))
    answer("backfill", "2026-01-01-00:00", "2026-01-01-00:00")
    assert answer("verify")["agrees"]
    assert answer("status", "2026-01-01-00:00")[0]["state"] == "published"
    (counted,) = answer("sql", "select count(*) as n from rollups")
    assert counted["n"] > 40


def test_a_forced_rerun_keeps_files_and_leaves_none_behind(
    make_pipeline: MakePipeline, tmp_path: Path, on_disk: OnDisk, landed: S3Folder
) -> None:
    pipeline = make_pipeline(tmp_path, **landed.locations)
    batch = on_disk.batches[0]
    stage_batch(pipeline, batch)
    before = set(landed.objects())
    assert stage_batch(pipeline, batch, force=True).unchanged is False
    assert set(landed.objects()) == before


# ------------------------------------------------------------------------------------------------------------ what can be wrong


@dataclasses.dataclass(frozen=True)
class Fault:
    """Something wrong: how it comes about, and what the sentence has to name."""

    settings: Callable[[S3Folder], dict[str, Any]] = lambda _: {}
    environment: Callable[[S3Folder], dict[str, str | None]] = lambda _: {}
    named: tuple[str, ...] = ()


def _as_reader(folder: S3Folder) -> dict[str, str | None]:
    return dict(folder.server.environment_of(folder.server.reader))


FAULTS = {
    "wrong secret": Fault(
        environment=lambda _: {"AWS_SECRET_ACCESS_KEY": "canary-wrong-secret"},
        named=("s3://lake/", "SignatureDoesNotMatch", "AWS_SECRET_ACCESS_KEY", "ROLLUP_S3_ENDPOINT"),
    ),
    "unknown key": Fault(environment=lambda _: {"AWS_ACCESS_KEY_ID": "nobody"}, named=("InvalidAccessKeyId", "AWS_ACCESS_KEY_ID")),
    "no credentials": Fault(
        environment=lambda _: {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "HOME": "/nonexistent"},
        named=("no credentials", "AWS_ACCESS_KEY_ID", "AWS_PROFILE", "role"),
    ),
    "unknown profile": Fault(environment=lambda _: {"AWS_PROFILE": "nobodys"}, named=("nobodys", "AWS_PROFILE")),
    "no such bucket": Fault(
        settings=lambda _: {"raw": "s3://no-such-bucket/raw"},
        environment=lambda folder: dict(folder.server.environment_of(folder.server.admin)),
        named=("s3://no-such-bucket/raw", "has no bucket no-such-bucket", "ROLLUP_RAW"),
    ),
    "raw may not be read": Fault(
        settings=lambda _: {"raw": "s3://hidden-bucket/raw"},
        named=("s3://hidden-bucket/raw", "AccessDenied", "ListObjectsV2", "ROLLUP_RAW", "docs/production.md"),
    ),
    "stage may not be written": Fault(environment=_as_reader, named=("s3://lake/", "AccessDenied", "PutObject", "docs/production.md")),
    "nobody listens": Fault(
        settings=lambda _: {"s3_endpoint": f"http://127.0.0.1:{free_ports(1)[0]}"},
        named=("cannot be reached", "ROLLUP_S3_ENDPOINT=http://127"),
    ),
    "unknown host": Fault(
        settings=lambda _: {"s3_endpoint": "http://s3.invalid:8333"}, named=("cannot be reached", "ROLLUP_S3_ENDPOINT=http://s3.invalid")
    ),
}


def provoke(pipeline: Pipeline, batch: Batch) -> tuple[StorageError, float]:
    started = time.monotonic()
    with pytest.raises(StorageError) as caught:
        stage_batch(pipeline, batch)
    return caught.value, time.monotonic() - started


@pytest.mark.scenario("S5")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_what_is_wrong_is_said_in_one_sentence_and_nothing_is_written(
    make_pipeline: MakePipeline,
    tmp_path: Path,
    on_disk: OnDisk,
    landed: S3Folder,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
) -> None:
    """It names the place, the setting and the remedy, and no secret; a batch is not quarantined for it."""
    pipeline = make_pipeline(tmp_path, **{**landed.locations, **fault.settings(landed)})
    changes = fault.environment(landed)
    environment = landed.server.environment | {name: value for name, value in changes.items() if value}
    with monkeypatch.context() as faulty, caplog.at_level(logging.DEBUG):
        for name, value in changes.items():
            faulty.delenv(name, raising=False)
            if value is not None:
                faulty.setenv(name, value)
        # A proxy would answer in the place of hosts that are not there.
        faulty.setenv("NO_PROXY", "*")
        error, seconds = provoke(pipeline, on_disk.batches[0])
    assert seconds < 30
    for text in fault.named:
        assert text in str(error)
    assert len(str(error).splitlines()) == 1
    assert landed.objects() == {}
    assert not list(tmp_path.rglob("*.parquet"))
    told = caplog.text + "".join(traceback.format_exception(error))
    assert not [secret for secret in secrets_of(environment) if secret in told]


class _NotS3(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(404)
        self.send_header("Content-Length", "9")
        self.end_headers()
        self.wfile.write(b"Not found")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def not_s3() -> Iterator[str]:
    """A web server that knows nothing of S3: to some libraries its 404 is an empty bucket."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _NotS3) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_server_that_is_not_s3_is_not_taken_for_an_empty_landing_zone(
    make_pipeline: MakePipeline, tmp_path: Path, on_disk: OnDisk, s3_folder: S3Folder, not_s3: str
) -> None:
    pipeline = make_pipeline(tmp_path, **s3_folder.locations, s3_endpoint=not_s3)
    error, _ = provoke(pipeline, on_disk.batches[0])
    assert "does not answer ListObjectsV2 as an S3 server does" in str(error)
    assert f"ROLLUP_S3_ENDPOINT={not_s3}" in str(error)


@pytest.mark.scenario("S1")
def test_a_server_that_takes_connections_and_never_answers_is_given_up(
    make_pipeline: MakePipeline, tmp_path: Path, on_disk: OnDisk, s3_folder: S3Folder
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=16) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        pipeline = make_pipeline(tmp_path, **s3_folder.locations, s3_endpoint=endpoint)
        error, seconds = provoke(pipeline, on_disk.batches[0])
    assert seconds < 30
    assert "cannot be reached" in str(error)
    assert f"ROLLUP_S3_ENDPOINT={endpoint}" in str(error)


@pytest.fixture
def over_tls(on_disk: OnDisk, s3_server_tls: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> S3Folder:
    for name, value in s3_server_tls.environment.items():
        monkeypatch.setenv(name, value)
    folder = S3Folder(s3_server_tls, tmp_path.name)
    folder.upload(Path(on_disk.pipeline.settings.raw))
    return folder


def test_with_its_authority_a_server_with_tls_works_for_every_library(
    make_pipeline: MakePipeline, tmp_path: Path, on_disk: OnDisk, over_tls: S3Folder
) -> None:
    """boto3 lists and writes, pyarrow reads, PyIceberg commits, DuckDB reads through Arrow: one CA bundle."""
    pipeline = make_pipeline(tmp_path, **over_tls.locations)
    assert run(pipeline, on_disk.batches) == on_disk.digests
    assert rows(pipeline) == on_disk.rows


@pytest.mark.parametrize("bundle", ["the system's", "another authority's"])
def test_a_server_whose_authority_is_not_known_is_refused(
    make_pipeline: MakePipeline,
    tmp_path: Path,
    on_disk: OnDisk,
    over_tls: S3Folder,
    monkeypatch: pytest.MonkeyPatch,
    bundle: str,
) -> None:
    from deploy.servers.certificates import certificate

    monkeypatch.delenv("ROLLUP_S3_CA_BUNDLE")
    overrides = {} if bundle == "the system's" else {"s3_ca_bundle": str(certificate(tmp_path / "other").authority)}
    pipeline = make_pipeline(tmp_path / "home", **over_tls.locations, **overrides)
    error, seconds = provoke(pipeline, on_disk.batches[0])
    assert seconds < 30
    assert "certificate" in str(error)
    assert "set ROLLUP_S3_CA_BUNDLE to a PEM file" in str(error)
    with pytest.raises(OSError, match="SSL"):
        pipeline.settings.s3.filesystem().get_file_info("raw/x")
    assert over_tls.objects() == {}


def test_a_raw_file_that_cannot_be_read_stops_the_batch_and_is_not_quarantined(
    make_pipeline: MakePipeline, tmp_path: Path, on_disk: OnDisk, landed: S3Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what is wrong with its content quarantines a file: here it is gone after it was listed, as it could be denied."""
    pipeline = make_pipeline(tmp_path, **landed.locations, quarantine_files=5)
    batch = on_disk.batches[0]
    files = type(pipeline.landing_zone).folder_files

    def files_then_gone(zone: Any, of: Batch) -> Any:
        found = files(zone, of)
        landed.server.client().delete_object(Bucket="raw", Key=zone.place(found[0]).path.removeprefix("raw/"))
        return found

    monkeypatch.setattr(type(pipeline.landing_zone), "folder_files", files_then_gone)
    with pytest.raises(StaleInputError, match="was deleted after it had been listed; run the same command again"):
        stage_batch(pipeline, batch)
    assert landed.objects() == {}
    monkeypatch.undo()


@pytest.mark.scenario("L3")
def test_a_raw_file_that_is_replaced_while_it_is_read_fails_the_batch_without_effect(
    make_pipeline: MakePipeline, tmp_path: Path, on_disk: OnDisk, landed: S3Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By other content of the same size, after its first row group: the listing after reading has another ETag."""
    pipeline = make_pipeline(tmp_path, **landed.locations, quarantine_files=5)
    batch = on_disk.batches[0]
    (file, *_) = pipeline.landing_zone.files(batch)
    place = pipeline.landing_zone.place(file)
    content = place.read_bytes()
    assert content is not None
    tables = RawFile._tables

    def interrupted(raw: RawFile, *arguments: Any) -> Any:
        for table in tables(raw, *arguments):
            yield table
            if raw._place == place:
                landed.server.client().put_object(Bucket="raw", Key=place.path.removeprefix("raw/"), Body=content[::-1])

    monkeypatch.setattr(RawFile, "_tables", interrupted)
    with pytest.raises(StaleInputError, match=rf"{place.name} was replaced while batch {batch} was being staged"):
        stage_batch(pipeline, batch)
    assert landed.objects() == {}


def test_a_raw_file_on_a_disk_that_may_not_be_read_is_not_quarantined_either(
    make_pipeline: MakePipeline, tmp_path: Path, on_disk: OnDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Place) -> None:
        raise PermissionError(13, "Permission denied", self.path)

    pipeline = make_pipeline(tmp_path, raw=on_disk.pipeline.settings.raw, quarantine_files=5)
    monkeypatch.setattr(Place, "open_input", refused)
    error, _ = provoke(pipeline, on_disk.batches[0])
    assert "cannot be read (Permission denied); let this user read all of ROLLUP_RAW" in str(error)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_damaged_raw_file_on_s3_is_quarantined(make_pipeline: MakePipeline, tmp_path: Path, on_disk: OnDisk, landed: S3Folder) -> None:
    pipeline = make_pipeline(tmp_path, **landed.locations, quarantine_files=2, quarantine_limit=1.0)
    batch = on_disk.batches[0]
    bucket, _, prefix = pipeline.landing_zone.folder(batch).path.partition("/")
    (file, *_) = pipeline.landing_zone.files(batch)
    content = pipeline.landing_zone.place(file).read_bytes()
    assert content is not None
    for name, bad in (("truncated", content[: len(content) // 2]), ("empty", b"")):
        landed.server.client().put_object(Bucket=bucket, Key=f"{prefix}/{name}.parquet", Body=bad)
    staged: StagedBatch = stage_batch(pipeline, batch)
    assert staged.repartitioned.counters["bad_files"] == 2


def test_the_settings_alone_say_how_to_reach_the_store(landed: S3Folder, tmp_path: Path) -> None:
    """Nothing about the store is in the environment but the ROLLUP_S3_* variables and the credentials."""
    settings = load_settings(home=str(tmp_path), **landed.locations)
    assert settings.s3 == landed.options
