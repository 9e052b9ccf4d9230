"""Runs of a code location that is gone are closed, and nobody else's."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.storage.tags import GRPC_INFO_TAG as DAGSTERS

from rollup_assets.defs import lost_runs, run_processes
from rollup_assets.defs.dagster_home import may_be_shared
from rollup_assets.settings import load_settings

RETRIES = "run_retries: {enabled: true, max_retries: 2, retry_on_asset_or_op_failure: false}\ntelemetry: {enabled: false}\n"


def test_the_tag_is_dagsters() -> None:
    assert lost_runs.GRPC_INFO_TAG == DAGSTERS


@pytest.mark.scenario("K5")
def test_only_unfinished_runs_of_this_address_are_closed_and_they_will_be_retried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dagster.yaml").write_text(RETRIES)
    ours, others = ({lost_runs.GRPC_INFO_TAG: json.dumps({"host": host, "port": 4000})} for host in ("code", "elsewhere"))
    started, success, asked_again = dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.NOT_STARTED
    lost, *kept = (
        dg.DagsterRun("batches", tags=tags, status=status)
        for tags, status in ((ours, started), (others, started), (ours, success), (ours, asked_again), ({}, started))
    )
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        for run in (lost, *kept):
            instance.add_run(run)
    for name, value in (("DAGSTER_HOME", str(tmp_path)), ("DAGSTER_CODE_HOST", "code"), ("DAGSTER_CODE_PORT", "4000")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(lost_runs, "is_listening", lambda *_: False)  # asks no name server for "code"
    lost_runs.main()
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        closed = instance.get_run_by_id(lost.run_id)
        assert closed is not None
        assert closed.status == dg.DagsterRunStatus.FAILURE
        assert closed.tags["dagster/will_retry"] == "true"
        assert [instance.get_run_by_id(run.run_id).status for run in kept] == [run.status for run in kept]  # type: ignore[union-attr]


def test_runs_of_a_code_location_that_still_serves_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As when a second one is started by mistake (`docker compose run code-location`), or before the first is stopped."""
    (tmp_path / "dagster.yaml").write_text(RETRIES)
    with socket.create_server(("127.0.0.1", 0)) as serving:
        port = serving.getsockname()[1]
        tags = {lost_runs.GRPC_INFO_TAG: json.dumps({"host": "127.0.0.1", "port": port})}
        run = dg.DagsterRun("batches", tags=tags, status=dg.DagsterRunStatus.STARTED)
        with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
            instance.add_run(run)
        for name, value in (("DAGSTER_HOME", str(tmp_path)), ("DAGSTER_CODE_HOST", "127.0.0.1"), ("DAGSTER_CODE_PORT", str(port))):
            monkeypatch.setenv(name, value)
        lost_runs.main()
    assert "were left alone" in capsys.readouterr().out
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        assert [found.status for found in instance.get_runs()] == [dg.DagsterRunStatus.STARTED]


def test_a_run_that_somebody_terminated_is_not_launched_again(tmp_path: Path) -> None:
    (tmp_path / "dagster.yaml").write_text(RETRIES)
    tags = {lost_runs.GRPC_INFO_TAG: json.dumps({"host": "code", "port": 4000})}
    run = dg.DagsterRun("batches", tags=tags, status=dg.DagsterRunStatus.STARTED)
    with dg.DagsterInstance.from_config(str(tmp_path)) as instance:
        instance.add_run(run)
        instance.report_run_canceling(run)
        assert lost_runs.close_lost_runs(instance, "code", 4000) == (run.run_id,)
        closed = instance.get_run_by_id(run.run_id)
    assert closed is not None
    assert closed.status == dg.DagsterRunStatus.CANCELED
    assert "dagster/will_retry" not in closed.tags


@pytest.mark.parametrize(
    ("changed", "closes"),
    [
        ({}, True),
        ({run_processes.HOST_TAG: socket.gethostname()}, True),
        ({run_processes.HOST_TAG: socket.gethostname(), run_processes.PROCESS_TAG: "alive"}, False),
        ({run_processes.LOCATION_TAG: "elsewhere:4000"}, False),
        ({run_processes.LOCATION_TAG: ""}, False),
        ({"dagster/parent_run_id": "4711"}, False),
    ],
    ids=["new container", "same container", "alive", "other code location", "beside none", "re-executed"],
)
def test_a_backfill_that_was_killed_with_the_container_of_the_code_location_is_closed(changed: dict[str, str], *, closes: bool) -> None:
    tags = {
        run_processes.HOST_TAG: "replaced",
        run_processes.PROCESS_TAG: f"{os.getpid()}@1",
        run_processes.LOCATION_TAG: "code:4000",
        **changed,
    }
    if tags[run_processes.PROCESS_TAG] == "alive":
        tags[run_processes.PROCESS_TAG] = f"{os.getpid()}@{run_processes.began(os.getpid())}"
    run = dg.DagsterRun("batches", tags=tags, status=dg.DagsterRunStatus.STARTED)
    with dg.DagsterInstance.ephemeral() as instance:
        instance.add_run(run)
        assert lost_runs.close_lost_runs(instance, "code", 4000) == ((run.run_id,) if closes else ())


@pytest.mark.parametrize(
    ("address", "closes"),
    [
        ({"host": "localhost", "port": "closed"}, True),
        ({"host": "127.0.0.1", "port": "closed", "use_ssl": True}, True),
        ({"host": "localhost", "port": "open"}, False),
        ({"host": "elsewhere", "port": "closed"}, False),
        ({}, False),
    ],
    ids=["nobody listens", "by number", "somebody listens", "on another machine", "not launched"],
)
@pytest.mark.parametrize("shared", [False, True], ids=["", "shared"])
def test_runs_of_code_locations_that_are_gone_from_this_machine_are_closed(
    address: dict[str, object], *, closes: bool, shared: bool
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as serving, socket.socket() as taken, dg.DagsterInstance.ephemeral() as instance:
        taken.bind(("127.0.0.1", 0))  # without listening, so that nobody else can either
        ports = {"open": serving.getsockname()[1], "closed": taken.getsockname()[1]}
        tags = {lost_runs.GRPC_INFO_TAG: json.dumps(address | {"port": ports[str(address["port"])]})} if address else {}
        run = dg.DagsterRun("batches", tags=tags, status=dg.DagsterRunStatus.STARTED)
        instance.add_run(run)
        closed = lost_runs.close_runs_gone_from_this_machine(instance, shared=shared)
    assert closed == ((run.run_id,) if closes and not shared else ())


def test_whoever_is_too_busy_to_answer_is_there(tmp_path: Path) -> None:
    """A Unix socket whose backlog is full, as that of a code location that is starting runs."""
    path = str(tmp_path / "busy")
    with socket.socket(socket.AF_UNIX) as serving, contextlib.ExitStack() as stack:
        serving.bind(path)
        serving.listen(0)
        for _ in range(3):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect_ex(path)
        assert not run_processes.is_deserted(path)
    assert run_processes.is_deserted(path)


@pytest.mark.parametrize(
    ("configured", "shared"),
    [
        (None, False),
        ("telemetry: {enabled: false}", False),
        ("storage: {postgres: {}}", True),
        ("run_storage: {module: dagster_postgres.run_storage}", True),
    ],
)
def test_records_in_the_folder_are_this_machines(tmp_path: Path, configured: str | None, *, shared: bool) -> None:
    settings = load_settings(home=str(tmp_path))
    if configured is not None:
        (tmp_path / "dagster").mkdir()
        (tmp_path / "dagster" / "dagster.yaml").write_text(configured)
    assert may_be_shared(settings) == shared
