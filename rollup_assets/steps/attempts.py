"""Where the tries of a task put their files, and what becomes of the files of tries that failed or were not chosen.

An engine may try a task again, or twice at once: every try writes to a folder, or under a name, of its own, and only what the chosen
one returned is named by a manifest. What an engine does about failures stays out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from rollup_assets.engines.base import TaskContext
from rollup_assets.storage.filesystems import Place


def attempt_folder(attempt: str, context: TaskContext) -> str:
    """The folder, below the partition's, of one try at a task."""
    return f"{attempt}/{context.attempt}" if context.attempt else attempt


def delete_other_tries(folders: Iterable[Place], prefix: str, kept: Collection[str]) -> None:
    """Delete every file in or below ``folders`` whose path there begins with ``prefix``, except those in ``kept`` (paths).

    That includes the unfinished files of a killed try, whose names begin with a dot.

    A try that Spark has given up but that still runs may add files later; no manifest names them.
    """
    for folder in folders:
        for info in folder.files():
            below = str(info.path)[len(folder.path) :].lstrip("/")
            if below.removeprefix(".").startswith(prefix) and str(info.path) not in kept:
                (folder / below).delete_file()
