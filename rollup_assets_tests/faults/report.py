"""What a run of the fault suite reports, and what ``docs/reliability.md`` shows of the runs that are kept.

``make test-faults`` writes ``.rollups/faults/report.json`` (or ``--faults-report``). ``python -m rollup_assets_tests.faults.report FILE …``
keeps these runs in ``docs/reliability.json``, in the place of those that are there, and makes the page's tables anew from it.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import filled
from rollup_assets.failpoints import FAILPOINTS
from rollup_assets_tests.faults.scenarios import NAMES, SCENARIOS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
KEPT = ROOT / "docs" / "reliability.json"
DEFAULT = ROOT / ".rollups" / "faults" / "report.json"
VERSIONS = ("dagster", "pyiceberg", "pyarrow", "numba", "duckdb", "pyspark", "hypothesis")

Run = dict[str, Any]


class Recorder:
    """Collects what became of the tests of scenarios; one a test run, in the process that hears of all results."""

    def __init__(self) -> None:
        self._tests: dict[str, dict[str, Any]] = {}

    def heard(self, test: str, scenarios: Sequence[str], outcome: str, seconds: float) -> None:
        """One phase of a test has ended: setup, call or teardown."""
        entry = self._tests.setdefault(test, {"scenarios": sorted(scenarios), "outcome": "passed", "seconds": 0.0})
        entry["seconds"] += seconds
        if outcome != "passed" and entry["outcome"] != "failed":
            entry["outcome"] = outcome

    def write(self, path: Path, seed: int) -> None:
        """The run as JSON."""
        run = {"seed": seed, "commit": _commit(), "date": dt.datetime.now(dt.UTC).date().isoformat(), "versions": _versions()}
        tests = {name: entry | {"seconds": round(entry["seconds"], 2)} for name, entry in sorted(self._tests.items())}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(run | {"tests": tests}, indent=1) + "\n")


def _commit() -> str:
    git = shutil.which("git")
    if git is None:
        return "unknown"
    told = subprocess.run([git, "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found


# ---------------------------------------------------------------------------------------------------------------- the page


def kept_runs() -> list[Run]:
    """The runs that the page shows."""
    return list(json.loads(KEPT.read_text())["runs"]) if KEPT.exists() else []


def blocks(runs: Sequence[Run]) -> dict[str, str]:
    """The page's generated parts, by name."""
    return {"runs": _runs_table(runs), "matrix": _matrix(runs), "failpoints": _failpoints()}


def page(text: str, runs: Sequence[Run]) -> str:
    """The page with its generated parts made anew."""
    return filled(text, blocks(runs))


def _runs_table(runs: Sequence[Run]) -> str:
    if not runs:
        return "No run is kept yet: `make test-faults`."
    rows = []
    for run in runs:
        outcomes = [test["outcome"] for test in run["tests"].values()]
        counts = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("passed", "failed", "skipped") if kind in outcomes)
        seconds = sum(test["seconds"] for test in run["tests"].values())
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
        rows.append([str(run["seed"]), f"`{run['commit']}`", run["date"], counts, f"{seconds:.0f}", versions])
    return _table(["seed", "commit", "date", "tests", "seconds", "versions"], rows)


def _matrix(runs: Sequence[Run]) -> str:
    rows = []
    for scenario in SCENARIOS:
        seen = [(name, test) for run in runs for name, test in run["tests"].items() if scenario.name in test["scenarios"]]
        tests = sorted({_function(name) for name, _ in seen})
        named = "<br>".join(f"`{name}`" for name in tests) or ("none" if runs else "not run yet")
        passed = sum(test["outcome"] == "passed" for _, test in seen)
        rows.append([f"**{scenario.name}**", scenario.fault, scenario.outcome, named, f"{passed} of {len(seen)}" if seen else ""])
    return _table(["", "fault", "required, besides the invariants", "tests", "passed"], rows)


def _function(test: str) -> str:
    """A test's module and name, without its parameters and the folder that all have."""
    return re.sub(r"\[.*", "", test, flags=re.DOTALL).removeprefix("rollup_assets_tests/")


def _failpoints() -> str:
    return _table(["failpoint", "what has happened there, and what has not"], [[f"`{name}`", text] for name, text in FAILPOINTS.items()])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Make the tables of docs/reliability.md anew.")
    parser.add_argument("reports", nargs="*", type=Path, help="runs to keep instead of those that docs/reliability.json has")
    reports = parser.parse_args().reports
    runs = [json.loads(report.read_text()) for report in reports] or kept_runs()
    unknown = {name for run in runs for test in run["tests"].values() for name in test["scenarios"]} - set(NAMES)
    if unknown:
        raise SystemExit(f"no such scenario: {', '.join(sorted(unknown))}")
    if reports:
        KEPT.write_text(json.dumps({"runs": runs}, indent=1) + "\n")
    PAGE.write_text(page(PAGE.read_text(), runs))


if __name__ == "__main__":
    main()
