"""Libraries load without searches for garbage, and pyarrow without pandas; nothing else changes for whoever comes after."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import rollup_assets

PROJECT = Path(rollup_assets.__file__).parent.parent
HOUR_TO_PUBLISHED = """
import sys
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.rollup import roll_up
from rollup_assets_tests.integration.tables import land, hours
from pathlib import Path

if len(sys.argv) > 2:
    land(Path(sys.argv[1]), 1)
    sys.exit()
"""


def python(code: str, *arguments: str) -> list[str]:
    """The lines that code prints in a new interpreter, which has nothing to complain of."""
    command = [sys.executable, "-c", code, *arguments]
    found = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=120, check=False)
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout.splitlines()


def test_nothing_is_collected_during_imports_and_everything_afterwards() -> None:
    code = """
import gc, weakref
from rollup_assets.loading import quick_imports

class Cycle:
    def __init__(self):
        self.itself = self

collections = []
gc.callbacks.append(lambda phase, info: collections.append(phase))
with quick_imports():
    many = [[] for _ in range(100_000)]
    with quick_imports():
        pass
    print(gc.isenabled(), len(collections))
print(gc.isenabled(), gc.get_freeze_count() > 100_000)
later = weakref.ref(Cycle())
gc.collect()
print(later())
"""
    assert python(code) == ["False 0", "True True", "None"]


def test_whoever_collects_nothing_is_left_alone() -> None:
    code = """
import gc
from rollup_assets.loading import quick_imports
gc.disable()
with quick_imports():
    pass
print(gc.isenabled())
"""
    assert python(code) == ["False"]


def test_a_process_that_has_loaded_much_still_ends_properly() -> None:
    """Handlers run, threads are waited for, files are written; no search for garbage comes after the last handler."""
    code = """
import atexit, gc, sys, threading, time
atexit.register(lambda: gc.callbacks.append(lambda phase, info: print("collected", info["collected"]) if phase == "stop" else None))
from rollup_assets.loading import quick_imports
with quick_imports():
    import json
atexit.register(print, "handler")
cycle = []
cycle.append(cycle)
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
print("end")
"""
    told = python(code)
    assert told[:3] == ["end", "thread", "handler"]
    assert set(told[3:]) <= {"collected 0"}, "the cycle was frozen"


def test_pyarrow_leaves_pandas_alone_until_it_is_asked_for() -> None:
    pytest.importorskip("pandas")
    code = """
import sys
from rollup_assets.loading import load_arrow
load_arrow()
load_arrow()
import pyarrow as pa, numpy as np
pa.scalar(1), pa.array([1, None]), pa.array(np.arange(3)).to_numpy(), pa.Table.from_pylist([{"a": 1}])
print("pandas" in sys.modules, [type(finder).__name__ for finder in sys.meta_path if "Refusal" in type(finder).__name__])
frame = pa.table({"a": [1, 2]}).to_pandas()
print(type(frame).__name__, pa.array(frame["a"]).to_pylist(), pa.Table.from_pandas(frame).to_pydict())
"""
    assert python(code) == ["False []", "DataFrame [1, 2] {'a': [1, 2]}"]


def test_pandas_that_is_loaded_already_stays_known_to_pyarrow() -> None:
    pytest.importorskip("pandas")
    code = """
import pandas as pd
from rollup_assets.loading import load_arrow
load_arrow()
import pyarrow as pa
print(pa.array(pd.Series([1.0, float("nan")])).to_pylist())
"""
    assert python(code) == ["[1.0, None]"]


@pytest.mark.parametrize("duckdb_first", [True, False])
def test_duckdb_has_nothing_to_complain_of_when_the_process_ends(duckdb_first: bool) -> None:
    queried = "import duckdb; duckdb.sql('select 1').fetchall()"
    loaded = "from rollup_assets.loading import load_pyiceberg; load_pyiceberg(sql=True)"
    assert python("\n".join([queried, loaded] if duckdb_first else [loaded, queried])) == []
