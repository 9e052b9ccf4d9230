"""Cost and memory by size and by shape: the benchmarks run, and their tables and plots show what they measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import limits, tables
from benchmarks.runner import Bench
from benchmarks.sections import shapes, sizes
from benchmarks.sizes import measure


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two sizes on two threads; for the tables, the same figures stand for one thread."""
    folder = tmp_path_factory.mktemp("sizes")
    benches = [Bench(folder, rows, 2, "sparse", small_rows=300, memory_limit=2 << 30, rollup_memory="512MiB") for rows in (600, 6_000)]
    runs = measure(benches, 1, more=1)
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 8, "system": "Linux", "python": "3.11"}
    return {
        **{"command": sizes.COMMAND, "date": "2026-01-01", "commit": "0" * 40, "changed": [], "machine": machine, "versions": {}},
        **{"repeat": 1, "threads": 2, "memory": "512MiB", "limit_bytes": 2 << 30, "start_rows": 600},
        "runs": [{**run, "threads": threads} for threads in (1, 2) for run in runs],
    }


def test_every_size_is_measured_by_step_and_with_its_memory(results: dict[str, Any]) -> None:
    runs = results["runs"]
    assert [(run["size"], run["threads"]) for run in runs] == [(600, 1), (6_000, 1), (600, 2), (6_000, 2)]
    for run in runs:
        assert run["rows"] == run["size"]
        assert set(run["wall"]) == set(run["cpu"]) == set(sizes.STEPS)
        # A row a point at 1 min, but for the windows that stay open, and some at 5 min and 1 h.
        assert run["steps"]["publish"]["rows"] == run["size"] // 60 * (60 + 12 + 1)
        assert ("why" in run["memory"]) == (limits.why_not() is not None)


def test_what_a_point_costs_is_told_without_the_fixed_start(results: dict[str, Any]) -> None:
    def run(size: int, cpu: float, peak_gib: float = 0.5) -> dict[str, Any]:
        parts = dict.fromkeys(sizes.STEPS, cpu / 3)
        memory = {"limit": 2 << 30, "peak_bytes": int(2 * peak_gib * 2**30)}
        return {
            "size": size,
            "rows": size,
            "threads": 2,
            "wall": parts,
            "cpu": parts,
            "peak_bytes": int(peak_gib * 2**30),
            "memory": memory,
        }

    runs = [run(600, 1.0), run(1_000_000, 3.0), run(36_000_000, 73.0, 0.9)]
    made = {**results, "runs": runs}
    assert sizes.ns(made, 1_000_000, 2, sizes.total).median == pytest.approx(2_000)
    assert sizes.ns(made, 36_000_000, 2, sizes.step("rollups")).median == pytest.approx(2_000 / 3)
    growth, peak, seed = sizes.aims(made)
    assert (growth.measured, growth.met) == ("1.00", True)
    assert (peak.measured, peak.met, peak.also) == ("0.90", True, "`ROLLUP_MEMORY=512MiB`; 1.80 with the page cache")
    assert seed.met is None
    growth, _, seed = sizes.aims({**made, "seed_runs": [run(sizes.SEED_ROWS, 1 + 686.5 * 2.5, 1.6)]})
    assert (growth.measured, growth.met) == ("1.25", False)
    assert (seed.measured, seed.met) == ("1.60", False)


def test_tables_and_plots_show_the_results(results: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "read", lambda name: results if name in ("sizes", "shapes") else None)
    for run in results["runs"]:
        run["series"] = run["size"] // 60
    made = {**sizes.blocks(), **shapes.blocks()}
    assert "| 600: the fixed start | 2 |" in made["sizes"]
    assert made["sizes"].count("| 6,000 |") == 2
    assert "times as fast as 1" in made["sizes-threads"]
    assert made["sizes-memory"].count("| 6,000 |") == 2
    for name in ("sizes-circumstances", "shapes-circumstances"):
        assert "`ROLLUP_MEMORY=512MiB`" in made[name]
        assert ("all under a limit of 2 GiB" if limits.why_not() is None else str(limits.why_not())) in made[name]
    assert "| sparse: 0.0 M points, 10 series |" in made["shapes"]
    drawn = sizes.plots()
    assert all(f"({name}.svg)" in "".join(made.values()) for name in drawn)
    for name, (shown, draw) in drawn.items():
        draw(tmp_path / f"{name}.svg")
        assert f"results {tables.digest(shown)}" in (tmp_path / f"{name}.svg").read_text()
