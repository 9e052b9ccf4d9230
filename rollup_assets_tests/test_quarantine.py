"""Quarantined rows can be seen, corrected and replayed, or allowed to stay where they are; none of that ever accepts one."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import shlex
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollup_assets.batches import Batch
from rollup_assets.defs import asset_checks
from rollup_assets.errors import (
    AllowanceError,
    ConcurrentWriteError,
    NotStagedError,
    QuarantineError,
    StageCorruptError,
    UnknownReasonError,
)
from rollup_assets.pipeline import Pipeline
from rollup_assets.quarantine import (
    allow,
    counts,
    known_reasons,
    quarantined_partitions,
    quarantined_rows,
    stream_quarantined_rows,
)
from rollup_assets.scope import following
from rollup_assets.status import status
from rollup_assets.steps.quarantine_limits import covered
from rollup_assets.storage import encodings, s3
from rollup_assets.storage.allowances import Allowance, read_allowances, write_allowances
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED
from rollup_assets.storage.quarantine import Tally
from rollup_assets_tests import naive, staged
from rollup_assets_tests.conftest import WithDagsterHome
from rollup_assets_tests.landing import forbid, pipeline_of, table_of, write_bytes, write_rows, write_table
from rollup_assets_tests.naive import RawRow
from rollup_assets_tests.s3 import S3Folder
from rollup_assets_tests.strategies import HOUR, MINUTE, TODAY, Grid
from rollup_assets_tests.test_cli import Run, plain, runner

ONE_BATCH = Grid(TODAY, HOUR, 1, (MINUTE, HOUR), HOUR)
GOOD = [RawRow(7, 1, "cpu", TODAY + 1000 * second, second) for second in range(40)]
NO_ID = [RawRow(None, 1, "cpu", TODAY + 1000 * second, second) for second in range(3)]
OUTSIDE = [RawRow(7, 1, "cpu", TODAY - 1 - second, second) for second in range(2)]


@pytest.fixture
def pipeline(tmp_path: Path) -> Pipeline:
    return pipeline_of(ONE_BATCH, tmp_path)


@pytest.fixture
def batch(pipeline: Pipeline) -> Batch:
    return pipeline.calendar.first


def stage(pipeline: Pipeline, batch: Batch) -> Any:
    from rollup_assets.steps.repartition import stage_batch

    return stage_batch(pipeline, batch)


def rows_of(batch: Batch, series: int | None) -> list[RawRow]:
    """Forty rows of a batch; without an id all of them are quarantined."""
    return [RawRow(series, 1, "cpu", batch.start + 1000 * second, second) for second in range(40)]


def refused(pipeline: Pipeline, batch: Batch) -> str:
    with pytest.raises(QuarantineError) as raised:
        stage(pipeline, batch)
    return str(raised.value)


def assert_only_good_rows(pipeline: Pipeline, batch: Batch, files: dict[str, Sequence[RawRow]]) -> None:
    """The staged points are the model's of these files, and every other row is in the quarantine."""
    expected = naive.accept(files, batch.start, batch.end)
    repartitioned, quarantined = pipeline.stage.read(REPARTITIONED, batch), pipeline.stage.read(QUARANTINED, batch)
    assert repartitioned is not None
    assert quarantined is not None
    found = [point for points in staged.points(pipeline, batch, repartitioned).values() for point in points]
    assert sorted(map(str, found)) == sorted(map(str, expected.points))
    assert quarantined.counters["rows_quarantined"] == len(expected.quarantined)
    assert quarantined.counters["rows_read"] == len(expected.points) + expected.duplicates + len(expected.quarantined)


# ------------------------------------------------------------------------------------------------------------------- decisions


