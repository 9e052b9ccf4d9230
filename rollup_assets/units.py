"""Durations and sizes as text, and back."""

from __future__ import annotations

import re
from fractions import Fraction

from rollup_assets.batches import DAY_MS, HOUR_MS, MINUTE_MS

_DURATION_UNITS = {"ms": 1, "s": 1_000, "m": MINUTE_MS, "h": HOUR_MS, "d": DAY_MS}
_SIZE_UNITS = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_duration(text: str) -> int:
    """Milliseconds of a duration such as ``30s``, ``5m``, ``1h`` or ``1d``.

    Raises:
        ValueError: the text is not a positive whole number and a unit.
    """
    match = re.fullmatch(r"([0-9]{1,15})\s*(ms|s|m|h|d)", text.strip())
    if not match or int(match[1]) == 0:
        raise ValueError(f"{text!r} is not a duration; write a positive whole number and a unit, such as 30s, 5m, 1h or 1d")
    return int(match[1]) * _DURATION_UNITS[match[2]]


def format_duration(ms: int) -> str:
    """The shortest text that :func:`parse_duration` reads as ``ms``: ``1m``, ``5m``, ``1h``, ``90s``."""
    unit = next(unit for unit in ("d", "h", "m", "s", "ms") if ms % _DURATION_UNITS[unit] == 0)
    return f"{ms // _DURATION_UNITS[unit]}{unit}"


def parse_size(text: str) -> int:
    """Bytes of a size such as ``2GiB`` or ``512MiB``.

    Raises:
        ValueError: the text is not a number, alone or with a unit.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMGT]i?B)?", text.strip())
    if not match:
        raise ValueError(f"{text!r} is not a size; write a number and a unit, such as 512MiB or 2GiB")
    return int(Fraction(match[1]) * _SIZE_UNITS[match[2] or ""])
