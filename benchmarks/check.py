"""Whether contenders answered the same: compared before times count."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.contenders import OURS, REPARTITION, ROLLUPS_1M
from benchmarks.sites import BATCH_END, BATCH_START, ONE, THREE, Site

if TYPE_CHECKING:
    import duckdb

_SUMS = ("count_rollup", "sum_rollup", "min_rollup", "max_rollup", "latest_rollup")


def check(site: Site, contender: dict[str, str]) -> dict[str, Any]:
    """Summary of what the contender has just written, and whether it equals ours.

    Rollups: labels after the batch's start, since we alone merge the window labelled with it with earlier batches. The digest is a
    sum of hashes over the rows, whatever their order: of all columns that both have but the average, which is compared by its sum.
    """
    import duckdb

    db = duckdb.connect(config={"threads": 2})
    if contender["task"] == REPARTITION:
        found = _points(
            db, [str(path) for path in site.output.glob("sorted*.parquet")] if contender["engine"] != OURS else site.sorted_files
        )
        wanted = _points(db, site.raw_files)
        in_order = contender["engine"] == OURS or _in_order(site)
        return {"found": found, "equal": found == wanted and in_order}
    if contender["engine"] != OURS:
        found = _rollups(db, [str(path) for path in site.output.glob("rollups*.parquet")], "label")
    else:
        found = _rollups(db, _one_minute(site, ONE if contender["task"] == ROLLUPS_1M else THREE), "epoch_ms(logical_timestamp)")
    wanted = _rollups(db, _one_minute(site, THREE), "epoch_ms(logical_timestamp)")
    same_average = abs(found["average_rollup"] - wanted["average_rollup"]) <= 1e-9 * abs(wanted["average_rollup"])
    return {"found": found, "equal": same_average and {**found, "average_rollup": 0} == {**wanted, "average_rollup": 0}}


def _one_minute(site: Site, home: str) -> list[str]:
    return [path for path in site.rollup_files(home) if "/resolution=60000/" in path]


def _points(db: duckdb.DuckDBPyConnection, files: list[str]) -> dict[str, Any]:
    row = db.execute(
        "SELECT count(*), sum(long_value), sum(hash(id, org_id, metric::VARCHAR, logical_timestamp, long_value)) FROM read_parquet(?)",
        [files],
    ).fetchone()
    assert row is not None
    return {"rows": row[0], "long_value": str(row[1]), "digest": str(row[2])}


def _rollups(db: duckdb.DuckDBPyConnection, files: list[str], label: str) -> dict[str, Any]:
    columns = [f"sum({name})::VARCHAR" for name in _SUMS]
    digest = f"sum(hash(id, org_id, metric::VARCHAR, label_ms, {', '.join(_SUMS)}))::VARCHAR"
    row = db.execute(
        f"SELECT count(*), sum(average_rollup), {', '.join(columns)}, {digest} "
        f"FROM (SELECT *, {label}::BIGINT AS label_ms FROM read_parquet(?, hive_partitioning = false)) "
        f"WHERE label_ms > {BATCH_START} AND label_ms < {BATCH_END}",
        [files],
    ).fetchone()
    assert row is not None
    return {"rows": row[0], "average_rollup": row[1], **dict(zip(_SUMS, row[2:-1], strict=True)), "digest": row[-1]}


def _in_order(site: Site) -> bool:
    """Whether a peer's sorted file is in order: shard, metric, org, id, time."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    names: set[str] = set()
    for raw in site.raw_files:
        names.update(pq.read_table(raw, columns=["metric"], read_dictionary=["metric"]).column("metric").unique().to_pylist())
    in_order = pa.array(sorted(names))
    last: tuple[int, ...] = ()
    for path in sorted(site.output.glob("sorted*.parquet")):
        # Not as a dictionary: DuckDB's, of an enum, has entries twice, which confuses Arrow.
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            rank = pc.index_in(table.column("metric"), value_set=in_order).to_numpy()
            ids, orgs, times = (table.column(name).to_numpy() for name in ("id", "org_id", "logical_timestamp"))
            keys = [ids & 15, rank, orgs, ids, times]
            first = tuple(int(key[0]) for key in keys)
            after = np.zeros(len(ids) - 1, np.bool_)
            for key in reversed(keys):
                after = (key[1:] > key[:-1]) | ((key[1:] == key[:-1]) & after)
            if not after.all() or first <= last:
                return False
            last = tuple(int(key[-1]) for key in keys)
    return True
