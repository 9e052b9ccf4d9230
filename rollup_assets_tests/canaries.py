"""Where a secret is looked for that must be nowhere: in every file below a folder."""

from __future__ import annotations

from pathlib import Path


def holding(folder: Path, text: str) -> list[Path]:
    """Files with the text in them: databases, logs, manifests, metadata."""
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]
