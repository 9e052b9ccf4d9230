"""TLS to the catalog: ``sslmode=verify-full`` with an authority of our own. The wheel's server has none, Debian's does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.servers.certificates import Certificate, certificate
from rollup_assets.errors import CatalogError
from rollup_assets.iceberg.catalog import open_catalog
from rollup_assets.iceberg.database import initialize
from rollup_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer


@dataclass
class Secured:
    server: PostgresServer
    certificate: Certificate
    home: Path

    def settings(self, authority: Path | None = None, host: str = "localhost", mode: str = "verify-full") -> Settings:
        options = f"?sslmode={mode}" + (f"&sslrootcert={authority}" if authority else "")
        uri = self.server.uri("catalog", "runs").replace("127.0.0.1", host) + options
        return load_settings(home=str(self.home), catalog=uri, catalog_password="x", catalog_admin_password=self.server.superuser_password)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    from deploy.servers.postgres import postgres, system_binaries

    if (binaries := system_binaries()) is None:
        pytest.skip("Debian's PostgreSQL is missing; install it with `apt-get install --no-install-recommends postgresql`")
    made = certificate(tmp_path_factory.mktemp("certificates"))
    folder = tmp_path_factory.mktemp("tls")
    with postgres(folder, binaries=binaries, certificate=(made.certificate, made.key)) as server:
        server.create_role("runs", "x")
        server.create_database("catalog")
        found = Secured(server, made, folder / "home")
        initialize(found.settings(made.authority), admin="postgres")
        yield found


def test_a_verified_connection_is_encrypted(secured: Secured) -> None:
    from sqlalchemy import text

    from rollup_assets.iceberg.postgres import engine

    settings = secured.settings(secured.certificate.authority)
    with open_catalog(settings, writing=True) as catalog:
        assert catalog.list_namespaces() == []
    with engine(settings).connect() as connection:
        assert connection.execute(text("select ssl from pg_stat_ssl where pid = pg_backend_pid()")).scalar_one() is True


def test_the_address_in_the_certificate_counts_too(secured: Secured) -> None:
    with open_catalog(secured.settings(secured.certificate.authority, host="127.0.0.1")):
        pass


def test_another_authority_is_refused(secured: Secured, tmp_path: Path) -> None:
    other = certificate(tmp_path).authority
    with (
        pytest.raises(CatalogError, match=r"is not trusted \(.*certificate verify failed\); set sslrootcert in ROLLUP_CATALOG"),
        open_catalog(secured.settings(other)),
    ):
        pass


def test_another_host_name_is_refused(secured: Secured) -> None:
    # The name resolves to this machine, and is not in the certificate.
    settings = secured.settings(secured.certificate.authority, host="localhost.localdomain")
    settings = load_settings(**{**settings.model_dump(), "catalog": settings.catalog + "&hostaddr=127.0.0.1"})
    with (
        pytest.raises(
            CatalogError,
            match=r"is not trusted \(.*does not match host name .*\); set sslrootcert .* and use a host name that the certificate contains",
        ),
        open_catalog(settings),
    ):
        pass


def test_a_missing_authority_is_refused(secured: Secured, tmp_path: Path) -> None:
    with (
        pytest.raises(CatalogError, match=r"is not trusted \(.*missing.pem.*\); set sslrootcert"),
        open_catalog(secured.settings(tmp_path / "missing.pem")),
    ):
        pass


def test_doctor_says_whether_somebody_has_looked_whose_server_it_is(secured: Secured) -> None:
    from rollup_assets.doctor.catalog import catalog

    found = catalog(secured.settings(secured.certificate.authority))
    assert (found.state, found.text.endswith("TLSv1.3, verified")) == ("ok", True), found
    found = catalog(secured.settings(mode="require"))
    assert (found.state, found.remedy) == ("warning", "set sslmode=verify-full in ROLLUP_CATALOG")
