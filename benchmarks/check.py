"""Whether contenders answered the same: compared before times count."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.contenders import OWN, REPARTITION, ROLLUPS_1M, SPARK
from benchmarks.sites import BATCH_END, BATCH_START, ONE, RECEIVED, THREE, Site

if TYPE_CHECKING:
    import duckdb

# Doubles are hundredths: those that a sum misses by rounding, in whatever order it was made, are found again.
_EXACT = {"long_value": "{0}", "double_value": "round({0} * 100)::BIGINT"}
_SUMS = ("count_rollup", "sum_rollup", "min_rollup", "max_rollup", "latest_rollup")


def check(site: Site, contender: dict[str, str]) -> dict[str, Any]:
    """Summary of what the contender has just written, and whether it equals ours.

    Rollups: labels after the batch's start, since we alone merge the window labelled with it with earlier batches. The digest is a
    sum of hashes over the rows, whatever their order: of all columns that both have but quotients, which are compared by their sums.
    """
    import duckdb

    db = duckdb.connect(config={"threads": 2})
    if contender["task"] == REPARTITION:
        columns = ", ".join(name for name in site.point_columns if name != "metric")
        own, each = contender["engine"] in OWN, contender["engine"] == SPARK
        written = sorted(site.output.glob("sorted/part-*.parquet" if each else "sorted*.parquet"))
        found = _points(db, site, columns, site.sorted_files if own else [str(path) for path in written])
        wanted = _points(db, site, columns, site.raw_files)
        in_order = own or _in_order(site, written, each_by_itself=each)
        return {"found": found, "equal": found == wanted and in_order}
    quotients = ["average_rollup", "lag_rollup"] if RECEIVED in site.point_columns else ["average_rollup"]
    if contender["engine"] not in OWN:
        found = _rollups(db, site, quotients, [str(path) for path in site.output.glob("rollups*.parquet")], "label")
    else:
        home = ONE if contender["task"] == ROLLUPS_1M else THREE
        found = _rollups(db, site, quotients, _one_minute(site, home), "epoch_ms(logical_timestamp)")
    wanted = _rollups(db, site, quotients, _one_minute(site, THREE), "epoch_ms(logical_timestamp)")
    close = all(abs(found[name] - wanted[name]) <= 1e-9 * abs(wanted[name]) for name in quotients)
    return {"found": found, "equal": close and {**wanted, **{name: found[name] for name in quotients}} == found}


def _one_minute(site: Site, home: str) -> list[str]:
    return [path for path in site.rollup_files(home) if "/resolution=60000/" in path]


def _points(db: duckdb.DuckDBPyConnection, site: Site, columns: str, files: list[str]) -> dict[str, Any]:
    value = _EXACT[site.value_column].format(site.value_column)
    row = db.execute(f"SELECT count(*), sum({value}), sum(hash(metric::VARCHAR, {columns})) FROM read_parquet(?)", [files]).fetchone()
    assert row is not None
    return {"rows": row[0], site.value_column: str(row[1]), "digest": str(row[2])}


def _rollups(db: duckdb.DuckDBPyConnection, site: Site, quotients: list[str], files: list[str], label: str) -> dict[str, Any]:
    exact = [name if name == "count_rollup" else _EXACT[site.value_column].format(name) for name in _SUMS]
    columns = [*(f"sum({name})" for name in quotients), *(f"sum({each})::VARCHAR" for each in exact)]
    digest = f"sum(hash(id, org_id, metric::VARCHAR, label_ms, {', '.join(exact)}))::VARCHAR"
    row = db.execute(
        f"SELECT count(*), {', '.join(columns)}, {digest} "
        f"FROM (SELECT *, {label}::BIGINT AS label_ms FROM read_parquet(?, hive_partitioning = false)) "
        f"WHERE label_ms > {BATCH_START} AND label_ms < {BATCH_END}",
        [files],
    ).fetchone()
    assert row is not None
    return {"rows": row[0], **dict(zip((*quotients, *_SUMS), row[1:-1], strict=True)), "digest": row[-1]}


def _in_order(site: Site, written: list[Path], *, each_by_itself: bool) -> bool:
    """Whether a peer's sorted files are in order: shard, metric, org, id, time.

    ``each_by_itself``: files are shards by a hash of the peer's own; each is in order, and no series is in two.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    names: set[str] = set()
    for raw in site.raw_files:
        names.update(pq.read_table(raw, columns=["metric"], read_dictionary=["metric"]).column("metric").unique().to_pylist())
    in_order = pa.array(sorted(names))
    last: tuple[int, ...] = ()
    seen: set[int] = set()
    for path in written:
        here: set[int] = set()
        if each_by_itself:
            last = ()
        # Not as a dictionary: DuckDB's, of an enum, has entries twice, which confuses Arrow.
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group)
            rank = pc.index_in(table.column("metric"), value_set=in_order).to_numpy()
            ids, orgs, times = (table.column(name).to_numpy() for name in ("id", "org_id", "logical_timestamp"))
            keys = [ids & (0 if each_by_itself else 15), rank, orgs, ids, times]
            here.update(np.unique(ids).tolist())
            first = tuple(int(key[0]) for key in keys)
            after = np.zeros(len(ids) - 1, np.bool_)
            for key in reversed(keys):
                after = (key[1:] > key[:-1]) | ((key[1:] == key[:-1]) & after)
            if not after.all() or first <= last:
                return False
            last = tuple(int(key[-1]) for key in keys)
        if each_by_itself and seen & here:
            return False
        seen |= here
    return True
