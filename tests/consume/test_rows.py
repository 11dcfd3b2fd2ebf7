from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from planted_run import commit_planted, is_accepted, make_planted, planted_confidence, write_planted_audit
from small_run import quiet

from rarefy.consume.rows import read_rows
from rarefy.errors import DataError, OutputError, ShardError
from rarefy.manifest import Manifest
from rarefy.select.stage import SelectOptions
from rarefy.shards.metadata import SCHEMA
from rarefy.shards.store import Store
from rarefy.stages import select

RARITY = ["rarity", "inside", "avgknn", "nearest_distance", "nearest_real"]
SELECT = '[select]\nfrom = 2\nby = "confidence"\non_class = false\ninside = false\n'


def planned_keys(count: int = 40, size: int = 7) -> list[str]:
    return [f"{number // size:06d}{number % size:05d}" for number in range(count)]


def test_rows_are_those_of_the_parquet_files(out: Path) -> None:
    rows = read_rows(Store(str(out)), accepted=False)
    assert rows.columns.tolist() == [*SCHEMA.names, "tar", *RARITY]
    assert rows["key"].tolist() == planned_keys()
    for name, of_shard in rows.groupby("tar"):
        expected = pq.read_table(out / str(name).replace("shards", "metadata").replace(".tar", ".parquet"))
        assert of_shard[SCHEMA.names].to_dict("records") == expected.to_pylist()
    assert rows["rarity"].tolist() == [np.float32(int(key)) for key in rows["key"]]
    assert rows["nearest_real"].tolist() == [f"real-{key}" for key in rows["key"]]


def test_accepted_images_alone_unless_asked(out: Path) -> None:
    assert read_rows(Store(str(out)))["key"].tolist() == [key for key in planned_keys() if is_accepted(key)]


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ("confidence < 0.6", lambda row: row["confidence"] < 0.6),
        ("0.2 <= confidence < 0.6 and accepted", lambda row: 0.2 <= row["confidence"] < 0.6 and row["accepted"]),
        ("not accepted or index == 3", lambda row: not row["accepted"] or row["index"] == 3),
        ("~accepted | (index == 3)", lambda row: not row["accepted"] or row["index"] == 3),
        ("class_name == 'coat'", lambda row: row["class_name"] == "coat"),
        ('class_name in ["coat", "ankle boot"]', lambda row: row["class_name"] in ("coat", "ankle boot")),
        ("class_id not in (0, 4)", lambda row: row["class_id"] == 9),
        ("rarity / 2 > 2 * 70000 - shard", lambda row: row["rarity"] > 28e4 - 2 * row["shard"]),
        (" inside ", lambda row: row["inside"]),
    ],
)  # fmt: skip
def test_where_equals_the_condition_in_python(out: Path, where: str, holds: object) -> None:
    store = Store(str(out))
    every = read_rows(store, accepted=False).to_dict("records")
    expected = [row["key"] for row in every if holds(row)]  # type: ignore[operator]
    assert 0 < len(expected) < len(every)
    assert read_rows(store, where, accepted=False)["key"].tolist() == expected


