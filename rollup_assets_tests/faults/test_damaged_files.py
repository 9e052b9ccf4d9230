"""Bits that flip in staged files and in the table's: an error that says what to do, never another number; and doing it mends them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from rollup_assets.errors import QuarantineError, QueryError, ReconciliationError, StageCorruptError
from rollup_assets.quarantine import allow, quarantined_rows
from rollup_assets.query import query
from rollup_assets.status import status
from rollup_assets.steps.publish import publish
from rollup_assets.steps.repartition import stage_batch
from rollup_assets.steps.results import RolledUp
from rollup_assets.steps.rollup import roll_up
from rollup_assets.storage.manifests import PARTIAL_POINTS, QUARANTINED, REPARTITIONED, ROLLUPS
from rollup_assets.storage.quarantine import quarantine_schema, tallies
from rollup_assets_tests import landing
from rollup_assets_tests.naive import RawRow
from rollup_assets_tests.strategies import HOUR, MINUTE, Grid, crowd

if TYPE_CHECKING:
    from rollup_assets.batches import Batch
    from rollup_assets.pipeline import Pipeline

THOROUGH = pytest.mark.thorough
FIRST_DAY = 1_767_225_600_000
GRID = Grid(FIRST_DAY, HOUR, 3, (MINUTE, HOUR), HOUR)


@dataclass(frozen=True)
class Published:
    """Three hours, published; what the rollups of the last one and the whole table are."""

    pipeline: Pipeline
    batches: list[Batch]
    digest: str
    rows: list[dict[str, Any]]

    def files(self, asset: str, batch: Batch) -> list[Path]:
        manifest = self.pipeline.stage.read(asset, batch)
        assert manifest is not None
        return [Path(self.pipeline.stage.place(manifest, file, batch).path) for file in manifest.files]


def rows_of(pipeline: Pipeline) -> list[dict[str, Any]]:
    return query(pipeline.settings, "SELECT * FROM rollups ORDER BY ALL").to_pylist()


@pytest.fixture(scope="module")
def published(fresh_home: Callable[[], Path]) -> Published:
    pipeline = landing.pipeline_of(GRID, fresh_home())
    landing.land(pipeline, crowd(71, GRID, 60, 3000))
    batches = landing.batches_of(pipeline, GRID)
    for batch in batches:
        stage_batch(pipeline, batch)
        rolled_up = roll_up(pipeline, batch)
        assert isinstance(rolled_up, RolledUp)
        publish(pipeline, batch)
    return Published(pipeline, batches, rolled_up.manifest.digest, rows_of(pipeline))


def flips(chance: random.Random, path: Path, count: int, below: int | None = None) -> Iterator[tuple[int, int]]:
    """Have the file with one bit flipped, so often, and in the end as it was; yields where: ``below`` a place, if given."""
    content = path.read_bytes()
    try:
        for _ in range(count):
            place, bit = chance.randrange(below or len(content)), chance.randrange(8)
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            yield place, bit
    finally:
        path.write_bytes(content)


@pytest.mark.scenario("S3")
@pytest.mark.parametrize("count", [40, pytest.param(400, marks=THOROUGH)])
@pytest.mark.parametrize(("asset", "back"), [(REPARTITIONED, 0), (PARTIAL_POINTS, 0), (PARTIAL_POINTS, 1), (PARTIAL_POINTS, 2)])
def test_a_flipped_bit_in_a_staged_file_is_noticed_or_without_effect(
    published: Published, seed: int, asset: str, back: int, count: int
) -> None:
    """Wherever it is: in pages, their headers, or the footer; of the batch's own files and those of the two before it."""
    pipeline, batch = published.pipeline, published.batches[2]
    chance = random.Random(seed)
    noticed, tried, told = 0, 0, list[str]()
    for path in published.files(asset, published.batches[2 - back]):
        for where in flips(chance, path, count // 4):
            tried += 1
            try:
                found = roll_up(pipeline, batch, force=True)
            except StageCorruptError as error:
                noticed += 1
                told.append(str(error))
            except ReconciliationError:
                noticed += 1
            else:
                assert isinstance(found, RolledUp)
                assert found.manifest.digest == published.digest, f"{path} at {where}"
    assert noticed > tried // 2
    assert all(f"`rollups backfill {published.batches[2 - back].key}" in text for text in told)


@pytest.mark.scenario("S3")
def test_a_flipped_bit_in_a_page_of_the_table_is_an_error_for_who_reads_it(published: Published, seed: int) -> None:
    """Not in the footer, which has no checksum in Parquet and no digest that readers of the table would know."""
    from rollup_assets.verification import verify

    pipeline, batch = published.pipeline, published.batches[2]
    chance = random.Random(seed)
    for path in published.files(ROLLUPS, batch):
        content = path.read_bytes()
        pages = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
        refused: list[str] = []
        damaged = content
        for place, bit in [(chance.randrange(4, pages), chance.randrange(8)) for _ in range(10)]:
            path.write_bytes(flipped := content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            try:
                found = rows_of(pipeline)
            except QueryError as error:
                refused.append(str(error))
                damaged = flipped
            else:
                assert found == published.rows, f"{path} at {place}, {bit}"
        assert len(refused) >= 5
        assert any("checksum" in text for text in refused)
        path.write_bytes(damaged)
        with pytest.raises(Exception, match=r"(?i)checksum|page|parquet"):
            verify(pipeline.settings, [batch])
        path.write_bytes(content)


@pytest.mark.scenario("S3")
@pytest.mark.parametrize("asset", [REPARTITIONED, PARTIAL_POINTS, ROLLUPS])
def test_doing_what_the_error_says_mends_damaged_files(published: Published, asset: str) -> None:
    """A forced rerun finds that it has the same content, and that the files which have it are damaged: they do not stay."""
    pipeline, batch = published.pipeline, published.batches[1]
    before = {name: pipeline.stage.read(name, batch) for name in (REPARTITIONED, PARTIAL_POINTS, ROLLUPS)}
    for path in published.files(asset, batch):
        content = bytearray(path.read_bytes())
        content[len(content) // 3] ^= 1
        path.write_bytes(content)
    stage_batch(pipeline, batch, force=True)
    roll_up(pipeline, batch, force=True)
    publish(pipeline, batch, force=True)
    for name, manifest in before.items():
        found = pipeline.stage.read(name, batch)
        assert found is not None
        assert manifest is not None
        assert found.digest == manifest.digest
        assert (found.attempt == manifest.attempt) == (name != asset)
        assert pipeline.stage.is_intact(found, batch)
    assert rows_of(pipeline) == published.rows
    assert publish(pipeline, batch).unchanged


@pytest.mark.scenario("S3", "B3")
@pytest.mark.parametrize("digest", ["with the footer's digest", "of an earlier version"])
@pytest.mark.parametrize("count", [60, pytest.param(600, marks=THOROUGH)])
def test_a_flipped_bit_in_the_staged_quarantine_is_noticed_or_without_effect(
    fresh_home: Callable[[], Path], seed: int, digest: str, count: int
) -> None:
    """A decision would cover other rows, or the list of partitions end in a traceback."""
    pipeline = landing.pipeline_of(GRID, fresh_home(), quarantine_limit=0)
    batch, other, *_ = landing.batches_of(pipeline, GRID)
    for one in (batch, other):
        rows = [RawRow(None if number % 2 else 7, 1, f"m{number % 5}", one.start + number, number) for number in range(20_000)]
        landing.write_rows(pipeline, one, "a.parquet", [*rows, RawRow(8, 1, "m", one.start - 1, 5)])
        with pytest.raises(QuarantineError):
            stage_batch(pipeline, one)
    allow(pipeline.settings, [batch, other], ["null_id"], [], because="why")
    manifest = pipeline.stage.read(QUARANTINED, batch)
    assert manifest is not None
    if digest != "with the footer's digest":
        without = tuple(file.model_copy(update={"tail": None}) for file in manifest.files)
        pipeline.stage.write(manifest.model_copy(update={"files": without}), batch)
    (path,) = [Path(pipeline.stage.place(manifest, file, batch).path) for file in manifest.files]
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    before = tallies(pipeline.stage, batch, manifest)
    whole = quarantined_rows(pipeline.settings, batch)
    told: list[str] = []
    for where in flips(random.Random(seed), path, count, None if digest == "with the footer's digest" else footer):
        try:
            found = tallies(pipeline.stage, batch, manifest)
            shown = quarantined_rows(pipeline.settings, batch)
        except StageCorruptError as error:
            told.append(str(error))
        else:
            assert found == before, where
            assert shown.rows.equals(whole.rows), where
    assert len(told) > count // 2
    assert all(f"`rollups backfill {batch} {batch} --force`" in text for text in told)
    column = pq.read_metadata(path).row_group(0).column(quarantine_schema("long_value").get_field_index("rows"))
    place = column.data_page_offset + column.total_compressed_size - 1
    path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    damaged, good = status(pipeline.settings, [batch, other])
    assert (damaged.state, good.state) == ("unknown", "quarantined")
    assert "is damaged" in str(damaged.problem)
    with pytest.raises(QuarantineError):
        stage_batch(pipeline, batch, force=True)
    assert quarantined_rows(pipeline.settings, batch).rows.equals(whole.rows)


@pytest.mark.scenario("S3", "B1")
def test_a_raw_file_whose_pages_have_checksums_is_quarantined_for_a_flipped_bit(fresh_home: Callable[[], Path]) -> None:
    """Files of Spark have them; without, the bit is another value, and nobody could tell."""
    pipeline = landing.pipeline_of(GRID, fresh_home())
    (batch, *_) = landing.batches_of(pipeline, GRID)
    rows = [RawRow(7, 1, "cpu", batch.start + number, 1_000_003, None) for number in range(100)]
    path = Path(pipeline.landing_zone.folder(batch).path) / "part-0.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(landing.table_of(rows), path, write_page_checksum=True, use_dictionary=False, compression="none")
    content = bytearray(path.read_bytes())
    content[content.index((1_000_003).to_bytes(8, "little") * 2) + 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(QuarantineError, match=r"part-0\.parquet.*checksum"):
        stage_batch(pipeline, batch)
    assert pipeline.stage.read(REPARTITIONED, batch) is None
