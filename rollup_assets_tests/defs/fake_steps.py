"""The three steps in miniature: real manifests in a real stage, from raw files that hold nothing but a number.

They keep to the steps' contract (what they return, raise and write), so that what Dagster records can be tested in milliseconds and
every failure can be had at will. A raw file's text is its number of rows, or ``quarantine``, ``crash``, ``unbalanced`` or ``halt``.
"""

from __future__ import annotations

import hashlib
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from rollup_assets.batches import Batch
from rollup_assets.code_version import CODE_VERSION
from rollup_assets.engines.base import NoProgress, Progress
from rollup_assets.errors import NotStagedError, PublishHaltError, QuarantineError
from rollup_assets.iceberg.reading import RangeCounts
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import Settings
from rollup_assets.steps import read_back as read_back_module
from rollup_assets.steps.checks import require, rollup_outcomes
from rollup_assets.steps.parameters import content_parameters, rollup_parameters
from rollup_assets.steps.publish import reasons_to_publish
from rollup_assets.steps.read_back import TableState
from rollup_assets.steps.results import Published, RolledUp, StagedBatch, Waiting
from rollup_assets.storage.manifests import (
    PARTIAL_POINTS,
    QUARANTINED,
    REPARTITIONED,
    ROLLUP_TABLE,
    ROLLUPS,
    Manifest,
    StagedFile,
    content_digest,
    new_attempt,
)

LEFT_OPEN = 1
STAGED = (REPARTITIONED, PARTIAL_POINTS, QUARANTINED)
ENTRIES = ("count", "sum", "delta", "resets")


def raw_file(settings: Settings, key: str) -> Path:
    """The one raw file of a batch."""
    return Path(settings.raw) / settings.calendar.batch(key).start_time.strftime(settings.raw_layout) / "points.txt"


def land(settings: Settings, key: str, content: int | str) -> None:
    """Write or replace a batch's raw file."""
    file = raw_file(settings, key)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(str(content))


