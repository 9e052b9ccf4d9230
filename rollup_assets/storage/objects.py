"""Objects on S3: listed, read, written whole or not at all, and replaced only by a writer that knows the current version.

Listing and writing go through boto3: Arrow's listings have no ETags, and closing its output stream after an error completes the upload
of a truncated object. Reading data goes through pyarrow's filesystem (``S3Options.filesystem``).
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from rollup_assets.errors import ConcurrentWriteError, StorageError
from rollup_assets.storage.s3 import SCHEME, S3Options, once_per_process, threads
from rollup_assets.storage.storage_errors import storage_error

PART_BYTES: Final = 8 << 20
PARTS_IN_FLIGHT: Final = 3
_DELETES_PER_REQUEST = 1000
_MISSING = ("404", "NoSuchKey", "NotFound")
_NO_UPLOAD = ("404", "NoSuchUpload", "NotFound")
_LOST_RACE = ("PreconditionFailed", "412", "ConditionalRequestConflict", "409")
_NOT_SUPPORTED = ("NotImplemented", "501")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FoundObject:
    """An object as a listing shows it."""

    key: str
    size: int
    version: str
    """Changes whenever the content does: the ETag where the store gives one, else the time of the last change."""
    modified: int
    """When it was last written, epoch milliseconds by the store's clock."""


@dataclass(frozen=True, slots=True)
class FoundUpload:
    """An upload in parts that was begun and neither completed nor dropped."""

    key: str
    upload_id: str
    size: int
    """Bytes of the parts that have arrived."""
    begun: int
    """Epoch milliseconds by the store's clock."""


