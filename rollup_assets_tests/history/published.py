"""Batches with raw files, published by hand: what the table's history is made of."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from rollup_assets.batches import Batch
from rollup_assets.code_version import CODE_VERSION
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps.publish import publish
from rollup_assets.steps.results import Published
from rollup_assets.storage.manifests import PARTIAL_POINTS, REPARTITIONED, InputFile, Manifest
from rollup_assets_tests.iceberg.staging import load, stage_rollups


def raw_file(path: str, version: int = 1) -> InputFile:
    return InputFile(path=path, size=1, version=f"mtime:{version}")


def publish_value(pipeline: Pipeline, batch: Batch, value: int, *inputs: InputFile, series: int = 3, **rows: Any) -> Published:
    """Publish rows that all say ``value``, made from these raw files."""
    stage_value(pipeline, batch, value, *inputs, series=series, **rows)
    return publish(pipeline, batch)


def stage_value(pipeline: Pipeline, batch: Batch, value: int, *inputs: InputFile, series: int = 3, **rows: Any) -> Manifest:
    """Only stage them, as this version of the code would."""
    rollups = stage_rollups(pipeline, batch, series=series, value=value, **rows).model_copy(update={"code_version": CODE_VERSION})
    pipeline.stage.write(rollups, batch)
    for asset in (REPARTITIONED, PARTIAL_POINTS):
        manifest = pipeline.stage.read(asset, batch)
        assert manifest is not None
        update = {"inputs": inputs, "code_version": CODE_VERSION, "counters": {**manifest.counters, "rows_accepted": 1}}
        pipeline.stage.write(manifest.model_copy(update=update), batch)
    return rollups


def snapshots(pipeline: Pipeline) -> list[int]:
    return [snapshot.snapshot_id for snapshot in load(pipeline).snapshots()]


def wait_side_by_side(patch: pytest.MonkeyPatch, asking: Any, module: Any, function: str, count: int) -> None:
    """Let the module ``asking`` ask as it asks a store elsewhere, and a function go on only once it was called so often."""
    together = threading.Barrier(count)
    original = getattr(module, function)

    def in_threads(_pipeline: Pipeline, ask: Any, items: Any) -> list[Any]:
        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(ask, items))

    def called(*arguments: Any) -> Any:
        together.wait(10)
        return original(*arguments)

    patch.setattr(asking, "for_each", in_threads)
    patch.setattr(module, function, called)
