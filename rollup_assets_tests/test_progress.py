"""The terminal's progress: those who look on do not stop the work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rollup_assets.progress import TerminalProgress


def test_a_reader_that_has_gone_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in ``rollups backfill … 2>&1 | head``."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w", buffering=1) as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with TerminalProgress() as progress:
            progress.say("one")
            assert os.read(reading, 100) == b"one\n"
            os.close(reading)
            for _ in range(3):
                progress.say("nobody hears this")
        stream.write("nor this\n")


def test_a_closed_standard_error_stops_nothing() -> None:
    code = "from rollup_assets.progress import TerminalProgress\nTerminalProgress().say('x')\nprint('done')"
    done = subprocess.run(["/bin/sh", "-c", 'exec "$@" 2>&-', "", sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0)


def test_a_full_disk_stops_nothing() -> None:
    with Path("/dev/full").open("w", buffering=1) as stream:
        code = "from rollup_assets.progress import TerminalProgress\nfor _ in range(3): TerminalProgress().say('x')\nprint('done')"
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=stream, text=True, check=False)
    assert (done.stdout, done.returncode) == ("done\n", 0)


def test_a_name_is_no_code_for_a_picture(capsys: pytest.CaptureFixture[str]) -> None:
    TerminalProgress().say("job:x:rate5m")
    assert capsys.readouterr().err == "job:x:rate5m\n"