@pytest.mark.scenario("B3")
@pytest.mark.parametrize(
    ("reasons", "files", "enough"),
    [
        (["null_id", "outside_batch"], [], True),
        (["null_id"], [], False),
        ([], ["b.parquet"], False),
        ([], ["b.parquet", "c.parquet"], True),
        (["null_id"], ["b.parquet", "c.parquet"], False),
        (["null_id"], ["c.parquet"], False),
    ],
)
def test_what_is_allowed_stays_quarantined_and_counts_no_more(
    reasons: list[str], files: list[str], enough: bool, pipeline: Pipeline, batch: Batch
) -> None:
    """Five bad rows of 45, where none may be: three without an id, in two files, and two outside of the batch."""
    pipeline = pipeline_of(ONE_BATCH, pipeline.settings.home, quarantine_limit=0)
    content = {"a.parquet": GOOD, "b.parquet": [*NO_ID[:2], *OUTSIDE], "c.parquet": NO_ID[2:]}
    paths = {write_rows(pipeline, batch, name, rows): rows for name, rows in content.items()}
    before = refused(pipeline, batch)
    assert f"`rollups quarantine show {batch}`" in before
    assert f"`rollups quarantine replay {batch} --allow null_id --allow outside_batch --because TEXT`" in before
    quarantined = pipeline.stage.read(QUARANTINED, batch)
    assert quarantined is not None

    if reasons == ["null_id"] and files == ["b.parquet", "c.parquet"]:
        allow(pipeline.settings, [batch], reasons, files, because="they have no id")
        assert [(one.reason, one.rows) for one in read_allowances(pipeline.stage, batch)] == [("null_id", 2), ("null_id", 1)]
    else:
        allow(pipeline.settings, [batch], reasons, files, because="so it is")
    if not enough:
        assert "rows are quarantined" in refused(pipeline, batch)
        assert pipeline.stage.read(REPARTITIONED, batch) is None
        return
    stage(pipeline, batch)
    assert_only_good_rows(pipeline, batch, paths)
    again = pipeline.stage.read(QUARANTINED, batch)
    assert again is not None
    assert again.digest == quarantined.digest
    assert stage(pipeline, batch).unchanged

    (found,) = quarantined_partitions(pipeline.settings)
    assert (found.over_limit, found.share, found.allowed_rows, found.rows) == (False, 0, 5, 5)
    (check,) = asset_checks.of_quarantined(pipeline, again)
    assert check.passed
    assert "so it is" in str(check.metadata["decisions"])
    (state,) = status(pipeline.settings, [batch])
    assert state.state == "staged"
    assert all("so it is" in text for text in state.allowed)
    assert state.allowed

    allow(pipeline.settings, [batch], [], [], because="", revoke=True)
    assert read_allowances(pipeline.stage, batch) == ()
    assert refused(pipeline, batch) == before
    assert status(pipeline.settings, [batch])[0].state == "quarantined"


@pytest.mark.scenario("B1", "B2")
@pytest.mark.parametrize("kind", ["torn", "schema"])
def test_a_bad_file_that_is_allowed_does_not_let_another_one_pass(kind: str, pipeline: Pipeline, batch: Batch) -> None:
    """The decision is about this file: the next one is refused, and the message is about that one alone."""
    good = write_rows(pipeline, batch, "a.parquet", GOOD)

    def land(name: str) -> str:
        if kind == "torn":
            return write_bytes(pipeline, batch, name, b"PAR1")
        return write_table(pipeline, batch, name, table_of(GOOD).drop_columns(["org_id"]))

    bad = land("a file's.parquet")
    assert f"`rollups quarantine replay {batch} --allow-file '{bad[:-15]}" in refused(pipeline, batch)
    allow(pipeline.settings, [batch], [], ["a file's.parquet"], because="nobody has it any more")
    assert [one.file for one in read_allowances(pipeline.stage, batch)] == [bad]
    stage(pipeline, batch)
    found = counts(pipeline.settings, batch)
    assert (found["accepted"], found["bad files"]) == (40, 1)

    other = land("other.parquet")
    message = refused(pipeline, batch)
    assert "1 bad file," in message
    assert other in message
    assert bad not in message
    assert good not in message


