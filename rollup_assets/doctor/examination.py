"""Runs all checks, side by side and within a time limit. The checks themselves are in other modules."""

from __future__ import annotations

import contextlib
import importlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rollup_assets.doctor import catalog, machine, places, records, spark
from rollup_assets.doctor.findings import Chain, Check, Finding, Found, failed, skipped, told
from rollup_assets.errors import RollupError, SettingsError
from rollup_assets.iceberg.faults import shown
from rollup_assets.loading import quick_imports
from rollup_assets.settings import Settings, load_settings

SECONDS = 28.0
"""How long the checks may take together; checks without an answer by then have failed."""


@dataclass(frozen=True, slots=True)
class Examination:
    """The findings of all checks, in a fixed order."""

    findings: tuple[Finding, ...]
    silent: bool = False
    """Whether a check got no answer, so that a thread that waits for one is left behind."""

    @property
    def healthy(self) -> bool:
        """Whether no check has failed."""
        return all(finding.state != "failed" for finding in self.findings)


def examine(load: Callable[[], Settings] = load_settings, *, seconds: float = SECONDS) -> Examination:
    """Check everything that a run with these settings needs.

    Args:
        load: returns the settings; a SettingsError that it raises becomes a finding.
        seconds: how long to wait for answers.
    """
    deadline = time.monotonic() + seconds
    try:
        settings = load()
    except SettingsError as error:
        return Examination((Finding("settings", "failed", str(error)),))
    chains = [*machine.chains(), *places.chains(), *catalog.chains(), *spark.chains(deadline), *records.chains()]
    running = [_Running(chain, settings, seconds) for chain in chains]
    spark_first = sorted(running, key=lambda one: one.chain.checks[0].name != "Java")
    # Spark starts first: that takes longest, mostly waiting.
    _import_in_turn(["pyarrow.fs", *(["pandas", "pyspark.sql"] if settings.engine == "spark" else []), "boto3"])
    spark_first[0].start()
    _import_in_turn(["numba", "sqlalchemy", "pyiceberg.catalog.sql", "dagster"])
    for one in spark_first[1:]:
        one.start()
    findings = [_finding("settings", Found(_summary(settings)), 0.0)]
    for one in running:
        findings += one.wait(deadline)
    return Examination(tuple(findings), silent=any(one.silent for one in running))


def _summary(settings: Settings) -> str:
    catalog_name = shown(settings).removeprefix("ROLLUP_CATALOG=")
    return (
        f"{settings.engine} engine; raw {settings.raw}, stage {settings.stage}, warehouse {settings.warehouse}; "
        f"table {settings.table} in {catalog_name}"
    )


def _import_in_turn(modules: Sequence[str]) -> None:
    """Import modules that several checks would import at once: modules that import each other fail when imported from two threads."""
    with quick_imports():
        for name in modules:
            # An error is reported by the check that needs the module.
            with contextlib.suppress(Exception):
                importlib.import_module(name)


@dataclass(slots=True)
class _Running:
    """A chain in a thread of its own. If it gets no answer, it is left running: it must not keep the process from ending."""

    chain: Chain
    settings: Settings
    seconds: float
    silent: bool = False
    """Whether it was not done when the wait ended."""
    _findings: list[Finding] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"doctor: {self.chain.checks[0].name}", daemon=True)
        self._thread.start()

    def wait(self, deadline: float) -> list[Finding]:
        """Wait for the findings until the deadline; unfinished checks become findings too."""
        assert self._thread is not None
        self._thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            findings = list(self._findings)
        missing = self.chain.checks[len(findings) :]
        self.silent = bool(missing)
        for place, check in enumerate(missing):
            found = _silent(check, self.seconds) if place == 0 else skipped(f"{missing[0].name} did not answer")
            findings.append(_finding(check.name, found, self.seconds if place == 0 else 0.0))
        return findings

    def _run(self) -> None:
        broken = None
        for check in self.chain.checks:
            began = time.monotonic()
            found = skipped(f"{broken} failed") if broken else _look(check, self.settings)
            if found.state == "failed":
                broken = check.name
            with self._lock:
                self._findings.append(_finding(check.name, found, time.monotonic() - began))


def _look(check: Check, settings: Settings) -> Found:
    try:
        return check.look(settings)
    except RollupError as error:
        return told(error)
    except Exception as error:  # an unexpected error must not hide the other checks' findings
        reason = (str(error).splitlines() or [""])[0][:300]
        return failed(f"{type(error).__name__}: {reason}", f"look at {check.asks}")


def _silent(check: Check, seconds: float) -> Found:
    return failed(
        f"no answer within {seconds:g} s", f"look at the network and at {check.asks}, or wait longer with `rollups doctor --timeout`"
    )


def _finding(name: str, found: Found, seconds: float) -> Finding:
    return Finding(name, found.state, found.text, found.remedy, round(seconds, 2))
