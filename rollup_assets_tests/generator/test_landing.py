"""The files that ``rollups generate`` writes."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from rollup_assets.batches import Batch
from rollup_assets.errors import GeneratorError
from rollup_assets.generator.dirt import Dirt
from rollup_assets.generator.landing import BAD_FILES, GeneratorOptions, generate
from rollup_assets.settings import Settings, load_settings

CLEAN = Dirt(duplicates=0.0, late=0.0, out_of_order=0.0, nulls=0.0, non_finite=0.0, outside=0.0)


def settings(home: Path, **values: object) -> Settings:
    return load_settings(home=home, **values)


def batches(of: Settings, count: int, first: int = 0) -> Sequence[Batch]:
    start = of.calendar.shifted(of.calendar.first, first)
    assert start
    return list(of.calendar.between(start, of.calendar.shifted(start, count - 1)))


def contents(home: Path) -> dict[str, str]:
    root = home / "raw_datapoints"
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.rglob("*")) if path.is_file()
    }


def read(home: Path, pattern: str = "*.parquet") -> pa.Table:
    files = sorted((home / "raw_datapoints").rglob(pattern))
    return pa.concat_tables([pq.ParquetFile(file).read() for file in files], promote_options="permissive").unify_dictionaries()


def test_the_same_seed_gives_the_same_bytes_whatever_the_threads(tmp_path: Path) -> None:
    options = GeneratorOptions(series=300, files=3, bad_files=4)
    for name, threads in (("a", 1), ("b", 4)):
        of = settings(tmp_path / name, threads=threads)
        generate(of, batches(of, 2), options)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert len(contents(tmp_path / "a")) == 2 * 4 + 4


def test_a_batch_does_not_depend_on_the_other_ones(tmp_path: Path) -> None:
    options = GeneratorOptions(series=100, files=2)
    together, alone = settings(tmp_path / "together"), settings(tmp_path / "alone")
    generate(together, batches(together, 3), options)
    generate(alone, batches(alone, 1, first=2), options)
    of_both = contents(tmp_path / "together")
    assert contents(tmp_path / "alone").items() <= of_both.items()


def test_another_seed_gives_other_bytes(tmp_path: Path) -> None:
    for seed in (1, 2):
        of = settings(tmp_path / str(seed))
        generate(of, batches(of, 1), GeneratorOptions(series=20, seed=seed, files=1))
    assert not set(contents(tmp_path / "1").values()) & set(contents(tmp_path / "2").values())


def test_existing_raw_data_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    of = settings(tmp_path)
    generate(of, batches(of, 1, first=1), GeneratorOptions(series=20))
    before = contents(tmp_path)
    with pytest.raises(GeneratorError, match=r"hour=01 has raw files already .*--from"):
        generate(of, batches(of, 3), GeneratorOptions(series=20, seed=5))
    assert contents(tmp_path) == before


def test_keep_existing_fills_only_what_is_missing(tmp_path: Path) -> None:
    of = settings(tmp_path)
    options = GeneratorOptions(series=20, files=2)
    generate(of, batches(of, 1, first=1), options)
    before = contents(tmp_path)
    made = generate(of, batches(of, 3), options, keep_existing=True)
    assert made.skipped == ("2026-01-01-01:00",)
    assert made.batches == ("2026-01-01-00:00", "2026-01-01-02:00")
    assert before.items() <= contents(tmp_path).items()


def test_a_killed_generator_leaves_nothing_visible_and_the_next_one_starts_over(tmp_path: Path) -> None:
    of = settings(tmp_path)
    left = tmp_path / "raw_datapoints/year=2026/month=01/day=01/.hour=00.generating/part-0000.parquet"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    generate(of, batches(of, 1), GeneratorOptions(series=20, files=1))
    assert not left.parent.exists()
    assert "year=2026/month=01/day=01/hour=00/part-0000.parquet" in contents(tmp_path)


def test_clean_data_has_only_good_points_of_its_batch(tmp_path: Path) -> None:
    of = settings(tmp_path)
    made = generate(of, batches(of, 1), GeneratorOptions(series=200, dirt=CLEAN))
    table = read(tmp_path)
    assert table.num_rows == made.rows
    assert made.dirt == {"duplicates": 0, "late": 0, "nulls": 0, "non_finite": 0, "outside": 0}
    assert all(table[name].null_count == 0 for name in ("id", "org_id", "metric", "logical_timestamp", "long_value"))
    times = table["logical_timestamp"].to_numpy()
    assert batches(of, 1)[0].start <= times.min()
    assert times.max() < batches(of, 1)[0].end
    assert table.group_by(["id", "logical_timestamp"]).aggregate([]).num_rows == table.num_rows


def test_dirt_comes_in_the_wanted_shares(tmp_path: Path) -> None:
    of = settings(tmp_path)
    dirt = Dirt(duplicates=0.02, late=0.05, out_of_order=0.1, nulls=0.01, non_finite=0.3, outside=0.03)
    made = generate(of, batches(of, 1), GeneratorOptions(series=400, dirt=dirt))
    table = read(tmp_path)
    batch = batches(of, 1)[0]
    rows = table.num_rows
    assert made.rows == rows
    nulls = sum(table[name].null_count for name in ("id", "org_id", "metric", "logical_timestamp", "long_value"))
    assert nulls == made.dirt["nulls"]
    assert nulls / rows == pytest.approx(0.01, rel=0.1)
    times = table["logical_timestamp"].drop_null().to_numpy()
    outside = ((times < batch.start) | (times >= batch.end)).sum()
    assert outside == made.dirt["outside"]
    assert outside / rows == pytest.approx(0.03, rel=0.1)
    assert (times == batch.end).any()
    good = table.filter(pc.is_valid(table["id"]))
    repeated = rows - good.group_by(["id", "logical_timestamp"]).aggregate([]).num_rows
    assert made.dirt["duplicates"] / rows == pytest.approx(0.02, rel=0.1)
    assert repeated > made.dirt["duplicates"] * 0.8
    late = read(tmp_path, "*-late.parquet")
    assert late.num_rows == made.dirt["late"]
    assert late.num_rows / rows == pytest.approx(0.05 + 0.01, rel=0.15)
    assert made.dirt["non_finite"] == 0, "int64 values have no NaN"


def test_double_values_have_some_that_are_not_finite(tmp_path: Path) -> None:
    of = settings(tmp_path, value_type="double")
    made = generate(of, batches(of, 1), GeneratorOptions(series=200, dirt=Dirt(non_finite=0.02)))
    values = read(tmp_path)["double_value"].drop_null().to_numpy()
    assert (~np.isfinite(values)).sum() == made.dirt["non_finite"]
    assert made.dirt["non_finite"] / len(values) == pytest.approx(0.02, rel=0.15)


def test_bad_files_cannot_be_read_as_raw_data(tmp_path: Path) -> None:
    """One of each kind: three that no Parquet reader gets through, one with another schema."""
    of = settings(tmp_path)
    made = generate(of, batches(of, 2), GeneratorOptions(series=50, bad_files=4))
    found = {
        path.stem.split("-", 2)[2]: path
        for path in (tmp_path / "raw_datapoints").rglob("*.parquet")
        if "-late" not in path.stem and path.stem.count("-") >= 2
    }
    assert set(found) == set(BAD_FILES)
    assert made.dirt["bad_files"] == 4
    for kind in ("truncated", "corrupt", "zero-byte"):
        with pytest.raises((pa.ArrowInvalid, OSError)):
            pq.ParquetFile(found[kind]).read()
    assert pq.read_schema(found["wrong-schema"]).field("long_value").type == pa.string()
    assert not [path for path in (tmp_path / "raw_datapoints").rglob("*-late.parquet") if pq.read_metadata(path).num_rows == 0]


def test_layout_batch_length_and_receive_timestamps_follow_settings_and_options(tmp_path: Path) -> None:
    of = settings(tmp_path, batch="1d", raw_layout="days/%Y%m%d")
    generate(of, batches(of, 2), GeneratorOptions(series=30, files=2, receive_timestamps=False, interval=70_000, dirt=CLEAN))
    assert set(contents(tmp_path)) == {f"days/{day}/part-000{number}.parquet" for day in ("20260101", "20260102") for number in (0, 1)}
    assert "receive_timestamp" not in read(tmp_path).schema.names
    for batch, day in zip(batches(of, 2), ("20260101", "20260102"), strict=True):
        times = read(tmp_path, f"{day}/*.parquet")["logical_timestamp"].to_numpy()
        assert batch.start <= times.min()
        assert times.max() < batch.end


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (GeneratorOptions(series=0), "--series"),
        (GeneratorOptions(interval=7_200_000), "--interval 2h"),
        (GeneratorOptions(dirt=Dirt(nulls=1.5)), "--nulls 1.5 is not a share"),
        (GeneratorOptions(dirt=Dirt(nulls=0.6, outside=0.6)), "add up to 1"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, options: GeneratorOptions, message: str) -> None:
    of = settings(tmp_path)
    with pytest.raises(GeneratorError, match=message):
        generate(of, batches(of, 1), options)
    assert not (tmp_path / "raw_datapoints").exists()
