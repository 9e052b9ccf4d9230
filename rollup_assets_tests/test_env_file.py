"""A ``.env`` that cannot be read as a whole is refused with its line: no setting in it is silently a default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rollup_assets import settings as module
from rollup_assets.doctor.examination import examine
from rollup_assets.errors import SettingsError
from rollup_assets.settings import load_settings

SECRET = "canary"
BATCH = "ROLLUP_BATCH=1d\nROLLUP_RAW_LAYOUT=%Y/%j\n"


@pytest.fixture(autouse=True, name="file")
def env_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    return tmp_path / ".env"


def refusal() -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert SECRET not in str(caught.value)
    # The command that is there to say what is wrong does so too.
    assert examine().findings[0].found == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (f"# a table of days\n{BATCH}# Größe".encode("latin-1"), 4),
        (BATCH.encode("utf-16"), 1),
        (BATCH.encode("utf-16-le"), 1),
        (f"{BATCH}\n".encode() + BATCH.encode("utf-16-be"), 4),
    ],
    ids=["Latin-1", "UTF-16", "UTF-16 without a mark", "UTF-16 appended"],
)
def test_a_file_that_is_not_utf8_is_refused(file: Path, content: bytes, line: int) -> None:
    file.write_bytes(content)
    assert refusal() == f"{file}: line {line} is not text in UTF-8; save the file with that encoding"


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ('ROLLUP_BATCH="6h\n', "line 1 is"),
        ('\n# a table of\n\n  \nROLLUP_BATCH="6h', "line 5 is"),
        ("ROLLUP_SHARDS=4\r\n\r\nROLLUP_BATCH='6h\r\n", "line 3 is"),
        ("ROLLUP_BATCH 6h\n", "line 1 is"),
        ("ROLLUP_BATCH: 6h\n", "line 1 is"),
        ('ROLLUP_BATCH="6h" and more\n', "line 1 is"),
        ("=6h\n", "line 1 is"),
        # The quote ends where the next one begins.
        ('ROLLUP_BATCH="6h\nROLLUP_TABLE="a.b"\nROLLUP_SHARDS=4\n', "line 1 is"),
        (f"ROLLUP_BATCH 6h\nROLLUP_SHARDS=4\nROLLUP_CATALOG_PASSWORD='{SECRET}\n", "lines 1, 3 are"),
        (f'OTHER="{SECRET}\n', "line 1 is"),
    ],
)
def test_a_line_that_cannot_be_parsed_is_refused(file: Path, content: str, where: str) -> None:
    file.write_bytes(content.encode())
    assert refusal() == f"{file}: {where} not NAME=value, or a quote is not closed there; correct that, or put a # in front"


def test_a_file_that_this_user_may_not_read_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which root may, so that it is not tried out."""

    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    file.write_text(BATCH)
    monkeypatch.setattr(Path, "read_text", refuse)
    assert refusal() == f"{file} cannot be read (Permission denied); let this user read it, or remove it"


@pytest.mark.parametrize(
    "content",
    [
        "ROLLUP_SHARDS=4\n",
        "\ufeffROLLUP_SHARDS=4",
        "ROLLUP_SHARDS=4\r\nOTHER=1\r\n",
        "# Größe\nROLLUP_SHARDS = 4  # of them\n",
        "export ROLLUP_SHARDS='4'\nROLLUP_BATCH\nROLLUP_TABLE=\n",
        'OTHER="two\nlines"\n\nROLLUP_SHARDS="4"\nWHOSE=it\'s mine\n\n',
    ],
)
def test_what_can_be_parsed_is(file: Path, content: str) -> None:
    file.write_text(content, newline="")
    assert load_settings().shards == 4


def test_what_is_no_file_is_none(file: Path) -> None:
    """Such as the folder that Docker makes of a missing file which is to be mounted."""
    file.mkdir()
    assert load_settings().shards == 16
