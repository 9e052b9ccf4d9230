"""Places on a real S3 server: what works on disks works there, files appear whole or not at all, and requests are few."""

from __future__ import annotations

import gc
import http.server
import logging
import os
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from rollup_assets.batches import BatchCalendar
from rollup_assets.errors import ConcurrentWriteError, StaleInputError, StorageError
from rollup_assets.storage import encodings
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.landing_zone import LandingZone, version_of
from rollup_assets.storage.manifests import REPARTITIONED, Manifest, Stage
from rollup_assets.storage.objects import PART_BYTES, PARTS_IN_FLIGHT, ObjectPlace
from rollup_assets.storage.parquet import ParquetFileWriter
from rollup_assets.storage.raw_files import RawFile
from rollup_assets.storage.s3 import ATTEMPTS, S3Options
from rollup_assets_tests.s3 import S3Folder, requests, secrets_of
from rollup_assets_tests.storage.missing import assert_empty_and_no_error
from rollup_assets_tests.storage.test_manifests import attempt

HOUR = 3_600_000
CALENDAR = BatchCalendar(1_767_225_600_000, HOUR)
BATCH = CALENDAR.batch("2026-01-01-09:00")
LARGE = os.urandom(2 * PART_BYTES + 12_345)


# ------------------------------------------------------------------------------------------------------------- like a disk


def test_bytes_lists_and_deletion(s3_folder: S3Folder) -> None:
    """Names may hold what URLs and globs give a meaning to."""
    root = s3_folder.lake
    names = ["a b%20c+d", "a/\N{GREEK SMALL LETTER ALPHA}=1&x", "a/z", "b", "year=2026/month=01/x"]
    for name in names:
        (root / name).write_bytes(name.encode())
        assert (root / name).read_bytes() == name.encode()
    assert [file.path.removeprefix(f"{root.path}/") for file in root.files()] == sorted(names)
    assert [file.name for file in root.files(recursive=False)] == ["a b%20c+d", "b"]
    assert [file.size for file in (root / "a").files()] == [len(name.encode()) for name in sorted(names[1:3])]
    assert root.folders() == ["a", "year=2026"]
    assert ((root / "b").size(), (root / "a").size()) == (1, None), "a folder is not a file"
    with (root / "a/z").open_input() as stream:
        assert stream.read() == b"a/z"
    (root / "a").delete_folder()
    (root / "b").delete_file()
    assert set(s3_folder.objects()) == {"a b%20c+d", "year=2026/month=01/x"}


def test_what_is_missing_is_empty_and_no_error(s3_folder: S3Folder) -> None:
    assert_empty_and_no_error(s3_folder.lake / "missing")


def test_places_travel_between_processes_without_connections_or_credentials(s3_folder: S3Folder) -> None:
    place = s3_folder.lake / "x"
    place.write_bytes(b"1")
    packed = pickle.dumps(place)
    assert len(packed) < 600
    assert not any(
        secret.encode() in packed for secret in [*secrets_of(s3_folder.server.environment), s3_folder.server.pipeline.access_key]
    )
    assert pickle.loads(packed) == place
    assert hash(pickle.loads(packed)) == hash(place)
    assert place.at("s3://lake/other").s3 == place.s3
    assert place.at("/on/disk").is_local


# ----------------------------------------------------------------------------------------------------- whole or not at all


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "disk":
        return Place.parse(str(tmp_path))
    found: S3Folder = request.getfixturevalue("s3_folder")
    return found.lake


def everything(folder: Place) -> list[str]:
    """Every file there is, hidden ones too, and every upload that was begun and not ended."""
    begun = []
    if not folder.is_local:
        bucket, _, prefix = folder.path.partition("/")
        answer = folder.s3.client().list_multipart_uploads(Bucket=bucket, Prefix=prefix)
        begun = [f"{upload['Key']} (begun)" for upload in answer.get("Uploads", ())]
    return [file.path.removeprefix(f"{folder.path}/") for file in folder.files()] + begun


@pytest.mark.parametrize("content", [b"", b"small", LARGE[:PART_BYTES], LARGE], ids=["empty", "small", "one part", "three parts"])
def test_a_file_appears_with_its_commit(folder: Place, content: bytes) -> None:
    with (folder / "new/file").open_output() as stream:
        for first in range(0, len(content), 1_000_003):
            stream.write(content[first : first + 1_000_003])
        assert not (folder / "new/file").exists()
        assert stream.tell() == len(content)
    assert everything(folder) == ["new/file"]
    assert (folder / "new/file").read_bytes() == content


