"""What batches of other sizes and machines need, from what was measured: cores, bytes, requests, files, commits and money.

Every figure of a cost comes from committed results; prices, and what a cluster loses, are inputs. No measuring and no text here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import numpy as np

from benchmarks.summary import cpu, ratio, select
from benchmarks.tables import Results
from benchmarks.tasks import OURS, OURS_ON_SPARK, RAW_TO_PUBLISHED

STEPS = ("repartition", "rollups", "publish")
STORED = ("repartitioned", "partial points", "table")
"""Assets that lie in S3."""
PAID_AS_PUT = ("PUT", "POST", "LIST")
PAID_AS_GET = ("GET", "HEAD")
_POINTS_PER_SHARD = 4_000_000
_FEWEST_SHARDS, _MOST_SHARDS = 16, 4096
_RAW_FILE_POINTS = 12_000_000
_LARGE = 10**10
_TASK_MEMORY, _TASK_FIXED, _ROW_BYTES = 2**30, 48 << 20, 52
"""Bytes of a sort task: its memory, fixed part and part per row, as in ``steps.sort`` with dimensions that change."""
_GETS_A_SECOND, _PUTS_A_SECOND = 5500, 3500
"""Request rates that Amazon guarantees per prefix."""


class CapacityError(ValueError):
    """The results lack something that the model needs."""


@dataclass(frozen=True, slots=True)
class Prices:
    """Dollars, as listed for an American region of Amazon; replace them with your own."""

    core_hour: float = 0.05
    puts: float = 0.005
    """Per thousand requests that write or list."""
    gets: float = 0.0004
    """Per thousand requests that read."""
    gb_month: float = 0.023


@dataclass(frozen=True, slots=True)
class Assumptions:
    """What is not measured here."""

    busy: float = 0.7
    """Share of the cores' time that tasks use on a cluster; the rest goes to stragglers, scheduling and waiting for S3."""
    within_hours: float = 0.25
    """How long an hour's batch may take, such that there is time to redo a lost one and to catch up on a backlog."""
    staged_days: float = 7.0
    """How long staged assets are kept; the table's files stay."""
    points_a_series: int = 60
    """In an hourly batch: one per minute, so one point per 1 min rollup."""


@dataclass(frozen=True, slots=True)
class Cpu:
    """CPU of a batch in one process, by step: a fixed start in seconds, and seconds a point."""

    start: dict[str, float]
    point: dict[str, float]
    measured_points: int

    def seconds(self, points: int, step: str | None = None) -> float:
        """Seconds of one step, or of all."""
        return sum(self.start[name] + self.point[name] * points for name in ([step] if step else STEPS))


