"""PyIceberg reaches S3 through the filesystem of our settings, also after a trip to another process."""

from __future__ import annotations

import pickle

import pytest
from pyiceberg.io import load_file_io

from rollup_assets.iceberg.file_io import SettingsFileIO
from rollup_assets.storage.s3 import S3Options
from rollup_assets_tests.s3 import S3Folder


@pytest.mark.parametrize(
    "options", [S3Options(), S3Options("https://s3:1", "eu-west-1", True, "/ca.pem"), S3Options("http://s3:1", "x", False)]
)
def test_the_properties_are_the_settings(options: S3Options) -> None:
    """None of them is a secret: PyIceberg shows them, and Spark would."""
    properties = options.iceberg_properties()
    assert S3Options.from_iceberg_properties(properties) == options
    assert not [name for name in properties if "key" in name or "token" in name]


def test_reading_and_writing_goes_through_the_settings_filesystem(s3_folder: S3Folder) -> None:
    made = load_file_io(s3_folder.options.iceberg_properties())
    assert isinstance(made, SettingsFileIO)
    for file_io in (made, pickle.loads(pickle.dumps(made))):
        assert file_io.fs_by_scheme("s3", "lake") is s3_folder.options.filesystem()
        location = (s3_folder.lake / "metadata.json").uri
        with file_io.new_output(location).create(overwrite=True) as stream:
            stream.write(b"{}")
        with file_io.new_input(location).open() as stream:
            assert stream.read() == b"{}"
        file_io.delete(location)
    assert made.fs_by_scheme("file", "").type_name == "local"


def test_credentials_that_a_catalog_lends_go_before_ours(s3_folder: S3Folder) -> None:
    lent = {"s3.access-key-id": "lent", "s3.secret-access-key": "lent", "s3.session-token": "lent"}
    file_io = SettingsFileIO({**s3_folder.options.iceberg_properties(), **lent})
    assert file_io.fs_by_scheme("s3", "lake") is not s3_folder.options.filesystem()
