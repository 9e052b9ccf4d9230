"""Charts in a terminal."""

from rollup_assets.charts import axis, columns, spread


def test_windows_cover_the_columns_of_their_time() -> None:
    assert spread([(0, 30, 1.0), (30, 60, 3.0)], 0, 60, 4) == [1.0, 1.0, 3.0, 3.0]


def test_several_windows_in_one_column_are_averaged_and_gaps_stay_gaps() -> None:
    assert spread([(0, 10, 1.0), (10, 20, 3.0), (60, 80, 5.0)], 0, 80, 4) == [2.0, None, None, 5.0]


def test_a_window_is_never_too_narrow_to_be_seen() -> None:
    assert spread([(5, 6, 1.0)], 0, 1_000, 4) == [1.0, None, None, None]


def test_the_least_value_is_one_eighth_and_the_greatest_fills_all_lines() -> None:
    assert columns([0.0, None, 10.0], 2) == ["  █", "▁ █"]


def test_equal_values_are_drawn_and_nothing_known_is_blank() -> None:
    assert columns([2.0, 2.0], 1) == ["▁▁"]
    assert columns([None, None], 2) == ["  ", "  "]


def test_labels_that_would_overlap_are_left_out() -> None:
    assert axis(0, 100, [(0, "00:00"), (10, "00:10"), (60, "01:00")], 20) == "00:00       01:00   "
