"""A site: one table with its raw data, stage, warehouse and catalog, and processes that work on it until they are made to fail."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollup_assets.batches import Batch
from rollup_assets.settings import Settings, load_settings
from rollup_assets.storage.manifests import QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS
from rollup_assets_tests.conftest import SMALL
from rollup_assets_tests.faults import work, world
from rollup_assets_tests.integration.stores import Store
from rollup_assets_tests.landing import Shape, write_bytes, write_rows
from rollup_assets_tests.naive import RawRow

if TYPE_CHECKING:
    from rollup_assets.pipeline import Pipeline

PATIENCE = 300.0
"""Seconds until something that must happen is taken not to happen."""
CANARY = "canary-3f61-of-the-fault-suite"
_ROW_GROUP = 60
fork_server = multiprocessing.get_context("forkserver")
fork_server.set_forkserver_preload(["rollup_assets_tests.faults.work"])


@dataclass
class Running:
    """A process of :meth:`Site.start`."""

    process: ForkServerProcess
    log: Path

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()

    def terminate(self) -> None:
        """SIGTERM."""
        self.process.terminate()

    def exit_code(self) -> int:
        """Wait for the end; the number of a signal is negative."""
        self.process.join(PATIENCE)
        assert self.process.exitcode is not None, f"the process goes on; it said: {self.said}"
        return self.process.exitcode

    @property
    def said(self) -> str:
        """Everything it has printed."""
        return self.log.read_text() if self.log.exists() else ""

    def succeeds(self) -> None:
        """Wait for its end, which has to be a good one."""
        assert self.exit_code() == 0, self.said

    def is_killed(self) -> None:
        """Wait for its end, which has to be SIGKILL: its failpoint was reached."""
        assert self.exit_code() == -signal.SIGKILL, f"it ended with {self.process.exitcode}: {self.said}"


@dataclass
class Site:
    """``home`` holds all that is local; ``store`` says where the rest lies."""

    home: Path
    store: Store
    seed: int
    environment: dict[str, str] = field(default_factory=dict)
    """Of its processes: credentials."""
    overrides: dict[str, Any] = field(default_factory=dict)
    canaries: tuple[str, ...] = (CANARY,)
    """Secrets that must be nowhere."""
    foreign: bool = False
    """Whether others have written to the table, so that its files need not be those of the manifests."""
    foreign_snapshots: list[int] = field(default_factory=list)
    """What others were told to be committed."""
    foreign_windows: set[tuple[int, int, int]] = field(default_factory=set)
    """(id, resolution, label) of rows that others have added where we publish nothing: they stay."""
    _loaded: tuple[dict[str, Any], Settings] | None = None

    @property
    def settings(self) -> Settings:
        """Of the table; small, and with room for the world's useless rows."""
        arguments = self._arguments()
        if self._loaded is None or self._loaded[0] != arguments:
            self._loaded = arguments, load_settings(**arguments)
        return self._loaded[1]

    def _arguments(self) -> dict[str, Any]:
        return {**SMALL, "quarantine_limit": 0.3, **self.store.settings, **self.overrides}

    @property
    def pipeline(self) -> Pipeline:
        """The settings' pipeline, in this process."""
        from rollup_assets.pipeline import Pipeline

        return Pipeline.from_settings(self.settings)

    @property
    def ledger(self) -> Path:
        """Snapshots that publishing has acknowledged, as the processes wrote them down."""
        return self.home / "acknowledged.jsonl"

    # ------------------------------------------------------------------------------------------------------------ raw data

    def batch(self, number: int) -> Batch:
        """The batch of that number, from 0."""
        calendar = self.settings.calendar
        found = calendar.shifted(calendar.first, number)
        assert found is not None
        return found

    def batches(self) -> list[Batch]:
        """Those with raw files or anything staged, and the ones that follow from them."""
        pipeline = self.pipeline
        calendar = pipeline.calendar
        found = set(pipeline.landing_zone.batches())
        for asset in (REPARTITIONED, QUARANTINED, ROLLUPS, ROLLUP_TABLE):
            found.update(pipeline.stage.batches(asset, calendar))
        with_points = [batch for batch in found if pipeline.landing_zone.files(batch)]
        following = (calendar.shifted(batch, ahead) for batch in with_points for ahead in range(1, pipeline.settings.reach + 1))
        return sorted(found | {batch for batch in following if batch is not None})

    def keys(self) -> list[str]:
        """Their partition keys."""
        return [batch.key for batch in self.batches()]

    def land(self, count: int = 3, *, first: int = 0) -> None:
        """Raw files of so many neighbouring batches, as the seed has it."""
        for batch, files in world.raw_files(self.seed, [self.batch(first + number) for number in range(count)]).items():
            for name, rows in files.items():
                self.lay(batch, name, rows)

    def late_file(self, batch: Batch, name: str) -> None:
        """One more raw file of a batch."""
        self.lay(batch, name, world.some_rows(self.seed, batch, salt=name))

    def lay(self, batch: Batch, name: str, rows: Sequence[RawRow]) -> None:
        """One raw file, of several row groups."""
        write_rows(self._laying(), batch, name, rows, Shape(row_group=_ROW_GROUP))
        self.store.upload()

    def lay_bytes(self, batch: Batch, name: str, content: bytes) -> None:
        """One raw file of anything."""
        write_bytes(self._laying(), batch, name, content)
        self.store.upload()

    def _laying(self) -> Pipeline:
        from rollup_assets.pipeline import Pipeline

        return Pipeline.from_settings(load_settings(**{**self._arguments(), "raw": str(self.store.raw)}))

    # ----------------------------------------------------------------------------------------------------------- processes

    def start(self, *orders: tuple[str, ...], failpoints: str = "") -> Running:
        """A process that does some work (:data:`rollup_assets_tests.faults.work.VERBS`), with failpoints."""
        logs = self.home / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        log = logs / f"{uuid.uuid4().hex}.log"
        order = work.Order(self._arguments(), self.environment, failpoints, orders, self.ledger, log)
        process = fork_server.Process(target=work.execute, args=(order,), daemon=True)
        process.start()
        return Running(process, log)

    def run(self, *orders: tuple[str, ...], failpoints: str = "") -> Running:
        """The same to its end, whatever that is."""
        running = self.start(*orders, failpoints=failpoints)
        running.exit_code()
        return running

    @contextmanager
    def paused(self, failpoint: str, *orders: tuple[str, ...], skip: int = 0) -> Iterator[Running]:
        """A process that has come to a failpoint and stays there while the block runs; then it may go on."""
        gate = self.home / f"gate-{uuid.uuid4().hex}"
        running = self.start(*orders, failpoints=f"{failpoint}=pause({gate})*1+{skip}")
        try:
            wait_until(lambda: gate.exists() or not running.process.is_alive())
            assert gate.exists(), f"{failpoint} was not reached: {running.said}"
            yield running
        finally:
            gate.unlink(missing_ok=True)

    def finish(self) -> None:
        """Do whatever is left to do, in this process: as a rerun after a fault does."""
        work.make(self.pipeline, self.ledger, *self.keys())

    # ------------------------------------------------------------------------------------------------------------ promises

    def acknowledged(self) -> dict[int, str]:
        """Snapshot id -> batch, of everything that was ever said to be published: in the ledger, or by a receipt."""
        pipeline = self.pipeline
        for batch in self.batches():
            receipt = pipeline.stage.read(ROLLUP_TABLE, batch)
            if receipt is not None:
                work.acknowledge(self.ledger, batch.key, receipt.counters["snapshot_id"])
        lines = self.ledger.read_text().splitlines() if self.ledger.exists() else []
        return {entry["snapshot_id"]: entry["batch"] for entry in map(json.loads, lines)}


def wait_until(happened: Callable[[], bool], patience: float = PATIENCE) -> None:
    """Look again and again."""
    deadline = time.monotonic() + patience
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)
