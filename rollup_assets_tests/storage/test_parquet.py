"""Parquet files: what is said of a file is true of its bytes, and the same rows give the same bytes."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from rollup_assets.batches import BatchCalendar
from rollup_assets.errors import ShortOfMemoryError, StageCorruptError, StorageError
from rollup_assets.iceberg.schema import arrow_schema
from rollup_assets.settings import load_settings
from rollup_assets.storage import encodings
from rollup_assets.storage.file_statistics import FileStatistics
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import StagedFile
from rollup_assets.storage.parquet import Encoding, ParquetFileWriter, StagedParquet
from rollup_assets.storage.partial_points import PartialPointsLayout

BATCH = BatchCalendar(1_767_225_600_000, 3_600_000).batch("2026-01-01-09:00")
SCHEMA = pa.schema([pa.field("id", pa.int64(), nullable=False), ("metric", pa.string()), ("value", pa.float64())])
ENCODING = Encoding(compression="zstd", level=1, dictionary=("metric",), columns={"value": "BYTE_STREAM_SPLIT"}, statistics=True)


def rows(count: int, start: int = 0) -> pa.Table:
    numbers = range(start, start + count)
    columns = [
        pa.array(numbers, pa.int64()),
        pa.array([f"m{n % 3}" for n in numbers]),
        pa.array([None if n % 5 == 0 else n / 7 for n in numbers]),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def write(path: Path, tables: list[pa.Table]) -> StagedFile:
    writer = ParquetFileWriter(Place.parse(str(path)), SCHEMA, ENCODING)
    for table in tables:
        writer.write(table)
    return writer.close("some/name", shards=(3, 4), resolution=60_000)


def test_digest_size_and_rows_are_those_of_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "new" / "a.parquet", [rows(1000), rows(10, 1000)])
    content = (tmp_path / "new" / "a.parquet").read_bytes()
    assert FileStatistics.unpacked(file.statistics or "") == FileStatistics.of(pq.read_metadata(tmp_path / "new" / "a.parquet"))
    assert file == StagedFile(
        path="some/name",
        rows=1010,
        size=len(content),
        digest=xxhash.xxh3_128(content).hexdigest(),
        shards=(3, 4),
        resolution=60_000,
        tail=xxhash.xxh3_64_hexdigest(content[-(1 << 15) :]),
        statistics=file.statistics,
    )
    assert pq.read_table(tmp_path / "new" / "a.parquet").equals(rows(1010))


def test_the_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    """However they lie in memory: in chunks, cut out of a larger table, or in one piece."""
    whole = rows(1000)
    chunked = pa.concat_tables([whole.slice(0, 10), whole.slice(10)])
    cut = rows(1500).slice(0, 1000)
    digests = {write(tmp_path / f"{number}.parquet", [table]).digest for number, table in enumerate((whole, chunked, cut))}
    assert len(digests) == 1
    assert write(tmp_path / "other.parquet", [rows(1000, 1)]).digest not in digests


def test_each_table_is_one_row_group(tmp_path: Path) -> None:
    sizes = [5, 200_000, 1]
    write(tmp_path / "a.parquet", [rows(size) for size in sizes])
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    assert [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)] == sizes


def test_a_file_tells_neither_when_it_was_written_nor_what_held_it_in_memory(tmp_path: Path) -> None:
    """No serialized Arrow schema, no metadata of our own: other engines write the same bytes."""
    write(tmp_path / "a.parquet", [rows(3)])
    assert not pq.read_metadata(tmp_path / "a.parquet").metadata
    assert str(tmp_path).encode() not in (tmp_path / "a.parquet").read_bytes()


def test_a_file_without_rows_is_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", [])
    assert file.rows == 0
    assert file.size == (tmp_path / "a.parquet").stat().st_size
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0


# ---------------------------------------------------------------------------------------------------------------- encodings


def all_schemas() -> dict[str, tuple[pa.Schema, Encoding, set[str]]]:
    """Every kind of file we write: schema, encoding, and the columns that are deliberately PLAIN."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    from rollup_assets.iceberg.schema import iceberg_schema
    from rollup_assets.storage.datapoints import datapoints_schema
    from rollup_assets.storage.quarantine import quarantine_schema

    found: dict[str, tuple[pa.Schema, Encoding, set[str]]] = {}
    for value_type, details in itertools.product(("long", "double"), (False, True)):
        settings = load_settings(value_type=value_type)
        name = f"{value_type}{', details' if details else ''}"
        layout = PartialPointsLayout(settings.resolutions, "float64" if value_type == "double" else "int64")
        partial = layout.schema(details=details)
        numbers = [field.name for field in partial if field.type in (pa.int64(), pa.float64()) and field.name != "id"]
        dictionaries = {field.name for field in partial if pa.types.is_dictionary(field.type) and field.name != "metric"}
        found[f"partial points, {name}"] = (partial, encodings.partial_points(numbers), {"id", "metric_shard_id"} | dictionaries)
        if details:
            continue
        quarantine_plain = {"rows", "id", "logical_timestamp", "receive_timestamp", settings.value_column}
        found[f"datapoints, {name}"] = (datapoints_schema(settings.value_column, has_receive=True), encodings.DATAPOINTS, {"id", "org_id"})
        found[f"quarantined, {name}"] = (quarantine_schema(settings.value_column), encodings.QUARANTINED, quarantine_plain)
        rollups = schema_to_pyarrow(iceberg_schema(value_type), include_field_ids=False)
        keys = {"metric_shard_id", "id", "resolution", "logical_timestamp"}
        found[f"rollups, {name}"] = (rollups, encodings.rollups("fast"), keys)
        compatible = encodings.rollups("compatible")
        found[f"rollups, {name}, compatible"] = (rollups, compatible, {*rollups.names} - {*compatible.dictionary})
    return found


