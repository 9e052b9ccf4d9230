"""The product with one safeguard taken out: a plugin of pytest, and only that.

``pytest -p rollup_assets_tests.faults.mutations`` with ``ROLLUP_TEST_MUTATION`` set to one of :data:`MUTATIONS`. What must then fail is in
``test_mutations.py``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

VARIABLE = "ROLLUP_TEST_MUTATION"


def without_the_lock(patch: pytest.MonkeyPatch) -> None:
    """Publishers do not wait for one another."""
    from rollup_assets.iceberg import locks

    patch.setattr(locks, "table_lock", lambda _settings, _timeout=None: contextlib.nullcontext(locks.TableLock()))


def without_the_ancestry_check(patch: pytest.MonkeyPatch) -> None:
    """A publisher does not look for its own commit in the table."""
    from rollup_assets.iceberg import commit

    patch.setattr(commit, "snapshot_of_attempt", lambda *_: None)


def without_the_digest_check(patch: pytest.MonkeyPatch) -> None:
    """A publisher does not look, beside each plan and after its commit, whether its files are still the ones to publish."""
    from rollup_assets.steps import publish

    patch.setattr(publish, "check_stage", lambda *_: None)
    patch.setattr(publish, "_is_newest", lambda *_: True)


def with_manifests_first(patch: pytest.MonkeyPatch) -> None:
    """A manifest is in place before the files that it names."""
    from rollup_assets.storage.manifests import Manifest, Stage
    from rollup_assets.storage.parquet import ParquetFileWriter

    close, commit = ParquetFileWriter.close, Stage.commit
    finishing: dict[str, Callable[[], None]] = {}

    class Unfinished:
        """An output whose file does not appear yet."""

        def __init__(self, output: Any) -> None:
            self.output = output

        def commit(self) -> None:
            pass

    def closed(self: Any, path: str, **named: Any) -> Any:
        output = self._output
        self._output = Unfinished(output)
        finishing[path] = output.commit
        return close(self, path, **named)

    def committed(self: Stage, manifest: Manifest, batch: Any, **named: Any) -> Manifest:
        stands = commit(self, manifest, batch, **named)
        for file in manifest.files:
            finishing.pop(file.path)()
        return stands

    patch.setattr(ParquetFileWriter, "close", closed)
    patch.setattr(Stage, "commit", committed)


def without_the_delete_filter(patch: pytest.MonkeyPatch) -> None:
    """What is in the range stays when new files come to it."""
    from rollup_assets.iceberg import commit

    original = commit._apply

    def apply(table: Any, predicate: Any, plan: Any, properties: Any) -> int:
        plan.removed.clear()
        return original(table, predicate, plan, properties)

    patch.setattr(commit, "_apply", apply)


def without_validation(patch: pytest.MonkeyPatch) -> None:
    """Commits that came in between are no conflict, whatever they changed."""
    from pyiceberg.table.update.snapshot import _OverwriteFiles

    patch.setattr(_OverwriteFiles, "_validate_concurrency", lambda _: None)


def without_rejections(patch: pytest.MonkeyPatch) -> None:
    """What was rolled back is published like anything else."""
    from rollup_assets.steps import publish

    patch.setattr(publish, "refusal", lambda *_: None)


def without_the_duplicate_rule(patch: pytest.MonkeyPatch) -> None:
    """Points of the same series and time all stay."""
    from rollup_assets.kernels import time_order

    def place(points: Any, rows: int, order: Any, table: Any, _rank: Any, start: Any, kept: Any, out: Any) -> int:
        counts = table.points[order]
        start[order] = np.cumsum(counts) - counts
        kept[order] = counts
        codes, times = points.code[:rows], points.time[:rows]
        target = np.lexsort((times, start[codes]))
        for column, sorted_column in zip(points[1:], out[1:], strict=True):
            if len(column):
                sorted_column[:rows] = column[:rows][target]
        return 0

    patch.setattr(time_order, "place", place)


MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "lock": without_the_lock,
    "ancestry": without_the_ancestry_check,
    "digest": without_the_digest_check,
    "manifests first": with_manifests_first,
    "delete filter": without_the_delete_filter,
    "validation": without_validation,
    "rejections": without_rejections,
    "duplicate rule": without_the_duplicate_rule,
}


def pytest_configure() -> None:
    """Take it out, for the whole session."""
    if name := os.environ.get(VARIABLE):
        MUTATIONS[name](pytest.MonkeyPatch())
