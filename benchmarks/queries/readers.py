"""Readers of an Iceberg table: DuckDB, PyIceberg and Spark SQL, each with a way to count the bytes of data files that it fetches.

To count, DuckDB and PyIceberg read through a Python file object that adds up the bytes requested, as from a store on the network; that is
slow, so timed runs do without it. For Spark, the kernel (``/proc``) counts what the JVM reads, including Iceberg's metadata and some
hundred kilobytes of its own: Spark's input metrics leave out what Iceberg reads in the background, which is most of it. Hadoop's local
files read ahead 64 KB at every access, which no other store does: here it is 4 KB.

DuckDB's Iceberg extension is not in its wheel, so DuckDB gets the files of PyIceberg's plan, which are those the extension would plan.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]
from pyiceberg.io import InputFile
from pyiceberg.io.pyarrow import PyArrowFileIO

from benchmarks.queries.questions import CHECKED, DUCKDB, PYICEBERG, SPARK, Question

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyiceberg.expressions import BooleanExpression

Answer = tuple[int, int]
"""Rows, and the sum of ``CHECKED``."""


class _Counter:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.bytes = 0
        self.requests = 0

    def add(self, count: int) -> None:
        with self._lock:
            self.bytes += count
            self.requests += 1


fetched = _Counter()
"""Bytes that were read from this process's counting files."""


class CountingFile(io.RawIOBase):
    """A file that counts what is read from it. Each thread has its own position, since DuckDB's threads read one file concurrently."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._file = os.open(path, os.O_RDONLY)
        self._size = os.fstat(self._file).st_size
        self._at = threading.local()

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """This thread's position."""
        return int(getattr(self._at, "position", 0))

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move this thread's position."""
        self._at.position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._size}[whence]
        return self.tell()

    def read(self, size: int | None = -1) -> bytes:
        """Read and count."""
        wanted = self._size - self.tell() if size is None or size < 0 else size
        found = os.pread(self._file, wanted, self.tell())
        self._at.position = self.tell() + len(found)
        fetched.add(len(found))
        return found

    def close(self) -> None:
        """Close the file for all threads."""
        if not self.closed:
            os.close(self._file)
        super().close()


class CountingFileSystem(LocalFileSystem):  # type: ignore[misc]
    """Local files under ``counted://``, for DuckDB."""

    protocol = "counted"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("counted://")))

    def _open(self, path: str, *_: Any, **__: Any) -> Any:
        return CountingFile(path)


class _CountedInput(InputFile):
    def __len__(self) -> int:
        return Path(self.location).stat().st_size

    def exists(self) -> bool:
        return Path(self.location).exists()

    def open(self, seekable: bool = True) -> Any:  # noqa: ARG002
        return CountingFile(self.location)


class CountingFileIO(PyArrowFileIO):
    """PyIceberg's files, data files counted."""

    def new_input(self, location: str) -> Any:
        """A file to read."""
        return _CountedInput(location) if location.endswith(".parquet") else super().new_input(location)


def predicate(question: Question) -> BooleanExpression:
    """A question's condition on rows, as PyIceberg's expression."""
    from pyiceberg.expressions import And, EqualTo, GreaterThanOrEqual, LessThan

    start, end = question.bounds
    found: BooleanExpression = And(GreaterThanOrEqual(term="logical_timestamp", value=start), LessThan(term="logical_timestamp", value=end))
    for name, value in question.equal:
        found = And(found, EqualTo(term=name, value=value))
    return found


class DuckDBReader:
    """DuckDB over the planned files."""

    def __init__(self, threads: int) -> None:
        self._threads = threads

    def ask(self, metadata: str, question: Question) -> Answer:
        """The answer, rows and all."""
        return self._ask(metadata, question, "")

    def count(self, metadata: str, question: Question) -> tuple[Answer, int]:
        """The answer, and the bytes that were fetched for it."""
        return _counted(lambda: self._ask(metadata, question, "counted://"))

    def _ask(self, metadata: str, question: Question, protocol: str) -> Answer:
        import duckdb
        from pyiceberg.table import StaticTable

        files = [f"{protocol}{task.file.file_path}" for task in StaticTable.from_metadata(metadata).scan(predicate(question)).plan_files()]
        with duckdb.connect(config={"threads": self._threads}) as db:
            db.execute("SET TimeZone = 'UTC'")
            # Otherwise the next question would find what this one has fetched.
            db.execute("SET enable_external_file_cache = false")
            if protocol:
                db.register_filesystem(CountingFileSystem())
            answer = db.sql(question.sql(f"read_parquet({files}, hive_partitioning = false)", "TIMESTAMPTZ"))
            return _drained(answer.to_arrow_reader())

    def close(self) -> None:
        """Nothing is open."""


