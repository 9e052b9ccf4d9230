"""What the doctor says of Spark's workers. What it finds on a cluster is tested in ``integration/test_doctor.py``."""

from __future__ import annotations

import errno
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from rollup_assets.doctor import spark
from rollup_assets.doctor.findings import Found
from rollup_assets.engines.base import NoProgress
from rollup_assets.engines.local import LocalEngine
from rollup_assets.errors import StorageError
from rollup_assets.settings import load_settings


def workers_data(home: Path, monkeypatch: pytest.MonkeyPatch) -> Found:
    """The check of the workers' data, its tasks run here."""

    def run(*arguments: Any) -> list[Found | None]:
        _, _, task, items = arguments
        engine = LocalEngine(threads=1, memory=2**28, scratch=home / "scratch")
        return engine.map(task, items, stage="doctor", rows=0, progress=NoProgress())

    monkeypatch.setattr("rollup_assets.doctor.spark._Spark._run", run)
    checks = {check.name: check for chain in spark.chains(time.monotonic() + 60) for check in chain.checks}
    return checks["workers' data"].look(load_settings(home=str(home), engine="spark"))


def test_workers_that_reach_the_data_are_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert workers_data(tmp_path, monkeypatch).state == "ok"


@pytest.mark.parametrize(
    ("problem", "text", "remedy"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/srv/stage/x"),
            "[Errno 13] Permission denied: '/srv/stage/x'",
            "let the user that Spark's workers run as read raw data, and read and write stage and warehouse",
        ),
        (OSError(errno.ENOSPC, "No space left on device", "/srv/a; b/x"), "[Errno 28] No space left on device: '/srv/a; b/x'", ""),
        (OSError(), "OSError", ""),
        (
            StorageError("/srv/a; b/x is not there; use a place that driver and workers share"),
            "/srv/a; b/x is not there",
            "use a place that driver and workers share",
        ),
    ],
    ids=["no right", "no room", "nothing said", "ours"],
)
def test_what_workers_are_refused_is_told_with_what_mends_it(
    problem: Exception, text: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(_: object) -> bool:
        raise problem

    monkeypatch.setattr("rollup_assets.doctor.tasks.probe", refuses)
    found = workers_data(tmp_path, monkeypatch)
    assert (found.state, found.text, found.remedy) == ("failed", f"on Spark's workers: {text}", remedy)
    assert pickle.loads(pickle.dumps(found)) == found
