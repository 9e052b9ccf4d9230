"""The run launcher of a deployment (``deploy/dagster.yaml``).

``DefaultRunLauncher``, except that a code location which is shutting down does not fail the run.

A code location that was told to stop serves on until its runs have ended, and starts no others. Dagster's queue takes back the runs of a
code location that it cannot reach, but not those that one refuses so: it would fail them, and their retries within seconds. How often
it tries again, and how long it waits in between, stay out (``run_coordinator`` in the same file).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import dagster as dg

from rollup_assets.defs.dagster_private import STOPPING, DagsterLaunchFailedError, DagsterUserCodeUnreachableError

if TYPE_CHECKING:
    from rollup_assets.defs.dagster_private import LaunchRunContext


class RequeuingRunLauncher(dg.DefaultRunLauncher):
    """Reports a code location that is stopping as unreachable, so that the run stays in the queue."""

    def launch_run(self, context: LaunchRunContext) -> None:
        """Start a run as a process of its code location.

        Raises:
            DagsterUserCodeUnreachableError: the code location is stopping, or not there.
            DagsterLaunchFailedError: it cannot start this run.
        """
        try:
            super().launch_run(context)
        except DagsterLaunchFailedError as error:
            if STOPPING not in str(error):
                raise
            raise DagsterUserCodeUnreachableError("the code location is stopping, and starts no more runs") from error
