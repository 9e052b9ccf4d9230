"""``rollups demo`` on generated data and on a recording, twice each."""

from __future__ import annotations

import io
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from rollup_assets import demo
from rollup_assets.settings import load_settings
from rollup_assets.storage.filesystems import Place
from rollup_assets_tests.test_cli import plain, runner

RECORDING = Path(__file__).resolve().parent.parent / "examples" / "host-metrics"


def raw_files(home: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in (home / "raw_datapoints").rglob("*") if path.is_file()}


def test_demo_generates_publishes_verifies_and_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner(tmp_path, monkeypatch)
    text = plain(run("demo", "--series", 100).output)
    for piece in ("nulls", "8 partitions published", "agree with raw data", "rate per second", "of total", "rollups dev", "rollups sql"):
        assert piece in text, piece
    before = raw_files(tmp_path)
    again = plain(run("demo", "--series", 100).output)
    assert "raw files of 6 batches are in" in again
    assert "agree with raw data" in again
    assert raw_files(tmp_path) == before


def test_demo_copies_a_recording_once_and_only_into_an_empty_landing_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In which rich would see the code for a picture, as in names of metrics.
    data = tmp_path / "recording:x:2026"
    for hour in (10, 11):
        folder = f"year=2026/month=11/day=22/hour={hour}"
        (data / folder).mkdir(parents=True)
        for file in sorted((RECORDING / folder).iterdir())[:2]:
            shutil.copy(file, data / folder)
    home = tmp_path / "home"
    run = runner(home, monkeypatch)
    text = plain(run("demo", "--data", data).output)
    assert f"4 files of 2 batches copied from {data} to" in text
    assert "agree with raw data" in text
    assert sorted(path.name for path in (home / "raw_datapoints").rglob("*.parquet")) == sorted(
        path.name for path in data.rglob("*.parquet")
    )
    before = raw_files(home)
    assert "stay as they are" in plain(run("demo", "--data", RECORDING).output)
    assert raw_files(home) == before


@pytest.mark.parametrize("place", ["disk", "store"])
def test_an_interrupted_copy_is_finished_by_running_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """On a disk a batch comes whole, on a store file by file. What is there is not copied again."""
    settings = load_settings(home=str(tmp_path))
    raw = tmp_path / "raw_datapoints"
    console = Console(quiet=True)
    if place == "store":
        monkeypatch.setattr(Place, "is_local", False)
    wanted = demo._copy(settings, RECORDING, console)
    names = {path.relative_to(raw) for path in raw.rglob("*.parquet")}
    kept = next(raw.rglob("hour=11/*.parquet"))
    before = kept.stat().st_mtime_ns
    gone = [*raw.rglob("hour=10/*.parquet")][0 if place == "disk" else 3 :]
    for path in gone:
        path.unlink()
    assert demo._copy(settings, RECORDING, console) == wanted
    assert {path.relative_to(raw) for path in raw.rglob("*.parquet")} == names
    assert kept.stat().st_mtime_ns == before


def test_demo_refuses_a_folder_without_raw_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    refused = runner(tmp_path / "home", monkeypatch)("demo", "--data", tmp_path / "empty", status=1)
    assert "has no raw files" in plain(refused.stderr)


def test_demo_leaves_other_raw_data_alone_and_shows_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runner(tmp_path, monkeypatch)
    run("generate", "--from", "2026-02-01-00:00", "--hours", 1, "--series", 40, "--files", 1)
    before = raw_files(tmp_path)
    text = plain(run("demo").output)
    assert "raw files of 1 batch are in" in text
    assert "backfill 2026-02-01-00:00 2026-02-01-00:00" in text
    assert "agree with raw data" in text
    assert raw_files(tmp_path) == before


@pytest.mark.parametrize("activated", [False, True])
def test_what_it_says_to_go_on_with_runs_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, activated: bool) -> None:
    """Nobody has activated the environment that ``make demo`` made, and a home may have a blank in its name."""
    programs = Path(sys.executable).parent
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin" if activated else "/usr/bin:/bin")
    home = tmp_path / "a home; with $(blanks)"
    out = io.StringIO()
    demo._show_next(load_settings(home=str(home)), Console(file=out, width=80))
    commands = [line.strip() for line in out.getvalue().splitlines() if line.startswith("    ")]
    assert [shlex.split(command)[2] for command in commands] == ["dev", "sql", "status"]
    (program,) = {shlex.split(command)[1] for command in commands}
    assert program == "rollups" if activated else Path(program).absolute() == programs / "rollups"
    dev, sql, status = commands
    for command in (f"{dev} --help", f"{sql} --help"):
        assert "For example" in subprocess.run(command, shell=True, capture_output=True, text=True, check=True).stdout
    asked = subprocess.run(status, shell=True, capture_output=True, text=True, check=True)
    assert f"nothing in {home}/raw_datapoints yet" in asked.stdout


@pytest.mark.parametrize(("records", "prefix"), [(None, ""), ("/elsewhere", ""), ("", "DAGSTER_HOME= ")])
def test_what_it_says_to_go_on_with_opens_the_records_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, records: str | None, prefix: str
) -> None:
    """Also in a terminal whose ``DAGSTER_HOME`` ``make demo`` has emptied, for itself alone."""
    if records is not None:
        monkeypatch.setenv("DAGSTER_HOME", records)
    out = io.StringIO()
    demo._show_next(load_settings(home=str(tmp_path)), Console(file=out, width=80))
    commands = [line.strip() for line in out.getvalue().splitlines() if line.startswith("    ")]
    assert [command.startswith(f"{prefix}ROLLUP_HOME={tmp_path} ") for command in commands] == [True, True, True]


def test_a_program_below_the_current_folder_is_named_from_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my env" / "bin" / "python"))
    for folder, program in {".": "'my env/bin/rollups'", "my env": "bin/rollups", "my env/bin": f"'{tmp_path}/my env/bin/rollups'"}.items():
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        monkeypatch.chdir(tmp_path / folder)
        assert demo._program() == program
