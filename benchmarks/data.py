"""The raw points that are measured: deterministic, as a scraper leaves them. Existing data of the same size is used again.

Shapes:

``scrapes`` (dense): every series has a point every 10 s with up to a second of jitter, files hold whole scrapes one after the other, and
within a scrape series come in any order.

``sparse``: every series has one point a minute, so a 1 min row for every point. Each target of 500 series is scraped at its own moment of
the minute, with up to a second of jitter; the series of a scrape share its time. Files follow each other in time; within a minute, targets
come in an order that differs from minute to minute. Half of the metrics are counters, half gauges. Ids look like hashes; if there are more
series than fit a Parquet dictionary (131,072), ids take 8 of the 10.3 bytes a point, while those of ``scrapes`` take 2 of 8.5.

``wide``: as ``sparse``, but three points an hour, so a third as many series as points.

``skewed``: four series (more above 20 M points, so that each point has a millisecond of its own) have 60 % of the points, the others one a
minute; files are in order of time.

``out-of-order``: as ``scrapes``, but 5 % of the batch's points arrive 10 s to 15 min after those that they were measured with.

``doubles``: as ``scrapes``, but float64 values: hundredths, which take all bits of a double.

``fleet``: the project's own generator, with counters, gaps, series that come and go, receive times, 1 % late and 2 % displaced rows, but
nothing to be dropped, since peers are not asked to drop anything.

No point is missing, doubled or quarantined. There are also points of the two hours before, so that the batch takes over open windows of
every series: of their last two minutes, in ``wide`` of their last third, in ``fleet`` of all of them.

``python -m benchmarks.data FOLDER --shape sparse --series 11441379 --files 60 --hour-before`` is the seed's own batch: 686,482,740 points,
and the hour before it in full. It takes less than 1 GiB of memory, however many series there are, and about three CPU minutes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Annotated

import typer

from benchmarks.sites import BATCH_KEY, DESCRIPTION, EARLIER_KEYS, HOUR_MS, Site
from benchmarks.sites import SCRAPES as SCRAPES
from benchmarks.sites import SPARSE as SPARSE

WIDE, SKEWED, OUT_OF_ORDER, DOUBLES, FLEET = "wide", "skewed", "out-of-order", "doubles", "fleet"
SHAPES = (SCRAPES, SPARSE, WIDE, SKEWED, OUT_OF_ORDER, DOUBLES, FLEET)
SCRAPE_MS = 10_000
POINTS_AN_HOUR = {SPARSE: 60, WIDE: 3}
"""Points of a series in an hour; shapes not named here have one every 10 s."""
FILES = 12
_MINUTES_BEFORE = 2
_VERSION = 1


def series_for(rows: int, shape: str = SCRAPES) -> int:
    """How many series have about ``rows`` points in an hour."""
    if shape == SKEWED:
        from benchmarks import points

        return points.hot_series(rows) + points.cool_series(rows)
    return max(1, rows // POINTS_AN_HOUR.get(shape, HOUR_MS // SCRAPE_MS))


def rows_of(shape: str, rows: int) -> int:
    """Points of a shape's batch when other shapes have ``rows``: ``wide`` has five sixths, so with 36 million, 10 million series."""
    return rows * 5 // 6 if shape == WIDE else rows


def generate(site: Site, rows: int, shape: str, *, files: int = FILES, hour_before: bool = False, threads: int = 2) -> None:
    """Write the landing zone of a site unless it exists.

    ``files``: number of the batch's files; only ``sparse``, ``wide`` and ``skewed`` can have another than 12. ``hour_before``: write the
    batch before in full; only for ``sparse``.
    """
    wanted = {"version": _VERSION, "series": series_for(rows, shape), "shape": shape}
    if shape == SPARSE:
        wanted |= {"files": files, "hour_before": hour_before}
    elif files != FILES:
        wanted |= {"files": files}
    made = site.root / DESCRIPTION
    if made.exists() and json.loads(made.read_text()) == wanted:
        return
    shutil.rmtree(site.root, ignore_errors=True)
    site.root.mkdir(parents=True)
    if shape == FLEET:
        _generate_fleet(site, series_for(rows))
    else:
        _write(site, rows, shape, files, hour_before=hour_before, threads=threads)
    made.write_text(json.dumps(wanted))


def _write(site: Site, rows: int, shape: str, files: int, *, hour_before: bool, threads: int) -> None:
    from benchmarks import points

    series = series_for(rows, shape)
    if shape == SPARSE:
        points.write_targets(site, points.Targets(series), _MINUTES_BEFORE, files, hour_before=hour_before, threads=threads)
    elif shape == WIDE:
        points.write_targets(site, points.Targets(series, points.THIRD_MS), 1, files, threads=threads)
    elif shape == SKEWED:
        points.write_hot(site, points.Hot(rows), _MINUTES_BEFORE, files, threads=threads)
    else:
        points.write_scrapes(site, series, late=shape == OUT_OF_ORDER, doubles=shape == DOUBLES)


def _generate_fleet(site: Site, series: int) -> None:
    from rollup_assets.generator.dirt import Dirt
    from rollup_assets.generator.landing import GeneratorOptions, generate
    from rollup_assets.settings import load_settings

    settings = load_settings(home=site.root, raw=str(site.landing_zone))
    batches = [settings.calendar.batch(key) for key in (*EARLIER_KEYS, BATCH_KEY)]
    dirt = Dirt(duplicates=0.0, nulls=0.0, non_finite=0.0, outside=0.0)
    generate(settings, batches, GeneratorOptions(series=series, interval=SCRAPE_MS, files=FILES, dirt=dirt))


def main(
    folder: Annotated[Path, typer.Argument(help="Where the landing zone, and what benchmarks make of it, goes.")],
    shape: Annotated[str, typer.Option(help=f"One of {', '.join(SHAPES)}.")] = SPARSE,
    rows: Annotated[int, typer.Option(help="Points of the batch.")] = 36_000_000,
    series: Annotated[int, typer.Option(help="Instead of rows: how many series; not of a skewed batch.")] = 0,
    files: Annotated[int, typer.Option(help="Files of the batch.")] = FILES,
    hour_before: Annotated[bool, typer.Option("--hour-before", help="The batch before in full, not its last two minutes.")] = False,
    threads: Annotated[int, typer.Option(help="Files that are written at a time.")] = 2,
) -> None:
    """Write the raw points of a benchmark."""
    if shape not in SHAPES or (series and shape == SKEWED):
        raise typer.BadParameter(f"--shape is one of {', '.join(SHAPES)}, and --series not for {SKEWED}")
    wanted = series * POINTS_AN_HOUR.get(shape, HOUR_MS // SCRAPE_MS) if series else rows
    site = Site(folder.resolve())
    generate(site, wanted, shape, files=files, hour_before=hour_before, threads=threads)
    size = sum(Path(path).stat().st_size for path in site.raw_files)
    print(f"{series_for(wanted, shape):,} series, {len(site.raw_files)} files, {size:,} bytes")


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
