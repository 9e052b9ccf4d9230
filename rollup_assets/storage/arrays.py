"""Converts Arrow columns to the arrays that kernels take. Which columns there are, and what their nulls mean, is not known here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

_MS_PER_UNIT = {"s": (1_000, 1), "ms": (1, 1), "us": (1, 1_000), "ns": (1, 1_000_000)}


def integers(array: pa.Array) -> NDArray[np.int64]:
    """As int64[n], null as 0."""
    import pyarrow as pa

    return np.asarray(
        array.fill_null(0).cast(pa.int64()).to_numpy(zero_copy_only=False) if array.null_count else array.cast(pa.int64()).to_numpy()
    )


def milliseconds(array: pa.Array) -> NDArray[np.int64]:
    """Epoch milliseconds, floored; seconds too large for int64 milliseconds become the extremes."""
    import pyarrow as pa
    import pyarrow.types as pt

    if not pt.is_timestamp(array.type):
        return integers(array)
    times = integers(array.view(pa.int64()))
    factor, divisor = _MS_PER_UNIT[array.type.unit]
    if divisor > 1:
        return np.floor_divide(times, divisor)
    if factor > 1:
        limit = np.iinfo(np.int64).max // factor
        return np.clip(times, -limit, limit) * factor
    return times


def lags(receive: pa.Array, times: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lags as ``kernels.columns.lags_between`` defines them, from receive times and ``times`` (epoch ms) of n points; int64[n]."""
    from rollup_assets.kernels.columns import lags_between

    out = np.empty(len(times), np.int64)
    unknown = mask(receive.is_null()) if receive.null_count else np.empty(0, np.bool_)
    lags_between(read_only(times), read_only(milliseconds(receive)), read_only(unknown), out)
    return out


def read_only(array: NDArray[Any]) -> NDArray[Any]:
    """A read-only view, as Arrow's are: to numba that is part of the type, and kernels are compiled for one type."""
    view = array.view()
    view.flags.writeable = False
    return view


def mask(array: pa.Array) -> NDArray[np.bool_]:
    """Arrow's booleans, which are packed bits, as bool[n]."""
    return np.asarray(array.to_numpy(zero_copy_only=False))
