"""The landing zone: which raw files belong to a batch, and when the version of that set changes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollup_assets.batches import BatchCalendar
from rollup_assets.errors import LandingZoneError
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.landing_zone import LandingZone, version_of
from rollup_assets.storage.manifests import InputFile
from rollup_assets_tests.landing import forbid
from rollup_assets_tests.s3 import S3Folder

HOUR = 3_600_000
CALENDAR = BatchCalendar(1_767_225_600_000, HOUR)
BATCH = CALENDAR.batch("2026-01-01-09:00")
FOLDER = "year=2026/month=01/day=01/hour=09"
NOON = 1_767_268_800_000_000_000


@pytest.fixture
def zone(tmp_path: Path) -> LandingZone:
    return LandingZone(Place.parse(str(tmp_path)), "year=%Y/month=%m/day=%d/hour=%H", CALENDAR)


def put(zone: LandingZone, path: str, content: bytes = b"x", mtime_ns: int = NOON) -> Path:
    found = Path(zone.root.path) / path
    found.parent.mkdir(parents=True, exist_ok=True)
    found.write_bytes(content)
    os.utime(found, ns=(mtime_ns, mtime_ns))
    return found


def test_a_batch_without_a_folder_has_no_files(zone: LandingZone) -> None:
    assert zone.files(BATCH) == []


def test_which_files_belong_to_a_batch(zone: LandingZone) -> None:
    """Every file in or below its folder, unless its name or that of a folder in between begins with ``_`` or ``.``."""
    belonging = ["b.parquet", "a.parquet", "sub/a.parquet", "sub/deeper/a", "no-ending", "a_b.parquet", "sub.d/x_.parquet", "empty.parquet"]
    for name in belonging:
        put(zone, f"{FOLDER}/{name}", b"" if name.startswith("empty") else b"xyz")
    for name in ("_SUCCESS", ".hidden.parquet", "_tmp/a.parquet", ".staging/a.parquet", "sub/_tmp/a.parquet", "sub/.x/deeper/a.parquet"):
        put(zone, f"{FOLDER}/{name}")
    for other in ("hour=08", "hour=10", "hour=09x", "hour=0"):
        put(zone, f"year=2026/month=01/day=01/{other}/a.parquet")
    put(zone, "a.parquet")
    (Path(zone.root.path) / FOLDER / "empty-folder").mkdir()

    found = zone.files(BATCH)
    assert [file.path for file in found] == sorted(f"{FOLDER}/{name}" for name in belonging)
    assert {file.path: file.size for file in found}[f"{FOLDER}/empty.parquet"] == 0
    assert {file.version for file in found} == {f"mtime:{NOON}"}
    assert all(zone.place(file).exists() for file in found)


def test_the_landing_zone_itself_may_have_any_name(tmp_path: Path) -> None:
    """Hidden are names below a batch's folder; where the landing zone lies, and what its layout is, does not matter."""
    zone = LandingZone(Place.parse(str(tmp_path / ".hidden/_raw")), "_in/%Y%m%d%H", CALENDAR)
    put(zone, "_in/2026010109/a.parquet")
    assert [file.path for file in zone.files(BATCH)] == ["_in/2026010109/a.parquet"]


def test_a_landing_zone_elsewhere_than_on_a_disk(s3_folder: S3Folder) -> None:
    zone = LandingZone(s3_folder.lake / "raw", "%Y%m%d%H", CALENDAR)
    (zone.folder(BATCH) / "a.parquet").write_bytes(b"1234")
    (file,) = zone.files(BATCH)
    assert (file.path, file.size) == ("2026010109/a.parquet", 4)
    assert zone.place(file).read_bytes() == b"1234"


# ------------------------------------------------------------------------------------------------- what cannot be listed


