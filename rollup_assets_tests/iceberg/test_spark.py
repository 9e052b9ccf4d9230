"""The configuration of Spark SQL: complete, from the settings alone, without a secret. That it works is in `integration/`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rollup_assets.errors import SettingsError
from rollup_assets.iceberg.spark import packages, password_file_line, properties_file, session_properties
from rollup_assets.settings import load_settings

CANARY = "canary-Zw7q"
POSTGRES = "postgresql+psycopg://rollups@db.example:6432/lake"
S3: dict[str, Any] = {
    "warehouse": "s3://lake/warehouse",
    "s3_endpoint": "https://s3.example:9000",
    "s3_region": "eu-west-1",
    "s3_path_style": True,
}


def catalog(properties: dict[str, str], name: str = "rollups") -> dict[str, str]:
    """The catalog's own properties."""
    prefix = f"spark.sql.catalog.{name}."
    return {key.removeprefix(prefix): value for key, value in properties.items() if key.startswith(prefix)}


def test_postgresql_and_s3() -> None:
    found = session_properties(load_settings(catalog=POSTGRES, catalog_name="lake", **S3))
    assert found["spark.sql.catalog.lake"] == "org.apache.iceberg.spark.SparkCatalog"
    assert catalog(found, "lake") == {
        "type": "jdbc",
        "uri": "jdbc:postgresql://db.example:6432/lake",
        "jdbc.user": "rollups",
        "jdbc.ApplicationName": "spark",
        "jdbc.schema-version": "V1",
        "jdbc.init-catalog-tables": "false",
        "warehouse": "s3://lake/warehouse",
        "io-impl": "org.apache.iceberg.aws.s3.S3FileIO",
        "s3.endpoint": "https://s3.example:9000",
        "s3.path-style-access": "true",
        "client.region": "eu-west-1",
        "cache-enabled": "false",
    }
    assert [name.split(":")[1] for name in found["spark.jars.packages"].split(",")] == [
        "iceberg-spark-runtime-4.1_2.13",
        "iceberg-aws-bundle",
        "postgresql",
    ]


def test_tls_parameters_are_those_of_the_python_driver() -> None:
    uri = f"{POSTGRES}?sslmode=verify-full&sslrootcert=/etc/ca.pem&connect_timeout=7&keepalives=1"
    found = catalog(session_properties(load_settings(catalog=uri)))
    assert {name: value for name, value in found.items() if "ssl" in name or "Timeout" in name} == {
        "jdbc.sslmode": "verify-full",
        "jdbc.sslrootcert": "/etc/ca.pem",
        "jdbc.connectTimeout": "7",
    }
    assert "jdbc.keepalives" not in found


def test_local_files_need_no_jar_for_s3_and_rest_none_for_postgresql() -> None:
    assert len(packages(load_settings(catalog=POSTGRES))) == 2
    assert "io-impl" not in catalog(session_properties(load_settings(catalog=POSTGRES)))
    assert [name.split(":")[1] for name in packages(load_settings(catalog="rest+https://host/catalog", **S3))] == [
        "iceberg-spark-runtime-4.1_2.13",
        "iceberg-aws-bundle",
    ]


def test_rest() -> None:
    uri = "rest+https://host/catalog"
    properties = {"scope": "all", "rest.sigv4-enabled": "true", "py-io-impl": "pyiceberg.io.pyarrow.PyArrowFileIO", "warehouse": "lake"}
    found = catalog(session_properties(load_settings(catalog=uri, catalog_properties=properties, catalog_password=CANARY, **S3)))
    assert {name: found[name] for name in ("type", "uri", "warehouse", "scope", "rest.sigv4-enabled", "token")} == {
        "type": "rest",
        "uri": "https://host/catalog",
        "warehouse": "lake",
        "scope": "all",
        "rest.sigv4-enabled": "true",
        "token": "env:ROLLUP_CATALOG_PASSWORD",
    }
    assert "py-io-impl" not in found
    assert "token" not in catalog(session_properties(load_settings(catalog=uri, **S3)))


def test_the_client_of_a_rest_catalog_finds_its_secret_in_the_environment() -> None:
    settings = load_settings(catalog="rest+https://client@host:8181/catalog", catalog_password=CANARY)
    found = catalog(session_properties(settings))
    assert (found["uri"], found["credential"]) == ("https://host:8181/catalog", "env:ICEBERG_REST_CREDENTIAL")
    assert "token" not in found
    assert "client:<secret>" in properties_file(settings)


def test_an_embedded_catalog_is_refused_with_what_can_be_shared() -> None:
    with pytest.raises(SettingsError, match=r"sqlite.*postgresql\+psycopg"):
        session_properties(load_settings())


@pytest.mark.parametrize("uri", [POSTGRES, "rest+https://host/catalog"])
def test_secrets_are_never_in_it(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", CANARY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    assert CANARY not in properties_file(load_settings(catalog=uri, catalog_password=CANARY, **S3))


def test_the_line_of_the_password_file_escapes_what_would_cut_it() -> None:
    assert password_file_line(load_settings(catalog=POSTGRES)) == "db.example:6432:lake:rollups:<password>"
    assert password_file_line(load_settings(catalog="postgresql+psycopg://a%3Ab@[::1]/x")) == r"\:\:1:5432:x:a\:b:<password>"


def test_what_java_needs_for_a_certificate_authority_is_said(tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("-----BEGIN CERTIFICATE-----\n")
    text = properties_file(load_settings(catalog=POSTGRES, s3_ca_bundle=str(authority), **S3))
    assert str(authority) in text
    assert "javax.net.ssl.trustStore" in text


def test_the_command_prints_a_properties_file_or_json(monkeypatch: pytest.MonkeyPatch) -> None:
    from rollup_assets.cli import app

    monkeypatch.setenv("ROLLUP_CATALOG", POSTGRES)
    monkeypatch.setenv("ROLLUP_WAREHOUSE", "s3://lake/warehouse")
    printed = CliRunner().invoke(app, ["spark-conf"])
    assert printed.exit_code == 0
    settings = load_settings()
    assert printed.output == properties_file(settings)
    read_back = dict(line.split(" ", 1) for line in printed.output.splitlines() if not line.startswith("#"))
    assert read_back == session_properties(settings)
    assert json.loads(CliRunner().invoke(app, ["spark-conf", "--json"]).output) == session_properties(settings)


def test_the_command_refuses_an_embedded_catalog_in_one_sentence() -> None:
    from rollup_assets.cli import app

    refused = CliRunner().invoke(app, ["spark-conf"])
    assert refused.exit_code == 2
    assert "ROLLUP_CATALOG" in refused.output
    assert "Traceback" not in refused.output
