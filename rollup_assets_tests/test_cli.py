"""The command ``rollups``: what it prints and its exit status, from raw data to a verified table."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from dagster._core.remote_origin import ManagedGrpcPythonEnvCodeLocationOrigin, RemoteJobOrigin, RemoteRepositoryOrigin
from dagster._core.types.loadable_target_origin import LoadableTargetOrigin
from typer.testing import CliRunner

from rollup_assets.cli import app
from rollup_assets.cli.application import print_csv
from rollup_assets.defs import lost_runs
from rollup_assets.defs.run_processes import HOST_TAG, PROCESS_TAG
from rollup_assets.machine import machine_memory
from rollup_assets.units import parse_size
from rollup_assets_tests.conftest import WithDagsterHome
from rollup_assets_tests.verification.naive_table import content_of, replace

Run = Callable[..., Any]
FIRST, LAST = "2026-01-01-00:00", "2026-01-01-02:00"


def no_json(constant: str) -> None:
    """What Python's JSON has and nobody else's: NaN and infinities."""
    raise AssertionError(f"{constant} is no JSON")


def runner(home: Path, patch: pytest.MonkeyPatch) -> Run:
    for name, value in {"HOME": home, "SHARDS": 4, "THREADS": 2, "MEMORY": "256MiB"}.items():
        patch.setenv(f"ROLLUP_{name}", str(value))

    def run(*arguments: object, status: int = 0) -> Any:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == status, f"{result.output}\n{result.exception!r}"
        assert status == 0 or isinstance(result.exception, SystemExit), "an error of ours, not a traceback"
        return json.loads(result.stdout, parse_constant=no_json) if "--json" in arguments else result

    return run


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, with_dagster_home: WithDagsterHome) -> Path:
    """Three generated hours, published; tests must leave them so."""
    made = with_dagster_home(tmp_path_factory.mktemp("published"))
    with pytest.MonkeyPatch.context() as patch:
        go = runner(made, patch)
        go("generate", "--hours", 3, "--series", 400, "--files", 3, "--interval", "20s")
        result = go("backfill", FIRST, LAST, "--json")
    assert (result["success"], result["failed"], result["waiting"]) == (True, {}, {})
    assert result["published"] == [f"2026-01-01-0{hour}:00" for hour in range(5)]
    return made


@pytest.fixture
def ready(home: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    return runner(home, monkeypatch)


def plain(text: str) -> str:
    """Without colours, and with lines that the console wrapped joined."""
    return re.sub(r"\s+", " ", re.sub(r"\x1b\[[0-9;]*m", "", text))


# ------------------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize(
    "command",
    [
        "generate",
        "backfill",
        "verify",
        "sql",
        "status",
        "plan",
        "diff",
        "rollback",
        "migrate",
        "doctor",
        "demo",
        "dev",
        "quarantine list",
        "quarantine show",
        "quarantine replay",
        "clean",
    ],
)
def test_every_command_has_help_with_examples(run: Run, command: str) -> None:
    text = plain(run(*command.split(), "--help").output)
    assert "For example" in text
    assert f"rollups {command}" in text


def test_help_imports_nothing_heavy() -> None:
    """Half a second instead of five."""
    code = "import sys, rollup_assets.cli; print(*sys.modules)"
    modules = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    assert not modules & {"dagster", "pyarrow", "duckdb", "pyiceberg", "numba", "numpy", "pydantic"}


# -------------------------------------------------------------------------------------------------------------------- dev


@pytest.fixture
def environment_of_dev(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, str]]:
    """``environment_of_dev()``: what ``rollups dev`` starts Dagster with."""
    passed: list[dict[str, str]] = []
    monkeypatch.setattr("os.execve", lambda *arguments: passed.append(arguments[2]))
    monkeypatch.delenv("ROLLUP_MEMORY")

    def started() -> dict[str, str]:
        run("dev")
        return passed.pop()

    return started


def test_dev_shares_memory_among_the_runs_that_go_at_once(environment_of_dev: Callable[[], dict[str, str]]) -> None:
    """Web server, daemon and code server need some, too; the doctor calls more than this too much."""
    environment = environment_of_dev()
    with dg.DagsterInstance.from_config(environment["DAGSTER_HOME"]) as instance:
        queue = instance.get_concurrency_config().run_queue_config
    assert queue is not None
    assert queue.max_concurrent_runs * parse_size(environment["ROLLUP_MEMORY"]) <= 0.8 * machine_memory()


@pytest.mark.parametrize("where", ["environment", "file"])
def test_dev_leaves_memory_that_was_chosen_as_it_is(
    environment_of_dev: Callable[[], dict[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: str
) -> None:
    if where == "environment":
        monkeypatch.setenv("ROLLUP_MEMORY", "3GiB")
    else:
        monkeypatch.setattr("rollup_assets.settings.project_root", lambda: tmp_path)
        (tmp_path / ".env").write_text("ROLLUP_MEMORY=3GiB\n")
    assert environment_of_dev().get("ROLLUP_MEMORY") == ("3GiB" if where == "environment" else None)


def test_dev_closes_the_runs_whose_processes_are_gone_and_no_others(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """They died with the machine or the terminal, and would keep their places in the queue for ever."""
    monkeypatch.setattr("os.execve", lambda *_: None)
    run("dev")
    gone, served = tmp_path / "gone", tmp_path / "served"
    status = dg.DagsterRunStatus
    # What a queued run has to have.
    location = ManagedGrpcPythonEnvCodeLocationOrigin(LoadableTargetOrigin(module_name="rollup_assets.definitions"))
    origin = RemoteJobOrigin(RemoteRepositoryOrigin(location, "__repository__"), "batches")
    with (
        socket.socket(socket.AF_UNIX) as ended,
        socket.socket(socket.AF_UNIX) as serving,
        dg.DagsterInstance.local_temp(str(tmp_path / "dagster")) as instance,
    ):
        for server, path in ((ended, gone), (serving, served)):
            server.bind(str(path))
        serving.listen()

        def record(at: dg.DagsterRunStatus, address: Path | None = None, **tags: str) -> str:
            launched = {lost_runs.GRPC_INFO_TAG: json.dumps({"host": "localhost", "socket": str(address)})} if address else {}
            made = dg.DagsterRun("batches", tags=launched | tags, status=at, remote_job_origin=origin)
            instance.add_run(made)
            return made.run_id

        of_a_backfill = record(status.STARTED, **{HOST_TAG: socket.gethostname(), PROCESS_TAG: f"{os.getpid()}@1"})
        lost = [record(status.STARTED, gone), record(status.STARTING, tmp_path / "none"), record(status.CANCELING, gone)]
        kept = [record(status.STARTED, served), record(status.QUEUED, gone), record(status.NOT_STARTED, gone), record(status.SUCCESS, gone)]
        said = plain(run("dev").output)
        assert "closed 4 runs whose process was gone" in said
        found = {each.run_id: each.status for each in instance.get_runs()}
        assert [found[each] for each in (of_a_backfill, *lost)] == [status.FAILURE, status.FAILURE, status.FAILURE, status.CANCELED]
        assert [found[each] for each in kept] == [status.STARTED, status.QUEUED, status.NOT_STARTED, status.SUCCESS]
        for each, process in (
            (of_a_backfill, "The process of this `rollups backfill`"),
            *((run_id, "The code location") for run_id in lost),
        ):
            assert each in said
            assert any(f"{process} ended before this run did." in entry.message for entry in instance.all_logs(each))
        assert "closed" not in run("dev").output


# --------------------------------------------------------------------------------------------------------------- generate


def test_generate_tells_what_it_wrote_and_what_to_do_next(run: Run, tmp_path: Path) -> None:
    text = plain(run("generate", "--from", "2026-01-02-07:00", "--hours", 2, "--series", 20, "--files", 1, "--bad-files", 1).output)
    assert "rows of 20 series in" in text
    assert "1 bad files" in text
    assert "next: rollups backfill 2026-01-02-07:00 2026-01-02-08:00" in text
    assert len(list((tmp_path / "raw_datapoints").rglob("hour=07/*.parquet"))) == 3


def test_generate_follows_settings_and_its_value_type(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLUP_RAW", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("ROLLUP_RAW_LAYOUT", "%Y%m%d-%H")
    made = run(
        "generate", "--hours", 1, "--series", 20, "--files", 1, "--late", 0, "--value-type", "double", "--no-receive-timestamps", "--json"
    )
    (file,) = (tmp_path / "elsewhere" / "20260101-00").iterdir()
    assert pq.read_schema(file).field("double_value").type == pa.float64()
    assert made["raw"] == str(tmp_path / "elsewhere")
    assert made["rows"] == pq.read_metadata(file).num_rows


def test_generate_leaves_out_what_is_there_if_told_so(run: Run) -> None:
    run("generate", "--hours", 1, "--series", 20)
    made = run("generate", "--hours", 2, "--series", 20, "--keep-existing", "--json")
    assert (made["batches"], made["skipped"]) == (["2026-01-01-01:00"], ["2026-01-01-00:00"])
    assert "1 partition with raw files left as they are" in plain(run("generate", "--hours", 1, "--series", 20, "--keep-existing").output)


def test_generate_refuses_to_overwrite(run: Run) -> None:
    run("generate", "--hours", 1, "--series", 20)
    refused = run("generate", "--hours", 1, "--series", 20, status=1)
    assert "existing raw data is never overwritten" in plain(refused.stderr)


@pytest.mark.parametrize(
    "arguments",
    [("--from", "yesterday"), ("--from", "2025-01-01-00:00"), ("--interval", "ten"), ("--hours", 0), ("--nonsense",)],
)
def test_generate_with_bad_arguments_ends_with_2(run: Run, arguments: tuple[object, ...]) -> None:
    run("generate", *arguments, status=2)


# ---------------------------------------------------------------------------------------------- backfill, verify, sql, status


def test_the_table_has_all_accepted_points_at_every_resolution(ready: Run) -> None:
    answer = ready("sql", "select resolution, sum(count_rollup) as points from rollups group by 1", "--json")
    points = sum(partition["points"] or 0 for partition in ready("status", "--json"))
    assert [row["points"] for row in answer] == [points] * 3
    assert points > 100_000


def test_verify_agrees_with_what_the_product_published(ready: Run) -> None:
    found = ready("verify", "--json")
    assert found["agrees"] is True
    assert found["differences"] == []
    assert [partition["problems"] for partition in found["partitions"]] == [[]] * 5
    assert "agree with raw data" in plain(ready("verify", "2026-01-01-01:00", LAST).output)


def test_verify_ends_with_1_and_names_what_differs(ready: Run, home: Path, make_pipeline: Callable[..., Any]) -> None:
    pipeline = make_pipeline(home)
    table = content_of(pipeline)
    latest = table.schema.get_field_index("latest_rollup")
    values = table["latest_rollup"].to_pylist()
    try:
        replace(pipeline, table.set_column(latest, table.schema.field(latest), pa.array([values[0] + 1, *values[1:]])))
        text = plain(ready("verify", status=1).output)
    finally:
        replace(pipeline, table)
    assert f"latest_rollup: expected {values[0]}, found {values[0] + 1}" in text
    assert f"series {table['id'][0]}" in text


def test_verify_of_a_partition_that_is_not_staged_ends_with_1(run: Run) -> None:
    run("generate", "--hours", 1, "--series", 20)
    assert "not staged 2026-01-01-00:00: has raw files; run rollups backfill" in plain(run("verify", FIRST, status=1).output)
    assert run("verify", "--json")["agrees"] is True


@pytest.mark.parametrize("command", ["backfill", "plan", "verify", "status"])
def test_partitions_that_do_not_exist_end_with_2(run: Run, command: str) -> None:
    malformed = [("2026-01-01", "2026-01-01"), ("2026-01-01-00:30", LAST), ("2025-12-31-23:00", LAST), (LAST, FIRST)]
    for first, last in (*malformed, (FIRST, "9999-12-31-23:00"), ("9999-12-31-23:00", "9999-12-31-23:00")):
        assert run(command, first, last, status=2).stderr.startswith("error: ")


def test_partitions_of_the_future_cannot_be_backfilled(run: Run) -> None:
    for command in ("backfill", "plan"):
        assert "does not exist yet" in plain(run(command, "2199-01-01-00:00", "2199-01-01-00:00", status=2).stderr)


def test_nothing_is_generated_so_far_ahead_that_it_has_no_partition(run: Run, tmp_path: Path) -> None:
    assert "after the last one that there can be" in plain(run("generate", "--from", "9999-12-31-22:00", status=2).stderr)
    too_many = run("generate", "--from", "2199-12-31-22:00", "--hours", 3, status=2)
    assert "there are not 3 batches from 2199-12-31-22:00 on, since none begins after 2199-12-31-23:00" in plain(too_many.stderr)
    assert not (tmp_path / "raw_datapoints").exists()
    made = run("generate", "--from", "2199-12-31-22:00", "--hours", 2, "--series", 20, "--files", 1, "--json")
    assert made["batches"] == ["2199-12-31-22:00", "2199-12-31-23:00"]


@pytest.mark.parametrize("lateness", [0, 2])
def test_raw_files_of_the_end_of_all_dates_are_shown_as_not_ended(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lateness: int
) -> None:
    monkeypatch.setenv("ROLLUP_RAW_LATENESS", str(lateness))
    folder = tmp_path / "raw_datapoints/year=9999/month=12/day=31/hour=23"
    folder.mkdir(parents=True)
    (folder / "a.parquet").write_bytes(b"PAR1")
    assert "9999-12-31-23:00" in plain(run("status").stdout)


def test_a_setting_that_contradicts_another_is_told_in_one_sentence(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLUP_LOOKBACK", "2h")
    assert "shorten the lookback" in plain(run("status", status=2).stderr)


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("select count(*) from range(2000000000000) where range < 0", id="before the first row"),
        pytest.param("select * from range(2000000000000) where range < 300000", id="after some rows"),
    ],
)
def test_a_statement_that_would_take_hours_is_interrupted(ready: Run, statement: str) -> None:
    began = time.monotonic()
    timer = threading.Timer(2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    told = ready("sql", statement, "--csv", status=130)
    assert plain(told.stderr).strip() == "interrupted"
    assert time.monotonic() - began < 60


def test_what_duckdb_makes_of_an_interrupt_is_told_as_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `rollups verify` and `diff`, whose statements run in the main thread."""

    def interrupted(*_: object, **__: object) -> None:
        raise RuntimeError("Query interrupted")

    monkeypatch.setattr("rollup_assets.verification.verify", interrupted)
    assert plain(run("verify", status=130).stderr).strip() == "interrupted"


