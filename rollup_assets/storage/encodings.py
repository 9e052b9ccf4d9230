"""Encodings of the files we write, with what was measured (36 M points of 100k series, 2 cores).

BYTE_STREAM_SPLIT with a fast codec beats DELTA_BINARY_PACKED for sparse integers (20.4 ns and 2.08 B -> 11.5 ns and 1.09 B a value)
and ties when dense; a dictionary for such columns takes two to four times as long. PLAIN suits columns that zstd folds, labels and
constants. Spark 4.1 with Iceberg 1.12, DuckDB, Polars and PyIceberg read both.

Spark's own Parquet reader refuses BYTE_STREAM_SPLIT, older Iceberg readers both, and so do other readers of parquet-mr's age. For
them the table's data files can be had in PLAIN and RLE_DICTIONARY alone: by a fifth larger where windows have several points, as
large where they have one. Stage files are read by this package alone and stay as they are.
"""

from __future__ import annotations

from typing import Literal

from rollup_assets.storage.parquet import Encoding

ParquetEncoding = Literal["fast", "compatible"]

_SPLIT = "BYTE_STREAM_SPLIT"
_DELTA = "DELTA_BINARY_PACKED"

DATAPOINTS = Encoding(
    compression="lz4",
    level=None,
    dictionary=("id", "org_id", "metric"),
    columns={"logical_timestamp": _SPLIT, "long_value": _SPLIT, "double_value": _SPLIT, "receive_timestamp": _SPLIT},
    statistics=False,
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

ROLLUPS = Encoding(
    compression="zstd",
    level=1,
    dictionary=("id", "org_id", "metric"),
    columns={
        **dict.fromkeys(
            ("sum_rollup", "min_rollup", "max_rollup", "average_rollup", "latest_rollup", "delta_rollup", "rate_rollup", "lag_rollup"),
            _SPLIT,
        ),
        "count_rollup": _DELTA,
        "resets_rollup": _DELTA,
    },
    statistics=True,
)
ROLLUPS_COMPATIBLE = Encoding(
    compression="zstd",
    level=1,
    # A dictionary of values that hardly repeat is larger than the values and takes twice as long.
    dictionary=("id", "org_id", "metric", "count_rollup", "resets_rollup"),
    columns={},
    statistics=True,
)
ROLLUPS_ROW_GROUP = 1 << 17
# 16 to 18 bytes a row where windows have one point, a third more where they have many: 300 to 400 MB a file.
ROLLUPS_FILE_ROWS = 1 << 24


def rollups(encoding: ParquetEncoding) -> Encoding:
    """Encoding of the table's data files, as ``ROLLUP_PARQUET_ENCODING`` says."""
    return ROLLUPS if encoding == "fast" else ROLLUPS_COMPATIBLE


def partial_points(value_columns: list[str], other_columns: list[str]) -> Encoding:
    """Encoding of partial points, whose columns depend on the resolutions."""
    return Encoding(
        compression="zstd",
        level=1,
        dictionary=("metric", "org_id", "metric_shard_id"),
        columns={**dict.fromkeys(value_columns, _SPLIT), **dict.fromkeys(other_columns, _DELTA)},
        statistics=False,
    )


PARTIAL_POINTS_ROW_GROUP = 1 << 17
