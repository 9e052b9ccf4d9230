"""The file of quarantined rows: what comes block by block is there in order, and is not held block by block."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from rollup_assets.storage import encodings
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.quarantine import BadFile, QuarantineWriter, bad_file_row, serialized


def test_blocks_of_one_row_take_the_memory_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred thousand files with a bad row each are as many blocks, each with a schema of its own."""
    monkeypatch.setattr(encodings, "QUARANTINED_ROW_GROUP", 8_000)
    blocks = 10_000
    writer = QuarantineWriter(Place.parse(str(tmp_path)), "attempt", "long_value")
    size = 0
    tracemalloc.start()
    try:
        for number in range(blocks):
            payload = serialized(bad_file_row(BadFile(f"{number:06d}.parquet", "unreadable_file", "", number), "long_value"))
            size += len(payload)
            writer.write(memoryview(payload))
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    file = writer.close()
    assert most < size / 4
    written = pq.ParquetFile(tmp_path / file.path)
    assert [written.metadata.row_group(group).num_rows for group in range(written.num_row_groups)] == [8_000, 2_000]
    found = written.read(["file", "rows", "reason"]).to_pylist()
    assert found == [{"file": f"{number:06d}.parquet", "rows": number, "reason": "unreadable_file"} for number in range(blocks)]