@pytest.mark.parametrize("says", ["run [4711] was interrupted; finished partitions are kept", ""])
def test_an_interrupt_is_told_and_has_an_exit_status_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch, says: str) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt(says)

    monkeypatch.setattr("rollup_assets.defs.backfill.run_backfill", interrupted)
    told = run("backfill", FIRST, LAST, status=130)
    assert plain(told.stderr).strip() == (f"interrupted: {says}" if says else "interrupted")
    assert "interrupted" not in told.stdout


def test_a_failing_partition_ends_with_1_and_is_named_and_the_others_are_published(
    run: Run, tmp_path: Path, with_dagster_home: WithDagsterHome
) -> None:
    with_dagster_home(tmp_path)
    run("generate", "--hours", 2, "--series", 40, "--files", 1)
    folder = tmp_path / "raw_datapoints/year=2026/month=01/day=01/hour=05"
    folder.mkdir(parents=True)
    (folder / "torn.parquet").write_bytes(b"PAR1")
    result = run("backfill", FIRST, "2026-01-01-05:00", "--json", status=1)
    assert "hour=05/torn.parquet" in result["failed"]["2026-01-01-05:00"]
    assert result["published"] == [f"2026-01-01-0{hour}:00" for hour in range(5)]
    found = {partition["partition"]: partition["state"] for partition in run("status", "--json")}
    assert (found[FIRST], found["2026-01-01-05:00"]) == ("published", "quarantined")
    assert run("verify", FIRST, "2026-01-01-04:00", "--json")["agrees"] is True
    assert run("verify", FIRST, "2026-01-01-05:00", "--json", status=1)["not_staged"] == ["2026-01-01-05:00"]


