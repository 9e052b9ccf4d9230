"""A code location on a temporary home, with the steps in miniature, and what Dagster recorded of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleStatus
from dagster._core.loader import LoadingContextForTest

from rollup_assets.definitions import build_definitions
from rollup_assets.defs.partitions import RANGE_END, RANGE_START
from rollup_assets.defs.report import Watcher
from rollup_assets.outcomes import PartitionOutcome
from rollup_assets.settings import Settings, load_settings
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS
from rollup_assets_tests.defs import fake_steps

STAGING = (REPARTITIONED, PARTIAL_POINTS, QUARANTINED)
PUBLISHING = (ROLLUPS, ROLLUP_TABLE)


def hour(count: int) -> str:
    """Partition key of an hour of the first day."""
    return f"2026-01-01-{count:02d}:00"


@dataclass
class Lab:
    """One code location, one Dagster instance, and shorthands for what happens in them."""

    settings: Settings
    instance: dg.DagsterInstance
    outcomes: list[PartitionOutcome] = field(default_factory=list)

    @property
    def defs(self) -> dg.Definitions:
        return build_definitions(self.settings, watcher=Watcher(on_partition=self.outcomes.append))

    def land(self, contents: Mapping[int, int | str]) -> None:
        for count, content in contents.items():
            fake_steps.land(self.settings, hour(count), content)

    def run(self, first: int, last: int | None = None, assets: Sequence[str] = (), *, force: bool = False) -> dg.ExecuteInProcessResult:
        """A run of the job over one hour, or over a range of hours."""
        steps = {"stage_datapoints": STAGING, "roll_up_and_publish": PUBLISHING}
        chosen = [step for step, its in steps.items() if not assets or set(its) & set(assets)]
        config = {"ops": {step: {"config": {"force": force}} for step in chosen}} if force else {}
        tags = {RANGE_START: hour(first), RANGE_END: hour(last)} if last is not None else {}
        return self.defs.resolve_job_def("batches").execute_in_process(
            instance=self.instance,
            raise_on_error=False,
            run_config=config,
            asset_selection=[dg.AssetKey(asset) for asset in assets] or None,
            tags=tags,
            **({} if last is not None else {"partition_key": hour(first)}),
        )

    def events(self, asset: str, count: int | None = None) -> list[dg.AssetMaterialization]:
        """Materializations of an asset, or of one hour of it; latest first."""
        wanted = dg.AssetRecordsFilter(dg.AssetKey(asset), asset_partitions=None if count is None else [hour(count)])
        records = self.instance.fetch_materializations(wanted, limit=1000).records
        return [record.asset_materialization for record in records if record.asset_materialization]

    def evaluations(self, asset: str, check: str, count: int) -> list[dg.AssetCheckEvaluation]:
        """Evaluations of a check for one hour; latest first."""
        found = []
        for record in self.instance.fetch_run_status_changes(dg.DagsterEventType.RUN_START, limit=1000).records:
            for event in self.instance.all_logs(record.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION):
                evaluation: Any = event.dagster_event.event_specific_data if event.dagster_event else None
                if evaluation and (evaluation.asset_key.to_user_string(), evaluation.check_name, evaluation.partition) == (
                    asset,
                    check,
                    hour(count),
                ):
                    found.append(evaluation)
        return found

    def stale(self, first: int, last: int) -> set[tuple[str, int]]:
        """(asset, hour) of everything that the UI would mark as stale; what was never materialized is not.

        The UI's own resolver: Dagster offers no public way to ask.
        """
        resolver = CachingStaleStatusResolver(self.instance, self.defs.resolve_asset_graph(), LoadingContextForTest(self.instance))
        return {
            (asset, count)
            for asset in (*STAGING, *PUBLISHING)
            for count in range(first, last + 1)
            if resolver.get_status(dg.AssetKey(asset), hour(count)) == StaleStatus.STALE
        }


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A lab with the miniature steps."""
    fake_steps.install(monkeypatch)
    with dg.DagsterInstance.ephemeral() as instance:
        yield Lab(load_settings(home=str(tmp_path), threads=1, memory="256MiB"), instance)
