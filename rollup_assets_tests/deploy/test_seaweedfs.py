"""The S3 server of tests and the demo: what its identities may do, and that it leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from botocore.exceptions import ClientError

import rollup_assets
from deploy.servers.ports import free_ports
from deploy.servers.seaweedfs import S3Server, seaweedfs
from rollup_assets_tests.s3 import S3Folder

PROJECT = Path(rollup_assets.__file__).parent.parent
SOCKETS = Path("/tmp")
STARTER = """
import sys, time
from pathlib import Path
from deploy.servers.seaweedfs import seaweedfs
with seaweedfs(Path(sys.argv[1])) as server:
    server.client().put_object(Bucket="lake", Key="kept", Body=b"content")
    print(server.endpoint, flush=True)
    time.sleep(600)
"""


def allowed(server: S3Server, identity: str, bucket: str, key: str) -> list[str]:
    """What the identity may do with an object of the bucket."""
    client = server.client(getattr(server, identity))
    calls = {
        "list": lambda: client.list_objects_v2(Bucket=bucket, MaxKeys=1),
        "put": lambda: client.put_object(Bucket=bucket, Key=f"{key}-new", Body=b"1"),
        "get": lambda: client.get_object(Bucket=bucket, Key=key),
        "delete": lambda: client.delete_object(Bucket=bucket, Key=f"{key}-new"),
    }
    found = []
    for name, call in calls.items():
        try:
            call()
            found.append(name)
        except ClientError as error:
            if error.response["Error"]["Code"] != "AccessDenied":
                raise
    return found


@pytest.mark.parametrize(
    ("identity", "raw", "lake"),
    [
        ("admin", ["list", "put", "get", "delete"], ["list", "put", "get", "delete"]),
        ("pipeline", ["list", "get"], ["list", "put", "get", "delete"]),
        ("reader", ["list", "get"], ["list", "get"]),
    ],
)
def test_what_the_identities_may_do(s3_folder: S3Folder, identity: str, raw: list[str], lake: list[str]) -> None:
    server, key = s3_folder.server, f"{s3_folder.name}/x"
    for bucket, wanted in (("raw", raw), ("lake", lake)):
        server.client().put_object(Bucket=bucket, Key=key, Body=b"1")
        assert allowed(server, identity, bucket, key) == wanted


def test_it_ends_with_a_starter_that_is_killed_and_serves_the_same_data_again(tmp_path: Path) -> None:
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux)")
    starter = subprocess.Popen([sys.executable, "-c", STARTER, str(tmp_path)], cwd=PROJECT, stdout=subprocess.PIPE)
    try:
        assert starter.stdout is not None
        assert starter.stdout.readline().startswith(b"http://")
    finally:
        starter.kill()
        starter.wait()
    deadline = time.monotonic() + 10
    while _processes_of(tmp_path):
        assert time.monotonic() < deadline, "the server goes on without its starter"
        time.sleep(0.05)
    with seaweedfs(tmp_path) as server:
        assert server.client().get_object(Bucket="lake", Key="kept")["Body"].read() == b"content"
        assert _processes_of(tmp_path)
    assert not _processes_of(tmp_path)


def test_it_leaves_no_sockets_and_minds_nobody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets are named by port, in a folder where other users' cannot be removed; a folder is as hard to remove for root too."""
    abandoned, young, others = (SOCKETS / f"seaweedfs-test-{port}.sock" for port in (1, 2, 3))
    candidates = iter([[3], []])
    monkeypatch.setattr("deploy.servers.seaweedfs.free_ports", lambda count: [*next(candidates), *free_ports(count)])
    kept: list[Path] = []
    try:
        for path in (abandoned, young):
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(str(path))
        os.utime(abandoned, (0, 0))
        others.mkdir(exist_ok=True)
        with seaweedfs(tmp_path) as server:
            port = server.endpoint.rpartition(":")[2]
            assert sockets(port)
            assert server.client().list_buckets()["Buckets"]
            kept.append(SOCKETS / f"seaweedfs-test-{port}.sock")
            kept[0].mkdir()
        assert sockets(port) == kept
        assert [path.exists() for path in (abandoned, young, others)] == [False, True, True]
    finally:
        for path in (abandoned, young):
            path.unlink(missing_ok=True)
        for path in (others, *kept):
            path.rmdir()


def sockets(port: str) -> list[Path]:
    """Those named by the port."""
    return sorted(SOCKETS.glob(f"seaweedfs-*-{port}.sock"))


def _processes_of(folder: Path) -> list[str]:
    found = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in found if f"-dir={folder}/data" in line]
