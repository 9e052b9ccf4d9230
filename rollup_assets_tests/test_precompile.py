"""Setting up an environment compiles the kernels, whatever the settings of the checkout are."""

from __future__ import annotations

import pytest

from rollup_assets.engines import spark_session
from rollup_assets.precompile import precompile


def test_a_checkout_whose_engine_is_spark_needs_no_java_to_be_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLUP_ENGINE", "spark")
    monkeypatch.setattr(spark_session, "open_session", lambda *_: pytest.fail("a Spark session was asked for"))
    precompile("long")
