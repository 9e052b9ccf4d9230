"""A REST catalog: its credentials, and whether it can be reached, before PyIceberg opens it.

Everything else about it is PyIceberg's, by ``ROLLUP_CATALOG_PROPERTIES``.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from rollup_assets.errors import CatalogError
from rollup_assets.iceberg.faults import shown
from rollup_assets.settings import Settings
from rollup_assets.storage.s3 import once_per_process

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog

CONNECT_SECONDS = 10.0
_DEFAULT_PORTS = {"https": 443, "http": 80}


def rest_catalog(settings: Settings, properties: dict[str, Any]) -> Catalog:
    """PyIceberg's REST catalog.

    The password is the client's secret if the URI names a user (OAuth2 client credentials), else a bearer token; signed requests
    (``rest.sigv4-enabled``) use AWS's own credentials. ``ssl.cabundle`` names the authorities to trust.

    Raises:
        CatalogError: it cannot be reached within :data:`CONNECT_SECONDS` (behind a proxy, only the first request shows that), or there
            are no credentials to sign with.
    """
    from rollup_assets.iceberg.rest_client import TimedRestCatalog

    parts = urlsplit(str(properties["uri"]))
    user = unquote(parts.username or "")
    properties = {**properties, "uri": urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))}
    if (bundle := properties.pop("ssl.cabundle", None)) is not None:
        properties["ssl"] = {"cabundle": bundle}
    if _is_signed(properties):
        _check_aws_credentials(settings)
    elif (password := settings.read_catalog_password()) is not None:
        properties |= {"credential": f"{user}:{password}"} if user else {"token": password}
    if not _has_proxy(properties["uri"]):
        _check_reachable(settings, parts.hostname or "", parts.port or _DEFAULT_PORTS[parts.scheme])
    properties.pop("type", None)
    # Made here and not by PyIceberg's load_catalog, which fails if its own configuration file says anything of the type.
    return TimedRestCatalog(settings.catalog_name, **properties)


def _is_signed(properties: dict[str, Any]) -> bool:
    return str(properties.get("rest.sigv4-enabled", "")).lower() == "true"


def _check_aws_credentials(settings: Settings) -> None:
    import boto3

    def look() -> None:
        if boto3.Session().get_credentials() is None:
            raise _no_credentials(settings)

    # Cached, since a session takes 10 ms to make; a call that raises is not cached.
    once_per_process(("AWS credentials",), look)


def _no_credentials(settings: Settings) -> CatalogError:
    return CatalogError(
        f"{shown(settings)}: requests are to be signed, but there are no AWS credentials; "
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
    )


def _has_proxy(uri: str) -> bool:
    """Whether requests go through a proxy of the environment (``HTTPS_PROXY``, ``NO_PROXY``): maybe only the proxy can resolve the host."""
    from requests.utils import get_environ_proxies, select_proxy

    return select_proxy(uri, get_environ_proxies(uri)) is not None


def _check_reachable(settings: Settings, host: str, port: int) -> None:
    """Notice a wrong name or address here; PyIceberg's own error would name neither."""
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise CatalogError(
            f"{shown(settings)} cannot be reached ({error.strerror or error}); start the server, or correct host and port in ROLLUP_CATALOG"
        ) from error
