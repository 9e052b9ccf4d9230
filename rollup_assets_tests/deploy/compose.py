"""``docker-compose.yaml`` as Compose reads it: anchors resolved, variables at their defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yaml"


def with_defaults(text: str) -> str:
    """``${NAME:-default}`` is the default."""
    assert not re.search(r"\$\{\w+\}|\$\w", text), "a variable without a default stops everybody who has not set it"
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(with_defaults(FILE.read_text()))
    return found


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found
