"""What we use of Dagster that it keeps private (1.13): the only module that imports it.

Each of these is noticed by a test when Dagster changes it. What is done with them stays out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dagster._core.definitions.asset_checks.asset_check_evaluation import AssetCheckEvaluationTargetMaterializationData
from dagster._core.errors import DagsterLaunchFailedError, DagsterUserCodeUnreachableError

if TYPE_CHECKING:
    from dagster._core.launcher import LaunchRunContext

__all__ = [
    "AssetCheckEvaluationTargetMaterializationData",
    "DagsterLaunchFailedError",
    "DagsterUserCodeUnreachableError",
    "LaunchRunContext",
]

SUPPRESS_OWN_EVENT = "__source_asset_observation__"
"""Metadata key of an output: with it, a run over a range of partitions records no materialization of its own at the end of the range.
With the class above, which says what materialization a check looked at, it makes one event per partition possible (``defs.report``)."""
STOPPING = "Tried to start a run on a server after telling it to shut down"
"""What a stopping code location answers, in one of the errors above (``defs.run_launcher``)."""
GRPC_INFO_TAG = ".dagster/grpc_info"
"""Tag of a run with the host and port, or Unix socket, of the code location that started its process (``defs.lost_runs``)."""
KEEP_TERMINAL = {"compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}}
"""Part of dagster.yaml: otherwise Dagster would capture the process's output, and a progress bar would have no terminal
(``defs.dagster_home``)."""
