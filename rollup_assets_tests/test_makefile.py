"""The Makefile's commands, in a folder of their own: what they delete, and which data and records they work on."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def make(folder: Path, *arguments: str, **environment: str) -> str:
    """What ``make`` prints there, with the checkout's Makefile."""
    program = shutil.which("make")
    assert program
    shutil.copy(ROOT / "Makefile", folder)
    # A make that runs the tests passes its own flags on.
    inherited = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "ROLLUP_HOME")}
    done = subprocess.run([program, *arguments], cwd=folder, env=inherited | environment, capture_output=True, text=True, check=True)
    return done.stdout


def fill(root: Path, *names: str) -> set[str]:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("something")
    return set(names)


def of_the_project() -> set[str]:
    """The folders of ``.rollups`` that demos, benchmarks and the fault suite name for their own data."""
    modules = [path for folder in ("benchmarks", "deploy", "rollup_assets_tests/faults") for path in (ROOT / folder).rglob("*.py")]
    named = re.compile(r"""\.rollups"?(?:/| / ")([\w-]+)""")
    found = {name for module in modules for name in named.findall(module.read_text())}
    return found | {"demo", *(path.name for path in (ROOT / "examples").iterdir())}


def test_clean_leaves_the_data_of_whoever_uses_the_checkout(tmp_path: Path) -> None:
    own = of_the_project()
    assert own >= {"demo", "demo-production", "host-metrics", "benchmark", "benchmark-seed", "faults"}
    fill(tmp_path, ".venv/.ready", "build/lib/a.py", "dist/a.whl", "rollup_assets.egg-info/PKG-INFO")
    fill(tmp_path, *(f".rollups/{name}/a" for name in own))
    kept = fill(
        tmp_path,
        ".env",
        ".rollups/raw_datapoints/year=2026/month=01/day=31/hour=06/a.parquet",
        ".rollups/stage/rollups/2026-01-31-0600/manifest.json",
        ".rollups/catalog.db",
        ".rollups/warehouse/metrics/rollups/data/a.parquet",
        ".rollups/dagster/dagster.yaml",
        ".rollups/demo-of-mine/raw_datapoints/a.parquet",
    )
    make(tmp_path, "clean")
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == kept | {"Makefile"}


@pytest.mark.parametrize("command", ["demo", "dev"])
def test_the_demos_runs_are_not_recorded_where_the_terminal_records_those_of_other_data(tmp_path: Path, command: str) -> None:
    """README's "Work with it" exports ``DAGSTER_HOME`` for ``.rollups``, whose partitions have the same keys."""
    fill(tmp_path, "requirements.lock", "setup.cfg", "pyproject.toml", ".venv/bin/rollups", ".venv/.ready")
    (tmp_path / ".venv/bin/rollups").write_text('#!/bin/sh\necho "$1 in $ROLLUP_HOME, recorded in ${DAGSTER_HOME:-its own}"\n')
    (tmp_path / ".venv/bin/rollups").chmod(0o755)
    expected = f"{command} in .rollups/demo, recorded in its own"
    assert make(tmp_path, command).splitlines()[-1] == expected
    assert make(tmp_path, command, DAGSTER_HOME=str(tmp_path / ".rollups/dagster")).splitlines()[-1] == expected
