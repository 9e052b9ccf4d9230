"""The package as an image has it: a wheel of nothing but the sources, in an environment from which the checkout cannot be seen."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

import rollup_assets

ROOT = Path(rollup_assets.__file__).resolve().parents[1]
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "rollup_assets")
"""What the Dockerfile copies to build the wheel."""
PROGRAMS = {"dagster": "dagster", "dagster-webserver": "dagster-webserver", "dagster-daemon": "dagster"}
NOBODY = 65534
"""Without rights, as the images' user; but PostgreSQL wants one that has a name here."""


def build_wheel(folder: Path) -> Path:
    """The wheel, made in a copy of its sources."""
    sources = folder / "sources"
    sources.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, sources / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(sources)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(wheel: Path, folder: Path) -> Path:
    """The interpreter of a new environment with the wheel in it, and the dependencies of this one.

    Those are put into its path instead of being installed again: an editable installation beside them is thereby not seen.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    uv = [
        str(Path(sys.executable).with_name("uv")),
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--offline",
        "--compile-bytecode",
        "--python",
        str(python),
        str(wheel),
    ]
    subprocess.run(uv, check=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    for program, package in PROGRAMS.items():
        (entry,) = (each for each in distribution(package).entry_points if each.group == "console_scripts" and each.name == program)
        script = folder / "bin" / program
        # Guarded: a run is a spawned process, which loads this file again.
        call = f'if __name__ == "__main__":\n    sys.exit({entry.attr}())\n'
        script.write_text(f"#!{python}\nimport sys\nfrom {entry.module} import {entry.attr}\n\n{call}")
        script.chmod(0o755)
    (folder / "bin" / "weed").symlink_to(Path(sys.executable).with_name("weed"))
    return python


def compiled_kernels(python: Path, folder: Path) -> Path:
    """What building the image leaves in its NUMBA_CACHE_DIR, copied from the checkout's cache instead of being compiled again."""
    from numba.core.caching import UserProvidedCacheLocator

    (installed,) = (python.parents[1] / "lib").glob("python*/site-packages/rollup_assets/kernels")
    target = folder / UserProvidedCacheLocator.get_suitable_cache_subpath(str(installed / "rollup.py"))
    target.mkdir(parents=True)
    for cached in (ROOT / "rollup_assets/kernels/__pycache__").glob("*.nb[ci]"):
        shutil.copy(cached, target)
    return folder


def as_nobody(*writable: Path) -> list[str]:
    """What goes before a command, so that it may read everything and write only these folders: nothing unless we are root."""
    if os.geteuid() != 0:
        return []
    for folder in writable:
        os.chown(folder, NOBODY, NOBODY)
    # The checkout and its environment may lie where only root may look.
    capability = ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
    return ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *capability]
