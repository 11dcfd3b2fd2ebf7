"""Options of the whole suite."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

SLOW_S = 5  # of a test marked slow that does not say how slow


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files with the longest tests first, so that none of them is left to one process at the end."""
    seconds = Counter[Path]()
    for item in items:
        if (marker := item.get_closest_marker("slow")) is not None:
            seconds[item.path] += marker.args[0] if marker.args else SLOW_S
    items.sort(key=lambda item: -seconds[item.path])


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden", default=str(Path(__file__).parent / "golden"), help="folder of golden tensors")
