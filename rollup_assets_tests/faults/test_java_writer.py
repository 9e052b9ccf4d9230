"""Iceberg for Java on the same catalog when an acknowledgement is lost: what it does to the table, beside what we do.

Its ``JdbcCatalog`` connects again and repeats the statement (apache/iceberg#18743). docs/upstream.md says what comes of that.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

from deploy.servers.proxy import Fault, Proxy, proxy
from rollup_assets.errors import EngineError, TableMismatchError
from rollup_assets.iceberg import transactions
from rollup_assets.iceberg.spark import password_file_line, properties_file
from rollup_assets.settings import load_settings
from rollup_assets.steps.publish import publish
from rollup_assets.storage.manifests import ROLLUP_TABLE
from rollup_assets_tests.faults.test_catalog_network import COMMIT, ROWS, ancestors, publish_value
from rollup_assets_tests.iceberg.staging import batches_from, load, pipeline_in, rows_of, value_by_batch
from rollup_assets_tests.integration.spark_sql import SparkSql, SparkSqlError, spark_sql

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer
    from rollup_assets.batches import Batch
    from rollup_assets.pipeline import Pipeline

pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("spark"), pytest.mark.timeout(900)]
UPDATE = "UPDATE iceberg_tables"
_numbers = itertools.count()


@dataclass(frozen=True)
class Shared:
    """A catalog that we reach directly, and Spark through the proxy."""

    near: dict[str, Any]
    far: dict[str, Any]
    home: Path
    spark: SparkSql
    network: Proxy

    def pipeline(self, *, of: Pipeline | None = None, far: bool = False) -> Pipeline:
        """On a table of its own, or on the same; ``far``: through the proxy."""
        table = of.settings.table if of else f"metrics.table_{next(_numbers)}"
        return pipeline_in(self.home, **(self.far if far else self.near), resolutions="1m,1h", table=table)

    def count(self, pipeline: Pipeline) -> int:
        """Rows of the table, as Spark reads it."""
        found = self.spark.sql(f"SELECT count(*) AS rows FROM {pipeline.settings.catalog_name}.{pipeline.settings.table}")
        return int(found["rows"][0].as_py())


@pytest.fixture(scope="module")
def shared(
    postgres_server: PostgresServer, fresh_catalog: Callable[[], dict[str, Any]], tmp_path_factory: pytest.TempPathFactory, seed: int
) -> Iterator[Shared]:
    from rollup_assets.engines.spark_session import require_java

    try:
        require_java()
    except EngineError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("java")
    given = fresh_catalog()
    with proxy("postgresql", postgres_server.port, seed) as network:
        far = given | {"catalog": given["catalog"].replace(f":{postgres_server.port}/", f":{network.port}/")}
        settings = load_settings(home=str(folder), **far)
        passwords = folder / "pgpass"
        passwords.touch(mode=0o600)
        passwords.write_text(password_file_line(settings).replace("<password>", given["catalog_password"]) + "\n")
        with spark_sql(folder, properties_file(settings), {"PGPASSFILE": str(passwords)}) as spark:
            try:
                spark.sql("SELECT 1")
            except (AssertionError, SparkSqlError) as error:
                if "unresolved dependency" in (spark.folder / "log").read_text():
                    pytest.skip("the jars of Iceberg and PostgreSQL cannot be had from Maven Central")
                raise AssertionError(f"Spark did not start: {error}") from error
            yield Shared(given, far, folder, spark, network)


def insert(shared: Shared, pipeline: Pipeline, batch: Batch, value: int) -> None:
    """A row a minute, by Spark."""
    minutes = f"explode(sequence({batch.start}, {batch.end} - 60000, 60000)) AS label"
    shared.spark.sql(
        f"INSERT INTO {pipeline.settings.catalog_name}.{pipeline.settings.table} "
        "SELECT 3, -7, 1, 'foreign', 60000, timestamp_millis(label), "
        f"1, {value}, {value}, {value}, CAST({value} AS DOUBLE), {value}, NULL, 0, NULL, NULL FROM (SELECT {minutes})"
    )


@pytest.mark.scenario("P1")
@pytest.mark.parametrize("answer", ["lost", "error"])
def test_java_alone_gets_over_a_lost_answer(shared: Shared, answer: Literal["lost", "error"]) -> None:
    """It repeats the statement, takes its own commit for somebody else's, and commits the same snapshot once more."""
    pipeline = shared.pipeline()
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    fault = shared.network.add(Fault(UPDATE, answer))
    insert(shared, pipeline, second, 9)
    assert fault.hits == 1
    assert value_by_batch(pipeline) == {first.key: {5}, second.key: {9}}
    assert len(rows_of(load(pipeline))) == ROWS + 60


