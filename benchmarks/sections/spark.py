"""This project on Spark beside Spark SQL (``python -m benchmarks.spark``): tables."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import tables
from benchmarks.contenders import forms_name
from benchmarks.sections.stages import TASKS, in_one_line
from benchmarks.sites import SCRAPES
from benchmarks.summary import Run, Spread, cpu, ratio, select, wall
from benchmarks.tables import Results, Target, circumstances, costs, figure, not_measured, pair, size, table
from benchmarks.tasks import OURS, OURS_ON_SPARK, OWN, RAW_TO_PUBLISHED, REPARTITION, SPARK

STEPS = {"repartition": "raw → sorted", "rollups": "sorted → rollups", "publish": "publish"}


def targets() -> list[Target]:
    """Targets, from the committed results."""
    results = tables.read("spark")
    return aims(results) if results else []


def aims(results: Results) -> list[Target]:
    """What was aimed at on Spark, and what came out; ratios are taken turn by turn."""
    rows: list[Target] = []
    for task, above, below, text, sign, limit in (
        (RAW_TO_PUBLISHED, OURS_ON_SPARK, OURS, "raw → published: the Spark engine, times the local engine's time", "≤", 2.5),
        (REPARTITION, SPARK, OURS_ON_SPARK, "repartition: times as fast as Spark's own sort", "≥", 5),
    ):
        found, cost = (pair(results["runs"], (above, task), (below, task), figure) for figure in (wall, cpu))
        if found and cost:
            met = found.median <= limit if sign == "≤" else found.median >= limit
            rows.append(Target(text, f"{sign} {limit}", figure(found), met, f"CPU {figure(cost)}"))
    return rows


def side_by_side(results: Results) -> str:
    """Every task, engine and form that ran beside Spark: seconds, CPU seconds, memory, bytes written."""
    rows = []
    for task in TASKS:
        title = TASKS[task]
        for engine in (*OWN, SPARK):
            runs = select(results["runs"], engine, task)
            by_form = {form: [run for run in runs if run["form"] == form] for form in dict.fromkeys(run["form"] for run in runs)}
            for form, mine in sorted(by_form.items(), key=lambda item: Spread.of([wall(run) for run in item[1]]).median):
                rows.append([title, f"{engine} ({form})" if form else engine, *costs(mine), size(mine), str(len(mine))])
                title = ""
    return table(["task", "engine", "wall s", "CPU s", "peak MiB", "written MB", "runs"], rows) if rows else ""


def by_step(results: Results) -> str:
    """Raw → published, step by step, on both engines, and the multiple of the local engine's time."""
    rows = []
    ours = select(results["runs"], OURS, RAW_TO_PUBLISHED)
    for step, title in STEPS.items():
        for engine in OWN:
            mine = select(results["runs"], engine, RAW_TO_PUBLISHED)
            if mine and ours:
                seconds = [Spread.of([run[of][step] for run in mine]) for of in ("wall", "cpu")]
                times = ratio(mine, ours, _wall_of(step))
                rows.append([title, engine, *(figure(each) for each in seconds), "" if engine == OURS else figure(times)])
                title = ""
    head = ["step", "engine", "wall s", "CPU s", "times the local engine's wall"]
    return table(head, rows).replace("--- | ---: |", "--- | --- |", 1) if rows else ""


def _wall_of(step: str) -> Callable[[Run], float]:
    return lambda run: float(run["wall"][step])


def blocks() -> dict[str, str]:
    """The tables of the committed results, by name."""
    results = tables.read("spark")
    missing = not_measured("python -m benchmarks.spark")
    missing_forms = not_measured("python -m benchmarks.spark --forms --repeat 1")
    forms = tables.read(forms_name(SCRAPES, SPARK))
    return {
        "spark": side_by_side(results) if results else missing,
        "spark-steps": by_step(results) if results else missing,
        "spark-circumstances": circumstances(results) if results else missing,
        "spark-forms": side_by_side(forms) if forms else missing_forms,
        "spark-forms-circumstances": in_one_line(forms) if forms else missing_forms,
    }
