"""How every kernel is compiled.

``nogil``: the local engine runs tasks on threads. ``cache``: compiled code is kept beside the source, or in ``NUMBA_CACHE_DIR``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def kernel(function: Function) -> Function:
    """Compile a kernel."""
    return njit(nogil=True, cache=True)(function)  # type: ignore[no-any-return]


def inlined(function: Function) -> Function:
    """Compile a function that kernels call in their inner loops."""
    return njit(nogil=True, cache=True, inline="never")(function)  # type: ignore[no-any-return]
