"""What is installed is locked with hashes, listed, and audited where that is possible; nothing passes because nobody could be asked."""

from __future__ import annotations

import ast
import configparser
import json
import os
import re
import shlex
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = sorted([ROOT / "requirements.lock", *(ROOT / "deploy").glob("*.lock")])


def locked(lock: Path) -> dict[tuple[str, str], set[str]]:
    """(name, version) -> SHA-256 digests."""
    found: dict[tuple[str, str], set[str]] = {}
    for entry in re.split(r"^(?=\S)", re.sub(r"^\s*#.*\n", "", lock.read_text(), flags=re.MULTILINE), flags=re.MULTILINE):
        if match := re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^ \\\n;]+)", entry):
            found[match[1], match[2]] = set(re.findall(r"--hash=sha256:([0-9a-f]{64})", entry))
        else:
            assert not entry.strip(), entry[:200]
    return found


def recipe(target: str) -> str:
    """The commands of a target of the Makefile, in one line."""
    (lines,) = re.findall(rf"^{target}: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return str(lines).replace("\\\n", " ").replace("$(BIN)/", f"{Path(sys.executable).parent}/")


def imported(folder: Path) -> set[str]:
    """The packages of others that modules in a folder import by name."""
    found = set()
    for module in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return {name for name in found - set(sys.stdlib_module_names) if not (ROOT / name).is_dir()}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [
        ("rollup_assets", {"postgres", "spark"}),
        ("benchmarks", {"postgres", "spark", "bench", "dev"}),
        ("deploy", {"postgres", "spark", "dev"}),
        ("rollup_assets_tests", {"postgres", "spark", "bench", "dev"}),
    ],
)
def test_what_is_imported_is_required_by_name(folder: str, extras: set[str]) -> None:
    """And not only there because some other package happens to need it."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = [setup["options"]["install_requires"], *(setup["options.extras_require"][extra] for extra in extras)]
    required = {canonicalize_name(Requirement(line).name) for line in "\n".join(lines).split("\n") if line}
    owners = {name: {canonicalize_name(owner) for owner in found} for name, found in packages_distributions().items()}
    used = imported(ROOT / folder)
    assert used
    assert [name for name in sorted(used) if not required & owners.get(name, set())] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_package_is_locked_with_hashes_and_no_address(lock: Path) -> None:
    found = locked(lock)
    assert found
    assert all(found.values())
    assert "://" not in re.sub(r"^\s*#.*\n", "", lock.read_text(), flags=re.MULTILINE)


def test_what_images_install_is_a_part_of_what_is_tested() -> None:
    everything = locked(ROOT / "requirements.lock")
    for lock in LOCKS:
        assert locked(lock).keys() <= everything.keys(), lock.name


def test_everything_is_installed_with_hashes() -> None:
    """By the Makefile and by the images."""
    for name in ("Makefile", "Dockerfile"):
        commands = re.findall(r"pip install [^\n&]*--requirement[^\n&]*", (ROOT / name).read_text())
        assert commands
        assert all("--require-hashes" in command for command in commands), name


def test_the_bill_of_materials_lists_every_locked_package_with_its_hashes(tmp_path: Path) -> None:
    command = shlex.split(recipe("sbom").strip().splitlines()[-1])
    place = command.index("--output-file") + 1
    assert command[place].startswith("dist/")
    command[place] = str(tmp_path / "sbom.json")
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    made = json.loads((tmp_path / "sbom.json").read_text())
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")
    listed = {
        (each["name"], each["version"]): {
            digest["content"]
            for reference in each["externalReferences"]
            for digest in reference.get("hashes", ())
            if digest["alg"] == "SHA-256"
        }
        for each in made["components"]
    }
    assert listed == locked(ROOT / "requirements.lock")


def test_the_bill_of_materials_is_made_and_not_committed() -> None:
    assert "dist/" in (ROOT / ".gitignore").read_text().split()


def test_an_audit_that_can_ask_nobody_does_not_pass() -> None:
    """Of two packages, with a proxy that does not answer."""
    command = recipe("audit").replace("requirements.lock", "deploy/requirements-build.lock")
    nowhere = dict.fromkeys(("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY"), "http://127.0.0.1:9")
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"} | nowhere
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "make audit: not passed" in done.stdout


def test_jars_are_pinned_by_digest() -> None:
    sums = [line.split() for line in (ROOT / "deploy/jars.sha256").read_text().splitlines()]
    assert sums
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) and re.search(r"-\d[\w.]*\.jar$", name) for digest, name in sums)
    script = (ROOT / "deploy/jars.sh").read_text()
    assert script.rstrip().endswith('sha256sum --check --strict --quiet "$sums"')
    for package in re.search(r"^packages=(\S+)$", script, re.MULTILINE)[1].split(","):  # type: ignore[index]
        group, name, version = package.split(":")
        assert f"{group}_{name}-{version}.jar" in {jar for _, jar in sums}
