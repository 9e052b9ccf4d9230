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
    """Import large libraries within this block: the garbage collector pauses, and from then on skips what was loaded.

    Afterwards it goes on as before. When the process ends, its objects are not searched for garbage a last time; ``atexit`` functions
    still run.
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
    # With DuckDB loaded there has to be a last collection: at the end it prints a list of its objects that were not collected.
    if "duckdb" not in sys.modules:
        gc.freeze()


@functools.cache
def load_arrow() -> None:
    """Import pyarrow in such a way that it imports pandas only when something is converted to pandas.

    Otherwise, with the first value that it converts, pyarrow imports pandas, if installed (the extra ``spark`` brings it along), to
    recognize pandas' types. That takes 0.2 s, and no step uses these types. Only for processes that run steps: if pandas is imported
    later and one of its columns is passed to ``pyarrow.array``, a NaN stays a NaN and does not become a null.
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
    """Import the parts of PyIceberg that every use of a catalog needs.

    Args:
        sql: also the parts for catalogs in a database.
    """
    with quick_imports():
        import pyiceberg.catalog
        import pyiceberg.io.pyarrow
        import pyiceberg.table

        if sql:
            import pyiceberg.catalog.sql  # noqa: F401


class _Refusal:
    """An import finder that, in the thread that made it, hides the module of one name, as if it were not installed."""

    def __init__(self, name: str) -> None:
        self._name, self._thread = name, threading.get_ident()

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:  # noqa: ARG002
        if name == self._name and threading.get_ident() == self._thread:
            raise ModuleNotFoundError(f"{name} is not looked for", name=name)
        return None
