"""The Spark engine's session: made from the settings, after checking that what it needs is there.

Java, the master and the Connect server are looked for first, since Spark waits for them for minutes or fails in a stack trace. What
runs in the session stays out (``engines.spark``).
"""

from __future__ import annotations

import contextlib
import os
import queue
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from rollup_assets.errors import EngineError
from rollup_assets.interruptible import wait_for_one
from rollup_assets.settings import Settings
from rollup_assets.threads import thread_pool

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

JAVA_VERSIONS = (17, 21)
"""Versions that Spark 4.1 runs on, according to its documentation."""
_CONNECT_SECONDS = 5.0
_JAVA_SECONDS = 20.0
_PYTHON = "spark.pyspark.python"
_ADDRESS = "SPARK_LOCAL_IP"
_SUBMIT = "PYSPARK_SUBMIT_ARGS"
_OF_SETTINGS = re.compile("Could not parse Master URL|IllegalArgumentException|NumberFormatException")
"""How Spark says that a master or a property is invalid."""

# Settings of a running session; a Connect server takes them too.
_SESSION = {
    # A job is two stages of a known number of tasks: nothing is left to adapt.
    "spark.sql.adaptive.enabled": "false",
    # A row of the shuffle is a parcel of up to 32 MiB, and Arrow's batches are built whole in the JVM.
    "spark.sql.execution.arrow.maxBytesPerBatch": str(64 << 20),
    "spark.sql.session.timeZone": "UTC",
}
# Settings of an application, fixed when it starts.
_APPLICATION = {
    "spark.app.name": "rollup_assets",
    # Parcels are already compressed if it is worth it: lz4 over lz4 costs time and saves nothing.
    "spark.shuffle.compress": "false",
    # With few partitions Spark would write a file for each and then copy them into one, writing everything twice.
    "spark.shuffle.sort.bypassMergeThreshold": "0",
    "spark.ui.showConsoleProgress": "false",
    # Anybody who reaches this machine could see its pages, and end jobs on them.
    "spark.ui.enabled": "false",
    # Names and values that Spark's pages and event log do not show. Spark's default is secret|password|token|access[.]?key.
    "spark.redaction.regex": r"(?i)secret|passw(or)?d|passphrase|token|credential|(access|account|private|shared)[._-]?key",
}
_LOCAL = {
    # The driver is the only executor, so its heap holds the parcels of several tasks.
    "spark.driver.memory": "2g",
    # No other machine has to reach it.
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    # Sockets between the JVM and its workers: half of TCP's CPU time. Not on a cluster, where they would need a folder with a short path.
    "spark.python.unix.domain.socket.enabled": "true",
}


def session_properties(settings: Settings) -> dict[str, str]:
    """Every ``spark.*`` property of the session; those of ``ROLLUP_SPARK_CONF`` override ours."""
    if settings.spark_remote:
        return {**_SESSION, **settings.spark_conf, "spark.remote": settings.spark_remote}
    local = _LOCAL if is_local(settings) else {}
    return {**_SESSION, **_APPLICATION, **local, **settings.spark_conf, "spark.master": settings.spark_master}


def is_local(settings: Settings) -> bool:
    """Whether the workers are processes of this machine, in this environment."""
    return not settings.spark_remote and settings.spark_master.startswith("local")


def open_session(settings: Settings, make: Callable[[dict[str, str]], SparkSession] | None = None) -> SparkSession:
    """The process's session; if there is none, it is made from its properties, by ``make`` or else by PySpark.

    Raises:
        EngineError: PySpark or Java is missing, the master or Connect server cannot be reached, or Spark refuses the settings; the
            message says what to do.
    """
    prepare(settings)
    is_main_thread = threading.current_thread() is threading.main_thread()
    interrupted = signal.getsignal(signal.SIGINT)
    try:
        with _on_loopback(settings), _by_file(session_properties(settings)) as properties:
            return (make or _make)(properties)
    except Exception as error:
        reason = _reason(error)
        if not reason:
            raise
        mend = "; correct ROLLUP_SPARK_MASTER or ROLLUP_SPARK_CONF" if _OF_SETTINGS.search(reason) else ""
        raise EngineError(f"Spark does not start ({reason}){mend}") from error
    finally:
        # PySpark installs a handler for Ctrl-C, which would keep Dagster from learning of a termination; the engine stops its own jobs.
        if is_main_thread:
            signal.signal(signal.SIGINT, interrupted)


