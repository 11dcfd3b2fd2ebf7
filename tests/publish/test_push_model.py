"""``rarefy push`` of model folders: what is sent, what stays here, and what the card says."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import huggingface_hub
import pytest
from publish.hub_stand_in import HubStandIn
from small_model import MODEL, write_model

from rarefy.cli import main
from rarefy.models.folder import read_model_folder
from rarefy.publish.content import read_content

NAME = "org/model"
WITH_IMAGES = dataclasses.replace(MODEL, files={**MODEL.files, "reference": "reference"})
SENT = {"config.json", "README.md", "unet.safetensors", "classifier.safetensors", "training/unet/log.jsonl"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder with real images, a checkpoint, a log and a stray file."""
    path = write_model(tmp_path / "model", WITH_IMAGES)
    for name in ("reference/0.tar", "training/unet/state.pt", "training/unet/log.jsonl", "notes.txt"):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(name.encode())
    (path / "README.md").write_text("---\nlicense: mit\n---\n# tiny\n")
    return path


def push(hub: HubStandIn, source: Path, *options: str) -> int:
    return main(["push", str(source), NAME, "--endpoint", hub.url, *options])


def test_a_model_arrives_without_real_images_and_checkpoints(
    hub: HubStandIn, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(hub, model, "--dry-run") == 0
    text = capsys.readouterr().out
    for line in (
        "left out: reference: real images; --real-images sends them too",
        "left out: training/unet/state.pt: only for resuming the training",
        "left out: notes.txt: not part of the model folder",
    ):
        assert line in text
    assert push(hub, model) == 0
    assert hub.repositories[NAME].files.keys() - {".gitattributes"} == SENT
    copy = tmp_path / "copy"
    huggingface_hub.snapshot_download(NAME, local_dir=copy, endpoint=hub.url)
    assert read_model_folder(copy) == dataclasses.replace(MODEL, path=copy)
    assert (copy / "unet.safetensors").read_bytes() == (model / "unet.safetensors").read_bytes()


def test_real_images_are_sent_if_asked_for(hub: HubStandIn, model: Path) -> None:
    assert push(hub, model, "--real-images") == 0
    files = hub.repositories[NAME].files
    assert files.keys() - {".gitattributes"} == SENT | {"reference/0.tar"}
    assert files["config.json"] == (model / "config.json").read_bytes()


def test_a_folder_without_a_card_gets_one(model: Path) -> None:
    (model / "README.md").unlink()
    content = read_content(str(model))
    card = huggingface_hub.ModelCard(content.card)
    assert (card.data.library_name, card.data.model_name) == ("rarefy", "tiny")
    assert content.notes[0] == "the folder has no README.md; a short one is made"


def test_results_that_the_hub_cannot_read_are_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "README.md").write_text("---\nlicense: mit\nmodel-index:\n- name: tiny\n  results:\n  - task: 5\n---\n")
    assert main(["push", str(model), NAME, "--dry-run"]) == 2
    assert "README.md: its metadata cannot be read" in capsys.readouterr().err


def test_a_model_that_is_not_trained_is_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (model / "unet.safetensors").unlink()
    assert main(["push", str(model), NAME, "--dry-run"]) == 2
    assert "is not trained yet: it lacks unet.safetensors" in capsys.readouterr().err


def test_other_peoples_models_are_not_overwritten(
    hub: HubStandIn, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(hub, model) == 0
    hub.repositories[NAME].files["pytorch_model.bin"] = b"theirs"
    assert push(hub, model) == 2
    assert "has other files: pytorch_model.bin" in capsys.readouterr().err
