"""The fault scenarios: what goes wrong, and what must come of it. Tests name theirs with ``@pytest.mark.scenario("K1")``.

After each, the invariants of ``invariants`` hold; ``outcome`` is what must be so besides.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Scenario:
    """One kind of fault."""

    name: str
    fault: str
    outcome: str


SCENARIOS = (
    Scenario("K1", "`kill -9` while raw files are read", "the rerun is as if nothing had been"),
    Scenario("K2", "`kill -9` while the stage is written: of the process, of Spark's JVM, of a Spark worker", "no manifest names the try"),
    Scenario("K3", "`kill -9` between the staged rollups and the commit", "the table stays as it was; the rerun publishes"),
    Scenario("K4", "`kill -9` after the commit, before the receipt or Dagster's event", "the rerun finds the commit and makes no snapshot"),
    Scenario("K5", "`kill -9` of Dagster's daemon, web server, code location or run", "the run ends as failed; none stays STARTED"),
    Scenario("K6", "SIGTERM, a run cancelled in the UI", "no half commit, the lock is free"),
    Scenario("P1", "the answer to a commit is lost", "recognized as committed"),
    Scenario("P2", "the same, and another writer commits in between", "neither's rows are lost"),
    Scenario("P3", "the answer to a commit stalls", "bounded by a timeout, then as P1"),
    Scenario("P4", "PostgreSQL restarts in the middle of a commit or a run", "tried again, or a clear failure"),
    Scenario("P5", "PostgreSQL has no connection left during a backfill", "waits or fails in words; nothing is corrupt"),
    Scenario("P6", "a standby without the last commit is promoted", "noticed: nothing is published on a guess"),
    Scenario("P7", "the session with the lock ends while its writer lives", "noticed before the commit"),
    Scenario("S1", "S3 answers 500 or 503, or not at all", "a bounded number of tries"),
    Scenario("S2", "an object is stored and the answer lost", "the try after it finds its own object"),
    Scenario("S3", "an object comes back short or with a flipped byte", "the partition fails in words; no wrong number"),
    Scenario("S4", "an upload is never completed", "invisible, and collected by `rollups clean`"),
    Scenario("S5", "the store restarts, is read-only, or denies", "a clear error; the rerun goes on"),
    Scenario("D1", "the disk is full: scratch, stage, warehouse, catalog", "a clear failure, no commit"),
    Scenario("D2", "memory runs out", "recorded as failed; the rerun succeeds"),
    Scenario("D3", "Spark tries a task again, or twice at once", "no row twice"),
    Scenario("C1", "two runs of one partition", "as if one after the other"),
    Scenario("C2", "overlapping backfills, and a manual run inside", "as if one after the other"),
    Scenario("C3", "a partition before the one that it needs", "refused or waiting, the one that is needed is named"),
    Scenario("C4", "an old partition again, after later ones", "the later ones are stale, and recomputed in order"),
    Scenario("C5", "expiry, compaction, foreign writers and `rollups clean` during publishes", "nothing referenced is lost"),
    Scenario("T1", "a clock that is a day off, a change to summer time, a leap day", "results depend on the data's time alone"),
    Scenario("L1", "late rows, within what is waited for and after it", "merged, or quarantined; counted"),
    Scenario("L2", "the same file twice, also under another name", "counted once, or reported"),
    Scenario("L3", "a file that changes while it is read", "noticed: the batch fails without effect"),
    Scenario("B1", "a damaged, empty or foreign file", "quarantined; the rest as the settings allow"),
    Scenario("B2", "columns added, dropped, renamed, of another type", "added ones do not matter; otherwise quarantined"),
    Scenario("B3", "NaN, infinity, nulls, overflow, the year 9999, hostile names", "quarantined with a reason, or a clear failure"),
    Scenario("U1", "stage and table of an older version, and of a newer one", "read and continued, or refused with what to do"),
)

NAMES = tuple(scenario.name for scenario in SCENARIOS)
