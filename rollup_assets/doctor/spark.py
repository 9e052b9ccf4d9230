"""Spark: Java, a session, its workers, what they can reach, and the jars that Spark SQL on the table would need."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollup_assets.doctor.findings import Chain, Check, Found, skipped
from rollup_assets.doctor.probes import probe_file, some_file
from rollup_assets.doctor.tasks import what_is_wrong_with_data, who
from rollup_assets.engines.base import NoProgress
from rollup_assets.errors import EngineError, RollupError, SettingsError, StorageError
from rollup_assets.settings import Settings
from rollup_assets.storage.filesystems import Place

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

TASKS = 2
# Jobs are stopped this many seconds before the deadline: a stopped job reports more than a check that got no answer.
_BEFORE_DEADLINE = 3.0
_UNUSED = "ROLLUP_ENGINE=local needs none"


def chains(deadline: float) -> list[Chain]:
    """``deadline``: when all checks have to be done, on the monotonic clock."""
    spark = _Spark(deadline)
    checks = (
        Check("Java", java, "JAVA_HOME"),
        Check("Spark", spark.session_opens, "ROLLUP_SPARK_MASTER, ROLLUP_SPARK_REMOTE and ROLLUP_SPARK_CONF"),
        Check("workers", spark.workers, "ROLLUP_SPARK_CONF and the cluster's own pages"),
        Check("workers' data", spark.workers_data, "ROLLUP_S3_ENDPOINT, as Spark's workers see it"),
    )
    return [Chain(checks), Chain((Check("jars", jars, "ROLLUP_SPARK_CONF"),))]


def java(settings: Settings) -> Found:
    """A Java that Spark runs on."""
    from rollup_assets.engines.spark_session import require_java, require_pyspark

    if settings.engine != "spark":
        return skipped(_UNUSED)
    require_pyspark(connect=bool(settings.spark_remote))
    if settings.spark_remote:
        return skipped("a Spark Connect client needs none")
    return Found(require_java())


@dataclass(slots=True)
class _Spark:
    """The examination's session. It is not stopped, but ends with the process: it may be one that existed before."""

    deadline: float
    _session: SparkSession | None = None

    def session_opens(self, settings: Settings) -> Found:
        """Open a session as a run does."""
        if settings.engine != "spark":
            return skipped(_UNUSED)
        from rollup_assets.engines.spark_session import open_session

        self._session = open_session(settings)
        where = f"ROLLUP_SPARK_REMOTE={settings.spark_remote}" if settings.spark_remote else f"ROLLUP_SPARK_MASTER={settings.spark_master}"
        return Found(f"{where}: Spark {self._session.version}")

    def workers(self, settings: Settings) -> Found:
        """Run tasks that import this package on the workers."""
        if settings.engine != "spark":
            return skipped(_UNUSED)
        found = self._run(settings, who, list(range(TASKS)))
        return Found(f"{TASKS} tasks ran: {', '.join(sorted(set(found)))}")

    def workers_data(self, settings: Settings) -> Found:
        """Whether the workers, with their own credentials, can read raw data, see what the driver has written, and write."""
        if settings.engine != "spark":
            return skipped(_UNUSED)
        raw, stage, warehouse = (Place.parse(location, settings.s3) for location in (settings.raw, settings.stage, settings.warehouse))
        with contextlib.ExitStack() as stack:
            try:
                file = some_file(raw)
                probes = tuple(stack.enter_context(probe_file(place)) for place in (stage, warehouse))
            except (StorageError, OSError):
                return skipped("raw data, stage or warehouse cannot be reached from here either")
            problems: list[Found | None] = self._run(settings, what_is_wrong_with_data, [(raw, file, probes)] * TASKS)
        for problem in problems:
            if problem is not None:
                return dataclasses.replace(problem, text=f"on Spark's workers: {problem.text}")
        return Found("the workers read raw data, and read and write stage and warehouse")

    def _run(self, settings: Settings, task: Any, items: list[Any]) -> list[Any]:
        from rollup_assets.engines.spark import SparkEngine

        session = self._session
        assert session is not None
        seconds = max(0.1, self.deadline - _BEFORE_DEADLINE - time.monotonic())
        late = threading.Event()

        def stop() -> None:
            late.set()
            _stop_jobs(session)

        timer = threading.Timer(seconds, stop)
        timer.daemon = True
        timer.start()
        try:
            engine = SparkEngine(lambda: session, task_memory=settings.spark_task_memory)
            return engine.map(task, items, stage="doctor", rows=0, progress=NoProgress())
        except RollupError:
            raise
        except Exception:
            if not late.is_set():
                raise
            raise EngineError(
                f"Spark's workers did not finish {TASKS} small tasks within {seconds:.0f} s; look at the cluster's own pages for workers "
                "with free cores and memory, lower spark.executor.memory or spark.executor.cores in ROLLUP_SPARK_CONF, or wait longer with "
                "`rollups doctor --timeout`"
            ) from None
        finally:
            timer.cancel()


def jars(settings: Settings) -> Found:
    """The jars that Spark SQL on the table would need; the engine needs none."""
    if settings.engine != "spark":
        return skipped(_UNUSED)
    import pyspark

    from rollup_assets.iceberg.spark import packages, session_properties

    try:
        session_properties(settings)
    except SettingsError as error:
        return skipped(f"the engine needs none, and Spark SQL cannot read this table: {error}")
    conf = settings.spark_conf
    named = [*conf.get("spark.jars", "").split(","), *conf.get("spark.jars.packages", "").split(",")]
    there = {jar.name for jar in (Path(pyspark.__file__).parent / "jars").glob("*.jar")} | {name.rpartition("/")[2] for name in named}
    missing = []
    for coordinates in packages(settings):
        _, artifact, version = coordinates.split(":")
        if coordinates not in there and f"{artifact}-{version}.jar" not in there:
            missing.append(coordinates)
    if not missing:
        return Found(f"{', '.join(packages(settings))}, for Spark SQL on the table")
    return Found(f"the engine needs none; Spark SQL on the table needs {', '.join(missing)} (`rollups spark-conf` names them)")


def _stop_jobs(session: SparkSession) -> None:
    """Stop the session's jobs, including those of other code: the tag of the engine's jobs is known only to the engine."""
    from pyspark.errors import PySparkException

    with contextlib.suppress(Exception):
        try:
            session.sparkContext.cancelAllJobs()
        except PySparkException:  # Spark Connect has no context
            session.interruptAll()
