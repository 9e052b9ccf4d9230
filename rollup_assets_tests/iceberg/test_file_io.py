"""PyIceberg reaches S3 through the filesystem of our settings, also after a trip to another process."""

from __future__ import annotations

import pickle

import pytest
from pyiceberg.io import load_file_io
from pyiceberg.io.pyarrow import PyArrowFile

from rollup_assets.iceberg.file_io import SettingsFileIO
from rollup_assets.storage.s3 import S3Options
from rollup_assets_tests.s3 import S3Folder, requests


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


def test_a_file_of_metadata_is_one_request_to_read_and_one_to_write(s3_folder: S3Folder) -> None:
    file_io = SettingsFileIO(s3_folder.options.iceberg_properties())
    location = (s3_folder.lake / "snap-1.avro").uri
    s3_folder.lake.exists()
    with requests(s3_folder.options) as seen:
        output = file_io.new_output(location)
        with output.create(overwrite=True) as stream:
            stream.write(b"man")
            stream.write(b"ifest")
        assert len(output) == 8
        for _ in range(3):
            with file_io.new_input(location).open() as stream:
                assert stream.read() == b"manifest"
    # What this process wrote is read back once; manifests never change, so that is enough.
    assert [method for method, _ in seen] == ["PUT", "GET"]


def test_metadata_that_may_be_replaced_is_read_each_time(s3_folder: S3Folder) -> None:
    file_io = SettingsFileIO(s3_folder.options.iceberg_properties())
    location = (s3_folder.lake / "v1.metadata.json").uri
    for content in (b"one", b"another"):
        with file_io.new_output(location).create(overwrite=True) as stream:
            stream.write(content)
        with file_io.new_input(location).open() as stream:
            assert stream.read() == content


def test_metadata_is_never_written_over_unless_asked(s3_folder: S3Folder) -> None:
    file_io = SettingsFileIO(s3_folder.options.iceberg_properties())
    location = (s3_folder.lake / "v2.metadata.json").uri
    with file_io.new_output(location).create() as stream:
        stream.write(b"first")

    def write_again() -> None:
        with file_io.new_output(location).create() as stream:
            stream.write(b"second")

    with pytest.raises(FileExistsError, match=r"v2\.metadata\.json already exists"):
        write_again()
    with file_io.new_input(location).open() as stream:
        assert stream.read() == b"first"


def test_metadata_whose_writing_fails_is_not_there(s3_folder: S3Folder) -> None:
    file_io = SettingsFileIO(s3_folder.options.iceberg_properties())
    location = (s3_folder.lake / "v3.metadata.json").uri

    def fail_half_way() -> None:
        with file_io.new_output(location).create() as stream:
            stream.write(b"half of it")
            raise KeyError("half way")

    with pytest.raises(KeyError, match="half way"):
        fail_half_way()
    assert not file_io.new_input(location).exists()
    with pytest.raises(FileNotFoundError, match=r"v3\.metadata\.json does not exist"):
        file_io.new_input(location).open()
    with pytest.raises(FileNotFoundError, match=r"v3\.metadata\.json does not exist"):
        len(file_io.new_input(location))


def test_lent_credentials_read_metadata_through_pyiceberg(s3_folder: S3Folder) -> None:
    lent = {"s3.access-key-id": "lent", "s3.secret-access-key": "lent", "s3.session-token": "lent"}
    file_io = SettingsFileIO({**s3_folder.options.iceberg_properties(), **lent})
    assert isinstance(file_io.new_input("s3://lake/v1.metadata.json"), PyArrowFile)
    assert isinstance(SettingsFileIO(s3_folder.options.iceberg_properties()).new_input("s3://lake/data.parquet"), PyArrowFile)
