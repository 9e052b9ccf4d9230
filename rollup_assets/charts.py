"""Charts in a terminal, drawn with block characters. Numbers in, lines of text out; where the numbers come from is not known here."""

from __future__ import annotations

from collections.abc import Sequence

_EIGHTHS = " ▁▂▃▄▅▆▇█"


def spread(windows: Sequence[tuple[int, int, float]], begin: int, end: int, width: int) -> list[float | None]:
    """Values of windows ``(from, to, value)``, laid over ``width`` equal columns of ``[begin, end)``.

    A column that several windows overlap gets their mean, one that no window overlaps None.
    """
    sums, counts = [0.0] * width, [0] * width
    for first, last, value in windows:
        left = max(0, (first - begin) * width // (end - begin))
        right = min(width, max(left + 1, -(-(last - begin) * width // (end - begin))))
        for column in range(left, right):
            sums[column] += value
            counts[column] += 1
    return [total / count if count else None for total, count in zip(sums, counts, strict=True)]


def columns(values: Sequence[float | None], height: int) -> list[str]:
    """A bar for each value, on ``height`` lines: the least is one eighth of a line high, the greatest fills all. None leaves a gap."""
    known = [value for value in values if value is not None]
    if not known:
        return [" " * len(values)] * height
    low, high = min(known), max(known)
    scale = (8 * height - 1) / (high - low) if high > low else 0.0
    eighths = [0 if value is None else 1 + round((value - low) * scale) for value in values]
    return ["".join(_EIGHTHS[min(8, max(0, level - 8 * line))] for level in eighths) for line in reversed(range(height))]


def axis(begin: int, end: int, labels: Sequence[tuple[int, str]], width: int) -> str:
    """A line with ``labels`` (position, text) at their places, without those that would overlap the one before."""
    line = ""
    for position, text in labels:
        column = (position - begin) * width // (end - begin)
        if column >= len(line) + (1 if line else 0) and column + len(text) <= width:
            line = line.ljust(column) + text
    return line.ljust(width)
