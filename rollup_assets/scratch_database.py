"""DuckDB for one command: an in-memory database within the settings' limits of threads and memory, with a folder for what does not fit.

What is computed in it stays out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rollup_assets.settings import Settings
from rollup_assets.storage.leftovers import TEMPORARY

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


@contextmanager
def scratch_database(settings: Settings) -> Iterator[tuple[DuckDBPyConnection, Path]]:
    """The database and its folder in the home, which may hold other files too; both are deleted at the end."""
    settings.home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=settings.home) as folder, connect(settings, Path(folder)) as db:
        yield db, Path(folder)


def connect(settings: Settings, folder: Path) -> DuckDBPyConnection:
    """A database that spills into the folder."""
    import duckdb

    found = duckdb.connect(
        config={
            "threads": settings.threads,
            "memory_limit": f"{settings.memory // 2**20}MiB",
            "temp_directory": str(folder),
            "preserve_insertion_order": False,
            # All it needs is built in; a file's contents must not make it fetch an extension.
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
        }
    )
    found.execute("SET TimeZone = 'UTC'")
    return found
