"""Makes the stored state of an older version: ``python -m rollup_assets_tests.faults.old_state FILE`` with that version's package first in
PYTHONPATH.

Raw files, stage, warehouse and catalog of three small batches, the last of which is staged but not published, as one archive. Iceberg
knows its files by absolute paths, so it is made, and later unpacked, in one folder that is the same everywhere.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

HOME = Path("/tmp/rollups-old-state")
SETTINGS: dict[str, Any] = {"home": str(HOME), "shards": 2, "threads": 1, "memory": "256MiB", "resolutions": "5m,1h", "batch": "1h"}
BATCHES = 3
SERIES = (-5, 7)


def make() -> None:
    """Everything, in ``HOME``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from rollup_assets.pipeline import Pipeline
    from rollup_assets.settings import load_settings
    from rollup_assets.steps.publish import publish
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.rollup import roll_up

    pipeline = Pipeline.from_settings(load_settings(**SETTINGS))
    rng = random.Random(8)
    for number in range(BATCHES):
        batch = pipeline.calendar.shifted(pipeline.calendar.first, number)
        assert batch is not None
        times = [batch.start + rng.randrange(0, 3_600_000, 1000) for _ in range(12)]
        rows = [(series, 1, "m", time, rng.randrange(1000)) for series in SERIES for time in times]
        names = ("id", "org_id", "metric", "logical_timestamp", "long_value")
        file = Path(pipeline.landing_zone.folder(batch).path) / "a.parquet"
        file.parent.mkdir(parents=True)
        pq.write_table(pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))), file)
        # Whole seconds, which an archive keeps.
        os.utime(file, (1_767_225_600, 1_767_225_600))
        stage_batch(pipeline, batch)
        roll_up(pipeline, batch)
        if number < BATCHES - 1:
            publish(pipeline, batch)


def main() -> None:
    """Entry point."""
    shutil.rmtree(HOME, ignore_errors=True)
    try:
        make()
        shutil.rmtree(HOME / "scratch", ignore_errors=True)
        with tarfile.open(sys.argv[1], "w:xz") as archive:
            archive.add(HOME, HOME.name)
    finally:
        shutil.rmtree(HOME, ignore_errors=True)


if __name__ == "__main__":
    main()
