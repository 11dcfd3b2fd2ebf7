"""Other libraries in tests: caches in a temporary folder, no network, and what a planted run's readers must find."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from planted_run import key_of

from rarefy.torchvision_operators import import_module

Snippet = Callable[..., dict[str, Any]]  # runs a snippet of a page; returns its names


@dataclass(frozen=True)
class Run:
    """A data set on disk, and the class id of each of its images by key."""

    folder: Path
    labels: dict[str, int]

    def check(self, images: list[tuple[NDArray[np.uint8], int]]) -> None:
        """Whether these images (28, 28), in any order, are those of the run, each with its class id."""
        found = sorted((key_of(pixels[None]), int(label)) for pixels, label in images)
        assert found == sorted(self.labels.items())


def prepare_libraries(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called before a snippet that uses datasets, wids or torchvision. folder: for their caches."""
    monkeypatch.setenv("WIDS_CACHE", str(folder / "wids"))
    import_module("torchvision")
    with suppress(ImportError):
        config = importlib.import_module("datasets.config")
        monkeypatch.setattr(config, "HF_DATASETS_CACHE", folder / "datasets")
        monkeypatch.setattr(config, "HF_HUB_OFFLINE", True)
