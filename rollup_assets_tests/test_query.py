"""SQL over the current snapshot."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest

from rollup_assets.errors import QueryError, TableMismatchError
from rollup_assets.pipeline import Pipeline
from rollup_assets.query import query, stream
from rollup_assets.settings import load_settings
from rollup_assets_tests.conftest import MakePipeline
from rollup_assets_tests.iceberg.staging import load
from rollup_assets_tests.naive import Point
from rollup_assets_tests.verification.naive_table import append, arrow_of, rows_of


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory, make_pipeline: MakePipeline) -> Pipeline:
    return published(make_pipeline(tmp_path_factory.mktemp("query")))


def published(made: Pipeline) -> Pipeline:
    """Two series."""
    first = made.calendar.first
    points = [Point(series, 1, "cpu", first.start + 30_000 * number, 10 * number) for series in (-1, 7) for number in range(1, 20)]
    append(made, arrow_of(made, rows_of(made, points, [first])))
    return made


def test_counts_by_resolution(pipeline: Pipeline) -> None:
    answer = query(pipeline.settings, "select resolution, count(*) n, sum(count_rollup)::bigint points from rollups group by 1 order by 1")
    assert answer.to_pylist() == [{"resolution": 60_000, "n": 20, "points": 38}, {"resolution": 300_000, "n": 4, "points": 38}]


def test_times_are_utc_whatever_the_machine_says(pipeline: Pipeline) -> None:
    answer = query(
        pipeline.settings,
        "select date_trunc('hour', logical_timestamp)::varchar as hour, max(logical_timestamp) as last from rollups group by 1",
    )
    (row,) = answer.to_pylist()
    assert row["hour"].startswith("2026-01-01 00:00:00")
    assert row["last"].isoformat() == "2026-01-01T00:10:00+00:00"


def test_filters_on_every_kind_of_column(pipeline: Pipeline) -> None:
    for condition in ("id = -1", "resolution = 60000", "metric = 'cpu'", "logical_timestamp > timestamptz '2026-01-01 00:05:00Z'"):
        (row,) = query(
            pipeline.settings, f"select count(*) n, count(*) filter ({condition}) all_of_them from rollups where {condition}"
        ).to_pylist()
        assert row["n"] == row["all_of_them"] > 0


def test_describe_tells_the_columns(pipeline: Pipeline) -> None:
    columns = {row["column_name"]: row["column_type"] for row in query(pipeline.settings, "describe rollups").to_pylist()}
    assert columns["sum_rollup"] == "BIGINT"
    assert columns["logical_timestamp"] == "TIMESTAMP WITH TIME ZONE"


def test_a_statement_without_an_answer_gives_no_rows(pipeline: Pipeline) -> None:
    assert query(pipeline.settings, "create view mine as select 1").num_rows == 0


@pytest.mark.parametrize(
    "statement",
    [
        "select * from read_text('/etc/hostname')",
        "select * from read_csv('/etc/passwd')",
        "from glob('/etc/*')",
        "select * from '{file}'",
        "copy (select 1) to '{new}'",
        "copy rollups to '{new}' (format parquet)",
        "copy (select 1) to ':memory:'",
        "set variable d = current_setting('temp_directory') || 'new'; copy (select 1) to (getvariable('d'))",
        "with x as (copy (select 1) to '{new}') select 1",
        "explain analyze copy (select 1) to '{new}'",
        "export database '{new}'",
        "attach '{new}'",
        "install httpfs",
        "load httpfs",
        "select * from read_parquet('https://example.org/a.parquet')",
        "select * from read_parquet('s3://lake/a.parquet')",
        "set enable_external_access = true",
        "set allowed_directories = ['/']",
        "set log_query_path = '{new}'",
        "call enable_logging(storage = 'file', storage_path = '{new}')",
    ],
)
def test_a_statement_reaches_nothing_but_the_table(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.csv").write_text("a\n1\n")
    with pytest.raises(QueryError, match=r"disabled|locked|Cannot enable|Cannot change"):
        query(pipeline.settings, statement.format(file=tmp_path / "secret.csv", new=tmp_path / "new"))
    assert [path.name for path in tmp_path.iterdir()] == ["secret.csv"]


def test_columns_of_one_name_are_told_apart(pipeline: Pipeline) -> None:
    answer = query(pipeline.settings, "select 1 a, 2 b, 3 a, 4 A, 5 a_1, 6 a, count(*), count(*) from (select 1)")
    assert answer.to_pylist() == [{"a": 1, "b": 2, "a_2": 3, "A": 4, "a_1": 5, "a_3": 6, "count_star()": 1, "count_star()_1": 1}]


def test_what_does_not_fit_into_memory_is_told_and_not_spilled(pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement could write to a folder for that. So a home that cannot be written to is enough, too."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    settings = pipeline.settings.model_copy(update={"home": tmp_path / "file" / "home", "memory": 64 * 2**20, "threads": 1})
    assert query(settings, "select count(*) > 0 as found from rollups").to_pylist() == [{"found": True}]
    with pytest.raises(QueryError, match="more than ROLLUP_MEMORY=64MiB, and spills nothing to disk; set it higher"):
        query(settings, "select count(*) from (select distinct repeat('a', 20) || range from range(3000000))")
    assert [*tmp_path.iterdir()] == [tmp_path / "file"]


def test_an_answer_of_any_length_comes_as_it_is_made(pipeline: Pipeline) -> None:
    """A trillion rows fit nowhere."""
    settings = pipeline.settings.model_copy(update={"memory": 64 * 2**20, "threads": 1})
    first = stream(settings, "select range as n, 'text' t, 'text' t from range(1000000000000)", lambda _, batches: next(batches))
    assert first.slice(2, 1).to_pylist() == [{"n": 2, "t": "text", "t_1": "text"}]


def test_what_goes_wrong_in_the_middle_of_an_answer_is_told(pipeline: Pipeline) -> None:
    with pytest.raises(QueryError, match="row 300000"):
        query(pipeline.settings, "select case when range = 300000 then error('row ' || range) end from range(400000)")


def test_what_duckdb_refuses_is_told_in_its_words(pipeline: Pipeline) -> None:
    with pytest.raises(QueryError, match="nosuch"):
        query(pipeline.settings, "select nosuch from rollups")


def test_without_a_table_the_error_says_how_to_get_one(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    settings = make_pipeline(tmp_path).settings
    with pytest.raises(QueryError) as caught:
        query(settings, "select 1")
    assert str(caught.value) == (
        f"there is no table metrics.rollups in ROLLUP_CATALOG=sqlite:///{settings.home}/catalog.db yet; publish to it with "
        "`rollups backfill FROM TO`, or try `rollups demo`"
    )


@pytest.mark.parametrize(
    ("chosen", "place"),
    [
        (
            {"catalog": "postgresql+psycopg://rollups@db:5432/catalog?sslmode=require"},
            "ROLLUP_CATALOG=postgresql+psycopg://rollups@db:5432/catalog",
        ),
        ({"catalog": "rest+https://catalog.example.org"}, "ROLLUP_CATALOG=rest+https://catalog.example.org"),
        ({"catalog": "sqlite:////data/others.db"}, "ROLLUP_CATALOG=sqlite:////data/others.db"),
        ({"catalog_properties": "type=glue"}, "ROLLUP_CATALOG_PROPERTIES=type=glue"),
    ],
)
def test_without_a_table_in_another_catalog_the_error_names_that_and_the_settings_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], place: str
) -> None:
    """The home has nothing to do with it, and the table's name may be the mistake."""
    monkeypatch.setattr("rollup_assets.iceberg.catalog.open_catalog", lambda _: contextlib.nullcontext())
    monkeypatch.setattr("rollup_assets.iceberg.table.load_readable_table", lambda *_: None)
    with pytest.raises(QueryError) as caught:
        query(load_settings(home=str(tmp_path), table="metrics.rolups", **chosen), "select 1")
    assert str(caught.value) == (
        f"there is no table metrics.rolups in {place} yet; publish to it with `rollups backfill FROM TO`, or correct ROLLUP_TABLE "
        "or ROLLUP_CATALOG_NAME"
    )


