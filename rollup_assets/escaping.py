"""Escapes text from outside (metric names, file names, messages) wherever something could treat it as more than text.

Terminals obey control characters, logs have lines, rich and Markdown have markup, and Dagster's UI shows Markdown with HTML in it. What is
shown to programs as JSON, or kept in files, stays as it is.
"""

from __future__ import annotations

import re

MOST_SHOWN = 300
"""Characters of a text in a table cell or list of Dagster's UI: each is part of an event."""
# What begins something in CommonMark, in GitHub's tables, strikethrough and links that nobody marked as links, in formulas or in HTML.
_MARKDOWN = re.compile(r"[\\`*\[\]<>&|~#!@$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.", re.IGNORECASE)

# Rich takes a backslash before a bracket away also where the bracket begins no tag, and there its own function adds none.
_BACKSLASH = re.compile(r"\\(?=\[(?![a-z#/@][^\[]*?\]))")


def printable(text: str, *, keep: str = "") -> str:
    r"""On one line, with whatever does not print written as Python would: line breaks as ``\n``, escape characters as ``\x1b``.

    So are characters that change the direction of what follows, and halves of surrogate pairs. ``keep``: characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each in keep else each.encode("unicode_escape").decode() for each in text)


def escape(text: str) -> str:
    """For rich: printable, and without markup."""
    # Not where this module is loaded: workers of a cluster need not have it.
    from rich.markup import escape as escape_markup

    return escape_markup(_BACKSLASH.sub(r"\\\\", printable(text)))


def markdown_text(text: str) -> str:
    """For Markdown: printable, without markup, links or HTML, within a table cell too; the beginning of what is very long."""
    short = text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"
    return _MARKDOWN.sub(r"\\\g<0>", printable(short))
