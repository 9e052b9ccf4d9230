"""D1, D2: a full disk and memory that runs out end a run with an error or a kill, never with half a commit."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rollup_assets_tests.faults.conftest import MakeSite
from rollup_assets_tests.faults.invariants import check_all, one_live_result_per_partition, rows_of, state_of
from rollup_assets_tests.faults.site import Site
from rollup_assets_tests.faults.work import FAILED, REFUSED

THOROUGH = pytest.mark.thorough
DISK = 2 << 20


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A filesystem of a few MiB at a folder."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs of limited size needs root")
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, left: int) -> Path:
    """A file that leaves so many bytes on the disk."""
    ballast = folder / ".ballast"
    found = os.statvfs(folder)
    with ballast.open("wb") as stream:
        stream.write(b"x" * (found.f_bavail * found.f_frsize - left))
    return ballast


@pytest.mark.scenario("D1")
@pytest.mark.parametrize(
    ("what", "left"),
    [
        ("stage", 8192),
        *(pytest.param(what, left, marks=THOROUGH) for what in ("scratch", "stage", "warehouse", "catalog") for left in (0, 4096, 24_576)),
    ],
)
def test_a_full_disk(make_site: MakeSite, tmp_path: Path, what: str, left: int) -> None:
    """With as much space left as writes nothing, or the first files; the message says what could not be written."""
    site = make_site()
    disk = tmp_path / "site" / "scratch" if what == "scratch" else tmp_path / "disk"
    with small_disk(disk):
        if what == "catalog":
            site.overrides["catalog"] = f"sqlite:///{disk / 'catalog.db'}"
        elif what != "scratch":
            site.overrides[what] = str(disk / what)
        site.land()
        site.run(("make", site.batch(0).key)).succeeds()
        before, snapshot = rows_of(site), state_of(site).snapshot_id
        ballast = fill(disk, left)
        full = site.run(("make", *site.keys()))
        if full.process.exitcode == 0:
            assert left, "nothing can be written, and the run succeeds"
        else:
            assert full.process.exitcode in (REFUSED, FAILED), full.said
            assert "No space left" in full.said or "disk is full" in full.said or "disk I/O error" in full.said, full.said
            ballast_rows = rows_of(site)
            assert ballast_rows == before or state_of(site).snapshot_id != snapshot
        ballast.unlink()
        site.finish()
        check_all(site)


@pytest.mark.scenario("D2")
@pytest.mark.parametrize("mebibytes", ["4", pytest.param("24", marks=THOROUGH)])
def test_memory_that_threads_cannot_have(site: Site, mebibytes: str) -> None:
    """Nothing begins: Python would wait for ever for a thread that has no memory to say that it runs."""
    site.run(("make", site.batch(0).key)).succeeds()
    before = rows_of(site)
    # What is made already is looked at first, so that libraries that are loaded when they are needed have been loaded.
    short = site.run(("make", site.batch(0).key), ("limit memory", mebibytes), ("make", *site.keys()))
    assert short.process.exitcode == REFUSED, short.said
    assert "ShortOfMemoryError: there is no memory for" in short.said
    assert rows_of(site) == before
    site.finish()
    check_all(site)


@pytest.mark.scenario("D2")
@pytest.mark.parametrize("mebibytes", ["40", *(pytest.param(more, marks=THOROUGH) for more in ("64", "100"))])
def test_memory_that_cannot_be_had(site: Site, mebibytes: str) -> None:
    """An allocation fails somewhere, in Python, numpy or Arrow: what is published is whole, and a rerun with enough memory does the rest.

    What the process has kept for itself before may do, so a run that succeeds is none the worse.
    """
    site.run(("make", site.batch(0).key)).succeeds()
    short = site.run(("limit memory", mebibytes), ("make", *site.keys()))
    assert short.process.exitcode is not None, short.said
    one_live_result_per_partition(site)
    site.finish()
    check_all(site)


@pytest.mark.thorough
@pytest.mark.scenario("D2")
@pytest.mark.parametrize("failpoint", ["sort.begin", "rollup.shard", "publish.planned"])
def test_the_kernel_kills_a_process_that_has_no_memory_left(site: Site, failpoint: str) -> None:
    """Dagster's run of it is recorded as failed by the next backfill."""
    import dagster as dg

    from benchmarks.limits import LimitError, limited

    first, last = site.batch(0).key, site.batch(2).key
    try:
        with limited(1 << 20) as group:
            with site.paused(failpoint, ("backfill", first, last)) as running:
                (group.folder / "cgroup.procs").write_text(str(running.process.pid))
            assert running.exit_code() == -signal.SIGKILL, running.said
    except LimitError as error:
        pytest.skip(str(error))
    site.run(("backfill", first, last)).succeeds()
    with dg.DagsterInstance.local_temp(str(site.settings.dagster_home)) as instance:
        assert instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED])) == []
        assert instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE]))
    check_all(site)
