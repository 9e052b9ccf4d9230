"""Which settings decide what is made: those that are in a manifest's parameters, and no others."""

from __future__ import annotations

from rollup_assets.batches import Batch
from rollup_assets.settings import load_settings
from rollup_assets.steps.parameters import changed_parameters, content_parameters, rollup_parameters

FIRST = Batch(1_767_225_600_000, 1_767_229_200_000)


def test_what_decides_the_content_are_not_threads_memory_or_limits() -> None:
    chosen = load_settings()
    same = load_settings(threads=7, memory="300MiB", quarantine_limit=0.5, quarantine_files=3, keep_snapshots=5, home="elsewhere")
    assert content_parameters(chosen, FIRST) == content_parameters(same, FIRST)
    for name, value in {"shards": 3, "lookback": "5m", "resolutions": "1m", "value_type": "double"}.items():
        assert content_parameters(load_settings(**{name: value}), FIRST) != content_parameters(chosen, FIRST)


def test_what_decides_which_rows_are_staged_decides_nothing_else_about_rollups() -> None:
    """And parameters of a layout by event time are what they were before there were others."""
    plain = load_settings()
    assert content_parameters(plain, FIRST).keys() == {"batch", "lookback", "resolutions", "shards", "value_type"}
    for changed in (load_settings(raw_lateness=2), load_settings(raw_future="5m"), load_settings(raw_lateness=2, raw_future="5m")):
        assert content_parameters(changed, FIRST) != content_parameters(plain, FIRST)
        assert rollup_parameters(changed) == rollup_parameters(plain)
    assert content_parameters(load_settings(raw_copies="report"), FIRST) == content_parameters(plain, FIRST)


def test_parameters_that_are_no_longer_there_have_changed_too() -> None:
    assert list(changed_parameters({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 5, "d": 4})) == [("b", 2, 5), ("c", 3, None), ("d", None, 4)]


def test_the_encoding_of_data_files_is_no_concern_of_the_stage() -> None:
    fast, compatible = load_settings(), load_settings(parquet_encoding="compatible")
    assert content_parameters(fast, FIRST) == content_parameters(compatible, FIRST)
    assert rollup_parameters(fast) != rollup_parameters(compatible)
