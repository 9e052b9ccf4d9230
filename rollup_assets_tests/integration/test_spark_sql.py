"""Other engines on the table that we publish to PostgreSQL and S3: Spark SQL with Iceberg, DuckDB and PyIceberg read and write it.

Spark runs with the properties that ``rollups spark-conf`` prints and finds its secrets where these say.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from rollup_assets.batches import Batch
from rollup_assets.errors import EngineError
from rollup_assets.iceberg.schema import arrow_schema
from rollup_assets.steps.results import RolledUp
from rollup_assets_tests.integration.spark_sql import SparkSql, SparkSqlError, spark_sql
from rollup_assets_tests.landing import land, write_rows
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN, RawRow
from rollup_assets_tests.strategies import HOUR, MINUTE, Grid, crowd

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer
    from deploy.servers.seaweedfs import S3Server
    from rollup_assets.pipeline import Pipeline

pytestmark = pytest.mark.xdist_group("spark-sql")

# The first day of the default settings.
FIRST_DAY = 1_767_225_600_000
RESOLUTIONS = (MINUTE, 5 * MINUTE, HOUR)
PASSWORD = "canary-5pArk-Pa55"
ROLE, DATABASE = "spark_sql_runs", "spark_sql"
_numbers = itertools.count()

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Lake:
    """A catalog and a warehouse that several tables share."""

    settings: dict[str, Any]
    secrets: tuple[str, ...]
    spark: SparkSql

    def pipeline(self, home: Path, hours: int, **overrides: Any) -> Pipeline:
        """A pipeline on a table of its own; raw and stage are files, as each place may be chosen by itself."""
        from rollup_assets.pipeline import Pipeline
        from rollup_assets.settings import load_settings

        assert hours < 20
        chosen = {"home": str(home), "table": f"metrics.table_{next(_numbers)}", "shards": 4, "threads": 2, "memory": "256MiB"}
        return Pipeline.from_settings(load_settings(**{**self.settings, **chosen, **overrides}))


@pytest.fixture(scope="module")
def lake(postgres_server: PostgresServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lake]:
    """A database with a role that may do no more than runs need, a folder in the bucket, and a Spark SQL session on them."""
    from rollup_assets.engines.spark_session import require_java
    from rollup_assets.iceberg.database import initialize
    from rollup_assets.iceberg.spark import password_file_line, properties_file
    from rollup_assets.settings import load_settings

    try:
        require_java()
    except EngineError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("spark-sql")
    postgres_server.create_role(ROLE, PASSWORD)
    postgres_server.create_database(DATABASE)
    shared = {
        "catalog": postgres_server.uri(DATABASE, ROLE),
        "catalog_password": PASSWORD,
        "warehouse": "s3://lake/spark-sql",
        "s3_endpoint": s3_server.endpoint,
        "s3_region": s3_server.region,
        "s3_path_style": True,
    }
    settings = load_settings(**shared, catalog_admin_password=postgres_server.superuser_password)
    initialize(settings, admin=postgres_server.superuser)
    passwords = folder / "pgpass"
    passwords.touch(mode=0o600)
    passwords.write_text(password_file_line(settings).replace("<password>", PASSWORD) + "\n")
    aws = {name: value for name, value in s3_server.environment.items() if name.startswith("AWS_")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in aws.items():
            patch.setenv(name, value)
        with spark_sql(folder, properties_file(settings), {**aws, "PGPASSFILE": str(passwords)}) as spark:
            _require_jars(spark)
            yield Lake(shared, (PASSWORD, aws["AWS_SECRET_ACCESS_KEY"]), spark)


def _require_jars(spark: SparkSql) -> None:
    try:
        spark.sql("SELECT 1")
    except (AssertionError, SparkSqlError) as error:
        if "unresolved dependency" in (spark.folder / "log").read_text():
            pytest.skip("the jars of Iceberg and PostgreSQL cannot be had from Maven Central")
        raise AssertionError(f"Spark did not start: {error}") from error


# What is in the table


def grid(hours: int) -> Grid:
    return Grid(FIRST_DAY, HOUR, hours, RESOLUTIONS, HOUR)


def extremes(value_type: str) -> list[RawRow]:
    """One point an hour, so that no sum overflows: the ends of the type's range, with and without a receive time, and a long name."""
    values: list[Any] = [INT64_MAX, INT64_MIN, 0] if value_type == "long" else [1.7976931348623157e308, 5e-324, -0.0, -2.5e-308]
    at = FIRST_DAY + 30 * MINUTE + 123
    return [
        RawRow(series, INT64_MIN if number % 2 else INT64_MAX, "µ" * 300, at, value, at + number if number % 2 else None)
        for number, (series, value) in enumerate(zip((INT64_MAX, INT64_MIN, 0, -1), values, strict=False))
    ]


