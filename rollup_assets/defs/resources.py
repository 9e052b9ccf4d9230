"""What the steps need from outside, as Dagster resources: storage, catalog, engine. Plain fields; the steps make the connections.

Dagster shows these fields to everyone who sees the UI, so a secret is here as ``dg.EnvVar``, of which Dagster shows and records the
name. What the settings mean stays out (``rollup_assets.settings``).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import dagster as dg
from pydantic import Field, PrivateAttr

from rollup_assets.settings import Settings

if TYPE_CHECKING:
    from dagster_aws.s3 import S3Resource
    from dagster_pyspark import LazyPySparkResource
    from pyspark.sql import SparkSession

    from rollup_assets.pipeline import Pipeline


class Storage(dg.ConfigurableResource[Any]):
    """Where files lie."""

    raw: str = Field(description="Landing zone, path or URI. Empty: as ROLLUP_RAW says.")
    stage: str = Field(description="Staged assets, path or URI. Empty: as ROLLUP_STAGE says.")
    warehouse: str = Field(description="Iceberg warehouse, path or URI. Empty: as ROLLUP_WAREHOUSE says.")
    s3_endpoint: str = Field(default="", description="URL of the S3 server. Empty: as ROLLUP_S3_ENDPOINT says, else Amazon's.")
    s3_region: str = Field(default="", description="Its region. Empty: as ROLLUP_S3_REGION or the AWS environment says.")
    s3_path_style: bool = Field(default=False, description="endpoint/bucket instead of bucket.endpoint.")
    s3_ca_bundle: str = Field(default="", description="PEM file with the authorities to trust. Empty: as ROLLUP_S3_CA_BUNDLE says.")

    def s3(self) -> S3Resource:
        """A resource for sensors and other Dagster code that list the landing zone on S3; it has the same client as the steps."""
        # Imported here, since dagster_aws takes a second: not while the code location loads.
        from rollup_assets.defs.s3_resource import SettingsS3Resource

        return SettingsS3Resource(
            endpoint_url=self.s3_endpoint or None,
            region_name=self.s3_region or None,
            path_style=self.s3_path_style,
            ca_bundle=self.s3_ca_bundle,
        )


class Catalog(dg.ConfigurableResource[Any]):
    """The Iceberg catalog and the table in it."""

    catalog: str = Field(description="Catalog URI, without a password.")
    catalog_password: str = Field(
        default="", description="Password of its user, as an environment variable only. Empty: as the settings say, which may name a file."
    )
    catalog_name: str = Field(description="Name of the catalog, the same for every engine.")
    table: str = Field(description="namespace.table")
    keep_snapshots: int = Field(description="Most Iceberg snapshots kept; publishing expires the oldest, a tenth more than it must.")


class Engine(dg.ConfigurableResource[Any]):
    """What runs a step's tasks, and with how much."""

    engine: str = Field(description="local: threads of the run's own process. spark: Spark's executors.")
    threads: int = Field(description="Threads of the local engine.")
    memory: int = Field(description="Bytes that the local engine may use for its data.")
    spark_master: str = Field(
        description="Master of the Spark engine's own session. Its other properties are not shown: they may be secret."
    )
    spark_remote: str = Field(description="Spark Connect server to use instead; empty: none.")
    spark_task_memory: int = Field(description="Bytes that one running task may use for its data on a Spark executor.")
    _spark: LazyPySparkResource | None = PrivateAttr(default=None)

    def spark_session(self, settings: Settings) -> SparkSession:
        """The run's session, made when it is first asked for.

        Raises:
            EngineError: something that the session needs is missing.
        """
        # Imported here, since dagster_pyspark takes seconds: not while the code location loads.
        from dagster_pyspark import LazyPySparkResource

        from rollup_assets.engines.spark_session import open_session

        def make(properties: dict[str, str]) -> SparkSession:
            self._spark = self._spark or LazyPySparkResource(spark_config=dict(properties))
            session: SparkSession = self._spark.spark_session
            return session

        return open_session(settings, make)


def resources(settings: Settings) -> dict[str, Any]:
    """The three resources, configured by the settings."""
    return {
        "storage": Storage(
            raw=_shown(settings.raw),
            stage=_shown(settings.stage),
            warehouse=_shown(settings.warehouse),
            s3_endpoint=settings.s3.endpoint,
            s3_region=settings.s3.region,
            s3_path_style=settings.s3.path_style,
            s3_ca_bundle=settings.s3.ca_bundle,
        ),
        "catalog": Catalog(
            catalog=settings.catalog,
            catalog_password=dg.EnvVar(variable) if (variable := settings.catalog_password_variable) else "",
            catalog_name=settings.catalog_name,
            table=settings.table,
            keep_snapshots=settings.keep_snapshots,
        ),
        "engine": Engine(
            engine=settings.engine,
            threads=settings.threads,
            memory=settings.memory,
            spark_master=settings.spark_master,
            spark_remote=settings.spark_remote,
            spark_task_memory=settings.spark_task_memory,
        ),
    }


def pipeline(settings: Settings, storage: Storage, catalog: Catalog, engine: Engine) -> Pipeline:
    """The steps' pipeline: from the settings, with the resources' values in place of their own.

    Raises:
        SettingsError: a resource's value is not a valid setting.
    """
    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import load_settings

    fields = {"storage": storage, "catalog": catalog, "engine": engine}
    overrides = {
        name: value
        for resource in fields.values()
        for name, value in resource.model_dump(include=set(Settings.model_fields)).items()
        # In a step, Dagster has replaced environment variables by their values; elsewhere the settings have these.
        if value != "" and not isinstance(value, dg.EnvVar)
    }
    chosen = load_settings(**{**settings.model_dump(), **overrides})
    return Pipeline.from_settings(chosen, spark=functools.partial(engine.spark_session, chosen))


def _shown(location: str) -> str:
    parts = urlsplit(location)
    return "" if parts.password or "password=" in parts.query else location
