"""The table's metadata stays bounded however often it is published to."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollup_assets.batches import Batch
from rollup_assets.iceberg import maintenance as module
from rollup_assets.iceberg.maintenance import MAINTENANCE_PROPERTY, maintain, merge_is_due
from rollup_assets.iceberg.schema import MERGE_MANIFESTS_FROM, METADATA_FILES_KEPT
from rollup_assets.steps.publish import publish
from rollup_assets.storage.manifests import ROLLUP_TABLE, Manifest, Stage
from rollup_assets_tests.iceberg.staging import batches_from, load, pipeline_in, rows_of, stage_rollups


def test_after_300_publishes_snapshots_manifests_and_metadata_files_are_bounded(tmp_path: Path) -> None:
    """At every point: at most 20 snapshots, 21 metadata files and a bounded number of manifests; and no row is lost."""
    keep = 20
    pipeline = pipeline_in(tmp_path, keep_snapshots=keep, resolutions="1h")
    manifests, merges = [], 0
    for number, batch in enumerate(batches_from(pipeline, 300), start=1):
        stage_rollups(pipeline, batch, series=1)
        publish(pipeline, batch)
        if number % 10 == 0 or number > 290:
            table = load(pipeline)
            assert len(table.snapshots()) <= keep
            assert len(list(Path(table.location(), "metadata").glob("*.metadata.json"))) <= METADATA_FILES_KEPT + 1
            current = table.current_snapshot()
            assert current is not None
            manifests.append(len(current.manifests(table.io)))
            merges += any(MAINTENANCE_PROPERTY in (snapshot.summary or {}).additional_properties for snapshot in table.snapshots())  # type: ignore[union-attr]
    assert max(manifests) <= MERGE_MANIFESTS_FROM
    assert merges > 1
    assert len(rows_of(load(pipeline))) == 300


def test_expiry_goes_a_tenth_below_so_that_not_every_publish_needs_it(tmp_path: Path) -> None:
    pipeline = pipeline_in(tmp_path, keep_snapshots=20, resolutions="1h")
    counts = []
    for batch in batches_from(pipeline, 25):
        stage_rollups(pipeline, batch, series=1)
        publish(pipeline, batch)
        counts.append(len(load(pipeline).snapshots()))
    assert counts[:20] == list(range(1, 21))
    assert counts[20:] == [18, 19, 20, 18, 19]


def test_one_snapshot_may_be_enough(tmp_path: Path) -> None:
    pipeline = pipeline_in(tmp_path, keep_snapshots=1, resolutions="1h")
    for batch in batches_from(pipeline, 3):
        stage_rollups(pipeline, batch, series=1)
        publish(pipeline, batch)
        assert len(load(pipeline).snapshots()) == 1
    assert len(rows_of(load(pipeline))) == 3


def test_snapshots_that_tags_and_branches_hold_stay(tmp_path: Path) -> None:
    pipeline = pipeline_in(tmp_path, keep_snapshots=3, resolutions="1h")
    batches = batches_from(pipeline, 8)
    stage_rollups(pipeline, batches[0], series=1)
    tagged = publish(pipeline, batches[0]).snapshot_id
    stage_rollups(pipeline, batches[1], series=1)
    branched = publish(pipeline, batches[1]).snapshot_id
    assert tagged is not None
    assert branched is not None
    load(pipeline).manage_snapshots().create_tag(tagged, "audit").create_branch(branched, "dev").commit()
    for batch in batches[2:]:
        stage_rollups(pipeline, batch, series=1)
        publish(pipeline, batch)
    table = load(pipeline)
    found = {snapshot.snapshot_id for snapshot in table.snapshots()}
    assert {tagged, branched} <= found
    # They do not count: with as many tags as snapshots are kept, the table could not be rolled back any more.
    assert 2 <= len(found - {tagged, branched}) <= 3
    assert len(table.scan(snapshot_id=tagged).to_arrow()) == 1


@pytest.mark.parametrize("merging", [False, True])
@pytest.mark.parametrize("meanwhile", ["rollback", "tag", "branch"])
def test_what_others_hold_meanwhile_is_not_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meanwhile: str, *, merging: bool
) -> None:
    """Spark takes no lock of ours: it may roll the table back, or tag a snapshot, between the look at the table and the commit."""
    from pyiceberg.table.update.snapshot import ExpireSnapshots

    pipeline = pipeline_in(tmp_path, keep_snapshots=10, resolutions="1h")
    for batch in batches_from(pipeline, 4):
        stage_rollups(pipeline, batch, series=1)
        publish(pipeline, batch)
    oldest = load(pipeline).snapshots()[0].snapshot_id
    by_ids = ExpireSnapshots.by_ids

    def after_somebody_else(self: ExpireSnapshots, expired: list[int]) -> ExpireSnapshots:
        assert oldest in expired
        others = load(pipeline).manage_snapshots()
        {
            "rollback": lambda: others.rollback_to_snapshot(oldest),
            "tag": lambda: others.create_tag(oldest, "audit"),
            "branch": lambda: others.create_branch(oldest, "audit"),
        }[meanwhile]().commit()
        return by_ids(self, expired)

    with monkeypatch.context() as patch:
        patch.setattr(ExpireSnapshots, "by_ids", after_somebody_else)
        patch.setattr(module, "merge_is_due", lambda _: merging)
        assert not maintain(load(pipeline), 2)
    table = load(pipeline)
    assert len(table.snapshots()) == 4
    assert table.refs()["main" if meanwhile == "rollback" else "audit"].snapshot_id == oldest
    assert len(rows_of(table)) == (1 if meanwhile == "rollback" else 4)
    # The next publish expires what nobody holds.
    assert maintain(table, 2)
    assert oldest in {snapshot.snapshot_id for snapshot in load(pipeline).snapshots()}


def test_merging_changes_no_row_and_drops_manifests_without_live_files(tmp_path: Path) -> None:
    """Replacing one batch again and again leaves a manifest of removed files behind each time; a merge sweeps them away."""
    pipeline = pipeline_in(tmp_path, resolutions="1h")
    first, second = batches_from(pipeline, 2)
    stage_rollups(pipeline, second, series=2, value=7)
    publish(pipeline, second)
    table, merged = load(pipeline), False
    for value in range(MERGE_MANIFESTS_FROM + 1):
        stage_rollups(pipeline, first, series=2, value=value)
        publish(pipeline, first)
        table = load(pipeline)
        merged = merged or MAINTENANCE_PROPERTY in table.metadata.snapshots[-1].summary.additional_properties  # type: ignore[union-attr]
        assert not merge_is_due(table)
    assert merged
    assert [row[3] for row in rows_of(table)] == [MERGE_MANIFESTS_FROM, 7, MERGE_MANIFESTS_FROM, 7]


def test_failing_maintenance_does_not_fail_a_publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batch is published; the next publish tidies up."""
    from pyiceberg.table.update.snapshot import ExpireSnapshots

    pipeline = pipeline_in(tmp_path, keep_snapshots=2, resolutions="1h")
    batches = batches_from(pipeline, 4)
    with monkeypatch.context() as patch:
        patch.setattr(ExpireSnapshots, "by_ids", lambda *_: (_ for _ in ()).throw(OSError("disk")))
        for batch in batches[:3]:
            stage_rollups(pipeline, batch, series=1)
            assert publish(pipeline, batch).snapshot_id is not None
        assert len(load(pipeline).snapshots()) == 3
    assert maintain(load(pipeline), 2)
    assert len(load(pipeline).snapshots()) == 2


