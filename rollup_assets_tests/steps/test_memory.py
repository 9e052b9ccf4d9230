"""Memory: a batch in one shard, larger than ``ROLLUP_MEMORY``, is staged and rolled up within it, and comes out the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROWS_PER_FILE, FILES, SERIES = 1_000_000, 7, 20_000
START, HOUR = 1_767_225_600_000, 3_600_000
MEMORY = 256 << 20

# Runs both steps on what lies in the second folder; a batch of a few rows in the first one loads and compiles everything before.
PROGRAM = """
import json, sys
from pathlib import Path
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import load_settings
from rollup_assets.steps import sort
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.rollup import roll_up

runs = []
finish = sort._ShardSorter._finish
def counted(self, *arguments):
    runs.append(self.shard)
    return finish(self, *arguments)
sort._ShardSorter._finish = counted

def memory(kind):
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind)).split()[1]) << 10

def process(home):
    pipeline = Pipeline.from_settings(load_settings(home=home, shards=1, threads=2, memory=sys.argv[3]))
    staged = stage_batch(pipeline, pipeline.calendar.first)
    return [staged.repartitioned, staged.partial_points, roll_up(pipeline, pipeline.calendar.first).manifest]

process(sys.argv[1])
before, warm = memory("VmRSS"), len(runs)
manifests = process(sys.argv[2])
print(json.dumps({
    "grown": memory("VmHWM") - before,
    "runs": len(runs) - warm,
    "rows": manifests[0].rows,
    "digests": [manifest.digest for manifest in manifests],
}))
"""


def write_raw(home: Path, files: int, rows: int) -> None:
    """Points of many series, one a second and jittered, in no order at all."""
    folder = home / "raw_datapoints/year=2026/month=01/day=01/hour=00"
    folder.mkdir(parents=True)
    random = np.random.default_rng(7)
    names = pa.array([f"metric-{number}" for number in range(50)])
    for number in range(files):
        ids = random.integers(0, SERIES, rows)
        table = pa.table(
            {
                "id": ids,
                "org_id": ids % 100,
                "metric": pa.DictionaryArray.from_arrays(pa.array((ids % 50).astype(np.int32)), names),
                "logical_timestamp": START + random.integers(0, HOUR, rows),
                "long_value": random.integers(0, 1 << 40, rows),
            }
        )
        pq.write_table(table, folder / f"part-{number}.parquet", row_group_size=250_000, compression="lz4")


def stage_and_roll_up(warm: Path, home: Path, memory: str) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ROLLUP_")}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(warm), str(home), memory],
        env=environment, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_shard_larger_than_memory_stays_within_it_and_comes_out_the_same(tmp_path: Path) -> None:
    """7 M rows took 340 MB with ample memory, and 170 MB in five runs within 256 MiB, of which two tasks share.

    No allowance is needed: what Arrow and the allocator hold is part of what a task reckons with.
    """
    write_raw(tmp_path / "one", FILES, ROWS_PER_FILE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/raw_datapoints").symlink_to(tmp_path / "one/raw_datapoints")
    write_raw(tmp_path / "warm", 1, 1000)

    narrow = stage_and_roll_up(tmp_path / "warm", tmp_path / "one", "256MiB")
    (tmp_path / "warm again").mkdir()
    (tmp_path / "warm again/raw_datapoints").symlink_to(tmp_path / "warm/raw_datapoints")
    ample = stage_and_roll_up(tmp_path / "warm again", tmp_path / "other", "4GiB")

    assert narrow["digests"] == ample["digests"]
    assert narrow["rows"] > 0.99 * FILES * ROWS_PER_FILE
    assert ample["runs"] == 1
    assert narrow["runs"] > 2
    assert narrow["grown"] < MEMORY < ample["grown"]
