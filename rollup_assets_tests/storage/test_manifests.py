"""Manifests: what is written is what is read, equal content keeps its files, and damage is named with its remedy."""

from __future__ import annotations

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
import xxhash

from rollup_assets.batches import Batch, BatchCalendar
from rollup_assets.errors import StageCorruptError
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import (
    PARTIAL_POINTS,
    REPARTITIONED,
    ROLLUP_TABLE,
    ROLLUPS,
    InputFile,
    Manifest,
    Stage,
    StagedFile,
    StageReadOnce,
    content_digest,
    new_attempt,
)
from rollup_assets.threads import thread_pool
from rollup_assets_tests.staged import manifests_read

CALENDAR = BatchCalendar(1_767_225_600_000, 3_600_000)
BATCH = CALENDAR.batch("2026-01-01-09:00")
FOLDER = "repartitioned_datapoints/2026-01-01-0900"


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(Place.parse(str(tmp_path)))


def attempt(stage: Stage, contents: dict[str, bytes], **changes: Any) -> Manifest:
    """A new attempt, its files written, its manifest not."""
    name = new_attempt()
    files = []
    for number, (file, content) in enumerate(contents.items()):
        (stage.folder(REPARTITIONED, BATCH) / name / file).write_bytes(content)
        files.append(
            StagedFile(
                path=f"{name}/{file}", rows=len(content), size=len(content), digest=xxhash.xxh3_128_hexdigest(content), shards=(number,)
            )
        )
    counters = changes.pop("counters", {"rows_read": 3})
    fields: dict[str, Any] = {
        "code_version": "1",
        "parameters": {"shards": 4, "resolutions": [60_000]},
        "inputs": (InputFile(path="a.parquet", size=1, version="mtime:1"),),
        "timings": {"read": 0.5},
    }
    return Manifest(
        asset=REPARTITIONED,
        partition=BATCH.key,
        attempt=name,
        files=tuple(files),
        counters=counters,
        digest=content_digest(tuple(files), counters),
        **{**fields, **changes},
    )


def on_disk(stage: Stage) -> list[str]:
    root = Path(stage.root.path)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


# --------------------------------------------------------------------------------------------------------------- round trip


def test_a_manifest_is_read_as_it_was_written(stage: Stage) -> None:
    """Counters of any kind, infinite checksums too, and absent inputs; its digest is that of what was read."""
    counters = {
        "rows_read": 2**63 - 1,
        "rows": {"60000": 5},
        "sums": [math.inf, -math.inf, -0.0, 0.1, 1e300],
        "total": "18446744073709551615",
        "name": 'caf\N{LATIN SMALL LETTER E WITH ACUTE} "x"',
    }
    manifest = attempt(
        stage,
        {"shard-00000.parquet": b"abc"},
        counters=counters,
        upstream={"partial_points": {"2026-01-01-08:00": "d", "2026-01-01-07:00": None}},
    )
    stage.write(manifest, BATCH)
    found = stage.read(REPARTITIONED, BATCH)
    assert found == manifest
    assert math.copysign(1, found.counters["sums"][2]) == -1
    assert content_digest(found.files, found.counters) == manifest.digest
    assert (found.rows, found.bytes) == (3, 3)


def test_what_is_not_a_number_survives_too(stage: Stage) -> None:
    stage.write(attempt(stage, {}, counters={"sum": math.nan}), BATCH)
    found = stage.read(REPARTITIONED, BATCH)
    assert found is not None
    assert math.isnan(found.counters["sum"])


