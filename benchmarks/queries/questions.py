"""What is asked of a table. Uses only the standard library."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass

RESOLUTION = 60_000
HOUR_MS = 3_600_000
LABEL = "logical_timestamp"
CHART = (LABEL, "average_rollup", "max_rollup")
"""What a chart shows: three of sixteen columns."""
CHECKED = "max_rollup"
"""Answers are compared by their number of rows and the sum of this column, which every question asks for."""

BY_KEYS, BY_ID, BY_SHARD, WHOLE_ROWS = "series: metric, org, id", "series: id", "series: shard, metric, org, id", "series: id, all columns"
METRIC, HOUR = "metric", "everything for an hour"
SERIES = (BY_KEYS, BY_ID, BY_SHARD, WHOLE_ROWS)
QUESTIONS = (*SERIES, METRIC, HOUR)

DUCKDB, PYICEBERG, SPARK = "DuckDB", "PyIceberg", "Spark SQL"
READERS = (DUCKDB, PYICEBERG, SPARK)


@dataclass(frozen=True, slots=True)
class Series:
    """The series that is asked for."""

    id: int
    org: int
    metric: str
    shard: int


@dataclass(frozen=True, slots=True)
class Question:
    """Columns (None: all) and equal values of the rows with ``start <= label < end``, in epoch ms, at 1 min."""

    columns: tuple[str, ...] | None
    equal: tuple[tuple[str, int | str], ...]
    start: int
    end: int

    def sql(self, table: str, timestamp: str) -> str:
        """The question as SQL; ``timestamp`` is the engine's keyword for a literal with time zone."""
        literals = [f"{name} = '{value}'" if isinstance(value, str) else f"{name} = {value}" for name, value in self.equal]
        bounds = [f"{LABEL} {sign} {timestamp} '{_text(at)}'" for sign, at in ((">=", self.start), ("<", self.end))]
        return f"SELECT {', '.join(self.columns or '*')} FROM {table} WHERE {' AND '.join([*literals, *bounds])}"

    @property
    def bounds(self) -> tuple[str, str]:
        """First label and end in ISO 8601."""
        return _text(self.start), _text(self.end)


def _text(epoch_ms: int) -> str:
    return dt.datetime.fromtimestamp(epoch_ms / 1000, dt.UTC).isoformat()


def question(name: str, series: Series, start: int, hours: int) -> Question:
    """One of ``QUESTIONS`` about the first ``hours`` of the day that begins at ``start``."""
    keys: dict[str, tuple[str, ...]] = {
        BY_KEYS: ("metric", "org_id", "id"),
        BY_ID: ("id",),
        BY_SHARD: ("metric_shard_id", "metric", "org_id", "id"),
        WHOLE_ROWS: ("id",),
        METRIC: ("metric",),
        HOUR: (),
    }
    values: dict[str, int | str] = {"id": series.id, "org_id": series.org, "metric": series.metric, "metric_shard_id": series.shard}
    equal = (("resolution", RESOLUTION), *((key, values[key]) for key in keys[name]))
    first, count = (start, 1) if name == HOUR else (start, hours)
    return Question(None if name in (WHOLE_ROWS, HOUR) else CHART, equal, first, first + count * HOUR_MS)
