"""Time-series rollups as Dagster assets, published to Apache Iceberg."""

__version__ = "0.1.0"
