"""How every kernel is compiled.

``nogil``: the local engine runs tasks on threads. ``cache``: compiled code is kept beside the source, or in ``NUMBA_CACHE_DIR``.
Changing this module does not invalidate code that is already cached.

numba counts references to arrays, atomically, wherever one compiled function calls another. That took half of the rollup kernel's time
(three resolutions, one point per window: 55 -> 21 ns a point without; six points: 13 -> 7). Only functions that make arrays need it, since
the caller keeps those that it passes alive.

A signed index may count from the end, which is checked at each access and keeps loops from being vectorized, so inner loops have unsigned
ones (filling a row group 3.7 -> 1.8 ns a point, ingesting 5.2 -> 4.3, six points of a window 5.3 -> 3.6).

``_nrt`` is an option that numba's documentation does not mention: a test checks that it still helps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from numpy.typing import NDArray

from rollup_assets.loading import quick_imports

with quick_imports():
    from numba import njit

Array = NDArray[Any]
Number = Any
"""A scalar of any width, Python's or numpy's: compiled code distinguishes them, type checkers cannot."""

Function = TypeVar("Function", bound=Callable[..., object])

_kernels: list[Any] = []


def kernel(function: Function) -> Function:
    """Compile a kernel that makes no arrays (views of its arguments do not count)."""
    return _compile(function, _nrt=False)


def allocating_kernel(function: Function) -> Function:
    """Compile a kernel that makes arrays."""
    return _compile(function)


def _compile(function: Function, **options: bool) -> Function:
    compile_with: Any = njit
    compiled = compile_with(nogil=True, cache=True, **options)(function)
    _kernels.append(compiled)
    return cast(Function, compiled)


def compiled_kernels() -> dict[str, bool]:
    """Every kernel of the modules imported so far, and whether code compiled from its current source is cached for this processor."""
    return {f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__}": _is_compiled(kernel) for kernel in _kernels}


def cache_folders() -> set[str]:
    """Folders in which compiled code of those kernels is cached."""
    return {str(kernel.stats.cache_path) for kernel in _kernels}


def _is_compiled(kernel: Any) -> bool:
    # numba has no public way to ask this without compiling. Its index is empty if version or source have changed since; its keys are
    # (types of the arguments, processor, digests of the code).
    index = kernel._cache._cache_file._load_index()
    processor = kernel.targetctx.codegen().magic_tuple()
    return any(of == processor for _, of, _ in index)
