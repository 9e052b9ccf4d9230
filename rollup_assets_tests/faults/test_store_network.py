"""The network between the pipeline and S3 refuses, stalls, loses and falsifies answers; the store ends, or lets nobody in.

A proxy of our own makes the faults in front of a real server. Afterwards the table is what it is on disks, where nothing went wrong.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

from deploy.servers.proxy import Fault, Proxy, proxy
from rollup_assets.errors import ConcurrentWriteError, RollupError, StorageError
from rollup_assets.query import query
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.results import RolledUp
from rollup_assets.steps.rollup import roll_up
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.objects import PART_BYTES
from rollup_assets.storage.s3 import ATTEMPTS
from rollup_assets_tests import landing
from rollup_assets_tests.s3 import S3Folder
from rollup_assets_tests.strategies import HOUR, MINUTE, Grid, crowd

if TYPE_CHECKING:
    from deploy.servers.seaweedfs import S3Server
    from rollup_assets.batches import Batch
    from rollup_assets.pipeline import Pipeline

THOROUGH = pytest.mark.thorough
GRID = Grid(1_767_225_600_000, HOUR, 2, (MINUTE, HOUR), HOUR)
LARGE = os.urandom(2 * PART_BYTES + 12_345)
VERBS = ["GET", "HEAD", "PUT", "POST", "DELETE"]


@dataclass(frozen=True)
class OnDisk:
    """Two hours, staged and published on disks."""

    pipeline: Pipeline
    batches: list[Batch]
    digests: list[str]
    rows: list[dict[str, Any]]


def run(pipeline: Pipeline, batches: list[Batch]) -> list[str]:
    """Stage, roll up and publish; the content digests of everything."""
    digests = []
    for batch in batches:
        staged = stage_batch(pipeline, batch)
        rolled_up = roll_up(pipeline, batch)
        assert isinstance(rolled_up, RolledUp)
        publish(pipeline, batch)
        digests += [manifest.digest for manifest in (staged.repartitioned, staged.partial_points, staged.quarantined, rolled_up.manifest)]
    return digests


def rows_of(pipeline: Pipeline) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = query(pipeline.settings, "SELECT * FROM rollups ORDER BY ALL").to_pylist()
    return found


@pytest.fixture(scope="module")
def on_disk(fresh_home: Callable[[], Path]) -> OnDisk:
    pipeline = landing.pipeline_of(GRID, fresh_home())
    landing.land(pipeline, crowd(72, GRID, 20, 600))
    batches = landing.batches_of(pipeline, GRID)
    return OnDisk(pipeline, batches, run(pipeline, batches), rows_of(pipeline))


@pytest.fixture
def network(s3_folder: S3Folder, seed: int) -> Iterator[Proxy]:
    with proxy("http", port_of(s3_folder.server), seed) as made:
        yield made


def port_of(server: S3Server) -> int:
    port = urlsplit(server.endpoint).port
    assert port is not None
    return port


def beyond(network: Proxy, folder: S3Folder) -> S3Folder:
    """The same folder, reached through the proxy."""
    return S3Folder(dataclasses.replace(folder.server, endpoint=f"http://127.0.0.1:{network.port}"), folder.name)


@pytest.fixture
def far(network: Proxy, s3_folder: S3Folder) -> S3Folder:
    return beyond(network, s3_folder)


@pytest.fixture
def pipeline(far: S3Folder, s3_folder: S3Folder, on_disk: OnDisk, tmp_path: Path) -> Pipeline:
    """The pipeline of ``on_disk``, with everything on S3 through the proxy."""
    s3_folder.upload(Path(on_disk.pipeline.settings.raw))
    return landing.pipeline_of(GRID, tmp_path, **far.locations, s3_endpoint=far.server.endpoint)


def assert_whole(pipeline: Pipeline, on_disk: OnDisk) -> None:
    """A run from here ends with what it is on disks; one more changes nothing."""
    assert run(pipeline, on_disk.batches) == on_disk.digests
    assert rows_of(pipeline) == on_disk.rows
    assert all(publish(pipeline, batch).unchanged for batch in on_disk.batches)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer is taken for lost after a second instead of 20."""
    monkeypatch.setattr("rollup_assets.storage.s3.READ_SECONDS", 1)
    monkeypatch.setattr("rollup_assets.storage.s3._FIRST_READ_SECONDS", 1)


# ---------------------------------------------------------------------------------------------------------------------- S1


@pytest.mark.scenario("S1")
def test_requests_of_each_kind_that_are_refused_once_are_repeated(pipeline: Pipeline, on_disk: OnDisk, network: Proxy) -> None:
    faults = [network.add(Fault(f"^{verb} ", "error", delivered=False, code=code)) for verb in VERBS for code in ("503", "500")]
    assert_whole(pipeline, on_disk)
    assert {fault.pattern for fault in faults if fault.hits} >= {"^GET ", "^PUT ", "^HEAD "}