def publish_all(pipeline: Pipeline, *keys: str) -> None:
    """Stage, roll up and publish partitions, in this order."""
    from rollup_assets.steps.publish import publish
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.rollup import roll_up

    for key in keys:
        batch = pipeline.batch(key)
        stage_batch(pipeline, batch)
        assert isinstance(roll_up(pipeline, batch), RolledUp)
        publish(pipeline, batch)


def hour(number: int) -> str:
    return f"2026-01-01-{number:02d}:00"


def staged_rows(pipeline: Pipeline, *keys: str) -> Counter[Row]:
    """The rows in the files that the rollups manifests of partitions name."""
    from rollup_assets.storage.manifests import ROLLUPS
    from rollup_assets_tests import staged

    found: list[Row] = []
    for key in keys:
        batch = pipeline.batch(key)
        manifest = pipeline.stage.read(ROLLUPS, batch)
        assert manifest is not None
        for file in manifest.files:
            found += rows_of(staged.table(pipeline, batch, manifest, file))
    return Counter(found)


def rows_of(table: pa.Table) -> list[Row]:
    """Rows as tuples in the order of our columns, whatever the engine's types are called; times as microseconds."""
    schema = arrow_schema("double" if pa.types.is_floating(table.schema.field("sum_rollup").type) else "long")
    columns = [table.column(field.name).cast(field.type) for field in schema]
    plain = [column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column for column in columns]
    return list(zip(*(column.to_pylist() for column in plain), strict=True))


def by_spark(lake: Lake, pipeline: Pipeline) -> Counter[Row]:
    return Counter(rows_of(lake.spark.sql(f"SELECT * FROM {name_of(pipeline)}")))


def by_pyiceberg(pipeline: Pipeline) -> Counter[Row]:
    from rollup_assets.iceberg.catalog import open_catalog

    with open_catalog(pipeline.settings) as catalog:
        return Counter(rows_of(catalog.load_table(pipeline.settings.table).scan().to_arrow()))


def by_duckdb(pipeline: Pipeline) -> Counter[Row]:
    from rollup_assets.query import query

    return Counter(rows_of(query(pipeline.settings, "SELECT * FROM rollups")))


def name_of(pipeline: Pipeline) -> str:
    return f"{pipeline.settings.catalog_name}.{pipeline.settings.table}"


def insert(lake: Lake, pipeline: Pipeline, labels: list[int], *, resolution: int = MINUTE, more: str = "") -> Counter[Row]:
    """Rows of series -7, one for each label in epoch ms, by one INSERT of Spark; returns them."""
    values = ", ".join(f"({label})" for label in labels)
    lake.spark.sql(
        f"INSERT INTO {name_of(pipeline)} SELECT 3, -7, 1, 'foreign', {resolution}, timestamp_millis(label), 1, label, label, label, "
        f"CAST(label AS DOUBLE), label, NULL, 0, NULL, 0.25D{more} FROM VALUES {values} AS given(label)"
    )
    return Counter(
        (3, -7, 1, "foreign", resolution, label * 1000, 1, label, label, label, float(label), label, None, 0, None, 0.25)
        for label in labels
    )


def assert_all_agree(lake: Lake, pipeline: Pipeline, expected: Counter[Row]) -> None:
    for name, found in (
        ("Spark", by_spark(lake, pipeline)),
        ("PyIceberg", by_pyiceberg(pipeline)),
        ("DuckDB", by_duckdb(pipeline)),
    ):
        missing, more = list((expected - found).elements()), list((found - expected).elements())
        assert (missing[:3], more[:3]) == ([], []), f"{name}: {len(missing)} rows are missing, {len(more)} should not be there"


def assert_verified(pipeline: Pipeline, *keys: str) -> None:
    from rollup_assets.verification import verify

    found = verify(pipeline.settings, [pipeline.batch(key) for key in keys])
    assert found.differences == []
    assert found.agrees
    assert found.rows > 100


# Reading