@dataclass(frozen=True, slots=True)
class Counts:
    """Something counted: a fixed part, and parts per raw file, shard, group of shards and point."""

    parts: tuple[float, float, float, float, float]

    def of(self, shape: Shape) -> float:
        """The count in a batch; never below 0."""
        return max(0.0, float(np.dot(self.parts, shape.vector)))


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides how a batch is cut."""

    points: int
    raw_files: int
    shards: int
    groups: int

    @property
    def vector(self) -> tuple[float, float, float, float, float]:
        """The quantities that counts are linear in."""
        return 1.0, float(self.raw_files), float(self.shards), float(self.groups), float(self.points)


def shape_of(points: int, *, raw_files: int | None = None, shards: int | None = None) -> Shape:
    """A batch with as many shards as it should have, up to four per file of the table, cut as the product cuts it."""
    from rollup_assets.steps.planning import shard_groups

    if shards is None:
        shards = _FEWEST_SHARDS
        while shards < _MOST_SHARDS and shards * _POINTS_PER_SHARD < points:
            shards *= 2
    return Shape(points, raw_files or max(1, points // _RAW_FILE_POINTS), shards, len(shard_groups(shards, points)))


@dataclass(frozen=True)
class Model:
    """Costs of a batch of sparse points.

    Args:
        sizes: results of ``benchmarks.sizes``: CPU by size.
        capacity: results of ``benchmarks.capacity``: requests, bytes, files, statements.
        publishing: results of ``benchmarks.publishing``: seconds of a publish by number of files.
        spark: results of ``benchmarks.spark``: the Spark engine's CPU beside the local engine's.
        seed_size: results of ``benchmarks.seed_size``; without them costs are those of the largest batch in ``sizes``.
    """

    sizes: Results
    capacity: Results
    publishing: Results
    spark: Results
    seed_size: Results | None = None

    @cached_property
    def calibrated(self) -> Cpu:
        """CPU from the largest batch in ``sizes`` alone: the check predicts the other sizes from it."""
        return self._cpu(max(run["size"] for run in self.sizes["runs"]))

    @cached_property
    def cpu(self) -> Cpu:
        """CPU from the largest batch that was measured at all."""
        return self._cpu(max(size for size, _ in self.measured_cpu))

    @cached_property
    def measured_cpu(self) -> list[tuple[int, dict[str, float]]]:
        """Points and median CPU seconds by step of every size, without the fixed start's."""
        found = [(size, self._median_cpu(size)) for size in sorted({run["size"] for run in self._runs}) if size != self._start]
        if self.seed_size is not None:
            runs = [run for run in self.seed_size["runs"] if (run["engine"], run["task"]) == ("rollup_assets", "raw-to-published")]
            found.append((int(runs[0]["rows"]), _medians([run["cpu"] for run in runs])))
        return found

    @property
    def _start(self) -> int:
        return int(self.sizes["start_rows"])

    @cached_property
    def _runs(self) -> list[Results]:
        threads = max(run["threads"] for run in self.sizes["runs"])
        return [run for run in self.sizes["runs"] if run["threads"] == threads]

    def _median_cpu(self, size: int) -> dict[str, float]:
        runs = [run["cpu"] for run in self._runs if run["size"] == size]
        if not runs:
            raise CapacityError(f"no batch of {size:,} points was measured; run `python -m benchmarks.sizes`")
        return _medians(runs)

    def _cpu(self, size: int) -> Cpu:
        start, cpu = self._median_cpu(self._start), dict(self.measured_cpu)[size]
        return Cpu(start, {step: max(0.0, cpu[step] - start[step]) / size for step in STEPS}, size)

    @cached_property
    def spark_factor(self) -> float:
        """CPU of the Spark engine as a multiple of the local engine's, raw to published."""
        on_spark, here = (select(self.spark["runs"], engine, RAW_TO_PUBLISHED) for engine in (OURS_ON_SPARK, OURS))
        return ratio(on_spark, here, cpu).median

    @cached_property
    def publish_file(self) -> float:
        """Additional seconds of a publish per file, on PostgreSQL and S3: the slope between the fewest and the most files measured."""
        fewest, most = (choose(self._publishes) for choose in (min, max))
        return (self._publishes[most] - self._publishes[fewest]) / (most - fewest)

    @cached_property
    def publish_start(self) -> float:
        """Seconds of a publish without files, on PostgreSQL and S3."""
        fewest = min(self._publishes)
        return max(0.0, self._publishes[fewest] - fewest * self.publish_file)

    @cached_property
    def _publishes(self) -> dict[int, float]:
        """Median seconds by number of files, on PostgreSQL and S3."""
        runs = [run for run in self.publishing["runs"] if run["catalog"] == "PostgreSQL, S3"]
        return {files: float(median(run["seconds"] for run in runs if run["files"] == files)) for files in {run["files"] for run in runs}}

    @cached_property
    def bytes_per_point(self) -> dict[str, float]:
        """Bytes per point of the largest counted batch: raw, moved, staged, and of the table."""
        largest = self.checked_run
        return {name: size / largest["points"] for name, size in largest["bytes"].items() if name != "manifests"}

    def points_in_time(self, assumptions: Assumptions) -> float:
        """Points that one core on Spark does in the time that a batch may take: the most that its largest shard may have."""
        return assumptions.within_hours * 3600 / (sum(self.cpu.point.values()) * self.spark_factor)

    @cached_property
    def table_rows_per_point(self) -> float:
        """Table rows per point, of all resolutions."""
        largest = self.checked_run
        return float(sum(largest["rollup_rows"].values()) / largest["points"])

    @cached_property
    def _fitted(self) -> list[Results]:
        return sorted(self.capacity["runs"], key=lambda run: run["points"])[:-1]

    @property
    def checked_run(self) -> Results:
        """The largest counted batch, which request counts are checked with and not taken from."""
        return max(self.capacity["runs"], key=lambda run: run["points"])

    def requests(self, shape: Shape) -> dict[str, dict[str, float]]:
        """Requests to S3, by step and kind."""
        found = {
            step: {kind: self._counts([run["requests"][step][kind] for run in self._fitted]).of(shape) for kind in kinds}
            for step, kinds in self._fitted[0]["requests"].items()
        }
        # Not linear in anything: two requests begin and complete each file that is large enough to be sent in parts.
        large = self._large_files(shape)
        return {step: {**kinds, "POST": 2.0 * large[step]} for step, kinds in found.items()}

    def _large_files(self, shape: Shape) -> dict[str, int]:
        """Files by step that are sent in parts, if each has as many bytes as the others of its kind."""
        from rollup_assets.storage.objects import PART_BYTES

        largest = self.checked_run
        rows = sum(largest["rollup_rows"].values())
        sizes = {name: size * shape.points for name, size in self.bytes_per_point.items()}
        staged = [(sizes["repartitioned"], shape.shards), (sizes["partial points"], shape.groups)]
        table = [(sizes["table"] * found / rows, shape.groups) for found in largest["rollup_rows"].values()]
        return {
            step: sum(files for size, files in kinds if size / files > PART_BYTES)
            for step, kinds in (("repartition", staged), ("rollups", table), ("publish", []))
        }

    def manifest_bytes(self, shape: Shape) -> float:
        """Bytes of a batch's three manifests, which name every file, and say of data files what Iceberg's metadata is to say."""
        largest = self.checked_run
        files = shape.shards + shape.groups * (1 + len(largest["rollup_rows"]))
        return float(largest["bytes"]["manifests"] / sum(largest["files"].values()) * files)

    def _counts(self, counted: Sequence[float]) -> Counts:
        shapes = np.array([shape_of_run(run).vector for run in self._fitted])
        if np.linalg.matrix_rank(shapes) < shapes.shape[1]:
            raise CapacityError("the counted batches differ in too few ways; run `python -m benchmarks.capacity`")
        parts, *_ = np.linalg.lstsq(shapes, np.array(counted, dtype=float), rcond=None)
        return Counts(tuple(float(part) for part in parts))  # type: ignore[arg-type]