@pytest.mark.scenario("B1", "B2")
@pytest.mark.parametrize("bad", [1, 3, 5])
def test_the_command_that_a_refusal_names_allows_all_bad_files(bad: int, pipeline: Pipeline, batch: Batch) -> None:
    """Also where there are more than it names: done as it says, the batch is staged."""
    write_rows(pipeline, batch, "a.parquet", GOOD)
    write_table(pipeline, batch, "bad 0.parquet", table_of([]).drop_columns(["org_id"]))
    for number in range(1, bad):
        write_bytes(pipeline, batch, f"bad {number}.parquet", b"PAR1")
    message = refused(pipeline, batch)
    assert f"{bad} bad file{'s' if bad > 1 else ''}, more than ROLLUP_QUARANTINE_FILES=0 allows: " in message
    command = re.search(f"`rollups quarantine replay {batch} ([^`]+) --because TEXT`", message)
    assert command is not None
    words = shlex.split(command[1])
    given = list(zip(words[::2], words[1::2], strict=True))
    assert {option for option, _ in given} == {"--allow" if bad == 5 else "--allow-file"}
    reasons, files = ([value for option, value in given if option == wanted] for wanted in ("--allow", "--allow-file"))
    allow(pipeline.settings, [batch], reasons, files, because="TEXT")
    assert stage(pipeline, batch).repartitioned.counters["bad_files"] == bad


@pytest.mark.scenario("B3")
def test_a_refusal_for_too_many_rows_names_no_file_and_no_reason_without_one(pipeline: Pipeline, batch: Batch) -> None:
    """A bad file that the settings allow has none, as far as anybody knows."""
    pipeline = pipeline_of(ONE_BATCH, pipeline.settings.home, quarantine_files=1)
    write_bytes(pipeline, batch, "bad.parquet", b"PAR1")
    path = write_rows(pipeline, batch, "good.parquet", [*GOOD, *NO_ID])
    assert f": 3 null_id; in {path} (3). See" in refused(pipeline, batch)


@pytest.mark.scenario("B1")
def test_a_corrected_file_is_staged_whatever_was_allowed(pipeline: Pipeline, batch: Batch) -> None:
    """A decision accepts nothing and rejects nothing."""
    write_bytes(pipeline, batch, "a.parquet", b"PAR1")
    refused(pipeline, batch)
    allow(pipeline.settings, [batch], ["unreadable_file"], [], because="gone")
    stage(pipeline, batch)
    assert counts(pipeline.settings, batch)["accepted"] == 0
    path = write_rows(pipeline, batch, "a.parquet", [*GOOD, *NO_ID])
    (found,) = quarantined_partitions(pipeline.settings)
    assert found.raw_changed
    assert "3 of 43 rows are quarantined" in refused(pipeline, batch)
    assert counts(pipeline.settings, batch)["accepted"] == 0
    write_rows(pipeline, batch, "a.parquet", GOOD)
    stage(pipeline, batch)
    assert_only_good_rows(pipeline, batch, {path: GOOD})


def test_decisions_about_nothing_are_refused(pipeline: Pipeline, batch: Batch) -> None:
    settings = pipeline.settings
    with pytest.raises(NotStagedError, match=r"nothing of 2026-.* is staged"):
        allow(settings, [batch], ["null_id"], [], because="why")
    write_rows(pipeline, batch, "x/a.parquet", [*GOOD, *NO_ID])
    write_rows(pipeline, batch, "y/a.parquet", NO_ID)
    refused(pipeline, batch)
    with pytest.raises(UnknownReasonError) as unknown:
        allow(settings, [batch], ["null_ids"], [], because="why")
    assert all(reason in str(unknown.value) for reason in known_reasons())
    for reasons, files, says in (
        (["null_value"], [], "nothing of .* is quarantined for null_value; quarantined there: null_id"),
        ([], ["z.parquet"], r"nothing of z\.parquet is quarantined"),
        ([], ["a.parquet"], "2 files of .* are called a.parquet: .*give the whole path"),
        (["null_value"], ["x/a.parquet"], "for null_value in .*x/a.parquet"),
    ):
        with pytest.raises(AllowanceError, match=says):
            allow(settings, [batch], reasons, files, because="why")
    assert read_allowances(pipeline.stage, batch) == ()


