"""The raw points that are measured: deterministic, as a scraper leaves them. Existing data of the same size is used again.

Two shapes. ``scrapes``: every series has a point every 10 s with up to a second of jitter, files hold whole scrapes one after the
other, and within a scrape series come in any order; nothing is late, missing or doubled. ``fleet``: the project's own generator, with
counters, gaps, series that come and go, receive times, 1 % late and 2 % displaced rows, but nothing to be dropped, since peers are
not asked to drop anything.

The two hours before (``scrapes``: their last two minutes) are there too, so that the batch takes over open windows of every series.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from benchmarks.sites import BATCH_KEY, DESCRIPTION, EARLIER_KEYS, EPOCH_MS, HOUR_MS, Site

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCRAPE_MS = 10_000
SCRAPES = HOUR_MS // SCRAPE_MS
FILES = 12
SCRAPES_BEFORE = 12
METRICS = 500
ORGS = 97
_VERSION = 1


def series_for(rows: int) -> int:
    """How many series have about ``rows`` points in an hour."""
    return max(1, rows // SCRAPES)


def generate(site: Site, rows: int, shape: str) -> None:
    """Write the landing zone of a site unless it is there."""
    wanted = {"version": _VERSION, "series": series_for(rows), "shape": shape}
    made = site.root / DESCRIPTION
    if made.exists() and json.loads(made.read_text()) == wanted:
        return
    shutil.rmtree(site.root, ignore_errors=True)
    site.root.mkdir(parents=True)
    (_generate_scrapes if shape == "scrapes" else _generate_fleet)(site, series_for(rows))
    made.write_text(json.dumps(wanted))


def _generate_scrapes(site: Site, series: int) -> None:
    for number, key in enumerate((*EARLIER_KEYS, BATCH_KEY)):
        folder = site.raw_folder(key)
        folder.mkdir(parents=True)
        start = EPOCH_MS + int(key[11:13]) * HOUR_MS
        first = 0 if key == BATCH_KEY else SCRAPES - SCRAPES_BEFORE
        files = FILES if key == BATCH_KEY else 1
        scrapes = (SCRAPES - first) // files
        for file in range(files):
            _write_scrapes(
                str(folder / f"raw-{file:03d}.parquet"), series, start + (first + file * scrapes) * SCRAPE_MS, scrapes, [number, file]
            )


def _write_scrapes(path: str, series: int, start: int, scrapes: int, seed: list[int]) -> None:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(seed)
    # Multiplying by an odd number permutes the integers: distinct ids that look like hashes, as ids of series do.
    ids = (np.arange(1, series + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(1)).astype(np.int64)
    names = pa.array([f"service.metric.name.{number}" for number in range(METRICS)])
    metrics = (ids % METRICS).astype(np.int32)
    values = 1_000 + np.cumsum(rng.integers(-5, 6, size=(scrapes, series), dtype=np.int64), axis=0) + _level(ids)
    tables = []
    for scrape in range(scrapes):
        order = rng.permutation(series)
        columns = {
            "id": ids[order],
            "org_id": ids[order] % ORGS,
            "metric": pa.DictionaryArray.from_arrays(pa.array(metrics[order]), names),
            "logical_timestamp": start + scrape * SCRAPE_MS + rng.integers(0, 1_000, size=series),
            "long_value": values[scrape][order],
        }
        tables.append(pa.table(columns))
    pq.write_table(pa.concat_tables(tables), path, compression="zstd")


def _level(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Series lie at different heights, from a hundred to a million."""
    import numpy as np

    return (10.0 ** (2 + ids % 1_000 / 250)).astype(np.int64)


def _generate_fleet(site: Site, series: int) -> None:
    from rollup_assets.generator.dirt import Dirt
    from rollup_assets.generator.landing import GeneratorOptions, generate
    from rollup_assets.settings import load_settings

    settings = load_settings(home=site.root, raw=str(site.landing_zone))
    batches = [settings.calendar.batch(key) for key in (*EARLIER_KEYS, BATCH_KEY)]
    dirt = Dirt(duplicates=0.0, nulls=0.0, non_finite=0.0, outside=0.0)
    generate(settings, batches, GeneratorOptions(series=series, interval=SCRAPE_MS, files=FILES, dirt=dirt))
