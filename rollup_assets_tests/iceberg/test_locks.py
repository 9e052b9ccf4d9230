"""The lock that publishers of one table queue at."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from rollup_assets.errors import CatalogError, LockTimeoutError
from rollup_assets.iceberg.locks import lock_file, table_lock
from rollup_assets.settings import Settings, load_settings


def settings_in(home: Path, **overrides: Any) -> Settings:
    return load_settings(home=str(home), **overrides)


def _hold(path: str, ready: Any, done: Any) -> None:
    from filelock import FileLock

    with FileLock(path):
        ready.set()
        done.wait(30)


def test_a_held_lock_is_named_and_dies_with_its_process(tmp_path: Path) -> None:
    """Another process holds the lock: the message names the file. The process is killed: the lock is free."""
    settings = settings_in(tmp_path)
    path = lock_file(settings)
    assert path == tmp_path / "catalog.db.metrics.rollups.lock"
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=_hold, args=(str(path), ready, done))
    holder.start()
    assert ready.wait(30)
    with pytest.raises(LockTimeoutError, match=str(path)), table_lock(settings, timeout=0.1):
        pass
    holder.kill()
    holder.join()
    with table_lock(settings, timeout=5):
        pass


def test_tables_of_one_catalog_have_locks_of_their_own(tmp_path: Path) -> None:
    with table_lock(settings_in(tmp_path)), table_lock(settings_in(tmp_path, table="metrics.other"), timeout=0.1):
        pass


def test_a_lock_that_this_user_cannot_take_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder cannot be made, or the file is another user's. Both were Python's tracebacks, after everything had been staged."""
    from filelock import FileLock

    says = "set ROLLUP_CATALOG or ROLLUP_HOME to a place where this user may write"
    (tmp_path / "file").touch()
    with pytest.raises(CatalogError, match=says), table_lock(settings_in(tmp_path, catalog=f"sqlite:///{tmp_path}/file/folder/catalog.db")):
        pass
    monkeypatch.setattr(FileLock, "acquire", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with (
        pytest.raises(CatalogError, match=rf"cannot be used \(\[Errno 13\] Permission denied\); {says}"),
        table_lock(settings_in(tmp_path)),
    ):
        pass
