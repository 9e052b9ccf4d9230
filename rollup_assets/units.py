"""Durations and sizes as text, and back; counts and lists as text."""

from __future__ import annotations

import re
from collections.abc import Sequence
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


def bytes_text(count: float) -> str:
    """Bytes in three digits and binary units: ``29.7 MiB``."""
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def count_text(number: int, noun: str, nouns: str = "") -> str:
    """``1 batch``, ``1,200 batches``; ``nouns``: the plural, if it is not the noun with an s."""
    return f"{number} {noun}" if number == 1 else f"{number:,} {nouns or f'{noun}s'}"


def list_text(names: Sequence[str], most: int) -> str:
    """``a, b, c and 1,200 more``: the names in their order, at most ``most`` of them."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
