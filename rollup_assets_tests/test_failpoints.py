"""Failpoints: all of them are declared and passed somewhere, malformed ones are refused, and each action does what it says."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rollup_assets import failpoints
from rollup_assets.errors import SettingsError
from rollup_assets.failpoints import FAILPOINTS, FailpointError, failpoint, handled
from rollup_assets.settings import load_settings

PACKAGE = Path(failpoints.__file__).parent
POINT = "publish.commit"


def passing(text: str, times: int = 1, *, then: str = "print('still here')") -> subprocess.CompletedProcess[str]:
    """A process that passes a failpoint, with the variable in its environment."""
    program = f"from rollup_assets.failpoints import failpoint\nfor _ in range({times}): failpoint({POINT!r})\n{then}"
    return subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, failpoints.VARIABLE: text}, capture_output=True, text=True, check=False
    )


def test_every_declared_failpoint_is_in_the_code_and_no_other() -> None:
    """That each is also passed by a run is `faults/test_reached.py`."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for prefix, name in re.findall(r'\bfailpoint\((f?)"([^"]+)"\)', path.read_text()):
            pattern = re.sub(r"\\\{[^}]*\\\}", ".+", re.escape(name)) if prefix else re.escape(name)
            matching = {known for known in FAILPOINTS if re.fullmatch(pattern, known)}
            assert matching, f"{path.name} passes {name}, which is not declared"
            found |= matching
    assert found == FAILPOINTS.keys()


def test_no_kernel_has_one() -> None:
    assert not [path for path in (PACKAGE / "kernels").glob("*.py") if "failpoint" in path.read_text()]


def test_without_the_variable_nothing_happens_and_it_costs_nothing() -> None:
    for name in FAILPOINTS:
        failpoint(name)
    began = time.perf_counter()
    for _ in range(100_000):
        failpoint(POINT)
    assert time.perf_counter() - began < 1, "10 microseconds each would be a thousand times too many"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("publish.comit=kill", r"there is no failpoint publish\.comit; there are event\.partial_points, .*publish\.commit"),
        (f"{POINT}=explode", r"publish\.commit cannot explode; there are kill, term, error, sleep, pause, wait"),
        (POINT, r"'publish\.commit' is not a failpoint and an action; write name=action, such as publish\.commit=error\*2"),
        (f"{POINT}=kill;nonsense", "'nonsense' is not a failpoint"),
        (f"{POINT}=sleep", r"publish\.commit=sleep needs seconds in parentheses"),
        (f"{POINT}=sleep(long)", r"publish\.commit=sleep\(long\) is not a number of seconds"),
        (f"{POINT}=pause", r"publish\.commit=pause needs a path in parentheses"),
        (f"{POINT}=error*x", r".*error\*x.* is not a failpoint and an action"),
    ],
)
def test_what_is_malformed_is_refused_before_anything_runs(monkeypatch: pytest.MonkeyPatch, text: str, said: str) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, text)
    with pytest.raises(SettingsError, match=f"ROLLUP_FAILPOINTS: {said}"):
        load_settings()
    ended = passing(text, then="")
    assert ended.returncode == 1
    assert "SettingsError: ROLLUP_FAILPOINTS: " in ended.stderr


def test_the_variable_is_no_misspelt_setting_but_has_no_effect_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, f" {POINT} = error*2+1 ; read.rows=sleep(0.5);")
    load_settings()
    monkeypatch.delenv(failpoints.VARIABLE)
    monkeypatch.setattr("rollup_assets.settings.project_root", lambda: tmp_path)
    (tmp_path / ".env").write_text(f"ROLLUP_FAILPOINTS={POINT}=kill\n")
    with pytest.raises(SettingsError, match=r"ROLLUP_FAILPOINTS in .*\.env has no effect; set it in the environment"):
        load_settings()


@pytest.mark.parametrize(("action", "number"), [("kill", signal.SIGKILL), ("term", signal.SIGTERM)])
def test_signals_end_the_process_once_where_a_file_says_so(tmp_path: Path, action: str, number: int) -> None:
    text = f"{POINT}={action}({tmp_path / 'done'})+2"
    ended = passing(text, 3)
    assert (ended.returncode, ended.stdout) == (-number, "")
    assert f"failpoint {POINT}: {action} in process" in ended.stderr
    again = passing(text, 3)
    assert (again.returncode, again.stdout) == (0, "still here\n")


def test_errors_are_counted() -> None:
    with handled(f"{POINT}=error*2+1; {POINT}=error+5; read.rows=kill"):
        outcomes = []
        for _ in range(8):
            try:
                failpoint(POINT)
                outcomes.append(None)
            except FailpointError as error:
                outcomes.append(str(error))
    said = f"failpoint {POINT}"
    assert outcomes == [None, said, said, None, None, said, said, said]
    failpoint(POINT)


def test_a_function_hears_of_every_failpoint() -> None:
    heard: list[str] = []
    with handled(heard.append):
        failpoint("read.rows")
        with handled(""):
            failpoint("read.file")
        failpoint(POINT)
    assert heard == ["read.rows", POINT]


def test_a_pause_lasts_until_its_file_is_deleted_and_waiting_until_one_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reached, go_on = tmp_path / "reached", tmp_path / "go on"
    with handled(f"{POINT}=pause({reached});{POINT}=wait({go_on})"):
        passed = threading.Thread(target=failpoint, args=(POINT,))
        passed.start()
        while not reached.exists():
            time.sleep(0.001)
        reached.unlink()
        assert passed.is_alive()
        go_on.touch()
        passed.join(60)
        assert not passed.is_alive()
    monkeypatch.setattr(failpoints, "LONGEST_PAUSE", 0.01)
    with handled(f"{POINT}=pause({reached})"), pytest.raises(FailpointError, match="nobody deleted"):
        failpoint(POINT)