def land_same(settings: Settings, key: str) -> None:
    """A raw file that is new to Dagster (its time changed) and has the old content."""
    file = raw_file(settings, key)
    file.with_name("copy").write_text(file.read_text())
    file.with_name("copy").replace(file)


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the miniature steps in the place of the real ones."""
    import rollup_assets.steps as package

    for name, function in (("repartition", stage_batch), ("rollup", roll_up), ("publish", publish)):
        module = ModuleType(f"rollup_assets.steps.{name}")
        # Whoever only asks whether there is anything to do asks the real ones.
        module.__dict__.update({key: value for key, value in vars(import_module(module.__name__)).items() if not key.startswith("__")})
        setattr(module, function.__name__, function)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(package, name, module, raising=False)
    monkeypatch.setattr(read_back_module, "read_back", read_back)


def stage_batch(pipeline: Pipeline, batch: Batch, *, force: bool = False, progress: Progress = NoProgress()) -> StagedBatch:  # noqa: B008
    inputs = pipeline.landing_zone.files(batch)
    content = [Path(pipeline.settings.raw, file.path).read_text() for file in inputs]
    progress.start("read", len(inputs))
    progress.advance("read", len(inputs))
    progress.finish("read")
    if "crash" in content:
        raise RuntimeError("no such luck")
    current = [pipeline.stage.read(asset, batch) for asset in (REPARTITIONED, PARTIAL_POINTS, QUARANTINED)]
    if not force and all(manifest is not None and list(manifest.inputs) == inputs for manifest in current):
        return StagedBatch(*[manifest for manifest in current if manifest], unchanged=True)
    bad = "quarantine" in content
    rows = sum(int(text) for text in content if text.isdigit()) + (7 if "unbalanced" in content else 0) + (5 if "halt" in content else 0)
    rejected = rows + 10 if bad else 0
    quarantined = _commit(
        pipeline,
        batch,
        QUARANTINED,
        {"rows_read": rows + rejected, "rows_quarantined": rejected, "bad_files": 0, "reasons": {"null_id": rejected} if rejected else {}},
        inputs=tuple(inputs),
    )
    if bad:
        raise QuarantineError(f"batch {batch}: {rejected} rows are quarantined", quarantined)
    open_points = min(rows, LEFT_OPEN)
    counters = {
        "rows_read": rows,
        "rows_accepted": rows,
        "duplicates": 0,
        "rows_quarantined": 0,
        "series": open_points,
        "raw_files": len(inputs),
        "bad_files": 0,
        "content": content,
    }
    per_resolution = {str(resolution): open_points for resolution in pipeline.settings.resolutions}
    return StagedBatch(
        _commit(pipeline, batch, REPARTITIONED, counters, inputs=tuple(inputs), rows=rows),
        _commit(
            pipeline,
            batch,
            PARTIAL_POINTS,
            {"series": open_points, "counts": per_resolution, "windows": per_resolution, "content": content},
            inputs=tuple(inputs),
        ),
        quarantined,
        unchanged=False,
    )


def roll_up(pipeline: Pipeline, batch: Batch, *, force: bool = False, progress: Progress = NoProgress()) -> RolledUp | Waiting:  # noqa: ARG001, B008
    datapoints, own = pipeline.stage.read(REPARTITIONED, batch), pipeline.stage.read(PARTIAL_POINTS, batch)
    before = pipeline.calendar.earlier(batch, pipeline.settings.reach)
    missing = [of for of in before if pipeline.stage.read(PARTIAL_POINTS, of) is None and pipeline.landing_zone.files(of)]
    if datapoints is None and pipeline.landing_zone.files(batch):
        return Waiting((f"{REPARTITIONED} {batch}",))
    if missing and (datapoints is None or datapoints.counters["rows_accepted"] == 0):
        return Waiting(tuple(f"{PARTIAL_POINTS} {of}" for of in reversed(missing)))
    if missing:
        raise NotStagedError(f"rollups of {batch} need {PARTIAL_POINTS} {missing[0]}; run `rollups backfill {missing[-1]} {missing[0]}`")
    upstream: dict[str, dict[str, str | None]] = {
        REPARTITIONED: {batch.key: datapoints.digest if datapoints else None},
        PARTIAL_POINTS: {of.key: found.digest if (found := pipeline.stage.read(PARTIAL_POINTS, of)) else None for of in (batch, *before)},
    }
    current = pipeline.stage.read(ROLLUPS, batch)
    if current and not force and current.upstream == upstream:
        return RolledUp(current, unchanged=True)
    carried = pipeline.stage.read(PARTIAL_POINTS, before[0]) if before else None
    accepted = int(datapoints.counters["rows_accepted"]) if datapoints else 0
    unbalanced = datapoints is not None and "unbalanced" in datapoints.counters["content"]

    def points(manifest: Manifest | None, resolution: int) -> int:
        return int(manifest.counters["counts"][str(resolution)]) if manifest else 0

    resolutions = pipeline.settings.resolutions
    counters: dict[str, Any] = {
        "accepted": accepted,
        "series": 1,
        "duplicate_windows": 0,
        "carried": {str(r): points(carried, r) for r in resolutions},
        "counts": {str(r): accepted + points(carried, r) - points(own, r) - unbalanced for r in resolutions},
        "rows": {str(r): 3 for r in resolutions},
        "checksums": {
            str(r): {
                "total": dict.fromkeys(ENTRIES, "0"),
                "head": dict.fromkeys(ENTRIES, "0"),
                "tail": {str(c): dict.fromkeys(ENTRIES, "0") for c in resolutions if c > r},
            }
            for r in resolutions
        },
        "read": upstream,
    }
    made = _manifest(pipeline, batch, ROLLUPS, counters, upstream=upstream, files=tuple(_file(f"{r}.parquet", 3, r) for r in resolutions))
    require(rollup_outcomes(made, batch, pipeline.calendar, pipeline.stage))
    pipeline.stage.write(made, batch)
    return RolledUp(made, unchanged=False, warnings=() if datapoints else ("no raw file",))


def publish(pipeline: Pipeline, batch: Batch, *, run_id: str = "", force: bool = False) -> Published:  # noqa: ARG001
    rollups = pipeline.stage.read(ROLLUPS, batch)
    if rollups is None:
        raise NotStagedError(f"batch {batch} has no staged rollups; run `rollups backfill {batch} {batch}`")
    datapoints = pipeline.stage.read(REPARTITIONED, batch)
    if datapoints and "halt" in datapoints.counters["content"]:
        raise PublishHaltError(f"the table has other rows of {batch} than were committed")
    current = pipeline.stage.read(ROLLUP_TABLE, batch)
    if current and not force and not reasons_to_publish(batch, current, rollups, None):
        return Published(current, current.counters["snapshot_id"], unchanged=True)
    counters = {
        "snapshot_id": 2**62 + batch.start,
        "attempt": "a",
        "staged_attempt": rollups.attempt,
        "rows": rollups.counters["rows"],
        "files": dict.fromkeys(rollups.counters["rows"], 1),
    }
    receipt = _manifest(pipeline, batch, ROLLUP_TABLE, counters, upstream={ROLLUPS: {batch.key: rollups.digest}})
    receipt = receipt.model_copy(update={"digest": rollups.digest})
    pipeline.stage.write(receipt, batch)
    return Published(receipt, receipt.counters["snapshot_id"], unchanged=False)


def read_back(pipeline: Pipeline, batch: Batch) -> TableState:
    receipt = pipeline.stage.read(ROLLUP_TABLE, batch)
    assert receipt is not None
    rows = {int(resolution): int(count) for resolution, count in receipt.counters["rows"].items()}
    return TableState(RangeCounts(rows, dict.fromkeys(rows, 1)), 1000, "/table")


def _commit(pipeline: Pipeline, batch: Batch, asset: str, counters: dict[str, Any], *, inputs: Any, rows: int = 0) -> Manifest:
    files = (_file("shard-0.parquet", rows),) if rows else ()
    return pipeline.stage.commit(_manifest(pipeline, batch, asset, counters, inputs=inputs, files=files), batch)


def _manifest(pipeline: Pipeline, batch: Batch, asset: str, counters: dict[str, Any], **fields: Any) -> Manifest:
    files = fields.pop("files", ())
    attempt = new_attempt()
    placed = []
    for file in files:
        place = pipeline.stage.folder(asset, batch) / attempt / file.path
        content = _parquet(file.rows)
        place.write_bytes(content)
        placed.append(file.model_copy(update={"path": f"{attempt}/{file.path}", "size": len(content)}))
    return Manifest(
        asset=asset,
        partition=batch.key,
        attempt=attempt,
        code_version=CODE_VERSION,
        parameters=content_parameters(pipeline.settings, batch) if asset in STAGED else rollup_parameters(pipeline.settings),
        files=tuple(placed),
        counters=counters,
        digest=content_digest(tuple(placed), counters),
        timings={"read": 1.5, "sort": 4.5},
        **fields,
    )


def _file(path: str, rows: int, resolution: int | None = None) -> StagedFile:
    return StagedFile(path=path, rows=rows, size=0, digest=hashlib.sha1(str(rows).encode()).hexdigest(), resolution=resolution)


def _parquet(rows: int) -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(
        pa.table({"id": list(range(rows)), "logical_timestamp": [1_767_225_600_000] * rows, "metric": ["cpu|user"] * rows}), sink
    )
    return sink.getvalue()
