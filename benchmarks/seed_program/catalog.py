"""The PostgreSQL server that the seed's program and this project both commit to, as in production: a commit is on the disk.

Databases are made from a prepared one, so that each run finds the table as it was before the batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deploy.servers.postgres import PostgresServer

_ROLE = "runs"
_PASSWORD = "of a server that ends with the benchmark"


@dataclass(frozen=True, slots=True)
class CatalogServer:
    """A running server; with ``environment``, Python and Java processes can log in as ``runs``."""

    server: PostgresServer
    environment: dict[str, str]
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def empty(self, name: str) -> str:
        """URI of a new database with an empty catalog."""
        from rollup_assets.iceberg.database import initialize
        from rollup_assets.settings import load_settings

        self.server.create_database(name)
        uri = self.server.uri(name, _ROLE)
        admin = load_settings(catalog=uri, catalog_password=_PASSWORD, catalog_admin_password=self.server.superuser_password)
        initialize(admin, admin=self.server.superuser)
        return uri

    def copy_of(self, name: str) -> str:
        """URI of a new database with a copy of another's catalog; nothing may be connected to that one."""
        copy = f"{name}_{next(self._numbers)}"
        self.server.execute(f"create database {copy} template {name}")
        # The right to connect is the one grant that is not copied.
        self.server.execute(f"grant connect on database {copy} to {_ROLE}")
        return self.server.uri(copy, _ROLE)

    def drop(self, uri: str) -> None:
        """Delete a database, ending what is connected to it."""
        self.server.execute(f"drop database if exists {uri.rpartition('/')[2]} with (force)")


@contextmanager
def catalog_server(folder: Path) -> Iterator[CatalogServer]:
    """A server in an empty folder, until the block ends."""
    from deploy.servers.postgres import postgres

    with postgres(folder / "postgres", durable=True) as server:
        server.create_role(_ROLE, _PASSWORD)
        passwords = folder / "pgpass"
        passwords.touch(mode=0o600)
        passwords.write_text(f"{server.host}:{server.port}:*:{_ROLE}:{_PASSWORD}\n")
        yield CatalogServer(server, {"ROLLUP_CATALOG_PASSWORD": _PASSWORD, "PGPASSFILE": str(passwords)})
