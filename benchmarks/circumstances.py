"""What one needs to know about a benchmark to repeat or doubt its figures, in the form that results have it."""

from __future__ import annotations

import datetime as dt
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.data import series_for
from benchmarks.measure import machine
from benchmarks.runner import ROOT, Bench
from benchmarks.tasks import REPARTITION

_FOLDERS = ("--work", "--output", "--site")


def circumstances(command: str, bench: Bench, repeat: int, runs: Sequence[dict[str, Any]], packages: Sequence[str]) -> dict[str, Any]:
    """What one needs to know to repeat or doubt the figures."""
    raw = [Path(path) for path in bench.full.raw_files]
    return {
        **occasion(command, packages),
        "repeat": repeat,
        "threads": bench.threads,
        "data": {
            "shape": bench.shape,
            "series": series_for(bench.rows, bench.shape),
            "raw_files": len(raw),
            "raw_bytes": sum(path.stat().st_size for path in raw),
            "rows": next((run["rows"] for run in runs if run.get("task") == REPARTITION and "rows" in run), bench.rows),
        },
    }


def occasion(command: str, packages: Sequence[str]) -> dict[str, Any]:
    """What was run, when, at which commit, and where."""
    from importlib.metadata import version

    def git(*arguments: str) -> str:
        # Not stripped: the first line of a status may begin with a space.
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.rstrip()

    return {
        "command": f"{command} {shlex.join(_without_folders(sys.argv[1:]))}".rstrip(),
        "date": dt.datetime.now(dt.UTC).date().isoformat(),
        "commit": git("rev-parse", "HEAD"),
        "changed": sorted(line[3:] for line in git("status", "--porcelain", "--", "rollup_assets", "benchmarks/*.py").splitlines()),
        "machine": machine(),
        "versions": {**{name: version(name) for name in packages}, **(_beside_pyspark() if "pyspark" in packages else {})},
    }


def _beside_pyspark() -> dict[str, str]:
    """Versions of what Spark needs besides its own package; none where there is no Java that it runs on."""
    from rollup_assets.engines.spark_session import require_java
    from rollup_assets.errors import EngineError
    from rollup_assets.iceberg.spark import ICEBERG_RUNTIME

    try:
        java = require_java()
    except EngineError:
        return {}
    _, runtime, iceberg = ICEBERG_RUNTIME.split(":")
    return {"Java": java, runtime: iceberg}


def _without_folders(arguments: list[str]) -> list[str]:
    """Arguments except those that name a folder of this machine."""
    kept = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        if before not in _FOLDERS and not argument.startswith(_FOLDERS):
            kept.append(argument)
    return kept


def forms_of(wanted: Sequence[Contender]) -> dict[str, str]:
    """The form of every warm contender that has several."""
    return {f"{contender.engine} {contender.task}": contender.form for contender in wanted if contender.form and contender.start == "warm"}