def test_where_things_lie(stage: Stage) -> None:
    manifest = attempt(stage, {"shard-00000.parquet": b"abc"})
    stage.write(manifest, BATCH)
    assert on_disk(stage) == sorted([f"{FOLDER}/{manifest.attempt}/shard-00000.parquet", f"{FOLDER}/manifest.json"])
    (file,) = manifest.files
    assert stage.place(manifest, file, BATCH).read_bytes() == b"abc"
    absolute = file.model_copy(update={"path": "/elsewhere/x.parquet"})
    assert stage.place(manifest, absolute, BATCH).path == "/elsewhere/x.parquet"
    remote = file.model_copy(update={"path": "s3://bucket/x.parquet"})
    assert not stage.place(manifest, remote, BATCH).is_local


def test_a_partition_is_staged_once_its_manifest_is_there(stage: Stage) -> None:
    manifest = attempt(stage, {"shard-00000.parquet": b"abc"})
    assert stage.read(REPARTITIONED, BATCH) is None
    assert stage.batches(REPARTITIONED, CALENDAR) == []
    stage.write(manifest, BATCH)
    assert stage.batches(REPARTITIONED, CALENDAR) == [BATCH]
    assert stage.batches(ROLLUPS, CALENDAR) == []
    assert stage.batches(REPARTITIONED, BatchCalendar(CALENDAR.start, 2 * CALENDAR.length)) == []


# ------------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda content: content[: len(content) // 2],
        lambda content: b"\xff\xfe" + content,
        lambda _: b"[]",
        lambda _: b'{"asset": "rollups"}',
        lambda content: json.dumps({**json.loads(content), "format_version": 2}).encode(),
        lambda content: json.dumps({**json.loads(content), "unheard_of": 1}).encode(),
    ],
    ids=["empty", "cut", "not text", "not an object", "fields missing", "a later format", "an unknown field"],
)
def test_a_manifest_that_cannot_be_read_names_the_file_and_the_remedy(damage: Any, stage: Stage) -> None:
    """Never taken for an absent one, also when a new attempt is to be committed."""
    manifest = attempt(stage, {"shard-00000.parquet": b"abc"})
    stage.write(manifest, BATCH)
    path = Path(stage.root.path) / FOLDER / "manifest.json"
    path.write_bytes(damage(path.read_bytes()))
    message = f"{path} (is not a manifest that this version can read .*; delete it and run `rollups backfill {BATCH.key} {BATCH.key}`"
    message += "|has format 2, .*: a newer release wrote it. Install the newer release again)"
    with pytest.raises(StageCorruptError, match=message):
        stage.read(REPARTITIONED, BATCH)
    with pytest.raises(StageCorruptError, match=message):
        stage.commit(attempt(stage, {"shard-00000.parquet": b"abc"}), BATCH)


@pytest.mark.scenario("S3")
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"rows_read": 3', '"rows_read": 2'),
        lambda text: text.replace('"rows": 3', '"rows": 7'),
        lambda text: text.replace(xxhash.xxh3_128_hexdigest(b"abc"), xxhash.xxh3_128_hexdigest(b"abd")),
        lambda text: re.sub(r'("shards": \[\s*)0', r"\g<1>4", text),
    ],
    ids=["counter", "rows of a file", "digest of a file", "shard of a row group"],
)
def test_a_manifest_that_says_something_else_than_it_was_written_with_is_not_read_from(damage: Any, stage: Stage) -> None:
    manifest = attempt(stage, {"a": b"abc"})
    stage.write(manifest, BATCH)
    stage.require_complete(manifest, BATCH)
    path = Path(stage.root.path) / FOLDER / "manifest.json"
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    found = stage.read(REPARTITIONED, BATCH)
    assert found is not None
    with pytest.raises(StageCorruptError, match=rf"the manifest of .* is damaged.*delete {path} and run `rollups backfill {BATCH.key}"):
        stage.require_complete(found, BATCH)


# ------------------------------------------------------------------------------------------------------------------- commit


def test_the_first_attempt_is_committed_as_it_is(stage: Stage) -> None:
    manifest = attempt(stage, {"shard-00000.parquet": b"abc"})
    assert stage.commit(manifest, BATCH) == manifest == stage.read(REPARTITIONED, BATCH)


