"""What all commands share: the application, arguments that several have, and the output of JSON, CSV and errors.

Exit status: 0 is success; 1 a failed partition, a difference or any error of ours, told in one message; 2 bad arguments, or partitions or
snapshots that do not exist; 130 Ctrl-C, or SIGTERM during a run: what is finished stands. The commands themselves stay out.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from rollup_assets.errors import RollupError, SettingsError, UnknownPartitionError, UnknownReasonError, UnknownSnapshotError
from rollup_assets.escaping import escape
from rollup_assets.terminal import open_console, say

if TYPE_CHECKING:
    import pyarrow as pa

    from rollup_assets.batches import Batch
    from rollup_assets.progress import TerminalProgress
    from rollup_assets.settings import Settings

_BAD_ARGUMENTS = 2
_INTERRUPTED = 130
_BY_DUCKDB = "Query interrupted"
"""How DuckDB 2.0.0 reports Ctrl-C during a statement: a RuntimeError with this text, not an exception of its own."""


class _PlainErrors(TyperGroup):
    """Tells errors of ours in one message, without a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (UnknownPartitionError, UnknownSnapshotError, UnknownReasonError, SettingsError) as error:
            _fail(error, _BAD_ARGUMENTS)
        except RollupError as error:
            _fail(error, 1)
        except KeyboardInterrupt as error:
            # Typer would end without a word.
            print_interrupted(str(error))
            raise typer.Exit(_INTERRUPTED) from None
        except RuntimeError as error:
            if str(error) != _BY_DUCKDB:
                raise
            print_interrupted("")
            raise typer.Exit(_INTERRUPTED) from None


def _fail(error: Exception, code: int) -> NoReturn:
    print_error(str(error))
    raise typer.Exit(code)


def print_error(text: str) -> None:
    """What went wrong, on standard error."""
    say(open_console(stderr=True), f"[bold red]error:[/] {escape(text)}")


def print_interrupted(text: str) -> None:
    """Say on standard error that the command was interrupted and, in ``text`` if there is any, what of its work stands."""
    say(open_console(stderr=True), f"[bold yellow]interrupted[/]{': ' if text else ''}{escape(text)}")


app = typer.Typer(
    cls=_PlainErrors,
    no_args_is_help=True,
    add_completion=False,
    # Local variables may hold passwords.
    pretty_exceptions_show_locals=False,
    rich_markup_mode="markdown",
    help="Time-series rollups as Dagster assets, published to Apache Iceberg.\n\nSettings: `ROLLUP_*` in the environment and `.env`.",
    context_settings={"help_option_names": ["-h", "--help"]},
)

First = Annotated[str, typer.Argument(metavar="FROM", help="First partition, such as 2026-01-01-06:00 (UTC).")]
Last = Annotated[str, typer.Argument(metavar="TO", help="Last partition, included.")]
MaybeFirst = Annotated[
    str | None, typer.Argument(metavar="[FROM]", help="First partition, such as 2026-01-01-06:00 (UTC).", show_default=False)
]
MaybeLast = Annotated[str | None, typer.Argument(metavar="[TO]", help="Last partition, included; by default FROM.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


def settings_of(**overrides: Any) -> Settings:
    """The settings of the environment; keyword arguments take precedence."""
    from rollup_assets.settings import load_settings

    return load_settings(**overrides)


def batches_of(settings: Settings, first: str | None, last: str | None) -> list[Batch] | None:
    """The batches from ``first`` to ``last``; None if no partition is given."""
    if first is None:
        return None
    begin, end = settings.calendar.batch(first), settings.calendar.batch(last or first)
    if end < begin:
        raise UnknownPartitionError(f"the last partition {last} is before the first one, {first}; exchange them")
    return list(settings.calendar.between(begin, end))


def progress_bar(silent: bool) -> AbstractContextManager[TerminalProgress | None]:
    """How far the steps are, on the terminal; nothing where a program reads what is printed."""
    from rollup_assets.progress import TerminalProgress

    return nullcontext() if silent else TerminalProgress()


def print_json(content: Any) -> None:
    """One JSON document, of numbers that JSON has: the others are the texts ``NaN``, ``Infinity`` and ``-Infinity``."""
    typer.echo(_as_json(content))


def print_json_rows(rows: Iterable[Mapping[str, Any]]) -> None:
    """The same document as :func:`print_json` of a list, printed as the rows come."""
    before = "["
    for row in rows:
        sys.stdout.write(f"{before}\n{textwrap.indent(_as_json(row), ' ')}")
        before = ","
    typer.echo("[]" if before == "[" else "\n]")


def print_csv(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Rows with a heading, as they come; on standard output as bytes, since texts are UTF-8 whatever the terminal's are.

    Lists, structs, maps, intervals and bytes, which CSV has no form for, are what :func:`print_json_rows` makes of them, on one line.
    """
    import pyarrow as pa
    from pyarrow import csv

    # Known from the types alone, so that the heading is not printed above columns that then cannot be.
    as_text = [number for number, field in enumerate(schema) if not _csv_has(field.type)]
    for number in as_text:
        schema = schema.set(number, pa.field(schema.field(number).name, pa.large_string()))
    sys.stdout.flush()
    sink = sys.stdout.buffer
    with csv.CSVWriter(sink, schema) as writer:
        for rows in batches:
            writer.write_batch(_with_texts(rows, as_text, schema) if as_text else rows)
    sink.flush()


def _csv_has(kind: pa.DataType) -> bool:
    """Whether Arrow writes every value of the type as CSV. Bytes it writes as they are, and refuses those that are no UTF-8."""
    import pyarrow.types as pt

    if pt.is_dictionary(kind):
        return _csv_has(kind.value_type)
    if pt.is_string(kind) or pt.is_large_string(kind) or pt.is_decimal(kind) or pt.is_null(kind):
        return True
    return bool(pt.is_primitive(kind) and not pt.is_interval(kind))


def _with_texts(rows: pa.RecordBatch, numbers: Sequence[int], schema: pa.Schema) -> pa.RecordBatch:
    """The rows with some columns as texts; the others are not copied."""
    import pyarrow as pa

    columns = list(rows.columns)
    for number in numbers:
        columns[number] = pa.array([_cell(value) for value in columns[number].to_pylist()], pa.large_string())
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cell(value: Any) -> str | None:
    if value is None:
        return None
    text = _as_json(value, indent=None)
    return str(json.loads(text)) if text.startswith('"') else text


def _as_json(content: Any, *, indent: int | None = 1) -> str:
    return json.dumps(_finite(content), indent=indent, default=_plain, allow_nan=False)


def _finite(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _finite(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return "NaN" if math.isnan(content) else "Infinity" if content > 0 else "-Infinity"
    return content


def _plain(value: object) -> object:
    """What JSON has no type for: times as ISO 8601, exact numbers (sums of integers in DuckDB) as numbers, all else as text."""
    if isinstance(value, dt.datetime | dt.date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    return str(value)
