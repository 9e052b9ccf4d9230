"""Letting go of everything before a partition, as docs/operations.md says."""

from __future__ import annotations

import re
import shutil
import textwrap
import time
from pathlib import Path

import pytest

from rollup_assets.batches import DAY_MS, Batch
from rollup_assets.cleaning import OTHER_PARTITIONS, clean
from rollup_assets.errors import StaleInputError
from rollup_assets.iceberg.catalog import open_catalog
from rollup_assets.pipeline import Pipeline
from rollup_assets.plan import plan
from rollup_assets.query import query
from rollup_assets.scope import Scope
from rollup_assets.status import status
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.results import Published
from rollup_assets.steps.rollup import roll_up
from rollup_assets.verification import verify
from rollup_assets_tests.conftest import MakePipeline
from rollup_assets_tests.landing import write_rows
from rollup_assets_tests.naive import RawRow

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
START, HOURS, CARRIED = "2026-01-03-00:00", 6, 2
MINUTE = 60_000


def make(pipeline: Pipeline, batch: Batch) -> Published:
    """All steps; what is up to date stays."""
    stage_batch(pipeline, batch)
    roll_up(pipeline, batch)
    return publish(pipeline, batch)


def states(pipeline: Pipeline, batches: list[Batch]) -> list[str]:
    return [found.state for found in status(pipeline.settings, batches)]


def test_everything_before_a_later_start_can_go(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    before = make_pipeline(tmp_path, start="2026-01-02-22:00")
    hours = [found for ahead in range(HOURS) if (found := before.calendar.shifted(before.calendar.first, ahead))]
    for batch in hours:
        times = range(batch.start + 30_000, batch.end, MINUTE)
        write_rows(before, batch, "a.parquet", [RawRow(id_, 1, "m", at, at // MINUTE) for id_ in (7, 8) for at in times])
        make(before, batch)
    gone, kept = hours[:2], hours[2:]
    assert kept[0].key == START

    pipeline = make_pipeline(tmp_path, start=START)
    assert states(pipeline, kept) == ["stale"] * CARRIED + ["published"] * (HOURS - 2 - CARRIED)
    assert next(found.partition for found in status(pipeline.settings)) == START
    planned = plan(pipeline, Scope(asked=tuple(kept), trailing=(), not_ended=())).partitions
    assert [found.partition for found in planned if found.roll_up.verdict != "no"] == [batch.key for batch in kept[:CARRIED]]
    with pytest.raises(StaleInputError, match=f"{gone[-1].key}, which does not exist any more with the present ROLLUP_START"):
        publish(pipeline, kept[0])
    assert [make(pipeline, batch).unchanged for batch in kept] == [False] * CARRIED + [True] * (HOURS - 2 - CARRIED)

    later = time.time_ns() // 1_000_000 + 4 * DAY_MS
    left = clean(pipeline.settings, other_partitions=True, delete=True, now=later)
    assert {found.kind for found in left.deleted} == {OTHER_PARTITIONS}
    page = PAGE.read_text()
    (example,) = re.findall(r"^   ```python\n(.*?)^   ```", page.partition("## Old data")[2], re.MULTILINE | re.DOTALL)
    with open_catalog(pipeline.settings, writing=True) as catalog:
        table = catalog.load_table(pipeline.settings.table)
        exec(textwrap.dedent(example).replace("2026-03-01", "2026-01-03"), {"table": table})
        summary = table.refresh().current_snapshot().summary
        assert (summary.operation.value, summary["added-data-files"]) == ("delete", None)
        assert int(summary["deleted-data-files"]) > 0
    for batch in gone:
        shutil.rmtree(pipeline.landing_zone.folder(batch).location)

    assert states(pipeline, kept) == ["published"] * len(kept)
    assert all(make(pipeline, batch).unchanged for batch in kept)
    assert verify(pipeline.settings, kept).agrees
    (least,) = query(pipeline.settings, "SELECT epoch_ms(min(logical_timestamp)) AS label FROM rollups").to_pylist()
    assert least["label"] == kept[0].start + MINUTE
    staged = {place.name for place in (tmp_path / "stage" / "rollups").iterdir()}
    assert staged == {batch.folder for batch in kept}
