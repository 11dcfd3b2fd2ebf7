"""Small data sets of images in class folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from own_images import write_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn shapes of five classes, 30 to 6 images, 16 px, colour."""
    return write_shapes(tmp_path_factory.mktemp("photos"), 16, (30, 20, 14, 10, 6))
