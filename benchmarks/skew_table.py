"""How evenly tasks are spread where one series has a tenth of all points (``python -m benchmarks.skew``): the table of docs/spark.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import tables

NAME = "skew"


def table(found: dict[str, Any]) -> str:
    """The results as docs/spark.md shows them."""
    lines = ["| task | points | tasks | median | longest | longest / median |", "|---|---|---|---|---|---|"]
    for step in ("merge", "roll up"):
        for kind, points in (("even", "evenly spread"), ("hot", "a tenth in one series")):
            figures = found[kind][step]
            median, longest = figures["median"], figures["longest"]
            lines.append(f"| {step} | {points} | {figures['tasks']} | {median:.2f} s | {longest:.2f} s | {longest / median:.2f} |")
    return "\n".join(lines)


def write(root: Path) -> None:
    """Bring the table of docs/spark.md up to date."""
    results = tables.read(NAME)
    page = root / "docs" / "spark.md"
    before, begin, rest = page.read_text().partition("<!-- skew -->\n")
    _, end, after = rest.partition("<!-- /skew -->")
    if results and begin and end:
        page.write_text(f"{before}{begin}{table(results['tasks'])}\n{end}{after}")
