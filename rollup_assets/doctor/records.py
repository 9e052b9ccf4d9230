"""Dagster's records of runs."""

from __future__ import annotations

from rollup_assets.doctor.findings import Chain, Check, Found
from rollup_assets.settings import Settings


def chains() -> list[Chain]:
    """A single check, independent of all others."""
    return [Chain((Check("Dagster", dagster, "DAGSTER_HOME and its dagster.yaml"),))]


def dagster(settings: Settings) -> Found:
    """Whether Dagster's records of runs can be opened, if there are any."""
    from rollup_assets.defs.dagster_home import describe_home

    return Found(describe_home(settings))
