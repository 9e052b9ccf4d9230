"""What the processes do that are made to fail: steps, backfills and maintenance, each in a process of its own that may be killed.

Processes come from a fork server that has imported everything and compiled nothing, so that one costs a tenth of a second and not four.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollup_assets import failpoints
from rollup_assets.defs import jobs, resources, schedules, sensors  # noqa: F401  all of `rollup_assets.definitions`, which reads settings
from rollup_assets.defs.backfill import run_backfill
from rollup_assets.errors import RollupError
from rollup_assets.kernels import merge, partial, rollup, row_groups, shards, time_order  # noqa: F401  once, in the fork server
from rollup_assets.loading import load_arrow, load_pyiceberg
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import load_settings
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.results import Waiting
from rollup_assets.steps.rollup import roll_up

load_arrow()
load_pyiceberg(sql=True)

FAILED, REFUSED = 1, 2
"""Exit codes: an error that nobody expects, and one of ours."""


@dataclass(frozen=True)
class Order:
    """What a process is to do, and where."""

    overrides: Mapping[str, Any]
    """Arguments of ``load_settings``."""
    environment: Mapping[str, str]
    failpoints: str
    work: Sequence[tuple[str, ...]]
    """Verbs of :data:`VERBS` with their arguments, one after the other."""
    ledger: Path
    """Acknowledged snapshots are appended here, one JSON object a line."""
    log: Path


def execute(order: Order) -> None:
    """The main function of such a process."""
    with order.log.open("ab", buffering=0) as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.basicConfig(level=logging.WARNING, force=True)
    for name in [name for name in os.environ if name.startswith(("ROLLUP_", "AWS_", "DAGSTER"))]:
        del os.environ[name]
    os.environ.update(order.environment)
    time.tzset()
    if order.failpoints:
        # Where the environment would have armed them: as Spark's workers and other children of this process see it.
        os.environ[failpoints.VARIABLE] = order.failpoints
    try:
        with failpoints.handled(order.failpoints):
            pipeline = Pipeline.from_settings(load_settings(**order.overrides))
            for verb, *arguments in order.work:
                VERBS[verb](pipeline, order.ledger, *arguments)
    except RollupError as error:
        print(f"refused: {type(error).__name__}: {error}")  # noqa: T201
        sys.exit(REFUSED)
    except Exception:
        traceback.print_exc()
        sys.exit(FAILED)


def stage(pipeline: Pipeline, _: Path, *keys: str) -> None:
    """Stage batches."""
    for key in keys:
        stage_batch(pipeline, pipeline.batch(key))


def roll(pipeline: Pipeline, _: Path, *keys: str) -> None:
    """Roll up batches."""
    for key in keys:
        roll_up(pipeline, pipeline.batch(key))


def publish_batches(pipeline: Pipeline, ledger: Path, *keys: str) -> None:
    """Publish batches; what the product has said to be published is written down."""
    for key in keys:
        acknowledge(ledger, key, publish(pipeline, pipeline.batch(key)).snapshot_id)


def make(pipeline: Pipeline, ledger: Path, *keys: str) -> None:
    """Stage, roll up and publish, batch by batch; one that waits is left alone."""
    for key in keys:
        stage(pipeline, ledger, key)
        if not isinstance(roll_up(pipeline, pipeline.batch(key)), Waiting):
            publish_batches(pipeline, ledger, key)


def backfill(pipeline: Pipeline, _: Path, first: str, last: str) -> None:
    """The same through Dagster."""
    result = run_backfill(pipeline.settings, first, last)
    print(json.dumps({"published": result.published, "failed": dict(result.failed), "waiting": dict(result.waiting)}))  # noqa: T201
    if result.failed:
        sys.exit(REFUSED)


def maintain_table(pipeline: Pipeline, _: Path, keep: str) -> None:
    """Expire snapshots under the lock, as publishing does."""
    from rollup_assets.iceberg.catalog import open_catalog
    from rollup_assets.iceberg.locks import table_lock
    from rollup_assets.iceberg.maintenance import maintain

    with table_lock(pipeline.settings), open_catalog(pipeline.settings, writing=True) as catalog:
        maintain(catalog.load_table(pipeline.settings.table), int(keep))


def limit_memory(_: Pipeline, __: Path, mebibytes: str) -> None:
    """From here on, so much more address space and no more: allocations fail."""
    import resource

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (int(mebibytes) << 20),) * 2)


def shift_clock(_: Pipeline, __: Path, seconds: str) -> None:
    """From here on, the clock that Iceberg's snapshots are stamped with is off."""
    import datetime as dt

    from pyiceberg.table import update

    real = time.time

    class Shifted(dt.datetime):
        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            return dt.datetime.fromtimestamp(time.time(), tz)

    time.time = lambda: real() + float(seconds)
    update.datetime = Shifted  # type: ignore[attr-defined]


def acknowledge(ledger: Path, key: str, snapshot_id: int | None) -> None:
    """Write down that a batch was said to be published as a snapshot."""
    if snapshot_id is not None:
        with ledger.open("a") as stream:
            stream.write(json.dumps({"batch": key, "snapshot_id": snapshot_id}) + "\n")


VERBS: Mapping[str, Any] = {
    "stage": stage,
    "roll up": roll,
    "publish": publish_batches,
    "make": make,
    "backfill": backfill,
    "maintain": maintain_table,
    "limit memory": limit_memory,
    "shift clock": shift_clock,
}
