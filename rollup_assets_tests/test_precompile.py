"""Setting up an environment compiles kernels, whatever the settings of the checkout are, and the modules of what is installed."""

from __future__ import annotations

import importlib
from importlib.util import cache_from_source
from pathlib import Path
from typing import Any

import pytest

from rollup_assets.engines import spark_session
from rollup_assets.kernels import partial
from rollup_assets.precompile import precompile


def test_a_checkout_whose_engine_is_spark_needs_no_java_to_be_set_up_and_plain_points_are_among_what_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Points without receive times, in series that keep their dimensions, have a faster kernel for open windows: no other point may be in
    their shard. One test, since it takes ten seconds.
    """
    monkeypatch.setenv("ROLLUP_ENGINE", "spark")
    monkeypatch.setattr(spark_session, "open_session", lambda *_: pytest.fail("a Spark session was asked for"))
    done: list[int] = []
    kernel = partial.exact_partial_points

    def recorded(*arguments: Any) -> int:
        done.append(kernel(*arguments))
        return done[-1]

    monkeypatch.setattr(partial, "exact_partial_points", recorded)
    precompile("long")
    assert -1 in done


@pytest.mark.parametrize("package", ["dagster", "numba", "numpy", "pyarrow", "pydantic", "pyiceberg", "sqlalchemy"])
def test_what_is_installed_is_compiled(package: str) -> None:
    """Where PYTHONDONTWRITEBYTECODE is set, every process compiles the modules that it imports unless installing has: up to six seconds."""
    source = importlib.import_module(package).__file__
    assert source is not None
    assert Path(cache_from_source(source)).is_file(), "delete .venv and run `make test`: packages are installed with their modules compiled"
