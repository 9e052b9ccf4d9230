"""What holds after every fault, once somebody has run the same command again: seven invariants, and one function that checks them all.

They look at raw files, manifests, table and folders, and compute what must be there by other means than the product: the reference
model (``naive.py``), DuckDB, and a walk through Iceberg's metadata. How a fault is made stays out.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rollup_assets.batches import Batch
from rollup_assets.cleaning import RECORDS, SCRATCH, UPLOADS, clean
from rollup_assets.history.records import FOLDER as HISTORY
from rollup_assets.iceberg.catalog import open_catalog
from rollup_assets.iceberg.table import load_table, table_location
from rollup_assets.pipeline import Pipeline
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.results import RolledUp
from rollup_assets.steps.rollup import roll_up
from rollup_assets.storage.filesystems import Place
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUP_TABLE, ROLLUPS, Manifest
from rollup_assets.storage.raw_files import ROW_REASONS
from rollup_assets.storage.spill import abandoned_folders
from rollup_assets.verification import verify
from rollup_assets_tests.canaries import holding
from rollup_assets_tests.naive import Accepted, Point, RawRow, Row, accept, rollups_of
from rollup_assets_tests.staged import ROLLUP_COLUMNS, bits, shards_and_rows

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from rollup_assets_tests.faults.site import Site

ASSETS = (REPARTITIONED, PARTIAL_POINTS, QUARANTINED, ROLLUPS, ROLLUP_TABLE)


def check_all(site: Site) -> None:
    """Every invariant. What was left to do is done already (:meth:`Site.finish`): here a rerun changes nothing."""
    acknowledged = site.acknowledged()
    a_rerun_changes_nothing(site)
    rows_are_conserved(site)
    table_equals_recomputation(site)
    acknowledged_snapshots_stand(site, acknowledged)
    one_live_result_per_partition(site)
    leftovers_are_unreachable(site)
    secrets_are_nowhere(site)


# ------------------------------------------------------------------------------------------------------------------ reading


def manifests_of(site: Site) -> dict[tuple[str, Batch], Manifest]:
    """Every manifest that is in place."""
    pipeline = site.pipeline
    batches = site.batches()
    found = {(asset, batch): pipeline.stage.read(asset, batch) for asset in ASSETS for batch in batches}
    return {key: manifest for key, manifest in found.items() if manifest is not None}


def loaded_table(site: Site) -> Table | None:
    """The table as it is now."""
    with open_catalog(site.settings) as catalog:
        return load_table(catalog, site.settings)


def rows_of(site: Site) -> list[Row]:
    """All rows of the table, read by PyIceberg's own scan."""
    table = loaded_table(site)
    if table is None or table.current_snapshot() is None:
        return []
    content = table.scan(selected_fields=tuple(ROLLUP_COLUMNS)).to_arrow().select(ROLLUP_COLUMNS)
    return [row for _, row in shards_and_rows(content)]


def raw_rows(pipeline: Pipeline, batch: Batch) -> dict[str, list[RawRow]]:
    """What can be read of a batch's raw files, by their path; files that are no such files have no rows."""
    files: dict[str, list[RawRow]] = {}
    for file in pipeline.landing_zone.files(batch):
        content = (pipeline.landing_zone.root / file.path).read_bytes()
        try:
            table = pq.read_table(pa.BufferReader(content or b""))
            columns = [table[name] for name in ("id", "org_id", "metric", "logical_timestamp", pipeline.settings.value_column)]
        except (pa.ArrowException, OSError, KeyError):
            continue
        columns.append(table["receive_timestamp"] if "receive_timestamp" in table.column_names else pa.nulls(table.num_rows))
        if not all(pa.types.is_integer(columns[place].type) for place in (0, 1, 3)):
            continue
        files[file.path] = [RawRow(*values) for values in zip(*(column.to_pylist() for column in columns), strict=True)]
    return files


def accepted_of(site: Site) -> dict[Batch, Accepted]:
    """What the reference model makes of the raw files, batch by batch."""
    pipeline = site.pipeline
    return {batch: accept(raw_rows(pipeline, batch), batch.start, batch.end) for batch in site.batches()}


# -------------------------------------------------------------------------------------------------------------- I1 and I2


