"""Verification agrees with the reference model, and notices every kind of tampering."""

from __future__ import annotations

import dataclasses
import datetime as dt
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rollup_assets.batches import Batch
from rollup_assets.errors import TableMismatchError
from rollup_assets.pipeline import Pipeline
from rollup_assets.storage.manifests import QUARANTINED, REPARTITIONED
from rollup_assets.verification import Verification, verify
from rollup_assets_tests.conftest import MakePipeline
from rollup_assets_tests.iceberg.staging import load
from rollup_assets_tests.landing import TICKS_PER_MS, Shape, batches_of, pipeline_of, table_of, write_bytes, write_rows, write_table
from rollup_assets_tests.naive import Point, RawRow
from rollup_assets_tests.verification.naive_table import append, arrow_of, content_of, land_and_stage, receipt, replace, rows_of, stage
from rollup_assets_tests.worked_example import EXAMPLE, GRID, RAW_ROWS

HOUR = 3_600_000


def some_rows(batch: Batch, seed: int, value: Callable[[random.Random], Any]) -> list[RawRow]:
    """Jittered, boundary, duplicated, out-of-order and dirty rows of a few series."""
    rng = random.Random(f"{seed} {batch.start}")
    rows = []
    for series in (-(2**63), -5, 0, 7, 2**63 - 1):
        times = {batch.start + rng.choice([0, 60_000, 300_000, HOUR - 1]) for _ in range(3)} | {
            batch.start + rng.randrange(HOUR) for _ in range(12)
        }
        for time in times:
            receive = time + rng.randrange(-50, 5_000) if rng.random() < 0.7 else rng.choice((None, -(2**63), time * 1_000_000, 2**63 - 1))
            rows.append(RawRow(series, series % 3, f"metric.{series % 2}", time, value(rng), receive))
    for row in rng.sample(rows, 8):
        rows.append(
            dataclasses.replace(row, value=value(rng) if rng.random() < 0.5 else row.value, receive=row.receive and row.receive ^ 1)
        )
    rows += [dataclasses.replace(row, **{name: None}) for name, row in zip(("id", "ts", "value", "org_id", "metric"), rows, strict=False)]
    rows += [dataclasses.replace(rows[0], ts=batch.end), dataclasses.replace(rows[1], ts=batch.start - 1)]
    rng.shuffle(rows)
    return rows


def test_a_database_that_a_file_has_left_unusable_is_made_anew() -> None:
    """As DuckDB 2.0 is after an internal error, of which one in a thousand changed pages is the cause."""
    import duckdb

    from rollup_assets.verification.raw import TrialReader

    closed = []

    class Unusable:
        def execute(self, *_: object) -> None:
            raise duckdb.InternalException("the database has been invalidated")

        def close(self) -> None:
            closed.append(self)

    connections: list[Any] = [Unusable(), duckdb.connect()]
    trial = TrialReader(lambda: connections.pop(0))
    with pytest.raises(duckdb.InternalException):
        trial.rows("SELECT 1")
    assert trial.rows("SELECT ?", [2]) == [(2,)]
    assert len(closed) == 1
    trial.close()
    assert connections == []


@dataclasses.dataclass
class Case:
    pipeline: Pipeline
    batches: list[Batch]

    def verify(self, *numbers: int, **options: Any) -> Verification:
        return verify(self.pipeline.settings, [self.batches[number] for number in numbers] if numbers else None, **options)


def published(home: Path, make_pipeline: MakePipeline, **settings: Any) -> Case:
    """Three batches of dirty data and the two that follow, rolled up by the reference model and published."""
    pipeline = make_pipeline(home, **settings)
    first = pipeline.calendar.first
    batches = list(pipeline.calendar.between(first, Batch(first.start + 4 * HOUR, first.end + 4 * HOUR)))
    is_double = pipeline.settings.value_type == "double"
    value = (
        (lambda rng: rng.choice([-0.0, 0.1, 1e15, -1e15, rng.random()])) if is_double else (lambda rng: rng.randrange(-(10**15), 10**15))
    )
    files = {}
    for batch in batches[:3]:
        rows = some_rows(batch, 1, value)
        if is_double:
            rows += [dataclasses.replace(rows[0], value=special) for special in (float("nan"), float("inf"))]
        files[batch] = {"b.parquet": rows[::2], "a.parquet": rows[1::2], "empty.parquet": []}
    points = land_and_stage(pipeline, files)
    for batch in batches:
        receipt(pipeline, batch)
    append(pipeline, arrow_of(pipeline, rows_of(pipeline, points, batches)))
    return Case(pipeline, batches)


