"""Whether contenders answered the same: compared before times count."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.sites import BATCH_END, BATCH_START, ONE, RECEIVED, THREE, Site
from benchmarks.tasks import FULL, OWN, REPARTITION, ROLLUPS_1M, SPARK

if TYPE_CHECKING:
    import duckdb

# Doubles are hundredths, so a sum's rounding error, which depends on the order of additions, can be rounded away.
_EXACT = {"long_value": "{0}", "double_value": "round({0} * 100)::BIGINT"}
_SUMS = ("count_rollup", "sum_rollup", "min_rollup", "max_rollup", "latest_rollup")
_STEPS = ("delta_rollup", "resets_rollup")
_NUMBERS = ("count_rollup", "resets_rollup")


def check(site: Site, contender: dict[str, str]) -> dict[str, Any]:
    """Summary of what the contender has just written, and whether it equals ours.

    Of rollups, labels after the batch's start are compared, since only we merge the window labelled with it with earlier batches. The
    digest is a sum of hashes over the rows, in any order, of all columns that both have except quotients, whose sums are compared. If
    both have delta and resets, these have a digest, too, without the window of a series' first point in the batch: only we know the
    step into that point, which comes from an earlier batch.
    """
    import duckdb

    db = duckdb.connect(config={"threads": 2})
    if contender["task"] == REPARTITION:
        columns = ", ".join(name for name in site.point_columns if name != "metric")
        own, each = contender["engine"] in OWN, contender["engine"] == SPARK
        written = sorted(site.output.glob("sorted/part-*.parquet" if each else "sorted*.parquet"))
        found = _points(db, site, columns, site.sorted_files if own else [str(path) for path in written])
        wanted = _remembered(site, "raw-points", site.raw_files, lambda files: _points(db, site, columns, files))
        in_order = own or _in_order(site, written, each_by_itself=each)
        return {"found": found, "equal": found == wanted and in_order}
    steps = contender["engine"] in OWN or contender["task"] in FULL
    quotients = ["average_rollup", *(["lag_rollup"] if RECEIVED in site.point_columns else []), *(["rate_rollup"] if steps else [])]
    if contender["engine"] not in OWN:
        written = [*site.output.glob("rollups*.parquet"), *site.output.glob("rollups/*.parquet")]
        found = _rollups(db, site, quotients, [str(path) for path in written], "label", steps=steps)
    else:
        home = ONE if contender["task"] == ROLLUPS_1M else THREE
        found = _ours(db, site, quotients, home, steps=steps)
    wanted = _ours(db, site, quotients, THREE, steps=steps)
    close = all(abs(found[name] - wanted[name]) <= 1e-9 * abs(wanted[name]) for name in quotients)
    return {"found": found, "equal": close and {**wanted, **{name: found[name] for name in quotients}} == found}


def _remembered(site: Site, name: str, files: list[str], make: Callable[[list[str]], dict[str, Any]]) -> dict[str, Any]:
    """A result that depends on files alone: computed once for the same files, and cached beside them."""
    stamps = [[path, stat.st_size, stat.st_mtime_ns] for path in files for stat in (Path(path).stat(),)]
    kept = site.root / f"{name}.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    if known.get("files") != stamps:
        known = {"files": stamps, "found": make(files)}
        kept.write_text(json.dumps(known))
    found: dict[str, Any] = known["found"]
    return found


def _ours(db: duckdb.DuckDBPyConnection, site: Site, quotients: list[str], home: str, *, steps: bool) -> dict[str, Any]:
    """Summary of this project's rollups, which every peer is compared with."""
    name = f"{home}-{'steps' if steps else 'basic'}"
    stamp = "epoch_ms(logical_timestamp)"
    return _remembered(site, name, _one_minute(site, home), lambda files: _rollups(db, site, quotients, files, stamp, steps=steps))


def _one_minute(site: Site, home: str) -> list[str]:
    return [path for path in site.rollup_files(home) if "/resolution=60000/" in path]


def _points(db: duckdb.DuckDBPyConnection, site: Site, columns: str, files: list[str]) -> dict[str, Any]:
    value = _EXACT[site.value_column].format(site.value_column)
    row = db.execute(f"SELECT count(*), sum({value}), sum(hash(metric::VARCHAR, {columns})) FROM read_parquet(?)", [files]).fetchone()
    assert row is not None
    return {"rows": row[0], site.value_column: str(row[1]), "digest": str(row[2])}


def _rollups(
    db: duckdb.DuckDBPyConnection, site: Site, quotients: list[str], files: list[str], label: str, *, steps: bool
) -> dict[str, Any]:
    def exact(names: Sequence[str]) -> list[str]:
        return [name if name in _NUMBERS else _EXACT[site.value_column].format(name) for name in names]

    def digest(columns: list[str]) -> str:
        return f"sum(hash(id, org_id, metric::VARCHAR, label_ms, {', '.join(columns)}))::VARCHAR"

    figures = {
        **{name: f"sum({name})" for name in quotients},
        **{name: f"sum({column})::VARCHAR" for name, column in zip(_SUMS, exact(_SUMS), strict=True)},
        "digest": digest(exact(_SUMS)),
    }
    rows = f"SELECT *, {label}::BIGINT AS label_ms FROM read_parquet($files, hive_partitioning = false)"
    if steps:
        figures |= {name: f"sum({column})::VARCHAR" for name, column in zip(_STEPS, exact(_STEPS), strict=True)}
        figures["steps_digest"] = digest(exact(_STEPS))
        # The label of a series' first window, from the points.
        first = "SELECT id AS series, (min(logical_timestamp) + 59999) // 60000 * 60000 AS first_ms FROM read_parquet($raw) GROUP BY id"
        known = ", ".join(f"CASE WHEN label_ms > first_ms THEN {name} END AS {name}" for name in (*_STEPS, "rate_rollup"))
        rows = f"SELECT * REPLACE ({known}) FROM ({rows}) JOIN ({first}) ON id = series"
    found = db.execute(
        f"SELECT count(*), {', '.join(figures.values())} FROM ({rows}) WHERE label_ms > {BATCH_START} AND label_ms < {BATCH_END}",
        {"files": files, **({"raw": site.raw_files} if steps else {})},
    ).fetchone()
    assert found is not None
    return dict(zip(("rows", *figures), found, strict=True))


def _in_order(site: Site, written: list[Path], *, each_by_itself: bool) -> bool:
    """Whether a peer's sorted files are in order: shard, metric, org, id, time.

    ``each_by_itself``: files are shards by the peer's own hash; each has to be in order, and no series may be in two.
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
        # Not as a dictionary: DuckDB's dictionary of an enum has duplicate entries, which confuses Arrow.
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
