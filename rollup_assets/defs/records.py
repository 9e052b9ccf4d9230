"""Dagster's records of runs: whether they can be opened. Making them stays out (``defs.backfill``)."""

from __future__ import annotations

import os
from pathlib import Path

import dagster as dg

from rollup_assets.errors import DagsterHomeError
from rollup_assets.settings import Settings


def describe_records(settings: Settings) -> str:
    """Where runs are recorded, and how many there are. A folder that is new, or has only a configuration file, is left as it is.

    Raises:
        DagsterHomeError: the records cannot be opened or made.
    """
    home = home_of(settings)
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
    return f"{home} can be opened; {count} {'run' if count == 1 else 'runs'}"


def home_of(settings: Settings) -> Path:
    """The folder where runs are recorded, whether or not it is there."""
    return settings.dagster_home.expanduser().resolve()


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
    return _has_storage_of_its_own(home_of(settings))


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
