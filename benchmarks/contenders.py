"""Who runs what: engines, tasks and forms, and what must be undone before a run so that it does its work for the first time."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.measure import Stopwatch
from benchmarks.sites import ONE, THREE, Site

OURS, FLOOR, DUCKDB, POLARS = "rollup_assets", "floor", "DuckDB", "Polars"
PEERS = (DUCKDB, POLARS)
OURS_ON_SPARK, SPARK = "rollup_assets on Spark", "Spark"
ON_SPARK = (OURS_ON_SPARK, SPARK)
OWN = {OURS: "local", OURS_ON_SPARK: "spark"}
"""This project, by engine setting."""
REPARTITION, ROLLUPS_1M, ROLLUPS_3, PUBLISH, RAW_TO_PUBLISHED, RAW_TO_1M = (
    "repartition",
    "rollups-1m",
    "rollups-3",
    "publish",
    "raw-to-published",
    "raw-to-1m",
)
PEER_TASKS = (REPARTITION, ROLLUPS_1M, RAW_TO_1M)
WARM, COLD, FIRST = "warm", "cold", "first"
"""``warm``: the task is timed after it has run on the small site in the same process. ``cold``: a process from start to exit.
``first``: cold, with nothing compiled yet, as after installing."""
FORMS_FILE = Path(__file__).parent / "results" / "forms.json"
SPARK_FORM = "repartitionById, lz4"
"""The fastest of Spark's forms, as ``python -m benchmarks.spark --forms`` found."""


@dataclass(frozen=True, slots=True)
class Contender:
    """One entry of the benchmark; runs in a process of its own."""

    engine: str
    task: str
    start: str = WARM
    form: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return " ".join(part for part in (self.engine, self.task, self.start, f"({self.form})" if self.form else "") if part)

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)


def all_contenders() -> list[Contender]:
    """Everything that ``make bench`` runs, peers in their fastest form."""
    return [
        *(Contender(OURS, task) for task in (REPARTITION, ROLLUPS_1M, ROLLUPS_3, PUBLISH, RAW_TO_PUBLISHED)),
        *(Contender(FLOOR, task) for task in (REPARTITION, ROLLUPS_1M, ROLLUPS_3)),
        *(Contender(peer, task, WARM, fastest_form(peer, task)) for task in PEER_TASKS for peer in PEERS),
        *(Contender(OURS, task, COLD) for task in (REPARTITION, ROLLUPS_1M, ROLLUPS_3, PUBLISH, RAW_TO_PUBLISHED)),
        *(Contender(peer, RAW_TO_1M, COLD, fastest_form(peer, RAW_TO_1M)) for peer in PEERS),
    ]


def spark_contenders(*, forms: bool = False) -> list[Contender]:
    """What ``python -m benchmarks.spark`` runs: this project on both engines, and Spark's own sort in its fastest form or in all."""
    chosen = _forms(SPARK)[REPARTITION] if forms else (SPARK_FORM,)
    own = [Contender(engine, task) for task in (REPARTITION, RAW_TO_PUBLISHED) for engine in OWN]
    return [*own[:2], *(Contender(SPARK, REPARTITION, WARM, form) for form in chosen), *([] if forms else own[2:])]


def all_forms() -> list[Contender]:
    """Every form of every peer's task, and what we do instead."""
    peers = [Contender(peer, task, WARM, form) for task in PEER_TASKS for peer in PEERS for form in _forms(peer)[task]]
    return [*(Contender(OURS, task) for task in (REPARTITION, ROLLUPS_1M, RAW_TO_PUBLISHED)), *peers]


def fastest_form(peer: str, task: str) -> str:
    """The form with the least median wall time when all were measured, as committed."""
    measured = json.loads(FORMS_FILE.read_text())["summary"]
    mine = [entry for entry in measured if entry["engine"] == peer and entry["task"] == task]
    return str(min(mine, key=lambda entry: entry["wall"]["median"])["form"])


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
    """Do the task on a site; what is worth timing is timed by ``watch``. Returns details: rows, bytes, timings."""
    if contender.engine in (*PEERS, SPARK):
        answer: dict[str, Any] = _forms(contender.engine)[contender.task][contender.form](site, threads, watch)
        return answer
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


def _forms(peer: str) -> dict[str, dict[str, Any]]:
    from benchmarks.peers import duckdb, polars, spark

    return {DUCKDB: duckdb.FORMS, POLARS: polars.FORMS, SPARK: {REPARTITION: spark.FORMS}}[peer]
