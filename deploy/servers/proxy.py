"""A TCP proxy in front of a server of this machine that loses, withholds, delays, replaces and damages answers, on request.

It understands PostgreSQL's messages and HTTP, so that a fault affects the statement or request that it is meant for: after the server has
carried it out, or before the server gets it. How clients deal with that is for tests to check. The benchmarks' relay, in a process of its
own, counts and delays bytes without understanding them; the two have little in common.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import struct
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from deploy.servers.ports import LOOPBACK

Protocol = Literal["bytes", "postgresql", "http"]
Answer = Literal["late", "lost", "withheld", "error", "truncated", "flipped"]

_CHUNK = 1 << 16
_LARGEST_HEAD = 1 << 20
_SSL_REQUEST, _GSS_REQUEST, _CANCEL_REQUEST = 80877103, 80877104, 80877102
_INT = struct.Struct("!i")
_STARTUP = struct.Struct("!ii")
_NO_BODY = (204, 304)
_REASONS = {403: "AccessDenied", 404: "NoSuchKey", 500: "InternalError", 503: "SlowDown"}


@dataclass(slots=True)
class Fault:
    """What happens to requests that match.

    ``answer`` says what the client sees: the server's answer ``late``; ``lost``: the connection closes instead; ``withheld``: it stays
    open and silent; an ``error`` instead; or, of HTTP, the body ``truncated`` to half, with the connection closed, or with one bit
    ``flipped``.
    """

    pattern: str
    """Regular expression found in the request: the SQL of a statement, or method, path and query of an HTTP request."""
    answer: Answer
    delivered: bool = True
    """Whether the server gets the request and carries it out. False with ``late``: the server, too, gets it late, after ``meanwhile``."""
    times: int | None = 1
    """How many requests are hit; None: every one."""
    skip: int = 0
    """How many matching requests pass first."""
    chance: float = 1.0
    """The share of the remaining requests that is hit, chosen by the proxy's seed."""
    code: str = ""
    """An error's SQLSTATE or HTTP status; by default 40001 or 503."""
    seconds: float = 0.0
    """How late an answer comes."""
    meanwhile: Callable[[], None] | None = None
    """Called after the server has answered (if it gets the request) and before the client notices."""
    hits: int = 0
    seen: int = 0
    reached: threading.Event = field(default_factory=threading.Event)
    """Set at the first hit, once ``meanwhile`` has returned."""


class Proxy:
    """A running proxy; made by :func:`proxy`."""

    def __init__(self, protocol: Protocol, target: int, seed: int) -> None:
        self.port = 0
        self.target: int | None = target
        """Port of the server; None: connections are closed at once."""
        self.requests: list[str] = []
        """What clients have asked for, in order."""
        self.problems: list[BaseException] = []
        """Errors of ``meanwhile``; raised again at the end of :func:`proxy`."""
        self._protocol = protocol
        self._faults: list[Fault] = []
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._connections: set[asyncio.Task[None]] = set()

    def add(self, fault: Fault) -> Fault:
        """Add a fault from now on; of several that match a request, the oldest that is not used up applies."""
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        """Let everything pass from now on."""
        with self._lock:
            self._faults.clear()

    def cut(self) -> None:
        """Close every connection."""
        asyncio.run_coroutine_threadsafe(self._cut(), self._loop).result(10)

    async def _cut(self) -> None:
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _fault_of(self, request: str) -> Fault | None:
        self.requests.append(request)
        with self._lock:
            for fault in self._faults:
                if (fault.times is not None and fault.hits >= fault.times) or re.search(fault.pattern, request) is None:
                    continue
                fault.seen += 1
                if fault.seen > fault.skip and (fault.chance >= 1 or self._random.random() < fault.chance):
                    fault.hits += 1
                    return fault
        return None

    async def met(self, request: str) -> Fault | None:
        """The fault of a request; None if it passes. A request that reaches the server late is held back here, then passes."""
        fault = self._fault_of(request)
        if fault is None or fault.answer != "late" or fault.delivered:
            return fault
        await self.happen(fault)
        return None

    async def happen(self, fault: Fault) -> None:
        """Do what a fault does before the client sees anything: call ``meanwhile``, then wait."""
        if fault.meanwhile is not None:
            try:
                await self._loop.run_in_executor(None, fault.meanwhile)
            except Exception as error:
                self.problems.append(error)
        fault.reached.set()
        await asyncio.sleep(fault.seconds)

    def damaged(self, body: bytes, fault: Fault) -> bytes:
        """An answer's body as the fault leaves it."""
        if fault.answer == "truncated":
            return body[: len(body) // 2]
        place = self._random.randrange(len(body))
        return body[:place] + bytes([body[place] ^ 1 << self._random.randrange(8)]) + body[place + 1 :]

    # ---------------------------------------------------------------------------------------------------------- running

    def run(self, started: threading.Event) -> None:
        """Serve until :meth:`stop`."""
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accepted, LOOPBACK, 0, limit=_LARGEST_HEAD))
        self.port = server.sockets[0].getsockname()[1]
        started.set()
        self._loop.run_forever()
        server.close()
        self._loop.run_until_complete(self._cut())
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def stop(self) -> None:
        """Close everything."""
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        client = _End(reader, writer)
        server: _End | None = None
        try:
            # Either side may hang up at any time.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                if self.target is not None:
                    server = _End(*await asyncio.open_connection(LOOPBACK, self.target, limit=_LARGEST_HEAD))
                    await _CONVERSATIONS[self._protocol](self, client, server)
        finally:
            self._connections.discard(task)
            for end in (client, server):
                if end is not None:
                    end.writer.transport.abort()


