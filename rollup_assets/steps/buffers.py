"""Arrays that a thread keeps and reuses: touching fresh memory for the first time costs more than the work done on it."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Buffers(threading.local):
    """Named arrays of this thread."""

    def __init__(self) -> None:
        self._arrays: dict[str, NDArray[Any]] = {}

    def get(self, name: str, length: int, dtype: Any) -> NDArray[Any]:
        """An array of ``length`` and ``dtype`` with arbitrary content; it is the caller's until the same name is asked for again."""
        wanted = np.dtype(dtype)
        found = self._arrays.get(name)
        if found is None or len(found) < length or found.dtype != wanted:
            self._arrays.pop(name, None)
            found = self._arrays[name] = np.empty(length + length // 8 + 16, wanted)
        return found[:length]

    def clear(self) -> None:
        """Give this thread's memory back."""
        self._arrays.clear()
