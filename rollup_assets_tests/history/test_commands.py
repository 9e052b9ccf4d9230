"""``rollups diff`` and ``rollback`` as they are typed, with raw files, runs through Dagster and a catalog on a server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rollup_assets.batches import Batch
from rollup_assets.history.diff import diff
from rollup_assets.history.rollback import rollback
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps.publish import publish
from rollup_assets.storage.manifests import ROLLUP_TABLE
from rollup_assets_tests.conftest import SMALL, MakePipeline, WithDagsterHome
from rollup_assets_tests.history.published import publish_value, raw_file, snapshots, stage_value
from rollup_assets_tests.iceberg.staging import batches_from, pipeline_in, value_by_batch
from rollup_assets_tests.iceberg.test_publish import commits
from rollup_assets_tests.landing import write_rows
from rollup_assets_tests.naive import RawRow
from rollup_assets_tests.test_cli import Run, plain, runner


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_dagster_home: WithDagsterHome) -> Run:
    return runner(with_dagster_home(tmp_path), monkeypatch)


def test_what_is_shown_of_a_difference_and_a_rollback(run: Run, tmp_path: Path) -> None:
    pipeline = pipeline_in(tmp_path)
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1, raw_file("a"))
    publish_value(pipeline, batch, 99, raw_file("a"), raw_file("[red]late"))
    old = snapshots(pipeline)[0]
    text = plain(run("diff", old, "--differences", 1).output)
    assert f"{batch.key} 1m 180 {batch.key} 5m 36 {batch.key} 1h 3" in text
    assert f"{batch.key}: new raw file [red]late (of {batch.key})" in text
    assert "first windows, of 219 that differ:" in text
    assert "1m 2026-01-01 00:00:00 series 0 (metric.0) changed: sum 1 → 99, min 1 → 99" in text
    assert "219 windows of 1 partition differ between snapshot" in text
    found = run("diff", old, "--json")
    assert found["partitions"][0]["changed"] == {"1m": 180, "5m": 36, "1h": 3}
    assert found["windows"][0]["values"]["sum_rollup"] == [1, 99]
    assert "no window differs" in plain(run("diff", old, old).output)
    assert "has expired; known are" in plain(run("diff", 12, status=2).stderr)

    dry = plain(run("rollback", batch.key, "--dry-run").output)
    assert "sum 99 → 1" in dry
    assert f"dry run: nothing was changed; it would go back to snapshot {old}" in dry
    assert f"rolled back to snapshot {old}, as snapshot" in plain(run("rollback", batch.key).output)
    assert "already holds the rows" in plain(run("rollback", batch.key).output)
    assert run("rollback", batch.key, "--json")["changed"] is False
    assert "were rolled back" in run("status", batch.key, "--json")[0]["rolled_back"]
    assert "were rolled back, and are not published again until their inputs change" in plain(run("status").output)
    assert "is not a partition key" in plain(run("rollback", "yesterday", status=2).stderr)


def test_a_backfill_leaves_alone_what_was_rolled_back_until_its_raw_files_change(
    run: Run, tmp_path: Path, make_pipeline: MakePipeline
) -> None:
    """A bad file comes, is published, and goes again by a rollback; everything else is published, the table is right in the end."""
    pipeline = make_pipeline(tmp_path, **SMALL)
    first, second, third = batches_from(pipeline, 3)

    def land(batch: Batch, name: str, value: int) -> Path:
        write_rows(pipeline, batch, name, [RawRow(7, 1, "m", batch.start + 60_000, value)])
        return Path(pipeline.landing_zone.folder(batch).path) / name

    land(first, "a.parquet", 5)
    land(second, "a.parquet", 6)
    run("backfill", first.key, second.key)
    good = snapshots(pipeline)[-1]
    bad = land(first, "bad.parquet", 1_000)
    run("backfill", first.key, first.key)
    changed = run("diff", good, "--json")
    assert changed["partitions"][0]["files"] == [
        {"partition": first.key, "path": changed["partitions"][0]["files"][0]["path"], "change": "new"}
    ]
    assert changed["partitions"][0]["files"][0]["path"].endswith("bad.parquet")
    affected = [partition["partition"] for partition in changed["partitions"]]
    # The second has a step from the first one's last point, and the hour that it ends is a row of the third.
    assert affected == [first.key, second.key, third.key]
    undone = run("rollback", first.key, "--json")
    assert undone["also_published"] == [second.key, third.key]
    for key in undone["also_published"]:
        run("rollback", key)
    assert run("diff", good, "--json")["partitions"] == []

    result = run("backfill", first.key, third.key, "--json")
    assert result["success"]
    assert set(result["waiting"]) == {first.key, second.key, third.key}
    assert "were rolled back" in result["waiting"][first.key]
    assert run("diff", good, "--json")["partitions"] == []
    differs = plain(run("verify", first.key, status=1).output)
    assert "were rolled back" in differs

    # Raw data as it was is what is in the table; it is published again under its own name, and nothing changes.
    bad.unlink()
    result = run("backfill", first.key, third.key, "--json")
    assert (result["success"], result["waiting"]) == (True, {})
    assert run("diff", good, "--json")["partitions"] == []
    run("verify", first.key, third.key)
    assert {partition["state"] for partition in run("status", "--json")} <= {"published"}


def test_the_check_of_what_was_rolled_back_warns(run: Run, tmp_path: Path, make_pipeline: MakePipeline) -> None:
    import dagster as dg

    pipeline = make_pipeline(tmp_path, **SMALL)
    (batch,) = batches_from(pipeline, 1)
    write_rows(pipeline, batch, "a.parquet", [RawRow(7, 1, "m", batch.start + 60_000, 5)])
    run("backfill", batch.key, batch.key)
    run("rollback", batch.key)
    wanted = dg.AssetRecordsFilter(dg.AssetKey("rollup_table"), asset_partitions=[batch.key])
    receipt = pipeline.stage.read(ROLLUP_TABLE, batch)
    assert receipt is not None
    with dg.DagsterInstance.from_config(str(tmp_path / "dagster")) as instance:
        told = [record.asset_materialization for record in instance.fetch_materializations(wanted, limit=10).records]
    # The pages know it at once, not only when somebody runs the partition again.
    assert len(told) == 2
    assert told[0] is not None
    assert told[0].metadata["rolled_back_to"].value == "before the first snapshot"
    assert (told[0].tags or {})["dagster/data_version"] == receipt.digest
    run("backfill", batch.key, batch.key)
    with dg.DagsterInstance.from_config(str(tmp_path / "dagster")) as instance:
        (record,) = instance.fetch_materializations(wanted, limit=1).records
        logs = instance.all_logs(record.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    found: list[Any] = [log.dagster_event.event_specific_data for log in logs if log.dagster_event]
    (check,) = (one for one in found if one.check_name == "published_equals_staged" and one.partition == batch.key)
    assert (check.passed, check.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert "were rolled back" in check.description
    assert record.asset_materialization is not None
    assert "were rolled back" in str(record.asset_materialization.metadata["rolled_back"].value)


def test_the_pages_call_what_was_rolled_back_stale_until_it_is_what_is_staged_again(
    run: Run, tmp_path: Path, make_pipeline: MakePipeline
) -> None:
    import dagster as dg
    from dagster._core.definitions.data_version import CachingStaleStatusResolver, StaleCauseCategory, StaleStatus
    from dagster._core.loader import LoadingContextForTest

    from rollup_assets.definitions import build_definitions

    pipeline = make_pipeline(tmp_path, **SMALL)
    (batch,) = batches_from(pipeline, 1)

    def stale() -> tuple[StaleStatus, list[StaleCauseCategory]]:
        with dg.DagsterInstance.from_config(str(tmp_path / "dagster")) as instance:
            graph = build_definitions(pipeline.settings).resolve_asset_graph()
            resolver = CachingStaleStatusResolver(instance, graph, LoadingContextForTest(instance))
            table = dg.AssetKey(ROLLUP_TABLE)
            return resolver.get_status(table, batch.key), [cause.category for cause in resolver.get_stale_causes(table, batch.key)]

    for name, value in (("a.parquet", 5), ("b.parquet", 6), ("b.parquet", 6)):  # the last run changes nothing, and records it
        write_rows(pipeline, batch, name, [RawRow(7, 1, "m", batch.start + 60_000 * value, value)])
        run("backfill", batch.key, batch.key)
    assert stale() == (StaleStatus.FRESH, [])
    undone = snapshots(pipeline)[-1]
    run("rollback", batch.key)
    assert stale() == (StaleStatus.STALE, [StaleCauseCategory.DATA])
    run("rollback", batch.key, "--to", undone)
    assert stale() == (StaleStatus.FRESH, [])


@pytest.mark.scenario("K4")
def test_dagster_is_told_by_the_second_try_where_the_first_was_killed(
    run: Run, tmp_path: Path, make_pipeline: MakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dagster as dg

    pipeline = make_pipeline(tmp_path, **SMALL)
    (batch,) = batches_from(pipeline, 1)
    publish_value(pipeline, batch, 1)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    def told() -> list[object]:
        wanted = dg.AssetRecordsFilter(dg.AssetKey("rollup_table"), asset_partitions=[batch.key])
        with dg.DagsterInstance.from_config(str(tmp_path / "dagster")) as instance:
            records = instance.fetch_materializations(wanted, limit=10).records
        return [record.asset_materialization.metadata["rolled_back_to"].value for record in records if record.asset_materialization]

    with monkeypatch.context() as patch:
        patch.setattr("rollup_assets.defs.rollbacks._record", killed)
        run("rollback", batch.key, status=130)
    assert told() == []
    assert run("rollback", batch.key, "--json")["changed"] is False
    assert told() == ["before the first snapshot"]


@pytest.mark.scenario("P1")
def test_on_postgresql(tmp_path: Path, fresh_catalog: Callable[[], dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the advisory lock, and with the answer to the commit lost."""
    pipeline: Pipeline = pipeline_in(tmp_path, resolutions="1h", **fresh_catalog())
    first, second = batches_from(pipeline, 2)
    publish_value(pipeline, first, 1, raw_file("a"))
    publish_value(pipeline, second, 2)
    good = snapshots(pipeline)[-1]
    publish_value(pipeline, first, 99, raw_file("b"))

    def lose(apply: Callable[[], Any], _number: int) -> Any:
        apply()
        raise ConnectionError("connection reset")

    with commits(monkeypatch, lose) as tried:
        done = rollback(pipeline, first.key)
    assert (tried, done.changed, len(snapshots(pipeline))) == ([1], True, 4)
    assert value_by_batch(pipeline) == {first.key: {1}, second.key: {2}}
    assert diff(pipeline.settings, str(good)).partitions == []
    assert publish(pipeline, first).refused is not None
    stage_value(pipeline, first, 3)
    assert publish(pipeline, first).refused is None
    assert json.loads(next(Path(pipeline.stage.root.path).glob("publish_history/*/*.json")).read_text())["partition"] in (
        first.key,
        second.key,
    )
