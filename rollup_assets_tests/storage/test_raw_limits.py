"""Hostile raw files: what they claim is looked at before memory is spent on it, and no bytes of theirs end a process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollup_assets.errors import QuarantineError
from rollup_assets.storage.bounds import Bounds
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.raw_files import RawFile, UnreadableFileError, count_rows
from rollup_assets.storage.raw_limits import FOOTER_BYTES, MOST_NAMES, RawLimits
from rollup_assets.verification import verify
from rollup_assets_tests import thrift
from rollup_assets_tests.conftest import MakePipeline
from rollup_assets_tests.landing import write_bytes, write_rows, write_table
from rollup_assets_tests.naive import RawRow

BOUNDS = Bounds(0, 3_600_000)
OF_ANOTHER_BATCH = Bounds(3_600_000, 7_200_000, is_own=False, by_arrival=True)
MEMORY = 2**28


def table_of(metric: pa.Array) -> pa.Table:
    numbers = pa.array(range(len(metric)), pa.int64())
    names = ("id", "org_id", "logical_timestamp", "long_value")
    return pa.table({**dict.fromkeys(names, numbers), "metric": metric})


def outcome(path: Path, limits: RawLimits | None = None) -> tuple[str, str]:
    """Reason and detail of the quarantine; "rows" and how many of them, where there is none."""
    try:
        raw = RawFile(Place.parse(str(path)), "long_value", limits=limits or RawLimits())
        return "rows", str(sum(len(rows.id) for rows in raw.rows(BOUNDS, MEMORY)))
    except UnreadableFileError as error:
        return error.reason, str(error)


def written(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


def footer_alone(path: Path, footer: bytes) -> Path:
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    return path


# ----------------------------------------------------------------------------------------------------------------- limits


def test_int96_times_are_those_that_were_written(tmp_path: Path) -> None:
    """As nanoseconds, which Arrow makes of them by default, the year 9999 would be 1816, and a point of 2610 one of this hour."""
    times = [-62_135_596_800_000, 0, 5, 1_800_000, 253_402_214_400_000]
    table = table_of(pa.array(["m"] * len(times))).set_column(2, "logical_timestamp", pa.array(times, pa.timestamp("ms")))
    path = written(tmp_path / "a.parquet", table, use_deprecated_int96_timestamps=True)
    assert str(pq.read_schema(path).field("logical_timestamp").type) == "timestamp[ns]"
    batches = list(RawFile(Place.parse(str(path)), "long_value").rows(Bounds(-(2**62), 2**62), MEMORY))
    assert [time for rows in batches for time in rows.time.tolist()] == times


def test_rows_and_names_up_to_the_limit_are_read_and_one_more_is_too_large(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", table_of(pa.array(["a" * 10] * 99 + ["ä" * 10])))
    assert outcome(path, RawLimits(rows=100, name_bytes=20)) == ("rows", "100")
    assert outcome(path, RawLimits(rows=99)) == ("too_large", "100 rows, more than ROLLUP_RAW_FILE_ROWS=99")
    assert outcome(path, RawLimits(name_bytes=19)) == ("too_large", "a metric name of 20 bytes, more than ROLLUP_RAW_NAME_SIZE=19")
    place = Place.parse(str(path))
    assert count_rows(place, BOUNDS, RawLimits(rows=100)) == 100
    assert count_rows(place, BOUNDS, RawLimits(rows=99)) == 0


def test_a_row_group_up_to_the_limit_is_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.parquet", table_of(pa.array(["a"] * 1000)), compression="zstd", use_dictionary=False)
    taken = pq.read_metadata(path).row_group(0).total_byte_size
    assert outcome(path, RawLimits(group_bytes=taken)) == ("rows", "1000")
    reason, detail = outcome(path, RawLimits(group_bytes=taken - 1))
    assert (reason, detail) == ("too_large", f"row group 0 takes {taken:,} bytes, more than ROLLUP_RAW_GROUP_SIZE={taken - 1:,}")


def test_a_dictionary_of_too_many_names_is_too_large(tmp_path: Path) -> None:
    names = pa.DictionaryArray.from_arrays(pa.array([0] * 10, pa.int32()), pa.array([str(number) for number in range(MOST_NAMES + 1)]))
    path = written(tmp_path / "a.parquet", table_of(names), dictionary_pagesize_limit=2**30)
    assert outcome(path)[0] == "too_large"


def test_a_footer_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    for extra, reason in ((0, "unreadable_file"), (1, "too_large")):
        found = outcome(footer_alone(tmp_path / f"{extra}.parquet", b"\x00" * (FOOTER_BYTES - 8 + extra)))
        assert found[0] == reason, found


def test_a_footer_of_many_row_groups_is_read(tmp_path: Path) -> None:
    """Longer than what is read at first."""
    path = written(tmp_path / "a.parquet", table_of(pa.array(["a"] * 1000)), row_group_size=1)
    assert pq.read_metadata(path).serialized_size > 2 * 64 * 2**10
    assert outcome(path) == ("rows", "1000")


# ------------------------------------------------------------------------------------------------------- what footers claim


@pytest.mark.scenario("B1")
@pytest.mark.parametrize(
    ("rows", "groups"),
    [(-1, []), (-5, [-5]), (2**62, []), (2**62, [1]), (0, [-1, 1]), (2**63 - 1, [2**62, 2**62])],
)
def test_row_counts_that_make_no_sense_are_damage(rows: int, groups: Sequence[int], tmp_path: Path) -> None:
    """They would go into counters, and decide how many rounds a verification takes."""
    path = footer_alone(tmp_path / "a.parquet", thrift.footer([thrift.element("s", 1), thrift.element("id", None, 2)], rows, groups))
    assert outcome(path)[0] == "unreadable_file"
    assert count_rows(Place.parse(str(path)), BOUNDS) == 0


@pytest.mark.scenario("B1")
def test_an_absurd_count_of_rows_is_too_large_for_every_command(tmp_path: Path) -> None:
    column = [thrift.element("s", 1), thrift.element("id", None, 2)]
    path = footer_alone(tmp_path / "a.parquet", thrift.footer(column, 2**62, [2**62]))
    assert outcome(path)[0] == "too_large"
    assert count_rows(Place.parse(str(path)), BOUNDS) == 0


@pytest.mark.scenario("B1")
@pytest.mark.parametrize("depth", [200, 90_000, 600_000])
def test_columns_nested_deeply_are_damage(depth: int, tmp_path: Path) -> None:
    nested = [thrift.element("s", 1), *(thrift.element("a", 1) for _ in range(depth)), thrift.element("x", None, 2)]
    assert outcome(footer_alone(tmp_path / "a.parquet", thrift.footer(nested, 0, [])))[0] == "unreadable_file"


@pytest.mark.scenario("B1")
def test_a_footer_of_a_hundred_thousand_columns_is_damage(tmp_path: Path) -> None:
    wide = [thrift.element("s", 100_001), *(thrift.element("a", None, 2) for _ in range(100_001))]
    reason, detail = outcome(footer_alone(tmp_path / "a.parquet", thrift.footer(wide, 0, [])))
    assert reason == "unreadable_file"
    assert "limit" in detail.lower()


# --------------------------------------------------------------------------------------------------------------------- names


@pytest.mark.scenario("B1")
def test_a_name_that_is_no_utf_8_makes_the_file_unreadable(tmp_path: Path) -> None:
    binary = pa.array([b"good", b"\xff\xfe", b"\xed\xa0\x80"], pa.binary())
    names = pa.StringArray.from_buffers(3, *binary.buffers()[1:])
    reason, detail = outcome(written(tmp_path / "a.parquet", table_of(names)))
    assert reason == "unreadable_file"
    assert "UTF8" in detail


@pytest.mark.scenario("B1")
def test_a_name_that_the_dictionary_does_not_have_makes_the_file_unreadable(tmp_path: Path) -> None:
    """Arrow hands such rows out; a kernel that took their codes for granted would read what lies behind its array."""
    names = pa.DictionaryArray.from_arrays(pa.array([0, 1, 3], pa.int32()), pa.array(["a", "b", "c"]), safe=False)
    path = written(tmp_path / "a.parquet", table_of(names))
    assert pq.ParquetFile(path, read_dictionary=["metric"]).read().column("metric").chunk(0).indices.to_pylist() == [0, 1, 3]
    reason, detail = outcome(path)
    assert reason == "unreadable_file"
    assert "out of bounds" in detail


# ---------------------------------------------------------------------------------------------------------- in the pipeline


@pytest.mark.scenario("B1")
def test_a_file_that_is_too_large_is_quarantined_with_its_limit_and_verified_around(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    from rollup_assets.steps.publish import publish
    from rollup_assets.steps.repartition import stage_batch
    from rollup_assets.steps.rollup import roll_up

    pipeline = make_pipeline(tmp_path, raw_name_size=20, raw_file_rows=50)
    batch = pipeline.calendar.first
    good = [RawRow(number, 1, "good", batch.start + number, number) for number in range(50)]
    write_rows(pipeline, batch, "good.parquet", good)
    write_rows(pipeline, batch, "long.parquet", [RawRow(1, 1, "m" * 21, batch.start, 1)])
    write_rows(pipeline, batch, "many.parquet", [*good, RawRow(1, 1, "good", batch.start, 1)])
    with pytest.raises(
        QuarantineError, match=r"2 bad files.*long\.parquet: too_large \(a metric name of 21 bytes, more than ROLLUP_RAW_NAME"
    ):
        stage_batch(pipeline, batch)
    allowing = make_pipeline(tmp_path, raw_name_size=20, raw_file_rows=50, quarantine_files=2)
    staged = stage_batch(allowing, batch)
    assert (staged.repartitioned.counters["rows_read"], staged.repartitioned.counters["bad_files"]) == (50, 2)
    assert staged.quarantined.counters["reasons"] == {"too_large": 0}
    roll_up(allowing, batch)
    publish(allowing, batch)
    found = verify(allowing.settings, [batch])
    assert found.agrees, found
    assert found.partitions[0].notes == ["2 raw files quarantined as too_large not looked at"]
    # Other limits give other rows: it is staged anew, and finds nothing too large.
    again = stage_batch(make_pipeline(tmp_path, quarantine_files=2), batch)
    assert (again.unchanged, again.repartitioned.counters["rows_read"]) == (False, 102)


# --------------------------------------------------------------------------------------------------------- bounded memory

BOUNDED = """
import resource, sys
from pathlib import Path
from rollup_assets.kernels import columns  # noqa: F401
from rollup_assets_tests.storage import test_raw_limits as tests