@pytest.mark.scenario("P2")
@pytest.mark.parametrize("answer", ["lost", "error"])
def test_java_takes_back_what_we_published_before_it_knew_of_its_commit_and_we_publish_it_again(
    shared: Shared, answer: Literal["lost", "error"], caplog: pytest.LogCaptureFixture
) -> None:
    """What docs/upstream.md says: both are told that they have committed. Once this fails, Iceberg has mended it: correct the page."""
    pipeline = shared.pipeline()
    first, second, third = batches_from(pipeline, 3)
    publish_value(pipeline, first, 5)
    fault = shared.network.add(Fault(UPDATE, answer, meanwhile=lambda: publish_value(pipeline, third, 7)))
    insert(shared, pipeline, second, 9)
    assert fault.hits == 1
    receipt = pipeline.stage.read(ROLLUP_TABLE, third)
    assert receipt is not None
    assert value_by_batch(pipeline) == {first.key: {5}, second.key: {9}}, "Iceberg for Java no longer takes back what others committed"
    assert receipt.counters["snapshot_id"] not in ancestors(pipeline)
    assert receipt.counters["snapshot_id"] in {snapshot.snapshot_id for snapshot in load(pipeline).snapshots()}

    assert publish(pipeline, first).unchanged
    assert not publish(pipeline, third).unchanged
    assert "another engine's commit replaced it" in caplog.text
    assert value_by_batch(pipeline) == {first.key: {5}, second.key: {9}, third.key: {7}}
    assert len(rows_of(load(pipeline))) == 2 * ROWS + 60


@pytest.mark.scenario("P2")
@pytest.mark.parametrize("answer", ["lost", "error"])
def test_we_take_back_nothing_that_java_committed_before_we_knew_of_our_commit(shared: Shared, answer: Literal["lost", "error"]) -> None:
    directly = shared.pipeline()
    pipeline = shared.pipeline(of=directly, far=True)
    first, second, third = batches_from(directly, 3)
    publish_value(directly, first, 5)
    fault = shared.network.add(Fault(COMMIT, answer, meanwhile=lambda: insert(shared, directly, third, 9)))
    publish_value(pipeline, second, 7)
    assert fault.hits == 1
    assert value_by_batch(directly) == {first.key: {5}, second.key: {7}, third.key: {9}}
    assert len(rows_of(load(directly))) == 2 * ROWS + 60
    assert publish(directly, second).unchanged
    assert len(ancestors(directly)) == 3


@pytest.mark.scenario("T1")
def test_java_reads_a_table_whose_publishers_have_clocks_a_day_apart(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses metadata whose logs go back by more than a minute; ours do not, so it reads; it writes once its clock is there."""
    pipeline = shared.pipeline()
    first, second, third = batches_from(pipeline, 3)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400)
    publish_value(pipeline, first, 5)
    monkeypatch.setattr(time, "time", real)
    publish_value(pipeline, second, 7)
    assert shared.count(pipeline) == 2 * ROWS
    with pytest.raises(SparkSqlError, match="sorted snapshot log"):
        insert(shared, pipeline, third, 9)
    assert shared.count(pipeline) == 2 * ROWS
    publish_value(pipeline, third, 9)
    assert shared.count(pipeline) == 3 * ROWS


@pytest.mark.scenario("T1")
def test_java_refuses_a_table_whose_log_goes_back(shared: Shared, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stamps are kept in order for; once this fails, ``iceberg/commit_times.py`` can go."""
    pipeline = shared.pipeline()
    first, second = batches_from(pipeline, 2)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 86_400)
    publish_value(pipeline, first, 5)
    monkeypatch.setattr(time, "time", real)
    monkeypatch.setattr(transactions, "stamped_in_order", lambda table: table)
    publish_value(pipeline, second, 7)
    with pytest.raises(SparkSqlError, match="sorted snapshot log"):
        shared.count(pipeline)


@pytest.mark.scenario("P3")
def test_java_waits_for_an_answer_for_as_long_as_the_line_is_open(shared: Shared) -> None:
    """Its driver has no timeout of its own."""
    pipeline = shared.pipeline()
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    fault = shared.network.add(Fault(UPDATE, "withheld"))
    waiting = threading.Thread(target=insert, args=(shared, pipeline, second, 9))
    waiting.start()
    assert fault.reached.wait(60)
    waiting.join(5)
    assert waiting.is_alive()
    shared.network.cut()
    waiting.join(60)
    assert value_by_batch(pipeline) == {first.key: {5}, second.key: {9}}


@pytest.mark.scenario("P1")
def test_java_without_retries_deletes_what_its_own_commit_needs_and_such_a_table_is_not_published_to(shared: Shared) -> None:
    pipeline = shared.pipeline()
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    name = f"{pipeline.settings.catalog_name}.{pipeline.settings.table}"
    shared.spark.sql(f"ALTER TABLE {name} SET TBLPROPERTIES ('commit.retry.num-retries' = '0')")
    shared.network.add(Fault(UPDATE, "lost"))
    with pytest.raises(SparkSqlError, match="CommitFailedException"):
        insert(shared, pipeline, second, 9)
    with pytest.raises(FileNotFoundError):
        rows_of(load(pipeline))
    with pytest.raises(TableMismatchError, match=r"has commit\.retry\.num-retries=0.*set it to 10"):
        publish_value(pipeline, second, 7)
