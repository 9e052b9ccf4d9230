"""Settings: every name, default, unit and check, and each contradiction refused in one sentence that names the setting."""

from __future__ import annotations

import datetime as dt
import os
import pickle
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from rollup_assets import settings as module
from rollup_assets.errors import SettingsError
from rollup_assets.settings import Settings, load_settings
from rollup_assets.storage.s3 import S3Options
from rollup_assets.units import parse_duration

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000


PROJECT_ROOT = module.project_root


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's root of its own, so that no ``.env`` of the checkout decides anything."""
    monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    return tmp_path


def with_environment(monkeypatch: pytest.MonkeyPatch, **environment: str) -> Settings:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return load_settings()


# ------------------------------------------------------------------------------------------------------------------- defaults


def test_defaults(root: Path) -> None:
    """Every setting has its documented default, and there is no other setting."""
    home = root / ".rollups"
    assert load_settings().model_dump() == {
        "home": home,
        "raw": str(home / "raw_datapoints"),
        "stage": str(home / "stage"),
        "warehouse": str(home / "warehouse"),
        "catalog": f"sqlite:///{home}/catalog.db",
        "catalog_password": None,
        "catalog_password_file": None,
        "catalog_admin_password": None,
        "catalog_admin_password_file": None,
        "catalog_properties": {},
        "catalog_name": "rollups",
        "table": "metrics.rollups",
        "start": dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
        "batch": HOUR,
        "resolutions": (MINUTE, 5 * MINUTE, HOUR),
        "lookback": HOUR,
        "shards": 16,
        "value_type": "long",
        "quarantine_limit": 0.01,
        "quarantine_files": 0,
        "raw_layout": "year=%Y/month=%m/day=%d/hour=%H",
        "raw_file_rows": 1_000_000_000,
        "raw_group_size": 2 * 2**30,
        "raw_name_size": 4 * 2**10,
        "keep_snapshots": 100,
        "sensor_settle": 120_000,
        "threads": len(os.sched_getaffinity(0)),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2,
        "engine": "local",
        "s3_endpoint": "",
        "s3_region": "",
        "s3_path_style": False,
        "s3_ca_bundle": "",
        "raw_lateness": 0,
        "raw_future": None,
        "raw_copies": "once",
        "parquet_encoding": "fast",
        "spark_master": "local[*]",
        "spark_remote": "",
        "spark_conf": {},
        "spark_task_memory": 2**30,
    }


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("raw", "s3://bucket/raw/", "s3://bucket/raw"),
        ("stage", "/data/stage/", "/data/stage"),
        ("stage", "file:///data/my%20stage", "/data/my stage"),
        ("stage", "file:/data/stage", "/data/stage"),
        ("warehouse", "s3://bucket/warehouse", "s3://bucket/warehouse"),
        ("s3_endpoint", "https://s3.example.org:8333/", "https://s3.example.org:8333"),
        ("s3_region", "eu-central-1", "eu-central-1"),
        ("spark_remote", "sc://spark:15002", "sc://spark:15002"),
        ("spark_conf", "spark.a=1  spark.b=x,y=z", {"spark.a": "1", "spark.b": "x,y=z"}),
        ("spark_conf", "spark.a='two words'", {"spark.a": "two words"}),
        ("spark_conf", "spark.a", None),
        ("spark_conf", "executor.memory=4g", None),
        ("spark_conf", "{broken", None),
        ("spark_task_memory", "2GiB", 2**31),
        ("spark_task_memory", "100MiB", None),
        ("spark_remote", "spark://host:7077", None),
        ("engine", "flink", None),
        ("s3_path_style", "true", True),
        ("catalog", "postgresql+psycopg://user@host:5432/db?sslmode=require", "postgresql+psycopg://user@host:5432/db?sslmode=require"),
        ("catalog", "rest+https://host/catalog", "rest+https://host/catalog"),
        ("catalog_properties", "a=1 b='x y'", {"a": "1", "b": "x y"}),
        ("catalog_password_file", "/run/secrets/catalog", Path("/run/secrets/catalog")),
        ("catalog", "https://host/catalog/", "https://host/catalog/"),
        ("catalog", "sqlite:////data/catalog.db", "sqlite:////data/catalog.db"),
        ("catalog_name", "prod_1", "prod_1"),
        ("table", "a.b.c", "a.b.c"),
        ("start", "2025-06-30", dt.datetime(2025, 6, 30, tzinfo=dt.UTC)),
        ("start", " 2025-06-30-06:00 ", dt.datetime(2025, 6, 30, 6, tzinfo=dt.UTC)),
        ("start", "1969-12-31", dt.datetime(1969, 12, 31, tzinfo=dt.UTC)),
        ("resolutions", "1m", (MINUTE,)),
        ("resolutions", " 10s , 1m,1h ", (10_000, MINUTE, HOUR)),
        ("resolutions", "1ms,1s", (1, 1000)),
        ("lookback", "1ms", 1),
        ("lookback", "90s", 90_000),
        ("lookback", "60m", HOUR),
        ("shards", "4096", 4096),
        ("value_type", "double", "double"),
        ("quarantine_limit", "0", 0.0),
        ("quarantine_limit", "1", 1.0),
        ("quarantine_files", "7", 7),
        ("raw_file_rows", "1000000", 1_000_000),
        ("raw_group_size", "512MiB", 2**29),
        ("raw_name_size", "1KiB", 1024),
        ("raw_layout", "%Y%m%d%H", "%Y%m%d%H"),
        ("raw_layout", "%Y-%j/%H", "%Y-%j/%H"),
        ("raw_layout", "%Y-%m-%d/%H%M", None),
        ("keep_snapshots", "1", 1),
        ("sensor_settle", "30s", 30_000),
        ("threads", "3", 3),
        ("memory", "256MiB", 2**28),
        ("memory", "1.5 GiB", 3 * 2**29),
        ("memory", "2GB", 2 * 10**9),
        ("memory", str(2**30), 2**30),
        ("engine", "local", "local"),
    ],
)
@pytest.mark.parametrize("source", ["environment", ".env", "argument"])
def test_a_setting_is_read_as_text(name: str, text: str, value: object, source: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the environment, from ``.env`` in the project's root and as an argument, with the same meaning."""
    overrides: dict[str, Any] = {}
    if source == "environment":
        monkeypatch.setenv(f"ROLLUP_{name.upper()}", text)
    elif source == ".env":
        (root / ".env").write_text(f'ROLLUP_{name.upper()}="{text}"\n')
    else:
        overrides = {name: text}
    if value is None:
        with pytest.raises(SettingsError):
            load_settings(**overrides)
    else:
        assert getattr(load_settings(**overrides), name) == value


@pytest.mark.parametrize(
    ("batch", "layout"),
    [
        ("1d", "year=%Y/month=%m/day=%d"),
        ("6h", "year=%Y/month=%m/day=%d/hour=%H"),
        ("15m", "%Y%m%d/%H%M"),
        ("24h", "%Y/%j"),
        ("1h", "%y%m%d%H"),
        ("1m", "%Y/%m/%d/%H/%M"),
    ],
)
def test_batches_and_their_layouts(batch: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given as text in the environment, the batch length is the lookback unless that is set."""
    found = with_environment(monkeypatch, ROLLUP_BATCH=batch, ROLLUP_RAW_LAYOUT=layout, ROLLUP_RESOLUTIONS="1m")
    assert found.batch == found.lookback == parse_duration(batch)
    assert load_settings(lookback="1m").lookback == MINUTE


# ------------------------------------------------------------------------------------------------------------------ where from


def test_arguments_go_before_the_environment_and_that_before_the_env_file(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / ".env").write_text("ROLLUP_SHARDS=2\nROLLUP_TABLE=from.file\nROLLUP_THREADS=2\nOTHER=1\n")
    found = with_environment(monkeypatch, ROLLUP_SHARDS="3", ROLLUP_THREADS="3")
    assert (found.shards, found.table, found.threads) == (3, "from.file", 3)
    assert load_settings(threads=4).threads == 4


def test_an_env_file_elsewhere_is_not_read(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's root has it, not the working directory."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / ".env").write_text("ROLLUP_SHARDS=2\n")
    monkeypatch.chdir(elsewhere)
    assert load_settings().shards == 16


def test_an_empty_variable_is_not_set(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_environment(monkeypatch, ROLLUP_RAW="", ROLLUP_SHARDS="", ROLLUP_LOOKBACK="", ROLLUP_RESOLUTIONS="")
    assert (found.raw, found.shards, found.lookback) == (str(root / ".rollups/raw_datapoints"), 16, HOUR)


def test_the_root_is_the_checkout_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert PROJECT_ROOT() == Path(module.__file__).resolve().parents[1]


def test_an_installed_package_finds_the_root_by_its_workspace_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At or above the working directory; else that directory itself."""
    monkeypatch.setattr(module, "__file__", str(tmp_path / "site-packages/rollup_assets/settings.py"))
    inner = tmp_path / "project/some/where"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert PROJECT_ROOT() == inner
    (tmp_path / "project/workspace.yaml").touch()
    assert PROJECT_ROOT() == tmp_path / "project"


def test_relative_paths_resolve_against_the_root(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    found = with_environment(
        monkeypatch,
        ROLLUP_HOME="data/../home",
        ROLLUP_RAW="raw",
        ROLLUP_STAGE="./stage",
        ROLLUP_WAREHOUSE="../warehouse",
        ROLLUP_CATALOG="sqlite:///db/catalog.db",
    )
    assert found.home == root / "home"
    assert (found.raw, found.stage, found.warehouse) == (str(root / "raw"), str(root / "stage"), str(root.parent / "warehouse"))
    assert found.catalog == f"sqlite:///{root}/db/catalog.db"


@pytest.mark.parametrize("home", ["elsewhere", "/data/rollups", "file:///data/rollups", "~/rollups"])
def test_home_moves_the_four_defaults(home: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_environment(monkeypatch, ROLLUP_HOME=home)
    expected = {"elsewhere": root / home, "~/rollups": Path.home() / "rollups"}.get(home, Path("/data/rollups"))
    assert found.home == expected
    assert (found.raw, found.stage, found.warehouse) == tuple(str(expected / name) for name in ("raw_datapoints", "stage", "warehouse"))
    assert found.catalog == f"sqlite:///{expected}/catalog.db"
    assert found.dagster_home == expected / "dagster"
    monkeypatch.setenv("DAGSTER_HOME", "/dagster")
    assert found.dagster_home == Path("/dagster")


def test_settings_survive_being_written_out() -> None:
    """What was read once and is given again means the same, also with one of them changed."""
    chosen = load_settings(home="elsewhere", batch="1d", raw_layout="%Y%m%d", lookback="2h")
    assert load_settings(**chosen.model_dump()) == chosen
    assert load_settings(**{**chosen.model_dump(), "raw": "/other"}).stage == chosen.stage


def test_start_as_a_moment_in_another_time_zone() -> None:
    """Is the same moment in UTC; without a time zone it is UTC."""
    moment = dt.datetime(2026, 1, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    assert load_settings(start=moment).calendar.first.key == "2026-01-01-00:00"
    assert load_settings(start=dt.datetime(2026, 1, 1)).start == dt.datetime(2026, 1, 1, tzinfo=dt.UTC)  # noqa: DTZ001


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().shards = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("lookback", "resolutions", "reach"),
    [("1h", "1m,5m,1h", 2), ("1ms", "1m", 1), ("59m", "1m", 1), ("60m", "1m", 2), ("1ms", "1h", 2), ("1h", "1h", 2)],
)
def test_reach_is_how_many_earlier_batches_matter(lookback: str, resolutions: str, reach: int) -> None:
    assert load_settings(lookback=lookback, resolutions=resolutions).reach == reach


# -------------------------------------------------------------------------------------------------------------------- refused

DAILY = "year=%Y/month=%m/day=%d"


@pytest.mark.parametrize(
    ("environment", "named", "says"),
    [
        # batch
        ({"BATCH": "7h"}, "BATCH", "does not divide a day"),
        ({"BATCH": "2d"}, "BATCH", "does not divide a day"),
        ({"BATCH": "90m", "RESOLUTIONS": "1m"}, "BATCH", "neither divides an hour nor is a whole number of hours"),
        ({"BATCH": "30s", "RESOLUTIONS": "10s"}, "BATCH", "neither divides an hour nor is a whole number of hours"),
        ({"BATCH": "1"}, "BATCH", "is not a duration"),
        ({"BATCH": "1.5h"}, "BATCH", "is not a duration"),
        ({"BATCH": "-1h"}, "BATCH", "is not a duration"),
        ({"BATCH": "0h"}, "BATCH", "is not a duration"),
        ({"BATCH": "9" * 400 + "d"}, "BATCH", "is not a duration"),
        # resolutions
        ({"RESOLUTIONS": "1m,90s"}, "RESOLUTIONS", "90s is not a multiple of 1m"),
        ({"RESOLUTIONS": "5m,1m"}, "RESOLUTIONS", "finest first"),
        ({"RESOLUTIONS": "1m,1m"}, "RESOLUTIONS", "finest first"),
        ({"RESOLUTIONS": "2m,5m,1h"}, "RESOLUTIONS", "5m is not a multiple of 2m"),
        ({"RESOLUTIONS": "1m,1d"}, "RESOLUTIONS", "does not divide ROLLUP_BATCH=1h"),
        ({"RESOLUTIONS": "7m"}, "RESOLUTIONS", "does not divide ROLLUP_BATCH=1h"),
        ({"RESOLUTIONS": "1m,,5m"}, "RESOLUTIONS", "is not a duration"),
        ({"RESOLUTIONS": ","}, "RESOLUTIONS", "is not a duration"),
        ({"RESOLUTIONS": "60000"}, "RESOLUTIONS", "is not a duration"),
        ({"RESOLUTIONS": "0.5ms"}, "RESOLUTIONS", "is not a duration"),
        # lookback
        ({"LOOKBACK": "61m"}, "LOOKBACK", "longer than ROLLUP_BATCH=1h"),
        ({"LOOKBACK": "0s"}, "LOOKBACK", "is not a duration"),
        ({"LOOKBACK": "0.1ms"}, "LOOKBACK", "is not a duration"),
        ({"LOOKBACK": "100us"}, "LOOKBACK", "is not a duration"),
        # start
        ({"START": "2026-01-01-00:30"}, "START", "not on a boundary of ROLLUP_BATCH=1h"),
        ({"START": "2026-01-01-01:00", "BATCH": "1d", "RAW_LAYOUT": DAILY}, "START", "not on a boundary of ROLLUP_BATCH=1d"),
        ({"START": "tomorrow"}, "START", "is not a day"),
        ({"START": "1767225600"}, "START", "is not a day"),
        ({"START": "2026-01-01T00:00:00+02:00"}, "START", "is not a day"),
        ({"START": "2026-02-30"}, "START", "is not a day"),
        ({"START": "0001-01-01"}, "START", "out of range"),
        ({"START": "9999-12-31"}, "START", "out of range"),
        # layout
        ({"RAW_LAYOUT": DAILY}, "RAW_LAYOUT", "into one folder"),
        ({"RAW_LAYOUT": "hour=%H"}, "RAW_LAYOUT", "into one folder"),
        ({"RAW_LAYOUT": "%Y/%d/%H"}, "RAW_LAYOUT", "into one folder"),
        ({"RAW_LAYOUT": "%Y/%m/%H"}, "RAW_LAYOUT", "into one folder"),
        ({"RAW_LAYOUT": "%j/%H"}, "RAW_LAYOUT", "into one folder"),
        ({"RAW_LAYOUT": "all"}, "RAW_LAYOUT", "into one folder"),
        ({"BATCH": "15m", "RESOLUTIONS": "1m"}, "RAW_LAYOUT", "into one folder"),
        ({"RAW_LAYOUT": "%Y/%m/%d/%H/%M"}, "RAW_LAYOUT", "several folders inside the batch"),
        ({"BATCH": "1d"}, "RAW_LAYOUT", "several folders inside the batch"),
        ({"BATCH": "6h", "RAW_LAYOUT": "%Y/%m/%d/%H/%M"}, "RAW_LAYOUT", "several folders inside the batch"),
        ({"BATCH": "6h", "RAW_LAYOUT": DAILY}, "RAW_LAYOUT", "into one folder"),
        ({"BATCH": "1d", "LOOKBACK": "1h"}, "RAW_LAYOUT", "several folders inside the batch"),
        ({"RAW_LAYOUT": "%Y/%m/%d/%H/%S"}, "RAW_LAYOUT", "%S"),
        ({"RAW_LAYOUT": "%Y/%V/%u/%H"}, "RAW_LAYOUT", "not part of a UTC time"),
        ({"RAW_LAYOUT": "%Y/%b/%d/%H"}, "RAW_LAYOUT", "%b"),
        ({"RAW_LAYOUT": "/raw/%Y/%m/%d/%H"}, "RAW_LAYOUT", "below ROLLUP_RAW"),
        ({"RAW_LAYOUT": "../%Y/%m/%d/%H"}, "RAW_LAYOUT", "below ROLLUP_RAW"),
        ({"RAW_LAYOUT": "%Y/./%m/%d/%H"}, "RAW_LAYOUT", "below ROLLUP_RAW"),
        ({"RAW_LAYOUT": "%Y/%m/%d/%H/"}, "RAW_LAYOUT", "below ROLLUP_RAW"),
        # names
        ({"TABLE": "rollups"}, "TABLE", "such as metrics.rollups"),
        ({"TABLE": "metrics."}, "TABLE", "such as metrics.rollups"),
        ({"TABLE": "metrics.roll ups"}, "TABLE", "such as metrics.rollups"),
        ({"TABLE": "metrics.rollups\n"}, "TABLE", "such as metrics.rollups"),
        ({"TABLE": "metrics/../x.y"}, "TABLE", "such as metrics.rollups"),
        ({"CATALOG_NAME": "my-catalog"}, "CATALOG_NAME", "such as rollups"),
        ({"CATALOG": "catalog.db"}, "CATALOG", "write sqlite:///catalog.db"),
        ({"CATALOG": "postgresql+psycopg2://user@host/db"}, "CATALOG", "write postgresql+psycopg://"),
        ({"CATALOG": "postgresql://user@host/db"}, "CATALOG", "write postgresql+psycopg://"),
        (
            {"CATALOG": "postgresql+psycopg://user@host:$PGPORT/db"},
            "CATALOG",
            "has an invalid host or port; write postgresql+psycopg://",
        ),
        ({"CATALOG": "rest+https://host:99999/catalog"}, "CATALOG", "write rest+https://host:PORT/..., the port as a number"),
        ({"CATALOG_PROPERTIES": "warehouse"}, "CATALOG_PROPERTIES", "write pairs such as rest.sigv4-enabled=true"),
        ({"CATALOG_PROPERTIES": "uri=https://host"}, "CATALOG_PROPERTIES", "set ROLLUP_CATALOG"),
        # places
        ({"HOME": "s3://bucket/home"}, "HOME", "not a local folder"),
        ({"HOME": "~no_such_user_anywhere/rollups"}, "HOME", "cannot be resolved"),
        ({"RAW": "file://host/raw"}, "RAW", "file:///path"),
        # numbers
        ({"SHARDS": "0"}, "SHARDS", "greater than or equal to 1"),
        ({"SHARDS": "4097"}, "SHARDS", "less than or equal to 4096"),
        ({"SHARDS": "many"}, "SHARDS", "a valid integer"),
        ({"QUARANTINE_LIMIT": "-0.1"}, "QUARANTINE_LIMIT", "greater than or equal to 0"),
        ({"QUARANTINE_LIMIT": "1.01"}, "QUARANTINE_LIMIT", "less than or equal to 1"),
        ({"QUARANTINE_LIMIT": "nan"}, "QUARANTINE_LIMIT", "less than or equal to 1"),
        ({"QUARANTINE_LIMIT": "1%"}, "QUARANTINE_LIMIT", "a valid number"),
        ({"QUARANTINE_FILES": "-1"}, "QUARANTINE_FILES", "greater than or equal to 0"),
        ({"KEEP_SNAPSHOTS": "0"}, "KEEP_SNAPSHOTS", "greater than or equal to 1"),
        ({"THREADS": "0"}, "THREADS", "greater than or equal to 1"),
        ({"THREADS": "1.5"}, "THREADS", "a valid integer"),
        ({"MEMORY": "100MiB"}, "MEMORY", "256MiB"),
        ({"MEMORY": "2"}, "MEMORY", "256MiB"),
        ({"MEMORY": "lots"}, "MEMORY", "is not a size"),
        ({"MEMORY": "2gb"}, "MEMORY", "is not a size"),
        ({"MEMORY": "-1GiB"}, "MEMORY", "is not a size"),
        # choices
        ({"VALUE_TYPE": "float"}, "VALUE_TYPE", "'long' or 'double'"),
        ({"ENGINE": "flink"}, "ENGINE", "'local'"),
    ],
)
def test_a_contradiction_is_refused_in_one_sentence(
    environment: dict[str, str], named: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sentence begins with the setting and says what to change; only what was set is blamed."""
    with pytest.raises(SettingsError) as caught:
        with_environment(monkeypatch, **{f"ROLLUP_{name}": value for name, value in environment.items()})
    message = str(caught.value)
    assert message.startswith(f"ROLLUP_{named}")
    assert says in message
    assert message.rstrip().count("\n") == 0 or "\n" in "".join(environment.values())
    assert "validation error" not in message
    assert "pydantic" not in message
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        ({"resolutions": ()}, "RESOLUTIONS"),
        ({"resolutions": (0,)}, "RESOLUTIONS"),
        ({"resolutions": (-60_000, 60_000)}, "RESOLUTIONS"),
        ({"lookback": 0}, "LOOKBACK"),
        ({"lookback": -1}, "LOOKBACK"),
        ({"batch": 0}, "BATCH"),
        ({"batch": -HOUR}, "BATCH"),
    ],
)
def test_numbers_that_no_text_can_give_are_refused_too(overrides: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingsError, match=f"^ROLLUP_{named}"):
        load_settings(**overrides)


def test_two_malformed_settings_are_both_named() -> None:
    with pytest.raises(SettingsError, match=r"ROLLUP_SHARDS=0: .*; ROLLUP_ENGINE=x: "):
        load_settings(shards=0, engine="x")


# --------------------------------------------------------------------------------------------------------------- processes


def run_python(code: str, **environment: str) -> str:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ROLLUP_")}
    return subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, check=True, capture_output=True, text=True, cwd=Path(__file__).parents[1]
    ).stdout.strip()


def test_the_time_zone_of_the_machine_decides_nothing(tmp_path: Path) -> None:
    code = (
        "from rollup_assets.settings import load_settings\n"
        "settings = load_settings()\n"
        "first = settings.calendar.first\n"
        "print(first.start, first.key, first.start_time.strftime(settings.raw_layout), settings.calendar.batch('2026-03-29-02:00').start)\n"
    )
    for zone in ("UTC", "America/Sao_Paulo", "Asia/Kolkata", "Europe/Berlin"):
        found = run_python(code, TZ=zone, ROLLUP_START="2026-01-01-23:00", ROLLUP_HOME=str(tmp_path))
        assert found == "1767308400000 2026-01-01-23:00 year=2026/month=01/day=01/hour=23 1774749600000"


def test_importing_settings_does_not_import_what_only_steps_need() -> None:
    heavy = ("pyarrow", "numpy", "numba", "pyiceberg", "duckdb", "dagster")
    assert run_python(f"import sys, rollup_assets.settings; print([name for name in {heavy} if name in sys.modules])") == "[]"


@pytest.mark.parametrize("limit", [2**30, None])
def test_memory_is_half_of_what_a_container_may_use(limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the container's limit; half of the machine's memory where there is none."""
    (tmp_path / "memory.max").write_text(f"{limit or 'max'}\n")
    monkeypatch.setattr("rollup_assets.machine.CGROUP_LIMIT", tmp_path / "memory.max")
    assert load_settings().memory == (limit or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) // 2


CANARY = "Canary-7/0?x#y"


def test_what_may_be_a_password_in_place_of_a_port_is_not_repeated() -> None:
    with pytest.raises(SettingsError, match="an invalid host or port") as caught:
        load_settings(catalog="postgresql+psycopg://user:Canary/db")
    assert "Canary" not in str(caught.value)


@pytest.mark.parametrize("uri", ["thrift://one:9083,thrift://two:9083", "postgresql+psycopg://user@/db?host=one:5432&host=two:5432"])
def test_catalogs_of_several_hosts_are_let_pass(uri: str) -> None:
    assert load_settings(catalog=uri).catalog == uri


@pytest.mark.parametrize(
    "uri",
    [
        f"postgresql+psycopg://user:{CANARY}@host/db",
        f"postgresql+psycopg://user:{quote(CANARY)}@host/db",
        f"postgresql+psycopg2://user:{CANARY}@host/db",
        f"postgresql+psycopg://:{CANARY}@host/db",
        f"postgresql+psycopg://user@host/db?sslmode=require&password={CANARY}",
        f"postgresql+psycopg://user@host/db?sslpassword={CANARY}",
        f"rest+https://user:{CANARY}@host/catalog",
        f"https://host/catalog?token={CANARY}",
        f"user:{CANARY}@host/db",
    ],
)
def test_a_password_inside_the_catalogs_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(catalog=uri)
    assert "ROLLUP_CATALOG holds a password; take it out of the URI, and set ROLLUP_CATALOG_PASSWORD" in str(caught.value)
    assert "Canary" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "uri",
    [
        f"sc://host:15002/;use_ssl=true;token={CANARY}",
        f"sc://host:15002/;Token={CANARY};use_ssl=true",
        f"sc://host:15002/;user_id=somebody@example.org;authorization={quote(CANARY)}",
        f"sc://host:15002;token={CANARY}",
        f"sc://host:15002/?use_ssl=true&token={CANARY}",
        f"sc://user:{CANARY}@host:15002",
        f"sc://user:{CANARY}@host:15002/;use_ssl=true",
        f"spark://user:{CANARY}@host:7077",
        f"host:15002/;token={CANARY}",
    ],
)
def test_a_token_inside_the_connect_servers_uri_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(spark_remote=uri)
    assert str(caught.value) == (
        "ROLLUP_SPARK_REMOTE holds a password; take it out of the URI, and set SPARK_CONNECT_AUTHENTICATE_TOKEN to the token"
    )
    assert "Canary" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "uri",
    ["sc://token", "sc://user@host", "sc://host:15002/;use_ssl=true;user_id=somebody@example.org", "sc://host:15002/;x-token-kind=jwt"],
)
def test_other_parameters_of_the_connect_server_are_not_taken_for_secrets(uri: str) -> None:
    assert load_settings(spark_remote=uri).spark_remote == uri


def test_the_connect_client_takes_its_token_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the message says that refuses one in the URI; with it the server is asked over TLS."""
    from pyspark.sql.connect.client import DefaultChannelBuilder

    monkeypatch.setenv("SPARK_CONNECT_AUTHENTICATE_TOKEN", CANARY)
    client = DefaultChannelBuilder(load_settings(spark_remote="sc://host:15002").spark_remote)
    assert (client.token, client.secure) == (CANARY, True)


@pytest.mark.parametrize(
    "name", ["token", "credential", "s3.secret-access-key", "s3.session-token", "header.Authorization", "glue.access-key-id", "password"]
)
def test_secrets_among_the_catalogs_properties_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=f"ROLLUP_CATALOG_PROPERTIES holds a secret, {name}; .*ROLLUP_CATALOG_PASSWORD") as caught:
        load_settings(catalog_properties=f"{name}={CANARY}")
    assert "Canary" not in "".join(traceback.format_exception(caught.value))


def test_the_catalogs_properties_may_be_json() -> None:
    assert load_settings(catalog_properties='{"rest.sigv4-enabled": true}').catalog_properties == {"rest.sigv4-enabled": "true"}


@pytest.mark.parametrize("name", ["oauth2-server-uri", "token-refresh-enabled", "rest.sigv4-enabled", "rest.signing-name", "scope"])
def test_other_properties_of_the_catalog_are_not_taken_for_secrets(name: str) -> None:
    assert load_settings(catalog_properties=f"{name}=x").catalog_properties == {name: "x"}


def test_the_catalogs_password_comes_from_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "password"
    file.write_text("from file\n")
    assert load_settings().read_catalog_password() is None
    monkeypatch.setenv("ROLLUP_CATALOG_PASSWORD_FILE", str(file))
    settings = load_settings()
    assert settings.read_catalog_password() == "from file"
    file.write_text("rotated")
    assert settings.read_catalog_password() == "rotated"
    monkeypatch.setenv("ROLLUP_CATALOG_PASSWORD", CANARY)
    with pytest.raises(SettingsError, match="ROLLUP_CATALOG_PASSWORD and ROLLUP_CATALOG_PASSWORD_FILE are both set; drop one"):
        load_settings()
    monkeypatch.delenv("ROLLUP_CATALOG_PASSWORD_FILE")
    assert load_settings().read_catalog_password() == CANARY
    file.unlink()
    with pytest.raises(SettingsError, match=r"ROLLUP_CATALOG_PASSWORD_FILE=.*/password cannot be read \(No such file or directory\)"):
        settings.read_catalog_password()


def test_passwords_are_neither_shown_nor_pickled(tmp_path: Path) -> None:
    settings = load_settings(home=str(tmp_path), catalog_password=CANARY, catalog_admin_password=CANARY)
    pickled = pickle.dumps(settings)
    for text in (repr(settings), str(settings), str(settings.model_dump()), settings.model_dump_json(), pickled.decode("latin-1")):
        assert "Canary" not in text
    there = pickle.loads(pickled)
    assert there == settings.model_copy(update={"catalog_password": None, "catalog_admin_password": None})
    assert load_settings(**settings.model_dump()).read_catalog_password() == CANARY


# ------------------------------------------------------------------------------------------------------------------------- s3


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ({}, S3Options()),
        ({"ROLLUP_S3_ENDPOINT": "http://s3:8333"}, S3Options("http://s3:8333", "us-east-1", True)),
        ({"ROLLUP_S3_ENDPOINT": "http://s3:8333", "ROLLUP_S3_PATH_STYLE": "false"}, S3Options("http://s3:8333", "us-east-1", False)),
        ({"AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}, S3Options(region="eu-west-1")),
        ({"AWS_DEFAULT_REGION": "eu-west-2"}, S3Options(region="eu-west-2")),
        ({"AWS_REGION": "eu-west-1", "ROLLUP_S3_REGION": "eu-west-3"}, S3Options(region="eu-west-3")),
    ],
)
def test_how_s3_is_reached(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], options: S3Options) -> None:
    """Amazon's unless an endpoint is named; AWS's own variables are the defaults."""
    assert with_environment(monkeypatch, **environment).s3 == options


@pytest.mark.parametrize("source", ["environment", ".env"])
@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ROLLUP_SHARD", "ROLLUP_SHARDS"),
        ("ROLLUP_RESOLUTION", "ROLLUP_RESOLUTIONS"),
        ("ROLLUP_CATALOG_URI", "ROLLUP_CATALOG"),
        ("ROLLUP_CATALOG_PASSWORDFILE", "ROLLUP_CATALOG_PASSWORD_FILE"),
        ("ROLLUP_S3_ENDPOINT_URL", "ROLLUP_S3_ENDPOINT"),
        ("ROLLUP_MAX_MEMORY", "ROLLUP_MEMORY"),
        ("ROLLUP_SPARK_CONFIG", "ROLLUP_SPARK_CONF"),
    ],
)
def test_a_misspelt_setting_is_refused_with_the_name_that_was_meant(
    monkeypatch: pytest.MonkeyPatch, root: Path, source: str, name: str, meant: str
) -> None:
    if source == "environment":
        monkeypatch.setenv(name, "canary")
    else:
        (root / ".env").write_text(f"{name}=canary\n")
    where = "the environment" if source == "environment" else str(root / ".env")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert str(caught.value) == f"{name} in {where} is not a setting; write {meant}, or remove it"


@pytest.mark.parametrize(
    "name",
    [
        "ROLLUP_TEST_REQUIRE",
        "ROLLUP_SCREENSHOTS",
        "ROLLUP_IMAGE",
        # A cluster's, for its services rollup and rollup-assets.
        "ROLLUP_SERVICE_HOST",
        "ROLLUP_PORT",
        "ROLLUP_PORT_80_TCP_ADDR",
        "ROLLUP_ASSETS_SERVICE_PORT_HTTP",
    ],
)
def test_names_that_mean_something_else_are_nobodys_business(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert with_environment(monkeypatch, **{name: "x"}) == load_settings()


def test_an_empty_variable_is_none_whatever_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert with_environment(monkeypatch, ROLLUP_SHARD="").shards == 16


def test_the_ca_bundle_is_a_file_and_relative_to_the_root(monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
    with pytest.raises(SettingsError, match=r"ROLLUP_S3_CA_BUNDLE: .*ca\.pem is not a file; name a PEM file"):
        with_environment(monkeypatch, ROLLUP_S3_CA_BUNDLE="ca.pem")
    (root / "ca.pem").touch()
    assert load_settings().s3.ca_bundle == str(root / "ca.pem")
    monkeypatch.delenv("ROLLUP_S3_CA_BUNDLE")
    assert with_environment(monkeypatch, AWS_CA_BUNDLE=str(root / "ca.pem")).s3.ca_bundle == str(root / "ca.pem")


@pytest.mark.parametrize(
    ("name", "text", "remedy"),
    [
        ("s3_endpoint", "s3.example.org:8333", "ROLLUP_S3_ENDPOINT: .*write scheme, host and port"),
        ("s3_endpoint", "https://s3.example.org/bucket", "ROLLUP_S3_ENDPOINT: .*write scheme, host and port"),
        ("s3_endpoint", "https://s3.example.org:http", "ROLLUP_S3_ENDPOINT: .*write scheme, host and port"),
        ("s3_endpoint", "https://key:canary@s3.example.org", "ROLLUP_S3_ENDPOINT: .*AWS_SECRET_ACCESS_KEY"),
        ("raw", "s3a://bucket/raw", "ROLLUP_RAW=.*write s3://bucket/raw"),
        ("raw", "s3n://key:canary@bucket/raw", "ROLLUP_RAW has .*write s3://bucket/raw$"),
        ("stage", "s3://", "ROLLUP_STAGE=.*write s3://bucket/folder"),
        ("warehouse", "s3://key:canary@bucket/warehouse", "ROLLUP_WAREHOUSE"),
    ],
)
def test_what_is_no_place_on_s3_is_refused(name: str, text: str, remedy: str) -> None:
    with pytest.raises(SettingsError, match=remedy) as caught:
        load_settings(**{name: text})
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("location", ["gs://bucket/folder", "hdfs://user:canary@host/folder", "s4://bucket/folder", "S3://bucket/folder"])
@pytest.mark.parametrize("name", ["raw", "stage", "warehouse"])
def test_a_place_that_is_neither_on_a_disk_nor_on_s3_is_refused(name: str, location: str) -> None:
    """A write is not atomic there."""
    sentence = f"^ROLLUP_{name.upper()} is neither a path, file:///path nor s3://bucket/folder; write one of these$"
    with pytest.raises(SettingsError, match=sentence):
        load_settings(**{name: location})


@pytest.mark.parametrize("location", ["s3://bucket/file", "s3a://bucket/file", "gs://bucket/file", "https://user:canary@host/file"])
@pytest.mark.parametrize(
    ("name", "prefix", "sentence"),
    [
        (
            "home",
            "",
            "ROLLUP_HOME is not a local folder; make it one, and ROLLUP_RAW, ROLLUP_STAGE and ROLLUP_WAREHOUSE URIs",
        ),
        (
            "catalog",
            "sqlite:///",
            "ROLLUP_CATALOG is not sqlite:/// and a local path; write one such as sqlite:////var/lib/rollups/catalog.db",
        ),
        ("catalog_password_file", "", "ROLLUP_CATALOG_PASSWORD_FILE is not a local path; write one"),
        ("catalog_admin_password_file", "", "ROLLUP_CATALOG_ADMIN_PASSWORD_FILE is not a local path; write one"),
    ],
)
def test_what_has_to_be_on_this_machine_is_no_place_elsewhere(name: str, prefix: str, sentence: str, location: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(**{name: f"{prefix}{location}"})
    assert str(caught.value) == sentence


def test_spark_properties_may_be_a_json_object() -> None:
    text = '{"spark.a": "x y", "spark.b": 3, "spark.c": true}'
    assert load_settings(spark_conf=text).spark_conf == {"spark.a": "x y", "spark.b": "3", "spark.c": "true"}


@pytest.mark.parametrize(
    ("setting", "text", "sentence"),
    [
        (
            "spark_conf",
            "executor.memory=4g",
            r"^ROLLUP_SPARK_CONF: executor\.memory is not a Spark property; their names begin with spark\.$",
        ),
        (
            "spark_conf",
            "spark.a",
            r"^ROLLUP_SPARK_CONF: it is not a list of key=value pairs; write pairs such as spark\.executor\.memory=4g",
        ),
        ("spark_conf", "{broken", r"^ROLLUP_SPARK_CONF: it begins like a JSON object but is not one \(.*\); write pairs such as"),
        ("spark_task_memory", "100MiB", r"^ROLLUP_SPARK_TASK_MEMORY=104857600 is below 256MiB; raise it$"),
        ("spark_remote", "spark://host", r"^ROLLUP_SPARK_REMOTE=spark://host is not a Spark Connect server; write sc://host:15002, with"),
        (
            "spark_remote",
            "sc://host:15002;user_id=bob@example.org",
            r"^ROLLUP_SPARK_REMOTE=sc://host:15002;user_id=bob@example.org is not .*, with parameters sc://host:15002/;name=value$",
        ),
    ],
)
def test_spark_settings_that_make_no_sense_are_refused(setting: str, text: str, sentence: str) -> None:
    with pytest.raises(SettingsError, match=sentence):
        load_settings(**{setting: text})


def test_where_the_system_does_not_say_which_cores_a_process_may_use_all_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert load_settings(home="rollups").threads == os.cpu_count()
