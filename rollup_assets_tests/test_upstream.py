"""The programs of docs/upstream.md print what the page says: what they show is still so in the releases that are installed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "upstream.md").read_text()
PROGRAMS = re.findall(r"^## ([^\n]*)\n(?:(?!^## ).)*?^```python\n(.*?)^```\n+```text\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("program", "prints"), [found[1:] for found in PROGRAMS], ids=[found[0] for found in PROGRAMS])
def test_what_was_found_upstream_is_still_so(capsys: pytest.CaptureFixture[str], program: str, prints: str) -> None:
    exec(compile(program, "docs/upstream.md", "exec", dont_inherit=True), {"__name__": "__main__"})
    assert capsys.readouterr().out == prints


def test_each_finding_has_its_row_and_its_section() -> None:
    sections = re.findall(r"^## (.*)", PAGE, re.MULTILINE)
    anchors = [re.sub(r"[^a-z0-9 -]", "", section.lower()).replace(" ", "-") for section in sections]
    assert re.findall(r"\]\(#([^)]*)\)", PAGE) == anchors
    assert len(PROGRAMS) >= 8
