"""Who runs what: engines, tasks and forms, and what must be undone before a run so that it has all of its work to do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks import tables
from benchmarks.data import WIDE
from benchmarks.measure import Stopwatch
from benchmarks.sites import ONE, SCRAPES, SPARSE, THREE, Site
from benchmarks.summary import Run, Spread, cpu, wall
from benchmarks.tasks import (
    CLICKHOUSE,
    COLD,
    DATAFUSION,
    DUCKDB,
    FLOOR,
    OURS,
    OWN,
    PEER_TASKS,
    PEERS,
    POLARS,
    PUBLISH,
    RAW_TO_1M,
    RAW_TO_1M_FULL,
    RAW_TO_PUBLISHED,
    REPARTITION,
    ROLLUPS_1M,
    ROLLUPS_3,
    SPARK,
    WARM,
    Form,
)

NO_TARGET = {SPARSE: (*((engine, ROLLUPS_3, WARM) for engine in (OURS, FLOOR)), (OURS, PUBLISH, WARM))}
"""Stages of a shape that no target needs, as (engine, task, start): like slow peers, only ``--full`` runs them."""
_SLOW_SECONDS, _SLOW_TIMES = 5.0, 1.3
_LIKE = {WIDE: SPARSE}
"""For a shape whose forms were not all measured, a similar one (here: one point per window) whose fastest forms the peers use."""
_CLOSE = (1.15, 1.05, 1.02)
"""After one turn, two, and three or more: a peer with a median of up to this many times the fastest one's may yet win, and runs again."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One entry of the benchmark; runs in a process of its own."""

    engine: str
    task: str
    start: str = WARM
    form: str = ""

    @property
    def name(self) -> str:
        """Readable name."""
        return " ".join(part for part in (self.engine, self.task, self.start, f"({self.form})" if self.form else "") if part)

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def all_contenders(shape: str = SCRAPES) -> list[Contender]:
    """All contenders of a benchmark of a shape, peers in their fastest form."""
    return [
        *(Contender(OURS, task) for task in (REPARTITION, ROLLUPS_1M, ROLLUPS_3, PUBLISH, RAW_TO_PUBLISHED)),
        *(Contender(FLOOR, task) for task in (REPARTITION, ROLLUPS_1M, ROLLUPS_3)),
        *(Contender(peer, task, WARM, fastest_form(peer, task, shape)) for task in PEER_TASKS for peer in PEERS),
        *(Contender(OURS, task, COLD) for task in (REPARTITION, ROLLUPS_1M, ROLLUPS_3, PUBLISH, RAW_TO_PUBLISHED)),
        *(Contender(peer, RAW_TO_1M, COLD, fastest_form(peer, RAW_TO_1M, shape)) for peer in PEERS),
    ]


def core(wanted: Sequence[Contender], shape: str = SCRAPES) -> list[Contender]:
    """Those that ``make bench`` has time for: no cold stage of ours, no full columns from raw points, and none of :func:`left_out`."""
    out = left_out(shape)
    whole = [each for each in wanted if each.task != RAW_TO_1M_FULL and (each.start != COLD or each.task in (RAW_TO_PUBLISHED, RAW_TO_1M))]
    return [each for each in whole if (each.engine, each.task, each.start) not in out]


def left_out(shape: str) -> set[tuple[str, str, str]]:
    """(engine, task, start) of what ``make bench`` has no time for, for shapes whose forms have all been measured.

    These are stages that no target needs, and peers that, in their fastest form, did not finish or took more than 5 s and more than 1.3
    times the fastest one's wall and CPU time: they would run once, and no ratio would depend on them.
    """
    found = set(NO_TARGET.get(shape, ()))
    for task in PEER_TASKS:
        costs = {peer: tuple(best[of]["median"] for of in ("wall", "cpu")) for peer in PEERS if (best := _fastest(peer, task, shape))}
        fastest = [min(each) for each in zip(*costs.values(), strict=True)]
        for peer in PEERS if costs else ():
            mine = costs.get(peer, (float("inf"), float("inf")))
            slow = all(cost > _SLOW_TIMES * least for cost, least in zip(mine, fastest, strict=True))
            if mine[0] > _SLOW_SECONDS and slow:
                found |= {(peer, task, start) for start in ((WARM, COLD) if task == RAW_TO_1M else (WARM,))}
    return found


def _fastest(peer: str, task: str, shape: str, but: str | None = None) -> dict[str, Any] | None:
    """The committed summary of the peer's form with the least median wall time on such points; None if no form has finished.

    ``but``: leave out forms with this in their names.
    """
    results = tables.read(forms_name(shape, peer))
    measured = results["summary"] if results else []
    known = peer_forms(peer)[task]
    mine = [entry for entry in measured if (entry["engine"], entry["task"]) == (peer, task) and entry["form"] in known]
    mine = [entry for entry in mine if but is None or but not in entry["form"]]
    return min(mine, key=lambda entry: float(entry["wall"]["median"]), default=None)


def worth_repeating(wanted: Sequence[Contender], runs: Sequence[Run]) -> list[Contender]:
    """Contenders of the previous turn that a target's ratio depends on.

    Of ours and the floor, those that targets name. Of the peers, those that are about as fast as the fastest at a task, by wall or CPU
    time; the more turns there were, the closer they have to be. One that failed has no runs, and is left out.
    """
    named = {(OURS, REPARTITION, WARM), (OURS, ROLLUPS_1M, WARM), (OURS, RAW_TO_PUBLISHED, WARM), (OURS, RAW_TO_PUBLISHED, COLD)}
    named |= {(FLOOR, REPARTITION, WARM), (FLOOR, ROLLUPS_1M, WARM)}
    peers = [each for each in wanted if each.engine in PEERS]
    return [each for each in wanted if (each.engine, each.task, each.start) in named or (each in peers and _close(each, peers, runs))]


