from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from made_up_audit import make_png
from PIL import Image

from rarefy.consume import RareImages, RealImages
from rarefy.errors import DataError


def test_classes_are_matched_by_name(out: Path, photos: Path) -> None:
    rare = RareImages(out)
    real = RealImages(photos, rare)
    assert len(real) == 24 and real.class_names == rare.class_names
    ids = {"Bag": 8, "T-Shirt_top": 0, "coat": 4}
    for place in range(24):
        folder, file = real.key(place).split("/")
        image, label = real[place]
        assert label == ids[folder] == real.labels[place]
        assert image.shape == (1, 28, 28) and round(float(image[0, 0, 0]) * 255) == 200 + int(file[:2])


def test_a_relative_path_means_the_same_in_another_folder(
    out: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rare = RareImages(out)
    monkeypatch.chdir(photos.parent)
    images = RealImages("photos", rare)
    monkeypatch.chdir(out)
    assert torch.equal(images[0][0], RealImages(photos, rare)[0][0])


def test_a_class_without_partner_is_refused(out: Path, photos: Path) -> None:
    (photos / "coat").rename(photos / "coats")
    with pytest.raises(DataError, match="matched by name; 'coats' is not in the model") as caught:
        RealImages(photos, RareImages(out))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["parquet", "arrow"])
def test_tables_are_read_and_can_be_sent_to_spawned_processes(out: Path, tmp_path: Path, ending: str) -> None:
    table = pa.table({"image": [make_png(7), make_png(9)], "label": ["coat", "bag"]})
    if ending == "parquet":
        pq.write_table(table, tmp_path / "train.parquet")
    else:
        with pa.OSFile(str(tmp_path / "train.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    real = RealImages(tmp_path / f"train.{ending}", RareImages(out))
    copy = pickle.loads(pickle.dumps(real))
    for images in (real, copy):
        assert [(round(float(image.mean()) * 255), label) for image, label in (images[0], images[1])] == [
            (7, 4),
            (9, 8),
        ]


def test_other_sizes_and_modes_fit_unless_a_transform_decides(out: Path, photos: Path) -> None:
    Image.new("RGB", (60, 40), (255, 0, 0)).save(photos / "coat" / "00.png")
    rare = RareImages(out)
    real = RealImages(photos, rare)
    place = next(place for place in range(24) if real.key(place) == "coat/00.png")
    assert real[place][0].shape == (1, 28, 28) and torch.allclose(real[place][0], torch.tensor(76 / 255))
    seen = RealImages(photos, rare, transform=lambda image: (image.mode, image.size))
    assert seen[place] == (("L", (60, 40)), 4)
    colour = RealImages(photos, RareImages(out, mode="RGB"))
    assert colour[place][0].shape == (3, 28, 28) and colour[place][0][:, 5, 5].tolist() == [1, 0, 0]


def test_a_broken_image_is_named(out: Path, photos: Path) -> None:
    (photos / "coat" / "03.png").write_bytes(b"no image")
    real = RealImages(photos, RareImages(out))
    place = next(place for place in range(24) if real.key(place) == "coat/03.png")
    with pytest.raises(DataError, match=r"coat/03.png is not a readable image"):
        real[place]


def test_splits_are_those_of_the_data(out: Path, photos: Path, tmp_path: Path) -> None:
    for split, name in (("train", "coat"), ("test", "Bag")):
        (tmp_path / "data" / split).mkdir(parents=True)
        (photos / name).rename(tmp_path / "data" / split / name)
    rare = RareImages(out)
    assert set(RealImages(tmp_path / "data", rare).labels.tolist()) == {4}
    assert np.unique(RealImages(tmp_path / "data", rare, split="test").labels).tolist() == [8]
