"""K2, D3 on Spark: a worker or the JVM is killed in the middle of a task; what its try has written is no part of anything."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rollup_assets_tests.faults.invariants import check_all, leftovers
from rollup_assets_tests.faults.site import Site

pytestmark = [pytest.mark.thorough, pytest.mark.xdist_group("spark")]


@pytest.fixture
def on_spark(site: Site) -> Iterator[Site]:
    """The site on Spark, in a JVM of each process's own; a task may be tried four times."""
    from rollup_assets.engines.spark_session import require_java
    from rollup_assets.errors import EngineError

    try:
        require_java()
    except EngineError as error:
        pytest.skip(str(error))
    site.overrides |= {"engine": "spark", "spark_master": "local[2,4]", "spark_conf": {"spark.ui.enabled": "false"}}
    return site


def locally(site: Site) -> None:
    """From here on without Spark: the same bytes come out."""
    for name in ("engine", "spark_master", "spark_conf"):
        del site.overrides[name]


@pytest.mark.scenario("K2", "D3")
@pytest.mark.parametrize("failpoint", ["read.rows", "stage.file", "rollup.file"])
def test_a_worker_is_killed_and_its_task_tried_again(on_spark: Site, failpoint: str) -> None:
    once = on_spark.home / "killed"
    running = on_spark.run(("make", on_spark.batch(0).key, on_spark.batch(1).key), failpoints=f"{failpoint}=kill({once})")
    running.succeeds()
    assert once.exists(), "no worker was killed"
    # Metadata of earlier commits may go; files of tries may not be there to begin with.
    assert not [path for path in leftovers(on_spark) if path.endswith(".parquet")]
    locally(on_spark)
    on_spark.finish()
    check_all(on_spark)


@pytest.mark.scenario("K2")
def test_the_jvm_is_killed(on_spark: Site) -> None:
    import psutil

    with on_spark.paused("rollup.file", ("make", on_spark.batch(0).key, on_spark.batch(1).key)) as running:
        (java,) = [child for child in psutil.Process(running.process.pid).children(recursive=True) if child.name() == "java"]
        java.kill()
        assert running.exit_code() not in (0, None), running.said
    locally(on_spark)
    on_spark.finish()
    check_all(on_spark)
