"""Text of others stays text: on terminals, in logs, in Markdown, and in the messages of our errors."""

from __future__ import annotations

import ast
import io
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console
from rich.text import Text

from rollup_assets import errors
from rollup_assets.escaping import MOST_SHOWN, escape, markdown_text, printable
from rollup_assets_tests import hostile

ANY = st.one_of(hostile.texts(most=1_000), st.text(st.characters(), max_size=20))
"""Halves of surrogate pairs too."""
PACKAGE = Path(errors.__file__).parent


@given(ANY)
def test_what_is_printable_is_one_line_and_says_all(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert len(shown.splitlines()) <= 1
    shown.encode()
    assert printable(shown) == shown
    if "\\" not in text:
        assert shown.encode("ascii", "backslashreplace").decode("unicode_escape") == text


def test_characters_that_are_kept_stay() -> None:
    assert printable("a\n\x1b[1mb\r", keep="\n") == "a\n\\x1b[1mb\\r"


@given(ANY)
def test_a_terminal_shows_the_text_and_does_nothing(text: str) -> None:
    found = Text.from_markup(f"[b]{escape(text)}", emoji=False)
    # Of backslashes at the end rich shows one more.
    assert found.plain.rstrip("\\") == printable(text).rstrip("\\")
    assert {str(span.style) for span in found.spans} <= {"bold"}
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="truecolor", width=100_000, emoji=False)
    console.print(escape(text), highlight=False, soft_wrap=True)
    assert out.getvalue().rstrip("\\\n") == printable(text).rstrip("\\")


MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])


def rendered(cell: str) -> list[tuple[str, str]]:
    """(kind, content) of what a table's one cell becomes."""
    tokens = MARKDOWN.parse(f"| a | b |\n|---|---|\n| {cell} | end |")
    cells = [token for token in tokens if token.type == "inline"]
    assert len(cells) == 4, [token.content for token in cells]
    assert cells[3].content == "end"
    return [(token.type, token.content) for token in cells[2].children or []]


@given(ANY)
def test_markdown_shows_the_text_in_a_table_and_in_a_list(text: str) -> None:
    short = printable(text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…")
    found = rendered(markdown_text(text))
    assert {kind for kind, _ in found} <= {"text", "text_special"}
    assert "".join(content for _, content in found) == short.strip()
    kinds = {token.type for token in MARKDOWN.parse(f"- a {markdown_text(text)}\n- b")}
    assert kinds <= {
        "bullet_list_open",
        "list_item_open",
        "paragraph_open",
        "inline",
        "paragraph_close",
        "list_item_close",
        "bullet_list_close",
    }


@given(ANY)
def test_nothing_becomes_a_link_by_itself(text: str) -> None:
    """GitHub's Markdown, which Dagster's UI shows, has links without any markup."""
    assert not re.search(r"(?i)(?<!\\)://|www\.|(?<!\\)@", markdown_text(text))


@given(ANY)
def test_messages_of_our_errors_are_one_printable_line(text: str) -> None:
    for kind in (errors.StorageError, errors.SettingsError, errors.ReconciliationError):
        assert str(kind(f"file {text} is bad")) == f"file {printable(text)} is bad"
    assert str(pickle.loads(pickle.dumps(errors.StorageError(text)))) == printable(text)
    assert set(str(errors.QueryError(text)).replace("\n", "")) <= set(printable(text.replace("\n", "")))


def test_every_error_of_ours_takes_that_way() -> None:
    """One that does not call its parent's constructor would show whatever it is given."""
    own = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RollupError)]
    assert len(own) > 15
    for kind in own:
        made = kind.__new__(kind)
        errors.RollupError.__init__(made, "a\x1bb")
        assert str(made) == "a\\x1bb"


@pytest.mark.parametrize("module", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rich_escape_is_used_through_ours(module: Path) -> None:
    """Rich's own leaves control characters in."""
    imported = [node.module for node in ast.walk(ast.parse(module.read_text())) if isinstance(node, ast.ImportFrom)]
    assert module.name == "escaping.py" or "rich.markup" not in imported
