"""Passwords reach Dagster as the names of variables: nothing it shows, records or prints has one, nor has anything the steps write."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rollup_assets_tests.integration.servers import PROJECT, dagster
from rollup_assets_tests.integration.tables import hours, land

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer

CANARY = "canary-8c1f-of-the-catalog"
RESOURCES = """
{ repositoriesOrError { ... on RepositoryConnection { nodes { name location { name } allTopLevelResourceDetails {
  name configFields { name description defaultValueAsJson } configuredValues { key value type } } } } } }
"""
RUNS = """
{ runsOrError { ... on Runs { results { runId status runConfigYaml tags { key value }
  eventConnection { events { __typename ... on MessageEvent { message } ... on ErrorEvent { error { message stack } } } } } } } }
"""


@pytest.mark.daemon
def test_the_catalogs_password_is_nowhere(tmp_path: Path, postgres_server: PostgresServer) -> None:
    settings, environment = land(tmp_path / "home", 1)
    role = "secrets"
    environment |= catalog_of(postgres_server, role)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "DAGSTER"))}
    command = [sys.executable, "-m", "rollup_assets.cli", "backfill", *hours(0, 0), *hours(0, 0), "--json"]
    done = subprocess.run(command, env=inherited | environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # A run that fails at the catalog says so, and its error is recorded with all its causes.
    postgres_server.execute(f"alter role {role} password 'another'")
    failed = subprocess.run([*command, "--force"], env=inherited | environment, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "refuses the user's password" in failed.stdout + failed.stderr
    launch = [str(Path(sys.executable).with_name("dg")), "launch", "--job", "batches", "--partition", *hours(0, 0)]
    recorded = subprocess.run(
        launch,
        env=inherited | environment | {"DAGSTER_HOME": str(settings.dagster_home)},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert recorded.returncode != 0
    with dagster(settings, environment, daemon=False) as server:
        shown = [server.query(RESOURCES), server.query(RUNS)]
    resources = {
        resource["name"]: {value["key"]: value for value in resource["configuredValues"]}
        for resource in shown[0]["repositoriesOrError"]["nodes"][0]["allTopLevelResourceDetails"]
    }
    password = resources["catalog"]["catalog_password"]
    assert (password["type"], password["value"]) == ("ENV_VAR", "ROLLUP_CATALOG_PASSWORD")
    assert json.loads(resources["catalog"]["catalog"]["value"]) == environment["ROLLUP_CATALOG"]
    runs = shown[1]["runsOrError"]["results"]
    assert {run["status"] for run in runs} == {"SUCCESS", "FAILURE"}
    assert "refuses the user's password" in json.dumps(runs)
    texts = [done.stdout, done.stderr, failed.stdout, failed.stderr, recorded.stdout, recorded.stderr, json.dumps(shown)]
    assert not [text for text in texts if CANARY in text]
    assert holding(tmp_path / "home", CANARY) == []


def catalog_of(server: PostgresServer, role: str) -> dict[str, str]:
    """Variables of a new catalog whose password is the canary."""
    from rollup_assets.iceberg.database import initialize
    from rollup_assets.settings import load_settings

    server.create_role(role, CANARY)
    server.create_database(role)
    uri = server.uri(role, role)
    initialize(load_settings(catalog=uri, catalog_admin_password=server.superuser_password), admin=server.superuser)
    return {"ROLLUP_CATALOG": uri, "ROLLUP_CATALOG_PASSWORD": CANARY}


def holding(folder: Path, text: str) -> list[Path]:
    """Files with the text in them: databases, logs, manifests, metadata."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert any(path.suffix == ".db" for path in files)
    return [path for path in files if text.encode() in path.read_bytes()]
