"""Every check, both ways: it passes where the rule holds, and fails where one number is off."""

from __future__ import annotations

from typing import Any

import pytest

from rollup_assets.batches import Batch, BatchCalendar
from rollup_assets.errors import ReconciliationError
from rollup_assets.iceberg.reading import RangeCounts
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import load_settings
from rollup_assets.steps import checks
from rollup_assets.steps.results import Waiting
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUPS, Manifest, StagedFile

HOUR = 3_600_000
CALENDAR = BatchCalendar(0, HOUR)
T = Batch(2 * HOUR, 3 * HOUR)
BEFORE = Batch(HOUR, 2 * HOUR)
FINE, COARSE = "60000", "3600000"


def manifest(asset: str, counters: dict[str, Any], *, digest: str = "d", batch: Batch = T, **fields: Any) -> Manifest:
    return Manifest(
        asset=asset, partition=batch.key, attempt="a", code_version="1", parameters={}, counters=counters, digest=digest, **fields
    )


def file(rows: int, resolution: int | None = None) -> StagedFile:
    return StagedFile(path=f"{resolution}-{rows}", rows=rows, size=1, digest="x", resolution=resolution)


def datapoints(*, rows: int = 90, files: int | None = None, **changed: int) -> Manifest:
    counters = {
        "rows_read": 100,
        "rows_accepted": rows,
        "duplicates": 7,
        "rows_quarantined": 3,
        "series": 5,
        "raw_files": 2,
        "bad_files": 0,
    }
    return manifest(REPARTITIONED, counters | changed, digest="points", files=(file(rows if files is None else files),))


def quarantined(**changed: Any) -> Manifest:
    counters = {"rows_read": 100, "rows_quarantined": 3, "bad_files": 0, "reasons": {"null_id": 2, "outside_batch": 1}}
    return manifest(QUARANTINED, counters | changed)


def partial_points(batch: Batch, counts: dict[str, int], digest: str) -> Manifest:
    return manifest(PARTIAL_POINTS, {"series": 1, "counts": counts, "windows": counts}, digest=digest, batch=batch)


def sums(value: Any) -> dict[str, Any]:
    return dict.fromkeys(("count", "sum", "delta", "resets"), value)


def checksums(*, fine: tuple[Any, Any, Any], coarse: tuple[Any, Any]) -> dict[str, Any]:
    """(total, head, tail before the coarse window) and (total, head), the same for every entry."""
    return {
        FINE: {"total": sums(fine[0]), "head": sums(fine[1]), "tail": {COARSE: sums(fine[2])}},
        COARSE: {"total": sums(coarse[0]), "head": sums(coarse[1]), "tail": {}},
    }


# 90 accepted, 1 and 4 carried over, 2 and 10 left open at the two resolutions.
OWN = {FINE: 2, COARSE: 10}
CARRIED = {FINE: 1, COARSE: 4}
# total_c - head_c = total_f - head_f - tail_f: 8 - 5 = 10 - 3 - 4; and head_c = tail_f(t-1) + head_f: 5 = 2 + 3.
SUMS = checksums(fine=("10", "3", "4"), coarse=("8", "5"))
SUMS_BEFORE = checksums(fine=("9", "1", "2"), coarse=("7", "1"))


def rollups(*, upstream: dict[str, dict[str, str | None]] | None = None, digest: str = "rollups", **changed: Any) -> Manifest:
    counters = {
        "rows": {FINE: 60, COARSE: 1},
        "counts": {FINE: 89, COARSE: 84},
        "carried": CARRIED,
        "accepted": 90,
        "series": 5,
        "duplicate_windows": 0,
        "checksums": SUMS,
    }
    read: dict[str, dict[str, str | None]] = {REPARTITIONED: {T.key: "points"}, PARTIAL_POINTS: {T.key: "own", BEFORE.key: "carried"}}
    files = (file(40, 60_000), file(20, 60_000), file(1, HOUR))
    return manifest(ROLLUPS, counters | changed, digest=digest, upstream=upstream or read, files=files)