def test_a_decision_about_several_partitions_is_made_for_all_or_none(pipeline: Pipeline, batch: Batch) -> None:
    second = following(pipeline.calendar, batch, 1)[0]
    for one, series in ((batch, None), (second, 7)):
        write_rows(pipeline, one, "a.parquet", rows_of(one, series))
    refused(pipeline, batch)
    stage(pipeline, second)
    with pytest.raises(AllowanceError, match=f"nothing of {second} is quarantined for null_id"):
        allow(pipeline.settings, [batch, second], ["null_id"], [], because="why")
    assert read_allowances(pipeline.stage, batch) == ()
    decided = allow(pipeline.settings, [batch], ["null_id"], [], because="why")
    assert decided == {batch: read_allowances(pipeline.stage, batch)}


def test_a_decision_replaces_the_earlier_one_of_its_scope(pipeline: Pipeline, batch: Batch) -> None:
    def one(because: str, **scope: str) -> Allowance:
        return Allowance(**scope, because=because, by="me@here", at="2026-01-01T00:00:00+00:00", rows=1, files=0)  # type: ignore[arg-type]

    write_allowances(pipeline.stage, batch, [one("first", reason="null_id"), one("file", file="a", reason="null_id")])
    assert [str(d.because) for d in write_allowances(pipeline.stage, batch, [one("second", reason="null_id")])] == ["file", "second"]
    assert [d.because for d in write_allowances(pipeline.stage, batch, [one("new", file="b")], revoke=True)] == ["new"]
    place = pipeline.stage.folder(QUARANTINED, batch) / "allowed.json"
    place.write_bytes(b'{"decisions": [], "format_version": 2}')
    with pytest.raises(StageCorruptError, match=r"allowed\.json does not hold decisions that this version can read"):
        read_allowances(pipeline.stage, batch)


scopes = st.tuples(st.sampled_from([None, "r1", "r2", "r3"]), st.sampled_from([None, "f1", "f2"])).filter(
    lambda scope: scope != (None, None)
)


@given(
    st.lists(scopes, max_size=4, unique=True),
    st.lists(st.tuples(st.sampled_from(["r1", "r2", "r3"]), st.sampled_from(["f1", "f2"]), st.integers(0, 9), st.booleans()), max_size=8),
)
def test_what_decisions_cover_is_counted_once(chosen: list[tuple[str | None, str | None]], found: list[tuple[str, str, int, bool]]) -> None:
    """Every row and file that at least one decision names, however they overlap."""
    decisions = tuple(Allowance(reason=reason, file=file, because="", by="", at="", rows=0, files=0) for reason, file in chosen)
    inside = [row for row in found if any(scope in ((row[0], row[1]), (row[0], None), (None, row[1])) for scope in chosen)]
    allowed = covered(decisions, [Tally(*row) for row in found])
    assert (allowed.rows, allowed.files) == (sum(row[2] for row in inside), sum(row[3] for row in inside))


# ------------------------------------------------------------------------------------------------------------------------ show


