"""What all benchmarks of contenders have in common: prepare, measure, put results together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.circumstances import circumstances, forms_of
from benchmarks.contenders import Contender
from benchmarks.runner import Again, Bench, measure
from benchmarks.summary import summarized
from benchmarks.tables import Results
from benchmarks.tasks import SPARK, WARM


def side_by_side(
    command: str,
    bench: Bench,
    wanted: Sequence[Contender],
    repeat: int,
    packages: Sequence[str],
    say: Callable[[str], None],
    again: Again | None = None,
    *,
    only_before: bool = False,
) -> Results:
    """Measure contenders beside each other.

    Results name ``command`` and ``packages``; ``again`` chooses who runs in every turn. ``only_before``: no contender starts from sorted
    points, and this project is the first one, whose answer the others' are compared with.

    Raises:
        BusyError: another benchmark uses the folder.
        ChildError: a process of ours failed, or a peer's that had finished in the first turn.
        ValueError: a contender's answer differs from ours (a peer's for the second time).
    """
    say(f"{bench.shape}: {bench.rows:,} points, up to {repeat} times {len(wanted)} contenders, {bench.threads} threads; preparing")
    with bench.exclusively():
        bench.prepare(only_before=only_before, for_spark=any(contender.engine == SPARK for contender in wanted))
        found = measure(bench, wanted, repeat, say, again)
    return {
        **circumstances(command, bench, repeat, found.runs, packages),
        "limit_bytes": bench.memory_limit,
        "forms": forms_of(wanted),
        "outputs": found.outputs,
        "failed": found.failed,
        "wrong": found.wrong,
        "runs": found.runs,
        "summary": summarized(found.runs),
    }


def renewed(kept: Results, measured: Results, everyone: Sequence[Contender]) -> Results:
    """Kept results with new runs in place of the old, noted in ``renewed``, and without contenders that are not in ``everyone``."""
    known = [_who(contender.to_dict()) for contender in everyone]
    again = {_who(each) for each in (*measured["runs"], *measured["failed"])}

    def of_both(name: str) -> list[dict[str, Any]]:
        stays = [each for each in kept[name] if _who(each) in known and _who(each) not in again]
        return sorted([*stays, *measured[name]], key=lambda each: (each.get("turn", 0), known.index(_who(each))))

    lists = {name: of_both(name) for name in ("outputs", "failed", "wrong", "runs")}
    occasion = {name: measured[name] for name in ("command", "date", "commit", "changed")}
    return {**kept, **lists, "summary": summarized(lists["runs"]), "renewed": [*kept.get("renewed", ()), occasion]}


def _who(entry: Mapping[str, Any]) -> tuple[str, str, str, str]:
    # Answers are compared once, in warm processes, and do not say so.
    return entry["engine"], entry["task"], entry.get("start", WARM), entry["form"]