@pytest.mark.parametrize(
    ("where", "message"),
    [
        (
            "confdence < 0.6",
            "where: 'confdence' is not a column (nearest: confidence)",
        ),
        ("confidence < limit", "where: 'limit' is not a column (known: key, shard, "),
        ("confidence < @limit", "'confidence < @limit' is not a condition on columns, such as"),
        ("key.str.len() > 3", "('key.str.len()' cannot be used in it)"),
        ("key.str", "('key.str' cannot be used in it)"),
        ("confidence[0] > 0", "('confidence[0]' cannot be used in it)"),
        ("(lambda: accepted)", "cannot be used in it"),
        ("9 ** 9 ** 9 > 0", "cannot be used in it"),
        ("confidence == None", "('None' cannot be used in it)"),
        ("confidence", "(it is not true or false for each image)"),
        ("1 < 2", "(it is not true or false for each image)"),
        ("confidence < 'low'", "is not a condition on columns"),
        ("accepted and", "(invalid syntax)"),
        ("", "where: '' is not a condition"),
        ("copy_ratoi < 1", "where: 'copy_ratoi' is not a column (nearest: copy_ratio)"),
        ("class_name * 9999999999 == 'x'", "('class_name * 9999999999' is not arithmetic on numbers)"),
        ("'x' * 9999999999 == class_name", "is not arithmetic on numbers"),
        ("[1] * 9999999999 == class_id", "is not arithmetic on numbers"),
        ("not " * 3000 + "accepted", "is not a condition on columns"),
        (3, "where: 3 is not a condition on columns"),
        ("copy_ratio < 1", "where: 'copy_ratio' is not known: there is no audit; run audit"),
    ],
)
def test_other_conditions_are_refused_in_one_line(out: Path, where: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_rows(Store(str(out)), where)
    assert message in str(caught.value) and str(caught.value).startswith("where: ") and "\n" not in str(caught.value)


def test_copy_ratios_are_joined_by_key_and_nan_elsewhere(own: Path) -> None:
    store, measured = Store(str(own)), planned_keys()[10:30]
    write_planted_audit(store, measured[::-1])
    rows = read_rows(store, accepted=False)
    for key, ratio in zip(rows["key"], rows["copy_ratio"], strict=True):
        assert ratio == int(key[-5:]) if key in measured else math.isnan(ratio)
    for where in ("copy_ratio >= 0", "copy_ratio != -1", "not copy_ratio < 0"):  # unknown where there is no value
        assert read_rows(store, where, accepted=False)["key"].tolist() == measured


def test_values_of_other_shards_are_not_joined(own: Path, finished: tuple[Path, Manifest]) -> None:
    """Rarity and copy ratio were measured on shards that have changed since."""
    store = Store(str(own))
    write_planted_audit(store, planned_keys())
    for name in ("rare-000001.tar", "rare-000001.parquet"):
        next(own.rglob(name)).unlink()
    (own / "state" / "rare-000001.json").unlink()
    (own / "rarity" / "rare-000001.parquet").write_bytes((own / "rarity" / "rare-000002.parquet").read_bytes())
    (own / "index.json").write_bytes((own / "index.json").read_bytes() + b" ")
    commit_planted(store, finished[1], 1)
    assert not {*RARITY, "copy_ratio"} & set(read_rows(store).columns)
    with pytest.raises(DataError, match="'inside' is not known: OUT/rarity has no current file for rare-000001; run a"):
        read_rows(store, "inside")
    with pytest.raises(DataError, match=r"'copy_ratio' is not known: .*out of date"):
        read_rows(store, "copy_ratio < 1")


def test_a_run_that_goes_on_is_read_only_if_asked(own: Path) -> None:
    store = Store(str(own))
    (own / "_SUCCESS").unlink()
    (own / "state" / "rare-000002.json").unlink()
    (own / "rarity" / "rare-000001.parquet").unlink()
    with pytest.raises(OutputError, match="is not a finished run"):
        read_rows(store)
    rows = read_rows(store, accepted=False, partial=True)
    assert rows["key"].tolist() == [key for key in planned_keys() if not key.startswith("000002")]
    assert rows["inside"].isna().tolist() == [key.startswith("000001") for key in rows["key"]]
    few = read_rows(store, "not inside", accepted=False, partial=True)["key"].tolist()
    assert few == [key for key in rows["key"] if not key.startswith("000001") and int(key) % 2]


@pytest.mark.parametrize("how", ["marker", "parquet", "damaged", "swapped"])
def test_damage_is_named(own: Path, how: str) -> None:
    file = own / ("state/rare-000003.json" if how == "marker" else "metadata/rare-000003.parquet")
    if how == "swapped":
        file.write_bytes((own / "metadata" / "rare-000002.parquet").read_bytes())
    else:
        file.write_bytes(file.read_bytes()[:-1]) if how == "damaged" else file.unlink()
    with pytest.raises(ShardError, match="rare-000003"):
        read_rows(Store(str(own)))


def test_the_data_set_of_a_selection_is_the_selected_images(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    make_planted(store, {0: 4, 4: 4}, 3, SELECT)
    select(store, SelectOptions(), quiet)
    rows = read_rows(store, accepted=False)
    tables = [pq.read_table(path).to_pylist() for path in (tmp_path / "out/selected/metadata").glob("*.parquet")]
    assert rows["key"].tolist() == sorted(row["key"] for table in tables for row in table) and len(rows) == 8
    assert rows["confidence"].tolist() == [planted_confidence(key) for key in rows["key"]]
    assert set(rows["tar"]) == {f"shards/{path.name}" for path in (tmp_path / "out/selected/shards").iterdir()}


def test_reading_rows_imports_neither_torch_nor_ray() -> None:
    code = "import sys, rarefy.consume.rows; print([name for name in ('torch', 'ray', 'scipy') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