def test_a_second_backfill_changes_nothing(ready: Run) -> None:
    before = ready("status", "--json")
    ready("backfill", FIRST, LAST)
    assert ready("status", "--json") == before


def test_a_partition_whose_points_are_all_gone_publishes_an_empty_range(
    run: Run, tmp_path: Path, with_dagster_home: WithDagsterHome
) -> None:
    with_dagster_home(tmp_path)
    run("generate", "--hours", 1, "--series", 20, "--files", 1)
    run("backfill", FIRST, FIRST)
    count = "select count(*) as rows from rollups"
    assert run("sql", count, "--json")[0]["rows"] > 0
    shutil.rmtree(tmp_path / "raw_datapoints/year=2026/month=01/day=01/hour=00")
    assert run("backfill", FIRST, FIRST, "--json")["published"] == [FIRST, "2026-01-01-01:00", "2026-01-01-02:00"]
    assert run("sql", count, "--json") == [{"rows": 0}]
    assert run("plan", FIRST, FIRST, "--json")["nothing_to_do"] is True


def test_status_shows_each_partition(ready: Run) -> None:
    text = plain(ready("status").output)
    assert text.count("published") >= 5
    assert "2026-01-01-04:00" in text
    (one,) = ready("status", FIRST, "--json")
    assert (one["state"], one["raw_files"], one["stale"]) == ("published", 4, [])
    assert set(one["rows"]) == {"60000", "300000", "3600000"}


