"""Iceberg's metadata of Parquet files: sizes, counts and bounds of columns, from the files' footers.

A footer comes from the file, or from whoever kept it when the file was written: reading 200 of them back from S3 took longer than the
commit. What is done with the metadata stays out.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from pyiceberg.io import FileIO, InputFile, OutputFile
from pyiceberg.manifest import DataFile, DataFileContent, FileFormat

from rollup_assets.iceberg.schema import metrics_properties

if TYPE_CHECKING:
    from pyiceberg.table import Table
    from pyiceberg.table.metadata import TableMetadata


def data_file(table: Table, path: str) -> DataFile:
    """Metadata of one file, from its footer.

    Raises:
        OSError, ValueError, TypeError: the file is missing or not Parquet, or its columns are not the table's.
    """
    from pyiceberg.io.pyarrow import parquet_files_to_data_files

    return next(iter(parquet_files_to_data_files(table.io, _metadata(table), iter([path]))))


def _metadata(table: Table) -> TableMetadata:
    """The table's metadata, set to keep statistics of key columns only unless the table's properties say otherwise."""
    return table.metadata.model_copy(update={"properties": metrics_properties() | table.properties})


def data_files_of_footers(table: Table, footers: Iterable[tuple[str, int, bytes]]) -> Iterator[DataFile]:
    """Metadata of files by path, size in bytes and footer, as :func:`data_file` makes it; in order.

    Raises:
        OSError, ValueError, TypeError: a footer is malformed, or its columns are not the table's.
    """
    import pyarrow.parquet as pq
    from pyiceberg.io.pyarrow import (
        compute_statistics_plan,
        data_file_statistics_from_parquet_metadata,
        parquet_files_to_data_files,
        parquet_path_to_id_mapping,
    )

    schema, spec, table_metadata = table.schema(), table.spec(), _metadata(table)
    columns = compute_statistics_plan(schema, table_metadata.properties)
    mapping = parquet_path_to_id_mapping(schema)
    checked: Any = None
    for path, size, footer in footers:
        metadata = pq.read_metadata(io.BytesIO(footer))
        if checked is None or not metadata.schema.equals(checked):
            # PyIceberg compares the columns with the table's, which takes as long as all the rest: needed once for each schema.
            yield next(iter(parquet_files_to_data_files(_KeptFooters({path: (size, footer)}), table_metadata, iter([path]))))
            checked = metadata.schema
            continue
        statistics = data_file_statistics_from_parquet_metadata(metadata, columns, mapping)
        yield DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=path,
            file_format=FileFormat.PARQUET,
            partition=statistics.partition(spec, schema),
            file_size_in_bytes=size,
            sort_order_id=None,
            spec_id=table.metadata.default_spec_id,
            equality_ids=None,
            key_metadata=None,
            **statistics.to_serialized_dict(),
        )


class _KeptFooters(FileIO):
    """Files of which only the end, the footer, is kept."""

    def __init__(self, footers: dict[str, tuple[int, bytes]]) -> None:
        super().__init__()
        self._footers = footers

    def new_input(self, location: str) -> InputFile:
        return _KeptFooter(location, *self._footers[location])

    def new_output(self, location: str) -> OutputFile:
        raise NotImplementedError

    def delete(self, location: str | InputFile | OutputFile) -> None:
        raise NotImplementedError


class _KeptFooter(InputFile):
    def __init__(self, location: str, size: int, footer: bytes) -> None:
        super().__init__(location)
        self._size = size
        self._footer = footer

    def __len__(self) -> int:
        return self._size

    def exists(self) -> bool:
        return True

    def open(self, seekable: bool = True) -> Any:  # noqa: ARG002
        return io.BytesIO(self._footer)
