"""A planted run that every test reads: 40 images of three classes in shards of 7, two of them excluded."""

from __future__ import annotations

from pathlib import Path

import pytest
from planted_run import make_planted, write_planted_rarity

from rarefy.consume.exclusions import write_exclusions
from rarefy.shards.store import Store

COUNTS = {0: 18, 4: 16, 9: 6}  # t-shirt/top, coat, ankle boot
EXCLUDED = ("00000100003", "00000100004")  # the second one is not accepted either


@pytest.fixture(scope="session")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    folder = tmp_path_factory.mktemp("planted") / "out"
    store = Store(str(folder))
    write_planted_rarity(store, make_planted(store, COUNTS, 7))
    write_exclusions(store, EXCLUDED)
    return folder
