"""``rollups doctor``: whether everything that a run needs is there, before there is a run.

The checks ask the modules that do the work, and repeat their sentences; nothing is written but probes, which are deleted again.
"""

from rollup_assets.doctor.examination import Examination, examine
from rollup_assets.doctor.findings import Finding, State

__all__ = ["Examination", "Finding", "State", "examine"]
