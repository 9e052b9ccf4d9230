"""Spark as processes of this machine: a standalone cluster with workers, or a Spark Connect server; free ports on the loopback address.

The programs are those of the Python package ``pyspark``; they need Java. What runs on them stays out.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.servers.ports import LOOPBACK, free_ports
from deploy.servers.processes import group

READY_WITHIN = 60.0


@dataclass(frozen=True, slots=True)
class SparkCluster:
    """A running standalone cluster."""

    master: str
    """``spark://host:port``"""
    web: str
    """Address of the master's own pages."""
    workers: tuple[subprocess.Popen[bytes], ...]
    folder: Path

    def executors(self) -> list[int]:
        """Process ids of the executors that run now, of every application."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes()
                    if b"CoarseGrainedExecutorBackend" in command and self.master.removeprefix("spark://").encode() in command + _parent(
                        entry
                    ):
                        found.append(int(entry.name))
        return found


def _parent(entry: Path) -> bytes:
    """The command line of a process's parent: an executor's parent is its worker, whose command line names the master."""
    parent = next(line.split()[1] for line in (entry / "status").read_text().splitlines() if line.startswith("PPid:"))
    return (Path("/proc") / parent / "cmdline").read_bytes()


@contextlib.contextmanager
def standalone(
    folder: Path, environment: Mapping[str, str], *, workers: int = 2, cores: int = 1, memory: str = "2g"
) -> Iterator[SparkCluster]:
    """A master and workers, until the block ends.

    Args:
        folder: for their logs and the executors' files.
        environment: variables that workers, and so executors, have in addition to ours; the driver does not.
        workers: number of workers.
        cores: cores of each.
        memory: memory of each, in Spark's notation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    port, web = free_ports(2)
    master = f"spark://{LOOPBACK}:{port}"
    with contextlib.ExitStack() as stack:
        command = ["org.apache.spark.deploy.master.Master", "--host", LOOPBACK, "--port", str(port), "--webui-port", str(web)]
        stack.enter_context(_process(command, folder / "master.log", {}))
        _wait_for_port(port, folder / "master.log")
        started = []
        for number in range(workers):
            command = ["org.apache.spark.deploy.worker.Worker", "--host", LOOPBACK, "--cores", str(cores), "--memory", memory]
            command += ["--webui-port", "0", "--work-dir", str(folder / f"worker-{number}"), master]
            started.append(stack.enter_context(_process(command, folder / f"worker-{number}.log", environment)))
        cluster = SparkCluster(master, f"http://{LOOPBACK}:{web}", tuple(started), folder)
        _wait_for_workers(cluster, workers)
        yield cluster


@contextlib.contextmanager
def connect_server(
    folder: Path, environment: Mapping[str, str], *, master: str = "local[2]", conf: Mapping[str, str] | None = None
) -> Iterator[str]:
    """A Spark Connect server, until the block ends; yields its address, ``sc://host:port``."""
    folder.mkdir(parents=True, exist_ok=True)
    (port,) = free_ports(1)
    properties = {
        "spark.connect.grpc.binding.address": LOOPBACK,
        "spark.connect.grpc.binding.port": str(port),
        "spark.driver.host": LOOPBACK,
        "spark.ui.enabled": "false",
        **(conf or {}),
    }
    command = ["org.apache.spark.deploy.SparkSubmit", "--class", "org.apache.spark.sql.connect.service.SparkConnectServer"]
    command += [
        "--master",
        master,
        *(part for name, value in properties.items() for part in ("--conf", f"{name}={value}")),
        "spark-internal",
    ]
    with _process(command, folder / "connect.log", environment):
        _wait_for_port(port, folder / "connect.log")
        yield f"sc://{LOOPBACK}:{port}"


@contextlib.contextmanager
def _process(command: Sequence[str], log: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A Java program of Spark's. Its working directory is its log's folder, since its SQL makes a folder `spark-warehouse` there."""
    import pyspark

    home = Path(pyspark.__file__).parent
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "DAGSTER", "AWS_", "SPARK", "PYSPARK"))
    }
    inherited |= {"SPARK_HOME": str(home), "SPARK_LOCAL_IP": LOOPBACK, **environment}
    with (
        log.open("ab") as output,
        group([home / "bin" / "spark-class", *command], inherited, log.parent, output, ends_within=None) as process,
    ):
        yield process


def _wait_for_port(port: int, log: Path) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while True:
        with contextlib.suppress(OSError), socket.create_connection((LOOPBACK, port), timeout=1):
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"Spark did not start; see {log}")
        time.sleep(0.1)


def _wait_for_workers(cluster: SparkCluster, workers: int) -> None:
    deadline = time.monotonic() + READY_WITHIN
    while True:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{cluster.web}/json/", timeout=5) as answer:
            if answer.read().count(b'"ALIVE"') > workers:  # one more is the master's own status
                return
        if time.monotonic() > deadline:
            raise RuntimeError(f"Spark's workers did not register; see {cluster.folder}")
        time.sleep(0.2)
