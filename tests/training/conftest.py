from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def sigterm_does_not_end_pytest() -> Iterator[None]:
    """If training does not handle SIGTERM, its test fails, but pytest goes on."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, before)
