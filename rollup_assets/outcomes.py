"""How the partitions of a backfill ended: collected by ``defs.backfill``, printed by commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rollup_assets.storage.manifests import ROLLUP_TABLE


@dataclass(frozen=True, slots=True)
class PartitionOutcome:
    """How one partition of a step ended."""

    partition: str
    assets: tuple[str, ...]
    """The step's assets that the run was asked for, upstream first."""
    waiting: str | None = None
    """Why the partition cannot be made yet, or is not published because it was rolled back."""
    error: Exception | None = None

    @property
    def is_published(self) -> bool:
        """Whether the step published its rollups, or found them published."""
        return ROLLUP_TABLE in self.assets and self.waiting is None and self.error is None


@dataclass(frozen=True, slots=True)
class BackfillResult:
    """What became of each partition; keys in time order."""

    published: tuple[str, ...]
    """Partitions whose rows are in the table as staged, whether or not anything had to be done."""
    waiting: Mapping[str, str]
    """Partition -> what it waits for, or that it was rolled back. Nothing was published for it; this is not a failure."""
    failed: Mapping[str, str]
    """Partition -> why it failed. Partitions that need it failed too, and are listed here with that reason."""
    skipped: tuple[str, ...]
    """Trailing partitions that do not exist yet: their batch has not ended. They are published by a later backfill."""
    runs: tuple[str, ...]
    """Ids of the runs, in order."""
    closed_runs: tuple[str, ...]
    """Runs of killed backfills on this machine that Dagster believed to be running; they were closed."""

    @property
    def success(self) -> bool:
        """Whether no partition failed."""
        return not self.failed
