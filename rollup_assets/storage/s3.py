"""S3, configured once: what pyarrow, boto3, PyIceberg and Iceberg for Java need to reach the same store.

No credentials here: every library finds them in the AWS environment, profile or role by itself, so they are in no setting, message or
pickle. Objects and what is done with them stay out (``storage.objects``).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from rollup_assets.threads import thread_pool

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from pyarrow.fs import FileSystem

Made = TypeVar("Made")

SCHEME: Final = "s3://"
CONNECT_SECONDS: Final = 4
# A store may take this long to finish a large upload.
READ_SECONDS: Final = 20
ATTEMPTS: Final = 4
# The first request to a bucket is a small one: a server that does not answer it is given up after less than 20 s.
_FIRST_READ_SECONDS = 5
_FIRST_ATTEMPTS = 3
_THREADS = 16
_POOL = "s3"
_CONNECTIONS = 64
_FILE_IO = "rollup_assets.iceberg.file_io.SettingsFileIO"
_CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")

_log = logging.getLogger(__name__)
_made: dict[tuple[object, ...], Any] = {}
_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class S3Options:
    """How to reach the store. Cheap to pickle; connections are made in the process that asks for them."""

    endpoint: str = ""
    """URL of the store; empty for Amazon's own."""
    region: str = ""
    """Empty: taken from the AWS environment or profile."""
    path_style: bool = False
    """``endpoint/bucket/key`` instead of ``bucket.endpoint/key``."""
    ca_bundle: str = ""
    """PEM file with the certificates of the authorities to trust; empty for the system's."""

    def filesystem(self) -> FileSystem:
        """The filesystem of pyarrow, one per process. Its AWS SDK retries reads: :data:`ATTEMPTS` attempts at most."""
        return once_per_process(("filesystem", self), self._filesystem)

    def client(self) -> Any:
        """The client of boto3, one per process. It makes :data:`ATTEMPTS` attempts at most; this module logs each retry."""
        return once_per_process(("client", self), lambda: self._client(READ_SECONDS, ATTEMPTS))

    def first_client(self) -> Any:
        """A client that gives up sooner, for the first request to a bucket."""
        return once_per_process(("first client", self), lambda: self._client(_FIRST_READ_SECONDS, _FIRST_ATTEMPTS))

    def _filesystem(self) -> FileSystem:
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

        endpoint = self.endpoint
        if self.path_style and not endpoint and self.region:
            # Arrow uses path style only if an endpoint is given.
            endpoint = f"https://s3.{self.region}.amazonaws.com"
        scheme, _, host = endpoint.partition("://")
        return S3FileSystem(
            region=self.region or None,
            scheme=scheme or "https",
            endpoint_override=host or None,
            force_virtual_addressing=bool(endpoint) and not self.path_style,
            tls_ca_file_path=self.ca_bundle or None,
            connect_timeout=CONNECT_SECONDS,
            request_timeout=READ_SECONDS,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
            # Buckets are never created by writing to them.
            allow_bucket_creation=False,
            allow_bucket_deletion=False,
        )

    def _client(self, read_seconds: int, attempts: int) -> Any:
        import boto3
        from botocore.config import Config

        client = boto3.session.Session().client(
            "s3",
            endpoint_url=self.endpoint or None,
            region_name=self.region or None,
            verify=self.ca_bundle or None,
            config=Config(
                connect_timeout=CONNECT_SECONDS,
                read_timeout=read_seconds,
                retries={"mode": "standard", "total_max_attempts": attempts},
                max_pool_connections=_CONNECTIONS,
                s3={"addressing_style": "path" if self.path_style else "virtual" if self.endpoint else "auto"},
            ),
        )
        client.meta.events.register_first("needs-retry.s3", functools.partial(_log_retry, attempts))
        return client

    def iceberg_properties(self) -> dict[str, str]:
        """Properties with which PyIceberg reads and writes as :meth:`filesystem` does."""
        names = {
            "s3.endpoint": self.endpoint,
            "s3.region": self.region,
            # PyIceberg's own file IO has no property for a CA file or for retries; ours takes them from here.
            "s3.path-style-access": _boolean(self.path_style),
            "s3.force-virtual-addressing": _boolean(not self.path_style),
            "rollup.s3.ca-bundle": self.ca_bundle,
        }
        return {"py-io-impl": _FILE_IO} | {name: value for name, value in names.items() if value}

    @classmethod
    def from_iceberg_properties(cls, properties: dict[str, Any]) -> S3Options:
        """The options that :meth:`iceberg_properties` made the properties from."""
        return cls(
            endpoint=properties.get("s3.endpoint", ""),
            region=properties.get("s3.region", ""),
            path_style=properties.get("s3.path-style-access") == "true",
            ca_bundle=properties.get("rollup.s3.ca-bundle", ""),
        )


def _boolean(value: bool) -> str:
    return "true" if value else "false"


def once_per_process(key: tuple[object, ...], make: Callable[[], Made], *, side_by_side: bool = False) -> Made:
    """What ``make`` made for this key, process and credentials: clients keep the credentials that they found when they were made.

    ``side_by_side``: threads that ask at the same time do not wait for each other.
    """
    key = (*key, os.getpid(), hash(tuple(os.environ.get(name) for name in _CREDENTIALS)))
    if key not in _made:
        # boto3 can make clients in only one thread at a time.
        with contextlib.nullcontext() if side_by_side else _lock:
            if key not in _made:
                _made[key] = make()
    found: Made = _made[key]
    return found


def threads() -> ThreadPoolExecutor:
    """Threads for requests that need not wait for each other, shared by everything in the process.

    Raises:
        RuntimeError: called in one of them. If all waited for tasks queued behind them, they would wait forever (``pipeline.for_each`` has
            threads of its own).
    """
    if threading.current_thread().name.startswith(f"{_POOL}_"):
        raise RuntimeError("a request in the shared threads asks for these threads itself: all of them could wait for each other")
    return once_per_process(("threads",), lambda: thread_pool(_THREADS, _POOL))


def _log_retry(
    most: int,
    response: tuple[Any, Any] | None = None,
    attempts: int = 1,
    caught_exception: BaseException | None = None,
    operation: Any = None,
    **_: Any,
) -> None:
    """Log that boto3 is about to try again; boto3 decides that by itself."""
    status = response[0].status_code if response else None
    if caught_exception is None and (status is None or (status < 500 and status != 429)):
        return
    reason = type(caught_exception).__name__ if caught_exception else f"status {status}"
    name = getattr(operation, "name", "request")
    if attempts < most:
        _log.warning("S3: %s failed (%s), attempt %d of %d; trying again", name, reason, attempts, most)