def test_equal_content_keeps_the_old_files_and_discards_the_new_attempt(stage: Stage) -> None:
    """And brings what is known of the inputs up to date, so that the next run finds nothing to do."""
    old = stage.commit(attempt(stage, {"a": b"abc", "b": b"d"}), BATCH)
    before = on_disk(stage)
    news: dict[str, Any] = {
        "code_version": "2",
        "parameters": {"shards": 4, "resolutions": [60_000], "new": 1},
        "inputs": (InputFile(path="a.parquet", size=1, version="mtime:2"), InputFile(path="b.parquet", size=0, version="mtime:1")),
        "upstream": {"rollups": {"2026-01-01-08:00": "digest"}},
        "timings": {"read": 7.0},
    }
    again = attempt(stage, {"a": b"abc", "b": b"d"}, **news)
    kept = stage.commit(again, BATCH)
    assert (kept.attempt, kept.files, kept.counters, kept.digest) == (old.attempt, old.files, old.counters, old.digest)
    assert {name: getattr(kept, name) for name in news} == news
    assert stage.read(REPARTITIONED, BATCH) == kept
    assert on_disk(stage) == before
    assert not (Path(stage.root.path) / FOLDER / again.attempt).exists()


@pytest.mark.parametrize("change", [{"contents": {"a": b"abd"}}, {"counters": {"rows_read": 4}}], ids=["bytes", "counters"])
def test_other_content_replaces_the_manifest(change: dict[str, Any], stage: Stage) -> None:
    stage.commit(attempt(stage, {"a": b"abc"}), BATCH)
    new = attempt(stage, change.get("contents", {"a": b"abc"}), **{name: value for name, value in change.items() if name != "contents"})
    assert stage.commit(new, BATCH) == new == stage.read(REPARTITIONED, BATCH)
    assert stage.is_complete(new, BATCH)


@pytest.mark.scenario("S3")
@pytest.mark.parametrize("content", [None, b"", b"ab", b"abd"], ids=["missing", "empty", "cut", "another byte"])
def test_equal_content_replaces_a_manifest_whose_files_are_not_all_there(content: bytes | None, stage: Stage) -> None:
    old = stage.commit(attempt(stage, {"a": b"abc", "b": b"d"}), BATCH)
    place = stage.place(old, old.files[0], BATCH)
    place.delete_file()
    if content is not None:
        place.write_bytes(content)
    assert not stage.is_intact(old, BATCH)
    new = attempt(stage, {"a": b"abc", "b": b"d"})
    assert stage.commit(new, BATCH) == new == stage.read(REPARTITIONED, BATCH)
    assert stage.is_complete(new, BATCH)


def test_equal_content_of_another_table_replaces_the_manifest_and_leaves_its_files(stage: Stage, tmp_path: Path) -> None:
    def in_table(name: str) -> Manifest:
        manifest = attempt(stage, {"a": b"abc"})
        (file,) = manifest.files
        place = Place.parse(str(tmp_path / name / "data/resolution=60000" / f"{manifest.attempt}.parquet"))
        place.write_bytes(b"abc")
        return manifest.model_copy(update={"files": (file.model_copy(update={"path": place.path}),)})

    old = stage.commit(in_table("one"), BATCH)
    again = stage.commit(in_table("one"), BATCH)
    assert again.files == old.files
    new = in_table("another")
    assert new.digest == old.digest
    assert stage.commit(new, BATCH) == new == stage.read(REPARTITIONED, BATCH)
    assert stage.is_intact(old, BATCH)


