"""The network between a publisher and PostgreSQL loses, withholds and falsifies answers; sessions and servers end.

A proxy of our own makes the faults, at the statement that matters. Batches are staged by hand: what is published of them, and that it
is published once, is what is compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploy.servers.proxy import Fault, Proxy, proxy
from rollup_assets.errors import CatalogError, LockTimeoutError, StaleInputError
from rollup_assets.iceberg.locks import TableLock, table_lock
from rollup_assets.steps.publish import publish
from rollup_assets.storage.manifests import ROLLUP_TABLE
from rollup_assets_tests.iceberg.staging import batches_from, load, pipeline_in, rollup_rows, rows_of, stage_rollups, value_by_batch

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer
    from rollup_assets.batches import Batch
    from rollup_assets.pipeline import Pipeline

THOROUGH = pytest.mark.thorough
SERIES = 3
ROWS = SERIES * 61
COMMIT = "^COMMIT$"


@pytest.fixture
def catalog(fresh_catalog: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A catalog's settings, without the proxy."""
    return fresh_catalog()


@pytest.fixture
def network(postgres_server: PostgresServer, seed: int) -> Iterator[Proxy]:
    with proxy("postgresql", postgres_server.port, seed) as made:
        yield made


@pytest.fixture
def pipeline(tmp_path: Path, catalog: dict[str, Any], network: Proxy, postgres_server: PostgresServer) -> Pipeline:
    """A pipeline whose connections pass the proxy."""
    return pipeline_in(tmp_path, **through(network, postgres_server.port, catalog), resolutions="1m,1h")


@pytest.fixture
def directly(tmp_path: Path, catalog: dict[str, Any]) -> Pipeline:
    """The same table, without the proxy."""
    return pipeline_in(tmp_path, **catalog, resolutions="1m,1h")


def through(network: Proxy, port: int, catalog: dict[str, Any]) -> dict[str, Any]:
    return catalog | {"catalog": catalog["catalog"].replace(f":{port}/", f":{network.port}/")}


def publish_value(pipeline: Pipeline, batch: Batch, value: int) -> None:
    stage_rollups(pipeline, batch, series=SERIES, value=value)
    publish(pipeline, batch)


def ancestors(pipeline: Pipeline) -> list[int]:
    table = load(pipeline)
    found, snapshot = [], table.current_snapshot()
    while snapshot is not None:
        found.append(snapshot.snapshot_id)
        snapshot = None if snapshot.parent_snapshot_id is None else table.snapshot_by_id(snapshot.parent_snapshot_id)
    return found


def assert_published(pipeline: Pipeline, *expected: tuple[Batch, int], commits: int | None = None) -> None:
    """The table holds exactly these batches with these values, every key once (I2, I5); every receipt's snapshot is an ancestor of the
    current one (I4); publishing them again changes nothing (I3). ``commits``: how many snapshots there are.
    """
    assert value_by_batch(pipeline) == {batch.key: {value} for batch, value in expected}
    keys = rows_of(load(pipeline), "id", "resolution", "logical_timestamp")
    assert len(keys) == len(set(keys)) == ROWS * len(expected)
    history = ancestors(pipeline)
    assert set(history) == {snapshot.snapshot_id for snapshot in load(pipeline).snapshots()}
    assert commits is None or len(history) == commits
    for batch, _ in expected:
        receipt = pipeline.stage.read(ROLLUP_TABLE, batch)
        assert receipt is not None
        assert receipt.counters["snapshot_id"] in history
        assert publish(pipeline, batch).unchanged
    assert ancestors(pipeline) == history


# ------------------------------------------------------------------------------------------------------------------ P1, P2

UNKNOWN_OUTCOMES: dict[str, Callable[..., Fault]] = {
    "lost": lambda meanwhile=None: Fault(COMMIT, "lost", meanwhile=meanwhile),
    "reported as a serialization failure": lambda meanwhile=None: Fault(COMMIT, "error", meanwhile=meanwhile),
    "reported as a server that ends": lambda meanwhile=None: Fault(COMMIT, "error", code="57P01", meanwhile=meanwhile),
}

HOWS = ["lost", "reported as a serialization failure", pytest.param("reported as a server that ends", marks=THOROUGH)]


@pytest.mark.scenario("P1")
@pytest.mark.parametrize("how", HOWS)
def test_a_commit_that_was_applied_counts_once_whatever_became_of_its_answer(
    pipeline: Pipeline, directly: Pipeline, network: Proxy, how: str
) -> None:
    first, second = batches_from(directly, 2)
    publish_value(directly, first, 5)
    stage_rollups(pipeline, second, series=SERIES)
    fault = network.add(UNKNOWN_OUTCOMES[how]())
    result = publish(pipeline, second)
    assert fault.hits == 1
    assert len([request for request in network.requests if request.startswith("UPDATE iceberg_tables")]) == 1
    assert result.snapshot_id == ancestors(directly)[0]
    assert_published(pipeline, (first, 5), (second, 1), commits=2)


