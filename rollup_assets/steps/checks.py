"""What must be true of a staged or published batch, as functions of manifests: each returns whether it is, and the numbers.

The hard ones (every row accounted for, counts and deltas reconcile, no window twice) are also *required* before anything can reach
the table: :func:`require`. None reads points or rollups. Who runs them, and how their outcomes are shown, stays out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rollup_assets.batches import Batch, BatchCalendar
from rollup_assets.errors import ReconciliationError
from rollup_assets.iceberg.reading import RangeCounts
from rollup_assets.settings import Settings
from rollup_assets.steps.parameters import PARQUET_ENCODING
from rollup_assets.steps.quarantine_limits import NOTHING, Allowed, is_over, rows_compared
from rollup_assets.steps.results import Waiting
from rollup_assets.storage.manifests import (
    ELSEWHERE_ROWS,
    PARTIAL_POINTS,
    QUARANTINED,
    REPARTITIONED,
    ROLLUP_TABLE,
    ROLLUPS,
    Manifest,
    Stage,
    short_digest,
)
from rollup_assets.units import count_text, format_duration

ROWS_ACCOUNTED_FOR = "rows_accounted_for"
BATCH_NOT_EMPTY = "batch_not_empty"
ROW_COUNT_USUAL = "row_count_usual"
QUARANTINE_BELOW_LIMIT = "quarantine_below_limit"
COUNTS_RECONCILE = "counts_reconcile"
DELTAS_RECONCILE = "deltas_reconcile"
NO_WINDOW_TWICE = "no_window_twice"
PUBLISHED_EQUALS_STAGED = "published_equals_staged"
INPUTS_READY = "inputs_ready"

DESCRIPTIONS: Mapping[tuple[str, str], str] = {
    (
        REPARTITIONED,
        ROWS_ACCOUNTED_FOR,
    ): "Rows read = accepted + duplicates + quarantined + elsewhere (other batches'), and the staged files hold the accepted ones.",
    (REPARTITIONED, BATCH_NOT_EMPTY): "The batch has at least one accepted point (warning).",
    (REPARTITIONED, ROW_COUNT_USUAL): "The batch has between half and twice the rows of earlier days at this time (warning).",
    (
        QUARANTINED,
        QUARANTINE_BELOW_LIMIT,
    ): "Quarantined rows and files stay within ROLLUP_QUARANTINE_LIMIT and ROLLUP_QUARANTINE_FILES, not counting those that were allowed.",
    (
        ROLLUPS,
        COUNTS_RECONCILE,
    ): "At every resolution: points in the rollups + points left open = accepted points + points carried over, as read.",
    (
        ROLLUPS,
        DELTAS_RECONCILE,
    ): "Each series' deltas, counts and sums are the same at every resolution, within the batch and across its beginning.",
    (ROLLUPS, NO_WINDOW_TWICE): "No series has two rows for one window.",
    (ROLLUPS, INPUTS_READY): "Everything the batch needs is staged; otherwise it waits, and nothing was rolled up (warning).",
    (
        ROLLUP_TABLE,
        PUBLISHED_EQUALS_STAGED,
    ): "Rows and files of the batch, read back from the table, match the staged ones at every resolution.",
    (ROLLUP_TABLE, INPUTS_READY): "Everything the batch needs is staged; otherwise it waits, and the table was not touched (warning).",
}
"""Every check by (asset, name), and what it means when it passes."""

ENOUGH_EARLIER = 3
"""Earlier batches below which a row count is not called unusual."""
TOLERANCE = 1e-9
"""Largest difference between sums of doubles, relative to the magnitude of what was summed; rounding alone stays below 1e-12."""
_MODULUS = 2**64

Checksum = str | float | Sequence[float]
"""int64: a decimal string, modulo 2**64; doubles: the sum, or the sum and the sum of magnitudes."""


@dataclass(frozen=True, slots=True)
class CheckOutcome:
    """Whether one check passed for one partition, and the numbers behind it."""

    asset: str
    name: str
    description: str
    """One sentence about what was found."""
    metadata: Mapping[str, str | int | float] = field(default_factory=dict)
    passed: bool = field(kw_only=True)
    warning: bool = field(default=False, kw_only=True)
    """Whether failing is a warning rather than an error."""


def require(outcomes: Iterable[CheckOutcome]) -> None:
    """Stop a batch that breaks a hard rule.

    Raises:
        ReconciliationError: an outcome that is more than a warning did not pass; its ``outcomes`` are those.
    """
    broken = tuple(outcome for outcome in outcomes if not outcome.passed and not outcome.warning)
    if broken:
        reasons = "; ".join(f"{outcome.asset}, {outcome.name}: {outcome.description}" for outcome in broken)
        raise ReconciliationError(
            f"{reasons}; nothing was published. Either rollup_assets has a bug, or its stage is damaged: run `rollups backfill` with "
            "--force for the partition and, if that fails too, report it",
            broken,
        )


def rows_accounted_for(repartitioned: Manifest, quarantined: Manifest) -> CheckOutcome:
    """Every row read is accepted, a duplicate, quarantined or elsewhere; both manifests agree, and the files hold the accepted rows."""
    counters = repartitioned.counters
    read, accepted, duplicates, rejected = (
        int(counters[name]) for name in ("rows_read", "rows_accepted", "duplicates", "rows_quarantined")
    )
    parts = {"accepted": accepted, "duplicates": duplicates, "quarantined": rejected}
    if ELSEWHERE_ROWS in counters:
        parts[ELSEWHERE_ROWS] = int(counters[ELSEWHERE_ROWS])
    added = " + ".join(f"{rows:,} {name}" for name, rows in parts.items())
    reasons = sum(int(rows) for rows in quarantined.counters["reasons"].values())
    problems = []
    if read != sum(parts.values()):
        problems.append(f"{read:,} rows read, but {added} = {sum(parts.values()):,}")
    if repartitioned.rows != accepted:
        problems.append(f"{accepted:,} rows accepted, but {repartitioned.rows:,} in the staged files")
    if int(quarantined.counters["rows_quarantined"]) != rejected or reasons != rejected:
        problems.append(
            f"{rejected:,} rows quarantined, but {int(quarantined.counters['rows_quarantined']):,} in {QUARANTINED},"
            f" where the reasons add up to {reasons:,}"
        )
    numbers: dict[str, str | int | float] = {
        "rows_read": read,
        "rows_accepted": accepted,
        "duplicates": duplicates,
        "rows_quarantined": rejected,
        "rows_in_files": repartitioned.rows,
    }
    if ELSEWHERE_ROWS in parts:
        numbers[ELSEWHERE_ROWS] = parts[ELSEWHERE_ROWS]
    found = "; ".join(problems) or f"{read:,} rows read = {added}"
    return CheckOutcome(REPARTITIONED, ROWS_ACCOUNTED_FOR, found, numbers, passed=not problems)


def batch_not_empty(repartitioned: Manifest) -> CheckOutcome:
    """The batch has an accepted point; failing is only a warning, since an hour may be quiet."""
    accepted, files = int(repartitioned.counters["rows_accepted"]), int(repartitioned.counters["raw_files"])
    if accepted:
        found = f"{accepted:,} accepted points"
    elif files:
        found = f"no accepted point in {count_text(files, 'raw file')}"
    else:
        found = "no raw file"
    numbers = {"rows_accepted": accepted, "raw_files": files}
    return CheckOutcome(REPARTITIONED, BATCH_NOT_EMPTY, found, numbers, passed=accepted > 0, warning=True)


def row_count_usual(repartitioned: Manifest, earlier: Mapping[str, int]) -> CheckOutcome:
    """There are between half and twice as many accepted rows as the median of ``earlier``: partition key -> rows, same time of day."""
    rows = int(repartitioned.counters["rows_accepted"])
    if len(earlier) < ENOUGH_EARLIER:
        batches = count_text(len(earlier), "earlier batch", "earlier batches")
        found = f"{rows:,} rows; {batches} at this time of day, too few to compare with"
        few = {"rows_accepted": rows, "earlier_batches": len(earlier)}
        return CheckOutcome(REPARTITIONED, ROW_COUNT_USUAL, found, few, passed=True, warning=True)
    usual = statistics.median(earlier.values())
    found = f"{rows:,} rows; the median of {len(earlier)} earlier days at this time is {usual:,.0f}"
    numbers: dict[str, str | int | float] = {"rows_accepted": rows, "earlier_batches": len(earlier), "usual_rows": float(usual)}
    return CheckOutcome(REPARTITIONED, ROW_COUNT_USUAL, found, numbers, passed=usual / 2 <= rows <= usual * 2, warning=True)


def quarantine_below_limit(quarantined: Manifest, settings: Settings, allowed: Allowed = NOTHING) -> CheckOutcome:
    """No larger share of the rows read, and no more whole files, are quarantined than the settings allow, not counting ``allowed``."""
    counters = quarantined.counters
    read, rejected, files = rows_compared(counters), int(counters["rows_quarantined"]), int(counters["bad_files"])
    limit = settings.quarantine_limit
    counted = rejected - allowed.rows
    share = counted / read if read else 0.0
    found = (
        f"{counted:,} of {read:,} rows ({share:.3%}; limit {limit:.3%})"
        f" and {count_text(files - allowed.files, 'whole file')} ({settings.quarantine_files} allowed) quarantined"
    )
    metadata: dict[str, str | int | float] = {
        "share": share,
        "limit": limit,
        "rows_quarantined": rejected,
        "rows_read": read,
        "bad_files": files,
        "bad_files_allowed": settings.quarantine_files,
    }
    if allowed.decisions:
        found += f", besides {count_text(allowed.rows, 'row')} and {count_text(allowed.files, 'whole file')} that are allowed to stay there"
        metadata |= {
            "rows_allowed_to_stay": allowed.rows,
            "files_allowed_to_stay": allowed.files,
            "decisions": "; ".join(str(decision) for decision in allowed.decisions),
        }
    return CheckOutcome(QUARANTINED, QUARANTINE_BELOW_LIMIT, found, metadata, passed=not is_over(counters, settings, allowed))


def counts_reconcile(
    rollups: Manifest, batch: Batch, previous: Batch | None, datapoints: Manifest | None, own: Manifest | None, carried: Manifest | None
) -> CheckOutcome:
    """Points in the rollups + points left open = accepted points + points carried over, at every resolution.

    Args:
        rollups: the manifest to check; its ``upstream`` names what it was made from.
        batch: its batch.
        previous: the batch before; None if ``batch`` is the first one.
        datapoints: ``repartitioned_datapoints[t]`` as staged now; None if it is not staged.
        own: ``partial_points[t]``.
        carried: ``partial_points[t-1]``.
    """
    problems = [
        *_other_than_read(rollups, REPARTITIONED, batch, datapoints),
        *_other_than_read(rollups, PARTIAL_POINTS, batch, own),
        *(_other_than_read(rollups, PARTIAL_POINTS, previous, carried) if previous else ()),
    ]
    accepted = int(datapoints.counters["rows_accepted"]) if datapoints else 0
    if accepted != int(rollups.counters["accepted"]):
        problems.append(f"{int(rollups.counters['accepted']):,} points rolled up, but {accepted:,} accepted")
    numbers: dict[str, str | int | float] = {"rows_accepted": accepted}
    for resolution, rolled in rollups.counters["counts"].items():
        name = format_duration(int(resolution))
        left_open, taken, brought = _points(own, resolution), int(rollups.counters["carried"][resolution]), _points(carried, resolution)
        numbers |= {f"{name}_rolled_up": int(rolled), f"{name}_left_open": left_open, f"{name}_carried": taken}
        if taken != brought:
            problems.append(f"{name}: {taken:,} points carried over, but {brought:,} left open by {previous}")
        if int(rolled) + left_open != accepted + taken:
            problems.append(
                f"{name}: {int(rolled):,} points rolled up + {left_open:,} left open, but {accepted:,} accepted + {taken:,} carried over"
            )
        in_files = sum(file.rows for file in rollups.files if file.resolution == int(resolution))
        if in_files != int(rollups.counters["rows"][resolution]):
            problems.append(f"{name}: {int(rollups.counters['rows'][resolution]):,} rows made, but {in_files:,} in the files")
    resolutions = ", ".join(format_duration(int(resolution)) for resolution in rollups.counters["counts"])
    found = "; ".join(problems) or f"{accepted:,} accepted points reconcile at {resolutions}"
    return CheckOutcome(ROLLUPS, COUNTS_RECONCILE, found, numbers, passed=not problems)


def deltas_reconcile(rollups: Manifest, batch: Batch, earlier: Manifest | None) -> CheckOutcome:
    """Per-series weighted sums of counts, sums, deltas and resets agree between resolutions.

    Within the batch, every resolution covers ``(A, B - c]``. Across its beginning, the coarse window labelled A consists of the fine
    ones of t-1 after ``A - c`` and the fine one labelled A. This is checked only if ``earlier``, which is ``rollups[t-1]``, or None
    if that is missing or not current, was made from the same partial points.
    """
    checksums: Mapping[str, Any] = rollups.counters["checksums"]
    resolutions = sorted(checksums, key=int)
    before = earlier.counters["checksums"] if earlier is not None and _read_the_same(rollups, earlier) else None
    problems, compared = [], 0
    for coarse in resolutions:
        for fine in (resolution for resolution in resolutions if int(resolution) < int(coarse)):
            names = f"{format_duration(int(fine))} and {format_duration(int(coarse))}"
            f, c = checksums[fine], checksums[coarse]
            for entry in c["total"]:
                compared += 1
                if not _equal([c["total"][entry], f["head"][entry], f["tail"][coarse][entry]], [f["total"][entry], c["head"][entry]]):
                    problems.append(f"{entry} at {names} differs within {batch}")
                if before is not None:
                    compared += 1
                    if not _equal([before[fine]["tail"][coarse][entry], f["head"][entry]], [c["head"][entry]]):
                        problems.append(f"{entry} at {names} differs in the windows that end at the beginning of {batch}")
    across = (
        "and with the batch before"
        if before is not None
        else "(only within this batch: the one before was not rolled up from the same points)"
    )
    found = "; ".join(problems) or f"counts, sums, deltas and resets of {len(resolutions)} resolutions agree per series {across}"
    numbers = {"identities": compared, "broken": len(problems)}
    return CheckOutcome(ROLLUPS, DELTAS_RECONCILE, found, numbers, passed=not problems)


def no_window_twice(rollups: Manifest) -> CheckOutcome:
    """No two rows share series, resolution and label."""
    twice = int(rollups.counters["duplicate_windows"])
    found = f"{count_text(twice, 'window')} with more than one row" if twice else f"{rollups.rows:,} rows, each of a window of its own"
    return CheckOutcome(ROLLUPS, NO_WINDOW_TWICE, found, {"duplicate_windows": twice, "rows": rollups.rows}, passed=twice == 0)


def published_equals_staged(rollups: Manifest, live: RangeCounts, *, just_published: bool) -> CheckOutcome:
    """The table has as many rows and files of the batch as were staged, at every resolution, and no other resolution.

    Files are compared only if the batch was ``just_published``: later, a compaction may have moved the rows into others.
    """
    staged_rows = {int(resolution): int(rows) for resolution, rows in rollups.counters["rows"].items()}
    staged_files = {resolution: sum(file.resolution == resolution for file in rollups.files) for resolution in staged_rows}
    problems, numbers = [], dict[str, str | int | float]()
    for resolution in sorted({*staged_rows, *live.rows, *live.files}):
        name = format_duration(resolution)
        rows, wanted_rows = live.rows.get(resolution, 0), staged_rows.get(resolution, 0)
        files, wanted_files = live.files.get(resolution, 0), staged_files.get(resolution, 0)
        numbers |= {
            f"{name}_rows_published": rows,
            f"{name}_rows_staged": wanted_rows,
            f"{name}_files_published": files,
            f"{name}_files_staged": wanted_files,
        }
        if rows != wanted_rows:
            problems.append(f"{name}: {rows:,} rows in the table, {wanted_rows:,} staged")
        if just_published and files != wanted_files:
            problems.append(f"{name}: {count_text(files, 'file')} in the table, {wanted_files} staged")
    found = (
        "; ".join(problems) or f"{sum(live.rows.values()):,} rows in {count_text(sum(live.files.values()), 'file')} of the table, as staged"
    )
    return CheckOutcome(ROLLUP_TABLE, PUBLISHED_EQUALS_STAGED, found, numbers, passed=not problems)


def rolled_back(reason: str) -> CheckOutcome:
    """The staged rollups are kept out of the table on purpose: a warning."""
    return CheckOutcome(ROLLUP_TABLE, PUBLISHED_EQUALS_STAGED, reason, passed=False, warning=True)


def inputs_ready(asset: str, waiting: Waiting | None) -> CheckOutcome:
    """Whether the partition was made, or waits for something to be staged."""
    if waiting is None:
        return CheckOutcome(asset, INPUTS_READY, "everything the batch needs is staged", passed=True, warning=True)
    missing = {"waiting_for": ", ".join(waiting.waiting_for)}
    return CheckOutcome(asset, INPUTS_READY, waiting.reason, missing, passed=False, warning=True)


def rollup_outcomes(rollups: Manifest, batch: Batch, calendar: BatchCalendar, stage: Stage) -> list[CheckOutcome]:
    """The hard checks of a batch's rollups against the manifests staged now.

    ``rollups`` itself need not be staged yet: the rollup step requires these before it makes the manifest visible.
    """
    before = calendar.shifted(batch, -1)
    carried = stage.read(PARTIAL_POINTS, before) if before else None
    earlier = stage.read(ROLLUPS, before) if before else None
    if before and earlier and not _is_current(earlier, before, stage):
        earlier = None
    return [
        counts_reconcile(rollups, batch, before, stage.read(REPARTITIONED, batch), stage.read(PARTIAL_POINTS, batch), carried),
        deltas_reconcile(rollups, batch, earlier),
        no_window_twice(rollups),
    ]


def _is_current(rollups: Manifest, batch: Batch, stage: Stage) -> bool:
    """Whether the rollups were made from the datapoints staged now; partial points are compared by :func:`_read_the_same`."""
    standing = stage.read(REPARTITIONED, batch)
    return rollups.upstream.get(REPARTITIONED, {}).get(batch.key) == (standing.digest if standing else None)


def _read_the_same(rollups: Manifest, earlier: Manifest) -> bool:
    """Whether the partial points that both neighbours read were the same, and so were the parameters that decide on rows."""
    ours, theirs = rollups.upstream.get(PARTIAL_POINTS, {}), earlier.upstream.get(PARTIAL_POINTS, {})
    shared = ours.keys() & theirs.keys()
    return (
        bool(shared)
        and all(ours[key] == theirs[key] for key in shared)
        and rollups.counters["checksums"].keys() == earlier.counters["checksums"].keys()
        and _of_rows(rollups.parameters) == _of_rows(earlier.parameters)
    )


def _of_rows(parameters: dict[str, Any]) -> dict[str, Any]:
    """The parameters that decide which rows there are, whatever their encoding."""
    return {name: value for name, value in parameters.items() if name != PARQUET_ENCODING}


def _other_than_read(rollups: Manifest, asset: str, batch: Batch, standing: Manifest | None) -> Iterator[str]:
    read, stands = rollups.upstream.get(asset, {}).get(batch.key), standing.digest if standing else None
    if read != stands:
        yield f"{asset} {batch} is now {short_digest(stands)}, but {short_digest(read)} was read; run `rollups backfill {batch} {batch}`"


def _points(partial_points: Manifest | None, resolution: str) -> int:
    return int(partial_points.counters["counts"][resolution]) if partial_points else 0


def _equal(left: Sequence[Checksum], right: Sequence[Checksum]) -> bool:
    """Whether two sums of checksums are equal: exactly for int64 (decimal strings, modulo 2**64), else up to rounding."""
    if all(isinstance(term, str) for term in (*left, *right)):
        return (
            sum(int(term) for term in left if isinstance(term, str)) - sum(int(term) for term in right if isinstance(term, str))
        ) % _MODULUS == 0
    terms = [*map(_value_and_magnitude, left), *((-value, magnitude) for value, magnitude in map(_value_and_magnitude, right))]
    if not all(math.isfinite(number) for term in terms for number in term):
        return True  # Sums of finite doubles can overflow; such sums cannot be compared.
    difference, magnitude = sum(value for value, _ in terms), max(magnitude for _, magnitude in terms)
    return abs(difference) <= TOLERANCE * magnitude


def _value_and_magnitude(term: Checksum) -> tuple[float, float]:
    """A checksum of doubles and the sum of the magnitudes in it."""
    if isinstance(term, Sequence) and not isinstance(term, str):
        return float(term[0]), float(term[1])
    return float(term), abs(float(term))
