"""Where a benchmark's data lies: the raw hour, our homes, and what the peers write. Paths only; the standard library alone.

A site is one size of data. The measured one and a small one for warming up have the same layout, so every contender runs on either.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

HOUR_MS = 3_600_000
# Shapes of points (benchmarks/data.py has them all): dense and sparse.
SCRAPES, SPARSE = "scrapes", "sparse"
# 2026-01-01 00:00 UTC is the first batch of the default settings.
EPOCH_MS = 1_767_225_600_000
BATCH_HOUR = 5
BATCH_KEY = "2026-01-01-05:00"
BATCH_START = EPOCH_MS + BATCH_HOUR * HOUR_MS
BATCH_END = BATCH_START + HOUR_MS
EARLIER_KEYS = ("2026-01-01-03:00", "2026-01-01-04:00")
"""The two batches before: the windows that they leave open are merged into the batch, as in every batch but a table's first."""

SERIES_COLUMNS = ("id", "org_id", "metric", "logical_timestamp")
RECEIVED = "receive_timestamp"
DESCRIPTION = "data.json"
"""Says what data a site has; written last."""

RESOLUTIONS = {"home-3": "1m,5m,1h", "home-1": "1m"}
THREE, ONE = RESOLUTIONS
_STAGED = ("repartitioned_datapoints", "partial_points", "quarantined_datapoints")


@dataclass(frozen=True, slots=True)
class Site:
    """The folders of one size of data."""

    root: Path

    @property
    def landing_zone(self) -> Path:
        """The landing zone."""
        return self.root / "raw_datapoints"

    def raw_folder(self, key: str) -> Path:
        """The landing zone's folder of a batch, in the default layout."""
        year, month, day, time = key.split("-")
        return self.landing_zone / f"year={year}" / f"month={month}" / f"day={day}" / f"hour={time[:2]}"

    @property
    def raw_files(self) -> list[str]:
        """Raw files of the batch that is measured, in order."""
        return sorted(str(path) for path in self.raw_folder(BATCH_KEY).glob("*.parquet"))

    @property
    def point_columns(self) -> tuple[str, ...]:
        """Columns of raw and sorted points."""
        return (*SERIES_COLUMNS, self.value_column, *([RECEIVED] if self._shape == "fleet" else []))

    @property
    def value_column(self) -> str:
        """The column of the points' values."""
        return "double_value" if self._shape == "doubles" else "long_value"

    @property
    def _shape(self) -> str:
        return str(json.loads((self.root / DESCRIPTION).read_text())["shape"])

    def home(self, name: str) -> Path:
        """``ROLLUP_HOME`` of ``home-3`` (three resolutions) or ``home-1`` (one)."""
        return self.root / name

    @property
    def sorted_files(self) -> list[str]:
        """The batch's staged shard files: what peers and floor read as sorted points."""
        folder = self.home(THREE) / "stage" / "repartitioned_datapoints" / _folder(BATCH_KEY)
        # If the engine may try a task again, each task has a folder below the attempt's.
        return [str(path) for path in sorted(folder.rglob("shard-*.parquet"), key=lambda path: path.name)]

    def rollup_files(self, home: str) -> list[str]:
        """The data files of the batch's rollups in a home, all resolutions, in order."""
        return sorted(str(path) for path in self._data(home).glob(f"*/*/{_folder(BATCH_KEY)}-*.parquet"))

    @property
    def sorted_for_spark(self) -> Path:
        """A copy of the sorted points in encodings that Spark's own reader takes."""
        return self.root / "sorted-for-spark"

    @property
    def sorted_files_for_spark(self) -> list[str]:
        """The files of that copy, if it was made."""
        return sorted(str(path) for path in self.sorted_for_spark.glob("*.parquet"))

    @property
    def output(self) -> Path:
        """Where peers and floor write."""
        return self.root / "output"

    def _data(self, home: str) -> Path:
        return self.home(home) / "warehouse" / "metrics" / "rollups" / "data"

    def _published(self, home: str) -> list[Path]:
        return [self.home(home) / "catalog.db", self.home(home) / "warehouse" / "metrics" / "rollups" / "metadata"]

    def save_published(self, home: str) -> None:
        """Save the table as it is now, without the batch."""
        saved = self.root / f"{home}-table"
        shutil.rmtree(saved, ignore_errors=True)
        saved.mkdir()
        for path in self._published(home):
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, saved / path.name)

    def forget(self, home: str, *steps: str) -> None:
        """Undo steps of the batch (``repartition``, ``rollups``, ``publish``), so that they can be done as for the first time."""
        stage, folder = self.home(home) / "stage", _folder(BATCH_KEY)
        if "repartition" in steps:
            for asset in _STAGED:
                shutil.rmtree(stage / asset / folder, ignore_errors=True)
        if "rollups" in steps:
            shutil.rmtree(stage / "rollups" / folder, ignore_errors=True)
            for file in self.rollup_files(home):
                os.remove(file)  # noqa: PTH107 - these are strings, for the engines' sake
        if "publish" in steps:
            shutil.rmtree(stage / "rollup_table" / folder, ignore_errors=True)
            self.restore_published(home)

    def restore_published(self, home: str) -> None:
        """Restore the table that was saved, if one was."""
        for path in self._published(home):
            saved = self.root / f"{home}-table" / path.name
            if not saved.exists():
                continue
            if path.is_dir():
                shutil.rmtree(path)
            (shutil.copytree if saved.is_dir() else shutil.copy2)(saved, path)

    def clear_output(self) -> None:
        """Empty the output folder for the next run."""
        shutil.rmtree(self.output, ignore_errors=True)
        self.output.mkdir(parents=True)


def _folder(key: str) -> str:
    return key.replace(":", "")
