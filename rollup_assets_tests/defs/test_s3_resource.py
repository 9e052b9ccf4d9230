"""Dagster's S3 resource lists the landing zone with the settings' client, and shows no credentials."""

from __future__ import annotations

from pathlib import Path

from dagster_aws.s3 import S3Resource

from rollup_assets.defs import resources as res
from rollup_assets.settings import load_settings
from rollup_assets_tests.s3 import S3Folder, secrets_of


def test_it_lists_what_the_steps_list(s3_folder: S3Folder, tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw/a.parquet").write_bytes(b"1")
    s3_folder.upload(tmp_path / "raw")
    settings = load_settings(home=str(tmp_path), **s3_folder.locations)
    made = res.resources(settings)
    found = made["storage"].s3()
    assert isinstance(found, S3Resource)
    assert found.get_client() is settings.s3.client()
    (listed,) = found.get_client().list_objects_v2(Bucket="raw", Prefix=f"{s3_folder.name}/")["Contents"]
    assert listed["Key"] == f"{s3_folder.name}/a.parquet"
    shown = str({name: resource.model_dump() for name, resource in (*made.items(), ("s3", found))})
    assert not [secret for secret in secrets_of(s3_folder.server.environment) if secret in shown]
    assert s3_folder.server.pipeline.access_key not in shown


def test_a_resource_for_another_store_goes_before_the_settings(tmp_path: Path) -> None:
    settings = load_settings(home=str(tmp_path))
    made = res.resources(settings)
    made["storage"] = res.Storage(
        raw="s3://raw/x", stage="", warehouse="", s3_endpoint="http://127.0.0.1:1", s3_region="x", s3_path_style=True
    )
    chosen = res.pipeline(settings, **made)
    assert chosen.landing_zone.root.s3 == chosen.settings.s3
    assert (chosen.settings.s3.endpoint, chosen.settings.s3.region, chosen.settings.s3.path_style) == ("http://127.0.0.1:1", "x", True)
