"""Labelled images are read from each kind of source; the files are real."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rarefy.errors import DataError
from rarefy.images import load_images

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (6, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


def write_idx(folder: Path, prefix: str, images: np.ndarray, labels: np.ndarray) -> None:
    header = struct.pack(">HBB3I", 0, 8, 3, *images.shape)
    (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + images.tobytes()))
    header = struct.pack(">HBBI", 0, 8, 1, len(labels))
    (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(header + labels.astype(np.uint8).tobytes())
    (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + labels.astype(np.uint8).tobytes()))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_idx_files_by_split(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", PIXELS, LABELS)
    write_idx(tmp_path, "t10k", PIXELS[:2], LABELS[:2])
    train, test = (load_images(tmp_path, 8, 1, split) for split in ("train", "test"))
    assert np.array_equal(train.images[:, 0], PIXELS) and train.labels.tolist() == LABELS.tolist()
    assert np.array_equal(test.images[:, 0], PIXELS[:2]) and len(test) == 2


def test_class_folders_name_their_classes(tmp_path: Path) -> None:
    for name, row in (("dress", 1), ("bag", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(PIXELS[row]))
    data = load_images(tmp_path, 8, 1)
    assert data.keys == ("bag/a.png", "dress/a.png")
    assert data.class_names == ("bag", "dress") and data.labels.tolist() == [0, 1]
    assert np.array_equal(data.images[:, 0], PIXELS[:2])


def test_other_sizes_are_cropped_to_the_centre_and_resized(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    wide = np.zeros((16, 32, 3), np.uint8)
    wide[:, 8:24] = (10, 20, 30)
    (tmp_path / "x" / "wide.png").write_bytes(png(wide))
    data = load_images(tmp_path, 8, 3)
    assert data.images.shape == (1, 3, 8, 8)
    assert (data.images[0] == np.array([10, 20, 30])[:, None, None]).all()


def test_webdataset_shards(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a-000000.tar", "w") as tar:
        for row in range(3):
            for name, content in ((f"{row:05d}.png", png(PIXELS[row])), (f"{row:05d}.cls", str(LABELS[row]).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    data = load_images(tmp_path, 8, 1)
    assert data.keys == ("00000", "00001", "00002")
    assert np.array_equal(data.images[:, 0], PIXELS[:3]) and data.labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize("case", ["absent", "empty", "broken image", "truncated idx"])
def test_unusable_sources_are_named(case: str, tmp_path: Path) -> None:
    source = tmp_path / "data"
    if case != "absent":
        source.mkdir()
    if case == "broken image":
        (source / "x").mkdir()
        (source / "x" / "bad.png").write_bytes(b"no image")
    if case == "truncated idx":
        write_idx(source, "train", PIXELS, LABELS)
        file = source / "train-images-idx3-ubyte.gz"
        file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(DataError, match=r"^data: .*data"):
        load_images(source, 8, 1)


def test_the_hash_follows_pixels_and_labels(tmp_path: Path) -> None:
    write_idx(tmp_path, "train", PIXELS, LABELS)
    first = load_images(tmp_path, 8, 1).sha256()
    write_idx(tmp_path, "train", PIXELS, LABELS[::-1])
    assert load_images(tmp_path, 8, 1).sha256() != first
