"""Free TCP ports of the loopback interface."""

from __future__ import annotations

import contextlib
import secrets
import socket

LOOPBACK = "127.0.0.1"
_PORTS = range(15_000, 32_000)
"""Below the ports of outgoing connections (from 32768 on Linux), one of which might take a port between its choice and its use."""


def free_ports(count: int) -> list[int]:
    """Distinct ports that nothing listens on, chosen at random (regardless of seeds, so that two processes choose differently).

    Use them soon: until then nothing keeps another process from taking one.

    Raises:
        RuntimeError: there are not enough.
    """
    found: list[int] = []
    for port in secrets.SystemRandom().sample(_PORTS, len(_PORTS)):
        if len(found) == count:
            return found
        if is_free(port):
            found.append(port)
    raise RuntimeError(f"{LOOPBACK} has no {count} free ports from {_PORTS[0]} to {_PORTS[-1]}; end some of the servers")


def is_free(port: int) -> bool:
    """Whether a server could listen there."""
    with socket.socket() as tried:
        # As servers do, so that remains of closed connections are no obstacle.
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            tried.bind((LOOPBACK, port))
            return True
    return False
