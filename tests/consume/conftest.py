"""A planted run for the tests that only read it: 40 images of three classes in shards of 7."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from planted_run import make_planted, write_planted_rarity

from rarefy.manifest import Manifest
from rarefy.shards.store import Store

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
