"""The same file twice is found by its content, in a fixed order, and without reading what cannot be a copy."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollup_assets.errors import StaleInputError
from rollup_assets.storage.copies import find_copies
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import InputFile

pytestmark = pytest.mark.scenario("L2")


def put(folder: Path, contents: dict[str, bytes], version: str = "mtime:1") -> list[InputFile]:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [InputFile(path=name, size=len(content), version=version) for name, content in contents.items()]


def place(folder: Path) -> Place:
    return Place.parse(str(folder))


# Equal sizes, equal ends, equal beginnings; as long as what is compared first, and longer.
LONG = random.Random(1).randbytes(100_000)
contents = st.sampled_from((LONG, b"x" + LONG[1:], LONG[:-1] + b"x", LONG[:70_000], b"x" * 12, b"y" * 12, b"y" * 13))


@given(st.lists(contents, max_size=6))
def test_every_file_but_the_first_of_a_content_is_a_copy_of_it(written: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        named = {f"{number}.parquet": content for number, content in enumerate(written)}
        files = put(Path(folder), named)
        first: dict[bytes, str] = {}
        expected = {name: first[content] for name, content in named.items() if first.setdefault(content, name) != name}
        assert find_copies(place(Path(folder)), files) == expected


def test_the_order_that_is_given_decides_which_is_the_original(tmp_path: Path) -> None:
    files = put(tmp_path, {"a": LONG, "b": LONG, "c": LONG})
    assert find_copies(place(tmp_path), files[::-1]) == {"b": "c", "a": "c"}


def test_ten_thousand_files_of_one_size_are_not_compared_with_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finding a file's place among them took 44 s."""
    files = put(tmp_path, {"a": LONG, "b": b"x" + LONG[1:], "c": LONG})
    monkeypatch.setattr(InputFile, "__eq__", lambda *_: pytest.fail("two files are compared"))
    assert find_copies(place(tmp_path), files) == {"c": "a"}


def test_files_too_small_to_be_parquet_are_no_copies(tmp_path: Path) -> None:
    """Each of them is bad by itself."""
    assert find_copies(place(tmp_path), put(tmp_path, {"a": b"", "b": b"", "c": b"PAR1", "d": b"PAR1"})) == {}


def test_files_of_different_sizes_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = put(tmp_path, {"a": LONG, "b": LONG[1:], "c": LONG[2:]})
    monkeypatch.setattr(Place, "open_input", lambda self: pytest.fail(f"{self.uri} was opened"))
    assert find_copies(place(tmp_path), files) == {}


def test_equal_etags_and_sizes_are_equal_contents_without_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other ETags may be those of other uploads of the same bytes: these are read, one of each."""
    files = [*put(tmp_path, {"a": LONG, "b": LONG}, "etag:1"), *put(tmp_path, {"c": LONG, "d": LONG}, "etag:2-7")]
    opened: list[str] = []
    open_input = Place.open_input

    def noted(self: Place) -> object:
        opened.append(self.name)
        return open_input(self)

    monkeypatch.setattr(Place, "open_input", noted)
    assert find_copies(place(tmp_path), files[:2]) == {"b": "a"}
    assert opened == []
    assert find_copies(place(tmp_path), files) == {"b": "a", "c": "a", "d": "a"}
    assert set(opened) == {"a", "c"}


def test_a_file_that_went_away_is_said_to_be_gone(tmp_path: Path) -> None:
    files = put(tmp_path, {"a": LONG, "b": LONG})
    (tmp_path / "b").unlink()
    with pytest.raises(StaleInputError, match=r"b was deleted after it had been listed"):
        find_copies(place(tmp_path), files)