@pytest.fixture
def case(tmp_path: Path, make_pipeline: MakePipeline) -> Case:
    return published(tmp_path, make_pipeline)


@pytest.mark.parametrize("value_type", ["long", "double"])
def test_agrees_with_the_reference_model(tmp_path: Path, make_pipeline: MakePipeline, value_type: str) -> None:
    of = published(tmp_path, make_pipeline, value_type=value_type)
    found = of.verify()
    assert found.differences == []
    assert [partition.problems for partition in found.partitions] == [[]] * 5
    assert found.agrees
    assert found.rows == content_of(of.pipeline).num_rows > 300
    assert [partition.partition for partition in found.partitions] == [batch.key for batch in of.batches]


def test_any_range_agrees_alone(case: Case) -> None:
    """Each partition is recomputed from the raw files of two batches before it."""
    for number in range(5):
        found = case.verify(number)
        assert found.agrees, (number, found)
        assert [partition.partition for partition in found.partitions] == [case.batches[number].key]


def test_ranges_with_holes_agree(case: Case) -> None:
    assert case.verify(0, 2, 4).agrees
    assert case.verify(1, 4).agrees


def test_series_are_verified_in_rounds_when_memory_is_short(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollup_assets.verification.run._BYTES_PER_ROW", case.pipeline.settings.memory // 60)
    whole = case.verify()
    assert whole.agrees, whole
    assert whole.rows == content_of(case.pipeline).num_rows


def test_the_worked_example(tmp_path: Path) -> None:
    """Its own table of numbers is what verification expects: no difference, and any other sum is one."""
    pipeline = pipeline_of(GRID, tmp_path)
    batches = batches_of(pipeline, GRID)
    trailing = [batches[-1], pipeline.calendar.shifted(batches[-1], 1)]
    files = {
        batch: {"a.parquet": [row for row in RAW_ROWS if row.ts is not None and batch.start <= row.ts < batch.end]} for batch in batches
    }
    points = land_and_stage(pipeline, {batch: rows for batch, rows in files.items() if rows["a.parquet"]})
    everything = sorted({*batches, *(batch for batch in trailing if batch)})
    rows = rows_of(pipeline, points, everything)
    assert len(rows) == len(EXAMPLE)
    for batch in everything:
        receipt(pipeline, batch)
    append(pipeline, arrow_of(pipeline, rows))
    found = verify(pipeline.settings, everything)
    assert found.agrees, found
    assert found.rows == len(EXAMPLE)
    replace(pipeline, arrow_of(pipeline, [dataclasses.replace(row, resets=1 - min(row.resets, 1)) for row in rows]))
    assert {difference.column for difference in verify(pipeline.settings, everything).differences} == {"resets_rollup"}


def changed(table: pa.Table, column: str, row: int, value: Any) -> pa.Table:
    field = table.schema.field(column)
    values = table[column].to_pylist()
    values[row] = value(values[row])
    return table.set_column(table.schema.get_field_index(column), field, pa.array(values, field.type))


@pytest.mark.parametrize(
    "column",
    [
        "metric_shard_id", "org_id", "metric", "count_rollup", "sum_rollup", "min_rollup", "max_rollup", "average_rollup", "latest_rollup",
        "delta_rollup", "resets_rollup", "rate_rollup", "lag_rollup",
    ],
)  # fmt: skip
def test_one_changed_value_in_any_column_is_found(case: Case, column: str) -> None:
    """Also the smallest change an integer can have; doubles by more than the tolerance."""
    table = content_of(case.pipeline).sort_by([("logical_timestamp", "ascending"), ("id", "ascending"), ("resolution", "ascending")])
    row = next(number for number in range(table.num_rows // 2, table.num_rows) if table[column][number].as_py() is not None)
    replace(
        case.pipeline,
        changed(
            table,
            column,
            row,
            lambda value: f"{value}x" if column == "metric" else value * (1 + 1e-7) if isinstance(value, float) else value + 1,
        ),
    )
    found = case.verify()
    assert not found.agrees
    assert sum(partition.different for partition in found.partitions) == 1
    assert [difference.column for difference in found.differences] == [column]
    assert found.differences[0].id == table["id"][row].as_py()
    assert found.differences[0].expected != found.differences[0].found


@pytest.mark.parametrize("column", ["delta_rollup", "rate_rollup", "lag_rollup"])
def test_null_in_place_of_a_value_and_a_value_in_place_of_null_are_found(case: Case, column: str) -> None:
    table = content_of(case.pipeline)
    replace(case.pipeline, changed(table, column, table[column].is_null().to_pylist().index(False), lambda _: None))
    assert [difference.found for difference in case.verify().differences] == ["None"]
    replace(case.pipeline, changed(table, column, table[column].is_null().to_pylist().index(True), lambda _: 0))
    assert [difference.expected for difference in case.verify().differences] == ["None"]


def test_doubles_within_the_tolerance_agree(case: Case) -> None:
    replace(case.pipeline, changed(content_of(case.pipeline), "average_rollup", 3, lambda value: value * (1 + 1e-12)))
    assert case.verify().agrees


def test_a_delta_that_lost_the_step_from_the_batch_before_is_found(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """The mistake that no count notices: rollups of a batch computed as if there were none before it."""
    of = published(tmp_path, make_pipeline)
    alone = make_pipeline(tmp_path / "alone")
    rows = some_rows(of.batches[1], 1, lambda rng: rng.randrange(-(10**15), 10**15))
    points = land_and_stage(alone, {of.batches[1]: {"a.parquet": rows}})
    wrong = [row for row in rows_of(alone, points, [of.batches[1]]) if row.label > of.batches[1].start]
    begin, end = (pa.scalar(ms * 1_000, pa.timestamp("us", "UTC")) for ms in (of.batches[1].start, of.batches[1].end))
    table = content_of(of.pipeline)
    label = table["logical_timestamp"]
    replace(
        of.pipeline,
        pa.concat_tables([table.filter(pc.or_(pc.less_equal(label, begin), pc.greater_equal(label, end))), arrow_of(of.pipeline, wrong)]),
    )
    found = of.verify(1, first_differences=1_000)
    assert found.partitions[0].missing == found.partitions[0].extra == 0
    assert {difference.column for difference in found.differences} <= {"delta_rollup", "resets_rollup", "rate_rollup"}
    assert found.partitions[0].different > 0


def test_a_missing_row_is_found(case: Case) -> None:
    table = content_of(case.pipeline)
    replace(case.pipeline, pa.concat_tables([table.slice(0, 10), table.slice(11)]))
    found = case.verify()
    assert sum(partition.missing for partition in found.partitions) == 1
    assert [(difference.column, difference.found) for difference in found.differences] == [("*", "no row")]
    assert not found.agrees


def test_an_extra_row_is_found_whatever_its_key(case: Case) -> None:
    """Another series, a label inside a window, a resolution that nobody asked for."""
    table = content_of(case.pipeline)
    for column, value in (
        ("id", lambda _: 99),
        ("resolution", lambda _: 7_000),
        ("logical_timestamp", lambda label: label.replace(microsecond=1)),
    ):
        replace(case.pipeline, pa.concat_tables([table, changed(table.slice(5, 1), column, 0, value)]))
        found = case.verify()
        assert sum(partition.extra for partition in found.partitions) == 1, column
        assert [(difference.column, difference.expected) for difference in found.differences] == [("*", "no row")]
        assert not found.agrees


def test_the_same_row_twice_is_found(case: Case) -> None:
    append(case.pipeline, content_of(case.pipeline).slice(5, 1))
    found = case.verify()
    assert sum(partition.extra for partition in found.partitions) == 1
    assert [difference.expected for difference in found.differences] == ["one row"]


def test_rows_in_a_partition_that_was_never_published_are_found(case: Case) -> None:
    """Without arguments whatever lies in the table is compared."""
    later = content_of(case.pipeline).slice(0, 1)
    append(case.pipeline, changed(later, "logical_timestamp", 0, lambda label: label.replace(year=label.year + 1)))
    assert not case.verify().agrees
    assert case.verify(0, 1).agrees


@pytest.mark.parametrize("column", ["delta_rollup", "logical_timestamp"])
def test_a_table_whose_columns_another_engine_has_renamed_is_refused(case: Case, column: str) -> None:
    """Columns are found by their names."""
    with load(case.pipeline).update_schema() as update:
        update.rename_column(column, "renamed")
    with pytest.raises(TableMismatchError, match=rf"has the column renamed .* instead of {column}"):
        case.verify()


def test_only_the_first_differences_are_described_but_all_are_counted(case: Case) -> None:
    table = content_of(case.pipeline)
    replace(
        case.pipeline,
        table.set_column(table.schema.get_field_index("sum_rollup"), table.schema.field("sum_rollup"), pc.add(table["sum_rollup"], 1)),
    )
    found = case.verify(first_differences=7)
    assert len(found.differences) == 7
    assert sum(partition.different for partition in found.partitions) == table.num_rows


def test_raw_files_that_changed_since_are_named_and_their_rows_compared(case: Case) -> None:
    write_rows(case.pipeline, case.batches[2], "late.parquet", [RawRow(7, 1, "metric.1", case.batches[2].start + 10, 5)])
    found = case.verify(2)
    assert not found.agrees
    assert "raw files changed since they were staged" in found.partitions[0].notes[0]
    assert case.verify(1).agrees


def test_a_given_partition_with_raw_files_that_is_not_staged_fails(case: Case) -> None:
    new = Batch(case.batches[4].start + HOUR, case.batches[4].end + HOUR)
    write_rows(case.pipeline, new, "a.parquet", [RawRow(7, 1, "m", new.start, 5)])
    assert case.verify().agrees, "without arguments only published partitions are looked at"
    found = verify(case.pipeline.settings, [case.batches[1], new])
    assert found.not_staged == [new.key]
    assert not found.agrees
    assert found.partitions[0].agrees


def test_partitions_that_wait_are_listed_and_excluded(case: Case) -> None:
    """Raw data has come for partition 3, which was empty: 3 is not staged, and 4 waits for it."""
    write_rows(case.pipeline, case.batches[3], "a.parquet", [RawRow(7, 1, "m", case.batches[3].start, 5)])
    (Path(case.pipeline.stage.folder("receipts", case.batches[3]).path)).mkdir(parents=True)
    found = case.verify()
    assert found.waiting == [case.batches[3].key, case.batches[4].key]
    assert [partition.partition for partition in found.partitions] == [batch.key for batch in case.batches[:3]]
    assert found.agrees
    given = case.verify(4)
    assert (given.waiting, given.partitions, given.agrees) == ([case.batches[4].key], [], True)


def test_a_partition_without_an_accepted_point_waits_whatever_its_raw_files(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """As its run does: all its rows are quarantined, and what is before it is not staged."""
    pipeline = make_pipeline(tmp_path)
    first, second, *_ = batches_of(pipeline, GRID)
    write_rows(pipeline, first, "a.parquet", [RawRow(7, 1, "m", first.start, 5)])
    land_and_stage(pipeline, {second: {"a.parquet": [RawRow(None, 1, "m", second.start, 5)]}})
    found = verify(pipeline.settings, [second])
    assert (found.waiting, found.not_published, found.agrees) == ([second.key], [], True)


def test_rows_from_before_the_start_are_listed_and_not_compared(case: Case) -> None:
    """Their raw data is nobody's any more: no command could make them anew."""
    settings = case.pipeline.settings.model_copy(update={"start": case.pipeline.settings.start + dt.timedelta(days=1)})
    found = verify(settings)
    assert found.agrees
    assert [partition.partition for partition in found.partitions] == [batch.key for batch in case.batches[:4]]
    assert {note for partition in found.partitions for note in partition.notes} == {"before ROLLUP_START=2026-01-02: not compared"}
    assert not any(partition.compared for partition in found.partitions)


def test_a_given_partition_that_was_staged_but_never_published_fails(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(tmp_path)
    batch = pipeline.calendar.first
    land_and_stage(pipeline, {batch: {"a.parquet": [RawRow(7, 1, "m", batch.start, 5)]}})
    found = verify(pipeline.settings, [batch])
    assert found.not_published == [batch.key]
    assert not found.agrees
    assert verify(pipeline.settings).agrees


def test_an_empty_partition_agrees(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    pipeline = make_pipeline(tmp_path)
    found = verify(pipeline.settings, [pipeline.calendar.first])
    assert found.agrees
    assert found.partitions[0].notes == ["no raw files, nothing published"]


def test_counts_that_the_manifests_have_wrong_are_found(case: Case) -> None:
    batch = case.batches[0]
    for asset, change in ((REPARTITIONED, {"duplicates": 1}), (QUARANTINED, {"reasons": {"null_id": 9}})):
        manifest = case.pipeline.stage.read(asset, batch)
        assert manifest is not None
        case.pipeline.stage.write(manifest.model_copy(update={"counters": {**manifest.counters, **change}}), batch)
    problems = case.verify(0).partitions[0].problems
    assert any(problem.startswith("duplicates: raw files have") for problem in problems)
    assert any(problem.startswith("rows quarantined as null_id: raw files have 1, the manifest says 9") for problem in problems)
    assert not case.verify(0).agrees


SHAPES = [
    Shape(integers=pa.int32()),
    Shape(metric=pa.large_string()),
    Shape(metric=pa.dictionary(pa.int8(), pa.string())),
    Shape(time=pa.timestamp("s")),
    Shape(time=pa.timestamp("ms", "UTC")),
    Shape(time=pa.timestamp("us", "Europe/Berlin")),
    Shape(time=pa.timestamp("ns")),
    Shape(time=pa.timestamp("ns", "UTC")),
    Shape(receive=False),
]


def assert_agrees(pipeline: Pipeline, batch: Batch, points: Sequence[Point], count: int) -> None:
    """Published as the model says, nothing is wrong, and so many points were read."""
    receipt(pipeline, batch)
    append(pipeline, arrow_of(pipeline, rows_of(pipeline, points, [batch])))
    found = verify(pipeline.settings, [batch])
    assert found.differences == []
    assert found.partitions[0].problems == []
    assert found.agrees, found
    assert found.partitions[0].points == count


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_accepted_type_is_converted(tmp_path: Path, make_pipeline: MakePipeline, shape: Shape) -> None:
    """All shapes of raw files give the same points, also side by side in one batch."""
    pipeline = make_pipeline(tmp_path)
    batch = pipeline.calendar.first
    rows = [RawRow(series, 2, f"m{series}", batch.start + 1_000 * series, series, None) for series in range(1, 9)]
    points = land_and_stage(pipeline, {batch: {"a.parquet": rows[::2], "b.parquet": rows[1::2]}})
    write_rows(pipeline, batch, "b.parquet", rows[1::2], shape)
    receipt(pipeline, batch)
    append(pipeline, arrow_of(pipeline, rows_of(pipeline, points, [batch])))
    found = verify(pipeline.settings, [batch])
    assert found.differences == []
    assert found.partitions[0].points == 8


NARROW = [
    ("long", Shape(integers=pa.int32(), value=pa.int32())),
    ("double", Shape(value=pa.float32())),
]


@pytest.mark.parametrize(("value_type", "shape"), NARROW, ids=str)
def test_the_types_of_the_first_file_are_not_those_of_the_next(
    tmp_path: Path, make_pipeline: MakePipeline, value_type: str, shape: Shape
) -> None:
    """What only the wider type of the second file holds is read as it is."""
    pipeline = make_pipeline(tmp_path, value_type=value_type)
    batch = pipeline.calendar.first
    small, large = (0.5, 0.1) if value_type == "double" else (5, 2**40)
    narrow = [RawRow(series, 2, "m", time := batch.start + 1_000 * series, small, time + 7) for series in range(1, 5)]
    wide = [dataclasses.replace(row, id=2**40 + series, value=large) for series, row in enumerate(narrow)]
    first = table_of(narrow, pipeline.settings.value_column, shape)
    points = land_and_stage(pipeline, {batch: {"a.parquet": narrow, "b.parquet": wide}}, {"a.parquet": first})
    assert_agrees(pipeline, batch, points, 8)


def test_timestamps_finer_than_a_millisecond_are_floored(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """Also before 1970, where cutting off digits would round up."""
    pipeline = make_pipeline(tmp_path, start="1969-12-31")
    batch = pipeline.calendar.batch("1969-12-31-23:00")
    columns = {"id": [1], "org_id": [1], "metric": ["m"], "long_value": [5]}
    write_table(
        pipeline,
        batch,
        "a.parquet",
        pa.table({**columns, "logical_timestamp": pa.array([-60_000_001], pa.int64()).cast(pa.timestamp("us"))}),
    )
    write_table(
        pipeline,
        batch,
        "b.parquet",
        pa.table({**columns, "id": [2], "logical_timestamp": pa.array([-60_000_000_001], pa.int64()).cast(pa.timestamp("ns"))}),
    )
    points = land_and_stage(pipeline, {batch: {"c.parquet": []}})
    assert points == []
    flat = [RawRow(series, 1, "m", -60_001, 5) for series in (1, 2)]
    reference = land_and_stage(make_pipeline(tmp_path / "reference", start="1969-12-31"), {batch: {"c.parquet": flat}})
    receipt(pipeline, batch)
    append(pipeline, arrow_of(pipeline, rows_of(pipeline, reference, [batch])))
    found = verify(pipeline.settings, [batch])
    assert found.differences == []
    assert found.rows > 0


EXTREMES = (2**63 - 1, -(2**63) + 1, -(2**63), 7 * 10**18)


@pytest.mark.parametrize("kind", [pa.timestamp("ms"), pa.timestamp("ms", "UTC"), pa.timestamp("us"), pa.timestamp("ns", "UTC")], ids=str)
@pytest.mark.parametrize("column", ["logical_timestamp", "receive_timestamp"])
def test_times_beyond_those_of_duckdb_are_times(tmp_path: Path, make_pipeline: MakePipeline, column: str, kind: pa.DataType) -> None:
    """As a point's own they are another batch's, as a receive time they are unknown: what the rest of the file says is not lost."""
    pipeline = make_pipeline(tmp_path)
    batch = pipeline.calendar.first
    rows = [RawRow(series, 2, f"m{series}", time := batch.start + 1_000 * series, series, time + 5) for series in range(1, 11)]
    ticks = TICKS_PER_MS[kind.unit]
    shape = Shape(metric=pa.dictionary(pa.int8(), pa.string()), time=kind)
    table = table_of(rows, shape=shape)
    changed_column = pa.array([*EXTREMES, None, *table[column].cast(pa.int64()).to_pylist()[5:]], pa.int64()).cast(kind)
    table = table.set_column(table.schema.get_field_index(column), column, changed_column)
    name = "ts" if column == "logical_timestamp" else "receive"
    wild = [dataclasses.replace(row, **{name: extreme // ticks}) for row, extreme in zip(rows, EXTREMES, strict=False)]
    rows[:5] = [*wild, dataclasses.replace(rows[4], **{name: None})]
    others = [RawRow(series, 2, "m", batch.start, series) for series in range(20, 24)]
    points = land_and_stage(pipeline, {batch: {"a.parquet": others, "b.parquet": rows}}, {"b.parquet": table})
    assert_agrees(pipeline, batch, points, 9 if name == "ts" else 14)


def test_fields_of_other_columns_may_have_the_names_of_ours(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """Other columns are ignored, with all that is nested in them, before ours and after them."""
    pipeline = make_pipeline(tmp_path)
    batch = pipeline.calendar.first
    rows = [RawRow(series, 2, "m", batch.start + 1_000 * series, series, batch.start + 2_000 * series) for series in range(1, 5)]
    host = pa.array([{"id": 1, "of": {"metric": "m", "id": 2}, "receive_timestamp": 3}] * 4)
    nested = table_of(rows).add_column(0, "host", host).append_column("tags", pa.array([[{"org_id": 1}]] * 4))
    points = land_and_stage(pipeline, {batch: {"a.parquet": rows}}, {"a.parquet": nested})
    assert_agrees(pipeline, batch, points, 4)


def bad_file(kind: str, pipeline: Pipeline, batch: Batch) -> str:
    good = [RawRow(7, 1, "m", batch.start + 1_000 * number, number) for number in range(500)]
    if kind == "zero-byte":
        return write_bytes(pipeline, batch, "x.parquet", b"")
    if kind == "not parquet":
        return write_bytes(pipeline, batch, "x.parquet", b"PAR1, or so it says")
    path = write_rows(pipeline, batch, "x.parquet", good)
    place = pipeline.landing_zone.root / path
    content = place.read_bytes() or b""
    if kind == "truncated":
        return write_bytes(pipeline, batch, "x.parquet", content[: len(content) // 2])
    if kind == "damaged pages":
        return write_bytes(pipeline, batch, "x.parquet", content[:4] + b"\xff" * 400 + content[404:])
    table = pa.table({"id": [1], "org_id": [1], "metric": ["m"], "logical_timestamp": [batch.start], "long_value": [1]})
    if kind == "damaged pages after a time beyond DuckDB's":
        wild = [dataclasses.replace(row, receive=10**18) for row in good]
        path = write_rows(pipeline, batch, "x.parquet", wild, Shape(time=pa.timestamp("ms"), row_group=250))
        content = place.read_bytes() or b""
        damaged = pq.read_metadata(place.path).row_group(1).column(3).dictionary_page_offset + 20
        return write_bytes(pipeline, batch, "x.parquet", content[:damaged] + b"\xff" * 400 + content[damaged + 400 :])
    changes = {
        "missing column": table.drop_columns(["org_id"]),
        "text value": table.set_column(4, "long_value", pa.array(["1"])),
        "unsigned id": table.set_column(0, "id", pa.array([1], pa.uint32())),
        "column twice": table.append_column("id", pa.array([1])),
        "text receive time": table.append_column("receive_timestamp", pa.array(["now"])),
        "date": table.set_column(3, "logical_timestamp", pa.array([0], pa.date32())),
    }
    return write_table(pipeline, batch, "x.parquet", changes[kind])


BAD = [
    "zero-byte",
    "not parquet",
    "truncated",
    "damaged pages",
    "damaged pages after a time beyond DuckDB's",
    "missing column",
    "text value",
    "unsigned id",
    "column twice",
    "text receive time",
    "date",
]


@pytest.mark.parametrize("kind", BAD)
def test_bad_files_do_not_count_and_must_be_in_quarantine(tmp_path: Path, make_pipeline: MakePipeline, kind: str) -> None:
    """DuckDB and the product agree on which files are bad; a manifest that does not list one is wrong."""
    pipeline = make_pipeline(tmp_path)
    batch = pipeline.calendar.first
    path = bad_file(kind, pipeline, batch)
    points = land_and_stage(pipeline, {batch: {"it's [good]*.parquet": [RawRow(7, 1, "m", batch.start, 5)]}})
    receipt(pipeline, batch)
    append(pipeline, arrow_of(pipeline, rows_of(pipeline, points, [batch])))
    found = verify(pipeline.settings, [batch])
    assert found.differences == []
    assert found.partitions[0].problems == [f"{path}: DuckDB cannot read it as raw data, but it was not quarantined"]


def test_hidden_files_are_not_raw_data(case: Case) -> None:
    for name in ("_SUCCESS", ".part.parquet.tmp", "_temporary/part-0.parquet"):
        write_bytes(case.pipeline, case.batches[0], name, b"")
    assert case.verify().agrees


def test_a_manifest_of_another_batch_says_nothing_here(case: Case) -> None:
    """Batches read only for their last points are not judged."""
    stage(case.pipeline, REPARTITIONED, case.batches[0], {"rows_accepted": 0, "duplicates": 0, "rows_read": 0})
    assert case.verify(1).agrees
    assert not case.verify(0).agrees
