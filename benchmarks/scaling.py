"""Results to ``docs/scaling.md``: what the capacity model and the simulation say, as tables. The figures are made in those two."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from benchmarks import tables
from benchmarks.tables import filled, not_measured, table

if TYPE_CHECKING:
    from benchmarks.capacity_model import Model, Plan
    from benchmarks.simulate_backfill import Options, Outcome
    from benchmarks.summary import Run

PAGE = Path("docs") / "scaling.md"
NEEDED = ("sizes", "capacity", "publishing", "spark")
"""Results that the model needs; those of ``seed_size`` are used if they exist."""
SEED_ROWS, SEED_SECONDS, SEED_CORES = 686_482_723, 606.0, 80
"""From the seed's analysis: rows and time of its batch, and the cores of the executors it recommends, 20 with 4 each."""
_SCENARIOS = (1_000_000_000, 10_000_000_000, 100_000_000_000)
_BLOCK_NAMES = (
    "scaling-inputs",
    "scaling-costs",
    "scaling-check-cpu",
    "scaling-check-counts",
    "scaling-seed",
    "scaling-plan",
    "scaling-limits",
    "scaling-backfill",
)


def write(root: Path) -> None:
    """Bring the page's tables up to date."""
    path = root / PAGE
    path.write_text(filled(path.read_text(), blocks()))


def blocks() -> dict[str, str]:
    """The generated parts of the page, by name."""
    from benchmarks.capacity_model import Model

    found = {name: tables.read(name) for name in NEEDED}
    missing = [name for name, results in found.items() if results is None]
    if missing:
        return dict.fromkeys(_BLOCK_NAMES, not_measured("`, `".join(f"python -m benchmarks.{name}" for name in missing)))
    model = Model(**{name: results for name, results in found.items() if results is not None}, seed_size=tables.read("seed_size"))
    made: dict[str, Callable[[Model], str]] = dict(
        zip(_BLOCK_NAMES, (_inputs, _costs, _check_cpu, _check_counts, _seed, _plans, _limits, _backfill), strict=True)
    )
    return {name: make(model) for name, make in made.items()}


