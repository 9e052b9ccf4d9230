"""What the Spark session is made of, and one sentence for everything that can be missing."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from rollup_assets.engines import spark_session
from rollup_assets.errors import EngineError
from rollup_assets.settings import Settings, load_settings
from rollup_assets_tests.conftest import SPARK_CANARY

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def spark_settings(home: Path, **overrides: Any) -> Settings:
    return load_settings(home=str(home), engine="spark", **overrides)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def java(folder: Path, version: str) -> Path:
    """A program that says it is Java of this version."""
    program = folder / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\necho 'openjdk version \"{version}\" 2025-01-01' >&2\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return folder


@pytest.mark.parametrize("master", ["local[2]", "spark://host:7077"])
def test_nobody_else_reaches_the_driver_unless_it_is_asked_for(master: str) -> None:
    properties = spark_session.session_properties(load_settings(engine="spark", spark_master=master))
    assert properties["spark.ui.enabled"] == "false"
    if master.startswith("local"):
        assert properties["spark.driver.host"] == properties["spark.driver.bindAddress"] == "127.0.0.1"
    asked = load_settings(engine="spark", spark_master=master, spark_conf={"spark.ui.enabled": "true"})
    assert spark_session.session_properties(asked)["spark.ui.enabled"] == "true"


def test_what_the_user_sets_goes_before_ours(tmp_path: Path) -> None:
    properties = spark_session.session_properties(
        spark_settings(tmp_path, spark_master="local[3]", spark_conf={"spark.shuffle.compress": "true", "spark.extra": "1"})
    )
    assert properties["spark.master"] == "local[3]"
    assert properties["spark.shuffle.compress"] == "true"
    assert properties["spark.extra"] == "1"
    assert properties["spark.sql.adaptive.enabled"] == "false"


def test_a_connect_server_gets_only_what_a_session_may_set(tmp_path: Path) -> None:
    properties = spark_session.session_properties(
        spark_settings(tmp_path, spark_remote="sc://spark:15002", spark_conf={"spark.sql.x": "1"})
    )
    assert properties["spark.remote"] == "sc://spark:15002"
    assert "spark.master" not in properties
    assert all(name.startswith(("spark.sql.", "spark.remote")) for name in properties)


def test_local_workers_run_the_drivers_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYSPARK_PYTHON", "/somewhere/else")
    monkeypatch.setattr(spark_session, "require_java", lambda: "17")
    spark_session.prepare(spark_settings(tmp_path, spark_master="local[2]"))
    assert os.environ["PYSPARK_PYTHON"] == sys.executable
    spark_session.prepare(spark_settings(tmp_path, spark_conf={"spark.pyspark.python": "./environment/bin/python"}))
    assert os.environ["PYSPARK_PYTHON"] == "./environment/bin/python"


def test_missing_java_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"^ROLLUP_ENGINE=spark needs Java 17 or 21, but the PATH has none and JAVA_HOME is not set;"):
        spark_session.require_java({"PATH": str(tmp_path)})
    with pytest.raises(EngineError, match=rf"JAVA_HOME={tmp_path} has none; install it, set JAVA_HOME, or set ROLLUP_ENGINE=local$"):
        spark_session.require_java({"PATH": os.environ["PATH"], "JAVA_HOME": str(tmp_path)})


@pytest.mark.parametrize("version", ["11.0.2", "1.8.0_392", "25"])
def test_java_of_another_version_is_one_sentence(version: str, tmp_path: Path) -> None:
    home = java(tmp_path / "jdk", version)
    number = version.removeprefix("1.")
    with pytest.raises(EngineError, match=rf"has version {number}, but Spark 4\.1 needs Java 17 or 21; install it and set JAVA_HOME$"):
        spark_session.require_java({"JAVA_HOME": str(home)})


@pytest.mark.parametrize(
    ("program", "mode", "reason"),
    [
        ("#!/bin/sh\n", 0o600, "Permission denied"),
        ("of another processor", 0o700, "Exec format error"),
        ("#!/bin/sh\nexec sleep 60\n", 0o700, r"it did not report its version within 0\.1 s"),
    ],
)
def test_java_that_cannot_be_run_is_one_sentence(
    program: str, mode: int, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark_session, "_JAVA_SECONDS", 0.1)
    file = java(tmp_path / "jdk", "17") / "bin" / "java"
    file.write_text(program)
    file.chmod(mode)
    with pytest.raises(EngineError, match=rf"^{file} cannot be run \({reason}\); install Java 17 or 21 and set JAVA_HOME$"):
        spark_session.require_java({"JAVA_HOME": str(tmp_path / "jdk")})


@pytest.mark.parametrize("version", ["17.0.15", "21"])
def test_java_that_spark_runs_on_is_found(version: str, tmp_path: Path) -> None:
    assert spark_session.require_java({"JAVA_HOME": str(java(tmp_path / "jdk", version))}) == version


@pytest.mark.parametrize(
    ("name", "field", "scheme"), [("ROLLUP_SPARK_MASTER", "spark_master", "spark"), ("ROLLUP_SPARK_REMOTE", "spark_remote", "sc")]
)
def test_a_server_that_is_not_there_is_one_sentence(
    name: str, field: str, scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark_session, "require_java", lambda: "17")
    uri = f"{scheme}://127.0.0.1:{free_port()}"
    with pytest.raises(EngineError, match=rf"^{name}={uri} cannot be reached \(.*refused\); start it there, or correct {name}$"):
        spark_session.prepare(spark_settings(tmp_path, **{field: uri}))


@pytest.mark.parametrize("first", [True, False])
def test_one_of_several_masters_is_enough(first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark_session, "require_java", lambda: "17")
    with socket.create_server(("127.0.0.1", 0)) as active:
        masters = [f"127.0.0.1:{active.getsockname()[1]}", f"127.0.0.1:{free_port()}"]
        spark_session.prepare(spark_settings(tmp_path, spark_master=f"spark://{','.join(masters if first else masters[::-1])}"))


def test_of_several_masters_that_are_not_there_each_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark_session, "require_java", lambda: "17")
    one, other = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    told = " and ".join(rf"ROLLUP_SPARK_MASTER=spark://{master} cannot be reached \(.*refused\)" for master in (one, other))
    with pytest.raises(EngineError, match=rf"^{told}; start one of them, or correct ROLLUP_SPARK_MASTER$"):
        spark_session.prepare(spark_settings(tmp_path, spark_master=f"spark://{one},{other}"))


@pytest.mark.parametrize(
    ("master", "wrong"),
    [
        ("spark://127.0.0.1", "spark://127.0.0.1 is not an address (it has no port)"),
        ("spark://:7077", "spark://:7077 is not an address (it has no host)"),
        ("spark://127.0.0.1:{port},", "spark:// is not an address (it has no host)"),
        ("spark://127.0.0.1:{port},standby", "spark://standby is not an address (it has no port)"),
        ("spark://master:x", "spark://master:x is not an address (Port could not be cast to integer value as 'x')"),
        ("spark://a..b:7077", "spark://a..b:7077 is not an address (encoding with 'idna' codec failed"),
    ],
)
def test_a_master_that_spark_would_not_take_is_one_sentence(
    master: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spark_session, "require_java", lambda: "17")
    with socket.create_server(("127.0.0.1", 0)) as active, pytest.raises(EngineError) as caught:
        spark_session.prepare(spark_settings(tmp_path, spark_master=master.format(port=active.getsockname()[1])))
    assert str(caught.value).startswith(f"ROLLUP_SPARK_MASTER={wrong}")
    assert str(caught.value).endswith("; write a host and a port")


def test_a_local_sessions_pages_are_this_machines(tmp_path: Path) -> None:
    """Which address they have Spark takes from the environment alone; in a process of its own, which starts a Java machine."""
    code = (
        "import socket, sys; from urllib.parse import urlsplit; from rollup_assets.settings import load_settings; "
        "from rollup_assets.engines.spark_session import open_session; "
        "conf = {'spark.ui.enabled': 'true', 'spark.ui.port': '0'}; "
        "session = open_session(load_settings(home=sys.argv[1], engine='spark', spark_master='local[1]', spark_conf=conf)); "
        "port = urlsplit(session.sparkContext.uiWebUrl).port; "
        "print(*(socket.socket().connect_ex((host, port)) for host in ('127.0.0.1', '127.0.0.2')))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "SPARK_LOCAL_IP"}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", str(errno.ECONNREFUSED)], done.stderr


def test_what_spark_refuses_is_one_sentence(tmp_path: Path) -> None:
    """In a process of its own: a context that fails ends the one that other tests share."""
    code = (
        "import sys; from rollup_assets.settings import load_settings; from rollup_assets.engines.spark_session import open_session; "
        "open_session(load_settings(home=sys.argv[1], engine='spark', spark_master='local[x]'))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1] == (
        "rollup_assets.errors.EngineError: Spark does not start (org.apache.spark.SparkException: Could not parse Master URL: 'local[x]'); "
        "correct ROLLUP_SPARK_MASTER or ROLLUP_SPARK_CONF"
    )


@pytest.mark.parametrize(
    ("thrown", "told"),
    [
        (
            "org.apache.spark.SparkException: Exception thrown in awaitResult: \n\tat org.apache.A.b(A.scala:1)\n"
            "Caused by: java.io.IOException: Failed to create a temp directory\n\tat java.base/C.d(Unknown Source)\n\t... 7 more\n"
            "Caused by: java.nio.file.FileSystemException: /tmp/blockmgr: No space left on device\n\tat java.base/E.f(Unknown Source)\n",
            "(org.apache.spark.SparkException: Exception thrown in awaitResult: , caused by java.nio.file.FileSystemException: "
            "/tmp/blockmgr: No space left on device)",
        ),
        (
            "java.net.BindException: Cannot assign requested address: Service 'sparkDriver' failed after 16 retries\n\tat java.base/G.h\n",
            "(java.net.BindException: Cannot assign requested address: Service 'sparkDriver' failed after 16 retries)",
        ),
        (
            "java.lang.NumberFormatException: Size must be specified as bytes (b)\n\tat org.apache.I.j(I.java:2)\n",
            "(java.lang.NumberFormatException: Size must be specified as bytes (b)); correct ROLLUP_SPARK_MASTER or ROLLUP_SPARK_CONF",
        ),
    ],
    ids=["a full disk", "an address", "a property"],
)
def test_settings_are_blamed_for_what_spark_says_of_them_alone(
    thrown: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what caused it all is told: of an error of ours logs show the message alone."""

    def fail(_: dict[str, str]) -> NoReturn:
        raise RuntimeError(f"An error occurred while calling None.org.apache.spark.api.java.JavaSparkContext.\n: {thrown}")

    monkeypatch.setattr(spark_session, "prepare", lambda _: None)
    with pytest.raises(EngineError) as caught:
        spark_session.open_session(spark_settings(tmp_path), fail)
    assert str(caught.value) == f"Spark does not start {told}"