@pytest.mark.parametrize("encoding", ["fast", "compatible"])
@pytest.mark.parametrize("value_type", ["long", "double"])
def test_every_engine_reads_every_value(lake: Lake, tmp_path: Path, value_type: str, encoding: str) -> None:
    pipeline = lake.pipeline(tmp_path, 2, value_type=value_type, parquet_encoding=encoding)
    land(pipeline, [*crowd(61, grid(2), 30, 1500, double=value_type == "double"), *extremes(value_type)])
    publish_all(pipeline, hour(0), hour(1))
    expected = staged_rows(pipeline, hour(0), hour(1))
    assert len(expected) > 1000
    columns = list(zip(*expected, strict=True))
    assert [name for name, column in zip(arrow_schema("long").names, columns, strict=True) if None in column] == [
        "delta_rollup",
        "rate_rollup",
        "lag_rollup",
    ]
    assert {INT64_MIN, INT64_MAX} <= set(columns[1]) | set(columns[2])
    if value_type == "long":
        assert {INT64_MIN, INT64_MAX} <= set(columns[7])
    assert_all_agree(lake, pipeline, expected)
    plan = lake.spark.plan(f"SELECT * FROM {name_of(pipeline)}")
    assert "ColumnarToRow" in plan, "read row by row"
    assert "BatchScan" in plan


def test_aggregates_partitions_and_filters_in_spark_are_those_in_duckdb(lake: Lake, tmp_path: Path) -> None:
    """What a dashboard asks: a filter on partition columns and a series, and sums over everything."""
    from rollup_assets.query import query

    pipeline = lake.pipeline(tmp_path, 2)
    land(pipeline, crowd(62, grid(2), 8, 900))
    publish_all(pipeline, hour(0), hour(1))
    series = next(iter(staged_rows(pipeline, hour(1))))[1]
    for statement in (
        "SELECT resolution, count(*) AS n, sum(count_rollup) AS points, max(max_rollup) AS most FROM {} GROUP BY 1 ORDER BY 1",
        f"SELECT epoch, delta_rollup FROM (SELECT *, {{}} AS epoch FROM {{}}) WHERE id = {series} AND resolution = 300000 ORDER BY 1",
    ):
        told = lake.spark.sql(statement.format(*["unix_millis(logical_timestamp)", name_of(pipeline)][-statement.count("{}") :]))
        wanted = query(pipeline.settings, statement.format(*["epoch_ms(logical_timestamp)", "rollups"][-statement.count("{}") :]))
        assert [tuple(map(_plain, row.values())) for row in told.to_pylist()] == [
            tuple(map(_plain, row.values())) for row in wanted.to_pylist()
        ]
        assert told.num_rows > 1


def _plain(value: Any) -> Any:
    return None if value is None else int(value)


def test_spark_s_own_parquet_reader_reads_compatible_files_vectorized_and_refuses_fast_ones(lake: Lake, tmp_path: Path) -> None:
    """Files without the table; on a local warehouse, since Spark itself has no S3 without further jars."""
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.rollup import roll_up
    from rollup_assets_tests import staged

    for encoding in ("compatible", "fast"):
        pipeline = lake.pipeline(tmp_path / encoding, 1, warehouse=str(tmp_path / encoding / "warehouse"), parquet_encoding=encoding)
        land(pipeline, [*crowd(63, grid(1), 30, 2000), *extremes("long")])
        batch = pipeline.batch(hour(0))
        stage_batch(pipeline, batch)
        rolled_up = roll_up(pipeline, batch)
        assert isinstance(rolled_up, RolledUp)
        for file in rolled_up.manifest.files:
            statement = f"SELECT * FROM parquet.`{file.path}`"
            if encoding == "fast":
                with pytest.raises(SparkSqlError, match="BYTE_STREAM_SPLIT"):
                    lake.spark.sql(statement)
                continue
            assert "Batched: true" in lake.spark.plan(statement)
            assert rows_of(lake.spark.sql(statement)) == rows_of(staged.table(pipeline, batch, rolled_up.manifest, file))


# Writing


def label(hours: float) -> int:
    return FIRST_DAY + round(hours * HOUR)


def late_point(pipeline: Pipeline, key: str, name: str) -> None:
    """One more raw file in a partition that is published: the batch and the two after it change."""
    batch = pipeline.batch(key)
    write_rows(pipeline, batch, name, [RawRow(424_242, 1, "late", batch.start + 17 * MINUTE + 5, 7, None)])


