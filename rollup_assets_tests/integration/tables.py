"""Small tables of generated data, the same every time, and what is in them and recorded of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dagster as dg

from rollup_assets.settings import Settings, load_settings


def hours(first: int, last: int) -> list[str]:
    """Partition keys of the first day."""
    return [f"2026-01-01-{count:02d}:00" for count in range(first, last + 1)]


def land(home: Path, count: int) -> tuple[Settings, dict[str, str]]:
    """Settings of a table whose landing zone has so many hours, and the environment that gives the same settings."""
    from rollup_assets.generator.landing import GeneratorOptions, generate

    environment = {"ROLLUP_HOME": str(home), "ROLLUP_SHARDS": "4", "ROLLUP_THREADS": "2", "ROLLUP_MEMORY": "256MiB"}
    settings = load_settings(home=str(home), shards=4, threads=2, memory="256MiB")
    batches = [settings.calendar.batch(key) for key in hours(0, count - 1)]
    generate(settings, batches, GeneratorOptions(seed=7, series=40, interval=60_000, files=2))
    return settings, environment


def rows(settings: Settings) -> list[dict[str, Any]]:
    """Every row of the table."""
    from rollup_assets.iceberg.catalog import open_catalog
    from rollup_assets.iceberg.reading import snapshot_dataset
    from rollup_assets.iceberg.table import load_table

    with open_catalog(settings) as catalog:
        table = load_table(catalog, settings)
        assert table is not None
        found: list[dict[str, Any]] = snapshot_dataset(table).to_table().to_pylist()
    return sorted(found, key=lambda row: (row["resolution"], row["logical_timestamp"], row["id"]))


def recorded(settings: Settings, asset: str) -> dict[str, list[str]]:
    """Data versions by partition, as Dagster has recorded them; raw files' times differ, their content does not."""
    found: dict[str, list[str]] = {}
    with dg.DagsterInstance.local_temp(str(settings.dagster_home)) as instance:
        for record in instance.fetch_materializations(dg.AssetRecordsFilter(dg.AssetKey(asset)), limit=100).records:
            event = record.asset_materialization
            assert event is not None
            assert event.partition is not None
            found.setdefault(event.partition, []).append((event.tags or {})["dagster/data_version"])
    return found