def rollups_before(*, carried: str = "carried", sums: dict[str, Any] = SUMS_BEFORE) -> Manifest:
    upstream: dict[str, dict[str, str | None]] = {REPARTITIONED: {BEFORE.key: "points before"}, PARTIAL_POINTS: {BEFORE.key: carried}}
    return rollups(upstream=upstream, checksums=sums)


def reconciled(made: Manifest, **changed: Manifest | None) -> checks.CheckOutcome:
    given: dict[str, Manifest | None] = {
        "datapoints": datapoints(),
        "own": partial_points(T, OWN, "own"),
        "carried": partial_points(BEFORE, CARRIED, "carried"),
    }
    return checks.counts_reconcile(made, T, BEFORE, **(given | changed))  # type: ignore[arg-type]


def test_rows_accounted_for_passes_when_read_is_the_sum_of_what_became_of_the_rows() -> None:
    outcome = checks.rows_accounted_for(datapoints(), quarantined())
    assert outcome.passed
    assert outcome.metadata["rows_read"] == 100


@pytest.mark.parametrize(
    ("staged", "rejected", "says"),
    [
        (datapoints(rows_read=101), quarantined(), "101 rows read"),
        (datapoints(duplicates=8), quarantined(), "8 duplicates"),
        (datapoints(files=89), quarantined(), "89 in the staged files"),
        (datapoints(), quarantined(rows_quarantined=4), "4 in quarantined_datapoints"),
        (datapoints(), quarantined(reasons={"null_id": 2}), "add up to 2"),
    ],
)
def test_rows_accounted_for_fails_when_a_row_is_missing_anywhere(staged: Manifest, rejected: Manifest, says: str) -> None:
    outcome = checks.rows_accounted_for(staged, rejected)
    assert not outcome.passed
    assert not outcome.warning
    assert says in outcome.description


@pytest.mark.parametrize(
    ("rows", "files", "passes", "says"), [(90, 2, True, "90"), (0, 2, False, "in 2 raw files"), (0, 0, False, "no raw file")]
)
def test_batch_not_empty_warns_of_a_batch_without_an_accepted_point(rows: int, files: int, *, passes: bool, says: str) -> None:
    outcome = checks.batch_not_empty(datapoints(rows=rows, raw_files=files))
    assert (outcome.passed, outcome.warning) == (passes, True)
    assert says in outcome.description


@pytest.mark.parametrize(
    ("rows", "earlier", "passes"),
    [
        (90, [100, 80, 95], True),
        (45, [90, 90, 1000], True),
        (44, [90, 90, 90], False),
        (180, [90, 90, 90], True),
        (181, [90, 90, 90], False),
        (0, [0, 0, 0], True),
        (0, [90, 90], True),  # too few to tell
    ],
)
def test_row_count_usual_warns_outside_of_half_to_twice_the_median(rows: int, earlier: list[int], *, passes: bool) -> None:
    outcome = checks.row_count_usual(datapoints(rows=rows), {str(day): count for day, count in enumerate(earlier)})
    assert (outcome.passed, outcome.warning) == (passes, True)


@pytest.mark.parametrize(
    ("counters", "passes"),
    [
        ({}, True),
        ({"rows_quarantined": 5}, True),
        ({"rows_quarantined": 6}, False),
        ({"bad_files": 1}, True),
        ({"bad_files": 2}, False),
        ({"rows_read": 0, "rows_quarantined": 0}, True),
    ],
)
def test_quarantine_below_limit_fails_above_the_share_or_the_files_allowed(counters: dict[str, int], *, passes: bool) -> None:
    outcome = checks.quarantine_below_limit(quarantined(**counters), load_settings(quarantine_limit=0.05, quarantine_files=1))
    assert (outcome.passed, outcome.warning) == (passes, False)


def test_counts_reconcile_passes_when_no_point_is_lost_or_counted_twice() -> None:
    outcome = reconciled(rollups())
    assert outcome.passed, outcome.description
    assert outcome.metadata["1h_carried"] == 4


