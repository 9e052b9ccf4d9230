"""Encodings of the files we write, with measurements (36 M points of 100k series, 2 cores; more of it in docs/performance.md).

BYTE_STREAM_SPLIT with a fast codec beats DELTA_BINARY_PACKED for integers that vary, and a dictionary for such columns takes two to
four times as long. PLAIN suits columns that the codec folds: labels, constants, and ids, which come in runs (3.0 ns a row and smaller
than a dictionary's 5.8). Spark 4.1 with Iceberg 1.12, DuckDB, Polars and PyIceberg read both.

A row of rollups takes 80 ns (dense; sparse 74) where it took 102 (107), in 4 % fewer bytes: a column of a row group is one page, not
one for each 20,000 rows (-17 ns); writers get as many values at a time as a page has (-6 ns); only keys have statistics (-7 ns), since
no reader skips a row group by the least sum of a thousand series. Two things cost: a Bloom filter for ids (+6 ns) lets DuckDB and Spark
find the row groups of a series by its id alone, where least and greatest id say nothing; and row groups of 2^16 rows, not 2^17 (+5 ns),
halve what a query for one series reads.

Spark's own Parquet reader refuses BYTE_STREAM_SPLIT, older Iceberg readers both, and so do other readers of parquet-mr's age. For
them the table's data files can be had in PLAIN and RLE_DICTIONARY alone: up to a quarter larger where windows have several points, and no
larger where they have one. Stage files are read by this package alone and stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rollup_assets.iceberg.schema import KEYS
from rollup_assets.storage.parquet import Encoding

ParquetEncoding = Literal["fast", "compatible"]

_SPLIT = "BYTE_STREAM_SPLIT"
_DELTA = "DELTA_BINARY_PACKED"

PARTIAL_POINTS_ROW_GROUP = 1 << 17
DATAPOINTS = Encoding(
    compression="lz4",
    level=None,
    dictionary=("metric",),
    columns={"logical_timestamp": _SPLIT, "long_value": _SPLIT, "double_value": _SPLIT, "receive_timestamp": _SPLIT},
    statistics=False,
    page_rows=1 << 16,
)
DATAPOINTS_ROW_GROUP = 1 << 18

QUARANTINED = Encoding(
    compression="zstd",
    level=1,
    dictionary=("reason", "file", "detail", "metric", "org_id"),
    columns={"row_number": _DELTA},
    statistics=True,
)
QUARANTINED_ROW_GROUP = 1 << 17

ROLLUPS_ROW_GROUP = 1 << 16
ROLLUPS = Encoding(
    compression="zstd",
    level=1,
    dictionary=("metric",),
    columns={
        **dict.fromkeys(
            (
                "org_id",
                "count_rollup",
                "sum_rollup",
                "min_rollup",
                "max_rollup",
                "average_rollup",
                "latest_rollup",
                "delta_rollup",
                "rate_rollup",
                "lag_rollup",
            ),
            _SPLIT,
        ),
        "resets_rollup": _DELTA,
    },
    statistics=KEYS,
    page_rows=ROLLUPS_ROW_GROUP,
    bloom_filters=("id",),
)
ROLLUPS_COMPATIBLE = Encoding(
    compression="zstd",
    level=1,
    # For values that hardly repeat, a dictionary is larger than the values and takes twice as long.
    dictionary=("org_id", "metric", "count_rollup", "resets_rollup"),
    columns={},
    statistics=KEYS,
    page_rows=ROLLUPS_ROW_GROUP,
    bloom_filters=("id",),
)
# 16 to 18 bytes a row where windows have one point, a third more where they have many: 300 to 400 MB a file.
ROLLUPS_FILE_ROWS = 1 << 24


def rollups(encoding: ParquetEncoding) -> Encoding:
    """Encoding of the table's data files, as ``ROLLUP_PARQUET_ENCODING`` says."""
    return ROLLUPS if encoding == "fast" else ROLLUPS_COMPATIBLE


def partial_points(columns: Sequence[str]) -> Encoding:
    """Encoding of partial points, whose integers and doubles, all but the id, depend on the resolutions.

    273 ns a series with DELTA_BINARY_PACKED, and dictionaries for shard and organization; 194 this way, in fewer bytes (10 M series).
    """
    return Encoding(
        compression="zstd",
        level=1,
        dictionary=("metric",),
        columns=dict.fromkeys(columns, _SPLIT),
        statistics=False,
        page_rows=PARTIAL_POINTS_ROW_GROUP,
    )