def rows_are_conserved(site: Site) -> None:
    """I1: rows read are accepted, duplicates or quarantined, as the reference model has it; and points are in one window each."""
    pipeline, manifests = site.pipeline, manifests_of(site)
    for batch, expected in accepted_of(site).items():
        staged, quarantined = manifests.get((REPARTITIONED, batch)), manifests.get((QUARANTINED, batch))
        if staged is None or quarantined is None:
            assert not pipeline.landing_zone.files(batch), f"{batch} is not staged"
            continue
        counters = staged.counters
        assert counters["rows_read"] == counters["rows_accepted"] + counters["duplicates"] + counters["rows_quarantined"], batch
        assert counters["rows_accepted"] == len(expected.points) == staged.rows, batch
        assert counters["duplicates"] == expected.duplicates, batch
        reasons = Counter(row.reason for row in expected.quarantined)
        assert {name: rows for name, rows in quarantined.counters["reasons"].items() if name in ROW_REASONS} == reasons, batch
        _points_are_conserved(site, batch, manifests)


def _points_are_conserved(site: Site, batch: Batch, manifests: dict[tuple[str, Batch], Manifest]) -> None:
    rollups = manifests.get((ROLLUPS, batch))
    if rollups is None:
        return
    (before, *_) = [*site.settings.calendar.earlier(batch, 1), None]
    staged, own = manifests.get((REPARTITIONED, batch)), manifests.get((PARTIAL_POINTS, batch))
    carried = manifests.get((PARTIAL_POINTS, before)) if before else None
    for asset, read in rollups.upstream.items():
        for key, digest in read.items():
            current = manifests.get((asset, site.settings.calendar.batch(key)))
            assert (current.digest if current else None) == digest, f"rollups of {batch} are not of the current {asset} {key}"
    for resolution in map(str, site.settings.resolutions):
        taken = (staged.counters["rows_accepted"] if staged else 0) + (carried.counters["counts"][resolution] if carried else 0)
        left = own.counters["counts"][resolution] if own else 0
        assert rollups.counters["counts"][resolution] + left == taken, (batch, resolution)


def table_equals_recomputation(site: Site) -> None:
    """I2: DuckDB and the reference model make of the raw files what the table holds, row by row and value by value."""
    published = {batch for asset, batch in manifests_of(site) if asset == ROLLUP_TABLE}
    found: dict[tuple[int, int, int], Row] = {}
    for row in rows_of(site):
        key = (row.id, row.resolution, row.label)
        assert key not in found, f"window {key} is there twice"
        found[key] = row
    assert site.foreign_windows <= found.keys(), "rows of others are gone"
    found = {key: row for key, row in found.items() if key not in site.foreign_windows}
    points = [point for accepted in accepted_of(site).values() for point in accepted.points]
    calendar = site.settings.calendar
    expected = {key: row for key, row in _rollups(site, points).items() if calendar.containing(row.label) in published}
    assert not found.keys() - expected.keys(), f"rows that should not be there: {sorted(found.keys() - expected.keys())[:5]}"
    assert not expected.keys() - found.keys(), f"rows that are missing: {sorted(expected.keys() - found.keys())[:5]}"
    for key, row in expected.items():
        assert _same(found[key], row), (found[key], row)
    if published:
        outcome = verify(site.settings, sorted(published))
        assert outcome.agrees, outcome


def _rollups(site: Site, points: Iterable[Point]) -> dict[tuple[int, int, int], Row]:
    return rollups_of(points, site.settings.resolutions, site.settings.lookback)


def _same(found: Row, expected: Row) -> bool:
    """In every bit; sums of doubles up to rounding."""
    if bits(found) == bits(expected):
        return True
    return all(
        one == other or (isinstance(one, float) and other is not None and math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-9))
        for one, other in zip(bits_or_values(found), bits_or_values(expected), strict=True)
    ) and isinstance(found.sum, float)


def bits_or_values(row: Row) -> list[Any]:
    """The values of a row."""
    return [getattr(row, name) for name in Row.__dataclass_fields__]


# --------------------------------------------------------------------------------------------------------------------- I3


@dataclass(frozen=True)
class State:
    """What a rerun must leave as it is."""

    manifests: dict[tuple[str, Batch], tuple[str, str, tuple[str, ...]]]
    """Digest, attempt and file names."""
    snapshot_id: int | None
    files: dict[str, int]
    """Path -> bytes, in stage and warehouse."""


def state_of(site: Site) -> State:
    """As it is now."""
    manifests = {key: (found.digest, found.attempt, tuple(file.path for file in found.files)) for key, found in manifests_of(site).items()}
    table = loaded_table(site)
    snapshot = None if table is None else table.current_snapshot()
    return State(manifests, None if snapshot is None else snapshot.snapshot_id, stored_files(site))


