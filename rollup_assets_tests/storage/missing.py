"""What every kind of storage has to say of a place where there is nothing."""

from __future__ import annotations

import pytest

from rollup_assets.storage.filesystems import Place


def assert_empty_and_no_error(missing: Place) -> None:
    """Reading, listing and deleting what is missing; only opening it fails."""
    assert missing.read_bytes() is None
    assert not missing.exists()
    assert list(missing.files()) == []
    assert missing.folders() == []
    missing.delete_file()
    missing.delete_folder()
    with pytest.raises(FileNotFoundError):
        missing.open_input()
