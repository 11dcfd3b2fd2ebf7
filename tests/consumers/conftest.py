"""Planted runs for other libraries to read, and the snippets of docs/EXPORT.md, which the tests run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from doc_blocks import ROOT, find_blocks
from libraries import Run, Snippet, prepare_libraries
from planted_run import make_planted, write_planted_rarity
from small_run import quiet

from rarefy.select.stage import SelectOptions
from rarefy.shards.metadata import read_records
from rarefy.shards.store import Store
from rarefy.stages import select

SELECT = '[select]\nfrom = 2\nby = "confidence"\non_class = false\ninside = false\n'


def _labels(store: Store, shards: int) -> dict[str, int]:
    records = (record for number in range(shards) for record in read_records(store, f"rare-{number:06d}"))
    return {record.key: record.class_id for record in records}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The working folder of the snippets, with out/demo."""
    return tmp_path_factory.mktemp("consumers")


@pytest.fixture(scope="session")
def demo(folder: Path) -> Run:
    """60 images in 6 shards."""
    store = Store(str(folder / "out" / "demo"))
    write_planted_rarity(store, make_planted(store, dict.fromkeys(range(10), 6), 10))
    return Run(folder / "out" / "demo", _labels(store, 6))


@pytest.fixture(scope="session")
def one_shard(folder: Path) -> Run:
    store = Store(str(folder / "out" / "one"))
    make_planted(store, {0: 5, 9: 7}, 20)
    return Run(folder / "out" / "one", _labels(store, 1))


@pytest.fixture(scope="session")
def selected(folder: Path) -> Run:
    """20 of 40 images."""
    store = Store(str(folder / "out" / "selection"))
    make_planted(store, {0: 12, 4: 8}, 7, SELECT)
    select(store, SelectOptions(), quiet)
    return Run(folder / "out" / "selection", _labels(store.folder("selected"), 3))


@pytest.fixture
def snippet(folder: Path, demo: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Snippet:
    """Runs the snippet of docs/EXPORT.md that has a word, in the folder with out/demo, and returns its names.

    Each pair of texts in ``changes`` is an old and a new one, such as another number of workers.
    """
    monkeypatch.chdir(folder)
    prepare_libraries(tmp_path, monkeypatch)

    def run(word: str, *changes: tuple[str, str]) -> dict[str, Any]:
        blocks = find_blocks(ROOT / "docs" / "EXPORT.md")
        (text,) = (block.text for block in blocks if block.language == "python" and word in block.text)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        names: dict[str, Any] = {"__name__": "page"}
        exec(compile(text, "docs/EXPORT.md", "exec", dont_inherit=True), names)
        return names

    return run
