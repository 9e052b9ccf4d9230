"""Dagster's Spark session: made by dagster_pyspark's resource, when the first task has to run, one a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import dagster as dg
import pytest

from rollup_assets.defs.resources import Engine, pipeline, resources
from rollup_assets.engines import spark_session as sessions
from rollup_assets.engines.base import NoProgress, TaskContext
from rollup_assets.settings import Settings, load_settings

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

pytestmark = pytest.mark.xdist_group("spark")


def settings_in(home: Path, **overrides: Any) -> Settings:
    return load_settings(home=str(home), engine="spark", spark_master="local[2]", **overrides)


def double(item: int, context: TaskContext) -> int:  # noqa: ARG001
    return 2 * item


def test_a_run_has_one_session_and_only_if_a_task_runs(
    spark_session: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster_pyspark

    made: list[dict[str, Any]] = []

    class Counted(dagster_pyspark.LazyPySparkResource):
        @property
        def spark_session(self) -> Any:
            made.append(dict(self.spark_config))
            return super().spark_session

    monkeypatch.setattr(dagster_pyspark, "LazyPySparkResource", Counted)
    settings = settings_in(tmp_path, spark_conf={"spark.secret": "canary"})
    given = resources(settings)
    with dg.build_resources(given) as built:
        work = pipeline(settings, built.storage, built.catalog, built.engine)
        assert made == []
        for _ in range(2):
            assert work.engine.map(double, [1, 2], stage="stage", rows=0, progress=NoProgress()) == [2, 4]
        again = pipeline(settings, built.storage, built.catalog, built.engine)
        assert again.engine.map(double, [3], stage="stage", rows=0, progress=NoProgress()) == [6]
    assert len(made) == 2, "the second step of a run asks the same resource"
    assert made[0]["spark.master"] == "local[2]"
    assert made[0]["spark.secret"] == "canary"
    assert spark_session.getActiveSession() is not None


def test_what_dagster_shows_of_the_engine_has_no_property_of_the_session(tmp_path: Path) -> None:
    engine = resources(settings_in(tmp_path, spark_conf={"spark.hadoop.fs.s3a.secret.key": "canary"}))["engine"]
    assert isinstance(engine, Engine)
    assert "canary" not in str(engine.model_dump())


def test_ctrl_c_stays_with_who_had_it(spark_session: SparkSession, tmp_path: Path) -> None:
    """PySpark takes it for itself when it starts; Dagster would not learn that a run was terminated."""
    import signal

    before = signal.getsignal(signal.SIGINT)

    def make(properties: dict[str, str]) -> SparkSession:  # noqa: ARG001
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return spark_session

    assert sessions.open_session(settings_in(tmp_path), make) is spark_session
    assert signal.getsignal(signal.SIGINT) is before
