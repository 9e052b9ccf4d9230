"""Parts of tables and plots: figures, targets, circumstances; and where results are kept. Knows no benchmark by name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.summary import Run, Spread, cpu, ratio, select, wall

Results = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
Figures = dict[str, float | str]
"""What sentences of a page say about results, by name: figures, and names of whoever was fastest."""
_BLOCK = re.compile(r"(<!-- table: (?P<name>[\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
FIGURE = re.compile(r"(?P<shown>[A-Z]\w+|\?|[\d?][\d,]*(?:\.(?P<decimals>[\d?]+))?)<!-- = (?P<name>[^>]+) -->")
"""A figure in a sentence, and the name of what it is: ``4.6<!-- = NAME -->``; ``?.?`` if it is not measured."""


@dataclass(frozen=True, slots=True)
class Target:
    """One row of the page's first table."""

    text: str
    wanted: str
    measured: str = ""
    met: bool | None = None
    """None: not measured yet."""
    also: str = ""


def targets_table(targets: Sequence[Target]) -> str:
    """What was aimed at, and what came out."""
    said = {True: "yes", False: "**no**", None: ""}
    rows = [[each.text, each.wanted, each.measured or "not measured yet", said[each.met], each.also] for each in targets]
    return table(["aim", "wanted", "measured", "met", "also"], rows)


def read(name: str) -> Results | None:
    """Committed results; None if there are none yet."""
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def not_measured(command: str) -> str:
    """The text in place of a table until its results are committed."""
    return f"Not measured yet: `{command}`."


def filled(text: str, blocks: dict[str, str]) -> str:
    """A page with its generated parts made anew.

    Raises:
        KeyError: a block has an unknown name.
    """
    return _BLOCK.sub(lambda found: f"{found[1]}\n{blocks[found['name']]}\n\n{found[3]}", text)


def with_figures(text: str, figures: Figures) -> str:
    """A page with the figures of its sentences made anew, each with as many decimals as it has; question marks for what is not measured.

    Raises:
        ValueError: a name to be shown, as of a program, has several words.
    """

    def anew(found: re.Match[str]) -> str:
        value, decimals = figures.get(found["name"]), len(found["decimals"] or "")
        if value is None:
            shown = "?" if found["shown"][0].isupper() or not decimals else f"?.{'?' * decimals}"
        elif isinstance(value, str):
            if not value.isalnum():
                raise ValueError(f"{value!r} ({found['name']}) is not one word")
            shown = value
        else:
            shown = f"{value:,.{decimals}f}"
        return f"{shown}<!-- = {found['name']} -->"

    return FIGURE.sub(anew, text)


def filled_between(text: str, name: str, block: str) -> str:
    """A page with the part between ``<!-- NAME -->`` and ``<!-- /NAME -->`` made anew; unchanged if it has no such part."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = text.partition(begin)
    _, ended, after = rest.partition(end)
    return f"{before}{begin}{block}\n{end}{after}" if ended else text


def digest(results: Results) -> str:
    """Digest that ties a plot to the results it was drawn from."""
    return hashlib.sha256(json.dumps(results, sort_keys=True).encode()).hexdigest()[:16]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def figure(spread: Spread, digits: int = 2) -> str:
    """Median, least and most."""
    return f"{spread.median:.{digits}f} ({spread.least:.{digits}f} to {spread.most:.{digits}f})"


def pair(
    runs: Sequence[Run], above: tuple[str, str], below: tuple[str, str], of: Callable[[Run], float], start: str = "warm"
) -> Spread | None:
    """The ratio of two contenders (engine, task), turn by turn; None unless both were measured."""
    ones, others = select(runs, *above, start), select(runs, *below, start)
    return ratio(ones, others, of) if ones and others else None


def costs(runs: Sequence[Run]) -> list[str]:
    """Wall seconds, CPU seconds, peak MiB."""
    peak = Spread.of([run["peak_bytes"] / 2**20 for run in runs])
    return [figure(Spread.of([wall(run) for run in runs])), figure(Spread.of([cpu(run) for run in runs])), f"{peak.median:.0f}"]


def size(runs: Sequence[Run]) -> str:
    """MB written, if recorded in the runs."""
    sizes = [run["bytes"] for run in runs if "bytes" in run]
    return f"{sizes[0] / 1e6:.0f}" if sizes else ""


def occasion(results: Results, beside: str = "") -> list[str]:
    """What was run, when, at which commit, where and with which versions; ``beside``: what else used the machine."""
    machine = results["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in {"Python": machine["python"], **results["versions"]}.items())
    changed = f", with changes to {', '.join(results['changed'])}" if results["changed"] else ""
    return [
        f"- `{results['command']}`, {results['date']}, commit {results['commit'][:12]}{changed}",
        f"- {machine['cores']} cores of {machine['cpu']}, {machine['memory_gib']} GiB, {machine['system']}{beside}",
        f"- {versions}",
    ]


def circumstances(results: Results) -> str:
    """Machine, versions, data and how it was run."""
    data = results["data"]
    others = Spread.of([100 * run["others_share"] for run in results["runs"]])
    forms = "; ".join(f"{name}: {form}" for name, form in results.get("forms", {}).items())
    failed = "; ".join(f"{each['engine']} {each['task']}: {each['why']}" for each in results.get("failed", ()))
    wrong = "; ".join(f"{each['engine']} {each['task']}: {each['form']}" for each in results.get("wrong", ()))
    return "\n".join(
        [
            *occasion(results),
            f"- {data['rows']:,} points of {data['series']:,} series in {data['raw_files']} files, {data['raw_bytes'] / 1e6:.0f} MB; "
            f"{results['threads']} threads for everyone{_limit(results)}; {results['repeat']} turns",
            f"- other programs used {figure(others, 0)} % of the machine while a run was measured",
            *([f"- the peers' forms: {forms}"] if forms else []),
            *([f"- did not come to an end: {failed}"] if failed else []),
            *([f"- answered something else once, and the same as the others when run again: {wrong}"] if wrong else []),
            *([f"- left to `--full`: {', '.join(results['left_out'])}"] if results.get("left_out") else []),
        ]
    )


def _limit(results: Results) -> str:
    """The memory limit of all contenders, if it could be set."""
    if not results.get("limit_bytes"):
        return ""
    set_ = all(run.get("memory", {}).get("limit") for run in results["runs"])
    return f" and {results['limit_bytes'] / 2**30:g} GiB of memory{', page cache included' if set_ else ' wanted, but not limited here'}"


@contextmanager
def drawing(target: Path, results: Results, *, width: float = 8, height: float = 3.6) -> Iterator[Any]:
    """Axes of a plot, saved as SVG in the page's style when the block ends; the results' digest is in its metadata."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    with mpl.rc_context(
        {"svg.hashsalt": "rollups", "svg.fonttype": "none", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        drawn, axes = plt.subplots(figsize=(width, height), layout="constrained")
        yield axes
        drawn.savefig(target, format="svg", metadata={"Date": None, "Description": f"results {digest(results)}"}, transparent=False)
        plt.close(drawn)