@pytest.mark.parametrize("content", [b"small", LARGE], ids=["small", "three parts"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(folder: Place, content: bytes) -> None:
    (folder / "file").write_bytes(b"old")

    def fail() -> None:
        with (folder / "file").open_output() as stream:
            stream.write(content)
            raise RuntimeError("the task failed")

    with pytest.raises(RuntimeError, match="the task failed"):
        fail()
    assert everything(folder) == ["file"]
    assert (folder / "file").read_bytes() == b"old"


def test_a_stream_that_is_closed_or_forgotten_before_its_commit_leaves_nothing(folder: Place) -> None:
    closed = (folder / "closed").open_output()
    closed.write(LARGE)
    closed.close()
    with pytest.raises(ValueError, match="closed"):
        closed.commit()
    forgotten = (folder / "forgotten").open_output()
    forgotten.write(LARGE)
    del forgotten
    gc.collect()
    assert everything(folder) == []


def test_a_parquet_file_of_a_failing_task_never_appears(folder: Place) -> None:
    """Arrow finishes files as its objects are destroyed, with a footer and all: a reader would take them for whole ones."""
    table = pa.table({"long_value": pa.array(range(3_000_000), pa.int64())})

    def fail() -> None:
        writer = ParquetFileWriter(folder / "shard.parquet", table.schema, encodings.DATAPOINTS)
        writer.write(table)
        raise RuntimeError("the task failed")

    with pytest.raises(RuntimeError, match="the task failed"):
        fail()
    gc.collect()
    assert everything(folder) == []

    writer = ParquetFileWriter(folder / "shard.parquet", table.schema, encodings.DATAPOINTS)
    writer.write(table)
    staged = writer.close("shard.parquet")
    assert everything(folder) == ["shard.parquet"]
    assert (folder / "shard.parquet").size() == staged.size


def test_an_upload_that_the_server_refuses_fails_and_leaves_nothing(s3_folder: S3Folder) -> None:
    """The raw bucket is read-only for the pipeline: for small files and large ones, at a write or at the commit."""
    for content in (b"small", LARGE):

        def refused(content: bytes = content) -> None:
            with (s3_folder.raw / "file").open_output() as stream:
                stream.write(content)

        with pytest.raises(StorageError, match=r"do not allow (PutObject|CreateMultipartUpload).*docs/production\.md"):
            refused()
    assert s3_folder.objects("raw") == {}


# ---------------------------------------------------------------------------------------------------------------- two writers


def test_of_writers_at_once_one_wins(s3_folder: S3Folder) -> None:
    """Those who saw no file, and those who saw the same one."""
    place = s3_folder.lake / "manifest.json"

    def try_to_write(content: bytes, version: str | None) -> bool:
        try:
            place.replace_bytes(content, version)
        except ConcurrentWriteError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        for round_number in range(2):
            _, version = place.read_versioned()
            contents = [f"{round_number} {number}".encode() for number in range(8)]
            won = list(pool.map(lambda content: try_to_write(content, version), contents))  # noqa: B023
            assert sum(won) == 1
            assert place.read_bytes() == contents[won.index(True)]


@pytest.mark.scenario("S2")
def test_a_repeated_request_that_meets_its_own_object_has_won(s3_folder: S3Folder) -> None:
    """The first answer was lost, the SDK asked again."""
    place = s3_folder.lake / "manifest.json"
    place.replace_bytes(b"content", None)
    place.replace_bytes(b"content", None)
    assert place.read_bytes() == b"content"


def test_what_was_deleted_meanwhile_is_a_lost_race(s3_folder: S3Folder) -> None:
    place = s3_folder.lake / "manifest.json"
    place.write_bytes(b"content")
    _, version = place.read_versioned()
    place.delete_file()
    with pytest.raises(ConcurrentWriteError, match="run the same command again"):
        place.replace_bytes(b"new", version)


def test_a_store_without_conditional_writes_is_written_to_plainly_and_the_log_says_so(
    s3_folder: S3Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from botocore.exceptions import ClientError

    client = s3_folder.options.client()
    put = client.put_object

    def put_object(**arguments: object) -> object:
        if "IfMatch" in arguments or "IfNoneMatch" in arguments:
            raise ClientError({"Error": {"Code": "NotImplemented"}}, "PutObject")
        return put(**arguments)

    monkeypatch.setattr(client, "put_object", put_object)
    (s3_folder.lake / "x").replace_bytes(b"content", None)
    assert (s3_folder.lake / "x").read_bytes() == b"content"
    assert "does not support conditional writes" in caplog.text


def rival_writes_first(monkeypatch: pytest.MonkeyPatch, stage: Stage, rival: Manifest) -> None:
    """Between reading the manifest and replacing it, another run makes its own visible; once."""
    replace = ObjectPlace.replace
    pending = [rival]

    def after_the_rival(self: ObjectPlace, content: bytes, etag: str | None) -> None:
        if pending:
            stage.write(pending.pop(), BATCH)
        replace(self, content, etag)

    monkeypatch.setattr(ObjectPlace, "replace", after_the_rival)


@pytest.mark.parametrize("staged_before", [False, True])
def test_the_loser_of_a_race_keeps_the_winners_files_if_they_are_the_same(
    s3_folder: S3Folder, monkeypatch: pytest.MonkeyPatch, staged_before: bool
) -> None:
    stage = Stage(s3_folder.lake)
    if staged_before:
        stage.commit(attempt(stage, {"a": b"old"}), BATCH)
    ours, rivals = (attempt(stage, {"a": b"same", "b": b"bytes"}) for _ in range(2))
    rival_writes_first(monkeypatch, stage, rivals)
    assert stage.commit(ours, BATCH) == rivals
    assert stage.read(REPARTITIONED, BATCH) == rivals
    assert stage.is_complete(rivals, BATCH)
    assert not any(ours.attempt in key for key in s3_folder.objects())


def test_the_loser_of_a_race_gives_up_if_the_winner_has_other_content(s3_folder: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    stage = Stage(s3_folder.lake)
    ours, rivals = attempt(stage, {"a": b"ours"}), attempt(stage, {"a": b"theirs"})
    rival_writes_first(monkeypatch, stage, rivals)
    with pytest.raises(ConcurrentWriteError, match=r"2026-01-01-09:00 was staged by another run.*run `rollups backfill 2026-01-01-09:00"):
        stage.commit(ours, BATCH)
    assert stage.read(REPARTITIONED, BATCH) == rivals
    assert not any(ours.attempt in key for key in s3_folder.objects())


# ------------------------------------------------------------------------------------------------------------------- requests


def test_a_landing_zone_is_listed_by_the_thousand(s3_folder: S3Folder) -> None:
    """Not asked file by file; and each batch has one listing."""
    zone = LandingZone(s3_folder.raw, "year=%Y/month=%m/day=%d/hour=%H", CALENDAR)
    client = s3_folder.server.client()
    names = [f"part-{number:04}.parquet" for number in range(30)] + ["_SUCCESS", ".hidden"]
    for hour in (8, 9):
        for name in names:
            client.put_object(Bucket="raw", Key=f"{s3_folder.name}/year=2026/month=01/day=01/hour={hour:02}/{name}", Body=name.encode())
    client.put_object(Bucket="raw", Key=f"{s3_folder.name}/year=2026/month=01/day=01/hour=09/", Body=b"")
    list(s3_folder.raw.files(recursive=False))
    with requests(s3_folder.options) as seen:
        files = zone.files(BATCH)
        assert [file.path.rpartition("/")[2] for file in files] == names[:30]
        assert zone.batches() == [CALENDAR.batch("2026-01-01-08:00"), BATCH]
    assert seen == [("GET", "/raw")] * 2
    assert [zone.place(file).read_bytes() for file in files[:2]] == [name.encode() for name in names[:2]]


def test_versions_are_etags(s3_folder: S3Folder) -> None:
    """The same size in the same second is another version; the same content is not."""
    zone = LandingZone(s3_folder.lake, "%Y%m%d%H", CALENDAR)
    place = zone.folder(BATCH) / "a.parquet"
    versions = []
    for content in (b"1234", b"1235", b"1234"):
        place.write_bytes(content)
        (file,) = zone.files(BATCH)
        assert file.version.startswith("etag:")
        assert '"' not in file.version
        versions.append(version_of([file]))
    assert versions[0] == versions[2] != versions[1]


def test_a_raw_file_that_is_replaced_between_listing_and_reading_is_not_taken_for_what_was_listed(s3_folder: S3Folder) -> None:
    place = s3_folder.lake / "a.parquet"
    for values in ([1], [2]):
        sink = pa.BufferOutputStream()
        pa.parquet.write_table(pa.table({"id": pa.array(values, pa.int64())}), sink)
        place.write_bytes(sink.getvalue().to_pybytes())
        (file,) = s3_folder.lake.files()
        if values == [1]:
            listed = file.version
    with pytest.raises(StaleInputError, match=r"a\.parquet was replaced.*run the same command again"):
        RawFile(place, "long_value", listed)
    assert RawFile(place, "long_value", file.version).row_count == 1


def test_a_staged_partition_is_looked_at_with_few_requests(s3_folder: S3Folder) -> None:
    """Files of an attempt are listed; partitions too, however many there are."""
    stage = Stage(s3_folder.lake)
    staged = stage.commit(attempt(stage, {f"shard-{number:05}": b"x" * number for number in range(40)}), BATCH)
    with requests(s3_folder.options) as seen:
        assert stage.is_complete(staged, BATCH)
        stage.require_complete(staged, BATCH)
        assert stage.batches(REPARTITIONED, CALENDAR) == [BATCH]
    assert seen == [("GET", "/lake")] * 3
    (stage.folder(REPARTITIONED, BATCH) / staged.files[7].path).delete_file()
    assert not stage.is_complete(staged, BATCH)


def test_files_elsewhere_are_asked_for_one_by_one(s3_folder: S3Folder, tmp_path: Path) -> None:
    """The table's data files, whose folder others share; the stage may be on a disk meanwhile."""
    stage = Stage(Place.parse(str(tmp_path), s3_folder.options))
    manifest = attempt(stage, {"a": b"1", "b": b"22", "c": b"333"})
    files = []
    for file in manifest.files:
        place = s3_folder.lake / "data" / file.path
        place.write_bytes(b"x" * file.size)
        files.append(file.model_copy(update={"path": place.uri}))
    manifest = manifest.model_copy(update={"files": tuple(files)})
    assert stage.sizes(manifest, BATCH) == [1, 2, 3]
    stage.discard(manifest, BATCH)
    assert s3_folder.objects() == {}
    assert stage.sizes(manifest, BATCH) == [None, None, None]


# --------------------------------------------------------------------------------------------------------------------- retries


class _Busy(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked += 1  # type: ignore[attr-defined]
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def busy_server(s3_folder: S3Folder) -> Iterator[http.server.ThreadingHTTPServer]:  # noqa: ARG001
    """A server that is always too busy; ``asked`` counts."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Busy) as server:
        server.asked = 0  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.scenario("S1")
def test_retries_are_bounded_and_in_the_log(busy_server: http.server.ThreadingHTTPServer, caplog: pytest.LogCaptureFixture) -> None:
    options = S3Options(f"http://127.0.0.1:{busy_server.server_port}", "us-east-1", True)
    with caplog.at_level(logging.WARNING), pytest.raises(Exception, match="503"):
        options.client().list_objects_v2(Bucket="lake")
    assert busy_server.asked == ATTEMPTS  # type: ignore[attr-defined]
    said = [record.message for record in caplog.records if record.name == "rollup_assets.storage.s3"]
    assert said == [f"S3: ListObjectsV2 failed (status 503), attempt {number} of {ATTEMPTS}; trying again" for number in range(1, ATTEMPTS)]
    with pytest.raises(StorageError, match=r"s3://lake/x/?: ListObjectsV2 failed \(503.*run the same command again"):
        list(Place.parse("s3://lake/x", options).files())


def test_parts_are_uploaded_while_the_next_ones_are_made(s3_folder: S3Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for a part before as many are on their way as memory is given to; and then somebody does."""
    client = s3_folder.options.client()
    go_on, waiting = threading.Event(), threading.Semaphore(0)
    upload_part = client.upload_part
    most = 0
    under_way: list[int] = []

    def slowly(**arguments: object) -> object:
        nonlocal most
        under_way.append(1)
        most = max(most, len(under_way))
        waiting.release()
        assert go_on.wait(60)
        answer = upload_part(**arguments)
        under_way.pop()
        return answer

    monkeypatch.setattr(client, "upload_part", slowly)
    content = os.urandom(PART_BYTES)
    with (s3_folder.lake / "file").open_output() as stream:
        for _ in range(PARTS_IN_FLIGHT):
            stream.write(content)
        for _ in range(PARTS_IN_FLIGHT):
            assert waiting.acquire(timeout=60), "a part that is whole is not on its way"
        threading.Timer(0.2, go_on.set).start()
        for _ in range(3):
            stream.write(content)
    assert most == PARTS_IN_FLIGHT
    assert (s3_folder.lake / "file").size() == (PARTS_IN_FLIGHT + 3) * PART_BYTES
