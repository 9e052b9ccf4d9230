"""Free TCP ports of the loopback interface."""

from __future__ import annotations

import contextlib
import secrets
import socket

LOOPBACK = "127.0.0.1"
_PORTS = range(15_000, 32_000)
"""Below those that kernels give to outgoing connections (from 32768 on Linux), which would take one between its choice and its use."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different, chosen at random (whatever seeds there are: two processes choose differently).

    Whoever asks has to be quick to use them: until then nothing keeps another process from taking one.

    Raises:
        RuntimeError: there are not as many.
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
        # As servers do: what is left of closed connections is no obstacle.
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            tried.bind((LOOPBACK, port))
            return True
    return False
