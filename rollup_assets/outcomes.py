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
    """Why the partition cannot be made yet."""
    error: Exception | None = None

    @property
    def is_published(self) -> bool:
        """Whether its rollups are in the table."""
        return ROLLUP_TABLE in self.assets and self.waiting is None and self.error is None


@dataclass(frozen=True, slots=True)
class BackfillResult:
    """What became of each partition; keys in time order."""

    published: tuple[str, ...]
    """In the table as staged, whether or not anything had to be done."""
    waiting: Mapping[str, str]
    """Partition -> what it waits for. Nothing was published; this is no failure."""
    failed: Mapping[str, str]
    """Partition -> why. Everything that needs it failed too, and says so."""
    skipped: tuple[str, ...]
    """Trailing partitions that do not exist yet: their batch has not ended. They are published by a later backfill."""
    runs: tuple[str, ...]
    """Ids of the runs, in order."""
    closed_runs: tuple[str, ...]
    """Runs of killed backfills of this machine, which Dagster believed to be going on."""

    @property
    def success(self) -> bool:
        """Whether no partition failed."""
        return not self.failed