def test_a_catalog_that_is_away_once_a_batch_is_published_does_not_fail_the_publish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pyiceberg.catalog.sql import SqlCatalog

    pipeline = pipeline_in(tmp_path, keep_snapshots=1, resolutions="1h")
    first, second, third = batches_from(pipeline, 3)
    stage_rollups(pipeline, first, series=1)
    publish(pipeline, first)
    stage_rollups(pipeline, second, series=1)
    with monkeypatch.context() as patch:
        write, load_table = Stage.write, SqlCatalog.load_table

        def away_from_now_on(stage: Stage, manifest: Manifest, batch: Batch) -> None:
            write(stage, manifest, batch)
            if manifest.asset == ROLLUP_TABLE:
                patch.setattr(SqlCatalog, "load_table", lambda *_: (_ for _ in ()).throw(OSError("away")))

        patch.setattr(Stage, "write", away_from_now_on)
        assert not publish(pipeline, second).unchanged
        assert SqlCatalog.load_table is not load_table
    assert "could not expire snapshots or merge manifests" in caplog.text
    assert len(load(pipeline).snapshots()) == 2
    assert publish(pipeline, second).unchanged
    stage_rollups(pipeline, third, series=1)
    publish(pipeline, third)
    assert len(load(pipeline).snapshots()) == 1


def test_manifests_of_delete_files_are_not_merged_and_make_no_merge_due(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An append would leave them as they are, and every publish would make a second snapshot for nothing."""
    from pyiceberg.manifest import ManifestContent, ManifestFile
    from pyiceberg.table.snapshots import Snapshot

    pipeline = pipeline_in(tmp_path, resolutions="1h")
    (batch,) = batches_from(pipeline, 1)
    stage_rollups(pipeline, batch, series=1)
    publish(pipeline, batch)
    table = load(pipeline)
    listed = {
        content: [ManifestFile.from_args(content=content, manifest_length=1_000, manifest_path=str(number)) for number in range(count)]
        for content, count in ((ManifestContent.DATA, MERGE_MANIFESTS_FROM - 1), (ManifestContent.DELETES, MERGE_MANIFESTS_FROM))
    }
    monkeypatch.setattr(Snapshot, "manifests", lambda *_: [manifest for manifests in listed.values() for manifest in manifests])
    assert not merge_is_due(table)
    listed[ManifestContent.DATA] *= 2
    assert merge_is_due(table)
