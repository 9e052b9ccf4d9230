"""Fixtures that every test may use: an environment without settings in it, and pipelines on temporary folders."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import hypothesis
import pytest

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from deploy.servers.postgres import PostgresServer
    from deploy.servers.seaweedfs import S3Server
    from rollup_assets.pipeline import Pipeline
    from rollup_assets_tests.faults.report import Recorder
    from rollup_assets_tests.s3 import S3Folder

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)
MakePipeline = Callable[..., "Pipeline"]
WithDagsterHome = Callable[[Path], Path]

# Small enough that a test takes milliseconds; shards > threads > 1, so that order and concurrency can go wrong.
SMALL: dict[str, Any] = {"shards": 4, "threads": 2, "memory": "256MiB"}

SPARK_CANARY = r"key=va\lue: #1! $HOME 'quoted' \"twice\" äß"
"""A property of the tests' Spark session that nobody else may see, of characters that somebody might take for something else."""

# Read before the fixture below hides it.
SKIPS_FAIL = os.environ.get("ROLLUP_TEST_REQUIRE") == "all"
"""Whether everything a test may need has to be there, as in continuous integration."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """``make test-faults`` gives both."""
    parser.addoption("--faults", action="store_true", help="only tests of fault scenarios, the thorough ones too")
    parser.addoption("--seed", type=int, default=0, help="of whatever the fault suite leaves to chance; the same seed repeats a run")
    parser.addoption("--faults-report", type=Path, help="where the fault suite reports to; .rollups/faults/report.json unless given")


def pytest_configure(config: pytest.Config) -> None:
    """The mark of xdist, known without xdist too, and those of the fault suite. Ctrl-C works whoever has started the tests."""
    # A shell's background process ignores SIGINT, and so did tests that interrupt themselves: `nohup make test-faults &` failed.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Results count, not time: on a busy machine a test failed since its examples were made slowly.
    hypothesis.settings.register_profile("results", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
    hypothesis.settings.load_profile("results")
    config.addinivalue_line("markers", "xdist_group(name): tests of a group run in one process")
    config.addinivalue_line("markers", "scenario(name, …): the fault scenarios that a test is of, as in docs/reliability.md")
    config.addinivalue_line("markers", "thorough: too long for `make test`; a part of `make test-faults` only")
    config.addinivalue_line(
        "markers", "daemon: starts Dagster's web server and daemon, and takes about two minutes; left out by -m 'not daemon'"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Either everything but the thorough tests, or the fault suite, whose results tell their scenarios."""
    faults = bool(config.getoption("--faults"))
    chosen = [item for item in items if (item.get_closest_marker("scenario") if faults else not item.get_closest_marker("thorough"))]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen
    for item in items if faults else ():
        item.user_properties.append(("scenarios", [name for mark in item.iter_markers("scenario") for name in mark.args]))


_RECORDER: pytest.StashKey[Recorder] = pytest.StashKey()


def pytest_report_header(config: pytest.Config) -> str | None:
    """The seed, without which a failure could not be repeated."""
    return f"fault suite: --seed {config.getoption('--seed')}" if config.getoption("--faults") else None


def pytest_sessionstart(session: pytest.Session) -> None:
    """The process that hears of all results records them; workers of xdist do not."""
    if session.config.getoption("--faults") and not hasattr(session.config, "workerinput"):
        from rollup_assets_tests.faults.report import Recorder

        recorder = session.config.stash[_RECORDER] = Recorder()
        session.config.pluginmanager.register(_Listener(recorder))


