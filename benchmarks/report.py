"""Results to ``docs/performance.md``: its tables and plots are made from the committed JSON, and show nothing that is not in it.

``docs/scaling.md`` follows from the same results (``benchmarks.scaling``).
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType

from benchmarks import figures, scaling, tables
from benchmarks.contenders import Contender
from benchmarks.runner import ROOT, Bench
from benchmarks.side_by_side import renewed
from benchmarks.tables import Results, Target, filled, targets_table, with_figures

PAGE = Path("docs") / "performance.md"
QUOTING = (Path("docs") / "spark.md",)
"""Other pages with figures of results in their sentences."""
SECTIONS = (
    *("stages", "spark", "seed_size", "seed", "sizes", "peer_sizes", "shapes", "storages", "publishing", "table_age", "querying"),
    "orchestration",
)
"""Modules of ``benchmarks.sections``, in the order of the page."""


def sections() -> list[ModuleType]:
    """The modules that show each benchmark."""
    return [importlib.import_module(f"benchmarks.sections.{name}") for name in SECTIONS]


def targets() -> list[Target]:
    """All targets, in the order of the page."""
    return [target for section in sections() if hasattr(section, "targets") for target in section.targets()]


def blocks() -> dict[str, str]:
    """The generated parts of the page, by name."""
    made = {"targets": targets_table(targets())}
    for section in sections():
        made |= section.blocks()
    return made


def plots() -> dict[str, tuple[Results, Callable[[Path], None]]]:
    """The page's pictures, by name: what they show, and how to draw them."""
    made: dict[str, tuple[Results, Callable[[Path], None]]] = {}
    for section in sections():
        if hasattr(section, "plots"):
            made |= section.plots()
    return made


def page(text: str) -> str:
    """The page with its generated parts made anew.

    Raises:
        KeyError: a block has an unknown name.
    """
    return with_figures(filled(text, blocks()), figures.named())


def write(root: Path) -> None:
    """Bring the page's tables and plots up to date, and the tables of results on other pages."""
    from benchmarks import load_table, skew_table

    target = root / PAGE
    target.write_text(page(target.read_text()))
    for name, (_, draw) in plots().items():
        draw(target.with_name(f"{name}.svg"))
    for path in (root / quoting for quoting in QUOTING):
        path.write_text(with_figures(path.read_text(), figures.named()))
    scaling.write(root)
    skew_table.write(root)
    load_table.write(root)


def not_renewable(name: str, bench: Bench, repeat: int, together: Sequence[Contender] = ()) -> str | None:
    """Why kept results cannot be renewed in part: there are none, or they were measured in other circumstances. None if they can.

    ``together``: contenders that are compared turn by turn, warm ones with warm ones and cold with cold, so that neither can be renewed
    in part.
    """
    kept = tables.read(name)
    if kept is None:
        return f"there is no {name}.json to renew: measure all of it first"
    before = {"points": kept["data"]["rows"], "threads": kept["threads"], "memory limit": kept["limit_bytes"], "turns": kept["repeat"]}
    now = {"points": bench.rows, "threads": bench.threads, "memory limit": bench.memory_limit, "turns": repeat}
    others = [f"{what} {before[what]}, not {now[what]}" for what in now if before[what] != now[what]]
    if others:
        return f"{name}.json is of {'; '.join(others)}: measure all of it again, or ask for the same"
    starts = {each.start for each in together}
    ran = (Contender(run["engine"], run["task"], run["start"], run["form"]) for run in kept["runs"])
    alone = dict.fromkeys(each.name for each in ran if each.start in starts and each not in together)
    every = " or ".join(f"--only {start}" for start in sorted(starts))
    return f"{name}.json compares these with {'; '.join(alone)}: measure all of them again, with {every}" if alone else None


def renew(results: Results, name: str, everyone: Sequence[Contender], *, output: Path | None, say: Callable[[str], None]) -> None:
    """:func:`keep` the results kept already, with these in place of the same contenders', and without contenders not in ``everyone``."""
    kept = tables.read(name)
    assert kept is not None
    keep(renewed(kept, results, everyone), name, complete=True, output=output, say=say)


def keep(results: Results, name: str, *, complete: bool, output: Path | None, say: Callable[[str], None]) -> None:
    """Write results to ``output`` or, if they are ``complete``, over the committed ones, and update the pages; say where.

    Other results are not written: pages show nothing that was measured with less than, or other options than, the defaults, which each
    program's ``is_complete`` decides.
    """
    target = output or (tables.RESULTS / f"{name}.json" if complete else None)
    if target is None:
        return
    target.write_text(json.dumps(results, indent=1) + "\n")
    say(f"results are in {target}")
    if target.resolve().parent == tables.RESULTS.resolve():
        write(ROOT)
