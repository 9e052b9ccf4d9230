"""Places: a write is there whole or not at all, and what is missing is no error."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from rollup_assets.errors import ConcurrentWriteError, FileNameError
from rollup_assets.storage.filesystems import Place, in_parallel
from rollup_assets_tests.storage.missing import assert_empty_and_no_error


def place(path: Path) -> Place:
    return Place.parse(str(path))


def entries(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# ------------------------------------------------------------------------------------------------------------------ writing


def test_bytes_round_trip_into_folders_that_are_made(tmp_path: Path) -> None:
    """Nothing but the file is left."""
    found = place(tmp_path) / "a/b" / "file.bin"
    content = bytes(range(256)) * 1000
    found.write_bytes(content)
    assert found.read_bytes() == content
    assert entries(tmp_path) == ["a", "a/b", "a/b/file.bin"]


def test_replacing_leaves_only_the_new_content(tmp_path: Path) -> None:
    found = place(tmp_path) / "file"
    found.write_bytes(b"a long first content")
    found.write_bytes(b"")
    found.write_bytes(b"short")
    assert found.read_bytes() == b"short"
    assert entries(tmp_path) == ["file"]


def test_readers_see_the_old_or_the_new_content_while_it_is_replaced(tmp_path: Path) -> None:
    """Never a part, never nothing."""
    found = place(tmp_path) / "file"
    contents = {bytes([number]) * 200_000 for number in range(4)}
    found.write_bytes(min(contents))
    stop = threading.Event()
    seen: set[bytes | None] = set()

    def read() -> None:
        while not stop.is_set():
            seen.add(found.read_bytes())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(10):
            for content in sorted(contents):
                found.write_bytes(content)
    finally:
        stop.set()
        reader.join()
    assert seen
    assert seen <= contents


def test_a_write_that_fails_keeps_the_old_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    """Neither where writing fails nor where the new content cannot take its place."""
    found = place(tmp_path) / "file"
    found.write_bytes(b"old")

    with pytest.raises(TypeError):
        found.write_bytes("not bytes")  # type: ignore[arg-type]
    assert found.read_bytes() == b"old"
    assert entries(tmp_path) == ["file"]

    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/inside").touch()
    with pytest.raises(OSError):
        (place(tmp_path) / "folder").write_bytes(b"new")
    assert entries(tmp_path) == ["file", "folder", "folder/inside"]


def test_a_stream_to_a_new_file_makes_its_folder(tmp_path: Path) -> None:
    found = place(tmp_path) / "new/file"
    with found.open_output() as stream:
        stream.write(b"1234")
    with found.open_input() as stream:
        stream.seek(2)
        assert stream.read() == b"34"


# ------------------------------------------------------------------------------------------------------------------ listing


def test_files_are_listed_in_path_order_with_size_and_time(tmp_path: Path) -> None:
    for name in ("b", "a/z", "a/b/c", "a-b", "B", "\N{GREEK SMALL LETTER ALPHA}"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "empty").mkdir()
    os.utime(tmp_path / "b", ns=(5, 1_700_000_000_123_456_789))
    found = list(place(tmp_path).files())
    paths = [str(Path(info.path).relative_to(tmp_path)) for info in found]
    assert paths == sorted(paths) == ["B", "a-b", "a/b/c", "a/z", "b", "\N{GREEK SMALL LETTER ALPHA}"]
    (b,) = (info for info in found if info.name == "b")
    assert (b.size, b.version) == (1, "mtime:1700000000123456789")
    assert [info.name for info in place(tmp_path).files(recursive=False)] == ["B", "a-b", "b", "\N{GREEK SMALL LETTER ALPHA}"]
    assert place(tmp_path).folders() == ["a", "empty"]


def test_a_file_whose_name_is_no_text_is_an_error_that_shows_it_and_a_folder_is_left_out(tmp_path: Path) -> None:
    """Nobody's data can lie in such a folder: it is asked for by a name that is text."""
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / os.fsdecode(b"\xfe")).touch()
    assert place(tmp_path).folders() == ["other"]
    (tmp_path / os.fsdecode(b"\xfe")).unlink()
    (folder / "file").touch()
    with pytest.raises(FileNameError, match=r"/\\xff/file: its name is not UTF-8; rename or remove it"):
        place(tmp_path).files()


def test_what_is_missing_is_empty_and_no_error(tmp_path: Path) -> None:
    assert_empty_and_no_error(place(tmp_path) / "missing")
    assert entries(tmp_path) == []


def test_a_folder_is_not_a_file(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    assert not (place(tmp_path) / "folder").exists()
    (place(tmp_path) / "folder").delete_file()
    assert entries(tmp_path) == ["folder"]


def test_deleting(tmp_path: Path) -> None:
    for name in ("a/one", "a/b/two", "c"):
        (place(tmp_path) / name).write_bytes(b"x")
    (place(tmp_path) / "a").delete_folder()
    assert entries(tmp_path) == ["c"]
    (place(tmp_path) / "c").delete_folder()
    assert entries(tmp_path) == ["c"]
    (place(tmp_path) / "c").delete_file()
    assert entries(tmp_path) == []


# -------------------------------------------------------------------------------------------------------------------- names


def test_names_and_uris() -> None:
    local = Place.parse("/data/stage")
    assert (local.path, local.name, local.uri, local.is_local) == ("/data/stage", "stage", "/data/stage", True)
    assert (local / "a" / "b.parquet").uri == "/data/stage/a/b.parquet"
    remote = Place.parse("s3://bucket/stage")
    assert (remote.path, remote.name, remote.uri, remote.is_local) == ("bucket/stage", "stage", "s3://bucket/stage", False)
    assert remote.of_path("bucket/stage/a").uri == "s3://bucket/stage/a"
    assert Place.parse("/data/a b%20c").path == "/data/a b%20c"


def test_threads_that_would_wait_for_themselves_are_refused() -> None:
    """With as many of them waiting as there are, nothing would ever go on."""

    def nested(_: int) -> list[int]:
        return list(in_parallel(abs, [-1, -2, -3]))

    with pytest.raises(RuntimeError, match="wait for each other"):
        list(in_parallel(nested, [1, 2, 3]))
    assert list(in_parallel(abs, [-1, -2, -3])) == [1, 2, 3]


def test_a_file_that_somebody_else_has_written_is_not_replaced(tmp_path: Path) -> None:
    file = place(tmp_path) / "file"
    file.replace_bytes(b"first", None)
    content, version = file.read_versioned()
    assert content == b"first"
    file.write_bytes(b"theirs")
    for seen in (version, None):
        with pytest.raises(ConcurrentWriteError, match="was written by another process at the same time; run the same command again"):
            file.replace_bytes(b"ours", seen)
    assert file.read_bytes() == b"theirs"
    file.replace_bytes(b"ours", file.read_versioned()[1])
    assert file.read_bytes() == b"ours"