def shape_of_run(run: Results) -> Shape:
    """The shape of a counted batch."""
    return Shape(run["points"], run["raw_files"], run["shards"], run["groups"])


def _medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {step: float(median(run[step] for run in runs)) for step in STEPS}


@dataclass(frozen=True, slots=True)
class Plan:
    """What an hourly batch needs."""

    shape: Shape
    series: int
    cpu_seconds: float
    """On the local engine."""
    spark_cpu_seconds: float
    cores: float
    """Cores on Spark for the batch to end in time."""
    moved: float
    stored: float
    """Bytes: staged and of the table."""
    table: float
    table_files: int
    manifest_bytes: float
    puts: float
    gets: float
    publish_seconds: float
    gets_a_second: float
    """While the batch is made, if that takes all of the time it may take."""
    dollars_a_month: dict[str, float]
    """``cores`` (used, not reserved), ``requests``, and ``storage`` of all that one month adds."""


def plan(model: Model, rows: int, assumptions: Assumptions, prices: Prices) -> Plan:
    """What it takes to make ``rows`` 1 min rollup rows an hour, one point each, in hourly batches."""
    shape = shape_of(rows)
    cpu = model.cpu.seconds(rows)
    spark = cpu * model.spark_factor
    # Cores are there for a part of the hour, and waiting ones are paid for, too.
    cores = spark / assumptions.busy / (assumptions.within_hours * 3600)
    requests = model.requests(shape)
    puts, gets = (sum(kinds[kind] for kinds in requests.values() for kind in paid) for paid in (PAID_AS_PUT, PAID_AS_GET))
    by_asset = {name: model.bytes_per_point[name] * rows for name in STORED}
    staged = by_asset["repartitioned"] + by_asset["partial points"]
    files = shape.groups * 3
    hours = 730
    return Plan(
        shape=shape,
        series=rows // assumptions.points_a_series,
        cpu_seconds=cpu,
        spark_cpu_seconds=spark,
        cores=cores,
        moved=model.bytes_per_point["moved"] * rows,
        stored=sum(by_asset.values()),
        table=by_asset["table"],
        table_files=files,
        manifest_bytes=model.manifest_bytes(shape),
        puts=puts,
        gets=gets,
        publish_seconds=model.publish_start + model.publish_file * files,
        gets_a_second=gets / (assumptions.within_hours * 3600),
        dollars_a_month={
            "cores": spark / assumptions.busy / 3600 * prices.core_hour * hours,
            "requests": (puts * prices.puts + gets * prices.gets) / 1000 * hours,
            "storage": (by_asset["table"] * hours + staged * 24 * assumptions.staged_days) / 1e9 * prices.gb_month,
        },
    )


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of the design."""

    what: str
    rows: float
    """1 min rollup rows an hour at which it is reached."""
    then: str


def limits(model: Model, assumptions: Assumptions) -> list[Limit]:
    """All limits, in the order in which they are reached."""
    from rollup_assets.steps.planning import POINTS_PER_GROUP

    allowed = assumptions.within_hours * 3600
    point = sum(model.cpu.point.values())
    # Publishing is a single process that holds the table's lock: allow it a tenth of the time.
    files = (allowed / 10 - model.publish_start) / model.publish_file if model.publish_file > 0 else math.inf
    requests = model.requests(shape_of(_LARGE)).values()
    gets, puts = (max(kinds[kind] for kinds in requests) / _LARGE for kind in ("GET", "PUT"))
    found = [
        Limit("2 cores, local engine", allowed * 2 / point, "more cores: threads need nothing else"),
        Limit("64 cores of one machine, should they do 32 times as much as 2", allowed * 64 / point, "`ROLLUP_ENGINE=spark`"),
        Limit(
            "`ROLLUP_SHARDS` ends at 4096, and the table's files grow beyond 8 M rows",
            float(_MOST_SHARDS * POINTS_PER_GROUP),
            "nothing, up to files of 512 MB; then shorter batches (`ROLLUP_BATCH=15m`)",
        ),
        Limit(
            "a shard's points do not fit `ROLLUP_SPARK_TASK_MEMORY=1GiB`, and are sorted in runs, which reads them twice",
            _MOST_SHARDS * (_TASK_MEMORY - _TASK_FIXED) / _ROW_BYTES,
            "more memory for a task, or shorter batches",
        ),
        Limit(
            "publishing takes a tenth of the time, in one process under the table's lock",
            files / 3 * POINTS_PER_GROUP,
            "larger files; then a table for each organization or range of metrics, with a lock of its own",
        ),
        Limit(
            "S3 is asked for 5,500 objects a second below one prefix",
            allowed * _GETS_A_SECOND / gets if gets > 0 else math.inf,
            "S3 divides prefixes by itself, and says 503 for minutes meanwhile; a bucket for each asset",
        ),
        Limit("S3 is sent 3,500 objects a second below one prefix", allowed * _PUTS_A_SECOND / puts if puts > 0 else math.inf, "the same"),
    ]
    return sorted(found, key=lambda limit: limit.rows)
