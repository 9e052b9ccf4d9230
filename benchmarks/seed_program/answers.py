"""Whether the seed's program answered as this project did: compared before times count.

Columns that both define alike are compared by sums of hashes over the rows: for labels between the batch's ends (the label that begins it
has points of the batch before, which only this project merges) count, sum, least, greatest and latest value; averages by their sum.
``delta``: where a value falls, both take the value itself (a reset). The seed's program also does at the first point that it sees of a
series, where we take the step from the batch before, or nothing; so deltas are compared in all rows but the first of each series. Of
partial points: the last point and the open window of every series.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.sites import BATCH_END, BATCH_START

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import duckdb

_SUMS = ("count_rollup", "sum_rollup", "min_rollup", "max_rollup", "latest_rollup")
_OURS_OPEN = "last_timestamp, last_value, count_1m AS count_open, sum_1m AS sum_open, min_1m AS min_open, max_1m AS max_open"
_PARTIAL = ("last_timestamp", "last_value", "count_open", "sum_open", "min_open", "max_open")


def compare(
    theirs: Sequence[str], ours: Sequence[str], their_partial: Sequence[str], our_partial: Sequence[str], scratch: Path
) -> dict[str, Any]:
    """Summary of what the seed's program wrote (data files and partial points), and whether it equals ours.

    ``scratch``: a folder for data that do not fit into memory.
    """
    import duckdb

    db = duckdb.connect(config={"threads": 2, "memory_limit": "4GB", "temp_directory": str(scratch)})
    found, wanted = _rollups(db, theirs), _rollups(db, ours)
    average, wanted_average = found.pop("average_rollup"), wanted.pop("average_rollup")
    close = abs(average - wanted_average) <= 1e-9 * abs(wanted_average)
    first = "SELECT id, min(epoch_ms(logical_timestamp)) AS first_ms FROM read_parquet(?, hive_partitioning = false) GROUP BY id"
    db.execute(f"CREATE TEMP TABLE first AS {first}", [list(theirs)])
    found |= _deltas(db, theirs)
    wanted |= _deltas(db, ours)
    if their_partial or our_partial:
        found["partial_points"] = _partial(db, their_partial, ", ".join(_PARTIAL))
        wanted["partial_points"] = _partial(db, our_partial, _OURS_OPEN)
    return {"found": {**found, "average_rollup": average}, "wanted": wanted, "equal": close and found == wanted}


def _rollups(db: duckdb.DuckDBPyConnection, files: Sequence[str]) -> dict[str, Any]:
    columns = ", ".join(f"sum({name})::VARCHAR" for name in _SUMS)
    row = _row(
        db,
        f"SELECT count(*), sum(average_rollup), {columns}, "
        f"sum(hash(metric_shard_id, id, org_id, metric::VARCHAR, resolution, label_ms, {', '.join(_SUMS)}))::VARCHAR "
        "FROM (SELECT *, epoch_ms(logical_timestamp) AS label_ms FROM read_parquet(?, hive_partitioning = false)) "
        f"WHERE label_ms > {BATCH_START} AND label_ms < {BATCH_END}",
        files,
    )
    return dict(zip(("rows", "average_rollup", *_SUMS, "digest"), row, strict=True))


def _deltas(db: duckdb.DuckDBPyConnection, files: Sequence[str]) -> dict[str, Any]:
    row = _row(
        db,
        "SELECT count(delta_rollup), sum(delta_rollup)::VARCHAR, sum(hash(id, label_ms, delta_rollup))::VARCHAR "
        "FROM (SELECT id, delta_rollup, epoch_ms(logical_timestamp) AS label_ms FROM read_parquet(?, hive_partitioning = false)) "
        f"JOIN first USING (id) WHERE label_ms > first_ms AND label_ms > {BATCH_START} AND label_ms < {BATCH_END}",
        files,
    )
    return dict(zip(("deltas", "delta_rollup", "delta_digest"), row, strict=True))


def _partial(db: duckdb.DuckDBPyConnection, files: Sequence[str], columns: str) -> dict[str, Any]:
    # An empty window has no sum (null) in the seed's program, and a sum of 0 in ours.
    names = ", ".join(f"coalesce({name}, 0)::BIGINT" for name in _PARTIAL)
    row = _row(
        db,
        f"SELECT count(*), sum(count_open)::VARCHAR, sum(hash(metric_shard_id, id, org_id, metric::VARCHAR, {names}))::VARCHAR "
        f"FROM (SELECT metric_shard_id, id, org_id, metric, {columns} FROM read_parquet(?, hive_partitioning = false))",
        files,
    )
    return dict(zip(("series", "open_points", "digest"), row, strict=True))


def _row(db: duckdb.DuckDBPyConnection, query: str, files: Sequence[str]) -> tuple[Any, ...]:
    row = db.execute(query, [list(files)]).fetchone()
    assert row is not None
    return tuple(row)