@pytest.mark.scenario("P1")
@pytest.mark.parametrize(
    "fault",
    [
        Fault("^UPDATE iceberg_tables", "lost"),
        pytest.param(Fault("^UPDATE iceberg_tables", "lost", delivered=False), marks=THOROUGH),
        pytest.param(Fault("^UPDATE iceberg_tables", "error", delivered=False), marks=THOROUGH),
        Fault(COMMIT, "lost", delivered=False),
        pytest.param(Fault(COMMIT, "error", delivered=False), marks=THOROUGH),
        pytest.param(Fault("^UPDATE iceberg_tables", "lost", delivered=False, times=3), marks=THOROUGH),
    ],
    ids=lambda fault: f"{fault.pattern} {fault.answer} {'after' if fault.delivered else 'before'} {fault.times}",
)
def test_a_commit_that_was_not_applied_is_made_again(pipeline: Pipeline, directly: Pipeline, network: Proxy, fault: Fault) -> None:
    first, second = batches_from(directly, 2)
    publish_value(directly, first, 5)
    network.add(fault)
    publish_value(pipeline, second, 1)
    assert fault.hits == fault.times
    assert_published(pipeline, (first, 5), (second, 1), commits=2)


@pytest.mark.scenario("P1")
@pytest.mark.parametrize(
    "statement",
    [
        COMMIT,
        pytest.param("^INSERT INTO iceberg_tables", marks=THOROUGH),
        pytest.param("^INSERT INTO iceberg_namespace_properties", marks=THOROUGH),
    ],
)
@pytest.mark.parametrize("delivered", [True, pytest.param(False, marks=THOROUGH)])
def test_a_table_whose_making_got_no_answer_is_there_or_made_at_the_next_try(
    pipeline: Pipeline, network: Proxy, statement: str, delivered: bool
) -> None:
    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch, series=SERIES)
    network.add(Fault(statement, "lost", delivered=delivered))
    with pytest.raises(CatalogError, match=r"cannot be reached .*; start the server"):
        publish(pipeline, batch)
    publish(pipeline, batch)
    assert_published(pipeline, (batch, 1), commits=1)


@pytest.mark.scenario("P1")
@pytest.mark.parametrize("delivered", [True, pytest.param(False, marks=THOROUGH)])
def test_expiry_whose_commit_got_no_answer_costs_no_batch(tmp_path: Path, pipeline: Pipeline, network: Proxy, delivered: bool) -> None:
    few = pipeline_in(tmp_path, catalog=pipeline.settings.catalog, catalog_password="its password", resolutions="1m,1h", keep_snapshots=3)
    batches = batches_from(few, 5)
    for batch in batches[:3]:
        publish_value(few, batch, 1)
    # The publish's own commit, and then the one that expires.
    fault = network.add(Fault(COMMIT, "lost", delivered=delivered, skip=1))
    for batch in batches[3:]:
        publish_value(few, batch, 1)
    assert fault.hits == 1
    assert value_by_batch(few) == {batch.key: {1} for batch in batches}
    assert len(load(few).snapshots()) <= 3
    assert all(publish(few, batch).unchanged for batch in batches)


@contextlib.contextmanager
def no_lock() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rollup_assets.iceberg.locks.table_lock", lambda _settings: contextlib.nullcontext(TableLock()))
        yield


@pytest.mark.scenario("P2")
@pytest.mark.parametrize("how", ["lost", *(pytest.param(how, marks=THOROUGH) for how in list(UNKNOWN_OUTCOMES)[1:])])
@pytest.mark.parametrize("other", ["another batch", "a foreign append", "the same batch"])
def test_what_others_commit_before_the_outcome_is_known_stays(
    pipeline: Pipeline, directly: Pipeline, network: Proxy, how: str, other: str
) -> None:
    """The others take no lock, as on a catalog without one, or when it was lost."""
    first, second, third = batches_from(directly, 3)
    publish_value(directly, first, 5)
    stage_rollups(pipeline, second, series=SERIES)

    def come_between() -> None:
        if other == "a foreign append":
            table = load(directly)
            for resolution in directly.settings.resolutions:
                table.append(rollup_rows(directly.settings, third, resolution, SERIES, value=7))
        elif other == "another batch":
            with no_lock():
                publish_value(directly, third, 7)
        else:
            with no_lock():
                publish_value(directly, second, 7)

    fault = network.add(UNKNOWN_OUTCOMES[how](come_between))
    if other == "the same batch":
        # Which is right the manifest tells, and it says 7.
        publish(pipeline, second)
        assert fault.hits == 1
        publish(directly, second)
        assert_published(directly, (first, 5), (second, 7), commits=3)
        return
    result = publish(pipeline, second)
    assert fault.hits == 1
    assert result.snapshot_id in ancestors(directly)
    if other == "another batch":
        assert_published(pipeline, (first, 5), (second, 1), (third, 7), commits=3)
    else:
        assert value_by_batch(directly) == {first.key: {5}, second.key: {1}, third.key: {7}}
        assert len(rows_of(load(directly))) == 3 * ROWS