def test_what_is_no_folder_of_the_layout_need_not_be_listed(zone: LandingZone, monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``lost+found``, where the landing zone is a volume of its own."""
    put(zone, f"{FOLDER}/a.parquet")
    put(zone, "lost+found/#1234")
    put(zone, "year=2026/month=01/new/a.parquet")
    forbid(monkeypatch, zone.root / "lost+found", zone.root / "year=2026/month=01/new")
    assert zone.landed() == [BATCH]


def test_every_batch_below_a_folder_that_cannot_be_listed_may_have_files(zone: LandingZone, monkeypatch: pytest.MonkeyPatch) -> None:
    put(zone, "year=2026/month=02/day=28/hour=23/a.parquet")
    put(zone, "year=2026/month=02/day=29/hour=00/a.parquet")
    put(zone, "year=2026/month=03/day=02/hour=01/a.parquet")
    put(zone, "year=2025/month=12/day=31/hour=23/a.parquet")
    forbid(monkeypatch, *(zone.root / folder for folder in ("year=2025", "year=2026/month=02/day=29", "year=2026/month=03/day=01")))
    (Path(zone.root.path) / "year=2026/month=03/day=01").mkdir()
    first = CALENDAR.batch("2026-03-01-00:00")
    assert zone.landed() == [
        CALENDAR.batch("2026-02-28-23:00"),
        *CALENDAR.between(first, CALENDAR.batch("2026-03-01-23:00")),
        CALENDAR.batch("2026-03-02-01:00"),
    ]


def test_a_folder_whose_name_is_no_text_is_no_batchs_and_hides_none(zone: LandingZone) -> None:
    name = os.fsdecode(b"\xff")
    put(zone, f"{FOLDER}/a.parquet")
    put(zone, f"{name}/a.parquet")
    put(zone, f"year=2026/month=01/day=01/{name}/a.parquet")
    assert zone.landed() == [BATCH]
    put(zone, f"year=2026/month=01/day=01/hour=08/{name}/a.parquet")
    assert zone.landed() == [CALENDAR.batch("2026-01-01-08:00"), BATCH], "a file that its batch is told of"


def test_a_landing_zone_that_cannot_be_listed_is_an_error_that_says_so(zone: LandingZone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batches may be those of any time."""
    forbid(monkeypatch, zone.root)
    with pytest.raises(LandingZoneError, match=r"cannot be listed \(Permission denied\); let this user read it"):
        zone.landed()


def test_a_folder_of_any_time_that_cannot_be_listed_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = LandingZone(Place.parse(str(tmp_path)), "in/%Y/%m/%d/%H", CALENDAR)
    put(zone, "in/2026/01/01/09/a.parquet")
    forbid(monkeypatch, zone.root / "in")
    with pytest.raises(LandingZoneError, match="/in cannot be listed"):
        zone.landed()


@pytest.mark.parametrize("listing", ["whole", "folder by folder"])
def test_a_file_where_a_batchs_folder_belongs_is_told_of_by_its_batch(zone: LandingZone, listing: str) -> None:
    """As after ``cp x.parquet …/hour=09`` where the folder was not there yet."""
    put(zone, FOLDER)
    put(zone, "year=2026/month=01/day=01/hour=10/a.parquet")
    if listing != "whole":
        put(zone, os.fsdecode(b"\xff.parquet"))
    after = CALENDAR.batch("2026-01-01-10:00")
    assert zone.landed() == [BATCH, after]
    with pytest.raises(LandingZoneError, match="hour=09 is a file, where a batch's folder belongs; move it into a folder of that name"):
        zone.files(BATCH)
    assert len(zone.files(after)) == 1


def test_an_object_named_as_a_batchs_folder_is_no_file_of_it(s3_folder: S3Folder) -> None:
    """In a store it is in no folder's way."""
    zone = LandingZone(s3_folder.lake / "raw", "year=%Y/%H", BatchCalendar(CALENDAR.start, 24 * HOUR))
    batch = zone.calendar.first
    (zone.root / "year=2026/00").write_bytes(b"1234")
    assert zone.landed() == []
    (zone.root / "year=2026/00/a.parquet").write_bytes(b"1234")
    assert zone.landed() == [batch]
    assert [file.path for file in zone.files(batch)] == ["year=2026/00/a.parquet"]


def test_a_landing_zone_that_is_a_file_is_told_of(zone: LandingZone) -> None:
    put(zone, "raw")
    wrong = LandingZone(zone.root / "raw", zone.layout, CALENDAR)
    for ask in (wrong.landed, wrong.is_bare):
        with pytest.raises(LandingZoneError, match="raw is a file; set ROLLUP_RAW to the folder"):
            ask()


def test_whatever_keeps_a_folder_from_being_listed_is_told_of_by_its_batch(zone: LandingZone) -> None:
    """As a link that leads to itself."""
    put(zone, "year=2026/month=01/day=01/hour=10/a.parquet")
    folder = Path(zone.root.path) / FOLDER
    folder.symlink_to(folder)
    with pytest.raises(LandingZoneError, match=r"hour=09 cannot be listed \(Too many levels of symbolic links\)"):
        zone.files(BATCH)
    assert zone.landed() == [CALENDAR.batch("2026-01-01-10:00")]


def test_whether_a_landing_zone_is_bare_is_not_known_where_it_cannot_be_listed(zone: LandingZone, monkeypatch: pytest.MonkeyPatch) -> None:
    assert zone.is_bare()
    forbid(monkeypatch, zone.root)
    with pytest.raises(LandingZoneError, match="cannot be listed"):
        zone.is_bare()


def test_a_year_of_closed_folders_is_gone_through_once(zone: LandingZone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for each folder, a year of days at 1 h batches took 3.2 million formatted times."""
    days = [f"year=2026/month={month:02}/day=01" for month in range(1, 13)]
    for day in days:
        put(zone, f"{day}/hour=00/a.parquet")
    forbid(monkeypatch, *(zone.root / day for day in days))
    walked = []
    between = BatchCalendar.between
    monkeypatch.setattr(BatchCalendar, "between", lambda *given: walked.append(given) or between(*given))
    assert len(zone.landed()) == 12 * 24
    assert len(walked) == 1


# ------------------------------------------------------------------------------------------------------------------ version


def test_the_version_changes_with_size_or_time_or_name_and_not_otherwise(zone: LandingZone) -> None:
    path = put(zone, f"{FOLDER}/a.parquet", b"1234")
    put(zone, f"{FOLDER}/b.parquet")
    version = version_of(zone.files(BATCH))
    assert version_of(zone.files(BATCH)) == version

    put(zone, f"{FOLDER}/_ignored")
    put(zone, "year=2026/month=01/day=01/hour=10/a.parquet")
    path.read_bytes()
    path.chmod(0o600)
    assert version_of(zone.files(BATCH)) == version

    put(zone, f"{FOLDER}/a.parquet", b"12345")
    larger = version_of(zone.files(BATCH))
    put(zone, f"{FOLDER}/a.parquet", b"1234", mtime_ns=NOON + 1)
    later = version_of(zone.files(BATCH))
    path.rename(path.with_name("c.parquet"))
    renamed = version_of(zone.files(BATCH))
    path.with_name("c.parquet").unlink()
    fewer = version_of(zone.files(BATCH))
    assert len({version, larger, later, renamed, fewer, version_of([])}) == 6

    put(zone, f"{FOLDER}/a.parquet", b"4321")
    assert version_of(zone.files(BATCH)) == version, "the same size and time: taken for the same"


names = st.text(st.sampled_from("ab/12"), min_size=1, max_size=4)
inputs = st.lists(st.builds(InputFile, path=names, size=st.integers(0, 120), version=st.sampled_from(["mtime:1", "mtime:12"])), max_size=3)


@given(inputs, inputs)
def test_different_sets_of_files_have_different_versions(one: list[InputFile], other: list[InputFile]) -> None:
    """Also where names, sizes and times run into each other."""
    assert (version_of(one) == version_of(other)) == (one == other)


SIX_HOURS = BatchCalendar(CALENDAR.start, 6 * 3_600_000)


def test_batches_longer_than_their_unit_have_the_folder_of_their_start(tmp_path: Path) -> None:
    """A batch of six hours reads ``hour=06``; files in ``hour=07``, which no batch would read, are an error that names the folder."""
    zone = LandingZone(Place.parse(str(tmp_path)), "day=%d/hour=%H", SIX_HOURS)
    batch = SIX_HOURS.containing(CALENDAR.start + 7 * 3_600_000)
    (tmp_path / "day=01/hour=06").mkdir(parents=True)
    (tmp_path / "day=01/hour=06/a.parquet").write_bytes(b"a")
    assert [file.path for file in zone.files(batch)] == ["day=01/hour=06/a.parquet"]
    (tmp_path / "day=01/hour=07").mkdir()
    (tmp_path / "day=01/hour=07/_temporary").write_bytes(b"")
    assert zone.files(batch)
    (tmp_path / "day=01/hour=07/b.parquet").write_bytes(b"b")
    with pytest.raises(LandingZoneError, match=r"hour=07 lies inside the batch 2026-01-01-06:00.*ROLLUP_BATCH"):
        zone.files(batch)
