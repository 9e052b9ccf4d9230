"""Whether a batch has more quarantined rows or files than the settings allow, not counting those that somebody allowed.

Which rows are quarantined stays out, and so do the decisions themselves (``storage.allowances``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rollup_assets.batches import Batch
from rollup_assets.settings import Settings
from rollup_assets.storage.allowances import Allowance, read_allowances
from rollup_assets.storage.manifests import ELSEWHERE_ROWS, Manifest, Stage

if TYPE_CHECKING:
    from rollup_assets.storage.quarantine import Tally


@dataclass(frozen=True, slots=True)
class Allowed:
    """What decisions exempt from the limits."""

    rows: int = 0
    """Quarantined rows, those of whole files included."""
    files: int = 0
    """Whole files."""
    decisions: tuple[Allowance, ...] = ()


NOTHING = Allowed()


def allowed_in(stage: Stage, batch: Batch, quarantined: Manifest, settings: Settings) -> Allowed:
    """What decisions exempt from the limits in a staged quarantine. If it is below the limits anyway, nothing is read.

    Raises:
        StageCorruptError: the decisions cannot be read, or a staged file is missing.
    """
    if not is_over(quarantined.counters, settings):
        return NOTHING
    decisions = read_allowances(stage, batch)
    if not decisions:
        return NOTHING
    # It imports numpy, and this module is imported whenever the code location is loaded.
    from rollup_assets.storage.quarantine import tallies

    stage.require_complete(quarantined, batch)
    return covered(decisions, tallies(stage, batch, quarantined))


def covered(decisions: tuple[Allowance, ...], found: Iterable[Tally]) -> Allowed:
    """How much of what is quarantined the decisions cover."""
    inside = [tally for tally in found if any(one.covers(tally.reason, tally.file) for one in decisions)]
    return Allowed(sum(tally.rows for tally in inside), sum(tally.whole_file for tally in inside), decisions)


def is_over(counters: Mapping[str, Any], settings: Settings, allowed: Allowed = NOTHING) -> bool:
    """Whether there are too many rows, or too many files."""
    return too_many_files(counters, settings, allowed) or too_many_rows(counters, settings, allowed)


def too_many_files(counters: Mapping[str, Any], settings: Settings, allowed: Allowed = NOTHING) -> bool:
    """Whether more whole files are quarantined than ``ROLLUP_QUARANTINE_FILES``."""
    return int(counters["bad_files"]) - allowed.files > settings.quarantine_files


def too_many_rows(counters: Mapping[str, Any], settings: Settings, allowed: Allowed = NOTHING) -> bool:
    """Whether more of the rows read are quarantined than ``ROLLUP_QUARANTINE_LIMIT``."""
    return int(counters["rows_quarantined"]) - allowed.rows > settings.quarantine_limit * rows_compared(counters)


def rows_compared(counters: Mapping[str, Any]) -> int:
    """The rows that ``ROLLUP_QUARANTINE_LIMIT`` is a share of: all that were read, except those that belong to other batches."""
    return int(counters["rows_read"]) - int(counters.get(ELSEWHERE_ROWS, 0))
