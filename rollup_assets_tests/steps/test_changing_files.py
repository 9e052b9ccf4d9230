"""The same file twice, and files that change while they are read: neither adds, loses or mixes a point."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rollup_assets.errors import QuarantineError, StaleInputError
from rollup_assets.steps import checks
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.storage import raw_files
from rollup_assets.verification import verify
from rollup_assets_tests import staged
from rollup_assets_tests.landing import Shape, pipeline_of, write_bytes, write_rows
from rollup_assets_tests.naive import RawRow
from rollup_assets_tests.strategies import HOUR, MINUTE, TODAY, Grid, histories

if TYPE_CHECKING:
    from rollup_assets.batches import Batch
    from rollup_assets.pipeline import Pipeline

ONE_BATCH = Grid(TODAY, HOUR, 1, (MINUTE, 5 * MINUTE, HOUR), HOUR)
FreshHome = Callable[[], Path]


def rows_from(start: int, count: int = 40) -> list[RawRow]:
    return [RawRow(index % 3, 1, "cpu", start + 1000 * index, index) for index in range(count)]


def copy(pipeline: Pipeline, path: str, batch: Batch, name: str) -> str:
    """The same bytes under another name, in the folder of a batch."""
    return write_bytes(pipeline, batch, name, (Path(pipeline.landing_zone.root.path) / path).read_bytes())


# ------------------------------------------------------------------------------------------------------------- the same file twice


@pytest.mark.scenario("L2")
def test_a_copy_is_read_once_and_shown(tmp_path: Path) -> None:
    """By default: the table is the same, the copy is not read, and the partition says which files these were."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = pipeline.calendar.first
    path = write_rows(pipeline, batch, "b.parquet", rows_from(TODAY))
    write_rows(pipeline, batch, "other.parquet", rows_from(TODAY + HOUR // 2))
    alone = stage_batch(pipeline, batch)
    first, second = copy(pipeline, path, batch, "sub/a"), copy(pipeline, path, batch, "c.parquet")
    again = stage_batch(pipeline, batch)
    assert [file.digest for file in again.repartitioned.files] == [file.digest for file in alone.repartitioned.files]
    assert again.partial_points.digest == alone.partial_points.digest
    counters = again.repartitioned.counters
    assert (counters["rows_read"], counters["duplicates"], counters["raw_files"], counters["copied_files"]) == (80, 0, 4, 2)
    assert counters["copies"] == {second: path, first: path}
    assert checks.rows_accounted_for(again.repartitioned, again.quarantined).passed
    assert stage_batch(pipeline, batch).unchanged


@pytest.mark.scenario("L2")
def test_a_copy_is_a_bad_file_if_that_is_asked_for(tmp_path: Path) -> None:
    """It falls under ROLLUP_QUARANTINE_FILES and names the original; its rows are all in that one, so none is quarantined."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path, raw_copies="report")
    batch = pipeline.calendar.first
    path = write_rows(pipeline, batch, "b.parquet", rows_from(TODAY))
    copied = copy(pipeline, path, batch, "c.parquet")
    with pytest.raises(QuarantineError, match=rf"{copied}: copied_file \(the same content as {path}\)"):
        stage_batch(pipeline, batch)
    allowed = pipeline_of(ONE_BATCH, tmp_path, raw_copies="report", quarantine_files=1)
    result = stage_batch(allowed, batch)
    (row,) = staged.quarantined(allowed, batch, result.quarantined)
    assert (row["reason"], row["file"], row["rows"], row["detail"]) == ("copied_file", copied, 0, f"the same content as {path}")
    counters = result.repartitioned.counters
    assert (counters["rows_read"], counters["rows_accepted"], counters["rows_quarantined"], counters["bad_files"]) == (40, 40, 0, 1)
    assert checks.rows_accounted_for(result.repartitioned, result.quarantined).passed


@pytest.mark.scenario("L2")
@pytest.mark.parametrize("copies", ["once", "report"])
def test_a_copy_of_a_bad_file_is_bad_too(copies: str, tmp_path: Path) -> None:
    """Correcting or allowing the one does not let the other pass."""
    strict = pipeline_of(ONE_BATCH, tmp_path, raw_copies=copies, quarantine_files=1)
    batch = strict.calendar.first
    write_rows(strict, batch, "good.parquet", rows_from(TODAY))
    for name in ("a.parquet", "b.parquet"):
        write_bytes(strict, batch, name, b"PAR1 but no raw data PAR1")
    with pytest.raises(QuarantineError, match=r"2 bad files"):
        stage_batch(strict, batch)
    allowing = pipeline_of(ONE_BATCH, tmp_path, raw_copies=copies, quarantine_files=2)
    result = stage_batch(allowing, batch)
    found = staged.quarantined(allowing, batch, result.quarantined)
    assert [row["reason"] for row in found] == ["unreadable_file", "unreadable_file" if copies == "once" else "copied_file"]
    assert (result.repartitioned.counters["bad_files"], "copies" in result.repartitioned.counters) == (2, False)
    assert stage_batch(allowing, batch).unchanged


@pytest.mark.scenario("L2")
def test_what_is_done_about_copies_can_be_changed(tmp_path: Path) -> None:
    """Like a limit: batches with copies are looked at again, all others are up to date."""
    once = pipeline_of(ONE_BATCH, tmp_path)
    report = pipeline_of(ONE_BATCH, tmp_path, raw_copies="report", quarantine_files=1)
    batch = once.calendar.first
    path = write_rows(once, batch, "b.parquet", rows_from(TODAY))
    stage_batch(once, batch)
    assert stage_batch(report, batch).unchanged
    copy(once, path, batch, "c.parquet")
    for pipeline, bad_files in ((once, 0), (report, 1), (once, 0)):
        result = stage_batch(pipeline, batch)
        assert not result.unchanged
        assert result.repartitioned.counters["bad_files"] == bad_files
        assert stage_batch(pipeline, batch).unchanged


@pytest.mark.scenario("L2")
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), lateness=st.sampled_from((0, 2)), future=st.sampled_from((None, "30m", "90m")))
def test_copies_never_change_the_points(data: st.DataObject, lateness: int, future: str | None, fresh_home: FreshHome) -> None:
    """Read once, reported or read twice (their names alone differ, and a column that nobody uses): each batch has the same points."""
    contents = data.draw(st.lists(histories(Grid(TODAY, HOUR, 4, (MINUTE,), HOUR), max_points=8), min_size=1, max_size=2))
    placed = data.draw(st.lists(st.tuples(st.integers(0, len(contents) - 1), st.integers(0, 3)), min_size=2, max_size=5))
    seen: dict[str, list[object]] = {}
    for way, overrides in (("once", {}), ("report", {"raw_copies": "report"}), ("twice", {})):
        limits = {"quarantine_limit": 1.0, "quarantine_files": 9}
        pipeline = pipeline_of(ONE_BATCH, fresh_home(), raw_lateness=lateness, raw_future=future, **limits, **overrides)
        batches = [pipeline.calendar.containing(TODAY + HOUR * count) for count in range(4)]
        for number, (content, folder) in enumerate(placed):
            # Another row group is another file with the same rows.
            shape = Shape(row_group=1 + number if way == "twice" else 100, receive=True)
            write_rows(pipeline, batches[folder], f"{number}.parquet", contents[content], shape)
        results = [stage_batch(pipeline, batch) for batch in batches]
        assert all(checks.rows_accounted_for(result.repartitioned, result.quarantined).passed for result in results)
        seen[way] = [staged.points(pipeline, batch, result.repartitioned) for batch, result in zip(batches, results, strict=True)]
    assert seen["once"] == seen["report"] == seen["twice"]


@pytest.mark.scenario("L2")
@pytest.mark.parametrize("copies", ["once", "report"])
def test_verification_finds_the_copies_itself(copies: str, tmp_path: Path) -> None:
    from rollup_assets.steps.publish import publish
    from rollup_assets.steps.rollup import roll_up

    pipeline = pipeline_of(ONE_BATCH, tmp_path, raw_copies=copies, quarantine_files=4, raw_lateness=1)
    first, second = pipeline.calendar.first, pipeline.calendar.containing(TODAY + HOUR)
    path = write_rows(pipeline, first, "b.parquet", rows_from(TODAY))
    copy(pipeline, path, second, "late.parquet")
    copy(pipeline, path, first, "c.parquet")
    write_rows(pipeline, second, "a.parquet", rows_from(TODAY + HOUR - 10_000))
    for name in ("bad-1.parquet", "bad-2.parquet"):
        write_bytes(pipeline, second, name, b"PAR1 but no raw data PAR1")
    for batch in (first, second, pipeline.calendar.containing(TODAY + 2 * HOUR)):
        stage_batch(pipeline, batch)
        roll_up(pipeline, batch)
        publish(pipeline, batch)
    found = verify(pipeline.settings)
    assert [partition.problems for partition in found.partitions] == [[], [], []]
    assert found.agrees
    other = pipeline_of(ONE_BATCH, tmp_path, raw_copies="report" if copies == "once" else "once", quarantine_files=4, raw_lateness=1)
    assert not verify(other.settings).agrees


# ----------------------------------------------------------------------------------------------------- changing while it is read


def replaced(path: Path) -> None:
    """Another file of the same size in its place."""
    hidden = path.with_name(".new")
    hidden.write_bytes(path.read_bytes()[::-1])
    hidden.replace(path)


def overwritten(path: Path) -> None:
    """Other bytes in the same file, of the same length."""
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 50)


def grown(path: Path) -> None:
    before = path.stat()
    with path.open("ab") as file:
        file.write(b"more")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def removed(path: Path) -> None:
    path.unlink()


def moved(path: Path) -> None:
    shutil.move(path, path.with_name("moved.parquet"))


CHANGES: list[Callable[[Path], None]] = [replaced, overwritten, grown, removed, moved]


def in_the_middle(monkeypatch: pytest.MonkeyPatch, name: str, happens: Callable[[], None]) -> None:
    """Let something happen after the first row group of a file was read."""
    tables = raw_files.RawFile._tables
    pending = [happens]

    def interrupted(file: raw_files.RawFile, *arguments: Any) -> Iterator[Any]:
        for table in tables(file, *arguments):
            yield table
            if pending and file._place.name == name:
                pending.pop()()

    monkeypatch.setattr(raw_files.RawFile, "_tables", interrupted)


@pytest.mark.scenario("L3")
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_file_that_changes_while_it_is_read_fails_the_batch_without_effect(
    change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever was read of it, before and after: nothing is staged, also not a quarantine of what looked damaged."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path, quarantine_files=5)
    batch = pipeline.calendar.first
    write_rows(pipeline, batch, "a.parquet", rows_from(TODAY))
    before = stage_batch(pipeline, batch)
    staged_files = sorted(path for path in Path(pipeline.settings.stage).rglob("*") if path.is_file())
    path = Path(pipeline.landing_zone.root.path) / write_rows(
        pipeline, batch, "b.parquet", rows_from(TODAY + MINUTE, 200), Shape(row_group=20)
    )
    with monkeypatch.context() as patch:
        in_the_middle(patch, "b.parquet", lambda: change(path))
        with pytest.raises(StaleInputError, match=rf"b\.parquet was (replaced|removed).*Run `rollups backfill {batch} {batch}`"):
            stage_batch(pipeline, batch)
    assert pipeline.stage.read("repartitioned_datapoints", batch) == before.repartitioned
    assert pipeline.stage.read("quarantined_datapoints", batch) == before.quarantined
    assert sorted(path for path in Path(pipeline.settings.stage).rglob("*") if path.is_file()) == staged_files


@pytest.mark.scenario("L3")
def test_a_file_that_comes_while_others_are_read_waits_for_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = pipeline.calendar.first
    write_rows(pipeline, batch, "a.parquet", rows_from(TODAY))
    with monkeypatch.context() as patch:
        in_the_middle(patch, "a.parquet", lambda: write_rows(pipeline, batch, "b.parquet", rows_from(TODAY + MINUTE)) and None)
        assert stage_batch(pipeline, batch).repartitioned.counters["raw_files"] == 1
    again = stage_batch(pipeline, batch)
    assert not again.unchanged
    assert again.repartitioned.counters["raw_files"] == 2


@pytest.mark.scenario("L3")
def test_a_file_that_was_replaced_before_it_is_opened_is_not_read(tmp_path: Path) -> None:
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    batch = pipeline.calendar.first
    path = write_rows(pipeline, batch, "a.parquet", rows_from(TODAY))
    (listed,) = pipeline.landing_zone.files(batch)
    os.utime(Path(pipeline.landing_zone.root.path) / path, ns=(1, 1))
    with pytest.raises(StaleInputError, match=r"a\.parquet was replaced after it had been listed"):
        raw_files.RawFile(pipeline.landing_zone.place(listed), "long_value", listed.version)
