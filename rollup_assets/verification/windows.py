"""The rows that points make, in SQL, one resolution at a time: every column of the table from the points of its window.

How points are read and which tables hold them stays out.
"""

from __future__ import annotations

from collections.abc import Sequence

from rollup_assets.batches import Batch
from rollup_assets.settings import Settings

_MASK = "4294967295::UBIGINT"


def expected_rows(batch: Batch, settings: Settings, points: Sequence[str]) -> str:
    """A SELECT of the rows with labels in ``[batch.start, batch.end)`` from the point tables of this batch and the one before it.

    Columns are the table's, with the label in epoch microseconds as ``label``. There are two more, ``sum_error`` and ``delta_error``:
    times the rounding of one addition, they bound how far a sum of doubles may be off if they are added in another order.
    """
    parts = [_windows(batch, settings, points, resolution) for resolution in settings.resolutions]
    return _with_shards("\nUNION ALL\n".join(parts), settings.shards)


def _windows(batch: Batch, settings: Settings, points: Sequence[str], resolution: int) -> str:
    """One row per series and window; sums of integers are exact (128 bits)."""
    wide = "" if settings.value_type == "double" else "::HUGEINT"
    seen = " UNION ALL ".join(f"SELECT * FROM {table} WHERE ts > {batch.start - resolution}" for table in points)
    remainder = f"((ts % {resolution}) + {resolution}) % {resolution}"
    has_step = f"(previous_ts IS NOT NULL AND ts - previous_ts <= {settings.lookback})"
    step = f"(CASE WHEN v >= previous_v THEN v{wide} - previous_v{wide} ELSE v{wide} END)"
    return f"""
        SELECT
            id, {resolution} AS resolution, label_ms * 1000 AS label,
            arg_min(org_id, ts) AS org_id, arg_min(metric, ts) AS metric,
            count(*) AS count_rollup, sum(v) AS sum_rollup, min(v) AS min_rollup, max(v) AS max_rollup,
            sum(v)::DOUBLE / count(*) AS average_rollup, arg_max(v, ts) AS latest_rollup,
            sum({step}) FILTER ({has_step}) AS delta_rollup,
            count(*) FILTER ({has_step} AND v < previous_v) AS resets_rollup,
            (sum({step}) FILTER ({has_step}))::DOUBLE / {resolution / 1000} AS rate_rollup,
            sum(receive::HUGEINT - ts)::DOUBLE / nullif(count(receive), 0) AS lag_rollup,
            count(*) * sum(abs(v::DOUBLE)) AS sum_error,
            count(*) * coalesce(sum(abs(({step})::DOUBLE)) FILTER ({has_step}), 0) AS delta_error
        FROM (SELECT *, CASE WHEN {remainder} = 0 THEN ts ELSE ts - {remainder} + {resolution} END AS label_ms FROM ({seen}))
        WHERE label_ms >= {batch.start} AND label_ms < {batch.end}
        GROUP BY id, label_ms
    """


def _with_shards(rows: str, shards: int) -> str:
    """Add ``metric_shard_id``, Iceberg's bucket: murmur3 (32 bits, seed 0) of the id's eight bytes, little-endian.

    Each line of the hash is a separate subquery, since a nested expression would double in size with every rotation.
    """
    query = f"SELECT *, (id & 4294967295)::UBIGINT AS low, ((id >> 32) & 4294967295)::UBIGINT AS high, 0::UBIGINT AS h FROM ({rows})"
    for word in ("low", "high"):
        for change in (
            f"({word} * 3432918353) & {_MASK} AS {word}",
            f"(({word} << 15) & {_MASK}) | ({word} >> 17) AS {word}",
            f"xor(h, ({word} * 461845907) & {_MASK}) AS h",
            f"((h << 13) & {_MASK}) | (h >> 19) AS h",
            f"(h * 5 + 3864292196) & {_MASK} AS h",
        ):
            query = f"SELECT * REPLACE ({change}) FROM ({query})"
    for change in (
        "xor(h, 8::UBIGINT) AS h",
        "xor(h, h >> 16) AS h",
        f"(h * 2246822507) & {_MASK} AS h",
        "xor(h, h >> 13) AS h",
        f"(h * 3266489909) & {_MASK} AS h",
        "xor(h, h >> 16) AS h",
    ):
        query = f"SELECT * REPLACE ({change}) FROM ({query})"
    return f"SELECT * EXCLUDE (low, high, h), ((h & 2147483647) % {shards})::INTEGER AS metric_shard_id FROM ({query})"
