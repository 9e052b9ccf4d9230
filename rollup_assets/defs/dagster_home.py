"""DAGSTER_HOME, the folder with Dagster's records of runs: whether it can be used, making a new one, and opening it.

Runs stay out (``defs.backfill``).
"""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from rollup_assets.defs.dagster_private import KEEP_TERMINAL
from rollup_assets.errors import DagsterHomeError
from rollup_assets.settings import Settings
from rollup_assets.units import count_text

# Runs of the UI, schedule and sensor; by default ten would run at once. `rollups dev` divides the machine's memory among these.
RUNS_AT_ONCE = 2
# Without Dagster's "new user experience", a dialog that asks for an e-mail address first, and without telemetry to other machines.
NEW_HOME = f"nux:\n  enabled: false\ntelemetry:\n  enabled: false\nconcurrency:\n  runs:\n    max_concurrent_runs: {RUNS_AT_ONCE}\n"


def describe_home(settings: Settings) -> str:
    """Where runs are recorded, and how many there are. A folder that is new, or has only a configuration file, is left as it is.

    Raises:
        DagsterHomeError: the records cannot be opened or made.
    """
    home = dagster_home_of(settings)
    require_usable(home)
    if not home.exists():
        return f"{home} is not there yet; the first run makes it"
    if not _has_storage_of_its_own(home) and not any(found.name != "dagster.yaml" for found in home.iterdir()):
        return f"{home} has no runs yet"
    try:
        with dg.DagsterInstance.from_config(str(home)) as instance:
            count = instance.get_runs_count()
    except Exception as error:  # dagster.yaml may name classes that raise anything
        raise not_opened(home, error) from error
    return f"{home} can be opened; {count_text(count, 'run')}"


def dagster_home_of(settings: Settings) -> Path:
    """The folder where runs are recorded, whether or not it is there."""
    return settings.dagster_home.expanduser().resolve()


def ensure_dagster_home(settings: Settings) -> Path:
    """The folder where runs are recorded. A new one is made with a quiet ``dagster.yaml``; an existing one is left as it is.

    Raises:
        DagsterHomeError: it cannot be a folder, or cannot be written or made.
    """
    home = dagster_home_of(settings)
    require_usable(home)
    if not home.exists():
        # Made under another name until it is complete: half a home would be taken for one that the user configured.
        unfinished = home.with_name(f".{home.name}-{uuid.uuid4().hex}")
        try:
            unfinished.mkdir(parents=True)
            (unfinished / "dagster.yaml").write_text(NEW_HOME)
            # This makes the databases. Otherwise web server, daemon and code server would, all at once, which SQLite's migrations do not
            # support: a code server that comes second fails to load.
            with dg.DagsterInstance.from_config(str(unfinished)) as instance:
                instance.get_runs_count()
            _rename_unless_there(unfinished, home)
        except Exception as error:  # the disk's or the databases'
            raise not_opened(home, error) from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    return home


def _rename_unless_there(made: Path, home: Path) -> None:
    """Rename the new home, unless another command has made the same one meanwhile: then that one is used."""
    try:
        made.rename(home)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


@contextmanager
def open_dagster_home(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """Dagster's records of runs, for runs of this process.

    Raises:
        DagsterHomeError: they cannot be opened or made; errors inside the ``with`` block pass unchanged.
    """
    home = ensure_dagster_home(settings)
    try:
        instance = dg.DagsterInstance.local_temp(str(home), overrides=KEEP_TERMINAL)
        instance.get_runs_count()
    except Exception as error:  # dagster.yaml may name classes that raise anything
        raise not_opened(home, error) from error
    with instance:
        yield instance


def require_usable(home: Path) -> None:
    """Refuse a path that cannot be a folder for runs.

    Raises:
        DagsterHomeError: it is a file or below one, or this user cannot write it and its dagster.yaml keeps runs nowhere else.
    """
    try:
        nearest = next(folder for folder in (home, *home.parents) if folder.exists())
        is_folder = nearest.is_dir()
    except OSError as error:
        raise not_opened(home, error) from error
    if not is_folder:
        raise DagsterHomeError(f"DAGSTER_HOME={home} cannot be a folder, since {nearest} is a file; set it to another one")
    if not _has_storage_of_its_own(home) and not os.access(nearest, os.W_OK | os.X_OK):
        raise DagsterHomeError(f"DAGSTER_HOME={home} cannot be written by this user; set it to a folder that can")


def may_be_shared(settings: Settings) -> bool:
    """Whether processes of other machines may record runs there too.

    Not if dagster.yaml names no storage: then runs are in SQLite databases in the folder, which only processes of one machine can share.
    """
    return _has_storage_of_its_own(dagster_home_of(settings))


def not_opened(home: Path, error: Exception) -> DagsterHomeError:
    """The error for a home that could not be opened or made."""
    reason = (str(error).splitlines() or [""])[0][:300]
    return DagsterHomeError(
        f"DAGSTER_HOME={home} cannot be opened ({type(error).__name__}: {reason}); correct its dagster.yaml or the database that it "
        "names, or set DAGSTER_HOME to another folder"
    )


def _has_storage_of_its_own(home: Path) -> bool:
    """Whether dagster.yaml configures a storage other than the folder."""
    import yaml  # type: ignore[import-untyped]

    try:
        configured = yaml.safe_load((home / "dagster.yaml").read_text())
    except (OSError, yaml.YAMLError):
        return False
    return isinstance(configured, dict) and not {"storage", "run_storage"}.isdisjoint(configured)
