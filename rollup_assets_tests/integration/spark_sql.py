"""Spark SQL in a process of its own, with Iceberg's jars: the client that tests use, and, run as a program, the process itself.

A process, since a Java machine keeps the jars, sessions and environment that it started with. It is started the way users are told to:
with the properties file that ``rollups spark-conf`` prints, and secrets in the environment.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

ROOT = Path(__file__).resolve().parents[2]
_ANSWERS_WITHIN = 240
"""Seconds; the first answer waits for Java to start and, on a new machine, for jars to be downloaded."""


class SparkSqlError(Exception):
    """Spark refused a statement; the message is its own."""


class SparkSql:
    """A running Spark SQL session in another process."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self.process = process
        self.folder = folder

    def sql(self, statement: str) -> pa.Table:
        """The rows of a statement."""
        import pyarrow as pa

        target = self.folder / f"{uuid.uuid4().hex}.arrow"
        self._ask({"do": "sql", "statement": statement, "target": str(target)})
        with pa.OSFile(str(target)) as file, pa.ipc.open_file(file) as reader:
            return reader.read_all()

    def plan(self, statement: str) -> str:
        """The physical plan of a query."""
        return str(self.sql(f"EXPLAIN FORMATTED {statement}")["plan"][0].as_py())

    def unknown(self, names: dict[str, list[str]]) -> dict[str, list[str]]:
        """Those names, by kind, that Spark, Iceberg and Hadoop do not know."""
        found: dict[str, list[str]] = self._ask({"do": "unknown", "names": names})
        return found

    def shown(self) -> str:
        """All that the UI's environment page shows, what ``SET -v`` and ``SET`` say, and the command line of the Java machine."""
        return str(self._ask({"do": "shown"}))

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answered, _, _ = select.select([self.process.stdout], [], [], _ANSWERS_WITHIN)
        if not answered:
            raise AssertionError(f"no answer within {_ANSWERS_WITHIN} s to {request}:\n{(self.folder / 'log').read_text()[-5_000:]}")
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(f"Spark's process has ended:\n{(self.folder / 'log').read_text()[-5_000:]}")
        answer = json.loads(line)
        if "error" in answer:
            raise SparkSqlError(answer["error"])
        return answer["ok"]