@pytest.mark.parametrize(
    ("made", "changed", "says"),
    [
        (rollups(counts={FINE: 88, COARSE: 84}), {}, "1m: 88 points rolled up"),
        (rollups(counts={FINE: 89, COARSE: 85}), {}, "1h: 85 points rolled up"),
        (rollups(accepted=91), {}, "91 points rolled up, but 90 accepted"),
        (rollups(carried={FINE: 1, COARSE: 5}, counts={FINE: 89, COARSE: 85}), {}, "1h: 5 points carried over, but 4 left open"),
        (rollups(rows={FINE: 61, COARSE: 1}), {}, "1m: 61 rows made, but 60 in the files"),
        (rollups(), {"own": partial_points(T, OWN, "other")}, "own"),
        (rollups(), {"carried": partial_points(BEFORE, CARRIED, "other")}, "partial_points 1970-01-01-01:00 is now other"),
        (rollups(), {"carried": None}, "not staged"),
        (rollups(), {"datapoints": None}, "repartitioned_datapoints 1970-01-01-02:00 is now not staged"),
    ],
)
def test_counts_reconcile_fails_for_a_wrong_count_and_for_inputs_other_than_those_read(
    made: Manifest, changed: dict[str, Manifest | None], says: str
) -> None:
    outcome = reconciled(made, **changed)
    assert not outcome.passed
    assert not outcome.warning
    assert says in outcome.description


def test_counts_reconcile_where_nothing_was_staged_takes_the_carried_points_alone() -> None:
    upstream: dict[str, dict[str, str | None]] = {REPARTITIONED: {T.key: None}, PARTIAL_POINTS: {T.key: None, BEFORE.key: "carried"}}
    made = rollups(upstream=upstream, accepted=0, counts=CARRIED)
    assert reconciled(made, datapoints=None, own=None).passed


def test_deltas_reconcile_passes_within_the_batch_and_across_its_beginning() -> None:
    outcome = checks.deltas_reconcile(rollups(), T, rollups_before())
    assert outcome.passed, outcome.description
    assert outcome.metadata["identities"] == 8
    assert "with the batch before" in outcome.description


@pytest.mark.parametrize("entry", ["count", "sum", "delta", "resets"])
def test_deltas_reconcile_fails_when_one_entry_differs_within_the_batch(entry: str) -> None:
    wrong = checksums(fine=("10", "3", "4"), coarse=("8", "5"))
    wrong[FINE]["total"] |= {entry: "11"}
    outcome = checks.deltas_reconcile(rollups(checksums=wrong), T, rollups_before())
    assert not outcome.passed
    assert not outcome.warning
    assert f"{entry} at 1m and 1h differs within" in outcome.description
    assert outcome.metadata["broken"] == 1


def test_deltas_reconcile_fails_when_a_step_is_lost_across_the_beginning() -> None:
    """Within the batch all is well: the coarse window labelled A lacks what the fine one before it had."""
    lost = rollups_before(sums=checksums(fine=("9", "1", "3"), coarse=("7", "1")))
    outcome = checks.deltas_reconcile(rollups(), T, lost)
    assert not outcome.passed
    assert "windows that end at the beginning" in outcome.description


def test_deltas_reconcile_does_not_compare_with_neighbours_made_from_other_points() -> None:
    other = rollups_before(carried="restaged since", sums=checksums(fine=("9", "1", "3"), coarse=("7", "1")))
    for earlier in (other, None):
        outcome = checks.deltas_reconcile(rollups(), T, earlier)
        assert outcome.passed
        assert outcome.metadata["identities"] == 4


def test_deltas_of_int64_are_compared_modulo_two_to_the_64() -> None:
    big = str(2**64 - 1)
    assert checks.deltas_reconcile(rollups(checksums=checksums(fine=("1", big, "0"), coarse=("2", "0"))), T, None).passed
    assert not checks.deltas_reconcile(rollups(checksums=checksums(fine=("1", big, "0"), coarse=("3", "0"))), T, None).passed


@pytest.mark.parametrize(("error", "passes"), [(0.0, True), (1e-7, True), (1e-2, False)])
def test_deltas_of_doubles_are_compared_within_rounding_of_their_magnitude(error: float, *, passes: bool) -> None:
    made = checksums(fine=([10.0 + error, 1e6], [3.0, 1e6], [4.0, 1e6]), coarse=([8.0, 1e6], [5.0, 1e6]))
    assert checks.deltas_reconcile(rollups(checksums=made), T, None).passed is passes


