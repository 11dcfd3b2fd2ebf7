"""The prepared folder, made once; every page runs in a copy of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from doc_blocks import ROOT
from doc_folder import copy_folder, prepare
from libraries import prepare_libraries


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("prepared"))


@pytest.fixture
def enter_copy(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """Makes a copy of the prepared folder and works in it."""

    def enter() -> Path:
        folder = copy_folder(prepared, tmp_path / "folder")
        monkeypatch.chdir(folder)
        prepare_libraries(tmp_path / "caches", monkeypatch)
        for modules in ("examples", "examples/own_model"):
            monkeypatch.syspath_prepend(ROOT / modules)
        return folder

    return enter
