"""Packed blocks: headers and columns come back, as narrow as the values allow, and aligned."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollup_assets.code_version import CODE_VERSION
from rollup_assets.storage import blocks
from rollup_assets.storage.blocks import Header
from rollup_assets_tests.naive import INT64_MAX, INT64_MIN

int64 = st.integers(INT64_MIN, INT64_MAX)
integer_codes = st.sampled_from([blocks.UINT16, blocks.INT32, blocks.INT64])
headers = st.builds(
    Header,
    kind=st.sampled_from([blocks.ROWS, blocks.NAMES, blocks.DROP_FILE, blocks.QUARANTINED]),
    file=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 2**32 - 1),
    value=st.sampled_from([blocks.UINT16, blocks.INT32, blocks.INT64, blocks.FLOAT64]),
    org=integer_codes,
    metric=st.sampled_from([blocks.UINT16, blocks.INT32]),
    lag=st.sampled_from([blocks.INT32, blocks.INT64, 255]),
    value_base=int64,
    org_base=int64,
    lag_base=int64,
)


@given(headers)
def test_headers_round_trip(header: Header) -> None:
    packed = header.pack()
    assert Header.unpack(packed) == header
    assert len(packed) < 64
    assert header.has_lag == (header.lag != 255)
    assert len(header.dtypes) == (6 if header.has_lag else 5)


@given(headers, st.integers(0, 9))
def test_columns_are_found_in_the_payload_and_aligned(header: Header, rows: int) -> None:
    """In their own order, whatever the order in which the payload holds them, for odd numbers of rows too."""
    header = Header(blocks.ROWS, 0, rows, header.value, header.org, header.metric, header.lag)
    columns = [np.arange(rows, dtype=np.int64).astype(dtype) + place for place, dtype in enumerate(header.dtypes)]
    columns = [column.astype(dtype) for column, dtype in zip(columns, header.dtypes, strict=True)]
    payload = b"".join(columns[place].tobytes() for place in blocks.payload_order(header.dtypes))
    found = header.columns(memoryview(bytearray(payload)))
    assert len(found) == 6
    for column, expected in zip(found, columns, strict=False):
        assert column.dtype == expected.dtype
        assert column.tolist() == expected.tolist()
        assert column.flags.aligned
    if not header.has_lag:
        assert len(found[5]) == 0


@given(int64, int64)
def test_the_narrowest_type_holds_every_offset_from_its_base(one: int, other: int) -> None:
    low, high = sorted((one, other))
    for uint16 in (True, False):
        code, base = blocks.narrowest(low, high, uint16=uint16)
        limits = np.iinfo(blocks.dtype_of(code))
        assert limits.min <= low - base <= high - base <= limits.max
        assert INT64_MIN <= base <= INT64_MAX


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 0, (blocks.UINT16, 0)),
        (INT64_MIN, INT64_MIN, (blocks.UINT16, INT64_MIN)),
        (INT64_MAX - 65_535, INT64_MAX, (blocks.UINT16, INT64_MAX - 65_535)),
        (-5, 65_530, (blocks.UINT16, -5)),
        (-5, 65_531, (blocks.INT32, -5)),
        (INT64_MIN, INT64_MIN + 2**31 - 1, (blocks.INT32, INT64_MIN)),
        (0, 2**31 - 1, (blocks.INT32, 0)),
        (0, 2**31, (blocks.INT64, 0)),
        (INT64_MIN, INT64_MAX, (blocks.INT64, 0)),
        (INT64_MIN, 0, (blocks.INT64, 0)),
    ],
)
def test_widths_at_their_bounds(low: int, high: int, expected: tuple[int, int]) -> None:
    assert blocks.narrowest(low, high) == expected


def test_where_uint16_is_not_wanted_the_next_type_is_taken() -> None:
    assert blocks.narrowest(7, 7, uint16=False) == (blocks.INT32, 7)


@given(names=st.lists(st.text(max_size=20), min_size=1, max_size=50), data=st.data())
def test_names_round_trip(names: list[str], data: st.DataObject) -> None:
    """Empty ones and any alphabet, and some of them alone."""
    wanted = np.array(data.draw(st.lists(st.integers(0, len(names) - 1), unique=True)), np.int32)
    codes, told = blocks.unpack_names(memoryview(blocks.pack_names(wanted, names)), len(wanted))
    assert codes.tolist() == wanted.tolist()
    assert told == [names[code] for code in wanted]


def test_other_blocks_come_with_another_code_version() -> None:
    """Spark's workers are taken for the driver's equals by it: if this fails, raise it in ``code_version.py``, and write it here."""
    header = Header(blocks.ROWS, 1, 2, blocks.INT32, blocks.UINT16, blocks.UINT16, blocks.INT64, -3, 4, 5).pack()
    names = blocks.pack_names(np.array([2, 0], np.int32), ["cpu", "disk", "net"])
    assert (CODE_VERSION, header.hex(), names.hex()) == (
        "6",
        "00010000000200000001000002fdffffffffffffff04000000000000000500000000000000",
        "020000000000000003000000030000006e6574637075",
    )


def test_the_payload_order_is_widest_first_and_keeps_the_order_of_equals() -> None:
    dtypes = [np.dtype(kind) for kind in (np.int64, np.int32, np.uint16, np.int64, np.uint16, np.int32)]
    assert blocks.payload_order(dtypes) == [0, 3, 1, 5, 2, 4]