def test_rows_are_shown_with_reason_file_row_number_and_values(pipeline: Pipeline, batch: Batch) -> None:
    rows = {"a.parquet": [*GOOD, *NO_ID], "b.parquet": [*OUTSIDE, *GOOD], "c.parquet": b"PAR1"}
    paths = {
        name: write_bytes(pipeline, batch, name, content) if isinstance(content, bytes) else write_rows(pipeline, batch, name, content)
        for name, content in rows.items()
    }
    refused(pipeline, batch)
    found = quarantined_rows(pipeline.settings, batch)
    expected = {
        *((("null_id"), paths["a.parquet"], 40 + at, None, row.ts, row.value) for at, row in enumerate(NO_ID)),
        *((("outside_batch"), paths["b.parquet"], at, row.id, row.ts, row.value) for at, row in enumerate(OUTSIDE)),
    }
    columns = ("reason", "file", "row_number", "id", "logical_timestamp", "long_value")
    assert {tuple(row[name] for name in columns) for row in found.rows.to_pylist()} == expected
    assert (found.rows.num_rows, found.total, found.is_cut, found.raw_changed) == (5, 5, False, False)
    ((bad),) = found.bad_files
    assert (bad.path, bad.reason) == (paths["c.parquet"], "unreadable_file")
    assert bad.detail

    one = quarantined_rows(pipeline.settings, batch, reason="outside_batch", file="b.parquet", limit=1)
    assert (one.rows.num_rows, one.is_cut, one.bad_files) == (1, True, [])
    assert quarantined_rows(pipeline.settings, batch, reason="null_id", file=paths["b.parquet"]).rows.num_rows == 0
    assert quarantined_rows(pipeline.settings, batch, file="arquet").rows.num_rows == 0
    with pytest.raises(UnknownReasonError, match="null_id, null_timestamp"):
        quarantined_rows(pipeline.settings, batch, reason="why")
    _, batches = stream_quarantined_rows(pipeline.settings, batch, limit=4)
    assert sum(rows.num_rows for rows in batches) == 4


