"""Makes processes load libraries quickly, and end quickly.

Dagster, numba with its kernels and PyIceberg make some 200,000 objects when they are imported. Python's garbage collector looks through
them again and again meanwhile, and once more when the process ends, and finds nothing: 0.9 of the 2.4 CPU seconds that a process paid for
no more than starting and ending.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import sys
import threading
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Import large libraries inside of this: nothing is collected meanwhile, and what has been loaded is never looked through again.

    Collecting goes on afterwards as before. When the process ends, its objects go with it, without a last search for garbage; whatever
    asks to be told of the end (``atexit``) still is.
    """
    atexit.unregister(_freeze)  # once is enough
    atexit.register(_freeze)
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        _freeze()
        if collecting:
            gc.enable()


def _freeze() -> None:
    # DuckDB counts its objects when the process ends, and prints a list of those that nobody has collected.
    if "duckdb" not in sys.modules:
        gc.freeze()


@functools.cache
def load_arrow() -> None:
    """Import pyarrow, which then leaves pandas alone until somebody converts to it.

    With the first value it converts, pyarrow imports pandas, if it is installed, in order to know pandas' types when it meets them: 0.2
    seconds. No step makes any. (The extra ``spark`` brings pandas along.) For processes that run steps: whoever imports pandas later and
    hands one of its columns to ``pyarrow.array`` gets a NaN as a NaN, not as a null.
    """
    with quick_imports():
        import pyarrow as pa

        if "pandas" in sys.modules:
            return
        refusal = _Refusal("pandas")
        sys.meta_path.insert(0, refusal)
        try:
            pa.scalar(0)
        finally:
            sys.meta_path.remove(refusal)


@functools.cache
def load_pyiceberg(*, sql: bool) -> None:
    """Import what every use of a catalog needs.

    Args:
        sql: also that of catalogs in a database.
    """
    with quick_imports():
        import pyiceberg.catalog
        import pyiceberg.io.pyarrow
        import pyiceberg.table

        if sql:
            import pyiceberg.catalog.sql  # noqa: F401


class _Refusal:
    """Finds no module of one name for the thread that made this, as if it were not installed."""

    def __init__(self, name: str) -> None:
        self._name, self._thread = name, threading.get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        if name == self._name and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is not looked for", name=name)
        return None
