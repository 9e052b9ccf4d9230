"""The policies and grants of the documents are enough for what they are for, and for nothing else: all else is denied, and said so."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rollup_assets.errors import CatalogError, StorageError
from rollup_assets.pipeline import Pipeline
from rollup_assets.query import query
from rollup_assets.settings import load_settings
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.rollup import roll_up
from rollup_assets.verification import verify
from rollup_assets_tests.conftest import SMALL
from rollup_assets_tests.integration.stores import Store, on_servers
from rollup_assets_tests.landing import write_rows
from rollup_assets_tests.naive import RawRow

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer
    from deploy.servers.seaweedfs import S3Server

DOCS = Path(__file__).resolve().parents[2] / "docs"
SECURITY = (DOCS / "security.md").read_text()


def policies() -> dict[str, str]:
    """The documents' policies by whom they are for, of the tests' buckets, in which each test has a folder of its own."""
    (pipeline,) = re.findall(r"^```json\n(.*?)^```", (DOCS / "production.md").read_text(), re.MULTILINE | re.DOTALL)
    others = dict(re.findall(r"^\*\*(\w+)\*\*[^\n]*\n+```json\n(.*?)^```", SECURITY, re.MULTILINE | re.DOTALL))
    assert others.keys() == {"producer", "reader"}
    changes = {
        ":::telemetry/raw/": ":::raw/*/",
        ":::telemetry": ":::raw",
        ":::lake/warehouse/": ":::lake/*/warehouse/",
        '"warehouse/*"': '"*/warehouse/*"',
    }
    found = {"pipeline": pipeline, **others}
    for before, after in changes.items():
        found = {name: document.replace(before, after) for name, document in found.items()}
    return found


def grants(database: str, role: str) -> list[str]:
    """The statements for a role that reads, of the document's names."""
    (block,) = re.findall(r"^```sql\n(.*?)^```", SECURITY, re.MULTILINE | re.DOTALL)
    named = block.replace('"catalog"', f'"{database}"').replace('"analyst"', f'"{role}"')
    return [statement.strip() for statement in named.split(";") if statement.strip()]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    from deploy.servers.seaweedfs import seaweedfs

    with seaweedfs(tmp_path_factory.mktemp("policies"), policies=policies()) as started:
        yield started


@pytest.fixture
def store(tmp_path: Path, server: S3Server, postgres_server: PostgresServer) -> Store:
    return on_servers(tmp_path / "home", server, postgres_server)


