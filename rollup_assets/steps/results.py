"""What the steps return."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rollup_assets.storage.manifests import Manifest


@dataclass(frozen=True, slots=True)
class StagedBatch:
    """Result of staging one batch: three manifests, made together."""

    repartitioned: Manifest
    partial_points: Manifest
    quarantined: Manifest
    unchanged: bool
    """True if inputs, parameters and code were those of the manifests, so that nothing was done."""


@dataclass(frozen=True, slots=True)
class RolledUp:
    """Result of rolling up one batch."""

    manifest: Manifest
    unchanged: bool
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Waiting:
    """A partition that cannot be made yet, which is no error: nothing is published and no row changes."""

    waiting_for: tuple[str, ...]
    """What has to be staged first, e.g. ``partial_points 2026-01-01-08:00``."""

    @property
    def inputs(self) -> tuple[tuple[str, str], ...]:
        """The same as (asset, partition key)."""
        return tuple((asset, key) for asset, key in (name.split() for name in self.waiting_for))

    @property
    def reason(self) -> str:
        """One sentence with the command that ends the waiting."""
        keys = [key for _, key in self.inputs]
        command = f"rollups backfill {min(keys)} {max(keys)}"
        return f"waiting for {', '.join(self.waiting_for)}: raw files are there but not staged; run `{command}`"


@dataclass(frozen=True, slots=True)
class Published:
    """Result of publishing one batch."""

    receipt: Manifest
    snapshot_id: int | None
    """The snapshot that the receipt names; None for an empty batch that never had a row."""
    unchanged: bool
    refused: str | None = None
    """Why these rollups were not published again: they had been rolled back."""


def by_resolution(results: Sequence[object], name: str, resolutions: Sequence[int]) -> dict[str, int]:
    """Sums over the results of tasks, by resolution in ms, as in manifests; ``name``: the results' list by resolution."""
    return {str(resolution): sum(getattr(result, name)[level] for result in results) for level, resolution in enumerate(resolutions)}
