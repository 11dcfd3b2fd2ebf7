from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_project import write_photos


@pytest.fixture(autouse=True)
def sigterm_does_not_end_pytest() -> Iterator[None]:
    """If training does not handle SIGTERM, its test fails, but pytest goes on."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of small grey images."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder)
    return folder
