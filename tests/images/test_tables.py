"""Parquet files and Hugging Face folders, written by pyarrow as ``datasets`` writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from planted_images import encode, noise

from rarefy.errors import DataError
from rarefy.images import ClassNames, inspect_images, load_images, open_source
from rarefy.images.tables import ImageColumns, Table

PIXELS = noise(0, 7, 8, 8)
STRUCTS = [{"bytes": encode(pixels), "path": f"{row}.png"} for row, pixels in enumerate(PIXELS)]
FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["owl", "cat"]}}
LABELS = [0, 1, 1, 0, 1, 0, 0]


def table(columns: dict[str, Any], features: dict[str, Any] | None = None) -> pa.Table:
    made = pa.table(columns)
    if features is None:
        return made
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(path: Path, content: pa.Table, rows: int = 3) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path, row_group_size=rows)


def write_arrow(path: Path, content: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.ipc.new_stream(str(path), content.schema) as writer:
        writer.write_table(content, max_chunksize=3)


def test_a_folder_of_the_hub(tmp_path: Path) -> None:
    content = table({"image": STRUCTS, "label": LABELS}, FEATURES)
    write_parquet(tmp_path / "data" / "train-00000-of-00002.parquet", content.slice(0, 4))
    write_parquet(tmp_path / "data" / "train-00001-of-00002.parquet", content.slice(4))
    write_parquet(tmp_path / "data" / "test-00000-of-00001.parquet", content.slice(2, 2))
    (tmp_path / "README.md").write_text("---\n")
    train, test = load_images(tmp_path, 8, 1), load_images(tmp_path, 8, 1, "test")
    assert train.class_names == ("cat", "owl")
    assert [train.class_names[label] for label in train.labels] == [("owl", "cat")[label] for label in LABELS]
    assert np.array_equal(train.images[:, 0], PIXELS) and np.array_equal(test.images[:, 0], PIXELS[2:4])
    assert train.keys[0] == "train-00000-of-00002/000000" and len(set(train.keys)) == 7
    model = load_images(tmp_path, 8, 1, classes=ClassNames(("dog", "Owl", "CAT")))
    assert model.labels.tolist() == [(1, 2)[label] for label in LABELS]
    found = inspect_images(tmp_path)
    assert found.counts == {"cat": 3, "owl": 4}
    assert found.skipped["other files and folders next to the data"].first == ["README.md"]
    assert found.skipped["files and folders of other splits"].count == 1


def test_classes_without_rows_are_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", table({"image": STRUCTS[:1], "label": [1]}, FEATURES))
    assert open_source(tmp_path).skipped["classes without images"].first == ["owl"]


def test_what_save_to_disk_leaves(tmp_path: Path) -> None:
    content = table({"img": STRUCTS, "label": LABELS})
    features = {"img": {"_type": "Image"}, "label": FEATURES["label"]}
    for split, rows in (("train", content), ("test", content.slice(0, 2))):
        write_arrow(tmp_path / split / "data-00000-of-00001.arrow", rows)
        (tmp_path / split / "dataset_info.json").write_text(json.dumps({"features": features}))
        (tmp_path / split / "state.json").write_text("{}")
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    train, test = load_images(tmp_path, 8, 1), load_images(tmp_path, 8, 1, "test")
    assert train.class_names == ("cat", "owl") and train.labels.tolist() == [1 - label for label in LABELS]
    assert np.array_equal(train.images[:, 0], PIXELS) and len(test) == 2


def test_names_as_text_and_bytes_without_a_path(tmp_path: Path) -> None:
    images = [struct["bytes"] for struct in STRUCTS]
    names = pa.array(["b", "a", "b", "b", "a", "b", "b"]).dictionary_encode()
    write_parquet(tmp_path / "x.parquet", table({"picture": images, "kind": names, "weight": [0.5] * 7}))
    data = load_images(tmp_path, 8, 1)
    assert data.class_names == ("a", "b") and data.labels.tolist() == [1, 0, 1, 1, 0, 1, 1]


def test_numbers_without_names_are_class_ids(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", table({"image": STRUCTS, "label": LABELS}))
    assert load_images(tmp_path, 8, 1, classes=ClassNames(("owl", "cat"))).labels.tolist() == LABELS


def test_images_are_read_part_by_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "x.parquet", table({"image": STRUCTS, "label": LABELS}), rows=2)
    reads: list[int] = []
    original = pq.ParquetFile.read_row_group

    def count(self: Any, part: int, columns: list[str]) -> pa.Table:
        reads.extend([part] if columns == ["image"] else [])
        return original(self, part, columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", count)
    items = open_source(tmp_path).items
    assert reads == []
    assert [np.asarray(item.place.open()).tolist() for item in items] == PIXELS.tolist()
    assert reads == [0, 1, 2, 3]
    assert np.array_equal(load_images(tmp_path, 8, 1).images[:, 0], PIXELS)
    assert sorted(reads) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_only_the_last_parts_stay_in_memory(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", table({"image": STRUCTS, "label": LABELS}), rows=2)
    content = Table(tmp_path / "x.parquet")
    for kept_bytes, kept in ((0, 2), (1 << 20, 4)):
        columns = ImageColumns(kept_bytes)
        for part in (0, 1, 2, 3):
            assert len(columns.get(content, part, "image")) == (2, 2, 2, 1)[part]
        assert len(columns._kept) == kept


@pytest.mark.parametrize(
    ("columns", "features", "told"),
    [
        ({"label": LABELS}, None, "one column of images; there is none (columns: label)"),
        ({"image": STRUCTS, "x": [0.5] * 7}, None, "one column of labels; there is none"),
        ({"image": STRUCTS, "mask": STRUCTS, "label": LABELS}, None, "columns image, mask could all be it"),
        ({"image": STRUCTS, "fine": LABELS, "coarse": LABELS}, None, "columns fine, coarse could all be it"),
        ({"image": STRUCTS, "label": [-1] * 7}, FEATURES, "row 0 of "),
        ({"image": STRUCTS, "label": [2] * 7}, FEATURES, "label: 2 is not a number from 0 to 1"),
        ({"image": STRUCTS, "label": [None, *LABELS[1:]]}, None, "None is not a class id or a class name"),
        ({"image": [{"bytes": None, "path": "a.png"}] * 7, "label": LABELS}, None, "not contain its bytes"),
        ({"image": pa.array([], pa.binary()), "label": pa.array([], pa.int64())}, None, "have no rows"),
    ],
)
def test_tables_that_are_refused(columns: dict[str, Any], features: Any, told: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", table(columns, features))
    with pytest.raises(DataError) as caught:
        load_images(tmp_path, 8, 1)
    assert told in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["x.parquet", "data-00000.arrow"])
def test_damaged_tables_are_named(name: str, tmp_path: Path) -> None:
    content = table({"image": STRUCTS, "label": LABELS})
    (write_parquet if name.endswith("parquet") else write_arrow)(tmp_path / name, content)
    whole = (tmp_path / name).read_bytes()
    for damaged in (b"", b"nothing", whole[: len(whole) // 2], whole[:-40]):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match=name) as caught:
            load_images(tmp_path, 8, 1)
        assert "\n" not in str(caught.value)