def _reason(error: Exception) -> str:
    """The messages of a Java exception and of its root cause; empty if it is not Java's."""
    # The first line names the constructor that failed, the second the exception; causes are somewhere in the pages that follow.
    thrown = str(error).partition("\n: ")[2].splitlines()
    causes = [line.removeprefix("Caused by: ") for line in thrown if line.startswith("Caused by: ")]
    return ", caused by ".join((*thrown[:1], *causes[-1:]))


def _make(properties: dict[str, str]) -> SparkSession:
    from pyspark.sql import SparkSession

    builder = SparkSession.builder
    for name, value in properties.items():
        builder = builder.config(name, value)
    session: SparkSession = builder.getOrCreate()
    return session


@contextlib.contextmanager
def _on_loopback(settings: Settings) -> Iterator[None]:
    """Make a local session's pages, if enabled, listen on the loopback address, as its other ports do, unless the environment names one.

    Spark takes their address from this variable alone; without it they listen on every address of the machine.
    """
    if is_local(settings) and _ADDRESS not in os.environ:
        with _variable(_ADDRESS, "127.0.0.1"):
            yield
    else:
        yield


@contextlib.contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set an environment variable for a JVM that is started inside the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextlib.contextmanager
def _by_file(properties: dict[str, str]) -> Iterator[dict[str, str]]:
    """Pass the properties to a new JVM in a file that only this user may read; yields those that still have to be given to the session.

    PySpark would put them on the JVM's command line, where ``ps`` shows secrets to every user of the host.
    """
    if _starts_no_java_machine(properties):
        yield properties
        return
    before = os.environ.get(_SUBMIT) or "pyspark-shell"
    with tempfile.TemporaryDirectory(prefix="rollups-") as folder:
        file = Path(folder) / "spark.conf"
        file.touch(mode=0o600)
        file.write_text("".join(f"{_escaped(name)}={_escaped(value)}\n" for name, value in properties.items()), encoding="utf-8")
        with _variable(_SUBMIT, f"--properties-file {shlex.quote(str(file))} --load-spark-defaults {before}"):
            yield {}


def _starts_no_java_machine(properties: Mapping[str, str]) -> bool:
    """Whether a session with these properties starts no JVM: a Connect client needs none, and a running one is used again."""
    if "spark.remote" in properties or "PYSPARK_GATEWAY_PORT" in os.environ:
        return True
    from pyspark import SparkContext

    # There is no public way to ask. A test checks that properties reach the session, with and without the file.
    return SparkContext._gateway is not None


def _escaped(text: str) -> str:
    """Text escaped for a name or value in a Java properties file."""
    breaks = {"\n": "\\n", "\r": "\\r"}
    return re.sub(r"[\\\s=:#!]", lambda found: breaks.get(found[0], f"\\{found[0]}"), text)


def prepare(settings: Settings) -> None:
    """Check that everything a session needs is there, and tell PySpark which Python its workers have to run.

    Raises:
        EngineError: something is missing; the message says what to do.
    """
    require_pyspark(connect=bool(settings.spark_remote))
    if settings.spark_remote:
        require_reachable("ROLLUP_SPARK_REMOTE", [settings.spark_remote], 15002)
        return
    require_java()
    if settings.spark_master.startswith("spark://"):
        masters = settings.spark_master.removeprefix("spark://").split(",")
        require_reachable("ROLLUP_SPARK_MASTER", [f"spark://{master}" for master in masters], None)
    # PySpark takes the workers' Python from its environment; without this variable it would take any python3 on the path.
    if _PYTHON in settings.spark_conf:
        os.environ["PYSPARK_PYTHON"] = settings.spark_conf[_PYTHON]
    elif is_local(settings):
        os.environ["PYSPARK_PYTHON"] = sys.executable