@pytest.mark.scenario("S1")
@pytest.mark.thorough
@pytest.mark.parametrize("answer", ["error", "lost", "withheld"])
@pytest.mark.parametrize("delivered", [True, False])
@pytest.mark.usefixtures("impatient")
def test_a_network_that_fails_now_and_then_is_lived_with(
    pipeline: Pipeline, on_disk: OnDisk, network: Proxy, answer: Any, delivered: bool
) -> None:
    fault = network.add(Fault("", answer, delivered=delivered, times=None, chance=0.04))
    for _ in range(3):
        # Four attempts are given to a request; of some thousand one may need more.
        with contextlib.suppress(RollupError, OSError):
            run(pipeline, on_disk.batches)
            break
    network.clear()
    assert_whole(pipeline, on_disk)
    assert fault.hits > 3


@pytest.mark.scenario("S1")
@pytest.mark.parametrize("verb", ["PUT", *(pytest.param(verb, marks=THOROUGH) for verb in ("GET", "HEAD"))])
@pytest.mark.parametrize("answer", ["error", pytest.param("withheld", marks=THOROUGH)])
@pytest.mark.usefixtures("impatient")
def test_requests_that_are_always_refused_are_given_up_and_the_rerun_goes_on(
    pipeline: Pipeline, on_disk: OnDisk, network: Proxy, verb: str, answer: Any
) -> None:
    run(pipeline, on_disk.batches[:1])
    fault = network.add(Fault(f"^{verb} ", answer, delivered=False, times=None))
    started = time.monotonic()
    with pytest.raises(StorageError, match=r"run the same command again|cannot be reached"):
        run(pipeline, on_disk.batches[1:])
    assert time.monotonic() - started < 60
    assert ATTEMPTS <= fault.hits <= 16 * ATTEMPTS
    network.clear()
    assert_whole(pipeline, on_disk)


# ---------------------------------------------------------------------------------------------------------------------- S2


@pytest.mark.scenario("S2")
def test_writes_whose_answers_are_lost_are_found_to_be_done(pipeline: Pipeline, on_disk: OnDisk, network: Proxy) -> None:
    """The repeated request of a manifest meets its own object: 412, the same content. Each kind of object loses an answer."""
    kinds = ["repartitioned_datapoints/.*manifest.json", "rollups/.*manifest.json", "rollup_table/.*manifest.json"]
    kinds += [r"shard-.*\.parquet", r"data/.*\.parquet", r"metadata/.*\.avro", r"\.metadata\.json"]
    faults = [network.add(Fault(f"^PUT .*{kind}", "lost")) for kind in kinds]
    assert_whole(pipeline, on_disk)
    assert [fault.hits for fault in faults] == [1] * len(kinds)


@pytest.mark.scenario("S2")
@pytest.mark.parametrize("stood", [False, True])
def test_a_lost_answer_does_not_hide_a_rival(far: S3Folder, s3_folder: S3Folder, network: Proxy, stood: bool) -> None:
    """Between the first request, which was carried out, and its repetition somebody else writes: his stands, and that is said."""
    place, directly = far.lake / "manifest.json", s3_folder.lake / "manifest.json"
    if stood:
        directly.write_bytes(b"old")
    _, version = place.read_versioned()
    network.add(Fault("^PUT .*manifest.json", "lost", meanwhile=lambda: directly.write_bytes(b"rival")))
    with pytest.raises(ConcurrentWriteError, match="run the same command again"):
        place.replace_bytes(b"ours", version)
    assert directly.read_bytes() == b"rival"
    _, version = place.read_versioned()
    network.add(Fault("^PUT .*manifest.json", "lost"))
    place.replace_bytes(b"ours", version)
    assert directly.read_bytes() == b"ours"


@pytest.mark.scenario("S2")
@pytest.mark.parametrize("request_", ["POST .*uploads", "PUT .*partNumber=2", "POST .*uploadId"])
@pytest.mark.parametrize("answer", ["lost", pytest.param("error", marks=THOROUGH)])
def test_a_large_upload_that_loses_an_answer_is_whole(
    far: S3Folder, s3_folder: S3Folder, network: Proxy, request_: str, answer: Any
) -> None:
    fault = network.add(Fault(f"^{request_}", answer))
    with (far.lake / "large").open_output() as stream:
        stream.write(LARGE)
    assert fault.hits == 1
    assert (s3_folder.lake / "large").read_bytes() == LARGE


# ---------------------------------------------------------------------------------------------------------------------- S3


