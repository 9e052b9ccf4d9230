"""What runs on Spark's workers: as little code as possible, since importing it counts against their time limit."""

from __future__ import annotations

import platform
import socket

from rollup_assets import __version__
from rollup_assets.doctor.findings import Found, failed, told
from rollup_assets.doctor.probes import probe
from rollup_assets.engines.base import TaskContext
from rollup_assets.errors import StorageError
from rollup_assets.storage.filesystems import Place

_ACCESS = "let the user that Spark's workers run as read raw data, and read and write stage and warehouse"


def who(_: int, __: TaskContext) -> str:
    """This worker's versions and name."""
    return f"rollup_assets {__version__}, Python {platform.python_version()}, on {socket.gethostname()}"


def what_is_wrong_with_data(item: tuple[Place, Place | None, tuple[Place, ...]], _: TaskContext) -> Found | None:
    """What this worker cannot do, with the remedy; None if it can do everything.

    ``item``: raw data, which is listed; a file in it, which is read; the driver's probes, next to each of which a probe is written.
    """
    raw, file, probes = item
    try:
        raw.folders()
        if file is not None:
            if not file.exists():
                raise StorageError(f"{file.uri}, which the driver can read, is not there; use a place that driver and workers share")
            with file.open_input() as stream:
                stream.read(1)
        for theirs in probes:
            if not theirs.exists():
                raise StorageError(f"{theirs.uri}, just written by the driver, is not there; use a place that driver and workers share")
            probe(theirs.beside(""))
    except StorageError as error:
        return told(error)
    except OSError as error:
        return failed((str(error).splitlines() or [type(error).__name__])[0], _ACCESS if isinstance(error, PermissionError) else "")
    return None
