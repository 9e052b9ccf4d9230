"""How even tasks are if one series has a tenth of all points (``python -m benchmarks.skew``): the table of docs/spark.md."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks import tables

NAME = "skew"
PAGE = Path("docs") / "spark.md"


def table(found: dict[str, Any]) -> str:
    """The results as the page shows them."""
    rows = []
    for step in ("merge", "roll up"):
        for kind, points in (("even", "evenly spread"), ("hot", "a tenth in one series")):
            figures = found[kind][step]
            median, longest = figures["median"], figures["longest"]
            rows.append([step, points, str(figures["tasks"]), f"{median:.2f} s", f"{longest:.2f} s", f"{longest / median:.2f}"])
    return tables.table(["task", "points", "tasks", "median", "longest", "longest / median"], rows)


def write(root: Path) -> None:
    """Bring the page's table up to date."""
    if results := tables.read(NAME):
        page = root / PAGE
        page.write_text(tables.filled_between(page.read_text(), NAME, table(results["tasks"])))
