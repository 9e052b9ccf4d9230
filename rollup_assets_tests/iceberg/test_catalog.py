"""Opening the catalog that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rollup_assets.iceberg.catalog import catalog_properties
from rollup_assets.settings import Settings, load_settings


def settings_in(home: Path, **overrides: Any) -> Settings:
    return load_settings(home=str(home), **overrides)


@pytest.mark.parametrize(
    ("uri", "kind"),
    [
        ("sqlite:////x/catalog.db", "sql"),
        ("postgresql+psycopg://u@h/db", "sql"),
        ("https://host/iceberg", "rest"),
        ("rest+http://host", "rest"),
    ],
)
def test_the_uri_alone_says_which_catalog_it_is(tmp_path: Path, uri: str, kind: str) -> None:
    from pyiceberg.catalog import infer_catalog_type

    found = infer_catalog_type("rollups", dict(catalog_properties(settings_in(tmp_path, catalog=uri))))
    assert found is not None
    assert found.value == kind
