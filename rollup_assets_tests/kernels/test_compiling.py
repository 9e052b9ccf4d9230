"""Kernels that make no arrays count no references: numba's option for that still does what it is here for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import numpy as np
from numba import njit
from rollup_assets.kernels import rollup

rows, state = rollup.new_rows(1, 1, 2, np.dtype(np.int64)), rollup.new_state(2, np.dtype(np.int64))
for function in (rollup.push_up, njit(rollup.push_up.py_func)):
    resolutions = np.array([60_000, 300_000])
    function(
        state.integers, state.values, 0, 1, 2, resolutions, state.cursor, rows.integers, rows.values, rows.used, rows.capacity
    )
    (signature,) = function.signatures
    print(function.inspect_asm(signature).count("NRT_incref"))
"""


def test_kernels_that_make_no_arrays_count_no_references(tmp_path: Path) -> None:
    """In a process and with a cache of its own: compiled code from a cache cannot be looked into."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, str(program)], env={"NUMBA_CACHE_DIR": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    plain, counting = (int(line) for line in done.stdout.split())
    assert plain == 0
    assert counting > 0