@pytest.mark.parametrize(("limit", "shown"), [(2, 2), (3, 3), (0, 3)])
def test_bad_files_that_are_not_shown_are_told(limit: int, shown: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where no row is quarantined: a producer has changed the schema of a whole batch."""
    run: Run = runner(tmp_path, monkeypatch)
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    key = pipeline.calendar.first.key
    monkeypatch.setenv("ROLLUP_START", key[:10])
    paths = [write_bytes(pipeline, pipeline.calendar.first, f"{name}.parquet", b"PAR1") for name in "abc"]
    refused(pipeline, pipeline.calendar.first)
    found = run("quarantine", "show", key, "--limit", limit, "--json")
    assert ([bad["path"] for bad in found["bad_files"]], found["is_cut"]) == (paths[:shown], shown < 3)
    text = plain(run("quarantine", "show", key, "--limit", limit).output)
    assert (text.count("unreadable_file"), "--limit 0 shows all" in text) == (shown, shown < 3)


def test_no_more_is_read_than_is_shown(pipeline: Pipeline, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing behind the first row groups is decoded: it may as well be damaged."""
    monkeypatch.setattr(encodings, "QUARANTINED_ROW_GROUP", 100)
    write_rows(pipeline, batch, "a.parquet", [RawRow(None, 1, f"metric {second}", TODAY + second, second) for second in range(1000)])
    refused(pipeline, batch)
    manifest = pipeline.stage.read(QUARANTINED, batch)
    assert manifest is not None
    # Of so small a file the digest of the footer covers all.
    (file,) = manifest.files
    pipeline.stage.write(manifest.model_copy(update={"files": (file.model_copy(update={"tail": None}),)}), batch)
    path = Path(pipeline.stage.place(manifest, manifest.files[0], batch).path)
    content = bytearray(path.read_bytes())
    groups = pq.read_metadata(path)
    assert groups.num_row_groups == 10
    first, last = (groups.row_group(number).column(0) for number in (5, 9))
    for place in range(first.dictionary_page_offset, last.dictionary_page_offset):
        content[place] ^= 0xFF
    path.write_bytes(content)
    shown = quarantined_rows(pipeline.settings, batch, limit=150)
    assert shown.rows["long_value"].to_pylist() == list(range(150))
    with pytest.raises(StageCorruptError, match=rf"quarantined-.* is damaged \(.*`rollups backfill {batch} {batch} --force`"):
        quarantined_rows(pipeline.settings, batch)


def test_all_of_it_works_on_s3(s3_folder: S3Folder, tmp_path: Path) -> None:
    """Rows are read where they are staged, and of two who decide at once one is told."""
    local = pipeline_of(ONE_BATCH, tmp_path)
    batch = local.calendar.first
    write_rows(local, batch, "a.parquet", [*GOOD, *NO_ID])
    s3_folder.upload(Path(local.landing_zone.root.path))
    pipeline = pipeline_of(ONE_BATCH, tmp_path, **s3_folder.locations)
    refused(pipeline, batch)
    assert quarantined_rows(pipeline.settings, batch, reason="null_id", limit=2).rows["row_number"].to_pylist() == [40, 41]
    (decision,) = allow(pipeline.settings, [batch], ["null_id"], [], because="why")[batch]
    place = pipeline.stage.folder(QUARANTINED, batch) / "allowed.json"
    _, seen = place.read_versioned()
    allow(pipeline.settings, [batch], [], ["a.parquet"], because="why not")
    with pytest.raises(ConcurrentWriteError):
        place.replace_bytes(b"{}", seen)
    assert read_allowances(pipeline.stage, batch)[0] == decision
    stage(pipeline, batch)
    assert quarantined_partitions(pipeline.settings)[0].allowed_rows == 3
    allow(pipeline.settings, [batch], [], [], because="", revoke=True)
    assert not place.exists()


@pytest.mark.timeout(120)
def test_partitions_are_listed_on_s3_where_each_has_several_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them lists its folders side by side: in the same threads, all of them would wait for ever."""
    pipeline = pipeline_of(ONE_BATCH, tmp_path, raw_lateness=2, quarantine_limit=0)
    batches = [pipeline.calendar.first, *following(pipeline.calendar, pipeline.calendar.first, 2)]
    for batch in batches:
        write_rows(pipeline, batch, "a.parquet", rows_of(batch, None))
        refused(pipeline, batch)
    monkeypatch.setattr(Place, "is_local", False)
    monkeypatch.setattr(s3, "_THREADS", 2)
    monkeypatch.setattr(s3, "_made", {})
    assert [partition.rows for partition in quarantined_partitions(pipeline.settings)] == [40, 40, 40]


def test_nothing_staged_and_a_missing_file_are_told(pipeline: Pipeline, batch: Batch) -> None:
    with pytest.raises(NotStagedError, match=f"rollups backfill {batch} {batch}"):
        quarantined_rows(pipeline.settings, batch)
    write_rows(pipeline, batch, "a.parquet", NO_ID)
    refused(pipeline, batch)
    manifest = pipeline.stage.read(QUARANTINED, batch)
    assert manifest is not None
    pipeline.stage.place(manifest, manifest.files[0], batch).delete_file()
    with pytest.raises(StageCorruptError, match="is missing"):
        quarantined_rows(pipeline.settings, batch)


@pytest.mark.parametrize("what", ["manifest", "staged file", "closed file", "decisions", "missing file"])
def test_a_partition_that_cannot_be_looked_at_hides_no_other(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: Batch
) -> None:
    run: Run = runner(tmp_path, monkeypatch)
    monkeypatch.setenv("ROLLUP_START", batch.key[:10])
    pipeline = pipeline_of(ONE_BATCH, tmp_path)
    other = following(pipeline.calendar, batch, 1)[0]
    for one in (batch, other):
        write_rows(pipeline, one, "a.parquet", rows_of(one, None))
        refused(pipeline, one)
    allow(pipeline.settings, [batch], ["null_id"], [], because="why")
    folder = pipeline.stage.folder(QUARANTINED, batch)
    manifest = pipeline.stage.read(QUARANTINED, batch)
    assert manifest is not None
    file = pipeline.stage.place(manifest, manifest.files[0], batch)
    if what == "missing file":
        file.delete_file()
    elif what == "closed file":
        open_input = Place.open_input

        def refuse(place: Place) -> Any:
            if place == file:
                raise PermissionError(13, "Permission denied")
            return open_input(place)

        monkeypatch.setattr(Place, "open_input", refuse)
    elif what == "staged file":
        content = file.read_bytes()
        assert content is not None
        file.write_bytes(content[:-20] + b"?" + content[-19:])
    else:
        (folder / ("manifest.json" if what == "manifest" else "allowed.json")).write_bytes(b"{")
    unknown, good = quarantined_partitions(pipeline.settings)
    assert (unknown.partition, good.partition, good.rows, good.problem) == (batch.key, other.key, 40, None)
    assert unknown.problem
    listed, _ = run("quarantine", "list", "--json")
    assert (listed["partition"], listed["problem"]) == (batch.key, unknown.problem)
    text = plain(run("quarantine", "list").output)
    assert f"{batch} unknown" in text
    assert f"{other} over the limit" in text
    assert unknown.problem.split()[-1] in text


@pytest.mark.parametrize("what", ["name", "folder", "file"])
def test_raw_files_that_cannot_be_listed_count_as_changed(
    what: str, pipeline: Pipeline, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(pipeline, batch, "a.parquet", NO_ID)
    refused(pipeline, batch)
    folder = Path(pipeline.landing_zone.folder(batch).path)
    if what == "folder":
        forbid(monkeypatch, pipeline.landing_zone.folder(batch))
    elif what == "name":
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff.parquet")).touch()
    else:
        shutil.rmtree(folder)
        folder.touch()
    (found,) = quarantined_partitions(pipeline.settings)
    assert (found.rows, found.raw_changed, found.problem) == (3, True, None)
    assert quarantined_rows(pipeline.settings, batch).raw_changed


# ------------------------------------------------------------------------------------------------------------------------- CLI


@pytest.mark.scenario("B1", "B3")
def test_from_a_failed_backfill_to_a_published_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_dagster_home: WithDagsterHome
) -> None:
    """Seen, corrected in part, replayed, allowed in part: published without the rows that nobody can repair, as verification says too."""
    run: Run = runner(with_dagster_home(tmp_path), monkeypatch)
    assert "nothing is quarantined" in run("quarantine", "list").output
    home = pipeline_of(ONE_BATCH, tmp_path)
    key, batch = home.calendar.first.key, home.calendar.first
    monkeypatch.setenv("ROLLUP_START", key[:10])
    good = [RawRow(series, 1, "cpu", TODAY + 10_000 * second, second) for second in range(300) for series in range(3)]
    write_rows(home, batch, "a.parquet", [*good, *[RawRow(None, 1, "cpu", TODAY, 1)] * 20])
    torn = write_bytes(home, batch, "b.parquet", b"PAR1")
    failed = run("backfill", key, key, "--json", status=1)["failed"][key]
    assert f"rollups quarantine show {key}" in failed

    (listed,) = run("quarantine", "list", "--json")
    assert (listed["rows"], listed["bad_files"], listed["over_limit"], listed["raw_changed"]) == (20, 1, True, False)
    assert listed["reasons"] == {"null_id": 20, "unreadable_file": 0}
    assert "over the limit" in plain(run("quarantine", "list", key).output)
    shown = run("quarantine", "show", key, "--reason", "null_id", "--limit", 3, "--json")
    assert [row["row_number"] for row in shown["rows"]] == [900, 901, 902]
    assert shown["is_cut"]
    text = plain(run("quarantine", "show", key).output)
    assert f"unreadable_file {torn}:" in text
    assert f"files in {Path(torn).parent}/" in text
    assert f"null_id a.parquet 900 null 1 cpu {key[:10]} 00:00:00.000 1" in text
    assert "20 rows of" in text
    rows = list(csv.DictReader(io.StringIO(run("quarantine", "show", key, "--csv", "--limit", 0).stdout)))
    assert Counter(row["reason"] for row in rows) == {"null_id": 20, "unreadable_file": 1}
    assert "there is no quarantine reason" in plain(run("quarantine", "show", key, "--reason", "x", status=2).stderr)
    run("quarantine", "replay", key, "--allow", "null_id", status=2)

    write_rows(home, batch, "b.parquet", [RawRow(9, 1, "cpu", TODAY + 500, 7)])
    replayed = run("quarantine", "replay", key, "--json", status=1)
    (partition,) = replayed["partitions"]
    assert (partition["before"]["bad files"], partition["after"]["bad files"]) == (1, 0)
    assert "20 of 921 rows are quarantined" in replayed["backfills"][0]["failed"][key]
    text = plain(run("quarantine", "replay", key, "--allow", "null_id", "--because", "[lost], for good").output)
    assert "accepted" in text
    assert "901" in text
    (listed,) = run("quarantine", "list", "--json")
    assert (listed["over_limit"], listed["allowed_rows"], listed["decisions"][0]["because"]) == (False, 20, "[lost], for good")
    assert "[lost], for good" in plain(run("quarantine", "list").output)
    (published,) = run("status", key, "--json")
    assert (published["state"], published["points"], published["quarantined"]) == ("published", 901, 20)
    assert run("verify", key, "--json")["agrees"]
    assert json.loads((tmp_path / "stage" / QUARANTINED / batch.folder / "allowed.json").read_text())["decisions"][0]["rows"] == 20
    assert home.stage.read(PARTIAL_POINTS, batch) is not None


def test_values_that_json_does_not_have_are_shown_as_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: Run = runner(tmp_path, monkeypatch)
    pipeline = pipeline_of(ONE_BATCH, tmp_path, value_type="double")
    batch = pipeline.calendar.first
    monkeypatch.setenv("ROLLUP_START", batch.key[:10])
    monkeypatch.setenv("ROLLUP_VALUE_TYPE", "double")
    values = (math.nan, math.inf, -math.inf, 0.5)
    write_rows(pipeline, batch, "a.parquet", [RawRow(None if value == 0.5 else 7, 1, "cpu", TODAY, value) for value in values])
    refused(pipeline, batch)
    rows = run("quarantine", "show", batch.key, "--json")["rows"]
    assert [row["double_value"] for row in rows] == ["NaN", "Infinity", "-Infinity", 0.5]


def test_neighbours_are_replayed_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_dagster_home: WithDagsterHome) -> None:
    """What follows from the first one may need the second one, which is staged by the same command."""
    run: Run = runner(with_dagster_home(tmp_path), monkeypatch)
    home = pipeline_of(ONE_BATCH, tmp_path)
    first = home.calendar.first
    batches = [first, *following(home.calendar, first, 2)]
    keys = [batch.key for batch in batches]
    monkeypatch.setenv("ROLLUP_START", first.key[:10])
    good = [rows_of(batch, 7) for batch in batches]
    for batch, rows in zip(batches, good, strict=True):
        write_rows(home, batch, "a.parquet", rows if batch == batches[2] else [*rows, *NO_ID])
    assert set(keys) <= run("backfill", keys[0], keys[2], "--json", status=1)["failed"].keys()
    for batch, rows in zip(batches[:2], good[:2], strict=True):
        write_rows(home, batch, "a.parquet", rows)
    replayed = run("quarantine", "replay", keys[1], keys[0], "--json")
    (backfill,) = replayed["backfills"]
    assert set(keys) <= set(backfill["published"])
    assert [(one["partition"], one["after"]["accepted"]) for one in replayed["partitions"]] == [(keys[0], 40), (keys[1], 40)]
