"""What tests with servers of their own share."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Leave these out with ``-m "not daemon"``."""
    config.addinivalue_line("markers", "daemon: starts Dagster's web server and daemon, and takes about two minutes")
