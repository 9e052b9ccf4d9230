"""A memory limit for a benchmark's processes: it holds where control groups may be made, and says why where they may not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import limits
from benchmarks.contenders import Contender
from benchmarks.runner import Bench, ChildError
from benchmarks.tasks import FLOOR, ROLLUPS_1M

MIB = 1 << 20


def _python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_process_over_the_limit_is_killed_or_the_reason_is_told() -> None:
    """With its children, and the group is gone afterwards."""
    reason = limits.why_not()
    if reason is not None:
        with pytest.raises(limits.LimitError) as raised, limits.limited(64 * MIB):
            pass
        assert str(raised.value) == reason
        assert reason.startswith("memory is not limited: no control group can be made")
        return
    with limits.limited(64 * MIB) as group:
        ended = subprocess.run(group.command(_python("memory = b'1' * (128 << 20)")), check=False)
        assert ended.returncode != 0
        usage = group.usage()
        assert (usage.limit, usage.killed) == (64 * MIB, 1)
        assert usage.times_at_limit > 0
    assert not group.folder.exists()


def test_files_that_are_cached_count_but_do_not_kill(tmp_path: Path) -> None:
    if limits.why_not() is not None:
        return
    write = f"file = open({str(tmp_path / 'large')!r}, 'wb')\nfor _ in range(96): file.write(bytes({MIB}))"
    with limits.limited(64 * MIB) as group:
        subprocess.run(group.command(_python(write)), check=True)
        usage = group.usage()
    assert usage.killed == 0
    assert usage.times_at_limit > 0
    assert usage.peak_bytes is None or 48 * MIB < usage.peak_bytes <= 64 * MIB
    with limits.limited(None) as group:
        subprocess.run(group.command(["cat", "/dev/null"]), check=True)
        assert group.usage().times_at_limit == 0


def test_what_still_runs_inside_is_ended() -> None:
    if limits.why_not() is not None:
        return
    with limits.limited(None) as group:
        process = subprocess.Popen(group.command(["sleep", "600"]))
        while group.processes() != [process.pid]:
            assert process.poll() is None
    assert process.wait() < 0
    assert not group.folder.exists()


def test_a_benchmark_s_runs_say_whether_they_were_limited(tmp_path: Path) -> None:
    bench = Bench(tmp_path, rows=720, threads=1, shape="scrapes", small_rows=360, memory_limit=1 << 30)
    bench.prepare()
    memory = bench.run(Contender(FLOOR, ROLLUPS_1M))["memory"]
    if (reason := limits.why_not()) is not None:
        assert memory == {"limit": None, "why": reason}
        return
    assert memory["limit"] == 1 << 30
    assert memory["killed"] == 0
    assert memory["peak_bytes"] is None or memory["peak_bytes"] > MIB
    small = Bench(tmp_path, rows=720, threads=1, shape="scrapes", small_rows=360, memory_limit=24 * MIB)
    with pytest.raises(ChildError, match=r"\nneeds more memory than 0\.0234375 GiB, page cache included, and was killed$"):
        small.run(Contender(FLOOR, ROLLUPS_1M))


# What follows stands in for machines with other control groups: the folders and files that they would show.


def _machine(root: Path, mounts: str, own: str) -> None:
    (root / "proc" / "self").mkdir(parents=True)
    (root / "proc" / "mounts").write_text(mounts)
    (root / "proc" / "self" / "cgroup").write_text(own)


def _made_with(monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...], without: Path | None = None) -> None:
    """Folders that are made in place of groups have these files, as the kernel would make them; not those in ``without``."""
    make, remove = Path.mkdir, Path.rmdir

    def mkdir(folder: Path, *arguments: object, **options: object) -> None:
        make(folder, *arguments, **options)  # type: ignore[arg-type]
        for name in files if folder.parent != without else ():
            (folder / name).write_text("")

    def rmdir(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        remove(folder)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", rmdir)


def test_version_2_puts_the_group_beside_its_own_where_it_may_not_be_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(tmp_path, "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "0::/user.slice/session.scope\n")
    slice_ = tmp_path / "sys/fs/cgroup/user.slice"
    (slice_ / "session.scope").mkdir(parents=True)
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    _made_with(monkeypatch, ("memory.max", "memory.swap.max", "memory.peak", "memory.events", "cgroup.procs"), slice_ / "session.scope")
    with limits.limited(64 * MIB) as group:
        assert (group.folder.parent, group.version) == (slice_, 2)
        assert (group.folder / "memory.max").read_text() == str(64 * MIB)
        assert (group.folder / "memory.swap.max").read_text() == "0"
        (group.folder / "memory.peak").write_text("12345\n")
        (group.folder / "memory.events").write_text("low 0\nhigh 0\nmax 7\noom 2\noom_kill 1\noom_group_kill 0\n")
        assert group.usage() == limits.Usage(64 * MIB, 12_345, 7, 1)
    assert not group.folder.exists()


def test_a_machine_without_control_groups_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(tmp_path, "proc /proc proc rw 0 0\n", "0::/\n")
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    assert limits.why_not() == "memory is not limited: no control group can be made (none is mounted for memory)"
    with limits.limited_where_possible(64 * MIB) as memory:
        assert (memory.group, memory.told()) == (None, {"memory": {"limit": None, "why": limits.why_not()}})


def test_a_limit_that_nobody_asked_for_is_not_told_of() -> None:
    with limits.limited_where_possible(None) as memory:
        assert (memory.group, memory.told()) == (None, {})


def test_a_group_that_has_no_say_in_memory_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(tmp_path, "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "0::/\n")
    (tmp_path / "sys/fs/cgroup").mkdir(parents=True)
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    assert "does not control memory" in str(limits.why_not())
    assert list((tmp_path / "sys/fs/cgroup").iterdir()) == []


def test_groups_whose_maker_was_killed_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _machine(tmp_path, "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n", "0::/\n")
    folder = tmp_path / "sys/fs/cgroup"
    (folder / "rollups-benchmark-999999-0").mkdir(parents=True)
    (folder / "rollups-benchmark-1-0").mkdir()
    (tmp_path / "proc" / "1").mkdir()
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    assert limits.why_not() is not None
    assert [path.name for path in folder.iterdir()] == ["rollups-benchmark-1-0"]
