"""The code location: it loads quickly, everywhere, and refuses settings that contradict each other."""

from __future__ import annotations

import datetime as dt
import os
import shutil
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest

import rollup_assets
from rollup_assets.definitions import build_definitions
from rollup_assets.defs.partitions import batches, own_and_earlier
from rollup_assets.settings import Settings, load_settings
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS
from rollup_assets.units import parse_duration

PROJECT = Path(rollup_assets.__file__).parent.parent
HEAVY = ("numba", "pyspark", "dagster_pyspark", "dagster_aws", "pyiceberg", "duckdb", "pyarrow", "numpy")


def python(code: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, with nothing of this one's settings."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "DAGSTER", "PYTHON"))}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=inherited | environment, capture_output=True, text=True, timeout=120, check=False
    )


def settings(tmp_path: Path, **overrides: object) -> Settings:
    return load_settings(home=str(tmp_path), **overrides)


def test_loading_the_code_location_imports_none_of_the_heavy_libraries() -> None:
    loaded = python(f"import sys, rollup_assets.definitions; print([name for name in {HEAVY} if name in sys.modules])", PROJECT)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.strip() == "[]"
    assert loaded.stderr.strip() == "", "every load would print this"


def test_settings_that_contradict_each_other_are_refused_in_one_sentence_when_the_code_location_loads() -> None:
    loaded = python("import rollup_assets.definitions", PROJECT, ROLLUP_RESOLUTIONS="1m,7m,1h")
    assert loaded.returncode != 0
    last = loaded.stderr.strip().splitlines()[-1]
    assert last.startswith("rollup_assets.errors.SettingsError: ROLLUP_RESOLUTIONS")
    assert "7m" in last


def test_dg_accepts_the_definitions(tmp_path: Path) -> None:
    dg_command = Path(sys.executable).with_name("dg")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ROLLUP_", "DAGSTER"))}
    found = subprocess.run(
        [str(dg_command), "check", "defs"],
        cwd=PROJECT,
        env=environment | {"ROLLUP_HOME": str(tmp_path), "DAGSTER_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert "All definitions loaded successfully" in found.stdout + found.stderr


def test_the_code_location_loads_from_an_installed_wheel_outside_of_the_checkout(tmp_path: Path) -> None:
    """A wheel has only what the package names: a module or data file that is left out is noticed here."""
    built = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "wheel"), str(_copy_of_sources(tmp_path))],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (tmp_path / "wheel").glob("*.whl")
    site = tmp_path / "site"
    # What `pip install --no-deps --target` does with a wheel of pure Python; a virtual environment need not have pip.
    shutil.unpack_archive(wheel, site, "zip")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); sys.path[:] = [p for p in sys.path if p != {str(PROJECT)!r}]; "
        "import rollup_assets.definitions as d; print(d.__file__); print(d.defs.resolve_job_def('batches').name)"
    )
    loaded = python(code, elsewhere, ROLLUP_HOME=str(tmp_path / "home"))
    assert loaded.returncode == 0, loaded.stderr
    file, job = loaded.stdout.split()
    assert Path(file).is_relative_to(site)
    assert job == "batches"


def _copy_of_sources(tmp_path: Path) -> Path:
    """What a build needs; it would leave ``build/`` and ``*.egg-info`` in the checkout."""
    target = tmp_path / "sources"
    target.mkdir()
    for name in ("pyproject.toml", "setup.cfg", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, target)
    shutil.copytree(PROJECT / "rollup_assets", target / "rollup_assets", ignore=shutil.ignore_patterns("__pycache__"))
    return target


def test_the_graph_is_that_of_the_design(tmp_path: Path) -> None:
    graph = build_definitions(settings(tmp_path)).resolve_asset_graph()
    parents = {
        key.to_user_string(): {parent.to_user_string() for parent in graph.get(key).parent_keys} for key in graph.get_all_asset_keys()
    }
    assert parents == {
        "raw_datapoints": set(),
        REPARTITIONED: {"raw_datapoints"},
        PARTIAL_POINTS: {"raw_datapoints"},
        QUARANTINED: {"raw_datapoints"},
        ROLLUPS: {REPARTITIONED, PARTIAL_POINTS},
        ROLLUP_TABLE: {ROLLUPS},
    }


def test_every_asset_and_check_has_a_description_and_a_group_that_is_not_named_like_an_asset(tmp_path: Path) -> None:
    graph = build_definitions(settings(tmp_path)).resolve_asset_graph()
    names = {key.to_user_string() for key in graph.get_all_asset_keys()}
    for key in graph.get_all_asset_keys():
        assert graph.get(key).description, key
        assert graph.get(key).group_name not in names
        assert graph.get(key).kinds, key
    for check in graph.asset_check_keys:
        assert graph.get_check_spec(check).description, check
        assert graph.get_check_spec(check).partitions_def == graph.get(check.asset_key).partitions_def


