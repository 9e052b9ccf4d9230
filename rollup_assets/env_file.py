"""Whether ``.env`` can be read as a whole: of what cannot be parsed, pydantic would take the defaults without a word.

What its names and values mean stays out (``settings``).
"""

from __future__ import annotations

from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from dotenv.parser import parse_stream

from rollup_assets.errors import SettingsError


def check_env_file(path: Path) -> None:
    """Refuse a file of which a part would be lost. None at all is fine, and what is no regular file is left to pydantic.

    Raises:
        SettingsError: it cannot be read, is not text in UTF-8, or has lines that cannot be parsed, which are not shown, as they may hold
            a secret.
    """
    try:
        if not path.is_file():
            return
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SettingsError(f"{path} cannot be read ({error.strerror}); let this user read it, or remove it") from None
    except UnicodeDecodeError as error:
        raise _not_utf8(path, error.object.count(b"\n", 0, error.start) + 1) from None
    # UTF-16 without its mark at the beginning is valid UTF-8, in which no name is a setting's.
    if "\0" in text:
        raise _not_utf8(path, text.count("\n", 0, text.index("\0")) + 1)
    if broken := [str(line) for line in _broken_lines(text)]:
        where = f"line {broken[0]} is" if len(broken) == 1 else f"lines {', '.join(broken)} are"
        raise SettingsError(f"{path}: {where} not NAME=value, or a quote is not closed there; correct that, or put a # in front")


def _not_utf8(path: Path, line: int) -> SettingsError:
    return SettingsError(f"{path}: line {line} is not text in UTF-8; save the file with that encoding")


def _broken_lines(text: str) -> Iterator[int]:
    for found in parse_stream(StringIO(text)):
        if found.error:
            # What is quoted begins with the blank lines in front of it.
            quoted = found.original.string
            yield found.original.line + quoted.count("\n", 0, len(quoted) - len(quoted.lstrip()))
