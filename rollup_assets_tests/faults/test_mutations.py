"""The suite is tested too: with one safeguard of the product taken out at a time, a named test fails, and by what it has compared."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import rollup_assets
from rollup_assets_tests.faults.mutations import MUTATIONS, VARIABLE

PROJECT = Path(rollup_assets.__file__).parent.parent


@dataclass(frozen=True)
class Noticed:
    """``test``: which one notices; ``says``: a part of what it then prints."""

    test: str
    says: str


PUBLISH = "iceberg/test_publish.py::test_"
CASES = {
    "lock": Noticed(
        f"{PUBLISH}publishers_wait_for_one_another_and_none_does_its_work_twice",
        "AssertionError: a plan was made, or a file rewritten, for nothing",
    ),
    "ancestry": Noticed(f"{PUBLISH}what_others_commit_after_a_lost_acknowledgement_stays", "assert value_by_batch(pipeline) =="),
    "digest": Noticed(f"{PUBLISH}an_older_result_never_replaces_a_newer_one", "assert value_by_batch(pipeline) =="),
    "validation": Noticed(f"{PUBLISH}a_foreign_append_into_the_range_between_plan_and_commit_is_replaced", "rows instead of"),
    "rejections": Noticed(
        "history/test_rollback.py::test_rolled_back_content_is_published_again_only_if_it_changes_or_by_force",
        "assert state(pipeline, batch) ==",
    ),
    "delete filter": Noticed("steps/test_publish.py::test_a_changed_batch_is_replaced_and_its_neighbours_are_untouched", "rows instead of"),
    "manifests first": Noticed(
        "faults/test_manifests_last.py::test_all_files_of_a_manifest_are_there_when_it_appears",
        "AssertionError: the manifest of rollups names files that are not there",
    ),
    "duplicate rule": Noticed(
        "steps/test_repartition.py::test_quarantined_rows_and_duplicates_leave_no_trace_in_the_staged_files", "assert len(seen) == 1"
    ),
}
QUICK = ("ancestry", "digest", "manifests first")


def run(tests: list[str], mutation: str = "") -> subprocess.CompletedProcess[str]:
    """The tests in a process of their own, with a mutation or without."""
    plugins = ["-p", "no:cacheprovider", "-p", "rollup_assets_tests.faults.mutations"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *plugins, "--tb=short", *(f"rollup_assets_tests/{test}" for test in tests)],
        cwd=PROJECT,
        env={**os.environ, VARIABLE: mutation, "PYTHONPATH": str(PROJECT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_every_mutation_is_noticed_by_a_named_test() -> None:
    assert CASES.keys() == MUTATIONS.keys()


@pytest.mark.scenario("P2")
@pytest.mark.parametrize("mutation", [pytest.param(name, marks=() if name in QUICK else pytest.mark.thorough) for name in CASES])
def test_without_a_safeguard_a_test_fails_by_what_it_compares(mutation: str) -> None:
    """Not because something is missing or cannot be imported: other exit codes than 1 say that."""
    noticed = CASES[mutation]
    ran = run([noticed.test], mutation)
    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert noticed.says in ran.stdout, ran.stdout


@pytest.mark.thorough
@pytest.mark.scenario("P2")
def test_with_all_safeguards_the_same_tests_pass() -> None:
    ran = run(sorted({noticed.test for noticed in CASES.values()}))
    assert ran.returncode == 0, ran.stdout + ran.stderr
