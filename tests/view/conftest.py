"""Runs to look at: a planted one that only serves, and a copy for tests that write to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from planted_run import make_planted, write_planted_audit, write_planted_rarity
from traced_run import make_traced

from rarefy.shards.store import Store
from rarefy.view.app import App, ViewOptions
from rarefy.view.run import Run

COUNTS = {0: 18, 4: 16, 9: 6}  # t-shirt/top, coat, ankle boot
SHARD_SIZE = 7


@pytest.fixture(scope="session")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 images in six shards, with rarity. Not to be written to."""
    out = tmp_path_factory.mktemp("planted") / "out"
    store = Store(str(out))
    write_planted_rarity(store, make_planted(store, COUNTS, SHARD_SIZE))
    write_planted_audit(store, ["00000000000", "00000100003"])
    return out


@pytest.fixture(scope="session")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three images of the embedded model. Not to be written to."""
    return make_traced(tmp_path_factory.mktemp("traced") / "out")


@pytest.fixture
def own(planted: Path, tmp_path: Path) -> Path:
    """A copy of the run."""
    shutil.copytree(planted, tmp_path / "own")
    return tmp_path / "own"


@pytest.fixture
def app(own: Path) -> Iterator[App]:
    made = App(Run(Store(str(own))), ViewOptions())
    yield made
    made.close()
