"""What every step works with: the settings, and the places, calendar and engine that follow from them; and work on many batches at once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from rollup_assets.batches import Batch, BatchCalendar
from rollup_assets.engines.base import Engine
from rollup_assets.settings import Settings
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.landing_zone import LandingZone
from rollup_assets.storage.manifests import Manifest, Stage
from rollup_assets.threads import thread_pool

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

Item = TypeVar("Item")
Result = TypeVar("Result")
_SIDE_BY_SIDE = 16


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The landing zone, the stage and the engine of one rollup table."""

    settings: Settings
    landing_zone: LandingZone
    stage: Stage
    engine: Engine

    @classmethod
    def from_settings(cls, settings: Settings, spark: Callable[[], SparkSession] | None = None) -> Pipeline:
        """The pipeline that the settings describe.

        Args:
            settings: of the table.
            spark: gives the session of the Spark engine when it is first needed; one is made from the settings unless given.
        """
        return cls(
            settings=settings,
            landing_zone=LandingZone.from_settings(settings),
            stage=Stage(Place.parse(settings.stage, settings.s3)),
            engine=_engine(settings, spark),
        )

    @property
    def calendar(self) -> BatchCalendar:
        """All batches of the table."""
        return self.settings.calendar

    def batch(self, key: str) -> Batch:
        """The batch of a partition key."""
        return self.calendar.batch(key)

    def staged(self, asset: str, key: str) -> Manifest | None:
        """The manifest of a partition that another manifest names; None if it is not staged, or no partition of the present calendar.

        Raises:
            StageCorruptError: it cannot be read.
        """
        batch = self.calendar.find(key)
        return self.stage.read(asset, batch) if batch else None


def for_each(pipeline: Pipeline, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """The function's results for items of one batch each, in order; on remote stores, several items are handled in parallel.

    In a thread pool of its own, as the function may itself request many files at once (``storage.filesystems.in_parallel``).
    """
    if pipeline.stage.root.is_local and pipeline.landing_zone.root.is_local:
        return [function(item) for item in items]
    with thread_pool(max(1, min(_SIDE_BY_SIDE, len(items))), "batches") as threads:
        return list(threads.map(function, items))


def _engine(settings: Settings, spark: Callable[[], SparkSession] | None) -> Engine:
    if settings.engine == "spark":
        from rollup_assets.engines.spark import SparkEngine
        from rollup_assets.engines.spark_session import open_session

        return SparkEngine(spark or functools.partial(open_session, settings), task_memory=settings.spark_task_memory)
    from rollup_assets.engines.local import LocalEngine

    return LocalEngine(threads=settings.threads, memory=settings.memory, scratch=settings.home / "scratch")