def large(number: float) -> str:
    """A number with three digits: 12.3 M."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}" if number / size < 1000 else f"{number / size:,.0f} {unit}"
    return f"{number:.3g}"


def _inputs(model: Model) -> str:  # noqa: ARG001 - every block is made from a model
    from benchmarks.capacity_model import Assumptions, Prices

    assumed, prices = Assumptions(), Prices()
    rows = [
        ["a core for an hour", f"${prices.core_hour:g}"],
        ["1,000 PUT, POST or LIST requests", f"${prices.puts:g}"],
        ["1,000 GET or HEAD requests", f"${prices.gets:g}"],
        ["a GB stored for a month", f"${prices.gb_month:g}"],
        ["share of a cluster's time that tasks use", f"{assumed.busy:.0%}"],
        ["an hour's batch is made within", f"{assumed.within_hours * 60:.0f} min"],
        ["age up to which staged assets are counted (no command deletes them by age)", f"{assumed.staged_days:g} days"],
        ["points a series and hour", str(assumed.points_a_series)],
    ]
    return table(["input", "value"], rows)


def _costs(model: Model) -> str:
    from benchmarks.capacity_model import STEPS, Assumptions, shape_of

    assumed = Assumptions()
    cpu, sizes = model.cpu, model.bytes_per_point
    one = model.requests(shape_of(cpu.measured_points))
    rows = [[f"CPU: {step}", f"{1e9 * cpu.point[step]:.0f} ns a point", f"{cpu.start[step]:.2f} s a batch"] for step in STEPS]
    rows += [["CPU on Spark", f"{model.spark_factor:.2f} times that", ""]]
    rows += [
        [f"points of one shard that a core makes on Spark in {assumed.within_hours * 60:.0f} min", large(model.points_in_time(assumed)), ""]
    ]
    rows += [[f"bytes: {name}", f"{size:.1f} a point", ""] for name, size in sizes.items()]
    rows += [["rows of all resolutions", f"{model.table_rows_per_point:.2f} a point", ""]]
    rows += [
        [f"requests to S3: {step}", ", ".join(f"{count:,.0f} {kind}" for kind, count in kinds.items() if count >= 0.5), ""]
        for step, kinds in one.items()
    ]
    rows += [["publish (PostgreSQL, S3)", f"{1e3 * model.publish_file:.2f} ms a file", f"{model.publish_start:.2f} s a batch"]]
    rows += [["commits to the catalog", "", "1 a batch"]]
    return table([f"cost, at {large(cpu.measured_points)} points", "grows", "fixed"], rows)


def _check_cpu(model: Model) -> str:
    from benchmarks.capacity_model import STEPS

    used = model.calibrated
    rows = []
    for points, measured in model.measured_cpu:
        if points == used.measured_points:
            continue
        for step in (None, *STEPS):
            was = sum(measured.values()) if step is None else measured[step]
            said = used.seconds(points, step)
            rows.append(
                [f"{large(points)} points" if step is None else "", step or "all", f"{said:.2f}", f"{was:.2f}", f"{said / was:.2f}"]
            )
    return table([f"from {large(used.measured_points)} points to", "step", "model, CPU s", "measured, CPU s", "ratio"], rows)


def _check_counts(model: Model) -> str:
    from benchmarks.capacity_model import shape_of_run

    run = model.checked_run
    said = model.requests(shape_of_run(run))
    rows = []
    for step, kinds in run["requests"].items():
        for kind, was in kinds.items():
            if was or said[step][kind] >= 0.5:
                rows.append([step, kind, f"{said[step][kind]:,.0f}", f"{was:,}"])
    largest = max(each["points"] for each in model.capacity["runs"] if each is not run)
    return table([f"from at most {large(largest)} points to {large(run['points'])}", "", "model", "counted"], rows)


def _seed(model: Model) -> str:
    """The seed's batch on the seed's cluster, and on this machine."""
    from benchmarks.capacity_model import Assumptions, shape_of

    assumed = Assumptions()
    cpu = model.cpu.seconds(SEED_ROWS)
    publish = model.publish_start + model.publish_file * shape_of(SEED_ROWS).groups * 3
    spark = cpu * model.spark_factor
    on_cluster = spark / SEED_CORES / assumed.busy + publish
    here = "" if model.seed_size is None else f"{_median_wall(model):.0f} s"
    rows = [
        ["seed's program, its cluster", "", f"{SEED_SECONDS:.0f} s", "measured by its authors"],
        ["this project, Spark engine, 80 cores", f"{spark:,.0f}", f"{on_cluster:.0f} s", "model; Spark's session open"],
        [
            "this project, local engine, 2 cores",
            f"{cpu:,.0f}",
            f"{cpu / 2:.0f} s",
            f"model: both cores busy{f'; measured {here}' if here else ''}",
        ],
        ["this project, local engine, 80 cores", f"{cpu:,.0f}", f"{cpu / SEED_CORES / assumed.busy + publish:.0f} s", "model"],
    ]
    return table([f"{SEED_ROWS:,} 1 min rows, raw → published with those of 5 min and 1 h", "CPU s", "time", ""], rows)


def _median_wall(model: Model) -> float:
    assert model.seed_size is not None
    return float(median(run["process_wall"] for run in model.seed_size["runs"] if run["engine"] == "rollup_assets"))


def _plans(model: Model) -> str:
    from benchmarks.capacity_model import Assumptions, Prices, plan

    plans = [plan(model, rows, Assumptions(), Prices()) for rows in _SCENARIOS]
    lines: list[tuple[str, Callable[[Plan], str]]] = [
        ("series", lambda one: large(one.series)),
        ("CPU core-hours an hour, local engine", lambda one: f"{one.cpu_seconds / 3600:,.2f}"),
        ("CPU core-hours an hour, Spark", lambda one: f"{one.spark_cpu_seconds / 3600:,.2f}"),
        ("**cores on Spark, to be done in time**", lambda one: f"**{one.cores:,.0f}**"),
        ("shuffled, bytes", lambda one: large(one.moved)),
        ("written to S3, bytes", lambda one: large(one.stored)),
        ("of it the table, bytes", lambda one: large(one.table)),
        ("`ROLLUP_SHARDS`", lambda one: str(one.shape.shards)),
        ("files of the table", lambda one: f"{one.table_files:,}"),
        ("points a group of shards", lambda one: large(one.shape.points / one.shape.groups)),
        ("manifests of the stage, bytes", lambda one: large(one.manifest_bytes)),
        ("PUT, POST, LIST", lambda one: f"{one.puts:,.0f}"),
        ("GET, HEAD", lambda one: f"{one.gets:,.0f}"),
        ("GET, HEAD a second meanwhile", lambda one: f"{one.gets_a_second:,.0f}"),
        ("catalog commits", lambda one: "1"),  # noqa: ARG005
        ("publish, s", lambda one: f"{one.publish_seconds:.1f}"),
        ("files of the table after a year", lambda one: large(one.table_files * 8760)),
        *((f"$ a month: {name}", lambda one, name=name: f"{one.dollars_a_month[name]:,.0f}") for name in ("cores", "requests", "storage")),
    ]
    rows = [[name, *(show(one) for one in plans)] for name, show in lines]
    return table(["an hour's batch", *(f"{large(rows)} rows" for rows in _SCENARIOS)], rows)


def _limits(model: Model) -> str:
    from benchmarks.capacity_model import Assumptions, limits

    return table(
        ["1 min rows an hour", "what ends there", "what then"],
        [[large(one.rows), one.what, one.then] for one in limits(model, Assumptions())],
    )


def backfill_options(model: Model) -> Options:
    """A month of the seed's batches on the seed's cluster: each of two runs has half of its cores."""
    from benchmarks.capacity_model import Assumptions, shape_of

    cores = SEED_CORES / 2 * Assumptions().busy / model.spark_factor
    return replace(
        _as_recorded(),
        stage_seconds=model.cpu.seconds(SEED_ROWS, "repartition") / cores,
        roll_up_seconds=model.cpu.seconds(SEED_ROWS, "rollups") / cores,
        publish_seconds=model.publish_start + model.publish_file * shape_of(SEED_ROWS).groups * 3,
    )


def _as_recorded() -> Options:
    """With what Dagster was measured to cost a partition, half of it in each of the two runs that a partition takes part in."""
    from benchmarks.orchestration_child import RANGE
    from benchmarks.sections import orchestration
    from benchmarks.simulate_backfill import Options

    results = tables.read("orchestration")
    cost = orchestration.overhead(results, RANGE, orchestration.POSTGRES) if results else None
    return replace(Options(), bookkeeping=cost.median * orchestration.ASSETS / 2) if cost else Options()


def measured_week() -> tuple[Run, Outcome] | None:
    """The week of small batches that was measured through the daemon, and the simulation of it; None unless it was measured.

    What a batch's steps take as plain functions is halved over staging and rolling up.
    """
    from benchmarks.orchestration_child import PLAIN
    from benchmarks.sections import orchestration
    from benchmarks.simulate_backfill import simulate

    results = tables.read("orchestration") or {"runs": []}
    weeks, plain = ([run for run in results["runs"] if run["what"] == what] for what in (orchestration.WEEK, PLAIN))
    if not weeks or not plain:
        return None
    steps = median(run["wall"] / run["partitions"] for run in plain) / 2
    alike = {"stage_seconds": steps, "roll_up_seconds": steps, "publish_seconds": 0.0, "swing": 0.0, "skew": 0.0}
    return weeks[0], simulate(replace(_as_recorded(), partitions=weeks[0]["partitions"], **alike))


def _backfill(model: Model) -> str:
    from benchmarks.simulate_backfill import row, shown, simulate, variants

    options = backfill_options(model)
    said = (
        f"{options.partitions} batches; an average one takes {options.stage_seconds:.0f} s to stage, "
        f"{options.roll_up_seconds:.0f} s to roll up and {options.publish_seconds:.1f} s to publish."
    )
    if week := measured_week():
        real, simulated = week
        said += (
            f" Checked: the [week that was measured](performance.md#dagster-starts-and-repetitions), {real['partitions']} small batches, "
            f"took {real['wall']:.0f} s in {real['runs']} runs; simulated, it takes {simulated.makespan:.0f} s in "
            f"{len(simulated.waits)}."
        )
    return f"{said}\n\n{shown([row(name, simulate(each)) for name, each in variants(options)])}"


def tables_named(text: str) -> set[str]:
    """The blocks that a page has."""
    return set(re.findall(r"<!-- table: ([\w-]+) -->", text))
