"""Progress in a run's log: seldom enough for an event log, and none for what is over at once."""

from __future__ import annotations

from rollup_assets.defs.logged_progress import LoggedProgress


class Log:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, line: str) -> None:
        self.lines.append(line)


def test_progress_is_logged_at_most_once_in_a_while_and_not_at_all_for_short_stages() -> None:
    log, now = Log(), [0.0]
    progress = LoggedProgress(log, "2026-01-01-00:00", every=10, clock=lambda: now[0])  # type: ignore[arg-type]
    progress.start("read", 1000)
    for second in range(1, 26):
        now[0] = second
        progress.advance("read", 40)
    progress.finish("read")
    progress.start("sort", 1000)
    progress.advance("sort", 1000)
    progress.finish("sort")
    assert log.lines == [
        "2026-01-01-00:00: read: 400 of 1,000 rows (40%), 10 s",
        "2026-01-01-00:00: read: 800 of 1,000 rows (80%), 20 s",
        "2026-01-01-00:00: read: done in 25.0 s",
    ]
