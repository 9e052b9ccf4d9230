"""Nothing that Dagster stores is a pickle: whoever may write its storage could otherwise run code wherever it is read."""

from __future__ import annotations

import pickletools
from pathlib import Path

import pytest

from rollup_assets.defs.backfill import run_backfill
from rollup_assets.generator.landing import GeneratorOptions, generate
from rollup_assets.settings import load_settings


def is_pickle(content: bytes) -> bool:
    """Whether all of it is opcodes of a pickle of protocol 2 or later, as Dagster's default IO manager writes them."""
    if not content.startswith(b"\x80"):
        return False
    try:
        return sum(1 for _ in pickletools.genops(content)) > 0
    except Exception:
        return False


def test_a_pickle_would_be_noticed() -> None:
    import pickle

    assert is_pickle(pickle.dumps({"a": [1, 2]}))
    assert not is_pickle(b"\x80 no")


def test_a_backfill_leaves_no_pickle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Dagster's home, the stage, the warehouse, or anywhere beside them; and no value of an asset at all."""
    monkeypatch.chdir(tmp_path)
    settings = load_settings(home=str(tmp_path / "home"), shards=4, threads=2, memory="256MiB")
    first = settings.calendar.first
    generate(settings, [first], GeneratorOptions(series=10, interval=60_000, files=1))
    result = run_backfill(settings, first.key, first.key)
    assert result.published
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.is_relative_to(settings.dagster_home) for path in files)
    assert not [path for path in files if is_pickle(path.read_bytes())]
    stored = {path.suffix for path in (settings.dagster_home / "storage").rglob("*") if path.is_file()}
    assert stored <= {".db", ".db-shm", ".db-wal", ".out", ".err", ".complete"}
