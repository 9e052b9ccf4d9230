"""Escapes text from outside (metric names, file names, messages) wherever something could treat it as more than text.

Terminals obey control characters, logs have lines, rich and Markdown have markup, and Dagster's UI shows Markdown with HTML in it. What is
shown to programs as JSON, or kept in files, stays as it is.
"""

from __future__ import annotations

import re

MOST_SHOWN = 300
"""Most characters of a text in a table cell or list of Dagster's UI: each text is stored with an event."""
# Characters that begin markup in CommonMark, in GitHub's tables, strikethrough and automatic links, in formulas or in HTML.
_MARKDOWN = re.compile(r"[\\`*\[\]<>&|~#!@$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)

# Rich removes a backslash before any bracket, but its own escape function adds one only before brackets that begin a tag.
_BACKSLASH = re.compile(r"\\(?=\[(?![a-z#/@][^\[]*?\]))")


def printable(text: str, *, keep: str = "") -> str:
    r"""The text on one line, with unprintable characters written as in Python: line breaks as ``\n``, escape characters as ``\x1b``.

    This includes characters that change the text direction, and halves of surrogate pairs. ``keep``: characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else each.encode("unicode_escape").decode() for each in text)


def escape(text: str) -> str:
    """The text for rich: printable, with markup escaped."""
    # Imported only here: workers of a cluster load this module, and need not have rich.
    from rich.markup import escape as escape_markup

    return escape_markup(_BACKSLASH.sub(r"\\\\", printable(text)))


def markdown_text(text: str) -> str:
    """The text for Markdown, also in table cells: printable, with markup, links and HTML escaped; very long texts are cut."""
    short = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
    return _MARKDOWN.sub(r"\\\g<0>", printable(short))
