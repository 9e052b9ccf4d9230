"""What a footer says about timestamps is what pyarrow says, and a damaged one says nothing or something, but never fails."""

from __future__ import annotations

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollup_assets.storage.footers import row_group_ranges

TIME = "logical_timestamp"
TYPES = [pa.int64(), pa.int32(), pa.timestamp("s"), pa.timestamp("ms", "UTC"), pa.timestamp("us"), pa.timestamp("ns", "Asia/Tokyo")]


def written(times: pa.Array, row_group: int = 3, **options: object) -> bytes:
    sink = pa.BufferOutputStream()
    columns = {"id": pa.array(range(len(times)), pa.int64()), "tags": [[("a", str(at))] for at in range(len(times))], TIME: times}
    table = pa.table(columns, schema=pa.schema([("id", pa.int64()), ("tags", pa.map_(pa.string(), pa.string())), (TIME, times.type)]))
    pq.write_table(table, sink, row_group_size=row_group, **options)
    return bytes(sink.getvalue())


def footer(content: bytes) -> bytes:
    return content[-8 - int.from_bytes(content[-8:-4], "little") : -8]


@pytest.mark.parametrize("kind", TYPES, ids=str)
@pytest.mark.parametrize(
    "written_by",
    [
        {},
        {"version": "1.0", "coerce_timestamps": "us", "allow_truncated_timestamps": True},
        {"data_page_version": "2.0", "write_page_index": True},
    ],
    ids=str,
)
def test_ranges_are_those_that_pyarrow_reads(kind: pa.DataType, written_by: dict[str, object]) -> None:
    times = pa.array([5, -7, None, 1_000, 2_000, 3_000, None, None, None, 2**31 - 1], pa.int32()).cast(pa.int64()).cast(kind)
    content = written(times, **written_by)
    metadata = pq.read_metadata(pa.BufferReader(content))
    expected = []
    for group in range(metadata.num_row_groups):
        (place,) = (place for place in range(metadata.num_columns) if metadata.schema.column(place).path == TIME)
        statistics = metadata.row_group(group).column(place).statistics
        known = (statistics.min_raw, statistics.max_raw) if statistics.has_min_max else None
        expected.append((metadata.row_group(group).num_rows, known))
    assert row_group_ranges(footer(content), TIME) == expected
    assert [known is None for _, known in expected] == [False, False, True, False]


def test_without_statistics_and_without_the_column_no_range_is_known() -> None:
    content = written(pa.array([1, 2], pa.int64()), write_statistics=False)
    assert row_group_ranges(footer(content), TIME) == [(2, None)]
    assert row_group_ranges(footer(content), "no_such_column") == [(2, None)]
    int96 = written(pa.array([1, 2], pa.timestamp("ns")), use_deprecated_int96_timestamps=True)
    assert row_group_ranges(footer(int96), TIME) == [(2, None)]


WHOLE = footer(written(pa.array(range(9), pa.int64())))


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_a_damaged_footer_never_fails(seed: int, changes: int) -> None:
    chosen = random.Random(seed)
    content = bytearray(WHOLE)
    for _ in range(changes):
        content[chosen.randrange(len(content))] = chosen.randrange(256)
    for groups in (row_group_ranges(bytes(content), TIME), row_group_ranges(bytes(content)[: chosen.randrange(len(content))], TIME)):
        assert all(known is None or known[0] <= known[1] for _, known in groups)


@given(st.binary(max_size=200))
def test_anything_at_all_never_fails(content: bytes) -> None:
    assert isinstance(row_group_ranges(content, TIME), list)


@pytest.mark.parametrize("content", [b"\x1c" * 10_000, b"\x19\xfc" * 5_000, b"\x19\xf3\xff\xff\xff\xff\x7f", b"\x15" + b"\xff" * 100])
def test_what_is_nested_or_long_beyond_measure_is_left_alone(content: bytes) -> None:
    """Structures in structures, lists in lists, a list longer than the file, a number without an end."""
    assert row_group_ranges(content, TIME) == []
