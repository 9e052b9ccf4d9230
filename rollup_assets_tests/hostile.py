"""Texts that somebody might take for more than text: paths, SQL, markup of terminals, Markdown and HTML, and what does not print."""

from __future__ import annotations

from hypothesis import strategies as st

TEXTS = [
    "../../etc/passwd",
    "/etc/passwd",
    "..",
    ".",
    "%2e%2e%2f%2e%2e%2fetc",
    "-rf",
    "--help",
    "a\nb",
    "a\r\n2026-01-01 ERROR forged",
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b31m",
    "\u202egnp.exe",
    "zero\u200bwidth",
    "line\u2028separator",
    "[bold red]x[/]",
    "[link=https://example.org]x[/link]",
    "[/]",
    "back\\[slash]\\",
    ":bomb:",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "&lt;b&gt;",
    "[x](javascript:alert(1))",
    "![x](https://example.org/x.png)",
    "https://example.org www.example.org me@example.org",
    "| a | b |",
    "`code` ~~gone~~ **bold** __bold__ $x$",
    "# title",
    "'; DROP TABLE rollups; --",
    "' OR 1=1 --",
    '"; select 1',
    "') UNION SELECT 1 --",
    "a*?[b]{c}",
    "a'b''c",
    "${HOME} $(id) `id`",
    "=1+1",
    "x" * 5_000,
    "ä" * 1_000,
    "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    "nul\0byte",
    "\ufeffbom",
    " ",
    "",
]
"""One of each kind."""


def texts(*, without: str = "", most: int = 5_000) -> st.SearchStrategy[str]:
    """Those, pieces of them put together, and any other text of characters that UTF-8 can write.

    ``without``: characters that the place they go to cannot hold.
    """
    known = [text for text in TEXTS if len(text) <= most and not set(without) & set(text)]
    joined = st.lists(st.sampled_from(known), min_size=1, max_size=3).map("".join).filter(lambda text: len(text) <= most)
    other = st.text(st.characters(codec="utf-8", exclude_characters=without), max_size=min(30, most))
    return st.one_of(st.sampled_from(known), joined, other)