class _Listener:
    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        scenarios = dict(report.user_properties).get("scenarios", [])
        self._recorder.heard(report.nodeid, scenarios, report.outcome, report.duration)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write down what became of the fault suite."""
    if (recorder := session.config.stash.get(_RECORDER, None)) is not None:
        from rollup_assets_tests.faults.report import DEFAULT

        recorder.write(session.config.getoption("--faults-report") or DEFAULT, session.config.getoption("--seed"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With ``ROLLUP_TEST_REQUIRE=all`` a skipped test has failed; expected failures (xfail) stay what they are."""
    return _failed_if_skipped((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that is skipped as a whole."""
    return _failed_if_skipped((yield))


def _failed_if_skipped(report: Report) -> Report:
    if SKIPS_FAIL and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason} (ROLLUP_TEST_REQUIRE=all: a skipped test is a failure)"
    return report


@pytest.fixture(scope="session", autouse=True)
def _no_settings_from_outside() -> Iterator[None]:
    """The developer's own ``ROLLUP_*``, ``AWS_*`` and ``DAGSTER_HOME`` decide nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("ROLLUP_", "AWS_")) or name == "DAGSTER_HOME":
                patch.delenv(name)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        yield


@pytest.fixture(scope="session", autouse=True)
def _java_that_starts_quickly() -> Iterator[None]:
    """Spark's processes live for seconds here, too short for what the second compiler makes."""
    with pytest.MonkeyPatch.context() as patch:
        # The environment's options come after ours, and overrule them.
        patch.setenv("JDK_JAVA_OPTIONS", f"-XX:TieredStopAtLevel=1 {os.environ.get('JDK_JAVA_OPTIONS', '')}".rstrip())
        yield


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """What ``--seed`` says: where the fault suite leaves something to chance, this decides."""
    return int(request.config.getoption("--seed"))


@pytest.fixture(scope="session")
def make_pipeline() -> MakePipeline:
    """``make_pipeline(home, **settings)``: a pipeline whose every folder lies in ``home``, with small settings unless overridden.

    Session-scoped, so that Hypothesis tests can make one per example; it keeps no state.
    """

    def make(home: Path, **overrides: Any) -> Pipeline:
        from rollup_assets.pipeline import Pipeline
        from rollup_assets.settings import load_settings

        return Pipeline.from_settings(load_settings(home=str(home), **{**SMALL, **overrides}))

    return make


@pytest.fixture(scope="session")
def fresh_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """``fresh_home()``: a new empty folder at each call, also several within one test."""

    def fresh() -> Path:
        return tmp_path_factory.mktemp("home")

    return fresh


@pytest.fixture(scope="session")
def with_dagster_home(tmp_path_factory: pytest.TempPathFactory) -> WithDagsterHome:
    """``with_dagster_home(home)``: that folder, now with a Dagster home in it, as the first backfill would make one.

    A copy: to make its databases takes half a second, and a second more in a process that has not made any yet.
    """
    from rollup_assets.defs.dagster_home import ensure_dagster_home
    from rollup_assets.settings import load_settings

    made = ensure_dagster_home(load_settings(home=str(tmp_path_factory.mktemp("new"))))

    def with_one(home: Path) -> Path:
        shutil.copytree(made, home / made.name)
        return home

    return with_one


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A PostgreSQL server of this session; tests make databases and roles of their own in it."""
    from deploy.servers.postgres import postgres

    with postgres(tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture(scope="session")
def fresh_catalog(postgres_server: PostgresServer) -> Callable[[], dict[str, Any]]:
    """``fresh_catalog()``: settings of a new catalog in PostgreSQL, with a role that may do what runs need and no more."""
    numbers = itertools.count(1)

    def fresh() -> dict[str, Any]:
        from rollup_assets.iceberg.database import initialize
        from rollup_assets.settings import load_settings

        database = role = f"catalog_{next(numbers)}"
        postgres_server.create_role(role, "its password")
        postgres_server.create_database(database)
        settings = {"catalog": postgres_server.uri(database, role), "catalog_password": "its password"}
        admin = load_settings(**settings, catalog_admin_password=postgres_server.superuser_password)
        initialize(admin, admin=postgres_server.superuser)
        return settings

    return fresh


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3 server of this session, with the buckets ``raw`` and ``lake``; tests keep to a folder of their own in them."""
    from deploy.servers.seaweedfs import seaweedfs

    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def s3_folder(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Folder:
    """A folder of the test's own on that server; the environment is the pipeline's (``ROLLUP_S3_*`` and its credentials)."""
    from rollup_assets_tests.s3 import S3Folder

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return S3Folder(s3_server, uuid.uuid4().hex[:12])


@pytest.fixture(scope="session")
def s3_server_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The same over TLS, with a certificate of an authority that nobody else knows."""
    from deploy.servers.seaweedfs import seaweedfs

    with seaweedfs(tmp_path_factory.mktemp("seaweedfs-tls"), tls=True) as server:
        yield server


@pytest.fixture(scope="session")
def spark_session(s3_server: S3Server) -> Iterator[SparkSession]:
    """One local session with two cores; tests that use it are of the xdist group ``spark``, so that one process has it.

    Its workers have the credentials of ``s3_server`` in their environment, as they would on a cluster.
    """
    from rollup_assets.engines.spark_session import open_session, require_java
    from rollup_assets.errors import EngineError
    from rollup_assets.settings import load_settings

    try:
        require_java()
    except EngineError as error:
        pytest.skip(str(error))
    conf = {
        "spark.ui.enabled": "false",
        # Tasks of tests are functions of tests.
        "spark.executorEnv.PYTHONPATH": str(Path(__file__).parent.parent),
        "spark.rollups.canary": SPARK_CANARY,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            if name.startswith("AWS_"):
                patch.setenv(name, value)
        session = open_session(load_settings(engine="spark", spark_master="local[2]", spark_conf=conf))
    yield session
    session.stop()
