"""Compile the kernels ahead of the first run: ``python -m rollup_assets.precompile``.

numba compiles a kernel when it is first called with arguments of some types, which takes half a minute for all of them, and keeps
the result beside the source (or in ``NUMBA_CACHE_DIR``). Here a few rows of every kind go through the steps in a temporary folder,
so that setting up an environment, or building an image, pays for that and not somebody's first batch.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rollup_assets.batches import Batch
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import load_settings
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.rollup import roll_up

if TYPE_CHECKING:
    import pyarrow as pa

# Packed blocks hold values as 2, 4 or 8 bytes.
_SPREADS = (100, 1_000_000, 10**15)


def precompile(value_type: Literal["long", "double"]) -> None:
    """Run three tiny batches of values of this type through staging and rolling up."""
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory() as home:
        places = {name: f"{home}/{name}" for name in ("raw", "stage", "warehouse")}
        settings = load_settings(
            home=Path(home), **places, catalog=f"sqlite:///{home}/catalog.db", value_type=value_type, shards=2, threads=1, engine="local"
        )
        pipeline = Pipeline.from_settings(settings)
        first = pipeline.calendar.first
        # The third batch is the first that merges what two earlier ones left open.
        last = Batch(first.start + 2 * settings.batch, first.end + 2 * settings.batch)
        for batch in pipeline.calendar.between(first, last):
            folder = Path(pipeline.landing_zone.folder(batch).path)
            folder.mkdir(parents=True)
            for number, spread in enumerate(_SPREADS):
                rows = _rows(batch, settings.value_column, number, spread, plain=batch == first)
                pq.write_table(rows, folder / f"{number}.parquet")
            stage_batch(pipeline, batch)
            roll_up(pipeline, batch)


def _rows(batch: Batch, value_column: str, number: int, spread: int, *, plain: bool) -> pa.Table:
    """Points of a few series: some out of order, some twice and, unless ``plain``, some with changing dimensions or a receive time."""
    import pyarrow as pa

    times = [batch.start, *(batch.end - second * 1_000 for second in (90, 30, 60, 30))]
    ids = [number * 10 + series for series in range(8)]
    rows = [
        {
            "id": series,
            "org_id": 1 + (place if series % 3 == 0 and not plain else 0),
            "metric": "m",
            "logical_timestamp": time,
            value_column: spread * place // 5,
            "receive_timestamp": time + 5 if series % 2 and not plain else None,
        }
        for series in ids
        for place, time in enumerate(times)
    ]
    value = pa.float64() if value_column == "double_value" else pa.int64()
    integers = ("id", "org_id", "logical_timestamp", "receive_timestamp")
    return pa.Table.from_pylist(
        rows, pa.schema([*((name, pa.int64()) for name in integers), ("metric", pa.string()), (value_column, value)])
    )


if __name__ == "__main__":
    precompile("long")
    precompile("double")