class PyIcebergReader:
    """PyIceberg's scan, read through Arrow."""

    def __init__(self, threads: int) -> None:
        import pyarrow as pa

        pa.set_cpu_count(threads)

    def ask(self, metadata: str, question: Question) -> Answer:
        """The answer, rows and all."""
        return self._ask(metadata, question, {})

    def count(self, metadata: str, question: Question) -> tuple[Answer, int]:
        """The answer, and the bytes that were fetched for it."""
        return _counted(lambda: self._ask(metadata, question, {"py-io-impl": f"{__name__}.CountingFileIO"}))

    def _ask(self, metadata: str, question: Question, properties: dict[str, str]) -> Answer:
        from pyiceberg.table import StaticTable

        scan = StaticTable.from_metadata(metadata, properties).scan(predicate(question), selected_fields=question.columns or ("*",))
        return _drained(scan.to_arrow_batch_reader())

    def close(self) -> None:
        """Nothing is open."""


class SparkReader:
    """Spark SQL with Iceberg's runtime, in this process's own session."""

    def __init__(self, threads: int) -> None:
        from pyspark.sql import SparkSession

        from rollup_assets.iceberg.spark import ICEBERG_RUNTIME

        self._spark = (
            SparkSession.builder.master(f"local[{threads}]")
            .config("spark.jars.packages", ICEBERG_RUNTIME)
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.ui.port", "0")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.driver.memory", "2g")
            .config("spark.buffer.size", "4096")
            .config("spark.driver.host", "127.0.0.1")
            .getOrCreate()
        )
        self._spark.sparkContext.setLogLevel("ERROR")

    def ask(self, metadata: str, question: Question) -> Answer:
        """The answer; every row of it is computed, then discarded."""
        from pyspark.sql import Observation, functions

        self._spark.read.format("iceberg").load(metadata).createOrReplaceTempView("asked")
        seen = Observation()
        found = self._spark.sql(question.sql("asked", "TIMESTAMP"))
        found = found.observe(seen, functions.count(functions.lit(1)).alias("rows"), functions.sum(CHECKED).alias("sum"))
        found.write.format("noop").mode("overwrite").save()
        return int(seen.get["rows"]), int(seen.get["sum"] or 0)

    def count(self, metadata: str, question: Question) -> tuple[Answer, int]:
        """The answer, and the bytes that were fetched for it."""
        # The first time, the JVM also reads its own classes.
        self.ask(metadata, question)
        before = self._read_bytes()
        answer = self.ask(metadata, question)
        return answer, self._read_bytes() - before

    def _read_bytes(self) -> int:
        """Bytes that the JVM has read from files so far."""
        context: Any = self._spark.sparkContext
        lines = Path(f"/proc/{context._jvm.java.lang.ProcessHandle.current().pid()}/io").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))

    def close(self) -> None:
        """End the session."""
        self._spark.stop()


_CLASSES: dict[str, Callable[[int], Any]] = {DUCKDB: DuckDBReader, PYICEBERG: PyIcebergReader, SPARK: SparkReader}


@contextmanager
def reader(name: str, threads: int) -> Iterator[Any]:
    """One of ``READERS``, ready to be asked."""
    found = _CLASSES[name](threads)
    try:
        yield found
    finally:
        found.close()


def _counted(ask: Callable[[], Answer]) -> tuple[Answer, int]:
    before = fetched.bytes
    answer = ask()
    return answer, fetched.bytes - before


def _drained(batches: Any) -> Answer:
    import pyarrow.compute as pc

    rows = total = 0
    for batch in batches:
        rows += batch.num_rows
        total += pc.sum(batch.column(CHECKED)).as_py() or 0
    return rows, total