@pytest.mark.scenario("S3")
@pytest.mark.parametrize("what", [r"raw/.*\.parquet", r"stage/.*\.parquet", pytest.param(r"warehouse/.*(avro|json)", marks=THOROUGH)])
def test_truncated_answers_are_asked_for_again_or_an_error(pipeline: Pipeline, on_disk: OnDisk, network: Proxy, what: str) -> None:
    fault = network.add(Fault(f"^GET .*{what}", "truncated", times=2))
    for _ in range(3):
        try:
            run(pipeline, on_disk.batches)
            break
        except (RollupError, OSError):
            continue
    assert fault.hits == 2
    network.clear()
    assert_whole(pipeline, on_disk)


@pytest.mark.scenario("S3")
@pytest.mark.parametrize("tries", [6, pytest.param(60, marks=THOROUGH)])
def test_a_bit_that_flips_on_the_way_from_the_stage_is_an_error_or_without_effect(
    pipeline: Pipeline, on_disk: OnDisk, network: Proxy, tries: int
) -> None:
    """Without TLS, which would notice each of them itself."""
    stage_batch(pipeline, on_disk.batches[0])
    stage_batch(pipeline, on_disk.batches[1])
    refused = 0
    for skip in range(tries):
        network.add(Fault(r"^GET .*stage/.*\.(parquet|json)", "flipped", skip=skip))
        try:
            found = [roll_up(pipeline, batch, force=True) for batch in on_disk.batches]
        except RollupError:
            refused += 1
        else:
            digests = [rolled.manifest.digest for rolled in found if isinstance(rolled, RolledUp)]
            assert digests == [on_disk.digests[3], on_disk.digests[7]]
        network.clear()
    assert refused
    assert_whole(pipeline, on_disk)


# ---------------------------------------------------------------------------------------------------------------------- S4


def _upload(place: Place) -> None:
    with place.open_output() as stream:
        stream.write(LARGE)
        time.sleep(600)


@pytest.mark.scenario("S4")
def test_an_upload_whose_process_is_killed_is_invisible(far: S3Folder, s3_folder: S3Folder, network: Proxy) -> None:
    """Its parts stay behind; nothing that lists or reads sees them, and the next one is whole."""
    fault = network.add(Fault("^PUT .*partNumber=2", "withheld"))
    child = multiprocessing.get_context("spawn").Process(target=_upload, args=(far.lake / "large",))
    child.start()
    assert fault.reached.wait(60)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert (s3_folder.lake / "large").size() is None
    assert s3_folder.objects() == {}
    assert s3_folder.unfinished_uploads() == [f"{s3_folder.name}/large"]
    with (far.lake / "large").open_output() as stream:
        stream.write(LARGE)
    assert (s3_folder.lake / "large").read_bytes() == LARGE


# ---------------------------------------------------------------------------------------------------------------------- S5


@pytest.mark.scenario("S5")
def test_a_store_that_lets_nobody_write_is_an_error_that_names_the_policy_and_the_rerun_goes_on(
    pipeline: Pipeline, on_disk: OnDisk, network: Proxy
) -> None:
    run(pipeline, on_disk.batches[:1])
    before = rows_of(pipeline)
    fault = network.add(Fault("^PUT ", "error", delivered=False, code="403", times=None))
    with pytest.raises(StorageError, match=r"do not allow PutObject \(AccessDenied\).*docs/production\.md"):
        run(pipeline, on_disk.batches[1:])
    assert fault.hits <= 16
    assert rows_of(pipeline) == before
    network.clear()
    assert_whole(pipeline, on_disk)


@pytest.mark.scenario("S5")
@pytest.mark.thorough
@pytest.mark.usefixtures("impatient")
def test_a_store_that_is_killed_and_starts_again_has_what_it_acknowledged(
    on_disk: OnDisk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """In the middle of a batch: that is an error, and its rerun goes on when the store is back."""
    from deploy.servers.seaweedfs import seaweedfs

    with proxy("http", 0, seed) as network:
        # The end of the block kills the server.
        with seaweedfs(tmp_path / "store") as server:
            network.target = port_of(server)
            for name, value in server.environment.items():
                monkeypatch.setenv(name, value)
            folder = S3Folder(server, "restarted")
            folder.upload(Path(on_disk.pipeline.settings.raw))
            far = beyond(network, folder)
            pipeline = landing.pipeline_of(GRID, tmp_path / "home", **far.locations, s3_endpoint=far.server.endpoint)
            run(pipeline, on_disk.batches[:1])
            rows = rows_of(pipeline)

            def vanish() -> None:
                network.target = None
                network.cut()

            fault = network.add(Fault(r"^PUT .*data/.*\.parquet", "lost", meanwhile=vanish))
            with pytest.raises(StorageError, match="cannot be reached"):
                run(pipeline, on_disk.batches[1:])
            assert fault.hits == 1
            acknowledged = folder.objects()
        with seaweedfs(tmp_path / "store") as server:
            network.target = port_of(server)
            assert S3Folder(server, "restarted").objects() == acknowledged
            assert rows_of(pipeline) == rows
            assert_whole(pipeline, on_disk)
