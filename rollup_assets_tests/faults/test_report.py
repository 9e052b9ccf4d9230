"""The page shows the runs that are kept, every scenario has a test, and a run of the suite reports what it did."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import rollup_assets_tests
from rollup_assets_tests.faults.report import PAGE, Recorder, blocks, kept_runs, page
from rollup_assets_tests.faults.scenarios import NAMES

TESTS = Path(rollup_assets_tests.__file__).parent
SUITE = """
import pytest

@pytest.mark.scenario("K1", "P2")
def test_of_two(seed):
    assert seed == 42

@pytest.mark.thorough
@pytest.mark.scenario("K1")
@pytest.mark.parametrize("number", [1, 2])
def test_thorough(number):
    assert number == 1

@pytest.mark.scenario("C1")
def test_skipped():
    pytest.skip("no tmpfs here")

def test_of_none():
    pass
"""


def named_scenarios() -> Iterator[tuple[str, str]]:
    """(scenario, test module) of every mark in the tests."""
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text()
        for node in ast.walk(ast.parse(text)) if "mark.scenario(" in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.scenario":
                for argument in node.args:
                    assert isinstance(argument, ast.Constant)
                    yield str(argument.value), path.name


def test_every_scenario_has_a_test() -> None:
    assert {name for name, _ in named_scenarios()} == set(NAMES)
    assert len(set(NAMES)) == len(NAMES) == 34


def test_the_page_shows_what_is_kept() -> None:
    assert PAGE.read_text() == page(PAGE.read_text(), kept_runs())


def test_a_run_reports_its_scenarios_and_their_outcomes(tmp_path: Path) -> None:
    """Those of the suite alone, thorough ones too, over two processes."""
    (tmp_path / "test_some.py").write_text(SUITE)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    options = ["-p", "rollup_assets_tests.conftest", "-p", "no:cacheprovider", "--numprocesses", "2"]
    command = [sys.executable, "-m", "pytest", *options, "--faults", "--seed", "42", "--faults-report", "out/report.json", "."]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert "1 failed, 2 passed, 1 skipped" in ran.stdout, ran.stdout + ran.stderr
    assert "--seed 42" in ran.stdout
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["seed"] == 42
    assert report["versions"].keys() >= {"python", "pyiceberg"}
    assert {name: (test["scenarios"], test["outcome"]) for name, test in report["tests"].items()} == {
        "test_some.py::test_of_two": (["K1", "P2"], "passed"),
        "test_some.py::test_thorough[1]": (["K1"], "passed"),
        "test_some.py::test_thorough[2]": (["K1"], "failed"),
        "test_some.py::test_skipped": (["C1"], "skipped"),
    }


def test_the_matrix_counts_what_passed_in_all_runs(tmp_path: Path) -> None:
    runs = []
    for outcome in ("passed", "failed"):
        recorder = Recorder()
        for phase in ("setup", "call"):
            recorder.heard(
                "rollup_assets_tests/faults/test_kills.py::test_a[x | y::z]", ["K1"], outcome if phase == "call" else "passed", 0.2
            )
        recorder.write(tmp_path / f"{outcome}.json", seed=3)
        runs.append(json.loads((tmp_path / f"{outcome}.json").read_text()))
    matrix = blocks(runs)["matrix"].splitlines()
    (row,) = (line for line in matrix if line.startswith("| **K1** |"))
    assert row.endswith("| `faults/test_kills.py::test_a` | 1 of 2 |")
    (row,) = (line for line in matrix if line.startswith("| **K2** |"))
    assert row.endswith("| none |  |")
    assert runs[0]["tests"]["rollup_assets_tests/faults/test_kills.py::test_a[x | y::z]"]["seconds"] == 0.4


def test_make_test_faults_names_the_folder_whose_options_it_uses() -> None:
    """Pytest knows the options of a folder only where it is named; a value with a space before it would be taken for another one."""
    told = subprocess.run(
        ["make", "--dry-run", "test-faults", "SEED=7"], cwd=PAGE.parent.parent, capture_output=True, text=True, check=True
    )
    # Below another make it also tells which folder it enters and leaves.
    command = next(line for line in told.stdout.splitlines() if "--faults" in line)
    assert "-m pytest rollup_assets_tests " in command
    assert command.endswith("--faults --seed=7 --hypothesis-seed=7")
