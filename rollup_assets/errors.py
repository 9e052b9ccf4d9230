"""The exceptions this package raises on purpose.

Every message says what is wrong, where (partition, file, series or setting) and, if a command mends it, which one.
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

    Messages quote file names, metrics and other programs' errors: they are kept to one line, and free of terminal control characters.
    """

    keeps: ClassVar[str] = ""
    """Unprintable characters that are left in the message."""

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, keep=self.keeps))


class SettingsError(RollupError):
    """A setting is malformed or contradicts another one."""


class UnknownPartitionError(RollupError):
    """A partition key is malformed, not aligned to the batch length, or outside the table's range."""


class UnknownSnapshotError(RollupError):
    """There is no such snapshot, or it has expired; the message says which ones are known."""


class LandingZoneError(RollupError):
    """Raw files cannot be told apart by batch: they lie where no batch looks, a folder cannot be listed, or there is none at all."""


class StorageError(RollupError):
    """Raw data, stage or warehouse cannot be reached, read or written; the message names the setting to change."""


class FileNameError(StorageError):
    """A file has a name that cannot safely be passed to other programs."""


class ConcurrentWriteError(RollupError):
    """Another writer wrote the same thing at the same time."""


class QuarantineError(RollupError):
    """A batch has more quarantined rows or files than the settings allow; its datapoints are not staged.

    Attributes:
        quarantined: manifest of the quarantined rows, which are staged.
    """

    def __init__(self, message: str, quarantined: Manifest) -> None:
        super().__init__(message)
        self.quarantined = quarantined


class UnknownReasonError(RollupError):
    """There is no such quarantine reason; the message names all that there are."""


class AllowanceError(RollupError):
    """A decision about quarantined rows would cover nothing, or is about a file that does not exist."""


class NotStagedError(RollupError):
    """A step needs a staged partition that does not exist."""


class StaleInputError(RollupError):
    """Something that was read is no longer current: a staged partition, a raw file replaced meanwhile, or a snapshot that was overtaken."""


class StageCorruptError(RollupError):
    """A file of the stage (data, manifest or decision) is missing, cannot be read, or is not what its manifest says."""


class RollupOverflowError(RollupError):
    """An int64 sum, step or delta does not fit; names series, resolution and window."""


class ReconciliationError(RollupError):
    """Counts or values that must agree do not; nothing was published. ``outcomes`` are the checks that did not pass."""

    def __init__(self, message: str, outcomes: Sequence[CheckOutcome] = ()) -> None:
        super().__init__(message)
        self.outcomes = tuple(outcomes)


class ShortOfMemoryError(RollupError):
    """There is too little memory to read a file, or to begin something that would otherwise fail halfway or never end."""


class EngineError(RollupError):
    """The engine cannot run tasks: Java, the master or the workers' environment is missing or of the wrong version."""


class CatalogError(RollupError):
    """The catalog cannot be used: unreachable, refusing us, or not initialized; the message names the setting and the remedy."""


class PublishError(RollupError):
    """The table could not be brought to the staged state."""


class PublishHaltError(PublishError):
    """The table, or its history, is not what commits have made it. Stop rather than guess; the message names the repair command."""


class TableMismatchError(PublishError):
    """The existing Iceberg table has another schema, partition spec or properties than the settings ask for."""


class CleaningError(RollupError):
    """It is not certain which of the table's files may be deleted, so none was; other leftovers may have been."""


class MigrationError(PublishError):
    """The table cannot be migrated to the settings: raw data is gone or not complete yet, or rows made from it were rolled back."""


class RollbackError(PublishError):
    """The table cannot be rolled back: snapshots or files are gone, or it was changed meanwhile."""


class LockTimeoutError(PublishError):
    """Another publisher held the table's lock for too long."""


class LockLostError(PublishError):
    """The table's lock was lost before a commit or a deletion, which was then not made."""


class DagsterHomeError(RollupError):
    """Dagster's records of runs cannot be opened; the message names DAGSTER_HOME."""


class GeneratorError(RollupError):
    """Raw data cannot be generated: it is there already, or an option makes no sense."""


class QueryError(RollupError):
    """A query cannot be answered. Line breaks stay in its message, since DuckDB points into the statement on lines of their own."""

    keeps = "\n"
