"""Batches: keys, folders and the arithmetic between them, also before 1970."""

from __future__ import annotations

import datetime as dt
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollup_assets.batches import DAY_MS, EARLIEST, LATEST, Batch, BatchCalendar, time_text, to_datetime, to_milliseconds
from rollup_assets.errors import UnknownPartitionError

MINUTE, HOUR = 60_000, 3_600_000
TODAY = 1_767_225_600_000  # 2026-01-01T00:00Z
HOURLY = BatchCalendar(TODAY, HOUR)

BEGIN, END = to_milliseconds(EARLIEST), to_milliseconds(LATEST)
moments = st.integers(BEGIN, END - 1)
lengths = st.sampled_from([MINUTE, 15 * MINUTE, HOUR, 6 * HOUR, DAY_MS])


@st.composite
def calendars(draw: st.DrawFn, after: int = 0) -> BatchCalendar:
    """Calendars with as many batches after the first one, or more."""
    length = draw(lengths)
    return BatchCalendar(draw(st.integers(BEGIN, END - 1 - after * length)) // length * length, length)


def batch(start: int, length: int = HOUR) -> Batch:
    return Batch(start, start + length)


# ---------------------------------------------------------------------------------------------------------------- one batch


@pytest.mark.parametrize(
    ("start", "key", "folder"),
    [
        (TODAY, "2026-01-01-00:00", "2026-01-01-0000"),
        (TODAY + 9 * HOUR, "2026-01-01-09:00", "2026-01-01-0900"),
        (0, "1970-01-01-00:00", "1970-01-01-0000"),
        (-HOUR, "1969-12-31-23:00", "1969-12-31-2300"),
        (TODAY + 15 * MINUTE, "2026-01-01-00:15", "2026-01-01-0015"),
    ],
)
def test_key_and_folder(start: int, key: str, folder: str) -> None:
    found = batch(start)
    assert (found.key, str(found), found.folder) == (key, key, folder)
    assert found.start_time == dt.datetime.strptime(key, "%Y-%m-%d-%H:%M").replace(tzinfo=dt.UTC)
    assert found.end_time - found.start_time == dt.timedelta(hours=1)
    assert found.length == HOUR


@given(st.integers(to_milliseconds(dt.datetime.min.replace(tzinfo=dt.UTC)), to_milliseconds(dt.datetime.max.replace(tzinfo=dt.UTC))))
def test_milliseconds_round_trip(ms: int) -> None:
    """Exactly, over all years that a datetime has."""
    assert to_milliseconds(to_datetime(ms)) == ms


def test_finer_moments_are_floored() -> None:
    """Towards the past, also before 1970."""
    assert to_milliseconds(dt.datetime(1970, 1, 1, 0, 0, 0, 1999, tzinfo=dt.UTC)) == 1
    assert to_milliseconds(dt.datetime(1969, 12, 31, 23, 59, 59, 999_999, tzinfo=dt.UTC)) == -1


def test_moments_of_other_zones_are_converted() -> None:
    assert to_milliseconds(dt.datetime(1970, 1, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2)))) == 0


