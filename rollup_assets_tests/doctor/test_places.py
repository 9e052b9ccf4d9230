"""Probes on disks and on a real S3 server; what they leave behind, and what they find."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rollup_assets.doctor import places
from rollup_assets.errors import StorageError
from rollup_assets.settings import load_settings
from rollup_assets.storage.objects import ObjectPlace
from rollup_assets_tests.s3 import S3Folder, requests

if TYPE_CHECKING:
    from collections.abc import Callable

    from rollup_assets.doctor.findings import Found
    from rollup_assets.settings import Settings

CHECKS: dict[str, Callable[[Settings], Found]] = {
    "stage": lambda settings: places.written("stage", settings),
    "warehouse": lambda settings: places.written("warehouse", settings),
    "scratch": places.scratch,
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path, name: str) -> None:
    settings = load_settings(home=str(tmp_path / "not" / "there"))
    assert CHECKS[name](settings).state == "ok"
    assert not list(tmp_path.iterdir())
    folder = settings.home / name
    (folder / "of somebody").mkdir(parents=True)
    assert CHECKS[name](settings).state == "ok"
    assert list(folder.iterdir()) == [folder / "of somebody"]


@pytest.mark.parametrize("name", CHECKS)
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "home").touch()
    setting = "ROLLUP_HOME" if name == "scratch" else f"ROLLUP_{name.upper()}"
    with pytest.raises(
        StorageError, match=rf"^{setting}={tmp_path}/home\S* is not writable \(.+\); make it writable .* or set {setting} to"
    ):
        CHECKS[name](load_settings(home=str(tmp_path / "home")))


@pytest.mark.parametrize(
    ("change", "state", "text"),
    [
        ({}, "ok", "neither S3 nor a REST catalog is used"),
        ({"s3_endpoint": "http://s3.example.org"}, "ok", "neither"),
        ({"raw": "s3://raw/x"}, "ok", "are reached over TLS"),
        ({"raw": "s3://raw/x", "s3_endpoint": "https://s3.example.org"}, "ok", "are reached over TLS"),
        ({"raw": "s3://raw/x", "s3_endpoint": "http://127.0.0.2:8333"}, "ok", "are reached over TLS"),
        ({"raw": "s3://raw/x", "s3_endpoint": "http://localhost:8333"}, "ok", "are reached over TLS"),
        ({"stage": "s3://lake/x", "s3_endpoint": "http://s3.test:8333"}, "warning", "ROLLUP_S3_ENDPOINT asks s3.test over http"),
        ({"catalog": "rest+http://catalog.example.org"}, "warning", "ROLLUP_CATALOG asks catalog.example.org over http"),
        ({"catalog": "rest+https://catalog.example.org"}, "ok", "are reached over TLS"),
    ],
)
def test_what_goes_to_other_machines_in_the_clear_is_a_warning(change: dict[str, str], state: str, text: str) -> None:
    found = places.encryption(load_settings(**change))
    assert (found.state, text in found.text) == (state, True), found
    assert ("https" in found.remedy) == (state == "warning")


def test_raw_data_on_disk(tmp_path: Path) -> None:
    settings = load_settings(home=str(tmp_path))
    found = places.raw_data(settings)
    assert (found.state, "ROLLUP_RAW" in found.remedy) == ("warning", True)
    assert not list(tmp_path.iterdir())
    for path in ("year=2026/month=01/day=01/hour=00/a.parquet", "year=2026/month=01/day=02/hour=00/_SUCCESS", "_temporary/b"):
        (tmp_path / "raw_datapoints" / path).parent.mkdir(parents=True)
        (tmp_path / "raw_datapoints" / path).write_bytes(b"x")
    found = places.raw_data(settings)
    assert found.state == "ok", found
    assert found.text.endswith("for example year=2026/month=01/day=01/hour=00/a.parquet")


@pytest.mark.parametrize("name", ["stage", "warehouse"])
def test_nothing_may_be_written_into_raw_data(tmp_path: Path, name: str) -> None:
    for location in (f"{tmp_path}/raw/{name}", f"{tmp_path}/raw"):
        found = places.raw_data(load_settings(home=str(tmp_path), raw=f"{tmp_path}/raw", **{name: location}))
        assert (found.state, found.remedy) == ("failed", f"set ROLLUP_{name.upper()} to another folder")
    assert places.raw_data(load_settings(home=str(tmp_path), raw=f"{tmp_path}/raw", **{name: f"{tmp_path}/raw2"})).state == "warning"


def on_s3(folder: S3Folder, home: Path) -> Settings:
    return load_settings(home=str(home), **folder.locations)


def test_on_s3_probes_are_written_and_deleted_and_raw_data_is_only_read(s3_folder: S3Folder, tmp_path: Path) -> None:
    settings = on_s3(s3_folder, tmp_path)
    s3_folder.server.client().put_object(Bucket="raw", Key=f"{s3_folder.name}/year=2026/a.parquet", Body=b"x")
    with requests(s3_folder.options) as seen:
        assert places.raw_data(settings).state == "ok"
    assert {method for method, _ in seen} == {"GET"}
    for name in ("stage", "warehouse"):
        with requests(s3_folder.options) as seen:
            found = places.written(name, settings)
        assert found.state == "ok", found
        assert "conditional writes are honoured" in found.text
        assert {"PUT", "DELETE"} <= {method for method, _ in seen}
    assert s3_folder.objects() == {}
    assert not list(tmp_path.iterdir())


def test_a_store_that_ignores_conditions_is_a_warning(s3_folder: S3Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ObjectPlace, "replace", lambda self, content, _: self.write(content))
    found = places.written("stage", on_s3(s3_folder, tmp_path))
    assert (found.state, "conditional writes" in found.remedy) == ("warning", True)
    assert s3_folder.objects() == {}


def test_a_probe_that_fails_halfway_is_deleted(s3_folder: S3Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise StorageError("no")

    monkeypatch.setattr(ObjectPlace, "replace", fail)
    with pytest.raises(StorageError, match="no"):
        places.written("stage", on_s3(s3_folder, tmp_path))
    assert s3_folder.objects() == {}
