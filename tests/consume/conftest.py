"""A planted run for the tests that only read it: 40 images of three classes in shards of 7."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from planted_run import make_planted, write_planted_rarity
from s3_stand_in import bucket, s3_server

from rarefy.manifest import Manifest
from rarefy.shards.store import Store

__all__ = ["bucket", "s3_server"]  # fixtures
COUNTS = {0: 18, 4: 16, 9: 6}  # t-shirt/top, coat, ankle boot
SHARD_SIZE = 7


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    out = tmp_path_factory.mktemp("planted") / "out"
    manifest = make_planted(Store(str(out)), COUNTS, SHARD_SIZE)
    write_planted_rarity(Store(str(out)), manifest)
    return out, manifest


@pytest.fixture(scope="session")
def out(finished: tuple[Path, Manifest]) -> Path:
    """Not to be written to."""
    return finished[0]


@pytest.fixture
def own(out: Path, tmp_path: Path) -> Path:
    """A copy of the run for a test that writes to it."""
    shutil.copytree(out, tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """24 real images in class folders: coat 12, T-Shirt_top 8 and Bag 4, whose first pixel is 200 + their number."""
    for name, count in {"coat": 12, "T-Shirt_top": 8, "Bag": 4}.items():
        folder = tmp_path / "photos" / name
        folder.mkdir(parents=True)
        for number in range(count):
            pixels = np.zeros((28, 28), np.uint8)
            pixels[0, 0] = 200 + number
            Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return tmp_path / "photos"