def test_plan_says_what_a_backfill_would_do_and_why(ready: Run, home: Path) -> None:
    planned = ready("plan", FIRST, LAST, "--json")
    assert (planned["nothing_to_do"], planned["rows_to_stage"], len(planned["partitions"])) == (True, 0, 5)
    assert "5 partitions up to date nothing to do" in plain(ready("plan", FIRST, LAST).output)
    late = home / "raw_datapoints/year=2026/month=01/day=01/hour=01/late.parquet"
    late.write_bytes((late.parent / "part-0000.parquet").read_bytes())
    try:
        text = plain(ready("plan", FIRST, LAST).output)
        planned = ready("plan", FIRST, LAST, "--json")
    finally:
        late.unlink()
    assert "2026-01-01-01:00: stage: new raw file year=2026/month=01/day=01/hour=01/late.parquet" in text
    assert "2 partitions up to date" in text
    assert f"would stage 1 partition with {planned['rows_to_stage']:,} raw rows, roll up 0 and publish 0; and roll up 3 more if" in text
    assert [found["stage"]["verdict"] for found in planned["partitions"]] == ["no", "yes", "no", "no", "no"]


def test_plan_of_what_is_not_staged_names_what_waits_and_what_fails(run: Run, tmp_path: Path) -> None:
    run("generate", "--hours", 3, "--series", 20, "--files", 1)
    text = plain(run("plan", FIRST, "2026-01-01-01:00").output)
    assert "2026-01-01-02:00: waits for repartitioned_datapoints 2026-01-01-02:00, which is not part of this backfill" in text
    assert "2026-01-01-00:00: stage: not staged yet" in text
    assert "2026-01-01-00:00: publish" not in text
    assert not (tmp_path / "catalog.db").exists()