SCHEMAS = all_schemas()


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_column_has_an_encoding_that_fits_it(kind: str, tmp_path: Path) -> None:
    """BYTE_STREAM_SPLIT for fixed widths, DELTA_BINARY_PACKED for integers, a dictionary, or PLAIN where that is meant; as written."""
    schema, encoding, plain = SCHEMAS[kind]
    for field in schema:
        chosen = "DICTIONARY" if field.name in encoding.dictionary else encoding.columns.get(field.name, "PLAIN")
        if chosen == "BYTE_STREAM_SPLIT":
            assert pa.types.is_integer(field.type) or pa.types.is_floating(field.type), field
        elif chosen == "DELTA_BINARY_PACKED":
            assert pa.types.is_integer(field.type), field
        elif chosen == "PLAIN":
            assert field.name in plain, field
        assert field.name not in encoding.dictionary or field.name not in encoding.columns

    def column(kind: pa.DataType) -> pa.Array:
        if pa.types.is_dictionary(kind):
            return pa.array(["a", "b", "a"]).dictionary_encode()
        return pa.array(["a", "b", "a"]) if pa.types.is_string(kind) or pa.types.is_large_string(kind) else pa.array([1, 2, 1]).cast(kind)

    table = pa.Table.from_arrays([column(field.type).cast(field.type) for field in schema], schema=schema)
    writer = ParquetFileWriter(Place.parse(str(tmp_path / "a.parquet")), schema, encoding)
    writer.write(table)
    writer.close("a")
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    for place, field in enumerate(schema):
        written = set(group.column(place).encodings)
        if field.name in encoding.dictionary:
            assert "RLE_DICTIONARY" in written
        else:
            assert encoding.columns.get(field.name, "PLAIN") in written
            assert "RLE_DICTIONARY" not in written
        assert group.column(place).compression == encoding.compression.upper()
    back = pq.read_table(tmp_path / "a.parquet")
    assert back.to_pydict() == table.to_pydict()


# ---------------------------------------------------------------------------------------------------------------- finding rows


def write_rollups(path: Path, kind: encodings.ParquetEncoding, groups: list[list[int]]) -> None:
    """A data file of the table with these ids in its row groups; every other column is constant."""
    schema = arrow_schema("long")
    writer = ParquetFileWriter(Place.parse(str(path)), schema, encodings.rollups(kind))
    for ids in groups:
        others = {"metric": "requests", "delta_rollup": None, "rate_rollup": None, "lag_rollup": None}
        columns = [pa.array(ids if field.name == "id" else [others.get(field.name, 1)] * len(ids)) for field in schema]
        cast = [column.cast(field.type) for column, field in zip(columns, schema, strict=True)]
        writer.write(pa.Table.from_arrays(cast, schema=schema))
    writer.close("a")


@pytest.mark.parametrize("kind", ["fast", "compatible"])
def test_the_row_groups_of_a_series_are_found_by_its_id(kind: encodings.ParquetEncoding, tmp_path: Path) -> None:
    """By DuckDB, and without a wrong no: ids as hashes are, so that least and greatest say nothing."""
    import duckdb

    ids = [int(number) for number in np.random.default_rng(5).integers(-(2**63), 2**63 - 1, 4_000)]
    groups = [np.repeat(ids[first : first + 1_000], 3).tolist() for first in range(0, 3_000, 1_000)]
    write_rollups(tmp_path / "a.parquet", kind, groups)

    def candidates(series: int) -> set[int]:
        probe = f"SELECT row_group_id FROM parquet_bloom_probe('{tmp_path}/a.parquet', 'id', {series}) WHERE NOT bloom_filter_excludes"
        return {row[0] for row in duckdb.execute(probe).fetchall()}

    for group in range(3):
        assert all(group in candidates(series) for series in ids[group * 1_000 : group * 1_000 + 30])
    elsewhere = [len(candidates(series)) for series in ids[3_000:3_100]]
    assert sum(elsewhere) < 0.05 * 3 * 100