path, limit, headroom = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
tests.outcome(path.with_name("small.parquet"))
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + headroom, used + headroom))
print(*tests.outcome(path, tests.RawLimits(group_bytes=limit)), sep="\\n")
"""


def bounded(path: Path, limit: int, headroom: int) -> list[str]:
    """What becomes of a file in a process that gets no more than ``headroom`` bytes once it has read a small one."""
    written(path.with_name("small.parquet"), table_of(pa.array(["a"])))
    command = [sys.executable, "-c", BOUNDED, str(path), str(limit), str(headroom)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.splitlines()


@pytest.mark.scenario("B1", "D2")
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    """400 MB of zeros in a file of less than 1 MB, and 300 MB to read it in."""
    rows = 200_000
    names = pa.array(["\0" * 2_000], pa.string()).take(pa.array([0] * rows))
    path = written(tmp_path / "bomb.parquet", table_of(names), compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 2**21
    reason, detail = bounded(path, 256 * 2**20, 300 * 2**20)
    assert reason == "too_large"
    assert "ROLLUP_RAW_GROUP_SIZE" in detail


@pytest.mark.scenario("B1", "D2")
def test_a_page_that_claims_more_than_there_is_ends_in_quarantine(tmp_path: Path) -> None:
    """The page's own header says 2 GiB, where the footer told of little: memory is refused, and the process goes on."""
    path = written(tmp_path / "liar.parquet", table_of(pa.array(["a"] * 1000)), compression="zstd", use_dictionary=False)
    content = bytearray(path.read_bytes())
    begin = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    content[begin : begin + 12] = thrift.page_header(uncompressed=2**31 - 1, compressed=16)[:12]
    path.write_bytes(content)
    assert bounded(path, 256 * 2**20, 300 * 2**20)[0] == "unreadable_file"


