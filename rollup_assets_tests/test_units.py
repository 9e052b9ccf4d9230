"""Durations and sizes as text, and back. What is refused is in ``test_settings``, with the sentences that settings make of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollup_assets.batches import DAY_MS, HOUR_MS, MINUTE_MS
from rollup_assets.units import bytes_text, count_text, format_duration, list_text, parse_duration, parse_size


@given(st.integers(1, 10**12))
def test_durations_round_trip(ms: int) -> None:
    assert parse_duration(format_duration(ms)) == ms


def test_durations_are_written_as_short_as_possible() -> None:
    assert [format_duration(ms) for ms in (1, 1500, 90_000, MINUTE_MS, 90 * MINUTE_MS, HOUR_MS, DAY_MS)] == [
        "1ms",
        "1500ms",
        "90s",
        "1m",
        "90m",
        "1h",
        "1d",
    ]


@given(st.integers(0, 2**70))
def test_a_size_without_a_unit_is_bytes_exactly(size: int) -> None:
    assert parse_size(str(size)) == size


def test_sizes() -> None:
    sizes = {"1KiB": 1024, "1KB": 1000, "0.5MiB": 2**19, "3GiB": 3 * 2**30, "1.1GB": 1_100_000_000, "2 TiB": 2**41, "5TB": 5 * 10**12}
    assert {text: parse_size(text) for text in sizes} == sizes


def test_counts_sizes_and_lists_as_text() -> None:
    assert [count_text(1, "file"), count_text(0, "file"), count_text(1200, "batch", "batches")] == ["1 file", "0 files", "1,200 batches"]
    assert [bytes_text(12), bytes_text(31_138_512), bytes_text(3 * 2**30)] == ["12 B", "29.7 MiB", "3 GiB"]
    assert [list_text("abc", 3), list_text("abcd", 3), list_text(["a"] * 1_203, 1)] == ["a, b, c", "a, b, c and 1 more", "a and 1,202 more"]
