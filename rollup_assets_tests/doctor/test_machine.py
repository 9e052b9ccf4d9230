"""Python, kernels, memory and disks, good and bad."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from rollup_assets.doctor import machine
from rollup_assets.machine import machine_memory
from rollup_assets.settings import load_settings


def test_python_and_packages_are_as_asked_for(tmp_path: Path) -> None:
    found = machine.python(load_settings(home=str(tmp_path)))
    assert found.state == "ok", found
    assert f"dagster {importlib.metadata.version('dagster')}" in found.text
    assert "pyspark" not in found.text
    found = machine.python(load_settings(home=str(tmp_path), engine="spark", catalog="postgresql+psycopg://u@h/d"))
    assert found.state == "ok", found
    assert f"pyspark {importlib.metadata.version('pyspark')}" in found.text


@pytest.mark.parametrize("name", ["pyarrow", "psycopg", "pyspark"])
def test_missing_and_other_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    settings = load_settings(home=str(tmp_path), engine="spark", catalog="postgresql+psycopg://u@h/d")
    version = importlib.metadata.version

    def without(asked: str) -> str:
        if asked == name:
            raise importlib.metadata.PackageNotFoundError(asked)
        return version(asked)

    monkeypatch.setattr(importlib.metadata, "version", without)
    found = machine.python(settings)
    assert (found.state, found.text) == ("failed", f"not installed: {name}")
    assert found.remedy == "install it with `pip install 'rollup_assets[postgres,spark]'`"
    monkeypatch.setattr(importlib.metadata, "version", lambda asked: "0.0.1" if asked == name else version(asked))
    found = machine.python(settings)
    assert found.state == "warning"
    assert f"other versions than tested: {name} 0.0.1 (" in found.text


def kernels(folder: Path, **environment: str) -> dict[str, str]:
    """The check in a process of its own: numba reads its settings as it is imported."""
    code = (
        "import json; from rollup_assets.doctor.machine import kernels; from rollup_assets.settings import load_settings; "
        f"found = kernels(load_settings(home={str(folder)!r})); print(json.dumps([found.state, found.text, found.remedy]))"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(("state", "text", "remedy"), json.loads(done.stdout), strict=True))


def test_kernels_are_compiled_or_not(tmp_path: Path) -> None:
    """Also where only one is compiled, and where its source has changed since: nothing here is numba's public interface."""
    cache = tmp_path / "cache"
    found = kernels(tmp_path, NUMBA_CACHE_DIR=str(cache))
    assert found["state"] == "warning", found
    everything = int(found["text"].partition(" of ")[2].split()[0])
    assert everything > 30
    assert found["text"].startswith(f"{everything} of {everything} are not compiled")
    assert str(cache) in found["text"]
    assert found["remedy"] == "run `python -m rollup_assets.precompile` first"
    compile_one = "import numpy as np; from rollup_assets.kernels.checksums import weight; weight(np.uint64(1))"
    subprocess.run([sys.executable, "-c", compile_one], env={**os.environ, "NUMBA_CACHE_DIR": str(cache)}, check=True)
    found = kernels(tmp_path, NUMBA_CACHE_DIR=str(cache))
    assert found["text"].startswith(f"{everything - 1} of {everything} are not compiled")
    found = kernels(tmp_path, NUMBA_CACHE_DIR=str(cache), NUMBA_CPU_NAME="generic")
    assert found["text"].startswith(f"{everything} of {everything} are not compiled"), "for another processor"


def test_a_machine_without_a_place_for_compiled_code_is_told_to_name_one(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    nowhere = {"NUMBA_CACHE_DIR": str(tmp_path / "file" / "x"), "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator"}
    found = kernels(tmp_path, **nowhere)
    assert (found["state"], found["remedy"]) == ("failed", "set NUMBA_CACHE_DIR to a writable folder")


@pytest.mark.parametrize(
    ("settings", "state", "remedy"),
    [
        ({}, "ok", ""),
        ({"memory": machine_memory()}, "warning", "ROLLUP_MEMORY"),
        ({"threads": 1000}, "warning", "ROLLUP_THREADS"),
        ({"engine": "spark", "spark_master": "local[1]", "spark_task_memory": "256MiB"}, "ok", ""),
        ({"engine": "spark", "spark_master": "local[500]"}, "warning", "ROLLUP_SPARK_TASK_MEMORY"),
        ({"engine": "spark", "spark_master": "spark://master:7077"}, "skipped", ""),
        ({"engine": "spark", "spark_remote": "sc://server"}, "skipped", ""),
    ],
)
def test_memory_and_threads_fit_the_machine(tmp_path: Path, settings: dict[str, Any], state: str, remedy: str) -> None:
    found = machine.memory(load_settings(home=str(tmp_path), **settings))
    assert (found.state, remedy in found.remedy) == (state, True), found


class Usage(NamedTuple):
    free: int


def test_a_disk_with_little_space_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_settings(home=str(tmp_path / "not" / "there"), stage="s3://lake/stage", warehouse=str(tmp_path / "warehouse"))
    found = machine.disk_space(settings)
    assert found.state == "ok", found
    assert f"free for scratch and warehouse ({tmp_path})" in found.text
    for free, state in ((machine.ENOUGH_DISK - 1, "warning"), (machine.LEAST_DISK - 1, "failed")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(free))
        found = machine.disk_space(settings)
        assert (found.state, "ROLLUP_HOME" in found.remedy) == (state, True), found
    assert not list(tmp_path.iterdir())