def test_a_missing_pyspark_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark", None)
    with pytest.raises(EngineError, match=r"^ROLLUP_ENGINE=spark needs the Python package pyspark; install rollup_assets\[spark\]$"):
        spark_session.require_pyspark(connect=False)


@pytest.mark.xdist_group("spark")
def test_properties_reach_the_session_and_are_on_no_command_line(spark_session: SparkSession) -> None:
    import psutil

    assert spark_session.sparkContext.getConf().get("spark.rollups.canary") == SPARK_CANARY
    assert spark_session.sparkContext.getConf().get("spark.shuffle.compress") == "false"
    commands: list[str] = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # ended, or a zombie of another test's
            commands.append(" ".join(process.cmdline()))
    assert [command for command in commands if "SparkSubmit" in command], "the Java machine was looked at"
    assert [command for command in commands if "spark.rollups.canary" in command or "quoted" in command] == []


def test_properties_are_told_by_a_file_that_only_this_user_may_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spark_session, "_starts_no_java_machine", lambda _: False)
    monkeypatch.setenv("PYSPARK_SUBMIT_ARGS", "--verbose pyspark-shell")
    with spark_session._by_file({"spark.a": SPARK_CANARY}) as left:
        assert left == {}
        option, file, *rest = os.environ["PYSPARK_SUBMIT_ARGS"].split(" ")
        assert (option, rest) == ("--properties-file", ["--load-spark-defaults", "--verbose", "pyspark-shell"])
        assert stat.S_IMODE(Path(file).stat().st_mode) == 0o600
        assert stat.S_IMODE(Path(file).parent.stat().st_mode) == 0o700
    assert not Path(file).parent.exists()
    assert os.environ["PYSPARK_SUBMIT_ARGS"] == "--verbose pyspark-shell"


def test_a_session_that_starts_no_java_machine_is_told_its_properties() -> None:
    properties = {"spark.remote": "sc://spark:15002", "spark.sql.x": "1"}
    with spark_session._by_file(properties) as told:
        assert told == properties
    assert "PYSPARK_SUBMIT_ARGS" not in os.environ