@pytest.mark.scenario("P2")
@pytest.mark.parametrize("locked", [True, False])
def test_a_commit_that_was_not_applied_while_others_commit_is_made_again(
    pipeline: Pipeline, directly: Pipeline, network: Proxy, locked: bool
) -> None:
    first, second, third = batches_from(directly, 3)
    publish_value(directly, first, 5)

    def come_between() -> None:
        with no_lock():
            publish_value(directly, third, 7)

    network.add(Fault("^UPDATE iceberg_tables", "lost", delivered=False, meanwhile=come_between))
    with contextlib.nullcontext() if locked else no_lock():
        publish_value(pipeline, second, 1)
    assert_published(pipeline, (first, 5), (second, 1), (third, 7), commits=3)


# ---------------------------------------------------------------------------------------------------------------------- P3


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds after which an answer is taken for lost, instead of a minute."""
    monkeypatch.setattr("rollup_assets.iceberg.postgres.ANSWER_TIMEOUT", 1.0)
    monkeypatch.setattr("rollup_assets.iceberg.locks.LOCK_TIMEOUT", 0.5)
    return 1.0


@pytest.mark.scenario("P3")
@pytest.mark.parametrize("delivered", [True, False])
@pytest.mark.parametrize(
    "statement", [COMMIT, *(pytest.param(name, marks=THOROUGH) for name in ("^UPDATE iceberg_tables", "pg_advisory_unlock_all"))]
)
def test_an_answer_that_does_not_come_is_given_up_and_the_table_asked(
    pipeline: Pipeline, directly: Pipeline, network: Proxy, impatient: float, statement: str, delivered: bool
) -> None:
    """Neither the server's timeouts nor TCP's keepalives notice that: both sides are well, and the line between them is open."""
    first, second = batches_from(directly, 2)
    publish_value(directly, first, 5)
    fault = network.add(Fault(statement, "withheld", delivered=delivered))
    started = time.monotonic()
    publish_value(pipeline, second, 1)
    assert fault.hits == 1
    assert time.monotonic() - started < impatient + 20
    assert_published(pipeline, (first, 5), (second, 1), commits=2)


@pytest.mark.scenario("P3")
@pytest.mark.parametrize(
    "statement", ["pg_advisory_lock", *(pytest.param(name, marks=THOROUGH) for name in ("^SELECT iceberg_tables", "to_regclass"))]
)
@pytest.mark.usefixtures("impatient")
def test_before_anything_is_planned_an_answer_that_does_not_come_is_a_clear_error(
    pipeline: Pipeline, directly: Pipeline, network: Proxy, statement: str
) -> None:
    first, second = batches_from(directly, 2)
    publish_value(directly, first, 5)
    stage_rollups(pipeline, second, series=SERIES)
    network.add(Fault(statement, "withheld"))
    with pytest.raises(CatalogError, match=r"cannot be reached \(no answer came within 1(\.5)? s, .*; start the server"):
        publish(pipeline, second)
    assert value_by_batch(directly) == {first.key: {5}}
    publish(pipeline, second)
    assert_published(pipeline, (first, 5), (second, 1), commits=2)


@pytest.mark.scenario("P3")
def test_waiting_for_the_lock_may_take_longer_than_an_answer(
    pipeline: Pipeline, directly: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rollup_assets.iceberg.postgres.ANSWER_TIMEOUT", 0.3)
    waiting = table_lock(pipeline.settings, timeout=1)
    with table_lock(directly.settings), pytest.raises(LockTimeoutError, match=r"held the lock of metrics\.rollups for 1 s"), waiting:
        pass


# ---------------------------------------------------------------------------------------------------------------------- P7


@pytest.mark.scenario("P7")
@pytest.mark.parametrize(
    "fault",
    [Fault("^SELECT iceberg_tables", "late"), Fault("^UPDATE iceberg_tables", "late", delivered=False)],
    ids=["before the plan", "in the commit"],
)
def test_a_writer_whose_lock_session_is_ended_yields_to_who_took_the_lock(
    pipeline: Pipeline, directly: Pipeline, network: Proxy, postgres_server: PostgresServer, fault: Fault
) -> None:
    """Ended before the writer has planned; and after its last look at the lock, when only the catalog can still refuse its commit."""
    first, second = batches_from(directly, 2)
    publish_value(directly, first, 5)
    stage_rollups(pipeline, second, series=SERIES)

    def take_the_lock() -> None:
        database = directly.settings.catalog.rpartition("/")[2]
        ended = postgres_server.execute(
            "select pg_terminate_backend(pid, 5000) from pg_locks join pg_stat_activity using (pid) "
            f"where locktype = 'advisory' and datname = '{database}'"
        )
        assert ended == [(True,)]
        publish_value(directly, second, 7)

    network.add(dataclasses.replace(fault, meanwhile=take_the_lock, reached=threading.Event()))
    with pytest.raises(StaleInputError, match="were replaced while they were being published"):
        publish(pipeline, second)
    assert_published(pipeline, (first, 5), (second, 7), commits=2)
