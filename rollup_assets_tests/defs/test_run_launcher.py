"""A code location that is stopping fails no run: the queue takes it back."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock, create_autospec

import dagster as dg
import pytest
from dagster._core.errors import DagsterLaunchFailedError, DagsterUserCodeUnreachableError
from dagster._core.launcher import LaunchRunContext
from dagster._core.remote_origin import GrpcServerCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.remote_representation.code_location import GrpcServerCodeLocation
from dagster._grpc.server import DagsterApiServer
from dagster._grpc.types import StartRunResult
from dagster._serdes import serialize_value

from rollup_assets.defs.run_launcher import RequeuingRunLauncher


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
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(GrpcServerCodeLocationOrigin("code", 4000), "__repository__"), "batches")
    run = dg.DagsterRun("batches", remote_job_origin=origin)
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
