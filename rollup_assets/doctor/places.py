"""Raw data, stage and warehouse: whether they can be read and written, on disks and on S3, by this process's identity.

A probe is a small file of a name of its own, deleted again; raw data gets none.
"""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import Iterator
from pathlib import Path

from rollup_assets.doctor.findings import Chain, Check, Found, failed, warning
from rollup_assets.errors import ConcurrentWriteError, StorageError
from rollup_assets.settings import Settings
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.storage_errors import storage_error

_WRITTEN = ("stage", "warehouse")


def chains() -> list[Chain]:
    """Each of these stands for itself."""
    checks = [Check("raw data", raw_data, "ROLLUP_RAW and ROLLUP_S3_ENDPOINT")]
    checks += [Check(name, functools.partial(written, name), f"ROLLUP_{name.upper()} and ROLLUP_S3_ENDPOINT") for name in _WRITTEN]
    checks.append(Check("scratch", scratch, "ROLLUP_HOME"))
    return [Chain((check,)) for check in checks]


def raw_data(settings: Settings) -> Found:
    """List it and read a byte of a file; nothing is written."""
    place = Place.parse(settings.raw, settings.s3)
    for name in _WRITTEN:
        location = str(getattr(settings, name))
        if location == settings.raw or location.startswith(f"{settings.raw.rstrip('/')}/"):
            return failed(
                f"ROLLUP_{name.upper()}={location} lies in ROLLUP_RAW={settings.raw}, to which nothing may be written",
                f"set ROLLUP_{name.upper()} to another folder",
            )
    with _local_errors("ROLLUP_RAW", settings.raw, "readable"):
        file = _some_file(place)
        if file is None:
            return warning(f"{place.uri} can be listed and has no raw file", "set ROLLUP_RAW to where they are, or write some there")
        with file.open_input() as stream:
            stream.read(1)
    return Found(f"{place.uri} can be listed and read, for example {file.uri.removeprefix(place.uri).lstrip('/')}")


def written(name: str, settings: Settings) -> Found:
    """Write a probe, read it, replace it on a condition that holds and on one that does not, and delete it."""
    location = str(getattr(settings, name))
    place = Place.parse(location, settings.s3)
    with _local_errors(f"ROLLUP_{name.upper()}", location, "writable"):
        honours_conditions = probe(place)
    if not honours_conditions:
        return warning(
            f"{place.uri} can be written, read and deleted, but the store ignores the conditions of a write",
            "have no two runs stage the same batch at once, or use a store with conditional writes (If-Match, If-None-Match)",
        )
    return Found(f"{place.uri} can be written, read and deleted" + ("" if place.is_local else ", and conditional writes are honoured"))


def scratch(settings: Settings) -> Found:
    """The local folder for data that does not fit into memory."""
    place = Place.parse(str(settings.home / "scratch"))
    with _local_errors("ROLLUP_HOME", str(settings.home), "writable"):
        probe(place)
    return Found(f"{place.uri} can be written, read and deleted")


def probe(folder: Place) -> bool:
    """Whether a store with versions keeps one writer from overwriting what it has not seen; true on disks, which have none.

    Raises:
        StorageError: the store cannot be reached, or does not allow something.
        OSError: the disk does not.
    """
    with probe_file(folder) as file:
        with file.open_input() as stream:
            if stream.read() != file.name.encode():
                raise StorageError(f"{file.uri} was written and reads otherwise; look at the store's log")
        _, version = file.read_versioned()
        file.replace_bytes(b"again", version)
        if file.is_local:
            return True
        try:
            file.replace_bytes(b"by somebody who saw no file", None)
        except ConcurrentWriteError:
            return True
        return False


@contextlib.contextmanager
def probe_file(folder: Place) -> Iterator[Place]:
    """A file with its own name as content; when the block ends it is gone, and so are the local folders that were made for it."""
    file = folder / f".rollups-doctor-{uuid.uuid4().hex}"
    with _made_folders_removed(folder):
        try:
            file.write_bytes(file.name.encode())
            yield file
        except BaseException:
            with contextlib.suppress(Exception):
                file.delete_file()
            raise
        file.delete_file()
        if file.exists():
            raise StorageError(f"{file.uri} was deleted and is still there; look at the store's log")


@contextlib.contextmanager
def _made_folders_removed(folder: Place) -> Iterator[None]:
    path = Path(folder.location)
    missing = [one for one in (path, *path.parents) if not one.exists()] if folder.is_local else []
    try:
        yield
    finally:
        for made in missing:
            # Not empty: somebody else has begun to use it.
            with contextlib.suppress(OSError):
                made.rmdir()


@contextlib.contextmanager
def _local_errors(setting: str, location: str, wanted: str) -> Iterator[None]:
    """What the operating system refuses, in a sentence; stores elsewhere have their own."""
    try:
        yield
    except OSError as error:
        if known := storage_error(error, location):
            raise known from error
        reason = error.strerror or (str(error).splitlines() or [""])[0]
        raise StorageError(
            f"{setting}={location} is not {wanted} ({reason}); make it {wanted} for this user, or set {setting} to a folder that is"
        ) from error


def _some_file(folder: Place) -> Place | None:
    """A raw file, of one of the latest batches; found folder by folder, since there may be millions."""
    for name in reversed([name for name in folder.folders() if not name.startswith(("_", "."))]):
        if (found := _some_file(folder / name)) is not None:
            return found
    return next((folder / file.name for file in folder.files(recursive=False) if not file.name.startswith(("_", "."))), None)
