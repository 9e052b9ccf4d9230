"""Figures that sentences of the pages quote, by name: ``4.6<!-- = NAME -->`` is made anew with the tables (``benchmarks.tables``).

A name says which results, who, what, and in which unit. Figures that only tables show have no name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median

from benchmarks import tables
from benchmarks.catalogs import EMBEDDED, POSTGRES, REST
from benchmarks.orchestration_child import AGAIN, SINGLE
from benchmarks.queries.layouts import OURS as LAYOUT
from benchmarks.queries.questions import QUESTIONS, READERS
from benchmarks.sections import orchestration, peer_sizes, querying, seed, sizes, stages
from benchmarks.sites import RESOLUTIONS, THREE
from benchmarks.summary import Run, cpu, ratio, select, wall
from benchmarks.tables import Figures, Results, pair
from benchmarks.tasks import COLD, FLOOR, OURS, OURS_BESIDE, PEER_TASKS, RAW_TO_1M, RAW_TO_PUBLISHED, REPARTITION, ROLLUPS_1M, WARM

_COSTS: dict[str, Callable[[Run], float]] = {"wall s": wall, "CPU s": cpu}
_TIMES: dict[str, Callable[[Run], float]] = {"wall": wall, "CPU": cpu}


def named() -> Figures:
    """All figures of the committed results."""
    found: Figures = {}
    for shape in (*stages.MAIN, *stages.OTHERS):
        if results := tables.read(shape):
            found |= _of_stages(stages.MAIN.get(shape, shape), results)
    makers: dict[str, Callable[[Results], Figures]] = {
        "forms": lambda results: _of_forms("dense", results),
        "forms-sparse": lambda results: _of_forms("sparse", results),
        "peer_sizes": _of_peer_sizes,
        "seed": _of_seed,
        "seed_cold": _of_cold_seed,
        "storages": _of_storages,
        "querying": _of_queries,
        "orchestration": _of_orchestration,
    }
    for name, make in makers.items():
        if results := tables.read(name):
            found |= make(results)
    whole = sizes.read()
    return found | _of_sizes(whole) if whole else found


def _median(values: Iterable[float]) -> float:
    return float(median(values))


def _seconds(of: str, runs: list[Run]) -> Figures:
    """Of each contender the median seconds."""
    found: Figures = {}
    for engine, task, start in dict.fromkeys((run["engine"], run["task"], run["start"]) for run in runs):
        mine = select(runs, engine, task, start)
        found |= {f"{of}: {engine}, {task}, {start}, {unit}": _median(value(run) for run in mine) for unit, value in _COSTS.items()}
    return found


def _of_forms(shape: str, results: Results) -> Figures:
    """Each peer in its fastest form, when all were measured."""
    # The slowest first: of several forms, the fastest one's entry stays.
    return {
        f"forms, {shape}: {entry['engine']}, {entry['task']}, wall s": entry["wall"]["median"]
        for entry in sorted(results["summary"], key=lambda entry: -float(entry["wall"]["median"]))
    }


def _of_stages(shape: str, results: Results) -> Figures:
    """Seconds, multiples of the floor, the fastest peers, and the shares of parts."""
    runs = results["runs"]
    found = _seconds(shape, runs)
    for unit, of in _TIMES.items():
        for task in (REPARTITION, ROLLUPS_1M):
            if times := pair(runs, (OURS, task), (FLOOR, task), of):
                found[f"{shape}: {task}, times the floor, {unit}"] = times.median
        for task, start in [*((task, WARM) for task in PEER_TASKS), (RAW_TO_1M, COLD)]:
            peer = stages.fastest_peer(runs, task, start, of)
            times = pair(runs, (peer, task), (OURS, OURS_BESIDE[task]), of, start) if peer else None
            if peer and times:
                name = f"{shape}: fastest peer, {task}, {start}, {unit}"
                found |= {name: peer, f"{name}, times ours": times.median}
                found[f"{name} s"] = _median(of(run) for run in select(runs, peer, task, start))
    each = [stages.parts_of(run) for run in select(runs, OURS, RAW_TO_PUBLISHED)]
    parts = {part: _median(seconds.get(part, 0.0) for seconds in each) for part in (each[0] if each else ())}
    return found | {f"{shape}: share of {part}, %": 100 * seconds / sum(parts.values()) for part, seconds in parts.items()}


def _of_sizes(results: Results) -> Figures:
    """How much a point's cost differs between batches, and what a batch costs however small it is."""
    costs = sizes.costs_by_size(results)
    start = [run for run in results["runs"] if run["size"] == results["start_rows"] and run["threads"] == results["threads"]]
    found: Figures = {"sizes: growth": sizes.growth(costs), "sizes: fixed start, wall s": _median(sizes.elapsed(run) for run in start)}
    for size in costs:
        parts = {step: sizes.ns(results, size, results["threads"], sizes.step(step)).median for step in sizes.STEPS}
        found |= {f"sizes: {size // 1_000_000} M, {step}, CPU ns": cost for step, cost in parts.items()}
    if {1_000_000, 36_000_000} <= set(costs):
        found["sizes: 1 M, times 36 M"] = costs[1_000_000] / costs[36_000_000]
    return found