@pytest.fixture
def become(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """``become(name)``: the environment's credentials are of that policy; returns a client with them."""

    def become(name: str) -> Any:
        identity = server.by_policy[name]
        for variable, value in server.environment_of(identity).items():
            if variable.startswith("AWS_"):
                monkeypatch.setenv(variable, value)
        return server.client(identity)

    return become


def published(store: Store) -> Pipeline:
    """One batch, by whoever the environment says."""
    local = Pipeline.from_settings(load_settings(**{**store.settings, "raw": str(store.raw)}))
    batch = local.calendar.first
    write_rows(local, batch, "a.parquet", [RawRow(series, 1, "cpu", batch.start + 1000, series) for series in range(20)])
    store.upload()
    pipeline = Pipeline.from_settings(load_settings(**{**SMALL, **store.settings}))
    stage_batch(pipeline, batch)
    roll_up(pipeline, batch)
    publish(pipeline, batch)
    return pipeline


def denied(call: Callable[..., Any], **arguments: Any) -> bool:
    from botocore.exceptions import ClientError

    with pytest.raises(ClientError) as caught:
        call(**arguments)
    return bool(caught.value.response["Error"]["Code"] in ("AccessDenied", "403"))


def test_the_pipeline_stages_and_publishes_and_cannot_touch_raw_data(store: Store, become: Callable[[str], Any]) -> None:
    client = become("pipeline")
    pipeline = published(store)
    assert verify(pipeline.settings, [pipeline.calendar.first]).agrees
    (raw,) = (entry["Key"] for entry in client.list_objects_v2(Bucket="raw", Prefix=f"{store.prefix}/")["Contents"])
    assert denied(client.put_object, Bucket="raw", Key=raw, Body=b"")
    assert denied(client.put_object, Bucket="raw", Key=f"{store.prefix}/more", Body=b"")
    assert denied(client.delete_object, Bucket="raw", Key=raw)
    assert denied(client.create_multipart_upload, Bucket="raw", Key=f"{store.prefix}/more")
    assert denied(client.copy_object, Bucket="raw", Key=f"{store.prefix}/more", CopySource={"Bucket": "raw", "Key": raw})
    assert denied(client.create_bucket, Bucket="of-the-pipeline")
    assert denied(client.delete_bucket, Bucket="lake")
    assert denied(client.put_bucket_policy, Bucket="lake", Policy="{}")
    assert client.get_object(Bucket="raw", Key=raw)["ContentLength"] > 0


def test_a_producer_adds_raw_files_and_does_nothing_else(store: Store, server: S3Server, become: Callable[[str], Any]) -> None:
    client = become("producer")
    key = f"{store.prefix}/year=2026/a.parquet"
    client.put_object(Bucket="raw", Key=key, Body=b"1")
    upload = client.create_multipart_upload(Bucket="raw", Key=key)["UploadId"]
    client.abort_multipart_upload(Bucket="raw", Key=key, UploadId=upload)
    assert denied(client.get_object, Bucket="raw", Key=key)
    assert denied(client.delete_object, Bucket="raw", Key=key)
    assert denied(client.list_objects_v2, Bucket="raw")
    for bucket in ("lake", "raw"):
        assert denied(client.delete_bucket, Bucket=bucket)
    assert denied(client.put_object, Bucket="lake", Key=f"{store.prefix}/stage/x", Body=b"")
    assert denied(client.get_object, Bucket="lake", Key=f"{store.prefix}/stage/x")
    assert server.client().get_object(Bucket="raw", Key=key)["ContentLength"] == 1


def test_a_reader_queries_the_table_and_is_told_that_it_cannot_publish(
    store: Store, become: Callable[[str], Any], postgres_server: PostgresServer
) -> None:
    """In the catalog's database and on S3, each denied on its own."""
    import psycopg

    become("pipeline")
    pipeline = published(store)
    batch = pipeline.calendar.first
    (staged,) = pipeline.stage.read("rollups", batch).files[:1]  # type: ignore[union-attr]
    client = become("reader")
    assert denied(client.put_object, Bucket="lake", Key=f"{store.prefix}/warehouse/x", Body=b"")
    assert denied(client.delete_object, Bucket="lake", Key=f"{store.prefix}/warehouse/x")
    assert denied(client.get_object, Bucket="lake", Key=f"{store.prefix}/stage/rollups/{batch.folder}/manifest.json")
    assert denied(client.get_object, Bucket="raw", Key=f"{store.prefix}/x")
    assert denied(client.list_objects_v2, Bucket="raw")
    assert denied(client.list_objects_v2, Bucket="lake", Prefix=f"{store.prefix}/stage/")
    assert client.list_objects_v2(Bucket="lake", Prefix=f"{store.prefix}/warehouse/")["KeyCount"] > 0
    # As the role of the runs still: S3 alone is in the way.
    with pytest.raises(StorageError, match=r"do not allow (HeadObject|GetObject|ListObjectsV2|PutObject).*docs/production\.md"):
        publish(pipeline, batch)

    role = f"{store.prefix}_reader"
    postgres_server.create_role(role, "x")
    for statement in grants(store.prefix, role):
        postgres_server.execute(statement, database=store.prefix)
    reading = load_settings(**{**SMALL, **store.settings, "catalog": postgres_server.uri(store.prefix, role), "catalog_password": "x"})
    assert query(reading, "select sum(count_rollup)::int n from rollups where resolution = 60000").to_pylist() == [{"n": 20}]
    with postgres_server.connect(store.prefix, role, "x") as connection:
        for statement in (
            "insert into iceberg_tables values ('a', 'b', 'c')",
            "update iceberg_tables set metadata_location = 'x'",
            "delete from iceberg_tables",
            "truncate iceberg_tables",
            "drop table iceberg_tables",
            "alter table iceberg_tables add column x int",
            "create table mine (x int)",
            "create temporary table mine (x int)",
            "select * from pg_authid",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement.encode())
    become("pipeline")
    with pytest.raises(CatalogError, match="this user may not write the catalog's tables; run `rollups catalog init`"):
        publish(Pipeline.from_settings(reading), batch)
    assert staged.path
