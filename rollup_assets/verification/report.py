"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass, field

RELATIVE_TOLERANCE = 1e-9
"""By which share of their size doubles may differ that come from sums. Integers, extremes and latest values must be equal."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One value that differs from what raw data gives."""

    partition: str
    id: int
    metric: str
    resolution: str
    label: str
    """ISO time, UTC."""
    column: str
    """``*`` stands for the whole row."""
    expected: str
    found: str


@dataclass(slots=True)
class VerifiedPartition:
    """The result for the labels of one partition."""

    partition: str
    points: int = 0
    """Accepted points of the partition's own raw files."""
    rows: dict[str, int] = field(default_factory=dict)
    """Rows that raw data gives, by resolution."""
    missing: int = 0
    """Rows that are not in the table."""
    extra: int = 0
    """Rows that should not be in the table."""
    different: int = 0
    """Rows with at least one value that differs."""
    problems: list[str] = field(default_factory=list)
    """Statements about raw rows and files in the manifests that are wrong."""
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
    compared: bool = True
    """False if it was left out, for the reason in its notes."""

    @property
    def agrees(self) -> bool:
        """Whether table and manifests agree with raw data, as far as they were compared."""
        return not (self.missing or self.extra or self.different or self.problems)


@dataclass(slots=True)
class Verification:
    """The outcome for a range of partitions."""

    partitions: list[VerifiedPartition] = field(default_factory=list)
    """The partitions that were compared, and those with only a note why they were not; in order."""
    differences: list[Difference] = field(default_factory=list)
    """The first differences; the partitions have the counts."""
    waiting: list[str] = field(default_factory=list)
    """Partitions that were not compared, since they wait for raw data to be staged."""
    not_staged: list[str] = field(default_factory=list)
    """Partitions of the given range that were not compared, since their raw files were never staged."""
    not_published: list[str] = field(default_factory=list)
    """Partitions of the given range that were not compared, since they were staged but never published."""

    @property
    def agrees(self) -> bool:
        """Whether nothing differs and nothing is missing."""
        return all(partition.agrees for partition in self.partitions) and not self.not_staged and not self.not_published

    @property
    def rows(self) -> int:
        """Rows that raw data gives."""
        return sum(sum(partition.rows.values()) for partition in self.partitions)
