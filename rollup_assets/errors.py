"""The exceptions this package raises on purpose.

Every message says what is wrong, where (partition, file, series or setting) and, where a command mends it, which one.
Exceptions of other libraries are wrapped only where we can say more than they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rollup_assets.escaping import printable

if TYPE_CHECKING:
    from rollup_assets.steps.checks import CheckOutcome
    from rollup_assets.storage.manifests import Manifest


class RollupError(Exception):
    """Base of every error raised on purpose by rollup_assets.

    Messages name files, metrics and what others said: they are one line, and nothing in them makes a terminal or a log do anything.
    """

    keeps: ClassVar[str] = ""
    """Characters that do not print and are left in the message."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, keep=self.keeps))


class SettingsError(RollupError):
    """A setting is malformed or contradicts another one."""


class UnknownPartitionError(RollupError):
    """A partition key is malformed, not aligned to the batch length, or outside the table's range."""


class UnknownSnapshotError(RollupError):
    """There is no such snapshot, or it has expired; says which ones are known."""


class LandingZoneError(RollupError):
    """The landing zone has files where no batch looks for them."""


class StorageError(RollupError):
    """Raw data, stage or warehouse cannot be reached, read or written; names the setting that mends it."""


class FileNameError(StorageError):
    """A file has a name that cannot be told safely to other programs."""


class ConcurrentWriteError(RollupError):
    """Somebody else wrote the same thing at the same time."""


class QuarantineError(RollupError):
    """A batch has more quarantined rows or files than the settings allow; its datapoints are not staged.

    Attributes:
        quarantined: manifest of the quarantined rows, which are staged.
    """

    def __init__(self, message: str, quarantined: Manifest) -> None:
        super().__init__(message)
        self.quarantined = quarantined


class UnknownReasonError(RollupError):
    """There is no such quarantine reason; names all that there are."""


class AllowanceError(RollupError):
    """A decision about what is quarantined would cover nothing, or is about a file that is not there."""


class NotStagedError(RollupError):
    """A step needs a staged partition that does not exist."""


class StaleInputError(RollupError):
    """A staged partition was made from inputs or parameters that are no longer current."""


class StageCorruptError(RollupError):
    """A staged file is missing or is not what its manifest says."""


class RollupOverflowError(RollupError):
    """An int64 sum, step or delta does not fit; names series, resolution and window."""


class ReconciliationError(RollupError):
    """Counts or values that must agree do not; nothing was published. ``outcomes`` are the checks that did not pass."""

    def __init__(self, message: str, outcomes: Sequence[CheckOutcome] = ()) -> None:
        super().__init__(message)
        self.outcomes = tuple(outcomes)


class ShortOfMemoryError(RollupError):
    """There is no memory to begin something with, which would otherwise fail in the middle or never end."""


class EngineError(RollupError):
    """The engine cannot run tasks: Java, the master or the workers' environment is missing or of the wrong version."""


class CatalogError(RollupError):
    """The catalog cannot be used: unreachable, refusing us, or not initialized; names the setting and the remedy."""


class PublishError(RollupError):
    """The table could not be brought to the staged state."""


class PublishHaltError(PublishError):
    """The table is not what the commit said it would be. Stop, do not guess; the message names the repair command."""


class TableMismatchError(PublishError):
    """The existing Iceberg table has another schema, partition spec or properties than the settings ask for."""


class CleaningError(RollupError):
    """It is not certain what may be deleted, so nothing of it was."""


class MigrationError(PublishError):
    """The table cannot be brought to the settings: raw data is gone or not all there yet, or what would be made from it is not wanted."""


class RollbackError(PublishError):
    """The table cannot be brought back to what it was: snapshots or files are gone, or it was changed meanwhile."""


class LockTimeoutError(PublishError):
    """Another publisher held the table's lock for too long."""


class LockLostError(PublishError):
    """The table's lock was lost before a commit, which was then not made."""


class DagsterHomeError(RollupError):
    """What Dagster keeps of its runs cannot be opened; names DAGSTER_HOME."""


class GeneratorError(RollupError):
    """Raw data cannot be generated: it is there already, or an option makes no sense."""


class QueryError(RollupError):
    """A query cannot be answered. DuckDB points into the statement, on lines of their own."""

    keeps = "\n"
