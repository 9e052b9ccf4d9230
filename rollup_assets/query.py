"""SQL over the published table: DuckDB, with the current snapshot as the view ``rollups``.

Only the columns and row groups that a query asks for are read. Printing the answer stays out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rollup_assets.errors import QueryError
from rollup_assets.settings import Settings
from rollup_assets.storage.storage_errors import explains_storage_errors

if TYPE_CHECKING:
    import pyarrow as pa

VIEW = "rollups"


@explains_storage_errors
def query(settings: Settings, sql: str) -> pa.Table:
    """The answer to one statement. Times are UTC.

    Raises:
        QueryError: there is no table yet, or DuckDB refuses the statement; says why.
    """
    import duckdb
    import pyarrow as pa

    from rollup_assets.iceberg.catalog import open_catalog
    from rollup_assets.iceberg.reading import snapshot_dataset
    from rollup_assets.iceberg.table import load_table

    with open_catalog(settings) as catalog:
        table = load_table(catalog, settings)
        if table is None:
            raise QueryError(
                f"there is no table {settings.table} in {settings.home} yet; "
                "publish to it with `rollups backfill FROM TO`, or try `rollups demo`"
            )
        with duckdb.connect(config={"threads": settings.threads, "memory_limit": f"{settings.memory // 2**20}MiB"}) as db:
            db.execute("SET TimeZone = 'UTC'")
            db.register(VIEW, snapshot_dataset(table))
            try:
                answer = db.sql(sql)
                # A statement such as SET has no answer.
                return pa.table({}) if answer is None else answer.to_arrow_table()
            except duckdb.Error as error:
                raise QueryError(str(error)) from None
