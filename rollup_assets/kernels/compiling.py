"""How every kernel is compiled.

``nogil``: the local engine runs tasks on threads. ``cache``: compiled code is kept beside the source, or in ``NUMBA_CACHE_DIR``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numba import njit
from numpy.typing import NDArray

Array = NDArray[Any]
Number = Any
"""A scalar of any width, Python's or numpy's: compiled code tells them apart, type checkers cannot."""

Function = TypeVar("Function", bound=Callable[..., object])


def kernel(function: Function) -> Function:
    """Compile a kernel."""
    compiled: Any = njit(nogil=True, cache=True)(function)
    return cast(Function, compiled)
