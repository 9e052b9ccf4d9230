"""DAGSTER_HOME: a new one is quiet, whole and modest; one that is there is left as it is."""

from __future__ import annotations

import importlib
from pathlib import Path

import dagster as dg
import pytest

from rollup_assets.defs import dagster_private
from rollup_assets.defs.dagster_home import NEW_HOME, RUNS_AT_ONCE, ensure_dagster_home
from rollup_assets.errors import DagsterHomeError
from rollup_assets.settings import load_settings
from rollup_assets_tests.conftest import WithDagsterHome


def test_a_new_home_lets_no_more_runs_go_at_once_than_memory_is_there_for(with_dagster_home: WithDagsterHome, tmp_path: Path) -> None:
    home = load_settings(home=with_dagster_home(tmp_path)).dagster_home
    with dg.DagsterInstance.from_config(str(home)) as instance:
        runs = instance.get_concurrency_config().run_queue_config
    assert runs is not None
    assert runs.max_concurrent_runs == RUNS_AT_ONCE


def test_a_home_that_is_there_keeps_its_configuration(tmp_path: Path) -> None:
    settings = load_settings(home=tmp_path)
    settings.dagster_home.mkdir(parents=True)
    (settings.dagster_home / "dagster.yaml").write_text("telemetry:\n  enabled: true\n")
    ensure_dagster_home(settings)
    assert (settings.dagster_home / "dagster.yaml").read_text() == "telemetry:\n  enabled: true\n"


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(DagsterHomeError, match="No space left on device"):
        ensure_dagster_home(load_settings(home=tmp_path))


def test_a_home_whose_making_was_interrupted_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(home=tmp_path)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(dg.DagsterInstance, "from_config", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ensure_dagster_home(settings)
    assert not list(tmp_path.iterdir())
    home = ensure_dagster_home(settings)
    assert (home / "dagster.yaml").read_text() == NEW_HOME
    assert list(tmp_path.iterdir()) == [home]


def test_a_home_that_another_command_makes_meanwhile_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(home=tmp_path)
    make = dg.DagsterInstance.from_config

    def somebody_is_faster(folder: str) -> dg.DagsterInstance:
        settings.dagster_home.mkdir()
        (settings.dagster_home / "dagster.yaml").write_text("# theirs")
        return make(folder)

    monkeypatch.setattr(dg.DagsterInstance, "from_config", somebody_is_faster)
    home = ensure_dagster_home(settings)
    assert (home / "dagster.yaml").read_text() == "# theirs"
    assert list(tmp_path.iterdir()) == [home]


def test_a_new_home_has_its_databases_before_several_processes_open_it_at_once(tmp_path: Path) -> None:
    """Web server, daemon and code server start together; whichever finds SQLite's tables half made does not load."""
    home = ensure_dagster_home(load_settings(home=tmp_path))
    assert (home / "schedules/schedules.db").stat().st_size > 0
    assert (home / "history/runs.db").stat().st_size > 0


def test_dagster_still_has_what_keeps_the_terminal_to_a_backfill() -> None:
    """Where the class is gone, opening the home fails; this says why."""
    keeps = dagster_private.KEEP_TERMINAL["compute_logs"]
    assert hasattr(importlib.import_module(keeps["module"]), keeps["class"])
