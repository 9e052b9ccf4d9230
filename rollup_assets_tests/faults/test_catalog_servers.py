"""PostgreSQL itself fails: it crashes in the middle of a commit, has no connection left, or is replaced by a standby that lags behind."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from deploy.servers.postgres import postgres, standby
from deploy.servers.proxy import Fault, proxy
from rollup_assets.errors import CatalogError, PublishError, PublishHaltError
from rollup_assets.iceberg.database import initialize
from rollup_assets.iceberg.postgres import engine
from rollup_assets.settings import load_settings
from rollup_assets.steps.publish import publish
from rollup_assets_tests.faults.site import wait_until
from rollup_assets_tests.faults.test_catalog_network import COMMIT, assert_published, publish_value
from rollup_assets_tests.iceberg.staging import batches_from, pipeline_in, stage_rollups, value_by_batch

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer
    from rollup_assets.batches import Batch
    from rollup_assets.pipeline import Pipeline

pytestmark = pytest.mark.thorough
PASSWORD = "its password"


def catalog_in(server: PostgresServer, port: int | None = None) -> dict[str, Any]:
    """Settings of a new catalog in a server; ``port``: of the proxy in front of it."""
    server.create_role("runs", PASSWORD)
    server.create_database("catalog")
    given = {"catalog": server.uri("catalog", "runs"), "catalog_password": PASSWORD}
    initialize(load_settings(**given, catalog_admin_password=server.superuser_password), admin=server.superuser)
    return given if port is None else given | {"catalog": given["catalog"].replace(f":{server.port}/", f":{port}/")}


@pytest.fixture
def servers() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.mark.scenario("P4")
def test_a_server_that_crashes_in_the_middle_of_commits_costs_no_batch(servers: ExitStack, tmp_path: Path, seed: int) -> None:
    """After the commit that it has acknowledged to nobody; before it; and while it is asked what became of it."""
    server = servers.enter_context(postgres(tmp_path / "server", durable=True))
    network = servers.enter_context(proxy("postgresql", server.port, seed))
    pipeline = pipeline_in(tmp_path / "home", **catalog_in(server, network.port), resolutions="1m,1h")

    def crash() -> None:
        server.stop(at_once=True)
        server.start()

    first, *others = batches_from(pipeline, 4)
    publish_value(pipeline, first, 5)
    faults = [
        Fault(COMMIT, "lost", meanwhile=crash),
        Fault(COMMIT, "lost", delivered=False, meanwhile=crash),
        Fault("^UPDATE iceberg_tables", "lost", meanwhile=crash),
    ]
    for batch, fault in zip(others, faults, strict=True):
        network.add(fault)
        publish_value(pipeline, batch, 1)
        assert fault.hits == 1
    assert_published(pipeline, (first, 5), *((batch, 1) for batch in others), commits=4)


@pytest.mark.scenario("P4")
def test_a_server_that_is_away_for_a_while_ends_a_publish_with_a_sentence_and_the_rerun_goes_on(
    servers: ExitStack, tmp_path: Path, seed: int
) -> None:
    server = servers.enter_context(postgres(tmp_path / "server", durable=True))
    network = servers.enter_context(proxy("postgresql", server.port, seed))
    pipeline = pipeline_in(tmp_path / "home", **catalog_in(server, network.port), resolutions="1m,1h")
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 5)
    stage_rollups(pipeline, second)
    network.add(Fault(COMMIT, "lost", meanwhile=lambda: server.stop(at_once=True)))
    with pytest.raises(Exception, match=r"rollups backfill|start the server"):
        publish(pipeline, second)
    server.start()
    publish(pipeline, second)
    assert_published(pipeline, (first, 5), (second, 1), commits=2)


@pytest.mark.scenario("P5")
def test_publishers_without_a_connection_left_fail_with_a_sentence_and_corrupt_nothing(servers: ExitStack, tmp_path: Path) -> None:
    """Eight at once, of which each needs two connections, where there are five; and where others have taken four of these."""
    server = servers.enter_context(postgres(tmp_path / "server", max_connections=8))
    given = catalog_in(server)
    # Each with connections of its own, as processes have.
    pipelines = [
        pipeline_in(tmp_path / "home", **given | {"catalog": f"{given['catalog']}?application_name=run{number}"}, resolutions="1m,1h")
        for number in range(8)
    ]
    first, *batches = batches_from(pipelines[0], 9)
    publish_value(pipelines[0], first, 5)
    for batch in batches:
        stage_rollups(pipelines[0], batch)
    engine(pipelines[0].settings).dispose()

    def all_are_gone() -> bool:
        return server.execute("select count(*) from pg_stat_activity where usename = 'runs'") == [(0,)]

    def try_to_publish(one: tuple[Pipeline, Batch]) -> str:
        try:
            publish(*one)
        except (CatalogError, PublishError) as error:
            return str(error)
        finally:
            # As its process ends.
            engine(one[0].settings).dispose()
        return ""

    def try_all() -> list[str]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(try_to_publish, zip(pipelines, batches, strict=True)))

    wait_until(all_are_gone)
    with ExitStack() as others:
        for _ in range(4):
            others.enter_context(server.connect("catalog", "runs", PASSWORD))
        assert all("has no connection left" in problem and "raise its max_connections" in problem for problem in try_all())
    wait_until(all_are_gone)
    # Who is first finds connections, who waits for the lock holds one: not all need succeed.
    assert all("connection" in problem for problem in try_all() if problem)
    wait_until(all_are_gone)
    for batch in batches:
        publish(pipelines[0], batch)
    assert_published(pipelines[0], (first, 5), *((batch, 1) for batch in batches), commits=9)


def wait_until_followed(primary: PostgresServer, follower: PostgresServer) -> None:
    """Until the standby has everything that the primary has written."""
    ((written,),) = primary.execute("select pg_current_wal_lsn()::text")
    deadline = time.monotonic() + 60
    while follower.execute(f"select pg_last_wal_replay_lsn() >= '{written}'::pg_lsn") != [(True,)]:
        assert time.monotonic() < deadline, "the standby does not follow"
        time.sleep(0.05)


@pytest.mark.scenario("P6")
def test_a_standby_that_is_promoted_without_the_last_commit_halts_the_batch_that_was_lost(
    servers: ExitStack, tmp_path: Path, seed: int
) -> None:
    """And the one after it, which is the one that is asked for. It is published again by force, after somebody has looked."""
    primary = servers.enter_context(postgres(tmp_path / "primary"))
    replication = servers.enter_context(proxy("bytes", primary.port, seed))
    network = servers.enter_context(proxy("postgresql", primary.port, seed))
    pipeline = pipeline_in(tmp_path / "home", **catalog_in(primary, network.port), resolutions="1m,1h")
    first, second, third = batches_from(pipeline, 3)
    publish_value(pipeline, first, 5)
    follower = servers.enter_context(standby(primary, tmp_path / "standby", port=replication.port))
    wait_until_followed(primary, follower)
    replication.target = None
    replication.cut()

    stage_rollups(pipeline, second)
    acknowledged = publish(pipeline, second).snapshot_id
    primary.stop(at_once=True)
    follower.execute("select pg_promote()")
    network.target = follower.port
    network.cut()

    assert value_by_batch(pipeline) == {first.key: {5}}
    stage_rollups(pipeline, third)
    for batch in (second, third, second):
        with pytest.raises(PublishHaltError, match=rf"snapshot {acknowledged} of .* vanished.*standby.*backfill {second.key} .*--force"):
            publish(pipeline, batch)
    assert value_by_batch(pipeline) == {first.key: {5}}
    assert publish(pipeline, first).unchanged
    publish(pipeline, second, force=True)
    publish(pipeline, third)
    assert_published(pipeline, (first, 5), (second, 1), (third, 1), commits=3)