@given(st.lists(moments, min_size=2, max_size=5))
def test_batches_sort_by_time_and_their_folders_by_name_alike(starts: list[int]) -> None:
    found = [batch(start // HOUR * HOUR) for start in starts]
    assert [one.folder for one in sorted(found)] == sorted(one.folder for one in found)


# -------------------------------------------------------------------------------------------------------------------- keys


@given(calendars(after=100_000), st.integers(0, 100_000))
def test_a_key_names_its_batch_and_no_other(calendar: BatchCalendar, number: int) -> None:
    found = calendar.shifted(calendar.first, number)
    assert found is not None
    assert calendar.batch(found.key) == found


@pytest.mark.parametrize(
    "key",
    [
        "",
        "2026-01-01",
        "2026-01-01-0000",
        "2026-01-01-00:00:00",
        "2026-01-01T00:00",
        " 2026-01-01-00:00",
        "2026-01-01-00:00 ",
        "2026-13-01-00:00",
        "2026-01-01-24:00",
        "2026-02-29-00:00",
        "2026-1-1-0:0",
        "latest",
    ],
)
def test_a_malformed_key_is_refused_with_an_example(key: str) -> None:
    """Also keys that mean a batch but are not written as its key: Dagster does not know such partitions."""
    with pytest.raises(UnknownPartitionError, match="is not a partition key; write one like '2026-01-01-00:00'"):
        HOURLY.batch(key)
    assert HOURLY.find(key) is None


def test_a_key_before_the_first_partition_names_the_setting() -> None:
    with pytest.raises(UnknownPartitionError, match=r"2025-12-31-23:00 is before the first one, 2026-01-01-00:00; set ROLLUP_START"):
        HOURLY.batch("2025-12-31-23:00")
    assert HOURLY.find("2025-12-31-23:00") is None


@pytest.mark.parametrize("length", [HOUR, DAY_MS])
def test_a_key_so_far_ahead_that_no_batch_can_have_it_is_refused(length: int) -> None:
    """Such as a common one for ever, whose batch has no end that could be shown."""
    calendar = BatchCalendar(TODAY, length)
    last = {HOUR: "2199-12-31-23:00", DAY_MS: "2199-12-31-00:00"}[length]
    assert calendar.batch(last) == calendar.last
    assert calendar.shifted(calendar.last, 1) is None
    for key in ("2200-01-01-00:00", "9999-12-31-00:00", "9999-12-31-23:00"):
        ended = calendar.last_ended(dt.datetime.now(dt.UTC))
        with pytest.raises(
            UnknownPartitionError, match=f"^partition {key} is after the last one that there can be, {last}; .* is {ended}$"
        ):
            calendar.batch(key)
        assert calendar.find(key) is None


def test_a_key_so_far_ahead_of_a_table_that_has_not_begun_is_refused() -> None:
    calendar = BatchCalendar(END - HOUR, HOUR)
    with pytest.raises(UnknownPartitionError, match=r"not even the first one, 2199-12-31-23:00, has ended yet$"):
        calendar.batch("9999-12-31-23:00")


@pytest.mark.parametrize(
    ("calendar", "key", "containing"),
    [
        (HOURLY, "2026-01-01-09:30", "2026-01-01-09:00"),
        (BatchCalendar(TODAY, DAY_MS), "2026-01-02-01:00", "2026-01-02-00:00"),
        (BatchCalendar(-2 * HOUR, HOUR), "1969-12-31-23:59", "1969-12-31-23:00"),
    ],
)
def test_a_key_inside_a_batch_names_the_batch(calendar: BatchCalendar, key: str, containing: str) -> None:
    with pytest.raises(UnknownPartitionError, match=f"{key} does not begin a batch; the one that contains it is {containing}"):
        calendar.batch(key)


# --------------------------------------------------------------------------------------------------------------- arithmetic


@given(calendars(), moments)
def test_containing(calendar: BatchCalendar, ms: int) -> None:
    """Every millisecond lies in exactly one batch of the grid, also before the first one."""
    found = calendar.containing(ms)
    assert found.start <= ms < found.end
    assert found.length == calendar.length
    assert (found.start - calendar.start) % calendar.length == 0


@given(calendars(after=50), st.integers(0, 50), st.integers(-60, 60))
def test_shifting_there_and_back(calendar: BatchCalendar, number: int, count: int) -> None:
    found = calendar.shifted(calendar.first, number)
    assert found is not None
    other = calendar.shifted(found, count)
    assert (other is None) == (number + count < 0 or found.start + count * calendar.length >= END)
    if other is not None:
        assert other.start - found.start == count * calendar.length
        assert calendar.shifted(other, -count) == found


@given(calendars(after=5), st.integers(0, 5), st.integers(0, 5))
def test_earlier_is_nearest_first_and_ends_at_the_first_batch(calendar: BatchCalendar, number: int, count: int) -> None:
    found = calendar.shifted(calendar.first, number)
    assert found is not None
    earlier = calendar.earlier(found, count)
    assert len(earlier) == min(number, count)
    assert [found.start - other.start for other in earlier] == [calendar.length * (place + 1) for place in range(len(earlier))]


@given(calendars(after=20), st.integers(0, 20), st.integers(0, 20))
def test_between_includes_both_ends(calendar: BatchCalendar, first: int, last: int) -> None:
    begin, end = calendar.shifted(calendar.first, first), calendar.shifted(calendar.first, last)
    assert begin is not None
    assert end is not None
    found = list(calendar.between(begin, end))
    assert len(found) == max(0, last - first + 1)
    if found:
        assert (found[0], found[-1]) == (begin, end)
        assert all(one.end == other.start for one, other in itertools.pairwise(found))


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (TODAY - 1, None),
        (TODAY + HOUR - 1, None),
        (TODAY + HOUR, "2026-01-01-00:00"),
        (TODAY + 2 * HOUR - 1, "2026-01-01-00:00"),
        (TODAY + 2 * HOUR, "2026-01-01-01:00"),
    ],
)
def test_a_batch_has_ended_from_its_end_on(now: int, expected: str | None) -> None:
    found = HOURLY.last_ended(to_datetime(now))
    assert (found.key if found else None) == expected


@given(calendars(after=100_000), st.integers(0, 100_000))
def test_a_folder_leads_back_to_its_batch(calendar: BatchCalendar, number: int) -> None:
    found = calendar.shifted(calendar.first, number)
    assert found is not None
    assert calendar.of_folder(found.folder) == found
    assert calendar.find(found.key) == found


@pytest.mark.parametrize("name", ["", "0", "manifest.json", "2025-12-31-2300", "2026-01-01-0930", "2026-01-01-09:00", "2026-01-01-09"])
def test_a_folder_that_is_no_batch_s_leads_nowhere(name: str) -> None:
    assert HOURLY.of_folder(name) is None


def test_the_unit_of_a_folder_tells_every_start_from_the_next() -> None:
    minutes = {1: 1, 15: 1, 30: 1, 60: 60, 120: 60, 360: 60, 720: 60, 1440: 1440}
    assert {length: BatchCalendar(0, length * MINUTE).folder_unit // MINUTE for length in minutes} == minutes


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (TODAY + 125, "2026-01-01 00:00:00.125"),
        (-1, "1969-12-31 23:59:59.999"),
        (TODAY * 1_000_000, str(TODAY * 1_000_000)),
        (-(2**63), "-9223372036854775808"),
    ],
)
def test_a_time_is_shown_as_one_unless_nobody_would_know_it(ms: int, text: str) -> None:
    assert time_text(ms) == text
