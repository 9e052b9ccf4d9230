"""Where a pipeline of a test may keep its data: on local files with SQLite, or on S3 with a PostgreSQL catalog."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.servers.postgres import PostgresServer
from deploy.servers.seaweedfs import LAKE_BUCKET, RAW_BUCKET, S3Server
from rollup_assets.settings import load_settings


@dataclass
class Store:
    """One table's own places. ``settings``: those that name them, as arguments of ``load_settings``."""

    raw: Path
    """Where a test lays raw files down; :meth:`upload` brings them to where the pipeline reads them."""
    settings: dict[str, Any]
    s3: S3Server | None = None
    prefix: str = ""
    _uploaded: set[Path] = field(default_factory=set)

    def upload(self) -> None:
        """What was laid down since the last time."""
        if self.s3 is None:
            return
        client = self.s3.client()
        for path in sorted(self.raw.rglob("*")):
            if path.is_file() and path not in self._uploaded:
                client.upload_file(str(path), RAW_BUCKET, f"{self.prefix}/{path.relative_to(self.raw)}")
                self._uploaded.add(path)


def on_files(home: Path) -> Store:
    """Everything below ``home``, SQLite as catalog."""
    return Store(raw=home / "raw_datapoints", settings={"home": str(home)})


def on_servers(home: Path, s3: S3Server, postgres: PostgresServer) -> Store:
    """Raw data in one bucket, stage and warehouse in another, the catalog in a database of its own with a role of its own."""
    from rollup_assets.iceberg.database import initialize

    name = f"t{uuid.uuid4().hex[:12]}"
    password = secrets.token_hex(8)
    postgres.create_role(name, password)
    postgres.create_database(name)
    settings = {
        "home": str(home),
        "raw": f"s3://{RAW_BUCKET}/{name}",
        "stage": f"s3://{LAKE_BUCKET}/{name}/stage",
        "warehouse": f"s3://{LAKE_BUCKET}/{name}/warehouse",
        "s3_endpoint": s3.endpoint,
        "s3_region": s3.region,
        "s3_path_style": True,
        "catalog": postgres.uri(name, name),
        "catalog_password": password,
    }
    initialize(load_settings(**settings, catalog_admin_password=postgres.superuser_password), admin=postgres.superuser)
    return Store(raw=home / "raw", settings=settings, s3=s3, prefix=name)


def credentials(s3: S3Server) -> Iterator[tuple[str, str]]:
    """The variables that AWS's own libraries read, for the pipeline."""
    yield from ((name, value) for name, value in s3.environment.items() if name.startswith("AWS_"))
