"""A stand-in for the Hub, and sealed runs and a model folder to push to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from publish.hub_stand_in import TOKEN, HubStandIn, serving
from publish.sealed_run import write_run

from rarefy.shards.store import Store

constants = pytest.importorskip("huggingface_hub.constants")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStandIn]:
    """An empty Hub that this process is logged in to; failing calls are repeated for a moment only."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True, raising=False)  # older versions have no xet
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.setattr("rarefy.publish.hub.PATIENCE_S", 1.0)
    monkeypatch.setattr("rarefy.shards.retry.FIRST_DELAY_S", 0.01)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with serving() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)  # --endpoint sets it; it is put back afterwards
        yield stand_in


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "out"
    write_run(Store(str(folder)))
    return folder


@pytest.fixture
def out(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a sealed run of three shards."""
    return Path(shutil.copytree(finished_run, tmp_path / "out"))
