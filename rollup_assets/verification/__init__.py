"""Verification: rollups recomputed from raw files with DuckDB and compared, value by value, with the table.

An independent witness. What the numbers mean is written here once more, in SQL over the points themselves; no kernel, no staged
datapoint and no partial point is read. ``raw`` reads the points, ``windows`` says what rows they make, ``run`` compares, ``report``
is the outcome. Mending what differs stays out.
"""

from rollup_assets.verification.report import Difference, Verification, VerifiedPartition
from rollup_assets.verification.run import verify

__all__ = ["Difference", "Verification", "VerifiedPartition", "verify"]
