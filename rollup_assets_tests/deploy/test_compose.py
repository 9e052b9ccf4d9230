"""No container engine is needed to see that ``docker-compose.yaml`` is complete, hardened and means what the package understands."""

from __future__ import annotations

import configparser
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from deploy import instance
from rollup_assets.settings import Settings, load_settings
from rollup_assets.units import parse_size
from rollup_assets_tests.deploy.compose import FILE, OUTSIDE, ROOT, compose, outside, services

if TYPE_CHECKING:
    from deploy.servers.seaweedfs import S3Server

SERVICES = services()
JOBS = [name for name, service in SERVICES.items() if service["restart"] == "no"]
SERVERS = [name for name in SERVICES if name not in JOBS]
WORKSPACE = "/opt/rollups/dagster/workspace.yaml"
RUN_OVERHEAD = parse_size("512MiB")
"""Of a run's process beside its data: Python, Arrow and compiled kernels take about 400 MiB."""
SERVER_OVERHEAD = parse_size("1GiB")
BACKFILLS = 1
"""``rollups backfill`` by ``docker compose exec code-location``: it does not wait in the queue, so it may come on top of its runs."""


def size(text: str) -> int:
    """Bytes of a size as Compose writes it, ``6g``."""
    return parse_size(re.sub(r"([mg])$", lambda unit: f"{unit[1].upper()}iB", text))