def test_shard_is_iceberg_s_bucket(pipeline: Pipeline) -> None:
    from pyiceberg.transforms import BucketTransform
    from pyiceberg.types import LongType

    bucket = BucketTransform(pipeline.settings.shards).transform(LongType())
    ids = [0, 1, -1, 34, 2**31, -(2**31), 2**32 - 1, 2**63 - 1, -(2**63), *range(-5_000_000_000_000, 5_000_000_000_000, 87_654_321_987)]
    answer = query(pipeline.settings, f"select shard(id) as found from (select unnest({ids}) as id)")
    assert answer.column("found").to_pylist() == [bucket(number) for number in ids]


def test_rows_of_a_series_are_found_by_its_shard(pipeline: Pipeline) -> None:
    (row,) = query(
        pipeline.settings, "select count(*) n, count(*) filter (metric_shard_id = shard(id)) in_shard from rollups where id = 7"
    ).to_pylist()
    (by_shard,) = query(pipeline.settings, "select count(*) n from rollups where id = 7 and metric_shard_id = shard(7)").to_pylist()
    assert row["n"] == row["in_shard"] == by_shard["n"] > 0
    (plan,) = query(pipeline.settings, "explain select * from rollups where metric_shard_id = shard(7)").to_pylist()
    # The scan gets a number to compare with, not a function to call.
    assert re.search(r"Filters:\W+metric_shard_id\W+=\W+\d+", str(plan)), plan


def test_shards_and_values_are_those_of_the_table_whatever_the_settings_say(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    settings = published(make_pipeline(tmp_path, shards=16)).settings.model_copy(update={"shards": 64, "value_type": "double"})
    (row,) = query(settings, "select count(*) n, count(*) filter (metric_shard_id = shard(id)) in_shard from rollups").to_pylist()
    assert row["n"] == row["in_shard"] > 0


@pytest.mark.parametrize("column", ["sum_rollup", "delta_rollup"])
def test_a_table_whose_columns_another_engine_has_renamed_is_refused(tmp_path: Path, make_pipeline: MakePipeline, column: str) -> None:
    """Where nulls are allowed, files that are written since would give nulls instead of values."""
    made = published(make_pipeline(tmp_path))
    with load(made).update_schema() as update:
        update.rename_column(column, "renamed")
    with pytest.raises(TableMismatchError, match=rf"has the column renamed .* instead of {column} .*or undo the change"):
        query(made.settings, "select count(*) from rollups")
