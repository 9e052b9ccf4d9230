"""Readers beside writers (``python -m benchmarks.load``): the table of docs/reliability.md."""

from __future__ import annotations

from pathlib import Path

from benchmarks import tables
from benchmarks.catalogs import EMBEDDED, POSTGRES
from benchmarks.summary import Spread
from benchmarks.tables import Results, figure

NAME = "load"
STORES = (EMBEDDED, POSTGRES)
PAGE = Path("docs") / "reliability.md"


def table(results: Results) -> str:
    """The results as a table for the page."""
    titles = [
        "catalog, storage",
        "seconds",
        "batches published",
        "begun again",
        "slowest batch, s",
        "queries",
        "seconds a query",
        "hours looked at",
        "wrong",
        "writer's peak, MiB",
        "reader's",
    ]
    rows = []
    for name, found in results["stores"].items():
        counts = (found["batches"], found["tries_again"])
        rows.append(
            [
                name,
                f"{found['seconds']:.0f}",
                *(f"{count:,}" for count in counts),
                f"{found['longest']:.1f}",
                f"{found['queries']:,}",
                figure(Spread.of(found["query_seconds"])),
                f"{found['hours_seen']:,}",
                str(len(found["problems"])),
                *(f"{found[who] >> 20}" for who in ("writer_peak_bytes", "reader_peak_bytes")),
            ]
        )
    made = f"`{results['command']}`, {results['date']}, commit {results['commit'][:12]}; {results['machine']['cores']} cores"
    return f"{tables.table(titles, rows)}\n\n{made}"


def write(root: Path) -> None:
    """Bring the page's table up to date."""
    if results := tables.read(NAME):
        page = root / PAGE
        page.write_text(tables.filled_between(page.read_text(), NAME, table(results)))