@dataclass(frozen=True, slots=True)
class ObjectPlace:
    """A key in a bucket, or the prefix that stands for a folder."""

    bucket: str
    key: str
    options: S3Options

    @property
    def uri(self) -> str:
        """Its URI, as other programs write it."""
        return f"{SCHEME}{self.bucket}/{self.key}"

    def _client(self) -> Any:
        """The client. The process's first use of a bucket checks it, so that whatever is wrong with it is reported at once.

        Later, a missing bucket would look like a missing object to HEAD, wrong credentials like a missing permission; and some servers
        answer 404 to everything.
        """

        def look() -> None:
            self.options.first_client().list_objects_v2(Bucket=self.bucket, Prefix=self.key, MaxKeys=1)

        once_per_process(("bucket", self.options, self.bucket), look, side_by_side=True)
        return self.options.client()

    # ------------------------------------------------------------------------------------------------------------- looking

    def size(self) -> int | None:
        """Bytes of the object; None if there is none."""
        with self._explained():
            try:
                return int(self._client().head_object(Bucket=self.bucket, Key=self.key)["ContentLength"])
            except self.options.client().exceptions.ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise

    def objects(self, *, recursive: bool = True, prefix: str = "") -> Iterator[FoundObject]:
        """The objects below this folder whose keys continue with ``prefix``, a thousand per request, without placeholders of folders."""
        for page in self._pages(recursive=recursive, prefix=prefix):
            for found in page.get("Contents", ()):
                if not found["Key"].endswith("/"):
                    yield FoundObject(found["Key"], int(found["Size"]), _version(found), _milliseconds(found["LastModified"]))

    def folders(self) -> list[str]:
        """Names of the folders directly below this prefix, sorted."""
        prefix = self._prefix
        return sorted(
            found["Prefix"][len(prefix) :].rstrip("/") for page in self._pages(recursive=False) for found in page.get("CommonPrefixes", ())
        )

    @property
    def _prefix(self) -> str:
        return f"{self.key.rstrip('/')}/" if self.key else ""

    def _pages(self, *, recursive: bool, prefix: str = "") -> Iterator[Any]:
        arguments = {"Bucket": self.bucket, "Prefix": self._prefix + prefix} | ({} if recursive else {"Delimiter": "/"})
        with self._explained():
            yield from self._client().get_paginator("list_objects_v2").paginate(**arguments)

    # ------------------------------------------------------------------------------------------------------------- reading

    def read(self) -> tuple[bytes, str] | None:
        """The object's content and ETag; None if there is none."""
        with self._explained():
            try:
                answer = self._client().get_object(Bucket=self.bucket, Key=self.key)
            except self.options.client().exceptions.ClientError as error:
                if _code(error) in _MISSING:
                    return None
                raise
            return answer["Body"].read(), str(answer.get("ETag", ""))

    # ------------------------------------------------------------------------------------------------------------- writing

    def write(self, content: bytes) -> None:
        """Write or replace the object."""
        with self._explained():
            self._client().put_object(Bucket=self.bucket, Key=self.key, Body=content)

    def replace(self, content: bytes, etag: str | None) -> None:
        """Write the object, in one PUT, if its ETag is still ``etag`` or, with None, if it still does not exist.

        Raises:
            ConcurrentWriteError: somebody else has written it.
        """
        condition = {"IfNoneMatch": "*"} if etag is None else {"IfMatch": etag}
        with self._explained():
            client = self._client()
            try:
                client.put_object(Bucket=self.bucket, Key=self.key, Body=content, **condition)
            except client.exceptions.ClientError as error:
                code = _code(error)
                if code in _NOT_SUPPORTED:
                    _log.warning(
                        "%s does not support conditional writes (%s): if two runs write at once, the last one wins", self.uri, code
                    )
                    client.put_object(Bucket=self.bucket, Key=self.key, Body=content)
                elif code in _LOST_RACE or (code in _MISSING and etag is not None):
                    # If the first request was carried out but its answer was lost, the retry finds its own object.
                    current = self.read()
                    if current is None or current[0] != content:
                        raise ConcurrentWriteError(
                            f"{self.uri} was written by another process at the same time; run the same command again"
                        ) from None
                else:
                    raise

    def open_output(self) -> Upload:
        """A stream to the object, which appears when it is committed."""
        with self._explained():
            return Upload(self, self._client())

    def delete(self) -> None:
        """Delete the object; nothing happens if there is none."""
        with self._explained():
            self._client().delete_object(Bucket=self.bucket, Key=self.key)

    def delete_below(self) -> None:
        """Delete all objects below this prefix."""
        for error in self.delete_keys([found.key for found in self.objects()]).values():
            raise error

    def delete_keys(self, keys: Sequence[str]) -> dict[str, StorageError]:
        """Delete objects of this place's bucket, a thousand a request and several requests at once; returns those not deleted, and why."""
        portions = [keys[first : first + _DELETES_PER_REQUEST] for first in range(0, len(keys), _DELETES_PER_REQUEST)]
        stay: dict[str, StorageError] = {}
        for refused in threads().map(self._delete_portion, portions):
            stay |= refused
        return stay

    def _delete_portion(self, keys: Sequence[str]) -> dict[str, StorageError]:
        try:
            with self._explained():
                some = [{"Key": key} for key in keys]
                answer = self._client().delete_objects(Bucket=self.bucket, Delete={"Objects": some, "Quiet": True})
        except StorageError as error:
            return dict.fromkeys(keys, error)
        stay = {}
        for failed in answer.get("Errors", ()):
            # Retried one by one, so that the error is the same as for a single object.
            try:
                ObjectPlace(self.bucket, failed["Key"], self.options).delete()
            except StorageError as error:
                stay[str(failed["Key"])] = error
        return stay

    # ---------------------------------------------------------------------------------------------------------- unfinished uploads

    def unfinished_uploads(self) -> list[FoundUpload]:
        """Uploads to keys below this prefix that nobody has completed or dropped, with what has arrived of each."""
        with self._explained():
            client = self._client()
            pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=self.bucket, Prefix=self._prefix)
            # Self-hosted servers may treat a prefix as a folder.
            found = [upload for page in pages for upload in page.get("Uploads", ()) if str(upload["Key"]).startswith(self._prefix)]
            sizes = threads().map(lambda upload: self._arrived(client, upload["Key"], upload["UploadId"]), found)
            return [
                FoundUpload(str(upload["Key"]), str(upload["UploadId"]), size, _milliseconds(upload["Initiated"]))
                for upload, size in zip(found, sizes, strict=True)
            ]

    def _arrived(self, client: Any, key: str, upload_id: str) -> int:
        pages = client.get_paginator("list_parts").paginate(Bucket=self.bucket, Key=key, UploadId=upload_id)
        try:
            return sum(int(part["Size"]) for page in pages for part in page.get("Parts", ()))
        except client.exceptions.ClientError as error:
            if _code(error) in _NO_UPLOAD:
                return 0
            raise

    def drop_upload(self, upload: FoundUpload) -> None:
        """Drop an upload and its parts; nothing happens if it is completed or dropped by now."""
        with self._explained():
            client = self._client()
            try:
                client.abort_multipart_upload(Bucket=self.bucket, Key=upload.key, UploadId=upload.upload_id)
            except client.exceptions.ClientError as error:
                if _code(error) not in _NO_UPLOAD:
                    raise

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the block's errors into ours."""
        try:
            yield
        except Exception as error:
            known = storage_error(error, self.uri, self.options)
            if known is None or known is error:
                raise
            raise known from error


