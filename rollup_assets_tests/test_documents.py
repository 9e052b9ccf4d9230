"""What the documents say is so: tables equal the code's, commands run as printed, and nothing of one machine is in the repository."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rollup_assets.query import query
from rollup_assets.settings import Settings, load_settings
from rollup_assets.steps import checks
from rollup_assets.steps.publish import publish
from rollup_assets.units import parse_duration
from rollup_assets_tests import worked_example
from rollup_assets_tests.iceberg.staging import batches_from, pipeline_in, stage_rollups

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SEMANTICS = (ROOT / "docs/semantics.md").read_text()

Row = tuple[str, ...]


def tables(text: str) -> Iterator[tuple[Row, list[Row]]]:
    """(header, rows) of each Markdown table, cells without spaces around them."""
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.MULTILINE):
        lines = [tuple(cell.strip() for cell in line.strip().strip("|").split("|")) for line in block.splitlines()]
        yield lines[0], lines[2:]


def table(text: str, *header: str) -> list[Row]:
    """The rows of the one table that begins with these columns."""
    (rows,) = (rows for names, rows in tables(text) if names[: len(header)] == header)
    return rows


def code(cell: str) -> str:
    """The text of a cell that is one code span."""
    assert re.fullmatch(r"`[^`]+`", cell), cell
    return cell.strip("`")


def shell_blocks(text: str) -> list[str]:
    """Lines of all ``sh`` blocks."""
    return [line for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL) for line in block.splitlines()]


# ------------------------------------------------------------------------------------------------------------------- tables


def test_the_worked_example_is_the_one_that_is_tested() -> None:
    """Points and every row of the table, literally."""
    section = SEMANTICS.split("## A worked example", 1)[1]
    points = re.findall(r"(\d\d:\d\d:\d\d) → (\d+)", section.split("|", 1)[0])
    assert [(worked_example.clock(time), int(value)) for time, value in points] == [(row.ts, row.value) for row in worked_example.RAW_ROWS]

    def window(row: Row) -> worked_example.Window:
        resolution, label, count, total, least, most, average, latest, delta, resets, by = row
        return worked_example.Window(
            resolution=parse_duration(resolution),
            label=worked_example.clock(label),
            count=int(count),
            sum=int(total),
            min=int(least),
            max=int(most),
            average=float(average),
            latest=int(latest),
            delta=None if delta == "null" else int(delta),
            resets=int(resets),
            published_by=int(by.removeprefix("batch ")),
        )

    assert [window(row) for row in table(section, "resolution", "label")] == worked_example.EXAMPLE


def test_the_columns_that_are_defined_are_those_of_the_table() -> None:
    from rollup_assets.iceberg.schema import iceberg_schema

    defined = [name for cells in table(SEMANTICS, "column", "definition") for name in re.findall(r"`([^`]+)`", cells[0])]
    keys = {"id", "resolution", "logical_timestamp"}  # what a row is about
    assert sorted(defined) == sorted({field.name for field in iceberg_schema("long").fields} - keys)


def test_the_settings_table_is_complete_and_its_defaults_are_the_defaults() -> None:
    rows = {code(row[0]).removeprefix("ROLLUP_").lower(): row[1] for row in table(README, "setting", "default")}
    assert sorted(rows) == sorted(Settings.model_fields)
    assert len(rows) == len(table(README, "setting", "default"))
    actual = load_settings()
    in_words = {"the batch": actual.batch, "cores": len(os.sched_getaffinity(0)), "half of memory": actual.memory}
    for name, default in rows.items():
        if default in in_words:
            assert getattr(actual, name) == in_words[default]
        elif default == "none":
            assert not getattr(actual, name), name
        else:
            text = code(default).replace("<home>", code(rows["home"]))
            assert getattr(load_settings(**{name: text}), name) == getattr(actual, name), name


def test_the_checks_table_is_complete() -> None:
    """Asset, name, and whether failing is only a warning."""
    documented = {}
    asset = ""
    for row in table(README, "asset", "check"):
        asset = code(row[0]) if row[0] else asset
        documented[asset, code(row[1])] = "(warning)" in row[2]
    assert documented == {key: "(warning)" in text for key, text in checks.DESCRIPTIONS.items()}


def test_the_folders_that_are_described_exist() -> None:
    for row in table(README, "folder", "what is in it"):
        assert (ROOT / code(row[0])).is_dir(), row[0]


def test_the_tests_that_prove_what_security_promises_are_there() -> None:
    rows = table((ROOT / "docs/security.md").read_text(), "expectation", "what is done")
    named = [code(test.strip()) for row in rows for test in row[2].split(",")]
    assert len(rows) > 10
    assert [test for test in named if not (ROOT / "rollup_assets_tests" / test).is_file()] == []


def test_links_between_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target, section in re.findall(r"\]\((?![a-z]+:)([^)#\s]*)(?:#([^)\s]*))?\)", document.read_text()):
            found = document.parent / target if target else document
            assert found.exists(), f"{document.name}: {target}"
            if section and found.suffix == ".md":
                titles = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
                anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
                assert section in anchors, f"{document.name}: {target}#{section}"


# ----------------------------------------------------------------------------------------------------------------- commands


def test_every_make_command_is_a_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    phony = set(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split())
    assert phony <= targets
    spans = [*shell_blocks(README), *re.findall(r"`([^`\n]+)`", README), *re.findall(r"^#   (make .*)$", makefile, re.MULTILINE)]
    named = {match[1] for span in spans if (match := re.match(r"make ([\w-]+)", span))}
    assert named >= {"demo", "test"}
    assert named <= targets


def test_the_commands_of_the_readme_run_as_printed_and_leave_what_it_says(tmp_path: Path) -> None:
    """In order, from the repository's root, with the environment's programs first in the path; only fewer series, to be quick."""
    bash = shutil.which("bash")
    assert bash
    commands = [line for line in shell_blocks(README) if line.startswith(("rollups ", "dg "))]
    (export,) = (line for line in shell_blocks(README) if line.startswith("export "))
    assert {line.split()[1] for line in commands} >= {"generate", "doctor", "backfill", "status", "verify", "sql", "launch"}
    home = tmp_path / "home"
    export = export.replace("$PWD/.rollups", str(home))
    assert str(home / "dagster") in export
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "ROLLUP_HOME": str(home),
    }
    environment.pop("DAGSTER_HOME", None)

    def run(command: str) -> str:
        done = subprocess.run([bash, "-c", f"{export}\n{command}"], env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    (asked,) = (line for line in commands if line.startswith("rollups sql"))
    *_, statement = shlex.split(asked, comments=True)
    tables_found = []
    for command in commands:
        run(re.sub(r"--series \d+", "--series 60", command))
        if command is asked or command is commands[-1]:
            found = query(load_settings(home=str(home)), statement)
            tables_found.append(sorted(tuple(row.values()) for row in found.to_pylist()))

    # All points, at every resolution; and what the runs of dg did again changed nothing.
    accepted = sum(
        json.loads(path.read_text())["counters"]["rows_accepted"] for path in home.glob("stage/repartitioned_datapoints/*/manifest.json")
    )
    assert accepted > 60 * 3 * 300
    assert [(resolution, total) for resolution, _, total in tables_found[0]] == [
        (resolution, accepted) for resolution in load_settings().resolutions
    ]
    assert tables_found[0] == tables_found[-1]

    from dagster import DagsterInstance, DagsterRunStatus

    with DagsterInstance.from_config(str(home / "dagster")) as instance:
        runs = instance.get_runs()
    launched = [line for line in commands if line.startswith("dg launch")]
    assert {run.status for run in runs} == {DagsterRunStatus.SUCCESS}
    assert len(runs) > len(launched)


# --------------------------------------------------------------------------------------------------------------- repository


def tracked_files() -> list[Path]:
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True).stdout
    return [ROOT / name for name in listed.split("\0") if name and (ROOT / name).is_file()]


# Written apart, so that this file does not contain them.
OF_ONE_MACHINE = {
    "an absolute path": rb"(?<![\w.<>*}])/" + rb"(?:work|root|home/\w+)" + rb"/",
    "a package index": rb"--(?:extra-)?" + rb"index-url|--trusted" + rb"-host|//[\w.-]*(?:pypi|pythonhosted|artifactory|nexus)",
    "unfinished work": rb"#\s*(?:TO" + rb"DO|FIX" + rb"ME|XX" + rb"X)\b",
}


def test_the_table_is_read_from_python_as_the_readme_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pipeline = pipeline_in(tmp_path / ".rollups")
    for batch in batches_from(pipeline, 2):
        stage_rollups(pipeline, batch, series=3)
        publish(pipeline, batch)
    (block,) = re.findall(r"^  ```python\n(.*?)^  ```", README, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(textwrap.dedent(block), names)
    assert names["hourly"].num_rows == 3
    assert names["table"].scan().to_duckdb("rollups").sql("SELECT count(*) FROM rollups WHERE resolution = 3600000").fetchall() == [(6,)]


@pytest.mark.parametrize("what", OF_ONE_MACHINE)
def test_no_file_in_the_repository_holds(what: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}: {match[0].decode(errors='replace')}"
        for path in tracked_files()
        if (match := re.search(OF_ONE_MACHINE[what], path.read_bytes()))
    ]
    assert found == []


def test_generated_and_secret_files_are_not_tracked() -> None:
    ignored = (ROOT / ".gitignore").read_text().split()
    assert {".venv/", ".rollups/", "__pycache__/", ".env"} <= set(ignored)
    tracked = [str(path.relative_to(ROOT)) for path in tracked_files()]
    assert not [name for name in tracked if re.search(r"(^|/)(\.env|__pycache__|\.rollups|\.venv|dist|build)(/|$)|\.(pyc|db|log)$", name)]
