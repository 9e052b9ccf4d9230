"""A relay in front of a server, which counts what passes and, if asked, delays it: how many requests something makes, and what they
would cost on a network.

It runs in a process of its own, so that it takes no time from the threads of the measured process. It does not know what the bytes mean,
except for the first line of an HTTP request.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import re
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any
from urllib.parse import urlsplit

ROUND_TRIPS = "round trips"
"""How often the server began to answer after the client had sent something: with a database, statements waited for one by one."""

_LOOPBACK = "127.0.0.1"
_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) ([^ \r\n]{1,4096}) HTTP/1\.1\r\n")
LIST = "LIST"
"""What S3 calls a GET that lists keys, and charges as a PUT."""


@dataclass(frozen=True, slots=True)
class Relay:
    """A running relay."""

    port: int
    _control: Connection

    def delay(self, seconds: float) -> None:
        """From now on, delay the beginning of every answer by this much."""
        self._control.send(("delay", seconds))

    def take(self) -> Counter[str]:
        """What has passed since the last call: HTTP requests by :func:`kind_of`, and round trips."""
        self._control.send(("take", None))
        found: Counter[str] = self._control.recv()
        return found


@contextlib.contextmanager
def relay(port: int) -> Iterator[Relay]:
    """A relay to a port of this machine, until the block ends."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(port, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield Relay(ours.recv(), ours)
    finally:
        ours.close()
        process.join(10)


def port_of(uri: str) -> int:
    """The port that a server's address names."""
    port = urlsplit(uri.removeprefix("rest+")).port
    assert port is not None
    return port


def kind_of(method: str, target: str) -> str:
    """What a request counts as: its method, except for S3's lists and its deletion of many keys, which is a POST."""
    names = {part.partition("=")[0] for part in target.partition("?")[2].split("&")}
    if method == "GET" and names & {"list-type", "prefix"}:
        return LIST
    return "DELETE" if method == "POST" and "delete" in names else method


class _Counts:
    def __init__(self) -> None:
        self.found: Counter[str] = Counter()
        self.delay = 0.0


def _serve(port: int, control: Connection) -> None:
    asyncio.run(_run(port, control))


async def _run(port: int, control: Connection) -> None:
    counts = _Counts()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            await _pass_on(counts, port, reader, writer)
        writer.close()

    server = await asyncio.start_server(accepted, _LOOPBACK, 0)
    control.send(server.sockets[0].getsockname()[1])
    ended = asyncio.Event()
    threading.Thread(target=_obey, args=(control, counts, asyncio.get_running_loop(), ended), daemon=True).start()
    await ended.wait()
    server.close()


def _obey(control: Connection, counts: _Counts, loop: asyncio.AbstractEventLoop, ended: asyncio.Event) -> None:
    """Carry out commands of the measured process, until it hangs up."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            command, value = control.recv()
            if command == "delay":
                counts.delay = value
            else:
                found, counts.found = counts.found, Counter()
                control.send(found)
    loop.call_soon_threadsafe(ended.set)


async def _pass_on(counts: _Counts, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    far_reader, far_writer = await asyncio.open_connection(_LOOPBACK, port)
    asked = False

    async def requests() -> None:
        nonlocal asked
        while content := await reader.read(1 << 16):
            asked = True
            for found in _REQUEST.finditer(content):
                counts.found[kind_of(found[1].decode(), found[2].decode("latin-1"))] += 1
            far_writer.write(content)
            await far_writer.drain()
        far_writer.close()

    async def answers() -> None:
        nonlocal asked
        while content := await far_reader.read(1 << 16):
            if asked:
                asked = False
                counts.found[ROUND_TRIPS] += 1
                if counts.delay:
                    await asyncio.sleep(counts.delay)
            writer.write(content)
            await writer.drain()
        writer.close()

    tasks: list[Any] = [asyncio.ensure_future(requests()), asyncio.ensure_future(answers())]
    await asyncio.gather(*tasks)