def _of_peer_sizes(results: Results) -> Figures:
    """By size, the fastest peer's time as a multiple of ours, and peak memory."""
    found: Figures = {}
    for size in results["sizes"]:
        of, runs = f"peers, {peer_sizes.millions(size['data']['rows'])}", size["runs"]
        peer = stages.fastest_peer(runs, RAW_TO_1M, WARM, wall)
        if peer:
            times = ratio(select(runs, peer, RAW_TO_1M), select(runs, OURS, RAW_TO_PUBLISHED), wall)
            found |= {f"{of}: fastest": peer, f"{of}: fastest, times ours, wall": times.median}
        for engine in dict.fromkeys(run["engine"] for run in runs):
            found[f"{of}: {engine}, peak GiB"] = _median(run["peak_bytes"] / 2**30 for run in runs if run["engine"] == engine)
    return found


def _of_seed(results: Results) -> Figures:
    """Seconds by program, warm."""
    return {
        f"seed, {title}: {program}, warm, wall s": _median(wall(run) for run in warm)
        for shape, title in seed.SHAPES.items()
        for program in seed.PROGRAMS
        if (warm := select(results["runs"], program, seed.task(shape)))
    }


def _of_cold_seed(results: Results) -> Figures:
    """By program, its time as a cold process as a multiple of ours, and what a cold start adds."""
    found: Figures = {}
    for shape, title in seed.SHAPES.items():
        ours = select(results["runs"], OURS, seed.task(shape), COLD)
        for program in seed.PROGRAMS:
            warm, cold = (select(results["runs"], program, seed.task(shape), start) for start in (WARM, COLD))
            of = f"seed, {title}: {program}"
            if cold and ours:
                found[f"{of}, cold, times ours"] = ratio(cold, ours, wall).median
            if warm and cold:
                found[f"{of}, cold start, s"] = _median(wall(run) for run in cold) - _median(wall(run) for run in warm)
    return found


def _of_storages(results: Results) -> Figures:
    """What S3 costs our own process beyond local files, with the local engine and three resolutions: the least and the most."""
    seconds, gib = [], []
    for shape in results["points"]:
        chosen = [
            run for run in results["runs"] if (run["shape"], run["engine"], run["resolutions"]) == (shape, "local", RESOLUTIONS[THREE])
        ]
        here, *elsewhere = ([run for run in chosen if run["storage"] == name] for name in (EMBEDDED, POSTGRES, REST))
        for there in elsewhere:
            costs = [_median(sum(run["cpu"].values()) for run in runs) for runs in (here, there)]
            peaks = [_median(run["peak_bytes"] / 2**30 for run in runs) for runs in (here, there)]
            seconds.append(costs[1] - costs[0])
            gib.append(peaks[1] - peaks[0])
    return {
        "storages: more CPU on S3, least, s": min(seconds),
        "storages: more CPU on S3, most, s": max(seconds),
        "storages: more memory on S3, most, GiB": max(gib),
    }


def _of_queries(results: Results) -> Figures:
    """Percent of a partition's bytes that a question about one series reads."""
    hours = results["data"]["hours"]
    shares = {(reader, name): querying.share_read(results, reader, LAYOUT, name, hours) for reader in READERS for name in QUESTIONS}
    return {f"queries: {reader}, {name}, %": 100 * share for (reader, name), share in shares.items() if share is not None}


def _of_orchestration(results: Results) -> Figures:
    """A batch made again with nothing changed, and what a run for each partition costs."""
    found: Figures = {}
    again = [run for run in results["runs"] if run["what"] == AGAIN]
    if again:
        found["again: a run of Dagster, s"] = _median(run["run"] for run in again)
        found["again: a run of Dagster, % of the first time"] = _median(100 * run["run"] / run["first"] for run in again)
        found["again: the steps, % of the run"] = _median(100 * orchestration.repeated(run) / run["run"] for run in again)
    for storage in (orchestration.SQLITE, orchestration.POSTGRES):
        if cost := orchestration.overhead(results, SINGLE, storage):
            found[f"bookkeeping: a run a partition, {storage}, s"] = cost.median
    return found