def _close(contender: Contender, peers: Sequence[Contender], runs: Sequence[Run]) -> bool:
    """Whether a peer is about as fast as the fastest at its task; False if it failed."""
    mine = runs_of(contender, runs)
    beside = [runs_of(each, runs) for each in peers if (each.task, each.start) == (contender.task, contender.start)]
    limit = _CLOSE[min(len(mine), len(_CLOSE)) - 1]
    return bool(mine) and any(_median(mine, of) <= limit * min(_median(each, of) for each in beside if each) for of in (wall, cpu))


def _median(runs: Sequence[Run], of: Callable[[Run], float]) -> float:
    return Spread.of([of(run) for run in runs]).median


def runs_of(contender: Contender, runs: Sequence[Run]) -> list[Run]:
    """The runs of a contender."""
    return [run for run in runs if Contender(run["engine"], run["task"], run["start"], run["form"]) == contender]


def spark_contenders(*, forms: bool = False) -> list[Contender]:
    """What ``python -m benchmarks.spark`` runs: this project on both engines, and Spark SQL in its fastest forms or in all."""
    own = [Contender(engine, task) for task in (REPARTITION, RAW_TO_PUBLISHED) for engine in OWN]
    every = {task: list(peer_forms(SPARK)[task]) if forms else [fastest_form(SPARK, task)] for task in PEER_TASKS}
    peers = [Contender(SPARK, task, WARM, form) for task in PEER_TASKS for form in every[task]]
    return [*own[:2], *peers, *([] if forms else [*own[2:], Contender(OURS, ROLLUPS_1M)])]


def worth_repeating_on_spark(wanted: Sequence[Contender], runs: Sequence[Run]) -> list[Contender]:  # noqa: ARG001
    """Those of ``spark_contenders`` that a target's ratio depends on: Spark SQL's queries take two minutes each, three times over."""
    return [each for each in wanted if each.engine in OWN or each.task == REPARTITION]


def all_forms() -> list[Contender]:
    """Every form of every peer's task, and our counterpart."""
    peers = [Contender(peer, task, WARM, form) for task in PEER_TASKS for peer in PEERS for form in peer_forms(peer)[task]]
    return [*(Contender(OURS, task) for task in (REPARTITION, ROLLUPS_1M, RAW_TO_PUBLISHED)), *peers]


def forms_name(shape: str, engine: str = "") -> str:
    """The name of the results of all forms."""
    return "-".join(["forms", *(["spark"] if engine == SPARK else []), *([] if shape == SCRAPES else [shape])])


def fastest_form(peer: str, task: str, shape: str = SCRAPES, but: str | None = None) -> str:
    """The form with the least committed median wall time, on such points or else on dense ones.

    If none was measured, the first in the peer's list. ``but``: leave out measured forms with this in their names.
    """
    for points in (shape, _LIKE.get(shape, SCRAPES), SCRAPES):
        if best := _fastest(peer, task, points, but):
            return str(best["form"])
    return next(iter(peer_forms(peer)[task]))


def reset(contender: Contender, site: Site) -> None:
    """Undo what the contender is about to do."""
    site.clear_output()
    if contender.engine not in OWN:
        return
    undone = {
        REPARTITION: (THREE, ("repartition",)),
        ROLLUPS_1M: (ONE, ("rollups",)),
        ROLLUPS_3: (THREE, ("rollups",)),
        PUBLISH: (THREE, ("publish",)),
        RAW_TO_PUBLISHED: (THREE, ("repartition", "rollups", "publish")),
    }
    home, steps = undone[contender.task]
    site.forget(home, *steps)


def run(contender: Contender, site: Site, threads: int, watch: Stopwatch) -> dict[str, Any]:
    """Do the task on a site; ``watch`` times the part that counts. Returns details: rows, bytes, timings."""
    if contender.engine in (*PEERS, SPARK):
        return peer_forms(contender.engine)[contender.task][contender.form](site, threads, watch)
    if contender.engine == FLOOR:
        from benchmarks import floor

        return {REPARTITION: floor.repartition, ROLLUPS_1M: floor.rollups_one, ROLLUPS_3: floor.rollups_three}[contender.task](
            site, threads, watch
        )
    from benchmarks import ours

    tasks = {
        REPARTITION: ours.repartition,
        ROLLUPS_1M: ours.rollups_one,
        ROLLUPS_3: ours.rollups_three,
        PUBLISH: ours.publish,
        RAW_TO_PUBLISHED: ours.raw_to_published,
    }
    return tasks[contender.task](site, threads, watch, OWN[contender.engine])


def peer_forms(peer: str) -> dict[str, dict[str, Form]]:
    """A peer's tasks, each in every form, by name."""
    from benchmarks.peers import chdb, datafusion, duckdb, polars, spark

    modules = {DUCKDB: duckdb, POLARS: polars, DATAFUSION: datafusion, CLICKHOUSE: chdb, SPARK: spark}
    forms: dict[str, dict[str, Form]] = modules[peer].FORMS
    return forms
