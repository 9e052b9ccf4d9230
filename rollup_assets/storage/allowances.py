"""Decisions about what is quarantined: rows and files that somebody allows to stay quarantined, kept beside their partition.

A decision accepts nothing: what it covers stays quarantined, and no longer counts against the limits of its partition. What follows for a
batch stays out (``steps.quarantine_limits``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rollup_assets.batches import Batch
from rollup_assets.errors import StageCorruptError
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import QUARANTINED, Stage, read_record

FILE_NAME: Final = "allowed.json"
_FORMAT_VERSION: Final = 1


class Allowance(BaseModel):
    """One decision: it covers every quarantined row with a reason, of a file, or with a reason in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reason: str | None = Field(default=None, description="quarantine reason; None: any")
    file: str | None = Field(default=None, description="raw file, relative to the landing zone; None: any")
    because: str = Field(description="why, in the words of whoever decided")
    by: str = Field(description="user and machine")
    at: str = Field(description="when, ISO 8601 in UTC")
    rows: int = Field(description="rows that it covered when it was made")
    files: int = Field(description="whole files that it covered when it was made")

    def covers(self, reason: str, file: str) -> bool:
        """Whether this decision allows what is quarantined for this reason in this file."""
        return self.reason in (None, reason) and self.file in (None, file)

    @property
    def scope(self) -> str:
        """What it covers, in words."""
        if self.file is None:
            return str(self.reason)
        return self.file if self.reason is None else f"{self.reason} in {self.file}"

    def __str__(self) -> str:
        return f"{self.scope}: {self.because} ({self.by}, {self.at})"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    decisions: tuple[Allowance, ...]
    format_version: Literal[1] = _FORMAT_VERSION


def read_allowances(stage: Stage, batch: Batch) -> tuple[Allowance, ...]:
    """The decisions about a partition, oldest first.

    Raises:
        StageCorruptError: they cannot be read; the message names the file.
    """
    return _read_versioned(stage, batch)[0]


def write_allowances(stage: Stage, batch: Batch, added: Iterable[Allowance], *, revoke: bool = False) -> tuple[Allowance, ...]:
    """Add decisions; each replaces an earlier one with its scope or, with ``revoke``, they replace all. Returns those now in force.

    Raises:
        ConcurrentWriteError: somebody else wrote decisions at the same time.
        StageCorruptError: the decisions that are there cannot be read.
    """
    current, version = _read_versioned(stage, batch)
    new = tuple(added)
    scopes = {(one.reason, one.file) for one in new}
    standing = (*(() if revoke else (one for one in current if (one.reason, one.file) not in scopes)), *new)
    place = _place(stage, batch)
    if standing:
        place.replace_bytes(_Record(decisions=standing).model_dump_json(indent=1).encode(), version)
    elif current:
        place.delete_file()
    return standing


def _read_versioned(stage: Stage, batch: Batch) -> tuple[tuple[Allowance, ...], str | None]:
    place = _place(stage, batch)
    content, version = read_record(place)
    if content is None:
        return (), None
    try:
        return _Record.model_validate_json(content).decisions, version
    except ValidationError as error:
        raise StageCorruptError(
            f"{place.uri} does not hold decisions that this version can read ({error.errors()[0]['msg']}); delete it, and decide again "
            f"with `rollups quarantine replay {batch} --allow REASON --because TEXT`"
        ) from error


def _place(stage: Stage, batch: Batch) -> Place:
    return stage.folder(QUARANTINED, batch) / FILE_NAME