@contextlib.contextmanager
def spark_sql(folder: Path, properties: str, environment: Mapping[str, str]) -> Iterator[SparkSql]:
    """A session with the properties of a file, in an environment that has nothing of AWS, PostgreSQL or ROLLUP but what is given."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "spark.conf"
    file.write_text(properties)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "PG", "ROLLUP_", "SPARK_", "PYSPARK_"))}
    arguments = ["--properties-file", str(file), "--master", "local[1]", "--driver-memory", "1g"]
    # Made in the working directory otherwise.
    arguments += ["--conf", f"spark.sql.warehouse.dir={folder / 'spark-warehouse'}"]
    kept |= {
        "PYSPARK_SUBMIT_ARGS": " ".join([*arguments, "pyspark-shell"]),
        "PYSPARK_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "rollup_assets_tests.integration.spark_sql"],
            cwd=ROOT, env=kept | dict(environment), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
        )  # fmt: skip
    try:
        yield SparkSql(process, folder)
    finally:
        assert process.stdin is not None
        process.stdin.close()  # the process ends at the end of its input, and Java with it
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


# The process


def _serve() -> None:
    """Answer requests, one JSON document a line, until the input ends."""
    # What Java prints goes to the log: standard output has the answers alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    session = None
    for line in sys.stdin:
        try:
            session = session or _session()
            answer = {"ok": _do(session, json.loads(line))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    if session is not None:
        session.stop()


def _session() -> Any:
    from pyspark.sql import SparkSession

    # Every other property comes from the properties file.
    return SparkSession.builder.config("spark.ui.port", "0").config("spark.ui.showConsoleProgress", "false").getOrCreate()


def _do(session: Any, request: dict[str, Any]) -> Any:
    if request["do"] == "sql":
        import pyarrow as pa

        table = session.sql(request["statement"]).toArrow()
        with pa.OSFile(request["target"], "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        return None
    if request["do"] == "unknown":
        return {kind: [name for name in names if not _KNOWN[kind](session, name)] for kind, names in request["names"].items()}
    return _shown(session)


def _shown(session: Any) -> str:
    import urllib.request

    application = f"{session.sparkContext.uiWebUrl}/api/v1/applications/{session.sparkContext.applicationId}"
    with urllib.request.urlopen(f"{application}/environment") as answer:
        page = answer.read().decode()
    java = session._jvm.java.lang.ProcessHandle.current().pid()
    command = Path(f"/proc/{java}/cmdline").read_bytes().decode(errors="replace")
    told = [*session.sql("SET").collect(), *session.sql("SET -v").collect()]
    return "\n".join([page, command, str(told)])


# One call of Java from Python takes a millisecond or more: what is asked for each of many names is found out once a session.


@functools.cache
def _listed(session: Any) -> frozenset[str]:
    """The properties that ``SET -v`` has. What Spark learns of later, ``ConfigEntry.findEntry`` finds."""
    return frozenset(row["key"] for row in session.sql("SET -v").collect())


@functools.cache
def _load_kubernetes(session: Any) -> None:
    """Its properties are known once their class is, which only a session on Kubernetes loads by itself."""
    jvm = session._jvm
    jvm.java.lang.Class.forName("org.apache.spark.deploy.k8s.Config$", True, jvm.Thread.currentThread().getContextClassLoader())


def _spark_knows(session: Any, name: str) -> bool:
    if name in _listed(session):
        return True
    if name.startswith("spark.kubernetes."):
        _load_kubernetes(session)
    return session._jvm.org.apache.spark.internal.config.ConfigEntry.findEntry(name) is not None


@functools.cache
def _constants(session: Any, *classes: str) -> frozenset[str]:
    """The values of all string constants of Java classes."""
    jvm = session._jvm
    loader = jvm.Thread.currentThread().getContextClassLoader()
    modifier = jvm.java.lang.reflect.Modifier
    found = set()
    for name in classes:
        for constant in jvm.java.lang.Class.forName(name, True, loader).getDeclaredFields():
            if str(constant.getType().getName()) == "java.lang.String" and modifier.isStatic(constant.getModifiers()):
                constant.setAccessible(True)
                found.add(constant.get(None))
    return frozenset(found)


def _is_constant_of(*classes: str) -> Callable[[Any, str], bool]:
    return lambda session, name: name in _constants(session, *classes)


@functools.cache
def _postgresql_properties(session: Any) -> frozenset[str]:
    jvm = session._jvm
    loader = jvm.Thread.currentThread().getContextClassLoader()
    properties = jvm.java.lang.Class.forName("org.postgresql.PGProperty", True, loader)
    return frozenset(str(constant.getName()) for constant in properties.getEnumConstants())


def _postgresql_knows(session: Any, name: str) -> bool:
    return name in _postgresql_properties(session)


@functools.cache
def _hadoop_defaults(session: Any) -> Any:
    return session._jvm.org.apache.hadoop.conf.Configuration()


def _hadoop_knows(session: Any, name: str) -> bool:
    # Its defaults name S3A's properties too, whose code is in a jar that is not here.
    return _hadoop_defaults(session).get(name) is not None


_KNOWN = {
    "spark": _spark_knows,
    "hadoop": _hadoop_knows,
    "postgresql": _postgresql_knows,
    "parquet": _is_constant_of("org.apache.parquet.hadoop.ParquetOutputFormat"),
    "iceberg table": _is_constant_of("org.apache.iceberg.TableProperties"),
    "iceberg session": _is_constant_of("org.apache.iceberg.spark.SparkSQLProperties"),
    "iceberg catalog": _is_constant_of(
        "org.apache.iceberg.CatalogProperties",
        "org.apache.iceberg.CatalogUtil",
        "org.apache.iceberg.jdbc.JdbcUtil",
        "org.apache.iceberg.rest.auth.OAuth2Properties",
        "org.apache.iceberg.aws.AwsClientProperties",
        "org.apache.iceberg.aws.s3.S3FileIOProperties",
    ),
}


if __name__ == "__main__":
    _serve()
