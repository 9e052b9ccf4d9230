"""What the peers' modules share: what forms read, and running one query per file on several threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from benchmarks.sites import BATCH_END, RECEIVED, Site

FilesOf = Callable[[Site], list[str]]
LABEL = "(logical_timestamp + 59999) // 60000 * 60000"
CLOSED = f"logical_timestamp <= {BATCH_END - 60_000}"
"""The window labelled with the batch's end stays open: it is the next batch's."""
MINUTE = 60.0
"""Seconds of a window: what a delta is divided by for a rate per second."""


def of_sorted(site: Site) -> list[str]:
    """Files of our staged points."""
    return site.sorted_files


def of_raw(site: Site) -> list[str]:
    """Files of the raw hour."""
    return site.raw_files


def received(site: Site) -> bool:
    """Whether points have receive times, so that rollups have a lag."""
    return RECEIVED in site.point_columns


def file_by_file(files: Sequence[str], threads: int, work: Callable[[int, str], None]) -> None:
    """Call ``work(number, file)`` for each file, several at a time.

    Raises:
        Exception: the first that a call raised.
    """
    pending = list(enumerate(files))
    errors: list[BaseException] = []

    def take() -> None:
        try:
            while pending and not errors:
                work(*pending.pop())
        except BaseException as error:
            errors.append(error)

    workers = [threading.Thread(target=take) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if errors:
        raise errors[0]
