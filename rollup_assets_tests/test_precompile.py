"""Setting up an environment compiles the kernels, whatever the settings of the checkout are."""

from __future__ import annotations

import pytest

from rollup_assets.engines import spark_session
from rollup_assets.kernels import partial
from rollup_assets.precompile import precompile


def test_a_checkout_whose_engine_is_spark_needs_no_java_to_be_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLUP_ENGINE", "spark")
    monkeypatch.setattr(spark_session, "open_session", lambda *_: pytest.fail("a Spark session was asked for"))
    precompile("long")


def test_points_without_receive_times_and_with_constant_dimensions_are_among_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A faster kernel does their open windows: not in a shard that has any other points."""
    called = []
    kernel = partial.exact_partial_points
    monkeypatch.setattr(partial, "exact_partial_points", lambda *arguments: called.append(True) or kernel(*arguments))
    precompile("long")
    assert called
