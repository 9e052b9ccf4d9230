"""Raw data, stage and warehouse: whether they can be read and written, on disks and on S3, by this process's identity.

Raw data is only read. Also whether what goes to other machines is encrypted; a database says so itself (``doctor.catalog``).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from urllib.parse import urlsplit

from rollup_assets.doctor.findings import Chain, Check, Found, failed, warning
from rollup_assets.doctor.machine import is_this_machine
from rollup_assets.doctor.probes import probe, some_file
from rollup_assets.errors import StorageError
from rollup_assets.iceberg.catalog import is_rest
from rollup_assets.settings import Settings
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.s3 import SCHEME
from rollup_assets.storage.storage_errors import storage_error

_WRITTEN = ("stage", "warehouse")


def chains() -> list[Chain]:
    """These checks are independent of each other."""
    checks = [Check("raw data", raw_data, "ROLLUP_RAW and ROLLUP_S3_ENDPOINT")]
    checks += [Check(name, functools.partial(written, name), f"ROLLUP_{name.upper()} and ROLLUP_S3_ENDPOINT") for name in _WRITTEN]
    checks.append(Check("scratch", scratch, "ROLLUP_HOME"))
    checks.append(Check("encryption", encryption, "ROLLUP_S3_ENDPOINT and ROLLUP_CATALOG"))
    return [Chain((check,)) for check in checks]


def raw_data(settings: Settings) -> Found:
    """List the raw data and read a byte of a file; nothing is written."""
    place = Place.parse(settings.raw, settings.s3)
    for name in _WRITTEN:
        location = str(getattr(settings, name))
        if location == settings.raw or location.startswith(f"{settings.raw.rstrip('/')}/"):
            return failed(
                f"ROLLUP_{name.upper()}={location} lies in ROLLUP_RAW={settings.raw}, to which nothing may be written",
                f"set ROLLUP_{name.upper()} to another folder",
            )
    with _local_errors("ROLLUP_RAW", settings.raw, "readable"):
        file = some_file(place)
        if file is None:
            return warning(
                f"{place.uri} can be listed, but has no raw files", "set ROLLUP_RAW to the folder that has them, or write some there"
            )
        with file.open_input() as stream:
            stream.read(1)
    return Found(f"{place.uri} can be listed and read, for example {file.uri.removeprefix(place.uri).lstrip('/')}")


def written(name: str, settings: Settings) -> Found:
    """Write a probe, read it, replace it under a condition that holds and under one that does not, and delete it."""
    location = str(getattr(settings, name))
    place = Place.parse(location, settings.s3)
    with _local_errors(f"ROLLUP_{name.upper()}", location, "writable"):
        honours_conditions = probe(place)
    if not honours_conditions:
        return warning(
            f"{place.uri} can be written, read and deleted, but the store ignores the conditions of a write",
            "never let two runs stage the same batch at once, or use a store with conditional writes (If-Match, If-None-Match)",
        )
    return Found(f"{place.uri} can be written, read and deleted" + ("" if place.is_local else ", and conditional writes are honoured"))


def scratch(settings: Settings) -> Found:
    """Check the local folder for data that does not fit into memory."""
    place = Place.parse(str(settings.home / "scratch"))
    with _local_errors("ROLLUP_HOME", str(settings.home), "writable"):
        probe(place)
    return Found(f"{place.uri} can be written, read and deleted")


def encryption(settings: Settings) -> Found:
    """Whether, by the settings, S3 and a REST catalog on other machines are used over TLS; no request is made."""
    asked = {}
    if any(location.startswith(SCHEME) for location in (settings.raw, settings.stage, settings.warehouse)):
        asked["ROLLUP_S3_ENDPOINT"] = settings.s3_endpoint
    if is_rest(settings):
        asked["ROLLUP_CATALOG"] = settings.catalog.removeprefix("rest+")
    plain = {
        setting: parts.hostname
        for setting, address in asked.items()
        if (parts := urlsplit(address)).scheme == "http" and not is_this_machine(parts.hostname or "")
    }
    if plain:
        asking = " and ".join(f"{setting} asks {host}" for setting, host in plain.items())
        return warning(
            f"{asking} over http: what is sent can be read and changed in transit",
            f"write https in {' and '.join(plain)}, or make sure that the network in between is safe",
        )
    return Found("S3 and REST catalogs on other machines are reached over TLS" if asked else "neither S3 nor a REST catalog is used")


@contextlib.contextmanager
def _local_errors(setting: str, location: str, wanted: str) -> Iterator[None]:
    """Turn the operating system's refusals into a sentence; errors of remote stores have their own."""
    try:
        yield
    except OSError as error:
        if known := storage_error(error, location):
            raise known from error
        reason = error.strerror or (str(error).splitlines() or [""])[0]
        raise StorageError(
            f"{setting}={location} is not {wanted} ({reason}); make it {wanted} for this user, or set {setting} to a folder that is"
        ) from error
