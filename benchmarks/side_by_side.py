"""What every benchmark of contenders does: prepare, measure, put results together."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.circumstances import circumstances, forms_of
from benchmarks.contenders import Contender
from benchmarks.runner import Again, Bench, measure
from benchmarks.summary import summarized
from benchmarks.tables import Results
from benchmarks.tasks import SPARK


def side_by_side(
    command: str,
    bench: Bench,
    wanted: Sequence[Contender],
    repeat: int,
    packages: Sequence[str],
    say: Callable[[str], None],
    again: Again | None = None,
) -> Results:
    """Measure contenders beside each other.

    ``command`` and ``packages`` are what results name; ``again`` chooses who runs in every turn.

    Raises:
        BusyError: another benchmark uses the folder.
        ChildError: a process of ours failed.
        ValueError: a contender's answer is not ours, of a peer's for the second time.
    """
    say(f"{bench.shape}: {bench.rows:,} points, up to {repeat} times {len(wanted)} contenders, {bench.threads} threads; preparing")
    with bench.exclusively():
        bench.prepare(for_spark=any(contender.engine == SPARK for contender in wanted))
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