def test_status_of_nothing_says_how_to_begin(run: Run) -> None:
    assert "rollups generate" in plain(run("status").output)


def test_sql_prints_a_table_json_or_csv(ready: Run) -> None:
    statement = (
        "select metric, sum(count_rollup) as points, max(logical_timestamp) as last, null as nothing from rollups group by 1 order by 1"
    )
    as_json = ready("sql", statement, "--json")
    rows = list(csv.DictReader(io.StringIO(ready("sql", statement, "--csv").stdout)))
    assert [row["metric"] for row in rows] == [row["metric"] for row in as_json]
    assert isinstance(as_json[0]["points"], int)
    assert as_json[0]["last"].endswith("+00:00")
    table = plain(ready("sql", statement).output)
    assert "points" in table
    assert as_json[0]["metric"] in table
    assert "the first 200 of" in plain(ready("sql", "select * from rollups").output)


def test_sql_prints_every_column_of_several_with_one_name(ready: Run) -> None:
    join = "from rollups a join rollups b using (id, resolution, logical_timestamp) limit 1"
    statement = f"select 11 x, 22 y, 33 x, count(*) over () n, a.resolution, 44 x, a.metric, b.metric, 'last' {join}"
    (row,) = ready("sql", statement, "--json")
    assert list(row) == ["x", "y", "x_1", "n", "resolution", "x_2", "metric", "metric_1", "'last'"]
    values = [str(value) for value in row.values()]
    assert values[:3] == ["11", "22", "33"]
    assert values[5:] == ["44", row["metric"], row["metric"], "last"]
    lines = ready("sql", statement).output.splitlines()
    assert [cell.strip() for cell in re.split("[│┃]", lines[1])[1:-1]] == list(row)
    assert [cell.strip() for cell in re.split("[│┃]", lines[3])[1:-1]] == values
    assert [[*row], values] == [*csv.reader(io.StringIO(ready("sql", statement, "--csv").stdout))]