def straddling_files(lake: Lake, pipeline: Pipeline, batch: Batch) -> int:
    """Data files with labels in the batch and outside, by Spark's own metadata table."""
    first, end = (f"timestamp_millis({ms})" for ms in (batch.start, batch.end))
    bounds = "readable_metrics.logical_timestamp.lower_bound AS least, readable_metrics.logical_timestamp.upper_bound AS most"
    found = lake.spark.sql(
        f"SELECT count(*) AS n FROM (SELECT {bounds} FROM {name_of(pipeline)}.files) "
        f"WHERE least < {end} AND most >= {first} AND (least < {first} OR most >= {end})"
    )
    return int(found["n"][0].as_py())


def test_rows_that_spark_appended_survive_outside_a_range_and_are_replaced_inside(lake: Lake, tmp_path: Path) -> None:
    pipeline = lake.pipeline(tmp_path, 3)
    land(pipeline, crowd(64, grid(3), 20, 900))
    publish_all(pipeline, hour(0), hour(1), hour(2))
    # In hours nobody publishes, also those of another day and of a resolution that is not ours; and, in one file, in and around hour 1.
    outside = insert(lake, pipeline, [label(10), label(11.5), label(30)])
    outside += insert(lake, pipeline, [label(10.5)], resolution=90_000)
    insert(lake, pipeline, [label(0.5), label(1), label(1.5), label(2 - 1 / 60), label(2), label(7)])
    around = Counter({row: 1 for row in by_spark(lake, pipeline) if row[3] == "foreign" and row not in outside})
    assert len(around) == 6
    inside = Counter(row for row in around if label(1) <= row[5] // 1000 < label(2))
    assert len(inside) == 3
    assert straddling_files(lake, pipeline, pipeline.batch(hour(1))) == 1
    assert_all_agree(lake, pipeline, staged_rows(pipeline, hour(0), hour(1), hour(2)) + outside + around)

    late_point(pipeline, hour(1), "late.parquet")
    publish_all(pipeline, hour(1))
    assert_all_agree(lake, pipeline, staged_rows(pipeline, hour(0), hour(1), hour(2)) + outside + (around - inside))
    assert_verified(pipeline, hour(1))


def test_publishing_goes_on_after_compaction_a_new_column_and_expiry_by_spark(lake: Lake, tmp_path: Path) -> None:
    pipeline = lake.pipeline(tmp_path, 4)
    land(pipeline, crowd(65, grid(4), 20, 1200))
    publish_all(pipeline, hour(0), hour(1), hour(2))
    foreign = insert(lake, pipeline, [label(9), label(9.25)])
    procedure = f"CALL {pipeline.settings.catalog_name}.system."
    table = f"table => '{pipeline.settings.table}'"

    # Compaction puts all hours of a day and resolution into one file: each of our ranges is a part of it from now on.
    compacted = lake.spark.sql(f"{procedure}rewrite_data_files({table}, options => map('rewrite-all', 'true'))")
    assert compacted["rewritten_data_files_count"][0].as_py() > len(RESOLUTIONS) == compacted["added_data_files_count"][0].as_py()
    assert straddling_files(lake, pipeline, pipeline.batch(hour(1))) == len(RESOLUTIONS)
    assert_all_agree(lake, pipeline, staged_rows(pipeline, hour(0), hour(1), hour(2)) + foreign)
    late_point(pipeline, hour(1), "late.parquet")
    publish_all(pipeline, hour(1), hour(2))
    assert_all_agree(lake, pipeline, staged_rows(pipeline, hour(0), hour(1), hour(2)) + foreign)
    assert_verified(pipeline, hour(0), hour(1), hour(2))

    # A column of others stays theirs, also in files that we have to rewrite.
    lake.spark.sql(f"ALTER TABLE {name_of(pipeline)} ADD COLUMN note STRING")
    foreign += insert(lake, pipeline, [label(8), label(2.5)], more=", concat('note ', label)")
    assert straddling_files(lake, pipeline, pipeline.batch(hour(2))) >= 1
    late_point(pipeline, hour(2), "late.parquet")
    publish_all(pipeline, hour(2), hour(3))
    foreign = Counter(row for row in foreign if row[5] // 1000 != label(2.5))
    assert_all_agree(lake, pipeline, staged_rows(pipeline, *map(hour, range(4))) + foreign)
    notes = lake.spark.sql(f"SELECT note, count(*) AS n FROM {name_of(pipeline)} WHERE note IS NOT NULL GROUP BY note")
    assert notes.to_pylist() == [{"note": f"note {label(8)}", "n": 1}]

    # What is no longer needed is gone, and what is published again is made again.
    expired = lake.spark.sql(f"{procedure}expire_snapshots({table}, older_than => now(), retain_last => 1)")
    assert expired["deleted_data_files_count"][0].as_py() > 0
    assert lake.spark.sql(f"SELECT count(*) AS n FROM {name_of(pipeline)}.snapshots")["n"][0].as_py() == 1
    late_point(pipeline, hour(0), "late.parquet")
    publish_all(pipeline, *map(hour, range(4)))
    assert_all_agree(lake, pipeline, staged_rows(pipeline, *map(hour, range(4))) + foreign)
    assert_verified(pipeline, *map(hour, range(4)))


# Secrets


def test_spark_shows_no_secret(lake: Lake) -> None:
    """Its UI's environment page, the commands that list its configuration, and the Java machine's command line."""
    shown = lake.spark.shown()
    assert all(expected in shown for expected in (ROLE, "jdbc:postgresql://", "s3.endpoint", "spark.sql.shuffle.partitions", "-Xmx1g"))
    assert [secret for secret in lake.secrets if secret in shown] == []


# docs/spark.md

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "spark.md").read_text()
# Every property that the seed sets or recommends.
SEED = [
    "spark.memory.fraction",
    "spark.memory.storageFraction",
    "spark.sql.autoBroadcastJoinThreshold",
    "spark.executor.instances",
    "spark.executor.memory",
    "spark.executor.cores",
    "spark.executor.memoryOverhead",
    "spark.default.parallelism",
    "spark.sql.shuffle.partitions",
    "spark.hadoop.fs.s3a.connection.maximum",
    "spark.hadoop.fs.s3a.block.size",
    "spark.hadoop.fs.s3a.buffer.dir",
    "spark.hadoop.fs.s3a.fast.upload",
    "spark.hadoop.fs.s3a.committer.name",
    "spark.hadoop.fs.s3a.committer.magic.enabled",
    "spark.sql.files.maxPartitionBytes",
    "spark.sql.iceberg.handle-timestamp-without-timezone",
    "spark.dynamicAllocation.enabled",
    "spark.dynamicAllocation.minExecutors",
    "spark.dynamicAllocation.maxExecutors",
    "spark.dynamicAllocation.executorIdleTimeout",
    "write.distribution-mode",
    "write.distribution.hash.fields",
    "write.target-file-size-bytes",
    "write.format.default",
    "parquet.block.size",
    "parquet.page.size",
    "parquet.enable.dictionary",
    "parquet.compression",
]


def properties_in(text: str) -> set[str]:
    """Names of properties, as far as they look like ones."""
    # What looks like one: a method, and the host of the examples.
    others = {"spark.read.parquet", "spark.example.com"}
    return {name.rstrip(".") for name in re.findall(r"(?<![\w./-])(?:spark|write|parquet)\.[A-Za-z][\w.-]*\w", text)} - others


def by_kind(names: set[str]) -> dict[str, list[str]]:
    """The same, by who has to know them and under the name that these use."""
    found: dict[str, list[str]] = {}
    for name in sorted(names - {"spark.sql.catalog.rollups"}):
        kind, short = "spark", name
        if name.startswith("spark.hadoop."):
            kind, short = "hadoop", name.removeprefix("spark.hadoop.")
        elif name.startswith("spark.sql.catalog.rollups."):
            kind, short = "iceberg catalog", name.removeprefix("spark.sql.catalog.rollups.")
            if short.startswith("jdbc.") and short not in ("jdbc.schema-version", "jdbc.init-catalog-tables"):
                kind, short = "postgresql", short.removeprefix("jdbc.")
        elif name.startswith("spark.sql.iceberg."):
            kind = "iceberg session"
        elif not name.startswith("spark."):
            kind = "parquet" if name.startswith("parquet.") else "iceberg table"
        found.setdefault(kind, []).append(short)
    return found


def seed_table() -> list[tuple[str, str]]:
    """Recommendation and verdict of each row."""
    rows = DOCUMENT.split("| recommendation | today |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [(cells[1].strip(), cells[2].strip()) for cells in (row.split("|") for row in rows)]


def blocks_that_begin(text: str) -> list[str]:
    """The document's fenced blocks that begin so."""
    blocks = re.findall(r"^```\w*\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    return [block for block in blocks if block.startswith(text)]


def test_every_property_in_the_document_exists_or_is_said_not_to(lake: Lake) -> None:
    refuted = properties_in(" ".join(recommendation for recommendation, verdict in seed_table() if verdict == "does not exist"))
    assert len(refuted) == 3
    named = properties_in(DOCUMENT) - refuted
    assert len(named) > 50
    assert {kind: names for kind, names in lake.spark.unknown(by_kind(named)).items() if names} == {}
    assert lake.spark.unknown(by_kind(refuted)) == by_kind(refuted)


def test_every_recommendation_of_the_seed_has_a_verdict() -> None:
    assert {verdict for _, verdict in seed_table()} == {"default", "does not exist", "irrelevant", "matters", "obsolete"}
    assert set(SEED) <= properties_in(" ".join(recommendation for recommendation, _ in seed_table()))


def test_what_the_document_says_of_writing_through_spark_is_so(lake: Lake, tmp_path: Path) -> None:
    """The distribution that is the default, the shuffle that a repartition adds to it, and the size that is no number."""
    pipeline = lake.pipeline(tmp_path, 1)
    land(pipeline, crowd(66, grid(1), 5, 200))
    publish_all(pipeline, hour(0))
    name = name_of(pipeline)
    plain = lake.spark.sql(f"EXPLAIN INSERT INTO {name} SELECT * FROM {name}")["plan"][0].as_py()
    assert plain.count("Exchange hashpartitioning(resolution") == plain.count("Exchange") == 1
    assert str(384 << 20) in plain
    twice = lake.spark.sql(f"EXPLAIN INSERT INTO {name} SELECT /*+ REPARTITION(metric_shard_id, resolution) */ * FROM {name}")
    assert twice["plan"][0].as_py().count("Exchange") == 2
    lake.spark.sql(f"ALTER TABLE {name} SET TBLPROPERTIES ('write.target-file-size-bytes' = '512MB')")
    with pytest.raises(SparkSqlError, match="NumberFormatException"):
        insert(lake, pipeline, [label(9)])


def test_the_statements_of_the_document_run(lake: Lake, tmp_path: Path) -> None:
    pipeline = lake.pipeline(tmp_path, 2, table="metrics.rollups")
    land(pipeline, crowd(67, grid(2), 5, 200))
    publish_all(pipeline, hour(0), hour(1))
    (select,) = re.findall(r'spark-sql --properties-file \S+ -e "([^"]+)"', DOCUMENT)
    assert sorted(lake.spark.sql(select)["resolution"].to_pylist()) == list(RESOLUTIONS)
    calls = re.findall(r"`(CALL rollups\.system\.rewrite_data_files[^`]*)`", DOCUMENT)
    (condition,) = re.findall(r"`(where => [^`]*)`", DOCUMENT)
    assert lake.spark.sql(calls[0])["rewritten_data_files_count"].to_pylist() == [0]  # too few files to be worth it
    later = condition.replace("2026-01-01", "2026-01-02")
    forced = calls[0].replace(")", f", {later}, options => map('rewrite-all', 'true'))")
    assert lake.spark.sql(forced)["rewritten_data_files_count"].to_pylist() == [6]
    assert lake.spark.sql(calls[0].replace(")", f", {condition})"))["rewritten_data_files_count"].to_pylist() == [0]


def test_the_profiles_of_the_document_are_settings_as_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    from rollup_assets.engines.spark_session import session_properties
    from rollup_assets.settings import load_settings

    blocks = blocks_that_begin("ROLLUP_ENGINE")
    assert len(blocks) == 3
    for block in blocks:
        given = dict(line.split("=", 1) for line in block.splitlines())
        with monkeypatch.context() as patch:
            for variable, value in given.items():
                patch.setenv(variable, value)
            settings = load_settings()
        assert settings.engine == "spark"
        properties = session_properties(settings)
        assert properties["spark.master"] == given["ROLLUP_SPARK_MASTER"]
        for pair in given.get("ROLLUP_SPARK_CONF", "").split():
            key, value = pair.split("=", 1)
            assert properties[key] == value


def test_the_properties_of_the_document_are_those_that_are_printed() -> None:
    from rollup_assets.iceberg.spark import password_file_line, session_properties
    from rollup_assets.settings import load_settings

    settings = load_settings(
        catalog="postgresql+psycopg://rollups@db.example.com:5432/catalog?sslmode=verify-full&sslrootcert=/etc/ssl/certs/company.pem",
        warehouse="s3://lake/warehouse",
        s3_endpoint="https://s3.example.com",
        s3_region="eu-central-1",
    )
    (block,) = blocks_that_begin("spark.jars")
    assert block.splitlines() == [f"{name} {value}" for name, value in session_properties(settings).items()]
    assert f"`{password_file_line(settings)}`" in DOCUMENT
