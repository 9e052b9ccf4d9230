"""Spill folders of other processes: of one that was killed, and of one that lives."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_HOLD = """
import sys
from pathlib import Path
from rollup_assets.storage.spill import spill_folder

with spill_folder(Path(sys.argv[1])) as folder:
    (folder / "blocks-0").write_bytes(b"spilled")
    print(folder, flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def _holding(scratch: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    command = [sys.executable, "-c", _HOLD, str(scratch)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield Path(process.stdout.readline().strip()), process


@contextlib.contextmanager
def held_elsewhere(scratch: Path) -> Iterator[Path]:
    """A folder of another process, which has 7 bytes in ``blocks-0`` and deletes it at the end."""
    with _holding(scratch) as (folder, _):
        yield folder


def left_by_a_killed_process(scratch: Path) -> Path:
    """The same, of a process that could not delete it any more."""
    with _holding(scratch) as (folder, process):
        process.kill()
    return folder
