"""This machine: Python and its packages, compiled kernels, memory and threads, disks."""

from __future__ import annotations

import importlib
import importlib.metadata
import ipaddress
import os
import pkgutil
import platform
import shutil
from pathlib import Path

from rollup_assets.doctor.findings import Chain, Check, Found, failed, skipped, warning
from rollup_assets.machine import machine_cores, machine_memory
from rollup_assets.settings import Settings
from rollup_assets.units import bytes_text

ENOUGH_DISK = 2 * 2**30
LEAST_DISK = 256 * 2**20
_PACKAGE = "rollup_assets"
_PRECOMPILE = "python -m rollup_assets.precompile"


def chains() -> list[Chain]:
    """These checks are independent of each other."""
    checks = (
        Check("Python", python, "the environment"),
        Check("kernels", kernels, "NUMBA_CACHE_DIR"),
        Check("memory", memory, "ROLLUP_MEMORY and ROLLUP_THREADS"),
        Check("disk space", disk_space, "ROLLUP_HOME"),
    )
    return [Chain((check,)) for check in checks]


def python(settings: Settings) -> Found:
    """Compare the interpreter and the packages that these settings need with this package's requirements."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    from rollup_assets.iceberg.catalog import is_postgres

    extras = [""] + ["postgres"] * is_postgres(settings) + ["spark"] * (settings.engine == "spark")
    told = importlib.metadata.metadata(_PACKAGE)
    missing, other, versions = [], [], []
    if not SpecifierSet(told["Requires-Python"] or "").contains(platform.python_version()):
        other.append(f"Python {platform.python_version()} ({told['Requires-Python']} is required)")
    for text in importlib.metadata.requires(_PACKAGE) or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not any(wanted.marker.evaluate({"extra": extra}) for extra in extras):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(wanted.name)
            continue
        versions.append(f"{wanted.name} {version}")
        if not wanted.specifier.contains(version, prereleases=True):
            other.append(f"{wanted.name} {version} ({wanted.specifier} is required)")
    named = ",".join(extra for extra in extras if extra)
    remedy = f"install it with `pip install '{_PACKAGE}{f'[{named}]' if named else ''}'`"
    if missing:
        return failed(f"not installed: {', '.join(missing)}", remedy)
    if other:
        return warning(f"other versions than tested: {', '.join(other)}", remedy)
    shown = ", ".join(version for version in versions if version.startswith(("dagster ", "pyarrow ", "pyiceberg", "numba ", "pyspark ")))
    return Found(f"{platform.python_version()}; {shown}")


def kernels(settings: Settings) -> Found:  # noqa: ARG001
    """Whether compiled code can be stored, and is there."""
    from rollup_assets import kernels as package

    try:
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{package.__name__}.{module.name}")
    except RuntimeError as error:
        if "no locator available" not in str(error):
            raise
        return failed(
            "numba found no folder to keep compiled code in, and does not work without one",
            "set NUMBA_CACHE_DIR to a writable folder",
        )
    from rollup_assets.kernels.compiling import cache_folders, compiled_kernels

    compiled = compiled_kernels()
    todo = sorted(name for name, done in compiled.items() if not done)
    folders = ", ".join(sorted(cache_folders()))
    if todo:
        return warning(
            f"{len(todo)} of {len(compiled)} are not compiled for this source and processor; the first batch compiles them, which takes "
            f"about half a minute, and keeps them in {folders}",
            f"run `{_PRECOMPILE}` first",
        )
    return Found(f"all {len(compiled)} are compiled, in {folders}")


def memory(settings: Settings) -> Found:
    """Compare the memory and threads that the engine may use with those of the machine."""
    from rollup_assets.engines.spark_session import is_local

    there, cores = machine_memory(), machine_cores()
    if settings.engine == "spark":
        if not is_local(settings):
            return skipped("tasks run on Spark's executors, with their memory")
        return _spark_memory(settings, there, cores)
    found = f"{bytes_text(settings.memory)} of {bytes_text(there)}, {settings.threads} threads on {cores} cores"
    if settings.memory > there * 0.8:
        return warning(
            f"{found}: too little is left for everything else", "lower ROLLUP_MEMORY to half of what there is; more data is spilled"
        )
    if settings.threads > cores:
        return warning(f"{found}: more threads than cores", "lower ROLLUP_THREADS")
    return Found(found)


def _spark_memory(settings: Settings, there: int, cores: int) -> Found:
    inside = settings.spark_master.removeprefix("local").strip("[]").partition(",")[0]
    tasks = int(inside) if inside.isdecimal() else (cores if inside == "*" else 1)
    wanted = tasks * settings.spark_task_memory
    found = f"{tasks} tasks at once with {bytes_text(settings.spark_task_memory)} each, of {bytes_text(there)}, besides Spark's driver"
    if wanted > there * 0.8:
        return warning(
            f"{found}: too little is left for everything else", "lower ROLLUP_SPARK_TASK_MEMORY, or the number in ROLLUP_SPARK_MASTER"
        )
    return Found(found)


def disk_space(settings: Settings) -> Found:
    """Free space where blocks are spilled and local data is kept, once for each disk."""
    wanted = {"scratch": settings.home / "scratch"}
    wanted |= {name: Path(location) for name in ("stage", "warehouse") if "://" not in (location := getattr(settings, name))}
    disks: dict[int, tuple[Path, list[str]]] = {}
    for name, path in wanted.items():
        nearest = existing(path)
        disks.setdefault(nearest.stat().st_dev, (nearest, []))[1].append(name)
    texts, short, full = [], [], []
    for nearest, names in disks.values():
        free = shutil.disk_usage(nearest).free
        texts.append(f"{bytes_text(free)} free for {' and '.join(names)} ({nearest})")
        if os.statvfs(nearest).f_flag & os.ST_RDONLY or free < LEAST_DISK:
            full.append(texts[-1])
        elif free < ENOUGH_DISK:
            short.append(texts[-1])
    remedy = "make room, or set ROLLUP_HOME (ROLLUP_STAGE, ROLLUP_WAREHOUSE) to a larger disk"
    if full:
        return failed(f"too little, or read-only: {'; '.join(full)}", remedy)
    return warning("; ".join(short), remedy) if short else Found("; ".join(texts))


def is_this_machine(host: str) -> bool:
    """Whether a host, which may be empty, means the machine that this process is on."""
    if host in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(found for found in (path, *path.parents) if found.exists())
