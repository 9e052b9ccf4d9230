"""What makes a skipped test fail where everything has to be there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import rollup_assets

PROJECT = Path(rollup_assets.__file__).parent.parent
TESTS = """
import pytest

def test_that_needs_something():
    pytest.skip("Chromium is not installed: apt-get install chromium")

@pytest.mark.xfail(strict=True)
def test_that_is_expected_to_fail():
    assert False

def test_that_passes():
    pass
"""
MODULE = "import pytest; pytest.importorskip('no_such_library')"


@pytest.mark.parametrize(
    ("require", "status", "summary"), [("", 0, "1 passed, 2 skipped, 1 xfailed"), ("all", 1, "1 failed, 1 passed, 1 xfailed, 1 error")]
)
def test_a_skip_is_a_failure_if_everything_is_required(tmp_path: Path, require: str, status: int, summary: str) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_module.py").write_text(MODULE)
    (tmp_path / "pytest.ini").write_text("[pytest]")
    options = ["-p", "rollup_assets_tests.conftest", "-p", "no:cacheprovider", "-rs", "--continue-on-collection-errors"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "ROLLUP_TEST_REQUIRE": require, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ran.returncode, summary in ran.stdout) == (status, True), ran.stdout + ran.stderr
    assert "Chromium is not installed: apt-get install chromium" in ran.stdout
