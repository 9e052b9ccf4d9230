"""A network that fails now and then, everywhere: between the pipeline and both of its servers, with the faults that the seed has."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest

from deploy.servers.proxy import Fault, proxy
from rollup_assets.errors import RollupError
from rollup_assets_tests.faults.invariants import check_all
from rollup_assets_tests.faults.site import Site
from rollup_assets_tests.integration.stores import on_servers

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer
    from deploy.servers.seaweedfs import S3Server

RERUNS = 40


@pytest.mark.scenario("P1", "P2", "S1", "S2", "S3")
@pytest.mark.thorough
def test_every_invariant_holds_after_a_network_that_fails_now_and_then(
    postgres_server: PostgresServer, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Answers to commits are lost or false, uploads refused or stored in silence, files short or with another bit; rerun until done."""
    for name, value in s3_server.environment.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    port = urlsplit(s3_server.endpoint).port
    assert port is not None
    with proxy("postgresql", postgres_server.port, seed) as database, proxy("http", port, seed) as objects:
        near = dataclasses.replace(s3_server, endpoint=f"http://127.0.0.1:{objects.port}")
        store = on_servers(tmp_path, near, postgres_server)
        store.settings["catalog"] = store.settings["catalog"].replace(f":{postgres_server.port}/", f":{database.port}/")
        secret = s3_server.pipeline.secret_key
        site = Site(tmp_path, store, seed, {"AWS_SECRET_ACCESS_KEY": secret}, canaries=(secret,))
        site.land()
        faults = [
            database.add(Fault("^COMMIT$", "lost", times=None, chance=0.2)),
            database.add(Fault("^COMMIT$", "error", times=None, chance=0.2)),
            database.add(Fault("^UPDATE", "lost", delivered=False, times=None, chance=0.2)),
            database.add(Fault("^SELECT", "lost", times=None, chance=0.05)),
            objects.add(Fault("^(PUT|POST|DELETE)", "lost", times=None, chance=0.04)),
            objects.add(Fault("", "error", delivered=False, times=None, chance=0.02)),
            objects.add(Fault(r"^GET .*\.parquet", "truncated", times=None, chance=0.02)),
            objects.add(Fault(r"^GET .*stage/.*\.parquet", "flipped", times=None, chance=0.02)),
        ]
        for _ in range(RERUNS):
            with contextlib.suppress(RollupError, OSError):
                site.finish()
                break
        database.clear()
        objects.clear()
        site.finish()
        check_all(site)
        assert sum(fault.hits for fault in faults) > 5
