"""A folder of its own for a test on the session's S3 server, what is in it, and which requests were made."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.s3 import S3Options

if TYPE_CHECKING:
    from deploy.servers.seaweedfs import S3Server


@dataclass(frozen=True)
class S3Folder:
    """``raw/<name>`` and ``lake/<name>``; the environment's credentials are those of the pipeline, which may not write raw."""

    server: S3Server
    name: str

    @property
    def options(self) -> S3Options:
        """How to reach the server."""
        return S3Options(self.server.endpoint, self.server.region, True, str(self.server.authority or ""))

    @property
    def locations(self) -> dict[str, str]:
        """The three locations as settings."""
        return {"raw": self.raw.uri, "stage": (self.lake / "stage").uri, "warehouse": (self.lake / "warehouse").uri}

    @property
    def raw(self) -> Place:
        """Read-only for the pipeline."""
        return Place.parse(f"s3://raw/{self.name}", self.options)

    @property
    def lake(self) -> Place:
        """Where the pipeline writes."""
        return Place.parse(f"s3://lake/{self.name}", self.options)

    def upload(self, folder: Path, target: Place | None = None) -> None:
        """Put the files of a local folder below the raw folder (or another), as the admin."""
        client = self.server.client()
        bucket, _, prefix = (target or self.raw).path.partition("/")
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())

    def objects(self, bucket: str = "lake") -> dict[str, int]:
        """Key below this folder -> bytes, as the admin sees it."""
        pages = self.server.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{self.name}/")
        return {found["Key"][len(self.name) + 1 :]: found["Size"] for page in pages for found in page.get("Contents", ())}

    def unfinished_uploads(self) -> list[str]:
        """Keys with parts that nobody has completed or dropped."""
        answer = self.server.client().list_multipart_uploads(Bucket="lake", Prefix=f"{self.name}/")
        return [upload["Key"] for upload in answer.get("Uploads", ())]


@contextlib.contextmanager
def requests(options: S3Options) -> Iterator[list[tuple[str, str]]]:
    """(method, path) of every request that boto3 sends in the block; pyarrow's are not seen."""
    seen: list[tuple[str, str]] = []
    client = options.client()

    def before_send(request: Any, **_: Any) -> None:
        seen.append((request.method, unquote(urlsplit(request.url).path)))

    client.meta.events.register("before-send.s3", before_send)
    try:
        yield seen
    finally:
        client.meta.events.unregister("before-send.s3", before_send)


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """What must appear nowhere."""
    return [environment[name] for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN") if environment.get(name)]
