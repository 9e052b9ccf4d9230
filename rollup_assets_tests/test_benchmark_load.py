"""The load of readers beside writers: it knows what an hour may look like, and notices when one does not."""

from __future__ import annotations

import queue
import threading
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load, load_table, tables
from rollup_assets.iceberg.catalog import load_catalog
from rollup_assets.iceberg.table import load_table as load_iceberg_table
from rollup_assets_tests.conftest import SMALL

ROOT = Path(__file__).parent.parent
OF_HOUR_1 = "logical_timestamp >= '2026-01-01T01:00:00+00:00' and logical_timestamp < '2026-01-01T02:00:00+00:00'"


@pytest.fixture
def options(tmp_path: Path) -> dict[str, Any]:
    return {"home": str(tmp_path), **SMALL}


def published(options: dict[str, Any], hours: int) -> tuple[load.World, Any]:
    pipeline = load._pipeline(options)
    world, wrote = load.World(pipeline.calendar.first.start, series=3), load.Wrote()
    for hour in range(hours):
        world.land(pipeline, hour, late=False)
        load._make(pipeline, world.batch(pipeline, hour), wrote, stage=True)
    assert (wrote.batches, wrote.problems) == (hours, [])
    return world, pipeline


def look(world: load.World, options: dict[str, Any], hours: int) -> load.Read:
    stop: Any = threading.Event()
    stop.set()
    answers: Any = queue.Queue()
    load.read(world, options, hours, hours, stop, answers)
    found: load.Read = answers.get_nowait()
    return found


def test_states_are_those_of_a_table_on_its_way(options: dict[str, Any]) -> None:
    """Before the late file of an hour, after it, and after it for the hour that follows."""
    world, pipeline = published(options, 2)
    resolutions = pipeline.settings.resolutions

    def points(hour: int) -> tuple[int, ...]:
        seen = load._seen(pipeline.settings)
        return tuple(seen.get((world.first + hour * load.HOUR_MS, resolution), 0) for resolution in resolutions)

    states = [world.states(hour, resolutions) for hour in (0, 1)]
    before = [points(0), points(1)]
    world.land(pipeline, 0, late=True)
    wrote = load.Wrote()
    load._make(pipeline, world.batch(pipeline, 0), wrote, stage=True)
    between = [points(0), points(1)]
    load._make(pipeline, world.batch(pipeline, 1), wrote, stage=False)
    after = [points(0), points(1)]
    assert before[0] != between[0] == after[0]
    assert before[1] == between[1] != after[1]
    assert states[0][before[0]] < states[0][after[0]]
    assert states[1][before[1]] < states[1][after[1]]
    assert load._unfinished(world, pipeline.settings, 1, 1) == []


def test_a_reader_notices_half_an_hour(options: dict[str, Any]) -> None:
    world, pipeline = published(options, 3)
    assert (look(world, options, 3).problems, look(world, options, 3).hours_seen) == ([], 3)
    table = load_iceberg_table(load_catalog(pipeline.settings), pipeline.settings)
    assert table is not None
    table.delete(f"resolution = 300000 and {OF_HOUR_1}")
    (problem,) = look(world, options, 3).problems
    assert problem.startswith("hour 1 has (")
    table.delete(OF_HOUR_1)
    (problem,) = look(world, options, 3).problems
    assert problem.startswith("hour 1 has (0, 0, 0) points")
    assert any(problem.startswith("in the end hour 1 has") for problem in load._unfinished(world, pipeline.settings, 0, 3))


def test_the_table_of_the_page_is_the_measured_one(tmp_path: Path) -> None:
    results = tables.read(load_table.NAME)
    assert results is not None
    assert list(results["stores"]) == list(load_table.STORES)
    assert not any(found["problems"] for found in results["stores"].values())
    page = (ROOT / load_table.PAGE).read_text()
    assert load_table.table(results) in page
    copy = tmp_path / load_table.PAGE
    copy.parent.mkdir()
    copy.write_text(page.replace(load_table.table(results), "| of before |"))
    load_table.write(tmp_path)
    assert copy.read_text() == page, "run `python -m benchmarks --report`"