def test_a_bloom_filter_is_as_large_as_the_first_row_group_s_series_ask_for(tmp_path: Path) -> None:
    sizes = {}
    for series in (1, 100, 10_000):
        write_rollups(tmp_path / "a.parquet", "fast", [list(range(series)), list(range(series))])
        metadata = pq.read_metadata(tmp_path / "a.parquet")
        lengths = {metadata.row_group(group).column(1).bloom_filter_length for group in range(2)}
        assert len(lengths) == 1
        sizes[series] = lengths.pop()
    assert sizes[1] < 100
    assert sizes[100] < 400
    assert 10_000 < sizes[10_000] < 40_000


def test_row_groups_state_the_bounds_of_keys_alone(tmp_path: Path) -> None:
    write_rollups(tmp_path / "a.parquet", "fast", [[3, 3, 7]])
    group = pq.read_metadata(tmp_path / "a.parquet").row_group(0)
    columns = [group.column(place) for place in range(group.num_columns)]
    stated = {column.path_in_schema for column in columns if column.is_stats_set}
    assert stated == {"metric_shard_id", "id", "org_id", "metric", "resolution", "logical_timestamp"}
    assert (columns[1].statistics.min, columns[1].statistics.max) == (3, 7)


@pytest.mark.parametrize("kind", ["fast", "compatible"])
def test_a_file_without_a_row_group_is_a_file(kind: encodings.ParquetEncoding, tmp_path: Path) -> None:
    write_rollups(tmp_path / "a.parquet", kind, [])
    assert pq.read_table(tmp_path / "a.parquet").num_rows == 0


@pytest.mark.scenario("S3")
@pytest.mark.parametrize(
    "encoding", [encodings.DATAPOINTS, encodings.partial_points(["long_value", "logical_timestamp"])], ids=["points", "partial"]
)
def test_any_bit_of_page_headers_that_flips_is_noticed_or_without_effect(tmp_path: Path, encoding: Encoding) -> None:
    """They have no checksum: with other counts in them, kernels would read beyond the columns."""
    rows = 5_000
    metric = pa.DictionaryArray.from_arrays(pa.array([number * 7 // rows for number in range(rows)], pa.int32()), list("abcdefg"))
    whole = pa.table(
        {
            "id": pa.array(range(rows), pa.int64()),
            "org_id": pa.array([1] * rows, pa.int64()),
            "metric": metric,
            "logical_timestamp": pa.array(range(0, 3 * rows, 3), pa.int64()),
            "long_value": pa.array([number % 97 for number in range(rows)], pa.int64()),
        }
    )
    place = Place.parse(str(tmp_path / "file.parquet"))
    writer = ParquetFileWriter(place, whole.schema, encoding)
    writer.write(whole)
    # Of so small a file the digest of the footer covers all.
    file = writer.close("file.parquet").model_copy(update={"tail": None})
    content = place.read_bytes()
    assert content is not None
    group = pq.read_metadata(place.path).row_group(0)
    starts = {
        start for column in map(group.column, range(5)) for start in (column.dictionary_page_offset, column.data_page_offset) if start
    }
    noticed = 0
    for at in sorted({at for start in starts for at in range(start, start + 48)}):
        for bit in range(8):
            place.write_bytes(content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :])
            try:
                found = StagedParquet(place, file, "partial_points", BATCH).read(0)
            except StageCorruptError:
                noticed += 1
            else:
                assert found.equals(whole), (at, bit)
    assert noticed > 1000


@pytest.mark.parametrize(("refused", "error"), [(4096, ShortOfMemoryError), (2**31, StageCorruptError)])
def test_missing_memory_is_no_damage_unless_a_page_claims_what_its_footer_does_not(
    refused: int, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Staging again, as the error for damage says, would need as much memory."""
    file = write(tmp_path / "a.parquet", [rows(1000)])
    opened = StagedParquet(Place.parse(str(tmp_path / "a.parquet")), file, "partial_points", BATCH)

    def fail(*_: object, **__: object) -> NoReturn:
        raise pa.ArrowMemoryError(f"malloc of size {refused} failed")

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", fail)
    with pytest.raises(error, match=f"malloc of size {refused} failed"):
        opened.read(0)


def test_a_store_that_fails_while_a_staged_file_is_read_is_an_error_of_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark tries a task again for it, and translates no other library's errors."""
    file = write(tmp_path / "a.parquet", [rows(1000)])
    opened = StagedParquet(Place.parse(str(tmp_path / "a.parquet")), file, "partial_points", BATCH)
    said = "When reading information for key 'stage/a' in bucket 'lake': AWS Error NETWORK_CONNECTION during GetObject operation: reset"

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(said)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", fail)
    with pytest.raises(StorageError, match=rf"^{tmp_path}/a\.parquet: .* cannot be reached \(reset\)"):
        opened.read(0)