def test_doubles_that_overflow_are_not_compared() -> None:
    made = checksums(fine=([float("inf"), float("inf")], [3.0, 1.0], [4.0, 1.0]), coarse=([8.0, 1.0], [5.0, 1.0]))
    assert checks.deltas_reconcile(rollups(checksums=made), T, None).passed


@pytest.mark.parametrize(("twice", "passes"), [(0, True), (1, False)])
def test_no_window_twice_fails_for_one_repeated_window(twice: int, *, passes: bool) -> None:
    outcome = checks.no_window_twice(rollups(duplicate_windows=twice))
    assert (outcome.passed, outcome.warning) == (passes, False)


@pytest.mark.parametrize(
    ("rows", "files", "just_published", "passes"),
    [
        ({60_000: 60, HOUR: 1}, {60_000: 2, HOUR: 1}, True, True),
        ({60_000: 59, HOUR: 1}, {60_000: 2, HOUR: 1}, True, False),
        ({60_000: 60}, {60_000: 2}, True, False),
        ({60_000: 60, HOUR: 1, 5: 1}, {60_000: 2, HOUR: 1, 5: 1}, True, False),
        ({60_000: 60, HOUR: 1}, {60_000: 1, HOUR: 1}, True, False),
        ({60_000: 60, HOUR: 1}, {60_000: 1, HOUR: 1}, False, True),  # compacted since
        ({60_000: 59, HOUR: 1}, {60_000: 2, HOUR: 1}, False, False),
    ],
)
def test_published_equals_staged_fails_for_other_rows_or_files_in_the_table(
    rows: dict[int, int], files: dict[int, int], *, just_published: bool, passes: bool
) -> None:
    outcome = checks.published_equals_staged(rollups(), RangeCounts(rows, files), just_published=just_published)
    assert (outcome.passed, outcome.warning) == (passes, False)


def test_inputs_ready_warns_of_a_partition_that_waits_and_says_for_what() -> None:
    assert checks.inputs_ready(ROLLUPS, None).passed
    outcome = checks.inputs_ready(ROLLUPS, Waiting(("partial_points 2026-01-01-08:00",)))
    assert (outcome.passed, outcome.warning) == (False, True)
    assert outcome.metadata["waiting_for"] == "partial_points 2026-01-01-08:00"


def test_require_raises_for_what_is_more_than_a_warning_and_names_all_of_it() -> None:
    good, warning = checks.inputs_ready(ROLLUPS, None), checks.batch_not_empty(datapoints(rows=0))
    checks.require([good, warning])
    broken = [checks.no_window_twice(rollups(duplicate_windows=2)), checks.rows_accounted_for(datapoints(rows_read=1), quarantined())]
    with pytest.raises(ReconciliationError, match=r"no_window_twice: .*rows_accounted_for: ") as caught:
        checks.require([good, *broken, warning])
    assert list(caught.value.outcomes) == broken


@pytest.mark.parametrize("current", [True, False])
def test_the_batch_before_is_compared_only_if_it_was_made_from_the_datapoints_that_stand(
    make_pipeline: Any, tmp_path: Any, *, current: bool
) -> None:
    pipeline: Pipeline = make_pipeline(tmp_path)
    standing = datapoints().model_copy(update={"digest": "points before" if current else "restaged"})
    for made, batch in (
        (datapoints(), T),
        (partial_points(T, OWN, "own"), T),
        (partial_points(BEFORE, CARRIED, "carried"), BEFORE),
        (standing, BEFORE),
        (rollups_before(), BEFORE),
    ):
        pipeline.stage.write(made, batch)
    counts, deltas, windows = checks.rollup_outcomes(rollups(), T, CALENDAR, pipeline.stage)
    assert counts.passed, counts.description
    assert windows.passed
    assert deltas.metadata["identities"] == (8 if current else 4)


def test_every_check_has_a_description_and_no_two_share_a_name_on_an_asset() -> None:
    assert all(description.endswith(".") or description.endswith(").") for description in checks.DESCRIPTIONS.values())
    assert len(checks.DESCRIPTIONS) == 10