def test_discarding_an_attempt_deletes_its_files_wherever_they_lie(stage: Stage, tmp_path: Path) -> None:
    kept = stage.commit(attempt(stage, {"a": b"abc"}), BATCH)
    elsewhere = Place.parse(str(tmp_path / "table/data/x.parquet"))
    elsewhere.write_bytes(b"xyz")
    manifest = attempt(stage, {"a": b"new"})
    outside = StagedFile(path=elsewhere.path, rows=1, size=3, digest="d")
    stage.discard(manifest.model_copy(update={"files": (*manifest.files, outside)}), BATCH)
    assert on_disk(stage) == sorted([f"{FOLDER}/{kept.attempt}/a", f"{FOLDER}/manifest.json"])


# ------------------------------------------------------------------------------------------------------------------- digest


def test_the_digest_depends_on_content_and_on_nothing_else() -> None:
    """Bytes, rows and shards of the files, in order, and the counters; not paths, and not the order of counters."""
    one = StagedFile(path="a/one", rows=3, size=10, digest="aa", shards=(0,))
    two = StagedFile(path="a/two", rows=4, size=10, digest="bb", shards=(1,))
    counters = {"rows_read": 7, "duplicates": 0}
    digest = content_digest((one, two), counters)
    moved = one.model_copy(update={"path": "b/other"})
    assert content_digest((moved, two), dict(reversed(counters.items()))) == digest
    others = [
        content_digest((two, one), counters),
        content_digest((one, two), {**counters, "elsewhere": 1}),
        content_digest((one,), counters),
        content_digest((), counters),
        content_digest((one, two), {**counters, "duplicates": 1}),
        content_digest((one, two), {"rows_read": 7}),
        *(
            content_digest((one.model_copy(update=change), two), counters)
            for change in ({"digest": "ab"}, {"rows": 4}, {"shards": (2,)}, {"resolution": 60_000})
        ),
    ]
    assert len({digest, *others}) == len(others) + 1


def test_attempts_have_names_of_their_own() -> None:
    assert len({new_attempt() for _ in range(100)}) == 100


def test_a_manifest_that_several_threads_ask_for_at_once_is_read_once(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.commit(attempt(stage, {"a": b"1"}), BATCH)
    original = Stage.read
    read: list[str] = []

    def counted(stage: Stage, asset: str, batch: Batch) -> Manifest | None:
        read.append(asset)
        time.sleep(0.1)
        return original(stage, asset, batch)

    monkeypatch.setattr(Stage, "read", counted)
    once = StageReadOnce(stage.root)
    with thread_pool(4, "readers") as threads:
        found = list(threads.map(lambda _: once.read(REPARTITIONED, BATCH), range(4)))
    assert found == [original(stage, REPARTITIONED, BATCH)] * 4
    assert read == [REPARTITIONED]


def test_no_more_manifests_are_held_than_wanted(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that were read first go; whoever asks for one of them again has it read again."""
    stage.commit(attempt(stage, {"a": b"1"}), BATCH)
    read = manifests_read(monkeypatch)
    once = StageReadOnce(stage.root, most=2)
    for asset in (REPARTITIONED, PARTIAL_POINTS, REPARTITIONED, ROLLUPS, PARTIAL_POINTS, REPARTITIONED):
        assert (once.read(asset, BATCH) is not None) == (asset == REPARTITIONED)
        assert len(once.known) <= 2
        assert once.known.keys() == once.locks.keys()
    assert [asset for asset, _ in read] == [REPARTITIONED, PARTIAL_POINTS, ROLLUPS, REPARTITIONED]


def test_many_threads_that_ask_for_more_manifests_than_are_held_get_theirs(stage: Stage) -> None:
    """What one has read may go before it looks at it."""
    stage.commit(attempt(stage, {"a": b"1"}), BATCH)
    once = StageReadOnce(stage.root, most=1)
    assets = (REPARTITIONED, PARTIAL_POINTS, ROLLUPS, ROLLUP_TABLE) * 50
    with thread_pool(4, "readers") as threads:
        found = list(threads.map(lambda asset: once.read(asset, BATCH), assets))
    assert [manifest is not None for manifest in found] == [asset == REPARTITIONED for asset in assets]
