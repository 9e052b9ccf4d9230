"""``docker-compose.yaml`` as Compose reads it: anchors resolved, variables at their defaults; also with another file laid over it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yaml"
OUTSIDE = ROOT / "deploy/compose.outside.yaml"
_VARIABLE = re.compile(r"\$\{(\w+)(:?)-([^}]*)\}")


def with_variables(text: str, given: Mapping[str, str]) -> str:
    """``${NAME:-default}`` is what is given unless that is empty, ``${NAME-default}`` also where it is; else the default."""
    assert not re.search(r"\$\{\w+\}|\$\w", text), "a variable without a default stops everybody who has not set it"

    def value(found: re.Match[str]) -> str:
        name, or_empty, default = found.groups()
        chosen = given.get(name, default)
        return default if or_empty and not chosen else chosen

    return _VARIABLE.sub(value, text)


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(with_variables(FILE.read_text(), {}))
    return found


def services() -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = compose()["services"]
    return found


def outside(given: Mapping[str, str]) -> dict[str, Any]:
    """``deploy/compose.outside.yaml`` laid over it, with variables."""
    base, over = (yaml.safe_load(with_variables(file.read_text(), given)) for file in (FILE, OUTSIDE))
    found: dict[str, Any] = _merged(base, over)
    return found


def _merged(base: Any, over: Any) -> Any:
    """Mappings name by name, lists one after the other, of anything else the later. Commands, which are replaced, stay out."""
    if isinstance(base, dict) and isinstance(over, dict):
        assert not {"command", "entrypoint", "test"} & over.keys()
        return base | {name: _merged(base[name], value) if name in base else value for name, value in over.items()}
    return [*base, *over] if isinstance(base, list) and isinstance(over, list) else over
