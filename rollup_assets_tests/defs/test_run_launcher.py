"""A code location that is stopping fails no run: the queue takes it back."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, create_autospec

import dagster as dg
import pytest
import yaml
from dagster._core.errors import DagsterLaunchFailedError, DagsterUserCodeUnreachableError
from dagster._core.events import DagsterEvent
from dagster._core.launcher import LaunchRunContext
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.remote_representation.code_location import GrpcServerCodeLocation
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import QueuedRunCoordinatorDaemon
from dagster._grpc.server import DagsterApiServer
from dagster._grpc.types import StartRunResult
from dagster._serdes import serialize_value

from rollup_assets.defs.run_launcher import RequeuingRunLauncher

DEPLOYED = Path(__file__).resolve().parents[2] / "deploy/dagster.yaml"
ORIGIN = RemoteJobOrigin(RemoteRepositoryOrigin(GrpcServerCodeLocationOrigin("code", 4000), "__repository__"), "batches")


def answer_of_a_stopping_server() -> str:
    """From Dagster's own server: after a signal it serves on until its runs have ended."""
    told = threading.Event()
    told.set()
    server = SimpleNamespace(_shutdown_once_executions_finish_event=told)
    return DagsterApiServer.StartRun(server, MagicMock(), MagicMock()).serialized_start_run_result  # type: ignore[arg-type]


def launch(folder: Path, answer: str) -> None:
    """A run, as the queue launches it, at a code location that gives this answer."""
    location = create_autospec(GrpcServerCodeLocation, instance=True)
    location.client = MagicMock(host="code", port=4000, use_ssl=False)
    location.client.start_run.return_value = answer
    workspace = MagicMock()
    workspace.get_code_location.return_value = location
    run = dg.DagsterRun("batches", remote_job_origin=ORIGIN)
    launcher = RequeuingRunLauncher()
    with dg.DagsterInstance.local_temp(str(folder)) as instance:
        instance.add_run(run)
        launcher.register_instance(instance)
        launcher.launch_run(LaunchRunContext(dagster_run=run, workspace=workspace))


def test_a_code_location_that_is_stopping_counts_as_one_that_cannot_be_reached(tmp_path: Path) -> None:
    with pytest.raises(DagsterUserCodeUnreachableError, match="is stopping"):
        launch(tmp_path, answer_of_a_stopping_server())


def test_any_other_refusal_fails_the_run(tmp_path: Path) -> None:
    with pytest.raises(DagsterLaunchFailedError, match="no such job"):
        launch(tmp_path, serialize_value(StartRunResult(success=False, message="no such job", serializable_error_info=None)))


def test_a_run_is_launched(tmp_path: Path) -> None:
    launch(tmp_path, serialize_value(StartRunResult(success=True, message=None, serializable_error_info=None)))


def test_while_no_code_location_is_there_the_first_run_of_the_queue_fails_after_5_minutes_and_the_others_wait(tmp_path: Path) -> None:
    """As docs/production.md says of what is deployed."""
    deployed = yaml.safe_load(DEPLOYED.read_text())
    kept = {name: deployed[name] for name in ("run_launcher", "run_coordinator", "concurrency", "telemetry")}
    (tmp_path / "dagster.yaml").write_text(yaml.safe_dump(kept))
    runs = [dg.DagsterRun("batches", remote_job_origin=ORIGIN) for _ in range(3)]
    failed: list[tuple[int, int]] = []
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        for run in runs:
            instance.add_run(run)
            instance.report_dagster_event(DagsterEvent.job_enqueue(run), run_id=run.run_id)
        context = MagicMock(instance=instance)
        context.create_request_context().get_code_location.side_effect = DagsterUserCodeUnreachableError("nobody listens")
        with QueuedRunCoordinatorDaemon(interval_seconds=5) as daemon:
            for second in range(0, 660, 10):
                list(daemon.run_iteration(context, fixed_iteration_time=1_000 + second))
                statuses = [instance.get_run_by_id(run.run_id).status for run in runs]  # type: ignore[union-attr]
                if (count := statuses.count(dg.DagsterRunStatus.FAILURE)) > len(failed):
                    failed.append((second, count))
                    assert statuses == [dg.DagsterRunStatus.FAILURE] * count + [dg.DagsterRunStatus.QUEUED] * (3 - count)
    assert failed == [(300, 1), (630, 2)]
