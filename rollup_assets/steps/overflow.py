"""The error of a window whose sum, step or delta does not fit int64: where it is, and what to do."""

from __future__ import annotations

from rollup_assets.batches import to_datetime
from rollup_assets.errors import RollupOverflowError
from rollup_assets.units import format_duration


def window_overflow(series: int, resolution: int, label: int) -> RollupOverflowError:
    """The error that names a window whose sum, step or delta does not fit int64; label in epoch ms."""
    return RollupOverflowError(
        f"series {series}, the {format_duration(resolution)} window labelled {to_datetime(label):%Y-%m-%d %H:%M:%S} UTC: "
        "a sum, step or delta overflows int64; correct the raw values, or store them as doubles "
        "(ROLLUP_VALUE_TYPE=double, with a table of its own)"
    )
