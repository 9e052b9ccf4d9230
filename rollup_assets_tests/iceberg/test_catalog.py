"""Opening the catalog that the settings name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rollup_assets.errors import CatalogError
from rollup_assets.iceberg.catalog import catalog_properties, is_missing, open_catalog, sqlite_database
from rollup_assets.iceberg.faults import shown
from rollup_assets.iceberg.locks import lock_file
from rollup_assets.iceberg.sql_catalog import SharingSqlCatalog
from rollup_assets.iceberg.table import refuse_other_settings
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


def test_a_catalog_that_the_properties_name_is_not_the_default_file(tmp_path: Path) -> None:
    """Such as Glue, which needs no URI: the file was taken for the catalog, so that a plan saw no table and the lock was local."""
    glue = settings_in(tmp_path, catalog_properties="type=glue")
    assert sqlite_database(glue) is None
    assert lock_file(glue) is None
    assert shown(glue) == "ROLLUP_CATALOG_PROPERTIES=type=glue"
    own = settings_in(tmp_path, catalog_properties="py-catalog-impl=our.Catalog type=sql")
    assert sqlite_database(own) is None
    assert shown(own) == "ROLLUP_CATALOG_PROPERTIES=py-catalog-impl=our.Catalog"
    for same in ("", "type=sql", "type=SQL"):
        default = settings_in(tmp_path, catalog_properties=same)
        assert sqlite_database(default) == tmp_path / "catalog.db"
        assert shown(default) == f"ROLLUP_CATALOG=sqlite:///{tmp_path}/catalog.db"


@pytest.mark.parametrize("properties", ["", "type=sql", "type=SQL"])
def test_a_sql_catalog_may_be_called_one(tmp_path: Path, properties: str) -> None:
    """The default's type may be said, too."""
    with open_catalog(settings_in(tmp_path, catalog_properties=properties)) as catalog:
        assert isinstance(catalog, SharingSqlCatalog)
        assert catalog.list_namespaces() == []
    assert (tmp_path / "catalog.db").exists()


def test_a_place_where_no_folder_can_be_made_is_told(tmp_path: Path) -> None:
    """It was Python's traceback."""
    (tmp_path / "file").touch()
    uri = f"sqlite:///{tmp_path}/file/folder/catalog.db"
    with pytest.raises(CatalogError) as error, open_catalog(settings_in(tmp_path, catalog=uri)):
        pass
    assert str(error.value) == (
        f"ROLLUP_CATALOG={uri} cannot be used ([Errno 20] Not a directory: '{tmp_path}/file/folder'); "
        "set ROLLUP_CATALOG or ROLLUP_HOME to a place where this user may write"
    )


def test_the_place_of_a_catalog_is_looked_at_before_anything_is_staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CatalogError, match="Not a directory"):
        refuse_other_settings(settings_in(tmp_path, catalog=f"sqlite:///{tmp_path}/file/folder/catalog.db"))
    # As in the home of somebody else.
    monkeypatch.setattr(Path, "exists", lambda _: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    for look in (refuse_other_settings, is_missing):
        with pytest.raises(CatalogError, match=r"cannot be used .*Permission denied.*; set ROLLUP_CATALOG or ROLLUP_HOME"):
            look(settings_in(tmp_path))


class Unreachable:
    """A catalog whose client raises an error of its own."""

    def __init__(self, *_: object, **__: object) -> None:
        raise RuntimeError("You must specify a region")


def test_an_error_of_another_kind_of_catalog_is_told_as_the_catalogs(tmp_path: Path) -> None:
    """Glue without a region was told as S3 that cannot be reached, with ROLLUP_S3_ENDPOINT to correct."""
    kind = f"py-catalog-impl={__name__}.{Unreachable.__name__}"
    with pytest.raises(CatalogError) as error, open_catalog(settings_in(tmp_path, catalog_properties=kind)):
        pass
    assert str(error.value).startswith(f"ROLLUP_CATALOG_PROPERTIES={kind} cannot be opened (RuntimeError: You must specify a region); set")