def test_numbers_that_json_does_not_have_are_texts(ready: Run) -> None:
    statement = "select 'nan'::double n, [1.5, 'inf'::double] l, {'f': '-inf'::float} s, map {'m': 'inf'::double} m, 'NaN' t"
    (row,) = ready("sql", statement, "--json")
    assert row == {"n": "NaN", "l": [1.5, "Infinity"], "s": {"f": "-Infinity"}, "m": [["m", "Infinity"]], "t": "NaN"}


def _first_of(run: Run, statement: str, form: str) -> Any:
    answer = run("sql", statement, form)
    return answer[0] if form == "--json" else next(csv.DictReader(io.StringIO(answer.stdout)))


def test_what_csv_has_no_form_for_is_text_as_json_has_it(ready: Run) -> None:
    as_json = """max(logical_timestamp) - min(logical_timestamp) span, interval '1 month 2 days 3 seconds' i, [interval 1 day] li,
        quantile_cont(resolution, [0.5, 0.9]) q, list(distinct metric order by metric) l, [1.5, 'inf'::double, null] n,
        array_value('nan'::double, 1) a, {'a "b", é': [timestamptz '2026-01-01', null], 'd': 1.50} s, histogram(resolution) h,
        'x'::variant v"""
    as_text = """union_value(t := 'a, "b"') u, '101'::bit bit, '\\xAA'::blob blob, 1::bignum big, 'b'::enum('a', 'b') e, '{"a": 1}'::json j,
        uuid '00000000-0000-0000-0000-000000000001' uuid, 'x, "y"' t"""
    wanted, told = (_first_of(ready, f"select {as_json} from rollups", form) for form in ("--json", "--csv"))
    assert {name: json.loads(text, parse_constant=no_json) for name, text in told.items()} == wanted
    assert (wanted["i"], wanted["n"], told["n"]) == ([1, 2, 3_000_000_000], [1.5, "Infinity", None], '[1.5, "Infinity", null]')
    assert _first_of(ready, f"select {as_text}", "--csv") == _first_of(ready, f"select {as_text}", "--json")