@pytest.mark.parametrize("file", [FILE, OUTSIDE], ids=lambda file: file.name)
def test_it_follows_the_compose_specification(file: Path) -> None:
    command = [str(Path(sys.executable).with_name("check-jsonschema")), "--builtin-schema", "vendor.compose-spec", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_all_that_was_asked_for_is_there() -> None:
    assert {"postgres", "object-storage", "code-location", "web-server", "viewers", "daemon"} == set(SERVERS)
    assert {name for name in SERVICES if "profiles" in SERVICES[name]} == {"viewers"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_pinned_and_has_no_more_rights_than_it_needs(name: str) -> None:
    service = SERVICES[name]
    assert re.fullmatch(r"[\w./-]+:\d+(\.\d+)+[\w.-]*", service["image"]), "a version, not a moving tag"
    assert service["read_only"] is True
    uid, gid = map(int, service["user"].split(":"))
    assert uid > 0
    assert gid > 0
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "pid", "ipc", "env_file"} & service.keys()
    assert service["init"] is True
    assert size(service["mem_limit"]) > 0
    # Docker refuses more cores than there are. The work itself has all of them, unless somebody says how many.
    assert float(service["cpus"]) == (0 if name == "code-location" else 1)
    assert any(mount.startswith("/tmp:") for mount in service["tmpfs"])


@pytest.mark.parametrize("name", SERVERS)
def test_a_server_comes_back_and_its_health_is_known(name: str) -> None:
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    health = service["healthcheck"]
    assert health["test"][0] in ("CMD", "CMD-SHELL")
    assert {"interval", "timeout", "retries"} <= health.keys()


def test_what_is_waited_for_can_come_true() -> None:
    for name, service in SERVICES.items():
        for other, wanted in service.get("depends_on", {}).items():
            allowed = {"service_completed_successfully": JOBS, "service_healthy": SERVERS}[wanted["condition"]]
            assert other in allowed, (name, other)


def test_whatever_is_referred_to_is_declared_and_the_reverse() -> None:
    declared = {kind: set(compose()[kind]) for kind in ("volumes", "secrets", "networks")}
    used: dict[str, set[str]] = {"volumes": set(), "secrets": set(), "networks": set()}
    for service in SERVICES.values():
        used["secrets"] |= set(service.get("secrets", ()))
        used["networks"] |= set(service.get("networks", ()))
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("./"):
                assert (ROOT / source).is_file(), source
            else:
                used["volumes"].add(source)
    assert used == declared


def test_a_volume_keeps_the_owner_that_its_service_runs_as() -> None:
    """Docker copies owner and content of the image's folder to a volume, for each container that is made while the volume is empty."""
    users_of_images = {"postgres": "999:999", "chrislusf/seaweedfs": "root"}
    users: dict[str, set[str]] = {}
    owners: dict[str, set[str]] = {}
    for service in SERVICES.values():
        owner = service["user"] if "build" in service else users_of_images[service["image"].rsplit(":", 1)[0]]
        for mount in service.get("volumes", ()):
            source, _, *options = mount.split(":")
            if not source.startswith("./"):
                users.setdefault(source, set()).add(service["user"])
                if "nocopy" not in ",".join(options).split(","):
                    owners.setdefault(source, set()).add(owner)
    assert users.keys() == compose()["volumes"].keys()
    assert owners == users
    assert all(len(each) == 1 for each in users.values())


def test_a_secret_that_a_service_is_told_of_is_mounted_there_and_none_is_a_value() -> None:
    for name, service in SERVICES.items():
        for variable, value in service.get("environment", {}).items():
            if str(value).startswith("/run/secrets/"):
                assert Path(value).name in service["secrets"], (name, variable)
            else:
                assert not re.search(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY", variable), (name, variable)
                assert not re.search(r"://[^/@]*:[^/@]*@", str(value)), (name, variable)
        for secret in service.get("secrets", ()):
            assert f"/run/secrets/{secret}" in str(service), (name, secret)


def test_only_this_machine_reaches_the_ports() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
    assert compose()["networks"]["backend"] == {"internal": True}


def test_every_setting_is_one_and_together_they_are_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    for service in SERVICES.values():
        named = {name.removeprefix("ROLLUP_").lower() for name in service.get("environment", {}) if name.startswith("ROLLUP_")}
        assert named <= Settings.model_fields.keys()
    for name, value in SERVICES["code-location"]["environment"].items():
        monkeypatch.setenv(name, str(value))
    settings = load_settings()
    assert settings.raw == "s3://raw/datapoints"
    assert settings.catalog.startswith("postgresql+psycopg://rollups@postgres")


@pytest.mark.parametrize("name", ["code-location", "catalog"])
def test_every_setting_that_says_nothing_of_places_comes_from_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is its default where the environment has none."""
    secrets = {"catalog_password", "catalog_password_file", "catalog_admin_password", "catalog_admin_password_file"}
    places = {"home", "raw", "stage", "warehouse", "catalog", "s3_endpoint", "s3_region", "s3_path_style", "s3_ca_bundle"}
    written = yaml.safe_load(FILE.read_text())["services"][name]["environment"]
    of_user = [
        field for field in Settings.model_fields if str(written.get(f"ROLLUP_{field.upper()}")).startswith(f"${{ROLLUP_{field.upper()}:-")
    ]
    assert set(of_user) == Settings.model_fields.keys() - secrets - places
    of_this_file = {"start", "threads", "memory", "spark_master"}
    for field in of_user:
        monkeypatch.delenv(f"ROLLUP_{field.upper()}", raising=False)
    defaults = load_settings()
    for field in of_user:
        monkeypatch.setenv(f"ROLLUP_{field.upper()}", str(SERVICES[name]["environment"][f"ROLLUP_{field.upper()}"]))
    settings = load_settings()
    for field in of_user:
        assert field in of_this_file or getattr(settings, field) == getattr(defaults, field), field


def test_the_commands_are_those_that_the_demonstration_runs() -> None:
    assert SERVICES["code-location"]["command"] == instance.code_location("0.0.0.0", 4000)
    assert SERVICES["code-location"]["healthcheck"]["test"] == ["CMD", *instance.code_location_health(4000)]
    assert SERVICES["web-server"]["command"] == instance.web_server("0.0.0.0", 3000, WORKSPACE)
    assert SERVICES["viewers"]["command"] == [*instance.web_server("0.0.0.0", 3001, WORKSPACE), "--read-only", "--path-prefix", "/look"]
    assert SERVICES["daemon"]["command"] == instance.daemon(WORKSPACE)
    assert SERVICES["migrations"]["command"] == list(instance.MIGRATE)


def test_our_image_has_the_version_of_the_package_and_is_a_target_of_the_dockerfile() -> None:
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    built = {(service["image"], service["build"]["target"]) for service in SERVICES.values() if "build" in service}
    assert built == {(f"rollups:{metadata['metadata']['version']}", "rollups")}
    targets = re.findall(r"^FROM \S+ AS (\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert {"rollups", "rollups-spark"} <= set(targets)


def test_the_code_location_has_memory_for_all_runs_at_once_and_a_backfill_beside_them() -> None:
    service = SERVICES["code-location"]
    runs = yaml.safe_load((ROOT / "deploy/dagster.yaml").read_text())["concurrency"]["runs"]["max_concurrent_runs"]
    needed = (runs + BACKFILLS) * (parse_size(service["environment"]["ROLLUP_MEMORY"]) + RUN_OVERHEAD) + SERVER_OVERHEAD
    assert size(service["mem_limit"]) >= needed


def test_backfills_leave_a_run_and_a_place_in_each_pool_for_the_newest_batch() -> None:
    concurrency = yaml.safe_load((ROOT / "deploy/dagster.yaml").read_text())["concurrency"]
    runs, places = concurrency["runs"]["max_concurrent_runs"], concurrency["pools"]["default_limit"]
    (backfills,) = (each["limit"] for each in concurrency["runs"]["tag_concurrency_limits"] if each["key"] == "dagster/backfill")
    assert backfills + BACKFILLS < runs, "Dagster counts a `rollups backfill`, which has not queued, among the runs that are going on"
    assert backfills < places
    assert places >= runs + BACKFILLS, "a run that waits at a pool holds its place in the queue, and a core"


# ----------------------------------------------------------------------------------------------------------------- elsewhere

ELSEWHERE = {
    "DAGSTER_POSTGRES_HOST": "db.example.com",
    "ROLLUP_CATALOG": "postgresql+psycopg://rollups@db.example.com:5432/catalog?sslmode=verify-full&sslrootcert=/run/authorities.pem",
    "ROLLUP_S3_ENDPOINT": "https://s3.example.com",
    "ROLLUP_RAW": "s3://telemetry/raw",
}


@pytest.mark.parametrize("profiles", [set(), {"postgres"}, {"object-storage"}, {"postgres", "object-storage"}], ids=sorted)
def test_what_stays_here_is_waited_for_and_nothing_else_is(profiles: set[str]) -> None:
    """Compose refuses to wait for a service that is not started, unless that is not required."""
    every: dict[str, Any] = outside({})["services"]
    started = {name: service for name, service in every.items() if "profiles" not in service or profiles & set(service["profiles"])}
    assert SERVICES.keys() == every.keys()
    of_profiles = {"postgres": {"postgres"}, "object-storage": {"object-storage", "object-storage-owner", "buckets"}}
    stays = set().union(*(of_profiles[profile] for profile in profiles))
    assert started.keys() == SERVICES.keys() - {"viewers", *of_profiles["postgres"], *of_profiles["object-storage"]} | stays
    for name, service in started.items():
        for other, wanted in service.get("depends_on", {}).items():
            assert other in started or wanted.get("required") is False, (name, other)
            assert wanted["condition"] == SERVICES[name]["depends_on"][other]["condition"]


def test_profiles_are_asked_for_in_one_way_that_every_command_follows() -> None:
    """With ``--profile`` on its command line Compose ignores ``COMPOSE_PROFILES``, and starts nothing of the profiles there."""
    profiles = {profile for service in outside({})["services"].values() for profile in service.get("profiles", ())}
    documents = [FILE, OUTSIDE, *ROOT.glob("docs/*.md"), ROOT / "README.md"]
    asked = [names for file in documents for names in re.findall(r"COMPOSE_PROFILES=([\w,-]+)", file.read_text())]
    assert {name for names in asked for name in names.split(",")} == profiles
    assert "object-storage,viewers" in asked
    assert not [file.name for file in documents if re.search(r"docker compose [^`\n]*--profile|--profile \w", file.read_text())]


def test_whatever_asks_a_server_elsewhere_reaches_out() -> None:
    merged = outside(ELSEWHERE)
    asking = {name for name, service in merged["services"].items() if "example.com" in str(service.get("environment"))}
    assert asking == {"catalog", "migrations", "code-location", "web-server", "viewers", "daemon"}
    for name in asking:
        service = merged["services"][name]
        assert any(not (merged["networks"][network] or {}).get("internal") for network in service["networks"]), name
        assert "backend" in service["networks"]
        assert {"source": "authorities", "target": "/run/authorities.pem"} in service["configs"]
        assert not re.search(r"@postgres\b|//object-storage\b", str(service["environment"])), name
    assert merged["services"]["postgres"]["networks"] == ["backend"]
    assert merged["configs"].keys() == {"authorities"}


@pytest.mark.parametrize(("given", "file"), [({}, "/dev/null"), ({"SPARK_CONNECT_TOKEN": ".secrets/token"}, ".secrets/token")], ids=str)
def test_the_token_of_a_spark_connect_server_is_a_file_that_runs_alone_have(given: dict[str, str], file: str) -> None:
    """Compose refuses to start anything if a secret's file does not exist."""
    merged = outside({"ROLLUP_SPARK_REMOTE": "sc://spark.example.com:15002", **given})
    assert {name: secret["file"] for name, secret in merged["secrets"].items() if name not in compose()["secrets"]} == {
        "spark_connect_token": file
    }
    service = merged["services"]["code-location"]
    assert service["environment"]["SPARK_CONNECT_AUTHENTICATE_TOKEN_FILE"] == "/run/secrets/spark_connect_token"
    assert [name for name, each in merged["services"].items() if "spark_connect_token" in each.get("secrets", ())] == ["code-location"]
    assert set(SERVICES["code-location"]["secrets"]) < set(service["secrets"])


def test_the_settings_of_servers_elsewhere_are_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    authorities = tmp_path / "authorities.pem"
    authorities.touch()
    for name, value in outside(ELSEWHERE)["services"]["code-location"]["environment"].items():
        monkeypatch.setenv(name, str(value).replace("/run/authorities.pem", str(authorities)))
    settings = load_settings()
    assert settings.raw == "s3://telemetry/raw"
    assert settings.s3.endpoint == "https://s3.example.com"
    assert settings.s3_path_style is True
    assert os.environ["DAGSTER_POSTGRES_HOST"] == "db.example.com"
    assert os.environ["PGSSLMODE"] == "verify-full"
    amazon = outside({**ELSEWHERE, "ROLLUP_S3_ENDPOINT": ""})["services"]["code-location"]["environment"]
    assert amazon["ROLLUP_S3_ENDPOINT"] == ""


# ----------------------------------------------------------------------------------------------------------------- secrets


def make_secrets(folder: Path) -> dict[str, str]:
    subprocess.run(["sh", str(ROOT / "deploy/make-secrets.sh"), str(folder)], check=True)
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_the_secrets_are_made_once_and_are_all_that_compose_mounts(tmp_path: Path) -> None:
    made = make_secrets(tmp_path / "secrets")
    assert {f".secrets/{name}" for name in made} == {secret["file"] for secret in compose()["secrets"].values()}
    passwords = {content for name, content in made.items() if name.endswith("_password")}
    assert len(passwords) == 4
    assert all(re.fullmatch(r"[0-9a-f]{48}", password) for password in passwords)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700
    assert make_secrets(tmp_path / "secrets") == made
    assert make_secrets(tmp_path / "others") != made


def test_a_password_is_rotated_as_the_document_says_and_stays_the_file_that_is_mounted(tmp_path: Path) -> None:
    """Compose mounts the file itself: one of the same name in its place is not seen by containers that run."""
    old = make_secrets(tmp_path / ".secrets")
    (tmp_path / "new-password").write_text("new\n")
    (block,) = re.findall(r"^```\n(chmod [^`]*)^```", (ROOT / "docs/production.md").read_text(), re.MULTILINE)
    mounted = (tmp_path / ".secrets/catalog_password").stat()
    done = subprocess.run(["sh", "-e", "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = (tmp_path / ".secrets/catalog_password").stat()
    assert (found.st_ino, stat.S_IMODE(found.st_mode)) == (mounted.st_ino, stat.S_IMODE(mounted.st_mode))
    assert make_secrets(tmp_path / ".secrets") == old | {"catalog_password": "new\n"}


def test_nobody_commits_secrets_or_puts_them_into_an_image() -> None:
    assert ".secrets/" in (ROOT / ".gitignore").read_text().split()


def test_s3_knows_the_keys_that_the_services_have(tmp_path: Path) -> None:
    made = make_secrets(tmp_path / "secrets")
    identities: Any = yaml.safe_load(made["s3_identities"])["identities"]
    keys = {each["name"]: each["credentials"][0] for each in identities}
    for name, file in (("pipeline", "aws_credentials"), ("admin", "aws_credentials_admin")):
        profile = configparser.ConfigParser()
        profile.read_string(made[file])
        assert profile["default"]["aws_access_key_id"] == keys[name]["accessKey"] == name
        assert profile["default"]["aws_secret_access_key"] == keys[name]["secretKey"]
    allowed = next(each["actions"] for each in identities if each["name"] == "pipeline")
    assert [action for action in allowed if action.endswith(":raw")] == ["Read:raw", "List:raw"]


def test_the_buckets_are_made_where_they_are_missing(s3_server: S3Server) -> None:
    python, *arguments = SERVICES["buckets"]["command"]
    assert python == "python"
    script = arguments[-1].replace('"raw", "lake"', '"raw", "lake", "made-by-compose"')
    assert script != arguments[-1]
    environment = {
        "PATH": os.environ["PATH"],
        "AWS_ENDPOINT_URL": s3_server.endpoint,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": s3_server.admin.access_key,
        "AWS_SECRET_ACCESS_KEY": s3_server.admin.secret_key,
    }
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "made-by-compose" in {bucket["Name"] for bucket in s3_server.client().list_buckets()["Buckets"]}
