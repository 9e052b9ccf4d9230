"""What every step works with: the settings and the places, calendar and engine that follow from them."""

from __future__ import annotations

from dataclasses import dataclass

from rollup_assets.batches import Batch, BatchCalendar
from rollup_assets.engines.base import Engine
from rollup_assets.settings import Settings
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.landing_zone import LandingZone
from rollup_assets.storage.manifests import Stage


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The landing zone, the stage and the engine of one rollup table."""

    settings: Settings
    landing_zone: LandingZone
    stage: Stage
    engine: Engine

    @classmethod
    def from_settings(cls, settings: Settings) -> Pipeline:
        """Everything as the settings say."""
        from rollup_assets.engines.local import LocalEngine

        return cls(
            settings=settings,
            landing_zone=LandingZone(Place.parse(settings.raw), settings.raw_layout, settings.calendar),
            stage=Stage(Place.parse(settings.stage)),
            engine=LocalEngine(threads=settings.threads, memory=settings.memory, scratch=settings.home / "scratch"),
        )

    @property
    def calendar(self) -> BatchCalendar:
        """All batches of the table."""
        return self.settings.calendar

    def batch(self, key: str) -> Batch:
        """The batch of a partition key."""
        return self.calendar.batch(key)