@contextlib.contextmanager
def proxy(protocol: Protocol, port: int, seed: int = 0) -> Iterator[Proxy]:
    """A proxy to a port of this machine, until the block ends.

    Args:
        protocol: the protocol spoken; ``bytes`` is not parsed, so that only :meth:`Proxy.cut` and ``target`` have an effect.
        port: port of the server.
        seed: decides everything random: which requests are hit, and which bit is flipped.
    """
    made = Proxy(protocol, port, seed)
    started = threading.Event()
    thread = threading.Thread(target=made.run, args=(started,), daemon=True, name="proxy")
    thread.start()
    started.wait(10)
    try:
        yield made
    finally:
        made.stop()
        thread.join(30)
    if made.problems:
        raise made.problems[0]


@dataclass(frozen=True, slots=True)
class _End:
    """One side of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, content: bytes) -> None:
        self.writer.write(content)
        await self.writer.drain()


async def _first_of(*conversations: Coroutine[Any, Any, None]) -> None:
    """Run conversations until one of them ends; then the other side is no longer served either."""
    tasks = [asyncio.ensure_future(one) for one in conversations]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


# ---------------------------------------------------------------------------------------------------------------- bytes


async def _pass_bytes(_proxy: Proxy, client: _End, server: _End) -> None:
    async def pump(source: _End, sink: _End) -> None:
        while content := await source.reader.read(_CHUNK):
            await sink.send(content)

    await _first_of(pump(client, server), pump(server, client))


# ----------------------------------------------------------------------------------------------------------- PostgreSQL


async def _speak_postgresql(proxy: Proxy, client: _End, server: _End) -> None:
    while True:
        head = await client.reader.readexactly(_STARTUP.size)
        length, code = _STARTUP.unpack(head)
        await server.send(head + await client.reader.readexactly(length - _STARTUP.size))
        if code == _CANCEL_REQUEST:
            return
        if code not in (_SSL_REQUEST, _GSS_REQUEST):
            break
        await client.send(await server.reader.readexactly(1))
    session = _Session(proxy, client, server)
    await _first_of(session.requests(), session.answers())


class _Session:
    """A session of PostgreSQL after its startup message."""

    def __init__(self, proxy: Proxy, client: _End, server: _End) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        # The server reports that it is ready once after the login, and once after each statement.
        self._pending: deque[Fault | None] = deque([None])
        self._status = b"I"
        self._statements: dict[bytes, str] = {}

    async def requests(self) -> None:
        waiting, texts = b"", list[str]()
        while True:
            kind, message = await _message(self._client)
            waiting += message
            texts += self._sql(kind, message[5:])
            if kind in b"QS":
                fault = await self._proxy.met("; ".join(texts)) if texts else None
                if fault is None or fault.delivered:
                    self._pending.append(fault)
                else:
                    await self._undelivered(fault)
                    waiting = b""
                texts = []
            elif kind in b"PBDEC":
                # Parts of a statement: whether it is hit is decided at its end.
                continue
            if waiting:
                await self._server.send(waiting)
                waiting = b""

    def _sql(self, kind: bytes, payload: bytes) -> list[str]:
        if kind == b"Q":
            return [payload.rstrip(b"\0").decode()]
        if kind == b"P":
            name, text, _ = payload.split(b"\0", 2)
            self._statements[name] = text.decode()
        elif kind == b"B":
            return [self._statements.get(payload.split(b"\0", 2)[1], "")]
        return []

    async def answers(self) -> None:
        answer = b""
        while True:
            kind, message = await _message(self._server)
            fault = self._pending[0] if self._pending else None
            if kind == b"Z":
                self._status = message[5:]
                if self._pending:
                    self._pending.popleft()
            if fault is None:
                await self._client.send(message)
                continue
            answer += message
            if kind == b"Z":
                await self._proxy.happen(fault)
                await self._answer(fault, answer)
                answer = b""

    async def _undelivered(self, fault: Fault) -> None:
        await self._proxy.happen(fault)
        if fault.answer == "withheld":
            # Until the client hangs up.
            await self._client.reader.read(1)
            raise ConnectionAbortedError
        if self._status == b"T":
            self._status = b"E"
        await self._answer(fault, b"")

    async def _answer(self, fault: Fault, answer: bytes) -> None:
        if fault.answer == "lost":
            raise ConnectionAbortedError
        if fault.answer == "withheld":
            # The other direction notices when the client hangs up.
            await asyncio.Event().wait()
        await self._client.send(_error(fault.code or "40001", self._status) if fault.answer == "error" else answer)


async def _message(end: _End) -> tuple[bytes, bytes]:
    """Type and all bytes of the next message."""
    head = await end.reader.readexactly(5)
    return head[:1], head + await end.reader.readexactly(_INT.unpack(head[1:])[0] - _INT.size)


def _error(state: str, status: bytes) -> bytes:
    fields = b"".join(name + text.encode() + b"\0" for name, text in ((b"S", "ERROR"), (b"V", "ERROR"), (b"C", state), (b"M", "proxy")))
    return b"E" + _INT.pack(len(fields) + 1 + _INT.size) + fields + b"\0" + b"Z" + _INT.pack(5) + status


# ----------------------------------------------------------------------------------------------------------------- HTTP


async def _speak_http(proxy: Proxy, client: _End, server: _End) -> None:
    while True:
        head = await client.reader.readuntil(b"\r\n\r\n")
        method, path, _ = head.split(b" ", 2)
        fields = _fields(head)
        if fields.get("expect", "").lower() == "100-continue":
            await client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _body(client, fields)
        fault = await proxy.met(f"{method.decode()} {path.decode('latin-1')}")
        answered = b"", b""
        if fault is None or fault.delivered:
            await server.send(head + body)
            answered = await _answer(server, is_head=method == b"HEAD")
        if fault is None:
            await client.send(b"".join(answered))
            continue
        await proxy.happen(fault)
        if fault.answer == "lost":
            return
        if fault.answer == "withheld":
            # Until the client hangs up.
            await client.reader.read(1)
            return
        if fault.answer == "error":
            await client.send(_refusal(int(fault.code or 503), with_body=method != b"HEAD"))
        elif fault.answer == "late" or not answered[1]:
            await client.send(b"".join(answered))
        else:
            await client.send(answered[0] + proxy.damaged(answered[1], fault))
            if fault.answer == "truncated":
                return


def _fields(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}


async def _body(end: _End, fields: dict[str, str], *, until_close: bool = False) -> bytes:
    """The body that follows a head, as it was sent."""
    if fields.get("transfer-encoding", "").lower() == "chunked":
        found = b""
        while True:
            size = await end.reader.readuntil(b"\r\n")
            found += size + await end.reader.readexactly(int(size.partition(b";")[0], 16) + 2)
            if int(size.partition(b";")[0], 16) == 0:
                return found
    if "content-length" in fields:
        return await end.reader.readexactly(int(fields["content-length"]))
    return await end.reader.read() if until_close else b""


async def _answer(server: _End, *, is_head: bool) -> tuple[bytes, bytes]:
    """Head and body of the final answer."""
    while True:
        head = await server.reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        if status >= 200:
            return head, b"" if is_head or status in _NO_BODY else await _body(server, _fields(head), until_close=True)


def _refusal(status: int, *, with_body: bool) -> bytes:
    reason = _REASONS.get(status, "Error")
    body = f"<?xml version='1.0' encoding='UTF-8'?><Error><Code>{reason}</Code><Message>proxy</Message></Error>".encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body) if with_body else 0}\r\n\r\n"
    return head.encode() + (body if with_body else b"")


_CONVERSATIONS: dict[Protocol, Callable[[Proxy, _End, _End], Coroutine[Any, Any, None]]] = {
    "bytes": _pass_bytes,
    "postgresql": _speak_postgresql,
    "http": _speak_http,
}
