"""Fixtures of the fault suite: small sites on local files, with the suite's seed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rollup_assets_tests.conftest import WithDagsterHome
from rollup_assets_tests.faults.site import CANARY, Site
from rollup_assets_tests.integration.stores import on_files

MakeSite = Callable[..., Site]


@pytest.fixture
def make_site(tmp_path: Path, seed: int, with_dagster_home: WithDagsterHome) -> MakeSite:
    """``make_site(name, **settings)``: an empty site of its own, on local files and SQLite."""

    def make(name: str = "site", **overrides: Any) -> Site:
        home = with_dagster_home(tmp_path / name)
        return Site(home, on_files(home), seed, {"AWS_SECRET_ACCESS_KEY": CANARY}, overrides)

    return make


@pytest.fixture
def site(make_site: MakeSite) -> Site:
    """A site with raw files of three batches, of which nothing is staged."""
    made = make_site()
    made.land()
    return made