def a_rerun_changes_nothing(site: Site) -> None:
    """I3: neither a rerun, which finds nothing to do, nor a forced one, which makes the same bytes again and drops them."""
    before = state_of(site)
    manifest_sizes = {path for path in before.files if path.endswith("/manifest.json")}
    for force in (False, True):
        pipeline = site.pipeline
        for batch in site.batches():
            # A backfill leaves trailing batches without raw files unstaged.
            if (REPARTITIONED, batch) in before.manifests or pipeline.landing_zone.files(batch):
                stage_batch(pipeline, batch, force=force)
        for batch in site.batches():
            if isinstance(roll_up(pipeline, batch, force=force), RolledUp):
                # By force a publish puts the staged files in the place of those that somebody else has made of them.
                publish(pipeline, batch, force=force and not site.foreign)
        after = state_of(site)
        changed = {key: (before.manifests.get(key), found) for key, found in after.manifests.items() if before.manifests.get(key) != found}
        assert not changed, f"a rerun{' by force' if force else ''} has changed manifests: {changed}"
        assert after.manifests.keys() == before.manifests.keys()
        assert after.snapshot_id == before.snapshot_id, f"a rerun{' by force' if force else ''} has made a snapshot"
        # The seconds that a forced run took are in the manifests, and their digits vary.
        kept = {path: size for path, size in after.files.items() if path not in manifest_sizes}
        assert kept == {path: size for path, size in before.files.items() if path not in manifest_sizes}, "a rerun has changed files"


# --------------------------------------------------------------------------------------------------------------------- I4


def acknowledged_snapshots_stand(site: Site, acknowledged: dict[int, str]) -> None:
    """I4: whatever was said to be committed is in the table's history, or has expired by our retention; nothing it names is missing."""
    table = loaded_table(site)
    if table is None:
        assert not acknowledged, "the table is gone"
        return
    metadata = table.metadata
    known = {snapshot.snapshot_id: snapshot for snapshot in metadata.snapshots}
    ancestors = set()
    at = metadata.current_snapshot_id
    while at is not None and at in known:
        ancestors.add(at)
        at = known[at].parent_snapshot_id
    keep = site.settings.keep_snapshots
    for snapshot_id in [*acknowledged, *site.foreign_snapshots]:
        if snapshot_id in ancestors:
            continue
        assert snapshot_id not in known, f"snapshot {snapshot_id} was acknowledged and is not in the history of the current one"
        assert len(known) >= keep - keep // 10, f"snapshot {snapshot_id} was acknowledged, and is gone although it need not expire"
        if snapshot_id in acknowledged:
            batch = site.settings.calendar.batch(acknowledged[snapshot_id])
            assert site.pipeline.stage.read(ROLLUP_TABLE, batch) is not None, f"snapshot {snapshot_id} of {batch} has no receipt"
    for path, rows in data_files_of(table).items():
        with Place.parse(path, site.settings.s3).open_input() as source:
            assert pq.read_metadata(source).num_rows == rows, path


def data_files_of(table: Table) -> dict[str, int]:
    """Path -> rows of every data file that a snapshot of the table names."""
    found: dict[str, int] = {}
    seen: set[str] = set()
    for snapshot in table.metadata.snapshots:
        for manifest in snapshot.manifests(table.io):
            if manifest.manifest_path not in seen:
                seen.add(manifest.manifest_path)
                for entry in manifest.fetch_manifest_entry(table.io, discard_deleted=True):
                    found[entry.data_file.file_path] = entry.data_file.record_count
    return found


# --------------------------------------------------------------------------------------------------------------------- I5


def one_live_result_per_partition(site: Site) -> None:
    """I5: every manifest's files are there, receipt, staged rollups and table agree, and no window has two rows."""
    pipeline, manifests = site.pipeline, manifests_of(site)
    for (asset, batch), manifest in manifests.items():
        assert (manifest.asset, manifest.partition) == (asset, batch.key)
        assert pipeline.stage.is_complete(manifest, batch), f"{asset} {batch} lacks files"
    rows = rows_of(site)
    windows = Counter((row.id, row.resolution, row.label) for row in rows)
    assert not [window for window, times in windows.items() if times > 1]
    calendar = site.settings.calendar
    by_range = Counter((calendar.containing(row.label), row.resolution) for row in rows)
    for (asset, batch), receipt in manifests.items():
        if asset != ROLLUP_TABLE:
            continue
        rollups = manifests[ROLLUPS, batch]
        assert receipt.digest == rollups.digest, f"the receipt of {batch} is not of the staged rollups"
        for resolution in site.settings.resolutions:
            counted = {by_range[batch, resolution], receipt.counters["rows"][str(resolution)], rollups.counters["rows"][str(resolution)]}
            assert len(counted) == 1, (batch, resolution, counted)
    if not site.foreign and rows:
        named = {_path(file.path) for (asset, _), manifest in manifests.items() if asset == ROLLUPS for file in manifest.files}
        live = {_path(path) for path in _live_paths(site)}
        assert not {path for path in live - named if "/data/rewritten/" not in path}, "the table has files that no manifest names"