def require_pyspark(*, connect: bool) -> None:
    """Raise EngineError unless PySpark is installed, and its Connect client if asked for."""
    try:
        import pyspark  # noqa: F401

        if connect:
            import grpc_status  # noqa: F401
    except ImportError as error:
        raise EngineError(f"ROLLUP_ENGINE=spark needs the Python package {error.name}; install rollup_assets[spark]") from None


def require_java(environment: Mapping[str, str] | None = None) -> str:
    """The version of the Java that Spark will find.

    Raises:
        EngineError: there is none, it cannot be run, or Spark does not run on its version.
    """
    environment = os.environ if environment is None else environment
    wanted = " or ".join(map(str, JAVA_VERSIONS))
    home = environment.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else shutil.which("java", path=environment.get("PATH"))
    if java is None or not Path(java).is_file():
        where = f"JAVA_HOME={home} has none" if home else "the PATH has none and JAVA_HOME is not set"
        raise EngineError(f"ROLLUP_ENGINE=spark needs Java {wanted}, but {where}; install it, set JAVA_HOME, or set ROLLUP_ENGINE=local")
    try:
        told = subprocess.run(
            [java, "-version"], capture_output=True, text=True, errors="replace", timeout=_JAVA_SECONDS, check=False
        ).stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it did not report its version within {_JAVA_SECONDS:g} s"
        raise EngineError(f"{java} cannot be run ({reason}); install Java {wanted} and set JAVA_HOME") from None
    found = re.search(r'version "(?:1\.)?(\d+)([^"]*)"', told)
    if found is None or int(found[1]) not in JAVA_VERSIONS:
        version = f"{found[1]}{found[2]}" if found else "unknown"
        raise EngineError(f"{java} has version {version}, but Spark 4.1 needs Java {wanted}; install it and set JAVA_HOME")
    return f"{found[1]}{found[2]}"


def require_reachable(name: str, uris: Sequence[str], default_port: int | None) -> None:
    """Raise EngineError unless something listens at one of ``uris``, which come from the setting ``name``.

    Of several masters, all but one are on standby, and any of them may be down.
    """
    addresses = [_address(name, uri, default_port) for uri in uris]
    # All at once: one that is down may not answer at all, and one that answers is enough.
    pool = thread_pool(len(addresses), "reach")
    try:
        ended: queue.SimpleQueue[None] = queue.SimpleQueue()
        asked = [pool.submit(_refusal, address) for address in addresses]
        for one in asked:
            one.add_done_callback(lambda _: ended.put(None))
        for _ in asked:
            wait_for_one(ended)
            if any(one.done() and one.result() is None for one in asked):
                return
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    told = " and ".join(f"{name}={uri} cannot be reached ({one.result()})" for uri, one in zip(uris, asked, strict=True))
    raise EngineError(f"{told}; start {'it there' if len(uris) == 1 else 'one of them'}, or correct {name}")


def _address(name: str, uri: str, default_port: int | None) -> tuple[str, int]:
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname or "", parts.port or default_port
        host.encode("idna")
        wrong = f"it has no {'port' if host else 'host'}"
    except ValueError as error:
        host, port, wrong = "", None, str(error)
    # Spark has no default port for a master, and fails with a stack trace.
    if not host or port is None:
        raise EngineError(f"{name}={uri} is not an address ({wrong}); write a host and a port")
    return host, port


def _refusal(address: tuple[str, int]) -> OSError | None:
    """The error of connecting there; None if it works."""
    try:
        with socket.create_connection(address, timeout=_CONNECT_SECONDS):
            return None
    except OSError as error:
        return error
