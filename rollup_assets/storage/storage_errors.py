"""Says in one sentence what went wrong with the storage: turns boto3's and pyarrow's errors into ours, with the setting and the remedy.

Which operation is tried stays out.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from rollup_assets.errors import StorageError

if TYPE_CHECKING:
    from rollup_assets.storage.s3 import S3Options

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

_ARROW = re.compile(
    r"(?P<where>.*?):? ?AWS Error (?P<code>[A-Z_0-9]+)(?: \(HTTP status \d+\))? during (?P<operation>\w+) operation: (?P<message>.*)",
    re.DOTALL,
)
_ARROW_OBJECT = re.compile(r"(?:key '(?P<key>[^']*)' in )?bucket '(?P<bucket>[^']*)'")
_BUCKETS = "ROLLUP_RAW, ROLLUP_STAGE or ROLLUP_WAREHOUSE"
_KEYS = "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
_WRONG_CREDENTIALS = {
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "InvalidClientTokenId", "UnrecognizedClientException",
    "INVALID_ACCESS_KEY_ID", "SIGNATURE_DOES_NOT_MATCH", "INVALID_SIGNATURE", "INVALID_CLIENT_TOKEN_ID", "UNRECOGNIZED_CLIENT",
    "EXPIRED_TOKEN",
}  # fmt: skip
_DENIED = {"AccessDenied", "403", "Forbidden", "AllAccessDisabled", "ACCESS_DENIED"}
_NO_BUCKET = {"NoSuchBucket", "NO_SUCH_BUCKET"}
_WRONG_REGION = {"PermanentRedirect", "301", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}


def storage_error(error: BaseException, place: str = "", options: S3Options | None = None) -> StorageError | None:
    """The error as one of ours; None if it is not about reaching or using the storage (a missing or damaged file is not).

    ``place``: the URI that it is about, for errors that do not name it.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    if isinstance(error, StorageError):
        return error
    if isinstance(error, ClientError):
        details = error.response.get("Error", {})
        return _refused(str(details.get("Code", "")), error.operation_name, str(details.get("Message", "")), place, options)
    if isinstance(error, BotoCoreError):
        return _not_reached(type(error).__name__, str(error), place, options)
    match = _ARROW.search(str(error)) if isinstance(error, OSError) else None
    if match:
        if not place and (found := _ARROW_OBJECT.search(match["where"])):
            place = f"s3://{found['bucket']}/{found['key'] or ''}"
        message = match["message"].strip()
        if match["code"] == "NETWORK_CONNECTION":
            return _not_reached("SSLError" if "SSL" in message else "", message, place, options)
        return _refused(match["code"], match["operation"], message, place, options)
    return None


def explains_storage_errors(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Decorator for functions that use the storage through third-party libraries: turns their errors into ours."""

    @functools.wraps(function)
    def explained(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        try:
            return function(*arguments, **named)
        except Exception as error:
            known = _from_s3(error) and storage_error(error)
            if not known or known is error:
                raise
            raise known from error

    return explained


def reason_of(error: OSError) -> str:
    """What the system says of an operation that failed, without the sentence that Arrow puts around it."""
    return os.strerror(error.errno) if error.errno else _short(str(error)) or type(error).__name__


def is_damage(error: Exception) -> bool:
    """Whether a reader's error says something about the file's content; network, permissions, disks and missing memory do not."""
    # Arrow's error for memory is an ArrowException as well.
    if isinstance(error, StorageError | MemoryError):
        return False
    return not (isinstance(error, OSError) and (error.errno is not None or _ARROW.search(str(error))))


def _from_s3(error: Exception) -> bool:
    # Do not import botocore: if it is not imported yet, the error cannot be its.
    return isinstance(error, OSError) or any(kind.__module__.startswith("botocore.") for kind in type(error).__mro__)


def _store(options: S3Options | None) -> str:
    if options is None:
        return "the S3 server"
    return f"ROLLUP_S3_ENDPOINT={options.endpoint}" if options.endpoint else "Amazon S3 (ROLLUP_S3_ENDPOINT is not set)"


def _refused(code: str, operation: str, message: str, place: str, options: S3Options | None) -> StorageError:
    at, store, bucket = place or "S3", _store(options), place.removeprefix("s3://").partition("/")[0]
    if code in _WRONG_CREDENTIALS:
        return StorageError(
            f"{at}: {store} does not accept the credentials ({code}); correct {_KEYS}, or name the store that they belong to in "
            "ROLLUP_S3_ENDPOINT"
        )
    if code in _DENIED:
        return StorageError(
            f"{at}: the credentials do not allow {operation} ({code}), or the bucket does not exist; grant it (the policies are in "
            f"docs/production.md), correct {_KEYS}, or the setting that names the place ({_BUCKETS})"
        )
    if code in _NO_BUCKET:
        return StorageError(f"{at}: {store} has no bucket {bucket}; make it, or correct the setting that names it ({_BUCKETS})")
    if code in _WRONG_REGION:
        return StorageError(f"{at}: the bucket is in another region ({code}: {_short(message)}); set ROLLUP_S3_REGION to the bucket's")
    if code in ("404", "405", "400", "RESOURCE_NOT_FOUND"):
        return StorageError(
            f"{at}: {store} does not answer {operation} as an S3 server does (status {code}); correct ROLLUP_S3_ENDPOINT: its scheme, host "
            "and port, and ROLLUP_S3_PATH_STYLE"
        )
    return StorageError(
        f"{at}: {operation} failed ({code}: {_short(message)}); run the same command again, and if it stays, look at the log of {store}"
    )


def _not_reached(kind: str, message: str, place: str, options: S3Options | None) -> StorageError:
    at, store = place or "S3", _store(options)
    if kind in ("NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound", "TokenRetrievalError"):
        return StorageError(f"{at}: no credentials for S3 were found ({_short(message)}); set {_KEYS}, or give this machine a role")
    if kind == "SSLError":
        known = f"ROLLUP_S3_CA_BUNDLE={options.ca_bundle}" if options and options.ca_bundle else "the system's certificates"
        return StorageError(
            f"{at}: the certificate of {store} could not be verified with {known} ({_short(message)}); set ROLLUP_S3_CA_BUNDLE to a PEM "
            "file with the certificate of the authority that issued it"
        )
    return StorageError(
        f"{at}: {store} cannot be reached ({_short(message)}); correct ROLLUP_S3_ENDPOINT, or look at the network and its proxies"
    )


def _short(message: str) -> str:
    return (message.splitlines() or [""])[0].strip().rstrip(".")[:200]