@pytest.mark.parametrize(
    ("batch", "keys"),
    [
        ("15m", ["2026-01-01-00:00", "2026-01-01-00:15", "2026-01-01-00:30"]),
        ("1h", ["2026-01-01-00:00", "2026-01-01-01:00", "2026-01-01-02:00"]),
        ("6h", ["2026-01-01-00:00", "2026-01-01-06:00", "2026-01-01-12:00"]),
        ("1d", ["2026-01-01-00:00", "2026-01-02-00:00", "2026-01-03-00:00"]),
    ],
)
def test_partitions_are_the_batches(tmp_path: Path, batch: str, keys: list[str]) -> None:
    """Dagster's keys and the calendar's are the same, for every length of a batch."""
    chosen = settings(tmp_path).model_copy(update={"batch": parse_duration(batch)})
    assert list(batches(chosen).get_partition_keys()[:3]) == keys
    assert [chosen.calendar.batch(key).key for key in keys] == keys


@pytest.mark.parametrize(("lookback", "resolutions", "reach"), [("1h", "1m,5m,1h", 2), ("30m", "1m,5m", 1)])
def test_rollups_depend_on_the_partial_points_of_their_own_batch_and_those_they_reach(
    tmp_path: Path, lookback: str, resolutions: str, reach: int
) -> None:
    chosen = settings(tmp_path, lookback=lookback, resolutions=resolutions)
    graph = build_definitions(chosen).resolve_asset_graph()
    mapping = graph.get_partition_mapping(dg.AssetKey(ROLLUPS), dg.AssetKey(PARTIAL_POINTS))
    assert mapping == own_and_earlier(chosen)
    assert isinstance(mapping, dg.TimeWindowPartitionMapping)
    assert (mapping.start_offset, mapping.end_offset) == (-reach, 0)


def test_the_schedule_of_the_job_is_stopped_until_someone_starts_it(tmp_path: Path) -> None:
    schedule = build_definitions(settings(tmp_path)).resolve_schedule_def("batches_schedule")
    assert schedule.default_status == dg.DefaultScheduleStatus.STOPPED
    assert schedule.job_name == "batches"
    with dg.DagsterInstance.ephemeral() as instance:
        tick = dg.build_schedule_context(instance=instance, scheduled_execution_time=dt.datetime(2026, 1, 2, 3, tzinfo=dt.UTC))
        (request,) = schedule.evaluate_tick(tick).run_requests or ()
    assert request.partition_key == "2026-01-02-02:00"


def test_the_schedule_says_that_it_makes_up_for_no_missed_tick_and_what_does(tmp_path: Path) -> None:
    """Dagster's daemon catches up only with schedules of a partition set, and builds none of those any more."""
    from dagster._core.remote_representation.external_data import RepositorySnap

    definitions = build_definitions(settings(tmp_path))
    (known,) = RepositorySnap.from_def(definitions.get_repository_def()).schedules
    assert known.partition_set_name is None
    assert known.description
    for named in ("raw_files_sensor", "`rollups backfill FIRST LAST`", "`rollups status`"):
        assert named in known.description


@pytest.mark.parametrize("kept", ["variable", "file", ".env"])
def test_a_catalog_password_is_the_name_of_its_variable_to_dagster_and_still_reaches_the_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    """What Dagster shows and records of it in a real run is tested in ``integration/test_secrets.py``."""
    from rollup_assets.defs import resources as res

    if kept == "variable":
        monkeypatch.setenv("ROLLUP_CATALOG_PASSWORD", "secret")
    elif kept == "file":
        (tmp_path / "password").write_text("secret")
        monkeypatch.setenv("ROLLUP_CATALOG_PASSWORD_FILE", str(tmp_path / "password"))
    uri = "postgresql+psycopg://rollups@db/rollups"
    chosen = settings(tmp_path, catalog=uri, **({"catalog_password": "secret"} if kept == ".env" else {}))
    made = res.resources(chosen)
    assert "secret" not in str({name: resource.model_dump() for name, resource in made.items()})
    assert made["catalog"].catalog_password == (dg.EnvVar("ROLLUP_CATALOG_PASSWORD") if kept == "variable" else "")
    found = res.pipeline(chosen, **made).settings
    assert (found.catalog, found.read_catalog_password()) == (uri, "secret")


def test_resources_can_be_replaced_and_go_before_the_settings(tmp_path: Path) -> None:
    from rollup_assets.defs import resources as res

    chosen = settings(tmp_path)
    made = res.resources(chosen) | {"storage": res.Storage(raw="/elsewhere", stage=chosen.stage, warehouse=chosen.warehouse)}
    pipeline = res.pipeline(chosen, **made)
    assert pipeline.settings.raw == "/elsewhere"
    assert pipeline.settings.stage == chosen.stage
