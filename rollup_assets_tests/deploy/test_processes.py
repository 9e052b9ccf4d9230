"""Processes and ports of servers: nothing goes on after its block, and no signal reaches anybody else."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.servers.ports import LOOPBACK, free_ports, is_free
from deploy.servers.processes import ended, group

DEAF = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
PARENT_OF_ONE_THAT_STAYS = f"""
import signal, subprocess, sys
subprocess.Popen([sys.executable, "-c", {DEAF!r}])
signal.signal(signal.SIGINT, lambda *_: sys.exit(7))
print(1, flush=True)
signal.pause()
"""


def wait_for(path: Path, text: str) -> None:
    """Until a file has that content."""
    deadline = time.monotonic() + 20
    while path.read_text() != text:
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.02)


def test_children_end_with_a_process_that_has_ended_before_them(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output, group([sys.executable, "-c", PARENT_OF_ONE_THAT_STAYS], os.environ, tmp_path, output) as process:
        wait_for(log, "1\n1\n")
        assert ended(process) is None
    assert process.returncode == 7
    deadline = time.monotonic() + 10
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.killpg(process.pid, 0)
            assert time.monotonic() < deadline, "the child goes on"
            time.sleep(0.02)


@pytest.mark.parametrize(("code", "status"), [("raise SystemExit(3)", 3), ("import os; os.abort()", -signal.SIGABRT)])
def test_a_process_that_has_ended_keeps_its_number_until_the_block_ends(tmp_path: Path, code: str, status: int) -> None:
    with (tmp_path / "log").open("wb") as output, group([sys.executable, "-c", code], os.environ, tmp_path, output) as process:
        while ended(process) is None:
            time.sleep(0.01)
        assert [ended(process), ended(process)] == [status, status]
        os.kill(process.pid, 0)
    assert process.returncode == status


def test_one_that_does_not_end_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output, group([sys.executable, "-c", DEAF], os.environ, tmp_path, output, ends_within=0.2) as process:
        wait_for(log, "1\n")
    assert process.returncode == -signal.SIGKILL


def test_free_ports_are_different_and_not_those_of_connections() -> None:
    ports = free_ports(50)
    assert len(set(ports)) == 50
    assert max(ports) < 32_768
    with socket.create_server((LOOPBACK, ports[0])):
        assert not is_free(ports[0])
    assert is_free(ports[0])


ENDED_BY_A_SIGNAL = """
import contextlib, time
from deploy import demo_production

def demonstrate(options, console):
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: (time.sleep(1), print("all ended", flush=True)))
        print("look around", flush=True)
        time.sleep(600)

demo_production.demonstrate = demonstrate
demo_production.main()
"""


@contextlib.contextmanager
def demonstrating(log: Path, *, deaf_to: str) -> Iterator[subprocess.Popen[bytes]]:
    """The demonstration as it is looked around in, started by a shell that has had a signal ignored."""
    import deploy

    # Whoever has started the tests may ignore signals, too (`nohup make test`), and a shell cannot undo that.
    hearing = ["env", "--default-signal=INT,TERM,HUP"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*hearing, "sh", "-c", f'trap "" {deaf_to}; exec "$@"', "sh", sys.executable, "-c", ENDED_BY_A_SIGNAL],
            cwd=Path(str(deploy.__file__)).parent.parent,
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(log, "look around\n")
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_demonstration_ends_in_order_also_when_told_twice_or_started_deaf(tmp_path: Path, number: signal.Signals) -> None:
    """A shell's background process is told to ignore SIGINT."""
    log = tmp_path / "log"
    with demonstrating(log, deaf_to="INT") as process:
        for _ in range(3):
            process.send_signal(number)
            time.sleep(0.1)
        assert process.wait(timeout=20) == 0, log.read_text()
    assert log.read_text() == "look around\nall ended\n\nended, along with everything that it started\n"


def test_the_demonstration_outlives_a_terminal_that_it_was_told_to_outlive(tmp_path: Path) -> None:
    """As `nohup` does."""
    log = tmp_path / "log"
    with demonstrating(log, deaf_to="HUP") as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert process.poll() is None
        process.terminate()
        assert process.wait(timeout=20) == 0, log.read_text()
