"""Dagster's S3 resource, with the same settings of the store as everything else here.

``dagster_aws.s3.S3Resource`` has no field for path style, and takes a CA bundle from the environment only. Importing it takes a
second: only ``Storage.s3`` does, when somebody asks. What is listed stays out.
"""

from __future__ import annotations

from typing import Any

from dagster_aws.s3 import S3Resource
from pydantic import Field

from rollup_assets.storage.s3 import S3Options


class SettingsS3Resource(S3Resource):
    """An ``S3Resource`` with the client of our settings; credentials come from the AWS environment, profile or role."""

    path_style: bool = Field(default=False, description="endpoint/bucket instead of bucket.endpoint.")
    ca_bundle: str = Field(default="", description="PEM file with the authorities to trust; empty: the system's.")

    def get_client(self) -> Any:
        """The process's boto3 client."""
        return S3Options(self.endpoint_url or "", self.region_name or "", self.path_style, self.ca_bundle).client()