def test_what_csv_has_a_form_for_stays_as_it_is_beside_texts(ready: Run) -> None:
    statement = """select [1] l, 170141183460469231731687303715884105727::hugeint h, 1.50::decimal(5, 2) d, date '2026-01-01' date,
        time '10:00:00' time, '10:00:00+00'::timetz tz, timestamp_ns '2026-01-01 00:00:00.123456789' ns, 'é, "y"' t,
        null n, null::int[] no"""
    header, *rows = ready("sql", f"{statement} union all select [2], 2, 2, null, null, null, null, '', 3, [3]", "--csv").stdout.splitlines()
    assert header == '"l","h","d","date","time","tz","ns","t","n","no"'
    times = "2026-01-01,10:00:00.000000,10:00:00.000000,2026-01-01 00:00:00.123456789"
    assert sorted(rows) == [f'"[1]",170141183460469231731687303715884105727,1.50,{times},"é, ""y""",,', '"[2]",2,2.00,,,,,"",3,"[3]"']


def test_csv_is_printed_of_every_type(capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    """Types that DuckDB does not have yet, too: what Arrow refuses, it refuses by the type."""
    number, name = pa.int8(), pa.field("name", pa.int8())
    times = [pa.date32(), pa.date64(), pa.time32("s"), pa.time64("ns"), pa.timestamp("us", "UTC"), pa.duration("us"), pa.timestamp("ns")]
    numbers = [pa.null(), pa.bool_(), number, pa.uint64(), pa.float16(), pa.float64(), pa.decimal32(5, 2), pa.decimal256(60, 2)]
    texts = [pa.string(), pa.large_string(), pa.dictionary(number, pa.string())]
    lists = [pa.list_(number), pa.large_list(number), pa.list_view(number), pa.list_(number, 2), pa.map_(pa.string(), number)]
    others = [pa.struct([name]), pa.sparse_union([name]), pa.dense_union([name]), pa.month_day_nano_interval(), pa.string_view(), pa.uuid()]
    binary = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(4), pa.dictionary(number, pa.binary()), pa.opaque(number, "", "")]
    for kind in (*times, *numbers, *texts, *lists, *others, *binary):
        rows = pa.record_batch({"one": pa.nulls(1, kind), "two": pa.array([2])})
        print_csv(rows.schema, [rows])
        assert capfdbinary.readouterr().out == b'"one","two"\n,2\n', kind


@pytest.mark.usefixtures("ready")
@pytest.mark.parametrize("time", ["'infinity'::timestamp", "'-infinity'::date", "['290000-01-01'::timestamptz]"])
@pytest.mark.parametrize("options", [["--json"], ["--csv"], []], ids=str)
def test_times_that_python_does_not_have_are_refused_in_a_sentence(time: str, options: list[str]) -> None:
    """They ended in a traceback. CSV has a form for all but nested ones."""
    found = CliRunner().invoke(app, ["sql", f"select {time} as moment", *options])
    if options == ["--csv"] and not time.startswith("["):
        assert found.exit_code == 0
    else:
        assert (found.exit_code, type(found.exception)) == (1, SystemExit)
        assert "a time outside of the years 1 to 9999" in plain(found.output)
    assert CliRunner().invoke(app, ["sql", f"select ({time})::varchar as moment", *options]).exit_code == 0


def test_sql_prints_an_answer_without_rows_too(ready: Run) -> None:
    statement = "select 1 as one where false"
    assert ready("sql", statement, "--json") == []
    assert ready("sql", statement, "--csv").stdout == '"one"\n'
    assert "one" in ready("sql", statement).output


def test_sql_prints_one_format_at_a_time() -> None:
    assert CliRunner().invoke(app, ["sql", "select 1", "--csv", "--json"]).exit_code == 2


def test_sql_that_cannot_be_answered_ends_with_1(ready: Run) -> None:
    assert ready("sql", "select nosuch from rollups", status=1).stderr.startswith("error: ")