def _live_paths(site: Site) -> list[str]:
    table = loaded_table(site)
    return [] if table is None else [task.file.file_path for task in table.scan().plan_files()]


# --------------------------------------------------------------------------------------------------------------------- I6


def leftovers_are_unreachable(site: Site) -> None:
    """I6: ``rollups clean`` deletes what nothing names and nothing else, and then everything is as before."""
    unnamed = set(leftovers(site))
    before = rows_of(site)
    cleaned = clean(site.settings, older_than=0, delete=True)
    assert not cleaned.failures, cleaned.failures
    in_stage_or_table = {_path(left.path) for left in cleaned.deleted if left.kind not in (RECORDS, SCRATCH, UPLOADS)}
    assert in_stage_or_table <= unnamed, f"something that is needed was deleted: {sorted(in_stage_or_table - unnamed)[:5]}"
    # A data file of the same name as a needed one stays as long as that one: an attempt's files of each resolution have the same.
    data = f"{_path((Place.parse(table_location(site.settings), site.settings.s3) / 'data').uri)}/"
    names = {Path(path).name for path in named_files(site) if path.startswith(data)}
    assert [path for path in leftovers(site) if not (path.startswith(data) and Path(path).name in names)] == []
    assert rows_of(site) == before
    pipeline = site.pipeline
    for (_, batch), manifest in manifests_of(site).items():
        pipeline.stage.require_complete(manifest, batch)
    table = loaded_table(site)
    for path in data_files_of(table) if table is not None else ():
        assert Place.parse(path, site.settings.s3).exists(), path
    assert abandoned_folders(site.settings.home / "scratch") == [], "spilled data of dead processes is left"


def leftovers(site: Site) -> list[str]:
    """Files in stage and warehouse that nothing names, in order; what is kept about publishes is no part of any."""
    records = (Place.parse(site.settings.stage, site.settings.s3) / HISTORY).uri
    return sorted(path for path in stored_files(site).keys() - named_files(site) if not path.startswith(f"{records}/"))


def stored_files(site: Site) -> dict[str, int]:
    """Path -> bytes of every file in stage and table, hidden ones too."""
    settings = site.settings
    places = (Place.parse(settings.stage, settings.s3), Place.parse(table_location(settings), settings.s3))
    return {_uri(place, file.path): file.size for place in places for file in place.files()}


def named_files(site: Site) -> set[str]:
    """Path of every file that a manifest or a snapshot of the table names, and of manifests and metadata themselves."""
    pipeline = site.pipeline
    named: set[str] = set()
    for (asset, batch), manifest in manifests_of(site).items():
        named.add((pipeline.stage.folder(asset, batch) / "manifest.json").uri)
        named |= {pipeline.stage.place(manifest, file, batch).uri for file in manifest.files}
    table = loaded_table(site)
    if table is None:
        return named
    metadata = table.metadata
    named |= {table.metadata_location, *(entry.metadata_file for entry in metadata.metadata_log)}
    for snapshot in metadata.snapshots:
        named.add(snapshot.manifest_list)
        named |= {manifest.manifest_path for manifest in snapshot.manifests(table.io)}
    return {_path(path) for path in named | data_files_of(table).keys()}


def _path(uri: str) -> str:
    """Iceberg's other engines write local files as ``file:/path``."""
    return "/" + uri.removeprefix("file:").lstrip("/") if uri.startswith(("file:", "/")) else uri


def _uri(place: Place, path: str) -> str:
    return path if place.is_local else f"{place.location.partition('://')[0]}://{path}"


# --------------------------------------------------------------------------------------------------------------------- I7


def secrets_are_nowhere(site: Site) -> None:
    """I7: no file of the site, logs and catalogs among them, holds a secret of its processes."""
    assert any(canary in value for canary in site.canaries for value in site.environment.values()), "no process has had a canary"
    for canary in site.canaries:
        assert holding(site.home, canary) == [], canary


def refused(said: str, kind: str) -> None:
    """A process has ended with an error of ours, told in one message."""
    if f"refused: {kind}: " not in said:
        pytest.fail(f"expected {kind}, but the process said: {said}")