class Upload:
    """A stream to one object: parts are uploaded by threads in the background while the next one is filled.

    At most :data:`PARTS_IN_FLIGHT` parts of :data:`PART_BYTES` are on their way, so a stream takes 32 MiB at most; content smaller than
    one part is one PUT. Nothing is visible before :meth:`commit`.
    """

    def __init__(self, place: ObjectPlace, client: Any) -> None:
        self._place = place
        self._client = client
        self._part = bytearray()
        self._size = 0
        self._upload: str | None = None
        self._parts: list[Future[dict[str, Any]]] = []
        self._in_flight: deque[Future[dict[str, Any]]] = deque()

    def write(self, content: Any) -> None:
        """Append bytes. Errors of parts on their way are raised here, or by :meth:`commit`."""
        view = memoryview(content).cast("B")
        self._size += len(view)
        while len(view):
            taken = view[: PART_BYTES - len(self._part)]
            self._part += taken
            view = view[len(taken) :]
            if len(self._part) == PART_BYTES:
                self._send()

    def _send(self) -> None:
        with self._place._explained():
            if self._upload is None:
                self._upload = str(self._client.create_multipart_upload(Bucket=self._place.bucket, Key=self._place.key)["UploadId"])
            while len(self._in_flight) >= PARTS_IN_FLIGHT:
                self._in_flight.popleft().result()
            part = threads().submit(self._upload_part, len(self._parts) + 1, self._part)
        self._parts.append(part)
        self._in_flight.append(part)
        self._part = bytearray()

    def _upload_part(self, number: int, content: bytearray) -> dict[str, Any]:
        answer = self._client.upload_part(
            Bucket=self._place.bucket, Key=self._place.key, UploadId=self._upload, PartNumber=number, Body=content
        )
        # Stores that got a checksum for a part require it again here.
        checksums = {name: value for name, value in answer.items() if name.startswith("Checksum") and name != "ChecksumType"}
        return {"PartNumber": number, "ETag": answer["ETag"], **checksums}

    def commit(self) -> None:
        """Finish the upload; from now on the object is there."""
        place = self._place
        if self._upload is None:
            place.write(bytes(self._part))
            return
        if self._part:
            self._send()
        with place._explained():
            parts = [part.result() for part in self._parts]
            try:
                self._client.complete_multipart_upload(
                    Bucket=place.bucket, Key=place.key, UploadId=self._upload, MultipartUpload={"Parts": parts}
                )
            except self._client.exceptions.ClientError as error:
                # A retry: the first request was carried out, but its answer was lost.
                if _code(error) != "NoSuchUpload" or place.size() != self._size:
                    raise
        self._upload = None

    def abort(self) -> None:
        """Drop what was written; nothing was ever visible."""
        self._part.clear()
        for part in self._parts:
            part.cancel()
        for part in self._parts:
            if not part.cancelled():
                part.exception()
        if self._upload is not None:
            # If this fails too, the parts stay until the bucket's lifecycle rule for incomplete uploads removes them.
            with contextlib.suppress(Exception):
                self._client.abort_multipart_upload(Bucket=self._place.bucket, Key=self._place.key, UploadId=self._upload)
            self._upload = None


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _version(found: Any) -> str:
    if etag := found.get("ETag"):
        return f"etag:{str(etag).strip(chr(34))}"
    return f"mtime:{int(found['LastModified'].timestamp() * 1_000_000_000)}"


def _milliseconds(moment: Any) -> int:
    return int(moment.timestamp() * 1000)