# A batch of a few rows loads and compiles everything before.
QUARANTINING = """
import sys
from pathlib import Path
from rollup_assets.errors import QuarantineError
from rollup_assets.pipeline import Pipeline
from rollup_assets.settings import load_settings
from rollup_assets.steps.repartition import stage_batch

def memory(kind):
    return int(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind)).split()[1]) << 10

pipeline = Pipeline.from_settings(load_settings(home=sys.argv[1], memory="256MiB", threads=1))
first = pipeline.calendar.first
for batch in (first, pipeline.calendar.shifted(first, 1)):
    before = memory("VmRSS")
    try:
        stage_batch(pipeline, batch)
    except QuarantineError as error:
        print(memory("VmHWM") - before, error, sep="\\n")
"""


@pytest.mark.scenario("B1", "D2")
@pytest.mark.parametrize("length", [500, 2_100])
def test_a_long_name_of_many_quarantined_rows_takes_no_memory_for_each(length: int, tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """2 GB of one name in a file of 250 KB: more than an array of texts holds, and once the reason why staging crashed."""
    pipeline = make_pipeline(tmp_path)
    write_rows(pipeline, pipeline.calendar.first, "a.parquet", [RawRow(None, 1, "bad", pipeline.calendar.first.start, 1)])
    batch = pipeline.calendar.shifted(pipeline.calendar.first, 1)
    assert batch is not None
    rows = 1 << 20
    names = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["m" * length]))
    zeros = pa.array([0] * rows, pa.int64())
    table = pa.table({"id": zeros, "org_id": zeros, "metric": names, "logical_timestamp": zeros, "long_value": zeros})
    write_table(pipeline, batch, "hostile.parquet", table, rows)
    done = subprocess.run([sys.executable, "-c", QUARANTINING, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    *_, grown, message = done.stdout.splitlines()
    assert "1048576 outside_batch; in " in message
    assert "hostile.parquet (1048576)" in message
    assert int(grown) < MEMORY


# -------------------------------------------------------------------------------------------------------------------- fuzz

FUZZ = """
import random, resource, sys
from pathlib import Path
from rollup_assets.kernels import columns  # noqa: F401
from rollup_assets_tests.storage import test_raw_limits as tests

folder, seed, tries = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
samples = [path.read_bytes() for path in sorted(folder.glob("sample-*.parquet"))]
for sample in folder.glob("sample-*.parquet"):
    tests.outcome(sample)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**29, used + 2**29))
seen = dict.fromkeys(("rows", "unreadable_file", "too_large", "schema_mismatch"), 0)
for number in range(tries):
    path = folder / f"fuzzed-{seed}-{number}.parquet"
    path.write_bytes(tests.damaged(random.Random(f"{seed} {number}"), samples))
    seen[tests.outcome_with_schema(path)] += 1
    path.unlink()
print(seen)
"""


def damaged(rng: Any, samples: Sequence[bytes]) -> bytes:
    """A sample with some bytes changed, mostly in its footer, or with a piece cut out or doubled."""
    content = bytearray(rng.choice(samples))
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    low, high = rng.choice([(footer, len(content) - 8), (footer, len(content) - 8), (4, footer), (0, len(content))])
    for _ in range(rng.choice([1, 1, 2, 4, 16])):
        place = rng.randrange(low, high)
        content[place] = rng.choice([rng.randrange(256), 0, 255, 127, 128, content[place] ^ (1 << rng.randrange(8))])
    if rng.random() < 0.1:
        begin, end = sorted((rng.randrange(low, high), rng.randrange(low, high)))
        content[begin:end] = content[begin:end] * rng.choice([0, 2])
    return bytes(content)


def outcome_with_schema(path: Path) -> str:
    try:
        raw = RawFile(Place.parse(str(path)), "long_value", limits=RawLimits(group_bytes=2**26, rows=10**6))
    except UnreadableFileError as error:
        return error.reason
    if raw.problem:
        return "schema_mismatch"
    # As a batch reads it that goes by the statistics of row groups.
    count_rows(Place.parse(str(path)), OF_ANOTHER_BATCH)
    with contextlib.suppress(UnreadableFileError):
        assert sum(len(rows.id) for rows in raw.rows(OF_ANOTHER_BATCH, MEMORY)) + raw.rows_skipped == raw.row_count
    return outcome(path, RawLimits(group_bytes=2**26, rows=10**6))[0]


def fuzz(folder: Path, seed: int, tries: int) -> None:
    rows = 300
    plain = table_of(pa.array([f"metric.{number % 7}" for number in range(rows)])).append_column(
        "receive_timestamp", pa.array(range(rows), pa.timestamp("us", "UTC"))
    )
    several = {
        "a": {"compression": "zstd", "row_group_size": 100},
        "b": {"compression": "none", "use_dictionary": False, "data_page_version": "2.0", "write_page_index": True},
        "c": {
            "compression": "snappy",
            "column_encoding": {"id": "DELTA_BINARY_PACKED", "metric": "DELTA_BYTE_ARRAY"},
            "use_dictionary": False,
        },
        "d": {"compression": "gzip", "use_byte_stream_split": ["id"], "use_dictionary": ["metric"]},
    }
    for name, options in several.items():
        written(folder / f"sample-{name}.parquet", plain, **options)
    done = subprocess.run([sys.executable, "-c", FUZZ, str(folder), str(seed), str(tries)], capture_output=True, text=True, check=False)
    left = sorted(path.name for path in folder.glob("fuzzed-*"))
    assert done.returncode == 0, f"{done.returncode}, on {left}\n{done.stderr[-2000:]}"
    seen: dict[str, int] = eval(done.stdout)
    assert sum(seen.values()) == tries
    assert seen["rows"] > tries // 50
    assert seen["unreadable_file"] > tries // 10


@pytest.mark.scenario("B1")
def test_changed_bytes_are_quarantined_or_read_and_never_end_the_process(tmp_path: Path, seed: int) -> None:
    """In half a GiB of memory."""
    fuzz(tmp_path, seed, 1_500)


@pytest.mark.thorough
@pytest.mark.scenario("B1")
@pytest.mark.parametrize("part", range(4))
def test_changed_bytes_at_length(tmp_path: Path, seed: int, part: int) -> None:
    fuzz(tmp_path, 1_000 * (seed + 1) + part, 25_000)


def test_bytes_of_nothing_are_quarantined(tmp_path: Path, make_pipeline: MakePipeline) -> None:
    """The whole step on a file whose footer is right and whose pages are another file's."""
    from rollup_assets.steps.repartition import stage_batch

    pipeline = make_pipeline(tmp_path, quarantine_files=1)
    batch = pipeline.calendar.first
    one = Path(pipeline.landing_zone.root.path) / write_table(pipeline, batch, "one.parquet", table_of(pa.array(["a"] * 100)))
    other = Path(pipeline.landing_zone.root.path) / write_table(pipeline, batch, "two.parquet", table_of(pa.array(["b" * 50] * 100)))
    footer = int.from_bytes(one.read_bytes()[-8:-4], "little") + 8
    write_bytes(pipeline, batch, "mixed.parquet", other.read_bytes()[: one.stat().st_size - footer] + one.read_bytes()[-footer:])
    one.unlink()
    other.unlink()
    assert stage_batch(pipeline, batch).repartitioned.counters["bad_files"] == 1
