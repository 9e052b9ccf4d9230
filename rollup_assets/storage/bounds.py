"""Which batch a row belongs to by its timestamp: the batch that reads the folder, another one, or none, and in that case why.

Times alone. Where folders lie (``storage.landing_zone``), and what else may be wrong with a row (``storage.raw_files``), stay out.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Bounds:
    """What becomes of the rows of one folder in one of the batches that read it; all times are UTC epoch milliseconds."""

    start: int
    end: int
    """Good rows in ``[start, end)`` are the batch's."""
    is_own: bool = True
    """Whether the folder is the batch's own. Rows that can belong to no batch are quarantined only by the batch whose folder it is."""
    by_arrival: bool = False
    """Whether a row outside may be another batch's (``elsewhere``); if not, it is in the wrong folder (``outside_batch``)."""
    before_start: int | None = None
    """A row before this is before the first batch; None: this reason is not used."""
    too_late: int | None = None
    """A row before this belongs to a batch that does not read this folder."""
    in_future: int | None = None
    """A row at or after this is further ahead of its folder than the settings allow."""

    def rule_out(self, first: int, last: int) -> bool:
        """Whether rows with times from ``first`` to ``last`` need not be read: none is the batch's, nor is one quarantined by it."""
        return not self.is_own and (last < self.start or first >= self.end)
